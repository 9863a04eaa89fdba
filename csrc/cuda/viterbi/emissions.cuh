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
// The blank's emissions have a ring of their own. With stars (kStars) it holds a frame's emission in a wild gap as well, which
// the producer works out. A star label reads the star like the emission of a class: in whole rows the star has the blank's
// place, which no label reads.
#pragma once

#include "../inputs.cuh"
#include "steps.cuh"

namespace ctc_align {

// The emissions of a thread's pairs at one frame. Without stars the blank's is the same for all pairs.
template <class Real, int R, bool kStars>
struct FrameEmissions {
  Real blank[kStars ? R : 1];
  Real label[R];
};

// A frame's emission in a gap: in one that is not wild, and in one that is.
template <class Real>
struct alignas(2 * sizeof(Real)) GapEmissions {
  Real blank, wild;
};

// Loads frame after frame of N classes: for the producers of the sweep, and for the trace. With stars some of them may be
// the star, which has a stride of its own.
template <class scalar_t, int N, bool kStars>
struct FrameLoader {
  const scalar_t* column[N];                       // a class at frame 0
  static constexpr int kStrides = kStars ? 2 : 1;  // of log_probs, and of the star
  index_t frame_stride[kStrides];
  bool is_star[N];  // used with stars
  int32_t last_frame;

  CTC_ALIGN_FN void reset(const StateEmissions<scalar_t, kStars>& states, index_t last) {
    frame_stride[0] = states.log_probs.frame_stride;
    if constexpr (kStars) {
      frame_stride[1] = states.stars.frame_stride;
    }
    last_frame = static_cast<int32_t>(last);
  }
  // The n-th class is class c of an item; with stars, class C is the star.
  CTC_ALIGN_FN void aim(int n, const StateEmissions<scalar_t, kStars>& states, index_t c) {
    if constexpr (kStars) {
      is_star[n] = c == states.classes;
      column[n] = is_star[n] ? &states.stars.at(0) : &states.log_probs.at(0, c);
    } else {
      column[n] = &states.log_probs.at(0, c);
    }
  }

  // Of two strides, or two offsets, that of the n-th class.
  CTC_ALIGN_FN index_t of_class(int n, const index_t (&strides)[kStrides]) const {
    if constexpr (kStars) {
      const index_t of_star = strides[1], of_others = strides[0];
      return is_star[n] ? of_star : of_others;
    } else {
      return strides[0];
    }
  }

  // P frames from `first` on. A class that is not wanted is not read; its values are `unwanted`.
  template <int P>
  CTC_ALIGN_FN void load(int32_t first, const bool (&is_wanted)[N], scalar_t unwanted, scalar_t (*values)[N]) const {
    const int32_t frames_after = last_frame - first;
    index_t offset[kStrides], step[kStrides];
    CTC_ALIGN_UNROLL
    for (int n = 0; n < kStrides; ++n) {
      offset[n] = smaller(first, last_frame) * frame_stride[n];
    }
    const scalar_t* from[N];
    CTC_ALIGN_UNROLL
    for (int n = 0; n < N; ++n) {
      from[n] = column[n] + of_class(n, offset);
    }
    CTC_ALIGN_UNROLL
    for (int p = 0; p < P; ++p) {
      CTC_ALIGN_UNROLL
      for (int n = 0; n < kStrides; ++n) {
        step[n] = p < frames_after ? frame_stride[n] : 0;
      }
      CTC_ALIGN_UNROLL
      for (int n = 0; n < N; ++n) {
        values[p][n] = unwanted;
        if (is_wanted[n]) {
          values[p][n] = *from[n];
        }
        from[n] += of_class(n, step);
      }
    }
  }
};

// The rings in shared memory. A place is written in the step in which its stage is produced and read in the later ones in
// which it is consumed. Own labels: producer w stores for consumer w one step ahead, so two places are enough. Otherwise
// the last of kWarps consumers reads kWarps steps after the producer has stored.
template <class Real, int kWarps, bool kWholeRows, bool kStars>
struct EmissionRing {
  static constexpr int kStage = kStageFrames<Real>;
  static constexpr int kWidth = kWholeRows ? kWarp : static_cast<int>(kColumnPairs);
  static constexpr int kLongRing = 2 * kWarps;  // at least kWarps + 1, and a power of 2
  static constexpr int kRing = kWholeRows ? kLongRing : 2;
  using Blank = std::conditional_t<kStars, GapEmissions<Real>, Real>;

  Real values[kRing][kStage][kWidth];
  Blank blanks[kLongRing][kStage];

  // Those of the stage that begins with a frame.
  CTC_ALIGN_FN auto* values_from(int32_t frame) { return values[stage_number(frame) % kRing]; }
  CTC_ALIGN_FN Blank* blanks_from(int32_t frame) { return blanks[stage_number(frame) % kLongRing]; }

 private:
  CTC_ALIGN_FN static uint32_t stage_number(int32_t frame) { return static_cast<uint32_t>(frame) / kStage; }
};

// What one producer brings, stage after stage: it loads each stage one step before it stores it.
template <DeviceWords Device, class Real, class scalar_t, int R, int kWarps, bool kWholeRows, bool kStars>
struct EmissionProducer {
  using Ring = EmissionRing<Real, kWarps, kWholeRows, kStars>;
  static constexpr int kStage = kStageFrames<Real>;
  static constexpr int kFrames = kWholeRows ? kStage / kWarps : kStage;  // of a stage, that it loads
  static constexpr int kColumns = kWholeRows ? 1 : R;                    // that a lane loads of a frame
  static constexpr int kMostAtOnce = kStars && !kWholeRows ? 2 : 8;      // frames: registers hold their addresses
  static constexpr int kPart = kFrames < kMostAtOnce ? kFrames : kMostAtOnce;
  static constexpr int kCalledAhead = 8 * kStage;
  static_assert(kStage % kWarps == 0, "the producers' shares of a stage are equal");

  FrameLoader<scalar_t, kColumns, kStars> loader;  // of the lane's classes
  const scalar_t* blank_column;
  FrameLoader<scalar_t, 2, kStars> gaps;  // with stars: of the blank and the star, a frame a lane
  int32_t from_frame, until_frame;  // outside these none of the lane's labels is in the band: no such stage is loaded
  int producer;                     // its number
  bool is_blank;  // whether the lane brings the blank's emissions; with stars, those in gaps of a frame
  scalar_t coming[kFrames][kColumns];
  scalar_t coming_blank;
  scalar_t coming_gap[1][2];  // the blank's and the star's

  // Begins with an item, and with the lane's pairs, from first_pair on.
  CTC_ALIGN_FN void reset(const Inputs<scalar_t, kStars>& in, index_t item, const Band& band, int32_t first_pair,
                          int number) {
    producer = number;
    const StateEmissions<scalar_t, kStars> states = in.states(item);
    const Emissions<scalar_t>& emissions = states.log_probs;
    loader.reset(states, band.frames - 1);
    blank_column = &emissions.at(0, in.blank);
    coming_blank = scalar_t{};
    is_blank = kWholeRows ? Device::lane() == in.blank : producer == 0 && Device::lane() < kStage;
    if constexpr (kStars) {
      is_blank = (kWholeRows || producer == 0) && Device::lane() < kFrames;
      coming_gap[0][0] = coming_gap[0][1] = scalar_t{};
      gaps.reset(states, band.frames - 1);
      gaps.aim(0, states, in.blank);
      gaps.aim(1, states, in.classes);
    }
    from_frame = 0;
    until_frame = loader.last_frame;
    CTC_ALIGN_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      index_t c = smaller<index_t>(Device::lane(), in.classes - 1);
      if (kStars && c == in.blank) {
        c = in.classes;  // the star, in its place
      }
      if (!kWholeRows) {
        c = first_pair + n < band.labels ? in.label(item, first_pair + n) : in.blank;
        c = in.is_label(c) ? c : in.blank;  // the item is marked
      }
      loader.aim(n, states, c);
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
        Device::prefetch(loader.column[0] + called * loader.of_class(0, loader.frame_stride));
      }
    }
    if (kStars && is_blank) {
      gaps.template load<1>(first + Device::lane(), {true, true}, scalar_t{}, coming_gap);
    } else if (!kWholeRows && is_blank) {
      coming_blank = blank_column[smaller(frame + Device::lane(), loader.last_frame) * loader.frame_stride[0]];
    }
  }

  // Stores the stage that was loaded last, which begins with a frame.
  //   Called by    all lanes of a producer, in the step in which it produces the stage.
  //   Waits for    its own loads.
  //   Afterwards   the share is valid for the consumers in the next step.
  //   Reuse        the ring's place is written again kRing stages later, when its last reader is done.
  CTC_ALIGN_FN void store(Ring& ring, int32_t frame) const {
    auto* const values = ring.values_from(frame) + first_of_share();
    auto* const blanks = ring.blanks_from(frame) + first_of_share();
    const int first_value = kWholeRows ? Device::lane() : (producer * kWarp + Device::lane()) * R;
    CTC_ALIGN_UNROLL
    for (int p = 0; p < kFrames; ++p) {
      CTC_ALIGN_UNROLL
      for (int n = 0; n < kColumns; ++n) {
        const Real emission = load_emission<Real>(coming[p][n]);
        values[p][first_value + n] = emission;
        if constexpr (kWholeRows && !kStars) {
          if (is_blank) {
            blanks[p] = emission;
          }
        }
      }
    }
    if constexpr (kStars) {
      if (is_blank) {
        const Real blank = load_emission<Real>(coming_gap[0][0]), star = load_emission<Real>(coming_gap[0][1]);
        blanks[Device::lane()] = {blank, wild_emission(star, blank)};
      }
    } else if (!kWholeRows && is_blank) {
      blanks[Device::lane()] = load_emission<Real>(coming_blank);
    }
  }

 private:
  // The first of the stage's frames that it loads.
  CTC_ALIGN_FN int first_of_share() const { return kWholeRows ? producer * kFrames : 0; }
};

}  // namespace ctc_align
