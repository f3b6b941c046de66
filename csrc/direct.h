// v'U itself, lanes side by side: where a map meets few filters (depthwise convolutions) or has few outputs, forming G
// would cost more. What phase 1 leaves of a map are its squared norms under each filter.
#pragma once

#include "kernels.h"

namespace {

// The filters of each lane's channel.
template <class T>
struct LaneKernels {
  using Back = Vec<double, kLanes<T>>;
  V<T>* values;     // [filters][taps]
  Back* back;       // [filters]: what each kernel was divided by, a power of two
  int64_t* offset;  // [taps], in the tile
  int64_t filters, most;

  LaneKernels(Scratch& s, const Conv& c, const Plan& p) : filters(0), most(p.features) {
    const bool used = p.path == Path::direct;
    values = s.take<V<T>>(used ? p.features * c.taps() : 0);
    back = s.take<Back>(used ? p.features : 0);
    offset = s.take<int64_t>(used ? c.taps() : 0);
  }

  // Filters [first, first + count): of one channel for every lane, or of one channel each. Returns the smallest
  // activation, as build_table does.
  float load(const Conv& c, Span channels, int64_t first, int64_t count) {
    const int64_t members = channels.end - channels.begin;
    V<T> least = V<T>{} + 1;
    filters = count;
    for (int64_t j = 0; j < count; ++j) {
      V<T>* kernel = values + j * c.taps();
      load_kernels<T, kLanes<T>>(
          c,
          [&](int64_t lane) {
            return members > 1 && lane >= members
                       ? -1
                       : kernel_offset(c, channels.begin + (members > 1 ? lane : 0), first + j);
          },
          kernel);
      scale_kernels<T, kLanes<T>>(kernel, c.taps(), (double*)(back + j), least);
    }
    return smallest_activation<T, kLanes<T>>(least);
  }
};

// The squares of R neighbouring outputs.
template <class T, int R>
INLINE V<T> output_squares(const V<T>* x, int64_t stride, const V<T>* kernel, const int64_t* offset, int64_t taps) {
  V<T> y[R] = {}, sum{};
  for (int64_t t = 0; t < taps; ++t) {
    const V<T>*at = x + offset[t], k = kernel[t];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) y[i] += at[i * stride] * k;
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) sum += y[i] * y[i];
  return sum;
}

// out[filter] = the square of || |K| * |x| || over the outputs of one tile.
template <class T>
void squared_norms(const Conv& c, const Tile& t, const V<T>* x, const LaneKernels<T>& k, V<T>* out) {
  const int64_t taps = c.taps(), stride = c.stride[2];
  for (int64_t tap = 0; tap < taps; ++tap) k.offset[tap] = tap_offset(c, t, tap);
  for (int64_t j = k.filters; j < k.most; ++j) out[j] = V<T>{};
  for (int64_t j = 0; j < k.filters; ++j) {
    const V<T>* kernel = k.values + j * taps;
    V<T> total{};
    for (int64_t d = 0; d < t.out[0]; ++d)
      for (int64_t h = 0; h < t.out[1]; ++h) {
        const V<T>* at = x + t.index(d * c.stride[0], h * c.stride[1], 0);
        V<T> sum{};
        int64_t w = 0;
        for (; w + 7 <= t.out[2]; w += 7) sum += output_squares<T, 7>(at + w * stride, stride, kernel, k.offset, taps);
        for (; w + 4 <= t.out[2]; w += 4) sum += output_squares<T, 4>(at + w * stride, stride, kernel, k.offset, taps);
        for (; w < t.out[2]; ++w) sum += output_squares<T, 1>(at + w * stride, stride, kernel, k.offset, taps);
        total += sum;
      }
    out[j] = total;
  }
}

}  // namespace
