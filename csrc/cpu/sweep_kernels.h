// What is compiled once for every instruction set: the sweep over some columns, and the panel that feeds it.
//
// A translation unit that does so includes nothing but csrc/lattice and its dictionary of lanes: an inline function of
// a library, compiled there, could be the copy that the linker takes for the whole package.
#pragma once

#include "../lattice/sweep.h"

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

template <class scalar_t>
struct SweepKernels {
  using Real = AccumulationType<scalar_t>;
  index_t tile_pairs;     // pairs in a tile
  index_t group_frames;   // a panel by class has room for whole groups of frames
  index_t table_classes;  // up to so many classes a panel is by frame, and has room for this many
  void (*load_panel)(const EmissionPanel<Real>& panel, const Emissions<scalar_t>& emissions, index_t first_frame,
                     index_t frames);
  void (*sweep_columns)(const SweepJob<Real>& job, const Stretch<Real>& stretch, ColumnRange columns);
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
  static void sweep(const SweepJob<Real>& job, const Stretch<Real>& stretch, ColumnRange columns) {
    sweep_columns<Lanes>(job, stretch, columns);
  }
};

template <class Lanes, class scalar_t>
constexpr SweepKernels<scalar_t> make_kernels() {
  return {Lanes::kTileWords * kPairsPerWord, Lanes::kWidth, Lanes::kTableClasses,
          Compiled<Lanes>::template load<scalar_t>, Compiled<Lanes>::sweep};
}

template <class FloatLanes, class DoubleLanes>
constexpr Isa make_isa() {
  return {make_kernels<FloatLanes, StoredHalf>(), make_kernels<FloatLanes, StoredBFloat16>(),
          make_kernels<FloatLanes, float>(), make_kernels<DoubleLanes, double>()};
}

extern const Isa kPortable, kAvx2, kAvx512;

}  // namespace ctc_align
