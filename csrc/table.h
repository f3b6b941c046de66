// The filter side of phase 2: for one channel, the numbers each |K_ij| meets the features with, filters side by side.
#pragma once

#include "gram.h"

namespace {

constexpr float kLargest = 0x1p40f;  // beyond it, or with NaN, a block of maps is scored in float64
constexpr double kSmallest = 0x1p-62;
constexpr float kBeyond = 1e38f;  // the least activation of a table that no float32 may use

// Filters side by side: one number of each.
template <class T>
using Column = Vec<T, kFilters>;

template <class T>
struct Table {
  Column<T>* values;     // [filters / kFilters][features]
  Column<T>* kernel;     // [taps]
  Column<T>* row;        // [pixels], for dual
  const int32_t* under;  // [outputs][taps]: the pixel under a tap, -1 outside the map; for dual
  double* back;          // [filters]: what each kernel was divided by, a power of two
};

// For the dual forms: which pixel lies under each tap of each output.
void pixels_under_taps(const Conv& c, int32_t* under) {
  int64_t l[3], tap[3];
  for (l[0] = 0; l[0] < c.out[0]; ++l[0])
    for (l[1] = 0; l[1] < c.out[1]; ++l[1])
      for (l[2] = 0; l[2] < c.out[2]; ++l[2])
        for (tap[0] = 0; tap[0] < c.kernel[0]; ++tap[0])
          for (tap[1] = 0; tap[1] < c.kernel[1]; ++tap[1])
            for (tap[2] = 0; tap[2] < c.kernel[2]; ++tap[2]) {
              int64_t pixel = 0;
              bool inside = true;
              for (int d = 0; d < 3; ++d) {
                const int64_t x = c.source(d, l[d] * c.stride[d] + tap[d] * c.dilation[d] - c.before[d]);
                inside = inside && x >= 0;
                pixel = pixel * c.size[d] + x;
              }
              *under++ = inside ? (int32_t)pixel : -1;
            }
}

template <class T>
Table<T> take_table(Scratch& s, const Conv& c, const Plan& p) {
  const int64_t groups = (p.filter_block + kFilters - 1) / kFilters;
  Table<T> table;
  const bool dual = p.path == Path::dual;
  table.values = s.take<Column<T>>(groups * (p.path == Path::direct ? c.taps() : p.features));
  table.kernel = s.take<Column<T>>(c.taps());
  table.row = s.take<Column<T>>(dual ? c.pixels() : 0);
  int32_t* under = s.take<int32_t>(dual ? c.positions() * c.taps() : 0);
  if (s.base && dual) pixels_under_taps(c, under);
  table.under = under;
  table.back = s.take<double>(groups * kFilters);
  return table;
}

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

// One tap after the other, as they lie in the weight.
struct Taps {
  const Conv& c;

  bool contiguous() const {
    return c.weight_x[2] == 1 && (c.kernel[1] == 1 || c.weight_x[1] == c.kernel[2]) &&
           (c.kernel[0] == 1 || c.weight_x[0] == c.kernel[1] * c.kernel[2]);
  }
  int64_t offset(int64_t t) const {
    const int64_t w = t % c.kernel[2], h = t / c.kernel[2] % c.kernel[1], d = t / (c.kernel[1] * c.kernel[2]);
    return d * c.weight_x[0] + h * c.weight_x[1] + w * c.weight_x[2];
  }
};

// |K| of filters [j, j + count) of channel `ch`, zeros up to kFilters.
template <class T, class S>
void load_kernels(const Conv& c, int64_t ch, int64_t j, int64_t count, Column<T>* kernel) {
  constexpr int n = kLanes<T>;
  const Taps taps{c};
  const S* w = (const S*)c.weight + (ch / c.per_group() * c.filters + j) * c.weight_j + ch % c.per_group() * c.weight_c;
  if (!taps.contiguous()) {
    for (int64_t t = 0; t < c.taps(); ++t)
      for (int i = 0; i < kFilters; ++i)
        kernel[t][i] = i < count ? load_one<T>(w + i * c.weight_j + taps.offset(t)) : T(0);
    return;
  }
  for (int i = 0; i < kFilters; i += n)
    for (int64_t t = 0; t < c.taps(); t += n) {
      const int64_t some = c.taps() - t;
      V<T> rows[n];
      for (int l = 0; l < n; ++l) {
        const S* x = w + (i + l) * c.weight_j + t;
        rows[l] = i + l >= count ? V<T>{} : some >= n ? load<T>(x) : load_some<T>(x, some);
      }
      transpose<T>(rows);
      for (int l = 0; l < n && l < some; ++l) memcpy((T*)(kernel + t + l) + i, &rows[l], sizeof(rows[l]));
    }
}

template <class T>
void load_kernels(const Conv& c, int64_t ch, int64_t j, int64_t count, Column<T>* kernel) {
  switch (c.weight_type) {
    case Dtype::f16:
      return load_kernels<T, Half>(c, ch, j, count, kernel);
    case Dtype::bf16:
      return load_kernels<T, BFloat16>(c, ch, j, count, kernel);
    case Dtype::f32:
      return load_kernels<T, float>(c, ch, j, count, kernel);
    case Dtype::f64:
      if constexpr (sizeof(T) == 8) return load_kernels<T, double>(c, ch, j, count, kernel);
  }
}

// |K| at one offset of filter `j`'s kernel of channel `ch`.
INLINE double kernel_element(const Conv& c, int64_t ch, int64_t j, int64_t offset) {
  const int64_t at = (ch / c.per_group() * c.filters + j) * c.weight_j + ch % c.per_group() * c.weight_c + offset;
  switch (c.weight_type) {
    case Dtype::f16:
      return load_one<float>((const Half*)c.weight + at);
    case Dtype::bf16:
      return load_one<float>((const BFloat16*)c.weight + at);
    case Dtype::f32:
      return load_one<float>((const float*)c.weight + at);
    default:
      return load_one<double>((const double*)c.weight + at);
  }
}

// Divides each kernel by the power of two at or below its peak, kept in `back`; lowers `least` to its smallest non-zero
// element, or to 0 where one is not finite. A subnormal peak is left as it is: `least` then sends its maps to float64.
template <class T>
void scale_kernels(Column<T>* kernel, int64_t taps, double* back, Column<T>& least) {
  using U = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  using UColumn = Vec<U, kFilters>;
  constexpr int mantissa = std::numeric_limits<T>::digits - 1;
  constexpr U top = 2 * std::numeric_limits<T>::max_exponent - 2;  // an exponent and `top` minus it are inverse
  Column<T> peak{}, low = Column<T>{} + std::numeric_limits<T>::max(), sum{};
  for (int64_t t = 0; t < taps; ++t) {
    const Column<T> v = kernel[t], positive = v > 0 ? v : low;
    peak = v > peak ? v : peak;
    low = positive < low ? positive : low;
    sum += v * 0;  // NaN where an element is not finite
  }
  const UColumn exponent = (UColumn)peak >> mantissa, one = (UColumn)(Column<T>{} + 1);
  const UColumn regular = (UColumn)(exponent - 1u < UColumn{} + (top - 1u));
  const Column<T> scale = (Column<T>)((regular & (exponent << mantissa)) | (~regular & one));
  const Column<T> inverse = (Column<T>)((regular & ((top - exponent) << mantissa)) | (~regular & one));
  for (int64_t t = 0; t < taps; ++t) kernel[t] *= inverse;
  const Column<T> smallest = sum == 0 ? low * inverse : Column<T>{};
  least = smallest < least ? smallest : least;
  const Vec<double, kFilters> wide = __builtin_convertvector(scale, Vec<double, kFilters>);
  memcpy(back, &wide, sizeof(wide));
}

// sum over a pair (a <= b) of one row's products, doubled off the diagonal: the triangle of the row's outer product.
template <class T, bool Add>
INLINE void triangle(const Column<T>* row, int64_t count, Column<T>* out) {
  for (int64_t a = 0; a < count; ++a) {
    const Column<T> x = row[a], twice = x + x;
    *out = Add ? *out + x * x : x * x;
    ++out;
    for (int64_t b = a + 1; b < count; ++b, ++out) *out = Add ? *out + twice * row[b] : twice * row[b];
  }
}

// The kernels as quadratic forms of the map: sum over outputs of the outer product of the output's row of the
// convolution's matrix.
template <class T>
void dual_forms(const Conv& c, const Table<T>& table, Column<T>* out) {
  const int64_t pixels = c.pixels(), taps = c.taps();
  for (int64_t i = 0; i < pixels * (pixels + 1) / 2; ++i) out[i] = Column<T>{};
  for (int64_t l = 0; l < c.positions(); ++l) {
    for (int64_t i = 0; i < pixels; ++i) table.row[i] = Column<T>{};
    for (int64_t t = 0; t < taps; ++t) {
      const int32_t pixel = table.under[l * taps + t];
      if (pixel >= 0) table.row[pixel] += table.kernel[t];
    }
    triangle<T, true>(table.row, pixels, out);
  }
}

// Fills the table for filters [first, first + count) of channel `ch`. Returns the smallest activation whose square
// times a kernel element's stays above float32's underflow.
template <class T>
float build_table(const Conv& c, const Plan& p, int64_t ch, int64_t first, int64_t count, const Table<T>& table) {
  if (p.path == Path::norms) {
    table.back[0] = 1;
    return (float)kSmallest;
  }
  Column<T> smallest = Column<T>{} + 1;
  const int64_t width = p.path == Path::direct ? c.taps() : p.features;
  for (int64_t j = 0; j < count; j += kFilters) {
    const int64_t some = smaller(count - j, kFilters);
    load_kernels<T>(c, ch, first + j, some, table.kernel);
    scale_kernels<T>(table.kernel, c.taps(), table.back + j, smallest);
    Column<T>* out = table.values + j / kFilters * width;
    if (p.path == Path::dual)
      dual_forms<T>(c, table, out);
    else if (p.path == Path::direct || p.path == Path::window_sums)
      memcpy(out, table.kernel, width * sizeof(*out));
    else
      triangle<T, false>(table.kernel, c.taps(), out);
  }
  double least = 1;
  for (int i = 0; i < kFilters; ++i) least = smallest[i] < least ? (double)smallest[i] : least;
  const double limit = least > 0 ? kSmallest / least : kBeyond;
  return limit < kBeyond ? (float)limit : kBeyond;
}

}  // namespace
