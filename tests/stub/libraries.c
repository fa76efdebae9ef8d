/* cuBLAS and NCCL as torch calls them: handles, and collectives of one rank. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "stub.h"

static int handle(void **out) {
    *out = calloc(1, 64);
    return 0;
}

EXPORT int cublasCreate_v2(void **out) { return handle(out); }
EXPORT int cublasLtMatmulDescCreate(void **out, int compute, int scale) { return handle(out); }
EXPORT int cublasLtMatmulDescDestroy(void *it) { free(it); return 0; }
EXPORT int cublasLtMatrixLayoutCreate(void **out, int type, uint64_t rows, uint64_t columns,
                                      int64_t stride) {
    return handle(out);
}
EXPORT int cublasLtMatrixLayoutDestroy(void *it) { free(it); return 0; }
EXPORT int cublasLtMatmulPreferenceCreate(void **out) { return handle(out); }
EXPORT int cublasLtMatmulPreferenceDestroy(void *it) { free(it); return 0; }
EXPORT int cublasGetMathMode(void *it, int *out) { *out = 0; return 0; }
EXPORT int cublasGetPointerMode_v2(void *it, int *out) { *out = 0; return 0; }

/* One algorithm, that needs no workspace: cublasLtMatmulHeuristicResult_t. */
struct found {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
};
EXPORT int cublasLtMatmulAlgoGetHeuristic(void *it, void *operation, void *a, void *b, void *c,
                                          void *d, void *preference, int asked, struct found *out,
                                          int *count) {
    memset(out, 0, sizeof *out);
    *count = 1;
    return 0;
}

struct id {
    char bytes[128];
};
EXPORT int ncclGetVersion(int *out) { *out = 22907; return 0; }
EXPORT int ncclGetUniqueId(struct id *out) { memset(out, 7, sizeof *out); return 0; }
EXPORT int ncclCommInitRank(void **out, int ranks, struct id id, int rank) { return handle(out); }
EXPORT int ncclCommInitRankConfig(void **out, int ranks, struct id id, int rank, void *config) {
    return handle(out);
}
EXPORT int ncclCommGetAsyncError(void *group, int *out) { *out = 0; return 0; }
EXPORT int ncclCommCount(void *group, int *out) { *out = 1; return 0; }
EXPORT int ncclCommUserRank(void *group, int *out) { *out = 0; return 0; }
EXPORT const char *ncclGetErrorString(int code) { return "an error of NCCL"; }
EXPORT const char *ncclGetLastError(void *group) { return "none"; }

static const int bytes_of_type[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};

static int collective(const void *from, void *to, size_t count, int type) {
    stub_add(STUB_COLLECTIVE);
    size_t size = count * (type < 10 ? bytes_of_type[type] : 1);
    if (from && to && from != to && size <= 1 << 20) memmove(to, from, size);
    return 0;
}
EXPORT int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, void *group,
                         void *stream) {
    return collective(from, to, count, type);
}
EXPORT int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, void *group,
                         void *stream) {
    return collective(from, to, count, type);
}
EXPORT int ncclReduce(const void *from, void *to, size_t count, int type, int op, int root,
                      void *group, void *stream) {
    return collective(from, to, count, type);
}
EXPORT int ncclAllGather(const void *from, void *to, size_t count, int type, void *group,
                         void *stream) {
    return collective(from, to, count, type);
}
EXPORT int ncclReduceScatter(const void *from, void *to, size_t count, int type, int op,
                             void *group, void *stream) {
    return collective(from, to, count, type);
}
