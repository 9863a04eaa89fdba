// A batch as items: from the operators' arguments, with every value in them checked.
#pragma once

#include <array>
#include <optional>

#include "../arguments.h"
#include "../torch_seam.h"
#include "item.h"

namespace ctc_align {

inline const std::optional<Tensor> kNoTensor;

// The arguments that every operator has.
struct Arguments {
  const Tensor& log_probs;
  const Tensor& targets;
  const std::optional<Tensor>& input_lengths;
  const std::optional<Tensor>& target_lengths;
  int64_t blank;
  const std::optional<Tensor>& star_scores = kNoTensor;
  const std::optional<Tensor>& wild_gaps = kNoTensor;

  index_t batch() const { return log_probs.size(0); }
  index_t frames() const { return log_probs.size(1); }
  index_t classes() const { return log_probs.size(2); }
  index_t labels() const { return targets.size(1); }
};

// The lengths of a batch, every one checked: 0 <= length <= extent.
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

// A matrix with a row for each item, or none.
template <class T>
class OptionalRows {
 public:
  explicit OptionalRows(const std::optional<Tensor>& matrix) {
    if (matrix) {
      data_ = static_cast<const T*>(matrix->const_data_ptr());
      strides_ = {matrix->stride(0), matrix->stride(1)};
      is_given_ = true;
    }
  }
  bool is_given() const { return is_given_; }
  template <class Row>
  std::optional<Row> row(index_t b) const {
    return is_given_ ? std::optional(Row{data_ + b * strides_[0], strides_[1]}) : std::nullopt;
  }

 private:
  const T* data_ = nullptr;
  std::array<index_t, 2> strides_ = {0, 0};
  bool is_given_ = false;
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
        star_scores_(arguments.star_scores),
        wild_gaps_(arguments.wild_gaps),
        frames_("input_lengths", "T", arguments.input_lengths, batch_, arguments.frames()),
        labels_("target_lengths", "L", arguments.target_lengths, batch_, arguments.labels()) {
    for (index_t b = 0; b < batch_; ++b) {
      check_labels(b);
    }
  }

  index_t count() const { return batch_; }
  index_t cells(index_t b) const { return frames_[b] * (labels_[b] + 1); }
  Item<scalar_t, label_t> operator[](index_t b) const {
    return {.emissions = {emissions_ + b * emission_strides_[0], emission_strides_[1], emission_strides_[2]},
            .target = target(b),
            .frames = frames_[b],
            .labels = labels_[b],
            .classes = classes_,
            .blank = blank_,
            .star_scores = star_scores_.template row<StarScores<scalar_t>>(b),
            .wild_gaps = wild_gaps_.template row<Strided<const uint8_t>>(b)};
  }

 private:
  Strided<const label_t> target(index_t b) const { return {targets_ + b * target_strides_[0], target_strides_[1]}; }

  void check_labels(index_t b) const {
    const auto labels = target(b);
    const index_t count = labels_[b];
    const bool has_star = star_scores_.is_given();
    for (index_t k = 0; k < count; ++k) {
      const index_t label = labels[k];
      check(0 <= label && label < classes_ + (has_star ? 1 : 0), "targets[", b, ", ", k,
            has_star ? "] must be a class of log_probs or the star, expected 0 <= label <= C = "
                     : "] must be a class of log_probs, expected 0 <= label < C = ",
            classes_, ", found ", label);
      check(label != blank_, "targets[", b, ", ", k, "] must not be the blank, expected a label other than ", blank_,
            ", found ", label);
    }
  }

  const index_t batch_, classes_, blank_;
  const scalar_t* const emissions_;
  const std::array<index_t, 3> emission_strides_;
  const label_t* const targets_;
  const std::array<index_t, 2> target_strides_;
  const OptionalRows<scalar_t> star_scores_;
  const OptionalRows<uint8_t> wild_gaps_;  // bool tensors may hold any byte
  const Lengths frames_, labels_;
};

}  // namespace ctc_align
