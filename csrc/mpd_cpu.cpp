// The solver of mpd.h over a batch of matrices on the host.

#include "mpd_gram.h"

namespace fairhuman {

int mpd_solve_cpu(const double* gram, int64_t count, const MpdParameters& parameters, double* out) {
  using namespace mpd_detail;
  const int error = mpd_check(parameters, count);
  if (error != kMpdSuccess) return error;
  const int K = parameters.K;
  int index[kMax];
  for (int64_t n = 0; n < count; ++n, gram += K * K, out += K + kMpdFields) {
    const int present = find_present(gram, parameters, index, out);
    if (present <= kUnrolled) {
      solve_unrolled(gram, parameters, index, present, out);
    } else {
      solve_in_place<kMax>(gram, parameters, index, present, out);
    }
  }
  return kMpdSuccess;
}

int mpd_keep_cpu(const double* gram, int64_t count, const MpdParameters& parameters, double* out) {
  using namespace mpd_detail;
  const int error = mpd_check(parameters, count);
  if (error != kMpdSuccess) return error;
  const int K = parameters.K;
  int index[kMax];
  Keeper<kMax> keeper;
  for (int64_t n = 0; n < count; ++n, gram += K * K, out += K + kMpdFields) {
    keep_given(keeper, gram, parameters, index, out);
  }
  return kMpdSuccess;
}

}  // namespace fairhuman
