// Powers and the one-dimensional problem of the solver, one source for host and device.

#ifndef FAIRHUMAN_MPD_SCALAR_H
#define FAIRHUMAN_MPD_SCALAR_H

#include <float.h>
#include <math.h>

#ifdef __CUDACC__
#define FAIRHUMAN_MPD_FN __host__ __device__ inline
#else
#define FAIRHUMAN_MPD_FN inline
#endif

namespace fairhuman {
namespace mpd_detail {

constexpr double kFloor = 1e-280;    // weights below it are zero to any purpose
constexpr int kMaxCoordinate = 60;

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

}  // namespace mpd_detail
}  // namespace fairhuman

#endif  // FAIRHUMAN_MPD_SCALAR_H
