// A sum over paths, and the MEAN over the same paths, weighted by their probabilities, of a quantity that each path
// collects on its way: its PATH VALUES. (The first-order expectation semiring of Li and Eisner 2009, with the mean in
// place of the unnormalised expectation, so that nothing but the weight needs an exponent.)
#pragma once

#include "scaled.h"

namespace ctc_align {

template <class Lanes>
struct ExpectationWeight {
  using Real = typename Lanes::Real;
  using Value = typename Lanes::Value;
  using Paths = ScaledWeight<Lanes>;
  static constexpr index_t kPlanes = 3;
  static constexpr bool kHasMean = true;

  Paths paths;
  Value mean;

  CTC_ALIGN_FN static ExpectationWeight zero() { return {Paths::zero(), Lanes::broadcast(0)}; }
  CTC_ALIGN_FN static ExpectationWeight load(const Real* p, index_t width) {
    return {Paths::load(p, width), Lanes::load(p + 2 * width)};
  }
  CTC_ALIGN_FN void store(Real* p, index_t width) const {
    paths.store(p, width);
    Lanes::store(p + 2 * width, mean);
  }
  CTC_ALIGN_FN Paths scaled() const { return paths; }
  CTC_ALIGN_FN ExpectationWeight times(Paths emission, Value path_value) const {
    const Paths product = paths * emission;
    const Value zero = Lanes::broadcast(0);  // the mean of no paths: an infinite one would make a sum NaN
    return {product, Lanes::select(Lanes::exceeds(product.mantissa, zero), Lanes::add(mean, path_value), zero)};
  }

  CTC_ALIGN_FN friend ExpectationWeight operator+(ExpectationWeight a, ExpectationWeight b) {
    const Value exponent = Lanes::greater_whole(a.paths.exponent, b.paths.exponent);
    const Value from_a = a.paths.mantissa_at(exponent), from_b = b.paths.mantissa_at(exponent);
    const Value sum = Lanes::add(from_a, from_b);
    const Value both = Lanes::add(Lanes::multiply(a.mean, from_a), Lanes::multiply(b.mean, from_b));
    const Value zero = Lanes::broadcast(0);
    return {{sum, exponent}, Lanes::select(Lanes::exceeds(sum, zero), Lanes::divide(both, sum), zero)};
  }
  CTC_ALIGN_FN static ExpectationWeight select(typename Lanes::Mask mask, ExpectationWeight yes, ExpectationWeight no) {
    return {Paths::select(mask, yes.paths, no.paths), Lanes::select(mask, yes.mean, no.mean)};
  }
  CTC_ALIGN_FN ExpectationWeight normalized() const { return {paths.normalized(), mean}; }
};

}  // namespace ctc_align
