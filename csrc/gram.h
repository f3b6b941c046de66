// Phase 1: the features of one tile of |x|, lanes side by side. G_ab = sum over outputs of x under tap a times x under
// tap b.
#pragma once

#include "fill.h"

namespace {

// A tile's shape: outputs, and rows and columns of the padded input it holds.
struct Tile {
  int64_t out[3], extent[3];

  int64_t index(int64_t d, int64_t h, int64_t w) const { return (d * extent[1] + h) * extent[2] + w; }
};

template <class Function>
INLINE void each_tile(const Conv& c, const Plan& p, const Function& function) {
  Tile t;
  int64_t at[3], first[3];
  for (at[0] = 0; at[0] < c.out[0]; at[0] += p.tile[0])
    for (at[1] = 0; at[1] < c.out[1]; at[1] += p.tile[1])
      for (at[2] = 0; at[2] < c.out[2]; at[2] += p.tile[2]) {
        for (int d = 0; d < 3; ++d) {
          t.out[d] = smaller(p.tile[d], c.out[d] - at[d]);
          t.extent[d] = p.path == Path::dual ? c.size[d] : c.span(d, t.out[d]);
          first[d] = p.path == Path::dual ? 0 : at[d] * c.stride[d] - c.before[d];
        }
        function(first, t);
      }
}

INLINE int64_t pair_index(int64_t taps, int64_t a, int64_t b) { return a * taps - a * (a - 1) / 2 + (b - a); }

INLINE int64_t tap_offset(const Conv& c, const Tile& t, int64_t tap) {
  const int64_t w = tap % c.kernel[2], h = tap / c.kernel[2] % c.kernel[1], d = tap / (c.kernel[1] * c.kernel[2]);
  return t.index(d * c.dilation[0], h * c.dilation[1], w * c.dilation[2]);
}

// Lags. Every S-th column (row) counted from a tap's own is a class; a tap of class q is q + S m, and the outputs under
// it are the class's entries m, m + 1 ... So the taps of one class share the products at one shift (row distance) and
// differ in the first and last entries alone.

// The products of one row with another (Same: itself) at every column shift of class Q, for kernel width K and stride
// S. zone[shift][slot]: slot 0 takes the entries that every tap's window contains, the next M - 1 the first ones, the
// last M - 1 the ones behind them, one by one.
template <class T, int K, int S, int Q, bool Same>
INLINE void row_products(const V<T>* base, const V<T>* other, int64_t columns, V<T>* zone) {
  constexpr int M = (K - Q + S - 1) / S, first = Same ? 0 : -(Q + S * (M - 1)), shifts = K - Q - first;
  constexpr int slots = 2 * M - 1;
  V<T> sum[shifts] = {}, window[shifts];
  base += Q;
  other += Q;
#pragma GCC unroll 16
  for (int i = 0; i + S < shifts; ++i) window[i] = other[S * (M - 1) + first + i];
  for (int64_t w = M - 1; w < columns; ++w) {
#pragma GCC unroll 2
    for (int i = shifts > S ? shifts - S : 0; i < shifts; ++i) window[i] = other[S * w + first + i];
    const V<T> x = base[S * w];
#pragma GCC unroll 16
    for (int i = 0; i < shifts; ++i) sum[i] += x * window[i];
#pragma GCC unroll 16
    for (int i = 0; i + S < shifts; ++i) window[i] = window[i + S];
  }
#pragma GCC unroll 16
  for (int i = 0; i < shifts; ++i) zone[i * slots] += sum[i];
#pragma GCC unroll 8
  for (int e = 0; e < M - 1; ++e) {
    const int64_t right = columns + e;
#pragma GCC unroll 16
    for (int i = 0; i < shifts; ++i) {
      const int shift = first + i;
      if (Q + S * e + shift >= 0) zone[i * slots + 1 + e] += base[S * e] * other[S * e + shift];
      if (Q + S * e + shift < K - S) zone[i * slots + M + e] += base[S * right] * other[S * right + shift];
    }
  }
}

// All pairs of a tap of column class Q and row class `top` with the taps `dr` rows below it.
template <class T, int K, int S, int Q, bool Same>
void lag_class(const Conv& c, const Tile& t, const V<T>* x, int64_t top, int64_t dr, V<T>* zones, V<T>* out) {
  constexpr int M = (K - Q + S - 1) / S, first = Same ? 0 : -(Q + S * (M - 1)), shifts = K - Q - first;
  constexpr int slots = 2 * M - 1, zone = shifts * slots;
  const int64_t down = c.stride[1], rows = t.out[1], taps = c.taps();
  const int64_t edges = (c.kernel[1] - dr - top + down - 1) / down - 1;  // rows at each end that not all taps meet
  for (int64_t i = 0; i < (1 + 2 * edges) * zone; ++i) zones[i] = V<T>{};
  for (int64_t r = 0; r < rows + edges; ++r) {
    V<T>* z = zones + (r < edges ? 1 + r : r < rows ? 0 : 1 + edges + r - rows) * zone;
    const V<T>* base = x + (top + r * down) * t.extent[2];
    row_products<T, K, S, Q, Same>(base, base + dr * t.extent[2], t.out[2], z);
  }
  for (int i = 0; i < shifts; ++i)
    for (int64_t a = 0; a <= edges; ++a) {
      V<T> row[slots];
      for (int s = 0; s < slots; ++s) {
        const V<T>* at = zones + i * slots + s;
        row[s] = *at;
        for (int64_t r = a; r < edges; ++r) row[s] += at[(1 + r) * zone];
        for (int64_t r = 0; r < a; ++r) row[s] += at[(1 + edges + r) * zone];
      }
      for (int m = 0; m < M; ++m) {
        const int b = Q + S * m, other = b + first + i;
        if (other < 0 || other >= K) continue;
        V<T> sum = row[0];
        for (int e = m; e < M - 1; ++e) sum += row[1 + e];
        for (int e = 0; e < m; ++e) sum += row[M + e];
        const int64_t y = top + down * a;
        out[pair_index(taps, y * K + b, (y + dr) * K + other)] = sum;
      }
    }
}

template <class T, int K, int S>
void lags(const Conv& c, const Tile& t, const V<T>* x, V<T>* zones, V<T>* out) {
  for (int64_t dr = 0; dr < c.kernel[1]; ++dr)
    for (int64_t top = 0; top < smaller(c.stride[1], c.kernel[1] - dr); ++top) {
      if (dr == 0)
        lag_class<T, K, S, 0, true>(c, t, x, top, dr, zones, out);
      else
        lag_class<T, K, S, 0, false>(c, t, x, top, dr, zones, out);
      if constexpr (S > 1 && K > 1) {
        if (dr == 0)
          lag_class<T, K, S, 1, true>(c, t, x, top, dr, zones, out);
        else
          lag_class<T, K, S, 1, false>(c, t, x, top, dr, zones, out);
      }
    }
}

template <class T, int S>
void lags(const Conv& c, const Tile& t, const V<T>* x, V<T>* zones, V<T>* out) {
  switch (c.kernel[2]) {
    case 1:
      return lags<T, 1, S>(c, t, x, zones, out);
    case 2:
      return lags<T, 2, S>(c, t, x, zones, out);
    case 3:
      return lags<T, 3, S>(c, t, x, zones, out);
    case 4:
      return lags<T, 4, S>(c, t, x, zones, out);
    case 5:
      return lags<T, 5, S>(c, t, x, zones, out);
    case 6:
      return lags<T, 6, S>(c, t, x, zones, out);
    default:
      return lags<T, 7, S>(c, t, x, zones, out);
  }
}

// Three taps against three: every output's products, in registers over a row.
template <class T, bool Diagonal>
INLINE void tap_blocks(const Conv& c, const Tile& t, const V<T>* x, const int64_t* p, const int64_t* q, V<T>* sums) {
  V<T> total[9] = {};
  for (int64_t d = 0; d < t.out[0]; ++d)
    for (int64_t h = 0; h < t.out[1]; ++h) {
      const V<T>* at = x + t.index(d * c.stride[0], h * c.stride[1], 0);
      V<T> sum[9] = {};
      for (int64_t w = 0; w < t.out[2]; ++w, at += c.stride[2]) {
        const V<T> a[3] = {at[p[0]], at[p[1]], at[p[2]]};
        const V<T> b[3] = {at[q[0]], at[q[1]], at[q[2]]};
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i)
#pragma GCC unroll 3
          for (int j = Diagonal ? i : 0; j < 3; ++j) sum[3 * i + j] += a[i] * b[j];
      }
      for (int i = 0; i < 9; ++i) total[i] += sum[i];
    }
  for (int i = 0; i < 9; ++i) sums[i] = total[i];
}

template <class T>
void gram(const Conv& c, const Tile& t, const V<T>* x, V<T>* out) {
  const int64_t taps = c.taps();
  for (int64_t a = 0; a < taps; a += 3)
    for (int64_t b = a; b < taps; b += 3) {
      int64_t p[3], q[3];
      for (int i = 0; i < 3; ++i) {  // beyond the last tap: any, its sums are left out
        p[i] = tap_offset(c, t, a + i < taps ? a + i : 0);
        q[i] = tap_offset(c, t, b + i < taps ? b + i : 0);
      }
      V<T> sums[9];
      if (a == b)
        tap_blocks<T, true>(c, t, x, p, q, sums);
      else
        tap_blocks<T, false>(c, t, x, p, q, sums);
      for (int i = 0; i < 3 && a + i < taps; ++i)
        for (int j = a == b ? i : 0; j < 3 && b + j < taps; ++j) out[pair_index(taps, a + i, b + j)] = sums[3 * i + j];
    }
}

template <class T>
void window_sums(const Conv& c, const Tile& t, const V<T>* x, V<T>* out) {
  for (int64_t tap = 0; tap < c.taps(); ++tap) {
    const V<T>* at = x + tap_offset(c, t, tap);
    V<T> sum{};
    for (int64_t d = 0; d < t.out[0]; ++d)
      for (int64_t h = 0; h < t.out[1]; ++h)
        for (int64_t w = 0; w < t.out[2]; ++w) sum += at[t.index(d * c.stride[0], h * c.stride[1], w * c.stride[2])];
    out[tap] = sum;
  }
}

template <class T>
void squares(const Conv& c, const Tile& t, const V<T>* x, V<T>* out) {
  V<T> total{};
  for (int64_t h = 0; h < t.out[1]; ++h) {
    const V<T>* at = x + t.index(0, h * c.stride[1], 0);
    V<T> sum[4] = {};
    int64_t w = 0;
    for (; w + 4 <= t.out[2]; w += 4)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sum[i] += at[(w + i) * c.stride[2]] * at[(w + i) * c.stride[2]];
    for (; w < t.out[2]; ++w) sum[0] += at[w * c.stride[2]] * at[w * c.stride[2]];
    total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
  *out = total;
}

// The features of one tile that is already in `x`.
template <class T>
void tile_features(const Conv& c, const Plan& p, const Tile& t, const V<T>* x, V<T>* zones, V<T>* out) {
  switch (p.path) {
    case Path::norms:
      return squares<T>(c, t, x, out);
    case Path::lags:
      return c.stride[2] == 1 ? lags<T, 1>(c, t, x, zones, out) : lags<T, 2>(c, t, x, zones, out);
    case Path::gram:
      return gram<T>(c, t, x, out);
    case Path::dual:
      for (int64_t a = 0; a < c.pixels(); ++a)
        for (int64_t b = a; b < c.pixels(); ++b) *out++ = x[a] * x[b];
      return;
    case Path::direct:
      for (int64_t i = 0; i < p.features; ++i) out[i] = x[i];
      return;
    case Path::window_sums:
      return window_sums<T>(c, t, x, out);
  }
}

}  // namespace
