// From a Gram matrix to problem (2) of mpd.h and from its solution to weights, one source for host
// and device: absent objectives, what is no Gram matrix, the ridge, and the length of the step.

#ifndef FAIRHUMAN_MPD_GRAM_H
#define FAIRHUMAN_MPD_GRAM_H

#include "mpd.h"
#include "mpd_keep.h"
#include "mpd_solver.h"

namespace fairhuman {
namespace mpd_detail {

constexpr int kMax = kMpdMaxObjectives;
constexpr double kRidge = 1e-8;      // sqrt(eps): above rounding, below any meaning of A
constexpr double kNoCosine = NAN;

FAIRHUMAN_MPD_FN void give_up(int K, int status, double* out) {
  for (int i = 0; i < K + kMpdFields; ++i) out[i] = 0.0;
  out[K + kMpdScale] = 1.0;
  out[K + kMpdCosine] = kNoCosine;
  out[K + kMpdFlags] = status;
}

// The status of what is no Gram matrix, or kMpdOk.
FAIRHUMAN_MPD_FN int check(const double* gram, const MpdParameters& parameters) {
  const int K = parameters.K;
  double largest = 0.0;
  for (int i = 0; i < K * K; ++i) {
    if (!finite(gram[i])) return kMpdNonfinite;
    if (i % (K + 1) == 0) largest = fmax(largest, gram[i]);
  }
  for (int i = 0; i < K; ++i) {
    const double ii = gram[i * K + i];
    if (ii < -parameters.tolerance * largest) return kMpdInvalid;
    for (int j = 0; j < i; ++j) {
      const double difference = fabs(gram[i * K + j] - gram[j * K + i]);
      if (difference == 0.0) continue;
      const double jj = gram[j * K + j];
      const double size = sqrt(fmax(ii, 0.0)) * sqrt(fmax(jj, 0.0));
      if (!(difference <= parameters.tolerance * size)) return kMpdInvalid;
    }
  }
  return kMpdOk;
}

// The factor on d that gives the step its length, known without a pass over any gradient.
FAIRHUMAN_MPD_FN double step_scale(const MpdParameters& parameters, double norm, double sum) {
  if (parameters.normalize == kMpdBall) return parameters.max_norm / norm;
  const double scale = parameters.normalize == kMpdSimplex ? 1.0 / sum : 1.0;
  return norm * scale > parameters.max_norm ? parameters.max_norm / norm : scale;
}

// Solves for the present objectives, whose `count` rows of the matrix are in `index`.
template <int N>
FAIRHUMAN_MPD_FN void solve_present(Solver<N>& solver, Keeper<N>& keeper, const double* gram,
                                    const MpdParameters& parameters, const int* index, int count,
                                    double* out) {
  const int K = parameters.K;
  const double alpha = parameters.alpha;
  solver.count = count;
  solver.alpha = alpha;
  solver.iterations = 0;
  for (int i = 0; i < solver.size(); ++i) {
    const double norm = sqrt(gram[index[i] * K + index[i]]);
    solver.target[i] = 1.0 / (norm * inverse_root(norm, alpha));
    for (int j = 0; j < i; ++j) {
      const double other = sqrt(gram[index[j] * K + index[j]]);
      const double mean =
          0.5 * gram[index[i] * K + index[j]] + 0.5 * gram[index[j] * K + index[i]];
      const double correlation = fmin(fmax(mean / norm / other, -1.0), 1.0);
      solver.R[i][j] = correlation;
      solver.R[j][i] = correlation;
    }
  }

  int status = count < K ? kMpdAbsent : kMpdOk;
  for (double ridge = 0.0; ridge <= 100.0 * kMax; ridge = fmax(100.0 * ridge, kRidge)) {
    if (ridge > 0.0) status |= kMpdStationary;
    for (int i = 0; i < solver.size(); ++i) solver.R[i][i] = 1.0 + ridge;
    if (solver.solve()) break;
  }

  give_up(K, status, out);
  double norm2 = 0.0, sum = 0.0;
  for (int i = 0; i < solver.size(); ++i) {
    const double w = solver.v[i] / sqrt(gram[index[i] * K + index[i]]);
    out[index[i]] = w;
    keeper.w[i] = w;
    norm2 += w * inverse_root(w, alpha);
    sum += w;
  }
  double norm = sqrt(norm2);
  const bool solved = finite(norm) && norm > 0.0 && finite(sum);
  if (solved) {
    out[K + kMpdNorm] = norm;
    const double least = status & kMpdStationary ? norm : 0.0;
    sum += keeper.bound(gram, parameters, index, count, least, out);
    norm = out[K + kMpdNorm];
  }
  if (!solved || !finite(norm) || !finite(sum)) {
    give_up(K, status | kMpdNonfinite, out);
    return;
  }
  out[K + kMpdResidual] = solver.residual;
  out[K + kMpdScale] = step_scale(parameters, norm, sum);
  out[K + kMpdIterations] = solver.iterations;
}

// Returns how many objectives are present, their rows in `index`; 0 with `out` filled where there
// is nothing to solve.
FAIRHUMAN_MPD_FN int find_present(const double* gram, const MpdParameters& parameters, int* index,
                                  double* out) {
  const int K = parameters.K;
  const int broken = check(gram, parameters);
  int count = 0;
  for (int i = 0; i < K && !broken; ++i) {
    if (gram[i * K + i] > 0.0) index[count++] = i;  // rounding may have left an absent one below 0
  }
  if (count == 0) give_up(K, broken ? broken : kMpdAbsent, out);
  return count;
}

template <int N>
FAIRHUMAN_MPD_FN void solve_in_place(const double* gram, const MpdParameters& parameters,
                                     const int* index, int count, double* out) {
  Solver<N> solver;
  Keeper<N> keeper;
  solve_present(solver, keeper, gram, parameters, index, count, out);
}

// K <= kUnrolled, with nothing in memory but the matrix and the solution.
FAIRHUMAN_MPD_FN void solve_unrolled(const double* gram, const MpdParameters& parameters,
                                     const int* index, int count, double* out) {
  if (count == 1) solve_in_place<1>(gram, parameters, index, count, out);
  if (count == 2) solve_in_place<2>(gram, parameters, index, count, out);
  if (count == 3) solve_in_place<3>(gram, parameters, index, count, out);
  if (count == 4) solve_in_place<4>(gram, parameters, index, count, out);
}

// Bounds the weights that `out` holds: mpd_keep_cpu.
FAIRHUMAN_MPD_FN void keep_given(Keeper<kMax>& keeper, const double* gram,
                                 const MpdParameters& parameters, int* index, double* out) {
  const int K = parameters.K;
  out[K + kMpdCosine] = kNoCosine;
  if (static_cast<int>(out[K + kMpdFlags]) & (kMpdNonfinite | kMpdInvalid)) return;
  int count = 0;
  for (int i = 0; i < K; ++i) {
    if (!(gram[i * K + i] > 0.0)) continue;
    keeper.w[count] = out[i];
    index[count++] = i;
  }
  keeper.bound(gram, parameters, index, count, out[K + kMpdNorm], out);
}

}  // namespace mpd_detail
}  // namespace fairhuman

#endif  // FAIRHUMAN_MPD_GRAM_H
