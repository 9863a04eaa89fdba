// ctc_align::forced_align on CPU tensors: checks every value, then aligns the items of the batch in parallel.
#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <numeric>
#include <tuple>
#include <vector>

#include "../arguments.h"
#include "../torch_seam.h"
#include "align_item.h"

namespace ctc_align {
namespace {

// Lengths as the sweep uses them, every one checked: 0 <= length <= extent.
std::vector<index_t> read_lengths(const char* name, const char* extent_name, const std::optional<Tensor>& lengths,
                                  index_t batch, index_t extent) {
  std::vector<index_t> result(batch, extent);
  if (!lengths) {
    return result;
  }
  const bool wide = lengths->scalar_type() == ScalarType::Long;
  const void* data = lengths->const_data_ptr();
  for (index_t b = 0; b < batch; ++b) {
    const index_t at = b * lengths->stride(0);
    result[b] = wide ? static_cast<const int64_t*>(data)[at] : static_cast<const int32_t*>(data)[at];
    check(0 <= result[b] && result[b] <= extent, name, "[", b, "] must be between 0 and ", extent_name, " = ", extent,
          ", found ", result[b]);
  }
  return result;
}

// Runs work(b) for every item, the largest first. Never throws inside the parallel body, where the message would be
// lost: the first exception is carried out and thrown again.
template <class Work>
void for_each_item(const std::vector<index_t>& sizes, const Work& work) {
  std::vector<index_t> order(sizes.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return sizes[a] > sizes[b]; });

  std::atomic<size_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto worker = [&](int64_t, int64_t) {
    try {
      for (size_t i = next++; i < order.size(); i = next++) {
        work(order[i]);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(error_mutex);
      error = error ? error : std::current_exception();
    }
  };
  const int64_t workers = std::min<int64_t>(torch::stable::get_num_threads(), static_cast<int64_t>(order.size()));
  if (workers <= 1) {
    worker(0, 1);
  } else {
    torch::stable::parallel_for(0, workers, 1, worker);
  }
  if (error) {
    std::rethrow_exception(error);
  }
}

template <class scalar_t, class label_t>
void align_batch(const Tensor& log_probs, const Tensor& targets, const std::vector<index_t>& input_lengths,
                 const std::vector<index_t>& target_lengths, index_t blank, const Tensor& paths, const Tensor& scores) {
  const index_t batch = log_probs.size(0);
  const index_t classes = log_probs.size(2);
  const auto* emission_data = static_cast<const scalar_t*>(log_probs.const_data_ptr());
  const auto* target_data = static_cast<const label_t*>(targets.const_data_ptr());
  auto* path_data = static_cast<label_t*>(paths.mutable_data_ptr());
  auto* score_data = static_cast<scalar_t*>(scores.mutable_data_ptr());

  std::vector<Item<scalar_t, label_t>> items;
  std::vector<index_t> sizes;
  items.reserve(batch);
  sizes.reserve(batch);
  for (index_t b = 0; b < batch; ++b) {
    const index_t row = b * log_probs.size(1);
    items.push_back({{emission_data + b * log_probs.stride(0), log_probs.stride(1), log_probs.stride(2)},
                     {target_data + b * targets.stride(0), targets.stride(1)},
                     input_lengths[b],
                     target_lengths[b],
                     log_probs.size(1),
                     blank,
                     path_data + row,
                     score_data + row});
    sizes.push_back(input_lengths[b] * (target_lengths[b] + 1));
    for (index_t k = 0; k < target_lengths[b]; ++k) {
      const index_t label = items[b].target[k];
      check(0 <= label && label < classes, "targets[", b, ", ", k, "] must be a class of log_probs, expected ",
            "0 <= label < C = ", classes, ", found ", label);
      check(label != blank, "targets[", b, ", ", k, "] must not be the blank, expected a label other than ", blank,
            ", found ", label);
    }
  }
  for_each_item(sizes, [&](index_t b) { align_item(items[b]); });
}

template <class scalar_t, class... Args>
void dispatch_labels(const Tensor& log_probs, const Tensor& targets, const Args&... args) {
  if (targets.scalar_type() == ScalarType::Int) {
    align_batch<scalar_t, int32_t>(log_probs, targets, args...);
  } else {
    align_batch<scalar_t, int64_t>(log_probs, targets, args...);
  }
}

template <class... Args>
void dispatch(const Tensor& log_probs, const Args&... args) {
  switch (log_probs.scalar_type()) {
    case ScalarType::Half:     return dispatch_labels<Half>(log_probs, args...);
    case ScalarType::BFloat16: return dispatch_labels<BFloat16>(log_probs, args...);
    case ScalarType::Float:    return dispatch_labels<float>(log_probs, args...);
    default:                   return dispatch_labels<double>(log_probs, args...);
  }
}

std::tuple<Tensor, Tensor> forced_align(const Tensor& log_probs, const Tensor& targets,
                                        const std::optional<Tensor>& input_lengths,
                                        const std::optional<Tensor>& target_lengths, int64_t blank) {
  check_arguments(log_probs, targets, input_lengths, target_lengths, blank);
  const index_t batch = log_probs.size(0);
  const auto frames = read_lengths("input_lengths", "T", input_lengths, batch, log_probs.size(1));
  const auto labels = read_lengths("target_lengths", "L", target_lengths, batch, targets.size(1));
  Tensor paths = empty_matrix(batch, log_probs.size(1), targets);
  Tensor scores = empty_matrix(batch, log_probs.size(1), log_probs);
  dispatch(log_probs, targets, frames, labels, blank, paths, scores);
  return {paths, scores};
}

}  // namespace
}  // namespace ctc_align

STABLE_TORCH_LIBRARY_IMPL(ctc_align, CPU, library) {
  library.impl("forced_align", TORCH_BOX(&ctc_align::forced_align));
}
