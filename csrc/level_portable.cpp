// The kernels compiled for the architecture's baseline.
#include "conv.h"
#include "item.h"
#include "linear.h"

const nnrelief::Level* nnrelief::level_portable() {
  static const Level level = {
      "portable", {kLanes<float>, kLanes<double>, kFilters}, scratch_bytes, score_item, column_sums, scale_rows};
  return &level;
}
