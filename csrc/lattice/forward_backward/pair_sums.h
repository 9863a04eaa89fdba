// One pair of the lattice in the sums over all paths: a frame forward, a frame backward, and where the two meet.
//
// With y(t, s) the emission of state s and s' -> s the moves of the lattice (Graves et al. 2006, equations 6, 10 and 14;
// 0-based here):
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
// The lanes of a vector and a thread of a GPU speak this text alike, so both round at the same places.
#pragma once

#include "expectation.h"

namespace ctc_align {

template <class Weight>
struct PairSums {
  Weight blank, label;
};

// Alphas without the emission. `may_skip`: from the left label into this one.
template <class Weight, class Choice>
CTC_ALIGN_FN PairSums<Weight> sum_forward(const Weight& left_label, const PairSums<Weight>& before, Choice may_skip) {
  const Weight into_blank = before.blank + left_label;
  return {into_blank, before.label + Weight::select(may_skip, into_blank, before.blank)};
}

// Betas. `may_skip`: from this label into the right one.
template <class Weight, class Choice>
CTC_ALIGN_FN PairSums<Weight> sum_backward(const PairSums<Weight>& q, const PairSums<Weight>& right, Choice may_skip) {
  return {q.blank + q.label, q.label + Weight::select(may_skip, right.blank + right.label, right.blank)};
}

// Z, with its mantissa in [1, 2), or 0 if there is no path; and the mean of all paths' values.
struct Total {
  double mantissa;
  index_t exponent;
  double mean;

  CTC_ALIGN_FN bool has_path() const { return mantissa > 0; }
  // The log-likelihood in nats.
  CTC_ALIGN_FN double log() const;
};

// A state's weight out of a row, before it is a Weight again.
template <class Real>
struct StoredWeight {
  Real mantissa;
  Real exponent;  // a whole number
  Real mean;      // 0 for ScaledWeights
};

// The END RULE: the sum of the two states in which a path ends.
template <class Real>
CTC_ALIGN_FN Total total_of(const StoredWeight<Real>& last_blank, const StoredWeight<Real>& last_label) {
  using Bits = typename ScaledTraits<Real>::Bits;
  constexpr int kBits = ScaledTraits<double>::kMantissaBits, kBias = ScaledTraits<double>::kBias;
  const auto two_to = [](index_t n) { return same_bits<double>(static_cast<uint64_t>(n + kBias) << kBits); };
  const index_t exponents[] = {same_bits<Bits>(last_blank.exponent), same_bits<Bits>(last_label.exponent)};
  const index_t most = larger(exponents[0], exponents[1]);
  const double weights[] = {last_blank.mantissa * two_to(larger<index_t>(exponents[0] - most, 1 - kBias)),
                            last_label.mantissa * two_to(larger<index_t>(exponents[1] - most, 1 - kBias))};
  const double sum = weights[0] + weights[1];
  if (!(sum > 0)) {
    return {0, 0, 0};
  }
  const double means = weights[0] * last_blank.mean + weights[1] * last_label.mean;
  const index_t moved = static_cast<index_t>(same_bits<uint64_t>(sum) >> kBits) - kBias;
  return {sum * two_to(-moved), most + moved, means / sum};
}

// log m = 2 artanh((m - 1) / (m + 1)), by the series of artanh: a library's log is another one on every machine.
CTC_ALIGN_FN double Total::log() const {
  constexpr double kSqrt2 = 1.41421356237309504880;
  using Traits = ScaledTraits<double>;
  if (!has_path()) {
    return kMinusInfinity<double>;
  }
  const bool is_large = mantissa > kSqrt2;
  const double m = is_large ? 0.5 * mantissa : mantissa;
  const double r = (m - 1) / (m + 1), square = r * r;  // |r| <= 0.172, so 11 terms leave less than half an ulp
  double sum = 0;
  for (int i = 21; i > 0; i -= 2) {
    sum = sum * square + 1.0 / i;
  }
  const double n = static_cast<double>(exponent + (is_large ? 1 : 0));
  return n * Traits::kLn2 + (n * Traits::kMiddleOfLn2 + 2 * r * sum);  // the first product is exact
}

// Where alpha and beta meet. Posteriors are computed 2^kHeadroom times too large, so that a frame's posteriors keep all
// their digits down to the smallest normal number, and down to there do not depend on the exponent that stands for Z:
// a power of two is no rounding. They are divided by their sum in the end.
template <class Lanes, class Weight>
struct Meeting {
  using Real = typename Lanes::Real;
  using Value = typename Lanes::Value;
  static constexpr int kHeadroom = Weight::kHasMean ? 0 : ScaledTraits<Real>::kHeadroom;

  Value over_z;  // 2^kHeadroom / Z, as an exponent field
  Value mean;    // of all paths

  // `exponent`: of Z, or within 10 of it.
  CTC_ALIGN_FN static Meeting at(index_t exponent, double mean_of_all) {
    return {Lanes::broadcast_whole(static_cast<typename Lanes::Bits>(kHeadroom - exponent + ScaledTraits<Real>::kBias)),
            Lanes::broadcast(static_cast<Real>(mean_of_all))};
  }

  // Returns a state's posterior. `part` becomes its part of FrameSums: without path values the same.
  CTC_ALIGN_FN Value operator()(const Weight& alpha, const Weight& beta, Value& part) const {
    const ScaledWeight<Lanes> a = alpha.scaled(), b = beta.scaled();
    const Value field = Lanes::add_whole(Lanes::add_whole(a.exponent, b.exponent), over_z);
    const Value posterior =
        Lanes::multiply(Lanes::multiply(a.mantissa, b.mantissa), ScaledWeight<Lanes>::power_of_two_or_zero(field));
    part = posterior;
    if constexpr (Weight::kHasMean) {
      // A state that no path goes through has no part, however large its mean.
      const Value product = Lanes::multiply(posterior, Lanes::subtract(Lanes::add(alpha.mean, beta.mean), mean));
      const Value zero = Lanes::broadcast(0);
      part = Lanes::select(Lanes::exceeds(posterior, zero), product, zero);
    }
    return posterior;
  }
};

// 1 / sum of a frame's posteriors. The sum is 0 if no path is in range.
template <class Real>
CTC_ALIGN_FN Real factor_of(Real sum) {
  return sum > 0 ? 1 / sum : Real{0};
}

// A sum times its frame's factor. A posterior below the smallest normal number is 0; with path values none is (kHasMean).
template <bool kHasMean, class Real>
CTC_ALIGN_FN Real normalized_sum(Real sum, Real factor) {
  constexpr Real kLeast = kHasMean ? Real{0} : std::numeric_limits<Real>::min();
  const Real result = sum * factor;
  return result < kLeast && result > -kLeast ? Real{0} : result;  // NaN stays
}

}  // namespace ctc_align
