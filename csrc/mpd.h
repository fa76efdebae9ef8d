// Weights from a Gram matrix: the Minimum Potential Delay solver (arXiv 2507.02714) and its
// alpha-fair family, one source for host and device.
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
//
// Why it cannot fail (a sketch).
// - F is strictly convex on v > 0, and a minimiser exists unless some z >= 0, z != 0 has R z = 0
//   (then F falls for ever along z). Given such a z, R + ridge * I has none, and the problem with
//   the ridge is solved instead: `stationary`.
// - A Newton direction always exists and descends: scaled to a unit diagonal its matrix is
//   M = E R E + (I - E R_d E), and Cholesky's pivots are held above rounding.
// - A trial point moves the coordinates that matter to their own row along Newton's direction,
//   no further than 0.99 of the way to zero, and puts the others at their exact minimum given
//   these. It is taken when the slope of F at its end, along the chord to it, is not yet positive:
//   the slope of a convex function rises along a chord, so F has fallen all the way. F itself is
//   never evaluated, for it loses its digits long before its slope does. Shortening the step tends
//   to a pass of coordinate descent and a small step downhill, which both decrease F; so some
//   trial is taken. The level sets of F are compact: descent converges, and quadratically once
//   the relative step is small.
// - Putting the small coordinates at their minimum (variable projection) is what makes large alpha
//   work: v_i goes with the power -alpha of the rest of its row, 1e-200 is an ordinary value at
//   alpha = 16, and a linear model of it would stop every step at its boundary.
// - Every loop is bounded. If Newton's bound is reached (about one in 1000 matrices with norms from
//   1e-8 to 1e+8 and cosines of 0.9999, at alpha >= 8), the problem is solved again from equal
//   gradient norms, which are widened to their own in stages. What is still unsolved is no Gram
//   matrix, and gets a larger ridge; with a ridge of K, R + ridge * I is positive definite
//   whatever R was.

#ifndef FAIRHUMAN_MPD_H
#define FAIRHUMAN_MPD_H

#include <float.h>
#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define FAIRHUMAN_MPD_FN __host__ __device__ inline
#else
#define FAIRHUMAN_MPD_FN inline
#endif

namespace fairhuman {

constexpr int kMpdMaxObjectives = 16;
constexpr double kMpdMinAlpha = 0.5;
constexpr double kMpdMaxAlpha = 16.0;

enum MpdStatus {
  kMpdOk = 0,
  kMpdAbsent = 1,      // some A_kk = 0: its weight is 0, the others are solved without it
  kMpdStationary = 2,  // the objectives are in exact conflict: solved with a relative ridge
  kMpdNonfinite = 4,   // NaN or inf in A (or a solution out of double's range): all weights 0
};

struct MpdResult {
  double weights[kMpdMaxObjectives];
  // ||sum_k w_k g_k|| = sqrt(sum_i w_i^(1 - 1/alpha)). With `stationary` this is the norm under
  // the regularised matrix: an upper bound, so that dividing by it never blows up rounding noise.
  double norm;
  // Componentwise backward error max_i |(Aw)_i - w_i^(-1/alpha)| / ((|A|w)_i + w_i^(-1/alpha)):
  // the relative change of A and of the right-hand side for which w is exact (Oettli, Prager).
  // The plain relative residual is no measure here: where (Aw)_i cancels, rounding w alone
  // exceeds any fixed bound on it. With `stationary`, of the regularised system.
  double residual;
  int iterations;  // Newton steps
  int status;      // MpdStatus bits
};

namespace mpd_detail {

constexpr int kMax = kMpdMaxObjectives;
constexpr double kEps = DBL_EPSILON;
constexpr double kFloor = 1e-280;    // weights below it are zero to any purpose
constexpr double kConflict = 1e-13;  // a row sum that cancels this far is rounding
constexpr double kRidge = 1e-8;      // sqrt(eps): above rounding, below any meaning of A
constexpr double kNear = 0.02;       // relative steps this short are in Newton's region
constexpr double kSolvedError = 1e-12;  // what a solve that ran into its bound may still have
constexpr int kSweeps = 3;
constexpr int kMaxNewton = 100;
constexpr int kStages = 8;
constexpr int kMaxBacktrack = 40;
constexpr int kMaxCoordinate = 60;

enum Outcome { kSolved, kUnconverged, kInConflict };

struct Problem {
  int n;
  double alpha;
  double R[kMax][kMax];  // correlations; the diagonal is 1 + ridge
  double c[kMax];        // right-hand side's factors
};

FAIRHUMAN_MPD_FN bool finite(double x) { return fabs(x) <= DBL_MAX; }

// v^(-1/alpha)
FAIRHUMAN_MPD_FN double inverse_root(double v, double alpha) {
  if (alpha == 2.0) return 1.0 / sqrt(v);
  if (alpha == 1.0) return 1.0 / v;
  return pow(v, -1.0 / alpha);
}

// The solution of diag v + 0 = c v^(-1/alpha).
FAIRHUMAN_MPD_FN double diagonal_solution(double c, double diag, double alpha) {
  return pow(c / diag, alpha / (1.0 + alpha));
}

// The root of f(v) = diag v + b - c v^(-1/alpha). f increases and is concave: started left of the
// root, Newton climbs to it monotonically. For alpha = 2 it is the cubic in sqrt(v); the closed
// form would cancel for b < 0, where Newton does not.
FAIRHUMAN_MPD_FN double coordinate_root(double c, double diag, double b, double alpha) {
  double v;
  if (b > 0.0) {
    // Each of the two candidates alone makes c v^(-1/alpha) at least twice one of the terms.
    v = fmin(diagonal_solution(0.5 * c, diag, alpha), pow(0.5 * c / b, alpha));
  } else {
    v = fmax(-b / diag, diagonal_solution(c, diag, alpha));
  }
  v = fmax(v, kFloor);
  for (int it = 0; it < kMaxCoordinate; ++it) {
    const double h = c * inverse_root(v, alpha);
    const double step = (h - b - diag * v) / (diag + h / (alpha * v));
    if (!(step > 0.0)) break;
    v += step;
    if (step <= 1e-4 * v) break;  // a starting point needs no more
  }
  return v;
}

// Rows of (2): r = R v - h with h = c v^(-1/alpha), and a = |R| v. Returns the backward error.
FAIRHUMAN_MPD_FN double evaluate(const Problem& p, const double* v, double* r, double* h,
                                 double* a) {
  double worst = 0.0;
  for (int i = 0; i < p.n; ++i) {
    double sum = 0.0, size = 0.0;
    for (int j = 0; j < p.n; ++j) {
      const double term = p.R[i][j] * v[j];
      sum += term;
      size += fabs(term);
    }
    h[i] = p.c[i] * inverse_root(v[i], p.alpha);
    r[i] = sum - h[i];
    a[i] = size;
    // At the floor a row may have more than it asks for: the bound v >= floor is active there.
    if (v[i] > kFloor || r[i] < 0.0) worst = fmax(worst, fabs(r[i]) / (size + h[i]));
  }
  return worst;
}

// Whether the iterate proves a conflict: on the rows S whose target has sunk below the rounding
// of their own sum, v_S >= 0 satisfies v_S' R_SS v_S <= rounding * |v_S|^2. Rows outside S do not
// count, however large their v. (A single row of S, or equal gradients, are no conflict: there
// the form is |v_S|^2 or more.)
FAIRHUMAN_MPD_FN bool conflicts(const Problem& p, const double* v, const double* h,
                                const double* a) {
  double largest = 0.0;
  for (int i = 0; i < p.n; ++i) {
    if (h[i] <= kConflict * a[i]) largest = fmax(largest, v[i]);
  }
  if (largest == 0.0) return false;
  double form = 0.0, size = 0.0;
  for (int i = 0; i < p.n; ++i) {
    if (h[i] > kConflict * a[i]) continue;
    const double ui = v[i] / largest;
    size += ui * ui;
    for (int j = 0; j < p.n; ++j) {
      if (h[j] <= kConflict * a[j]) form += ui * p.R[i][j] * (v[j] / largest);
    }
  }
  return form <= 10.0 * kConflict * size;
}

// Newton's direction dv. With e_i = (R_ii + h_i / (alpha v_i))^(-1/2), M = E R E + (I - E R_d E)
// has a unit diagonal, so neither the scale of v nor that of c costs digits: M q = -E r, dv = E q.
FAIRHUMAN_MPD_FN void newton_direction(const Problem& p, const double* v, const double* r,
                                       const double* h, double* dv) {
  double L[kMax][kMax];
  double e[kMax];
  const int n = p.n;
  for (int i = 0; i < n; ++i) e[i] = 1.0 / sqrt(p.R[i][i] + h[i] / (p.alpha * v[i]));
  // A pivot below rounding carries no information; holding it up only shortens the step.
  const double least_pivot = n * kEps;
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j <= i; ++j) {
      double sum = i == j ? 1.0 : e[i] * e[j] * p.R[i][j];
      for (int k = 0; k < j; ++k) sum -= L[i][k] * L[j][k];
      L[i][j] = i == j ? sqrt(fmax(sum, least_pivot)) : sum / L[j][j];
    }
  }
  for (int i = 0; i < n; ++i) {
    double sum = -e[i] * r[i];
    for (int k = 0; k < i; ++k) sum -= L[i][k] * dv[k];
    dv[i] = sum / L[i][i];
  }
  for (int i = n - 1; i >= 0; --i) {
    double sum = dv[i];
    for (int k = i + 1; k < n; ++k) sum -= L[k][i] * dv[k];
    dv[i] = sum / L[i][i];
  }
  for (int i = 0; i < n; ++i) dv[i] *= e[i];
}

// The minimum of F over v_i with the others held.
FAIRHUMAN_MPD_FN double coordinate_minimum(const Problem& p, const double* v, int i) {
  double b = 0.0;
  for (int j = 0; j < p.n; ++j) {
    if (j != i) b += p.R[i][j] * v[j];
  }
  return coordinate_root(p.c[i], p.R[i][i], b, p.alpha);
}

// The diagonal solution, rescaled to the minimum of F on its ray, then coordinate descent.
FAIRHUMAN_MPD_FN void starting_point(const Problem& p, double* v) {
  double norm2 = 0.0, form = 0.0, largest = 0.0;
  for (int i = 0; i < p.n; ++i) {
    v[i] = fmax(diagonal_solution(p.c[i], p.R[i][i], p.alpha), kFloor);
    largest = fmax(largest, v[i]);
  }
  for (int i = 0; i < p.n; ++i) {
    const double ui = v[i] / largest;
    norm2 += p.R[i][i] * ui * ui;
    for (int j = 0; j < p.n; ++j) form += ui * p.R[i][j] * (v[j] / largest);
  }
  const double scale = pow(norm2 / fmax(form, kEps * norm2), p.alpha / (1.0 + p.alpha));
  for (int i = 0; i < p.n; ++i) v[i] *= scale;
  if (p.n == 1) return;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    for (int i = 0; i < p.n; ++i) {
      v[i] = coordinate_minimum(p, v, i);
    }
  }
}

// Solves (2) from the point v.
FAIRHUMAN_MPD_FN Outcome minimise(const Problem& p, double* v, double* residual, int* iterations) {
  double r[kMax], h[kMax], a[kMax], dv[kMax], start[kMax], trial[kMax];
  bool small[kMax];
  double error = evaluate(p, v, r, h, a);
  double previous = DBL_MAX;
  int stalls = 0;
  for (int it = 0; it < kMaxNewton; ++it) {
    if (conflicts(p, v, h, a)) return kInConflict;
    if (error <= 2.0 * kEps) break;
    if (error <= 64.0 * kEps) {  // rounding: go on only while it still helps
      stalls = error > 0.5 * previous ? stalls + 1 : 0;
      if (stalls == 2) break;
    }
    previous = error;

    newton_direction(p, v, r, h, dv);
    double s = 0.0, largest = 0.0, t = 1.0;
    for (int i = 0; i < p.n; ++i) {
      start[i] = r[i];
      s -= dv[i] * r[i];
      const double ratio = dv[i] / v[i];
      largest = fmax(largest, fabs(ratio));
      small[i] = h[i] > p.alpha * v[i] * p.R[i][i];  // v_i matters less to its row than the others
      if (!small[i] && ratio * t < -0.99) t = -0.99 / ratio;
    }
    if (!(s > 0.0) || !finite(s) || !finite(largest)) break;
    for (int back = 0; back < kMaxBacktrack; ++back) {
      if (largest <= kNear) {  // a full step; noise must not refuse it
        for (int i = 0; i < p.n; ++i) trial[i] = fmax(v[i] + dv[i], kFloor);
        error = evaluate(p, trial, r, h, a);
        break;
      }
      for (int i = 0; i < p.n; ++i) trial[i] = small[i] ? v[i] : fmax(v[i] + t * dv[i], kFloor);
      for (int i = 0; i < p.n; ++i) {
        if (small[i]) trial[i] = coordinate_minimum(p, trial, i);
      }
      error = evaluate(p, trial, r, h, a);
      double before = 0.0, after = 0.0;  // the slope along the chord, at its two ends
      for (int i = 0; i < p.n; ++i) {
        before += (trial[i] - v[i]) * start[i];
        after += (trial[i] - v[i]) * r[i];
      }
      if (before < 0.0 && after <= 0.0) break;
      t *= before < 0.0 ? fmin(fmax(before / (before - after), 0.1), 0.9) : 0.5;
    }
    for (int i = 0; i < p.n; ++i) v[i] = trial[i];
    ++*iterations;
  }
  *residual = error;
  return error <= kSolvedError ? kSolved : kUnconverged;
}

// Solves (2) from scratch. Returns false for a conflict, or when nothing converged.
FAIRHUMAN_MPD_FN bool solve(const Problem& p, double* v, double* residual, int* iterations) {
  starting_point(p, v);
  Outcome outcome = minimise(p, v, residual, iterations);
  if (outcome != kUnconverged) return outcome == kSolved;
  Problem stage = p;
  for (int k = 0; k <= kStages; ++k) {  // c = 1 are equal gradient norms
    for (int i = 0; i < p.n; ++i) {
      stage.c[i] = k == kStages ? p.c[i] : pow(p.c[i], static_cast<double>(k) / kStages);
    }
    if (k == 0) starting_point(stage, v);
    outcome = minimise(stage, v, residual, iterations);
    if (outcome == kInConflict) return false;
  }
  return outcome == kSolved;
}

FAIRHUMAN_MPD_FN void give_up(int K, int status, MpdResult* out) {
  for (int i = 0; i < K; ++i) out->weights[i] = 0.0;
  out->norm = 0.0;
  out->residual = 0.0;
  out->iterations = 0;
  out->status = status;
}

}  // namespace mpd_detail

// gram: [K, K] row-major, 1 <= K <= 16; alpha in [0.5, 16] (the callers below check both).
FAIRHUMAN_MPD_FN void mpd_solve(const double* gram, int K, double alpha, MpdResult* out) {
  using namespace mpd_detail;
  for (int i = 0; i < K * K; ++i) {
    if (!finite(gram[i])) {
      give_up(K, kMpdNonfinite, out);
      return;
    }
  }

  Problem p;
  int index[kMax];
  double norms[kMax];
  p.n = 0;
  p.alpha = alpha;
  for (int i = 0; i < K; ++i) {
    if (gram[i * K + i] > 0.0) {  // rounding may have left an absent one below zero
      norms[p.n] = sqrt(gram[i * K + i]);
      index[p.n++] = i;
    }
  }
  const int absent = p.n < K ? kMpdAbsent : kMpdOk;
  give_up(K, absent, out);
  if (p.n == 0) return;

  for (int i = 0; i < p.n; ++i) {
    p.c[i] = alpha == 1.0 ? 1.0 : pow(norms[i], 1.0 / alpha - 1.0);
    p.R[i][i] = 1.0;
    for (int j = 0; j < i; ++j) {
      const double mean =
          0.5 * gram[index[i] * K + index[j]] + 0.5 * gram[index[j] * K + index[i]];
      const double correlation = fmin(fmax(mean / norms[i] / norms[j], -1.0), 1.0);
      p.R[i][j] = correlation;
      p.R[j][i] = correlation;
    }
  }

  double v[kMax];
  int iterations = 0;
  bool solved = solve(p, v, &out->residual, &iterations);
  for (double ridge = kRidge; !solved && ridge <= 100.0 * kMax; ridge *= 100.0) {
    out->status = absent | kMpdStationary;
    for (int i = 0; i < p.n; ++i) p.R[i][i] = 1.0 + ridge;
    solved = solve(p, v, &out->residual, &iterations);
  }
  out->iterations = iterations;

  double norm2 = 0.0;
  for (int i = 0; i < p.n; ++i) {
    const double w = v[i] / norms[i];
    out->weights[index[i]] = w;
    norm2 += w * inverse_root(w, alpha);
  }
  out->norm = sqrt(norm2);
  if (!finite(out->norm) || !(out->norm > 0.0)) give_up(K, absent | kMpdNonfinite, out);
}

enum MpdError {
  kMpdSuccess = 0,
  kMpdBadSize = 1,   // K outside 1..16, or a negative count
  kMpdBadAlpha = 2,  // alpha outside [0.5, 16], or NaN
};

// The native boundary: raw pointers and a code, no exceptions.
// gram [count, K, K], weights [count, K], the others [count]; contiguous, and not overlapping.
int mpd_solve_cpu(const double* gram, int64_t count, int K, double alpha, double* weights,
                  double* norm, double* residual, int32_t* iterations, int32_t* status);

}  // namespace fairhuman

#endif  // FAIRHUMAN_MPD_H
