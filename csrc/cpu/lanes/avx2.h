// The dictionary of lanes for AVX2: eight floats a register.
#pragma once

#include <immintrin.h>

#include "vector.h"

namespace ctc_align {

template <class Isa>
struct Avx2Lanes : VectorLanes<float, 8, Isa> {
  using Value = __m256;
  using Mask = __m256;
  static constexpr int kTileWords = 4;
  struct Choice {
    __m256 off;  // NaN in the lanes that are off: no number is greater than that, and none less
  };

  CTC_ALIGN_FN static Value load(const float* p) { return _mm256_loadu_ps(p); }
  CTC_ALIGN_FN static void store(float* p, Value v) { _mm256_storeu_ps(p, v); }
  CTC_ALIGN_FN static Value broadcast(float x) { return _mm256_set1_ps(x); }
  CTC_ALIGN_FN static Value add(Value a, Value b) { return _mm256_add_ps(a, b); }
  CTC_ALIGN_FN static Value greater(Value a, Value b) { return _mm256_max_ps(a, b); }  // exactly a > b ? a : b
  CTC_ALIGN_FN static Value greater_where(Choice c, Value a, Value b) { return greater(_mm256_or_ps(a, c.off), b); }
  CTC_ALIGN_FN static Choice choice(uint32_t bits) { return {mask(~bits)}; }
  CTC_ALIGN_FN static Mask exceeds(Value a, Value b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
  CTC_ALIGN_FN static Value select(Mask m, Value yes, Value no) { return _mm256_blendv_ps(no, yes, m); }
  CTC_ALIGN_FN static Value greater_whole(Value a, Value b) {
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  }
  CTC_ALIGN_FN static Mask exceeds_whole(Value a, Value b) {
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  }
  // A vector's rotation serves for itself and for its right neighbour.
  CTC_ALIGN_FN static float last(Value v) { return _mm256_cvtss_f32(rotate(v)); }
  CTC_ALIGN_FN static Value shift_in(Value previous, Value current) {
    return _mm256_blend_ps(rotate(current), rotate(previous), 1);
  }
  CTC_ALIGN_FN static Value shift_in(float edge, Value current) {
    return _mm256_blend_ps(rotate(current), broadcast(edge), 1);
  }
  CTC_ALIGN_FN static Mask mask(uint32_t bits) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_castsi256_ps(
        _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane), lane));
  }

  CTC_ALIGN_FN static void store_couples(float* to, Value a, Value b) {
    const Value low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
    store(to, _mm256_permute2f128_ps(low, high, 0x20));
    store(to + 8, _mm256_permute2f128_ps(low, high, 0x31));
  }
  CTC_ALIGN_FN static void load_couples(const float* from, const int32_t* ids, Value& a, Value& b) {
    const auto side_by_side = [&](int low, int high) __attribute__((always_inline)) {
      const auto two = [&](int lane) __attribute__((always_inline)) {
        return (__m128)Avx2Lanes::load_two_couples(from, ids + lane);
      };
      return _mm256_insertf128_ps(_mm256_castps128_ps256(two(low)), two(high), 1);
    };
    const Value m0 = side_by_side(0, 4), m1 = side_by_side(2, 6);
    a = _mm256_shuffle_ps(m0, m1, 0x88);
    b = _mm256_shuffle_ps(m0, m1, 0xDD);
  }

  // Four columns at a time: loads put rows r and r + 4 side by side, so that nothing crosses the halves.
  CTC_ALIGN_FN static void load_columns(const float* const* rows, index_t begin, Value (&columns)[8]) {
    for (int c = 0; c < 8; c += 4) {
      Value m[4];
      for (int r = 0; r < 4; ++r) {
        m[r] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[r] + begin + c)),
                                    _mm_loadu_ps(rows[r + 4] + begin + c), 1);
      }
      const Value low01 = _mm256_unpacklo_ps(m[0], m[1]), high01 = _mm256_unpackhi_ps(m[0], m[1]);
      const Value low23 = _mm256_unpacklo_ps(m[2], m[3]), high23 = _mm256_unpackhi_ps(m[2], m[3]);
      columns[c] = _mm256_shuffle_ps(low01, low23, 0x44);
      columns[c + 1] = _mm256_shuffle_ps(low01, low23, 0xEE);
      columns[c + 2] = _mm256_shuffle_ps(high01, high23, 0x44);
      columns[c + 3] = _mm256_shuffle_ps(high01, high23, 0xEE);
    }
  }

  CTC_ALIGN_FN static void store_records(RecordWord* word, const PairRecords<Avx2Lanes> (&records)[2]) {
    const auto bits = [](Mask m)
                          __attribute__((always_inline)) { return static_cast<RecordWord>(_mm256_movemask_ps(m)); };
    *word = bits(records[0].from_left) | bits(records[1].from_left) << 8 | bits(records[0].enters) << 16 |
            bits(records[1].enters) << 24;
  }

 private:
  // Up one lane, the last to the first.
  CTC_ALIGN_FN static Value rotate(Value v) {
    return _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(7, 0, 1, 2, 3, 4, 5, 6));
  }
};

}  // namespace ctc_align
