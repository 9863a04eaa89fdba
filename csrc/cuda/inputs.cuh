// What every kernel is given: log_probs, targets and lengths as they lie in the tensors, and the outputs.
//
// Values are not checked before they come here. Lengths out of their ranges make an item impossible (lattice_of), and
// is_label() tells which labels are classes; the kernels read nothing by any other value.
#pragma once

#include <type_traits>

#include "../lattice/emission.h"

namespace ctc_align {

// Integers of 32 or 64 bits.
struct Integers {
  const void* data;
  bool wide;

  CTC_ALIGN_FN index_t at(index_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

struct Lengths {
  Integers values;  // data is nullptr where no lengths are given
  index_t stride;

  CTC_ALIGN_FN index_t at(index_t b, index_t otherwise) const {
    return values.data == nullptr ? otherwise : values.at(b * stride);
  }
};

template <class scalar_t>
struct Inputs {
  const scalar_t* log_probs;
  index_t item_stride, frame_stride, class_stride;
  index_t frames, classes;  // T, padded, and C
  Integers targets;
  index_t target_item_stride, label_stride;
  index_t labels;  // L, padded
  Lengths input_lengths, target_lengths;
  index_t blank;  // its class

  CTC_ALIGN_FN Emissions<scalar_t> emissions(index_t b) const {
    return {log_probs + b * item_stride, frame_stride, class_stride};
  }
  CTC_ALIGN_FN index_t label(index_t b, index_t k) const {
    return targets.at(b * target_item_stride + k * label_stride);
  }
  CTC_ALIGN_FN bool is_label(index_t c) const { return 0 <= c && c < classes && c != blank; }
};

// The lattice of an item. `possible` is false where its lengths leave their ranges or no path can exist; then nothing
// of the item is read.
struct ItemLattice {
  Band band;
  bool possible;
};

template <class scalar_t>
CTC_ALIGN_FN ItemLattice lattice_of(const Inputs<scalar_t>& in, index_t b) {
  const Band band{in.input_lengths.at(b, in.frames), in.target_lengths.at(b, in.labels)};
  const bool in_range = 0 <= band.frames && band.frames <= in.frames && 0 <= band.labels && band.labels <= in.labels;
  return {band, in_range && band.labels <= band.frames};
}

// -inf as log_probs and scores store it.
template <class scalar_t>
CTC_ALIGN_FN scalar_t stored_minus_infinity() {
  if constexpr (std::is_same_v<scalar_t, StoredHalf>) {
    return {0xFC00};
  } else if constexpr (std::is_same_v<scalar_t, StoredBFloat16>) {
    return {0xFF80};
  } else {
    return static_cast<scalar_t>(kMinusInfinity<float>);
  }
}

template <class scalar_t>
struct Outputs {
  void* paths;  // [B][T], integers as wide as the targets
  bool wide;
  scalar_t* scores;  // [B][T]

  CTC_ALIGN_FN void write(index_t i, index_t path_class, scalar_t score) const {
    if (wide) {
      static_cast<int64_t*>(paths)[i] = path_class;
    } else {
      static_cast<int32_t*>(paths)[i] = static_cast<int32_t>(path_class);
    }
    scores[i] = score;
  }
};

}  // namespace ctc_align
