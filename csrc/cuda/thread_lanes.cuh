// A thread is a row of one lane: the dictionary of lanes that pair_step.h speaks.
#pragma once

#include <type_traits>

#include "device.cuh"

namespace ctc_align {

// A statement that stays true or false from frame to frame, kept as bits, all ones or none, and chosen by with logic.
// With predicates the compiler orders the comparisons of a frame less tightly (measured: 5 % of the sweep).
template <DeviceWords Device>
struct Choice {
  uint32_t bits;

  CTC_ALIGN_FN static Choice of(bool holds) { return {Device::opaque(holds ? ~uint32_t{0} : uint32_t{0})}; }
  CTC_ALIGN_FN bool holds() const { return bits != 0; }
  CTC_ALIGN_FN uint32_t select(uint32_t yes, uint32_t no) const { return (yes & bits) | (no & ~bits); }
  CTC_ALIGN_FN float select(float yes, float no) const {
    return same_bits<float>(select(same_bits<uint32_t>(yes), same_bits<uint32_t>(no)));
  }
  CTC_ALIGN_FN double select(double yes, double no) const {
    const uint64_t all = static_cast<uint64_t>(bits) << 32 | bits;
    return same_bits<double>((same_bits<uint64_t>(yes) & all) | (same_bits<uint64_t>(no) & ~all));
  }
};

template <DeviceWords Device, class RealType>
struct ThreadLanes {
  using Real = RealType;
  using Value = Real;
  using Mask = bool;
  using Bits = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;
  CTC_ALIGN_FN static bool exceeds(Real a, Real b) { return a > b; }
  CTC_ALIGN_FN static Real greater(Real a, Real b) { return Device::greater(a, b); }
  template <class Where>
  CTC_ALIGN_FN static Real greater_where(Where where, Real a, Real b) {
    return select(where, greater(a, b), b);
  }
  CTC_ALIGN_FN static Real select(Choice<Device> m, Real yes, Real no) { return m.select(yes, no); }
  CTC_ALIGN_FN static Real select(bool m, Real yes, Real no) { return m ? yes : no; }
  CTC_ALIGN_FN static Real add(Real a, Real b) { return a + b; }

  // The words of sums (SumLanes in lattice/lanes.h).
  CTC_ALIGN_FN static Real broadcast(Real x) { return x; }
  CTC_ALIGN_FN static Real subtract(Real a, Real b) { return a - b; }
  CTC_ALIGN_FN static Real multiply(Real a, Real b) { return a * b; }
  CTC_ALIGN_FN static Real divide(Real a, Real b) { return a / b; }
  CTC_ALIGN_FN static Real shift_bits_left(Real v, int n) { return as_real(static_cast<UnsignedBits>(whole(v)) << n); }
  CTC_ALIGN_FN static Real shift_bits_right(Real v, int n) { return as_real(whole(v) >> n); }
  CTC_ALIGN_FN static Real keep_bits(Real v, Bits bits) { return as_real(whole(v) & bits); }
  CTC_ALIGN_FN static Real join_bits(Real a, Real b) { return as_real(whole(a) | whole(b)); }
  CTC_ALIGN_FN static Real broadcast_whole(Bits n) { return as_real(n); }
  CTC_ALIGN_FN static Real add_whole(Real a, Real b) { return as_real(whole(a) + whole(b)); }
  CTC_ALIGN_FN static Real subtract_whole(Real a, Real b) { return as_real(whole(a) - whole(b)); }
  CTC_ALIGN_FN static Real greater_whole(Real a, Real b) { return as_real(larger(whole(a), whole(b))); }
  CTC_ALIGN_FN static bool exceeds_whole(Real a, Real b) { return whole(a) > whole(b); }

 private:
  using UnsignedBits = std::make_unsigned_t<Bits>;
  CTC_ALIGN_FN static Bits whole(Real v) { return same_bits<Bits>(v); }
  template <class Integer>
  CTC_ALIGN_FN static Real as_real(Integer bits) {
    return same_bits<Real>(bits);
  }
};

}  // namespace ctc_align
