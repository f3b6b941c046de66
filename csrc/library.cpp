// The operators of the compiled backends, and the CPU's side of them, over LibTorch's stable ABI: tensors in, Conv and
// Plan, work items onto torch's threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "tensors.h"

namespace nnrelief {
namespace {

const Level* choose_level() {
  bool avx512 = false, avx2 = false;
#if defined(__x86_64__)
  avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  const Level* all[] = {avx512 ? level_avx512() : nullptr, avx2 ? level_avx2() : nullptr, level_portable()};
  const char* wanted = std::getenv("NNRELIEF_CPU");
  for (const Level* level : all)
    if (level && (!wanted || !*wanted || std::string(wanted) == level->name)) return level;
  STD_TORCH_CHECK(false, "NNRELIEF_CPU must be one of portable, avx2, avx512 that this processor and build have, got ",
                  wanted);
  return nullptr;
}

const Level& level() {
  static const Level* chosen = choose_level();
  return *chosen;
}

struct Free {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t(128)); }
};
using Memory = std::unique_ptr<void, Free>;

Memory allocate(int64_t bytes) { return Memory(::operator new(std::max<int64_t>(bytes, 64), std::align_val_t(128))); }

// out[j][i] = |w_ji| factors[i], each group of `group` rows with factors of its own.
template <class T>
void scale_matrix(const void* w, Dtype type, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t columns,
                  int64_t group, const double* factors, T* out) {
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, (1 << 14) / columns), [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; j = (j / group + 1) * group)
      level().scale_rows(w, type, row_stride, column_stride, columns, factors + j / group * columns, j,
                         std::min((j / group + 1) * group, end), sizeof(T) == 8, out);
  });
}

// sums[channel][filter] of the channels from `first` on, to the result's (filter, channel of the group).
template <class T>
void store(const Conv& c, const Plan& p, int64_t first, const double* sums, T* out) {
  for (int64_t ch = first; ch < std::min(first + p.item_channels, c.channels); ++ch, sums += p.columns)
    for (int64_t j = 0; j < c.filters; ++j)
      out[(ch / c.per_group() * c.filters + j) * c.per_group() + ch % c.per_group()] = (T)sums[j];
}

template <class T>
void score_into(const Conv& c, const Plan& p, T* out) {
  const Level& kernels = level();
  const int64_t row = p.item_channels * p.columns, scratch = kernels.scratch(c, p);
  const bool norms = p.path == Path::norms, keep = norms || p.chunks > 1;
  std::vector<double> partial(keep ? p.channel_items * p.chunks * row : 0);
  torch::stable::parallel_for(0, p.channel_items * p.chunks, 1, [&](int64_t begin, int64_t end) {
    const Memory memory = allocate(scratch);
    std::vector<double> own(keep ? 0 : row);
    for (int64_t item = begin; item < end; ++item) {
      double* sums = keep ? partial.data() + item * row : own.data();
      kernels.score_item(c, p, item, memory.get(), sums);
      if (!keep) store(c, p, item * p.item_channels, sums, out);
    }
  });
  if (!keep) return;
  std::vector<double> norm_sums(norms ? p.channel_items * row : 0);
  for (int64_t item = 0; item < p.channel_items; ++item) {
    double* sums = partial.data() + item * p.chunks * row;
    for (int64_t part = 1; part < p.chunks; ++part)
      for (int64_t i = 0; i < row; ++i) sums[i] += sums[part * row + i];
    if (norms)
      std::copy(sums, sums + row, norm_sums.begin() + item * row);
    else
      store(c, p, item * p.item_channels, sums, out);
  }
  if (!norms) return;
  scale_matrix(c.weight, c.weight_type, c.weight_j, c.weight_c, c.groups * c.filters, c.per_group(), c.filters,
               norm_sums.data(), out);
}

int64_t conv_path(Tensor weight, Tensor acts, std::vector<int64_t> geometry) {
  const Plan plan = make_plan(make_conv(weight, acts, geometry), level().width);
  return plan.features == 0 ? -1 : (int64_t)plan.path;
}

Tensor score_conv(Tensor weight, Tensor acts, std::vector<int64_t> geometry) {
  const Conv conv = make_conv(weight, acts, geometry);
  const Plan plan = make_plan(conv, level().width);
  STD_TORCH_CHECK(plan.features > 0, "no path serves this kernel size");
  const bool wide = conv.acts_type == Dtype::f64 || conv.weight_type == Dtype::f64;
  Tensor out = new_scores(weight, wide);
  if (wide)
    score_into(conv, plan, static_cast<double*>(out.data_ptr()));
  else
    score_into(conv, plan, static_cast<float*>(out.data_ptr()));
  return out;
}

// The sums of |acts| (..., in) over all but the last dimension, in an order that the number of threads does not change.
std::vector<double> column_sums(const Tensor& acts) {
  const Rows rows(acts);
  const int64_t last = acts.dim() - 1, columns = acts.size(last), step = acts.stride(last);
  const int64_t width = std::min<int64_t>(columns, 1024), blocks = (columns + width - 1) / width;
  const int64_t parts = std::clamp<int64_t>(std::min(rows.count / 64, (int64_t)(1 << 20) / columns), 1, 64);
  const int64_t part = (rows.count + parts - 1) / parts;
  const Dtype type = dtype_of(acts);
  std::vector<double> sums(parts * columns);
  torch::stable::parallel_for(0, parts * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item % blocks * width, stop = std::min((item / blocks + 1) * part, rows.count);
      for (int64_t row = item / blocks * part, next; row < stop; row = next) {
        next = std::min((row / rows.inner + 1) * rows.inner, stop);
        const char* at = static_cast<const char*>(acts.data_ptr()) + rows.offset(row) * item_size(type);
        level().column_sums(at, type, rows.stride, step, 0, next - row, first, std::min(first + width, columns),
                            sums.data() + item / blocks * columns);
      }
    }
  });
  for (int64_t k = 1; k < parts; ++k)
    for (int64_t i = 0; i < columns; ++i) sums[i] += sums[k * columns + i];
  return sums;
}

// |w_ij| sum_n |x_ni|.
Tensor score_linear(Tensor weight, Tensor acts) {
  const Dtype type = dtype_of(weight);
  const bool wide = type == Dtype::f64 || dtype_of(acts) == Dtype::f64;
  const std::vector<double> sums = column_sums(acts);
  Tensor out = new_scores(weight, wide);
  const auto scale = [&](auto* into) {
    scale_matrix(weight.data_ptr(), type, weight.stride(0), weight.stride(1), weight.size(0), weight.size(1),
                 weight.size(0), sums.data(), into);
  };
  if (wide)
    scale(static_cast<double*>(out.data_ptr()));
  else
    scale(static_cast<float*>(out.data_ptr()));
  return out;
}

std::string level_name() { return level().name; }

// The chips that this build's CUDA kernels are compiled for, empty where it has none.
std::string cuda_architectures() {
#ifdef NNRELIEF_CUDA_ARCHS
  return NNRELIEF_CUDA_ARCHS;
#else
  return "";
#endif
}

}  // namespace
}  // namespace nnrelief

STABLE_TORCH_LIBRARY(nnrelief, m) {
  nnrelief::define_operators(m);
  m.def("level() -> str");
  m.def("cuda_architectures() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(nnrelief, CPU, m) {
  m.impl("conv_path", TORCH_BOX(&nnrelief::conv_path));
  m.impl("score_conv", TORCH_BOX(&nnrelief::score_conv));
  m.impl("score_linear", TORCH_BOX(&nnrelief::score_linear));
}

STABLE_TORCH_LIBRARY_IMPL(nnrelief, CompositeExplicitAutograd, m) {
  m.impl("level", TORCH_BOX(&nnrelief::level_name));
  m.impl("cuda_architectures", TORCH_BOX(&nnrelief::cuda_architectures));
}
