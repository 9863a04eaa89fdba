// Rows of weights: those of all states of the lattice at one frame, in PLANES, an array for each part of a weight.
//
//     | mantissas  exponents  (means) of blanks | mantissas  exponents  (means) of labels | weights of classes |
//
// Only ExpectationWeights have means. Every plane has a word of room on either side, so neighbours can be read. A row of
// alphas has its frame's emissions with it, for the way back.
#pragma once

#include "../viterbi/records.h"
#include "pair_sums.h"

namespace ctc_align {

template <class Real>
struct WeightRow {
  Real* values;
  index_t width;   // pairs in whole words, and two words more
  index_t planes;  // arrays of a weight

  static index_t width_for(index_t words) { return (words + 2) * kPairsPerWord; }
  // class_room: see ForwardBackwardLattice.
  static index_t size_for(index_t words, index_t planes, index_t class_room) {
    return 2 * planes * width_for(words) + 2 * class_room;
  }

  // In plane 0; the other planes are `width` apart.
  CTC_ALIGN_FN Real* blank(index_t pair) const { return values + kPairsPerWord + pair; }
  CTC_ALIGN_FN Real* label(index_t pair) const { return blank(pair) + planes * width; }
  CTC_ALIGN_FN Real* classes() const { return values + 2 * planes * width; }
  CTC_ALIGN_FN Real* at(State state) const { return state.is_label ? label(state.pair) : blank(state.pair); }
  CTC_ALIGN_FN StoredWeight<Real> weight(State state) const {
    const Real* p = at(state);
    return {p[0], p[width], planes > 2 ? p[2 * width] : Real{0}};
  }
};

// What a plane of zeros holds.
template <class Real>
CTC_ALIGN_FN Real zero_in(index_t plane) {
  return plane == 1 ? same_bits<Real>(typename ScaledTraits<Real>::Bits{kNoExponent}) : Real{0};
}

// A row with all probability in one state, before any path value.
template <class Real>
void begin_row(WeightRow<Real>& row, index_t words, State state) {
  for (index_t plane = 0; plane < row.planes; ++plane) {
    for (index_t k = -1; k <= words * kPairsPerWord; ++k) {
      row.blank(k)[plane * row.width] = row.label(k)[plane * row.width] = zero_in<Real>(plane);
    }
  }
  row.at(state)[0] = 1;
  row.at(state)[row.width] = 0;  // a whole number
}

template <class Lanes, class Weight>
CTC_ALIGN_FN void store_zeros(const WeightRow<typename Lanes::Real>& row, index_t word) {
  for (index_t k = word * kPairsPerWord; k < (word + 1) * kPairsPerWord; k += Lanes::kWidth) {
    Weight::zero().store(row.blank(k), row.width);
    Weight::zero().store(row.label(k), row.width);
  }
}

template <class Weight, class Real>
CTC_ALIGN_FN void store_zero(Real* p, index_t width) {
  for (index_t plane = 0; plane < Weight::kPlanes; ++plane) {
    p[plane * width] = zero_in<Real>(plane);
  }
}

// Stores a weight of a row. With kNormalize it brings the mantissa back to ordinary size.
template <bool kNormalize, class Weight, class Real>
CTC_ALIGN_FN void store_weight(const Weight& weight, Real* p, index_t width) {
  (kNormalize ? weight.normalized() : weight).store(p, width);
}

}  // namespace ctc_align
