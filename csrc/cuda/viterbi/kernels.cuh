// The three kernels of the CUDA aligner: sweep, hop, trace. No torch, no CUDA header: a `Device` brings the words of the
// machine (thread, lane, shuffle, barrier, ...), so that the same text runs on a GPU and in the emulator of the tests.
//
// Contents: 1 what a launch gets  2 emissions ahead of use  3 edges  4 sweep  5 hop  6 trace
//
// sweep   One block of threads owns one column (256 pairs) and keeps its alphas in registers. It takes a ticket, if
//         there is more than one column, waits for the edges that its left neighbour writes, and goes through the blocks
//         of its task. Beside its alpha every state carries its ORIGIN: the state in which its best path stood at the
//         last segment border. At every segment border the row of alphas and origins is kept. No records are written.
//         Half of the block's warps, the COURIERS, hold no pairs: they bring edges and emissions for the others.
// hop     One block an item: from the best final state the origins lead from border to border to the start. Short items of
//         one column have few borders, and each warp of the trace finds its own.
// trace   One warp a segment, all segments at once: between two known states a path of 128 frames touches at most 129
//         pairs, so the warp sweeps just those again, with records on the chip, and walks back.
//
// For items whose rows would not fit, sweep and hop come again, inside smaller and smaller regions (plan.h).
//
// Why a second sweep finds the same bits: it starts from the kept row and sees only pairs right of the path's own
// start. What it leaves out can only make a losing predecessor smaller (rounded addition is monotone), so along the
// path every comparison falls as before.
//
//          pair |            column 2 .-------.-------.        waits: a task reads edges of the column on its left and
//               |     column 1 .------|-------|                its own column's past. Both have earlier tickets, so
//               |       .------|------|                        they run or are done: no deadlock, however few blocks
//          col 0|-------|------|                               of threads fit on the machine.
//               +----------------------------------- frame
#pragma once

#include <limits>
#include <type_traits>

#include "../../lattice/emission.h"
#include "../../lattice/viterbi/pair_step.h"
#include "plan.h"

namespace ctc_align {

constexpr int kWarp = 32;

#if defined(__CUDACC__)
#define CTC_ALIGN_UNROLL _Pragma("unroll")
#else
#define CTC_ALIGN_UNROLL
#endif

// ---------------------------------------------------------------------------------- 1 what a launch gets

// Integers as they are given, of 32 or 64 bits.
struct Integers {
  const void* data;
  bool wide;

  CTC_ALIGN_FN index_t at(index_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

struct Lengths {
  Integers values;  // data is nullptr where no lengths are given
  index_t stride;

  CTC_ALIGN_FN index_t at(index_t b, index_t otherwise) const {
    return values.data == nullptr ? otherwise : values.at(b * stride);
  }
};

template <class scalar_t>
struct Inputs {
  const scalar_t* log_probs;
  index_t item_stride, frame_stride, class_stride;
  index_t classes;
  Integers targets;
  index_t target_item_stride, label_stride;
  Lengths input_lengths, target_lengths;
  index_t blank;

  CTC_ALIGN_FN Emissions<scalar_t> emissions(index_t b) const {
    return {log_probs + b * item_stride, frame_stride, class_stride};
  }
  CTC_ALIGN_FN index_t label(index_t b, index_t k) const {
    return targets.at(b * target_item_stride + k * label_stride);
  }
  CTC_ALIGN_FN bool is_label(index_t c) const { return 0 <= c && c < classes && c != blank; }
};

// The lattice of an item; possible is false where its lengths leave their ranges or no path can exist. Then nothing of
// the item is ever read.
struct ItemLattice {
  Band band;
  bool possible;
};

template <class scalar_t>
CTC_ALIGN_FN ItemLattice lattice_of(const Inputs<scalar_t>& in, const Plan& plan, index_t b) {
  const Band band{in.input_lengths.at(b, plan.frames), in.target_lengths.at(b, plan.labels)};
  const bool in_range =
      0 <= band.frames && band.frames <= plan.frames && 0 <= band.labels && band.labels <= plan.labels;
  return {band, in_range && band.labels <= band.frames};
}

// An edge on its way to the right neighbour: the label alpha of a column's last pair, and its origin.
template <class Real>
struct alignas(2 * sizeof(Real)) Edge {
  Real alpha;
  uint32_t origin;
};

// What one pass leaves in global memory. Words that say "not there yet" are all ones, and where tasks wait for one
// another the first three parts are all ones before the launch.
template <class Real>
struct Pass {
  Plan plan;
  uint32_t* ticket;        // [1]          from all ones the first ticket comes out as 0
  uint32_t* done;          // [B][places]  number of the last task that is done; all ones: none
  uint64_t* edges;         // [B][places][ring_tasks][task_blocks][kEdgesPerBlock][kEdgeWords]
  Real* live_alphas;       // [B][2][pairs]  the row between two tasks of a column
  uint32_t* live_origins;  // [B][2][pairs]
  Real* kept_alphas;       // [B][segments][2][pairs]  rows at the end of each segment: blanks, labels
  uint16_t* kept_origins;  // [B][segments][2][pairs]  how many pairs to the left, times 2, plus 1 if a label
  uint32_t* path_states;   // [B][regions * segments + 1]  states of the path at the borders of the segments

  CTC_ALIGN_FN index_t place(index_t item, index_t region, index_t column) const {
    return item * plan.places() + column + region;
  }
  // Of blank or label k, in the row at the end of a segment of a region.
  CTC_ALIGN_FN index_t kept(index_t item, index_t region, index_t segment, State state) const {
    const index_t row = (item * plan.segments() + segment) * 2 + (state.is_label ? 1 : 0);
    return row * plan.pairs() + region * kColumnPairs + state.pair;
  }
  CTC_ALIGN_FN uint32_t* states(index_t item) const {
    return path_states + item * (plan.regions() * plan.segments() + 1);
  }
};

// Where a row was kept: in a pass, at the end of a segment of a region.
template <class Real>
struct KeptRow {
  const Pass<Real>* pass;
  index_t region, segment;

  CTC_ALIGN_FN index_t at(index_t item, index_t pair, bool is_label) const {
    return pass->kept(item, region, segment, {pair, is_label});
  }
};

constexpr int32_t kFewSegments = 32;

template <class Real>
struct Workspace {
  Pass<Real> passes[kMostPasses];
  int count;
  uint64_t* bases;      // [B][columns][blocks + 1]  bits of a float64; for all passes
  float* moved;         // [B][columns][blocks + 1]  what the column's alphas lost at the block's start
  uint32_t* path_ends;  // [B]  the best final state, or kNoPath

  CTC_ALIGN_FN const Plan& whole() const { return passes[0].plan; }
  // Does a kernel of its own find the path at the rows? Of one column and few rows the trace does: each of its warps goes
  // back to its own row, and that is quadratic.
  CTC_ALIGN_FN bool has_hop() const { return count > 1 || whole().waits() || whole().segments() > kFewSegments; }
  CTC_ALIGN_FN const Pass<Real>& last() const { return passes[count - 1]; }
  CTC_ALIGN_FN index_t block_slot(index_t item, index_t column, index_t block) const {
    return (item * whole().columns() + column) * (whole().blocks() + 1) + block;
  }
  // The row at the end of the first `segments` segments of a pass, 1 or more. A region begins with a row of the pass
  // before: its own pass has swept nothing there but the columns of the region before.
  CTC_ALIGN_FN KeptRow<Real> row_after(int pass, int32_t segments) const {
    while (pass > 0 && segments % passes[pass].plan.segments() == 0) {
      segments /= passes[pass].plan.segments();
      --pass;
    }
    const int32_t of_region = passes[pass].plan.segments();
    return {&passes[pass], (segments - 1) / of_region, (segments - 1) % of_region};
  }
};

// Lays the workspace into one piece of memory; the parts that start as all ones come first. With memory = nullptr it
// only counts.
template <class Real>
struct WorkspaceLayout {
  Workspace<Real> work;
  index_t unset_bytes;
  index_t bytes;

  WorkspaceLayout(const Passes& plans, uint8_t* memory) {
    index_t used = 0;
    bool waits = false;
    const auto reserve = [&](auto*& part, index_t count) {
      part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(memory + used);
      used = (used + count * static_cast<index_t>(sizeof *part) + 15) / 16 * 16;
    };
    const Plan& whole = plans.whole();
    const index_t blocks = whole.batch * whole.columns() * (whole.blocks() + 1);
    work.count = plans.count;
    reserve(work.bases, blocks);
    for (int i = 0; i < plans.count; ++i) {
      Pass<Real>& pass = work.passes[i];
      const Plan& plan = pass.plan = plans.plans[i];
      const index_t tasks = plan.columns() > 1 ? plan.batch * plan.places() * plan.ring_tasks : 0;
      reserve(pass.ticket, 1);
      reserve(pass.done, plan.batch * plan.places());
      reserve(pass.edges, tasks * plan.task_blocks * kEdgesPerBlock * index_t{sizeof(Real) / sizeof(float)});
      waits = waits || plan.waits();
    }
    unset_bytes = waits ? used : 0;
    reserve(work.path_ends, whole.batch);
    reserve(work.moved, blocks);
    for (int i = 0; i < plans.count; ++i) {
      Pass<Real>& pass = work.passes[i];
      const Plan& plan = pass.plan;
      const index_t row = plan.batch * 2 * plan.pairs();
      const index_t live = plan.tasks() > 1 ? row : 0;
      reserve(pass.live_alphas, live);
      reserve(pass.live_origins, live);
      reserve(pass.kept_alphas, row * plan.segments());
      reserve(pass.kept_origins, row * plan.segments());
      reserve(pass.path_states, plan.batch * (plan.regions() * plan.segments() + 1));
    }
    bytes = used;
  }
};

// ------------------------------------------------------------------------------- 2 emissions ahead of use
//
// A thread needs the emissions of the blank and of its own R labels, frame by frame. They are loaded well before they
// are used, and kept as they are stored until then: to convert a value would be to wait for it. Frames behind the last
// repeat it, so that padding is never read.

template <class Real, int R>
struct FrameEmissions {
  Real blank;
  Real label[R];
};

// The values of N classes for P frames, as a lane of the trace loads them.
template <class Real, class scalar_t, int N, int P>
struct OwnColumns {
  struct Frames {
    scalar_t value[P][N];
  };

  const scalar_t* column[N];
  index_t frame_stride;
  int32_t last_frame;
  int32_t from_frame[N], until_frame[N];  // where none of the P frames is between these, the class counts as impossible

  CTC_ALIGN_FN void aim(const Emissions<scalar_t>& emissions, index_t last, int n, index_t klass, index_t from,
                        index_t until) {
    column[n] = &emissions.at(0, klass);
    from_frame[n] = static_cast<int32_t>(from);
    until_frame[n] = static_cast<int32_t>(until);
    frame_stride = emissions.frame_stride;
    last_frame = static_cast<int32_t>(last);
  }

  // P frames from `first` on.
  CTC_ALIGN_FN Frames load(int32_t first) const {
    const int32_t behind = last_frame - first;
    Frames frames;
    const index_t offset = smaller(first, last_frame) * frame_stride;
    const scalar_t* from[N];
    bool is_wanted[N];
    CTC_ALIGN_UNROLL
    for (int n = 0; n < N; ++n) {
      from[n] = column[n] + offset;
      is_wanted[n] = from_frame[n] < first + P && first <= until_frame[n];
    }
    CTC_ALIGN_UNROLL
    for (int p = 0; p < P; ++p) {
      const index_t step = p < behind ? frame_stride : 0;
      CTC_ALIGN_UNROLL
      for (int n = 0; n < N; ++n) {
        frames.value[p][n] = static_cast<scalar_t>(kMinusInfinity<Real>);
        if (is_wanted[n]) {
          frames.value[p][n] = *from[n];
        }
        from[n] += step;
      }
    }
    return frames;
  }
};

// Frames of a stretch: float64 takes half as many, so that what is shared fits the same memory.
template <class Real>
constexpr int kStretch = kStretchFrames * static_cast<int>(sizeof(float)) / static_cast<int>(sizeof(Real));

// What the couriers of the sweep (section 4) bring for the other warps of their block, from the step in which they
// store it until the last warp that needs it is done. Up to 32 classes: whole rows, for all warps. A row of float32
// fills the 32 banks of shared memory once, so that lanes may look up any classes in it without a conflict. More
// classes: each pair's own label, each courier for one warp. The blank's emissions have a place of their own.
template <class Real, int kWarps, bool kWholeRows>
struct SharedEmissions {
  static constexpr int kWidth = kWholeRows ? kWarp : static_cast<int>(kColumnPairs);
  static constexpr int kLongRing = 2 * kWarps;  // at least kWarps + 1, and a power of 2
  static constexpr int kRing = kWholeRows ? kLongRing : 2;

  Real values[kRing][kStretch<Real>][kWidth];
  Real blanks[kLongRing][kStretch<Real>];

  CTC_ALIGN_FN static uint32_t number_of(int32_t frame) { return static_cast<uint32_t>(frame) / kStretch<Real>; }
  CTC_ALIGN_FN static uint32_t slot_of(int32_t frame) { return number_of(frame) % kRing; }
  CTC_ALIGN_FN static uint32_t blank_slot_of(int32_t frame) { return number_of(frame) % kLongRing; }
};

// Brings stretch after stretch: loads each one step before it is stored, and keeps it as it is until then, for to
// convert a value would be to wait for it. There is one courier for each warp with pairs. Of whole rows each brings its
// share of the frames. Else it brings the labels' values for its warp, which is as many stretches behind.
template <class Device, class Real, class scalar_t, int R, int kWarps, bool kWholeRows>
struct EmissionCourier {
  using Shared = SharedEmissions<Real, kWarps, kWholeRows>;
  static constexpr int kFrames = kWholeRows ? kStretch<Real> / kWarps : kStretch<Real>;  // that it loads of a stretch
  static constexpr int kColumns = kWholeRows ? 1 : R;                                    // that a lane loads of a frame
  static constexpr int kPart = kFrames < 8 ? kFrames : 8;  // so many frames at a time: registers hold their addresses
  static constexpr int kCalledAhead = 8 * kStretch<Real>;
  static_assert(kStretch<Real> % kWarps == 0, "the couriers' shares of a stretch are equal");

  const scalar_t* column[kColumns];  // the lane's classes at frame 0
  const scalar_t* blank_column;
  index_t frame_stride;
  int32_t last_frame;
  int32_t from_frame, until_frame;  // outside these none of the lane's labels is in the band: no such stretch is loaded
  int courier;                      // its number
  bool is_blank;
  scalar_t coming[kFrames][kColumns];
  scalar_t coming_blank;

  // At an item, and at the lane's pairs, from first_pair on.
  CTC_ALIGN_FN void aim(const Inputs<scalar_t>& in, index_t item, const Band& band, int32_t first_pair, int number) {
    courier = number;
    const Emissions<scalar_t> emissions = in.emissions(item);
    frame_stride = emissions.frame_stride;
    last_frame = static_cast<int32_t>(band.frames - 1);
    blank_column = &emissions.at(0, in.blank);
    coming_blank = scalar_t{};
    is_blank = kWholeRows ? Device::lane() == in.blank : courier == 0 && Device::lane() < kStretch<Real>;
    from_frame = 0;
    until_frame = last_frame;
    CTC_ALIGN_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      index_t c = smaller<index_t>(Device::lane(), in.classes - 1);
      if (!kWholeRows) {
        c = first_pair + n < band.labels ? in.label(item, first_pair + n) : in.blank;
        c = in.is_label(c) ? c : in.blank;  // the item is marked
      }
      column[n] = &emissions.at(0, c);
      CTC_ALIGN_UNROLL
      for (int j = 0; j < kFrames; ++j) {
        coming[j][n] = scalar_t{};
      }
    }
    if (!kWholeRows) {
      from_frame = first_pair;
      until_frame =
          first_pair < band.labels ? static_cast<int32_t>(band.frames - band.labels) + first_pair + R - 1 : -1;
    }
  }

  // The stretch that begins with `frame`. Frames behind the last repeat it, so that padding is never read.
  CTC_ALIGN_FN void load(int32_t frame) {
    const int32_t first = frame + first_share();
    CTC_ALIGN_UNROLL
    for (int part = 0; part < kFrames; part += kPart) {
      if (from_frame < frame + kStretch<Real> && frame <= until_frame) {
        const int32_t behind = last_frame - first - part;
        const scalar_t* from[kColumns];
        CTC_ALIGN_UNROLL
        for (int n = 0; n < kColumns; ++n) {
          from[n] = column[n] + smaller(first + part, last_frame) * frame_stride;
        }
        CTC_ALIGN_UNROLL
        for (int j = 0; j < kPart; ++j) {
          const index_t step = j < behind ? frame_stride : 0;
          CTC_ALIGN_UNROLL
          for (int n = 0; n < kColumns; ++n) {
            coming[part + j][n] = *from[n];
            from[n] += step;
          }
        }
      }
      Device::warp_barrier();
    }
    if (kWholeRows) {
      // A step is about as long as the second cache takes: what lies further ahead is called into it.
      const int32_t called = first + kCalledAhead + Device::lane() % kFrames;
      if (called <= last_frame) {
        Device::prefetch(column[0] + called * frame_stride);
      }
    } else if (is_blank) {
      coming_blank = blank_column[smaller(frame + Device::lane(), last_frame) * frame_stride];
    }
  }

  CTC_ALIGN_FN void store(Shared& shared, int32_t frame) const {
    Real(*const values)[Shared::kWidth] = shared.values[Shared::slot_of(frame)] + first_share();
    Real* const blanks = shared.blanks[Shared::blank_slot_of(frame)] + first_share();
    const int place = kWholeRows ? Device::lane() : (courier * kWarp + Device::lane()) * R;
    CTC_ALIGN_UNROLL
    for (int j = 0; j < kFrames; ++j) {
      CTC_ALIGN_UNROLL
      for (int n = 0; n < kColumns; ++n) {
        const Real emission = load_emission<Real>(coming[j][n]);
        values[j][place + n] = emission;
        if (kWholeRows && is_blank) {
          blanks[j] = emission;
        }
      }
    }
    if (!kWholeRows && is_blank) {
      blanks[Device::lane()] = load_emission<Real>(coming_blank);
    }
  }

  // The first of the stretch's frames that it loads.
  CTC_ALIGN_FN int first_share() const { return kWholeRows ? courier * kFrames : 0; }
};

// --------------------------------------------------------------------------------------------------- 3 edges

// Between blocks of threads an edge travels in words that are written and read whole, and that are not all ones once
// they are written: no flag, no fence. float: one word. double: one for the alpha, one for the origin.
template <class Device>
struct EdgeWords {
  CTC_ALIGN_FN static constexpr int count(float) { return 1; }
  CTC_ALIGN_FN static constexpr int count(double) { return 2; }

  CTC_ALIGN_FN static void send(uint64_t* words, Edge<float> edge) {
    Device::store_relaxed(words, static_cast<uint64_t>(edge.origin) << 32 | same_bits<uint32_t>(edge.alpha));
  }
  CTC_ALIGN_FN static void send(uint64_t* words, Edge<double> edge) {
    Device::store_relaxed(words, same_bits<uint64_t>(edge.alpha));
    Device::store_relaxed(words + 1, edge.origin);
  }
  // Words as they were found, perhaps too early.
  struct Found {
    uint64_t word[2];
  };
  CTC_ALIGN_FN static Found look(const uint64_t* words, float) { return {{Device::load_relaxed(words), 0}}; }
  CTC_ALIGN_FN static Found look(const uint64_t* words, double) {
    return {{Device::load_relaxed(words), Device::load_relaxed(words + 1)}};
  }
  CTC_ALIGN_FN static bool is_there(const Found& found) {
    return found.word[0] != ~uint64_t{0} && found.word[1] != ~uint64_t{0};
  }
  CTC_ALIGN_FN static void read(const Found& found, Edge<float>& edge) {
    edge = {same_bits<float>(static_cast<uint32_t>(found.word[0])), static_cast<uint32_t>(found.word[0] >> 32)};
  }
  CTC_ALIGN_FN static void read(const Found& found, Edge<double>& edge) {
    edge = {same_bits<double>(found.word[0]), static_cast<uint32_t>(found.word[1])};
  }
};

// --------------------------------------------------------------------------------------------------- 4 sweep

// What stays true or false from frame to frame is kept as bits, all ones or none, and chosen by with logic. With
// predicates the compiler orders the comparisons of a frame less tightly (measured: 5 % of the sweep).
template <class Device>
struct Choice {
  uint32_t bits;

  CTC_ALIGN_FN static Choice of(bool holds) { return {Device::opaque(holds ? ~uint32_t{0} : uint32_t{0})}; }
  CTC_ALIGN_FN bool holds() const { return bits != 0; }
  CTC_ALIGN_FN uint32_t select(uint32_t yes, uint32_t no) const { return (yes & bits) | (no & ~bits); }
  CTC_ALIGN_FN float select(float yes, float no) const {
    return same_bits<float>(select(same_bits<uint32_t>(yes), same_bits<uint32_t>(no)));
  }
  CTC_ALIGN_FN double select(double yes, double no) const {
    const uint64_t all = static_cast<uint64_t>(bits) << 32 | bits;
    return same_bits<double>((same_bits<uint64_t>(yes) & all) | (same_bits<uint64_t>(no) & ~all));
  }
};

// A thread is a row of one lane: the dictionary that pair_step.h speaks.
template <class Device, class RealType>
struct ThreadLanes {
  using Real = RealType;
  using Value = Real;
  using Mask = bool;
  CTC_ALIGN_FN static bool exceeds(Real a, Real b) { return a > b; }
  CTC_ALIGN_FN static Real greater(Real a, Real b) { return Device::greater(a, b); }
  CTC_ALIGN_FN static Real select(Choice<Device> m, Real yes, Real no) { return m.select(yes, no); }
  CTC_ALIGN_FN static Real add(Real a, Real b) { return a + b; }
};

template <class Real, int kWarps, class Emissions>
struct SweepShared {
  Emissions emissions;
  Edge<Real> edges[kWarps + 1][2][kStretch<Real>];  // [w]: into warp w, two stretches in turn
  float maxima[kWarps];
  double base_left;
  uint32_t ticket;
  bool has_bad_label[kWarps];  // among those of a warp
};

// R pairs a thread; the library is built with kPairsPerThread. Whole rows of emissions are shared if a warp can hold one.
template <class Device, class Real, class scalar_t, int R, bool kWholeRows>
struct Sweep {
  static constexpr int kWarps = static_cast<int>(kColumnPairs) / R / kWarp;  // that have pairs; as many are couriers
  static constexpr int kThreads = 2 * kWarps * kWarp;
  static constexpr int kStretch = ctc_align::kStretch<Real>;
  static constexpr int kGroupFrames = 2;  // emissions and edges come into registers so many frames at a time
  static constexpr int kWords = EdgeWords<Device>::count(Real{});
  using Courier = EmissionCourier<Device, Real, scalar_t, R, kWarps, kWholeRows>;
  using Shared = SweepShared<Real, kWarps, typename Courier::Shared>;
  using Found = typename EdgeWords<Device>::Found;

  const Inputs<scalar_t>& in;
  const Workspace<Real>& work;
  const Pass<Real>& pass;
  const Plan& plan;
  Shared& shared;

  Task task;
  int pass_number;
  int32_t end_frame;                                          // T: one behind the last
  int32_t last_pair;                                          // L
  int32_t first_pair;                                         // of this thread, or of the one that it is a courier for
  int32_t first_block, end_block, first_column, last_column;  // of the region
  int warp;                                                   // among those with pairs, or among the couriers
  bool is_courier;
  int warps_with_pairs;  // that the item has

  int32_t segment_end;  // the last frame of the present segment
  index_t kept_at;      // this thread's place in the row that will be kept there
  index_t row_pairs;

  Real blank[R], label[R];
  int classes[R];  // of the labels; where rows are whole
  uint32_t blank_origin[R], label_origin[R];
  Choice<Device> skip_allowed[R], is_first;  // is_first: of the warp's lanes
  Edge<Real> passed;                         // label k-1 of the frame before, k the thread's first pair; not in lane 0

  // All threads of a block call it, once a launch.
  CTC_ALIGN_FN static void run(const Inputs<scalar_t>& in, const Workspace<Real>& work, int pass_number,
                               Shared& shared) {
    const Pass<Real>& pass = work.passes[pass_number];
    const Plan& plan = pass.plan;
    uint32_t ticket = Device::block();
    if (plan.waits()) {
      if (Device::thread() == 0) {
        shared.ticket = Device::take_ticket(pass.ticket) + 1;
      }
      Device::block_barrier();
      ticket = shared.ticket;
    }
    const Task task = task_of_ticket(plan, ticket);
    if (task.column >= plan.columns_of_region() || task.number < 0 || task.number >= plan.tasks()) {
      return;
    }
    Sweep sweep{in, work, pass, plan, shared, task, pass_number};
    if (sweep.begin_task()) {
      sweep.run_task();
    }
  }

  // Is there anything to do?
  CTC_ALIGN_FN bool begin_task() {
    const ItemLattice item = lattice_of(in, plan, task.item);
    end_frame = static_cast<int32_t>(item.band.frames);
    last_pair = static_cast<int32_t>(item.band.labels);
    first_block = task.region * static_cast<int32_t>(plan.region_blocks);
    end_block = first_block + static_cast<int32_t>(plan.region_blocks);
    first_column = 0;
    last_column = last_pair / static_cast<int32_t>(kColumnPairs);
    if (!item.possible || (pass_number > 0 && !find_columns())) {
      return false;
    }
    task.column += first_column;
    is_courier = Device::warp() >= kWarps;
    warp = Device::warp() % kWarps;
    const int32_t first_of_column = task.column * static_cast<int32_t>(kColumnPairs);
    first_pair = first_of_column + (warp * kWarp + Device::lane()) * R;
    warps_with_pairs = smaller(kWarps, (last_pair - first_of_column) / (kWarp * R) + 1);
    return true;
  }

  // The columns between the states in which the path enters and leaves the region, if it comes there.
  CTC_ALIGN_FN bool find_columns() {
    const index_t frame_before = first_block * kFrameBlock;
    if (work.path_ends[task.item] == kNoPath || frame_before + 1 >= end_frame) {
      return false;
    }
    const uint32_t* states = work.passes[pass_number - 1].states(task.item);
    first_column = static_cast<int32_t>(unpack_state(states[task.region]).pair / kColumnPairs);
    last_column = static_cast<int32_t>(unpack_state(states[task.region + 1]).pair / kColumnPairs);
    return true;
  }

  CTC_ALIGN_FN Band band() const { return {end_frame, last_pair}; }
  CTC_ALIGN_FN bool in_band(int32_t column, int32_t block) const {
    return first_column <= column && column <= last_column && first_block <= block && block < end_block &&
           column_in_band(end_frame, last_pair, column, block);
  }
  CTC_ALIGN_FN bool task_in_band(int32_t column, int32_t task_number) const {
    const int32_t begin = first_block + task_number * plan.task_blocks;
    for (int32_t q = begin; q < begin + plan.task_blocks; ++q) {
      if (in_band(column, q)) {
        return true;
      }
    }
    return false;
  }
  CTC_ALIGN_FN uint32_t* done(index_t column) const { return pass.done + pass.place(task.item, task.region, column); }
  CTC_ALIGN_FN index_t block_slot(index_t column, index_t q) const { return work.block_slot(task.item, column, q); }
  CTC_ALIGN_FN uint64_t* edge_words(index_t column, index_t q) const {
    const int32_t block = static_cast<int32_t>(q - first_block);
    const int32_t task_number = block / plan.task_blocks, within = block % plan.task_blocks;
    const index_t slot = index_t{task_number % plan.ring_tasks} * plan.task_blocks + within;
    const index_t column_blocks = index_t{plan.ring_tasks} * plan.task_blocks;
    return pass.edges + (pass.place(task.item, task.region, column) * column_blocks + slot) * kEdgesPerBlock * kWords;
  }
  CTC_ALIGN_FN index_t live_row() const {
    return task.item * 2 * plan.pairs() + task.region * kColumnPairs + first_pair;
  }

  CTC_ALIGN_FN void run_task() {
    const int32_t begin = first_block + task.number * plan.task_blocks;
    const int32_t end = smaller(begin + plan.task_blocks, static_cast<int32_t>(plan.blocks()));
    int32_t q = begin;
    while (q < end && !in_band(task.column, q)) {
      ++q;
    }
    if (q >= end) {
      return;
    }
    const bool continues = q == begin && task.number > 0 && task_in_band(task.column, task.number - 1);
    if (Device::thread() == 0 && plan.tasks() > 1) {
      if (continues) {
        wait_until_done(task.column, task.number - 1);
      }
      const int32_t reader = task.column + 1, before = task.number - plan.ring_tasks;  // of the edges in our slot
      if (before >= 0 && task_in_band(reader, before)) {
        wait_until_done(reader, before);
      }
    }
    Device::block_barrier();
    if (is_courier) {
      carry(q, end);
    } else {
      sweep(q, end, continues);
    }
    if (plan.tasks() > 1) {
      Device::block_barrier();
      if (Device::thread() == 0) {
        Device::store_release(done(task.column), static_cast<uint32_t>(task.number));
      }
    }
  }

  CTC_ALIGN_FN void wait_until_done(index_t column, index_t task_number) const {
    // done is all ones, that is -1, before the column's first task.
    while (static_cast<int32_t>(Device::load_acquire(done(column))) < static_cast<int32_t>(task_number)) {
      Device::pause();
    }
  }

  // Labels that are none read the blank's emission instead, and their item is marked: here if it has one column, else
  // by the hop.
  CTC_ALIGN_FN void load_target() {
    bool is_bad = false;
    index_t before = first_pair > 0 && first_pair <= last_pair ? in.label(task.item, first_pair - 1) : in.blank;
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      const index_t k = first_pair + r;
      const index_t c = k < last_pair ? in.label(task.item, k) : in.blank;
      skip_allowed[r] = Choice<Device>::of(may_skip_into(k, c, before));
      classes[r] = static_cast<int>(in.is_label(c) ? c : in.blank);
      is_bad = is_bad || (k < last_pair && !in.is_label(c));
      before = c;
    }
    is_first = Choice<Device>::of(Device::lane() == 0);
    is_bad = Device::any(is_bad);
    if (Device::lane() == 0) {
      shared.has_bad_label[warp] = is_bad;  // read by finish(), steps later
    }
  }

  CTC_ALIGN_FN void load_row(bool continues, index_t q) {
    const index_t at = live_row();
    // A region begins with what a pass before has kept for its columns, as far as they were reached.
    const bool starts_region =
        pass_number > 0 && q == first_block && q > 0 && column_in_band(end_frame, last_pair, task.column, q - 1);
    const KeptRow<Real> before = starts_region ? work.row_after(pass_number - 1, static_cast<int32_t>(task.region))
                                               : KeptRow<Real>{&work.passes[0], 0, 0};
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      if (continues) {
        blank[r] = pass.live_alphas[at + r];
        label[r] = pass.live_alphas[at + plan.pairs() + r];
        blank_origin[r] = pass.live_origins[at + r];
        label_origin[r] = pass.live_origins[at + plan.pairs() + r];
      } else {
        const index_t k = first_pair + r;
        blank[r] = starts_region ? before.pass->kept_alphas[before.at(task.item, k, false)] : kMinusInfinity<Real>;
        label[r] = starts_region ? before.pass->kept_alphas[before.at(task.item, k, true)] : kMinusInfinity<Real>;
        reset_origins(r);
      }
    }
    if (q == 0 && first_pair == 0) {  // frame 0
      const Emissions<scalar_t> all = in.emissions(task.item);
      blank[0] = load_emission<Real>(all.at(0, in.blank));
      if (last_pair > 0 && in.is_label(in.label(task.item, 0))) {
        label[0] = load_emission<Real>(all.at(0, in.label(task.item, 0)));
      }
    }
  }

  CTC_ALIGN_FN void store_row() const {
    const index_t at = live_row();
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      pass.live_alphas[at + r] = blank[r];
      pass.live_alphas[at + plan.pairs() + r] = label[r];
      pass.live_origins[at + r] = blank_origin[r];
      pass.live_origins[at + plan.pairs() + r] = label_origin[r];
    }
  }

  CTC_ALIGN_FN void reset_origins(int r) {
    blank_origin[r] = pack_state({index_t{first_pair} + r, false});
    label_origin[r] = pack_state({index_t{first_pair} + r, true});
  }

  // A block of frames. The last one ends with a pseudo-frame T: nothing is added, but the edges of frame T-1 cross.
  struct Frames {
    int32_t first;
    int count;
    int stretches;
    bool has_left;
    bool rebases;  // at its start
  };
  CTC_ALIGN_FN static int32_t first_frame_of(int32_t q) { return q * static_cast<int32_t>(kFrameBlock) + 1; }
  CTC_ALIGN_FN Frames frames_of(int32_t q) const {
    const int32_t first = first_frame_of(q);
    const int32_t last = smaller<int32_t>(first + static_cast<int32_t>(kFrameBlock) - 1, end_frame - 1);
    const int count = last - first + (last == end_frame - 1 ? 2 : 1);
    return {first, count, (count + kStretch - 1) / kStretch, in_band(task.column - 1, q), kRebases<Real> && q > 0};
  }

  // Warps run one stretch behind one another, and a step behind the couriers, so each finds its edges and emissions in
  // shared memory. Every warp takes as many steps, with or without work.
  CTC_ALIGN_FN int steps_of(const Frames& frames) const { return frames.stretches + warps_with_pairs; }
  CTC_ALIGN_FN static void end_step() { Device::block_barrier(); }
  CTC_ALIGN_FN static void skip_steps(int count) {
    for (int step = 0; step < count; ++step) {
      end_step();
    }
  }

  // What a warp with pairs does in a task, from block q on. Beside its frames it has little to do in a step: that would
  // cost as much as frames do.
  CTC_ALIGN_FN void sweep(int32_t q, int32_t end, bool continues) {
    load_target();
    load_row(continues, q);
    begin_segment((first_frame_of(q) - first_frame_of(first_block)) / plan.segment_frames);
    for (; q < end && in_band(task.column, q); ++q) {
      const Frames frames = frames_of(q);
      if (frames.rebases) {
        move_base(q, frames.has_left);
      }
      pass_right();
      if (warp >= warps_with_pairs) {
        skip_steps(steps_of(frames));
        continue;
      }
      skip_steps(1 + warp);
      for (int stretch = 0; stretch < frames.stretches; ++stretch) {
        run_stretch(frames.first + stretch * kStretch, frames.count - stretch * kStretch, edges_into(warp, stretch));
        end_step();
      }
      skip_steps(warps_with_pairs - 1 - warp);
    }
    if (plan.tasks() > 1) {
      store_row();
    }
  }

  // What a courier does meanwhile. The first brings edges from the left, the last takes them on to the right.
  CTC_ALIGN_FN void carry(int32_t q, int32_t end) {
    const bool brings_edges = warp == 0;
    const int behind = kWholeRows ? 0 : warp;  // steps behind the first courier
    Courier courier;
    courier.aim(in, task.item, band(), first_pair, warp);
    courier.load(first_frame_of(q));
    for (; q < end && in_band(task.column, q); ++q) {
      const Frames frames = frames_of(q);
      const bool takes_edges = warp == kWarps - 1 && in_band(task.column + 1, q);
      uint64_t* const words_in = edge_words(task.column - 1, q);
      uint64_t* const words_out = edge_words(task.column, q);
      Real offset = 0;
      if (frames.rebases) {
        if (brings_edges && frames.has_left && pass_number == 0 && Device::lane() == 0) {
          shared.base_left = wait_for_base(task.column - 1, q);
        }
        offset = static_cast<Real>(settle_base(q, frames.has_left).offset);
      }
      Found found{};
      if (brings_edges && frames.has_left) {
        found = look_for_edges(words_in, 0, frames.count);
      }
      for (int step = 0; step < steps_of(frames); ++step) {
        const int stretch = step - behind;
        if (0 <= stretch && stretch < frames.stretches) {
          courier.store(shared.emissions, frames.first + stretch * kStretch);
          courier.load(frames.first + (stretch + 1) * kStretch);
          if (brings_edges) {
            receive_edges(words_in, stretch, frames, offset, found);
          }
        }
        if (takes_edges && step > kWarps) {
          send_edges(words_out, step - 1 - kWarps);
        }
        end_step();
      }
      if (takes_edges) {
        send_edges(words_out, frames.stretches - 1);
      }
    }
  }

  // The edges that enter a warp with a stretch; those into the next warp lie kEdgesOut further on.
  CTC_ALIGN_FN Edge<Real>* edges_into(int warp, int stretch) const { return shared.edges[warp][stretch % 2]; }
  static constexpr int kEdgesOut = 2 * kStretch;

  // Where a lane's words of a stretch begin in those of the block.
  CTC_ALIGN_FN static int own_words(int stretch) { return (stretch * kStretch + Device::lane()) * kWords; }

  // The words of a stretch, whether or not they are there yet.
  CTC_ALIGN_FN static Found look_for_edges(const uint64_t* words, int stretch, int frames) {
    if (Device::lane() < kStretch && stretch * kStretch + Device::lane() < frames) {
      return EdgeWords<Device>::look(words + own_words(stretch), Real{});
    }
    return {{0, 0}};  // nothing to wait for
  }

  // Waits for the stretch's edges, of which `found` has been seen so far, and lays them into shared memory, in this
  // column's units. Then it looks for those of the next.
  CTC_ALIGN_FN void receive_edges(uint64_t* words, int stretch, const Frames& frames, Real offset, Found& found) {
    Edge<Real> edge{kMinusInfinity<Real>, 0};
    if (frames.has_left) {
      while (Device::any(!EdgeWords<Device>::is_there(found))) {
        Device::pause();
        found = look_for_edges(words, stretch, frames.count);
      }
      EdgeWords<Device>::read(found, edge);
      if (plan.tasks() > plan.ring_tasks && Device::lane() < kStretch) {  // the slot will be used again
        for (int w = 0; w < kWords; ++w) {
          Device::store_relaxed(words + own_words(stretch) + w, ~uint64_t{0});
        }
      }
      found = look_for_edges(words, stretch + 1, frames.count);
    }
    if (Device::lane() < kStretch) {
      edges_into(0, stretch)[Device::lane()] = {edge.alpha + offset, edge.origin};
    }
  }

  CTC_ALIGN_FN void send_edges(uint64_t* words, int stretch) const {
    if (Device::lane() < kStretch) {
      EdgeWords<Device>::send(words + own_words(stretch), edges_into(kWarps, stretch)[Device::lane()]);
    }
  }

  // `frames`: how many the block still has from `frame` on, the pseudo-frame included.
  CTC_ALIGN_FN void run_stretch(int32_t frame, int frames, Edge<Real>* edges) {
    int32_t last = frame + kStretch - 1;
    if (frame + kStretch <= end_frame) {
      run_frames(frame, edges);
    } else {
      run_last_frames(frame, smaller(frames, kStretch), edges);
      last = end_frame - 1;
    }
    if (last == segment_end || (last == end_frame - 1 && last >= frame)) {
      keep_row();
      pass_right();
    }
  }

  // A whole stretch. Emissions and edges are read a group ahead of the frames that need them.
  CTC_ALIGN_FN void run_frames(int32_t frame, Edge<Real>* edges) {
    FrameEmissions<Real, R> emission[kStretch];
    Edge<Real> entering[kStretch];
    const auto read_group = [&](int from) {
      CTC_ALIGN_UNROLL
      for (int p = from; p < from + kGroupFrames; ++p) {
        emission[p] = read_emission(frame, p);
        entering[p] = edges[p];
      }
    };
    read_group(0);
    CTC_ALIGN_UNROLL
    for (int p = 0; p < kStretch; ++p) {
      if (p % kGroupFrames == 0 && p + kGroupFrames < kStretch) {
        read_group(p + kGroupFrames);
      }
      run_frame(emission[p], cross_edge(entering[p], edges[kEdgesOut + p]));
    }
  }

  // So many frames, up to the item's end; the last may be the pseudo-frame.
  CTC_ALIGN_FN void run_last_frames(int32_t frame, int count, Edge<Real>* edges) {
    for (int p = 0; p < count; ++p) {
      const Edge<Real> left = cross_edge(edges[p], edges[kEdgesOut + p]);
      if (frame + p == end_frame) {
        finish(left.alpha);
      } else {
        run_frame(read_emission(frame, p), left);
      }
    }
  }

  // Of the p-th frame of the stretch that begins with `frame`.
  CTC_ALIGN_FN FrameEmissions<Real, R> read_emission(int32_t frame, int p) const {
    using Emissions = typename Courier::Shared;
    const Real* values = shared.emissions.values[Emissions::slot_of(frame)][p];
    FrameEmissions<Real, R> emission;
    emission.blank = shared.emissions.blanks[Emissions::blank_slot_of(frame)][p];
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      emission.label[r] = values[kWholeRows ? classes[r] : Device::thread() * R + r];
    }
    return emission;
  }

  // Takes the label alphas of the frame just done one thread to the right. Called as soon as they are known, and again
  // whenever they or their origins change otherwise: the next frame finds them there.
  CTC_ALIGN_FN void pass_right() {
    passed.alpha = Device::shuffle_up(label[R - 1], 1);
    passed.origin = Device::shuffle_up(label_origin[R - 1], 1);
  }

  // Label k-1 of the frame before, k the thread's first pair; and the warp's last label on its way to the next warp.
  CTC_ALIGN_FN Edge<Real> cross_edge(const Edge<Real>& entering, Edge<Real>& leaving) const {
    if (Device::lane() == kWarp - 1) {
      leaving = {label[R - 1], label_origin[R - 1]};
    }
    return {is_first.select(entering.alpha, passed.alpha), is_first.select(entering.origin, passed.origin)};
  }

  CTC_ALIGN_FN void run_frame(const FrameEmissions<Real, R>& emission, const Edge<Real>& left) {
    CTC_ALIGN_UNROLL
    for (int r = R - 1; r >= 0; --r) {  // from the right: pair r reads label r-1 of the frame before
      const Real from_left = r > 0 ? label[r - 1] : left.alpha;
      const uint32_t from_left_origin = r > 0 ? label_origin[r - 1] : left.origin;
      const auto record = pair_step<ThreadLanes<Device, Real>>(from_left, skip_allowed[r], emission.blank,
                                                               emission.label[r], blank[r], label[r]);
      const uint32_t best_origin = record.from_left ? from_left_origin : blank_origin[r];
      // By a predicate, for the compiler joins this choice with the next one.
      const uint32_t entry_origin = skip_allowed[r].holds() ? best_origin : blank_origin[r];
      label_origin[r] = record.enters ? entry_origin : label_origin[r];
      blank_origin[r] = best_origin;
      if (r == R - 1) {
        pass_right();
      }
    }
  }

  // Of the pass, in this region. What the plan says of rows takes divisions, so it is asked once a task.
  CTC_ALIGN_FN void begin_segment(int32_t segment) {
    row_pairs = plan.pairs();
    kept_at = pass.kept(task.item, task.region, segment, {first_pair, false});
    segment_end = first_block * static_cast<int32_t>(kFrameBlock) + (segment + 1) * plan.segment_frames;
  }

  // At a segment's end.
  CTC_ALIGN_FN void keep_row() {
    OfPairs<Real> blanks, labels;
    OfPairs<uint16_t> from_blanks, from_labels;
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      blanks.of[r] = blank[r];
      labels.of[r] = label[r];
      from_blanks.of[r] = steps_back(first_pair + r, blank_origin[r]);
      from_labels.of[r] = steps_back(first_pair + r, label_origin[r]);
      reset_origins(r);
    }
    put(pass.kept_alphas + kept_at, blanks);
    put(pass.kept_alphas + kept_at + row_pairs, labels);
    put(pass.kept_origins + kept_at, from_blanks);
    put(pass.kept_origins + kept_at + row_pairs, from_labels);
    kept_at += 2 * row_pairs;
    segment_end += plan.segment_frames;
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

  // At the pseudo-frame T, `left` is label k-1 of frame T-1. The thread that owns blank L decides.
  CTC_ALIGN_FN void finish(Real left) const {
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      if (first_pair + r == last_pair && pass_number == 0) {
        const PathEnd<Real> end = best_path_end<Real>(last_pair, blank[r], r > 0 ? label[r - 1] : left);
        bool is_good = end.is_finite();
        for (int w = 0; w < kWarps; ++w) {
          is_good = is_good && !shared.has_bad_label[w];
        }
        work.path_ends[task.item] = is_good ? pack_state(end.state) : kNoPath;
      }
    }
  }

  // At the start of block q >= 1: moves the column's maximum into its base (lattice/rebase.h).
  CTC_ALIGN_FN void move_base(index_t q, bool has_left) {
    if (pass_number == 0) {
      const index_t t = q * kFrameBlock;
      float best = kMinusInfinity<float>;
      CTC_ALIGN_UNROLL
      for (int r = 0; r < R; ++r) {
        const index_t k = first_pair + r;
        if (band().first(t) <= k && k <= last_pair) {
          const float b = static_cast<float>(blank[r]), y = static_cast<float>(label[r]);
          best = b > best ? b : best;
          best = k < last_pair && y > best ? y : best;
        }
      }
      for (int step = kWarp / 2; step > 0; step /= 2) {
        const float other = Device::shuffle_xor(best, step);
        best = other > best ? other : best;
      }
      if (Device::lane() == 0) {
        shared.maxima[warp] = best;
      }
    }
    const Real moved = static_cast<Real>(settle_base(q, has_left).moved);
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      blank[r] -= moved;
      label[r] -= moved;
    }
  }

  struct Settled {
    float moved;   // what the column's alphas lose
    float offset;  // what is added to an edge that crosses into the column
  };

  // All threads of the block, when the maxima and the left base are in shared memory.
  CTC_ALIGN_FN Settled settle_base(index_t q, bool has_left) {
    if (pass_number > 0) {  // what the first pass has done there: this one sees a part of the columns only
      const auto base_of = [&](index_t column) { return same_bits<double>(work.bases[block_slot(column, q)]); };
      return {work.moved[block_slot(task.column, q)],
              has_left ? crossing_offset(base_of(task.column - 1), base_of(task.column)) : 0};
    }
    end_step();
    float best = shared.maxima[0];
    for (int w = 1; w < kWarps; ++w) {
      best = shared.maxima[w] > best ? shared.maxima[w] : best;
    }
    const double base_left = has_left ? shared.base_left : 0;  // written anew, as the maxima, many steps later

    // The column's base so far was published by this block of threads or by one that is done.
    const bool is_first_block = !in_band(task.column, q - 1);
    double base = q == 1 || is_first_block
                      ? 0
                      : same_bits<double>(Device::load_relaxed(work.bases + block_slot(task.column, q - 1)));
    const double next = next_base(base, best, has_left, base_left);
    float moved = 0;
    if (next > kMinusInfinity<double>) {
      // A column that nothing has reached stays at -inf. (Its base may be below what a float32 holds, and -inf less
      // -inf is NaN.)
      moved = is_first_block ? 0 : base_move(base, next);
      base = next;
    }
    if (Device::thread() == 0) {
      work.moved[block_slot(task.column, q)] = moved;
      Device::store_relaxed(work.bases + block_slot(task.column, q), same_bits<uint64_t>(base));
    }
    return {moved, has_left ? crossing_offset(base_left, base) : 0};
  }

  CTC_ALIGN_FN double wait_for_base(index_t column, index_t q) const {
    uint64_t word = Device::load_relaxed(work.bases + block_slot(column, q));
    while (word == ~uint64_t{0}) {
      Device::pause();
      word = Device::load_relaxed(work.bases + block_slot(column, q));
    }
    return same_bits<double>(word);
  }
};

// ----------------------------------------------------------------------------------------------------- 5 hop

// The way from one kept row of a region to the row before, along the origins.
struct Hops {
  const uint16_t* row;  // at the end of the segment to go back over next
  index_t row_pairs;

  template <class Real>
  CTC_ALIGN_FN Hops(const Pass<Real>& pass, index_t item, index_t region, index_t segment)
      : row(pass.kept_origins + pass.kept(item, region, segment, {0, false})), row_pairs(pass.plan.pairs()) {}

  CTC_ALIGN_FN uint32_t back(uint32_t packed) {
    const State state = unpack_state(packed);
    const uint32_t steps = row[(state.is_label ? row_pairs : 0) + state.pair];
    row -= 2 * row_pairs;
    return pack_state({state.pair - steps / 2, steps % 2 != 0});
  }
};

// The path's state at every segment border of a region, from the state at the region's end back to its start.
template <class Real>
CTC_ALIGN_FN void hop_back(const Pass<Real>& pass, index_t item, index_t region, const Band& band, uint32_t state) {
  const index_t frame_before = region * pass.plan.region_blocks * kFrameBlock;
  const index_t frames = smaller(band.frames - 1 - frame_before, pass.plan.region_blocks * kFrameBlock);
  const index_t segments = (frames + pass.plan.segment_frames - 1) / pass.plan.segment_frames;
  uint32_t* states = pass.states(item) + region * pass.plan.segments();
  states[segments] = state;
  Hops hops(pass, item, region, segments - 1);
  for (index_t s = segments - 1; s >= 0; --s) {
    state = hops.back(state);
    if (s > 0 || region == 0) {  // the last state of the region before is written there
      states[s] = state;
    }
  }
}

// The best final state of item b as the first sweep has found it, or kNoPath.
template <class Real, class scalar_t>
CTC_ALIGN_FN uint32_t path_end_of(const Inputs<scalar_t>& in, const Workspace<Real>& work, index_t b) {
  const ItemLattice item = lattice_of(in, work.whole(), b);
  if (!item.possible) {
    return kNoPath;
  }
  if (item.band.frames >= 2) {
    return work.path_ends[b];
  }
  // Not swept: frame 0 alone, if at all.
  const bool has_label = item.band.labels == 1;
  const index_t c = has_label ? in.label(b, 0) : in.blank;
  const bool spells = item.band.frames == 0 || !has_label || in.is_label(c);
  const Real total = item.band.frames == 0 || !spells ? Real{0} : load_emission<Real>(in.emissions(b).at(0, c));
  return spells && total - total == 0 ? pack_state({0, has_label}) : kNoPath;
}

// All rows of an item are far away, and one hop has to wait for the one before. So a block of threads fetches several
// rows at a time, of each as much as the path may touch: from a pair in one chunk of pairs it comes down by one chunk for
// each segment at most.
constexpr int kHopThreads = 256;
constexpr int kHopRows = 6;
constexpr int kHopChunk = kSegmentFrames;  // pairs

struct HopShared {
  uint32_t path_end;
  uint32_t state;
  alignas(8) uint16_t origins[kHopRows][kHopRows][2][kHopChunk];  // row, chunks further down, is a label, pair
};

// As hop_back(), by all threads of a block, for the whole of an item whose rows lie one segment of 128 frames apart.
template <class Device, class Real>
CTC_ALIGN_FN void hop_back_together(const Pass<Real>& pass, index_t item, const Band& band, HopShared& shared) {
  struct alignas(8) Four {
    uint16_t of[4];
  };
  constexpr int kFours = 2 * kHopChunk / 4;  // of a row in a chunk: its blanks', then its labels'
  constexpr int kLoads = kHopRows * kHopRows * kFours / kHopThreads;
  static_assert(kHopThreads % kFours == 0 && kLoads * kHopThreads == kHopRows * kHopRows * kFours, "equal shares");
  const int32_t segments = static_cast<int32_t>((band.frames - 2) / kSegmentFrames + 1);
  const int place = Device::thread() % kFours, is_label = place / (kFours / 2), first = place % (kFours / 2) * 4;
  const index_t row_pairs = pass.plan.pairs();
  uint32_t* const states = pass.states(item);
  uint32_t state = shared.path_end;
  for (int32_t end = segments; end > 0; end -= kHopRows) {
    const int32_t chunk = static_cast<int32_t>(unpack_state(state).pair) / kHopChunk;
    const uint16_t* const last_row = pass.kept_origins + pass.kept(item, 0, end - 1, {0, is_label != 0}) + first;
    Four fetched[kLoads];
    CTC_ALIGN_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const int n = Device::thread() / kFours + i * (kHopThreads / kFours), row = n / kHopRows, down = n % kHopRows;
      fetched[i] = {};
      if (row < end && down <= row && down <= chunk) {
        fetched[i] = *reinterpret_cast<const Four*>(last_row - row * 2 * row_pairs + (chunk - down) * kHopChunk);
      }
    }
    CTC_ALIGN_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const int n = Device::thread() / kFours + i * (kHopThreads / kFours);
      *reinterpret_cast<Four*>(&shared.origins[n / kHopRows][n % kHopRows][is_label][first]) = fetched[i];
    }
    Device::block_barrier();
    if (Device::thread() == 0) {
      for (int row = 0; row < kHopRows && row < end; ++row) {
        states[end - row] = state;
        const State at = unpack_state(state);
        const int32_t pair = static_cast<int32_t>(at.pair);
        const uint32_t steps = shared.origins[row][chunk - pair / kHopChunk][at.is_label ? 1 : 0][pair % kHopChunk];
        state = pack_state({at.pair - steps / 2, steps % 2 != 0});
      }
      shared.state = state;
    }
    Device::block_barrier();
    state = shared.state;
  }
  if (Device::thread() == 0) {
    states[0] = state;
  }
}

// All threads of a block, after the first pass over item b: is there a path, and where is it at every segment border?
template <class Device, class Real, class scalar_t>
CTC_ALIGN_FN void run_hop(const Inputs<scalar_t>& in, const Workspace<Real>& work, HopShared& shared, index_t b) {
  const ItemLattice item = lattice_of(in, work.whole(), b);
  if (Device::thread() == 0) {
    shared.path_end = path_end_of(in, work, b);
  }
  Device::block_barrier();
  if (item.possible) {
    bool bad = false;
    for (index_t k = Device::thread(); k < item.band.labels; k += Device::threads_per_block()) {
      bad = bad || !in.is_label(in.label(b, k));
    }
    if (bad) {
      shared.path_end = kNoPath;
    }
  }
  Device::block_barrier();
  if (Device::thread() == 0) {
    work.path_ends[b] = shared.path_end;
  }
  if (shared.path_end == kNoPath || item.band.frames < 2) {
    return;
  }
  if (work.whole().segment_frames == kSegmentFrames) {
    hop_back_together<Device>(work.passes[0], b, item.band, shared);
  } else if (Device::thread() == 0) {
    hop_back(work.passes[0], b, 0, item.band, shared.path_end);
  }
}

// After a later pass, one thread a region.
template <class Device, class Real, class scalar_t>
CTC_ALIGN_FN void run_hop_in_region(const Inputs<scalar_t>& in, const Workspace<Real>& work, int pass_number) {
  const Pass<Real>& pass = work.passes[pass_number];
  const index_t regions = pass.plan.regions();
  const index_t b = Device::block() / static_cast<uint32_t>(regions);
  const index_t region = Device::block() % static_cast<uint32_t>(regions);
  const Band band = lattice_of(in, work.whole(), b).band;
  if (Device::thread() == 0 && work.path_ends[b] != kNoPath &&
      region * pass.plan.region_blocks * kFrameBlock + 1 < band.frames) {
    hop_back(pass, b, region, band, work.passes[pass_number - 1].states(b)[region + 1]);
  }
}

// --------------------------------------------------------------------------------------------------- 6 trace

template <class scalar_t>
struct Outputs {
  void* paths;  // [B][T], integers as wide as the targets
  bool wide;
  scalar_t* scores;  // [B][T]

  CTC_ALIGN_FN void write(index_t i, index_t label, scalar_t score) const {
    if (wide) {
      static_cast<int64_t*>(paths)[i] = label;
    } else {
      static_cast<int32_t*>(paths)[i] = static_cast<int32_t>(label);
    }
    scores[i] = score;
  }
};

// Pairs a warp can hold in the trace, of 129 at most that a segment's path may touch.
constexpr int kTracePairs = 5 * kWarp;
static_assert(kTracePairs > kSegmentFrames, "a warp holds every pair that a segment's path may touch");

// Warps of an item; the last may have nothing to do.
CTC_ALIGN_FN index_t traced_segments(const Plan& plan) { return larger<index_t>(plan.regions() * plan.segments(), 1); }

// The frames of a group of 32 into which a state's best path comes from another state. A bit each, the group's last
// frame lowest, so that the walk back meets the lowest set bit first.
struct alignas(8) Moves {
  uint32_t all;
  uint32_t skips;  // by two states; the others by one

  static constexpr int kFrames = 32;
};

struct TraceShared {
  Moves moves[kSegmentFrames / Moves::kFrames][2 * kTracePairs];  // of the states that a path may touch
};

// One warp a segment. Threads of the block beyond its warp do not exist.
template <class Device, class Real, class scalar_t>
struct Trace {
  static constexpr int kGroups = kSegmentFrames / kWarp;  // of 32 frames

  const Inputs<scalar_t>& in;
  const Workspace<Real>& work;
  const Pass<Real>& pass;
  const Plan& plan;
  const Outputs<scalar_t>& out;
  TraceShared& shared;

  index_t item;
  index_t segment;
  uint32_t state_before, state_after;  // the path's, at the segment's borders

  CTC_ALIGN_FN static void run(const Inputs<scalar_t>& in, const Workspace<Real>& work, const Outputs<scalar_t>& out,
                               TraceShared& shared) {
    const Pass<Real>& pass = work.last();
    const index_t segments = traced_segments(pass.plan), block = Device::block();
    Trace trace{in, work, pass, pass.plan, out, shared, block / segments, block % segments};
    const Plan& plan = pass.plan;
    const Band band = lattice_of(in, plan, trace.item).band;
    const uint32_t path_end = work.has_hop() ? work.path_ends[trace.item] : path_end_of(in, work, trace.item);
    if (path_end == kNoPath) {
      trace.fill(0, -1, kMinusInfinity<Real>);
      return;
    }
    if (trace.first_frame() < band.frames) {
      trace.find_states(band, path_end);
      const index_t pairs = unpack_state(trace.state_after).pair - unpack_state(trace.state_before).pair + 1;
      if (pairs <= kWarp) {
        trace.template sweep<1>(band);
      } else if (pairs <= 2 * kWarp) {
        trace.template sweep<2>(band);
      } else {
        trace.template sweep<kTracePairs / kWarp>(band);
      }
      trace.walk(band);
    } else if (trace.segment == 0 && band.frames == 1) {
      trace.write_frame(0, path_end);
    }
    trace.fill(band.frames, in.blank, Real{0});
  }

  // The segment's frames; frame 0 belongs to segment 0 but is not swept.
  CTC_ALIGN_FN index_t first_frame() const { return segment * kSegmentFrames + 1; }
  CTC_ALIGN_FN index_t end_frame() const { return smaller((segment + 1) * kSegmentFrames + 1, plan.frames); }

  // Fills the segment's frames from `from` on.
  CTC_ALIGN_FN void fill(index_t from, index_t label, Real score) const {
    const index_t begin = segment == 0 ? 0 : first_frame();
    for (index_t t = begin + Device::lane(); t < end_frame(); t += kWarp) {
      if (t >= from) {
        out.write(item * plan.frames + t, label, static_cast<scalar_t>(score));
      }
    }
  }

  CTC_ALIGN_FN index_t label_of(uint32_t packed) const {
    const State state = unpack_state(packed);
    return state.is_label ? in.label(item, state.pair) : in.blank;
  }

  CTC_ALIGN_FN void write_frame(index_t t, uint32_t state) const {
    const index_t c = label_of(state);
    out.write(item * plan.frames + t, c, in.emissions(item).at(t, c));
  }

  // As the hop has written them; without one each warp goes back to them from the path's end.
  CTC_ALIGN_FN void find_states(const Band& band, uint32_t path_end) {
    if (work.has_hop()) {
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

  // Sweeps the pairs between the path's own ones at the segment's start and end, R a lane; the records go to shared
  // memory. Pairs behind the last one are computed too, but with the blank's emissions, which are at hand.
  template <int R>
  CTC_ALIGN_FN void sweep(const Band& band) {
    constexpr int kAhead = R == 1 ? 8 : R == 2 ? 4 : sizeof(Real) == sizeof(float) ? 2 : 1;
    const index_t begin = first_frame(), end = smaller(end_frame(), band.frames);
    const index_t block = (begin - 1) / kFrameBlock;
    const index_t left_pair = unpack_state(state_before).pair;
    const index_t right_pair = unpack_state(state_after).pair;
    const index_t first_pair = left_pair + Device::lane() * R;
    const KeptRow<Real> before_row = segment > 0 ? work.row_after(work.count - 1, static_cast<int32_t>(segment))
                                                 : KeptRow<Real>{&pass, 0, 0};  // segment 0 reads none
    Real blank[R], label[R], offset[R];
    // The path cannot be in pair k before it has come so far to the right, nor when it could not come to right_pair any
    // more. There a label counts as impossible: a loser less.
    OwnColumns<Real, scalar_t, R + 1, kAhead> emissions;
    const auto aim = [&](int n, index_t c, index_t from, index_t until) {
      emissions.aim(in.emissions(item), band.frames - 1, n, c, from, until);
    };
    aim(R, in.blank, begin, end - 1);
    Choice<Device> skip_allowed[R];
    const auto is_first = Choice<Device>::of(Device::lane() == 0);
    index_t before = 0 < first_pair && first_pair <= band.labels ? in.label(item, first_pair - 1) : in.blank;
    CTC_ALIGN_UNROLL
    for (int r = 0; r < R; ++r) {
      const index_t k = first_pair + r;
      const index_t c = k < band.labels ? in.label(item, k) : in.blank;
      aim(r, k <= right_pair ? c : in.blank, begin - 1 + k - left_pair, end - 1 - (right_pair - k));
      skip_allowed[r] = Choice<Device>::of(may_skip_into(k, c, before));
      before = c;
      load_alphas(band, before_row, k, c, blank[r], label[r]);
      const bool crosses = block > 0 && k > left_pair && k % kColumnPairs == 0 && k <= band.last(end - 1);
      offset[r] = kRebases<Real> && crosses ? offset_into(k / kColumnPairs, block) : Real{0};
    }

    uint32_t from_left_bits[R] = {}, enters_bits[R] = {};  // of 32 frames, the last one lowest
    const auto run_frames = [&](const auto& now) {
      uint32_t from_left[R] = {}, enters[R] = {};
      CTC_ALIGN_UNROLL
      for (int p = 0; p < kAhead; ++p) {
        const Real incoming = Device::shuffle_up(label[R - 1], 1);
        const Real left = is_first.select(kMinusInfinity<Real>, incoming);
        CTC_ALIGN_UNROLL
        for (int r = R - 1; r >= 0; --r) {
          const auto record = pair_step<ThreadLanes<Device, Real>>(
              (r > 0 ? label[r - 1] : left) + offset[r], skip_allowed[r], load_emission<Real>(now.value[p][R]),
              load_emission<Real>(now.value[p][r]), blank[r], label[r]);
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
    for (index_t group = 0; begin + 32 * group < end; ++group) {
      for (int i = 0; i < 32; i += 2 * kAhead) {
        run_frames(even);
        even = emissions.load(begin + 32 * group + i + 2 * kAhead);
        run_frames(odd);
        odd = emissions.load(begin + 32 * group + i + 3 * kAhead);
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

  // Alphas of pair k at the frame before the segment, as the first sweep had them on entering it.
  CTC_ALIGN_FN void load_alphas(const Band& band, const KeptRow<Real>& before, index_t k, index_t klass, Real& blank,
                                Real& label) const {
    blank = label = kMinusInfinity<Real>;
    const index_t t = first_frame() - 1;
    if (segment == 0) {
      if (k == 0) {
        blank = load_emission<Real>(in.emissions(item).at(0, in.blank));
        label = band.labels > 0 ? load_emission<Real>(in.emissions(item).at(0, klass)) : kMinusInfinity<Real>;
      }
    } else if (k <= band.last(t)) {
      blank = before.pass->kept_alphas[before.at(item, k, false)];
      label = before.pass->kept_alphas[before.at(item, k, true)];
      if (kRebases<Real> && t % kFrameBlock == 0) {
        const float moved = work.moved[block_slot(k / kColumnPairs, t / kFrameBlock)];
        blank -= static_cast<Real>(moved);
        label -= static_cast<Real>(moved);
      }
    }
  }

  CTC_ALIGN_FN index_t block_slot(index_t column, index_t block) const { return work.block_slot(item, column, block); }
  CTC_ALIGN_FN Real offset_into(index_t column, index_t block) const {
    const uint64_t left = work.bases[block_slot(column - 1, block)], own = work.bases[block_slot(column, block)];
    return static_cast<Real>(crossing_offset(same_bits<double>(left), same_bits<double>(own)));
  }

  // All lanes walk the same way, from the segment's last frame to its first, in groups of 32: from one frame at which
  // the path moves to the one before. So a lane knows the state at its own frame of each group: that at the group's
  // last frame, less the moves behind its own.
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
        const uint32_t behind = (uint32_t{1} << (kWarp - 1 - Device::lane())) - 1;
        own_states[group] -= static_cast<uint32_t>(Device::ones(moved & behind) + Device::ones(skipped & behind));
      }
    }
    index_t labels[kGroups];
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
    each_group([&](int group, index_t) { labels[group] = label_of(own_states[group]); });
    each_group([&](int group, index_t t) { scores[group] = in.emissions(item).at(t, labels[group]); });
    each_group([&](int group, index_t t) { out.write(item * plan.frames + t, labels[group], scores[group]); });
    if (segment == 0 && Device::lane() == 0) {
      write_frame(0, left_state + state);
    }
  }
};

}  // namespace ctc_align
