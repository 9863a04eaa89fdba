// Emissions on their way from log_probs to the frames that need them.
//
// A thread needs the emissions of the blank and of its own R labels, frame by frame. They are loaded well before they are
// used and keep their storage type until they are stored: converting one would stall on its load. Frames past the last
// one repeat it, so padding is never read.
//
// In the sweep the producers put them into a ring of stages in shared memory:
//
//     up to 32 classes   WHOLE ROWS, for all consumers. A row of 32 float32 lies in 32 banks of shared memory, so lanes
//                        look up any classes without a conflict. Each producer brings its share of a stage's frames.
//     more classes       OWN LABELS: each pair's own. Each producer serves one consumer.
//
// The blank's emissions have a ring of their own.
#pragma once

#include "../inputs.cuh"
#include "steps.cuh"

namespace ctc_align {

// The emissions of a thread's pairs at one frame.
template <class Real, int R>
struct FrameEmissions {
  Real blank;
  Real label[R];
};

// Loads frame after frame of N classes: for the producers of the sweep, and for the trace.
template <class scalar_t, int N>
struct FrameLoader {
  const scalar_t* column[N];  // a class at frame 0
  index_t frame_stride;
  int32_t last_frame;

  CTC_ALIGN_FN void reset(const Emissions<scalar_t>& emissions, index_t last) {
    frame_stride = emissions.frame_stride;
    last_frame = static_cast<int32_t>(last);
  }

  // P frames from `first` on. A class that is not wanted is not read; its values are `unwanted`.
  template <int P>
  CTC_ALIGN_FN void load(int32_t first, const bool (&is_wanted)[N], scalar_t unwanted, scalar_t (*values)[N]) const {
    const int32_t frames_after = last_frame - first;
    const index_t offset = smaller(first, last_frame) * frame_stride;
    const scalar_t* from[N];
    CTC_ALIGN_UNROLL
    for (int n = 0; n < N; ++n) {
      from[n] = column[n] + offset;
    }
    CTC_ALIGN_UNROLL
    for (int p = 0; p < P; ++p) {
      const index_t step = p < frames_after ? frame_stride : 0;
      CTC_ALIGN_UNROLL
      for (int n = 0; n < N; ++n) {
        values[p][n] = unwanted;
        if (is_wanted[n]) {
          values[p][n] = *from[n];
        }
        from[n] += step;
      }
    }
  }
};

// The rings in shared memory. A place is written in the step in which its stage is produced and read in the later ones in
// which it is consumed. Own labels: producer w stores for consumer w one step ahead, so two places are enough. Otherwise
// the last of kWarps consumers reads kWarps steps after the producer has stored.
template <class Real, int kWarps, bool kWholeRows>
struct EmissionRing {
  static constexpr int kStage = kStageFrames<Real>;
  static constexpr int kWidth = kWholeRows ? kWarp : static_cast<int>(kColumnPairs);
  static constexpr int kLongRing = 2 * kWarps;  // at least kWarps + 1, and a power of 2
  static constexpr int kRing = kWholeRows ? kLongRing : 2;

  Real values[kRing][kStage][kWidth];
  Real blanks[kLongRing][kStage];

  // Those of the stage that begins with a frame.
  CTC_ALIGN_FN auto* values_from(int32_t frame) { return values[stage_number(frame) % kRing]; }
  CTC_ALIGN_FN Real* blanks_from(int32_t frame) { return blanks[stage_number(frame) % kLongRing]; }

 private:
  CTC_ALIGN_FN static uint32_t stage_number(int32_t frame) { return static_cast<uint32_t>(frame) / kStage; }
};

// What one producer brings, stage after stage: it loads each stage one step before it stores it.
template <DeviceWords Device, class Real, class scalar_t, int R, int kWarps, bool kWholeRows>
struct EmissionProducer {
  using Ring = EmissionRing<Real, kWarps, kWholeRows>;
  static constexpr int kStage = kStageFrames<Real>;
  static constexpr int kFrames = kWholeRows ? kStage / kWarps : kStage;  // of a stage, that it loads
  static constexpr int kColumns = kWholeRows ? 1 : R;                    // that a lane loads of a frame
  static constexpr int kPart = kFrames < 8 ? kFrames : 8;  // frames at a time: registers hold their addresses
  static constexpr int kCalledAhead = 8 * kStage;
  static_assert(kStage % kWarps == 0, "the producers' shares of a stage are equal");

  FrameLoader<scalar_t, kColumns> loader;  // of the lane's classes
  const scalar_t* blank_column;
  int32_t from_frame, until_frame;  // outside these none of the lane's labels is in the band: no such stage is loaded
  int producer;                     // its number
  bool is_blank;                    // whether the lane brings the blank's emissions
  scalar_t coming[kFrames][kColumns];
  scalar_t coming_blank;

  // Begins with an item, and with the lane's pairs, from first_pair on.
  CTC_ALIGN_FN void reset(const Inputs<scalar_t>& in, index_t item, const Band& band, int32_t first_pair, int number) {
    producer = number;
    const Emissions<scalar_t> emissions = in.emissions(item);
    loader.reset(emissions, band.frames - 1);
    blank_column = &emissions.at(0, in.blank);
    coming_blank = scalar_t{};
    is_blank = kWholeRows ? Device::lane() == in.blank : producer == 0 && Device::lane() < kStage;
    from_frame = 0;
    until_frame = loader.last_frame;
    CTC_ALIGN_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      index_t c = smaller<index_t>(Device::lane(), in.classes - 1);
      if (!kWholeRows) {
        c = first_pair + n < band.labels ? in.label(item, first_pair + n) : in.blank;
        c = in.is_label(c) ? c : in.blank;  // the item is marked
      }
      loader.column[n] = &emissions.at(0, c);
      CTC_ALIGN_UNROLL
      for (int p = 0; p < kFrames; ++p) {
        coming[p][n] = scalar_t{};
      }
    }
    if (!kWholeRows) {
      from_frame = first_pair;
      until_frame =
          first_pair < band.labels ? static_cast<int32_t>(band.frames - band.labels) + first_pair + R - 1 : -1;
    }
  }

  // Begins to load the stage that begins with a frame.
  //   Called by    all lanes of a producer.
  //   Waits for    the warp alone: its lanes load one part together.
  //   Afterwards   the lane's registers hold its share; the first use of a value waits for it.
  //   Reuse        the next load() overwrites them, so store() comes before it.
  CTC_ALIGN_FN void load(int32_t frame) {
    const int32_t first = frame + first_of_share();
    bool all[kColumns];
    CTC_ALIGN_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      all[n] = true;
    }
    CTC_ALIGN_UNROLL
    for (int part = 0; part < kFrames; part += kPart) {
      if (from_frame < frame + kStage && frame <= until_frame) {
        loader.template load<kPart>(first + part, all, scalar_t{}, coming + part);
      }
      Device::warp_barrier();
    }
    if (kWholeRows) {
      // A step takes about as long as a load from the second cache: what lies further ahead is called into that cache.
      const int32_t called = first + kCalledAhead + Device::lane() % kFrames;
      if (called <= loader.last_frame) {
        Device::prefetch(loader.column[0] + called * loader.frame_stride);
      }
    } else if (is_blank) {
      coming_blank = blank_column[smaller(frame + Device::lane(), loader.last_frame) * loader.frame_stride];
    }
  }

  // Stores the stage that was loaded last, which begins with a frame.
  //   Called by    all lanes of a producer, in the step in which it produces the stage.
  //   Waits for    its own loads.
  //   Afterwards   the share is valid for the consumers in the next step.
  //   Reuse        the ring's place is written again kRing stages later, when its last reader is done.
  CTC_ALIGN_FN void store(Ring& ring, int32_t frame) const {
    auto* const values = ring.values_from(frame) + first_of_share();
    Real* const blanks = ring.blanks_from(frame) + first_of_share();
    const int first_value = kWholeRows ? Device::lane() : (producer * kWarp + Device::lane()) * R;
    CTC_ALIGN_UNROLL
    for (int p = 0; p < kFrames; ++p) {
      CTC_ALIGN_UNROLL
      for (int n = 0; n < kColumns; ++n) {
        const Real emission = load_emission<Real>(coming[p][n]);
        values[p][first_value + n] = emission;
        if (kWholeRows && is_blank) {
          blanks[p] = emission;
        }
      }
    }
    if (!kWholeRows && is_blank) {
      blanks[Device::lane()] = load_emission<Real>(coming_blank);
    }
  }

 private:
  // The first of the stage's frames that it loads.
  CTC_ALIGN_FN int first_of_share() const { return kWholeRows ? producer * kFrames : 0; }
};

}  // namespace ctc_align
