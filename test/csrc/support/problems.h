// Stored numbers, and items of a batch with every kind of values and strides.
//
// Every buffer is an allocation of its own that ends with the last element in use, so reading padding leaves it. In half
// of the cases the padding is there instead, and holds values that would win.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "../../../csrc/cpu/item.h"
#include "checks.h"

namespace support {

// ---------------------------------------------------------------------------------------------- stored numbers

// 16-bit numbers by the formulas of IEEE 754; csrc/lattice/emission.h moves bits. Encoding truncates.
template <int kExponentBits, int kMantissaBits>
struct Format {
  static constexpr int kTop = (1 << kExponentBits) - 1;
  static constexpr int kBias = kTop / 2;

  static double decode(uint16_t bits) {
    const double sign = bits >> 15 ? -1 : 1;
    const int exponent = (bits >> kMantissaBits) & kTop;
    const int mantissa = bits & ((1 << kMantissaBits) - 1);
    if (exponent == kTop) {
      return mantissa ? NAN : sign * INFINITY;
    }
    const int digits = exponent ? mantissa + (1 << kMantissaBits) : mantissa;
    return sign * std::ldexp(digits, std::max(exponent, 1) - kBias - kMantissaBits);
  }

  static uint16_t encode(double value) {
    const int sign = std::signbit(value) << 15;
    int exponent;
    const double fraction = std::frexp(std::fabs(value), &exponent);  // 1/2 <= fraction < 1
    exponent += kBias - 1;
    if (std::isnan(value)) {
      return static_cast<uint16_t>(sign | kTop << kMantissaBits | 1);
    }
    if (std::isinf(value) || exponent >= kTop) {
      return static_cast<uint16_t>(sign | kTop << kMantissaBits);
    }
    const bool subnormal = fraction == 0 || exponent < 1;
    const double mantissa = subnormal ? std::ldexp(std::fabs(value), kBias - 1) : 2 * fraction - 1;
    return static_cast<uint16_t>(sign | (subnormal ? 0 : exponent) << kMantissaBits |
                                 static_cast<int>(std::ldexp(mantissa, kMantissaBits)));
  }
};
using Half = Format<5, 10>;
using BFloat16 = Format<8, 7>;

inline double value_of(StoredHalf stored) { return Half::decode(stored.bits); }
inline double value_of(StoredBFloat16 stored) { return BFloat16::decode(stored.bits); }
inline double value_of(double stored) { return stored; }

inline void store(double value, StoredHalf& to) { to.bits = Half::encode(value); }
inline void store(double value, StoredBFloat16& to) { to.bits = BFloat16::encode(value); }
inline void store(double value, float& to) { to = static_cast<float>(value); }
inline void store(double value, double& to) { to = value; }

template <class scalar_t>
scalar_t stored(double value) {
  scalar_t to;
  store(value, to);
  return to;
}

// ---------------------------------------------------------------------------------------------------- problems

enum Values { kSmooth, kSteps, kThirds, kWild, kValues };                // ties in all but the first
enum Layout { kRows, kColumns, kGaps, kOneFrame, kOneClass, kLayouts };  // the last two: strides of 0

struct Case {
  index_t labels;
  index_t slack;  // frames beyond the shortest path
  index_t classes;
  int values;
  int layout;
  uint32_t seed;
  bool stars = false;  // star labels, and wild gaps
};

inline void note(const Case& c) {
  constexpr const char* kValueNames[kValues] = {"smooth", "steps", "thirds", "wild"};
  constexpr const char* kLayoutNames[kLayouts] = {"rows", "columns", "gaps", "one frame", "one class"};
  std::snprintf(case_at_work, sizeof case_at_work, "\n  case %u: L = %ld, slack %ld, C = %ld, %s, %s%s", c.seed,
                static_cast<long>(c.labels), static_cast<long>(c.slack), static_cast<long>(c.classes),
                kValueNames[c.values], kLayoutNames[c.layout], c.stars ? ", stars" : "");
  setting_at_work[0] = 0;
}

struct Random {
  std::mt19937 engine;

  int below(index_t n) { return static_cast<int>(engine() % n); }
  uint32_t seed() { return static_cast<uint32_t>(engine()); }
};

inline double draw(int values, Random& random) {
  constexpr double kWildOnes[] = {-INFINITY, INFINITY, NAN, 0x1p100, 1e30, -0x1p100, -65504, -1e-40, 1e-6, -0.0};
  switch (values) {
    case kSmooth: return random.below(1 << 20) / -0x1p20;
    case kThirds: return random.below(4) / -3.0;
    case kWild:   return random.below(64) ? draw(kSteps, random) : kWildOnes[random.below(std::size(kWildOnes))];
    default:      return random.below(4) / -1.0;
  }
}

template <class scalar_t, class label_t>
struct Problem {
  using Scalar = scalar_t;
  using Label = label_t;

  std::vector<scalar_t> log_probs;
  std::vector<label_t> target;
  std::vector<scalar_t> star_scores;
  std::vector<uint8_t> wild_gaps;
  Item<scalar_t, label_t> item;
  index_t padded_frames;

  explicit Problem(const Case& a_case) : item() {
    note(a_case);
    Random random{std::mt19937(a_case.seed)};
    item.labels = a_case.labels;
    item.classes = a_case.classes;
    item.blank = random.below(a_case.classes);
    item.target.stride = 1 + random.below(2);
    item.frames = std::max<index_t>(0, draw_target(a_case.stars, random) + a_case.slack);
    padded_frames = item.frames + random.below(3) * 5;
    draw_log_probs(a_case, random);
    if (a_case.stars) {
      draw_stars(a_case.values, random);
    }
  }
  Problem(const Problem&) = delete;  // item points into the vectors

 private:
  // Returns the length of the shortest path.
  index_t draw_target(bool stars, Random& random) {
    const index_t choices = item.classes + (stars ? 1 : 0);
    const bool repeats = choices == 2 || random.below(2);
    index_t shortest = item.labels;
    target.assign(item.labels > 0 ? (item.labels - 1) * item.target.stride + 1 : 0, -9);
    item.target.data = target.data();
    for (index_t k = 0; k < item.labels; ++k) {
      const index_t before = k > 0 ? item.target[k - 1] : item.blank;
      index_t label = before;
      if (k == 0 || !repeats || random.below(4) > 0) {
        do {
          label = random.below(choices);
        } while (label == item.blank || (!repeats && label == before));
      }
      target[k * item.target.stride] = static_cast<label_t>(label);
      shortest += label == before;
    }
    return shortest;
  }

  // Gaps are wild all over, here and there, or in runs as long as a tile.
  void draw_stars(int values, Random& random) {
    const index_t stride = random.below(3);
    const index_t last = std::max<index_t>(item.frames - 1, 0) * stride;
    for (index_t i = 0; i <= last; ++i) {
      star_scores.push_back(stored<scalar_t>(draw(values, random)));
    }
    item.star_scores = {star_scores.data(), stride};
    const int kind = random.below(4);
    for (index_t k = 0; k <= item.labels; ++k) {
      const bool is_wild = kind == 0 || (kind == 1 ? k / 200 % 2 == 0 : kind == 2 && random.below(3) == 0);
      wild_gaps.push_back(is_wild ? 1 + random.below(255) : 0);
    }
    if (kind != 3) {
      item.wild_gaps = {wild_gaps.data(), 1};
    }
  }

  void draw_log_probs(const Case& a_case, Random& random) {
    const index_t frames = random.below(2) ? item.frames : padded_frames;
    const index_t classes = item.classes;
    const index_t strides[kLayouts][2] = {{classes, 1}, {1, frames}, {2 * classes + 3, 2}, {0, 1}, {1, 0}};
    auto& emissions = item.emissions;
    emissions.frame_stride = strides[a_case.layout][0];
    emissions.class_stride = strides[a_case.layout][1];
    const auto at = [&](index_t t, index_t c) { return t * emissions.frame_stride + c * emissions.class_stride; };
    log_probs.assign(frames > 0 ? at(frames - 1, classes - 1) + 1 : 0, stored<scalar_t>(50000));
    emissions.data = log_probs.data();
    for (index_t t = 0; t < item.frames; ++t) {
      for (index_t c = 0; c < classes; ++c) {
        log_probs[at(t, c)] = stored<scalar_t>(draw(a_case.values, random));
      }
    }
  }
};

template <class... Problems>
struct Types {};
using AllTypes = Types<Problem<StoredHalf, int64_t>, Problem<StoredBFloat16, int32_t>, Problem<float, int32_t>,
                       Problem<double, int64_t>>;

template <class... Problems, class Test>
void for_each_type(Types<Problems...>, const Test& test) {
  (test(static_cast<Problems*>(nullptr)), ...);
}

}  // namespace support
