// Phase 2 of 3x3 kernels (forms.h), on the matrix units: the squared norms of 32 maps under 8 filters are a product of
// the maps' 45 features with the filters' forms f_ab = v_a v_b, in three products of tf32 numbers that keep 20 bits and
// more of each factor.
//
// A product is of 16 x 8 with 8 x 8 numbers. In lane l, l = 4 row + quarter, lie rows `row` and `row` + 8 of the first
// factor, column `row` of the second, and of both the terms `quarter` and `quarter` + 4 of the sum over 8; of the
// result rows `row` and `row` + 8 in columns 2 quarter and 2 quarter + 1. Since features may stand in any order there,
// a lane takes 12 neighbouring ones, two for each of six products.
#pragma once

#include "forms.h"

namespace nnrelief {

constexpr int kTaps3x3 = 9, kFeatures3x3 = 45, kQuarter = 12;
constexpr int kTile = 16, kTiles = 2, kMaps = kTile * kTiles;  // maps of a product, and of a warp
constexpr int kColumns = 8;                                    // filters of a product

HOST_DEVICE inline Features features_3x3(const CudaPlan& p, char* memory) {
  return Features(kTaps3x3, p.samples, p.filters, Features::row_of(kFeatures3x3), memory);
}

// Twelve numbers as sums of two tf32 numbers each, but for the last bits. Of numbers that stay for many products (OWN)
// the high parts are differences: in place of masked ones the assembler keeps the loaded ones, whose other bits the
// matrix units do not read, and moves them side by side before every product.
template <bool OWN>
struct Split {
  float high[kQuarter], low[kQuarter];

  __device__ __forceinline__ explicit Split(const float* x) {
#pragma unroll
    for (int i = 0; i < kQuarter / 4; ++i) {
      const auto four = reinterpret_cast<const Vector<float, 4>*>(x)[i];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float rest = four.x[k] - upper(four.x[k]);
        high[4 * i + k] = OWN ? four.x[k] - rest : upper(four.x[k]);
        low[4 * i + k] = upper(rest);
      }
    }
  }
  __device__ static float upper(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }
};

// The forms of kernels first, first + 1 ... of the channel whose first kernel starts at `weight`, each over the power
// of two at or below its peak.
template <class S>
__device__ __forceinline__ void load_forms(const Conv& c, const Features& f, int64_t weight, int first) {
  for (int i = threadIdx.x; i < f.step; i += kThreads) {
    const bool used = first + i < c.filters;
    const S* kernel = static_cast<const S*>(c.weight) + weight + (used ? first + i : 0) * c.weight_j;
    float v[kTaps3x3];
    Extremes seen;
#pragma unroll
    for (int t = 0; t < kTaps3x3; ++t) v[t] = seen.look(magnitude(kernel[f.tap[t]]));
    const float inverse = f.settle(i, used, seen);
#pragma unroll
    for (int t = 0; t < kTaps3x3; ++t) v[t] *= inverse;
    Vector<float, 4> four{};
#pragma unroll
    for (int a = 0; a < kTaps3x3; ++a)
#pragma unroll
      for (int b = a; b < kTaps3x3; ++b) {
        const int pair = Features::pair(kTaps3x3, a, b);
        four.x[pair % 4] = v[a] * v[b];
        if (pair % 4 == 3) reinterpret_cast<Vector<float, 4>*>(f.kernels + i * f.row)[pair / 4] = four;
      }
#pragma unroll
    for (int k = kFeatures3x3 % 4; k < 4; ++k) four.x[k] = 0;
    reinterpret_cast<Vector<float, 4>*>(f.kernels + i * f.row)[kFeatures3x3 / 4] = four;
  }
}

// As add_norms in forms.h, for 3x3 kernels and a multiple of 32 samples.
__device__ __forceinline__ bool add_norms_3x3(const Conv& c, const Features& f, int64_t weight, bool again,
                                              double* sums) {
  const int warp = threadIdx.x / kWarp, row = threadIdx.x % kWarp / 4, quarter = threadIdx.x % 4;
  const int parts = f.samples / kMaps, log = parts / 2;  // of 1, 2 or 4
  const int part = warp & (parts - 1), maps = part * kMaps + row;
  const int start = (warp >> log) * kColumns, apart = (kThreads / kWarp * kColumns) >> log;
  const auto features = [&](int tile, int half) {
    return Split<true>(f.g + (maps + tile * kTile + half * kTile / 2) * f.row + quarter * kQuarter);
  };
  const Split<true> x[kTiles][2] = {{features(0, 0), features(0, 1)}, {features(1, 0), features(1, 1)}};
  bool good = true, any_floor = false;
#pragma unroll
  for (int i = 0; i < 2 * kTiles; ++i) any_floor = any_floor || f.floor[maps + i * kTile / 2] > 0;

  for (int first = 0; first < static_cast<int>(c.filters); first += f.step) {
    if (!again || c.filters > f.step)  // else those of the samples before are there
      by_weight(c, [&](auto w) { load_forms<decltype(w)>(c, f, weight, first); });
    __syncthreads();

    const int left = static_cast<int>(c.filters) - first, count = left < f.step ? left : f.step;
#pragma unroll 1
    for (int column = start; column < count; column += apart) {
      const Split<false> v(f.kernels + (column + row) * f.row + quarter * kQuarter);
      float q[kTiles][4] = {};
      const auto add = [&](bool low_x, bool low_v) {
#pragma unroll
        for (int i = 0; i < kQuarter; i += 2)
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            const float *a = low_x ? x[t][0].low : x[t][0].high, *b = low_x ? x[t][1].low : x[t][1].high;
            const float* k = low_v ? v.low : v.high;
            add_product(a[i], b[i], a[i + 1], b[i + 1], k[i], k[i + 1], q[t]);
          }
      };
      add(true, false);
      add(false, true);
      add(false, false);

      const int j = column + 2 * quarter;  // and the filter behind it
      const Trust trust[2] = {f.trust[j], f.trust[j + 1]};
      if (any_floor || trust[0] == Trust::least || trust[1] == Trust::least) {
#pragma unroll
        for (int i = 0; i < 4 * kTiles; ++i) {
          const int n = maps + i / 2 * kTile / 2;
          const float trusted = trust[i % 2] == Trust::least   ? f.least[n]
                                : trust[i % 2] == Trust::floor ? f.floor[n]
                                                               : 0;
          good &= q[i / 4][i % 4] >= trusted;
        }
      }
      float sum[2] = {};
#pragma unroll
      for (int i = 0; i < 4 * kTiles; ++i) sum[i % 2] += root(q[i / 4][i % 4]);
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2)
#pragma unroll
        for (int i = 0; i < 2; ++i) sum[i] += __shfl_xor_sync(kAll, sum[i], offset);
      if (row == 0) {
#pragma unroll
        for (int i = 0; i < 2; ++i) f.sums[part * f.step + j + i] = sum[i];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += kThreads) {
      float sum = 0;
#pragma unroll 1
      for (int p = 0; p < parts; ++p) sum += f.sums[p * f.step + i];
      f.store(c, first, i, sum, again, sums);
    }
    __syncthreads();
  }
  return !good;
}

}  // namespace nnrelief
