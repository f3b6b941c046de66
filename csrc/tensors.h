// Tensors as the operators take them: over LibTorch's stable ABI, to Conv.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <vector>

#include "conv.h"

namespace nnrelief {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Half:
      return Dtype::f16;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::Double:
      return Dtype::f64;
    default:
      STD_TORCH_CHECK(false, "expected float16, bfloat16, float32 or float64");
      return Dtype::f32;
  }
}

// `geometry`: out, stride, padding before and dilation of each spatial dimension, then groups, padding mode, variant.
inline Conv make_conv(const Tensor& weight, const Tensor& acts, const std::vector<int64_t>& geometry) {
  const int64_t dims = acts.dim() - 2, lead = 3 - dims;
  STD_TORCH_CHECK(dims >= 1 && dims <= 3 && weight.dim() == acts.dim() && (int64_t)geometry.size() == 4 * dims + 3,
                  "geometry does not fit the tensors");
  Conv c{};
  c.acts = acts.data_ptr();
  c.weight = weight.data_ptr();
  c.acts_type = dtype_of(acts);
  c.weight_type = dtype_of(weight);
  c.samples = acts.size(0);
  c.channels = acts.size(1);
  c.groups = geometry[4 * dims];
  c.padding = (Padding)geometry[4 * dims + 1];
  c.variant = (Variant)geometry[4 * dims + 2];
  c.filters = weight.size(0) / c.groups;
  c.acts_n = acts.stride(0);
  c.acts_c = acts.stride(1);
  c.weight_j = weight.stride(0);
  c.weight_c = weight.stride(1);
  for (int64_t d = 0; d < 3; ++d) c.size[d] = c.kernel[d] = c.stride[d] = c.dilation[d] = c.out[d] = 1;
  for (int64_t i = 0; i < dims; ++i) {
    const int64_t d = lead + i;
    c.size[d] = acts.size(2 + i);
    c.acts_x[d] = acts.stride(2 + i);
    c.kernel[d] = weight.size(2 + i);
    c.weight_x[d] = weight.stride(2 + i);
    c.out[d] = geometry[i];
    c.stride[d] = geometry[dims + i];
    c.before[d] = geometry[2 * dims + i];
    c.dilation[d] = c.kernel[d] == 1 ? 1 : geometry[3 * dims + i];
    if (c.kernel[d] == 1 && c.before[d] == 0 && (c.out[d] - 1) * c.stride[d] < c.size[d]) {
      // only these positions are read: a smaller map with wider strides
      c.acts_x[d] *= c.stride[d];
      c.size[d] = c.out[d];
      c.stride[d] = 1;
    }
  }
  return c;
}

inline Tensor new_scores(const Tensor& weight, bool wide) {
  return torch::stable::new_empty(weight, {weight.size(0), weight.size(1)},
                                  wide ? ScalarType::Double : ScalarType::Float);
}

// The rows of a tensor (..., in): `inner` of them lie `stride` apart, the dimensions around them are walked one by one.
struct Rows {
  int64_t inner = 1, stride = 0, count = 1;
  std::vector<int64_t> sizes, strides;  // of the outer dimensions, the last first

  explicit Rows(const Tensor& t) {
    for (int64_t d = t.dim() - 2; d >= 0; --d) {
      const int64_t size = t.size(d), step = t.stride(d);
      count *= size;
      if (size == 1) continue;
      if (inner == 1) stride = step;
      if (sizes.empty() && (inner == 1 || step == inner * stride)) {
        inner *= size;
      } else {
        sizes.push_back(size);
        strides.push_back(step);
      }
    }
  }

  int64_t offset(int64_t row) const {
    int64_t at = row % inner * stride, index = row / inner;
    for (size_t d = 0; d < sizes.size(); index /= sizes[d++]) at += index % sizes[d] * strides[d];
    return at;
  }
};

// What every device implements.
template <class Library>
void define_operators(Library& m) {
  m.def("conv_path(Tensor weight, Tensor acts, int[] geometry) -> int");
  m.def("score_conv(Tensor weight, Tensor acts, int[] geometry) -> Tensor");
  m.def("score_linear(Tensor weight, Tensor acts) -> Tensor");
}

}  // namespace nnrelief
