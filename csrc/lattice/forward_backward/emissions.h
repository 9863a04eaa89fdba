// What a frame brings to the sum over all paths: the emissions of its states, as weights, and its path values.
//
// Contents: 1 an item's lattice  2 the classes of a frame  3 the labels of a frame  4 wild gaps  5 all of it
#pragma once

#include "../emission.h"
#include "../viterbi/records.h"
#include "scaled.h"

namespace ctc_align {

// ------------------------------------------------------------------------------------------ 1 an item's lattice

// What the paths of an item collect on their way, if anything: at frame t, label k's value in column k, every blank's in
// `blank_column`, and in a wild gap the star's in `star_column`.
template <class Real>
struct PathValues {
  const Real* data = nullptr;  // null: they collect nothing
  index_t frame_stride = 0;    // in elements
  index_t column_stride = 0;
  index_t blank_column = 0;
  index_t star_column = 0;

  CTC_ALIGN_FN const Real& at(index_t frame, index_t column) const {
    return data[frame * frame_stride + column * column_stride];
  }
  CTC_ALIGN_FN const Real& blank_at(index_t frame) const { return at(frame, blank_column); }
  CTC_ALIGN_FN const Real& star_at(index_t frame) const { return at(frame, star_column); }
};

// One item's lattice, and room for one frame.
template <class Real>
struct ForwardBackwardLattice {
  Band band;                  // of the whole item
  const int32_t* class_ids;   // pair -> panel class; 0 in the padding, up to whole words
  const uint16_t* skip_bits;  // bit k % 16 of word k / 16
  const uint16_t* wild_bits;  // the same; null: no gap is wild
  index_t words;
  index_t class_count;           // classes of log_probs in the panel
  int32_t blank_class;           // panel class; with stars the one after all others
  int32_t star_class;            // panel class of stars: where the blank is loaded, before it makes way for them
  PathValues<Real> path_values;  // read with ExpectationWeights only

  Real* class_mantissas;  // [class_count, and one more with stars, in whole words, at least two]
  Real* class_exponents;
  Real* pair_mantissas;  // [words * 16]
  Real* pair_exponents;
  Real* pair_values;
};

// -------------------------------------------------------------------------------------- 2 the classes of a frame

// Weights of the panel's classes at frame t. `classes` as in EmissionPanel; `star` is the frame's star score, or null.
template <class Lanes, class scalar_t>
CTC_ALIGN_FN void load_classes(const ForwardBackwardLattice<typename Lanes::Real>& lattice,
                               const Emissions<scalar_t>& emissions, const int64_t* classes, const scalar_t* star,
                               index_t t) {
  using Real = typename Lanes::Real;
  const index_t count = lattice.class_count + (star ? 1 : 0);
  const index_t padded = (count + kPairsPerWord - 1) / kPairsPerWord * kPairsPerWord;
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
  if (star) {
    values[lattice.blank_class] = values[lattice.star_class];
    values[lattice.star_class] = static_cast<Real>(widen(*star));
  }
  for (index_t c = count; c < padded; ++c) {
    values[c] = 0;
  }
  for (index_t c = 0; c < padded; c += Lanes::kWidth) {
    const auto weight = ScaledWeight<Lanes>::exponential(Lanes::load(values + c));
    Lanes::store(values + c, weight.mantissa);
    Lanes::store(lattice.class_exponents + c, weight.exponent);
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

// ------------------------------------------------------------------------------------------------- 4 wild gaps

// What the sums of all blanks are multiplied by at a frame, or of all stars, or of all wild gaps.
template <class Lanes>
struct GapFactor {
  ScaledWeight<Lanes> emission;
  typename Lanes::Value value;  // path value
};

// How the sums of wild gaps (FrameSums in frame.h) are shared out between the blank and the star.
template <class Lanes>
struct GapShares {
  using Value = typename Lanes::Value;
  Value blank_share, star_share;  // of the emission; both are 0 where it is
  Value blank_gain, star_gain;    // the path value of each, less the mean

  struct Parts {
    Value blank, star;
  };
  // `posteriors` is the sum of theirs, and used where paths have values.
  template <bool kHasMean>
  CTC_ALIGN_FN Parts share_out(Value sums, Value posteriors) const {
    const Value blank = kHasMean ? Lanes::add(sums, Lanes::multiply(posteriors, blank_gain)) : sums;
    const Value star = kHasMean ? Lanes::add(sums, Lanes::multiply(posteriors, star_gain)) : sums;
    return {Lanes::multiply(blank, blank_share), Lanes::multiply(star, star_share)};
  }
};

// A WILD GAP: the path is in the blank or in the star, so the gap has the sum of both emissions, and the mean of both
// path values. The mantissa of that sum is brought back to the size of an emission's, [1 / sqrt(2), sqrt(2)]: see scaled.h.
template <class Lanes>
struct WildGap {
  using Real = typename Lanes::Real;
  using Value = typename Lanes::Value;
  ScaledWeight<Lanes> emission;
  Value value;
  GapShares<Lanes> shares;

  CTC_ALIGN_FN WildGap(GapFactor<Lanes> blank, GapFactor<Lanes> star) : emission(blank.emission + star.emission) {
    const Value zero = Lanes::broadcast(0);
    const auto any = Lanes::exceeds(emission.mantissa, zero);
    const auto share_of = [&](ScaledWeight<Lanes> part) __attribute__((always_inline)) {
      return Lanes::select(any, Lanes::divide(part.mantissa_at(emission.exponent), emission.mantissa), zero);
    };
    shares.blank_share = share_of(blank.emission);
    shares.star_share = share_of(star.emission);
    const Value difference = Lanes::subtract(star.value, blank.value);
    shares.star_gain = Lanes::multiply(shares.blank_share, difference);
    shares.blank_gain = Lanes::subtract(zero, Lanes::multiply(shares.star_share, difference));
    value = Lanes::subtract(blank.value, shares.blank_gain);
    const ScaledWeight<Lanes> halved = {Lanes::multiply(emission.mantissa, Lanes::broadcast(static_cast<Real>(0.5))),
                                        Lanes::add_whole(emission.exponent, Lanes::broadcast_whole(1))};
    constexpr Real kSqrt2 = static_cast<Real>(1.41421356237309504880);
    emission =
        ScaledWeight<Lanes>::select(Lanes::exceeds(emission.mantissa, Lanes::broadcast(kSqrt2)), halved, emission);
  }
  CTC_ALIGN_FN GapFactor<Lanes> factor() const { return {emission, value}; }
};

// -------------------------------------------------------------------------------------------------- 5 all of it

// What a frame multiplies its sums by: the emissions, and the path values if there are any. kStars: some gaps are wild.
template <class Lanes, class Weight, class LookUp, bool kStars>
struct FrameFactors {
  using Real = typename Lanes::Real;
  using Value = typename Lanes::Value;
  using Mask = typename Lanes::Mask;
  LookUp look_up;
  GapFactor<Lanes> blank;
  GapFactor<Lanes> wild = {};  // with kStars
  const Real* pair_values;
  const uint16_t* wild_bits;

  CTC_ALIGN_FN FrameFactors(const ForwardBackwardLattice<Real>& lattice, index_t t, index_t first_word,
                            index_t last_word)
      : look_up(lattice, first_word, last_word),
        blank(gap_factor(lattice, lattice.blank_class)),
        pair_values(lattice.pair_values),
        wild_bits(lattice.wild_bits) {
    if constexpr (Weight::kHasMean) {
      blank.value = Lanes::broadcast(lattice.path_values.blank_at(t));
      const index_t labels = smaller((last_word + 1) * kPairsPerWord, lattice.band.labels);
      for (index_t k = first_word * kPairsPerWord; k < labels; ++k) {
        lattice.pair_values[k] = lattice.path_values.at(t, k);
      }
    }
    if constexpr (kStars) {
      wild = wild_gap(lattice, t).factor();
    }
  }
  CTC_ALIGN_FN WildGap<Lanes> wild_gap(const ForwardBackwardLattice<Real>& lattice, index_t t) const {
    GapFactor<Lanes> star = gap_factor(lattice, lattice.star_class);
    if constexpr (Weight::kHasMean) {
      star.value = Lanes::broadcast(lattice.path_values.star_at(t));
    }
    return {blank, star};
  }

  // Of kWidth gaps from this pair's on.
  CTC_ALIGN_FN Mask is_wild(index_t pair) const {
    return Lanes::mask(kStars ? uint32_t{wild_bits[pair / kPairsPerWord]} >> pair % kPairsPerWord : 0u);
  }
  CTC_ALIGN_FN Weight times_blank(Weight sum, [[maybe_unused]] Mask is_wild) const {
    if constexpr (kStars) {
      const auto emission = ScaledWeight<Lanes>::select(is_wild, wild.emission, blank.emission);
      return sum.times(emission, Weight::kHasMean ? Lanes::select(is_wild, wild.value, blank.value) : blank.value);
    } else {
      return sum.times(blank.emission, blank.value);
    }
  }
  CTC_ALIGN_FN Weight times_label(Weight sum, index_t pair) const {
    if constexpr (Weight::kHasMean) {
      return sum.times(look_up(pair), Lanes::load(pair_values + pair));
    } else {
      return sum.times(look_up(pair), blank.value);
    }
  }

 private:
  CTC_ALIGN_FN static GapFactor<Lanes> gap_factor(const ForwardBackwardLattice<Real>& lattice, int32_t panel_class) {
    return {{Lanes::broadcast(lattice.class_mantissas[panel_class]),
             Lanes::broadcast_whole(same_bits<typename Lanes::Bits>(lattice.class_exponents[panel_class]))},
            Lanes::broadcast(0)};
  }
};

}  // namespace ctc_align
