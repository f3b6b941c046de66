// The device and the stream that a call on CUDA tensors is queued on.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

namespace nnrelief {

// Looked up at run time: libtorch_cuda is no part of a CPU-only torch, which must be able to load this library.
inline void* current_stream(int32_t device) {
  using Lookup = int32_t (*)(int32_t, void**);
  static const Lookup lookup = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<Lookup>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
  }();
  STD_TORCH_CHECK(lookup, "this torch has no CUDA: aoti_torch_get_current_cuda_stream is not in it");
  void* stream = nullptr;
  STD_TORCH_CHECK(lookup(device, &stream) == 0, "no current stream on CUDA device ", device);
  return stream;
}

// The tensors' device and its current stream, for the length of a call.
struct Device {
  torch::stable::accelerator::DeviceGuard guard;
  void* stream;

  explicit Device(const torch::stable::Tensor& t)
      : guard(t.get_device_index()), stream(current_stream(t.get_device_index())) {}
};

}  // namespace nnrelief
