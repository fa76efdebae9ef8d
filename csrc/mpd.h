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
  kMpdInvalid = 8,     // asymmetric, or a negative diagonal, beyond `tolerance`: all weights 0
};

// How long a step along d = sum_k w_k g_k is; then ||d|| is clipped to max_norm.
enum MpdNormalize {
  kMpdNone = 0,     // as it is
  kMpdSimplex = 1,  // the weights sum to 1
  kMpdBall = 2,     // ||d|| = max_norm, up or down (the paper's trust region)
};

struct MpdParameters {
  int K;             // 1 .. 16
  double alpha;      // 0.5 .. 16
  double tolerance;  // of |A_ij - A_ji|, relative to sqrt(A_ii A_jj)
  int normalize;     // MpdNormalize
  double max_norm;   // > 0; infinity does not clip (and cannot be a ball's)
};

// One solution is K + kMpdFields doubles: the weights, then these. Counts and flags are doubles
// too, so that a solution is one piece of memory and one copy brings it to the host.
enum MpdField {
  // ||d|| = sqrt(sum_i w_i^(1 - 1/alpha)). With `stationary` this is the norm under the
  // regularised matrix: an upper bound, so that dividing by it never blows up rounding noise.
  kMpdNorm,
  // Componentwise backward error max_i |(Aw)_i - w_i^(-1/alpha)| / ((|A|w)_i + w_i^(-1/alpha)):
  // the relative change of A and of the right-hand side for which w is exact (Oettli, Prager).
  // The plain relative residual is no measure here: where (Aw)_i cancels, rounding w alone
  // exceeds any fixed bound on it. With `stationary`, of the regularised system.
  kMpdResidual,
  kMpdScale,       // the factor on d (or on w) that normalize and max_norm ask for
  kMpdIterations,  // Newton steps
  kMpdFlags,       // MpdStatus bits
  kMpdFields,
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

FAIRHUMAN_MPD_FN bool finite(double x) { return fabs(x) <= DBL_MAX; }

// v^(-1/alpha)
FAIRHUMAN_MPD_FN double inverse_root(double v, double alpha) {
  if (alpha == 2.0) return 1.0 / sqrt(v);
  if (alpha == 1.0) return 1.0 / v;
  return pow(v, -1.0 / alpha);
}

// x^(alpha / (1 + alpha)): for x = c / diag the solution of diag v = c v^(-1/alpha).
FAIRHUMAN_MPD_FN double diagonal_power(double x, double alpha) {
  if (alpha == 2.0) {
    const double root = cbrt(x);
    return root * root;
  }
  if (alpha == 1.0) return sqrt(x);
  return pow(x, alpha / (1.0 + alpha));
}

// x^alpha
FAIRHUMAN_MPD_FN double power(double x, double alpha) {
  if (alpha == 2.0) return x * x;
  if (alpha == 1.0) return x;
  return pow(x, alpha);
}

// The root of f(v) = diag v + b - c v^(-1/alpha). f increases and is concave: started left of the
// root, Newton climbs to it monotonically. For alpha = 2 it is the cubic in sqrt(v); the closed
// form would cancel for b < 0, where Newton does not.
FAIRHUMAN_MPD_FN double coordinate_root(double c, double diag, double b, double alpha) {
  double v;
  if (b > 0.0) {
    // Each of the two candidates alone makes c v^(-1/alpha) at least twice one of the terms.
    v = fmin(diagonal_power(0.5 * c / diag, alpha), power(0.5 * c / b, alpha));
  } else {
    v = fmax(-b / diag, diagonal_power(c / diag, alpha));
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

// Solves problem (2). A class, so that its caller chooses where the numbers live: the stack on a
// host; on a GPU registers for N <= kUnrolled, whose size is in the type so that loops unroll, and
// shared memory above (as a thread's own arrays they would cost every resident thread kilobytes).
constexpr int kUnrolled = 4;

template <int N>
struct Solver {
  double R[N][N];  // correlations; the diagonal is 1 + ridge
  double c[N];     // right-hand side's factors, of this stage
  double v[N];     // the iterate, and the solution
  double r[N], h[N], a[N];  // its rows, see evaluate()
  double target[N], dv[N], start[N], trial[N], e[N];
  double L[N][N];
  bool small[N];
  double alpha, residual;
  int count, iterations;

  FAIRHUMAN_MPD_FN int size() const { return N <= kUnrolled ? N : count; }

  // Rows of (2) at x: r = R x - h with h = c x^(-1/alpha), and a = |R| x. Returns the backward
  // error.
  FAIRHUMAN_MPD_FN double evaluate(const double* x) {
    double worst = 0.0;
    for (int i = 0; i < size(); ++i) {
      double sum = 0.0, magnitude = 0.0;
      for (int j = 0; j < size(); ++j) {
        const double term = R[i][j] * x[j];
        sum += term;
        magnitude += fabs(term);
      }
      h[i] = c[i] * inverse_root(x[i], alpha);
      r[i] = sum - h[i];
      a[i] = magnitude;
      // At the floor a row may have more than it asks for: the bound x >= floor is active there.
      if (x[i] > kFloor || r[i] < 0.0) worst = fmax(worst, fabs(r[i]) / (magnitude + h[i]));
    }
    return worst;
  }

  // Whether the iterate proves a conflict: on the rows S whose target has sunk below the rounding
  // of their own sum, v_S >= 0 satisfies v_S' R_SS v_S <= rounding * |v_S|^2. Rows outside S do
  // not count, however large their v. (A single row of S, or equal gradients, are no conflict:
  // there the form is |v_S|^2 or more.)
  FAIRHUMAN_MPD_FN bool conflicts() const {
    double largest = 0.0;
    for (int i = 0; i < size(); ++i) {
      if (h[i] <= kConflict * a[i]) largest = fmax(largest, v[i]);
    }
    if (largest == 0.0) return false;
    double form = 0.0, squares = 0.0;
    for (int i = 0; i < size(); ++i) {
      if (h[i] > kConflict * a[i]) continue;
      const double ui = v[i] / largest;
      squares += ui * ui;
      for (int j = 0; j < size(); ++j) {
        if (h[j] <= kConflict * a[j]) form += ui * R[i][j] * (v[j] / largest);
      }
    }
    return form <= 10.0 * kConflict * squares;
  }

  // Newton's direction dv. With e_i = (R_ii + h_i / (alpha v_i))^(-1/2), the matrix
  // M = E R E + (I - E R_d E) has a unit diagonal, so neither the scale of v nor that of c costs
  // digits: M q = -E r, dv = E q.
  FAIRHUMAN_MPD_FN void newton_direction() {
    const int n = size();
    for (int i = 0; i < n; ++i) e[i] = 1.0 / sqrt(R[i][i] + h[i] / (alpha * v[i]));
    // A pivot below rounding carries no information; holding it up only shortens the step.
    const double least_pivot = n * kEps;
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j <= i; ++j) {
        double sum = i == j ? 1.0 : e[i] * e[j] * R[i][j];
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

  // The minimum of F over x_i with the others held.
  FAIRHUMAN_MPD_FN double coordinate_minimum(const double* x, int i) const {
    double b = 0.0;
    for (int j = 0; j < size(); ++j) {
      if (j != i) b += R[i][j] * x[j];
    }
    return coordinate_root(c[i], R[i][i], b, alpha);
  }

  // The diagonal solution, rescaled to the minimum of F on its ray, then coordinate descent.
  FAIRHUMAN_MPD_FN void starting_point() {
    double norm2 = 0.0, form = 0.0, largest = 0.0;
    for (int i = 0; i < size(); ++i) {
      v[i] = fmax(diagonal_power(c[i] / R[i][i], alpha), kFloor);
      largest = fmax(largest, v[i]);
    }
    for (int i = 0; i < size(); ++i) {
      const double ui = v[i] / largest;
      norm2 += R[i][i] * ui * ui;
      for (int j = 0; j < size(); ++j) form += ui * R[i][j] * (v[j] / largest);
    }
    const double scale = diagonal_power(norm2 / fmax(form, kEps * norm2), alpha);
    for (int i = 0; i < size(); ++i) v[i] *= scale;
    if (size() == 1) return;
    for (int sweep = 0; sweep < kSweeps; ++sweep) {
      for (int i = 0; i < size(); ++i) v[i] = coordinate_minimum(v, i);
    }
  }

  // A trial point that lowers F; returns its backward error.
  FAIRHUMAN_MPD_FN double line_search(double largest, double t) {
    double error = 0.0;
    for (int back = 0; back < kMaxBacktrack; ++back) {
      if (largest <= kNear) {  // a full step; noise must not refuse it
        for (int i = 0; i < size(); ++i) trial[i] = fmax(v[i] + dv[i], kFloor);
      } else {
        for (int i = 0; i < size(); ++i) {
          trial[i] = small[i] ? v[i] : fmax(v[i] + t * dv[i], kFloor);
        }
        for (int i = 0; i < size(); ++i) {
          if (small[i]) trial[i] = coordinate_minimum(trial, i);
        }
      }
      error = evaluate(trial);
      if (largest <= kNear) break;
      double before = 0.0, after = 0.0;  // the slope along the chord, at its two ends
      for (int i = 0; i < size(); ++i) {
        before += (trial[i] - v[i]) * start[i];
        after += (trial[i] - v[i]) * r[i];
      }
      if (before < 0.0 && after <= 0.0) break;
      t *= before < 0.0 ? fmin(fmax(before / (before - after), 0.1), 0.9) : 0.5;
    }
    return error;
  }

  // Newton's method from the point v.
  FAIRHUMAN_MPD_FN Outcome minimise() {
    double error = evaluate(v);
    double previous = DBL_MAX;
    int stalls = 0;
    for (int it = 0; it < kMaxNewton; ++it) {
      if (conflicts()) return kInConflict;
      if (error <= 2.0 * kEps) break;
      if (error <= 64.0 * kEps) {  // rounding: go on only while it still helps
        stalls = error > 0.5 * previous ? stalls + 1 : 0;
        if (stalls == 2) break;
      }
      previous = error;

      newton_direction();
      double s = 0.0, largest = 0.0, t = 1.0;
      for (int i = 0; i < size(); ++i) {
        start[i] = r[i];
        s -= dv[i] * r[i];
        const double ratio = dv[i] / v[i];
        largest = fmax(largest, fabs(ratio));
        small[i] = h[i] > alpha * v[i] * R[i][i];  // v_i matters less to its row than the others
        if (!small[i] && ratio * t < -0.99) t = -0.99 / ratio;
      }
      if (!(s > 0.0) || !finite(s) || !finite(largest)) break;
      error = line_search(largest, t);
      for (int i = 0; i < size(); ++i) v[i] = trial[i];
      ++iterations;
    }
    residual = error;
    return error <= kSolvedError ? kSolved : kUnconverged;
  }

  // Solves (2) with right-hand side `target`, R and alpha, from scratch. Returns false for a
  // conflict, or when nothing converged.
  FAIRHUMAN_MPD_FN bool solve() {
    Outcome outcome = kUnconverged;
    // At once; and where that fails, in stages from c = 1, which are equal gradient norms.
    for (int stage = -1; stage <= kStages; ++stage) {
      const bool itself = stage < 0 || stage == kStages;
      for (int i = 0; i < size(); ++i) {
        c[i] = itself ? target[i] : pow(target[i], static_cast<double>(stage) / kStages);
      }
      if (stage <= 0) starting_point();
      outcome = minimise();
      if (outcome == kInConflict || (stage < 0 && outcome == kSolved)) break;
    }
    return outcome == kSolved;
  }
};

FAIRHUMAN_MPD_FN void give_up(int K, int status, double* out) {
  for (int i = 0; i < K + kMpdFields; ++i) out[i] = 0.0;
  out[K + kMpdScale] = 1.0;
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
FAIRHUMAN_MPD_FN void solve_present(Solver<N>& solver, const double* gram,
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
    norm2 += w * inverse_root(w, alpha);
    sum += w;
  }
  const double norm = sqrt(norm2);
  if (!finite(norm) || !(norm > 0.0) || !finite(sum)) {
    give_up(K, status | kMpdNonfinite, out);
    return;
  }
  out[K + kMpdNorm] = norm;
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
  solve_present(solver, gram, parameters, index, count, out);
}

// K <= kUnrolled, with nothing in memory but the matrix and the solution.
FAIRHUMAN_MPD_FN void solve_unrolled(const double* gram, const MpdParameters& parameters,
                                     const int* index, int count, double* out) {
  if (count == 1) solve_in_place<1>(gram, parameters, index, count, out);
  if (count == 2) solve_in_place<2>(gram, parameters, index, count, out);
  if (count == 3) solve_in_place<3>(gram, parameters, index, count, out);
  if (count == 4) solve_in_place<4>(gram, parameters, index, count, out);
}

}  // namespace mpd_detail

// What a caller got wrong, or 0.
enum MpdError {
  kMpdSuccess = 0,
  kMpdBadSize = 1,       // K outside 1..16, or a negative count
  kMpdBadAlpha = 2,      // alpha outside [0.5, 16], or NaN
  kMpdBadNormalize = 3,  // no MpdNormalize, max_norm <= 0 or NaN, or an infinite ball
};

inline int mpd_check(const MpdParameters& parameters, int64_t count) {
  if (count < 0 || parameters.K < 1 || parameters.K > kMpdMaxObjectives) return kMpdBadSize;
  if (!(parameters.alpha >= kMpdMinAlpha && parameters.alpha <= kMpdMaxAlpha)) return kMpdBadAlpha;
  const bool ball = parameters.normalize == kMpdBall;
  if (parameters.normalize < kMpdNone || parameters.normalize > kMpdBall ||
      !(parameters.max_norm > 0.0) || (ball && !mpd_detail::finite(parameters.max_norm))) {
    return kMpdBadNormalize;
  }
  return kMpdSuccess;
}

// The native boundary: raw pointers and a code, no exceptions.
// gram [count, K, K], out [count, K + kMpdFields]: contiguous, and not overlapping.
int mpd_solve_cpu(const double* gram, int64_t count, const MpdParameters& parameters, double* out);

}  // namespace fairhuman

#endif  // FAIRHUMAN_MPD_H
