// The walk back along the records of some frames, from the best path's state at their end to its state at their start.
#pragma once

#include "../lattice.h"
#include "records.h"

namespace ctc_align {

// Calls visit(t, state) for t = to, to-1, ..., from+1 and returns the state at frame `from`.
// `records` begins with the row of frame from+1. Every backpointer leads to the same pair or to the pair on its left,
// and none leads out of the band.
template <class SkipAllowed, class Visit>
CTC_ALIGN_FN State walk_records(const Band& band, index_t from, index_t to, const RecordWord* records, State state,
                                const SkipAllowed& skip_allowed, const Visit& visit) {
  const RecordRows rows{band};
  index_t row_end = rows.words(from, to);
  for (index_t t = to; t > from; --t) {
    visit(t, state);
    const index_t row_begin = row_end - (rows.last_word(t) - rows.first_word(t) + 1);
    const RecordWord word = records[row_begin + state.pair / kPairsPerWord - rows.first_word(t)];
    state = previous_state(state, read_record(word, state.pair), skip_allowed(state.pair));
    row_end = row_begin;
  }
  return state;
}

}  // namespace ctc_align
