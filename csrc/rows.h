// The rows of a tile of columns of |x|, as they stream through a thread's registers for lags_cuda.cu, and the products
// of two of them under windows of 3 columns.
#pragma once

#include "magnitude.h"

namespace nnrelief {

constexpr int K = 3, kFour = 4;  // taps per dimension; pixels of a load

__device__ alignas(16) const float kZeros[32] = {};  // what threads without outputs read

// |x| in the columns under a tile of n outputs: below STRIDE * n, of which there are at most WIDTH, with zeros behind
// them; the last two of these once more; the two after them.
template <int STRIDE, int WIDTH>
struct Row {
  float x[WIDTH], last[2], after[2];

  template <bool SAME, int SHIFT = 0>
  __device__ __forceinline__ static void add_products(const Row& a, const Row& b, float (&sums)[K][K]) {
    float total[K];
    window_sums<SHIFT>(a, b, total);
#pragma unroll
    for (int m = 0; m + SHIFT < K; ++m) sums[m][m + SHIFT] += total[m];
    if constexpr (!SAME && SHIFT > 0) {
      window_sums<SHIFT>(b, a, total);
#pragma unroll
      for (int m = 0; m + SHIFT < K; ++m) sums[m + SHIFT][m] += total[m];
    }
    if constexpr (SHIFT + 1 < K) add_products<SAME, SHIFT + 1>(a, b, sums);
  }

  // total[m] = the sum of a[u] b[u + SHIFT] over u = STRIDE * w + m, w the tile's outputs.
  template <int SHIFT>
  __device__ __forceinline__ static void window_sums(const Row& a, const Row& b, float* total) {
    const auto products = [&](int begin) {  // from `begin` on, up to the tile's last window but what lies in b.after
      float sum = 0;
#pragma unroll
      for (int u = begin; u + SHIFT < WIDTH; u += STRIDE) sum += a.x[u] * b.x[u + SHIFT];
      return sum;
    };
    if constexpr (STRIDE == 1 && SHIFT == 0) {
      const float inner = products(2), from_1 = inner + a.x[1] * b.x[1], last = a.after[0] * b.after[0];
      total[0] = from_1 + a.x[0] * b.x[0];
      total[1] = from_1 + last;
      total[2] = inner + last + a.after[1] * b.after[1];
    } else if constexpr (STRIDE == 1 && SHIFT == 1) {
      const float inner = products(1) + a.last[1] * b.after[0];
      total[0] = inner + a.x[0] * b.x[1];
      total[1] = inner + a.after[0] * b.after[1];
    } else if constexpr (STRIDE == 1) {
      total[0] = products(0) + a.last[0] * b.after[0] + a.last[1] * b.after[1];
    } else if constexpr (SHIFT == 0) {
      const float inner = products(2);
      total[0] = inner + a.x[0] * b.x[0];
      total[1] = products(1);
      total[2] = inner + a.after[0] * b.after[0];
    } else if constexpr (SHIFT == 1) {
      total[0] = products(0);
      total[1] = products(1) + a.last[1] * b.after[0];
    } else {
      total[0] = products(0) + a.last[0] * b.after[0];
    }
  }
};

// The rows of a tile, one ahead. By vectors where every tile has WIDTH columns of the map, one behind its first tap.
template <class S, int STRIDE, int WIDTH, Reading READING>
struct Stream {
  static constexpr bool kVectors = READING == Reading::vectors;
  const S* x;  // the next row's first own column
  int64_t step;
  int right, rows, begin, end, edge;  // own columns that lie in the map, and where `last` begins
  bool near[4];                       // whether last and after lie there
  uint32_t low = ~0u;
  S next[kVectors ? 1 : WIDTH], sides[4];
  Vector<S, kFour> pieces[kVectors ? WIDTH / kFour : 1];

  // The tile of `lane` in the map at `map`.
  __device__ __forceinline__ Stream(const Conv& c, const CudaPlan& p, const S* map, int lane, bool used) {
    const int first = lane * static_cast<int>(p.outputs), wide = c.out[2], width = c.size[2];
    const int outputs = wide - first < p.outputs ? wide - first : p.outputs;
    const int column = first * STRIDE - static_cast<int>(c.before[2]);  // of the map
    const int covered = (static_cast<int>(c.out[1]) - 1) * STRIDE + K - static_cast<int>(c.before[1]);
    rows = c.size[1] < covered ? c.size[1] : covered;
    right = READING == Reading::strided ? c.acts_x[2] : 1;
    step = c.acts_x[1];
    x = map + static_cast<int64_t>(column + kVectors) * right;
    begin = column < 0 ? -column : 0;
    end = STRIDE * outputs < width - column ? STRIDE * outputs : width - column;
    edge = STRIDE * outputs - 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) near[i] = edge + i >= begin && column + edge + i < width;
    if (kVectors) near[0] = column >= 0, near[1] = column + 1 + WIDTH < width;
    if (!used || outputs <= 0) stop();
    fetch<false>();
  }

  // LAST: whether the map's last row may have been fetched.
  template <bool LAST>
  __device__ __forceinline__ void fetch() {
    if (LAST && rows <= 0) stop();
    if constexpr (kVectors) {
#pragma unroll
      for (int i = 0; i < WIDTH / kFour; ++i) pieces[i] = reinterpret_cast<const Vector<S, kFour>*>(x)[i];
      sides[0] = near[0] ? x[-1] : S{};
      if (STRIDE == 1) sides[1] = near[1] ? x[WIDTH] : S{};
    } else {
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) next[i] = i < end && (i >= K - 1 || i >= begin) ? x[i * right] : S{};
#pragma unroll
      for (int i = 0; i < (STRIDE == 1 ? 4 : 3); ++i) sides[i] = near[i] ? x[(edge + i) * right] : S{};
    }
    x += step;
    --rows;
  }
  // From here on, rows are zeros.
  __device__ __forceinline__ void stop() {
    if (kVectors) x = reinterpret_cast<const S*>(kZeros);
    step = end = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) near[i] = false;
  }

  // The fetched row, while the one after it is on its way; zeros behind the last.
  template <bool LAST>
  __device__ __forceinline__ void advance(Row<STRIDE, WIDTH>& row) {
    if constexpr (kVectors) {
      float own[WIDTH];
#pragma unroll
      for (int i = 0; i < WIDTH / kFour; ++i) magnitudes(pieces[i], own + i * kFour);
      row.x[0] = magnitude(sides[0]);
#pragma unroll
      for (int i = 1; i < WIDTH; ++i) row.x[i] = own[i - 1];
      row.last[0] = row.x[WIDTH - 2];
      row.last[1] = row.x[WIDTH - 1];
      row.after[0] = own[WIDTH - 1];
      row.after[1] = STRIDE == 1 ? magnitude(sides[1]) : 0;
    } else {
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) row.x[i] = magnitude(next[i]);
#pragma unroll
      for (int i = 0; i < 2; ++i) row.last[i] = magnitude(sides[i]);
#pragma unroll
      for (int i = 0; i < 2; ++i) row.after[i] = STRIDE == 1 || i == 0 ? magnitude(sides[2 + i]) : 0;
    }
    fetch<LAST>();
    if constexpr (sizeof(S) == 4 || std::is_same_v<S, BFloat16>) {
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) low = lower(row.x[i], low);
#pragma unroll
      for (int i = 0; i < 2; ++i) low = lower(row.after[i], low);
    }
  }
};

}  // namespace nnrelief
