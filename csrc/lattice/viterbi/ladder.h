// The memory ladder: the whole path in as little memory as asked for, by sweeping some of the lattice again.
//
// Contents: 1 where to cut  2 the end of the path  3 the recursion
//
// The records of a lattice take 2 bits a cell: 0.4 MB for a minute of dense speech, 1.4 GB for an hour, 800 GB for a
// day. Only those near the path are ever read. So:
//
//     trace a PIECE of the frames (at first all of them), from a row of alphas at its start to the path's state at its end:
//         if the records of its band fit into the budget: sweep it with records, and walk
//         else: sweep it without, keep a CHECKPOINT, the row of alphas, every n frames,
//               and trace the pieces between two of them, from the last to the first
//
//     pair  |              ___/|            A piece ends in a known state, so only the pairs that can reach that state
//           |         ___/ ####|            matter: its band is a cone (lattice.h), at most n pairs wide.
//           |    ___/|  #######* state      Pieces of n frames have n * n / 2 cells each, T * n / 2 together, a few
//           |   | ###|  ###### |            per cent of the lattice; their records take n * n / 8 bytes, the
//           |   |####* ####    |            checkpoints 4 (2L + 1) (T - L) / n.
//           +---------------------- t       A cone whose records do not fit is traced the same way, in shorter pieces.
//
// The first sweep of all sees the whole band, computes the base of every column and frame block, and finds the end of the
// path. A later one sees less of each column and reads the bases: same additions, same roundings, same bits. One such way
// of tracing, with its depth of pieces, is a MEMORY LEVEL.
//
// Hirschberg's recursion needs less memory still, but twice the cells, and it adds in another order: other bits.
#pragma once

#include <algorithm>

#include "checkpoints.h"
#include "traceback.h"

namespace ctc_align {

// ---------------------------------------------------------------------------------------------- 1 where to cut

// The memory level follows from sizes and from these limits, never from a value.
struct LadderLimits {
  index_t bytes;                  // for records and checkpoints together
  const index_t* cuts = nullptr;  // for tests: the frames of a piece on each level, whatever fits
  index_t cut_count = 0;          // after the last cut come records
  bool forced = false;            // use the cuts instead of the bytes
};

// Frames from one checkpoint to the next; 0: no checkpoints, the records fit.
template <class Real>
index_t plan_pieces(const Band& band, index_t from, index_t to, const LadderLimits& limits, index_t level) {
  constexpr index_t kCellBytes = 2 * sizeof(Real);
  constexpr index_t kFewFrames = 16;  // their cone has at most 16 pairs: less than any checkpoint
  if (limits.forced) {
    return level < limits.cut_count ? limits.cuts[level] : 0;
  }
  const index_t frames = to - from;
  if (frames <= kFewFrames ||
      RecordRows{band}.words(from, to) <= limits.bytes / static_cast<index_t>(sizeof(RecordWord))) {
    return 0;
  }
  // Three quarters of the budget for the checkpoints: the pieces need far less (n * n / 8 bytes, or checkpoints again),
  // and short pieces leave little to sweep again.
  const index_t share = std::max<index_t>(limits.bytes / 4 * 3, 1);
  index_t every = band.cells(from, to) / share * kCellBytes + band.cells(from, to) % share * kCellBytes / share + 1;
  // Whole frame blocks, or halves of one and so on: strips end at both, and strips of one length keep threads in step.
  index_t step = kFrameBlock;
  while (step / 2 >= every) {
    step /= 2;
  }
  every = (every + step - 1) / step * step;
  return every < frames ? every : (frames + 1) / 2;
}

// --------------------------------------------------------------------------------------- 2 the end of the path

// `row` holds the last frame. Where a column border lies between the last label and the last blank the label crosses it.
template <class Real>
PathEnd<Real> find_path_end(const Band& band, const AlphaRow<Real>& row, const BaseGrid& bases) {
  const index_t labels = band.labels;
  Real label = labels > 0 ? row.label(labels - 1) : kMinusInfinity<Real>;
  if (kRebases<Real> && labels > 0 && labels % kColumnPairs == 0 && band.frames > 1) {
    const index_t frame_block = (band.frames - 2) / kFrameBlock;
    const index_t j = labels / kColumnPairs;
    label += crossing_offset(bases.at(frame_block, j - 1), bases.at(frame_block, j));
  }
  return best_path_end(labels, row.blank(labels), label);
}

// ---------------------------------------------------------------------------------------------- 3 the recursion

// Traces the best path of an item.
// sweep(job, from, to, checkpoints) sweeps the frames from+1 .. to and keeps checkpoints unless null.
// visit(t, state) is that of walk_records.
template <class Real, class Sweep, class Visit>
class Ladder {
 public:
  Ladder(const SweepJob<Real>& job, index_t tile_pairs, const LadderLimits& limits, Sweep& sweep, const Visit& visit)
      : job_(job), tile_pairs_(tile_pairs), limits_(limits), sweep_(sweep), visit_(visit) {}

  // Visits every frame from the last to the first. Without a path it visits none and returns false. The job's row holds
  // frame 0, and has room for the whole band.
  bool trace() {
    State state = {};
    if (!trace_piece(0, job_.whole.frames - 1, job_.whole, limits_.bytes, 0, state)) {
      return false;
    }
    visit_(0, state);
    return true;
  }

 private:
  // The row holds frame `from`. `state` is the path's at frame `to`, on level 0 found here, and afterwards at `from`.
  bool trace_piece(index_t from, index_t to, const Band& band, index_t budget, index_t level, State& state) {
    LadderLimits limits = limits_;
    limits.bytes = budget;
    const index_t every = plan_pieces<Real>(band, from, to, limits, level);
    SweepJob<Real> job = job_;
    job.band = band;
    job.settle_bases = level == 0;

    if (every == 0) {
      const RecordRows rows{band};
      job.records = reserve_records(rows.words(from, to));
      job.record_begin = rows.begin(from + 1);
      sweep_(job, from, to, static_cast<const Checkpoints<Real>*>(nullptr));
      if (level == 0 && !find_end(job, state)) {
        return false;
      }
      state = walk_records(band, from, to, job.records, job.target.skip_bits, state, visit_);
      return true;
    }

    release_records();  // a cone traced before may have needed many
    const Checkpoints<Real> checkpoints(band, from, to, every);
    checkpoints.save(job.row, from, job.row.first_pair, job.row.first_pair + job.row.pairs);
    sweep_(job, from, to, &checkpoints);
    if (level == 0 && !find_end(job, state)) {
      return false;
    }
    budget = std::max<index_t>(budget - checkpoints.bytes(), 0);
    for (index_t n = checkpoints.count() - 1; n >= 0; --n) {
      const index_t start = checkpoints.frame(n);
      const index_t stop = std::min(start + every, to);
      const Band cone{stop, state.pair};
      job_.row.first_pair = cone.first(start) / tile_pairs_ * tile_pairs_;
      job_.row.pairs = (cone.labels / tile_pairs_ + 1) * tile_pairs_ - job_.row.first_pair;
      checkpoints.restore(n, job_.row);
      trace_piece(start, stop, cone, budget, level + 1, state);
    }
    return true;
  }

  bool find_end(const SweepJob<Real>& job, State& state) const {
    const PathEnd<Real> end = find_path_end(job.whole, job.row, job.bases);
    state = end.state;
    return end.is_finite();
  }

  RecordWord* reserve_records(index_t words) {
    if (words > record_words_) {
      release_records();
      records_ = uninitialized<RecordWord>(words);
      record_words_ = words;
    }
    return records_.get();
  }

  void release_records() {
    records_.reset();
    record_words_ = 0;
  }

  SweepJob<Real> job_;  // its row is a window on the memory of the first row
  index_t tile_pairs_;
  LadderLimits limits_;
  Sweep& sweep_;
  const Visit& visit_;
  Memory<RecordWord> records_;
  index_t record_words_ = 0;
};

}  // namespace ctc_align
