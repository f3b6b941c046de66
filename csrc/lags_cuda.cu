// Phase 1 of 3x3 kernels with stride 1 or 2 and dilation 1 on zero-padded maps: each activation is read once. With r
// the newest row, the products x[r - d][u] x[r][u + s] at the lags (d, s) are sums that taps share; G_ab is the sum at
// lag b - a over a window of base rows and columns that depends on a, and windows that begin in the same class of rows
// and columns differ in the first and last ones alone. Rows stream through registers: a thread has the outputs of a
// tile of columns, and of the last three rows all columns that their windows cover. A row's products are summed once
// per lag, a window adds the edge products it contains; over the rows that all windows treat alike these sums go on,
// then the lanes of the map, which have neighbouring tiles, add up, and the taps whose rows include these take the sum.
// Nothing is subtracted.
//
// Rows and columns are counted from the first tap of output (0, 0) on: tap a meets row stride * h + a there.
#include "lanes.h"

namespace nnrelief {
namespace {

constexpr int K = 3, kTaps = K * K, kFour = 4;

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

// Where the features of a thread's map go.
struct Target {
  float* g;
  int lane, lanes, stride, high;
};

// Adds what has been summed over base rows that end with `y`, and row D below each, to the features of tap rows FIRST,
// FIRST + STEP, ... whose windows hold these, and clears it.
template <int D, int FIRST, int STEP>
__device__ __forceinline__ void flush(const Target& t, int y, float (&sums)[K][K]) {
#pragma unroll 1
  for (int offset = 1; offset < t.lanes; offset *= 2)
#pragma unroll
    for (int p = 0; p < K; ++p)
#pragma unroll
      for (int q = D == 0 ? p : 0; q < K; ++q) sums[p][q] += __shfl_xor_sync(kAll, sums[p][q], offset);
  if (t.lane == 0) {
#pragma unroll
    for (int h = FIRST; h + D < K; h += STEP) {
      if (y < h || y > t.stride * (t.high - 1) + h) continue;
#pragma unroll
      for (int p = 0; p < K; ++p)
#pragma unroll
        for (int q = D == 0 ? p : 0; q < K; ++q)
          t.g[Features::pair(kTaps, h * K + p, (h + D) * K + q)] += D == 0 && p == q ? sums[p][q] : 2 * sums[p][q];
    }
  }
#pragma unroll
  for (int p = 0; p < K; ++p)
#pragma unroll
    for (int q = 0; q < K; ++q) sums[p][q] = 0;
}

// With stride 1: the products of row NEWEST with itself and the rows above it, and so on to K - 1.
template <int NEWEST, int D = 0, class Row>
__device__ __forceinline__ void add_row(const Row (&rows)[K], float (&sums)[K][K][K]) {
  Row::template add_products<D == 0>(rows[(NEWEST + K - D) % K], rows[NEWEST], sums[D]);
  if constexpr (D + 1 < K) add_row<NEWEST, D + 1>(rows, sums);
}

// K rows, not the map's last, after which each lies in its register again.
template <int I = 0, class Row, class Stream>
__device__ __forceinline__ void add_rows(Stream& stream, Row (&rows)[K], float (&sums)[K][K][K]) {
  stream.template advance<false>(rows[I]);
  add_row<I>(rows, sums);
  if constexpr (I + 1 < K) add_rows<I + 1>(stream, rows, sums);
}

// Where row `r` is the newest and sums do not go on: `all` of them, or those whose next base row is treated otherwise.
template <int D = 0>
__device__ __forceinline__ void end_row(const Target& t, int r, bool all, float (&sums)[K][K][K]) {
  if (all || r - D >= t.high - 1) flush<D, 0, 1>(t, r - D, sums[D]);
  if constexpr (D + 1 < K) end_row<D + 1>(t, r, all, sums);
}

// The features of one map with stride 1, whose rows are counted from the first tap of output (0, 0) on; `height` of
// them from `top`. All lanes of a warp take part, those without outputs with zeros.
template <class Row, class Stream>
__device__ __forceinline__ void stride_1_features(const Conv& c, const Target& t, Stream& stream) {
  const int top = c.before[1], end = top + static_cast<int>(c.size[1]);
  const int stop = end - 1 < t.high - 1 ? end - 1 : t.high - 1;
  Row rows[K] = {};
  float sums[K][K][K] = {};  // by the distance of rows
  for (int r = top; r < end;) {
    // rows whose sums go on, K at a time so that no row moves from register to register
    const int limit = (r / kLongest + 1) * kLongest - 1;
    if (r >= K - 1) {
#pragma unroll 1
      for (; r + K <= (stop < limit ? stop : limit); r += K) add_rows(stream, rows, sums);
    }
    stream.template advance<true>(rows[0]);
    add_row<0>(rows, sums);
    end_row(t, r, r < K - 1 || r == end - 1 || r % kLongest == kLongest - 1, sums);
    ++r;
    const Row newest = rows[0];
#pragma unroll
    for (int i = 0; i + 1 < K; ++i) rows[i] = rows[i + 1];
    rows[K - 1] = newest;
  }
}

// Even rows meet taps in rows 0 and 2, odd ones in row 1: base rows of one distance are summed by that.
template <int WIDTH, class Stream>
__device__ __forceinline__ void stride_2_features(const Conv& c, const Target& t, Stream& stream) {
  const int top = c.before[1], bottom = top + static_cast<int>(c.size[1]) - 1;
  const int last = bottom < 2 * t.high ? bottom : 2 * t.high;
  using R = Row<2, WIDTH>;
  R even = {}, odd, next;
  float even_0[K][K] = {}, even_1[K][K] = {}, even_2[K][K] = {}, odd_0[K][K] = {}, odd_1[K][K] = {};
  int r = top;
  if (r % 2 == 0) {
    stream.template advance<true>(even);
    R::template add_products<true>(even, even, even_0);
    if (r++ == 0) flush<0, 0, 2>(t, 0, even_0);
  }
  const auto add_odd = [&] {
    R::template add_products<true>(odd, odd, odd_0);
    R::template add_products<false>(even, odd, even_1);
  };
  const auto add_even = [&] {
    R::template add_products<true>(next, next, even_0);
    R::template add_products<false>(odd, next, odd_1);
    R::template add_products<false>(even, next, even_2);
    even = next;
  };
  do {
    const int until = last < r + kLongest - 1 ? last : r + kLongest - 1;
#pragma unroll 1
    for (; r + 1 < until; r += 2) {
      stream.template advance<false>(odd);
      add_odd();
      stream.template advance<false>(next);
      add_even();
    }
    stream.template advance<true>(odd);
    add_odd();
    if (r + 1 == 2 * t.high) flush<0, 0, 2>(t, r - 1, even_0);
    stream.template advance<true>(next);
    add_even();
    r += 2;
    flush<0, 0, 2>(t, r - 1, even_0);
    flush<1, 0, K>(t, r - 3, even_1);
    flush<2, 0, K>(t, r - 3, even_2);
    flush<0, 1, K>(t, r - 2, odd_0);
    flush<1, 1, K>(t, r - 2, odd_1);
  } while (r <= last);
}

template <class S, int STRIDE, int WIDTH, Reading READING>
__global__ void __launch_bounds__(kThreads, WIDTH == 8 && READING != Reading::strided ? 3 : 2)
    lags(Conv c, CudaPlan p, Partial partial) {
  const Features f = features_3x3(p, shared_memory<char>());
  score_samples(c, p, f, partial, [&](int place, int64_t base, bool used) {
    const int lanes = p.lanes, lane = threadIdx.x % lanes;
    const Target t{f.g + place * f.row, lane, lanes, STRIDE, static_cast<int>(c.out[1])};
    Stream<S, STRIDE, WIDTH, READING> stream(c, p, static_cast<const S*>(c.acts) + base, lane, used);
    if constexpr (STRIDE == 1)
      stride_1_features<Row<1, WIDTH>>(c, t, stream);
    else
      stride_2_features<WIDTH>(c, t, stream);
    return stream.low;
  });
}

template <class S, int STRIDE>
auto kernel_of(const CudaPlan& p) {
  if (p.reading == Reading::strided) return lags<S, STRIDE, 8, Reading::strided>;
  if (p.reading == Reading::singly)
    return p.columns == 8 ? lags<S, STRIDE, 8, Reading::singly> : lags<S, STRIDE, 16, Reading::singly>;
  return p.columns == 8    ? lags<S, STRIDE, 8, Reading::vectors>
         : p.columns == 16 ? lags<S, STRIDE, 16, Reading::vectors>
         : p.columns == 28 ? lags<S, STRIDE, 28, Reading::vectors>
                           : lags<S, STRIDE, 32, Reading::vectors>;
}

}  // namespace

void queue_lags(const Conv& c, const CudaPlan& p, Partial partial, void* stream) {
  by_type(c.acts_type, [&](auto x) {
    using S = decltype(x);
    const int64_t shared = features_3x3(p, nullptr).behind - static_cast<char*>(nullptr);
    launch("lags", c.stride[1] == 1 ? kernel_of<S, 1>(p) : kernel_of<S, 2>(p), p.parts.count * c.channels, kThreads,
           shared, stream, c, p, partial);
  });
}

}  // namespace nnrelief
