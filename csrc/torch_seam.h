// The one door to PyTorch: every torch name that the package uses comes in here.
//
// It uses the LibTorch stable ABI alone (torch/csrc/stable, torch/headeronly, the C shim), so one binary serves every
// torch from 2.10 on. Nothing in csrc/lattice includes this file.
#pragma once

#include "symbol_versions.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <torch/headeronly/util/shim_utils.h>

#include <array>
#include <new>
#include <optional>
#include <string>
#include <utility>

namespace ctc_align {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Half = torch::headeronly::Half;
using BFloat16 = torch::headeronly::BFloat16;

// Python sees it as a MemoryError with this message.
class NoMemory : public std::bad_alloc {
 public:
  explicit NoMemory(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// A fresh, uninitialised, contiguous tensor on the device of `like`, with its dtype unless another is given.
// Through the C shim: an allocation through the dispatcher, by name, costs 2 us more.
template <size_t kDims>
Tensor empty_tensor(const std::array<int64_t, kDims>& sizes, const Tensor& like, int32_t dtype) {
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  std::array<int64_t, kDims> strides;
  int64_t stride = 1;
  for (size_t i = kDims; i-- > 0;) {
    strides[i] = stride;
    // If the product overflows, torch refuses such sizes.
    stride = static_cast<int64_t>(static_cast<uint64_t>(stride) * static_cast<uint64_t>(sizes[i] > 1 ? sizes[i] : 1));
  }
  AtenTensorHandle handle = nullptr;
  const auto error = aoti_torch_empty_strided(kDims, sizes.data(), strides.data(), dtype, device_type,
                                              like.get_device_index(), &handle);
  if (error != TORCH_SUCCESS) {  // the check above would put the path of this file into the message
    std::string shape;
    for (const int64_t size : sizes) {
      shape += (shape.empty() ? "" : ", ") + std::to_string(size);
    }
    throw NoMemory("no memory for a tensor of shape (" + shape + (kDims == 1 ? ",)" : ")"));
  }
  return Tensor(handle);
}

inline int32_t dtype_of(const Tensor& tensor) {
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

template <size_t kDims>
Tensor empty_tensor(const std::array<int64_t, kDims>& sizes, const Tensor& like) {
  return empty_tensor(sizes, like, dtype_of(like));
}

// Memory for a kernel's own use, on the device of `like`; aligned to 16 bytes or more.
inline Tensor empty_bytes(int64_t bytes, const Tensor& like) {
  return empty_tensor<1>({bytes}, like, aoti_torch_dtype_uint8());
}

}  // namespace ctc_align
