// forward_backward_test [SEED]: the CPU kernel's sums over all paths without torch and without Python, against sums of
// logarithms in float64 and against themselves. test/run_sanitizers.py compiles and runs it as viterbi_test.cpp.
//
// Contents: 1 answers  2 the reference  3 results  4 failures
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>

#include "../../csrc/cpu/forward_backward/sum_item.h"
#include "support/problems.h"
#include "support/settings.h"

using namespace ctc_align;
using namespace support;

namespace {

// --------------------------------------------------------------------------------------------------- 1 answers

// The log-likelihood, and for every frame the posteriors of labels 0..L-1, of all blanks, and of the stars in wild gaps;
// or its sums with path values.
template <class Real>
struct Sums {
  double log_likelihood = 0;
  std::vector<Real> sums;  // [frames, labels + 2]

  bool operator==(const Sums& other) const {
    return log_likelihood == other.log_likelihood && sums.size() == other.sums.size() &&
           (sums.empty() || std::memcmp(sums.data(), other.sums.data(), sums.size() * sizeof(Real)) == 0);
  }
};

template <class P, class Real = AccumulationType<typename P::Scalar>>
Sums<Real> sum_up(const P& problem, const Options& options, const std::vector<Real>& path_values,
                  const Workers& workers = {}) {
  note(Setting{options});
  const auto& item = problem.item;
  const index_t width = item.labels + 2;
  Sums<Real> answer;
  const CompactTarget target(item, kPairsPerWord);
  answer.sums.assign(item.frames * width, 0);
  const auto visit = [&](index_t t, const FrameSums<Real>& sums) {
    for (index_t k = sums.first; k <= sums.last && k < item.labels; ++k) {
      answer.sums[t * width + k] = sums.normalized(sums.label_sums[k]);
    }
    answer.sums[t * width + item.labels] = sums.normalized(sums.blank_sum);
    answer.sums[t * width + item.labels + 1] = sums.normalized(sums.star_sum);
  };
  const PathValues<Real> values = {.data = path_values.empty() ? nullptr : path_values.data(),
                                   .frame_stride = width,
                                   .column_stride = 1,
                                   .blank_column = item.labels,
                                   .star_column = item.labels + 1};
  answer.log_likelihood = sum_over_paths(item, target, values, options, workers, visit);
  return answer;
}

// ---------------------------------------------------------------------------------------------- 2 the reference

double log_sum(double a, double b) {
  const double most = std::max(a, b);
  return std::isinf(most) ? most : most + std::log(std::exp(a - most) + std::exp(b - most));
}

// In logarithms and float64, one state at a time.
template <class P>
Sums<double> reference_sums(const P& problem) {
  const auto& item = problem.item;
  const index_t frames = item.frames, states = 2 * item.labels + 1, width = item.labels + 2;
  const auto class_of = [&](index_t s) { return s % 2 ? static_cast<index_t>(item.target[s / 2]) : item.blank; };
  const auto skips_into = [&](index_t s) { return s >= 3 && s % 2 && class_of(s) != class_of(s - 2); };
  const auto checked = [](double value) { return std::fabs(value) < 0x1p18 ? value : -INFINITY; };
  const auto star = [&](index_t t) { return checked(value_of(item.star_scores->at(t))); };
  const auto own = [&](index_t t, index_t s) {
    return class_of(s) == item.classes ? star(t) : checked(value_of(item.emissions.at(t, class_of(s))));
  };
  const auto is_wild = [&](index_t s) { return s % 2 == 0 && item.is_wild(s / 2); };
  const auto emission = [&](index_t t, index_t s) { return is_wild(s) ? log_sum(own(t, s), star(t)) : own(t, s); };
  Sums<double> answer;
  answer.sums.assign(frames * width, 0);
  std::vector<double> alphas(frames * states, -INFINITY), betas(frames * states, -INFINITY);
  for (index_t t = 0; t < frames; ++t) {
    for (index_t s = 0; s < states; ++s) {
      const double* before = alphas.data() + (t - 1) * states;
      double sum = t > 0 ? before[s] : s < 2 ? 0 : -INFINITY;
      sum = t > 0 && s >= 1 ? log_sum(sum, before[s - 1]) : sum;
      sum = t > 0 && skips_into(s) ? log_sum(sum, before[s - 2]) : sum;
      alphas[t * states + s] = sum + emission(t, s);
    }
  }
  for (index_t t = frames - 1; t >= 0; --t) {
    for (index_t s = states - 1; s >= 0; --s) {
      const auto after = [&](index_t to) { return betas[(t + 1) * states + to] + emission(t + 1, to); };
      double sum = t + 1 < frames ? after(s) : s >= states - 2 ? 0 : -INFINITY;
      sum = t + 1 < frames && s + 1 < states ? log_sum(sum, after(s + 1)) : sum;
      sum = t + 1 < frames && s + 2 < states && skips_into(s + 2) ? log_sum(sum, after(s + 2)) : sum;
      betas[t * states + s] = sum;
    }
  }
  answer.log_likelihood = frames == 0 && item.labels > 0 ? -INFINITY : 0;
  if (frames > 0) {
    const double* last = alphas.data() + (frames - 1) * states;
    answer.log_likelihood = states > 1 ? log_sum(last[states - 1], last[states - 2]) : last[0];
  }
  for (index_t t = 0; t < frames && !std::isinf(answer.log_likelihood); ++t) {
    for (index_t s = 0; s < states; ++s) {
      const double both = alphas[t * states + s] + betas[t * states + s] - answer.log_likelihood;
      if (std::isinf(both)) {
        continue;
      }
      answer.sums[t * width + (s % 2 ? s / 2 : item.labels)] += std::exp(both + (own(t, s) - emission(t, s)));
      answer.sums[t * width + item.labels + 1] += is_wild(s) ? std::exp(both + (star(t) - emission(t, s))) : 0;
    }
  }
  return answer;
}

// ------------------------------------------------------------------------------------------------- 3 results

// Gives an item stars: scores, also such as are no log-probabilities, some star labels, and often some wild gaps.
template <class P>
class Stars {
 public:
  Stars(P& problem, Random& random) {
    auto& item = problem.item;
    for (index_t k = 0; k < item.labels; ++k) {
      if (random.below(4) == 0) {
        problem.target[k * item.target.stride] = static_cast<typename P::Label>(item.classes);
      }
    }
    const index_t stride = random.below(3);
    scores_.resize(item.frames > 0 ? (item.frames - 1) * stride + 1 : 0);
    for (auto& score : scores_) {
      store(draw(kWild, random), score);
    }
    item.star_scores = {scores_.data(), stride};
    if (random.below(4) > 0) {
      wild_.resize(item.labels + 1);
      for (uint8_t& wild : wild_) {
        wild = static_cast<uint8_t>(random.below(2));
      }
      item.wild_gaps = {wild_.data(), 1};
    }
  }

 private:
  std::vector<typename P::Scalar> scores_;
  std::vector<uint8_t> wild_;
};

std::vector<Options> all_settings(index_t frames) {
  std::vector<Options> settings;
  for (const NamedIsa& named : isas()) {
    for (const index_t budget : {index_t{0}, index_t{1}, frames * 300}) {
      settings.push_back({.isa = named.isa, .memory_budget = budget});
    }
  }
  return settings;
}

// Against the reference; equal bits with every instruction set and every budget, with path values too. Their sums over a
// frame are 0: a common factor of a frame's emissions changes no posterior.
template <class P>
void test_items(P*, Random& random, bool with_stars) {
  using Real = AccumulationType<typename P::Scalar>;
  constexpr index_t kLabels[] = {0, 1, 2, 15, 16, 17, 31, 40};
  constexpr index_t kSlacks[] = {-1, 0, 1, 7, 70};
  constexpr index_t kClasses[] = {2, 3, 16, 31, 32, 33, 100};
  int feasible = 0, cases = 0;
  for (const index_t labels : kLabels) {
    for (const index_t slack : kSlacks) {
      const Case a_case = {labels,
                           slack,
                           labels == 0 && random.below(2) ? 1 : kClasses[random.below(7)],
                           random.below(kValues),
                           random.below(kLayouts),
                           random.seed()};
      P problem(a_case);
      const auto stars = with_stars ? std::make_unique<Stars<P>>(problem, random) : nullptr;
      const auto& item = problem.item;
      const auto expected = reference_sums(problem);
      const double epsilon = std::numeric_limits<Real>::epsilon();
      const auto found = sum_up(problem, rows_only(&kPortable), {});
      if (std::isinf(expected.log_likelihood)) {
        CHECK(found.log_likelihood == expected.log_likelihood);
        CHECK(std::all_of(found.sums.begin(), found.sums.end(), [](Real sum) { return sum == 0; }));
      } else {
        const double tolerance = epsilon * (10. * item.frames + std::fabs(expected.log_likelihood));
        // The reference rounds its logarithms twice a frame, by half an epsilon of the total: much, where that is -65504.
        const double of_reference = item.frames * 0x1p-52 * std::fabs(expected.log_likelihood) + 1e-12;
        CHECK(std::fabs(found.log_likelihood - expected.log_likelihood) <= tolerance + of_reference);
        for (size_t i = 0; i < found.sums.size(); ++i) {
          CHECK(std::fabs(found.sums[i] - expected.sums[i]) <= tolerance + of_reference);
        }
        ++feasible;
      }
      std::vector<Real> path_values(found.sums.size());
      for (Real& value : path_values) {
        value = static_cast<Real>(random.below(2001) - 1000) / 1000;
      }
      const auto with_values = sum_up(problem, rows_only(&kPortable), path_values);
      CHECK(with_values.log_likelihood == found.log_likelihood);
      for (index_t t = 0; t < item.frames; ++t) {
        double sum = 0;
        for (index_t k = 0; k < item.labels + 2; ++k) {
          sum += with_values.sums[t * (item.labels + 2) + k];
        }
        CHECK(std::fabs(sum) <= 20 * epsilon * item.frames);
      }
      for (const Options& options : all_settings(item.frames)) {
        CHECK(sum_up(problem, options, {}) == found);
        CHECK(sum_up(problem, options, path_values) == with_values);
      }
      ++cases;
    }
  }
  CHECK(cases / 2 < feasible && feasible < cases);
}

// Tens of thousands of nats below any float, over many rows kept and swept again.
void test_long_item(Random& random) {
  const Case a_case = {150, 2500, 5, kSmooth, kRows, random.seed()};
  Problem<float, int32_t> problem(a_case);
  for (float& value : problem.log_probs) {
    value = 20 * value - 8;
  }
  const auto expected = reference_sums(problem);
  CHECK(expected.log_likelihood < -20000);
  const auto found = sum_up(problem, rows_only(&kPortable), std::vector<float>{});
  CHECK(std::fabs(found.log_likelihood - expected.log_likelihood) <= 2e-3);
  for (size_t i = 0; i < found.sums.size(); ++i) {
    CHECK(std::fabs(found.sums[i] - expected.sums[i]) <= 1e-4);
  }
  constexpr long kBookkeeping = 4096;
  for (const index_t budget : {100000, 300000, 3000000}) {
    const Options options = {.isa = isas().front().isa, .memory_budget = budget};
    const auto ignore = [](index_t, const FrameSums<float>&) {};
    const long before = heap.bytes;
    heap.most_bytes = before;
    {
      const CompactTarget target(problem.item, kPairsPerWord);
      CHECK(sum_over_paths(problem.item, target, {}, options, {}, ignore) == found.log_likelihood);
    }
    const long rows = 2 * 12 * 4 * 192 * 4;  // two rows on each of twelve levels: less is not possible
    CHECK(heap.most_bytes - before <= std::max<long>(budget, 150000 + rows) + kBookkeeping + 200 * 40);
    CHECK(sum_up(problem, options, std::vector<float>{}) == found);
  }
}

// Targets of classes that are all but impossible: exponents have room for 186 million nats. Beyond that there is no path.
void test_wide_item(Random& random, float mask, bool is_in_range) {
  const Case a_case = {300, 700, 40, kSmooth, kGaps, random.seed()};
  Problem<float, int32_t> problem(a_case);
  for (float& value : problem.log_probs) {
    value -= mask;
  }
  const auto& emissions = problem.item.emissions;
  for (index_t t = 0; t < problem.item.frames; ++t) {
    problem.log_probs[&emissions.at(t, problem.item.blank) - problem.log_probs.data()] = -1;
  }
  using P = Problem<float, int32_t>;
  const auto found = sum_up<P, float>(problem, rows_only(&kPortable), {});
  if (is_in_range) {
    const auto expected = reference_sums(problem);
    CHECK(expected.log_likelihood < -290 * mask);
    CHECK(std::fabs(found.log_likelihood - expected.log_likelihood) <= 1e-10 * std::fabs(expected.log_likelihood));
    for (size_t i = 0; i < found.sums.size(); ++i) {
      CHECK(std::fabs(found.sums[i] - expected.sums[i]) <= 1e-3);
    }
  } else {
    CHECK(found.log_likelihood == -INFINITY);
    CHECK(std::all_of(found.sums.begin(), found.sums.end(), [](float sum) { return sum == 0; }));
  }
  std::vector<float> path_values(found.sums.size());
  for (float& value : path_values) {
    value = static_cast<float>(random.below(2001) - 1000) / 1000;
  }
  const auto with_values = sum_up<P, float>(problem, rows_only(&kPortable), path_values);
  CHECK(with_values.log_likelihood == found.log_likelihood);
  for (const Options& options : all_settings(problem.item.frames)) {
    CHECK((sum_up<P, float>(problem, options, {}) == found));
    CHECK((sum_up<P, float>(problem, options, path_values) == with_values));
  }
}

// ------------------------------------------------------------------------------------------------ 4 failures

void test_failures(Random& random) {
  const Case a_case = {60, 400, 100, kSteps, kGaps, random.seed()};
  const Problem<double, int64_t> problem(a_case);
  const Options options = {.isa = isas().front().isa, .memory_budget = 60000};
  const auto expected = sum_up(problem, options, std::vector<double>{});
  int failures = 0;
  for (bool has_failed = true; has_failed; failures += has_failed) {
    const Outcome outcome = attempt([&] {
      heap.until_failure = failures;
      const auto found = sum_up(problem, options, std::vector<double>{});
      has_failed = heap.until_failure < 0;
      CHECK(found == expected);
    });
    CHECK(outcome == Outcome::kBadAlloc || outcome == Outcome::kDone);
  }
  CHECK(failures >= 5);
  Workers workers;
  workers.interrupted = stops_after_some_looks;
  const Problem<float, int32_t> long_problem({300, 8000, 4, kSmooth, kOneFrame, random.seed()});
  const Options few_levels = {.isa = options.isa};
  const auto whole = sum_up(long_problem, few_levels, std::vector<float>{});
  int looks = 0;
  const auto sum_and_stop = [&] {
    looks_left = looks;
    CHECK(sum_up(long_problem, few_levels, std::vector<float>{}, workers) == whole);
  };
  for (; attempt(sum_and_stop) == Outcome::kInterrupted; ++looks) {
  }
  CHECK(looks >= 5);
}

}  // namespace

int main(int argc, char** argv) {
  Random random{std::mt19937(begin(argc, argv))};
  run("items", [&] { for_each_type(AllTypes(), [&](auto* type) { test_items(type, random, false); }); });
  run("items with stars", [&] { for_each_type(AllTypes(), [&](auto* type) { test_items(type, random, true); }); });
  run("a long item", [&] { test_long_item(random); });
  run("a wide item", [&] { test_wide_item(random, 200000, true); });
  run("an item out of range", [&] { test_wide_item(random, 2000000, false); });
  run("failures", [&] { test_failures(random); });
}
