// The solver's entry on a CUDA device. Includes nothing of CUDA, so any compiler takes it.

#ifndef FAIRHUMAN_MPD_CUDA_H
#define FAIRHUMAN_MPD_CUDA_H

#include <stdint.h>

#include "mpd.h"

namespace fairhuman {

// As mpd_solve_cpu, for device memory, in one launch on the given stream: nothing is allocated,
// nothing waits, and a CUDA graph can capture it. Returns an MpdError, or minus CUDA's code for
// what was wrong with the launch; what goes wrong on the device later is reported by the next
// call that waits for it, as with every kernel.
int mpd_solve_cuda(int device, void* stream, const double* gram, int64_t count,
                   const MpdParameters& parameters, double* out);

// As mpd_keep_cpu, in the same way.
int mpd_keep_cuda(int device, void* stream, const double* gram, int64_t count,
                  const MpdParameters& parameters, double* out);

// Returns CUDA's code for why the device cannot run the solver, 0 if it can: a driver older than the
// runtime, a card that no code of this build is for. Loads the kernels, which takes a moment.
int mpd_cuda_problem(int device);

const char* cuda_error_text(int code);

}  // namespace fairhuman

#endif  // FAIRHUMAN_MPD_CUDA_H
