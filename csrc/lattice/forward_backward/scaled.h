// Probabilities of any size: SCALED numbers, mantissa * 2^exponent, the two kept apart.
//
// A sum over paths of probabilities is as small as exp(-100,000), far below any float. The usual way out is to keep
// logarithms, and to pay for every addition with exponentials and a logarithm. Here a number is two Reals instead, a
// mantissa of ordinary size and a whole exponent, and an addition is what a processor does inside its own: move the
// operand of the smaller exponent to the right, and add. That is exact but for one rounding of the mantissa, so a sum of
// any length keeps the relative precision of its type, which a float32 logarithm of size 1000 does not. (Rabiner 1989,
// section V.A, scales all states of a frame by one number; states of a CTC lattice lie too far apart for that.)
//
//   zero          mantissa 0, exponent about kNoExponent: the other operand's exponent always wins
//   a sum         exponent = the greater of the two; who lies more than kShift bits below it counts as if he lay there
//   a product     mantissas multiplied, exponents added
//   normalize()   mantissa back into [1, 2); at least every kFramesToNormalize frames, see forward_backward.h
//
// Exponents are whole numbers in a Real: exact up to 2^24 in float32. Rows are therefore moved by a common number of bits
// now and then, and what has to be exact is the distance of two states of a frame, not their size.
#pragma once

#include "../lattice.h"

namespace ctc_align {

template <class Real>
struct ScaledTraits;
template <>
struct ScaledTraits<float> {
  using Bits = int32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr int kBias = 127;
  static constexpr int kTerms = 8;  // of the exponential series: 0.3466^8 / 8! is below an ulp
  static constexpr float kLn2[] = {0x1.6p-1f, 0x1.7p-8f, 0x1.0bfbe8p-15f};
};
template <>
struct ScaledTraits<double> {
  using Bits = int64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr int kBias = 1023;
  static constexpr int kTerms = 14;
  static constexpr double kLn2[] = {0x1.62e42feep-1, 0x1.a39ef35793c76p-33, 0};
};

// That of zero.
template <class Real>
constexpr Real kNoExponent = -static_cast<Real>(int64_t{1} << 60);

template <class Lanes>
struct Scaled {
  using Real = typename Lanes::Real;
  using Value = typename Lanes::Value;
  using Traits = ScaledTraits<Real>;
  typedef typename Traits::Bits Bits __attribute__((vector_size(Lanes::kWidth * sizeof(Real))));

  static constexpr Real kShift = static_cast<Real>(1 - Traits::kBias);  // down to the smallest normal power of two
  static constexpr Real kMagic = 3 * static_cast<Real>(int64_t{1} << (Traits::kMantissaBits - 1));  // 1.5 * 2^23

  Value mantissa;
  Value exponent;

  // A row keeps `kParts` arrays for a number, `width` apart.
  static constexpr int kParts = 2;
  CTC_ALIGN_FN static Scaled load(const Real* p, index_t width) { return {Lanes::load(p), Lanes::load(p + width)}; }
  CTC_ALIGN_FN void store(Real* p, index_t width) const {
    Lanes::store(p, mantissa);
    Lanes::store(p + width, exponent);
  }
  CTC_ALIGN_FN Scaled weight() const { return *this; }
  CTC_ALIGN_FN Scaled times(Scaled emission, Value) const { return *this * emission; }

  CTC_ALIGN_FN static Scaled zero() { return {Lanes::broadcast(0), Lanes::broadcast(kNoExponent<Real>)}; }

  // 2^n for whole n from kShift to kBias: the low bits of n + kMagic hold n, and become an exponent field.
  CTC_ALIGN_FN static Value power_of_two(Value n) {
    const Value shifted = n + Lanes::broadcast(kMagic + static_cast<Real>(Traits::kBias));
    return (Value)((Bits)shifted << Traits::kMantissaBits);
  }

  CTC_ALIGN_FN friend Scaled operator*(Scaled a, Scaled b) {
    return {a.mantissa * b.mantissa, a.exponent + b.exponent};
  }
  CTC_ALIGN_FN friend Scaled operator+(Scaled a, Scaled b) {
    const Value exponent = Lanes::greater(a.exponent, b.exponent);
    return {a.mantissa_at(exponent) + b.mantissa_at(exponent), exponent};
  }
  // The mantissa that belongs to an exponent at least as great.
  CTC_ALIGN_FN Value mantissa_at(Value greater_exponent) const {
    return mantissa * power_of_two(Lanes::greater(exponent - greater_exponent, Lanes::broadcast(kShift)));
  }
  CTC_ALIGN_FN static Scaled select(typename Lanes::Mask mask, Scaled yes, Scaled no) {
    return {Lanes::select(mask, yes.mantissa, no.mantissa), Lanes::select(mask, yes.exponent, no.exponent)};
  }

  // Its value as a plain Real: to be asked for where it is at most about 1.
  CTC_ALIGN_FN Value plain() const {
    const Value least = Lanes::broadcast(kShift);
    const Value small = mantissa * power_of_two(Lanes::greater(exponent, least));
    return Lanes::select(Lanes::exceeds(exponent, least), small, Lanes::broadcast(0));
  }

  // The same number with its mantissa in [1, 2). Mantissas are positive and normal, or zero.
  CTC_ALIGN_FN Scaled normalized() const {
    constexpr typename Traits::Bits kField = (typename Traits::Bits{1} << Traits::kMantissaBits) - 1;
    const Bits bits = (Bits)mantissa;
    const Value one = Lanes::broadcast(1);
    const Value large = Lanes::broadcast(static_cast<Real>(int64_t{1} << Traits::kMantissaBits));  // 2^23 + i: bits | i
    const Value field = (Value)((bits >> Traits::kMantissaBits) | (Bits)large) - large;
    const Scaled moved = {(Value)((bits & kField) | (Bits)one),
                          exponent + (field - Lanes::broadcast(static_cast<Real>(Traits::kBias)))};
    return select(Lanes::exceeds(mantissa, Lanes::broadcast(0)), moved, zero());
  }

  // exp(x) for |x| below 2^18; whatever is no log-probability of such size, NaN too, gives zero. Cody and Waite's
  // reduction x = n ln 2 + r, |r| <= ln(2) / 2, with ln 2 in parts that are short enough for exact products, and the
  // series of exp(r).
  CTC_ALIGN_FN static Scaled exponential(Value x) {
    constexpr Real kLargest = 1 << 18;
    constexpr Real kLog2E = static_cast<Real>(1.44269504088896340736);
    const Value magic = Lanes::broadcast(kMagic);
    const Value n = (x * Lanes::broadcast(kLog2E) + magic) - magic;
    Value r = x;
    for (const Real part : Traits::kLn2) {
      r = r - n * Lanes::broadcast(part);
    }
    Value sum = Lanes::broadcast(1);
    for (int i = Traits::kTerms - 1; i > 0; --i) {
      sum = sum * r * Lanes::broadcast(1 / static_cast<Real>(i)) + Lanes::broadcast(1);
    }
    const Scaled result = {sum, n};
    const Scaled from_above = select(Lanes::exceeds(Lanes::broadcast(kLargest), x), result, zero());
    return select(Lanes::exceeds(x, Lanes::broadcast(-kLargest)), from_above, zero());
  }
};

// A sum over paths, and the MEAN over the same paths, weighted by their probabilities, of a quantity that each path
// collects on its way: gains. (The first-order expectation semiring of Li and Eisner 2009, with the mean in place of the
// unnormalised expectation, so that nothing but the weight needs an exponent.)
template <class Lanes>
struct Expected {
  using Real = typename Lanes::Real;
  using Value = typename Lanes::Value;
  using Number = Scaled<Lanes>;
  static constexpr int kParts = 3;

  Number paths;
  Value mean;

  CTC_ALIGN_FN static Expected zero() { return {Number::zero(), Lanes::broadcast(0)}; }
  CTC_ALIGN_FN static Expected load(const Real* p, index_t width) {
    return {Number::load(p, width), Lanes::load(p + 2 * width)};
  }
  CTC_ALIGN_FN void store(Real* p, index_t width) const {
    paths.store(p, width);
    Lanes::store(p + 2 * width, mean);
  }
  CTC_ALIGN_FN Number weight() const { return paths; }
  CTC_ALIGN_FN Expected times(Number emission, Value gain) const { return {paths * emission, mean + gain}; }

  CTC_ALIGN_FN friend Expected operator+(Expected a, Expected b) {
    const Value exponent = Lanes::greater(a.paths.exponent, b.paths.exponent);
    const Value from_a = a.paths.mantissa_at(exponent), from_b = b.paths.mantissa_at(exponent);
    const Value sum = from_a + from_b;
    const Value mean = (a.mean * from_a + b.mean * from_b) / sum;
    return {{sum, exponent}, Lanes::select(Lanes::exceeds(sum, Lanes::broadcast(0)), mean, Lanes::broadcast(0))};
  }
  CTC_ALIGN_FN static Expected select(typename Lanes::Mask mask, Expected yes, Expected no) {
    return {Number::select(mask, yes.paths, no.paths), Lanes::select(mask, yes.mean, no.mean)};
  }
  CTC_ALIGN_FN Expected normalized() const { return {paths.normalized(), mean}; }
};

}  // namespace ctc_align
