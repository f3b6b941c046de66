// Phase 2: features times table, the square root, the sum over samples. Lanes are samples.
#pragma once

#include "table.h"

namespace {

constexpr int64_t kDepth = 64;  // longest float32 sum of a step

// products[j] = sum over `count` features of feature times table column j.
template <class T, class Feature>
INLINE void multiply(const Feature& feature, const Column<T>* table, int64_t count, V<T>* products) {
#pragma GCC unroll 16
  for (int j = 0; j < kFilters; ++j) products[j] = V<T>{};
  for (int64_t begin = 0; begin < count; begin += kDepth) {
    const int64_t end = begin + kDepth < count ? begin + kDepth : count;
    V<T> sum[kFilters] = {};
    for (int64_t f = begin; f < end; ++f) {
      const V<T> x = feature(f);
#pragma GCC unroll 16
      for (int j = 0; j < kFilters; ++j) sum[j] += x * ((const T*)(table + f))[j];
    }
#pragma GCC unroll 16
    for (int j = 0; j < kFilters; ++j) products[j] += sum[j];
  }
}

// The squared norms by v'U itself: `map` is the whole padded map.
template <class T>
INLINE void multiply_direct(const Conv& c, const Tile& t, const V<T>* map, const Column<T>* table, V<T>* squares) {
  for (int j = 0; j < kFilters; ++j) squares[j] = V<T>{};
  for (int64_t d = 0; d < t.out[0]; ++d)
    for (int64_t h = 0; h < t.out[1]; ++h) {
      V<T> row[kFilters] = {};
      for (int64_t w = 0; w < t.out[2]; ++w) {
        const V<T>* at = map + t.index(d * c.stride[0], h * c.stride[1], w * c.stride[2]);
        V<T> values[kFilters];
        multiply<T>([&](int64_t tap) { return at[tap_offset(c, t, tap)]; }, table, c.taps(), values);
        for (int j = 0; j < kFilters; ++j) row[j] += values[j] * values[j];
      }
      for (int j = 0; j < kFilters; ++j) squares[j] += row[j];
    }
}

// sums[j] += back[j] * sum over the blocks' lanes of scale * norm. `blocks` lists those to take; `scale` may be null.
template <class T>
void add_norms(const Conv& c, const Plan& p, const Tile& whole, const V<T>* features, const V<T>* scale,
               const int* blocks, int block_count, const Table<T>& table, int64_t filters, double* sums) {
  if (p.path == Path::norms) {
    V<T> sum{};
    for (int b = 0; b < block_count; ++b) sum += root(features[blocks[b]]) * (scale ? scale[blocks[b]] : V<T>{} + 1);
    sums[0] += sum_lanes<T>(sum);
    return;
  }
  const int64_t width = p.path == Path::direct ? c.taps() : p.features;
  for (int64_t j = 0; j < filters; j += kFilters) {
    const Column<T>* columns = table.values + j / kFilters * width;
    V<T> sum[kFilters] = {};
    for (int b = 0; b < block_count; ++b) {
      const V<T>* at = features + blocks[b] * p.features;
      V<T> products[kFilters];
      if (p.path == Path::direct)
        multiply_direct<T>(c, whole, at, columns, products);
      else
        multiply<T>([&](int64_t f) { return at[f]; }, columns, p.features, products);
      if (p.path != Path::window_sums)
#pragma GCC unroll 16
        for (int i = 0; i < kFilters; ++i) products[i] = root(products[i]);
      if (scale)
        for (int i = 0; i < kFilters; ++i) products[i] *= scale[blocks[b]];
#pragma GCC unroll 16
      for (int i = 0; i < kFilters; ++i) sum[i] += products[i];
    }
    for (int i = 0; i < kFilters && j + i < filters; ++i) sums[j + i] += table.back[j + i] * sum_lanes<T>(sum[i]);
  }
}

}  // namespace
