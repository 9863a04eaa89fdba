// kernel_test [SEED]: the CPU kernel without torch and without Python, against a slow Viterbi and against itself.
//
// Contents: 1 a heap that can fail  2 checks  3 crews  4 stored numbers  5 problems  6 settings  7 the reference
//           8 results  9 soft alignment  10 failures  11 arithmetic
//
// test/run_sanitizers.py compiles and runs it plainly, with AddressSanitizer and UBSan, and with ThreadSanitizer. Every
// buffer is an allocation of its own that ends with the last element in use, so that whoever reads padding leaves it.
// In half of the cases the padding is there instead, and holds what would win.
#include <malloc.h>
#include <unistd.h>

#include <atomic>
#include <cfenv>
#include <chrono>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <sstream>
#include <string>
#include <thread>

#include "../../csrc/cpu/viterbi/align_item.h"
#include "../../csrc/cpu/forward_backward/sum_item.h"

using namespace ctc_align;

extern "C" {  // csrc/cpu/options.cpp
const char* ctc_align_cpus();
int ctc_align_set_cpu(const char* name);
void ctc_align_set_cuts(const int64_t* cuts, int64_t count, int64_t stretch_frames, int64_t group_columns);
}

// ----------------------------------------------------------------------------------------- 1 a heap that can fail

namespace {

struct Heap {
  std::atomic<long> blocks{0};
  std::atomic<long> bytes{0};
  std::atomic<long> most_bytes{0};
  std::atomic<long> until_failure{LONG_MAX};  // so many allocations succeed, then one fails
  std::atomic<bool> fails_for_good{false};    // and all later ones
};
Heap heap;
thread_local bool may_fail = true;

void* allocate(size_t bytes) {
  if (may_fail) {
    const long left = heap.until_failure--;
    if (left == 0 || (left < 0 && heap.fails_for_good)) {
      throw std::bad_alloc();
    }
  }
  void* block = std::malloc(bytes);
  if (!block) {
    throw std::bad_alloc();
  }
  std::memset(block, 0xFF, bytes);  // NaN, and no sensible count: what nobody has written must not matter
  ++heap.blocks;
  const long now = heap.bytes += static_cast<long>(malloc_usable_size(block));
  long most = heap.most_bytes;
  while (now > most && !heap.most_bytes.compare_exchange_weak(most, now)) {
  }
  return block;
}

void release(void* block) {
  if (block) {
    --heap.blocks;
    heap.bytes -= static_cast<long>(malloc_usable_size(block));
    std::free(block);
  }
}

}  // namespace

void* operator new(size_t bytes) { return allocate(bytes); }
void* operator new[](size_t bytes) { return allocate(bytes); }
void operator delete(void* block) noexcept { release(block); }
void operator delete[](void* block) noexcept { release(block); }
void operator delete(void* block, size_t) noexcept { release(block); }
void operator delete[](void* block, size_t) noexcept { release(block); }

namespace {

// ---------------------------------------------------------------------------------------------------- 2 checks

// What is being tried. In place: to note it must not allocate.
uint32_t seed = 0;
char case_at_work[200] = "";
char setting_at_work[200] = "";

void check(bool holds, const char* statement, int line) {
  if (!holds) {
    std::fprintf(stderr, "kernel_test.cpp:%d: not so: %s\n  seed %u%s%s\n", line, statement, seed, case_at_work,
                 setting_at_work);
    std::_Exit(1);
  }
}
#define CHECK(statement) check(statement, #statement, __LINE__)

enum class Outcome { kDone, kBadAlloc, kInterrupted };

// Whatever way `work` goes out, it has given back what it took.
template <class Work>
Outcome attempt(const Work& work) {
  const long blocks = heap.blocks;
  Outcome outcome = Outcome::kDone;
  try {
    work();
  } catch (const std::bad_alloc&) {
    outcome = Outcome::kBadAlloc;
  } catch (const Interrupted&) {
    outcome = Outcome::kInterrupted;
  }
  heap.until_failure = LONG_MAX;
  CHECK(heap.blocks == blocks);
  return outcome;
}

// ----------------------------------------------------------------------------------------------------- 3 crews

int workers_seen = 0;  // of the largest run

// Starting threads is the crew's affair: it does not fail here.
void run_on_threads(int workers, const std::function<void(int)>& work) {
  workers_seen = std::max(workers_seen, workers);
  may_fail = false;
  std::vector<std::thread> threads;
  for (int w = 1; w < workers; ++w) {
    threads.emplace_back([&work, w] { work(w); });
  }
  may_fail = true;
  work(0);
  for (std::thread& thread : threads) {
    thread.join();
  }
}

void run_in_turn(int workers, const std::function<void(int)>& work) {
  workers_seen = std::max(workers_seen, workers);
  for (int w = 0; w < workers; ++w) {
    work(w);
  }
}

std::atomic<int> looks_left{INT_MAX};
bool stops_after_some_looks() { return looks_left-- <= 0; }

// --------------------------------------------------------------------------------------------- 4 stored numbers

// Numbers of 16 bits, by the formulas of IEEE 754; csrc/lattice/emission.h moves bits. Encoding truncates.
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

double value_of(StoredHalf stored) { return Half::decode(stored.bits); }
double value_of(StoredBFloat16 stored) { return BFloat16::decode(stored.bits); }
double value_of(double stored) { return stored; }

void store(double value, StoredHalf& to) { to.bits = Half::encode(value); }
void store(double value, StoredBFloat16& to) { to.bits = BFloat16::encode(value); }
void store(double value, float& to) { to = static_cast<float>(value); }
void store(double value, double& to) { to = value; }

template <class scalar_t>
scalar_t stored(double value) {
  scalar_t to;
  store(value, to);
  return to;
}

// -------------------------------------------------------------------------------------------------- 5 problems

enum Values { kSmooth, kSteps, kThirds, kWild, kValues };                // ties in all but the first
enum Layout { kRows, kColumns, kGaps, kOneFrame, kOneClass, kLayouts };  // the last two: strides of 0

struct Case {
  index_t labels;
  index_t slack;  // frames beyond the shortest path
  index_t classes;
  int values;
  int layout;
  uint32_t seed;
};

void note(const Case& c) {
  constexpr const char* kValueNames[kValues] = {"smooth", "steps", "thirds", "wild"};
  constexpr const char* kLayoutNames[kLayouts] = {"rows", "columns", "gaps", "one frame", "one class"};
  std::snprintf(case_at_work, sizeof case_at_work, "\n  case %u: L = %ld, slack %ld, C = %ld, %s, %s", c.seed,
                static_cast<long>(c.labels), static_cast<long>(c.slack), static_cast<long>(c.classes),
                kValueNames[c.values], kLayoutNames[c.layout]);
  setting_at_work[0] = 0;
}

struct Random {
  std::mt19937 engine;

  int below(index_t n) { return static_cast<int>(engine() % n); }
  uint32_t seed() { return static_cast<uint32_t>(engine()); }
};

double draw(int values, Random& random) {
  constexpr double kWildOnes[] = {-INFINITY, INFINITY, NAN, 0x1p100, 1e30, -0x1p100, -65504, -1e-40, 1e-6, -0.0};
  switch (values) {
    case kSmooth: return random.below(1 << 20) / -0x1p20;
    case kThirds: return random.below(4) / -3.0;
    case kWild:   return random.below(64) ? draw(kSteps, random) : kWildOnes[random.below(std::size(kWildOnes))];
    default:      return random.below(4) / -1.0;
  }
}

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

template <class scalar_t, class label_t>
struct Problem {
  using Scalar = scalar_t;
  using Label = label_t;

  std::vector<scalar_t> log_probs;
  std::vector<label_t> target;
  Item<scalar_t, label_t> item;
  index_t padded_frames;

  explicit Problem(const Case& a_case) : item() {
    note(a_case);
    Random random{std::mt19937(a_case.seed)};
    item.labels = a_case.labels;
    item.classes = a_case.classes;
    item.blank = random.below(a_case.classes);
    item.target.stride = 1 + random.below(2);
    item.frames = std::max<index_t>(0, draw_target(random) + a_case.slack);
    padded_frames = item.frames + random.below(3) * 5;
    draw_log_probs(a_case, random);
  }
  Problem(const Problem&) = delete;  // item points into the vectors

  Answer<scalar_t, label_t> empty_answer() const {
    return {std::vector<label_t>(padded_frames, -9), std::vector<scalar_t>(padded_frames)};
  }

 private:
  // Returns the length of the shortest path.
  index_t draw_target(Random& random) {
    const bool repeats = item.classes == 2 || random.below(2);
    index_t shortest = item.labels;
    target.assign(item.labels > 0 ? (item.labels - 1) * item.target.stride + 1 : 0, -9);
    item.target.data = target.data();
    for (index_t k = 0; k < item.labels; ++k) {
      const index_t before = k > 0 ? item.target[k - 1] : item.blank;
      index_t label = before;
      if (k == 0 || !repeats || random.below(4) > 0) {
        do {
          label = random.below(item.classes);
        } while (label == item.blank || (!repeats && label == before));
      }
      target[k * item.target.stride] = static_cast<label_t>(label);
      shortest += label == before;
    }
    return shortest;
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

// -------------------------------------------------------------------------------------------------- 6 settings

struct Setting {
  Options options;
  int workers = 1;
  bool in_turn = false;
  bool may_stop = false;
};

struct NamedIsa {
  std::string name;
  const Isa* isa;
};

// Those that this processor has; the portable one is the last.
std::vector<NamedIsa> find_isas() {
  std::vector<NamedIsa> found;
  std::istringstream names(ctc_align_cpus());
  for (std::string name; std::getline(names, name, ',');) {
    CHECK(ctc_align_set_cpu(name.c_str()) == 0);
    found.push_back({name, current_options().isa});
  }
  CHECK(found.back().isa == &kPortable);
  return found;
}
const std::vector<NamedIsa>& isas() {
  static const std::vector<NamedIsa> found = find_isas();
  return found;
}

// Records for all of the lattice, no checkpoint: what every other ladder is measured by.
Options rows_only(const Isa* isa) { return {isa, 0, {}, true, {}}; }

std::vector<Options> ladders(const Isa* isa, index_t frames) {
  std::vector<Options> ladders = {{isa, 1, {}, false, {}}};  // as little memory as the code will do with
  for (const std::vector<index_t>& cuts :
       std::vector<std::vector<index_t>>{{}, {1}, {7}, {97, 13}, {frames + 5}, {512, 100, 3}}) {
    ladders.push_back({isa, 0, {}, true, cuts});
  }
  return ladders;
}

constexpr index_t kStretchFrames[] = {0, 1, 17, 512};

void note(const Setting& setting) {
  const Options& options = setting.options;
  char* text = setting_at_work;
  const auto add = [&](const char* format, auto... values) {
    text += std::snprintf(text, setting_at_work + sizeof setting_at_work - text, format, values...);
  };
  for (const NamedIsa& named : isas()) {
    if (named.isa == options.isa) {
      add("\n  %s", named.name.c_str());
    }
  }
  add(options.force_cuts ? ", cuts" : ", budget %ld", static_cast<long>(options.memory_budget));
  for (const index_t frames : options.cuts) {
    add(" %ld", static_cast<long>(frames));
  }
  add(", %d workers%s", setting.workers, setting.in_turn ? " in turn" : "");
  add(", stretch_frames %ld", static_cast<long>(options.tiling.stretch_frames));
  add(", group_columns %ld", static_cast<long>(options.tiling.group_columns));
}

template <class scalar_t, class label_t>
void align(const Problem<scalar_t, label_t>& problem, const Setting& setting, Answer<scalar_t, label_t>& answer) {
  note(setting);
  workers_seen = 1;  // one alone is not run by the crew
  Crew crew;
  crew.workers = setting.workers;
  crew.run = setting.in_turn ? run_in_turn : run_on_threads;
  crew.interrupted = setting.may_stop ? stops_after_some_looks : nullptr;
  align_item(problem.item, setting.options, crew, answer.rows());
}

template <class scalar_t, class label_t>
Answer<scalar_t, label_t> align(const Problem<scalar_t, label_t>& problem, const Setting& setting) {
  auto answer = problem.empty_answer();
  align(problem, setting, answer);
  return answer;
}

// ---------------------------------------------------------------------------------------------- 7 the reference

// Viterbi over 2L+1 states, one at a time, all of them at every frame. Plain sums: what docs/semantics.md promises of
// float64, and of float32 up to kPlainFrames.
constexpr index_t kPlainFrames = 513;

template <class Real, class scalar_t, class label_t>
Answer<scalar_t, label_t> viterbi(const Problem<scalar_t, label_t>& problem) {
  const auto& item = problem.item;
  const index_t states = 2 * item.labels + 1;
  const auto class_of = [&](index_t s) { return s % 2 ? static_cast<index_t>(item.target[s / 2]) : item.blank; };
  const auto entry = [&](index_t t, index_t s) {
    return problem.log_probs[t * item.emissions.frame_stride + class_of(s) * item.emissions.class_stride];
  };

  std::vector<Real> alphas(states), before(states);
  std::vector<int8_t> moves(item.frames * states);  // states that the best path has moved by
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
      const Real value = static_cast<Real>(value_of(entry(t, s)));
      alphas[s] = value < 0x1p100 ? best + value : static_cast<Real>(-INFINITY);
    }
  }

  auto answer = problem.empty_answer();
  std::fill(answer.path.begin(), answer.path.end(), static_cast<label_t>(item.blank));
  std::fill(answer.scores.begin(), answer.scores.end(), stored<scalar_t>(0));
  index_t s = states > 1 && alphas[states - 2] >= alphas[states - 1] ? states - 2 : states - 1;
  if (item.frames > 0 ? std::isinf(alphas[s]) : item.labels > 0) {
    std::fill(answer.path.begin(), answer.path.end(), static_cast<label_t>(-1));
    std::fill(answer.scores.begin(), answer.scores.end(), stored<scalar_t>(-INFINITY));
    return answer;
  }
  for (index_t t = item.frames - 1; t >= 0; --t) {
    answer.path[t] = static_cast<label_t>(class_of(s));
    answer.scores[t] = entry(t, s);
    s -= moves[t * states + s];
  }
  return answer;
}

// ------------------------------------------------------------------------------------------------- 8 results

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
      const EmissionPanel<float> panel = {values.data(), kNumbers, by_frame, by_frame ? kNumbers : 1, nullptr, 0};
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

// Every instruction set with every ladder; of the tilings one, another one each time.
template <class P>
void check_every_ladder(const P& problem, const Answer<typename P::Scalar, typename P::Label>& expected,
                        Random& random) {
  for (const NamedIsa& named : isas()) {
    for (const Options& ladder : ladders(named.isa, problem.item.frames)) {
      Setting setting{ladder};
      setting.options.tiling = {kStretchFrames[random.below(4)], random.below(2)};
      setting.workers = 1 + random.below(3);
      CHECK(align(problem, setting) == expected);
    }
  }
}

template <class P>
void test_short_items(P*, Random& random) {
  using Real = AccumulationType<typename P::Scalar>;
  constexpr index_t kLabels[] = {0, 1, 2, 5, 15, 16, 17, 31, 33, 63, 64, 127, 128, 129};
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
                           random.seed()};
      const P problem(a_case);
      const auto expected = viterbi<Real>(problem);
      check_every_ladder(problem, expected, random);
      feasible += expected.feasible();
      ++cases;
    }
  }
  CHECK(cases / 2 < feasible && feasible < cases);
}

// Longer ones: of float64 the reference's path, of the others one whose total is as good. Steps are exact. The rest is
// in [-1, 0], so that an addition in a block of 512 rounds by 1.5e-5 at most, up as often as down.
template <class P>
void test_long_items(P*, Random& random) {
  using Real = AccumulationType<typename P::Scalar>;
  constexpr index_t kClasses[] = {2, 29, 32, 40, 300};
  struct Size {
    index_t labels, slack;
  };
  for (const Size size : {Size{0, 1100}, Size{17, 1500}, Size{255, 700}, Size{256, 3}, Size{257, 900}, Size{511, 0},
                          Size{512, 500}, Size{513, 1}, Size{700, 900}, Size{768, 0}, Size{1024, 0}}) {
    const Case a_case = {size.labels,           size.slack,      kClasses[random.below(5)],
                         random.below(kValues), random.below(3), random.seed()};
    const P problem(a_case);
    const auto yardstick = align(problem, {rows_only(&kPortable)});
    if (sizeof(Real) == sizeof(double) || problem.item.frames <= kPlainFrames) {
      CHECK(yardstick == viterbi<Real>(problem));
    } else if (a_case.values != kWild) {
      CHECK(yardstick.feasible() && std::fabs(yardstick.total() - viterbi<double>(problem).total()) < 1e-4);
    }
    check_every_ladder(problem, yardstick, random);
  }
}

// Large enough for so many workers to be worth it: the band has to be wide, too.
Case case_for(int workers, Random& random) {
  return {workers * 1100, workers * 1000, random.below(2) ? 30 : 50, kThirds, kRows, random.seed()};
}

template <class P>
void test_crew_of(int workers, P*, Random& random) {
  const P problem(case_for(workers, random));
  const auto yardstick = align(problem, {rows_only(&kPortable)});
  for (const index_t stretch_frames : kStretchFrames) {
    for (const index_t group_columns : {0, 1}) {
      const NamedIsa& named = isas()[random.below(isas().size())];
      Setting setting{rows_only(named.isa), workers, random.below(3) == 0};
      if (random.below(2)) {
        setting.options.cuts = {4000, 97};
      }
      setting.options.tiling = {stretch_frames, group_columns};
      CHECK(align(problem, setting) == yardstick);
      CHECK(workers_seen == workers);
    }
  }
}
void test_crews(Random& random) {
  for_each_type(AllTypes(), [&](auto* type) { test_crew_of(2, type, random); });
  for (const int workers : {3, 5}) {
    test_crew_of(workers, static_cast<Problem<float, int32_t>*>(nullptr), random);
  }
}

// Whoever calls may round as he likes: it concerns neither the result nor the crew, and stays as it was.
void test_rounding_of_the_caller(Random& random) {
  const Problem<float, int32_t> problem(case_for(2, random));
  const auto yardstick = align(problem, {rows_only(&kPortable)});
  for (const int workers : {1, 2}) {
    auto answer = problem.empty_answer();
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
  std::vector<Answer<float, int32_t>> answers(kThreads, problem.empty_answer());
  run_on_threads(kThreads, [&](int w) {
    for (int i = 0; i < 20; ++i) {
      align_item(problem.item, current_options(), Crew(), answers[w].rows());
    }
  });
  done = true;
  changes.join();
  for (const auto& answer : answers) {
    CHECK(answer == yardstick);
  }
}

// -------------------------------------------------------------------------------------------- 9 soft alignment

// The log-likelihood, and of every frame the posteriors of labels 0..L-1 and of all blanks; or what gains make of them.
template <class Real>
struct SoftAnswer {
  double log_likelihood = 0;
  std::vector<Real> sums;  // [frames, labels + 1]

  bool operator==(const SoftAnswer& other) const {
    return log_likelihood == other.log_likelihood && sums.size() == other.sums.size() &&
           (sums.empty() || std::memcmp(sums.data(), other.sums.data(), sums.size() * sizeof(Real)) == 0);
  }
};

// Real: what the answer is in. Sums: what is summed in, and has to be wide enough.
template <class P, class Real = AccumulationType<typename P::Scalar>, class Sums = Real>
SoftAnswer<Real> sum_up(const P& problem, const Options& options, const std::vector<Real>& gains,
                        const Crew& crew = {}) {
  note(Setting{options});
  const auto& item = problem.item;
  const index_t width = item.labels + 1;
  SoftAnswer<Real> answer;
  const CompactTarget target(item, kPairsPerWord);
  answer.sums.assign(item.frames * width, 0);
  const auto see = [&](index_t t, const FrameSums<Sums>& sums) {
    for (index_t k = sums.first; k <= sums.last && k < item.labels; ++k) {
      answer.sums[t * width + k] = static_cast<Real>(sums.labels[k] * sums.factor);
    }
    answer.sums[t * width + item.labels] = static_cast<Real>(sums.blank * sums.factor);
  };
  const Emissions<Real> values = {gains.empty() ? nullptr : gains.data(), width, 1};
  const auto log_likelihood = sum_over_paths<Sums>(item, target, Gains<Real>{values, item.labels}, options, crew, see);
  CHECK(log_likelihood.has_value());
  answer.log_likelihood = log_likelihood.value_or(0);
  return answer;
}

double log_sum(double a, double b) {
  const double most = std::max(a, b);
  return std::isinf(most) ? most : most + std::log(std::exp(a - most) + std::exp(b - most));
}

// In logarithms and float64, one state at a time.
template <class P>
SoftAnswer<double> soft_reference(const P& problem) {
  const auto& item = problem.item;
  const index_t frames = item.frames, states = 2 * item.labels + 1;
  const auto class_of = [&](index_t s) { return s % 2 ? static_cast<index_t>(item.target[s / 2]) : item.blank; };
  const auto skips_into = [&](index_t s) { return s >= 3 && s % 2 && class_of(s) != class_of(s - 2); };
  const auto emission = [&](index_t t, index_t s) {
    const double value = value_of(item.emissions.at(t, class_of(s)));
    return std::fabs(value) < 0x1p18 ? value : -INFINITY;
  };
  SoftAnswer<double> answer;
  answer.sums.assign(frames * (item.labels + 1), 0);
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
      const auto behind = [&](index_t to) { return betas[(t + 1) * states + to] + emission(t + 1, to); };
      double sum = t + 1 < frames ? behind(s) : s >= states - 2 ? 0 : -INFINITY;
      sum = t + 1 < frames && s + 1 < states ? log_sum(sum, behind(s + 1)) : sum;
      sum = t + 1 < frames && s + 2 < states && skips_into(s + 2) ? log_sum(sum, behind(s + 2)) : sum;
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
      answer.sums[t * (item.labels + 1) + (s % 2 ? s / 2 : item.labels)] += std::exp(both);
    }
  }
  return answer;
}

std::vector<Options> soft_settings(index_t frames) {
  std::vector<Options> settings;
  for (const NamedIsa& named : isas()) {
    for (const index_t budget : {index_t{0}, index_t{1}, frames * 300}) {
      settings.push_back({named.isa, budget, {}, false, {}});
    }
  }
  return settings;
}

// Against the reference; all bits alike with every instruction set and every budget, with gains too. Their sums over a
// frame are 0: a common factor of a frame's emissions changes no posterior.
template <class P>
void test_soft_items(P*, Random& random) {
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
      const P problem(a_case);
      const auto& item = problem.item;
      const auto expected = soft_reference(problem);
      const double epsilon = std::numeric_limits<Real>::epsilon();
      const auto found = sum_up(problem, rows_only(&kPortable), {});
      if (std::isinf(expected.log_likelihood)) {
        CHECK(found.log_likelihood == expected.log_likelihood);
        CHECK(std::all_of(found.sums.begin(), found.sums.end(), [](Real sum) { return sum == 0; }));
      } else {
        const double tolerance = epsilon * (10. * item.frames + std::fabs(expected.log_likelihood));
        CHECK(std::fabs(found.log_likelihood - expected.log_likelihood) <= tolerance);
        for (size_t i = 0; i < found.sums.size(); ++i) {
          CHECK(std::fabs(found.sums[i] - expected.sums[i]) <= tolerance + 1e-12);
        }
        ++feasible;
      }
      std::vector<Real> gains(found.sums.size());
      for (Real& gain : gains) {
        gain = static_cast<Real>(random.below(2001) - 1000) / 1000;
      }
      const auto with_gains = sum_up(problem, rows_only(&kPortable), gains);
      CHECK(with_gains.log_likelihood == found.log_likelihood);
      for (index_t t = 0; t < item.frames; ++t) {
        double sum = 0;
        for (index_t k = 0; k <= item.labels; ++k) {
          sum += with_gains.sums[t * (item.labels + 1) + k];
        }
        CHECK(std::fabs(sum) <= 20 * epsilon * item.frames);
      }
      for (const Options& options : soft_settings(item.frames)) {
        CHECK(sum_up(problem, options, {}) == found);
        CHECK(sum_up(problem, options, gains) == with_gains);
      }
      ++cases;
    }
  }
  CHECK(cases / 2 < feasible && feasible < cases);
}

// Tens of thousands of nats below any float, over many rows kept and swept again.
void test_long_soft_item(Random& random) {
  const Case a_case = {150, 2500, 5, kSmooth, kRows, random.seed()};
  Problem<float, int32_t> problem(a_case);
  for (float& value : problem.log_probs) {
    value = 20 * value - 8;
  }
  const auto expected = soft_reference(problem);
  CHECK(expected.log_likelihood < -20000);
  const auto found = sum_up(problem, rows_only(&kPortable), std::vector<float>{});
  CHECK(std::fabs(found.log_likelihood - expected.log_likelihood) <= 2e-3);
  for (size_t i = 0; i < found.sums.size(); ++i) {
    CHECK(std::fabs(found.sums[i] - expected.sums[i]) <= 1e-4);
  }
  constexpr long kBookkeeping = 4096;
  for (const index_t budget : {100000, 300000, 3000000}) {
    const Options options = {isas().front().isa, budget, {}, false, {}};
    const auto untold = [](index_t, const FrameSums<float>&) {};
    const long before = heap.bytes;
    heap.most_bytes = before;
    {
      const CompactTarget target(problem.item, kPairsPerWord);
      CHECK(sum_over_paths<float>(problem.item, target, {}, options, {}, untold) == found.log_likelihood);
    }
    const long rows = 2 * 12 * 4 * 192 * 4;  // two rows on each of twelve levels: less is not possible
    CHECK(heap.most_bytes - before <= std::max<long>(budget, 150000 + rows) + kBookkeeping + 200 * 40);
    CHECK(sum_up(problem, options, std::vector<float>{}) == found);
  }
}

// A target of classes that are all but impossible: float32 exponents cannot tell its states apart, and say so. Float64's
// can, of float32 emissions and gains too.
void test_wide_soft_item(Random& random) {
  const Case a_case = {300, 200, 40, kSmooth, kGaps, random.seed()};
  Problem<float, int32_t> problem(a_case);
  for (float& value : problem.log_probs) {
    value -= 100000;
  }
  const auto& emissions = problem.item.emissions;
  for (index_t t = 0; t < problem.item.frames; ++t) {
    problem.log_probs[&emissions.at(t, problem.item.blank) - problem.log_probs.data()] += 100000;
  }
  const CompactTarget target(problem.item, kPairsPerWord);
  const auto unseen = [](index_t, const FrameSums<float>&) {};
  for (const NamedIsa& named : isas()) {
    CHECK(!sum_over_paths<float>(problem.item, target, {}, rows_only(named.isa), {}, unseen));
  }
  using P = Problem<float, int32_t>;
  const auto expected = soft_reference(problem);
  const auto found = sum_up<P, float, double>(problem, rows_only(&kPortable), {});
  CHECK(found.log_likelihood < -20e6 && std::fabs(found.log_likelihood - expected.log_likelihood) <= 1e-3);
  for (size_t i = 0; i < found.sums.size(); ++i) {
    CHECK(std::fabs(found.sums[i] - expected.sums[i]) <= 1e-4);
  }
  std::vector<float> gains(found.sums.size());
  for (float& gain : gains) {
    gain = static_cast<float>(random.below(2001) - 1000) / 1000;
  }
  const auto with_gains = sum_up<P, float, double>(problem, rows_only(&kPortable), gains);
  for (const Options& options : soft_settings(problem.item.frames)) {
    CHECK((sum_up<P, float, double>(problem, options, {}) == found));
    CHECK((sum_up<P, float, double>(problem, options, gains) == with_gains));
  }
}

void test_soft_failures(Random& random) {
  const Case a_case = {60, 400, 100, kSteps, kGaps, random.seed()};
  const Problem<double, int64_t> problem(a_case);
  const Options options = {isas().front().isa, 60000, {}, false, {}};
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
  Crew crew;
  crew.interrupted = stops_after_some_looks;
  const Problem<float, int32_t> long_problem({300, 8000, 4, kSmooth, kOneFrame, random.seed()});
  const Options few_levels = {options.isa, 0, {}, false, {}};
  const auto whole = sum_up(long_problem, few_levels, std::vector<float>{});
  int looks = 0;
  const auto sum_and_stop = [&] {
    looks_left = looks;
    CHECK(sum_up(long_problem, few_levels, std::vector<float>{}, crew) == whole);
  };
  for (; attempt(sum_and_stop) == Outcome::kInterrupted; ++looks) {
  }
  CHECK(looks >= 5);
}

// ------------------------------------------------------------------------------------------------ 10 failures

// Ways of aligning that allocate wherever there is something to allocate.
struct Rehearsal {
  Case a_case;
  Setting setting;
};
std::vector<Rehearsal> rehearsals(Random& random) {
  const Isa* isa = isas().front().isa;
  const uint32_t number = random.seed();
  return {{{20, 40, 100, kSteps, kGaps, number}, {{isa, 0, {}, true, {31, 7}}}},
          {{300, 900, 40, kSteps, kRows, number}, {{isa, 1, {}, false, {}}}},
          {case_for(2, random), {{isa, 0, {}, true, {3000}}, 2, true}},
          {case_for(3, random), {{isa, 0, {}, true, {3000}}, 3}}};
}

template <class P>
void test_allocation_failures(P*, Random& random) {
  for (const Rehearsal& rehearsal : rehearsals(random)) {
    const Setting& setting = rehearsal.setting;
    const P problem(rehearsal.a_case), untouched(rehearsal.a_case);
    const auto expected = align(problem, setting);
    CHECK(workers_seen == setting.workers);
    auto answer = problem.empty_answer();
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
    auto answer = problem.empty_answer();
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

// What goes beyond a budget: the heap rounds up, and vectors grow by doubling.
void test_memory_budgets(Random& random) {
  constexpr long kBookkeeping = 4096;
  const Isa* isa = isas().front().isa;
  for (int i = 0; i < 8; ++i) {
    const Case a_case = {2000 + random.below(2000), 3000 + random.below(2000), 32, kThirds, kRows, random.seed()};
    const Problem<float, int32_t> problem(a_case);
    const auto expected = align(problem, {rows_only(isa)});
    auto answer = problem.empty_answer();
    for (int workers : {1, 1, 1, 1, 1, 1, 1, 1, 1, 3}) {
      const index_t budget = (workers == 1 ? 300000 : 600000) + random.below(300000);
      const Setting setting = {{isa, budget, {}, false, {}}, workers};
      const long before = heap.bytes;
      heap.most_bytes = before;
      align(problem, setting, answer);
      CHECK(heap.most_bytes - before <= budget + kBookkeeping);
      CHECK(answer == expected);
    }
  }
}

// ----------------------------------------------------------------------------------------------- 11 arithmetic

// Of every lattice, and of every cone: a cone is a band as well.
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
        const index_t every = plan_pieces<float>({frames, frames / 3}, 0, frames, {budget, nullptr, 0, false}, level);
        CHECK(0 <= every && every < frames);
        frames = every;
      }
    }
  }
}

// ------------------------------------------------------------------------------------------------------- main

template <class Test>
void run(const char* name, const Test& test) {
  std::printf("%-36s", name);
  std::fflush(stdout);
  const auto start = std::chrono::steady_clock::now();
  case_at_work[0] = setting_at_work[0] = 0;
  test();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("%5.1f s\n", seconds.count());
}

constexpr unsigned kMostSeconds = 900;  // whatever hangs is killed

}  // namespace

int main(int argc, char** argv) {
  seed = argc > 1 ? static_cast<uint32_t>(std::strtoul(argv[1], nullptr, 10)) : 0;
  alarm(kMostSeconds);
  Random random{std::mt19937(seed)};
  run("sums over bands", test_sums_over_bands);
  run("smallest budget comes to an end", test_smallest_budget_comes_to_an_end);
  run("widening", test_widening);
  run("short items", [&] { for_each_type(AllTypes(), [&](auto* type) { test_short_items(type, random); }); });
  run("long items", [&] { for_each_type(AllTypes(), [&](auto* type) { test_long_items(type, random); }); });
  run("crews", [&] { test_crews(random); });
  run("rounding of the caller", [&] { test_rounding_of_the_caller(random); });
  run("items side by side", [&] { test_items_side_by_side(random); });
  run("soft items", [&] { for_each_type(AllTypes(), [&](auto* type) { test_soft_items(type, random); }); });
  run("a long soft item", [&] { test_long_soft_item(random); });
  run("a wide soft item", [&] { test_wide_soft_item(random); });
  run("failures of soft items", [&] { test_soft_failures(random); });
  run("allocation failures",
      [&] { for_each_type(AllTypes(), [&](auto* type) { test_allocation_failures(type, random); }); });
  run("interruptions", [&] { test_interruptions(random); });
  run("memory budgets", [&] { test_memory_budgets(random); });
}
