// What a frame brings to the sum over all paths: the emissions of its states, as weights, and its path values.
//
// Contents: 1 an item's lattice  2 the classes of a frame  3 the labels of a frame
#pragma once

#include "../emission.h"
#include "../viterbi/records.h"
#include "scaled.h"

namespace ctc_align {

// ------------------------------------------------------------------------------------------ 1 an item's lattice

// What the paths of an item collect on their way, if anything: at frame t, label k's value in column k and every
// blank's in `blank_column`.
template <class Real>
struct PathValues {
  const Real* data = nullptr;  // null: they collect nothing
  index_t frame_stride = 0;    // in elements
  index_t column_stride = 0;
  index_t blank_column = 0;

  CTC_ALIGN_FN const Real& at(index_t frame, index_t column) const {
    return data[frame * frame_stride + column * column_stride];
  }
  CTC_ALIGN_FN const Real& blank_at(index_t frame) const { return at(frame, blank_column); }
};

// One item's lattice, and room for one frame.
template <class Real>
struct ForwardBackwardLattice {
  Band band;                  // of the whole item
  const int32_t* class_ids;   // pair -> panel class; 0 in the padding, up to whole words
  const uint16_t* skip_bits;  // bit k % 16 of word k / 16
  index_t words;
  index_t class_count;           // in the panel
  int32_t blank_class;           // panel class
  PathValues<Real> path_values;  // read with ExpectationWeights only

  Real* class_mantissas;  // [class_count, in whole words, at least two]
  Real* class_exponents;
  Real* pair_mantissas;  // [words * 16]
  Real* pair_exponents;
  Real* pair_values;
};

// -------------------------------------------------------------------------------------- 2 the classes of a frame

// Weights of the panel's classes at frame t, with `shift` taken from their exponents. `classes` as in EmissionPanel.
template <class Lanes, class scalar_t>
CTC_ALIGN_FN void load_classes(const ForwardBackwardLattice<typename Lanes::Real>& lattice,
                               const Emissions<scalar_t>& emissions, const int64_t* classes, index_t t, double shift) {
  using Real = typename Lanes::Real;
  const index_t padded = (lattice.class_count + kPairsPerWord - 1) / kPairsPerWord * kPairsPerWord;
  Real* values = lattice.class_mantissas;
  if (!classes && emissions.class_stride == 1) {
    const scalar_t* from = &emissions.at(t, 0);
    for (index_t c = 0; c < lattice.class_count; ++c) {  // a copy: vector code
      values[c] = static_cast<Real>(widen(from[c]));
    }
  } else {
    for (index_t c = 0; c < lattice.class_count; ++c) {
      values[c] = static_cast<Real>(widen(emissions.at(t, classes ? classes[c] : c)));
    }
  }
  for (index_t c = lattice.class_count; c < padded; ++c) {
    values[c] = 0;
  }
  const auto moved = Lanes::broadcast(static_cast<Real>(shift));
  for (index_t c = 0; c < padded; c += Lanes::kWidth) {
    const auto weight = ScaledWeight<Lanes>::exponential(Lanes::load(values + c));
    Lanes::store(values + c, weight.mantissa);
    Lanes::store(lattice.class_exponents + c, Lanes::subtract(weight.exponent, moved));
  }
}

// --------------------------------------------------------------------------------------- 3 the labels of a frame

// The emissions of labels, looked up in registers,
template <class Lanes>
struct TableLookUp {
  typename Lanes::Table mantissas;
  typename Lanes::Table exponents;
  const int32_t* class_ids;

  CTC_ALIGN_FN TableLookUp(const ForwardBackwardLattice<typename Lanes::Real>& lattice, index_t, index_t)
      : mantissas(Lanes::load_table(lattice.class_mantissas)),
        exponents(Lanes::load_table(lattice.class_exponents)),
        class_ids(lattice.class_ids) {}
  CTC_ALIGN_FN ScaledWeight<Lanes> operator()(index_t pair) const {
    const auto ids = Lanes::load_index(class_ids + pair);
    return {Lanes::look_up(mantissas, ids), Lanes::look_up(exponents, ids)};
  }
};

// or fetched one by one beforehand.
template <class Lanes>
struct RowLookUp {
  using Real = typename Lanes::Real;
  const Real* mantissas;
  const Real* exponents;

  CTC_ALIGN_FN RowLookUp(const ForwardBackwardLattice<Real>& lattice, index_t first_word, index_t last_word)
      : mantissas(lattice.pair_mantissas), exponents(lattice.pair_exponents) {
    for (index_t k = first_word * kPairsPerWord; k < (last_word + 1) * kPairsPerWord; ++k) {
      lattice.pair_mantissas[k] = lattice.class_mantissas[lattice.class_ids[k]];
      lattice.pair_exponents[k] = lattice.class_exponents[lattice.class_ids[k]];
    }
  }
  CTC_ALIGN_FN ScaledWeight<Lanes> operator()(index_t pair) const {
    return {Lanes::load(mantissas + pair), Lanes::load(exponents + pair)};
  }
};

// What a frame multiplies its sums by: the emissions, and the path values if there are any.
template <class Lanes, class Weight, class LookUp>
struct FrameFactors {
  using Real = typename Lanes::Real;
  LookUp look_up;
  ScaledWeight<Lanes> blank_emission;
  typename Lanes::Value blank_value;
  const Real* pair_values;

  CTC_ALIGN_FN FrameFactors(const ForwardBackwardLattice<Real>& lattice, index_t t, index_t first_word,
                            index_t last_word)
      : look_up(lattice, first_word, last_word),
        blank_emission{Lanes::broadcast(lattice.class_mantissas[lattice.blank_class]),
                       Lanes::broadcast(lattice.class_exponents[lattice.blank_class])},
        blank_value(Lanes::broadcast(0)),
        pair_values(lattice.pair_values) {
    if constexpr (Weight::kHasMean) {
      blank_value = Lanes::broadcast(lattice.path_values.blank_at(t));
      const index_t labels = smaller((last_word + 1) * kPairsPerWord, lattice.band.labels);
      for (index_t k = first_word * kPairsPerWord; k < labels; ++k) {
        lattice.pair_values[k] = lattice.path_values.at(t, k);
      }
    }
  }
  CTC_ALIGN_FN Weight times_blank(Weight sum) const { return sum.times(blank_emission, blank_value); }
  CTC_ALIGN_FN Weight times_label(Weight sum, index_t pair) const {
    if constexpr (Weight::kHasMean) {
      return sum.times(look_up(pair), Lanes::load(pair_values + pair));
    } else {
      return sum.times(look_up(pair), blank_value);
    }
  }
};

}  // namespace ctc_align
