// What is kept of a frame: the sums of its posteriors, and what the operator returns of them.
//
// On the way back the consumers leave a stage's posteriors in shared memory, and the producers take a frame each. They
// add them up in the order of lattice/forward_backward/frame.h: 16 lanes over the words of the column, then the lanes.
// With one column that is the whole frame, and its outputs are divided at once. With several, columns add to the same
// outputs from right to left, each after its right neighbour, and a later kernel divides.
#pragma once

#include "weights.cuh"

namespace ctc_align {

// ---------------------------------------------------------------------------------------- 1 shared memory

template <class Real, bool kHasMean>
struct FramePosteriors {
  Real blanks[kColumnPairs], labels[kColumnPairs + 1];  // the last is 0
};
template <class Real>
struct FramePosteriors<Real, true> {
  Real blanks[kColumnPairs], labels[kColumnPairs], blank_parts[kColumnPairs], label_parts[kColumnPairs + 1];
};

// The labels of a column, sorted by class, and by their places among those of a class. A group is filled up to whole fours
// by kNothing, so that four labels are fetched at once.
struct ClassGroups {
  static constexpr int kNothing = static_cast<int>(kColumnPairs);  // the place of 0 in FramePosteriors
  struct alignas(8) Four {
    uint16_t labels[4];
  };
  int32_t of_label[kColumnPairs];     // the class, or kNoClass; free when groups are made
  int32_t classes[kColumnPairs];      // of the groups, increasing
  uint16_t begins[kColumnPairs + 1];  // in fours
  Four fours[kColumnPairs];
  int32_t count;
};

template <class Real, bool kHasMean, bool kWholeRows>
struct SumShared {
  static constexpr int kStage = kSumStage<Real, kHasMean>;
  using Rings = WeightRings<Real, kStage, kWholeRows>;
  // Consumer w writes w + 1 steps after the stage is produced; it is kept one step after the last consumer.
  static constexpr int kRing = kSumWarps + 1;

  Rings rings;
  alignas(16) Real
      edges[kSumWarps + 1][2][kStage][2][kHasMean ? 3 : 2];  // into warp w, and out of the last; two stages in turn
  FramePosteriors<Real, kHasMean> posteriors[kRing][kStage];
  Real lanes[kSumWarps][3][kPairsPerWord];  // of a producer's frame: all posteriors, blanks, stars
  Real sums[kSumWarps][3];
  ClassGroups groups;
  uint16_t wild_bits[kColumnPairs / kPairsPerWord];
  uint32_t ticket, claims_before;
  Total total;
};

static_assert(sizeof(SumShared<float, false, false>) <= 64 << 10 && sizeof(SumShared<double, true, false>) <= 64 << 10,
              "sm_75 has no more");

// ----------------------------------------------------------------------------------------- 2 the keeper

template <DeviceWords Device, class Real, bool kHasMean, bool kWholeRows, bool kStars>
struct SumKeeper {
  using Shared = SumShared<Real, kHasMean, kWholeRows>;
  static constexpr int kStage = Shared::kStage;
  static constexpr int32_t kNoClass = -1;

  const SumInputs<Real>& in;
  const SumTask& task;
  const SumWorkspace<Real>& work;
  Shared& shared;
  int producer;
  FrameRange frames;

  CTC_ALIGN_FN bool is_whole() const { return work.plan.columns() == 1; }

  // Sorts the labels of the column.
  //   Called by    all threads of the block.
  //   Waits for    all of them.
  //   Afterwards   shared.groups and shared.wild_bits are valid for the block after its next barrier.
  //   Reuse        they stay.
  CTC_ALIGN_FN static void begin(const SumInputs<Real>& in, const SumTask& task, Shared& shared) {
    constexpr int kLabels = static_cast<int>(kColumnPairs);
    static_assert(kSumThreads == kLabels, "a thread for each label");
    ClassGroups& groups = shared.groups;
    const int own = Device::thread();
    const int32_t k = task.first_pair() + own;
    const index_t c = k < task.labels ? in.label(task.item, k) : in.blank;
    const int32_t own_class = in.is_spoken(c) ? static_cast<int32_t>(c) : kNoClass;
    groups.of_label[own] = own_class;
    if (own < kLabels / kPairsPerWord) {
      uint32_t bits = 0;
      for (int i = 0; i < static_cast<int>(kPairsPerWord); ++i) {
        const int32_t gap = task.first_pair() + own * static_cast<int32_t>(kPairsPerWord) + i;
        bits |= (kStars && gap <= task.labels && in.is_wild_gap(task.item, gap) ? 1u : 0u) << i;
      }
      shared.wild_bits[own] = static_cast<uint16_t>(bits);
    }
    for (int i = own; i < Shared::kRing * kStage; i += kLabels) {
      label_parts(shared.posteriors[i / kStage][i % kStage])[ClassGroups::kNothing] = 0;
    }
    Device::block_barrier();
    int size = 0, place = 0;  // of the group, and in it
    for (int other = 0; other < kLabels; ++other) {
      const bool is_same = groups.of_label[other] == own_class;
      size += is_same ? 1 : 0;
      place += is_same && other < own ? 1 : 0;
    }
    const bool is_first = own_class != kNoClass && place == 0;
    groups.classes[own] = is_first ? (size + 3) / 4 : 0;  // for now: the group's fours
    Device::block_barrier();
    int group = 0, count = 0, begin = 0, end = 0;
    for (int other = 0; other < kLabels; ++other) {
      const int fours = groups.classes[other];
      const bool is_before = groups.of_label[other] < own_class;
      count += fours > 0 ? 1 : 0;
      group += fours > 0 && is_before ? 1 : 0;
      begin += is_before ? fours : 0;
      end += fours;
    }
    Device::block_barrier();
    if (own_class != kNoClass) {
      groups.fours[begin + place / 4].labels[place % 4] = static_cast<uint16_t>(own);
    }
    if (is_first) {
      groups.classes[group] = own_class;
      groups.begins[group] = static_cast<uint16_t>(begin);
      for (int i = size; i < rounded_up(size, 4); ++i) {
        groups.fours[begin + i / 4].labels[i % 4] = ClassGroups::kNothing;
      }
    }
    if (own == 0) {
      groups.begins[count] = static_cast<uint16_t>(end);
      groups.count = count;
    }
  }

  // Keeps the `stage`th stage, which begins with `frame`.
  //   Called by    all lanes of a producer, in the step after the last consumer has run the stage.
  //   Waits for    the warp, and with several columns for the right neighbour's frames.
  //   Afterwards   the outputs of its frames are in global memory; publish() tells the left neighbour.
  //   Reuse        of the stage's posteriors: when the step has ended.
  CTC_ALIGN_FN void keep(int stage, int32_t frame) {
    for (int p = kStage - 1 - producer; p >= 0; p -= kSumWarps) {
      if (frames.has(frame + p)) {
        keep_frame(stage, frame + p, p);
      }
    }
  }

  // Tells the left neighbour that all frames from `frame` on are kept.
  //   Called by    one thread, after a barrier of the block.
  //   Waits for    nothing.
  //   Afterwards   the outputs are visible to a reader that acquires the word.
  //   Reuse        the column's next stage publishes a lower frame.
  CTC_ALIGN_FN void publish(int32_t frame) const {
    Device::store_release(kept_to(task.column), static_cast<uint32_t>(larger(frame, 0)));
  }

 private:
  CTC_ALIGN_FN uint32_t* kept_to(int32_t column) const {
    return work.kept_to + task.local_item * work.plan.columns() + column;
  }
  template <class Posteriors>
  CTC_ALIGN_FN static auto* label_parts(Posteriors& posteriors) {
    if constexpr (kHasMean) {
      return &posteriors.label_parts[0];
    } else {
      return &posteriors.labels[0];
    }
  }

  CTC_ALIGN_FN void keep_frame(int stage, int32_t frame, int p) {
    add_up(stage, p);
    const Real* const own = shared.sums[producer];
    const Real* const labels = label_parts(shared.posteriors[stage % Shared::kRing][p]);
    Real* const out = in.out + (task.item * in.frames + frame) * in.out_columns;
    if (is_whole()) {
      const Real factor = factor_of(own[0]);
      if (in.kind == SumOutput::kSpans) {
        if (Device::lane() == 0) {
          work.sums_of(task.local_item, frame - task.chapter_begin)[0] = own[0];
        }
      } else {
        put(out, labels, own, [&](Real sum) { return normalized_sum<kHasMean>(sum, factor); });
      }
    } else {
      wait_for_right(frame);
      Real* const sums = work.sums_of(task.local_item, frame - task.chapter_begin);
      const bool is_first = task.column == task.last_column() || !task.frames_of(task.column + 1).has(frame);
      if (Device::lane() < 3) {
        sums[Device::lane()] = (is_first ? Real{0} : sums[Device::lane()]) + own[Device::lane()];
      }
      if (in.kind == SumOutput::kClasses) {
        add_classes(out, labels);
      } else if (in.kind == SumOutput::kTokens) {
        put_tokens(out, labels, [](Real sum) { return sum; });
      }
    }
    Device::warp_barrier();
  }

  // The sums of the column, to shared.sums.
  CTC_ALIGN_FN void add_up(int stage, int p) {
    const auto& posteriors = shared.posteriors[stage % Shared::kRing][p];
    if (Device::lane() < static_cast<int>(kPairsPerWord)) {
      const int words = task.consumers() * kSumPairs * kWarp / static_cast<int>(kPairsPerWord);
      Real labels = 0, blanks = 0, wilds = 0, blank_parts = 0, wild_parts = 0;
      for (int w = 0; w < words; ++w) {
        const int at = w * static_cast<int>(kPairsPerWord) + Device::lane();
        const bool is_wild = kStars && (shared.wild_bits[w] >> Device::lane() & 1) != 0;
        const auto add_gap = [&](Real posterior, Real& blank_sum, Real& wild_sum) {
          blank_sum = blank_sum + (is_wild ? Real{0} : posterior);
          wild_sum = wild_sum + (is_wild ? posterior : Real{0});
        };
        add_gap(posteriors.blanks[at], blanks, wilds);
        if constexpr (kHasMean) {
          add_gap(posteriors.blank_parts[at], blank_parts, wild_parts);
        }
        labels = labels + posteriors.labels[at];
      }
      const Real all = blanks + wilds + labels;
      Real of_blanks = kHasMean ? blank_parts : blanks, stars = 0;
      if constexpr (kStars) {
        const GapWeights<Real>& gap = shared.rings.gaps[stage % Shared::Rings::kLongRing][p];
        const GapShares<ThreadLanes<Device, Real>> shares = {gap.blank_share, gap.star_share, gap.blank_gain,
                                                             gap.star_gain};
        const auto part = shares.template share_out<kHasMean>(kHasMean ? wild_parts : wilds, wilds);
        of_blanks = of_blanks + part.blank;
        stars = part.star;
      }
      shared.lanes[producer][0][Device::lane()] = all;
      shared.lanes[producer][1][Device::lane()] = of_blanks;
      shared.lanes[producer][2][Device::lane()] = stars;
    }
    Device::warp_barrier();
    if (Device::lane() < 3) {
      Real sum = 0;
      CTC_ALIGN_UNROLL
      for (int i = 0; i < static_cast<int>(kPairsPerWord); ++i) {
        sum = sum + shared.lanes[producer][Device::lane()][i];
      }
      shared.sums[producer][Device::lane()] = sum;
    }
    Device::warp_barrier();
  }

  // Waits until the right neighbour has kept a frame.
  //   Called by    all lanes of a producer.
  //   Waits for    a task of an earlier ticket.
  //   Afterwards   what the neighbour has written for the frame is visible to the warp.
  //   Reuse        registers alone.
  CTC_ALIGN_FN void wait_for_right(int32_t frame) const {
    if (Device::lane() == 0 && task.frames_of(task.column + 1).has(frame)) {
      while (Device::load_acquire(kept_to(task.column + 1)) > static_cast<uint32_t>(frame)) {
        Device::pause();
      }
    }
    Device::warp_barrier();
  }

  // The sum of a group's labels, added to what is there.
  CTC_ALIGN_FN Real sum_of_group(int group, const Real* labels, Real sum) const {
    const int end = shared.groups.begins[group + 1];
    for (int i = shared.groups.begins[group]; i < end; ++i) {
      const ClassGroups::Four four = shared.groups.fours[i];
      CTC_ALIGN_UNROLL
      for (int n = 0; n < 4; ++n) {
        sum = sum + labels[four.labels[n]];
      }
    }
    return sum;
  }

  // Outputs of a whole frame.
  template <class Normalize>
  CTC_ALIGN_FN void put(Real* out, const Real* labels, const Real* own, const Normalize& normalize) const {
    if (in.kind == SumOutput::kTokens) {
      put_tokens(out, labels, normalize);
      if (Device::lane() == 0) {
        out[in.labels] = normalize(own[1] + own[2]);
      }
      return;
    }
    for (int group = Device::lane(); group < shared.groups.count; group += kWarp) {
      const int32_t c = shared.groups.classes[group];
      const Real sum = sum_of_group(group, labels, 0);
      if (!kStars || c < in.classes) {
        out[c] = normalize(sum);
      } else if (c < in.out_columns) {
        out[c] = normalize(sum + own[2]);
      }
    }
    if (Device::lane() == 0) {
      out[in.blank] = normalize(own[1]);
      const int last = shared.groups.count - 1;  // the star's, if there are star labels
      if (kStars && in.out_columns > in.classes && (last < 0 || shared.groups.classes[last] != in.classes)) {
        out[in.classes] = normalize(own[2]);
      }
    }
  }

  template <class Normalize>
  CTC_ALIGN_FN void put_tokens(Real* out, const Real* labels, const Normalize& normalize) const {
    const int count = smaller(static_cast<int>(kColumnPairs), task.labels - task.first_pair());
    for (int k = Device::lane(); k < count; k += kWarp) {
      out[task.first_pair() + k] = normalize(labels[k]);
    }
  }

  CTC_ALIGN_FN void add_classes(Real* out, const Real* labels) const {
    for (int group = Device::lane(); group < shared.groups.count; group += kWarp) {
      const int32_t c = shared.groups.classes[group];
      if (c < in.out_columns) {
        out[c] = sum_of_group(group, labels, out[c]);
      }
    }
  }
};

// ------------------------------------------------------------------------------------------- 3 the finish

// Divides the outputs of a frame, when all columns have added to them. A block of one warp for each frame of a chapter.
template <DeviceWords Device, class Real>
CTC_ALIGN_FN void finish_sums(const SumInputs<Real>& in, const SumWorkspace<Real>& work, const SumLaunch& launch) {
  const index_t frames = launch.end - launch.begin;
  const index_t item = Device::block() / static_cast<uint32_t>(frames),
                frame = Device::block() % static_cast<uint32_t>(frames);
  const index_t b = launch.first_item + item, t = launch.begin + frame;
  const ItemLattice lattice = lattice_of(in, b);
  if (!lattice.possible || t >= lattice.band.frames || !total_of_item(work, item).has_path()) {
    return;
  }
  const Real* const sums = work.sums_of(item, frame);
  Real* const out = in.out + (b * in.frames + t) * in.out_columns;
  const Real factor = factor_of(sums[0]);
  const index_t own_columns = in.kind == SumOutput::kTokens ? in.labels : in.classes;
  for (index_t c = Device::lane(); c < in.out_columns; c += kWarp) {
    Real sum = out[c];
    if (c == own_columns) {  // of all blanks and stars in gaps, or of all stars
      sum = in.kind == SumOutput::kTokens ? sums[1] + sums[2] : sum + sums[2];
    } else if (in.kind == SumOutput::kClasses && c == in.blank) {
      sum = sums[1];
    }
    out[c] = in.path_values != nullptr ? normalized_sum<true>(sum, factor) : normalized_sum<false>(sum, factor);
  }
}

}  // namespace ctc_align
