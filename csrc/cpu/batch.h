// A batch on its way from tensors to items: values checked, dtypes resolved.
#pragma once

#include <array>
#include <optional>
#include <stdexcept>

#include "../arguments.h"
#include "../torch_seam.h"
#include "item.h"
#include "options.h"
#include "threads.h"

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
class Lengths {
 public:
  Lengths(const char* name, const char* extent_name, const std::optional<Tensor>& lengths, index_t batch,
          index_t extent)
      : extent_(extent) {
    if (!lengths) {
      return;
    }
    wide_ = lengths->scalar_type() == ScalarType::Long;
    data_ = lengths->const_data_ptr();
    stride_ = lengths->stride(0);
    for (index_t b = 0; b < batch; ++b) {
      const index_t length = (*this)[b];
      check(0 <= length && length <= extent, name, "[", b, "] must be between 0 and ", extent_name, " = ", extent,
            ", found ", length);
    }
  }

  index_t operator[](index_t b) const {
    if (!data_) {
      return extent_;
    }
    return wide_ ? static_cast<const int64_t*>(data_)[b * stride_] : static_cast<const int32_t*>(data_)[b * stride_];
  }

 private:
  index_t extent_;
  const void* data_ = nullptr;  // null: all have the extent
  index_t stride_ = 0;
  bool wide_ = false;
};

// The items of a batch, every value checked.
template <class scalar_t, class label_t>
class Items {
 public:
  explicit Items(const Arguments& arguments)
      : batch_(arguments.batch()),
        classes_(arguments.classes()),
        blank_(arguments.blank),
        emissions_(static_cast<const scalar_t*>(arguments.log_probs.const_data_ptr())),
        emission_strides_{arguments.log_probs.stride(0), arguments.log_probs.stride(1), arguments.log_probs.stride(2)},
        targets_(static_cast<const label_t*>(arguments.targets.const_data_ptr())),
        target_strides_{arguments.targets.stride(0), arguments.targets.stride(1)},
        frames_("input_lengths", "T", arguments.input_lengths, batch_, arguments.frames()),
        labels_("target_lengths", "L", arguments.target_lengths, batch_, arguments.labels()) {
    for (index_t b = 0; b < batch_; ++b) {
      check_labels(b);
    }
  }

  index_t count() const { return batch_; }
  index_t cells(index_t b) const { return frames_[b] * (labels_[b] + 1); }
  Item<scalar_t, label_t> operator[](index_t b) const {
    return {{emissions_ + b * emission_strides_[0], emission_strides_[1], emission_strides_[2]},
            target(b),
            frames_[b],
            labels_[b],
            classes_,
            blank_};
  }

 private:
  Strided<const label_t> target(index_t b) const { return {targets_ + b * target_strides_[0], target_strides_[1]}; }

  void check_labels(index_t b) const {
    const auto labels = target(b);
    const index_t count = labels_[b];
    for (index_t k = 0; k < count; ++k) {
      const index_t label = labels[k];
      check(0 <= label && label < classes_, "targets[", b, ", ", k, "] must be a class of log_probs, expected ",
            "0 <= label < C = ", classes_, ", found ", label);
      check(label != blank_, "targets[", b, ", ", k, "] must not be the blank, expected a label other than ", blank_,
            ", found ", label);
    }
  }

  const index_t batch_, classes_, blank_;
  const scalar_t* const emissions_;
  const std::array<index_t, 3> emission_strides_;
  const label_t* const targets_;
  const std::array<index_t, 2> target_strides_;
  const Lengths frames_, labels_;
};

// Makes the outputs by make(), reads the items, and runs work(item, b, outputs, options, crew) for each of them;
// splits(item) says whether a crew is of use to it.
template <class scalar_t, class label_t, class MakeOutputs, class Splits, class Work>
auto run_items(const Arguments& arguments, const MakeOutputs& make, const Splits& splits, const Work& work) {
  constexpr index_t kMostItems = index_t{1} << 31;  // items without frames need no memory, but more take for ever
  auto outputs = make();                            // first: of sizes that no memory holds, nothing should be read
  if (arguments.batch() > kMostItems) {
    throw std::length_error("too many items");
  }
  const Items<scalar_t, label_t> items(arguments);
  const Options options = current_options();
  const auto size = [&](index_t b) { return items.cells(b); };
  const auto item_splits = [&](index_t b) { return splits(items[b]); };
  for_each_item(items.count(), size, item_splits, [&](index_t b, const Crew& crew, int side_by_side) {
    Options own = options;
    own.memory_budget = options.memory_budget / side_by_side + (options.memory_budget % side_by_side != 0);
    work(items[b], b, outputs, own, crew);
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
    } catch (const std::length_error&) {  // more items than a machine can count
      throw no_memory();
    }
  });
}

}  // namespace ctc_align
