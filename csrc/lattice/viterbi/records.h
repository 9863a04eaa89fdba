// Where the records of a lattice are kept on the CPU: rows as long as the band, one after the other.
//
// A word holds the records of 16 neighbouring pairs at one frame; frame t's row holds the words that its band touches:
//
//     word:   bit 0..15  from_left of pairs 16w .. 16w+15        bit 16..31  enters of the same pairs
//     row t:  words first(t)/16 .. last(t)/16
//
//     | row 1 | row 2 | row 3  | ...      begin(1) = 0, begin(t+1) = begin(t) + length of row t
//
// (Frame 0 has no predecessors and no row. A piece of the frames keeps its own rows only, see ladder.h.)
// Offsets are exact for every T >= L, in 64 bits: 43,000 frames of 25,000 labels take 112 MB and pass 2^31 states.
#pragma once

#include "../lattice.h"

namespace ctc_align {

using RecordWord = uint32_t;
constexpr int kPairsPerWord = 16;

struct RecordRows {
  Band band;

  CTC_ALIGN_FN index_t first_word(index_t t) const { return band.first(t) / kPairsPerWord; }
  CTC_ALIGN_FN index_t last_word(index_t t) const { return band.last(t) / kPairsPerWord; }

  // The first frame after t whose row begins or ends with another word than frame t's.
  CTC_ALIGN_FN index_t next_change(index_t t) const {
    const index_t first_changes = (first_word(t) + 1) * kPairsPerWord + band.frames - band.labels;
    const index_t last_changes = (last_word(t) + 1) * kPairsPerWord;
    return last_changes <= band.labels ? smaller(first_changes, last_changes) : first_changes;
  }

  // The last frame before t of which the same is true; -1: there is none.
  CTC_ALIGN_FN index_t last_change(index_t t) const {
    const index_t last_changed = last_word(t) * kPairsPerWord - 1;
    const index_t first = first_word(t);
    return first > 0 ? larger(last_changed, first * kPairsPerWord - 1 + band.frames - band.labels) : last_changed;
  }

  // Offset of frame t's row, 1 <= t <= band.frames + 1.
  CTC_ALIGN_FN index_t begin(index_t t) const {
    const index_t rising = smaller(t, band.labels + 1);  // frames 0..rising-1 have last(t) = t
    const index_t slack = band.frames - band.labels;     // frames slack.. have first(t) = t - slack
    const index_t last_words = sum_of_words(rising) + (t - rising) * (band.labels / kPairsPerWord);
    const index_t first_words = sum_of_words(larger<index_t>(0, t - slack));
    return last_words - first_words + t - 1;  // a row has last - first + 1 words; frame 0 would have one word
  }

  // Words of the rows of frames from+1 .. to.
  CTC_ALIGN_FN index_t words(index_t from, index_t to) const { return begin(to + 1) - begin(from + 1); }

 private:
  // sum of i / 16 over i = 0..n-1
  CTC_ALIGN_FN static index_t sum_of_words(index_t n) {
    const index_t full = n / kPairsPerWord;
    return kPairsPerWord * (full * (full - 1) / 2) + full * (n % kPairsPerWord);
  }
};

CTC_ALIGN_FN Record read_record(RecordWord word, index_t pair) {
  const unsigned bit = static_cast<unsigned>(pair) % kPairsPerWord;
  return {((word >> bit) & 1) != 0, ((word >> (bit + kPairsPerWord)) & 1) != 0};
}

}  // namespace ctc_align
