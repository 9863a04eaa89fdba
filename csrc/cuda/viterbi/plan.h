// How a batch is cut for the GPU. Everything here follows from the padded sizes, never from lengths or values: so the
// launches and the workspace are the same for every call of one shape, and a CUDA graph may replay them.
//
//     column    256 pairs       the rebase grid's column, and what one block of threads keeps in registers
//     block     512 frames      the rebase grid's block of frames
//     segment   128 frames      at its end a row of alphas and origins is kept; the traceback's unit of parallel work
//     task      n blocks of one column: what a block of threads does for one ticket
//
// Rows for every 128 frames are too much for a very long item. Then there is more than one pass: the first keeps few
// rows, which cuts the item into REGIONS; where the path enters and leaves a region is then known, and the next pass
// sweeps, inside every region, the columns between the two, and keeps rows closer together. The last pass keeps a row
// every 128 frames.
#pragma once

#include <cstddef>
#include <initializer_list>

#include "../../lattice/viterbi/rebase.h"

namespace ctc_align {

constexpr int32_t kSegmentFrames = 128;
constexpr int32_t kStretchFrames = 16;  // frames between two hand-overs of edges
static_assert(kFrameBlock % kSegmentFrames == 0 && kSegmentFrames % kStretchFrames == 0, "the grids are nested");

constexpr uint32_t kNoPath = 0xffffffffu;
// Frames are counted in 32 bits, and some behind the last are thought of.
constexpr index_t kMostFrames = index_t{1} << 30;

// A column's edges of one block of frames: one for each frame, one for the pseudo-frame behind the last, and padding.
constexpr index_t kEdgesPerBlock = kFrameBlock + kStretchFrames;

// One pass over a batch.
struct Plan {
  index_t batch;
  index_t frames;  // padded T
  index_t labels;  // padded L

  int32_t segment_frames;  // a row is kept at the end of each
  index_t region_blocks;   // blocks of frames in a region; the first pass has one region
  int32_t task_blocks;     // blocks of frames in a task
  int32_t ring_tasks;      // tasks whose edges are kept at a time, for each column
  int32_t stagger;         // columns that start while one task runs: tickets go along these diagonals

  // What is divided by a variable has 32 bits: a division of 64 bits is a call, behind which the compiler does not know
  // any more that a value is the same in the whole warp, and guards every shuffle.
  CTC_ALIGN_FN index_t columns() const { return labels / kColumnPairs + 1; }
  CTC_ALIGN_FN index_t blocks() const { return (frames + kFrameBlock - 2) / kFrameBlock; }
  CTC_ALIGN_FN index_t regions() const {
    return larger<int32_t>(1, static_cast<int32_t>(blocks() + region_blocks - 1) / static_cast<int32_t>(region_blocks));
  }
  CTC_ALIGN_FN index_t blocks_of_region() const { return smaller(blocks(), region_blocks); }
  CTC_ALIGN_FN int32_t segments() const {  // of a region
    const int32_t region_frames = static_cast<int32_t>(smaller(frames - 1, region_blocks * kFrameBlock));
    return (region_frames + segment_frames - 1) / segment_frames;
  }

  // Columns that a region's part of the path may touch: it moves right by one pair a frame at most.
  CTC_ALIGN_FN index_t columns_of_region() const {
    return regions() == 1 ? columns() : smaller(columns(), region_blocks * kFrameBlock / kColumnPairs + 2);
  }
  // Neighbouring regions share one column at most, so column j of region r has place j + r for itself.
  CTC_ALIGN_FN index_t places() const { return columns() + regions() - 1; }
  CTC_ALIGN_FN index_t pairs() const { return places() * kColumnPairs; }  // of a row

  // Of a column.
  CTC_ALIGN_FN int32_t tasks() const {
    return (static_cast<int32_t>(blocks_of_region()) + task_blocks - 1) / task_blocks;
  }

  // Does any task wait for another? Where none does there are no tickets, no edges, and nothing to set before.
  CTC_ALIGN_FN bool waits() const { return columns() > 1 || tasks() > 1; }

  // Tickets: task n of a region's column j has its turn at j + stagger * n. Every task that it waits for has an earlier
  // turn: the left neighbour (n, j-1), its own past (n-1, j), and the reader of the ring (n - ring_tasks, j+1).
  CTC_ALIGN_FN int32_t tasks_in_turn() const {
    return (static_cast<int32_t>(columns_of_region()) + stagger - 1) / stagger;
  }
  CTC_ALIGN_FN index_t tickets() const {
    return batch * regions() * tasks_in_turn() * stagger * index_t{tasks() + tasks_in_turn() - 1};
  }
};

// The edges that may be kept at a time: where a column's whole past fits, a task is the whole column.
constexpr index_t kEdgeBytes = index_t{64} << 20;

// Tasks as long as that memory allows. A single column has no reader.
inline Plan with_tasks(Plan plan) {
  const index_t columns = larger<index_t>(1, plan.batch * plan.places());
  const index_t affordable = larger<index_t>(1, kEdgeBytes / (columns * kEdgesPerBlock * 8));
  const index_t blocks = larger<index_t>(1, plan.blocks_of_region());
  if (plan.columns() == 1 || affordable >= blocks) {
    plan.task_blocks = static_cast<int32_t>(blocks);
    plan.ring_tasks = 1;
    plan.stagger = static_cast<int32_t>(plan.columns_of_region());  // one task a column: tickets are columns
  } else {
    plan.task_blocks = static_cast<int32_t>(larger<index_t>(1, affordable / 2));
    plan.ring_tasks = 2;
    plan.stagger = static_cast<int32_t>(smaller<index_t>(16 * plan.task_blocks, plan.columns_of_region()));
  }
  return plan;
}

// The passes over a batch, from the whole items down to the smallest regions.
constexpr int kMostPasses = 3;
struct Passes {
  Plan plans[kMostPasses];
  int count;

  CTC_ALIGN_FN const Plan& whole() const { return plans[0]; }
  CTC_ALIGN_FN const Plan& last() const { return plans[count - 1]; }
};

// Blocks of frames in the regions of the second and the third pass; 0: there is none. Each number is a multiple of the
// next.
struct RegionSizes {
  index_t second, third;
};

inline Passes cut_into(index_t batch, index_t frames, index_t labels, RegionSizes sizes) {
  const index_t blocks = larger<index_t>(1, (frames + kFrameBlock - 2) / kFrameBlock);
  const index_t regions[kMostPasses + 1] = {blocks, sizes.second, sizes.third, 0};
  Passes passes{};
  do {
    const index_t within = regions[passes.count + 1];  // a row is kept at the end of each region of the next pass
    const index_t segment_frames = within > 0 ? within * kFrameBlock : kSegmentFrames;
    const Plan plan{batch, frames, labels, static_cast<int32_t>(segment_frames), regions[passes.count], 1, 1, 1};
    passes.plans[passes.count++] = with_tasks(plan);
  } while (regions[passes.count] > 0);
  return passes;
}

// As few passes as keep the rows within a budget, and of two passes those with the smallest rows; all by the padded
// sizes alone. pair_bytes: of a pair in a row, two alphas and two origins.
constexpr index_t kRowBytes = index_t{1} << 30;
constexpr index_t kMostRegionBlocks = 60;
static_assert(kMostRegionBlocks * kFrameBlock < 32768, "an origin is within 15 bits of pairs");

inline Passes plan_passes(index_t batch, index_t frames, index_t labels, index_t pair_bytes) {
  const auto row_bytes = [&](const Passes& passes) {
    index_t bytes = 0;
    for (int i = 0; i < passes.count; ++i) {
      const Plan& plan = passes.plans[i];
      bytes += plan.batch * plan.segments() * plan.pairs() * pair_bytes;
    }
    return bytes;
  };
  Passes best = cut_into(batch, frames, labels, {0, 0});
  const auto consider = [&](RegionSizes sizes) {
    const Passes passes = cut_into(batch, frames, labels, sizes);
    best = row_bytes(passes) < row_bytes(best) ? passes : best;
  };
  if (row_bytes(best) > kRowBytes) {
    for (const index_t blocks : {4, 8, 16, 32}) {
      consider({blocks, 0});
    }
  }
  if (row_bytes(best) > kRowBytes) {
    consider({kMostRegionBlocks, 4});
  }
  return best;
}

// Pairs a thread holds in the sweep, so a block has four warps of them, one for each scheduler of a multiprocessor. With
// one pair the warps contend and a block of frames takes longer to drain; with four, too few of them hide latencies.
constexpr int kPairsPerThread = 2;

struct Task {
  int32_t item;
  int32_t region;
  int32_t column;  // counted from the region's first
  int32_t number;
};

// The task of a ticket; its column or number may lie outside the plan, then there is nothing to do.
CTC_ALIGN_FN Task task_of_ticket(const Plan& plan, uint32_t ticket) {
  const uint32_t batch = static_cast<uint32_t>(plan.batch), regions = static_cast<uint32_t>(plan.regions());
  const uint32_t stagger = static_cast<uint32_t>(plan.stagger);
  const uint32_t tasks_in_turn = static_cast<uint32_t>(plan.tasks_in_turn());
  const uint32_t place = ticket / batch / regions;
  const uint32_t turn = place / tasks_in_turn, in_turn = place % tasks_in_turn;
  return {static_cast<int32_t>(ticket % batch), static_cast<int32_t>(ticket / batch % regions),
          static_cast<int32_t>(turn % stagger + stagger * in_turn), static_cast<int32_t>(turn / stagger - in_turn)};
}

// The band in units of the grid: does column j meet it during block q? The block that holds the last frame also holds
// the pseudo-frame T behind it, where the last label and the last blank are compared.
CTC_ALIGN_FN bool column_in_band(int32_t frames, int32_t labels, int32_t j, int32_t q) {
  constexpr int32_t kFrames = static_cast<int32_t>(kFrameBlock), kPairs = static_cast<int32_t>(kColumnPairs);
  const int32_t frame_before = q * kFrames;
  const int32_t last_frame = frame_before + kFrames >= frames - 1 ? frames : frame_before + kFrames;
  return 0 <= j && j <= labels / kPairs && frame_before + 1 < frames && j * kPairs <= last_frame &&
         labels - frames + frame_before < (j + 1) * kPairs;
}

// States as one word: 2k for blank k, 2k+1 for label k.
CTC_ALIGN_FN uint32_t pack_state(State state) {
  return static_cast<uint32_t>(2 * state.pair + (state.is_label ? 1 : 0));
}
CTC_ALIGN_FN State unpack_state(uint32_t word) { return {static_cast<index_t>(word / 2), word % 2 != 0}; }

}  // namespace ctc_align
