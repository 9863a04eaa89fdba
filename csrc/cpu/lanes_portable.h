// The dictionary of lanes that compiles everywhere: 128-bit vectors of the compiler's own (GCC and Clang).
//
// On x86-64 they become SSE2, on aarch64 NEON. `exceeds` and `greater` are plain '>' in IEEE order: false with a NaN.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../lattice/pair_step.h"
#include "../lattice/records.h"

namespace ctc_align {

template <class RealType>
struct PortableLanes {
  using Real = RealType;
  static constexpr int kWidth = 4;
  static constexpr int kTileWords = 1;  // 8 vectors of alphas: what fits 16 registers with room to work

  using Lane = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;
  typedef Real Value __attribute__((vector_size(kWidth * sizeof(Real))));
  typedef Lane Mask __attribute__((vector_size(kWidth * sizeof(Real))));

  CTC_ALIGN_FN static Value load(const Real* p) {
    Value v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  CTC_ALIGN_FN static void store(Real* p, Value v) { __builtin_memcpy(p, &v, sizeof v); }
  CTC_ALIGN_FN static Value broadcast(Real x) { return Value{x, x, x, x}; }
  CTC_ALIGN_FN static Value lookup(const Real* row, const int32_t* i) {
    return Value{row[i[0]], row[i[1]], row[i[2]], row[i[3]]};
  }
  CTC_ALIGN_FN static Value add(Value a, Value b) { return a + b; }
  CTC_ALIGN_FN static Value greater(Value a, Value b) { return a > b ? a : b; }
  CTC_ALIGN_FN static Mask exceeds(Value a, Value b) { return a > b; }
  CTC_ALIGN_FN static Value select(Mask m, Value yes, Value no) { return m ? yes : no; }
  CTC_ALIGN_FN static Real last(Value v) { return v[kWidth - 1]; }

  // `current` moved up one lane; the last lane of `previous` enters at lane 0.
  CTC_ALIGN_FN static Value shift_in(Value previous, Value current) {
    return Value{previous[3], current[0], current[1], current[2]};
  }

  // Lane i is on where bit i is set.
  CTC_ALIGN_FN static Mask mask(uint32_t bits) {
    const Lane b = static_cast<Lane>(bits);
    return (Mask{b, b, b, b} & Mask{1, 2, 4, 8}) != 0;
  }

  // The records of 16 pairs as one word: each lane contributes its own bit, then the lanes are joined once.
  CTC_ALIGN_FN static RecordWord pack(const PairRecords<PortableLanes> (&records)[kPairsPerWord / kWidth]) {
    Mask joined = {0, 0, 0, 0};
    for (int u = 0; u < kPairsPerWord / kWidth; ++u) {
      const Mask bits = Mask{1, 2, 4, 8} << (u * kWidth);
      joined |= (records[u].from_left & bits) | (records[u].enters & (bits << kPairsPerWord));
    }
    return static_cast<RecordWord>(joined[0] | joined[1] | joined[2] | joined[3]);
  }
};

}  // namespace ctc_align
