// Aligns one item, for instructions.py to count the instructions: instructions CPU REAL T L C REPEATS [step]
//
// With `step` it counts itself: a child aligns, and its parent lets it run instruction by instruction (ptrace). That works
// for every instruction set of the processor, and takes some microseconds an instruction.
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "../csrc/cpu/options.h"
#include "../csrc/cpu/viterbi/align_item.h"

extern "C" int ctc_align_set_cpu(const char* name);  // csrc/cpu/options.cpp

namespace {

using namespace ctc_align;

// Exact numbers, so that every machine aligns the same item.
template <class Real>
struct Problem {
  std::vector<Real> log_probs;
  std::vector<int64_t> target, path;
  std::vector<Real> scores;

  Problem(index_t frames, index_t labels, index_t classes)
      : log_probs(frames * classes), target(labels), path(frames), scores(frames) {
    std::mt19937 random(0);
    for (Real& entry : log_probs) {
      entry = -static_cast<Real>(random() % 4096) / 256;
    }
    for (int64_t& label : target) {
      label = 1 + random() % (classes - 1);
    }
  }
  void align(index_t classes) {
    const auto frames = static_cast<index_t>(path.size()), labels = static_cast<index_t>(target.size());
    const Item<Real, int64_t> item{.emissions = {log_probs.data(), classes, 1},
                                   .target = {target.data(), 1},
                                   .frames = frames,
                                   .labels = labels,
                                   .classes = classes,
                                   .blank = 0,
                                   .star_scores = {},
                                   .wild_gaps = {}};
    const AlignedRows<Real, int64_t> rows{path.data(), scores.data(), frames};
    if (!align_item(item, current_options(), Workers(), rows)) {
      std::exit(1);
    }
  }
};

void on_one_core() {  // a switch between parent and child is quicker there
  cpu_set_t first;
  CPU_ZERO(&first);
  CPU_SET(sched_getcpu(), &first);
  sched_setaffinity(0, sizeof first, &first);
}

// The instructions of a child from its first SIGSTOP to its second.
template <class Work>
long count_steps(const Work& work) {
  on_one_core();
  const pid_t child = fork();
  if (child == 0) {
    ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    raise(SIGSTOP);
    work();
    raise(SIGSTOP);
    std::_Exit(0);
  }
  int status = 0;
  long steps = 0;
  waitpid(child, &status, 0);
  while (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) == 0 && waitpid(child, &status, 0) == child &&
         WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP) {
    ++steps;
  }
  const bool is_done = WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP;
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  return is_done ? steps : -1;
}

template <class Real>
int run(index_t frames, index_t labels, index_t classes, int repeats, bool steps) {
  Problem<Real> problem(frames, labels, classes);
  const auto work = [&] {
    for (int r = 0; r < repeats; ++r) {
      problem.align(classes);
    }
  };
  if (!steps) {
    work();
    return 0;
  }
  const long count = count_steps(work);
  std::printf("%ld\n", count);
  return count < 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 7 || ctc_align_set_cpu(argv[1]) != 0) {
    std::fprintf(stderr, "expected: instructions CPU REAL T L C REPEATS [step], with a CPU of this processor\n");
    return 2;
  }
  const bool is_double = argv[2] == std::string("float64"), steps = argc > 7;
  const auto number = [&](int i) { return std::atol(argv[i]); };
  const auto repeats = static_cast<int>(number(6));
  return is_double ? run<double>(number(3), number(4), number(5), repeats, steps)
                   : run<float>(number(3), number(4), number(5), repeats, steps);
}
