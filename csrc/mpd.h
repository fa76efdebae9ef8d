// Weights from a Gram matrix: the Minimum Potential Delay solver (arXiv 2507.02714) and its
// alpha-fair family. This header is the interface; mpd_gram.h turns a Gram matrix into the problem
// that mpd_solver.h solves, and mpd_keep.h keeps the direction near one of the gradients, for host
// and device.
//
// Given A = [<g_i, g_j>], K x K and positive semidefinite, find the unique w > 0 with
//
//     A w = w^(-1/alpha)                                                                  (1)
//
// the minimiser of F(w) = 1/2 w'Aw - sum_i phi(w_i), phi'(x) = x^(-1/alpha). alpha = 2 is MPD.
//
// Normalisation. With n_i = sqrt(A_ii), R_ij = A_ij / (n_i n_j) and v_i = n_i w_i, row i of (1)
// divided by n_i reads
//
//     (R v)_i = c_i v_i^(-1/alpha),   c_i = n_i^(1/alpha - 1)                             (2)
//
// R is a correlation matrix, so gradients of 1e-8 and 1e+8 in one matrix cost no digits: their
// scale is only in c, as a factor.

#ifndef FAIRHUMAN_MPD_H
#define FAIRHUMAN_MPD_H

#include <float.h>
#include <stdint.h>

namespace fairhuman {

constexpr int kMpdMaxObjectives = 16;
constexpr double kMpdMinAlpha = 0.5;
constexpr double kMpdMaxAlpha = 16.0;

enum MpdStatus {
  kMpdOk = 0,
  kMpdAbsent = 1,      // some A_kk = 0: its weight is 0, the others are solved without it
  kMpdStationary = 2,  // the objectives are in exact conflict: solved with a relative ridge
  kMpdNonfinite = 4,   // NaN or inf in A (or a solution out of double's range): all weights 0
  kMpdInvalid = 8,     // asymmetric, or a negative diagonal, beyond `tolerance`: all weights 0
  kMpdKept = 16,       // `keep` has raised the anchor's weight
};

// How long a step along d = sum_k w_k g_k is; then ||d|| is clipped to max_norm.
enum MpdNormalize {
  kMpdNone = 0,     // as it is
  kMpdSimplex = 1,  // the weights sum to 1
  kMpdBall = 2,     // ||d|| = max_norm, up or down (the paper's trust region)
};

struct MpdParameters {
  int K;             // 1 .. kMpdMaxObjectives
  double alpha;      // kMpdMinAlpha .. kMpdMaxAlpha
  double tolerance;  // of |A_ij - A_ji|, relative to sqrt(A_ii A_jj)
  int normalize;     // MpdNormalize
  double max_norm;   // > 0; infinity does not clip (and cannot be a ball's)
  double keep = 0.0;  // 0 .. below 1: the least cosine of d to the anchor's gradient; 0: no bound
  int anchor = 0;     // an objective; an absent one keeps nothing
};

// One solution is K + kMpdFields doubles: the weights, then these. Counts and flags are doubles
// too, so that a solution is one piece of memory and one copy brings it to the host.
enum MpdField {
  // ||d|| = sqrt(sum_i w_i^(1 - 1/alpha)). With `stationary` this is the norm under the
  // regularised matrix: an upper bound, so that dividing by it never blows up rounding noise.
  // With `kept` of the direction that is kept: (3) of mpd_keep.h.
  kMpdNorm,
  // Componentwise backward error max_i |(Aw)_i - w_i^(-1/alpha)| / ((|A|w)_i + w_i^(-1/alpha)):
  // the relative change of A and of the right-hand side for which w is exact (Oettli, Prager).
  // The plain relative residual is no measure here: where (Aw)_i cancels, rounding w alone
  // exceeds any fixed bound on it. With `stationary`, of the regularised system.
  kMpdResidual,
  kMpdScale,       // the factor on d (or on w) that normalize and max_norm ask for
  // Of d to the anchor's gradient, by A and w; NaN where it is absent. With `stationary` at least
  // so much: ||d|| is then taken for its upper bound.
  kMpdCosine,
  kMpdIterations,  // Newton steps
  kMpdFlags,       // MpdStatus bits
  kMpdFields,
};

// What a caller got wrong, or 0.
enum MpdError {
  kMpdSuccess = 0,
  kMpdBadSize = 1,       // K outside 1..kMpdMaxObjectives, or a negative count
  kMpdBadAlpha = 2,      // alpha outside its bounds, or NaN
  kMpdBadNormalize = 3,  // no MpdNormalize, max_norm <= 0 or NaN, or an infinite ball
  kMpdBadKeep = 4,       // keep outside [0, 1), or NaN, or no such anchor
};

inline int mpd_check(const MpdParameters& parameters, int64_t count) {
  if (count < 0 || parameters.K < 1 || parameters.K > kMpdMaxObjectives) return kMpdBadSize;
  if (!(parameters.alpha >= kMpdMinAlpha && parameters.alpha <= kMpdMaxAlpha)) return kMpdBadAlpha;
  const bool ball = parameters.normalize == kMpdBall;
  if (parameters.normalize < kMpdNone || parameters.normalize > kMpdBall ||
      !(parameters.max_norm > 0.0) || (ball && parameters.max_norm > DBL_MAX)) {
    return kMpdBadNormalize;
  }
  const int anchor = parameters.anchor;
  if (!(parameters.keep >= 0.0 && parameters.keep < 1.0) || anchor < 0 || anchor >= parameters.K) {
    return kMpdBadKeep;
  }
  return kMpdSuccess;
}

// The native boundary: raw pointers and a code, no exceptions.
// gram [count, K, K], out [count, K + kMpdFields]: contiguous, and not overlapping.
int mpd_solve_cpu(const double* gram, int64_t count, const MpdParameters& parameters, double* out);

// Bounds weights of any origin: out [count, K + kMpdFields] holds them with their flags, and in the
// place of the norm what ||d|| is at least taken for, below which it is rounding. Sets cosine, and
// with `kept` the anchor's weight and the norm too. No other field changes.
int mpd_keep_cpu(const double* gram, int64_t count, const MpdParameters& parameters, double* out);

}  // namespace fairhuman

#endif  // FAIRHUMAN_MPD_H
