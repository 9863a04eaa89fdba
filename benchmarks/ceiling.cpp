// The number of states that one core of this machine can sweep in a second, if it does nothing else.
//
//     c++ -std=c++20 -O3 -march=native -ffp-contract=off benchmarks/ceiling.cpp -o build/ceiling
//     build/ceiling 50000 25000        (T and L; make bench does both)
//
// The recurrence of csrc/lattice/viterbi/pair_step.h over the band, in tiles whose alphas stay in registers for a frame
// block. It leaves out the rest of an alignment: records, checkpoints, the second sweep, the rebase of sums, the traceback,
// and the emissions' way through memory (32 classes of a frame block lie in the first cache). The package's distance from
// this number is the cost of that rest.
//
// Prints the best of some repetitions, a line for each number of vectors in a tile.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "../csrc/lattice/viterbi/rebase.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#include "../csrc/cpu/lanes/avx512.h"
using Native = ctc_align::Avx512Lanes<void>;
#elif defined(__AVX2__)
#include "../csrc/cpu/lanes/avx2.h"
using Native = ctc_align::Avx2Lanes<void>;
#else
#include "../csrc/cpu/lanes/vector.h"
using Native = ctc_align::VectorLanes<float, 4, void>;
#endif

namespace {

using ctc_align::Band;
using ctc_align::index_t;
using ctc_align::kFrameBlock;
using ctc_align::kMinusInfinity;

constexpr index_t kClasses = 32;
constexpr int kRepeats = 7;
template <class Lanes>
constexpr bool kLookUp = Lanes::kTableClasses >= kClasses;

struct Problem {
  Band band;
  std::vector<int32_t> targets;  // padded, as the others, to whole tiles of any size
  std::vector<uint16_t> skips;   // a bit for each pair
  std::vector<float> emissions;  // [kFrameBlock, kClasses], for every frame block
};

Problem make_problem(index_t frames, index_t labels) {
  constexpr index_t kPadding = 1024;
  std::mt19937 random(0);
  Problem p{{frames, labels}, {}, {}, std::vector<float>(kFrameBlock * kClasses)};
  p.targets.resize(labels + kPadding);
  p.skips.resize(labels / 16 + kPadding);
  for (index_t k = 0; k < labels; ++k) {
    p.targets[k] = 1 + static_cast<int32_t>(random() % (kClasses - 1));
    p.skips[k / 16] |= static_cast<uint16_t>(k > 0 && p.targets[k] != p.targets[k - 1]) << k % 16;
  }
  for (float& emission : p.emissions) {
    emission = -static_cast<float>(random() % 1000) / 200;
  }
  return p;
}

// Emissions of the labels of a tile, from a frame's row of 32 classes.
template <class Lanes, int kVectors, bool kLookUp>
struct TileEmissions {
  typename Lanes::Index ids[kVectors];
  typename Lanes::Table table;

  CTC_ALIGN_FN explicit TileEmissions(const int32_t* targets) {
    for (int v = 0; v < kVectors; ++v) {
      ids[v] = Lanes::load_index(targets + v * Lanes::kWidth);
    }
  }
  CTC_ALIGN_FN void begin_frame(const float* row) { table = Lanes::load_table(row); }
  CTC_ALIGN_FN typename Lanes::Value label(int v) const { return Lanes::look_up(table, ids[v]); }
};

// Where no register holds such a row: any of its values will do, so this leaves out the look-up, too.
template <class Lanes, int kVectors>
struct TileEmissions<Lanes, kVectors, false> {
  const float* row;

  CTC_ALIGN_FN explicit TileEmissions(const int32_t*) {}
  CTC_ALIGN_FN void begin_frame(const float* of_frame) { row = of_frame; }
  CTC_ALIGN_FN typename Lanes::Value label(int v) const { return Lanes::load(row + v * Lanes::kWidth % kClasses); }
};

// Pairs first_pair.. of a tile over some frames; an edge is the label alpha that crosses to the next tile.
template <class Lanes, int kVectors>
void sweep_tile(const Problem& p, index_t first_pair, index_t frames, float* blank_alphas, float* label_alphas,
                float* edges) {
  TileEmissions<Lanes, kVectors, kLookUp<Lanes>> emissions(p.targets.data() + first_pair);
  typename Lanes::Value blanks[kVectors], labels[kVectors];
  typename Lanes::Choice skips[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const index_t pair = first_pair + v * Lanes::kWidth;
    blanks[v] = Lanes::load(blank_alphas + pair);
    labels[v] = Lanes::load(label_alphas + pair);
    skips[v] = Lanes::choice(p.skips[pair / 16] >> pair % 16);
  }
  for (index_t i = 0; i < frames; ++i) {
    const float* row = p.emissions.data() + i * kClasses;
    emissions.begin_frame(row);
    const auto blank_emission = Lanes::broadcast(row[0]);
    const float edge = edges[i];
    edges[i] = Lanes::last(labels[kVectors - 1]);
    auto left = labels[0];
    for (int v = 0; v < kVectors; ++v) {
      const auto from_left = v == 0 ? Lanes::shift_in(edge, labels[v]) : Lanes::shift_in(left, labels[v]);
      left = labels[v];
      ctc_align::pair_step<Lanes>(from_left, skips[v], blank_emission, emissions.label(v), blanks[v], labels[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    Lanes::store(blank_alphas + first_pair + v * Lanes::kWidth, blanks[v]);
    Lanes::store(label_alphas + first_pair + v * Lanes::kWidth, labels[v]);
  }
}

template <int kVectors>
double sweep_seconds(const Problem& p, float& score) {
  constexpr index_t kTile = kVectors * Native::kWidth;
  const index_t T = p.band.frames, L = p.band.labels;
  std::vector<float> blanks(p.targets.size(), kMinusInfinity<float>), labels(blanks), edges(kFrameBlock);

  const auto start = std::chrono::steady_clock::now();
  blanks[0] = p.emissions[0];
  labels[0] = p.emissions[p.targets[0]];
  for (index_t t = 1; t < T; t += kFrameBlock) {
    const index_t frames = std::min(kFrameBlock, T - t);
    std::fill(edges.begin(), edges.end(), kMinusInfinity<float>);
    for (index_t tile = p.band.first(t - 1) / kTile; tile <= p.band.last(t + frames - 1) / kTile; ++tile) {
      sweep_tile<Native, kVectors>(p, tile * kTile, frames, blanks.data(), labels.data(), edges.data());
    }
  }
  score = std::max(blanks[L], labels[L - 1]);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

template <int kVectors>
void report(const Problem& p) {
  float score = 0;
  double best = std::numeric_limits<double>::infinity();
  for (int r = 0; r < kRepeats; ++r) {
    best = std::min(best, sweep_seconds<kVectors>(p, score));
  }
  const double T = static_cast<double>(p.band.frames), L = static_cast<double>(p.band.labels);
  const double states = (2 * L + 1) * (T - L) + L;
  std::printf("sweep, %2d vectors of %d, emissions %s: %8.2f ms, %6.2f G states/s (score %.0f)\n", kVectors,
              Native::kWidth, kLookUp<Native> ? "looked up in registers" : "loaded", 1e3 * best, states / best / 1e9,
              score);
}

}  // namespace

int main(int argc, char** argv) {
  const Problem problem = make_problem(argc > 1 ? std::atoll(argv[1]) : 50000, argc > 2 ? std::atoll(argv[2]) : 25000);
  report<2>(problem);
  report<4>(problem);
  report<6>(problem);
  report<8>(problem);
  report<10>(problem);
}
