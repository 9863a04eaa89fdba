// The dictionary of lanes (lattice/lanes.h) that compiles everywhere: vectors of the compiler's own (GCC and Clang).
//
// Four floats become SSE2 on x86-64 and NEON on aarch64. The other dictionaries start from this one and replace the
// words that their instruction set says better.
// Isa only tells instantiations of different translation units apart: the linker must not take one for the other.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "../../lattice/viterbi/pair_step.h"
#include "../../lattice/viterbi/records.h"

namespace ctc_align {

// The words that are operators of the compiler, at any width.
template <class RealType, int kLanes, class Isa>
struct VectorOperators {
  using Real = RealType;
  using Bits = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;
  static constexpr int kWidth = kLanes;
  typedef Real Value __attribute__((vector_size(kWidth * sizeof(Real))));
  typedef Bits Mask __attribute__((vector_size(kWidth * sizeof(Real))));

  CTC_ALIGN_FN static Value load(const Real* p) {
    Value v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  CTC_ALIGN_FN static void store(Real* p, Value v) { __builtin_memcpy(p, &v, sizeof v); }
  CTC_ALIGN_FN static Value broadcast(Real x) { return x - Value{}; }  // x - 0 is x, -0 too
  CTC_ALIGN_FN static Value add(Value a, Value b) { return a + b; }
  CTC_ALIGN_FN static Value subtract(Value a, Value b) { return a - b; }
  CTC_ALIGN_FN static Value multiply(Value a, Value b) { return a * b; }
  CTC_ALIGN_FN static Value divide(Value a, Value b) { return a / b; }
  CTC_ALIGN_FN static Value greater(Value a, Value b) { return a > b ? a : b; }
  CTC_ALIGN_FN static Value greater_where(Mask m, Value a, Value b) { return (m & (a > b)) ? a : b; }
  CTC_ALIGN_FN static Mask exceeds(Value a, Value b) { return a > b; }
  CTC_ALIGN_FN static Value select(Mask m, Value yes, Value no) { return m ? yes : no; }
  CTC_ALIGN_FN static Value shift_bits_left(Value v, int n) { return (Value)((Mask)v << n); }
  CTC_ALIGN_FN static Value shift_bits_right(Value v, int n) { return (Value)((Mask)v >> n); }
  CTC_ALIGN_FN static Value keep_bits(Value v, Bits bits) { return (Value)((Mask)v & bits); }
  CTC_ALIGN_FN static Value join_bits(Value a, Value b) { return (Value)((Mask)a | (Mask)b); }
  CTC_ALIGN_FN static Value broadcast_whole(Bits n) { return (Value)(n - Mask{}); }
  CTC_ALIGN_FN static Value add_whole(Value a, Value b) { return (Value)((Mask)a + (Mask)b); }
  CTC_ALIGN_FN static Value subtract_whole(Value a, Value b) { return (Value)((Mask)a - (Mask)b); }
  CTC_ALIGN_FN static Value greater_whole(Value a, Value b) { return (Value)((Mask)a > (Mask)b ? (Mask)a : (Mask)b); }
  CTC_ALIGN_FN static Mask exceeds_whole(Value a, Value b) { return (Mask)a > (Mask)b; }

 protected:
  // Two couples of floats (load_couples): what the next two ids name.
  typedef int64_t TwoCouples __attribute__((vector_size(16)));
  CTC_ALIGN_FN static TwoCouples load_two_couples(const Real* from, const int32_t* ids) {
    int64_t bits[2];
    static_assert(sizeof bits[0] == 2 * sizeof(Real));
    for (int i = 0; i < 2; ++i) {
      __builtin_memcpy(&bits[i], from + 2 * static_cast<index_t>(ids[i]), sizeof bits[i]);
    }
    return TwoCouples{bits[0], bits[1]};
  }
};

template <class RealType, int kLanes, class Isa>
struct VectorLanes : VectorOperators<RealType, kLanes, Isa> {
  using Operators = VectorOperators<RealType, kLanes, Isa>;
  using Operators::kWidth;
  using typename Operators::Bits;
  using typename Operators::Mask;
  using typename Operators::Real;
  using typename Operators::Value;
  using Choice = Mask;
  static constexpr int kTileWords = kLanes / 4;  // 4 vectors a word, or 4 words: 8 or 16 vectors of alphas
  static constexpr index_t kTableClasses = 0;    // no look-up in registers

  CTC_ALIGN_FN static Real last(Value v) { return v[kWidth - 1]; }
  CTC_ALIGN_FN static Value shift_in(Real edge, Value current) { return shift_in(Operators::broadcast(edge), current); }
  CTC_ALIGN_FN static Value shift_in(Value previous, Value current) {
    if constexpr (kWidth == 4) {
      return shuffle<3, 4, 5, 6>(previous, current);
    } else {
      return shuffle<7, 8, 9, 10, 11, 12, 13, 14>(previous, current);
    }
  }

  CTC_ALIGN_FN static void store_couples(Real* to, Value a, Value b) {
    if constexpr (kWidth == 4) {
      Operators::store(to, shuffle<0, 4, 1, 5>(a, b));
      Operators::store(to + 4, shuffle<2, 6, 3, 7>(a, b));
    } else {
      Operators::store(to, shuffle<0, 8, 1, 9, 2, 10, 3, 11>(a, b));
      Operators::store(to + 8, shuffle<4, 12, 5, 13, 6, 14, 7, 15>(a, b));
    }
  }
  CTC_ALIGN_FN static void load_couples(const Real* from, const int32_t* ids, Value& a, Value& b) {
    if constexpr (kWidth == 4 && sizeof(Real) == 4) {
      const auto m0 = (Value)Operators::load_two_couples(from, ids);
      const auto m1 = (Value)Operators::load_two_couples(from, ids + 2);
      a = shuffle<0, 2, 4, 6>(m0, m1);
      b = shuffle<1, 3, 5, 7>(m0, m1);
    } else {
      const auto each_lane = [&]<int... l>(std::integer_sequence<int, l...>) __attribute__((always_inline)) {
        a = Value{from[2 * static_cast<index_t>(ids[l])]...};
        b = Value{from[2 * static_cast<index_t>(ids[l]) + 1]...};
      };
      each_lane(std::make_integer_sequence<int, kWidth>());
    }
  }

  CTC_ALIGN_FN static Mask mask(uint32_t bits) {
    const Bits b = static_cast<Bits>(bits);
    return ((b - Mask{}) & bit_of_lane()) != 0;
  }

  CTC_ALIGN_FN static Choice choice(uint32_t bits) { return mask(bits); }

  CTC_ALIGN_FN static void load_columns(const Real* const* rows, index_t begin, Value (&columns)[kWidth]) {
    for (int r = 0; r < kWidth; ++r) {
      columns[r] = Operators::load(rows[r] + begin);
    }
    transpose(columns);
  }

  // Each lane contributes its own bit, then the lanes are joined once.
  CTC_ALIGN_FN static void store_records(RecordWord* word, const PairRecords<VectorLanes> (&records)[16 / kLanes]) {
    Mask joined = {};
    for (int u = 0; u < kPairsPerWord / kWidth; ++u) {
      const Mask bits = bit_of_lane() << (u * kWidth);
      joined |= (records[u].from_left & bits) | (records[u].enters & (bits << kPairsPerWord));
    }
    RecordWord all = 0;
    for (int l = 0; l < kWidth; ++l) {
      all |= static_cast<RecordWord>(joined[l]);
    }
    *word = all;
  }

 private:
  // Turns a square about its diagonal: log2(kWidth) rounds of a perfect shuffle of the rows.
  CTC_ALIGN_FN static void transpose(Value (&square)[kWidth]) {
    for (int round = 1; round < kWidth; round *= 2) {
      Value next[kWidth];
      for (int r = 0; r < kWidth / 2; ++r) {
        const Value a = square[r], b = square[r + kWidth / 2];
        if constexpr (kWidth == 4) {
          next[2 * r] = shuffle<0, 4, 1, 5>(a, b);
          next[2 * r + 1] = shuffle<2, 6, 3, 7>(a, b);
        } else {
          next[2 * r] = shuffle<0, 8, 1, 9, 2, 10, 3, 11>(a, b);
          next[2 * r + 1] = shuffle<4, 12, 5, 13, 6, 14, 7, 15>(a, b);
        }
      }
      for (int r = 0; r < kWidth; ++r) {
        square[r] = next[r];
      }
    }
  }

  // Picks lanes by kSources: lanes of `a` are counted from 0, those of `b` after them.
  template <int... kSources>
  CTC_ALIGN_FN static Value shuffle(Value a, Value b) {
#if __has_builtin(__builtin_shufflevector)
    return __builtin_shufflevector(a, b, kSources...);
#else  // GCC 11
    return __builtin_shuffle(a, b, Mask{kSources...});
#endif
  }

  CTC_ALIGN_FN static Mask bit_of_lane() {
    if constexpr (kWidth == 4) {
      return Mask{1, 2, 4, 8};
    } else {
      return Mask{1, 2, 4, 8, 16, 32, 64, 128};
    }
  }
};

}  // namespace ctc_align
