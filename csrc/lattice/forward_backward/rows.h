// Rows of weights: those of all states of the lattice at one frame, in PLANES, an array for each part of a weight.
//
//     | mantissas  exponents  (means) of blanks | mantissas  exponents  (means) of labels |
//
// Only ExpectationWeights have means. Every plane has a word of room on either side, so neighbours can be read.
#pragma once

#include "../viterbi/records.h"
#include "scaled.h"

namespace ctc_align {

// Mantissas grow by at most 3 * sqrt(2) a frame and shrink by at most sqrt(2): from [1, 2) to [2^-8, 2^35) in 16 frames.
// Exponents move by at most 2^18 / ln 2 a frame, so by less than 2^23: in float32 they stay exact meanwhile.
constexpr index_t kFramesToNormalize = 16;

template <class Real>
struct WeightRow {
  Real* values;
  index_t width;     // pairs in whole words, and two words more
  index_t planes;    // arrays of a weight
  double base = 0;   // true exponent = exponent + base
  double shift = 0;  // what the next frame moves from its exponents to its base

  static index_t width_for(index_t words) { return (words + 2) * kPairsPerWord; }
  static index_t size_for(index_t words, index_t planes) { return 2 * planes * width_for(words); }

  // In plane 0; the other planes are `width` apart.
  CTC_ALIGN_FN Real* blank(index_t pair) const { return values + kPairsPerWord + pair; }
  CTC_ALIGN_FN Real* label(index_t pair) const { return blank(pair) + planes * width; }
  CTC_ALIGN_FN Real* at(State state) const { return state.is_label ? label(state.pair) : blank(state.pair); }
};

// A row with all probability in one state, before any path value.
template <class Real>
void begin_row(WeightRow<Real>& row, index_t words, State state) {
  for (index_t plane = 0; plane < row.planes; ++plane) {
    for (index_t k = -1; k <= words * kPairsPerWord; ++k) {
      row.blank(k)[plane * row.width] = row.label(k)[plane * row.width] = plane == 1 ? kNoExponent<Real> : 0;
    }
  }
  row.at(state)[0] = 1;
  row.at(state)[row.width] = 0;
  row.base = row.shift = 0;
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
    p[plane * width] = plane == 1 ? kNoExponent<Real> : 0;
  }
}

// Stores a row's weights. With kNormalize it brings their mantissas back to ordinary size and looks for the greatest
// exponent, which the next frame is to take from all.
template <class Lanes, class Weight, bool kNormalize>
struct RowWriter {
  using Real = typename Lanes::Real;
  WeightRow<Real>& row;
  typename Lanes::Value greatest;

  CTC_ALIGN_FN explicit RowWriter(WeightRow<Real>& to) : row(to), greatest(Lanes::broadcast(kNoExponent<Real>)) {}
  CTC_ALIGN_FN void store(Weight weight, Real* p) {
    if (kNormalize) {
      weight = weight.normalized();
      greatest = Lanes::greater(weight.scaled().exponent, greatest);
    }
    weight.store(p, row.width);
  }
  CTC_ALIGN_FN void finish(const WeightRow<Real>& from) {
    row.base = from.base + from.shift;
    row.shift = 0;
    if (kNormalize) {
      Real values[Lanes::kWidth];
      Lanes::store(values, greatest);
      Real most = values[0];
      for (const Real value : values) {
        most = larger(most, value);
      }
      row.shift = most > kNoExponent<Real> / 2 ? static_cast<double>(most) : 0.0;  // a row of zeros stays as it is
    }
  }
};

}  // namespace ctc_align
