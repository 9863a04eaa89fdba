// How a batch is cut for the GPU, and the list of launches that do it.
//
// Contents: 1 the grids  2 one pass  3 all passes  4 tickets  5 the band in units of the grid  6 launches
//
// Everything here follows from the padded sizes, never from lengths or values. So the launches and the workspace are the
// same for every call of one shape, and a CUDA graph may replay them.
//
//     column        256 pairs       the rebase grid's column, and what one block of threads keeps in registers
//     frame block   512 frames      the rebase grid's block of frames
//     stage         16 frames       (float64: 8) between two hand-overs of edges
//     segment       128 frames      the traceback's unit of parallel work
//     interval      n segments      at its end a pass keeps a row of alphas and origins
//     task          n frame blocks  of one column: what a block of threads does for one ticket
//
// Rows for every 128 frames are too much for a very long item. Then there is more than one pass. The first keeps few
// rows, which cut the item into REGIONS. When it is done, it is known where the path enters and leaves each region. The
// next pass sweeps, inside every region, the columns between the two, and keeps rows closer together. In the last pass
// an interval is a segment.
#pragma once

#include <cstddef>
#include <initializer_list>

#include "../../lattice/viterbi/rebase.h"
#include "../device.cuh"

namespace ctc_align {

// ---------------------------------------------------------------------------------------------- 1 the grids

constexpr int32_t kSegmentFrames = 128;
// float64 takes half as many, so that a stage fits the same memory.
template <class Real>
constexpr int kStageFrames = 16 * static_cast<int>(sizeof(float)) / static_cast<int>(sizeof(Real));
static_assert(kFrameBlock % kSegmentFrames == 0 && kSegmentFrames % kStageFrames<float> == 0, "the grids are nested");

// A column's edges of one frame block: one for each frame, one for the pseudo-frame after the last, and padding.
constexpr index_t kEdgesPerFrameBlock = kFrameBlock + kStageFrames<float>;

// Frame indices are int32 and may point up to one frame block past the last frame.
constexpr index_t kMostFrames = index_t{1} << 30;

// Pairs a thread holds in the sweep, so a block has four warps of them, one for each scheduler of a multiprocessor. With
// one pair the warps contend and a frame block takes longer to drain; with four, too few of them hide latencies.
constexpr int kPairsPerThread = 2;

// States as one word: 2k for blank k, 2k+1 for label k.
constexpr uint32_t kNoPath = 0xffffffffu;
CTC_ALIGN_FN uint32_t pack_state(State state) {
  return static_cast<uint32_t>(2 * state.pair + (state.is_label ? 1 : 0));
}
CTC_ALIGN_FN State unpack_state(uint32_t word) { return {static_cast<index_t>(word / 2), word % 2 != 0}; }

// ----------------------------------------------------------------------------------------------- 2 one pass

struct Plan {
  index_t batch;
  index_t frames;  // padded T
  index_t labels;  // padded L

  int32_t interval_frames;      // a row is kept at the end of each interval
  index_t region_frame_blocks;  // in a region; the first pass has one region
  int32_t task_frame_blocks;    // in a task
  int32_t ring_tasks;           // tasks whose edges are kept at a time, for each column
  int32_t skew;                 // columns that start while one task runs: tickets go along these diagonals

  // Divisions by a variable have 32 bits. A division of 64 bits is a call; after it the compiler does not know any more
  // that a value is the same in the whole warp, and guards every shuffle.
  CTC_ALIGN_FN index_t columns() const { return labels / kColumnPairs + 1; }
  CTC_ALIGN_FN index_t frame_blocks() const { return (frames + kFrameBlock - 2) / kFrameBlock; }
  CTC_ALIGN_FN index_t regions() const {
    return larger<int32_t>(
        1, static_cast<int32_t>(frame_blocks() + region_frame_blocks - 1) / static_cast<int32_t>(region_frame_blocks));
  }
  CTC_ALIGN_FN index_t frame_blocks_of_region() const { return smaller(frame_blocks(), region_frame_blocks); }
  CTC_ALIGN_FN int32_t intervals() const {  // of a region
    const int32_t region_frames = static_cast<int32_t>(smaller(frames - 1, region_frame_blocks * kFrameBlock));
    return (region_frames + interval_frames - 1) / interval_frames;
  }

  // Columns that a region's part of the path may touch: it moves right by one pair a frame at most.
  CTC_ALIGN_FN index_t columns_of_region() const {
    return regions() == 1 ? columns() : smaller(columns(), region_frame_blocks * kFrameBlock / kColumnPairs + 2);
  }
  // Neighbouring regions share one column at most, so column j of region r has slot j + r to itself.
  CTC_ALIGN_FN index_t slots() const { return columns() + regions() - 1; }
  CTC_ALIGN_FN index_t pairs() const { return slots() * kColumnPairs; }  // of a row

  // Of a column.
  CTC_ALIGN_FN int32_t tasks() const {
    return (static_cast<int32_t>(frame_blocks_of_region()) + task_frame_blocks - 1) / task_frame_blocks;
  }

  // Returns whether a column has more than one task.
  CTC_ALIGN_FN bool cuts_columns() const { return frame_blocks_of_region() > task_frame_blocks; }

  // Returns whether any task waits for another. If not, there are no tickets and no edges, and no memset before.
  CTC_ALIGN_FN bool waits() const { return columns() > 1 || cuts_columns(); }

  CTC_ALIGN_FN int32_t tasks_on_diagonal() const {
    return (static_cast<int32_t>(columns_of_region()) + skew - 1) / skew;
  }
  CTC_ALIGN_FN index_t tickets() const {
    return batch * regions() * tasks_on_diagonal() * skew * index_t{tasks() + tasks_on_diagonal() - 1};
  }
};

// The edges that may be kept at a time. Where a column's whole past fits, a task is the whole column.
constexpr index_t kEdgeBytes = index_t{64} << 20;

// Makes tasks as long as that memory allows. A single column has no reader.
inline Plan with_tasks(Plan plan) {
  const index_t columns = larger<index_t>(1, plan.batch * plan.slots());
  const index_t affordable = larger<index_t>(1, kEdgeBytes / (columns * kEdgesPerFrameBlock * 8));
  const index_t frame_blocks = larger<index_t>(1, plan.frame_blocks_of_region());
  if (plan.columns() == 1 || affordable >= frame_blocks) {
    plan.task_frame_blocks = static_cast<int32_t>(frame_blocks);
    plan.ring_tasks = 1;
    plan.skew = static_cast<int32_t>(plan.columns_of_region());  // one task a column: tickets are columns
  } else {
    plan.task_frame_blocks = static_cast<int32_t>(larger<index_t>(1, affordable / 2));
    plan.ring_tasks = 2;
    plan.skew = static_cast<int32_t>(smaller<index_t>(16 * plan.task_frame_blocks, plan.columns_of_region()));
  }
  return plan;
}

// --------------------------------------------------------------------------------------------- 3 all passes

// From the whole items down to the smallest regions.
constexpr int kMostPasses = 3;
struct Passes {
  Plan plans[kMostPasses];
  int count;

  CTC_ALIGN_FN const Plan& whole() const { return plans[0]; }
  CTC_ALIGN_FN const Plan& last() const { return plans[count - 1]; }
};

// Frame blocks in the regions of the second and the third pass; 0: there is no such pass. Each number is a multiple of
// the next.
struct RegionSizes {
  index_t second, third;
};

inline Passes cut_into(index_t batch, index_t frames, index_t labels, RegionSizes sizes) {
  const index_t frame_blocks = larger<index_t>(1, (frames + kFrameBlock - 2) / kFrameBlock);
  const index_t regions[kMostPasses + 1] = {frame_blocks, sizes.second, sizes.third, 0};
  Passes passes{};
  do {
    const index_t within = regions[passes.count + 1];  // a row is kept at the end of each region of the next pass
    const index_t interval_frames = within > 0 ? within * kFrameBlock : kSegmentFrames;
    const Plan plan{batch, frames, labels, static_cast<int32_t>(interval_frames), regions[passes.count], 1, 1, 1};
    passes.plans[passes.count++] = with_tasks(plan);
  } while (regions[passes.count] > 0);
  return passes;
}

// Chooses as few passes as keep the rows within a budget, and of two passes those with the smallest rows.
// pair_bytes: of a pair in a row, two alphas and two origins.
constexpr index_t kRowBytes = index_t{1} << 30;
constexpr index_t kMostRegionFrameBlocks = 60;
static_assert(kMostRegionFrameBlocks * kFrameBlock < 32768, "an origin is within 15 bits of pairs");

inline Passes plan_passes(index_t batch, index_t frames, index_t labels, index_t pair_bytes) {
  const auto row_bytes = [&](const Passes& passes) {
    index_t bytes = 0;
    for (int i = 0; i < passes.count; ++i) {
      const Plan& plan = passes.plans[i];
      bytes += plan.batch * plan.intervals() * plan.pairs() * pair_bytes;
    }
    return bytes;
  };
  Passes best = cut_into(batch, frames, labels, {0, 0});
  const auto consider = [&](RegionSizes sizes) {
    const Passes passes = cut_into(batch, frames, labels, sizes);
    best = row_bytes(passes) < row_bytes(best) ? passes : best;
  };
  if (row_bytes(best) > kRowBytes) {
    for (const index_t second : {4, 8, 16, 32}) {
      consider({second, 0});
    }
  }
  if (row_bytes(best) > kRowBytes) {
    consider({kMostRegionFrameBlocks, 4});
  }
  return best;
}

// ------------------------------------------------------------------------------------------------ 4 tickets

struct TaskIndex {
  int32_t item;
  int32_t region;
  int32_t column;  // counted from the region's first
  int32_t number;
};

// The task of a ticket. Its column or number may lie outside the plan; then there is nothing to do.
//
// Task n of a region's column j is on DIAGONAL j + skew * n, and tickets go by diagonals. Every task that it waits for is
// on an earlier one: the left neighbour (n, j-1), its own past (n-1, j), and the reader of the ring
// (n - ring_tasks, j+1).
CTC_ALIGN_FN TaskIndex task_of_ticket(const Plan& plan, uint32_t ticket) {
  const uint32_t batch = static_cast<uint32_t>(plan.batch), regions = static_cast<uint32_t>(plan.regions());
  const uint32_t skew = static_cast<uint32_t>(plan.skew);
  const uint32_t tasks_on_diagonal = static_cast<uint32_t>(plan.tasks_on_diagonal());
  const uint32_t position = ticket / batch / regions;
  const uint32_t diagonal = position / tasks_on_diagonal, on_diagonal = position % tasks_on_diagonal;
  return {static_cast<int32_t>(ticket % batch), static_cast<int32_t>(ticket / batch % regions),
          static_cast<int32_t>(diagonal % skew + skew * on_diagonal),
          static_cast<int32_t>(diagonal / skew - on_diagonal)};
}

// -------------------------------------------------------------------------- 5 the band in units of the grid

// Returns whether column j meets the band during a frame block. The one that holds the last frame also holds the
// pseudo-frame T after it, where the last label and the last blank are compared.
CTC_ALIGN_FN bool column_in_band(int32_t frames, int32_t labels, int32_t j, int32_t frame_block) {
  constexpr int32_t kFrames = static_cast<int32_t>(kFrameBlock), kPairs = static_cast<int32_t>(kColumnPairs);
  const int32_t frame_before = frame_block * kFrames;
  const int32_t last_frame = frame_before + kFrames >= frames - 1 ? frames : frame_before + kFrames;
  return 0 <= j && j <= labels / kPairs && frame_before + 1 < frames && j * kPairs <= last_frame &&
         labels - frames + frame_before < (j + 1) * kPairs;
}

// ----------------------------------------------------------------------------------------------- 6 launches

enum class Kernel { kSweep, kHop, kRegionHop, kTrace };

struct Launch {
  Kernel kernel;
  int pass;              // that it works on
  index_t blocks;        // of threads
  int threads;           // of a block
  bool whole_rows;       // of the sweep: emissions are shared as whole rows, not as each pair's own
  int64_t least_shared;  // bytes of shared memory that a block asks for at least
};

// In the order of the stream. The last one is the trace, which alone writes outputs.
struct Launches {
  Launch list[2 * kMostPasses + 1];
  int count;

  const Launch* begin() const { return list; }
  const Launch* end() const { return list + count; }
};

constexpr int kHopThreads = 256;
constexpr index_t kWidestRow = kWarp;  // classes of whole rows: as many as a row of lanes

// Half of the sweep's warps hold pairs.
constexpr int sweep_threads(int pairs_per_thread) { return 2 * static_cast<int>(kColumnPairs) / pairs_per_thread; }

// A kernel of its own finds the path at the rows, but for one column and few rows. There each warp of the trace hops back
// to its own row, which is quadratic.
constexpr int32_t kFewIntervals = 32;
CTC_ALIGN_FN bool has_hop(const Plan& whole, int passes) {
  return passes > 1 || whole.waits() || whole.intervals() > kFewIntervals;
}

// Warps of an item in the trace. The last may have nothing to do.
CTC_ALIGN_FN index_t traced_segments(const Plan& last) { return larger<index_t>(last.regions() * last.intervals(), 1); }

// What a plan has to know of the device.
struct Processors {
  index_t count;
  int64_t shared_bytes;  // of one
};

// Columns of an item wait for one another, so two that share a multiprocessor hold up all. With a few more columns than
// multiprocessors it is better to let those few come later: unused shared memory keeps blocks apart.
inline int64_t least_shared_bytes(const Plan& plan, const Processors& processors) {
  const index_t columns = plan.batch * plan.slots();
  const bool keep_apart = plan.columns() > 1 && processors.count < columns && columns <= processors.count * 8 / 5;
  return keep_apart ? processors.shared_bytes / 2 + 1024 : 0;
}

inline Launches plan_launches(const Passes& passes, index_t classes, int pairs_per_thread,
                              const Processors& processors) {
  Launches launches{};
  const auto add = [&](const Launch& launch) { launches.list[launches.count++] = launch; };
  const auto add_sweep = [&](int pass) {
    const Plan& plan = passes.plans[pass];
    add({Kernel::kSweep, pass, plan.tickets(), sweep_threads(pairs_per_thread), classes <= kWidestRow,
         least_shared_bytes(plan, processors)});
  };
  const index_t batch = passes.whole().batch;
  if (passes.whole().frame_blocks() > 0) {  // else there is frame 0 alone, which is not swept
    add_sweep(0);
  }
  if (has_hop(passes.whole(), passes.count)) {
    add({Kernel::kHop, 0, batch, kHopThreads, false, 0});
  }
  for (int pass = 1; pass < passes.count; ++pass) {
    add_sweep(pass);
    add({Kernel::kRegionHop, pass, batch * passes.plans[pass].regions(), kWarp, false, 0});
  }
  add({Kernel::kTrace, passes.count - 1, batch * traced_segments(passes.last()), kWarp, false, 0});
  return launches;
}

}  // namespace ctc_align
