// The trace: one warp a segment, all segments at once.
//
// Between two known states a path of 128 frames touches at most 129 pairs. The warp sweeps just those again, from the row
// kept before the segment, with records on the chip; then it walks back and writes.
//
// Why a second sweep finds the same bits: it sees only pairs right of the path's own start. What it leaves out can only
// make a losing predecessor smaller (rounded addition is monotone), so along the path every comparison falls as before.
//
//     moves, in shared memory:   [group of 32 frames][state]   a bit for each frame, the group's last frame lowest
#pragma once

#include "../../lattice/viterbi/pair_step.h"
#include "../thread_lanes.cuh"
#include "emissions.cuh"
#include "hop.cuh"

namespace ctc_align {

// Pairs a warp can hold, of 129 at most that a segment's path may touch.
constexpr int kTracePairs = 5 * kWarp;
static_assert(kTracePairs > kSegmentFrames, "a warp holds every pair that a segment's path may touch");

// The frames of a group of 32 into which a state's best path comes from another state. The walk back meets the lowest
// set bit first.
struct alignas(8) Moves {
  uint32_t all;
  uint32_t skips;  // by two states; the others by one

  static constexpr int kFrames = 32;
};

struct TraceShared {
  Moves moves[kSegmentFrames / Moves::kFrames][2 * kTracePairs];  // of the states that a path may touch
};

// The block of threads is a single warp.
template <DeviceWords Device, class Real, class scalar_t, bool kStars>
struct Trace {
  static constexpr int kGroups = kSegmentFrames / Moves::kFrames;

  const Inputs<scalar_t, kStars>& in;
  const Workspace<Real>& work;
  const Pass<Real>& pass;
  const Outputs<scalar_t>& out;
  TraceShared& shared;

  index_t item;
  index_t segment;
  uint32_t state_before, state_after;  // the path's, at the segment's borders

  // Called by all lanes of the block's warp.
  CTC_ALIGN_FN static void run(const Inputs<scalar_t, kStars>& in, const Workspace<Real>& work,
                               const Outputs<scalar_t>& out, TraceShared& shared) {
    const Pass<Real>& pass = work.last();
    const index_t segments = traced_segments(pass.plan), block = Device::block();
    Trace trace{in, work, pass, out, shared, block / segments, block % segments};
    const Band band = lattice_of(in, trace.item).band;
    const uint32_t path_end = trace.hopped() ? work.path_ends[trace.item] : path_end_of(in, work, trace.item);
    if (path_end == kNoPath) {
      trace.fill(0, -1, stored_minus_infinity<scalar_t>());
      return;
    }
    if (trace.first_frame() < band.frames) {
      trace.find_states(band, path_end);
      const index_t pairs = unpack_state(trace.state_after).pair - unpack_state(trace.state_before).pair + 1;
      if (pairs <= kWarp) {
        trace.template sweep_again<1>(band);
      } else if (pairs <= 2 * kWarp) {
        trace.template sweep_again<2>(band);
      } else {
        trace.template sweep_again<kTracePairs / kWarp>(band);
      }
      trace.walk(band);
    } else if (trace.segment == 0 && band.frames == 1) {
      trace.write_frame(0, path_end);
    }
    trace.fill(band.frames, in.blank, scalar_t{});
  }

  CTC_ALIGN_FN bool hopped() const { return has_hop(work.whole(), work.count); }

  // The segment's frames; frame 0 belongs to segment 0 but is not swept.
  CTC_ALIGN_FN index_t first_frame() const { return segment * kSegmentFrames + 1; }
  CTC_ALIGN_FN index_t end_frame() const { return smaller((segment + 1) * kSegmentFrames + 1, in.frames); }

  // Fills the segment's frames from `from` on.
  CTC_ALIGN_FN void fill(index_t from, index_t path_class, scalar_t score) const {
    const index_t begin = segment == 0 ? 0 : first_frame();
    for (index_t t = begin + Device::lane(); t < end_frame(); t += kWarp) {
      if (t >= from) {
        out.write(item * in.frames + t, path_class, score);
      }
    }
  }

  CTC_ALIGN_FN index_t class_of(uint32_t packed) const {
    const State state = unpack_state(packed);
    return state.is_label ? in.label(item, state.pair) : in.blank;
  }

  CTC_ALIGN_FN void write_frame(index_t t, uint32_t state) const {
    const Entry<scalar_t> entry = in.states(item).entry(t, unpack_state(state).pair, class_of(state));
    out.write(item * in.frames + t, entry.path_class, entry.score);
  }

  // Reads the states that the hop has written. Without a hop each warp goes back to them from the path's end.
  CTC_ALIGN_FN void find_states(const Band& band, uint32_t path_end) {
    if (hopped()) {
      state_before = pass.states(item)[segment];
      state_after = pass.states(item)[segment + 1];
      return;
    }
    const index_t last = (band.frames - 2) / kSegmentFrames;
    Hops hops(pass, item, 0, last);
    state_before = path_end;
    for (index_t s = last; s >= segment; --s) {
      state_after = state_before;
      state_before = hops.back(state_after);
    }
  }

  // Sweeps the pairs between the path's own ones at the segment's start and end, R a lane. Pairs past the last one are
  // computed too, but with the blank's emissions, which are at hand.
  //   Called by    all lanes of the warp.
  //   Waits for    the lanes, in every frame and at the end.
  //   Afterwards   the moves are valid for all lanes.
  //   Reuse        shared memory is the warp's own, and written once.
  template <int R>
  CTC_ALIGN_FN void sweep_again(const Band& band) {
    constexpr int kAhead = R == 1 ? 8 : R == 2 ? 4 : sizeof(Real) == sizeof(float) ? 2 : 1;
    const index_t begin = first_frame(), end = smaller(end_frame(), band.frames);
    const index_t frame_block = (begin - 1) / kFrameBlock;
    const index_t left_pair = unpack_state(state_before).pair;
    const index_t right_pair = unpack_state(state_after).pair;
    const index_t first_pair = left_pair + Device::lane() * R;
    const KeptRow<Real> before_row = segment > 0 ? work.row_after(work.count - 1, static_cast<int32_t>(segment))
                                                 : KeptRow<Real>{&pass, 0, 0};  // segment 0 reads none
    Real blank_alpha[R], label_alpha[R], offset[R];
    TraceEmissions<R, kAhead> emissions;
    emissions.loader.reset(in.states(item), band.frames - 1);
    emissions.aim(R, in.states(item), in.blank, begin, end - 1);
    if constexpr (kStars) {
      emissions.aim(R + 1, in.states(item), in.classes, begin, end - 1);
    }
    Choice<Device> skip_allowed[R], is_wild[R];
    const auto is_first = Choice<Device>::of(Device::lane() == 0);
    index_t class_before = 0 < first_pair && first_pair <= band.labels ? in.label(item, first_pair - 1) : in.blank;
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      const index_t k = first_pair + r;
      const index_t c = k < band.labels ? in.label(item, k) : in.blank;
      // The path cannot be in pair k before it has come so far to the right, nor when it could not come to right_pair
      // any more. Outside that window the label is -inf; it could not win anyway.
      emissions.aim(r, in.states(item), k <= right_pair ? c : in.blank, begin - 1 + k - left_pair,
                    end - 1 - (right_pair - k));
      if constexpr (kStars) {
        is_wild[r] = Choice<Device>::of(k <= right_pair && in.states(item).is_wild(k));
      }
      skip_allowed[r] = Choice<Device>::of(may_skip_into(k, c, class_before));
      class_before = c;
      load_alphas(band, before_row, k, c, blank_alpha[r], label_alpha[r]);
      const bool crosses = frame_block > 0 && k > left_pair && k % kColumnPairs == 0 && k <= band.last(end - 1);
      offset[r] = kRebases<Real> && crosses ? offset_into(k / kColumnPairs, frame_block) : Real{0};
    }

    uint32_t from_left_bits[R] = {}, enters_bits[R] = {};  // of 32 frames, the last one lowest
    const auto run_frames = [&](const auto& now) {
      uint32_t from_left[R] = {}, enters[R] = {};
      CTC_ALIGN_UNROLL
      for (int p = 0; p < kAhead; ++p) {
        const Real incoming = Device::shuffle_up(label_alpha[R - 1], 1);
        const Real left = is_first.select(kMinusInfinity<Real>, incoming);
        CTC_ALIGN_UNROLL
        for (int r = R - 1; r >= 0; --r) {
          const auto record = pair_step<ThreadLanes<Device, Real>>(
              (r > 0 ? label_alpha[r - 1] : left) + offset[r], skip_allowed[r],
              gap_emission<R>(now.value[p], is_wild[r]), load_emission<Real>(now.value[p][r]), blank_alpha[r],
              label_alpha[r]);
          constexpr uint32_t kFirst = uint32_t{1} << (kAhead - 1);
          from_left[r] |= record.from_left ? kFirst >> p : 0;
          enters[r] |= record.enters ? kFirst >> p : 0;
        }
      }
      CTC_ALIGN_UNROLL
      for (int r = 0; r < R; ++r) {
        from_left_bits[r] = from_left_bits[r] << kAhead | from_left[r];
        enters_bits[r] = enters_bits[r] << kAhead | enters[r];
      }
    };
    // Two loads in turn, so that none has to have landed before it is used.
    auto even = emissions.load(begin), odd = emissions.load(begin + kAhead);
    for (index_t group = 0; begin + Moves::kFrames * group < end; ++group) {
      const index_t first = begin + Moves::kFrames * group;
      for (int i = 0; i < Moves::kFrames; i += 2 * kAhead) {
        run_frames(even);
        even = emissions.load(first + i + 2 * kAhead);
        run_frames(odd);
        odd = emissions.load(first + i + 3 * kAhead);
      }
      CTC_ALIGN_UNROLL
      for (int r = 0; r < R; ++r) {
        Moves* pair = shared.moves[group] + 2 * (Device::lane() * R + r);
        pair[0] = {from_left_bits[r], 0};
        pair[1] = {enters_bits[r], skip_allowed[r].bits & from_left_bits[r] & enters_bits[r]};
      }
    }
    Device::warp_barrier();
  }

  // The emission of a pair's blank, of those that TraceEmissions has loaded for a frame.
  template <int R>
  CTC_ALIGN_FN static Real gap_emission(const scalar_t* loaded, Choice<Device> is_wild) {
    if constexpr (kStars) {
      const Real blank = load_emission<Real>(loaded[R]);
      return is_wild.select(wild_emission(load_emission<Real>(loaded[R + 1]), blank), blank);
    } else {
      return load_emission<Real>(loaded[R]);
    }
  }

  // The emissions of a lane's R labels, of the blank, and with stars of the star, P frames at a time.
  template <int R, int P>
  struct TraceEmissions {
    static constexpr int kClasses = R + (kStars ? 2 : 1);
    struct Values {
      scalar_t value[P][kClasses];
    };
    FrameLoader<scalar_t, kClasses, kStars> loader;
    int32_t from_frame[kClasses], until_frame[kClasses];  // where none of the P frames is between, a class is -inf

    CTC_ALIGN_FN void aim(int n, const StateEmissions<scalar_t, kStars>& states, index_t c, index_t from,
                          index_t until) {
      loader.aim(n, states, c);
      from_frame[n] = static_cast<int32_t>(from);
      until_frame[n] = static_cast<int32_t>(until);
    }
    CTC_ALIGN_FN Values load(index_t frame) const {
      const int32_t first = static_cast<int32_t>(frame);
      bool is_wanted[kClasses];
      Values values;
      CTC_ALIGN_UNROLL
      for (int n = 0; n < kClasses; ++n) {
        is_wanted[n] = from_frame[n] < first + P && first <= until_frame[n];
      }
      loader.template load<P>(first, is_wanted, stored_minus_infinity<scalar_t>(), values.value);
      return values;
    }
  };

  // Alphas of pair k at the frame before the segment, as the first sweep had them on entering it.
  CTC_ALIGN_FN void load_alphas(const Band& band, const KeptRow<Real>& before, index_t k, index_t label_class,
                                Real& blank_alpha, Real& label_alpha) const {
    blank_alpha = label_alpha = kMinusInfinity<Real>;
    const index_t t = first_frame() - 1;
    if (segment == 0) {
      if (k == 0) {
        const auto emission_of = [&](bool is_label) {
          return load_emission<Real>(in.states(item).stored(0, 0, is_label ? label_class : in.blank));
        };
        start_paths(band.labels, emission_of, blank_alpha, label_alpha);
      }
    } else if (k <= band.last(t)) {
      blank_alpha = before.alpha(item, k, false);
      label_alpha = before.alpha(item, k, true);
      if (kRebases<Real> && t % kFrameBlock == 0) {
        const float moved = work.moved[work.base_at(item, k / kColumnPairs, t / kFrameBlock)];
        blank_alpha -= static_cast<Real>(moved);
        label_alpha -= static_cast<Real>(moved);
      }
    }
  }

  CTC_ALIGN_FN Real offset_into(index_t column, index_t frame_block) const {
    const auto base_of = [&](index_t j) { return same_bits<double>(work.bases[work.base_at(item, j, frame_block)]); };
    return static_cast<Real>(crossing_offset(base_of(column - 1), base_of(column)));
  }

  // Walks from the segment's last frame to its first, in groups of 32: from one frame at which the path moves to the one
  // before. So a lane knows the state at its own frame of each group: that at the group's last frame, less the moves after
  // its own frame.
  //   Called by    all lanes of the warp; all walk the same way.
  //   Waits for    nothing: sweep_again() ended with a barrier.
  //   Afterwards   paths and scores of the segment are written.
  //   Reuse        none.
  CTC_ALIGN_FN void walk(const Band& band) const {
    const index_t begin = first_frame();
    const int frames = static_cast<int>(smaller(end_frame(), band.frames) - begin);
    const uint32_t left_state = pack_state({unpack_state(state_before).pair, false});
    uint32_t state = state_after - left_state;
    uint32_t own_states[kGroups];
    CTC_ALIGN_UNROLL
    for (int group = kGroups - 1; group >= 0; --group) {
      const int count = frames - kWarp * group;
      if (count > 0) {
        uint32_t unseen = ~uint32_t{0} << (kWarp - smaller(count, kWarp));
        uint32_t moved = 0, skipped = 0;
        own_states[group] = left_state + state;
        for (;;) {
          const Moves of_state = shared.moves[group][smaller<uint32_t>(state, 2 * kTracePairs - 1)];
          const uint32_t moves = of_state.all & unseen;
          if (moves == 0) {
            break;
          }
          const uint32_t frame = moves & (~moves + 1);  // the lowest set bit
          const uint32_t skip = of_state.skips & frame;
          moved |= frame;
          skipped |= skip;
          unseen = ~(frame | (frame - 1));
          state -= skip != 0 ? 2 : 1;
        }
        const uint32_t after = (uint32_t{1} << (kWarp - 1 - Device::lane())) - 1;
        own_states[group] -= static_cast<uint32_t>(Device::ones(moved & after) + Device::ones(skipped & after));
      }
    }
    index_t classes[kGroups];
    scalar_t scores[kGroups];
    const auto each_group = [&](auto&& visit) {
      CTC_ALIGN_UNROLL
      for (int group = 0; group < kGroups; ++group) {
        const int i = kWarp * group + Device::lane();
        if (i < frames) {
          visit(group, begin + i);
        }
      }
    };
    each_group([&](int group, index_t) { classes[group] = class_of(own_states[group]); });
    each_group([&](int group, index_t t) {
      const index_t k = unpack_state(own_states[group]).pair;
      const Entry<scalar_t> entry = in.states(item).entry(t, k, classes[group]);
      classes[group] = entry.path_class;
      scores[group] = entry.score;
    });
    each_group([&](int group, index_t t) { out.write(item * in.frames + t, classes[group], scores[group]); });
    if (segment == 0 && Device::lane() == 0) {
      write_frame(0, left_state + state);
    }
  }
};

}  // namespace ctc_align
