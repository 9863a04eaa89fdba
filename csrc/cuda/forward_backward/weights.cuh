// Emissions on their way from log_probs to the frames that need them, as weights.
//
// exp() is taken once for each class and frame, by the producers:
//
//     up to 32 classes   WHOLE ROWS, for all consumers. Each producer brings its share of a stage's frames. A star has
//                        the blank's place, which no label reads; the last place is 0, for what is no label.
//     more classes       OWN LABELS: each pair's own. Producer w serves consumer w, one step ahead of it.
//
// The gaps of a frame have a ring of their own: the blank, and with stars (kStars) what lattice's WildGap makes of it.
#pragma once

#include "../../lattice/forward_backward/emissions.h"
#include "task.cuh"

namespace ctc_align {

template <class Real>
struct GapWeights {
  PackedScaled<Real> blank, wild;
  Real blank_value, wild_value;                         // of paths
  Real blank_share, star_share, blank_gain, star_gain;  // as in GapShares
  Real factor;                                          // of the frame's posteriors, in a second pass
};

// The rings in shared memory. Place i % ring is written in the step in which stage i is produced. Whole rows: the last
// consumer reads kSumWarps steps later. Own labels: the producer is one step ahead of its consumer. Gaps are read once
// more when the stage is kept.
template <class Real, int kStage, bool kWholeRows>
struct WeightRings {
  static constexpr int kWidth = kWholeRows ? kWarp + 1 : static_cast<int>(kColumnPairs);
  static constexpr int kNothing = kWarp;  // the place of 0
  static constexpr int kLongRing = 8;
  static constexpr int kRing = kWholeRows ? kLongRing : 2;
  static_assert(kLongRing >= kSumWarps + 2);

  PackedScaled<Real> labels[kRing][kStage][kWidth];
  GapWeights<Real> gaps[kLongRing][kStage];
};

// Which pair a thread holds as its r-th. The way back goes through the pairs from the right to the left, so a thread's
// neighbour to the left in the warp is always the one that its pairs depend on.
struct PairOrder {
  int32_t first;  // of thread 0
  int direction;

  CTC_ALIGN_FN static PairOrder of(const SumTask& task, bool is_forward) {
    const int32_t last = task.first_pair() + task.consumers() * kSumPairs * kWarp - 1;
    return is_forward ? PairOrder{task.first_pair(), 1} : PairOrder{last, -1};
  }
  CTC_ALIGN_FN int32_t pair(int thread, int r) const { return first + direction * (kSumPairs * thread + r); }
};

template <DeviceWords Device, class Real, bool kHasMean, bool kWholeRows, bool kStars>
struct WeightProducer {
  static constexpr int kStage = kSumStage<Real, kHasMean>;
  static constexpr int kFrames =
      kWholeRows ? (kStage + kSumWarps - 1) / kSumWarps : kStage;  // of a stage, that it loads
  static constexpr int kColumns = kWholeRows ? 1 : kSumPairs;      // that a lane loads of a frame
  using Lanes = ThreadLanes<Device, Real>;
  using Rings = WeightRings<Real, kStage, kWholeRows>;
  using Raw = typename StoredReals<Real>::Raw;

  const SumInputs<Real>& in;
  const SumTask& task;
  const SumWorkspace<Real>& work;
  int producer;
  bool needs_factors;
  StoredReals<Real> column[kColumns];  // of the lane's classes, from frame 0 on
  index_t column_stride[kColumns];
  bool is_nothing[kColumns];
  bool brings_gaps;  // a lane for each frame
  Raw coming[kFrames][kColumns];
  Raw coming_gap[2];  // the blank's and the star's
  Real coming_values[2], coming_factor;

  CTC_ALIGN_FN void reset(const PairOrder& order, int number, bool second_pass) {
    producer = number;
    needs_factors = second_pass;
    brings_gaps = producer == 0 && Device::lane() < kStage;
    coming_gap[0] = coming_gap[1] = Raw{};
    coming_values[0] = coming_values[1] = coming_factor = 0;
    CTC_ALIGN_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      index_t c = smaller<index_t>(Device::lane(), in.classes - 1);
      is_nothing[n] = false;
      if constexpr (kWholeRows) {
        c = kStars && in.has_stars() && c == in.blank ? in.classes : c;
      } else {
        const int32_t k = order.pair(producer * kWarp + Device::lane(), n);
        const bool is_label = task.first_pair() <= k && k < task.labels;  // a producer may have no consumer
        c = is_label ? in.label(task.item, k) : in.blank;
        is_nothing[n] = !is_label || !in.is_spoken(c);
        c = is_nothing[n] ? in.blank : c;
      }
      const bool is_star = kStars && in.has_stars() && c == in.classes;
      column[n] = StoredReals<Real>{is_star ? in.star_scores : in.log_probs}.from(
          in.storage, is_star ? in.star_at(task.item, 0) : in.log_prob_at(task.item, 0, c));
      column_stride[n] = is_star ? in.star_frame_stride : in.frame_stride;
      for (int p = 0; p < kFrames; ++p) {
        coming[p][n] = Raw{};
      }
    }
  }

  // Begins to load the stage that begins with a frame.
  //   Called by    all lanes of a producer.
  //   Waits for    nothing.
  //   Afterwards   the lane's registers hold its share; the first use of a value waits for it.
  //   Reuse        the next load() overwrites them, so store() comes before it.
  CTC_ALIGN_FN void load(int32_t frame) {
    if (first_of_share() < kStage) {
      CTC_ALIGN_UNROLL
      for (int p = 0; p < kFrames; ++p) {
        const index_t t = in_item(frame + first_of_share() + p);
        CTC_ALIGN_UNROLL
        for (int n = 0; n < kColumns; ++n) {
          coming[p][n] = column[n].raw(in.storage, t * column_stride[n]);
        }
        if (kFrames > 1) {
          Device::warp_barrier();  // registers hold the addresses of one frame at a time
        }
      }
    }
    if (brings_gaps) {
      const index_t t = in_item(frame + Device::lane());
      coming_gap[0] = StoredReals<Real>{in.log_probs}.raw(in.storage, in.log_prob_at(task.item, t, in.blank));
      if (kStars && in.has_stars()) {
        coming_gap[1] = StoredReals<Real>{in.star_scores}.raw(in.storage, in.star_at(task.item, t));
      }
      if constexpr (kHasMean) {
        coming_values[0] = in.path_value(task.item, t, in.labels);
        coming_values[1] = in.has_stars() ? in.path_value(task.item, t, in.labels + 1) : Real{0};
      }
      if (needs_factors) {
        const index_t in_chapter = larger<index_t>(t - task.chapter_begin, 0);
        coming_factor = factor_of(work.sums_of(task.local_item, in_chapter)[0]);
      }
    }
  }

  // Stores the stage that was loaded last, which is the `stage`th.
  //   Called by    all lanes of a producer, in the step in which it produces the stage.
  //   Waits for    its own loads.
  //   Afterwards   the share is valid for the consumers in the next step.
  //   Reuse        the ring's place is written again a ring of stages later, when its last reader is done.
  CTC_ALIGN_FN void store(Rings& rings, int stage) const {
    if (first_of_share() < kStage) {
      // All at once: a question after the type at every value would keep their series apart.
      Real log_probs[kFrames][kColumns];
      const bool is_real = in.storage == Storage::kReal;
      CTC_ALIGN_UNROLL
      for (int i = 0; i < kFrames * kColumns; ++i) {
        log_probs[i / kColumns][i % kColumns] = same_bits<Real>(coming[i / kColumns][i % kColumns]);
      }
      if (!is_real) {
        CTC_ALIGN_UNROLL
        for (int i = 0; i < kFrames * kColumns; ++i) {
          log_probs[i / kColumns][i % kColumns] =
              StoredReals<Real>::value(in.storage, coming[i / kColumns][i % kColumns]);
        }
      }
      CTC_ALIGN_UNROLL
      for (int p = 0; p < kFrames; ++p) {
        PackedScaled<Real>* const labels = rings.labels[stage % Rings::kRing][first_of_share() + p];
        CTC_ALIGN_UNROLL
        for (int n = 0; n < kColumns; ++n) {
          const auto weight = ScaledWeight<Lanes>::exponential(log_probs[p][n]);
          const int place = kWholeRows ? Device::lane() : (producer * kWarp + Device::lane()) * kColumns + n;
          labels[place] = is_nothing[n] ? packed(ScaledWeight<Lanes>::zero()) : packed(weight);
        }
        if (kFrames > 1) {
          Device::warp_barrier();  // registers hold the series of one frame at a time
        }
      }
    }
    if (brings_gaps) {
      GapWeights<Real>& gap = rings.gaps[stage % Rings::kLongRing][Device::lane()];
      const GapFactor<Lanes> blank = {weight_of(coming_gap[0]), coming_values[0]};
      gap.blank = packed(blank.emission);
      gap.blank_value = blank.value;
      gap.factor = coming_factor;
      if constexpr (kStars) {
        const GapFactor<Lanes> star = {in.has_stars() ? weight_of(coming_gap[1]) : ScaledWeight<Lanes>::zero(),
                                       coming_values[1]};
        const WildGap<Lanes> wild(blank, star);
        gap.wild = packed(wild.emission);
        gap.wild_value = wild.value;
        gap.blank_share = wild.shares.blank_share;
        gap.star_share = wild.shares.star_share;
        gap.blank_gain = wild.shares.blank_gain;
        gap.star_gain = wild.shares.star_gain;
      }
    }
  }

 private:
  CTC_ALIGN_FN int first_of_share() const { return kWholeRows ? producer * kFrames : 0; }
  // Frames past the last one repeat it, so padding is never read.
  CTC_ALIGN_FN index_t in_item(int32_t frame) const { return smaller(frame, task.end_frame - 1); }
  CTC_ALIGN_FN ScaledWeight<Lanes> weight_of(Raw raw) const {
    return ScaledWeight<Lanes>::exponential(StoredReals<Real>::value(in.storage, raw));
  }
  CTC_ALIGN_FN static PackedScaled<Real> packed(const ScaledWeight<Lanes>& weight) {
    return {weight.mantissa, weight.exponent};
  }
};

}  // namespace ctc_align
