// Phase 1 of 3x3 kernels with any strides, dilation and padding: a thread has an output's nine |x| in registers, and
// sums their products, G_ab for all pairs of taps at once, over its columns of outputs, of which the lanes of a map
// have neighbouring ones. From output to output below it loads a row ahead; where two dilations are a stride (REUSE),
// the last row of taps is the next output's first.
#include "lanes.h"

namespace nnrelief {
namespace {

constexpr int K = 3, kTaps = K * K, kPairs = kTaps * (kTaps + 1) / 2;

// One column of outputs in a map.
template <class S, bool NEAR>
struct Column {
  const S* x;            // a row's first element under the taps; with NEAR the others follow it
  int at[NEAR ? 1 : K];  // else where they lie
  bool inside[K];        // else zeros

  // The raw elements of `ROWS` rows of taps, whose input rows are `row[i * dilation]`.
  template <int ROWS>
  __device__ __forceinline__ void load(const int64_t* row, int dilation, S (&to)[ROWS][K]) const {
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      const int64_t offset = row[i * dilation];
      const S* from = reinterpret_cast<const S*>(reinterpret_cast<const char*>(x) + offset);
#pragma unroll
      for (int e = 0; e < K; ++e) to[i][e] = offset >= 0 && inside[e] ? from[NEAR ? e : at[e]] : S{};
    }
  }
};

// sums[pair] += products of `count` outputs below each other, under whose first row of taps the input row `row[0]`
// lies.
template <bool REUSE, class S, bool NEAR>
__device__ __forceinline__ uint32_t add_outputs(const Column<S, NEAR>& column, const int64_t* row, int down,
                                                int dilation, int count, uint32_t low, float* sums) {
  constexpr int rows = REUSE ? K - 1 : K, old = K - rows;
  float v[K][K];
  const auto take = [&](int i, S value, int e) {
    v[i][e] = magnitude(value);
    if constexpr (sizeof(S) == 4 || std::is_same_v<S, BFloat16>) low = lower(v[i][e], low);
  };
  if constexpr (REUSE) {
    S top[1][K];
    column.load(row, dilation, top);
#pragma unroll
    for (int e = 0; e < K; ++e) take(0, top[0][e], e);
    row += dilation;
  }
  S next[rows][K];
  column.load(row, dilation, next);
#pragma unroll 1
  for (; count > 0; --count) {
#pragma unroll
    for (int i = 0; i < rows; ++i)
#pragma unroll
      for (int e = 0; e < K; ++e) take(old + i, next[i][e], e);
    row += down;
    if (count > 1) column.load(row, dilation, next);
#pragma unroll
    for (int a = 0; a < kTaps; ++a)
#pragma unroll
      for (int b = a; b < kTaps; ++b) sums[Features::pair(kTaps, a, b)] += v[a / K][a % K] * v[b / K][b % K];
    if constexpr (REUSE) {
#pragma unroll
      for (int e = 0; e < K; ++e) v[0][e] = v[K - 1][e];
    }
  }
  return low;
}

// Half of the sums goes to the lane `offset` away, which has the other half's from here: both are summed. `upper`:
// which half stays.
template <int N>
__device__ __forceinline__ void share(float* x, bool upper, int offset) {
  constexpr int half = (N + 1) / 2;
#pragma unroll
  for (int i = 0; i < half; ++i) {
    const float high = i + half < N ? x[i + half] : 0;
    x[i] = (upper ? high : x[i]) + __shfl_xor_sync(kAll, upper ? x[i] : high, offset);
  }
}

// Of N sums over all lanes of a map, every four lanes get a quarter each into the first (N + 3) / 4 places of x;
// there, place i holds sum `sum_at<N>(i, lane)`, or none where that is -1.
template <int N>
__device__ __forceinline__ void share_out(float* x, int lane, int lanes) {
  share<N>(x, lane & 1, 1);
  share<(N + 1) / 2>(x, lane & 2, 2);
#pragma unroll 1
  for (int offset = 4; offset < lanes; offset *= 2)
#pragma unroll
    for (int i = 0; i < (N + 3) / 4; ++i) x[i] += __shfl_xor_sync(kAll, x[i], offset);
}
template <int N>
__device__ __forceinline__ int sum_at(int i, int lane) {
  constexpr int half = (N + 1) / 2;
  const int within = (lane & 2 ? (N + 3) / 4 : 0) + i, sum = (lane & 1 ? half : 0) + within;
  return within < half && sum < N ? sum : -1;
}

// Adds the sums to the features of a sample and clears them.
__device__ __forceinline__ void flush(const Features& f, int sample, int lane, int lanes, float* sums) {
#pragma unroll
  for (int a = 0; a < kTaps; ++a)
#pragma unroll
    for (int b = a + 1; b < kTaps; ++b) sums[Features::pair(kTaps, a, b)] *= 2;
  share_out<kPairs>(sums, lane, lanes);
#pragma unroll
  for (int i = 0; i < (kPairs + 3) / 4; ++i) {
    const int pair = sum_at<kPairs>(i, lane);
    if (lane < 4 && pair >= 0) f.g[sample * f.row + pair] += sums[i];
  }
#pragma unroll
  for (int i = 0; i < kPairs; ++i) sums[i] = 0;
}

template <class S, bool REUSE, bool NEAR>
__global__ void __launch_bounds__(kThreads, 3) windows(Conv c, CudaPlan p, Partial partial) {
  const Features f = features_3x3(p, shared_memory<char>());
  int64_t* const row = reinterpret_cast<int64_t*>(f.behind);  // bytes to the input rows from the first tap's first on
  for (int i = threadIdx.x; i < c.span(1, c.out[1]); i += kThreads) {
    const int64_t line = c.source(1, i - c.before[1]);
    row[i] = line < 0 ? -1 : line * c.acts_x[1] * static_cast<int64_t>(sizeof(S));
  }
  const int lanes = p.lanes, lane = threadIdx.x % lanes, high = c.out[1], wide = c.out[2];
  const int down = c.stride[1], dilation = c.dilation[1];
  score_samples(c, p, f, partial, [&](int place, int64_t base, bool used) {
    float sums[kPairs] = {};
    uint32_t low = ~0u;
    int summed = 0;
#pragma unroll 1
    for (int w = lane; w - lane < wide; w += lanes) {
      Column<S, NEAR> column;
      const int64_t first = w * c.stride[2] - c.before[2];
      column.x = static_cast<const S*>(c.acts) + base + (NEAR ? first : 0);
#pragma unroll
      for (int e = 0; e < K; ++e) {
        const int64_t from = c.source(2, first + e * c.dilation[2]);
        column.inside[e] = used && w < wide && from >= 0;
        if constexpr (!NEAR) column.at[e] = column.inside[e] ? from * c.acts_x[2] : 0;
      }
#pragma unroll 1
      for (int h = 0; h < high; h += kLongest) {
        const int count = high - h < kLongest ? high - h : kLongest;
        if (summed + count > kLongest) flush(f, place, lane, lanes, sums), summed = 0;
        low = add_outputs<REUSE>(column, row + h * down, down, dilation, count, low, sums);
        summed += count;
      }
    }
    flush(f, place, lane, lanes, sums);
    return low;
  });
}

template <class S, bool REUSE>
void queue(const Conv& c, const CudaPlan& p, Partial partial, void* stream) {
  const Features f = features_3x3(p, nullptr);
  const int64_t shared = f.behind - static_cast<char*>(nullptr) + c.span(1, c.out[1]) * sizeof(int64_t);
  const bool near = c.padding == Padding::zeros && c.acts_x[2] == 1 && c.dilation[2] == 1;
  launch("windows", near ? windows<S, REUSE, true> : windows<S, REUSE, false>, p.parts.count * c.channels, kThreads,
         shared, stream, c, p, partial);
}

}  // namespace

void queue_windows(const Conv& c, const CudaPlan& p, Partial partial, void* stream) {
  by_type(c.acts_type, [&](auto x) {
    using S = decltype(x);
    if (2 * c.dilation[1] == c.stride[1]) return queue<S, true>(c, p, partial, stream);
    queue<S, false>(c, p, partial, stream);
  });
}

}  // namespace nnrelief
