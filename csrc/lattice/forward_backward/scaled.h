// Probabilities of any size: SCALED WEIGHTS, mantissa * 2^exponent, the two kept apart.
//
// A sum over paths of probabilities is as small as exp(-100,000), far below any float. The usual way out is to keep
// logarithms, and to pay for every addition with exponentials and a logarithm. Here a weight is two Reals instead, a
// mantissa of ordinary size and a whole exponent, and an addition is what a processor does inside its own: move the
// operand of the smaller exponent to the right, and add. That is exact but for one rounding of the mantissa, so a sum of
// any length keeps the relative precision of its type, which a float32 logarithm of size 1000 does not. (Rabiner 1989,
// section V.A, scales all states of a frame by one number; states of a CTC lattice lie too far apart for that.)
//
//   zero          mantissa 0, exponent about kNoExponent: the other operand's exponent always wins
//   a sum         exponent = the greater of the two; an operand more than -kShift bits below it counts as just that low
//   a product     mantissas multiplied, exponents added
//   normalized()  mantissa back in [1, 2); called at least every kFramesToNormalize frames, see rows.h
//
// Exponents are whole numbers in a Real: exact up to 2^24 in float32. Rows are therefore moved by a common number of bits
// now and then. Only the distance between two states of a frame has to be exact, not their size.
#pragma once

#include "../lanes.h"

namespace ctc_align {

template <class Real>
struct ScaledTraits;
template <>
struct ScaledTraits<float> {
  static constexpr int kMantissaBits = 23;
  static constexpr int kBias = 127;
  static constexpr int kTerms = 8;  // of the exponential series: 0.3466^8 / 8! is below an ulp
  static constexpr float kLn2[] = {0x1.6p-1f, 0x1.7p-8f, 0x1.0bfbe8p-15f};
};
template <>
struct ScaledTraits<double> {
  static constexpr int kMantissaBits = 52;
  static constexpr int kBias = 1023;
  static constexpr int kTerms = 14;
  static constexpr double kLn2[] = {0x1.62e42feep-1, 0x1.a39ef35793c76p-33, 0};
};

// The exponent of zero.
template <class Real>
constexpr Real kNoExponent = -static_cast<Real>(int64_t{1} << 60);

template <class Lanes>
struct ScaledWeight {
  using Real = typename Lanes::Real;
  using Value = typename Lanes::Value;
  using Traits = ScaledTraits<Real>;

  static constexpr Real kShift = static_cast<Real>(1 - Traits::kBias);  // down to the smallest normal power of two
  static constexpr Real kMagic = 3 * static_cast<Real>(int64_t{1} << (Traits::kMantissaBits - 1));  // 1.5 * 2^23

  Value mantissa;
  Value exponent;

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
  CTC_ALIGN_FN ScaledWeight scaled() const { return *this; }
  CTC_ALIGN_FN ScaledWeight times(ScaledWeight emission, Value) const { return *this * emission; }

  CTC_ALIGN_FN static ScaledWeight zero() { return {Lanes::broadcast(0), Lanes::broadcast(kNoExponent<Real>)}; }

  // 2^n for whole n from kShift to kBias: the low bits of n + kMagic hold n, and become an exponent field.
  CTC_ALIGN_FN static Value power_of_two(Value n) {
    const Value shifted = Lanes::add(n, Lanes::broadcast(kMagic + static_cast<Real>(Traits::kBias)));
    return Lanes::shift_bits_left(shifted, Traits::kMantissaBits);
  }

  CTC_ALIGN_FN friend ScaledWeight operator*(ScaledWeight a, ScaledWeight b) {
    return {Lanes::multiply(a.mantissa, b.mantissa), Lanes::add(a.exponent, b.exponent)};
  }
  CTC_ALIGN_FN friend ScaledWeight operator+(ScaledWeight a, ScaledWeight b) {
    const Value exponent = Lanes::greater(a.exponent, b.exponent);
    return {Lanes::add(a.mantissa_at(exponent), b.mantissa_at(exponent)), exponent};
  }
  // The mantissa that belongs to an exponent at least as great.
  CTC_ALIGN_FN Value mantissa_at(Value greater_exponent) const {
    const Value distance = Lanes::subtract(exponent, greater_exponent);
    return Lanes::multiply(mantissa, power_of_two(Lanes::greater(distance, Lanes::broadcast(kShift))));
  }
  CTC_ALIGN_FN static ScaledWeight select(typename Lanes::Mask mask, ScaledWeight yes, ScaledWeight no) {
    return {Lanes::select(mask, yes.mantissa, no.mantissa), Lanes::select(mask, yes.exponent, no.exponent)};
  }

  // Its value as a plain Real, for weights of at most about 1.
  CTC_ALIGN_FN Value plain() const {
    const Value least = Lanes::broadcast(kShift);
    const Value small = Lanes::multiply(mantissa, power_of_two(Lanes::greater(exponent, least)));
    return Lanes::select(Lanes::exceeds(exponent, least), small, Lanes::broadcast(0));
  }

  // The same weight with its mantissa in [1, 2). Mantissas are positive and normal, or zero.
  CTC_ALIGN_FN ScaledWeight normalized() const {
    constexpr typename Lanes::Bits kMantissaField = (typename Lanes::Bits{1} << Traits::kMantissaBits) - 1;
    const Value one = Lanes::broadcast(1);
    const Value large = Lanes::broadcast(static_cast<Real>(int64_t{1} << Traits::kMantissaBits));  // 2^23 + i: bits | i
    const Value shifted = Lanes::shift_bits_right(mantissa, Traits::kMantissaBits);
    const Value exponent_field = Lanes::subtract(Lanes::join_bits(shifted, large), large);
    const Value moved = Lanes::subtract(exponent_field, Lanes::broadcast(static_cast<Real>(Traits::kBias)));
    const ScaledWeight result = {Lanes::join_bits(Lanes::keep_bits(mantissa, kMantissaField), one),
                                 Lanes::add(exponent, moved)};
    return select(Lanes::exceeds(mantissa, Lanes::broadcast(0)), result, zero());
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
    Value r = x;
    for (const Real part : Traits::kLn2) {
      r = Lanes::subtract(r, Lanes::multiply(n, Lanes::broadcast(part)));
    }
    const Value one = Lanes::broadcast(1);
    Value sum = one;
    for (int i = Traits::kTerms - 1; i > 0; --i) {
      const Value term = Lanes::multiply(Lanes::multiply(sum, r), Lanes::broadcast(1 / static_cast<Real>(i)));
      sum = Lanes::add(term, one);
    }
    const ScaledWeight from_above = select(Lanes::exceeds(Lanes::broadcast(kLargest), x), {sum, n}, zero());
    return select(Lanes::exceeds(x, Lanes::broadcast(-kLargest)), from_above, zero());
  }
};

}  // namespace ctc_align
