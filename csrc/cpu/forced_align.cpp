// ctc_align::forced_align on CPU tensors: checks every value, then aligns the items of the batch in parallel.
#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <mutex>
#include <numeric>
#include <tuple>
#include <vector>

#include "../arguments.h"
#include "../torch_seam.h"
#include "align_item.h"
#include "interrupt.h"

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

// Runs work(0), ..., work(workers - 1) on torch's threads.
void run_on_threads(int workers, const std::function<void(int)>& work) {
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      work(static_cast<int>(w));
    }
  });
}

// Runs align(b, crew, side_by_side) for every item, the largest first. An item that would keep one thread busy after all
// others are done gets the whole crew; the rest get a thread each, so many side by side. Never throws inside the parallel body, where the message would
// be lost: the first exception is carried out and thrown again.
template <class Align>
void for_each_item(const std::vector<index_t>& sizes, const Align& align) {
  constexpr index_t kWorthACrew = 4 << 20;    // cells
  constexpr index_t kWorthAThread = 1 << 16;  // waking one takes some microseconds
  const size_t count = sizes.size();
  const Crew alone{1, nullptr, interrupted};
  Crew crew{1, run_on_threads, interrupted};
  index_t cells = std::accumulate(sizes.begin(), sizes.end(), index_t{0});
  const index_t useful = std::max<index_t>(1, cells / kWorthAThread);
  crew.workers = static_cast<int>(std::min<index_t>(torch::stable::get_num_threads(), useful));
  if (crew.workers <= 1) {
    for (size_t b = 0; b < count; ++b) {
      align(b, alone, 1);
    }
    return;
  }

  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return sizes[a] > sizes[b]; });
  size_t done = 0;
  while (done < count && sizes[order[done]] > kWorthACrew && sizes[order[done]] > cells / crew.workers) {
    cells -= sizes[order[done]];
    align(order[done++], crew, 1);
  }

  const int workers = static_cast<int>(std::min<size_t>(crew.workers, count - done));
  std::atomic<size_t> next{done};
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto work = [&](int) {
    try {
      for (size_t i = next++; i < count; i = next++) {
        align(order[i], alone, workers);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(error_mutex);
      error = error ? error : std::current_exception();
      next = count;
    }
  };
  if (workers > 1) {
    run_on_threads(workers, work);
  } else {
    work(0);
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
                     classes,
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
  const Options options = current_options();
  for_each_item(sizes, [&](size_t b, const Crew& crew, int side_by_side) {
    Options own = options;
    own.memory_budget = (options.memory_budget + side_by_side - 1) / side_by_side;
    align_item(items[b], own, crew);
  });
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
    case ScalarType::Half:     return dispatch_labels<StoredHalf>(log_probs, args...);
    case ScalarType::BFloat16: return dispatch_labels<StoredBFloat16>(log_probs, args...);
    case ScalarType::Float:    return dispatch_labels<float>(log_probs, args...);
    default:                   return dispatch_labels<double>(log_probs, args...);
  }
}

std::tuple<Tensor, Tensor> align_checked(const Tensor& log_probs, const Tensor& targets,
                                         const std::optional<Tensor>& input_lengths,
                                         const std::optional<Tensor>& target_lengths, int64_t blank) {
  const index_t batch = log_probs.size(0);
  const auto frames = read_lengths("input_lengths", "T", input_lengths, batch, log_probs.size(1));
  const auto labels = read_lengths("target_lengths", "L", target_lengths, batch, targets.size(1));
  Tensor paths = empty_matrix(batch, log_probs.size(1), targets);
  Tensor scores = empty_matrix(batch, log_probs.size(1), log_probs);
  dispatch(log_probs, targets, frames, labels, blank, paths, scores);
  return {paths, scores};
}

std::tuple<Tensor, Tensor> forced_align(const Tensor& log_probs, const Tensor& targets,
                                        const std::optional<Tensor>& input_lengths,
                                        const std::optional<Tensor>& target_lengths, int64_t blank) {
  check_arguments(log_probs, targets, input_lengths, target_lengths, blank);
  const auto no_memory = [&] {
    return NoMemory("forced_align: no memory to align " + text_of(ShapeOf{log_probs}) + " log_probs with " +
                    text_of(ShapeOf{targets}) + " targets; set_memory_budget, or fewer threads, take less");
  };
  try {
    return align_checked(log_probs, targets, input_lengths, target_lengths, blank);
  } catch (const NoMemory&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw no_memory();
  } catch (const std::length_error&) {  // a table of more items than a machine can count
    throw no_memory();
  }
}

}  // namespace
}  // namespace ctc_align

STABLE_TORCH_LIBRARY_IMPL(ctc_align, CPU, library) {
  library.impl("forced_align", TORCH_BOX(&ctc_align::forced_align));
}
