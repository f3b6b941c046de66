// csrc/library_cuda.cpp for tensors on the CPU, as operators of
// nnrelief_emulated (built with -Dnnrelief=nnrelief_emulated).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "conv.h"

namespace nnrelief {
struct Device {
  void* stream = nullptr;
  explicit Device(const torch::stable::Tensor&) {}
};
}  // namespace nnrelief

#define CUDA CPU
#include "library_cuda.cpp"

namespace nnrelief {
bool reverse_threads(bool reversed) { return emulator::reversed = reversed; }
}  // namespace nnrelief

STABLE_TORCH_LIBRARY(nnrelief, m) {
  nnrelief::define_operators(m);
  m.def("reverse_threads(bool reversed) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(nnrelief, CompositeExplicitAutograd, m) {
  m.impl("reverse_threads", TORCH_BOX(&nnrelief::reverse_threads));
}
