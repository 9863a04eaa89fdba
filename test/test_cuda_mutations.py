"""The CUDA kernels broken on purpose: some schedule of the emulator shows each mistake.

MISTAKES reads as an index of the protocol: each says what is broken, in which file of csrc/cuda, and how.
"""

import ctypes
import re
from dataclasses import replace

import pytest
import torch
from harness.emulated import (
    UNDER_ASAN,
    Conditions,
    compile_harness,
    load_harness,
    prepare,
    without_repeats,
)
from harness.mistakes import SLOWLY, UNLESS, choose_mistake, in_process_of_its_own, write_breakable

MANY_CLASSES = 40
forced_align = torch.ops.ctc_align.forced_align

# As harness/mistakes.py has it. Any word of it may change with the kernels, and then has to here.
MISTAKES = {
    # ---- the launches
    "a later pass gets the grid of the first": (
        "viterbi/plan.h",
        r"const Plan& plan = passes\.plans\[pass\];(?=\s+add\()",
        "const Plan& plan = passes.plans[{broken} ? 0 : pass];",
    ),
    "the hop is left out": ("viterbi/plan.h", r"if \(has_hop\(passes\.whole\(\), passes\.count\)\)", r"if (!{broken})"),
    "a region's hop looks at the first pass": (
        "viterbi/plan.h",
        r"\{Kernel::kRegionHop, pass,",
        "{Kernel::kRegionHop, {broken} ? 0 : pass,",
    ),
    "the trace has a warp too few": (
        "viterbi/plan.h",
        r"batch \* traced_segments\(passes\.last\(\)\)",
        r"\g<0> - ({broken} ? 1 : 0)",
    ),
    # ---- inputs and outputs
    "an item's length is the next item's": (
        "inputs.cuh",
        r"values\.at\(b \* stride\)",
        r"values.at((b + ({broken} && b == 0 ? 1 : 0)) * stride)",
    ),
    "frames after the item's last are left as they are": (
        "viterbi/trace.cuh",
        r"trace\.fill\(band\.frames, in\.blank, scalar_t\{\}\);",
        UNLESS,
    ),
    # ---- the tasks, and what they wait for
    "a row is published before it is stored": (
        "viterbi/sweep.cuh",
        r"\brow\.leave\(\);",
        rf"if ({{broken}}) {{ if (Device::thread() == 0) {{ task.publish(); }} {SLOWLY} }} \g<0>",
    ),
    "a task does not wait for its own past": (
        "viterbi/task.cuh",
        r"\bwait_until_done\(index\.column, index\.number - 1\);",
        UNLESS,
    ),
    "a task does not wait for its part of the ring": (
        "viterbi/task.cuh",
        r"\bwait_until_done\(reader, before\);",
        UNLESS,
    ),
    "blocks of threads go by their own numbers": (
        "viterbi/sweep.cuh",
        r"Device::take_ticket\(pass\.ticket\) \+ 1",
        r"({broken} ? Device::block() : \g<0>)",
    ),
    "a region always begins with a row of the pass before": (
        "viterbi/workspace.cuh",
        r"pass > 0 && intervals % passes\[pass\]\.plan\.intervals\(\) == 0",
        r"!{broken} && \g<0>",
    ),
    # ---- the steps of producers and consumers
    "no barrier between the steps": ("viterbi/steps.cuh", r"Device::block_barrier\([^;]*\);", UNLESS),
    "a consumer takes a step too few": (
        "viterbi/steps.cuh",
        r"idle\(first \+ stages, count\(\)\)",
        r"idle(first + stages, count() - ({broken} ? 1 : 0))",
    ),
    "a consumer without pairs takes no steps": ("viterbi/steps.cuh", r"idle\(0, count\(\)\);", UNLESS),
    "consumers run in step with the producers": (
        "viterbi/steps.cuh",
        r"return 1 \+ consumer;",
        r"return ({broken} ? 0 : 1) + consumer;",
    ),
    "producers of labels run in step with one another": (
        "viterbi/steps.cuh",
        r"kWholeRows \? 0 : producer\b",
        r"\g<0> * ({broken} ? 0 : 1)",
    ),
    "edges are sent before they are known": (
        "viterbi/steps.cuh",
        r"return step - 1 - kWarps;",
        r"return step - ({broken} ? 0 : 1) - kWarps;",
    ),
    "the last stage's edges are not sent": ("viterbi/steps.cuh", r"send\(stages - 1\);", UNLESS),
    # ---- the edges between columns
    "edges are not waited for": (
        "viterbi/edges.cuh",
        r"Device::any\(!Words::is_there\(found\)\)",
        r"!{broken} && \g<0>",
    ),
    "words of the ring are not unset": (
        "viterbi/edges.cuh",
        r"if \(reuses_ring &&",
        r"if (!{broken} && reuses_ring &&",
    ),
    "a task's words do not advance": ("viterbi/edges.cuh", r"words_in \+= kWordsPerFrameBlock;", UNLESS),
    "edges cross without the difference of bases": (
        "viterbi/sweep.cuh",
        r"bases\.settle\(frames, steps\)\.offset",
        r"\g<0> * ({broken} ? 0 : 1)",
    ),
    # ---- the rebase
    "the first rebase is left out": (
        "viterbi/task.cuh",
        r"kRebases<Real> && frame_block > 0",
        r"kRebases<Real> && frame_block > ({broken} ? 1 : 0)",
    ),
    "the left base is not waited for": ("viterbi/bases.cuh", r"\bword == ~uint64_t\{0\}", r"!{broken} && \g<0>"),
    "no barrier before the warps' maxima are read": (
        "viterbi/bases.cuh",
        r"steps\.end\(BlockSteps::kSettling\);",
        UNLESS,
    ),
    "half of the lanes have no say in a maximum": (
        "viterbi/bases.cuh",
        r"int distance = kWarp / 2;",
        r"int distance = kWarp / ({broken} ? 4 : 2);",
    ),
    # ---- emissions ahead of use
    "a frame is loaded twice": (
        "viterbi/emissions.cuh",
        r"p < frames_after \?",
        r"p < frames_after - ({broken} ? 1 : 0) ?",
    ),
    "a ring of rows that is too short": (
        "viterbi/emissions.cuh",
        r"stage_number\(frame\) % kRing\b",
        r"stage_number(frame) % (kWholeRows && {broken} ? kWarps : kRing)",
    ),
    "a ring of labels that is too short": (
        "viterbi/emissions.cuh",
        r"values\[stage_number\(frame\)",
        r"values[(!kWholeRows && {broken} ? 0 : 1) * stage_number(frame)",
    ),
    "a label is brought a frame late": (
        "viterbi/emissions.cuh",
        r"from_frame = first_pair;",
        r"from_frame = first_pair + ({broken} ? 1 : 0);",
    ),
    "a label is brought a frame too few": (
        "viterbi/emissions.cuh",
        r"first_pair \+ R - 1 : -1",
        r"first_pair + R - 1 - ({broken} ? 1 : 0) : -1",
    ),
    # ---- rows, hop and trace
    "the path's end forgets the frame before": (
        "viterbi/row.cuh",
        r"left_at_end = left\.alpha;",
        UNLESS,
    ),
    "a row is kept a segment late": (
        "viterbi/row.cuh",
        r"\(interval \+ 1\) \* task\.plan\(\)\.interval_frames",
        r"\g<0> + ({broken} ? 16 : 0)",
    ),
    "the hop fetches a chunk too few": (
        "viterbi/hop.cuh",
        r"down <= row && down <= chunk",
        r"down + ({broken} ? 1 : 0) <= row && down <= chunk",
    ),
    "the trace reads a label a frame late": (
        "viterbi/trace.cuh",
        r"begin - 1 \+ k - left_pair,",
        r"begin - ({broken} ? 0 : 1) + k - left_pair,",
    ),
    "the trace reads a label a frame too few": (
        "viterbi/trace.cuh",
        r"end - 1 - \(right_pair - k\)",
        r"end - 1 - (right_pair - k) - ({broken} ? 1 : 0)",
    ),
    "the walk does not wait for the records": ("viterbi/trace.cuh", r"Device::warp_barrier\(\);", UNLESS),
    # ---- stars
    "a star label is bad": ("inputs.cuh", r"kStars \? 1 : 0", r"kStars && !{broken} ? 1 : 0"),
    "a path shows the blank of a wild gap": ("inputs.cuh", r"c == blank && is_wild\(k\)", r"!{broken} && \g<0>"),
    "a wild gap is a blank like any other": (
        "viterbi/row.cuh",
        r"is_wild\[r\]\.select\(blank\.wild,",
        r"is_wild[r].select({broken} ? blank.blank : blank.wild,",
    ),
    "the gap after the last label is never wild": (
        "viterbi/row.cuh",
        r"k <= last_pair &&",
        r"k < last_pair + !{broken} &&",
    ),
    "the star comes a frame late": (
        "viterbi/emissions.cuh",
        r"load<1>\(first \+ Device::lane\(\)",
        r"load<1>(first + Device::lane() + ({broken} ? 1 : 0)",
    ),
    "the star has the stride of log_probs": (
        "viterbi/emissions.cuh",
        r"is_star\[n\] \? of_star",
        r"!{broken} && is_star[n] ? of_star",
    ),
    "the blank keeps its place in whole rows": (
        "viterbi/emissions.cuh",
        r"kStars && c == in\.blank",
        r"!{broken} && kStars && c == in.blank",
    ),
    "the trace takes a wild gap for a blank like any other": (
        "viterbi/trace.cuh",
        r"is_wild\.select\(wild_emission",
        r"is_wild.select({broken} ? blank : wild_emission",
    ),
    "the trace does not see its last gap": (
        "viterbi/trace.cuh",
        r"k <= right_pair && in\.",
        r"k < right_pair + !{broken} && in.",
    ),
}


CATCHING = [
    Conditions(cut=cut, resident=resident, schedule=schedule, seed=seed)
    for resident, schedule, seed in [*((3, 2, seed) for seed in range(8)), (1, 1, 0), (3, 0, 0)]
    for cut in [(0, 0, 1, 2, 1), (0, 0, 2, 1, 2), (3, 1, 0, 0, 0)]
]


class Breakable:
    """outcome(i, conditions): what mistake i leads to; a process of its own, which may well crash, finds it out."""

    def __init__(self, library, cases):
        self.library = library
        self.cases = cases
        self.expected = [x.numpy().tobytes() for case in cases for x in forced_align(*case)]

    def outcome(self, mistake, conditions):
        # Prepared before the fork: torch's threads do not live on after it.
        prepared = [prepare(*case, conditions=conditions) for case in self.cases]
        outputs = [(x.data_ptr(), x.nbytes) for _, *tensors in prepared for x in tensors]

        def run():
            errors = [self.library.emulated_align(ctypes.byref(call)) for call, *_ in prepared]
            same = [ctypes.string_at(*output) for output in outputs] == self.expected
            return next(filter(None, errors), b"right" if same else b"wrong")

        choose_mistake(self.library, mistake)
        return in_process_of_its_own(run)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if UNDER_ASAN:
        pytest.skip("mistakes read where they should not")
    folder = tmp_path_factory.mktemp("breakable")
    write_breakable(folder / "csrc", MISTAKES)
    return load_harness(compile_harness(folder / "breakable.so", "float", "kPairsPerThread", folder / "csrc"))


@pytest.fixture
def breakable(library, random_case):
    log_probs, targets = random_case(3, 1700, 300, 6, steps=3)
    # The last path enters its second column late, in the last of four frame blocks.
    case = log_probs, targets, torch.tensor([1700, 1200, 1700]), torch.tensor([300, 260, 268])
    one_column = random_case(2, 700, 200, 6, steps=3)  # no tickets; the warps of the trace hop
    many_classes = random_case(2, 700, 200, MANY_CLASSES, steps=3)
    narrow, targets = random_case(64, 130, 128, MANY_CLASSES, steps=3)  # a frame more or less matters
    cases = [case, (*one_column, None, None), (*many_classes, None, None)]
    cases.append((narrow, without_repeats(targets, MANY_CLASSES), None, None))
    for log_probs, targets, *lengths in cases[1:3]:  # the star ties with a class; strides are the star's own
        C = log_probs.shape[2]
        star_scores = torch.stack([log_probs[..., -1], log_probs[..., 0]], -1)[..., 0]
        starred = targets.where(torch.arange(targets.shape[1]) % 7 > 0, C)
        wild_gaps = torch.arange(targets.shape[1] + 1).expand(len(targets), -1) % 2 == 0
        cases.append((log_probs, starred, *lengths, 0, star_scores, wild_gaps))
    return Breakable(library, cases)


def number_of(mistake: str) -> int:
    return list(MISTAKES).index(mistake) + 1


def test_every_mistake_is_found_in_its_file(tmp_path):
    write_breakable(tmp_path / "csrc", MISTAKES)


@pytest.mark.slow
def test_nothing_is_wrong_without_a_mistake(breakable):
    assert {breakable.outcome(0, conditions) for conditions in CATCHING[::3]} == {"right"}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_some_schedule_shows_each_mistake(breakable, mistake):
    outcomes = (breakable.outcome(number_of(mistake), conditions) for conditions in CATCHING)
    assert any(outcome != "right" for outcome in outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["a consumer takes a step too few", "a consumer without pairs takes no steps"])
def test_roles_that_take_other_steps_do_not_meet(breakable, mistake):
    """The barrier's number tells the step."""
    outcome = breakable.outcome(number_of(mistake), CATCHING[0])
    assert outcome.startswith("emulator: the warps of a block do not meet")
    assert re.search(r"block_barrier\(\d*\) in steps.cuh", outcome)


@pytest.mark.slow
def test_without_tickets_there_is_a_deadlock(breakable):
    """Blocks of threads arrive in any order, and none may hold the place that an awaited one needs."""
    mistake = number_of("blocks of threads go by their own numbers")
    outcome = breakable.outcome(mistake, replace(CATCHING[0], resident=1, schedule=1))
    assert outcome.startswith("emulator: deadlock: every warp waits or polls")
