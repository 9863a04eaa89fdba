// The kernels that are compiled once for every instruction set: the sweep over some columns and the panel that feeds it,
// and a frame of the sum over all paths, forward and backward.
//
// Their translation units include nothing but csrc/lattice and a dictionary of lanes: an inline function of a library,
// compiled there, could be the copy that the linker takes for the whole package.
#pragma once

#include "../../lattice/forward_backward/frame.h"
#include "../../lattice/viterbi/sweep.h"

namespace ctc_align {

// Half types are summed in float32, the others in their own precision.
template <class scalar_t>
struct Accumulation {
  using Real = float;
};
template <>
struct Accumulation<double> {
  using Real = double;
};
template <class scalar_t>
using AccumulationType = typename Accumulation<scalar_t>::Real;

// A frame of the sum over all paths.
template <class Real>
struct FrameKernels {
  index_t planes;  // arrays of a weight
  void (*forward)(const ForwardBackwardLattice<Real>& lattice, index_t t, const WeightRow<Real>& from,
                  const WeightRow<Real>& to);
  FrameSums<Real> (*backward)(const ForwardBackwardLattice<Real>& lattice, index_t t, const WeightRow<Real>& alphas,
                              const Total& total, const WeightRow<Real>& from, const WeightRow<Real>& to,
                              Real* label_sums);
};

template <class scalar_t>
struct SweepKernels {
  using Real = AccumulationType<scalar_t>;
  index_t tile_pairs;     // pairs in a tile
  index_t group_frames;   // a panel by class has room for whole groups of frames
  index_t table_classes;  // a panel of at most this many classes is by frame, with room for this many
  void (*load_panel)(const EmissionPanel<Real>& panel, const Emissions<scalar_t>& emissions, index_t first_frame,
                     index_t frames);
  void (*load_stars)(const EmissionPanel<Real>& panel, const StarScores<scalar_t>& stars, index_t first_frame,
                     index_t frames);
  // For targets without wild gaps, and with some.
  void (*sweep_columns[2])(const SweepJob<Real>& job, const Strip<Real>& strip, ColumnRange columns);
  void (*load_classes)(const ForwardBackwardLattice<Real>& lattice, const Emissions<scalar_t>& emissions,
                       const int64_t* classes, const scalar_t* star, index_t t, Real* weights);
  // Frames of items without path values and with them, without wild gaps and with them.
  FrameKernels<Real> frames[2][2];
};

// An instruction set: kernels<float>() and so on.
struct Isa : SweepKernels<StoredHalf>, SweepKernels<StoredBFloat16>, SweepKernels<float>, SweepKernels<double> {
  template <class scalar_t>
  const SweepKernels<scalar_t>& kernels() const {
    return *this;
  }
};

// Functions of lattice/, to be pointed to. load_panel gets Lanes into its name, so that the linker does not take one
// instruction set's copy for all. A pointer to sweep_columns itself costs 15 %: GCC 12 then spills in the loop.
template <class Lanes>
struct Compiled {
  using Real = typename Lanes::Real;

  template <class scalar_t>
  static void load(const EmissionPanel<Real>& panel, const Emissions<scalar_t>& emissions, index_t first_frame,
                   index_t frames) {
    load_panel<Lanes>(panel, emissions, first_frame, frames);
  }
  template <class scalar_t>
  static void add_stars(const EmissionPanel<Real>& panel, const StarScores<scalar_t>& stars, index_t first_frame,
                        index_t frames) {
    load_stars(panel, stars, first_frame, frames);
  }
  template <bool kWild>
  static void sweep(const SweepJob<Real>& job, const Strip<Real>& strip, ColumnRange columns) {
    sweep_columns<Lanes, kWild>(job, strip, columns);
  }
};

// Frames with every choice made beforehand that holds for a whole frame. kStars, which holds for
// an item, is a function's own: those without stars stay as small as they were.
template <class Lanes, class Weight, bool kStars>
struct CompiledFrames {
  using Real = typename Lanes::Real;
  using Lattice = ForwardBackwardLattice<Real>;
  using Row = WeightRow<Real>;

  static void forward(const Lattice& lattice, index_t t, const Row& from, const Row& to) {
    choose(lattice, t, [&]<class ClassWeights, bool kNormalize>(Choices<ClassWeights, kNormalize>) {
      forward_frame<Lanes, Weight, ClassWeights, kNormalize, kStars>(lattice, t, from, to);
    });
  }
  static FrameSums<Real> backward(const Lattice& lattice, index_t t, const Row& alphas, const Total& total,
                                  const Row& from, const Row& to, Real* label_sums) {
    return choose(lattice, t, [&]<class ClassWeights, bool kNormalize>(Choices<ClassWeights, kNormalize>) {
      return backward_frame<Lanes, Weight, ClassWeights, kNormalize, kStars>(lattice, t, alphas, total, from, to,
                                                                             label_sums);
    });
  }
  static constexpr FrameKernels<Real> kernels() { return {Weight::kPlanes, forward, backward}; }

 private:
  // Passed as an argument: Clang 13 warns where template arguments alone choose the call operator.
  template <class ClassWeights, bool kNormalize>
  struct Choices {};

  template <class Run>
  static auto choose(const Lattice& lattice, index_t t, const Run& run) {
    return with_class_weights<Lanes>(lattice.class_count, [&]<class ClassWeights>() {
      return t % kFramesToNormalize == kFramesToNormalize - 1 ? run(Choices<ClassWeights, true>())
                                                              : run(Choices<ClassWeights, false>());
    });
  }
};

template <class Lanes, class scalar_t>
constexpr SweepKernels<scalar_t> make_kernels() {
  static_assert(SweepLanes<Lanes> && SumRowLanes<Lanes>);
  return {.tile_pairs = Lanes::kTileWords * kPairsPerWord,
          .group_frames = Lanes::kWidth,
          .table_classes = Lanes::kTableClasses,
          .load_panel = Compiled<Lanes>::template load<scalar_t>,
          .load_stars = Compiled<Lanes>::template add_stars<scalar_t>,
          .sweep_columns = {Compiled<Lanes>::template sweep<false>, Compiled<Lanes>::template sweep<true>},
          .load_classes = load_classes<Lanes, scalar_t>,
          .frames = {{CompiledFrames<Lanes, ScaledWeight<Lanes>, false>::kernels(),
                      CompiledFrames<Lanes, ScaledWeight<Lanes>, true>::kernels()},
                     {CompiledFrames<Lanes, ExpectationWeight<Lanes>, false>::kernels(),
                      CompiledFrames<Lanes, ExpectationWeight<Lanes>, true>::kernels()}}};
}

template <class FloatLanes, class DoubleLanes>
constexpr Isa make_isa() {
  return {make_kernels<FloatLanes, StoredHalf>(), make_kernels<FloatLanes, StoredBFloat16>(),
          make_kernels<FloatLanes, float>(), make_kernels<DoubleLanes, double>()};
}

extern const Isa kPortable, kAvx2, kAvx512;

}  // namespace ctc_align
