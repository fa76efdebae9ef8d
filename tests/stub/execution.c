/* One device, whose streams have always done all they were given, and which still counts waits. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver_types.h"
#include "stub.h"
#include "vector_types.h"

EXPORT long long stub_counts[STUB_COUNTS];
/* Called at every wait, from the thread that waits. */
EXPORT void (*stub_on_wait)(void);

static long long given, known;
static __thread int error;

void stub_add(enum stub_count what) {
    __atomic_add_fetch(&stub_counts[what], 1, __ATOMIC_RELAXED);
    if (what <= STUB_COPY) __atomic_add_fetch(&given, 1, __ATOMIC_RELAXED);
}

/* A kernel that does not come through the runtime: Triton's. */
EXPORT void stub_launch(void) { stub_add(STUB_LAUNCH); }

long long stub_given(void) { return __atomic_load_n(&given, __ATOMIC_RELAXED); }

void stub_wait_for(long long work) {
    if (work <= known) return;
    known = work;
    stub_add(STUB_WAIT);
    if (stub_on_wait) stub_on_wait();
}

void stub_set_error(int code) { error = code; }

EXPORT int cudaGetLastError(void) {
    int code = error;
    error = 0;
    return code;
}
EXPORT int cudaPeekAtLastError(void) { return error; }
EXPORT const char *cudaGetErrorString(int code) { return "an error of the CUDA runtime"; }
EXPORT const char *cudaGetErrorName(int code) { return "cudaError"; }

/* The device: an H100. */
#define THREADS 1024
#define SHARED 49152
#define SHARED_MOST 232448
#define SHARED_SM 233472
#define PROCESSORS 132

EXPORT int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
EXPORT int cudaGetDevice(int *device) { *device = 0; return 0; }
EXPORT int cudaSetDevice(int device) { return 0; }
EXPORT int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
EXPORT int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
EXPORT int cudaDeviceCanAccessPeer(int *can, int from, int to) { *can = 0; return 0; }
EXPORT int cudaDeviceGetPCIBusId(char *out, int size, int device) {
    snprintf(out, size, "0000:00:00.0");
    return 0;
}

EXPORT int cudaGetDeviceProperties(struct cudaDeviceProp *out, int device) {
    memset(out, 0, sizeof *out);
    strcpy(out->name, "a device that does nothing");
    out->totalGlobalMem = (size_t)80 << 30;
    out->major = 9;
    out->multiProcessorCount = PROCESSORS;
    out->warpSize = 32;
    out->maxThreadsPerBlock = out->maxThreadsDim[0] = out->maxThreadsDim[1] = THREADS;
    out->maxThreadsDim[2] = 64;
    out->maxGridSize[0] = 2147483647;
    out->maxGridSize[1] = out->maxGridSize[2] = 65535;
    out->maxThreadsPerMultiProcessor = 2048;
    out->sharedMemPerBlock = SHARED;
    out->sharedMemPerBlockOptin = SHARED_MOST;
    out->sharedMemPerMultiprocessor = SHARED_SM;
    out->regsPerBlock = out->regsPerMultiprocessor = 65536;
    out->l2CacheSize = 50 << 20;
    out->totalConstMem = 65536;
    out->textureAlignment = 512;
    out->concurrentKernels = out->unifiedAddressing = out->managedMemory = 1;
    out->concurrentManagedAccess = 1;
    return 0;
}

EXPORT int cudaDeviceGetAttribute(int *out, int which, int device) {
    switch (which) {
        case cudaDevAttrMaxThreadsPerBlock:
        case cudaDevAttrMaxBlockDimX:
        case cudaDevAttrMaxBlockDimY: *out = THREADS; break;
        case cudaDevAttrMaxBlockDimZ: *out = 64; break;
        case cudaDevAttrMaxGridDimX: *out = 2147483647; break;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ: *out = 65535; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *out = SHARED; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *out = SHARED_MOST; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *out = SHARED_SM; break;
        case cudaDevAttrWarpSize: *out = 32; break;
        case cudaDevAttrMaxRegistersPerBlock:
        case cudaDevAttrMaxRegistersPerMultiprocessor: *out = 65536; break;
        case cudaDevAttrMultiProcessorCount: *out = PROCESSORS; break;
        case cudaDevAttrMaxBlocksPerMultiprocessor: *out = 32; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *out = 2048; break;
        case cudaDevAttrComputeCapabilityMajor: *out = 9; break;
        case cudaDevAttrL2CacheSize: *out = 50 << 20; break;
        default: *out = 0;
    }
    return 0;
}

EXPORT int cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *kernel) {
    memset(out, 0, sizeof *out);
    out->maxThreadsPerBlock = THREADS;
    out->numRegs = 32;
    out->ptxVersion = out->binaryVersion = 90;
    out->maxDynamicSharedSizeBytes = SHARED;
    return 0;
}

EXPORT int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *out, const void *kernel, int threads,
                                                         size_t shared) {
    *out = 2;
    return 0;
}
EXPORT int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *out, const void *kernel,
                                                                  int threads, size_t shared,
                                                                  unsigned flags) {
    *out = 2;
    return 0;
}

/* Streams are names. */
static int new_stream(void **out) {
    static long last = 0x1000;
    *out = (void *)__atomic_add_fetch(&last, 16, __ATOMIC_RELAXED);
    return 0;
}
EXPORT int cudaStreamCreate(void **out) { return new_stream(out); }
EXPORT int cudaStreamCreateWithFlags(void **out, unsigned flags) { return new_stream(out); }
EXPORT int cudaStreamCreateWithPriority(void **out, unsigned flags, int priority) {
    return new_stream(out);
}
EXPORT int cudaStreamGetPriority(void *stream, int *out) { *out = 0; return 0; }
EXPORT int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return 0;
}
EXPORT int cudaStreamIsCapturing(void *stream, int *out) { *out = 0; return 0; }
EXPORT int cudaStreamGetCaptureInfo(void *stream, int *status, unsigned long long *id, void *graph,
                                    void *nodes, void *edges, size_t *count) {
    if (status) *status = 0;
    if (id) *id = 0;
    return 0;
}
EXPORT int cudaStreamSynchronize(void *stream) { stub_wait_for(stub_given()); return 0; }
EXPORT int cudaDeviceSynchronize(void) { stub_wait_for(stub_given()); return 0; }
EXPORT int cudaLaunchHostFunc(void *stream, void (*work)(void *), void *data) {
    work(data);
    return 0;
}
EXPORT int cudaStreamAddCallback(void *stream, void (*work)(void *, int, void *), void *data,
                                 unsigned flags) {
    work(stream, 0, data);
    return 0;
}

/* Events hold the number of the last work before them. */
EXPORT int cudaEventCreate(void **out) { *out = calloc(1, sizeof(long long)); return 0; }
EXPORT int cudaEventCreateWithFlags(void **out, unsigned flags) { return cudaEventCreate(out); }
EXPORT int cudaEventDestroy(void *event) { free(event); return 0; }
EXPORT int cudaEventRecord(void *event, void *stream) {
    *(long long *)event = stub_given();
    return 0;
}
EXPORT int cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) {
    return cudaEventRecord(event, stream);
}
EXPORT int cudaEventSynchronize(void *event) { stub_wait_for(*(long long *)event); return 0; }
EXPORT int cudaEventElapsedTime(float *out, void *from, void *to) { *out = 1.0f; return 0; }

/* Launches, refused where CUDA would refuse them. */
static int launch(dim3 grid, dim3 block) {
    stub_add(STUB_LAUNCH);
    int grid_fits = grid.x && grid.x <= 2147483647u && grid.y && grid.y <= 65535 && grid.z &&
                    grid.z <= 65535;
    size_t threads = (size_t)block.x * block.y * block.z;
    if (grid_fits && threads && threads <= THREADS) return 0;
    fprintf(stderr, "stub: CUDA refuses the grid %u, %u, %u of blocks %u, %u, %u\n", grid.x,
            grid.y, grid.z, block.x, block.y, block.z);
    error = cudaErrorInvalidConfiguration;
    return error;
}
EXPORT int cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments,
                            size_t shared, void *stream) {
    return launch(grid, block);
}
EXPORT int __cudaLaunchKernel(void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                              void *stream) {
    return launch(grid, block);
}
EXPORT int cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel,
                               void **arguments) {
    return launch(config->gridDim, config->blockDim);
}

/* What nvcc puts around kernels. */
static __thread struct {
    dim3 grid, block;
    size_t shared;
    void *stream;
} pushed;
EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    pushed.grid = grid;
    pushed.block = block;
    pushed.shared = shared;
    pushed.stream = stream;
    return 0;
}
EXPORT int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = pushed.grid;
    *block = pushed.block;
    *shared = pushed.shared;
    *(void **)stream = pushed.stream;
    return 0;
}
EXPORT void **__cudaRegisterFatBinary(void *binary) {
    static void *handle;
    return &handle;
}
EXPORT int __cudaGetKernel(void **out, const void *kernel) { *out = (void *)kernel; return 0; }
EXPORT int cudaGetSymbolAddress(void **out, const void *symbol) {
    static char memory[1 << 20];
    *out = memory;
    return 0;
}

/* The driver's own entry points, which torch asks the runtime for. */
static int nothing(void) { return 0; }
static int context_state(int device, unsigned *flags, int *active) {
    if (flags) *flags = 0;
    *active = 1;
    return 0;
}
EXPORT int cudaGetDriverEntryPointByVersion(const char *name, void **out, unsigned version,
                                            unsigned long long flags, int *status) {
    int asked = !strcmp(name, "cuDevicePrimaryCtxGetState");
    *out = asked ? (void *)context_state : (void *)nothing;
    if (status) *status = 0;
    return 0;
}
EXPORT int cudaGetDriverEntryPoint(const char *name, void **out, unsigned long long flags,
                                   int *status) {
    return cudaGetDriverEntryPointByVersion(name, out, 0, flags, status);
}
