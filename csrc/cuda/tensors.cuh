// Tensors as the operators on CUDA see them.
#pragma once

#include <cuda_runtime.h>

#include <optional>

#include "../arguments.h"
#include "../torch_seam.h"
#include "errors.cuh"
#include "inputs.cuh"

namespace ctc_align {

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline Integers integers(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.scalar_type() == ScalarType::Long};
}

inline Lengths lengths(const std::optional<Tensor>& tensor) {
  return tensor ? Lengths{integers(*tensor), tensor->stride(0)} : Lengths{{nullptr, false}, 0};
}

template <class scalar_t>
Stars<scalar_t, true> stars(const Tensor& scores, const std::optional<Tensor>& wild_gaps) {
  Stars<scalar_t, true> stars{
      static_cast<const scalar_t*>(scores.const_data_ptr()), scores.stride(0), scores.stride(1), nullptr, 0, 0};
  if (wild_gaps) {
    stars.wild_gaps = static_cast<const uint8_t*>(wild_gaps->const_data_ptr());
    stars.wild_item_stride = wild_gaps->stride(0);
    stars.gap_stride = wild_gaps->stride(1);
  }
  return stars;
}

template <class scalar_t>
Tensors<scalar_t> tensors(const Tensor& log_probs, const Tensor& targets, const std::optional<Tensor>& input_lengths,
                          const std::optional<Tensor>& target_lengths, int64_t blank) {
  return {.log_probs = static_cast<const scalar_t*>(log_probs.const_data_ptr()),
          .item_stride = log_probs.stride(0),
          .frame_stride = log_probs.stride(1),
          .class_stride = log_probs.stride(2),
          .frames = log_probs.size(1),
          .classes = log_probs.size(2),
          .targets = integers(targets),
          .target_item_stride = targets.stride(0),
          .label_stride = targets.stride(1),
          .labels = targets.size(1),
          .input_lengths = lengths(input_lengths),
          .target_lengths = lengths(target_lengths),
          .blank = blank};
}

}  // namespace ctc_align
