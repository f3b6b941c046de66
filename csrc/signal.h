// Phase 2: features times table, the square root, the sum over samples. Lanes are filters.
#pragma once

#include "table.h"

namespace {

constexpr int64_t kDepth = 64;  // longest float32 sum of a step

// products[r] = sum over `count` features of map r's feature(f)[r] times table column f, for the first R maps.
template <class T, int R, class Feature>
INLINE void multiply(const Feature& feature, const Column<T>* table, int64_t count, Column<T>* products) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) products[r] = Column<T>{};
  for (int64_t begin = 0; begin < count; begin += kDepth) {
    const int64_t end = begin + kDepth < count ? begin + kDepth : count;
    Column<T> sum[R] = {};
    for (int64_t f = begin; f < end; ++f) {
      const T* x = feature(f);
      const Column<T> column = table[f];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sum[r] += column * x[r];
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) products[r] += sum[r];
  }
}

// The sum of the first R maps' norms under each filter of `table`; `scale` may be null.
template <class T, int R>
Column<T> norm_sum(const Plan& p, const V<T>* features, const V<T>* scale, const Column<T>* table) {
  Column<T> products[R], sum{};
  multiply<T, R>([&](int64_t f) { return (const T*)(features + f); }, table, p.features, products);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    if (p.path != Path::window_sums) products[r] = roots<T>(products[r]);
    sum += scale ? products[r] * (*scale)[r] : products[r];
  }
  return sum;
}

// Blocks of the maps of one channel: `which` of them to take, and how many maps there are in all.
template <class T>
struct Blocks {
  const V<T>*features, *scale;  // scale may be null
  int64_t maps;
  int count, which[16];
};

// sums[j] += back[j] * sum over the maps of scale * norm, from their features and the filters' table.
template <class T>
void add_norms(const Plan& p, const Blocks<T>& blocks, const Table<T>& table, int64_t filters, double* sums) {
  constexpr int n = kLanes<T>, few = n > 4 ? n / 4 : 1;
  for (int64_t j = 0; j < filters; j += kFilters) {
    const Column<T>* columns = table.values + j / kFilters * p.features;
    Column<T> sum{};
    for (int i = 0; i < blocks.count; ++i) {
      const int b = blocks.which[i];
      const V<T>*at = blocks.features + b * p.features, *scale = blocks.scale ? blocks.scale + b : nullptr;
      const int64_t count = blocks.maps - b * n;
      sum += count <= few     ? norm_sum<T, few>(p, at, scale, columns)
             : count <= n / 2 ? norm_sum<T, n / 2>(p, at, scale, columns)
                              : norm_sum<T, n>(p, at, scale, columns);
    }
    for (int i = 0; i < kFilters && j + i < filters; ++i) sums[j + i] += table.back[j + i] * (double)sum[i];
  }
}

// The same where the features are squared norms already; back[j] lies `back_step` after back[j - 1].
template <class T>
void add_roots(const Plan& p, const Blocks<T>& blocks, const double* back, int64_t back_step, int64_t filters,
               double* sums) {
  for (int64_t j = 0; j < filters; ++j) {
    V<T> sum{};
    for (int i = 0; i < blocks.count; ++i) {
      const int b = blocks.which[i];
      const V<T> norm = root(blocks.features[b * p.features + j]);
      sum += blocks.scale ? norm * blocks.scale[b] : norm;
    }
    sums[j] += back[j * back_step] * sum_lanes<T>(sum);
  }
}

}  // namespace
