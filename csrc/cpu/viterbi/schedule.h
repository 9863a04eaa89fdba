// The schedule of one item's sweep: strips of frames over several workers.
//
// A worker takes the next strip of frames and sweeps it from left to right, a group of columns at a time. Before each
// group it makes sure that the strip before has been swept as far; if not, it sleeps until that is so.
//
//     column
//        3 |   at work  |            |            |      A strip belongs to one worker, from its first column to its
//        2 |    done    |   at work  |            |      last. A group needs the group below it, of the same worker,
//        1 |    done    |    done    |            |      and the group on its left, of the worker before: worker 1 will
//        0 |    done    |    done    |  at work   |      sleep if it comes to column 3 now.
//          +------------+------------+------------+-- t
//              worker 0     worker 1     worker 2
//
// Strips are handed out in order, so the strip before is always done or at work: even if a single thread runs one worker
// after the other, the sweep comes to an end.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "../../lattice/viterbi/ladder.h"
#include "../../symbol_versions.h"
#include "../float_state.h"
#include "../item.h"
#include "../lanes/isa.h"
#include "../workers.h"

namespace ctc_align {

// Sizes that change no result: 0 means chosen by the code.
struct Tiling {
  index_t strip_frames = 0;   // at most
  index_t group_columns = 0;  // between two looks at the strip before
};

template <class scalar_t>
class Sweeper {
 public:
  using Real = AccumulationType<scalar_t>;

  Sweeper(const SweepKernels<scalar_t>& kernels, const Workers& workers, const Tiling& tiling,
          const Emissions<scalar_t>& emissions, const std::optional<StarScores<scalar_t>>& stars,
          const CompactTarget& target, index_t frames)
      : kernels_(kernels),
        workers_(workers),
        tiling_(tiling),
        emissions_(emissions),
        stars_(stars),
        panel_{.values = nullptr,
               .row_length = kernels.table_classes + (stars ? kStarClasses : 0),
               .by_frame = target.class_count <= kernels.table_classes,
               .class_count = target.class_count,
               .classes = target.panel_classes(),
               .blank_class = target.blank_class,
               .star_class = target.star_class,
               .wild_class = target.wild_class},
        scratch_(std::max(workers.count, 1)) {
    constexpr index_t kRealBytes = sizeof(Real);
    index_t most = std::min(kFrameBlock, std::max<index_t>(frames - 1, 1));
    if (tiling.strip_frames > 0) {
      most = std::min(most, tiling.strip_frames);
    }
    // As many frames as the first-level cache holds, unless that is a few only: then as many as the second-level cache does.
    const index_t group = kernels.group_frames;
    const index_t class_rows = panel_.by_frame ? panel_.row_length : target.class_count + (stars ? kStarClasses : 0);
    const index_t small = workers.count > 1 ? kSharedPanelBytes : kSmallPanelBytes;
    const index_t in_first = small / (class_rows * kRealBytes) / group * group;
    const index_t in_second = std::max(kPanelBytes / (class_rows * kRealBytes) / group * group, group);
    strip_frames_ = std::min(most, in_first >= kShortStrip ? in_first : in_second);
    if (!panel_.by_frame) {
      // An odd number of cache lines: rows of a power of two would crowd a few sets of a cache.
      constexpr index_t kLineReals = 64 / kRealBytes;
      panel_.row_length = ((strip_frames_ + kLineReals - 1) / kLineReals | 1) * kLineReals;
    }
    panel_values_ = panel_.by_frame ? panel_.row_length * strip_frames_ : panel_.row_length * class_rows;
    prepare(scratch_[0]);
  }

  // Bytes of working memory, at most.
  index_t bytes() const {
    constexpr index_t kFrameBytes = sizeof(Real) + sizeof(index_t);
    return static_cast<index_t>(scratch_.size()) *
           (panel_values_ * static_cast<index_t>(sizeof(Real)) + strip_frames_ * kFrameBytes);
  }

  // Sweeps the frames from+1 .. to.
  void operator()(const SweepJob<Real>& job, index_t from, index_t to, const Checkpoints<Real>* checkpoints) {
    const index_t cells = job.band.cells(from + 1, to + 1);
    const index_t columns = cells / (std::max<index_t>(to - from, 1) * kColumnPairs);  // in a frame, on average
    const index_t useful = std::min({cells / kCellsForAWorker, (to - from) / strip_frames_, columns / kLag});
    const int count = static_cast<int>(std::clamp<index_t>(useful, 1, workers_.count));
    const index_t most = std::max<index_t>(1, kCellsInGroup / (strip_frames_ * kColumnPairs));
    const index_t group = std::clamp<index_t>(columns / (4 * kLag * count), 1, most);

    Run run{.job = job,
            .to = to,
            .checkpoints = checkpoints,
            .group_columns = tiling_.group_columns > 0 ? tiling_.group_columns : group,
            .workers = count,
            .next_frame = from + 1};
    if (count == 1) {
      work(run, scratch_[0]);
    } else {
      run.progress = std::make_unique<Progress[]>(count);
      for (int w = 0; w < count; ++w) {
        prepare(scratch_[w]);
      }
      workers_.run(count, [&](int w) { work(run, scratch_[w]); });
    }
    if (run.stopped) {
      throw Interrupted();
    }
  }

 private:
  // Panels that leave room for the alphas in a first-level cache of 32 KB, and in the second-level cache.
  static constexpr index_t kSmallPanelBytes = 16 * 1024;
  static constexpr index_t kPanelBytes = 256 * 1024;
  // The small one where workers share an item: every strip fetches the row of alphas from the other worker's cache, so
  // strips are few and long.
  static constexpr index_t kSharedPanelBytes = 64 * 1024;
  // Frames that are well worth a tile's way to the registers and back.
  static constexpr index_t kShortStrip = 112;
  // The classes that stars add. (Rows of whole cache lines, 48 floats instead of 34, were slower.)
  static constexpr index_t kStarClasses = 2;
  // Waking a thread and waiting for it costs as much as some hundred thousand cells.
  static constexpr index_t kCellsForAWorker = 1 << 20;
  // Enough to make up for the lock between two groups many times over.
  static constexpr index_t kCellsInGroup = 1 << 20;
  // The columns between a worker and the worker before it, at best.
  static constexpr index_t kLag = 2;

  // What a worker needs for one strip.
  struct Scratch {
    Memory<Real> panel;
    Memory<Real> edges;
    Memory<index_t> row_offsets;
  };

  // How far a strip has come. The worker on the next strip sleeps here.
  struct Progress {
    index_t strip = -1;
    index_t column = -1;  // the last one that is done
    std::mutex mutex = {};
    std::condition_variable moved = {};
  };

  struct Run {
    const SweepJob<Real>& job;
    const index_t to;
    const Checkpoints<Real>* const checkpoints;
    const index_t group_columns;
    const int workers;
    index_t next_frame;
    index_t next_strip = 0;
    std::mutex mutex = {};  // of the last two
    std::atomic<bool> stopped = false;
    std::unique_ptr<Progress[]> progress = {};  // strip s writes into progress[s % workers]; none for a single worker
  };

  void prepare(Scratch& scratch) const {
    if (!scratch.panel) {
      scratch.panel = uninitialized<Real>(panel_values_);
      scratch.edges = uninitialized<Real>(strip_frames_);
      scratch.row_offsets = uninitialized<index_t>(strip_frames_);
    }
  }

  // One worker's whole run.
  void work(Run& run, const Scratch& scratch) const {
    const StandardFloats standard_floats;
    for (;;) {
      std::unique_lock<std::mutex> lock(run.mutex);
      if (run.stopped || run.next_frame > run.to) {
        return;
      }
      const index_t number = run.next_strip++;
      const Strip<Real> strip = next_strip(run, scratch);
      run.next_frame += strip.frames;
      lock.unlock();
      sweep_strip(run, strip, number);
    }
  }

  Strip<Real> next_strip(const Run& run, const Scratch& scratch) const {
    const index_t t = run.next_frame;
    index_t end = std::min({t + strip_frames_, end_of_frame_block(t), run.to + 1});
    if (run.checkpoints) {
      end = std::min(end, run.checkpoints->next_frame(t) + 1);
    }
    EmissionPanel<Real> panel = panel_;
    panel.values = scratch.panel.get();
    return {t, end - t, panel, scratch.edges.get(), scratch.row_offsets.get()};
  }

  void sweep_strip(Run& run, const Strip<Real>& strip, index_t number) const {
    kernels_.load_panel(strip.panel, emissions_, strip.first_frame, strip.frames);
    if (stars_) {
      kernels_.load_stars(strip.panel, *stars_, strip.first_frame, strip.frames);
    }
    begin_strip(run.job, strip);
    const ColumnRange all = columns_of_strip(run.job, strip.first_frame, strip.last_frame());
    const auto sweep_columns = kernels_.sweep_columns[run.job.target.wild_bits != nullptr];
    for (index_t first = all.first; first <= all.last; first += run.group_columns) {
      const ColumnRange columns = {first, std::min(first + run.group_columns - 1, all.last)};
      wait_for_strip_before(run, number, columns.last);
      if (run.stopped) {
        return report(run, number, kAllColumns);  // the worker on the next strip must not wait for ever
      }
      sweep_columns(run.job, strip, columns);
      if (run.checkpoints) {
        run.checkpoints->save(run.job.row, strip.last_frame(), columns.first * kColumnPairs,
                              (columns.last + 1) * kColumnPairs);
      }
      if (workers_.must_stop()) {
        run.stopped = true;
      }
      report(run, number, run.stopped || columns.last == all.last ? kAllColumns : columns.last);
    }
  }

  // A strip that goes further to the right than the strip before needs all of it.
  void wait_for_strip_before(Run& run, index_t number, index_t column) const {
    if (!run.progress || number == 0) {
      return;
    }
    Progress& before = run.progress[(number - 1) % run.workers];
    std::unique_lock<std::mutex> lock(before.mutex);
    before.moved.wait(
        lock, [&] { return before.strip > number - 1 || (before.strip == number - 1 && before.column >= column); });
  }

  void report(Run& run, index_t number, index_t column) const {
    if (!run.progress) {
      return;
    }
    Progress& own = run.progress[number % run.workers];
    {
      const std::lock_guard<std::mutex> lock(own.mutex);
      own.strip = number;
      own.column = column;
    }
    own.moved.notify_one();
  }

  static constexpr index_t kAllColumns = std::numeric_limits<index_t>::max();

  const SweepKernels<scalar_t>& kernels_;
  const Workers& workers_;
  const Tiling& tiling_;
  const Emissions<scalar_t> emissions_;
  const std::optional<StarScores<scalar_t>> stars_;
  EmissionPanel<Real> panel_;  // without its values, which are in a worker's scratch
  index_t strip_frames_;
  index_t panel_values_;
  std::vector<Scratch> scratch_;
};

}  // namespace ctc_align
