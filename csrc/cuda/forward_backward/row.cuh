// A row: the weights of a consumer's pairs, in registers, and how they go through the frames of a stage.
//
// Forward a thread holds alphas; on the way back it holds q (lattice/forward_backward/pair_sums.h). A sweep keeps its
// alphas or betas in memory, frame by frame, or it meets those that the sweep the other way has left there. Both ways a
// pair depends on its neighbour UPSTREAM, to the left or to the right, and PairOrder makes that the thread to the left.
//
// Invariant: between two frames `passed` holds the weights that come from upstream, as of the frame just done.
#pragma once

#include "keep.cuh"

namespace ctc_align {

// What a sweep does with the alphas, or betas, of every frame. In a second pass it meets them again, and adds up the
// posteriors of spans.
enum class SumMode { kForget, kKeep, kMeet, kMeetAgain };

// What crosses from a pair to the next one: a label alpha, or q of both states.
template <class Weight, bool kForward>
struct Upstream {
  static constexpr int kCount = kForward ? 1 : 2;
  Weight of[kCount];  // the label's; or the blank's, then the label's
};

template <DeviceWords Device, class Real, bool kHasMean, bool kWholeRows, bool kStars, bool kForward, SumMode kMode>
struct SumRow {
  static constexpr int kStage = kSumStage<Real, kHasMean>;
  static constexpr int R = kSumPairs;
  using Lanes = ThreadLanes<Device, Real>;
  using Weight = SumWeight<Device, Real, kHasMean>;
  using Shared = SumShared<Real, kHasMean, kWholeRows>;
  using Rings = typename Shared::Rings;
  using Pairs = PackedPairs<Weight>;
  using FromUpstream = Upstream<Weight, kForward>;
  static constexpr bool kMeets = kMode == SumMode::kMeet || kMode == SumMode::kMeetAgain;

  const SumInputs<Real>& in;
  const SumTask& task;
  Shared& shared;
  int consumer;
  FrameRange frames;  // of this sweep

  PairSums<Weight> state[R];
  int32_t pairs[R];
  int label_class[R];  // its place in a whole row
  bool may_skip[R], is_wild[R];
  FromUpstream passed;
  // The thread's pairs at frame memory_frame. Pairs after the item's last have no room in memory. They are all zero, so
  // they may meet anything, and read pair 0's.
  Real* memory;
  int32_t memory_frame, memory_stride;  // in Reals, from frame to frame
  bool has_memory;
  Meeting<Lanes, Weight> meeting;  // the rest is for sweeps that meet
  Pairs met[kStage];               // of the coming frames
  Real value[kStage][R];           // path values of the coming frames
  FrameRange span[R];
  Real span_frames[R], span_sum[R];

  CTC_ALIGN_FN void read_target(const PairOrder& order) {
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      const index_t k = pairs[r] = order.pair(consumer * kWarp + Device::lane(), r);
      const index_t into = kForward ? k : k + 1;  // the label of the skip
      const index_t own = class_of(k);
      const index_t skipped_into = kForward ? own : class_of(into);
      const index_t before = kForward ? class_of(k - 1) : own;
      may_skip[r] = into < task.labels && may_skip_into(into, skipped_into, before);
      const bool is_label = k < task.labels && in.is_spoken(own);
      label_class[r] = !is_label ? Rings::kNothing : static_cast<int>(own == in.classes ? in.blank : own);
      is_wild[r] = kStars && k <= task.labels && in.is_wild_gap(task.item, k);
    }
  }
  CTC_ALIGN_FN int32_t lower_pair() const { return kForward ? pairs[0] : pairs[R - 1]; }

  CTC_ALIGN_FN void clear() {
    for (int r = 0; r < R; ++r) {
      state[r] = {Weight::zero(), Weight::zero()};
    }
  }
  // Puts all probability into a blank.
  CTC_ALIGN_FN void begin_in(int32_t blank) {
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      const Real one[3] = {1, 0, 0};
      state[r].blank = pairs[r] == blank ? unpack<Weight>(one) : state[r].blank;
    }
  }
  CTC_ALIGN_FN void load_row(const Real* from) {
    const Pairs row = *reinterpret_cast<const Pairs*>(from);
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      state[r] = {unpack<Weight>(row.of[place(r)][0]), unpack<Weight>(row.of[place(r)][1])};
    }
  }
  CTC_ALIGN_FN void store_row(Real* to) const { store(state, to); }

  // Begins to load what the frames of a stage meet.
  CTC_ALIGN_FN void load_stage(int32_t frame) {
    CTC_ALIGN_UNROLL
    for (int p = 0; p < kStage; ++p) {
      if (frames.has(frame + p)) {
        load_frame(frame + p, p, at_frame(frame + p));
      }
    }
  }

  // Runs the `stage`th stage, which begins with `frame`.
  //   Called by    all lanes of a consumer with pairs, in the step in which it consumes the stage.
  //   Waits for    the lanes of the warp, in every frame.
  //   Afterwards   the edges into the next warp, and posteriors, are valid in the next step.
  //   Reuse        of the stage's weights and edges: when the step has ended.
  CTC_ALIGN_FN void run_stage(int stage, int32_t frame) {
    const int32_t low = frame - (kMeets && !kForward ? kStage : 0),
                  high = frame + (kMeets && kForward ? 2 : 1) * kStage;
    if (frames.begin <= low && high <= frames.end) {
      run_frames<true>(stage, frame);
    } else {
      run_frames<false>(stage, frame);
    }
  }

  // Passes what the next thread needs of this one's last pair.
  //   Called by    all lanes of a consumer.
  //   Waits for    the warp's lanes.
  //   Afterwards   `passed` is valid in all lanes but the first.
  //   Reuse        registers alone.
  CTC_ALIGN_FN void pass_on() {
    const FromUpstream own = downstream();
    CTC_ALIGN_UNROLL
    for (int i = 0; i < FromUpstream::kCount; ++i) {
      Real parts[3];
      pack(own.of[i], parts);
      CTC_ALIGN_UNROLL
      for (int plane = 0; plane < Weight::kPlanes; ++plane) {
        parts[plane] = Device::shuffle_up(parts[plane], 1);
      }
      passed.of[i] = unpack<Weight>(parts);
    }
  }

  // ------------------------------------------------------------------------------------------------- spans

  CTC_ALIGN_FN void begin_spans() {
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      const index_t b = task.item, k = pairs[r];
      span[r] = {0, 0};
      span_frames[r] = 1;
      span_sum[r] = 0;
      if (k < task.labels) {
        const index_t begin = in.starts[b * in.starts_strides[0] + k * in.starts_strides[1]];
        const index_t end = in.ends[b * in.ends_strides[0] + k * in.ends_strides[1]];
        span[r] = {static_cast<int32_t>(larger<index_t>(0, smaller<index_t>(begin, task.end_frame))),
                   static_cast<int32_t>(larger<index_t>(0, smaller<index_t>(end, task.end_frame)))};
        span_frames[r] = static_cast<Real>(span[r].end - span[r].begin);
        span_sum[r] = in.out[b * in.out_columns + k];
      }
    }
  }
  CTC_ALIGN_FN void end_spans() const {
    for (int r = 0; r < R; ++r) {
      if (pairs[r] < task.labels) {
        in.out[task.item * in.out_columns + pairs[r]] = span_sum[r];
      }
    }
  }

 private:
  CTC_ALIGN_FN static void store(const PairSums<Weight> (&weights)[R], Real* to) {
    Pairs row;
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      pack(weights[r].blank, row.of[place(r)][0]);
      pack(weights[r].label, row.of[place(r)][1]);
    }
    *reinterpret_cast<Pairs*>(to) = row;
  }
  CTC_ALIGN_FN static int place(int r) { return kForward ? r : R - 1 - r; }
  CTC_ALIGN_FN index_t class_of(index_t k) const {
    return 0 <= k && k < task.labels ? in.label(task.item, k) : in.blank;
  }
  CTC_ALIGN_FN FromUpstream downstream() const { return of_pair(state[R - 1]); }
  CTC_ALIGN_FN static FromUpstream of_pair(const PairSums<Weight>& pair) {
    if constexpr (kForward) {
      return {{pair.label}};
    } else {
      return {{pair.blank, pair.label}};
    }
  }

  CTC_ALIGN_FN Real* at_frame(int32_t frame) const { return memory + index_t{frame - memory_frame} * memory_stride; }

  // kInner: all frames of the stage are of this sweep, and those of the next one, if they are to be loaded.
  template <bool kInner>
  CTC_ALIGN_FN void run_frames(int stage, int32_t frame) {
    constexpr int kNext = kForward ? kStage : -kStage, kCalledAhead = 8 * kNext;
    Real* const row = at_frame(frame);
    const bool calls_ahead = frames.has(frame + kCalledAhead) && frames.has(frame + kCalledAhead + kStage - 1);
    FromUpstream entering[kStage];
    CTC_ALIGN_UNROLL
    for (int p = 0; p < kStage; ++p) {
      for (int i = 0; i < FromUpstream::kCount; ++i) {
        entering[p].of[i] = unpack<Weight>(shared.edges[consumer][stage % 2][p][i]);
      }
    }
    CTC_ALIGN_UNROLL
    for (int i = 0; i < kStage; ++i) {
      const int p = kForward ? i : kStage - 1 - i;
      if (kInner || frames.has(frame + p)) {
        run_frame(stage, frame + p, p, row + p * memory_stride, entering[p]);
      }
      if (kMeets && (kInner || frames.has(frame + p + kNext))) {
        load_frame(frame + p + kNext, p, row + (p + kNext) * memory_stride);
        if (calls_ahead) {
          Device::prefetch(row + (p + kCalledAhead) * memory_stride);
        }
      }
    }
  }

  CTC_ALIGN_FN void load_frame(int32_t frame, int p, const Real* row) {
    if constexpr (kMeets) {
      met[p] = *reinterpret_cast<const Pairs*>(row);
    }
    if constexpr (kHasMean) {
      CTC_ALIGN_UNROLL
      for (int r = 0; r < R; ++r) {
        value[p][r] = pairs[r] < task.labels ? in.path_value(task.item, frame, pairs[r]) : Real{0};
      }
    }
  }

  // Returns what comes from upstream, and sends the warp's last pair to the next warp.
  CTC_ALIGN_FN FromUpstream cross_edge(int stage, int p, const FromUpstream& entering) {
    if (Device::lane() == kWarp - 1) {
      const FromUpstream own = downstream();
      for (int i = 0; i < FromUpstream::kCount; ++i) {
        pack(own.of[i], shared.edges[consumer + 1][stage % 2][p][i]);
      }
    }
    FromUpstream up;
    CTC_ALIGN_UNROLL
    for (int i = 0; i < FromUpstream::kCount; ++i) {
      up.of[i] = Weight::select(Device::lane() == 0, entering.of[i], passed.of[i]);
    }
    return up;
  }

  CTC_ALIGN_FN void run_frame(int stage, int32_t frame, int p, Real* row, const FromUpstream& entering) {
    if constexpr (!kMeets && kHasMean) {
      load_frame(frame, p, row);
    }
    const FromUpstream up = cross_edge(stage, p, entering);
    PairSums<Weight> sums[R];
    CTC_ALIGN_UNROLL
    for (int r = R - 1; r >= 0; --r) {
      const FromUpstream from = r > 0 ? of_pair(state[r - 1]) : up;
      if constexpr (kForward) {
        sums[r] = sum_forward(from.of[0], state[r], may_skip[r]);
      } else {
        sums[r] = sum_backward(state[r], PairSums<Weight>{from.of[0], from.of[1]}, may_skip[r]);
      }
    }
    const GapWeights<Real>& gap = shared.rings.gaps[stage % Rings::kLongRing][p];
    const PackedScaled<Real>* const labels = shared.rings.labels[stage % Rings::kRing][p];
    // A stage begins with a multiple of its frames, so only its last frame may be the one.
    const bool normalizes =
        p == kStage - 1 && (frame & static_cast<int32_t>(kFramesToNormalize - 1)) == kFramesToNormalize - 1;
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      const bool wild = kStars && is_wild[r];
      const PackedScaled<Real> blank = wild ? gap.wild : gap.blank;
      const Real blank_value = wild ? gap.wild_value : gap.blank_value;
      const PackedScaled<Real> label =
          labels[kWholeRows ? label_class[r] : (consumer * kWarp + Device::lane()) * R + r];
      state[r].blank = sums[r].blank.times({blank.mantissa, blank.exponent}, blank_value);
      state[r].label = sums[r].label.times({label.mantissa, label.exponent}, kHasMean ? value[p][r] : Real{0});
      if (normalizes) {
        state[r] = {state[r].blank.normalized(), state[r].label.normalized()};
      }
    }
    pass_on();
    if constexpr (kMeets) {
      meet(kForward ? state : sums, stage, frame, p);
    } else if constexpr (kMode == SumMode::kKeep) {
      if (has_memory) {
        store(kForward ? state : sums, row);
      }
    }
  }

  // `own`: alphas forward, betas on the way back.
  CTC_ALIGN_FN void meet(const PairSums<Weight> (&own)[R], int stage, int32_t frame, int p) {
    auto& posteriors = shared.posteriors[stage % Shared::kRing][p];
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      const PairSums<Weight> other = {unpack<Weight>(met[p].of[place(r)][0]), unpack<Weight>(met[p].of[place(r)][1])};
      Real blank_part, label_part;
      const Real blank = meeting(other.blank, own[r].blank, blank_part);
      const Real label = meeting(other.label, own[r].label, label_part);
      const int at = pairs[r] - task.first_pair();
      if constexpr (kMode == SumMode::kMeetAgain) {
        if (span[r].has(frame)) {
          const Real factor = shared.rings.gaps[stage % Rings::kLongRing][p].factor;
          span_sum[r] += normalized_sum<kHasMean>(label, factor) / span_frames[r];
        }
      } else {
        posteriors.blanks[at] = blank;
        posteriors.labels[at] = label;
        if constexpr (kHasMean) {
          posteriors.blank_parts[at] = blank_part;
          posteriors.label_parts[at] = label_part;
        }
      }
    }
  }
};

}  // namespace ctc_align
