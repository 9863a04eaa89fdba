// The sum over all paths: one frame forward, one frame backward, and the posteriors where the two meet.
//
// Contents: 1 results  2 a frame forward  3 a frame backward
//
// In probabilities, not logarithms; scaled.h tells why they do not underflow. With y(t, s) the emission of state s and
// s' -> s the moves of the lattice (Graves et al. 2006, equations 6, 10 and 14; 0-based here):
//
//     forward:    alpha(t, s) = y(t, s) * sum over s' -> s of alpha(t-1, s')                paths that are in s at frame t
//     backward:   beta(t, s)  =           sum over s -> s' of y(t+1, s') * beta(t+1, s')    how they can go on from there
//     posterior:  gamma(t, s) = alpha(t, s) * beta(t, s) / Z                                Z: the sum over all paths
//
// In pairs (lattice.h), with `left` and `right` the neighbours, and skip(k) true where labels k-1 and k differ:
//
//     m = blank(k) + left.label                         blank'(k) = y_blank * m
//                                                       label'(k) = y_label * (label(k) + (skip(k) ? m : blank(k)))
//
// The way back keeps q(t, s) = y(t, s) * beta(t, s), so that a frame is read and written once:
//
//     m = q.right.blank + q.right.label                 beta.blank(k) = q.blank(k) + q.label(k)
//                                                       beta.label(k) = q.label(k) + (skip(k+1) ? m : q.right.blank)
//
// Both begin with a row outside the frames: all probability in blank 0 before frame 0, or in blank L after frame T-1.
//
// The sum of gamma over the states of a frame is 1, but for rounding. It is divided by its sum and not by Z: then the
// rounding of T products, which all states of a frame have in common, cancels.
//
// PATH VALUES. The same text runs with ExpectationWeights (expectation.h) in place of ScaledWeights. Then a path collects
// v(t, s) at frame t in state s; with V its total,
//
//     d E[V] / d log y(t, s) = gamma(t, s) * (E[V | s at t] - E[V])
//
// at fixed v, which is the gradient of any function of the posteriors whose derivative by gamma(t, s) is v(t, s). The
// conditional mean is the sum of two: alpha's paths have collected theirs up to t, and beta's collect theirs after it.
//
// STARS. A star label is a label like any other. In a wild gap y_blank is the blank's emission plus the star's, and the
// gap's gamma is shared out between the two in that proportion (WildGap in emissions.h). With path values, the conditional
// mean of either differs from that of the gap by its own path value, less the mean of both.
//
// Rows are worked on in words of 16 pairs, and sums over a row are sums of 16 lanes, added up in order at the end: the
// result is the same for every width of vectors.
#pragma once

#include "emissions.h"
#include "expectation.h"
#include "rows.h"

namespace ctc_align {

// --------------------------------------------------------------------------------------------------- 1 results

// Z, and the mean value of all paths.
struct Total {
  double mantissa;
  double exponent;
  double mean;
};

// The sums of a frame, for each label, for all blanks, and for the stars of all wild gaps, but for a common factor:
// posteriors, or with ExpectationWeights gamma * (E[V | s at t] - E[V]).
template <class Real>
struct FrameSums {
  const Real* label_sums;  // valid from pair `first` to pair `last`
  index_t first;
  index_t last;
  Real blank_sum;
  Real star_sum;  // 0 where no gap is wild
  Real factor;    // 1 / sum of all posteriors
};

// -------------------------------------------------------------------------------------------- 2 a frame forward

// From `from`, frame t-1, to `to`. The classes of frame t have been loaded, with from.shift.
template <class Lanes, class Weight, class LookUp, bool kNormalize, bool kStars>
CTC_ALIGN_FN void forward_frame(const ForwardBackwardLattice<typename Lanes::Real>& lattice, index_t t,
                                const WeightRow<typename Lanes::Real>& from, WeightRow<typename Lanes::Real>& to) {
  const index_t first = lattice.band.first(t) / kPairsPerWord, last = lattice.band.last(t) / kPairsPerWord;
  const FrameFactors<Lanes, Weight, LookUp, kStars> factors(lattice, t, first, last);
  RowWriter<Lanes, Weight, kNormalize> writer(to);
  for (index_t w = first; w <= last; ++w) {
    const uint32_t skips = lattice.skip_bits[w];
    for (int u = 0; u < kPairsPerWord; u += Lanes::kWidth) {
      const index_t k = w * kPairsPerWord + u;
      const Weight blank = Weight::load(from.blank(k), from.width);
      const Weight label = Weight::load(from.label(k), from.width);
      const Weight left = Weight::load(from.label(k - 1), from.width);
      const Weight into_blank = blank + left;
      const Weight into_label = label + Weight::select(Lanes::mask(skips >> u), into_blank, blank);
      writer.store(factors.times_blank(into_blank, factors.is_wild(k)), to.blank(k));
      writer.store(factors.times_label(into_label, k), to.label(k));
    }
  }
  // The next frame may reach one pair further to the right, and it reads one label left of its own.
  store_zeros<Lanes, Weight>(to, last + 1);
  store_zero<Weight>(to.label(first * kPairsPerWord - 1), to.width);
  writer.finish(from);
}

// ------------------------------------------------------------------------------------------- 3 a frame backward

// `from` and `to` hold q of frames t+1 and t, `alphas` those of frame t; `label_sums` gets the result's. The classes of
// frame t have been loaded, with from.shift.
template <class Lanes, class Weight, class LookUp, bool kNormalize, bool kStars>
CTC_ALIGN_FN FrameSums<typename Lanes::Real> backward_frame(const ForwardBackwardLattice<typename Lanes::Real>& lattice,
                                                            index_t t, const WeightRow<typename Lanes::Real>& alphas,
                                                            const Total& total,
                                                            const WeightRow<typename Lanes::Real>& from,
                                                            WeightRow<typename Lanes::Real>& to,
                                                            typename Lanes::Real* label_sums) {
  using Real = typename Lanes::Real;
  using Value = typename Lanes::Value;
  constexpr int kVectors = kPairsPerWord / Lanes::kWidth;
  const index_t first = lattice.band.first(t) / kPairsPerWord, last = lattice.band.last(t) / kPairsPerWord;
  const FrameFactors<Lanes, Weight, LookUp, kStars> factors(lattice, t, first, last);
  RowWriter<Lanes, Weight, kNormalize> writer(to);
  // In halves, one for each factor: the number added to an exponent is then no larger than the exponents themselves.
  const double over_z = alphas.base + from.base - total.exponent, half = __builtin_floor(over_z / 2);
  const Value alpha_over_z = Lanes::broadcast(static_cast<Real>(half));
  const Value beta_over_z = Lanes::broadcast(static_cast<Real>(over_z - half));
  const Value mean = Lanes::broadcast(static_cast<Real>(total.mean));

  // Returns a state's posterior. `part` becomes its part of FrameSums: without path values the same.
  const auto meet = [&](Weight alpha, Weight beta, Value& part) __attribute__((always_inline)) {
    const ScaledWeight<Lanes> both = {
        Lanes::multiply(alpha.scaled().mantissa, beta.scaled().mantissa),
        Lanes::add(Lanes::add(alpha.scaled().exponent, alpha_over_z), Lanes::add(beta.scaled().exponent, beta_over_z))};
    const Value posterior = both.plain();
    part = posterior;
    if constexpr (Weight::kHasMean) {
      part = Lanes::multiply(posterior, Lanes::subtract(Lanes::add(alpha.mean, beta.mean), mean));
    }
    return posterior;
  };

  const Value zero = Lanes::broadcast(0);
  Value all[kVectors], blanks[kVectors];
  [[maybe_unused]] Value wilds[kVectors], wild_posteriors[kVectors];  // of wild gaps; `blanks` has the others
  for (int v = 0; v < kVectors; ++v) {
    all[v] = blanks[v] = wilds[v] = wild_posteriors[v] = zero;
  }
  for (index_t w = first; w <= last; ++w) {
    const uint32_t next_skips = w + 1 < lattice.words ? lattice.skip_bits[w + 1] : 0u;
    const uint32_t skips = (lattice.skip_bits[w] | next_skips << kPairsPerWord) >> 1;  // into the label at the right
    for (int v = 0; v < kVectors; ++v) {
      const index_t k = w * kPairsPerWord + v * Lanes::kWidth;
      const Weight blank = Weight::load(from.blank(k), from.width);
      const Weight label = Weight::load(from.label(k), from.width);
      const Weight right_blank = Weight::load(from.blank(k + 1), from.width);
      const Weight right_label = Weight::load(from.label(k + 1), from.width);
      const auto skip = Lanes::mask(skips >> (v * Lanes::kWidth));
      const Weight blank_beta = blank + label;
      const Weight label_beta = label + Weight::select(skip, right_blank + right_label, right_blank);
      const auto is_wild = factors.is_wild(k);
      Value part;
      const Value blank_posterior = meet(Weight::load(alphas.blank(k), alphas.width), blank_beta, part);
      all[v] = Lanes::add(all[v], blank_posterior);
      if constexpr (kStars) {
        blanks[v] = Lanes::add(blanks[v], Lanes::select(is_wild, zero, part));
        wilds[v] = Lanes::add(wilds[v], Lanes::select(is_wild, part, zero));
        if constexpr (Weight::kHasMean) {
          wild_posteriors[v] = Lanes::add(wild_posteriors[v], Lanes::select(is_wild, blank_posterior, zero));
        }
      } else {
        blanks[v] = Lanes::add(blanks[v], part);
      }
      all[v] = Lanes::add(all[v], meet(Weight::load(alphas.label(k), alphas.width), label_beta, part));
      Lanes::store(label_sums + k, part);
      writer.store(factors.times_blank(blank_beta, is_wild), to.blank(k));
      writer.store(factors.times_label(label_beta, k), to.label(k));
    }
  }
  // The frame before may reach one pair further to the left, and it reads one pair right of its own.
  if (first > 0) {
    store_zeros<Lanes, Weight>(to, first - 1);
  }
  store_zero<Weight>(to.blank((last + 1) * kPairsPerWord), to.width);
  store_zero<Weight>(to.label((last + 1) * kPairsPerWord), to.width);
  writer.finish(from);

  Real all_lanes[kPairsPerWord], blank_lanes[kPairsPerWord];
  [[maybe_unused]] Real star_lanes[kPairsPerWord];
  if constexpr (kStars) {
    const WildGap<Lanes> gap = factors.wild_gap(lattice, t);
    const auto part_of = [&](int v, Value share, Value gain) __attribute__((always_inline)) {
      const bool has_mean = Weight::kHasMean;
      const Value own = has_mean ? Lanes::add(wilds[v], Lanes::multiply(wild_posteriors[v], gain)) : wilds[v];
      return Lanes::multiply(own, share);
    };
    for (int v = 0; v < kVectors; ++v) {
      blanks[v] = Lanes::add(blanks[v], part_of(v, gap.blank_share, gap.blank_gain));
      Lanes::store(star_lanes + v * Lanes::kWidth, part_of(v, gap.star_share, gap.star_gain));
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    Lanes::store(all_lanes + v * Lanes::kWidth, all[v]);
    Lanes::store(blank_lanes + v * Lanes::kWidth, blanks[v]);
  }
  Real sum = 0, blank_sum = 0, star_sum = 0;
  for (int i = 0; i < kPairsPerWord; ++i) {
    sum += all_lanes[i];
    blank_sum += blank_lanes[i];
    if constexpr (kStars) {
      star_sum += star_lanes[i];
    }
  }
  return {label_sums, lattice.band.first(t), lattice.band.last(t), blank_sum, star_sum, 1 / sum};
}

}  // namespace ctc_align
