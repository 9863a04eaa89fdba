// A row: the alphas and origins of a consumer's pairs, in registers, and how they go through the frames of a stage.
//
//     column j:   pair 256j                                                                  256j + 255
//                 | thread 0: R pairs | thread 1 | ... | thread 31 | thread 32 | ... | thread 127 |    (R = 2)
//                 |------------------ consumer 0 ------------------|---- consumer 1 ---- ... -----|
//
// Beside its alpha every state carries its ORIGIN: the state in which its best path stood at the end of the last
// interval. There the row of alphas and origins is kept, and every state becomes its own origin. No records are written.
//
// Invariant: between two frames `passed` holds the label alpha and the origin of the thread to the left, as of the frame
// just done. So pass_right() is called as soon as they are known, and again when they change otherwise.
#pragma once

#include "../../lattice/viterbi/pair_step.h"
#include "../thread_lanes.cuh"
#include "edges.cuh"
#include "emissions.cuh"

namespace ctc_align {

template <DeviceWords Device, class Real, int R, bool kWholeRows, bool kStars>
struct Row {
  static constexpr int kWarps = static_cast<int>(kColumnPairs) / R / kWarp;
  static constexpr int kStage = kStageFrames<Real>;
  static constexpr int kGroupFrames = 2;  // emissions and edges come into registers two frames at a time
  using Ring = EmissionRing<Real, kWarps, kWholeRows, kStars>;
  using Buffers = EdgeBuffers<Real, kWarps>;

  const Task<Device, Real>& task;
  Ring& ring;
  int32_t first_pair;  // of the thread

  int32_t interval_end;  // the last frame of the present interval
  index_t kept_at;       // the thread's place in the row that will be kept there
  index_t row_pairs;     // of a kept row

  Real blank_alpha[R], label_alpha[R];
  uint32_t blank_origin[R], label_origin[R];
  int label_class[R];                        // used where rows are whole
  Choice<Device> is_wild[R];                 // used with stars: whether the gap before the label is wild
  Choice<Device> skip_allowed[R], is_first;  // is_first: of the warp's lanes
  Edge<Real> passed;                         // label k-1 of the frame before, k the thread's first pair; not in lane 0
  Real left_at_end;                          // label k-1 of frame T-1, after the pseudo-frame

  // Reads the labels of the pairs, and returns whether one of the warp's is bad: no class, or the blank. A bad label
  // reads the blank's emission, and its item is marked: at the end of a path if the item has one column, else by the hop.
  //   Called by    all lanes of a consumer, at the start of a task.
  //   Waits for    the warp's lanes.
  //   Afterwards   the answer is the same in all lanes.
  //   Reuse        registers alone.
  template <class scalar_t>
  CTC_ALIGN_FN bool read_target(const Inputs<scalar_t, kStars>& in) {
    bool is_bad = false;
    const int32_t last_pair = task.last_pair;
    index_t class_before =
        first_pair > 0 && first_pair <= last_pair ? in.label(task.index.item, first_pair - 1) : in.blank;
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      const index_t k = first_pair + r;
      const index_t c = k < last_pair ? in.label(task.index.item, k) : in.blank;
      skip_allowed[r] = Choice<Device>::of(may_skip_into(k, c, class_before));
      label_class[r] = static_cast<int>(in.is_label(c) && !in.is_star(c) ? c : in.blank);
      if constexpr (kStars) {
        is_wild[r] = Choice<Device>::of(k <= last_pair && in.states(task.index.item).is_wild(k));
      }
      is_bad = is_bad || (k < last_pair && !in.is_label(c));
      class_before = c;
    }
    left_at_end = kMinusInfinity<Real>;
    is_first = Choice<Device>::of(Device::lane() == 0);
    return Device::any(is_bad);
  }

  // The row before the task's first frame block: as the column's task before has left it, or as a pass before has kept it
  // at the start of the region, or -inf.
  template <class scalar_t>
  CTC_ALIGN_FN void begin(const Inputs<scalar_t, kStars>& in, bool continues, int32_t frame_block) {
    const Pass<Real>& pass = task.pass;
    const index_t at = live_at(), item = task.index.item;
    // A region begins with its columns as far as the pass before has reached them.
    const bool starts_region = !task.is_first_pass() && frame_block == task.first_frame_block && frame_block > 0 &&
                               column_in_band(task.end_frame, task.last_pair, task.index.column, frame_block - 1);
    const KeptRow<Real> before = starts_region ? task.work.row_after(task.pass_number - 1, task.index.region)
                                               : KeptRow<Real>{&task.work.passes[0], 0, 0};
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      if (continues) {
        blank_alpha[r] = pass.live_alphas[at + r];
        label_alpha[r] = pass.live_alphas[at + pass.plan.pairs() + r];
        blank_origin[r] = pass.live_origins[at + r];
        label_origin[r] = pass.live_origins[at + pass.plan.pairs() + r];
      } else {
        const index_t k = first_pair + r;
        blank_alpha[r] = starts_region ? before.alpha(item, k, false) : kMinusInfinity<Real>;
        label_alpha[r] = starts_region ? before.alpha(item, k, true) : kMinusInfinity<Real>;
        reset_origins(r);
      }
    }
    if (frame_block == 0 && first_pair == 0) {
      const bool has_label = task.last_pair > 0 && in.is_label(in.label(item, 0));
      const auto emission_of = [&](bool is_label) {
        return load_emission<Real>(in.states(item).stored(0, 0, is_label ? in.label(item, 0) : in.blank));
      };
      start_paths(has_label ? 1 : 0, emission_of, blank_alpha[0], label_alpha[0]);
    }
    begin_interval((task.first_frame_of(frame_block) - task.first_frame_of(task.first_frame_block)) /
                   pass.plan.interval_frames);
  }

  // Leaves the row to the column's next task.
  CTC_ALIGN_FN void leave() const {
    const Pass<Real>& pass = task.pass;
    const index_t at = live_at();
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      pass.live_alphas[at + r] = blank_alpha[r];
      pass.live_alphas[at + pass.plan.pairs() + r] = label_alpha[r];
      pass.live_origins[at + r] = blank_origin[r];
      pass.live_origins[at + pass.plan.pairs() + r] = label_origin[r];
    }
  }

  // The path's end, for the thread that owns blank L, after the pseudo-frame.
  CTC_ALIGN_FN bool owns_end() const { return first_pair <= task.last_pair && task.last_pair < first_pair + R; }
  CTC_ALIGN_FN PathEnd<Real> path_end() const {
    Real blank = blank_alpha[0], label = left_at_end;
    CTC_ALIGN_UNROLL
    for (int r = 1; r < R; ++r) {
      if (first_pair + r == task.last_pair) {
        blank = blank_alpha[r];
        label = label_alpha[r - 1];
      }
    }
    return best_path_end(index_t{task.last_pair}, blank, label);
  }

  // The largest alpha of the thread's pairs that can still reach the end after frame t.
  CTC_ALIGN_FN float largest(index_t t) const {
    float best = kMinusInfinity<float>;
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      const index_t k = first_pair + r;
      if (task.band().first(t) <= k && k <= task.last_pair) {
        const float b = static_cast<float>(blank_alpha[r]), y = static_cast<float>(label_alpha[r]);
        best = b > best ? b : best;
        best = k < task.last_pair && y > best ? y : best;
      }
    }
    return best;
  }
  CTC_ALIGN_FN void subtract(Real moved) {
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      blank_alpha[r] -= moved;
      label_alpha[r] -= moved;
    }
  }

  // Runs a stage, which begins with `frame`; its frame block has `frames` more from there on, the pseudo-frame included.
  //   Called by    all lanes of a consumer with pairs, in the step in which it consumes the stage.
  //   Waits for    the lanes of the warp, in every frame.
  //   Afterwards   the edges into the next warp are valid for it in the next step.
  //   Reuse        of the stage's emissions and edges: when the step has ended.
  CTC_ALIGN_FN void run_stage(int32_t frame, int frames, Edge<Real>* edges) {
    int32_t last = frame + kStage - 1;
    if (frame + kStage <= task.end_frame) {
      run_frames(frame, edges);
    } else {
      run_last_frames(frame, smaller(frames, kStage), edges);
      last = task.end_frame - 1;
    }
    if (last == interval_end || (last == task.end_frame - 1 && last >= frame)) {
      keep();
      pass_right();
    }
  }

  // Passes the thread's last label alpha, and its origin, one thread to the right.
  //   Called by    all lanes of a consumer.
  //   Waits for    the warp's lanes.
  //   Afterwards   `passed` is valid in all lanes but the first.
  //   Reuse        registers alone.
  CTC_ALIGN_FN void pass_right() {
    passed.alpha = Device::shuffle_up(label_alpha[R - 1], 1);
    passed.origin = Device::shuffle_up(label_origin[R - 1], 1);
  }

 private:
  // A whole stage. Emissions and edges are read a group ahead of the frames that need them.
  CTC_ALIGN_FN void run_frames(int32_t frame, Edge<Real>* edges) {
    FrameEmissions<Real, R, kStars> emission[kStage];
    Edge<Real> entering[kStage];
    const auto read_group = [&](int from) {
      CTC_ALIGN_UNROLL
      for (int p = from; p < from + kGroupFrames; ++p) {
        emission[p] = read_emissions(frame, p);
        entering[p] = edges[p];
      }
    };
    read_group(0);
    CTC_ALIGN_UNROLL
    for (int p = 0; p < kStage; ++p) {
      if (p % kGroupFrames == 0 && p + kGroupFrames < kStage) {
        read_group(p + kGroupFrames);
      }
      run_frame(emission[p], cross_edge(entering[p], edges[Buffers::kToNextWarp + p]));
    }
  }

  // The frames up to the item's end. The last may be the pseudo-frame.
  CTC_ALIGN_FN void run_last_frames(int32_t frame, int count, Edge<Real>* edges) {
    for (int p = 0; p < count; ++p) {
      const Edge<Real> left = cross_edge(edges[p], edges[Buffers::kToNextWarp + p]);
      if (frame + p == task.end_frame) {
        left_at_end = left.alpha;
      } else {
        run_frame(read_emissions(frame, p), left);
      }
    }
  }

  // Reads the emissions of the p-th frame of the stage that begins with `frame`.
  CTC_ALIGN_FN FrameEmissions<Real, R, kStars> read_emissions(int32_t frame, int p) const {
    const Real* values = ring.values_from(frame)[p];
    FrameEmissions<Real, R, kStars> emission;
    const auto blank = ring.blanks_from(frame)[p];
    if constexpr (!kStars) {
      emission.blank[0] = blank;
    }
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      if constexpr (kStars) {
        emission.blank[r] = is_wild[r].select(blank.wild, blank.blank);
      }
      emission.label[r] = values[kWholeRows ? label_class[r] : Device::thread() * R + r];
    }
    return emission;
  }

  // Returns label k-1 of the frame before, k the thread's first pair, and sends the warp's last label to the next warp.
  CTC_ALIGN_FN Edge<Real> cross_edge(const Edge<Real>& entering, Edge<Real>& leaving) const {
    if (Device::lane() == kWarp - 1) {
      leaving = {label_alpha[R - 1], label_origin[R - 1]};
    }
    return {is_first.select(entering.alpha, passed.alpha), is_first.select(entering.origin, passed.origin)};
  }

  CTC_ALIGN_FN void run_frame(const FrameEmissions<Real, R, kStars>& emission, const Edge<Real>& left) {
    CTC_ALIGN_UNROLL
    for (int r = R - 1; r >= 0; --r) {  // from the right: pair r reads label r-1 of the frame before
      const Real left_alpha = r > 0 ? label_alpha[r - 1] : left.alpha;
      const uint32_t left_origin = r > 0 ? label_origin[r - 1] : left.origin;
      const auto record =
          pair_step<ThreadLanes<Device, Real>>(left_alpha, skip_allowed[r], emission.blank[kStars ? r : 0],
                                               emission.label[r], blank_alpha[r], label_alpha[r]);
      const uint32_t best_origin = record.from_left ? left_origin : blank_origin[r];
      // By a predicate: the compiler joins this choice with the next one.
      const uint32_t entry_origin = skip_allowed[r].holds() ? best_origin : blank_origin[r];
      label_origin[r] = record.enters ? entry_origin : label_origin[r];
      blank_origin[r] = best_origin;
      if (r == R - 1) {
        pass_right();
      }
    }
  }

  // `interval` is counted in the region. What the plan says of rows takes divisions, so it is asked once a task.
  CTC_ALIGN_FN void begin_interval(int32_t interval) {
    row_pairs = task.plan().pairs();
    kept_at = task.pass.kept(task.index.item, task.index.region, interval, {first_pair, false});
    interval_end =
        task.first_frame_block * static_cast<int32_t>(kFrameBlock) + (interval + 1) * task.plan().interval_frames;
  }

  // Called at the end of an interval, and at the item's.
  CTC_ALIGN_FN void keep() {
    OfPairs<Real> blanks, labels;
    OfPairs<uint16_t> from_blanks, from_labels;
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      blanks.of[r] = blank_alpha[r];
      labels.of[r] = label_alpha[r];
      from_blanks.of[r] = steps_back(first_pair + r, blank_origin[r]);
      from_labels.of[r] = steps_back(first_pair + r, label_origin[r]);
      reset_origins(r);
    }
    put(task.pass.kept_alphas + kept_at, blanks);
    put(task.pass.kept_alphas + kept_at + row_pairs, labels);
    put(task.pass.kept_origins + kept_at, from_blanks);
    put(task.pass.kept_origins + kept_at + row_pairs, from_labels);
    kept_at += 2 * row_pairs;
    interval_end += task.plan().interval_frames;
  }

  // A thread's values of a row; they are written at once.
  template <class T>
  struct alignas(R * sizeof(T)) OfPairs {
    T of[R];
  };
  template <class T>
  CTC_ALIGN_FN static void put(T* row, const OfPairs<T>& values) {
    *reinterpret_cast<OfPairs<T>*>(row) = values;
  }
  CTC_ALIGN_FN static uint16_t steps_back(int32_t pair, uint32_t origin) {
    return static_cast<uint16_t>((pair - origin / 2) * 2 + origin % 2);
  }
  CTC_ALIGN_FN void reset_origins(int r) {
    blank_origin[r] = pack_state({index_t{first_pair} + r, false});
    label_origin[r] = pack_state({index_t{first_pair} + r, true});
  }
  CTC_ALIGN_FN index_t live_at() const {
    return task.index.item * 2 * task.plan().pairs() + task.index.region * kColumnPairs + first_pair;
  }
};

}  // namespace ctc_align
