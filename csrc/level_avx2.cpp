// The kernels compiled for avx2; setup.py gives this file its flags.
#include "conv.h"

#if defined(__AVX2__)
#include "item.h"
#include "linear.h"

const nnrelief::Level* nnrelief::level_avx2() {
  static const Level level = {
      "avx2", {kLanes<float>, kLanes<double>, kFilters}, scratch_bytes, score_item, column_sums, scale_rows};
  return &level;
}
#else
const nnrelief::Level* nnrelief::level_avx2() { return nullptr; }
#endif
