// The dictionary of lanes for AVX-512 (F, BW and DQ): sixteen floats a register, masks in registers of their own.
#pragma once

#include <immintrin.h>

#include "vector.h"

namespace ctc_align {

template <class Isa>
struct Avx512Lanes : VectorOperators<float, 16, Isa> {
  using Value = __m512;
  using Mask = __mmask16;
  using Index = __m512i;
  static constexpr int kTileWords = 8;  // 16 of 32 registers hold alphas
  static constexpr index_t kTableClasses = 32;

  CTC_ALIGN_FN static Value load(const float* p) { return _mm512_loadu_ps(p); }
  CTC_ALIGN_FN static void store(float* p, Value v) { _mm512_storeu_ps(p, v); }
  CTC_ALIGN_FN static Value broadcast(float x) { return _mm512_set1_ps(x); }
  CTC_ALIGN_FN static Value add(Value a, Value b) { return _mm512_add_ps(a, b); }
  CTC_ALIGN_FN static Value greater(Value a, Value b) { return _mm512_max_ps(a, b); }  // exactly a > b ? a : b
  CTC_ALIGN_FN static Mask exceeds(Value a, Value b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  CTC_ALIGN_FN static Value select(Mask m, Value yes, Value no) { return _mm512_mask_mov_ps(no, m, yes); }
  CTC_ALIGN_FN static Value greater_whole(Value a, Value b) {
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  }
  CTC_ALIGN_FN static Mask exceeds_whole(Value a, Value b) {
    return _mm512_cmpgt_epi32_mask(_mm512_castps_si512(a), _mm512_castps_si512(b));
  }
  CTC_ALIGN_FN static float last(Value v) { return _mm512_cvtss_f32(shift_in(v, v)); }
  CTC_ALIGN_FN static Value shift_in(Value previous, Value current) {
    return _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(current), _mm512_castps_si512(previous), 15));
  }
  CTC_ALIGN_FN static Mask mask(uint32_t bits) { return static_cast<Mask>(bits); }

  // 32 classes in two registers: one permutation looks up 16 of them.
  struct Table {
    Value low, high;
  };
  CTC_ALIGN_FN static Index load_index(const int32_t* p) { return _mm512_loadu_si512(p); }
  CTC_ALIGN_FN static Table load_table(const float* row) { return {load(row), load(row + 16)}; }
  CTC_ALIGN_FN static Value look_up(const Table& table, Index ids) {
    return _mm512_permutex2var_ps(table.low, ids, table.high);
  }

  // 16 x 16: pairs of rows, then fours, inside 128-bit quarters; then the quarters, in two rounds.
  CTC_ALIGN_FN static void transpose(Value (&m)[16]) {
    Value pairs[16], fours[16], halves[16];
    for (int r = 0; r < 16; r += 2) {
      pairs[r] = _mm512_unpacklo_ps(m[r], m[r + 1]);
      pairs[r + 1] = _mm512_unpackhi_ps(m[r], m[r + 1]);
    }
    for (int r = 0; r < 16; r += 4) {  // fours[r + i]: element i of each quarter, of rows r..r+3
      fours[r] = _mm512_shuffle_ps(pairs[r], pairs[r + 2], 0x44);
      fours[r + 1] = _mm512_shuffle_ps(pairs[r], pairs[r + 2], 0xEE);
      fours[r + 2] = _mm512_shuffle_ps(pairs[r + 1], pairs[r + 3], 0x44);
      fours[r + 3] = _mm512_shuffle_ps(pairs[r + 1], pairs[r + 3], 0xEE);
    }
    for (int i = 0; i < 4; ++i) {
      halves[i] = _mm512_shuffle_f32x4(fours[i], fours[i + 4], 0x88);           // quarters 0 2 of rows 0-3, of 4-7
      halves[i + 4] = _mm512_shuffle_f32x4(fours[i], fours[i + 4], 0xDD);       // quarters 1 3
      halves[i + 8] = _mm512_shuffle_f32x4(fours[i + 8], fours[i + 12], 0x88);  // of rows 8-11, of 12-15
      halves[i + 12] = _mm512_shuffle_f32x4(fours[i + 8], fours[i + 12], 0xDD);
    }
    for (int i = 0; i < 4; ++i) {
      m[i] = _mm512_shuffle_f32x4(halves[i], halves[i + 8], 0x88);
      m[i + 4] = _mm512_shuffle_f32x4(halves[i + 4], halves[i + 12], 0x88);
      m[i + 8] = _mm512_shuffle_f32x4(halves[i], halves[i + 8], 0xDD);
      m[i + 12] = _mm512_shuffle_f32x4(halves[i + 4], halves[i + 12], 0xDD);
    }
  }

  CTC_ALIGN_FN static void store_records(RecordWord* word, const PairRecords<Avx512Lanes> (&records)[1]) {
    _store_mask32(word, _mm512_kunpackw(records[0].enters, records[0].from_left));
  }
};

}  // namespace ctc_align
