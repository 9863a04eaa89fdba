// The walk back along the records of some frames, from the best path's state at their end to its state at their start.
#pragma once

#include "../lattice.h"
#include "records.h"

namespace ctc_align {

// Calls visit(t, state) for t = to, to-1, ..., from+1 and returns the state at frame `from`.
// `records` begins with the row of frame from+1. Every backpointer leads to the same pair or to the pair on its left,
// and none leads out of the band.
//
// A step waits for the one before it. So nothing is loaded by the pair: a record word serves until the path leaves its
// pairs, which the processor guesses, and the state follows without a branch, which it could not guess. `visit` is a copy
// of its own: what it writes could otherwise be what it reads next.
template <class Visit>
CTC_ALIGN_FN State walk_records(const Band& band, index_t from, index_t to, const RecordWord* records,
                                const uint16_t* skip_bits, State state, const Visit visit) {
  const RecordRows rows{band};
  index_t row_end = rows.words(from, to);
  for (index_t t = to; t > from;) {
    const index_t word = state.pair / kPairsPerWord;
    const index_t first_pair = word * kPairsPerWord;
    const unsigned skips = skip_bits[word];
    const index_t words = rows.last_word(t) - rows.first_word(t) + 1;
    const index_t end = larger(from, rows.last_change(t));  // until then all rows are as long
    const RecordWord* record = records + (row_end - words + word - rows.first_word(t));
    const index_t begin = t;
    State in_word = {state.pair - first_pair, state.is_label};
    do {
      visit(t, State{first_pair + in_word.pair, in_word.is_label});
      const auto pair = static_cast<unsigned>(in_word.pair);
      in_word = previous_state(in_word, read_record(*record, pair), (skips >> pair) & 1);
      record -= words;
      --t;
    } while (t > end && in_word.pair >= 0);
    state = {first_pair + in_word.pair, in_word.is_label};
    row_end -= (begin - t) * words;
  }
  return state;
}

}  // namespace ctc_align
