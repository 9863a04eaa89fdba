// What the kernels of one call leave for one another in global memory.
//
// Layout: one piece of memory (WorkspaceLayout). B items, J columns, Q frame blocks, G regions; a row is
//
//     slot 0 .. J+G-1:  | 256 blanks | 256 blanks | ... |   then as many labels
//
// of alphas, or of origins. Words that say "not there yet" are all ones. Where tasks wait for one another these parts
// come first, and a memset makes them all ones before the first launch.
#pragma once

#include <type_traits>

#include "plan.h"

namespace ctc_align {

// What one pass leaves.
template <class Real>
struct Pass {
  Plan plan;
  uint32_t* ticket;        // [1]        from all ones the first ticket comes out as 0
  uint32_t* done;          // [B][slots] number of the last task that is done; all ones: none
  uint64_t* edges;         // [B][slots][ring_tasks][task_frame_blocks][kEdgesPerFrameBlock][words of an edge]
  Real* live_alphas;       // [B][2][pairs]  the row between two tasks of a column
  uint32_t* live_origins;  // [B][2][pairs]
  Real* kept_alphas;       // [B][intervals][2][pairs]  rows at the end of each interval: blanks, labels
  uint16_t* kept_origins;  // [B][intervals][2][pairs]  how many pairs to the left, times 2, plus 1 if a label
  uint32_t* path_states;   // [B][regions * intervals + 1]  states of the path at the borders of the intervals

  CTC_ALIGN_FN index_t slot(index_t item, index_t region, index_t column) const {
    return item * plan.slots() + column + region;
  }
  // Where blank or label k is in the row at the end of an interval of a region.
  CTC_ALIGN_FN index_t kept(index_t item, index_t region, index_t interval, State state) const {
    const index_t row = (item * plan.intervals() + interval) * 2 + (state.is_label ? 1 : 0);
    return row * plan.pairs() + region * kColumnPairs + state.pair;
  }
  CTC_ALIGN_FN uint32_t* states(index_t item) const {
    return path_states + item * (plan.regions() * plan.intervals() + 1);
  }
};

// Where a row was kept: in a pass, at the end of an interval of a region.
template <class Real>
struct KeptRow {
  const Pass<Real>* pass;
  index_t region, interval;

  CTC_ALIGN_FN const Real& alpha(index_t item, index_t pair, bool is_label) const {
    return pass->kept_alphas[pass->kept(item, region, interval, {pair, is_label})];
  }
};

template <class Real>
struct Workspace {
  Pass<Real> passes[kMostPasses];
  int count;
  uint64_t* bases;      // [B][J][Q + 1]  bits of a float64; for all passes
  float* moved;         // [B][J][Q + 1]  what the column's alphas lost at the start of the frame block
  uint32_t* path_ends;  // [B]  the best final state, or kNoPath

  CTC_ALIGN_FN const Plan& whole() const { return passes[0].plan; }
  CTC_ALIGN_FN const Pass<Real>& last() const { return passes[count - 1]; }
  // Where the base of a column in a frame block is.
  CTC_ALIGN_FN index_t base_at(index_t item, index_t column, index_t frame_block) const {
    return (item * whole().columns() + column) * (whole().frame_blocks() + 1) + frame_block;
  }
  // The row at the end of the first `intervals` intervals of a pass, 1 or more. A region begins with a row of the pass
  // before: its own pass has swept nothing there but the columns of the region before.
  CTC_ALIGN_FN KeptRow<Real> row_after(int pass, int32_t intervals) const {
    while (pass > 0 && intervals % passes[pass].plan.intervals() == 0) {
      intervals /= passes[pass].plan.intervals();
      --pass;
    }
    const int32_t of_region = passes[pass].plan.intervals();
    return {&passes[pass], (intervals - 1) / of_region, (intervals - 1) % of_region};
  }
};

// Lays the workspace into one piece of memory. With memory = nullptr it only counts.
template <class Real>
struct WorkspaceLayout {
  Workspace<Real> work;
  index_t unset_bytes;  // at the beginning, that have to be all ones
  index_t bytes;

  WorkspaceLayout(const Passes& plans, uint8_t* memory) {
    index_t used = 0;
    bool waits = false;
    const auto reserve = [&](auto*& part, index_t count) {
      part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(memory + used);
      used = (used + count * static_cast<index_t>(sizeof *part) + 15) / 16 * 16;
    };
    const Plan& whole = plans.whole();
    const index_t bases = whole.batch * whole.columns() * (whole.frame_blocks() + 1);
    work.count = plans.count;
    reserve(work.bases, bases);
    for (int i = 0; i < plans.count; ++i) {
      Pass<Real>& pass = work.passes[i];
      const Plan& plan = pass.plan = plans.plans[i];
      const index_t tasks = plan.columns() > 1 ? plan.batch * plan.slots() * plan.ring_tasks : 0;
      reserve(pass.ticket, 1);
      reserve(pass.done, plan.batch * plan.slots());
      reserve(pass.edges, tasks * plan.task_frame_blocks * kEdgesPerFrameBlock * index_t{sizeof(Real) / sizeof(float)});
      waits = waits || plan.waits();
    }
    unset_bytes = waits ? used : 0;
    reserve(work.path_ends, whole.batch);
    reserve(work.moved, bases);
    for (int i = 0; i < plans.count; ++i) {
      Pass<Real>& pass = work.passes[i];
      const Plan& plan = pass.plan;
      const index_t row = plan.batch * 2 * plan.pairs();
      const index_t live = plan.cuts_columns() ? row : 0;
      reserve(pass.live_alphas, live);
      reserve(pass.live_origins, live);
      reserve(pass.kept_alphas, row * plan.intervals());
      reserve(pass.kept_origins, row * plan.intervals());
      reserve(pass.path_states, plan.batch * (plan.regions() * plan.intervals() + 1));
    }
    bytes = used;
  }
};

}  // namespace ctc_align
