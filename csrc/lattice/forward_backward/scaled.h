// Probabilities of any size: SCALED WEIGHTS, mantissa * 2^exponent, the two kept apart.
//
// A sum over paths of probabilities is as small as exp(-100,000), far below any float. The usual way out is to keep
// logarithms, and to pay for every addition with exponentials and a logarithm. Here a weight is two Reals instead, a
// mantissa of ordinary size and a whole exponent, and an addition is what a processor does inside its own: move the
// operand of the smaller exponent to the right, and add. That is exact but for one rounding of the mantissa, so a sum of
// any length keeps the relative precision of its type, which a float32 logarithm of size 1000 does not. (Rabiner 1989,
// section V.A, scales all states of a frame by one number; states of a CTC lattice lie too far apart for that.)
//
//   zero          mantissa 0, exponent kNoExponent: the other operand's exponent always wins
//   a sum         exponent = the greater of the two; an operand more than -kSmallestShift bits below it counts as just
//                 that low, and changes nothing
//   a product     mantissas multiplied, exponents added
//   normalized()  mantissa back in [1, 2); called every kFramesToNormalize frames
//
// Exponents are WHOLE numbers: int32 beside float, int64 beside double, in the bits of a Value. A weight outside of
// 2^-kMostExponent ... 2^kMostExponent (186 million nats) becomes zero when it is normalized. So weights are true sizes,
// and rows need no common factor.
#pragma once

#include "../lanes.h"

namespace ctc_align {

template <class Real>
struct ScaledTraits;
template <>
struct ScaledTraits<float> {
  using Bits = int32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr int kBias = 127;
  static constexpr int kHeadroom = 100;  // of posteriors, see pair_sums.h
  static constexpr int kTerms = 8;       // of the exponential series: 0.3466^8 / 8! is below an ulp
  static constexpr float kLn2 = 0x1.6p-1f, kMiddleOfLn2 = 0x1.7p-8f, kEndOfLn2 = 0x1.0bfbe8p-15f;  // together ln 2
};
template <>
struct ScaledTraits<double> {
  using Bits = int64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr int kBias = 1023;
  static constexpr int kHeadroom = 500;
  static constexpr int kTerms = 14;
  static constexpr double kLn2 = 0x1.62e42feep-1, kMiddleOfLn2 = 0x1.a39ef35793c76p-33, kEndOfLn2 = 0;
};

// Mantissas grow by at most 3 * sqrt(2) a frame and shrink by at most sqrt(2): from [1, 2) to [2^-8, 2^35) in 16 frames.
// Exponents move by at most 2^18 / ln 2 a frame, so by less than 2^23 meanwhile.
constexpr index_t kFramesToNormalize = 16;

// Exponents of normalized weights.
constexpr int32_t kMostExponent = 1 << 28;
// The exponent of zero, and the least of all. Four exponents of any weights add up without overflow.
constexpr int32_t kNoExponent = -(1 << 29);

template <class Lanes>
struct ScaledWeight {
  using Real = typename Lanes::Real;
  using Value = typename Lanes::Value;
  using Traits = ScaledTraits<Real>;

  static constexpr int kShift = 1 - Traits::kBias;  // down to the smallest normal power of two
  // In a sum: mantissas are 2^-8 to 2^35, so an operand that far below is less than half an ulp of the other, and still
  // a normal number. (A product that is not costs a processor more than a hundred cycles.)
  static constexpr int kSmallestShift = kShift + 40;
  static constexpr Real kMagic = 3 * static_cast<Real>(int64_t{1} << (Traits::kMantissaBits - 1));  // 1.5 * 2^23

  Value mantissa;
  Value exponent;  // a whole number

  // A row keeps kPlanes arrays, one for each part of a weight, `width` apart.
  static constexpr index_t kPlanes = 2;
  static constexpr bool kHasMean = false;
  CTC_ALIGN_FN static ScaledWeight load(const Real* p, index_t width) {
    return {Lanes::load(p), Lanes::load(p + width)};
  }
  CTC_ALIGN_FN void store(Real* p, index_t width) const {
    Lanes::store(p, mantissa);
    Lanes::store(p + width, exponent);
  }
  // One weight in every lane.
  CTC_ALIGN_FN static ScaledWeight broadcast(const Real* p, index_t width) {
    return {Lanes::broadcast(p[0]), Lanes::broadcast_whole(same_bits<typename Lanes::Bits>(p[width]))};
  }
  CTC_ALIGN_FN ScaledWeight scaled() const { return *this; }
  CTC_ALIGN_FN ScaledWeight times(ScaledWeight emission, Value) const { return *this * emission; }

  CTC_ALIGN_FN static ScaledWeight zero() { return {Lanes::broadcast(0), Lanes::broadcast_whole(kNoExponent)}; }

  // 2^(field - kBias), for an exponent field from 0, which gives 0, to 2 * kBias.
  CTC_ALIGN_FN static Value power_of_two(Value field) { return Lanes::shift_bits_left(field, Traits::kMantissaBits); }
  // The same, and 0 for a field below 2.
  CTC_ALIGN_FN static Value power_of_two_or_zero(Value field) {
    return power_of_two(
        Lanes::select(Lanes::exceeds_whole(field, Lanes::broadcast_whole(1)), field, Lanes::broadcast(0)));
  }

  CTC_ALIGN_FN friend ScaledWeight operator*(ScaledWeight a, ScaledWeight b) {
    const Value exponent = Lanes::add_whole(a.exponent, b.exponent);
    return {Lanes::multiply(a.mantissa, b.mantissa),
            Lanes::greater_whole(exponent, Lanes::broadcast_whole(kNoExponent))};
  }
  CTC_ALIGN_FN friend ScaledWeight operator+(ScaledWeight a, ScaledWeight b) {
    const Value exponent = Lanes::greater_whole(a.exponent, b.exponent);
    return {Lanes::add(a.mantissa_at(exponent, kSmallestShift), b.mantissa_at(exponent, kSmallestShift)), exponent};
  }
  // The mantissa that belongs to an exponent at least as great.
  CTC_ALIGN_FN Value mantissa_at(Value greater_exponent, int least = kShift) const {
    const Value base = Lanes::subtract_whole(greater_exponent, Lanes::broadcast_whole(Traits::kBias));
    const Value least_field = Lanes::broadcast_whole(least + Traits::kBias);
    const Value field = Lanes::greater_whole(Lanes::subtract_whole(exponent, base), least_field);
    return Lanes::multiply(mantissa, power_of_two(field));
  }
  CTC_ALIGN_FN static ScaledWeight select(typename Lanes::Mask mask, ScaledWeight yes, ScaledWeight no) {
    return {Lanes::select(mask, yes.mantissa, no.mantissa), Lanes::select(mask, yes.exponent, no.exponent)};
  }

  // The same weight with its mantissa in [1, 2), or zero outside of the range. Mantissas are positive and normal, or zero.
  CTC_ALIGN_FN ScaledWeight normalized() const {
    constexpr typename Lanes::Bits kMantissaField = (typename Lanes::Bits{1} << Traits::kMantissaBits) - 1;
    const Value exponent_field = Lanes::shift_bits_right(mantissa, Traits::kMantissaBits);
    const Value moved = Lanes::subtract_whole(exponent_field, Lanes::broadcast_whole(Traits::kBias));
    const Value one = Lanes::broadcast(1);
    const ScaledWeight result = {Lanes::join_bits(Lanes::keep_bits(mantissa, kMantissaField), one),
                                 Lanes::add_whole(exponent, moved)};
    const Value most = Lanes::broadcast_whole(kMostExponent), least = Lanes::broadcast_whole(-kMostExponent);
    const ScaledWeight from_above = select(Lanes::exceeds_whole(most, result.exponent), result, zero());
    const ScaledWeight in_range = select(Lanes::exceeds_whole(result.exponent, least), from_above, zero());
    return select(Lanes::exceeds(mantissa, Lanes::broadcast(0)), in_range, zero());
  }

  // exp(x) for |x| below 2^18; anything else, NaN too, is not a log-probability and gives zero. Cody and Waite's
  // reduction x = n ln 2 + r, |r| <= ln(2) / 2, with ln 2 in parts that are short enough for exact products, and the
  // series of exp(r).
  CTC_ALIGN_FN static ScaledWeight exponential(Value x) {
    constexpr Real kLargest = 1 << 18;
    constexpr Real kLog2E = static_cast<Real>(1.44269504088896340736);
    const Value magic = Lanes::broadcast(kMagic);
    const Value rounded = Lanes::add(Lanes::multiply(x, Lanes::broadcast(kLog2E)), magic);
    const Value n = Lanes::subtract(rounded, magic);
    Value r = Lanes::subtract(x, Lanes::multiply(n, Lanes::broadcast(Traits::kLn2)));
    r = Lanes::subtract(r, Lanes::multiply(n, Lanes::broadcast(Traits::kMiddleOfLn2)));
    r = Lanes::subtract(r, Lanes::multiply(n, Lanes::broadcast(Traits::kEndOfLn2)));
    const Value one = Lanes::broadcast(1);
    Value sum = one;
    for (int i = Traits::kTerms - 1; i > 0; --i) {
      const Value term = Lanes::multiply(Lanes::multiply(sum, r), Lanes::broadcast(1 / static_cast<Real>(i)));
      sum = Lanes::add(term, one);
    }
    const ScaledWeight power = {sum, Lanes::subtract_whole(rounded, magic)};  // the low bits of kMagic + n hold n
    const ScaledWeight from_above = select(Lanes::exceeds(Lanes::broadcast(kLargest), x), power, zero());
    return select(Lanes::exceeds(x, Lanes::broadcast(-kLargest)), from_above, zero());
  }
};

}  // namespace ctc_align
