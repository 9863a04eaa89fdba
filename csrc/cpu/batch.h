// A batch on its way from tensors to items: values checked, dtypes resolved, items shared out among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "../arguments.h"
#include "../torch_seam.h"
#include "interrupt.h"
#include "item.h"
#include "options.h"

namespace ctc_align {

// The arguments that every operator begins with.
struct Arguments {
  const Tensor& log_probs;
  const Tensor& targets;
  const std::optional<Tensor>& input_lengths;
  const std::optional<Tensor>& target_lengths;
  int64_t blank;

  index_t batch() const { return log_probs.size(0); }
  index_t frames() const { return log_probs.size(1); }
  index_t classes() const { return log_probs.size(2); }
  index_t labels() const { return targets.size(1); }
};

// Lengths as the sweep uses them, every one checked: 0 <= length <= extent.
inline std::vector<index_t> read_lengths(const char* name, const char* extent_name,
                                         const std::optional<Tensor>& lengths, index_t batch, index_t extent) {
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
inline void run_on_threads(int workers, const std::function<void(int)>& work) {
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      work(static_cast<int>(w));
    }
  });
}

// Runs align(b, crew, side_by_side) for every item, the largest first. An item that would keep one thread busy after all
// others are done gets the whole crew if splits(b); the rest get a thread each, so many side by side. Never throws inside
// the parallel body, where the message would be lost: the first exception is carried out and thrown again.
template <class Splits, class Align>
void for_each_item(const std::vector<index_t>& sizes, const Splits& splits, const Align& align) {
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
  while (done < count && sizes[order[done]] > kWorthACrew && sizes[order[done]] > cells / crew.workers &&
         splits(order[done])) {
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

// The items of a batch, every value checked.
template <class scalar_t, class label_t>
std::vector<Item<scalar_t, label_t>> read_items(const Arguments& arguments) {
  const Tensor& log_probs = arguments.log_probs;
  const Tensor& targets = arguments.targets;
  const index_t batch = arguments.batch(), classes = arguments.classes();
  const auto frames = read_lengths("input_lengths", "T", arguments.input_lengths, batch, arguments.frames());
  const auto labels = read_lengths("target_lengths", "L", arguments.target_lengths, batch, arguments.labels());
  const auto* emission_data = static_cast<const scalar_t*>(log_probs.const_data_ptr());
  const auto* target_data = static_cast<const label_t*>(targets.const_data_ptr());
  std::vector<Item<scalar_t, label_t>> items;
  items.reserve(batch);
  for (index_t b = 0; b < batch; ++b) {
    items.push_back({{emission_data + b * log_probs.stride(0), log_probs.stride(1), log_probs.stride(2)},
                     {target_data + b * targets.stride(0), targets.stride(1)},
                     frames[b],
                     labels[b],
                     classes,
                     arguments.blank});
    for (index_t k = 0; k < labels[b]; ++k) {
      const index_t label = items[b].target[k];
      check(0 <= label && label < classes, "targets[", b, ", ", k, "] must be a class of log_probs, expected ",
            "0 <= label < C = ", classes, ", found ", label);
      check(label != arguments.blank, "targets[", b, ", ", k, "] must not be the blank, expected a label other than ",
            arguments.blank, ", found ", label);
    }
  }
  return items;
}

// Makes the outputs by make(), reads the items, and runs work(items[b], b, outputs, options, crew) for each of them;
// splits(item) says whether a crew is of use to it.
template <class scalar_t, class label_t, class MakeOutputs, class Splits, class Work>
auto run_items(const Arguments& arguments, const MakeOutputs& make, const Splits& splits, const Work& work) {
  auto outputs = make();  // first: of sizes that no memory holds, nothing should be read
  const auto items = read_items<scalar_t, label_t>(arguments);
  std::vector<index_t> sizes;
  sizes.reserve(items.size());
  for (const auto& item : items) {
    sizes.push_back(item.frames * (item.labels + 1));
  }
  const Options options = current_options();
  const auto item_splits = [&](size_t b) { return splits(items[b]); };
  for_each_item(sizes, item_splits, [&](size_t b, const Crew& crew, int side_by_side) {
    Options own = options;
    own.memory_budget = options.memory_budget / side_by_side + (options.memory_budget % side_by_side != 0);
    work(items[b], static_cast<index_t>(b), outputs, own, crew);
  });
  return outputs;
}

// The same for the dtypes at hand, as the operator `name`.
template <class MakeOutputs, class Splits, class Work>
auto run_batch(const char* name, const Arguments& arguments, const MakeOutputs& make, const Splits& splits,
               const Work& work) {
  const auto with_labels = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    return arguments.targets.scalar_type() == ScalarType::Int
               ? run_items<scalar_t, int32_t>(arguments, make, splits, work)
               : run_items<scalar_t, int64_t>(arguments, make, splits, work);
  };
  return as_operator(name, [&] {
    check_arguments(arguments.log_probs, arguments.targets, arguments.input_lengths, arguments.target_lengths,
                    arguments.blank);
    const auto no_memory = [&] {
      return NoMemory("no memory to align " + text_of(ShapeOf{arguments.log_probs}) + " log_probs with " +
                      text_of(ShapeOf{arguments.targets}) + " targets; set_memory_budget, or fewer threads, take less");
    };
    try {
      switch (arguments.log_probs.scalar_type()) {
        case ScalarType::Half:     return with_labels(StoredHalf{});
        case ScalarType::BFloat16: return with_labels(StoredBFloat16{});
        case ScalarType::Float:    return with_labels(float{});
        default:                   return with_labels(double{});
      }
    } catch (const Interrupted& stop) {
      throw std::runtime_error(std::string(name) + ": " + stop.what());
    } catch (const NoMemory&) {
      throw;
    } catch (const std::bad_alloc&) {
      throw no_memory();
    } catch (const std::length_error&) {  // a table of more items than a machine can count
      throw no_memory();
    }
  });
}

}  // namespace ctc_align
