// The products of two rows of pixels under two rows of K taps, for RUN outputs side by side: taps at one distance share
// a sum over the columns that all their windows cover, and each adds its own at both ends. Nothing is subtracted.
#pragma once

#include "magnitude.h"

namespace nnrelief {

// Columns that the windows of a run cover.
template <int K, int STRIDE, int RUN>
constexpr int kSpan = STRIDE * (RUN - 1) + K;

// total[p] = sum over the outputs w of a[STRIDE w + p] b[STRIDE w + p + SHIFT]. FIRST: of windows that begin in the
// same class of columns.
template <int K, int STRIDE, int RUN, int SHIFT, int FIRST = 0>
__device__ __forceinline__ void run_sums(const float* a, const float* b, float* total) {
  constexpr int more = (K - 1 - SHIFT - FIRST) / STRIDE, end = STRIDE * RUN;
  float sum = 0, behind = 0;
#pragma unroll
  for (int i = more; i < RUN; ++i) sum += a[FIRST + i * STRIDE] * b[FIRST + i * STRIDE + SHIFT];
  total[FIRST + more * STRIDE] = sum;
#pragma unroll
  for (int i = more - 1; i >= 0; --i)
    total[FIRST + i * STRIDE] = sum += a[FIRST + i * STRIDE] * b[FIRST + i * STRIDE + SHIFT];
#pragma unroll
  for (int i = 0; i < more; ++i) {
    behind += a[end + FIRST + i * STRIDE] * b[end + FIRST + i * STRIDE + SHIFT];
    total[FIRST + (i + 1) * STRIDE] += behind;
  }
  if constexpr (FIRST + 1 < STRIDE && FIRST + 1 + SHIFT < K) run_sums<K, STRIDE, RUN, SHIFT, FIRST + 1>(a, b, total);
}

// sums[p][q] += the products of row `a` under tap p with row `b` under tap q, for p <= q alone where both are one row.
template <bool SAME, int K, int STRIDE, int RUN, int SHIFT = 0>
__device__ __forceinline__ void add_run(const float* a, const float* b, float (&sums)[K][K]) {
  float total[K];
  run_sums<K, STRIDE, RUN, SHIFT>(a, b, total);
#pragma unroll
  for (int p = 0; p + SHIFT < K; ++p) sums[p][p + SHIFT] += total[p];
  if constexpr (!SAME && SHIFT > 0) {
    run_sums<K, STRIDE, RUN, SHIFT>(b, a, total);
#pragma unroll
    for (int p = 0; p + SHIFT < K; ++p) sums[p + SHIFT][p] += total[p];
  }
  if constexpr (SHIFT + 1 < K) add_run<SAME, K, STRIDE, RUN, SHIFT + 1>(a, b, sums);
}

}  // namespace nnrelief
