// What a frame brings to the sum over all paths: the emissions of its states, as weights, and its path values.
//
// Contents: 1 an item's lattice  2 the classes of a frame  3 wild gaps  4 all of it
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

// One item's lattice, and room for one frame's values.
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

  index_t class_room;  // class_count, and one more with stars, in whole words, at least two

  Real* class_values;  // [class_room]
  Real* pair_values;   // [words * 16]
};

// -------------------------------------------------------------------------------------- 2 the classes of a frame

// The weights of a frame's classes: mantissas and then exponents, for a look-up in registers,
template <class Lanes>
struct ClassTable {
  using Real = typename Lanes::Real;
  typename Lanes::Table mantissas;
  typename Lanes::Table exponents;
  const Real* weights;
  const ForwardBackwardLattice<Real>& lattice;

  CTC_ALIGN_FN static void store(Real* weights, index_t class_room, index_t c, ScaledWeight<Lanes> weight) {
    weight.store(weights + c, class_room);
  }
  CTC_ALIGN_FN ClassTable(const ForwardBackwardLattice<Real>& lattice, const Real* weights)
      : mantissas(Lanes::load_table(weights)),
        exponents(Lanes::load_table(weights + lattice.class_room)),
        weights(weights),
        lattice(lattice) {}
  CTC_ALIGN_FN ScaledWeight<Lanes> of_class(int32_t c) const {
    return ScaledWeight<Lanes>::broadcast(weights + c, lattice.class_room);
  }
  CTC_ALIGN_FN ScaledWeight<Lanes> of_labels(index_t pair) const {
    const auto ids = Lanes::load_index(lattice.class_ids + pair);
    return {Lanes::look_up(mantissas, ids), Lanes::look_up(exponents, ids)};
  }
};

// or a mantissa and its exponent side by side, for one look-up in memory.
template <class Lanes>
struct ClassCouples {
  using Real = typename Lanes::Real;
  const Real* weights;
  const int32_t* class_ids;

  CTC_ALIGN_FN static void store(Real* weights, index_t, index_t c, ScaledWeight<Lanes> weight) {
    Lanes::store_couples(weights + 2 * c, weight.mantissa, weight.exponent);
  }
  CTC_ALIGN_FN ClassCouples(const ForwardBackwardLattice<Real>& lattice, const Real* weights)
      : weights(weights), class_ids(lattice.class_ids) {}
  CTC_ALIGN_FN ScaledWeight<Lanes> of_class(int32_t c) const {
    return ScaledWeight<Lanes>::broadcast(weights + 2 * c, 1);
  }
  CTC_ALIGN_FN ScaledWeight<Lanes> of_labels(index_t pair) const {
    ScaledWeight<Lanes> weight;
    Lanes::load_couples(weights, class_ids + pair, weight.mantissa, weight.exponent);
    return weight;
  }
};

// run.template operator()<ClassTable<Lanes>>() or the other.
template <class Lanes, class Run>
CTC_ALIGN_FN auto with_class_weights(index_t class_count, const Run& run) {
  if constexpr (Lanes::kTableClasses > 0) {
    if (class_count <= Lanes::kTableClasses) {
      return run.template operator()<ClassTable<Lanes>>();
    }
  }
  return run.template operator()<ClassCouples<Lanes>>();
}

// Weights of the panel's classes at frame t, into weights[2 * class_room]. `classes` as in EmissionPanel; `star` is the
// frame's star score, or null.
template <class Lanes, class scalar_t>
CTC_ALIGN_FN void load_classes(const ForwardBackwardLattice<typename Lanes::Real>& lattice,
                               const Emissions<scalar_t>& emissions, const int64_t* classes, const scalar_t* star,
                               index_t t, typename Lanes::Real* weights) {
  using Real = typename Lanes::Real;
  const index_t count = lattice.class_count + (star ? 1 : 0);
  Real* values = lattice.class_values;
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
  with_class_weights<Lanes>(lattice.class_count, [&]<class ClassWeights>() __attribute__((always_inline)) {
    for (index_t c = 0; c < count; c += Lanes::kWidth) {  // values past the end are any numbers, and nobody's
      ClassWeights::store(weights, lattice.class_room, c, ScaledWeight<Lanes>::exponential(Lanes::load(values + c)));
    }
  });
}

// ------------------------------------------------------------------------------------------------- 3 wild gaps

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

// -------------------------------------------------------------------------------------------------- 4 all of it

// What a frame multiplies its sums by: the emissions, and the path values if there are any. kStars: some gaps are wild.
template <class Lanes, class Weight, class ClassWeights, bool kStars>
struct FrameFactors {
  using Real = typename Lanes::Real;
  using Value = typename Lanes::Value;
  using Mask = typename Lanes::Mask;
  ClassWeights class_weights;
  GapFactor<Lanes> blank;
  GapFactor<Lanes> wild = {};  // with kStars
  const Real* pair_values;
  const uint16_t* wild_bits;

  // `weights`: load_classes' of frame t.
  CTC_ALIGN_FN FrameFactors(const ForwardBackwardLattice<Real>& lattice, const Real* weights, index_t t,
                            index_t first_word, index_t last_word)
      : class_weights(lattice, weights),
        blank(gap_factor(lattice.blank_class)),
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
    GapFactor<Lanes> star = gap_factor(lattice.star_class);
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
      return sum.times(class_weights.of_labels(pair), Lanes::load(pair_values + pair));
    } else {
      return sum.times(class_weights.of_labels(pair), blank.value);
    }
  }

 private:
  CTC_ALIGN_FN GapFactor<Lanes> gap_factor(int32_t panel_class) const {
    return {class_weights.of_class(panel_class), Lanes::broadcast(0)};
  }
};

}  // namespace ctc_align
