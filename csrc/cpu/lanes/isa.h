// What is compiled once for every instruction set: the sweep over some columns and the panel that feeds it, and a frame
// of the sum over all paths, forward and backward.
//
// A translation unit that does so includes nothing but csrc/lattice and its dictionary of lanes: an inline function of
// a library, compiled there, could be the copy that the linker takes for the whole package.
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
  index_t parts;  // arrays of a number
  void (*forward)(const SoftLattice<Real>& lattice, index_t t, const NumberRow<Real>& from, NumberRow<Real>& to);
  FrameSums<Real> (*backward)(const SoftLattice<Real>& lattice, index_t t, const NumberRow<Real>& alphas,
                              const Total& total, const NumberRow<Real>& from, NumberRow<Real>& to, Real* labels);
};

template <class scalar_t>
struct SweepKernels {
  using Real = AccumulationType<scalar_t>;
  index_t tile_pairs;     // pairs in a tile
  index_t group_frames;   // a panel by class has room for whole groups of frames
  index_t table_classes;  // up to so many classes a panel is by frame, and has room for this many
  void (*load_panel)(const EmissionPanel<Real>& panel, const Emissions<scalar_t>& emissions, index_t first_frame,
                     index_t frames);
  void (*sweep_columns)(const SweepJob<Real>& job, const Stretch<Real>& stretch, ColumnRange columns);
  void (*load_classes)(const SoftLattice<Real>& lattice, const Emissions<scalar_t>& emissions, const int64_t* classes,
                       index_t t, double shift);
  FrameKernels<Real> posteriors;  // with Scaled numbers
  FrameKernels<Real> gains;       // with Expected ones
};

// An instruction set: kernels<float>() and so on.
struct Isa : SweepKernels<StoredHalf>, SweepKernels<StoredBFloat16>, SweepKernels<float>, SweepKernels<double> {
  template <class scalar_t>
  const SweepKernels<scalar_t>& kernels() const {
    return *this;
  }
};

// The functions of lattice/ as functions that can be pointed to.
template <class Lanes>
struct Compiled {
  using Real = typename Lanes::Real;

  template <class scalar_t>
  static void load(const EmissionPanel<Real>& panel, const Emissions<scalar_t>& emissions, index_t first_frame,
                   index_t frames) {
    load_panel<Lanes::kWidth>(panel, emissions, first_frame, frames);
  }
  template <class scalar_t>
  static void load_classes(const SoftLattice<Real>& lattice, const Emissions<scalar_t>& emissions,
                           const int64_t* classes, index_t t, double shift) {
    ctc_align::load_classes<Lanes>(lattice, emissions, classes, t, shift);
  }
  static void sweep(const SweepJob<Real>& job, const Stretch<Real>& stretch, ColumnRange columns) {
    sweep_columns<Lanes>(job, stretch, columns);
  }
};

// And with every choice that is the same for a whole frame made beforehand.
template <class Lanes, class Number>
struct CompiledFrames {
  using Real = typename Lanes::Real;
  using Lattice = SoftLattice<Real>;
  using Row = NumberRow<Real>;

  static void forward(const Lattice& lattice, index_t t, const Row& from, Row& to) {
    if constexpr (Lanes::kTableClasses > 0) {
      if (lattice.class_count <= Lanes::kTableClasses) {
        return forward<TableLookUp<Lanes>>(lattice, t, from, to);
      }
    }
    forward<RowLookUp<Lanes>>(lattice, t, from, to);
  }
  static FrameSums<Real> backward(const Lattice& lattice, index_t t, const Row& alphas, const Total& total,
                                  const Row& from, Row& to, Real* labels) {
    if constexpr (Lanes::kTableClasses > 0) {
      if (lattice.class_count <= Lanes::kTableClasses) {
        return backward<TableLookUp<Lanes>>(lattice, t, alphas, total, from, to, labels);
      }
    }
    return backward<RowLookUp<Lanes>>(lattice, t, alphas, total, from, to, labels);
  }
  static constexpr FrameKernels<Real> kernels() { return {Number::kParts, forward, backward}; }

 private:
  static bool normalizes(index_t t) { return t % kFramesToNormalize == kFramesToNormalize - 1; }

  template <class LookUp>
  static void forward(const Lattice& lattice, index_t t, const Row& from, Row& to) {
    if (normalizes(t)) {
      forward_frame<Lanes, Number, LookUp, true>(lattice, t, from, to);
    } else {
      forward_frame<Lanes, Number, LookUp, false>(lattice, t, from, to);
    }
  }
  template <class LookUp>
  static FrameSums<Real> backward(const Lattice& lattice, index_t t, const Row& alphas, const Total& total,
                                  const Row& from, Row& to, Real* labels) {
    return normalizes(t) ? backward_frame<Lanes, Number, LookUp, true>(lattice, t, alphas, total, from, to, labels)
                         : backward_frame<Lanes, Number, LookUp, false>(lattice, t, alphas, total, from, to, labels);
  }
};

template <class Lanes, class scalar_t>
constexpr SweepKernels<scalar_t> make_kernels() {
  return {Lanes::kTileWords * kPairsPerWord,
          Lanes::kWidth,
          Lanes::kTableClasses,
          Compiled<Lanes>::template load<scalar_t>,
          Compiled<Lanes>::sweep,
          Compiled<Lanes>::template load_classes<scalar_t>,
          CompiledFrames<Lanes, Scaled<Lanes>>::kernels(),
          CompiledFrames<Lanes, Expected<Lanes>>::kernels()};
}

template <class FloatLanes, class DoubleLanes>
constexpr Isa make_isa() {
  return {make_kernels<FloatLanes, StoredHalf>(), make_kernels<FloatLanes, StoredBFloat16>(),
          make_kernels<FloatLanes, float>(), make_kernels<DoubleLanes, double>()};
}

extern const Isa kPortable, kAvx2, kAvx512;

}  // namespace ctc_align
