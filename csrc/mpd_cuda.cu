// The solver of mpd.h on the device: one warp per matrix, of which one thread solves. The problem is
// a chain of small dependent operations, in which more threads would wait for each other.

#include "mpd_cuda.h"

#include <cuda_runtime.h>

#include "mpd_gram.h"

namespace fairhuman {
namespace {

using namespace mpd_detail;

constexpr int kWarp = 32;

template <bool Unrolled>
__global__ void __launch_bounds__(kWarp, 1)
    mpd_solve_kernel(const double* __restrict__ grams, MpdParameters parameters,
                     double* __restrict__ outs) {
  const int K = parameters.K;
  // Every thread of the warp leaves here but one; indices are shared, for a thread's own array
  // would be in (slow, reserved for all) local memory.
  __shared__ int index[kMax];
  if (threadIdx.x != 0) return;
  const double* gram = grams + static_cast<int64_t>(blockIdx.x) * K * K;
  double* out = outs + static_cast<int64_t>(blockIdx.x) * (K + kMpdFields);
  const int present = find_present(gram, parameters, index, out);
  if (present == 0) return;
  if constexpr (Unrolled) {
    solve_unrolled(gram, parameters, index, present, out);
  } else {
    __shared__ Solver<kMax> solver;
    __shared__ Keeper<kMax> keeper;
    solve_present(solver, keeper, gram, parameters, index, present, out);
  }
}

__global__ void __launch_bounds__(kWarp, 1)
    mpd_keep_kernel(const double* __restrict__ grams, MpdParameters parameters,
                    double* __restrict__ outs) {
  const int K = parameters.K;
  __shared__ int index[kMax];
  __shared__ Keeper<kMax> keeper;
  if (threadIdx.x != 0) return;
  keep_given(keeper, grams + static_cast<int64_t>(blockIdx.x) * K * K, parameters, index,
             outs + static_cast<int64_t>(blockIdx.x) * (K + kMpdFields));
}

int launch_solve(cudaStream_t stream, const double* gram, unsigned blocks,
                 const MpdParameters& parameters, double* out) {
  if (parameters.K <= kUnrolled) {
    mpd_solve_kernel<true><<<blocks, kWarp, 0, stream>>>(gram, parameters, out);
  } else {
    mpd_solve_kernel<false><<<blocks, kWarp, 0, stream>>>(gram, parameters, out);
  }
  return cudaGetLastError();
}

int launch_keep(cudaStream_t stream, const double* gram, unsigned blocks,
                const MpdParameters& parameters, double* out) {
  mpd_keep_kernel<<<blocks, kWarp, 0, stream>>>(gram, parameters, out);
  return cudaGetLastError();
}

// Checks, and launches on the device, whichever is current.
template <class Launch>
int on_device(Launch launch, int device, void* stream, const double* gram, int64_t count,
              const MpdParameters& parameters, double* out) {
  int error = mpd_check(parameters, count);
  if (error != kMpdSuccess || count == 0) return error;
  if (count > INT32_MAX) return kMpdBadSize;  // a grid's limit
  int current = 0;
  error = cudaGetDevice(&current);
  if (error == cudaSuccess && current != device) error = cudaSetDevice(device);
  if (error != cudaSuccess) return -error;
  error = launch(static_cast<cudaStream_t>(stream), gram, static_cast<unsigned>(count), parameters,
                 out);
  if (current != device) {
    const int restored = cudaSetDevice(current);
    if (error == cudaSuccess) error = restored;
  }
  return -error;
}

}  // namespace

int mpd_solve_cuda(int device, void* stream, const double* gram, int64_t count,
                   const MpdParameters& parameters, double* out) {
  return on_device(launch_solve, device, stream, gram, count, parameters, out);
}

int mpd_keep_cuda(int device, void* stream, const double* gram, int64_t count,
                  const MpdParameters& parameters, double* out) {
  return on_device(launch_keep, device, stream, gram, count, parameters, out);
}

int mpd_cuda_problem(int device) {
  int current = 0;
  int error = cudaGetDevice(&current);
  if (error == cudaSuccess && current != device) error = cudaSetDevice(device);
  cudaFuncAttributes unused;
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&unused, mpd_solve_kernel<true>);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&unused, mpd_solve_kernel<false>);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&unused, mpd_keep_kernel);
  if (current != device) cudaSetDevice(current);
  cudaGetLastError();  // what was asked is answered: the next launch must not report it
  return error;
}

const char* cuda_error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

}  // namespace fairhuman
