// Who sweeps what, when: stretches of one item over the threads of a crew.
//
// A worker takes the next stretch of frames and sweeps it from left to right, a group of columns at a time. Before each
// group it makes sure that the stretch before has been swept as far; if not, it sleeps until that is so.
//
//     pair  |   worker 0: 1st stretch | worker 1: 2nd    | worker 0: 3rd ...
//           |    done                 |   to do          |
//           |    done                 |   at work  <--------- needs the group on its left in the picture ("before")
//           |    done                 |   done           |        and the one below ("on the left")
//           +------------------------------------------------------------------------------------- t
//
// Stretches are handed out in order, so the one before is always done or in work: even a crew that is run by a single
// thread, one worker after the other, comes to an end.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "../lattice/ladder.h"
#include "float_state.h"
#include "sweep_kernels.h"

namespace ctc_align {

// Thrown where a call was asked to stop.
struct Interrupted : std::runtime_error {
  Interrupted() : std::runtime_error("forced_align: interrupted") {}
};

// The threads at hand. Nothing here knows whose they are.
struct Crew {
  int workers = 1;
  void (*run)(int workers, const std::function<void(int)>& work) = nullptr;  // work(0), ..., work(workers - 1)
  bool (*interrupted)() = nullptr;  // asked every now and then, by any thread

  bool must_stop() const { return interrupted && interrupted(); }
};

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
    index_t most = std::min(kBlockFrames, std::max<index_t>(frames - 1, 1));
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
      row_length_ = (stretch_frames_ + group - 1) / group * group + group;  // + group: no power of two, which caches hate
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
    Run run{job, to, checkpoints, from + 1};
    const index_t worth_it = std::min(job.band.cells(from + 1, to + 1) / kCellsForAWorker, (to - from) / stretch_frames_);
    const int workers = static_cast<int>(std::min<index_t>(worth_it, crew_.workers));
    if (workers <= 1) {
      work(run, desks_[0], 0);
    } else {
      for (int w = 0; w < workers; ++w) {
        prepare(desks_[w]);
      }
      run.progress.resize(workers);
      crew_.run(workers, [&](int w) { work(run, desks_[w], workers); });
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
  // A group is worth taking a lock for.
  static constexpr index_t kCellsInGroup = 1 << 20;

  // What a worker needs for one stretch.
  struct Desk {
    std::unique_ptr<Real[]> panel;
    std::unique_ptr<Real[]> edges;
    std::unique_ptr<index_t[]> row_offsets;
  };

  // How far a worker has come: with all columns of all stretches before `stretch`, and up to `column` in that one.
  struct Progress {
    index_t stretch = -1;
    index_t column = -1;
  };

  struct Run {
    const SweepJob<Real>& job;
    const index_t to;
    const Checkpoints<Real>* const checkpoints;

    index_t next_frame;
    index_t next_stretch = 0;
    bool stopped = false;
    std::vector<Progress> progress = {};  // stretch s is worked on by whoever writes progress[s % workers]
    std::mutex mutex = {};
    std::condition_variable moved = {};
  };

  void prepare(Desk& desk) const {
    if (!desk.panel) {
      desk.panel = uninitialized<Real>(panel_values_);
      desk.edges = uninitialized<Real>(stretch_frames_);
      desk.row_offsets = uninitialized<index_t>(stretch_frames_);
    }
  }

  // One worker's whole run. `workers` is 0 for somebody who is alone and needs no lock.
  void work(Run& run, const Desk& desk, int workers) const {
    const StandardFloats standard_floats;
    for (;;) {
      std::unique_lock<std::mutex> lock(run.mutex, std::defer_lock);
      if (workers) {
        lock.lock();
      }
      if (run.stopped || run.next_frame > run.to) {
        return;
      }
      const index_t number = run.next_stretch++;
      const Stretch<Real> stretch = next_stretch(run, desk);
      run.next_frame += stretch.frames;
      if (workers) {
        run.progress[number % workers] = {number, -1};
        lock.unlock();
      }
      sweep_stretch(run, stretch, number, workers);
    }
  }

  Stretch<Real> next_stretch(const Run& run, const Desk& desk) const {
    const index_t t = run.next_frame;
    index_t end = std::min({t + stretch_frames_, end_of_block(t), run.to + 1});
    if (run.checkpoints) {
      end = std::min(end, run.checkpoints->next_frame(t) + 1);
    }
    return {t,
            end - t,
            {desk.panel.get(), row_length_, by_frame_, source_.class_count, source_.classes, source_.blank},
            desk.edges.get(),
            desk.row_offsets.get()};
  }

  void sweep_stretch(Run& run, const Stretch<Real>& stretch, index_t number, int workers) const {
    kernels_.load_panel(stretch.panel, source_.emissions, stretch.first_frame, stretch.frames);
    begin_stretch(run.job, stretch);
    const ColumnRange all = columns_of_stretch(run.job, stretch.first_frame, stretch.last_frame());
    const index_t group = tiling_.group_columns > 0
                              ? tiling_.group_columns
                              : std::max<index_t>(1, kCellsInGroup / (stretch.frames * kColumnPairs));
    for (index_t first = all.first; first <= all.last; first += group) {
      const ColumnRange columns = {first, std::min(first + group - 1, all.last)};
      if (workers && !wait_for_stretch_before(run, number, columns.last, workers)) {
        return;
      }
      kernels_.sweep_columns(run.job, stretch, columns);
      if (run.checkpoints) {
        run.checkpoints->save(run.job.row, stretch.last_frame(), columns.first * kColumnPairs,
                              (columns.last + 1) * kColumnPairs);
      }
      const bool stop = crew_.must_stop();
      if (workers) {
        const std::lock_guard<std::mutex> lock(run.mutex);
        run.stopped |= stop;
        run.progress[number % workers] = {number, columns.last == all.last ? kAllColumns : columns.last};
        run.moved.notify_all();
      } else {
        run.stopped |= stop;
      }
      if (stop) {
        return;
      }
    }
  }

  // Returns false if the work is to end.
  bool wait_for_stretch_before(Run& run, index_t number, index_t column, int workers) const {
    std::unique_lock<std::mutex> lock(run.mutex);
    run.moved.wait(lock, [&] {
      const Progress& before = run.progress[(number + workers - 1) % workers];
      return run.stopped || before.stretch > number - 1 || (before.stretch == number - 1 && before.column >= column) ||
             number == 0;
    });
    return !run.stopped;
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
