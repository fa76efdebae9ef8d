// Newton's method for problem (2) of mpd.h, one source for host and device.
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

#ifndef FAIRHUMAN_MPD_SOLVER_H
#define FAIRHUMAN_MPD_SOLVER_H

#include "mpd_scalar.h"

namespace fairhuman {
namespace mpd_detail {

constexpr double kEps = DBL_EPSILON;
constexpr double kConflict = 1e-13;  // a row sum that cancels this far is rounding
constexpr double kNear = 0.02;       // relative steps this short are in Newton's region
constexpr double kSolvedError = 1e-12;  // what a solve that ran into its bound may still have
constexpr int kSweeps = 3;
constexpr int kMaxNewton = 100;
constexpr int kStages = 8;
constexpr int kMaxBacktrack = 40;

enum Outcome { kSolved, kUnconverged, kInConflict };

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
      if (error <= 64.0 * kEps) {  // rounding: continue only while it still helps
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

}  // namespace mpd_detail
}  // namespace fairhuman

#endif  // FAIRHUMAN_MPD_SOLVER_H
