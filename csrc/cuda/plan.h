// How a batch is cut for the GPU. Everything here follows from the padded sizes, never from lengths or values: so the
// launches and the workspace are the same for every call of one shape, and a CUDA graph may replay them.
//
//     column    256 pairs       the rebase grid's column, and what one block of threads keeps in registers
//     block     512 frames      the rebase grid's block of frames
//     segment   128 frames      at its end a row of alphas and origins is kept; the traceback's unit of parallel work
//     task      n blocks of one column: what a block of threads does for one ticket
#pragma once

#include <cstddef>

#include "../lattice/rebase.h"

namespace ctc_align {

constexpr index_t kSegmentFrames = 128;
constexpr index_t kStretchFrames = 16;  // frames between two hand-overs of edges
static_assert(kBlockFrames % kSegmentFrames == 0 && kSegmentFrames % kStretchFrames == 0, "the grids are nested");

constexpr uint32_t kNoPath = 0xffffffffu;

// A column's edges of one block of frames: one for each frame, one for the pseudo-frame behind the last, and padding.
constexpr index_t kEdgesPerBlock = kBlockFrames + kStretchFrames;

struct Plan {
  index_t batch;
  index_t frames;  // padded T
  index_t labels;  // padded L

  int32_t task_blocks;  // blocks of frames in a task
  int32_t ring_tasks;   // tasks whose edges are kept at a time, for each column
  int32_t stagger;      // columns that start while one task runs: tickets go along these diagonals

  CTC_ALIGN_FN index_t columns() const { return labels / kColumnPairs + 1; }
  CTC_ALIGN_FN index_t pairs() const { return columns() * kColumnPairs; }
  CTC_ALIGN_FN index_t blocks() const { return (frames + kBlockFrames - 2) / kBlockFrames; }
  CTC_ALIGN_FN index_t segments() const { return (frames + kSegmentFrames - 2) / kSegmentFrames; }
  // Of a column. What is divided by a variable has 32 bits: a division of 64 bits is a call, behind which the compiler
  // does not know any more that a value is the same in the whole warp (device.cuh, uniform).
  CTC_ALIGN_FN int32_t tasks() const { return (static_cast<int32_t>(blocks()) + task_blocks - 1) / task_blocks; }

  // Tickets: task n of column j has its turn at j + stagger * n. Every task that it waits for has an earlier turn: the
  // left neighbour (n, j-1), its own past (n-1, j), and the reader of the ring (n - ring_tasks, j+1).
  CTC_ALIGN_FN int32_t tasks_in_turn() const { return (static_cast<int32_t>(columns()) + stagger - 1) / stagger; }
  CTC_ALIGN_FN index_t tickets() const {
    return batch * tasks_in_turn() * stagger * index_t{tasks() + tasks_in_turn() - 1};
  }
};

// The edges that may be kept at a time: where a column's whole past fits, a task is the whole column.
constexpr index_t kEdgeBytes = index_t{64} << 20;

inline Plan plan_batch(index_t batch, index_t frames, index_t labels) {
  Plan plan{batch, frames, labels, 1, 2, 1};
  const index_t columns = larger<index_t>(1, batch * plan.columns());
  const index_t affordable = larger<index_t>(1, kEdgeBytes / (columns * kEdgesPerBlock * 8));
  const index_t blocks = larger<index_t>(1, plan.blocks());
  if (affordable >= blocks) {
    plan.task_blocks = static_cast<int32_t>(blocks);
    plan.ring_tasks = 1;
  } else {
    plan.task_blocks = static_cast<int32_t>(larger<index_t>(1, affordable / 2));
    plan.stagger = 16 * plan.task_blocks;
  }
  return plan;
}

// Pairs a thread holds in the sweep; measured on an H100 (docs/performance.md). Few pairs make a frame short, which is
// what counts while there are fewer columns than multiprocessors; more pairs make less work of a frame, and where every
// thread reads its own emissions from afar, fewer warps are better at waiting for them.
inline int pairs_per_thread(const Plan& plan, bool whole_rows) {
  const index_t columns = plan.batch * plan.columns();
  if (!whole_rows) {
    return plan.columns() == 1 ? 4 : 2;
  }
  return columns <= 128 ? 1 : columns <= 1024 ? 2 : 4;
}

struct Task {
  index_t item;
  index_t column;
  index_t number;
};

// The task of a ticket; its column or number may lie outside the plan, then there is nothing to do.
CTC_ALIGN_FN Task task_of_ticket(const Plan& plan, uint32_t ticket) {
  const uint32_t batch = static_cast<uint32_t>(plan.batch), stagger = static_cast<uint32_t>(plan.stagger);
  const uint32_t tasks_in_turn = static_cast<uint32_t>(plan.tasks_in_turn());
  const uint32_t place = ticket / batch;
  const uint32_t turn = place / tasks_in_turn, in_turn = place % tasks_in_turn;
  return {ticket % batch, turn % stagger + index_t{stagger} * in_turn, index_t{turn / stagger} - in_turn};
}

// The band in units of the grid: does column j meet it during block q? The block that holds the last frame also holds
// the pseudo-frame T behind it, where the last label and the last blank are compared.
CTC_ALIGN_FN bool column_in_band(const Band& band, index_t j, index_t q) {
  const index_t frame_before = q * kBlockFrames;
  const index_t last_frame = (q + 1) * kBlockFrames >= band.frames - 1 ? band.frames : (q + 1) * kBlockFrames;
  return j >= 0 && frame_before + 1 < band.frames && j * kColumnPairs <= band.last(last_frame) &&
         band.first(frame_before) < (j + 1) * kColumnPairs;
}

// States as one word: 2k for blank k, 2k+1 for label k.
CTC_ALIGN_FN uint32_t pack_state(State state) {
  return static_cast<uint32_t>(2 * state.pair + (state.is_label ? 1 : 0));
}
CTC_ALIGN_FN State unpack_state(uint32_t word) { return {static_cast<index_t>(word / 2), word % 2 != 0}; }

}  // namespace ctc_align
