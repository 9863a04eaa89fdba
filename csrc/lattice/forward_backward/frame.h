// The sum over all paths: one frame forward, one frame backward, and the posteriors where the two meet.
//
// Contents: 1 results  2 a frame forward  3 a frame backward
//
// In probabilities, not logarithms; scaled.h tells why they do not underflow, and pair_sums.h has the recurrences.
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
// ORDER OF SUMS. Rows are worked on in words of 16 pairs, and 16 words are a column, as in the rebase grid. A sum over a
// frame is made column by column, from the last to the first: a column's words are added up in 16 lanes, in order of
// words; its lanes are added up in order; and that is added to the columns before. The sum of all posteriors is, in each
// lane, that of blanks, plus that of wild gaps, plus that of labels. So the result is the same for every width of vectors,
// and for a GPU, where a column is a block of threads and the way back goes from right to left.
#pragma once

#include "../viterbi/rebase.h"
#include "emissions.h"
#include "rows.h"

namespace ctc_align {

// --------------------------------------------------------------------------------------------------- 1 results

// The sums of a frame, for each label, for all blanks, and for the stars of all wild gaps, but for a common factor:
// posteriors, or with ExpectationWeights gamma * (E[V | s at t] - E[V]).
template <class Real>
struct FrameSums {
  const Real* label_sums;  // valid from pair `first` to pair `last`
  index_t first;
  index_t last;
  Real blank_sum;
  Real star_sum;    // 0 where no gap is wild
  Real factor;      // 1 / sum of all posteriors
  Real least;       // half of what becomes the smallest normal number
  bool has_values;  // paths have some

  // Below `least` a posterior is 0; it is made so before the product, which would not be normal (scaled.h).
  Real normalized(Real sum) const {
    return has_values ? normalized_sum<true>(sum, factor) : normalized_sum<false>(sum < least ? Real{0} : sum, factor);
  }
};

// -------------------------------------------------------------------------------------------- 2 a frame forward

// From `from`, frame t-1, to `to`, which has the classes of frame t already.
template <class Lanes, class Weight, class ClassWeights, bool kNormalize, bool kStars>
CTC_ALIGN_FN void forward_frame(const ForwardBackwardLattice<typename Lanes::Real>& lattice, index_t t,
                                const WeightRow<typename Lanes::Real> from, const WeightRow<typename Lanes::Real> to) {
  const index_t first = lattice.band.first(t) / kPairsPerWord, last = lattice.band.last(t) / kPairsPerWord;
  const FrameFactors<Lanes, Weight, ClassWeights, kStars> factors(lattice, to.classes(), t, first, last);
  for (index_t w = first; w <= last; ++w) {
    const uint32_t skips = lattice.skip_bits[w];
    for (int u = 0; u < kPairsPerWord; u += Lanes::kWidth) {
      const index_t k = w * kPairsPerWord + u;
      const PairSums<Weight> before = {Weight::load(from.blank(k), from.width),
                                       Weight::load(from.label(k), from.width)};
      const Weight left = Weight::load(from.label(k - 1), from.width);
      const PairSums<Weight> sums = sum_forward(left, before, Lanes::mask(skips >> u));
      store_weight<kNormalize>(factors.times_blank(sums.blank, factors.is_wild(k)), to.blank(k), to.width);
      store_weight<kNormalize>(factors.times_label(sums.label, k), to.label(k), to.width);
    }
  }
  // The next frame may reach one pair further to the right, and it reads one label left of its own.
  store_zeros<Lanes, Weight>(to, last + 1);
  store_zero<Weight>(to.label(first * kPairsPerWord - 1), to.width);
}

// ------------------------------------------------------------------------------------------- 3 a frame backward

// `from` and `to` hold q of frames t+1 and t, `alphas` those of frame t and its classes; `label_sums` gets the result's.
template <class Lanes, class Weight, class ClassWeights, bool kNormalize, bool kStars>
CTC_ALIGN_FN FrameSums<typename Lanes::Real> backward_frame(const ForwardBackwardLattice<typename Lanes::Real>& lattice,
                                                            index_t t, const WeightRow<typename Lanes::Real> alphas,
                                                            const Total& total,
                                                            const WeightRow<typename Lanes::Real> from,
                                                            const WeightRow<typename Lanes::Real> to,
                                                            typename Lanes::Real* label_sums) {
  using Real = typename Lanes::Real;
  using Value = typename Lanes::Value;
  constexpr int kVectors = kPairsPerWord / Lanes::kWidth;
  constexpr index_t kColumnWords = kColumnPairs / kPairsPerWord;
  const index_t first = lattice.band.first(t) / kPairsPerWord, last = lattice.band.last(t) / kPairsPerWord;
  const FrameFactors<Lanes, Weight, ClassWeights, kStars> factors(lattice, alphas.classes(), t, first, last);
  const auto meet = Meeting<Lanes, Weight>::at(total.exponent, total.mean);
  const Value zero = Lanes::broadcast(0);
  Real sum = 0, blank_sum = 0, star_sum = 0;
  for (index_t column = last / kColumnWords; column >= first / kColumnWords; --column) {
    // Posteriors of labels, of blanks, of wild gaps; and where paths have values, the parts of the last two.
    Value labels[kVectors], blanks[kVectors], wilds[kVectors];
    [[maybe_unused]] Value blank_parts[kVectors], wild_parts[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      labels[v] = blanks[v] = wilds[v] = blank_parts[v] = wild_parts[v] = zero;
    }
    const index_t begin = larger(first, column * kColumnWords), end = smaller(last + 1, (column + 1) * kColumnWords);
    for (index_t w = begin; w < end; ++w) {
      const uint32_t next_skips = w + 1 < lattice.words ? lattice.skip_bits[w + 1] : 0u;
      const uint32_t skips = (lattice.skip_bits[w] | next_skips << kPairsPerWord) >> 1;  // into the label at the right
      for (int v = 0; v < kVectors; ++v) {
        const index_t k = w * kPairsPerWord + v * Lanes::kWidth;
        const PairSums<Weight> q = {Weight::load(from.blank(k), from.width), Weight::load(from.label(k), from.width)};
        const PairSums<Weight> right = {Weight::load(from.blank(k + 1), from.width),
                                        Weight::load(from.label(k + 1), from.width)};
        const PairSums<Weight> beta = sum_backward(q, right, Lanes::mask(skips >> (v * Lanes::kWidth)));
        const auto is_wild = factors.is_wild(k);
        Value part;
        const auto add_gap = [&](Value posterior, Value& blank_sum, Value& wild_sum) __attribute__((always_inline)) {
          if constexpr (kStars) {
            blank_sum = Lanes::add(blank_sum, Lanes::select(is_wild, zero, posterior));
            wild_sum = Lanes::add(wild_sum, Lanes::select(is_wild, posterior, zero));
          } else {
            blank_sum = Lanes::add(blank_sum, posterior);
          }
        };
        add_gap(meet(Weight::load(alphas.blank(k), alphas.width), beta.blank, part), blanks[v], wilds[v]);
        if constexpr (Weight::kHasMean) {
          add_gap(part, blank_parts[v], wild_parts[v]);
        }
        labels[v] = Lanes::add(labels[v], meet(Weight::load(alphas.label(k), alphas.width), beta.label, part));
        Lanes::store(label_sums + k, part);
        store_weight<kNormalize>(factors.times_blank(beta.blank, is_wild), to.blank(k), to.width);
        store_weight<kNormalize>(factors.times_label(beta.label, k), to.label(k), to.width);
      }
    }
    Real all_lanes[kPairsPerWord], blank_lanes[kPairsPerWord];
    [[maybe_unused]] Real star_lanes[kPairsPerWord];
    for (int v = 0; v < kVectors; ++v) {
      const Value gaps = kStars ? Lanes::add(blanks[v], wilds[v]) : blanks[v];
      Lanes::store(all_lanes + v * Lanes::kWidth, Lanes::add(gaps, labels[v]));
      Value of_blanks = Weight::kHasMean ? blank_parts[v] : blanks[v];
      if constexpr (kStars) {
        const auto part =
            factors.wild_gap(lattice, t)
                .shares.template share_out<Weight::kHasMean>(Weight::kHasMean ? wild_parts[v] : wilds[v], wilds[v]);
        of_blanks = Lanes::add(of_blanks, part.blank);
        Lanes::store(star_lanes + v * Lanes::kWidth, part.star);
      }
      Lanes::store(blank_lanes + v * Lanes::kWidth, of_blanks);
    }
    Real column_sum = 0, column_blanks = 0, column_stars = 0;
    for (int i = 0; i < kPairsPerWord; ++i) {
      column_sum += all_lanes[i];
      column_blanks += blank_lanes[i];
      if constexpr (kStars) {
        column_stars += star_lanes[i];
      }
    }
    sum += column_sum;
    blank_sum += column_blanks;
    star_sum += column_stars;
  }
  // The frame before may reach one pair further to the left, and it reads one pair right of its own.
  if (first > 0) {
    store_zeros<Lanes, Weight>(to, first - 1);
  }
  store_zero<Weight>(to.blank((last + 1) * kPairsPerWord), to.width);
  store_zero<Weight>(to.label((last + 1) * kPairsPerWord), to.width);
  const Real factor = factor_of(sum);
  const Real least = Weight::kHasMean ? Real{0} : std::numeric_limits<Real>::min() / (2 * factor);
  return {label_sums, lattice.band.first(t), lattice.band.last(t), blank_sum, star_sum, factor,
          least,      Weight::kHasMean};
}

}  // namespace ctc_align
