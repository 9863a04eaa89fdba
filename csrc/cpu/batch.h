// A batch on its way through an operator: dtypes resolved, items shared out among threads, errors named.
#pragma once

#include <new>
#include <stdexcept>
#include <string>

#include "../arguments.h"
#include "../torch_seam.h"
#include "items.h"
#include "options.h"
#include "threads.h"

namespace ctc_align {

// Makes the outputs by make(), reads the items, and runs work(item, b, outputs, options, workers) for each of them;
// splits(item) says whether several workers can share it.
template <class scalar_t, class label_t, class MakeOutputs, class Splits, class Work>
auto run_items(const Arguments& arguments, const MakeOutputs& make, const Splits& splits, const Work& work) {
  constexpr index_t kMostItems = index_t{1} << 31;  // items without frames need no memory, but more take for ever
  auto outputs = make();                            // first: for sizes that no memory holds nothing should be read
  if (arguments.batch() > kMostItems) {
    throw std::length_error("too many items");
  }
  const Items<scalar_t, label_t> items(arguments);
  const Options options = current_options();
  const auto size = [&](index_t b) { return items.cells(b); };
  const auto item_splits = [&](index_t b) { return splits(items[b]); };
  for_each_item(items.count(), size, item_splits, [&](index_t b, const Workers& workers, int side_by_side) {
    Options own = options;
    own.memory_budget = options.memory_budget / side_by_side + (options.memory_budget % side_by_side != 0);
    work(items[b], b, outputs, own, workers);
  });
  return outputs;
}

// The same for the dtypes of the arguments, as the operator `name`.
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
                    arguments.blank, arguments.star_scores, arguments.wild_gaps);
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
    } catch (const std::length_error&) {  // more items than a machine can count
      throw no_memory();
    }
  });
}

}  // namespace ctc_align
