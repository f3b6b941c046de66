// The kernels compiled for avx512; setup.py gives this file its flags.
#include "conv.h"

#if defined(__AVX512F__)
#include "item.h"
#include "linear.h"

const nnrelief::Level* nnrelief::level_avx512() {
  static const Level level = {
      "avx512", {kLanes<float>, kLanes<double>, kFilters}, scratch_bytes, score_item, column_sums, scale_rows};
  return &level;
}
#else
const nnrelief::Level* nnrelief::level_avx512() { return nullptr; }
#endif
