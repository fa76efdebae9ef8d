/* Device memory is host memory that is reserved and takes none until it is written. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "driver_types.h"
#include "stub.h"

/* Larger copies and fills do nothing: nobody looks at weights and gradients. Copies to the host are
   made, for the host decides by them. */
#define COPIED ((size_t)1 << 20)
/* A copy from pageable memory up to this size goes through the driver's own buffer. */
#define STAGED ((size_t)64 << 10)
#define PLACES (1 << 17)

struct place {
    char *start;
    size_t size;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct place device[PLACES], pinned[PLACES];
static int devices, pins;
static long long live;

static long long limit(void) {
    static long long bytes;
    if (!bytes) {
        const char *mib = getenv("STUB_LIMIT_MIB");
        bytes = (mib ? atoll(mib) : 80 << 10) << 20;
    }
    return bytes;
}

static void keep(struct place *places, int *count, void *start, size_t size) {
    pthread_mutex_lock(&lock);
    if (*count == PLACES) abort();
    places[(*count)++] = (struct place){start, size};
    pthread_mutex_unlock(&lock);
}

/* Returns the size of what started there, 0 for nothing. */
static size_t drop(struct place *places, int *count, void *start) {
    size_t size = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < *count && !size; i++)
        if (places[i].start == start) {
            size = places[i].size;
            places[i] = places[--*count];
        }
    pthread_mutex_unlock(&lock);
    return size;
}

static int is_pinned(const void *pointer) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < pins && !found; i++)
        found = (const char *)pointer >= pinned[i].start &&
                (const char *)pointer < pinned[i].start + pinned[i].size;
    pthread_mutex_unlock(&lock);
    return found;
}

EXPORT int cudaMalloc(void **out, size_t size) {
    size += !size;
    stub_add(STUB_MALLOC);
    if (live + (long long)size > limit()) {
        stub_set_error(cudaErrorMemoryAllocation);
        return cudaErrorMemoryAllocation;
    }
    void *start = mmap(0, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) abort();
    __atomic_add_fetch(&live, size, __ATOMIC_RELAXED);
    keep(device, &devices, start, size);
    *out = start;
    return 0;
}

EXPORT int cudaMallocManaged(void **out, size_t size, unsigned flags) {
    return cudaMalloc(out, size);
}

EXPORT int cudaFree(void *start) {
    size_t size = start ? drop(device, &devices, start) : 0;
    if (!size) return 0;
    stub_add(STUB_FREE);
    stub_wait_for(stub_given());
    munmap(start, size);
    __atomic_sub_fetch(&live, size, __ATOMIC_RELAXED);
    return 0;
}

EXPORT int cudaMemGetInfo(size_t *left, size_t *total) {
    *left = limit() - live;
    *total = limit();
    return 0;
}

EXPORT int cudaHostAlloc(void **out, size_t size, unsigned flags) {
    stub_add(STUB_HOST_ALLOC);
    if (posix_memalign(out, 4096, size + !size)) abort();
    keep(pinned, &pins, *out, size + !size);
    return 0;
}

EXPORT int cudaFreeHost(void *start) {
    drop(pinned, &pins, start);
    free(start);
    return 0;
}

EXPORT int cudaHostRegister(void *start, size_t size, unsigned flags) {
    keep(pinned, &pins, start, size);
    return 0;
}

EXPORT int cudaHostUnregister(void *start) {
    drop(pinned, &pins, start);
    return 0;
}

EXPORT int cudaPointerGetAttributes(struct cudaPointerAttributes *out, const void *pointer) {
    memset(out, 0, sizeof *out);
    out->type = cudaMemoryTypeUnregistered;
    if (is_pinned(pointer)) {
        out->type = cudaMemoryTypeHost;
        out->hostPointer = out->devicePointer = (void *)pointer;
    }
    return 0;
}

EXPORT int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    stub_add(STUB_COPY);
    if (size <= COPIED || kind == cudaMemcpyDeviceToHost) memmove(to, from, size);
    int waits = (kind == cudaMemcpyDeviceToHost && !is_pinned(to)) ||
                (kind == cudaMemcpyHostToDevice && size > STAGED && !is_pinned(from));
    if (waits) stub_wait_for(stub_given());
    return 0;
}

EXPORT int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    cudaMemcpyAsync(to, from, size, kind, 0);
    stub_wait_for(stub_given());
    return 0;
}

EXPORT int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                             size_t width, size_t height, int kind, void *stream) {
    stub_add(STUB_COPY);
    for (size_t row = 0; row < height; row++)
        memmove((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
    return 0;
}

EXPORT int cudaMemsetAsync(void *to, int value, size_t size, void *stream) {
    stub_add(STUB_COPY);
    if (size <= COPIED) memset(to, value, size);
    return 0;
}

EXPORT int cudaMemset(void *to, int value, size_t size) {
    return cudaMemsetAsync(to, value, size, 0);
}
