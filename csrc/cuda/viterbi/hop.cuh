// The hop: from the best final state the origins lead from kept row to kept row to the start of the item.
//
//     pair  L |                              . ----o end     o  a state of the path at a kept row,
//             |                          ./        |            found from the right to the left:
//             |              o----------'|         |            the origin of one is the next
//             |           ./ |           |         |
//          0  o----------'   |           |         |
//             +--------------+-----------+---------+-----
//
// After the first pass one block of threads does it for an item, and also looks at the item's labels; after a later pass
// one thread does it for a region. Items of one column and few rows have no hop (has_hop): each warp of the trace hops
// to its own segment.
#pragma once

#include "../inputs.cuh"
#include "workspace.cuh"

namespace ctc_align {

// The way from one kept row of a region to the row before, along the origins.
struct Hops {
  const uint16_t* row;  // at the end of the interval to go back over next
  index_t row_pairs;

  template <class Real>
  CTC_ALIGN_FN Hops(const Pass<Real>& pass, index_t item, index_t region, index_t interval)
      : row(pass.kept_origins + pass.kept(item, region, interval, {0, false})), row_pairs(pass.plan.pairs()) {}

  CTC_ALIGN_FN uint32_t back(uint32_t packed) {
    const State state = unpack_state(packed);
    const uint32_t steps = row[(state.is_label ? row_pairs : 0) + state.pair];
    row -= 2 * row_pairs;
    return pack_state({state.pair - steps / 2, steps % 2 != 0});
  }
};

// Writes the path's state at every border of a region's intervals, from the state at the region's end back to its start.
template <class Real>
CTC_ALIGN_FN void hop_back(const Pass<Real>& pass, index_t item, index_t region, const Band& band, uint32_t state) {
  const index_t frame_before = region * pass.plan.region_frame_blocks * kFrameBlock;
  const index_t frames = smaller(band.frames - 1 - frame_before, pass.plan.region_frame_blocks * kFrameBlock);
  const index_t intervals = (frames + pass.plan.interval_frames - 1) / pass.plan.interval_frames;
  uint32_t* states = pass.states(item) + region * pass.plan.intervals();
  states[intervals] = state;
  Hops hops(pass, item, region, intervals - 1);
  for (index_t i = intervals - 1; i >= 0; --i) {
    state = hops.back(state);
    if (i > 0 || region == 0) {  // the last state of the region before is written there
      states[i] = state;
    }
  }
}

// Returns the best final state of item b as the first sweep has found it, or kNoPath.
template <class Real, class scalar_t, bool kStars>
CTC_ALIGN_FN uint32_t path_end_of(const Inputs<scalar_t, kStars>& in, const Workspace<Real>& work, index_t b) {
  const ItemLattice item = lattice_of(in, b);
  if (!item.possible) {
    return kNoPath;
  }
  if (item.band.frames >= 2) {
    return work.path_ends[b];
  }
  // Not swept: frame 0 alone, if at all.
  const bool has_label = item.band.labels == 1;
  const index_t c = has_label ? in.label(b, 0) : in.blank;
  const bool spells = item.band.frames == 0 || !has_label || in.is_label(c);
  const Real total = item.band.frames == 0 || !spells ? Real{0} : load_emission<Real>(in.states(b).stored(0, 0, c));
  return spells && total - total == 0 ? pack_state({0, has_label}) : kNoPath;
}

// The rows of an item are far away, and one hop has to wait for the one before. So a block of threads fetches several
// rows at a time, and of each as much as the path may touch: from a pair in one chunk of pairs it comes down by one chunk
// for each segment at most.
constexpr int kHopRows = 6;
constexpr int kHopChunk = kSegmentFrames;  // pairs

struct HopShared {
  uint32_t path_end;
  uint32_t state;
  alignas(8) uint16_t origins[kHopRows][kHopRows][2][kHopChunk];  // row, chunks further down, is a label, pair
};

// As hop_back(), for the whole of an item whose rows lie one segment apart.
//   Called by    all threads of a block; shared.path_end is valid for all of them.
//   Waits for    the block: rows are fetched by all threads, and thread 0 hops.
//   Afterwards   the states are written, for later kernels.
//   Reuse        of the fetched rows: the second barrier comes before the next ones are fetched.
template <DeviceWords Device, class Real>
CTC_ALIGN_FN void hop_back_together(const Pass<Real>& pass, index_t item, const Band& band, HopShared& shared) {
  struct alignas(8) Four {
    uint16_t of[4];
  };
  constexpr int kFours = 2 * kHopChunk / 4;  // of a row in a chunk: its blanks', then its labels'
  constexpr int kLoads = kHopRows * kHopRows * kFours / kHopThreads;
  static_assert(kHopThreads % kFours == 0 && kLoads * kHopThreads == kHopRows * kHopRows * kFours, "equal shares");
  const int32_t segments = static_cast<int32_t>((band.frames - 2) / kSegmentFrames + 1);
  const int four = Device::thread() % kFours, is_label = four / (kFours / 2), first = four % (kFours / 2) * 4;
  const index_t row_pairs = pass.plan.pairs();
  uint32_t* const states = pass.states(item);
  uint32_t state = shared.path_end;
  for (int32_t end = segments; end > 0; end -= kHopRows) {
    const int32_t chunk = static_cast<int32_t>(unpack_state(state).pair) / kHopChunk;
    const uint16_t* const last_row = pass.kept_origins + pass.kept(item, 0, end - 1, {0, is_label != 0}) + first;
    Four fetched[kLoads];
    CTC_ALIGN_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const int n = Device::thread() / kFours + i * (kHopThreads / kFours), row = n / kHopRows, down = n % kHopRows;
      fetched[i] = {};
      if (row < end && down <= row && down <= chunk) {
        fetched[i] = *reinterpret_cast<const Four*>(last_row - row * 2 * row_pairs + (chunk - down) * kHopChunk);
      }
    }
    CTC_ALIGN_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const int n = Device::thread() / kFours + i * (kHopThreads / kFours);
      *reinterpret_cast<Four*>(&shared.origins[n / kHopRows][n % kHopRows][is_label][first]) = fetched[i];
    }
    Device::block_barrier();
    if (Device::thread() == 0) {
      for (int row = 0; row < kHopRows && row < end; ++row) {
        states[end - row] = state;
        const State at = unpack_state(state);
        const int32_t pair = static_cast<int32_t>(at.pair);
        const uint32_t steps = shared.origins[row][chunk - pair / kHopChunk][at.is_label ? 1 : 0][pair % kHopChunk];
        state = pack_state({at.pair - steps / 2, steps % 2 != 0});
      }
      shared.state = state;
    }
    Device::block_barrier();
    state = shared.state;
  }
  if (Device::thread() == 0) {
    states[0] = state;
  }
}

// After the first pass over item b: decides whether it has a path, and finds it at the end of every interval.
//   Called by    all threads of a block.
//   Waits for    the block: all its threads look at labels.
//   Afterwards   path end and states are written, for later kernels.
//   Reuse        shared memory is the block's own.
template <DeviceWords Device, class Real, class scalar_t, bool kStars>
CTC_ALIGN_FN void run_hop(const Inputs<scalar_t, kStars>& in, const Workspace<Real>& work, HopShared& shared) {
  const index_t b = Device::block();
  const ItemLattice item = lattice_of(in, b);
  if (Device::thread() == 0) {
    shared.path_end = path_end_of(in, work, b);
  }
  Device::block_barrier();
  if (item.possible) {
    bool is_bad = false;
    for (index_t k = Device::thread(); k < item.band.labels; k += Device::threads_per_block()) {
      is_bad = is_bad || !in.is_label(in.label(b, k));
    }
    if (is_bad) {
      shared.path_end = kNoPath;
    }
  }
  Device::block_barrier();
  if (Device::thread() == 0) {
    work.path_ends[b] = shared.path_end;
  }
  if (shared.path_end == kNoPath || item.band.frames < 2) {
    return;
  }
  if (work.whole().interval_frames == kSegmentFrames) {
    hop_back_together<Device>(work.passes[0], b, item.band, shared);
  } else if (Device::thread() == 0) {
    hop_back(work.passes[0], b, 0, item.band, shared.path_end);
  }
}

// After a later pass. Thread 0 of a block does it for a region.
template <DeviceWords Device, class Real, class scalar_t, bool kStars>
CTC_ALIGN_FN void run_hop_in_region(const Inputs<scalar_t, kStars>& in, const Workspace<Real>& work, int pass_number) {
  const Pass<Real>& pass = work.passes[pass_number];
  const index_t regions = pass.plan.regions();
  const index_t b = Device::block() / static_cast<uint32_t>(regions);
  const index_t region = Device::block() % static_cast<uint32_t>(regions);
  const Band band = lattice_of(in, b).band;
  if (Device::thread() == 0 && work.path_ends[b] != kNoPath &&
      region * pass.plan.region_frame_blocks * kFrameBlock + 1 < band.frames) {
    hop_back(pass, b, region, band, work.passes[pass_number - 1].states(b)[region + 1]);
  }
}

}  // namespace ctc_align
