// The filter side of phase 2: for one channel, the numbers each |K_ij| meets the features with, filters side by side.
#pragma once

#include "gram.h"

namespace {

constexpr float kLargest = 0x1p40f;  // beyond it, or with NaN, a block of maps is scored in float64
constexpr double kSmallest = 0x1p-62;

template <class T>
struct Table {
  T* values;     // [filters / kFilters][features][kFilters]
  T* kernel;     // [taps][kFilters]
  T* row;        // [pixels][kFilters], for dual
  double* back;  // [filters]: what each kernel was divided by, a power of two
};

// A power of two at or below `peak`, and its inverse; 1 where there is none.
INLINE double power_of_two(double peak, double& inverse) {
  uint64_t bits;
  memcpy(&bits, &peak, 8);
  const uint64_t exponent = bits >> 52;
  if (exponent == 0 || exponent >= 2046) return inverse = 1;
  uint64_t up = exponent << 52, down = (2046 - exponent) << 52;
  double scale;
  memcpy(&scale, &up, 8);
  memcpy(&inverse, &down, 8);
  return scale;
}

// Loads filter `j`'s kernel of channel `ch` into column `at` of `kernel`; lowers `least` to its smallest non-zero
// element.
template <class T, class S>
void load_kernel(const Conv& c, int64_t ch, int64_t j, int at, Table<T>& table, double& back, double& least) {
  const S* w = (const S*)c.weight + (ch / c.per_group() * c.filters + j) * c.weight_j + ch % c.per_group() * c.weight_c;
  T* v = table.kernel + at;
  double peak = 0, low = 1e308;
  bool finite = true;
  for (int64_t d = 0; d < c.kernel[0]; ++d)
    for (int64_t h = 0; h < c.kernel[1]; ++h)
      for (int64_t i = 0; i < c.kernel[2]; ++i, v += kFilters) {
        const double x = (double)load_one<T>(w + d * c.weight_x[0] + h * c.weight_x[1] + i * c.weight_x[2]);
        *v = (T)x;
        peak = x > peak ? x : peak;
        low = x != 0 && x < low ? x : low;
        finite = finite && x <= 1.7e308;
      }
  double inverse;
  back = power_of_two(peak, inverse);
  v = table.kernel + at;
  for (int64_t t = 0; t < c.taps(); ++t) v[t * kFilters] = (T)(v[t * kFilters] * inverse);
  if (!finite) least = 0;
  if (low * inverse < least) least = low * inverse;
}

template <class T>
void load_kernel(const Conv& c, int64_t ch, int64_t j, int at, Table<T>& table, double& back, double& least) {
  switch (c.weight_type) {
    case Dtype::f16:
      return load_kernel<T, Half>(c, ch, j, at, table, back, least);
    case Dtype::bf16:
      return load_kernel<T, BFloat16>(c, ch, j, at, table, back, least);
    case Dtype::f32:
      return load_kernel<T, float>(c, ch, j, at, table, back, least);
    case Dtype::f64:
      if constexpr (sizeof(T) == 8) return load_kernel<T, double>(c, ch, j, at, table, back, least);
  }
}

// sum over a pair (a <= b) of one row's products, doubled off the diagonal: the triangle of the row's outer product.
template <class T, bool Add>
INLINE void triangle(const T* row, int64_t count, T* out) {
  for (int64_t a = 0; a < count; ++a)
    for (int64_t b = a; b < count; ++b, out += kFilters) {
      const T twice = a == b ? 1 : 2;
      for (int i = 0; i < kFilters; ++i) {
        const T product = twice * row[a * kFilters + i] * row[b * kFilters + i];
        out[i] = Add ? out[i] + product : product;
      }
    }
}

// The kernels as quadratic forms of the map: sum over outputs l of the outer product of l's row of the convolution's
// matrix.
template <class T>
void dual_forms(const Conv& c, Table<T>& table, T* out) {
  const int64_t pixels = c.pixels();
  for (int64_t i = 0; i < pixels * (pixels + 1) / 2 * kFilters; ++i) out[i] = 0;
  int64_t l[3];
  for (l[0] = 0; l[0] < c.out[0]; ++l[0])
    for (l[1] = 0; l[1] < c.out[1]; ++l[1])
      for (l[2] = 0; l[2] < c.out[2]; ++l[2]) {
        for (int64_t i = 0; i < pixels * kFilters; ++i) table.row[i] = 0;
        for (int64_t t = 0; t < c.taps(); ++t) {
          const int64_t tap[3] = {t / (c.kernel[1] * c.kernel[2]), t / c.kernel[2] % c.kernel[1], t % c.kernel[2]};
          int64_t pixel = 0;
          bool inside = true;
          for (int d = 0; d < 3; ++d) {
            const int64_t x = c.source(d, l[d] * c.stride[d] + tap[d] * c.dilation[d] - c.before[d]);
            inside = inside && x >= 0;
            pixel = pixel * c.size[d] + x;
          }
          if (!inside) continue;
          for (int i = 0; i < kFilters; ++i) table.row[pixel * kFilters + i] += table.kernel[t * kFilters + i];
        }
        triangle<T, true>(table.row, pixels, out);
      }
}

// Fills the table for filters [first, first + count) of channel `ch`. Returns the smallest activation whose square
// times a kernel element's stays above float32's underflow.
template <class T>
float build_table(const Conv& c, const Plan& p, int64_t ch, int64_t first, int64_t count, Table<T>& table) {
  if (p.path == Path::norms) {
    table.back[0] = 1;
    return (float)kSmallest;
  }
  double least = 1;
  const int64_t width = p.path == Path::direct ? c.taps() : p.features;
  for (int64_t j = 0; j < count; j += kFilters) {
    for (int i = 0; i < kFilters; ++i) {
      if (j + i < count)
        load_kernel<T>(c, ch, first + j + i, i, table, table.back[j + i], least);
      else
        for (int64_t t = 0; t < c.taps(); ++t) table.kernel[t * kFilters + i] = 0;
    }
    T* out = table.values + j * width;
    if (p.path == Path::dual)
      dual_forms<T>(c, table, out);
    else if (p.path == Path::direct || p.path == Path::window_sums)
      memcpy(out, table.kernel, width * kFilters * sizeof(T));
    else
      triangle<T, false>(table.kernel, c.taps(), out);
  }
  const double limit = least > 0 ? kSmallest / least : 1e38;
  return (float)(limit < 1e38 ? limit : 1e38);
}

}  // namespace
