"""The CUDA sums broken on purpose: some schedule of the emulator shows each mistake.

MISTAKES reads as an index of the protocol: each says what is broken, in which file of csrc/cuda, and how.
"""

import ctypes
import itertools
from dataclasses import replace

import pytest
import torch
from harness.emulated import UNDER_ASAN, without_repeats
from harness.mistakes import SLOWLY, UNLESS, choose_mistake, in_process_of_its_own, write_breakable
from harness.sums import SumConditions, compile_sums, load_sums, make_case, prepare

PLAN, TASK, WEIGHTS, ROW, KEEP, PART, SWEEP = (
    f"forward_backward/{name}"
    for name in ("plan.h", "task.cuh", "weights.cuh", "row.cuh", "keep.cuh", "part.cuh", "sweep.cuh")
)
# As harness/mistakes.py has it. Any word of it may change with the kernels, and then has to here.
MISTAKES = {
    # ---- the launches
    "a chapter begins with the row of the one before": (
        PLAN,
        r"SumKernel::kBackward, c, c \+ 1, row_before\(c\), c, false\)",
        "SumKernel::kBackward, c, c + 1, row_before(c > first ? c - {broken} : c), c, false)",
    ),
    "a part's last chapter leaves its row to the others": (
        PLAN,
        r"is_last \? p \+ 1 : parts,",
        "is_last && !{broken} ? p + 1 : parts,",
    ),
    "rows before segments are not kept": (PLAN, r"row_before\(c\), -1, true\)", "row_before(c), -1, !{broken})"),
    "the second pass is left out": (PLAN, r"if \(has_second_pass\) \{", "if (has_second_pass && !{broken}) {"),
    "frames are not divided": (PLAN, r"else if \(needs_finish\)", "else if (needs_finish && !{broken})"),
    # ---- the tasks, and what they wait for
    "a column begins a frame late": (
        TASK,
        r"of_column \* static_cast<int32_t>\(kColumnPairs\) - 1\)",
        r"of_column * static_cast<int32_t>(kColumnPairs) + ({broken} ? 1 : -1))",
    ),
    "a column ends two frames early": (
        TASK,
        r"static_cast<int32_t>\(kColumnPairs\) - 1, 0\);",
        r"static_cast<int32_t>(kColumnPairs) + ({broken} ? 1 : -1), 0);",
    ),
    "blocks of threads go by their own numbers": (
        SWEEP,
        r"Device::take_ticket\(tickets\) \+ 1",
        r"({broken} ? Device::block() : \g<0>)",
    ),
    "a slot is taken before it is free": (
        SWEEP,
        r"Device::load_acquire\(work\.finished \+ \(ticket - slots\)\) != 0",
        r"!{broken} && \g<0>",
    ),
    "a slot is never free again": (SWEEP, r"Device::store_release\(work\.finished \+ ticket, 0\);", UNLESS),
    "the two halves do not wait for each other": (
        SWEEP,
        r"Device::load_acquire\(half\(!is_forward\)\) != 0",
        r"!{broken} && \g<0>",
    ),
    "a half says that it is done too early": (
        SWEEP,
        r"const bool forward = is_forward == \(part == 0\);",
        r"\g<0> if ({broken} && Device::thread() == 0) { "
        rf"Device::store_release(half(forward), 0u); {SLOWLY} }}",
    ),
    "the row of the middle is written a second time": (
        PART,
        r"work\.plan\.meets \? kMode",
        "work.plan.meets && !{broken} ? kMode",
    ),
    "a block waits for one that has not begun": (
        SWEEP,
        r"has_both = has_both \|\| claim\(!is_forward\);",
        "has_both = has_both || (!{broken} && claim(!is_forward));",
    ),
    # ---- the steps of producers and consumers
    "no barrier between the steps": (TASK, r"Device::block_barrier\(number \+ step\);", UNLESS),
    "a stage is kept before its last consumer has run it": (
        TASK,
        r"return step - consumers - 1;",
        "return step - consumers - ({broken} ? 0 : 1);",
    ),
    "the last step is left out": (TASK, r"stages \+ consumers \+ 1 : 0", "stages + consumers + ({broken} ? 0 : 1) : 0"),
    "producers of labels run in step with one another": (
        PART,
        r"kWholeRows \? step : step - warp;",
        "kWholeRows || {broken} ? step : step - warp;",
    ),
    # ---- weights on their way
    "what is no label has its class's weight": (
        WEIGHTS,
        r"labels\[place\] = is_nothing\[n\] \?",
        "labels[place] = is_nothing[n] && !{broken} ?",
    ),
    "whole rows have no place for 0": (
        SWEEP,
        r"= \{nothing\[0\], nothing\[1\]\};",
        "= {{broken} ? Real{1} : nothing[0], {broken} ? Real{0} : nothing[1]};",
    ),
    "the blank keeps its place in whole rows": (
        WEIGHTS,
        r"in\.has_stars\(\) && c == in\.blank \?",
        r"in.has_stars() && !{broken} && c == in.blank ?",
    ),
    "the star has the stride of log_probs": (
        WEIGHTS,
        r"= is_star \? in\.star_frame_stride",
        "= is_star && !{broken} ? in.star_frame_stride",
    ),
    "a share of whole rows is stored a frame late": (
        WEIGHTS,
        r"Rings::kRing\]\[first_of_share\(\) \+ p\];",
        "Rings::kRing][(first_of_share() + p + {broken}) % kStage];",
    ),
    "the gaps are those of the stage before": (
        ROW,
        r"gap = shared\.rings\.gaps\[stage %",
        "gap = shared.rings.gaps[(stage + 7 * {broken}) %",
    ),
    "the factor is that of the frame before": (
        WEIGHTS,
        r"larger<index_t>\(t - task\.chapter_begin, 0\)",
        "larger<index_t>(t - task.chapter_begin - {broken}, 0)",
    ),
    # ---- edges
    "edges are not waited for": (PART, r"Device::load_relaxed\(edge \+ n\)\) == Words::kUnset", r"\g<0> && !{broken}"),
    "edges are sent a step too early": (
        PART,
        r"steps\.consumers\]\[stage % 2\]\[Device::lane\(\)\]\[i\]\)\);",
        "steps.consumers][(stage + {broken}) % 2][Device::lane()][i]));",
    ),
    "edges are received into the place of another stage": (
        PART,
        r"edges\[0\]\[stage % 2\]\[Device::lane\(\)\]",
        "edges[0][(stage + {broken}) % 2][Device::lane()]",
    ),
    "an edge is read from the wrong stage": (
        ROW,
        r"edges\[consumer\]\[stage % 2\]\[p\]",
        "edges[consumer][(stage + {broken}) % 2][p]",
    ),
    "the edge of the last frame is not sent": (
        PART,
        r"&& part\.has\(first \+ Device::lane\(\)\)\) \{",
        "&& part.has(first + Device::lane() + {broken})) {",
    ),
    "a way back asks its left neighbour": (PART, r"kForward \? -1 : 1\);", "kForward || {broken} ? -1 : 1);"),
    # ---- rows
    "a row is kept a segment late": (
        PART,
        r"row_at\(in_chapter / segment,",
        "row_at(in_chapter / segment + (in_chapter > 0) * -{broken},",
    ),
    "a row of another part is loaded": (
        PART,
        r"part\.end == task\.chapter_end \? 1 : 0\)",
        "part.end == task.chapter_end && !{broken} ? 1 : 0)",
    ),
    "alphas of the frame before are met": (
        ROW,
        r"met\[p\] = \*reinterpret_cast<const Pairs\*>\(row\);",
        "met[p] = *reinterpret_cast<const Pairs*>(row - (frame > frames.begin) * {broken} * memory_stride);",
    ),
    "the last lane passes nothing on": (
        ROW,
        r"\bpass_on\(\);\n(?=\s+if constexpr \(kMeets)",
        r"if (!{broken}) { pass_on(); }" + "\n",
    ),
    "weights are not normalized": (ROW, r"if \(normalizes\)", "if (normalizes && !{broken})"),
    "every label may be skipped into": (
        ROW,
        r"may_skip\[r\] = into < task\.labels &&",
        "may_skip[r] = {broken} || into < task.labels &&",
    ),
    "a wild gap is a blank like any other": (ROW, r"wild = kStars && is_wild\[r\]", r"\g<0> && !{broken}"),
    "the gap after the last label is never wild": (
        ROW,
        r"k <= task\.labels && in\.is_wild_gap",
        "k < task.labels + !{broken} && in.is_wild_gap",
    ),
    "path values are those of the first column": (
        ROW,
        r"in\.path_value\(task\.item, frame, pairs\[r\]\)",
        "in.path_value(task.item, frame, {broken} ? pairs[r] % 256 : pairs[r])",
    ),
    "a span forgets the chapters after it": (ROW, r"span_sum\[r\] = in\.out\[b \* in\.out_columns \+ k\];", UNLESS),
    # ---- what is kept
    "a column does not wait for its right neighbour": (
        KEEP,
        r"Device::load_acquire\(kept_to\(task\.column \+ 1\)\) >",
        r"!{broken} && \g<0>",
    ),
    "a frame is published before it is kept": (
        PART,
        r"larger\(frame_of\(kept - 1\), part\.begin\)",
        r"larger(frame_of(kept - ({broken} ? 0 : 1)), part.begin)",
    ),
    "the last frames are never published": (PART, r"keeper\.publish\(part\.begin\);", UNLESS),
    "the first column adds to what was there": (KEEP, r"\(is_first \? Real\{0\}", "(is_first && !{broken} ? Real{0}"),
    "lanes are added from the last to the first": (
        KEEP,
        r"lanes\[producer\]\[Device::lane\(\)\]\[i\];",
        "lanes[producer][Device::lane()][{broken} ? 15 - i : i];",
    ),
    "labels of a class are added in another order": (
        KEEP,
        r"labels\[four\.labels\[n\]\]",
        "labels[four.labels[{broken} ? 3 - n : n]]",
    ),
    "a class's last labels are those of another": (
        KEEP,
        r"i < rounded_up\(size, 4\); \+\+i\)",
        "i < rounded_up(size, 4) - {broken}; ++i)",
    ),
    "no barrier before the lanes are added": (
        KEEP,
        r"Device::warp_barrier\(\);\n(?=\s+if \(Device::lane\(\) < 3\) \{\n\s+Real sum)",
        "if (!{broken}) { Device::warp_barrier(); }\n",
    ),
    "the star's share is left out": (KEEP, r"stars = part\.star;", UNLESS),
    "a column's classes replace those at its right": (
        KEEP,
        r"sum_of_group\(group, labels, out\[c\]\);",
        "sum_of_group(group, labels, {broken} ? Real{0} : out[c]);",
    ),
}

SIZES = [((0, 0, 0), 0), ((0, 16, 48), 2), ((0, 64, 192), 1)]
ORDERS = [(3, 2, 1), (5, 2, 2), (1, 1, 0), (3, 0, 0), (3, 1, 0), (3, 2, 3), (3, 2, 4), (3, 2, 5)]
CATCHING = [SumConditions(sizes, *order, slots) for order in ORDERS for sizes, slots in SIZES]
CATCHING.insert(3, SumConditions((0, 16, 16)))  # chapters at two levels
# Where columns wait for one another twice, by edges and by what is kept, few schedules show that one wait is missing.
PATIENT = [SumConditions(seed=seed, resident=3, schedule=2) for seed in range(150)]


class Breakable:
    """outcome(i, conditions): what mistake i leads to; a process of its own, which may well crash, finds it out."""

    def __init__(self, library, calls):
        self.library = library
        self.calls = calls  # operators and cases
        self.expected = [x.numpy().tobytes() for name, case in calls for x in case.run(name)]

    def outcome(self, mistake, conditions, calls=slice(None)):
        # Prepared before the fork: torch's threads do not live on after it.
        prepared = [(name, *prepare(name, case, conditions)) for name, case in self.calls[calls]]
        tensors = [
            x.tensor for name, _, outputs in prepared for x in outputs[: 1 if name == "posteriors_backward" else 2]
        ]
        expected = self.expected[: len(tensors)]
        places = [(x.data_ptr(), x.nbytes) for x in tensors]

        def run():
            for _, call, _ in prepared:
                if error := self.library.emulated_sum(ctypes.byref(call)):
                    return error
            return b"right" if [ctypes.string_at(*place) for place in places] == expected else b"wrong"

        choose_mistake(self.library, mistake)
        return in_process_of_its_own(run)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if UNDER_ASAN:
        pytest.skip("mistakes read where they should not")
    folder = tmp_path_factory.mktemp("breakable")
    write_breakable(folder / "csrc", MISTAKES)
    return load_sums(compile_sums(folder / "breakable.so", "float", folder / "csrc"))


@pytest.fixture
def breakable(library, generator):
    two_columns = make_case(generator, 2, 400, 300, 20, stars=True)
    two_columns.target_lengths = torch.tensor([300, 259])
    two_columns.star_scores = torch.stack([two_columns.star_scores, -two_columns.star_scores], -1)[..., 0]
    two_columns.wild_gaps[0, 300] = two_columns.wild_gaps[1, 259] = True
    two_columns.ends = two_columns.starts + 60
    narrow = make_case(generator, 1, 260, 260, 40)  # there is one path: a frame more or less matters
    narrow.targets = without_repeats(narrow.targets, 40)
    one_column = make_case(generator, 3, 100, 70, 20, stars=True, ragged=True)
    few_labels = make_case(generator, 2, 260, 150, 40, stars=True)  # many of a class
    few_labels.targets = few_labels.targets % 4 + 30
    calls = [("class_posteriors", make_case(generator, 1, 560, 520, 20))]
    calls += [("posteriors_backward", two_columns), ("span_posteriors", two_columns), ("class_posteriors", two_columns)]
    calls += [
        ("posteriors", narrow),
        ("class_posteriors", narrow),
        ("posteriors", replace(narrow, targets=narrow.targets[:, :259])),
    ]
    calls += [(name, one_column) for name in ("posteriors", "occupancies", "span_posteriors")]
    calls += [(name, few_labels) for name in ("class_posteriors", "posteriors_backward", "span_posteriors")]
    calls += [("class_posteriors", make_case(generator, 1, 1100, 9, 6))]  # chapters at two levels
    breakable = Breakable(library, calls)
    for case in (one_column, few_labels):  # from here on an item has a label that is none: it is marked
        bad = replace(case.item(0), targets=case.targets[:1].clone())
        bad.targets[0, 5] = bad.log_probs.shape[2] + 1
        T, L = bad.log_probs.shape[1], bad.targets.shape[1]
        breakable.calls += [("posteriors", bad)]
        breakable.expected += [
            torch.zeros(1, T, L + 1).numpy().tobytes(),
            torch.full((1,), -torch.inf).numpy().tobytes(),
        ]
    return breakable


def number_of(mistake: str) -> int:
    return list(MISTAKES).index(mistake) + 1


def test_every_mistake_is_found_in_its_file(tmp_path):
    write_breakable(tmp_path / "csrc", MISTAKES)


@pytest.mark.slow
def test_nothing_is_wrong_without_a_mistake(breakable):
    assert {breakable.outcome(0, conditions) for conditions in CATCHING[:7]} == {"right"}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_some_schedule_shows_each_mistake(breakable, mistake):
    number = number_of(mistake)
    outcomes = (breakable.outcome(number, conditions) for conditions in CATCHING)
    patient = (breakable.outcome(number, conditions, slice(1)) for conditions in PATIENT)
    assert any(outcome != "right" for outcome in itertools.chain(outcomes, patient))
