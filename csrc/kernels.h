// |K| with kernels side by side in a vector, each divided by a power of two so that squares stay in range.
#pragma once

#include "gram.h"

namespace {

constexpr double kSmallest = 0x1p-62;
constexpr float kBeyond = 1e38f;  // the least activation of kernels that no float32 may use

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

// Where the kernel of channel `ch` and its group's filter `j` starts in the weight.
INLINE int64_t kernel_offset(const Conv& c, int64_t ch, int64_t j) {
  return (ch / c.per_group() * c.filters + j) * c.weight_j + ch % c.per_group() * c.weight_c;
}

// The kernels of `channels`, all of one group, copied to `packed` with their taps in order: one channel's kernels lie
// far apart in the weight, and each would miss the cache once per channel. Returns the convolution that reads them
// there.
Conv pack_kernels(const Conv& c, Span channels, char* packed) {
  const Taps taps{c};
  const int64_t members = channels.end - channels.begin, size = item_size(c.weight_type), width = c.taps() * size;
  const bool side_by_side = taps.contiguous() && c.weight_c == c.taps();
  char* out = packed;
  for (int64_t j = 0; j < c.filters; ++j) {
    const char* row = (const char*)c.weight + kernel_offset(c, channels.begin, j) * size;
    if (side_by_side) {
      memcpy(out, row, members * width);
      out += members * width;
      continue;
    }
    for (int64_t m = 0; m < members; ++m)
      for (int64_t t = 0; t < c.taps(); ++t, out += size)
        memcpy(out, row + (m * c.weight_c + taps.offset(t)) * size, size);
  }
  Conv near = c;
  near.weight_x[2] = 1;
  near.weight_x[1] = c.kernel[2];
  near.weight_x[0] = c.kernel[1] * c.kernel[2];
  near.weight_c = c.taps();
  near.weight_j = members * c.taps();
  near.weight = packed - kernel_offset(near, channels.begin, 0) * size;
  return near;
}

// |K| of the kernels that start at offset(0), offset(1) ..., zeros where that is negative.
template <class T, class S, int L, class Offset>
void load_kernels(const Conv& c, const Offset& offset, Vec<T, L>* kernel) {
  constexpr int n = kLanes<T>;
  const Taps taps{c};
  const S* weight = (const S*)c.weight;
  if (!taps.contiguous()) {
    for (int i = 0; i < L; ++i) {
      const int64_t at = offset(i);
      for (int64_t t = 0; t < c.taps(); ++t) kernel[t][i] = at < 0 ? T(0) : load_one<T>(weight + at + taps.offset(t));
    }
    return;
  }
  for (int i = 0; i < L; i += n)
    for (int64_t t = 0; t < c.taps(); t += n) {
      const int64_t some = c.taps() - t;
      V<T> rows[n];
      for (int l = 0; l < n; ++l) {
        const int64_t at = offset(i + l);
        rows[l] = at < 0 ? V<T>{} : some >= n ? load<T>(weight + at + t) : load_some<T>(weight + at + t, some);
      }
      transpose<T>(rows);
      for (int l = 0; l < n && l < some; ++l) memcpy((T*)(kernel + t + l) + i, &rows[l], sizeof(rows[l]));
    }
}

template <class T, int L, class Offset>
void load_kernels(const Conv& c, const Offset& offset, Vec<T, L>* kernel) {
  switch (c.weight_type) {
    case Dtype::f16:
      return load_kernels<T, Half, L>(c, offset, kernel);
    case Dtype::bf16:
      return load_kernels<T, BFloat16, L>(c, offset, kernel);
    case Dtype::f32:
      return load_kernels<T, float, L>(c, offset, kernel);
    case Dtype::f64:
      if constexpr (sizeof(T) == 8) return load_kernels<T, double, L>(c, offset, kernel);
  }
}

// Divides each kernel by the power of two at or below its peak, kept in `back`; lowers `least` to its smallest non-zero
// element, or to 0 where one is not finite. A subnormal peak is left as it is: `least` then sends its maps to float64.
template <class T, int L>
void scale_kernels(Vec<T, L>* kernel, int64_t taps, double* back, Vec<T, L>& least) {
  using U = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  using Kernels = Vec<T, L>;
  using Exponents = Vec<U, L>;
  constexpr int mantissa = std::numeric_limits<T>::digits - 1;
  constexpr U top = 2 * std::numeric_limits<T>::max_exponent - 2;  // an exponent and `top` minus it are inverse
  Kernels peak{}, low = Kernels{} + std::numeric_limits<T>::max(), sum{};
  for (int64_t t = 0; t < taps; ++t) {
    const Kernels v = kernel[t], positive = v > 0 ? v : low;
    peak = v > peak ? v : peak;
    low = positive < low ? positive : low;
    sum += v * 0;  // NaN where an element is not finite
  }
  const Exponents exponent = (Exponents)peak >> mantissa, one = (Exponents)(Kernels{} + 1);
  const Exponents regular = (Exponents)(exponent - 1u < Exponents{} + (top - 1u));
  const Kernels scale = (Kernels)((regular & (exponent << mantissa)) | (~regular & one));
  const Kernels inverse = (Kernels)((regular & ((top - exponent) << mantissa)) | (~regular & one));
  for (int64_t t = 0; t < taps; ++t) kernel[t] *= inverse;
  const Kernels smallest = sum == 0 ? low * inverse : Kernels{};
  least = smallest < least ? smallest : least;
  const Vec<double, L> wide = __builtin_convertvector(scale, Vec<double, L>);
  memcpy(back, &wide, sizeof(wide));
}

// The smallest activation whose square times that of a kernel's element, at least `least`, stays above float32's
// underflow.
template <class T, int L>
float smallest_activation(const Vec<T, L>& least) {
  double all = 1;
  for (int i = 0; i < L; ++i) all = least[i] < all ? (double)least[i] : all;
  const double limit = all > 0 ? kSmallest / all : kBeyond;
  return limit < kBeyond ? (float)limit : kBeyond;
}

}  // namespace
