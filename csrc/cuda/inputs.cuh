// What every kernel is given: log_probs, targets, lengths and stars as they lie in the tensors, and the outputs.
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
struct Tensors {
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
};

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

// A frame as a path shows it.
template <class scalar_t>
struct Entry {
  index_t path_class;
  scalar_t score;
};

// The emissions of one item's states, in place, for the few that are looked up one by one. A state is given as its pair k and
// its class c: the blank's, or the label's.
template <class scalar_t, bool kStars>
struct StateEmissions {
  Emissions<scalar_t> log_probs;

  // Frame t as a path in the state shows it.
  CTC_ALIGN_FN Entry<scalar_t> entry(index_t t, index_t, index_t c) const { return {c, log_probs.at(t, c)}; }
  CTC_ALIGN_FN const scalar_t& stored(index_t t, index_t, index_t c) const { return log_probs.at(t, c); }
};

// With stars: class C is the star, and a wild gap's blank may be one (lattice/emission.h).
template <class scalar_t>
struct StateEmissions<scalar_t, true> {
  Emissions<scalar_t> log_probs;
  StarScores<scalar_t> stars;
  const uint8_t* wild_gaps;  // nullptr: no gap is wild
  index_t gap_stride;
  index_t blank, classes;

  // Asked of gaps 0 to the item's number of labels alone: what comes after them is padding.
  CTC_ALIGN_FN bool is_wild(index_t k) const { return wild_gaps != nullptr && wild_gaps[k * gap_stride] != 0; }

  CTC_ALIGN_FN Entry<scalar_t> entry(index_t t, index_t k, index_t c) const {
    const bool may_be_star = c == classes || (c == blank && is_wild(k));
    const scalar_t star = may_be_star ? stars.at(t) : stored_minus_infinity<scalar_t>();
    if (c == classes) {
      return {c, star};
    }
    const scalar_t own = log_probs.at(t, c);
    using Real = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    return takes_star(load_emission<Real>(star), load_emission<Real>(own)) ? Entry<scalar_t>{kGapStar, star}
                                                                           : Entry<scalar_t>{c, own};
  }
  CTC_ALIGN_FN scalar_t stored(index_t t, index_t k, index_t c) const { return entry(t, k, c).score; }
};

// The stars of a call. A call without them has kernels of its own, and nothing here.
template <class scalar_t, bool kStars>
struct Stars {};
template <class scalar_t>
struct Stars<scalar_t, true> {
  const scalar_t* star_scores;
  index_t star_item_stride, star_frame_stride;
  const uint8_t* wild_gaps;  // nullptr: no gap is wild
  index_t wild_item_stride, gap_stride;
};

template <class scalar_t, bool kStars>
struct Inputs : Tensors<scalar_t>, Stars<scalar_t, kStars> {
  using Tensors<scalar_t>::blank, Tensors<scalar_t>::classes, Tensors<scalar_t>::emissions;

  CTC_ALIGN_FN bool is_star(index_t c) const { return kStars && c == classes; }
  CTC_ALIGN_FN bool is_label(index_t c) const { return 0 <= c && c < classes + (kStars ? 1 : 0) && c != blank; }

  CTC_ALIGN_FN StateEmissions<scalar_t, kStars> states(index_t b) const {
    if constexpr (kStars) {
      const uint8_t* wild_gaps = this->wild_gaps;
      return {emissions(b),
              {this->star_scores + b * this->star_item_stride, this->star_frame_stride},
              wild_gaps == nullptr ? nullptr : wild_gaps + b * this->wild_item_stride,
              this->gap_stride,
              blank,
              classes};
    } else {
      return {emissions(b)};
    }
  }
};

// The lattice of an item. `possible` is false where its lengths leave their ranges or no path can exist; then nothing
// of the item is read.
struct ItemLattice {
  Band band;
  bool possible;
};

template <class scalar_t, bool kStars>
CTC_ALIGN_FN ItemLattice lattice_of(const Inputs<scalar_t, kStars>& in, index_t b) {
  const Band band{in.input_lengths.at(b, in.frames), in.target_lengths.at(b, in.labels)};
  const bool in_range = 0 <= band.frames && band.frames <= in.frames && 0 <= band.labels && band.labels <= in.labels;
  return {band, in_range && band.labels <= band.frames};
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
