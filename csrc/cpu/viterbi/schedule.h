// Who sweeps what, when: stretches of one item over the threads of a crew.
//
// A worker takes the next stretch of frames and sweeps it from left to right, a group of columns at a time. Before each
// group it makes sure that the stretch before has been swept as far; if not, it sleeps until that is so.
//
//     column
//        3 |   at work  |            |            |      A stretch is one worker's, from its first column to its last.
//        2 |    done    |   at work  |            |      A group needs the group below it, of the same worker,
//        1 |    done    |    done    |            |      and the group on its left, of the worker before:
//        0 |    done    |    done    |  at work   |      who comes to column 3 of the second stretch now, sleeps.
//          +------------+------------+------------+-- t
//              worker 0     worker 1     worker 2
//
// Stretches are handed out in order, so the one before is always done or in work: even a crew that is run by a single
// thread, one worker after the other, comes to an end.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "../../lattice/viterbi/ladder.h"
#include "../float_state.h"
#include "../lanes/isa.h"

namespace ctc_align {

// Thrown where a call was asked to stop.
struct Interrupted : std::runtime_error {
  Interrupted() : std::runtime_error("interrupted") {}
};

// The threads at hand. Nothing here knows whose they are.
struct Crew {
  int workers = 1;
  // run(workers, work) runs work(0), ..., work(workers - 1).
  std::function<void(int, const std::function<void(int)>&)> run = {};
  std::function<bool()> interrupted = {};  // asked every now and then, by any thread

  bool must_stop() const { return interrupted && interrupted(); }
};

// std::fill_n for what may be many GB: that takes seconds, too.
template <class T>
void fill(T* to, index_t count, T value, const Crew& crew) {
  constexpr index_t kBetweenLooks = 1 << 24;
  for (index_t begin = 0; begin < count; begin += kBetweenLooks) {
    if (begin > 0 && crew.must_stop()) {
      throw Interrupted();
    }
    std::fill_n(to + begin, std::min(kBetweenLooks, count - begin), value);
  }
}

// Sizes that change no result: 0 means chosen by the code.
struct Tiling {
  index_t stretch_frames = 0;  // at most so many
  index_t group_columns = 0;   // between two looks at the stretch before
};

// The emissions of one item, and how to put them into a panel.
template <class scalar_t>
struct PanelSource {
  Emissions<scalar_t> emissions;
  index_t class_count;
  const int64_t* classes;  // null: all of them
  int32_t blank;
};

template <class scalar_t>
class Sweeper {
 public:
  using Real = AccumulationType<scalar_t>;

  Sweeper(const SweepKernels<scalar_t>& kernels, const Crew& crew, const Tiling& tiling,
          const PanelSource<scalar_t>& source, index_t frames)
      : kernels_(kernels), crew_(crew), tiling_(tiling), source_(source), desks_(std::max(crew.workers, 1)) {
    constexpr index_t kRealBytes = sizeof(Real);
    by_frame_ = source.class_count <= kernels.table_classes;
    index_t most = std::min(kFrameBlock, std::max<index_t>(frames - 1, 1));
    if (tiling.stretch_frames > 0) {
      most = std::min(most, tiling.stretch_frames);
    }
    if (by_frame_) {
      stretch_frames_ = most;
      row_length_ = kernels.table_classes;
      panel_values_ = row_length_ * stretch_frames_;
    } else {
      const index_t group = kernels.group_frames;
      const index_t fitting = kPanelBytes / (source.class_count * kRealBytes) / group * group;
      stretch_frames_ = std::min(most, std::max(fitting, group));
      row_length_ =
          (stretch_frames_ + group - 1) / group * group + group;  // + group: no power of two, which caches hate
      panel_values_ = row_length_ * source.class_count;
    }
    prepare(desks_[0]);
  }

  // Working memory in bytes, for all that may come.
  index_t bytes() const {
    constexpr index_t kFrameBytes = sizeof(Real) + sizeof(index_t);
    return static_cast<index_t>(desks_.size()) *
           (panel_values_ * static_cast<index_t>(sizeof(Real)) + stretch_frames_ * kFrameBytes);
  }

  // Sweeps the frames behind `from` up to `to`.
  void operator()(const SweepJob<Real>& job, index_t from, index_t to, const Checkpoints<Real>* checkpoints) {
    const index_t cells = job.band.cells(from + 1, to + 1);
    const index_t columns = cells / (std::max<index_t>(to - from, 1) * kColumnPairs);  // in a frame, on average
    const index_t useful = std::min({cells / kCellsForAWorker, (to - from) / stretch_frames_, columns / kLag});
    const int workers = static_cast<int>(std::clamp<index_t>(useful, 1, crew_.workers));
    const index_t most = std::max<index_t>(1, kCellsInGroup / (stretch_frames_ * kColumnPairs));
    const index_t group = std::clamp<index_t>(columns / (4 * kLag * workers), 1, most);

    Run run(job, to, checkpoints, tiling_.group_columns > 0 ? tiling_.group_columns : group, from + 1, workers);
    if (workers == 1) {
      work(run, desks_[0]);
    } else {
      for (int w = 0; w < workers; ++w) {
        prepare(desks_[w]);
      }
      crew_.run(workers, [&](int w) { work(run, desks_[w]); });
    }
    if (run.stopped) {
      throw Interrupted();
    }
  }

 private:
  // A panel by class takes as much of the second-level cache as leaves room for the alphas.
  static constexpr index_t kPanelBytes = 256 * 1024;
  // Waking a thread and waiting for it costs as much as some hundred thousand cells.
  static constexpr index_t kCellsForAWorker = 1 << 20;
  // Enough to make up for the lock between two groups many times over.
  static constexpr index_t kCellsInGroup = 1 << 20;
  // So many columns a worker is behind the one before, at best.
  static constexpr index_t kLag = 2;

  // What a worker needs for one stretch.
  struct Desk {
    std::unique_ptr<Real[]> panel;
    std::unique_ptr<Real[]> edges;
    std::unique_ptr<index_t[]> row_offsets;
  };

  // How far a stretch has come. Who works on the next stretch sleeps here.
  struct Progress {
    index_t stretch = -1;
    index_t column = -1;  // the last one that is done
    std::mutex mutex = {};
    std::condition_variable moved = {};
  };

  struct Run {
    Run(const SweepJob<Real>& swept, index_t last_frame, const Checkpoints<Real>* kept, index_t columns, index_t frame,
        int crew)
        : job(swept), to(last_frame), checkpoints(kept), group_columns(columns), workers(crew), next_frame(frame) {
      if (workers > 1) {
        progress = std::make_unique<Progress[]>(workers);
      }
    }

    const SweepJob<Real>& job;
    const index_t to;
    const Checkpoints<Real>* const checkpoints;
    const index_t group_columns;
    const int workers;

    std::mutex mutex;  // of the next two
    index_t next_frame;
    index_t next_stretch = 0;

    std::atomic<bool> stopped{false};
    std::unique_ptr<Progress[]> progress;  // stretch s writes into progress[s % workers]; none for a worker alone
  };

  void prepare(Desk& desk) const {
    if (!desk.panel) {
      desk.panel = uninitialized<Real>(panel_values_);
      desk.edges = uninitialized<Real>(stretch_frames_);
      desk.row_offsets = uninitialized<index_t>(stretch_frames_);
    }
  }

  // One worker's whole run.
  void work(Run& run, const Desk& desk) const {
    const StandardFloats standard_floats;
    for (;;) {
      std::unique_lock<std::mutex> lock(run.mutex);
      if (run.stopped || run.next_frame > run.to) {
        return;
      }
      const index_t number = run.next_stretch++;
      const Stretch<Real> stretch = next_stretch(run, desk);
      run.next_frame += stretch.frames;
      lock.unlock();
      sweep_stretch(run, stretch, number);
    }
  }

  Stretch<Real> next_stretch(const Run& run, const Desk& desk) const {
    const index_t t = run.next_frame;
    index_t end = std::min({t + stretch_frames_, end_of_frame_block(t), run.to + 1});
    if (run.checkpoints) {
      end = std::min(end, run.checkpoints->next_frame(t) + 1);
    }
    return {t,
            end - t,
            {desk.panel.get(), row_length_, by_frame_, source_.class_count, source_.classes, source_.blank},
            desk.edges.get(),
            desk.row_offsets.get()};
  }

  void sweep_stretch(Run& run, const Stretch<Real>& stretch, index_t number) const {
    kernels_.load_panel(stretch.panel, source_.emissions, stretch.first_frame, stretch.frames);
    begin_stretch(run.job, stretch);
    const ColumnRange all = columns_of_stretch(run.job, stretch.first_frame, stretch.last_frame());
    for (index_t first = all.first; first <= all.last; first += run.group_columns) {
      const ColumnRange columns = {first, std::min(first + run.group_columns - 1, all.last)};
      wait_for_stretch_before(run, number, columns.last);
      if (run.stopped) {
        return report(run, number, kAllColumns);  // who waits for this one must not wait for ever
      }
      kernels_.sweep_columns(run.job, stretch, columns);
      if (run.checkpoints) {
        run.checkpoints->save(run.job.row, stretch.last_frame(), columns.first * kColumnPairs,
                              (columns.last + 1) * kColumnPairs);
      }
      if (crew_.must_stop()) {
        run.stopped = true;
      }
      report(run, number, run.stopped || columns.last == all.last ? kAllColumns : columns.last);
    }
  }

  // A stretch that goes further to the right than the one before needs all of that one.
  void wait_for_stretch_before(Run& run, index_t number, index_t column) const {
    if (!run.progress || number == 0) {
      return;
    }
    Progress& before = run.progress[(number - 1) % run.workers];
    std::unique_lock<std::mutex> lock(before.mutex);
    before.moved.wait(
        lock, [&] { return before.stretch > number - 1 || (before.stretch == number - 1 && before.column >= column); });
  }

  void report(Run& run, index_t number, index_t column) const {
    if (!run.progress) {
      return;
    }
    Progress& own = run.progress[number % run.workers];
    {
      const std::lock_guard<std::mutex> lock(own.mutex);
      own.stretch = number;
      own.column = column;
    }
    own.moved.notify_one();
  }

  static constexpr index_t kAllColumns = std::numeric_limits<index_t>::max();

  const SweepKernels<scalar_t>& kernels_;
  const Crew& crew_;
  const Tiling& tiling_;
  const PanelSource<scalar_t> source_;
  bool by_frame_;
  index_t stretch_frames_;
  index_t row_length_;
  index_t panel_values_;
  std::vector<Desk> desks_;
};

}  // namespace ctc_align
