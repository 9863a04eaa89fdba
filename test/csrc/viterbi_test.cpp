// viterbi_test [SEED]: the CPU kernel's alignments without torch and without Python, against a slow Viterbi and against
// themselves. test/run_sanitizers.py compiles and runs it plainly, with AddressSanitizer and UBSan, and with
// ThreadSanitizer.
//
// Contents: 1 answers  2 the reference  3 results  4 failures  5 arithmetic
#include <atomic>
#include <cfenv>
#include <cmath>
#include <cstring>
#include <random>
#include <thread>

#include "../../csrc/cpu/viterbi/align_item.h"
#include "support/problems.h"
#include "support/settings.h"

using namespace ctc_align;
using namespace support;

namespace {

// --------------------------------------------------------------------------------------------------- 1 answers

template <class scalar_t, class label_t>
struct Answer {
  std::vector<label_t> path;
  std::vector<scalar_t> scores;

  AlignedRows<scalar_t, label_t> rows() { return {path.data(), scores.data(), static_cast<index_t>(path.size())}; }
  // All bits.
  bool operator==(const Answer& other) const {
    return path == other.path && scores.size() == other.scores.size() &&
           std::equal(bytes(), bytes() + scores.size() * sizeof(scalar_t), other.bytes());
  }
  bool feasible() const { return path.empty() || path[0] != -1; }
  double total() const {
    double sum = 0;
    for (const scalar_t& score : scores) {
      sum += value_of(score);
    }
    return sum;
  }

 private:
  const unsigned char* bytes() const { return reinterpret_cast<const unsigned char*>(scores.data()); }
};

template <class P>
Answer<typename P::Scalar, typename P::Label> empty_answer(const P& problem) {
  return {std::vector<typename P::Label>(problem.padded_frames, -9),
          std::vector<typename P::Scalar>(problem.padded_frames)};
}

template <class scalar_t, class label_t>
void align(const Problem<scalar_t, label_t>& problem, const Setting& setting, Answer<scalar_t, label_t>& answer) {
  note(setting);
  workers_seen = 1;  // a single worker is not run by Workers::run
  Workers workers;
  workers.count = setting.workers;
  workers.run = setting.in_turn ? run_in_turn : run_on_threads;
  workers.interrupted = setting.may_stop ? stops_after_some_looks : nullptr;
  align_item(problem.item, setting.options, workers, answer.rows());
}

template <class scalar_t, class label_t>
Answer<scalar_t, label_t> align(const Problem<scalar_t, label_t>& problem, const Setting& setting) {
  auto answer = empty_answer(problem);
  align(problem, setting, answer);
  return answer;
}

// ---------------------------------------------------------------------------------------------- 2 the reference

// Viterbi over 2L+1 states, one at a time, all of them at every frame. Plain sums, as docs/semantics.md promises for
// float64, and for float32 up to kPlainFrames.
constexpr index_t kPlainFrames = 513;

template <class scalar_t>
double usable(scalar_t entry) {
  const double value = value_of(entry);
  return value < 0x1p100 ? value : -INFINITY;
}

template <class Real, class scalar_t, class label_t>
Answer<scalar_t, label_t> viterbi(const Problem<scalar_t, label_t>& problem) {
  const auto& item = problem.item;
  const index_t states = 2 * item.labels + 1;
  const auto class_of = [&](index_t s) { return s % 2 ? static_cast<index_t>(item.target[s / 2]) : item.blank; };
  const auto takes_star = [&](index_t t, index_t s) {
    if (!item.star_scores || s % 2) {
      return item.star_scores && class_of(s) == item.classes;
    }
    const double star = usable(item.star_scores->at(t)), blank = usable(item.emissions.at(t, item.blank));
    return item.wild_gaps && (*item.wild_gaps)[s / 2] && star > blank;
  };
  const auto entry = [&](index_t t, index_t s) {
    return takes_star(t, s)
               ? item.star_scores->at(t)
               : problem.log_probs[t * item.emissions.frame_stride + class_of(s) * item.emissions.class_stride];
  };

  std::vector<Real> alphas(states), before(states);
  std::vector<int8_t> moves(item.frames * states);  // the number of states that the best path moves by
  for (index_t t = 0; t < item.frames; ++t) {
    before.swap(alphas);
    for (index_t s = 0; s < states; ++s) {
      Real best = t > 0 ? before[s] : s < 2 ? 0 : static_cast<Real>(-INFINITY);
      int8_t& move = moves[t * states + s];
      if (t > 0 && s >= 1 && before[s - 1] > best) {
        best = before[s - 1];
        move = 1;
      }
      if (t > 0 && s >= 3 && s % 2 && class_of(s) != class_of(s - 2) && before[s - 2] > best) {
        best = before[s - 2];
        move = 2;
      }
      alphas[s] = best + static_cast<Real>(usable(entry(t, s)));
    }
  }

  auto answer = empty_answer(problem);
  std::fill(answer.path.begin(), answer.path.end(), static_cast<label_t>(item.blank));
  std::fill(answer.scores.begin(), answer.scores.end(), stored<scalar_t>(0));
  index_t s = states > 1 && alphas[states - 2] >= alphas[states - 1] ? states - 2 : states - 1;
  if (item.frames > 0 ? std::isinf(alphas[s]) : item.labels > 0) {
    std::fill(answer.path.begin(), answer.path.end(), static_cast<label_t>(-1));
    std::fill(answer.scores.begin(), answer.scores.end(), stored<scalar_t>(-INFINITY));
    return answer;
  }
  for (index_t t = item.frames - 1; t >= 0; --t) {
    answer.path[t] = static_cast<label_t>(s % 2 == 0 && takes_star(t, s) ? -2 : class_of(s));
    answer.scores[t] = entry(t, s);
    s -= moves[t * states + s];
  }
  return answer;
}

// ------------------------------------------------------------------------------------------------- 3 results

// All numbers of 16 bits, in both layouts of the panel.
template <class scalar_t>
void check_widening(const scalar_t*) {
  constexpr index_t kNumbers = 1 << 16;
  std::vector<scalar_t> numbers(kNumbers);
  for (index_t i = 0; i < kNumbers; ++i) {
    numbers[i].bits = static_cast<uint16_t>(i);
  }
  std::vector<float> values(kNumbers);
  for (const NamedIsa& named : isas()) {
    const auto load_panel = named.isa->kernels<scalar_t>().load_panel;
    for (const bool by_frame : {true, false}) {
      std::fill(values.begin(), values.end(), 1.f);
      const EmissionPanel<float> panel = {values.data(), kNumbers, by_frame, by_frame ? kNumbers : 1,
                                          nullptr,       0,        -1,       -1};
      load_panel(panel, {numbers.data(), 1, 1}, 0, by_frame ? 1 : kNumbers);
      for (index_t i = 0; i < kNumbers; ++i) {
        const double value = value_of(numbers[i]);
        CHECK(values[i] == (value < 0x1p100 ? value : -INFINITY));
      }
    }
  }
}
void test_widening() {
  check_widening<StoredHalf>(nullptr);
  check_widening<StoredBFloat16>(nullptr);
}

// The panel by class of log_probs in every layout, all classes and some: vectors and rests of vectors.
template <class scalar_t>
void check_panels(Random& random) {
  using Real = AccumulationType<scalar_t>;
  for (const index_t classes : {1, 3, 4, 8, 15, 16, 33, 70}) {
    const index_t frames = 1 + random.below(40), first_frame = random.below(3);
    for (const bool classes_first : {false, true}) {
      std::vector<scalar_t> log_probs((first_frame + frames) * classes);
      for (scalar_t& entry : log_probs) {
        entry = stored<scalar_t>(random.below(9) == 0 ? INFINITY : -random.below(512) / 64.);
      }
      const index_t strides[] = {classes_first ? 1 : classes, classes_first ? first_frame + frames : 1};
      const Emissions<scalar_t> emissions{log_probs.data(), strides[0], strides[1]};
      std::vector<int64_t> some;
      for (index_t c = 0; c < classes; ++c) {
        if (random.below(2)) {
          some.push_back(c);
        }
      }
      for (const bool all : {true, false}) {
        const index_t count = all ? classes : static_cast<index_t>(some.size());
        constexpr index_t kRowLength = 64;
        for (const NamedIsa& named : isas()) {
          std::vector<Real> values(classes * kRowLength);
          const EmissionPanel<Real> panel = {
              values.data(), kRowLength, false, count, all ? nullptr : some.data(), 0, -1, -1};
          named.isa->kernels<scalar_t>().load_panel(panel, emissions, first_frame, frames);
          for (index_t c = 0; c < count; ++c) {
            for (index_t i = 0; i < frames; ++i) {
              const double value = value_of(emissions.at(first_frame + i, all ? c : some[c]));
              CHECK(panel.at(i, c) == (value < 0x1p100 ? value : -INFINITY));
            }
          }
        }
      }
    }
  }
}
void test_panels(Random& random) {
  check_panels<StoredHalf>(random);
  check_panels<StoredBFloat16>(random);
  check_panels<float>(random);
  check_panels<double>(random);
}

// Arrays are handed on, and never one to two owners.
void test_memory() {
  std::vector<Memory<float>> held;
  std::vector<float*> seen;
  for (const index_t count : {1, 255, 256, 257, 5'000, 100'000, 1'000'000}) {
    for (int n = 0; n < 4; ++n) {
      held.push_back(uninitialized<float>(count));
      std::fill_n(held.back().get(), count, static_cast<float>(held.size()));
      seen.push_back(held.back().get());
    }
  }
  std::sort(seen.begin(), seen.end());
  CHECK(std::adjacent_find(seen.begin(), seen.end()) == seen.end());
  for (size_t n = 0; n < held.size(); ++n) {
    CHECK(held[n][0] == static_cast<float>(n + 1));
  }
  held.clear();
  float* const kept = uninitialized<float>(5'000).get();
  CHECK(FreeArrays::kKeeps == (uninitialized<float>(4'500).get() == kept));
  bool thrown = false;
  try {
    uninitialized<float>(std::numeric_limits<index_t>::max() / 2);
  } catch (const std::bad_alloc&) {
    thrown = true;
  }
  CHECK(thrown);
}

// Every instruction set on every memory level, with another tiling each time.
template <class P>
void check_every_level(const P& problem, const Answer<typename P::Scalar, typename P::Label>& expected,
                       Random& random) {
  for (const NamedIsa& named : isas()) {
    for (const Options& options : memory_levels(named.isa, problem.item.frames)) {
      Setting setting{options};
      setting.options.tiling = {kStripFrames[random.below(4)], random.below(2)};
      setting.workers = 1 + random.below(3);
      CHECK(align(problem, setting) == expected);
    }
  }
}

template <class P>
void test_short_items(P*, Random& random) {
  using Real = AccumulationType<typename P::Scalar>;
  constexpr index_t kLabels[] = {0, 1, 2, 5, 15, 16, 17, 31, 33, 63, 64, 90, 105, 127, 128, 129};
  constexpr index_t kSlacks[] = {-1, 0, 1, 7, 70, 250};
  constexpr index_t kClasses[] = {2, 3, 16, 31, 32, 33, 100, 1000};
  int feasible = 0, cases = 0;
  for (const index_t labels : kLabels) {
    for (const index_t slack : kSlacks) {
      const index_t classes = kClasses[random.below(8)];
      const Case a_case = {labels,
                           slack,
                           labels == 0 && random.below(2) ? 1 : classes,
                           random.below(kValues),
                           random.below(kLayouts),
                           random.seed(),
                           random.below(2) == 0};
      const P problem(a_case);
      const auto expected = viterbi<Real>(problem);
      check_every_level(problem, expected, random);
      feasible += expected.feasible();
      ++cases;
    }
  }
  CHECK(cases / 2 < feasible && feasible < cases);
}

// Longer items: float64 takes the reference's path, the other types one whose total is as good. Steps are exact. The rest
// is in [-1, 0], so an addition in a frame block rounds by 1.5e-5 at most, up as often as down.
template <class P>
void test_long_items(P*, Random& random) {
  using Real = AccumulationType<typename P::Scalar>;
  constexpr index_t kClasses[] = {2, 29, 32, 40, 300};
  struct Size {
    index_t labels, slack;
  };
  for (const Size size : {Size{0, 1100}, Size{17, 1500}, Size{255, 700}, Size{256, 3}, Size{257, 900}, Size{511, 0},
                          Size{512, 500}, Size{513, 1}, Size{700, 900}, Size{768, 0}, Size{1024, 0}}) {
    const Case a_case = {size.labels,     size.slack,    kClasses[random.below(5)], random.below(kValues),
                         random.below(3), random.seed(), random.below(2) == 0};
    const P problem(a_case);
    const auto yardstick = align(problem, {rows_only(&kPortable)});
    if (!kRebases<Real> || problem.item.frames <= kPlainFrames) {
      CHECK(yardstick == viterbi<Real>(problem));
    } else if (a_case.values != kWild) {
      CHECK(yardstick.feasible() && std::fabs(yardstick.total() - viterbi<double>(problem).total()) < 1e-4);
    }
    check_every_level(problem, yardstick, random);
  }
}

// Large enough to be worth that number of workers: the band has to be wide, too.
Case case_for(int workers, Random& random) {
  return {workers * 1100, workers * 1000, random.below(2) ? 30 : 50, kThirds,
          kRows,          random.seed(),  random.below(2) == 0};
}

template <class P>
void test_workers_of(int workers, P*, Random& random) {
  const P problem(case_for(workers, random));
  const auto yardstick = align(problem, {rows_only(&kPortable)});
  for (const index_t strip_frames : kStripFrames) {
    for (const index_t group_columns : {0, 1}) {
      const NamedIsa& named = isas()[random.below(isas().size())];
      Setting setting{.options = rows_only(named.isa), .workers = workers, .in_turn = random.below(3) == 0};
      if (random.below(2)) {
        setting.options.cuts = {4000, 97};
      }
      setting.options.tiling = {strip_frames, group_columns};
      CHECK(align(problem, setting) == yardstick);
      CHECK(workers_seen == workers);
    }
  }
}
void test_workers(Random& random) {
  for_each_type(AllTypes(), [&](auto* type) { test_workers_of(2, type, random); });
  for (const int workers : {3, 5}) {
    test_workers_of(workers, static_cast<Problem<float, int32_t>*>(nullptr), random);
  }
}

// The caller's rounding affects neither the result nor the workers, and stays as it was.
void test_rounding_of_the_caller(Random& random) {
  const Problem<float, int32_t> problem(case_for(2, random));
  const auto yardstick = align(problem, {rows_only(&kPortable)});
  for (const int workers : {1, 2}) {
    auto answer = empty_answer(problem);
    std::fesetround(FE_UPWARD);
    align(problem, {rows_only(&kPortable), workers}, answer);
    const int rounding = std::fegetround();
    std::fesetround(FE_TONEAREST);
    CHECK(rounding == FE_UPWARD && answer == yardstick);
  }
}

// Items of a batch: several at once, while another thread changes the options of the process.
void test_items_side_by_side(Random& random) {
  const Case a_case = {100, 900, 40, kThirds, kRows, random.seed()};
  const Problem<float, int32_t> problem(a_case);
  const auto yardstick = align(problem, {rows_only(&kPortable)});
  std::atomic<bool> done{false};
  std::thread changes([&] {
    for (size_t i = 0; !done; ++i) {
      const int64_t cuts[] = {static_cast<int64_t>(10 + i % 100), 5};
      ctc_align_set_cpu(isas()[i % isas().size()].name.c_str());
      ctc_align_set_cuts(cuts, i % 3, i % 20, i % 2);
    }
  });
  constexpr int kThreads = 3;
  std::vector<Answer<float, int32_t>> answers(kThreads, empty_answer(problem));
  run_on_threads(kThreads, [&](int w) {
    for (int i = 0; i < 20; ++i) {
      align_item(problem.item, current_options(), Workers(), answers[w].rows());
    }
  });
  done = true;
  changes.join();
  for (const auto& answer : answers) {
    CHECK(answer == yardstick);
  }
}

// ------------------------------------------------------------------------------------------------ 4 failures

// Ways of aligning that allocate wherever there is something to allocate.
struct Rehearsal {
  Case a_case;
  Setting setting;
};
std::vector<Rehearsal> rehearsals(Random& random) {
  const Isa* isa = isas().front().isa;
  const uint32_t number = random.seed();
  const Options two_levels = {.isa = isa, .force_cuts = true, .cuts = {31, 7}};
  const Options long_pieces = {.isa = isa, .force_cuts = true, .cuts = {3000}};
  return {{{20, 40, 100, kSteps, kGaps, number, true}, {.options = two_levels}},
          {{300, 900, 40, kSteps, kRows, number}, {.options = {.isa = isa, .memory_budget = 1}}},
          {case_for(2, random), {.options = long_pieces, .workers = 2, .in_turn = true}},
          {case_for(3, random), {.options = long_pieces, .workers = 3}}};
}

template <class P>
void test_allocation_failures(P*, Random& random) {
  for (const Rehearsal& rehearsal : rehearsals(random)) {
    const Setting& setting = rehearsal.setting;
    const P problem(rehearsal.a_case), untouched(rehearsal.a_case);
    const auto expected = align(problem, setting);
    CHECK(workers_seen == setting.workers);
    auto answer = empty_answer(problem);
    for (const bool for_good : {false, true}) {
      heap.fails_for_good = for_good;
      int failures = 0;
      bool has_failed = true;
      while (has_failed) {
        const Outcome outcome = attempt([&] {
          heap.until_failure = failures;
          align(problem, setting, answer);
          has_failed = heap.until_failure < 0;
        });
        failures += has_failed;
        CHECK(outcome == Outcome::kBadAlloc || answer == expected);  // std::vector::shrink_to_fit forgives
      }
      CHECK(failures >= 10);
    }
    CHECK(problem.target == untouched.target);
    CHECK(std::memcmp(problem.log_probs.data(), untouched.log_probs.data(),
                      problem.log_probs.size() * sizeof(typename P::Scalar)) == 0);
  }
}

void test_interruptions(Random& random) {
  for (const Rehearsal& rehearsal : rehearsals(random)) {
    Setting setting = rehearsal.setting;
    const Problem<float, int32_t> problem(rehearsal.a_case);
    const auto expected = align(problem, setting);
    auto answer = empty_answer(problem);
    setting.may_stop = true;
    setting.options.tiling.group_columns = 2;
    int looks = 0;
    const auto align_and_stop = [&] {
      looks_left = looks;
      align(problem, setting, answer);
    };
    for (; attempt(align_and_stop) == Outcome::kInterrupted; ++looks) {
    }
    CHECK(looks >= 10);
    CHECK(answer == expected);
  }
}

// kBookkeeping: the heap rounds up, and vectors grow by doubling.
void test_memory_budgets(Random& random) {
  constexpr long kBookkeeping = 4096;
  const Isa* isa = isas().front().isa;
  for (int i = 0; i < 8; ++i) {
    const Case a_case = {2000 + random.below(2000), 3000 + random.below(2000), 32, kThirds, kRows, random.seed()};
    const Problem<float, int32_t> problem(a_case);
    const auto expected = align(problem, {rows_only(isa)});
    auto answer = empty_answer(problem);
    for (int workers : {1, 1, 1, 1, 1, 1, 1, 1, 1, 3}) {
      const index_t budget = (workers == 1 ? 300000 : 600000) + random.below(300000);
      const Setting setting = {.options = {.isa = isa, .memory_budget = budget}, .workers = workers};
      const long before = heap.bytes;
      heap.most_bytes = before;
      align(problem, setting, answer);
      CHECK(heap.most_bytes - before <= budget + kBookkeeping);
      CHECK(answer == expected);
    }
  }
}

// ----------------------------------------------------------------------------------------------- 5 arithmetic

// For every lattice and every cone: a cone is a band, too.
void test_sums_over_bands() {
  for (index_t frames = 1; frames < 75; ++frames) {
    for (index_t labels = 0; labels <= frames; ++labels) {
      const Band band{frames, labels};
      const RecordRows rows{band};
      for (index_t from = 0; from <= frames; ++from) {
        index_t cells = 0, words = 0;
        for (index_t to = from; to <= frames; ++to) {
          CHECK(band.cells(from, to) == cells);
          cells += band.last(to) - band.first(to) + 1;
          words += to > from ? band.last(to) / 16 - band.first(to) / 16 + 1 : 0;
          CHECK(rows.words(from, to) == words);
          CHECK(from > 0 || rows.begin(to + 1) == words);
        }
        CHECK(band.cells(from, frames + 1) == cells);
      }
    }
  }
}

// With next to no memory pieces get shorter from level to level, down to the few frames that need no checkpoint.
void test_smallest_budget_comes_to_an_end() {
  for (const index_t budget : {0, 1, 1000}) {
    for (index_t frames : {1, 16, 17, 1000, 1 << 20}) {
      for (index_t level = 0; frames > 0; ++level) {
        CHECK(level < 20);
        const index_t every = plan_pieces<float>({frames, frames / 3}, 0, frames, {.bytes = budget}, level);
        CHECK(0 <= every && every < frames);
        frames = every;
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  Random random{std::mt19937(begin(argc, argv))};
  run("sums over bands", test_sums_over_bands);
  run("smallest budget comes to an end", test_smallest_budget_comes_to_an_end);
  run("widening", test_widening);
  run("panels", [&] { test_panels(random); });
  run("memory", test_memory);
  run("short items", [&] { for_each_type(AllTypes(), [&](auto* type) { test_short_items(type, random); }); });
  run("long items", [&] { for_each_type(AllTypes(), [&](auto* type) { test_long_items(type, random); }); });
  run("workers", [&] { test_workers(random); });
  run("rounding of the caller", [&] { test_rounding_of_the_caller(random); });
  run("items side by side", [&] { test_items_side_by_side(random); });
  run("allocation failures",
      [&] { for_each_type(AllTypes(), [&](auto* type) { test_allocation_failures(type, random); }); });
  run("interruptions", [&] { test_interruptions(random); });
  run("memory budgets", [&] { test_memory_budgets(random); });
}
