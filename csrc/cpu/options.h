// The choices of a user, or a test, for the whole process: the instruction set and the memory budget.
#pragma once

#include <vector>

#include "viterbi/schedule.h"

namespace ctc_align {

struct Options {
  const Isa* isa;
  index_t memory_budget = 0;  // bytes of working memory of a call; 0: by the length of each item
  Tiling tiling = {};
  bool force_cuts = false;  // the ladder is cut by `cuts` instead of the budget
  std::vector<index_t> cuts = {};
};

// A copy, so that a change in another thread does not affect a call that has begun.
Options current_options();

}  // namespace ctc_align
