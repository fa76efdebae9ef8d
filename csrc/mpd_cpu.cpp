// The solver of mpd.h over a batch of matrices on the host.

#include "mpd.h"

namespace fairhuman {

int mpd_solve_cpu(const double* gram, int64_t count, int K, double alpha, double* weights,
                  double* norm, double* residual, int32_t* iterations, int32_t* status) {
  if (count < 0 || K < 1 || K > kMpdMaxObjectives) return kMpdBadSize;
  if (!(alpha >= kMpdMinAlpha && alpha <= kMpdMaxAlpha)) return kMpdBadAlpha;
  MpdResult result;
  for (int64_t n = 0; n < count; ++n) {
    mpd_solve(gram + n * K * K, K, alpha, &result);
    for (int k = 0; k < K; ++k) weights[n * K + k] = result.weights[k];
    norm[n] = result.norm;
    residual[n] = result.residual;
    iterations[n] = result.iterations;
    status[n] = result.status;
  }
  return kMpdSuccess;
}

}  // namespace fairhuman
