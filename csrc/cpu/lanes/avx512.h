// The dictionary of lanes for AVX-512 (F, BW and DQ): sixteen floats a register, masks in registers of their own.
#pragma once

#include <immintrin.h>

#include "vector.h"

namespace ctc_align {

template <class Isa>
struct Avx512Lanes : VectorOperators<float, 16, Isa> {
  using Value = __m512;
  using Mask = __mmask16;
  using Choice = __mmask16;
  using Index = __m512i;
  static constexpr int kTileWords = 8;  // 16 of 32 registers hold alphas
  static constexpr index_t kTableClasses = 32;

  CTC_ALIGN_FN static Value load(const float* p) { return _mm512_loadu_ps(p); }
  CTC_ALIGN_FN static void store(float* p, Value v) { _mm512_storeu_ps(p, v); }
  CTC_ALIGN_FN static Value broadcast(float x) { return _mm512_set1_ps(x); }
  CTC_ALIGN_FN static Value add(Value a, Value b) { return _mm512_add_ps(a, b); }
  CTC_ALIGN_FN static Value greater(Value a, Value b) { return _mm512_max_ps(a, b); }  // exactly a > b ? a : b
  CTC_ALIGN_FN static Value greater_where(Mask m, Value a, Value b) { return _mm512_mask_max_ps(b, m, a, b); }
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
  CTC_ALIGN_FN static Value shift_in(float edge, Value current) { return shift_in(broadcast(edge), current); }
  CTC_ALIGN_FN static void store_couples(float* to, Value a, Value b) {
    const __m512i ids = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    store(to, _mm512_permutex2var_ps(a, ids, b));
    store(to + 16, _mm512_permutex2var_ps(a, _mm512_add_epi32(ids, _mm512_set1_epi32(8)), b));
  }
  CTC_ALIGN_FN static void load_couples(const float* from, const int32_t* ids, Value& a, Value& b) {
    Value m[2];
    for (int i = 0; i < 2; ++i) {
      const auto quarter = [&](int q) __attribute__((always_inline)) {
        return (__m128)Avx512Lanes::load_two_couples(from, ids + 4 * q + 2 * i);
      };
      m[i] = _mm512_castps128_ps512(quarter(0));
      m[i] = _mm512_insertf32x4(m[i], quarter(1), 1);
      m[i] = _mm512_insertf32x4(m[i], quarter(2), 2);
      m[i] = _mm512_insertf32x4(m[i], quarter(3), 3);
    }
    a = _mm512_shuffle_ps(m[0], m[1], 0x88);
    b = _mm512_shuffle_ps(m[0], m[1], 0xDD);
  }
  CTC_ALIGN_FN static Choice choice(uint32_t bits) { return static_cast<Choice>(bits); }
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

  // Four columns at a time: loads put rows r, r + 4, r + 8, r + 12 side by side, so that nothing crosses the quarters.
  CTC_ALIGN_FN static void load_columns(const float* const* rows, index_t begin, Value (&columns)[16]) {
    for (index_t c = 0; c < 16; c += 4) {
      Value m[4];
      for (int r = 0; r < 4; ++r) {
        const auto quarter = [&](int q)
                                 __attribute__((always_inline)) { return _mm_loadu_ps(rows[r + 4 * q] + begin + c); };
        m[r] = _mm512_castps128_ps512(quarter(0));
        m[r] = _mm512_mask_broadcast_f32x4(m[r], 0x00F0, quarter(1));
        m[r] = _mm512_mask_broadcast_f32x4(m[r], 0x0F00, quarter(2));
        m[r] = _mm512_mask_broadcast_f32x4(m[r], 0xF000, quarter(3));
      }
      const Value low01 = _mm512_unpacklo_ps(m[0], m[1]), high01 = _mm512_unpackhi_ps(m[0], m[1]);
      const Value low23 = _mm512_unpacklo_ps(m[2], m[3]), high23 = _mm512_unpackhi_ps(m[2], m[3]);
      columns[c] = _mm512_shuffle_ps(low01, low23, 0x44);
      columns[c + 1] = _mm512_shuffle_ps(low01, low23, 0xEE);
      columns[c + 2] = _mm512_shuffle_ps(high01, high23, 0x44);
      columns[c + 3] = _mm512_shuffle_ps(high01, high23, 0xEE);
    }
  }

  CTC_ALIGN_FN static void store_records(RecordWord* word, const PairRecords<Avx512Lanes> (&records)[1]) {
    // In assembler: GCC would collect the words of a tile in a vector first, with shuffles.
    asm("kmovd %1, %0" : "=m"(*word) : "k"(_mm512_kunpackw(records[0].enters, records[0].from_left)));
  }
};

}  // namespace ctc_align
