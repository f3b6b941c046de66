// Reading activations: |x| of as many maps as a vector has lanes, one vector per pixel, padding included.
#pragma once

#include "conv.h"
#include "vector.h"

namespace {

using nnrelief::Conv;
using nnrelief::Dtype;
using nnrelief::item_size;
using nnrelief::Path;
using nnrelief::Plan;

// The smallest non-zero and the largest magnitude met, as bits, one less for the small: a zero then counts as the
// largest.
struct Range {
  Bits small = ~Bits{}, large = Bits{};

  INLINE void see(V<float> x) {
    const Bits bits = (Bits)x, less = bits - 1u;
    small = less < small ? less : small;
    large = bits > large ? bits : large;
  }
  INLINE void see(V<double>) {}  // float64 has the range for every square of a float32
};

struct Lanes {
  const char* base;  // element 0 of lane 0's map
  int64_t stride;    // elements from lane to lane
  int64_t count;     // lanes in use; the others hold zeros
};

// `count` pixels that lie `step` elements apart, added to or stored into `out`, where `gap` vectors lie behind every
// `row` of them.
template <class T, class S, bool Add>
INLINE void fill_span(const S* x, int64_t step, int64_t count, int64_t row, int64_t gap, const Lanes& lanes, V<T>* out,
                      Range& range) {
  constexpr int n = kLanes<T>;
  Range seen = range;  // in registers: what is stored could, for all the compiler knows, change the original
  int64_t left = row;
  const auto put = [&](V<T> value) {
    seen.see(value);
    *out = Add ? *out + value : value;
    ++out;
    if (--left == 0) {
      left = row;
      out += gap;
    }
  };
  const int64_t stride = lanes.stride, used = lanes.count;
  if (step == 1 && count > 1) {
    for (int64_t i = 0; i < count; i += n) {
      const int64_t some = count - i;
      V<T> rows[n];
      for (int l = 0; l < n; ++l) {
        if (l >= used)
          rows[l] = V<T>{};
        else
          rows[l] = some >= n ? load<T>(x + l * stride + i) : load_some<T>(x + l * stride + i, some);
      }
      transpose<T>(rows);
      if (some >= n) {
#pragma GCC unroll 16
        for (int l = 0; l < n; ++l) put(rows[l]);
      } else {
        for (int l = 0; l < some; ++l) put(rows[l]);
      }
    }
  } else if (stride == 1 && used == n) {
    for (int64_t i = 0; i < count; ++i) put(load<T>(x + i * step));
  } else {
    for (int64_t i = 0; i < count; ++i) {
      V<T> value{};
      for (int64_t l = 0; l < used; ++l) value[l] = load_one<T>(x + i * step + l * stride);
      put(value);
    }
  }
  range = seen;
}

// A box of the padded map: `first` in unpadded coordinates (it may be negative), `extent` pixels, rows of `extent[2]`.
template <class T, class S, bool Add>
void fill_box(const Conv& c, const Lanes& lanes, const int64_t* first, const int64_t* extent, V<T>* out, Range& range) {
  const S* base = (const S*)lanes.base;
  const int64_t width = extent[2], begin = first[2] < 0 ? -first[2] : 0;
  const int64_t inside = c.size[2] - first[2] < width ? c.size[2] - first[2] : width;
  const int64_t top = first[1] < 0 ? -first[1] : 0, bottom = smaller(c.size[1] - first[1], extent[1]);
  // rows that lie one behind the other in memory are read as one
  const bool joined = c.acts_x[2] == 1 && c.acts_x[1] == c.size[2] && inside - begin == c.size[2] && bottom > top;
  for (int64_t d = 0; d < extent[0]; ++d) {
    const int64_t depth = c.source(0, first[0] + d);
    if (joined && depth >= 0)
      fill_span<T, S, Add>(base + depth * c.acts_x[0] + (first[1] + top) * c.acts_x[1], 1, (bottom - top) * c.size[2],
                           c.size[2], width - c.size[2], lanes, out + top * width + begin, range);
    for (int64_t h = 0; h < extent[1]; ++h, out += width) {
      const int64_t row = c.source(1, first[1] + h);
      if (depth < 0 || row < 0) {
        if (!Add)
          for (int64_t w = 0; w < width; ++w) out[w] = V<T>{};
        continue;
      }
      const S* x = base + depth * c.acts_x[0] + row * c.acts_x[1];
      const auto span = [&](int64_t column, int64_t w, int64_t count) {
        fill_span<T, S, Add>(x + column * c.acts_x[2], c.acts_x[2], count, count, 0, lanes, out + w, range);
      };
      const auto edge = [&](int64_t w) {
        const int64_t column = c.source(2, first[2] + w);
        if (column >= 0)
          span(column, w, 1);
        else if (!Add)
          out[w] = V<T>{};
      };
      const int64_t left = begin < width ? begin : width;
      for (int64_t w = 0; w < left; ++w) edge(w);
      if (inside > begin && !(joined && h >= top && h < bottom)) span(first[2] + begin, begin, inside - begin);
      for (int64_t w = inside > left ? inside : left; w < width; ++w) edge(w);
    }
  }
}

template <class T, bool Add = false>
void fill(const Conv& c, const Lanes& lanes, const int64_t* first, const int64_t* extent, V<T>* out, Range& range) {
  switch (c.acts_type) {
    case Dtype::f16:
      return fill_box<T, Half, Add>(c, lanes, first, extent, out, range);
    case Dtype::bf16:
      return fill_box<T, BFloat16, Add>(c, lanes, first, extent, out, range);
    case Dtype::f32:
      return fill_box<T, float, Add>(c, lanes, first, extent, out, range);
    case Dtype::f64:
      if constexpr (sizeof(T) == 8) return fill_box<T, double, Add>(c, lanes, first, extent, out, range);
  }
}

}  // namespace
