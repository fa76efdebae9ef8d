/* What the parts of the CUDA runtime that does nothing share. */
#pragma once
#include <stddef.h>

/* In the order of `counters.NAMES`. */
enum stub_count {
    STUB_LAUNCH,      /* kernels, Triton's aside */
    STUB_BLAS,        /* calls of cuBLAS that compute */
    STUB_COLLECTIVE,  /* calls of NCCL that communicate */
    STUB_COPY,        /* copies and fills, as CUDA is asked for them */
    STUB_MALLOC,
    STUB_FREE,
    STUB_HOST_ALLOC,
    STUB_WAIT,        /* the host waited for work that it did not know to be done */
    STUB_COUNTS
};

extern long long stub_counts[STUB_COUNTS];

/* Counts something; kernels, products, collectives and copies are work for the device. */
void stub_add(enum stub_count what);
/* The number of the last piece of work that the device was given. */
long long stub_given(void);
/* The host knows that all work up to this number is done: it waited if that is new. */
void stub_wait_for(long long work);
/* What the next cudaGetLastError returns. */
void stub_set_error(int error);

#define EXPORT __attribute__((visibility("default")))
