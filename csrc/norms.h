// The norms of the maps themselves, all that 1x1 kernels need: one map at a time, lanes side by side along its pixels.
#pragma once

#include "fill.h"

namespace {

// |x| of `count` elements `step` apart, as floats. Writes up to a vector of zeros behind them.
template <class S>
INLINE void copy_row(const S* x, int64_t step, int64_t count, float* out) {
  constexpr int n = kLanes<float>;
  const auto put = [&](int64_t i, V<float> value) { memcpy(out + i, &value, sizeof(value)); };
  int64_t i = 0;
  if (step == 1) {
    for (; i + n <= count; i += n) put(i, load<float>(x + i));
    if (i < count) put(i, load_some<float>(x + i, count - i));
  } else if (step == 2) {
    for (; i + n < count; i += n) put(i, evens<float>(load<float>(x + 2 * i), load<float>(x + 2 * i + n)));
    if (i < count) {
      const int64_t left = 2 * (count - i) - 1;
      put(i, evens<float>(load_some<float>(x + 2 * i, smaller(left, n)),
                          left > n ? load_some<float>(x + 2 * i + n, left - n) : V<float>{}));
    }
  } else {
    for (; i < count; ++i) out[i] = load_one<float>(x + i * step);
  }
}

// Whether float32 holds a sum of `count` squares to its full precision: none overflowed, and those that underflowed do
// not show.
INLINE bool holds(double sum, int64_t count) { return sum >= 0x1p-100 * (double)count && sum <= 0x1p120; }

// ||x|| of one map.
template <class S>
double map_norm(const Conv& c, const S* x) {
  constexpr int n = kLanes<float>;
  constexpr int64_t most = 64 * n;  // elements between two sums in float64
  alignas(64) float row[most + n];
  int64_t width = c.size[2], rows = c.size[1];
  const int64_t step = c.acts_x[2];
  if (step == 1 && (rows == 1 || c.acts_x[1] == width)) {
    width *= rows;
    rows = 1;
  }
  double total = 0;
  for (int64_t d = 0; d < c.size[0]; ++d)
    for (int64_t h = 0; h < rows; ++h)
      for (int64_t w = 0; w < width; w += most) {
        const int64_t count = smaller(width - w, most);
        const S* at = x + d * c.acts_x[0] + h * c.acts_x[1] + w * step;
        V<float> sum[4] = {};
        const auto add = [&](V<float> value, int64_t i) { sum[i] += value * value; };
        int64_t i = 0;
        if (step == 1) {
          for (; i + 4 * n <= count; i += 4 * n)
#pragma GCC unroll 4
            for (int u = 0; u < 4; ++u) add(load<float>(at + i + u * n), u);
          for (; i + n <= count; i += n) add(load<float>(at + i), 0);
          if (i < count) add(load_some<float>(at + i, count - i), 1);
        } else {
          copy_row(at, step, count, row);
          for (; i + n <= count; i += n) add(load<float>(row + i), 0);
          if (i < count) add(load_some<float>(row + i, count - i), 1);
        }
        total += sum_lanes<float>((sum[0] + sum[1]) + (sum[2] + sum[3]));
      }
  if (holds(total, c.pixels())) return __builtin_sqrt(total);
  total = 0;
  for (int64_t d = 0; d < c.size[0]; ++d)
    for (int64_t h = 0; h < c.size[1]; ++h)
      for (int64_t w = 0; w < c.size[2]; ++w) {
        const double value = load_one<float>(x + d * c.acts_x[0] + h * c.acts_x[1] + w * step);
        total += value * value;
      }
  return __builtin_sqrt(total);
}

// Adds the norms of `samples` to sums[channel]. Neighbouring channels are neighbours in memory: sample by sample.
template <class S>
void add_map_norms(const Conv& c, Span channels, Span samples, double* sums) {
  for (int64_t sample = samples.begin; sample < samples.end; ++sample)
    for (int64_t ch = channels.begin; ch < channels.end; ++ch)
      sums[ch - channels.begin] += map_norm(c, (const S*)c.acts + sample * c.acts_n + ch * c.acts_c);
}

}  // namespace
