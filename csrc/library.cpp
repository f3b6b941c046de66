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

template <class T>
double magnitude(const void* p, int64_t i) {
  return std::abs((double)static_cast<const T*>(p)[i]);
}

double weight_at(const void* p, Dtype type, int64_t i) {
  switch (type) {
    case Dtype::f16:
      return magnitude<torch::headeronly::Half>(p, i);
    case Dtype::bf16:
      return magnitude<torch::headeronly::BFloat16>(p, i);
    case Dtype::f32:
      return magnitude<float>(p, i);
    default:
      return magnitude<double>(p, i);
  }
}

// out[j][i] = |w_ji| factors[i] for the rows [begin, end) of a matrix.
template <class T>
void scale_rows(const void* w, Dtype type, int64_t sj, int64_t si, int64_t columns, const double* factors,
                int64_t begin, int64_t end, T* out) {
  for (int64_t j = begin; j < end; ++j) {
    T* row = out + j * columns;
    if (type == Dtype::f32 && si == 1) {
      const float* v = static_cast<const float*>(w) + j * sj;
      for (int64_t i = 0; i < columns; ++i) row[i] = (T)(std::abs((double)v[i]) * factors[i]);
    } else {
      for (int64_t i = 0; i < columns; ++i) row[i] = (T)(weight_at(w, type, j * sj + i * si) * factors[i]);
    }
  }
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
  const int64_t rows = c.groups * c.filters, columns = c.per_group();
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, (1 << 14) / columns), [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j)
      scale_rows(c.weight, c.weight_type, c.weight_j, c.weight_c, columns, norm_sums.data() + j / c.filters * columns,
                 j, j + 1, out);
  });
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
  Tensor out =
      torch::stable::new_empty(acts, {weight.size(0), weight.size(1)}, wide ? ScalarType::Double : ScalarType::Float);
  if (wide)
    score_into(conv, plan, static_cast<double*>(out.data_ptr()));
  else
    score_into(conv, plan, static_cast<float*>(out.data_ptr()));
  return out;
}

// (in,) float64: the sums of |acts| (rows, in) over rows, in an order that the number of threads does not change.
Tensor column_sums(Tensor acts) {
  const int64_t rows = acts.size(0), columns = acts.size(1), width = std::min<int64_t>(columns, 1024);
  const int64_t blocks = (columns + width - 1) / width;
  const int64_t parts = std::clamp<int64_t>(std::min(rows / 64, (int64_t)(1 << 20) / columns), 1, 64);
  const int64_t part = (rows + parts - 1) / parts;
  const Dtype type = dtype_of(acts);
  std::vector<double> sums(parts * columns);
  torch::stable::parallel_for(0, parts * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item % blocks * width, row = item / blocks * part;
      level().column_sums(acts.data_ptr(), type, acts.stride(0), acts.stride(1), row, std::min(row + part, rows), first,
                          std::min(first + width, columns), sums.data() + item / blocks * columns);
    }
  });
  Tensor out = torch::stable::new_empty(acts, {columns}, ScalarType::Double);
  double* total = static_cast<double*>(out.data_ptr());
  for (int64_t i = 0; i < columns; ++i) {
    total[i] = 0;
    for (int64_t k = 0; k < parts; ++k) total[i] += sums[k * columns + i];
  }
  return out;
}

template <class T>
void scale_into(const Tensor& weight, const double* sums, T* out) {
  const int64_t columns = weight.size(1), grain = std::max<int64_t>(1, (1 << 14) / columns);
  torch::stable::parallel_for(0, weight.size(0), grain, [&](int64_t begin, int64_t end) {
    scale_rows(weight.data_ptr(), dtype_of(weight), weight.stride(0), weight.stride(1), columns, sums, begin, end, out);
  });
}

// |w_ij| sums_i.
Tensor scale_columns(Tensor weight, Tensor sums, bool wide) {
  Tensor out =
      torch::stable::new_empty(weight, {weight.size(0), weight.size(1)}, wide ? ScalarType::Double : ScalarType::Float);
  const double* factors = static_cast<const double*>(sums.data_ptr());
  if (wide)
    scale_into(weight, factors, static_cast<double*>(out.data_ptr()));
  else
    scale_into(weight, factors, static_cast<float*>(out.data_ptr()));
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
  m.impl("column_sums", TORCH_BOX(&nnrelief::column_sums));
  m.impl("scale_columns", TORCH_BOX(&nnrelief::scale_columns));
}

STABLE_TORCH_LIBRARY_IMPL(nnrelief, CompositeExplicitAutograd, m) {
  m.impl("level", TORCH_BOX(&nnrelief::level_name));
  m.impl("cuda_architectures", TORCH_BOX(&nnrelief::cuda_architectures));
}
