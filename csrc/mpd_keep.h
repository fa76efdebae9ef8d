// The least cosine to one gradient (`keep`, `anchor` of mpd.h), one source for host and device.
//
// Let g be the anchor's gradient, n = ||g||, and d0 = sum_k w_k g_k = a g / n + b e with e normal to
// g and b >= 0. Its cosine to g is a / sqrt(a^2 + b^2). Of the directions whose cosine is at least
// keep, the nearest to d0 by angle lies in the plane of d0 and g: d0 itself where it keeps enough,
// else d0 + mu g with the least mu that reaches keep,
//
//     mu = (keep b / sqrt(1 - keep^2) - a) / n,     ||d||^2 = (a + mu n)^2 + b^2.         (3)
//
// b depends on the other objectives alone: with u their weights, B their part of A and r = sum of
// <g, g_i> u_i, b^2 = u'Bu - r^2 / n^2, which is u'Su with A's Schur complement S. It cancels where
// the others are collinear with g, or with each other's opposite. So it is summed in about twice
// double's digits (two-sum, and two-product by fma), and what those may err by is added: b is never
// too small. The new weight is rounded up. Hence, for A as it was given and w as it is returned,
//
//     keep - 8 eps <= cosine <= keep + 8 eps + 2 eps x_0 + K^4 2^-100 (sum_i x_i)^2          (4)
//
// where the bound is active, with x_i = w_i ||g_i|| / ||d||: what can be above keep is w_0's own
// rounding where d cancels, and b where it cancels down to a part in 10^10.
//
// Everything is scaled by powers of two, exactly: no norm and no weight is too large or too small.

#ifndef FAIRHUMAN_MPD_KEEP_H
#define FAIRHUMAN_MPD_KEEP_H

#include <stdint.h>
#include <string.h>

#include "mpd.h"
#include "mpd_scalar.h"

namespace fairhuman {
namespace mpd_detail {

constexpr double kUnit2 = 0x1p-106;  // (eps / 2)^2

// The power of two in [x/2, x], for a normal x > 0.
FAIRHUMAN_MPD_FN double power_below(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits &= 0x7ff0000000000000u;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// A sum and what its additions have lost (Knuth; Ogita, Rump, Oishi).
struct Sum {
  double high = 0.0, low = 0.0;

  FAIRHUMAN_MPD_FN void add(double x) {
    const double sum = high + x;
    const double part = sum - high;
    low += (high - (sum - part)) + (x - part);
    high = sum;
  }

  FAIRHUMAN_MPD_FN void add_product(double x, double y) {
    const double product = x * y;
    add(product);
    low += fma(x, y, -product);
  }

  FAIRHUMAN_MPD_FN void add_product(double x, double y, double z) {
    const double product = x * y;
    add_product(product, z);
    low += fma(x, y, -product) * z;
  }

  FAIRHUMAN_MPD_FN double value() const { return high + low; }
};

// Where the numbers live is the caller's choice, as with Solver.
template <int N>
struct Keeper {
  double w[N];      // the present objectives' weights
  double scale[N];  // a power of two near 1 / ||g_i||
  double row[N];    // <g, g_i>, scaled

  // The part of A of two present objectives, scaled; of the symmetric part, as in the solver.
  static FAIRHUMAN_MPD_FN double entry(const double* gram, int K, const int* index, int i, int j,
                                       double scale) {
    const double upper = gram[index[i] * K + index[j]];
    const double lower = gram[index[j] * K + index[i]];
    return (0.5 * upper + 0.5 * lower) * scale;
  }

  // Sets the cosine in `out`; where it falls short, the anchor's weight, the norm and kMpdKept too.
  // Returns what the weight has grown by. `least` is what ||d0|| is at least taken for: what is
  // below it is rounding.
  FAIRHUMAN_MPD_FN double bound(const double* gram, const MpdParameters& parameters,
                                const int* index, int count, double least, double* out) {
    const int K = parameters.K;
    const int size = N <= 4 ? N : count;
    if (size == 1) {  // alone, it has the whole direction
      if (index[0] == parameters.anchor) out[K + kMpdCosine] = 1.0;
      return 0.0;
    }
    double largest = 0.0, anchor_scale = 0.0, x0 = 0.0, q = 0.0;
    for (int i = 0; i < size; ++i) {
      const double power = power_below(sqrt(gram[index[i] * K + index[i]]));
      scale[i] = 1.0 / power;
      w[i] *= power;
      largest = fmax(largest, w[i]);
      if (index[i] == parameters.anchor) {
        anchor_scale = scale[i];
        x0 = w[i];
        q = gram[index[i] * K + index[i]] * scale[i] * scale[i];
      }
    }
    if (q == 0.0) return 0.0;  // it is absent
    const double unit = power_below(largest);
    const double inverse = 1.0 / unit;
    x0 *= inverse;

    Sum r, form;  // r and b^2
    double magnitude = 0.0;
    for (int i = 0; i < size; ++i) {
      w[i] *= inverse;
      if (index[i] == parameters.anchor) continue;
      const int a = parameters.anchor;
      row[i] = (0.5 * gram[index[i] * K + a] + 0.5 * gram[a * K + index[i]]) * scale[i];
      r.add_product(row[i] * anchor_scale, w[i]);
      form.add_product(gram[index[i] * K + index[i]] * scale[i] * scale[i], w[i], w[i]);
      magnitude += 4.0 * w[i] * w[i];
      for (int j = 0; j < i; ++j) {
        if (index[j] == parameters.anchor) continue;
        const double product = 2.0 * entry(gram, K, index, i, j, scale[i]) * scale[j];
        form.add_product(product, w[i], w[j]);
        magnitude += fabs(product * w[i] * w[j]);
      }
    }
    const double high = r.value();
    const double low = (r.high - high) + r.low;
    const double part = high / q;
    const double rest = (fma(-part, q, high) + low) / q;
    form.add_product(-high, part);
    form.low -= high * rest + low * part;
    magnitude += high * part;

    const double root = sqrt(q);
    Sum dot;
    dot.add(high);
    dot.add_product(q, x0);
    dot.low += low;
    double a = dot.value() / root;
    const double terms = static_cast<double>(size) * size;
    double b2 = fmax(form.value(), 0.0) + 16.0 * terms * terms * kUnit2 * magnitude;
    least *= inverse;
    b2 = fmax(b2, least * least - a * a);
    const double keep = parameters.keep;
    const double limit = keep / sqrt((1.0 - keep) * (1.0 + keep)) * sqrt(b2);
    const bool active = keep > 0.0 && a < limit;
    if (active) {
      Sum wanted;
      wanted.add(limit * root);
      wanted.add(-high);
      wanted.low -= low;
      const double x = wanted.value() / q;
      x0 = fmax(x0, x + fabs(x) * DBL_EPSILON);
      Sum moved;
      moved.add(high);
      moved.add_product(q, x0);
      moved.low += low;
      a = moved.value() / root;
    }
    const double norm = sqrt(a * a + b2);
    const double cosine = a / norm;  // NaN where there is no direction
    out[K + kMpdCosine] = cosine;
    if (!active) return 0.0;
    out[K + kMpdCosine] = fmax(cosine, keep);  // rounding makes no promise look broken
    const double before = out[parameters.anchor];
    out[parameters.anchor] = x0 * unit * anchor_scale;
    out[K + kMpdNorm] = norm * unit;
    out[K + kMpdFlags] = static_cast<int>(out[K + kMpdFlags]) | kMpdKept;
    return out[parameters.anchor] - before;
  }
};

}  // namespace mpd_detail
}  // namespace fairhuman

#endif  // FAIRHUMAN_MPD_KEEP_H
