// The operators on CUDA tensors, over LibTorch's stable ABI: tensors in, Conv and CudaPlan, kernels onto the current
// stream of the tensors' device.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "conv_cuda.h"
#include "tensors.h"
#ifndef NNRELIEF_EMULATOR
#include "current_stream.h"
#endif

namespace nnrelief {
namespace {

double* numbers(const Tensor& t) { return static_cast<double*>(t.data_ptr()); }

Tensor new_sums(const Tensor& like, int64_t parts, int64_t count) {
  return torch::stable::new_empty(like, {parts, count}, ScalarType::Double);
}

// The one map of "norm_of_mean" and "l1", of as many channels at a time as fit a buffer, and its norms.
void score_sum_of_maps(const Conv& c, const Tensor& acts, bool wide, void* out, void* stream) {
  const int64_t pixels = c.pixels(), step = std::clamp<int64_t>((8 << 20) / (8 * pixels), 1, c.channels);
  for (int64_t first = 0; first < c.channels; first += step) {
    Columns columns{static_cast<const char*>(c.acts) + first * c.acts_c * item_size(c.acts_type),
                    c.acts_type,
                    c.samples,
                    c.acts_n,
                    std::min(step, c.channels - first),
                    c.acts_c,
                    {c.size[0], c.size[1], c.size[2]},
                    {c.acts_x[0], c.acts_x[1], c.acts_x[2]}};
    const Parts parts = cut(c.samples, 32, ceil_div(columns.count(), 32), 8 * columns.count());
    const Tensor sums = new_sums(acts, parts.count, columns.count()), total = new_sums(acts, 1, columns.count());
    queue_column_sums(columns, parts, numbers(sums), stream);
    queue_add(numbers(sums), parts.count, columns.count(), numbers(total), stream);
    Conv mean = c;
    mean.acts = total.data_ptr();
    mean.acts_type = Dtype::f64;
    mean.samples = 1;
    mean.acts_x[2] = 1;
    mean.acts_x[1] = c.size[2];
    mean.acts_x[0] = c.size[2] * c.size[1];
    mean.acts_c = mean.acts_n = pixels;
    queue_finish(mean, {1, 1}, {}, first, columns.channels, wide, out, stream);
  }
}

int64_t conv_path(Tensor weight, Tensor acts, std::vector<int64_t> geometry) {
  return static_cast<int64_t>(plan_cuda(make_conv(weight, acts, geometry)).path);
}

Tensor score_conv(Tensor weight, Tensor acts, std::vector<int64_t> geometry) {
  const Device device(acts);
  void* const stream = device.stream;
  const Conv c = make_conv(weight, acts, geometry);
  const CudaPlan p = plan_cuda(c);
  const bool wide = c.acts_type == Dtype::f64 || c.weight_type == Dtype::f64;
  Tensor out = new_scores(weight, wide);
  if (c.variant != Variant::paper) {
    score_sum_of_maps(c, acts, wide, out.data_ptr(), stream);
  } else if (p.path == Path::norms) {
    const Tensor sums = new_sums(acts, p.parts.count, c.channels);
    queue_norms(c, p, numbers(sums), stream);
    queue_scale({c.weight, c.weight_type, weight.size(0), weight.size(1), c.weight_j, c.weight_c}, c.filters,
                numbers(sums), p.parts.count, wide, out.data_ptr(), stream);
  } else if (p.path == Path::direct) {
    queue_finish(c, p.parts, {}, 0, c.channels, wide, out.data_ptr(), stream);
  } else {
    const Tensor sums = new_sums(acts, p.parts.count, c.channels * c.filters);
    const Tensor flags = torch::stable::new_empty(acts, {p.parts.count, c.channels}, ScalarType::Int);
    const Partial partial{numbers(sums), static_cast<int32_t*>(flags.data_ptr())};
    if (p.path == Path::lags)
      queue_lags(c, p, partial, stream);
    else if (p.lanes > 0)
      queue_windows(c, p, partial, stream);
    else
      queue_gram(c, p, partial, stream);
    queue_finish(c, p.parts, partial, 0, c.channels, wide, out.data_ptr(), stream);
  }
  return out;
}

// Sums of rows that do not lie evenly in memory are added as many even runs at a time as fit a buffer.
Tensor score_linear(Tensor weight, Tensor acts) {
  const Device device(acts);
  const Rows rows(acts);
  const int64_t last = acts.dim() - 1, count = acts.size(last), runs = rows.count / rows.inner;
  const Dtype type = dtype_of(acts);
  Columns columns{acts.data_ptr(), type, rows.inner, rows.stride, count, acts.stride(last), {1, 1, 1}, {0, 0, 0}};
  const Parts parts = cut(rows.inner, 32, ceil_div(count, 32), 8 * count);
  const int64_t most = std::clamp<int64_t>((8 << 20) / (8 * count * parts.count), 1, runs);
  const Tensor sums = new_sums(acts, 1 + most * parts.count, count);  // the first row is the total so far
  for (int64_t first = 0; first < runs; first += most) {
    const int64_t some = std::min(most, runs - first);
    for (int64_t run = 0; run < some; ++run) {
      const int64_t offset = rows.offset((first + run) * rows.inner);
      columns.x = static_cast<const char*>(acts.data_ptr()) + offset * item_size(type);
      queue_column_sums(columns, parts, numbers(sums) + (1 + run * parts.count) * count, device.stream);
    }
    const int64_t begin = first == 0 ? 1 : 0;
    queue_add(numbers(sums) + begin * count, 1 - begin + some * parts.count, count, numbers(sums), device.stream);
  }
  const bool wide = type == Dtype::f64 || dtype_of(weight) == Dtype::f64;
  Tensor out = new_scores(weight, wide);
  queue_scale({weight.data_ptr(), dtype_of(weight), weight.size(0), weight.size(1), weight.stride(0), weight.stride(1)},
              weight.size(0), numbers(sums), 1, wide, out.data_ptr(), device.stream);
  return out;
}

}  // namespace
}  // namespace nnrelief

STABLE_TORCH_LIBRARY_IMPL(nnrelief, CUDA, m) {
  m.impl("conv_path", TORCH_BOX(&nnrelief::conv_path));
  m.impl("score_conv", TORCH_BOX(&nnrelief::score_conv));
  m.impl("score_linear", TORCH_BOX(&nnrelief::score_linear));
}
