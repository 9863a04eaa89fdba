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

  CTC_ALIGN_FN static Value load(const float* p) { return _mm256_loadu_ps(p); }
  CTC_ALIGN_FN static void store(float* p, Value v) { _mm256_storeu_ps(p, v); }
  CTC_ALIGN_FN static Value broadcast(float x) { return _mm256_set1_ps(x); }
  CTC_ALIGN_FN static Value add(Value a, Value b) { return _mm256_add_ps(a, b); }
  CTC_ALIGN_FN static Value greater(Value a, Value b) { return _mm256_max_ps(a, b); }  // exactly a > b ? a : b
  CTC_ALIGN_FN static Mask exceeds(Value a, Value b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
  CTC_ALIGN_FN static Value select(Mask m, Value yes, Value no) { return _mm256_blendv_ps(no, yes, m); }
  CTC_ALIGN_FN static Value greater_whole(Value a, Value b) {
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  }
  CTC_ALIGN_FN static Mask exceeds_whole(Value a, Value b) {
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  }
  CTC_ALIGN_FN static float last(Value v) {
    const __m128 high = _mm256_extractf128_ps(v, 1);
    return _mm_cvtss_f32(_mm_shuffle_ps(high, high, 3));
  }
  CTC_ALIGN_FN static Value shift_in(Value previous, Value current) {
    const __m256 middle = _mm256_permute2f128_ps(previous, current, 0x21);  // previous.high, current.low
    return _mm256_castsi256_ps(
        _mm256_alignr_epi8(_mm256_castps_si256(current), _mm256_castps_si256(middle), 12));  // in each half
  }
  CTC_ALIGN_FN static Mask mask(uint32_t bits) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_castsi256_ps(
        _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane), lane));
  }

  // 8 x 8: pairs of rows, then fours, inside 128-bit halves; then the halves.
  CTC_ALIGN_FN static void transpose(Value (&m)[8]) {
    Value pairs[8], fours[8];
    for (int r = 0; r < 8; r += 2) {
      pairs[r] = _mm256_unpacklo_ps(m[r], m[r + 1]);
      pairs[r + 1] = _mm256_unpackhi_ps(m[r], m[r + 1]);
    }
    for (int r = 0; r < 8; r += 4) {
      fours[r] = _mm256_shuffle_ps(pairs[r], pairs[r + 2], 0x44);
      fours[r + 1] = _mm256_shuffle_ps(pairs[r], pairs[r + 2], 0xEE);
      fours[r + 2] = _mm256_shuffle_ps(pairs[r + 1], pairs[r + 3], 0x44);
      fours[r + 3] = _mm256_shuffle_ps(pairs[r + 1], pairs[r + 3], 0xEE);
    }
    for (int r = 0; r < 4; ++r) {
      m[r] = _mm256_permute2f128_ps(fours[r], fours[r + 4], 0x20);
      m[r + 4] = _mm256_permute2f128_ps(fours[r], fours[r + 4], 0x31);
    }
  }

  // Four masks of eight lanes, narrowed to bytes: bit i of the word is the sign of byte i.
  CTC_ALIGN_FN static void store_records(RecordWord* word, const PairRecords<Avx2Lanes> (&records)[2]) {
    const __m256i left = _mm256_packs_epi32(_mm256_castps_si256(records[0].from_left),
                                            _mm256_castps_si256(records[1].from_left));  // 0-3 8-11 | 4-7 12-15
    const __m256i enters =
        _mm256_packs_epi32(_mm256_castps_si256(records[0].enters), _mm256_castps_si256(records[1].enters));
    const __m256i bytes = _mm256_packs_epi16(left, enters);  // fours: l0 l2 e0 e2 | l1 l3 e1 e3
    const __m256i in_order = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    *word = static_cast<RecordWord>(_mm256_movemask_epi8(in_order));
  }
};

}  // namespace ctc_align
