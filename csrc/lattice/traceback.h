// Walks the records from the end of the best path to its start.
#pragma once

#include "lattice.h"
#include "records.h"

namespace ctc_align {

// Calls visit(t, state) for every frame from the last to the first.
// Every backpointer leads to the same pair or to the one on its left, and none leads out of the band.
template <class SkipAllowed, class Visit>
CTC_ALIGN_FN void trace_path(const Band& band, const RecordWord* records, State state, const SkipAllowed& skip_allowed,
                             const Visit& visit) {
  const RecordRows rows{band};
  index_t row_end = rows.words();
  for (index_t t = band.frames - 1; t > 0; --t) {
    visit(t, state);
    const index_t row_begin = row_end - (rows.last_word(t) - rows.first_word(t) + 1);
    const RecordWord word = records[row_begin + state.pair / kPairsPerWord - rows.first_word(t)];
    state = previous_state(state, read_record(word, state.pair), skip_allowed(state.pair));
    row_end = row_begin;
  }
  visit(0, state);
}

}  // namespace ctc_align
