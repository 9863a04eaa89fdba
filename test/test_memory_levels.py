"""Equal bits on every way through the CPU kernel: instruction set, memory level, sizes of work, threads.

A *way* is one choice of all of these. None of them may change a bit of a result, and every case here goes many ways.
The expected results come from ``reference.py``, which goes none of them.

The examples that hypothesis draws are the same in every run; another CTC_ALIGN_SEED draws others.
"""

import itertools
import math
import random
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from conftest import SEED
from test_agreement import FLOATS, LAYOUTS, assert_same

import torch_ctc_align
from torch_ctc_align import reference
from torch_ctc_align.config import _forced

INF = math.inf
forced_align = torch.ops.ctc_align.forced_align
CPUS = torch_ctc_align.config().cpus


# ------------------------------------------------------------------------------------------------------- ways


@dataclass(frozen=True)
class Way:
    """One way through the kernel. The defaults are the plainest: all records, portable code, one thread."""

    cpu: str = "portable"
    cuts: tuple[int, ...] | None = ()  # frames of a piece on each level of the ladder; None: as the budget wants it
    budget: int | None = None
    strip_frames: int = 0
    group_columns: int = 0
    threads: int = 1

    @contextmanager
    def forced(self):
        budget, threads = torch_ctc_align.config().memory_budget, torch.get_num_threads()
        torch_ctc_align.set_memory_budget(self.budget)
        torch.set_num_threads(self.threads)
        try:
            with _forced(self.cpu, self.cuts, self.strip_frames, self.group_columns):
                yield
        finally:
            torch.set_num_threads(threads)
            torch_ctc_align.set_memory_budget(budget)

    def align(self, *arguments):
        with self.forced():
            return forced_align(*arguments)


PLAIN = Way()

# Pieces of 1 frame, of an odd number and of a prime one, of a frame block and one more or less, longer than any
# item; and up to three levels of them.
CUTS = [(), (1,), (15,), (97,), (511,), (512,), (513,), (10**6,), (1, 1), (300, 20), (97, 13, 3), (700, 1)]
BUDGETS = [None, 1, 100_000, 300_000]  # of 1 byte it takes what it must have
STRIPS = [0, 1, 3, 15, 16, 17, 64, 511]
GROUPS = [0, 1, 2]
THREADS = [1, 2, 3, 8]

ways = st.builds(
    Way,
    cpu=st.sampled_from(CPUS),
    cuts=st.sampled_from([*CUTS, None]) | st.tuples(st.integers(1, 40)) | st.tuples(*[st.integers(1, 600)] * 2),
    budget=st.sampled_from(BUDGETS),
    strip_frames=st.sampled_from(STRIPS) | st.integers(1, 512),
    group_columns=st.sampled_from(GROUPS),
    threads=st.sampled_from(THREADS),
)


# ------------------------------------------------------------------------------------------------------ cases

# What emissions may be like. Ties of whole numbers fall by the rule; ties of thirds by the last bit of every sum.
KINDS = ["random", "whole numbers", "thirds", "holes", "masks", "late speech", "real"]


@dataclass(frozen=True)
class Case:
    """A batch of B items; the first has L labels and as many frames as it needs at least, and `spare` more."""

    kind: str
    B: int
    L: int
    spare: int
    C: int = 20
    blank: int = 0
    dtype: torch.dtype = torch.float32
    distinct: int = 1000  # labels, if there are enough classes
    seed: int = SEED

    def arguments(self):
        """log_probs, targets, input_lengths, target_lengths, blank."""
        if self.kind == "real":
            return self.real_arguments()
        generator = torch.Generator().manual_seed(self.seed)

        def draw(low, high, *size):
            return torch.randint(low, high, size, generator=generator)

        B, L, C = self.B, self.L, self.C
        labels = torch.randperm(C - 1, generator=generator)[: self.distinct]
        labels += labels >= self.blank
        targets = labels[draw(0, len(labels), B, L)]
        T = shortest(targets[0]) + self.spare

        target_lengths = draw(0, L + 1, B)
        input_lengths = draw(T - T // 3, T + 1, B)
        input_lengths[:1], target_lengths[:1] = T, L

        if self.kind == "random":
            log_probs = torch.randn(B, T, C, generator=generator, dtype=torch.float64).log_softmax(-1)
        else:
            log_probs = draw(-3, 1, B, T, C).double() / (1 if self.kind == "whole numbers" else 3)
        if self.kind == "late speech":
            log_probs[:, : T // 2, torch.arange(C) != self.blank] -= 20
        if self.kind in ("holes", "masks"):
            # One path stays free. -inf and other things that count as -inf, or the lowest float16: it is finite.
            spoilt = torch.rand(B, T, C, generator=generator) < 0.5
            spoilt[..., self.blank] &= torch.rand(B, T, generator=generator) < 0.2
            for b in range(B):
                path = some_path(targets[b, : target_lengths[b]], int(input_lengths[b]), self.blank, draw)
                spoilt[b, torch.arange(len(path)), path] = False
            spoil = torch.tensor([-INF, INF, torch.nan, -INF] if self.kind == "holes" else [-65504.0])
            log_probs[spoilt] = spoil[draw(0, len(spoil), int(spoilt.sum()))].double()
        return log_probs.to(self.dtype), targets, input_lengths, target_lengths, self.blank

    def real_arguments(self):
        """The clip of English speech, over and over: at least L labels."""
        with np.load(Path(__file__).parent / "data" / "sense_and_sensibility_0870.npz") as clip:
            log_probs, targets = torch.from_numpy(clip["log_probs"]), torch.from_numpy(clip["targets"])
            blank = int(clip["blank"])
        times = -(-self.L // len(targets))
        lengths = [torch.full((self.B,), len(x) * times) for x in (log_probs, targets)]
        return (
            log_probs.to(self.dtype).repeat(self.B, times, 1),
            targets.repeat(self.B, times),
            lengths[0] - torch.arange(self.B),
            lengths[1] - torch.arange(self.B),
            blank,
        )


def shortest(target):
    """The fewest frames that spell a target."""
    return len(target) + int((target[1:] == target[:-1]).sum())


def some_path(target, frames, blank, draw):
    """Any path of a target in that number of frames, if it has one."""
    states = torch.full((2 * len(target) + 1,), blank)
    states[1::2] = target
    needed = torch.zeros(len(states), dtype=torch.int64)
    needed[1::2] = 1
    needed[2:-1:2] = (target[1:] == target[:-1]).long()
    spare = frames - int(needed.sum())
    if spare < 0:
        return states[:0]
    extra = torch.bincount(draw(0, len(states), spare), minlength=len(states))
    return states.repeat_interleave(needed + extra)


def expected(arguments, feasible=True):
    """What the reference says; a path for the first item at least."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # it makes many small steps, and waking threads for each takes longer
    found = reference.forced_align(*arguments)
    torch.set_num_threads(threads)
    assert not feasible or (found[0][:1] >= 0).all()
    return found


def sizes(labels, spare):
    return {
        "kind": st.sampled_from(KINDS[:-1]),
        "B": st.integers(1, 3),
        "L": labels,
        "spare": spare,
        "dtype": st.sampled_from(FLOATS),
        "seed": st.integers(0, 2**32),
    }


@st.composite
def cases(draw, labels, spare):
    """Any classes: few or many, one of them the blank, all or some of the others labels."""
    C = draw(st.sampled_from([2, 3, 31, 32, 33, 64, 300]) | st.integers(2, 70))
    return draw(
        st.builds(
            Case,
            C=st.just(C),
            blank=st.integers(0, C - 1),
            distinct=st.sampled_from([1, 2, 31, 32, 1000]),
            **sizes(labels, spare),
        )
    )


small_cases = cases(st.integers(0, 30), st.integers(0, 3) | st.integers(0, 60))
long_cases = cases(  # several columns of 256 pairs and several frame blocks
    st.sampled_from([0, 1, 254, 255, 256, 257, 511, 512, 513]) | st.integers(250, 900),
    st.sampled_from([0, 1, 2, 255, 256, 511, 512, 513]) | st.integers(300, 1300),
)


def examples(count):
    """Draws `count` examples, the same ones in every run with the same CTC_ALIGN_SEED."""

    def decorate(test):
        return hypothesis.seed(SEED)(hypothesis.settings(max_examples=count, deadline=None, database=None)(test))

    return decorate


# ------------------------------------------------------------------------------------------ any case, any way


def check_ways(case, some_ways):
    arguments = case.arguments()
    right = expected(arguments, feasible=case.L + case.spare > 0)
    for way in some_ways:
        assert_same(way.align(*arguments), right)


@hypothesis.given(case=small_cases, some_ways=st.lists(ways, min_size=4, max_size=4))
@examples(40)
def test_any_small_case_any_way(case, some_ways):
    check_ways(case, some_ways)


@hypothesis.given(case=long_cases, some_ways=st.lists(ways, min_size=12, max_size=12))
@examples(12)
def test_any_long_case_any_way(case, some_ways):
    check_ways(case, some_ways)


@pytest.mark.slow
@hypothesis.given(case=small_cases, some_ways=st.lists(ways, min_size=4, max_size=4))
@examples(150)
def test_many_small_cases_any_way(case, some_ways):
    check_ways(case, some_ways)


@pytest.mark.slow
@hypothesis.given(case=long_cases, some_ways=st.lists(ways, min_size=12, max_size=12))
@examples(60)
def test_many_long_cases_any_way(case, some_ways):
    check_ways(case, some_ways)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_on_every_memory_level(kind, dtype):
    """Two items of four columns and three frame blocks: every instruction set on every memory level, the rest drawn."""
    arguments = Case(kind, B=2, L=800, spare=500, C=20, blank=7, dtype=dtype).arguments()
    right = expected(arguments)
    draw = random.Random(SEED)
    for cpu, cuts in itertools.product(CPUS, 2 * [*CUTS, None]):
        way = Way(cpu, cuts, draw.choice(BUDGETS), draw.choice(STRIPS), draw.choice(GROUPS), draw.choice(THREADS))
        assert_same(way.align(*arguments), right)


# ------------------------------------------------------------------------------------------ one item, many threads

# An item is worth more than one thread from some 4 million cells on, and a thread from 4 columns of the band on
# average (schedule.h).
LONG = {
    "wide": Case("thirds", B=1, L=4000, spare=3000),
    "tall": Case("thirds", B=1, L=1900, spare=7000),
    "dense": Case("whole numbers", B=1, L=4500, spare=1700, C=40),  # a narrow band that climbs all of the way
    "many classes": Case("holes", B=1, L=2500, spare=3000, C=700),
    "masks": Case("masks", B=1, L=2500, spare=3000, C=50, dtype=torch.float16),
    "float64": Case("thirds", B=1, L=2500, spare=3000, C=30, dtype=torch.float64),
    "real": Case("real", B=1, L=2500, spare=0),
}
LONG_AND_SLOW = {"tall", "many classes", "masks"}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=[pytest.mark.slow] * (name in LONG_AND_SLOW)) for name, case in LONG.items()],
)
def test_threads_over_one_item(case):
    """Short strips and one column after the other keep a thread close behind the one before.

    Pieces of 3000 frames leave cones that are worth more than one thread themselves.
    """
    arguments = case.arguments()
    right = expected(arguments)
    draw = random.Random(SEED)
    for cpu, cuts, threads in itertools.product(CPUS, [(), (3000,), (1000, 40), None], [2, 8]):
        way = Way(cpu, cuts, draw.choice(BUDGETS), draw.choice(STRIPS), draw.choice(GROUPS), threads)
        assert_same(way.align(*arguments), right)
    for cpu, strip_frames in itertools.product(CPUS, [3, 64]):
        assert_same(Way(cpu, (3000,), None, strip_frames, 1, 4).align(*arguments), right)


def test_long_and_short_items_in_one_batch():
    """The long ones get all threads, one item after the other; then the short ones get a thread each."""
    log_probs, targets, *_ = Case("thirds", B=6, L=2300, spare=3000).arguments()
    T, L = log_probs.shape[1], targets.shape[1]
    lengths = torch.tensor([T, 9, T - 1, 700, 0, 1500]), torch.tensor([L, 3, L - 1, 300, 0, 700])
    right = expected((log_probs, targets, *lengths))
    for cpu, threads in itertools.product(CPUS, THREADS):
        assert_same(Way(cpu, None, threads=threads).align(log_probs, targets, *lengths), right)
        assert_same(Way(cpu, None, 300_000, 64, 1, threads).align(log_probs, targets, *lengths), right)


# ------------------------------------------------------------------------------------- emissions and how they lie

# Up to 32 classes are looked up in registers, more in a panel (sweep.h). Classes that the target does not use are not
# counted: 31 labels out of 5000 and the blank are few.
CLASSES = [(2, 1), (31, 30), (32, 31), (33, 32), (64, 63), (5000, 1), (5000, 31), (5000, 32), (5000, 4999)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("C, distinct", CLASSES)
def test_any_number_of_classes_and_any_of_them_the_blank(C, distinct, dtype):
    for blank in {0, C // 2, C - 1}:
        case = Case("thirds", B=2, L=70, spare=40, C=C, blank=blank, dtype=dtype, distinct=distinct)
        arguments = case.arguments()
        right = expected(arguments)
        for cpu, cuts, strip_frames in itertools.product(CPUS, [(), (13,)], [0, 5]):
            assert_same(Way(cpu, cuts, strip_frames=strip_frames).align(*arguments), right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_thousands_of_labels_that_are_all_different(dtype):
    """Their panel has room for a few frames only."""
    generator = torch.Generator().manual_seed(SEED)
    targets = 1 + torch.randperm(4000, generator=generator)[None, :2500]
    log_probs = (torch.randint(-3, 1, (1, 2900, 4001), generator=generator) / 3).to(dtype)
    right = expected((log_probs, targets))
    for cpu, cuts, threads in itertools.product(CPUS, [(), (97,)], [1, 2]):
        assert_same(Way(cpu, cuts, threads=threads).align(log_probs, targets), right)


@pytest.mark.parametrize("C, distinct", [(31, 30), (32, 31), (33, 32), (64, 63), (300, 20)])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_any_layout_on_any_way(layout, C, distinct):
    for dtype in FLOATS:
        case = Case("thirds", B=2, L=270, spare=300, C=C, blank=3, dtype=dtype, distinct=distinct)
        log_probs, *rest = case.arguments()
        view = layout(log_probs)
        assert view.stride() != log_probs.stride()
        right = PLAIN.align(log_probs, *rest)
        assert (right[0][0] >= 0).all()
        for cpu, cuts in itertools.product(CPUS, [(), (101,)]):
            assert_same(Way(cpu, cuts).align(view, *rest), right)


def make_decisions(blanks, labels, frames, others):
    """log_probs (N, T, C), targets (N, L) and N frames, at which an entry for the blank stands against one for a label.

    Before that frame the path is held in the blank, after it in the label: the label begins there, or one frame later
    if the blank's entry is larger. `others` is a number of labels to begin with, which take a frame each.
    """
    N, last = len(blanks), others + 1
    log_probs = torch.full((N, others + frames + 2, last + 1), -INF, dtype=blanks.dtype)
    log_probs[:, range(others), range(1, last)] = 0
    t, at = torch.arange(log_probs.shape[1]), others + 1 + torch.arange(N)[:, None] % frames
    log_probs[..., 0][(t >= others) & (t < at)] = 0
    log_probs[..., last][t > at] = 0
    log_probs[..., 0][t == at], log_probs[..., last][t == at] = blanks, labels
    return log_probs, torch.arange(1, last + 1).expand(N, -1), t == at


@pytest.mark.parametrize("others", [0, pytest.param(33, marks=pytest.mark.slow)], ids=["few classes", "many classes"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_bit_pattern_of_the_half_types(dtype, others):
    """Each of the 65536 against the next larger, the next smaller and itself, at any place of a vector of frames."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    values = patterns.double()
    values[values.isnan() | (values >= 2.0**100)] = -INF
    values, order = values.sort()
    patterns = patterns[order]
    for neighbour, part in itertools.product((-1, 0, 1), torch.arange(2**16).split(2**13)):
        rival = (part + neighbour) % 2**16
        log_probs, targets, at = make_decisions(patterns[part], patterns[rival], 16, others)
        blank, label = values[part], values[rival]
        path = torch.where(blank > label, 0, others + 1).where(blank.maximum(label) > -INF, -1)
        score = torch.where(blank > label, patterns[part], patterns[rival]).where(path >= 0, -INF)

        few = slice(None, None, 499)
        paths, scores = expected((log_probs[few], targets[few]), feasible=False)
        assert torch.equal(paths[at[few]], path[few])
        for cpu in CPUS:
            found = Way(cpu).align(log_probs, targets)
            assert torch.equal(found[0][at], path)
            assert torch.equal(found[1][at].view(torch.int16), score.view(torch.int16))
            assert_same([x[few] for x in found], (paths, scores))
