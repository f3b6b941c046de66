// The filter side of phase 2: for one channel, the numbers each |K_ij| meets the features with, filters side by side.
#pragma once

#include "kernels.h"

namespace {

// Filters side by side: one number of each.
template <class T>
using Column = Vec<T, kFilters>;

template <class T>
INLINE Column<T> roots(Column<T> x) {
  V<T> part[kFilters / kLanes<T>];
  memcpy(part, &x, sizeof(x));
#pragma GCC unroll 8
  for (V<T>& y : part) y = root(y);
  memcpy(&x, part, sizeof(x));
  return x;
}

template <class T>
struct Table {
  Column<T>* values;  // [filters / kFilters][features]
  Column<T>* kernel;  // [taps]
  double* back;       // [filters]: what each kernel was divided by, a power of two
  // for dual: rows[outputs][pixels] is the convolution's matrix; entry i holds the sum of the kernel elements
  // taps[begin[i]] .. taps[begin[i + 1] - 1]
  Column<T>* rows;
  int32_t *begin, *taps;
};

// Calls function(entry of the convolution's matrix, tap) for each tap of each output that lies on a pixel.
template <class Function>
INLINE void each_meeting(const Conv& c, const Function& function) {
  int64_t l[3], tap[3], output = 0;
  for (l[0] = 0; l[0] < c.out[0]; ++l[0])
    for (l[1] = 0; l[1] < c.out[1]; ++l[1])
      for (l[2] = 0; l[2] < c.out[2]; ++l[2], ++output) {
        int64_t t = 0;
        for (tap[0] = 0; tap[0] < c.kernel[0]; ++tap[0])
          for (tap[1] = 0; tap[1] < c.kernel[1]; ++tap[1])
            for (tap[2] = 0; tap[2] < c.kernel[2]; ++tap[2], ++t) {
              int64_t pixel = 0;
              bool inside = true;
              for (int d = 0; d < 3; ++d) {
                const int64_t x = c.source(d, l[d] * c.stride[d] + tap[d] * c.dilation[d] - c.before[d]);
                inside = inside && x >= 0;
                pixel = pixel * c.size[d] + x;
              }
              if (inside) function(output * c.pixels() + pixel, t);
            }
      }
}

template <class T>
Table<T> take_table(Scratch& s, const Conv& c, const Plan& p) {
  const int64_t groups = (p.filter_block + kFilters - 1) / kFilters;
  const int64_t entries = p.path == Path::dual ? c.positions() * c.pixels() : 0;
  Table<T> table;
  table.values = s.take<Column<T>>(groups * p.features);
  table.kernel = s.take<Column<T>>(c.taps());
  table.back = s.take<double>(groups * kFilters);
  table.rows = s.take<Column<T>>(entries);
  table.begin = s.take<int32_t>(entries + 1);
  table.taps = s.take<int32_t>(entries ? c.positions() * c.taps() : 0);
  if (!s.base || !entries) return table;
  memset(table.begin, 0, (entries + 1) * sizeof(int32_t));
  each_meeting(c, [&](int64_t entry, int64_t) { ++table.begin[entry]; });
  for (int64_t i = 0; i < entries; ++i) table.begin[i + 1] += table.begin[i];
  each_meeting(c, [&](int64_t entry, int64_t t) { table.taps[--table.begin[entry]] = (int32_t)t; });
  return table;
}

// The triangle of the kernel's outer product, doubled off the diagonal.
template <class T>
INLINE void outer_product(const Column<T>* kernel, int64_t taps, Column<T>* out) {
  for (int64_t a = 0; a < taps; ++a) {
    const Column<T> x = kernel[a], twice = x + x;
    *out++ = x * x;
    for (int64_t b = a + 1; b < taps; ++b) *out++ = twice * kernel[b];
  }
}

// The kernels as quadratic forms of the map: MᵀM for the convolution's matrix M, its triangle as above.
template <class T>
INLINE void dual_forms(const Conv& c, const Table<T>& table, Column<T>* out) {
  const int64_t pixels = c.pixels(), entries = c.positions() * pixels;
  for (int64_t i = 0; i < entries; ++i) {
    Column<T> sum{};
    for (int32_t e = table.begin[i]; e < table.begin[i + 1]; ++e) sum += table.kernel[table.taps[e]];
    table.rows[i] = sum;
  }
  for (int64_t a = 0; a < pixels; ++a)
    for (int64_t b = a; b < pixels; ++b) {
      Column<T> sum{};
      for (int64_t row = 0; row < entries; row += pixels) sum += table.rows[row + a] * table.rows[row + b];
      *out++ = a == b ? sum : sum + sum;
    }
}

// Fills the table for filters [first, first + count) of channel `ch`. Returns the smallest activation whose square
// times a kernel element's stays above float32's underflow.
template <class T>
float build_table(const Conv& c, const Plan& p, int64_t ch, int64_t first, int64_t count, const Table<T>& table) {
  Column<T> least = Column<T>{} + 1;
  const int64_t base = kernel_offset(c, ch, first);
  for (int64_t j = 0; j < count; j += kFilters) {
    load_kernels<T, kFilters>(
        c, [&](int64_t i) { return j + i < count ? base + (j + i) * c.weight_j : -1; }, table.kernel);
    scale_kernels<T, kFilters>(table.kernel, c.taps(), table.back + j, least);
    Column<T>* out = table.values + j / kFilters * p.features;
    if (p.path == Path::dual)
      dual_forms<T>(c, table, out);
    else if (p.path == Path::window_sums)
      memcpy(out, table.kernel, p.features * sizeof(*out));
    else
      outer_product<T>(table.kernel, c.taps(), out);
  }
  return smallest_activation<T, kFilters>(least);
}

}  // namespace
