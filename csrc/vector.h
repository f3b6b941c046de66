// Vectors of one register's width. Included once per instruction set, inside that set's own unnamed namespace, so that
// no function compiled for one set can be linked into code that runs on another.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
constexpr int kFilters = 16;  // filters a phase 2 step holds in registers
#elif defined(__AVX__)
constexpr int kBytes = 32;
constexpr int kFilters = 8;
#else
constexpr int kBytes = 16;
constexpr int kFilters = 8;
#endif

template <class E, int L>
struct VecOf {
  typedef E type __attribute__((vector_size(sizeof(E) * L)));
};
template <class E, int L>
using Vec = typename VecOf<E, L>::type;

template <class T>
constexpr int kLanes = kBytes / sizeof(T);
template <class T>
using V = Vec<T, kLanes<T>>;
using Bits = Vec<uint32_t, kLanes<float>>;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Cuts the scratch memory up; with a null base it only measures.
struct Scratch {
  char* base;
  int64_t used = 0;

  template <class E>
  E* take(int64_t count) {
    E* out = (E*)(base ? base + used : nullptr);
    used += (count * (int64_t)sizeof(E) + 127) / 128 * 128;  // vectors of 16 doubles ask for as much
    return out;
  }
};

struct Span {
  int64_t begin, end;
};

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// L values from memory, their sign dropped.
template <int L>
INLINE Vec<float, L> load_abs(const float* p) {
  Vec<uint32_t, L> bits;
  memcpy(&bits, p, sizeof(bits));
  return (Vec<float, L>)(bits & 0x7fffffffu);
}

template <int L>
INLINE Vec<double, L> load_abs(const double* p) {
  Vec<uint64_t, L> bits;
  memcpy(&bits, p, sizeof(bits));
  return (Vec<double, L>)(bits & 0x7fffffffffffffffull);
}

template <int L>
INLINE Vec<uint32_t, L> load_bits(const void* p) {
  Vec<uint16_t, L> bits;
  memcpy(&bits, p, sizeof(bits));
  return __builtin_convertvector(bits, Vec<uint32_t, L>) & 0x7fffu;
}

template <int L>
INLINE Vec<float, L> load_abs(const BFloat16* p) {
  return (Vec<float, L>)(load_bits<L>(p) << 16);
}

template <int L>
INLINE Vec<float, L> load_abs(const Half* p) {
  using F = Vec<float, L>;
  using U = Vec<uint32_t, L>;
  U bits = load_bits<L>(p) << 13;  // the exponent is 112 too small
  U normal = bits + (112u << 23);
  U infinite = bits + (224u << 23);
  F tiny = (F)(bits + (113u << 23)) - (F)(U{} + (113u << 23));  // no implicit leading bit
  U is_tiny = (U)(bits < (1u << 23)), is_infinite = (U)(bits >= (31u << 23));
  return (F)((is_tiny & (U)tiny) | (is_infinite & infinite) | (~(is_tiny | is_infinite) & normal));
}

template <class T, class S>
INLINE V<T> load(const S* p) {
  if constexpr (sizeof(T) == 8 && sizeof(S) < 8)
    return __builtin_convertvector(load_abs<kLanes<T>>(p), V<T>);
  else
    return load_abs<kLanes<T>>(p);
}

// The first `count` of a vector, zeros behind them; nothing beyond them is read.
template <class T, class S>
INLINE V<T> load_some(const S* p, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4 && sizeof(S) == 4)
    return (V<float>)((Bits)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p) & 0x7fffffffu);
#endif
  S buffer[kLanes<T>] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return load<T>(buffer);
}

template <class T, class S>
INLINE T load_one(const S* p) {
  if constexpr (sizeof(S) == 2) {
    S buffer[4] = {*p};
    return (T)load_abs<4>(buffer)[0];
  } else {
    return (T)(*p < 0 ? -*p : *p);
  }
}

template <class T, size_t... I>
INLINE void interleave(V<T> a, V<T> b, V<T>& low, V<T>& high, std::index_sequence<I...>) {
  constexpr int n = sizeof...(I);
#if defined(__clang__)
  low = __builtin_shufflevector(a, b, (int)(I / 2 + I % 2 * n)...);
  high = __builtin_shufflevector(a, b, (int)(I / 2 + I % 2 * n + n / 2)...);
#else
  using Index = Vec<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>, n>;
  low = __builtin_shuffle(a, b, Index{(int)(I / 2 + I % 2 * n)...});
  high = __builtin_shuffle(a, b, Index{(int)(I / 2 + I % 2 * n + n / 2)...});
#endif
}

template <class T, size_t... I>
INLINE V<T> evens(V<T> a, V<T> b, std::index_sequence<I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (int)(2 * I)...);
#else
  using Index = Vec<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>, sizeof...(I)>;
  return __builtin_shuffle(a, b, Index{(int)(2 * I)...});
#endif
}

// Every second element of a, then of b.
template <class T>
INLINE V<T> evens(V<T> a, V<T> b) {
  return evens<T>(a, b, std::make_index_sequence<kLanes<T>>());
}

// Rows of lanes to lanes of rows: log2(n) perfect shuffles of all elements.
template <class T>
INLINE void transpose(V<T>* rows) {
  constexpr int n = kLanes<T>;
#pragma GCC unroll 8
  for (int step = 1; step < n; step *= 2) {
    V<T> next[n];
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i)
      interleave<T>(rows[i], rows[i + n / 2], next[2 * i], next[2 * i + 1], std::make_index_sequence<n>());
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = next[i];
  }
}

INLINE V<float> root(V<float> x) {
#if defined(__AVX512F__)
  return (V<float>)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX__)
  return (V<float>)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (V<float>)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < kLanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

INLINE V<double> root(V<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
}

template <class T>
INLINE V<T> larger(V<T> a, V<T> b) {
  return a > b ? a : b;
}

template <int L>
INLINE double sum_pairwise(Vec<double, L> x) {
  if constexpr (L == 1) {
    return x[0];
  } else {
    Vec<double, L / 2> half[2];
    memcpy(half, &x, sizeof(x));
    return sum_pairwise<L / 2>(half[0] + half[1]);
  }
}

template <class T>
INLINE double sum_lanes(V<T> x) {
  return sum_pairwise<kLanes<T>>(__builtin_convertvector(x, Vec<double, kLanes<T>>));
}

}  // namespace
