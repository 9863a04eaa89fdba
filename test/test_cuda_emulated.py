"""The CUDA kernels without a GPU: their text, run by the emulator, gives the bits of the CPU operator.

``harness/emulated.py`` says what *conditions* are, and how to ask for more of them. The longest cases, and those that
repeat others under more conditions, are marked slow.
"""

import ctypes
import itertools
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SEED
from harness.emulated import (
    AS_CHOSEN,
    CUTS,
    HALVES,
    MORE,
    REALS,
    Conditions,
    Emulated,
    LaunchArguments,
    PlanArguments,
    draw_conditions,
    mostly_slow,
    start_under_address_sanitizer,
    without_repeats,
)
from test_agreement import LAYOUTS

import torch_ctc_align
from torch_ctc_align import reference

INF = torch.inf
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
FEW_CLASSES, MANY_CLASSES = 20, 40  # whole rows of up to 32 classes are shared; of more, each pair's own label
forced_align = torch.ops.ctc_align.forced_align


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    return Emulated(tmp_path_factory)


@pytest.fixture(
    params=[["kPairsPerThread"], pytest.param([1, 4], marks=pytest.mark.slow)], ids=["pairs", "other-pairs"]
)
def pairs(request):
    """Pairs a thread, to draw from: as in the library, or others."""
    return request.param


@pytest.fixture
def draw(request):
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def drawn(draw, pairs):
    """drawn(n): n conditions, at random."""
    return lambda n=1: [draw_conditions(draw, draw.choice(pairs)) for _ in range(n * MORE)]


def assert_equal(found, expected, given):
    assert torch.equal(found[0], expected[0]), given
    assert torch.equal(found[1], expected[1]), given


@pytest.fixture
def assert_agrees(emulated, drawn):
    """assert_agrees(case, blank) holds under two conditions drawn at random, or another number, or those given."""

    def check(case, blank=0, conditions=2, expected=None):
        expected = expected or forced_align(*case, blank=blank)
        for given in drawn(conditions) if isinstance(conditions, int) else conditions:
            assert_equal(emulated(*case, blank=blank, conditions=given), expected, given)

    return check


# ------------------------------------------------------------------------------------------------- equal results


KINDS = list(itertools.product(REALS, [FEW_CLASSES, MANY_CLASSES]))
FRAMES = [0, 1, 2, 3, 15, 16, 17, 18, 33, 127, 128, 129, 130, 257, 511, 512, 513, 514, 515, 641, 1024, 1025, 1026]
LABELS = [254, 255, 256, 257, 511, 512, 513, 600, 700]


@pytest.mark.parametrize("T", mostly_slow(FRAMES, [0, 1, 2, 17, 130, 514, 1026]))
def test_any_number_of_frames(random_case, generator, assert_agrees, T):
    """With no label, one, some, as many as frames, and one too many; and items that are shorter than the batch."""
    kinds = KINDS if T < 300 else KINDS[T % 2 :: 2]
    some = [0, 1, T // 3, T, T + 1]
    most = max(min(T + 1, 260), 1)
    for i, (dtype, C) in enumerate(kinds):
        log_probs, targets = random_case(7, T, most, C, dtype=dtype, steps=[None, 1, 3][(T + i) % 3])
        targets[:5] = without_repeats(targets, C)[:5]
        input_lengths = torch.cat([torch.full((5,), T), torch.randint(0, T + 1, (2,), generator=generator)])
        target_lengths = torch.tensor([min(n, most) for n in [*some, T // 2, T // 4]])
        assert_agrees((log_probs, targets, input_lengths, target_lengths), conditions=2 if T < 300 else 1)


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("L", mostly_slow(LABELS, [255, 256, 600]))
def test_any_number_of_columns(random_case, assert_agrees, L, steps):
    """Over two rebases. The others' bits depend on the item alone, whatever columns the longest one has."""
    for dtype, C in [KINDS[L % len(KINDS)], KINDS[(L + 1) % len(KINDS)]]:
        case = random_case(2, 1200, L, C, steps=steps, dtype=dtype)
        assert_agrees((*case, torch.tensor([1200, 1100]), torch.tensor([L, min(L - 1, 300)])), conditions=1)


@pytest.mark.parametrize("spare", mostly_slow([0, 1, 2, 127, 255, 256, 257], [0, 255]))
def test_dense_speech(random_case, assert_agrees, spare):
    """T = L + R + spare: columns leave the band early, and the path's segments touch up to 129 pairs."""
    for dtype, C in KINDS:
        log_probs, targets = random_case(1, 1300, 700, C, steps=3, dtype=dtype)
        repeats = int((targets[0, 1:] == targets[0, :-1]).sum())
        assert_agrees((log_probs[:, : 700 + repeats + spare], targets), conditions=1)
        if spare == 0:
            assert_agrees((log_probs[:, : 700 + repeats - 1], targets))  # marked
            assert_agrees((log_probs[:, : 700 + spare], without_repeats(targets, C)))


def test_no_frame_to_spare(random_case, assert_agrees):
    """The band is so narrow that a label one frame less at its begin or end changes paths."""
    for dtype in REALS:
        log_probs, targets = random_case(24, 130, 128, MANY_CLASSES, steps=3, dtype=dtype)
        assert_agrees((log_probs, without_repeats(targets, MANY_CLASSES)), conditions=1)


@pytest.mark.parametrize("T", [4097, 4098])
def test_one_column_with_many_rows(random_case, assert_agrees, T):
    """Each warp of the trace goes back to its own row, or there is a hop."""
    for dtype, C in KINDS[T % 2 :: 2]:
        assert_agrees((*random_case(1, T, 100, C, steps=3, dtype=dtype), torch.tensor([T]), None), conditions=1)


def test_nothing_but_repeats(random_case, assert_agrees):
    log_probs, _ = random_case(1, 640, 300, 5, steps=3, dtype=torch.float32)
    for T in (640, 600, 599, 598):
        assert_agrees((log_probs[:, :T], torch.full((1, 300), 3)))


@pytest.mark.slow
def test_long_items_beside_short_ones(random_case, generator, assert_agrees):
    """Six blocks of frames, four columns."""
    T, L = 2600, 800
    for dtype, C in KINDS:
        log_probs, targets = random_case(3, T, L, C, steps=3, dtype=dtype)
        lengths = torch.tensor([T, 1, 1700]), torch.tensor([L, 1, 500])
        assert_agrees((log_probs, targets, *lengths))


@pytest.mark.parametrize("cut", mostly_slow(CUTS, CUTS[::3]), ids=str)
def test_any_cut_into_passes_and_tasks(random_case, assert_agrees, draw, pairs, cut):
    """Four blocks of frames and three columns: tasks of one block make rings of every size turn."""
    log_probs, targets = random_case(2, 1700, 520, 6, steps=3)
    case = log_probs, targets, torch.tensor([1700, 700]), torch.tensor([520, 100])
    orders = [draw.choice([(1, 0, 0), (5, 1, 0)])]
    orders += [(draw.choice([2, 3, 5]), 2, draw.randrange(2**32)) for _ in range(MORE)]
    assert_agrees(case, conditions=[Conditions(draw.choice(pairs), cut, *order) for order in orders])


def test_one_ticket_for_every_task_and_none_waits_for_a_later_one(emulated):
    library = emulated.library()
    shapes = [(1, 50_000, 25_000), (1, 178_572, 40_931), (256, 1500, 200), (64, 13_000, 2600), (1, 1_800_000, 540_000)]
    plans = [PlanArguments(*shape, *AS_CHOSEN) for shape in shapes]
    plans += [PlanArguments(3, 3000, 1500, *cut) for cut in CUTS]
    for plan in plans:
        error = library.emulated_tickets(ctypes.byref(plan))
        assert error is None, error
    illegal = PlanArguments(3, 3000, 1500, 0, 0, 1, 1, 1)
    assert library.emulated_tickets(ctypes.byref(illegal)).startswith(b"waits for a later ticket")


def test_plans_use_little_memory(emulated):
    """Edges are kept for the whole sweep while that is little; else for as many tasks as the skew allows to run."""
    for shape in [(1, 1500, 200), (64, 1500, 200), (1, 50_000, 25_000), (256, 20_000, 3000), (1, 1_800_000, 540_000)]:
        plan = PlanArguments(*shape, *AS_CHOSEN)
        emulated.library().emulated_plan(ctypes.byref(plan))
        columns = shape[0] * (shape[2] // 256 + 1)
        assert columns * plan.ring_tasks * plan.task_frame_blocks * 528 * 8 <= 2**26 or plan.task_frame_blocks == 1


@pytest.mark.parametrize(
    "shape, megabytes",
    [
        ((64, 1500, 200), 3),
        ((1, 50_000, 25_000), 160),
        ((1, 178_572, 40_931), 760),
        ((256, 178_572, 200), 1110),  # one column: no cut helps
        ((256, 16_000, 4000), 520),  # 1,570 in one pass
        ((128, 20_000, 6000), 430),
        ((1, 1_800_000, 540_000), 900),
    ],
)
def test_memory_of_the_workspace(emulated, shape, megabytes):
    """float32; an hour in one pass, ten hours in three."""
    plan = PlanArguments(*shape, *AS_CHOSEN)
    assert emulated.library().emulated_plan(ctypes.byref(plan)) < megabytes * 1e6


SWEEP, HOP, REGION_HOP, TRACE = range(4)  # as Kernel in plan.h


@pytest.mark.parametrize(
    "shape, classes, expected",
    [
        ((64, 1500, 200), 32, [(SWEEP, 0, 64, 256, 1), (TRACE, 0, 64 * 12, 32, 0)]),
        ((64, 1500, 200), 33, [(SWEEP, 0, 64, 256, 0), (TRACE, 0, 64 * 12, 32, 0)]),
        ((3, 1, 1), 5, [(TRACE, 0, 3, 32, 0)]),
        ((2, 4097, 100), 5, [(SWEEP, 0, 2, 256, 1), (TRACE, 0, 64, 32, 0)]),
        ((2, 4098, 100), 5, [(SWEEP, 0, 2, 256, 1), (HOP, 0, 2, 256, 0), (TRACE, 0, 66, 32, 0)]),
        ((1, 30_000, 7000), 5, [(SWEEP, 0, 28, 256, 1), (HOP, 0, 1, 256, 0), (TRACE, 0, 235, 32, 0)]),
    ],
    ids=str,
)
def test_list_of_launches(emulated, shape, classes, expected):
    """Kernel, pass, blocks of threads, threads, and whether emissions are shared as whole rows."""
    assert [launch[:5] for launch in launches_of(emulated, shape, classes)] == expected


def test_list_of_launches_for_ten_hours(emulated):
    launches = launches_of(emulated, (1, 1_800_000, 540_000), 32)
    kernels = [SWEEP, HOP, SWEEP, REGION_HOP, SWEEP, REGION_HOP, TRACE]
    assert [launch[:2] for launch in launches] == [*zip(kernels, [0, 0, 1, 1, 2, 2, 2], strict=True)]
    assert [launch[2] for launch in launches[3::2]] == [59, 879]  # regions of 60 and of 4 frame blocks, of 3,516


@pytest.mark.parametrize("processors, asks", [(28, False), (27, True), (18, True), (17, False)])
def test_shared_memory_that_keeps_blocks_apart(emulated, processors, asks):
    """28 columns, on a few multiprocessors less: more than half of the shared memory of one."""
    launches = launches_of(emulated, (1, 30_000, 7000), 32, processors, 100_000)
    assert [launch[5] for launch in launches] == [51_024 * asks, 0, 0]
    assert [launch[5] for launch in launches_of(emulated, (28, 1500, 200), 32, processors, 100_000)] == [0, 0]


def launches_of(emulated, shape, classes, processors=0, shared_bytes=0):
    found = (LaunchArguments * 7)()
    plan = PlanArguments(*shape, *AS_CHOSEN)
    count = emulated.library().emulated_launches(ctypes.addressof(plan), classes, processors, shared_bytes, found)
    return [tuple(getattr(launch, name) for name, _ in launch._fields_) for launch in found[:count]]


# The rebase. The cases are those that test_agreement.py aims at one clause each.


@pytest.mark.parametrize("dear", ["nothing", "blank", "labels"])
def test_who_has_a_say_in_a_rebase(random_case, assert_agrees, dear):
    log_probs, targets = random_case(2, 1100, 700, 33, steps=3, dtype=torch.float32)
    if dear != "nothing":
        log_probs[..., slice(1) if dear == "blank" else slice(1, None)] -= 10 / 3
    assert_agrees((log_probs, without_repeats(targets, 33), torch.tensor([1100, 800]), None))


@pytest.mark.parametrize("level", mostly_slow([-2000.0, 50.0, -65504.0], [-65504.0]))
def test_far_from_zero(random_case, assert_agrees, level):
    log_probs, targets = random_case(1, 1700, 520, 20, steps=3, dtype=torch.float32)
    assert_agrees((log_probs + level, targets))
    log_probs[torch.rand(log_probs.shape) < 0.3] = level  # some only: a mask
    assert_agrees((log_probs, targets))


@pytest.mark.parametrize("steady", [0.0, -4e35])
def test_bases_below_the_range_of_float32(assert_agrees, steady):
    log_probs = torch.full((1, 1341, 3), steady)
    if steady == 0:
        log_probs[:, 100] = log_probs[:, 700] = -2e38
    assert_agrees((log_probs, torch.arange(1281)[None] % 2 + 1))


def test_a_column_that_dies_far_above_its_neighbour(assert_agrees):
    log_probs = torch.zeros(1, 1600, 5)
    log_probs[:, 300, [0, 1, 3]] = log_probs[:, 800, [1, 3]] = -1.8e38
    log_probs[:, 800, [0, 2, 4]] = -INF
    assert_agrees((log_probs, torch.tensor([[1, 3] * 128 + [2, 4] * 22])))


def test_columns_that_speech_reaches_late(random_case, assert_agrees):
    for C in (FEW_CLASSES, MANY_CLASSES):
        log_probs, targets = random_case(1, 2200, 600, C, steps=3, dtype=torch.float32)
        log_probs[:, :1100, 1:] -= 20
        assert_agrees((log_probs, targets))
        log_probs[:, :1100, 1:] = -INF
        assert_agrees((log_probs, targets))


@pytest.mark.parametrize("kinds", [[-INF], [INF], [torch.nan], [2.0**100], [-INF, INF, torch.nan, 2.0**100]], ids=str)
def test_emissions_that_are_none(random_case, generator, assert_agrees, kinds):
    """Holes beside one path that is certainly open; then everywhere; then one wall."""
    T, L = 700, 270
    for dtype, C in KINDS:
        log_probs, targets = random_case(2, T, L, C, steps=3, dtype=dtype)
        is_open, _ = forced_align(log_probs, targets)
        holes = torch.rand(log_probs.shape, generator=generator) < 0.4
        log_probs[1, 600] = kinds[0]
        holes.scatter_(2, is_open[..., None], False)
        log_probs[holes] = torch.tensor(kinds, dtype=dtype)[torch.arange(int(holes.sum())) % len(kinds)]
        expected = forced_align(log_probs, targets)
        assert (expected[0][0] >= 0).all()
        assert (expected[0][1] == -1).all()
        assert_agrees((log_probs, targets), expected=expected)
    assert_agrees((torch.full((1, 140, 5), kinds[0]), torch.ones(1, 3, dtype=torch.int64)))


@pytest.mark.parametrize("level", [0.0, -1.0, -3e38])
def test_all_alike(assert_agrees, level):
    """Every comparison is a tie; and sums that leave the range of float32."""
    for C in (3, MANY_CLASSES):
        assert_agrees((torch.full((2, 600, C), level), torch.arange(2 * 300).reshape(2, 300) % (C - 1) + 1))


@pytest.mark.parametrize("C, blank", [(2, 0), (2, 1), (31, 30), (32, 17), (33, 32), (128, 5), (1000, 999)])
def test_any_class_as_blank(random_case, assert_agrees, C, blank):
    for dtype in REALS:
        case = random_case(2, 140, 40, C, blank=blank, steps=3, dtype=dtype)
        assert_agrees((*case, torch.tensor([140, 120]), None), blank)


def test_one_class(assert_agrees):
    assert_agrees((torch.full((1, 300, 1), -1.0), torch.zeros(1, 3, dtype=torch.int64), None, torch.tensor([0])))
    assert_agrees((torch.full((1, 300, 1), -1.0), torch.zeros(1, 0, dtype=torch.int64)))


@pytest.mark.parametrize("C", [FEW_CLASSES, MANY_CLASSES])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_types(random_case, generator, assert_agrees, dtype, C):
    """Stored in two bytes, summed in float32: holes, subnormal numbers, two rebases, lengths, no path."""
    for steps in (None, 3):
        log_probs, targets = random_case(4, 1100, 300, C, steps=steps, dtype=dtype)
        holes = torch.rand(log_probs.shape, generator=generator)
        for i, value in enumerate((-INF, INF, torch.nan, -torch.finfo(dtype).smallest_normal / 2, 0.0)):
            log_probs[0][(holes[0] * 100).int() == i] = value
        log_probs[3, 900] = -INF
        case = log_probs, targets, torch.tensor([1100, 513, 290, 1100]), torch.tensor([300, 257, 1, 300])
        paths, scores = forced_align(*case)
        assert (paths[0] >= 0).all()
        assert (scores[3] == -INF).all()
        assert (scores[1, 513:] == 0).all()
        assert_agrees(case, expected=(paths, scores))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_types_of_few_frames(random_case, assert_agrees, dtype):
    for C, T in itertools.product([FEW_CLASSES, MANY_CLASSES], [1, 2, 17, 130]):
        log_probs, targets = random_case(3, T, 20, C, dtype=dtype)
        assert_agrees((log_probs, targets, torch.tensor([T, T - 1, 0]), torch.tensor([min(T // 3, 20), 1, 0])))


def test_small_batches_agree_with_the_reference(random_case, generator, emulated, draw, drawn, threads):
    threads(1)
    for _ in range(30 * MORE):
        B, T, L, C = (
            int(torch.randint(low, high, (), generator=generator)) for low, high in [(1, 5), (1, 300), (0, 60), (2, 50)]
        )
        blank = int(torch.randint(0, C, (), generator=generator))
        case = random_case(B, T, L, C, blank=blank, steps=3, dtype=draw.choice(list(REALS)))
        input_lengths = torch.randint(0, T + 1, (B,), generator=generator)
        target_lengths = torch.randint(0, L + 1, (B,), generator=generator)
        case = (*case, input_lengths, target_lengths, blank)
        given = drawn()[0]
        assert_equal(emulated(*case, conditions=given), reference.forced_align(*case), given)


def test_long_items_agree_with_the_reference(random_case, emulated, threads):
    threads(1)
    for dtype in REALS:
        case = random_case(1, 1100, 600, 12, steps=3, dtype=dtype)
        assert_equal(emulated(*case), reference.forced_align(*case), None)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_any_layout(random_case, assert_agrees, layout):
    for dtype, C in KINDS:
        log_probs, targets = random_case(3, 140, 20, C, dtype=dtype)
        targets = torch.stack([targets, -targets], -1)[..., 0]
        lengths = torch.tensor([[140, 20], [129, 8], [100, 0]])  # with stride 2
        assert_agrees((layout(log_probs), targets, lengths[:, 0], lengths[:, 1]))
        assert_agrees((layout(log_probs), targets.t().contiguous().t(), None, lengths[:, 1]))


def test_either_integer_type(random_case, assert_agrees):
    log_probs, targets = random_case(3, 60, 20, 9)
    lengths = torch.tensor([60, 50, 55]), torch.tensor([20, 7, 0])
    for types in itertools.product([torch.int32, torch.int64], repeat=3):
        assert_agrees((log_probs, *(x.to(dtype) for x, dtype in zip((targets, *lengths), types, strict=True))))


def test_many_items(random_case, generator, assert_agrees):
    """From nothing to everything."""
    B, T, L = 150, 50, 24
    case = random_case(B, T, L, 12, steps=3)
    lengths = torch.arange(B) % (T + 1), torch.arange(B) * 7 % (L + 1)
    assert_agrees((*case, *lengths))
    assert_agrees((*case, *lengths), conditions=[Conditions(schedule=2)])


# ------------------------------------------------------------------------------------------------------ bad input

# Integers that are neither a length nor a class here.
BAD = [INT64_MIN, -(2**32) + 1, -(2**31), -1, 1100, 2**31 - 1, 2**32 + 1, INT64_MAX]


@pytest.mark.parametrize("bad", mostly_slow([*BAD, "blank"], [INT64_MIN, -1, "blank"]), ids=str)
def test_bad_values_mark_their_items_alone(random_case, emulated, draw, drawn, bad):
    """Labels and lengths out of their ranges: nothing is read there, and the neighbours do not notice."""
    T, L = 530, 270
    for dtype, C in draw.sample(KINDS, 2):
        log_probs, targets = random_case(9, T, L, C, dtype=dtype)
        input_lengths, target_lengths = torch.full((9,), T), torch.full((9,), L)
        input_lengths[8], target_lengths[8] = 500, 200
        expected = forced_align(log_probs, targets, input_lengths, target_lengths)
        value = 0 if bad == "blank" else bad
        for b, k in ((1, 0), (2, 255), (3, 256), (4, L - 1)):
            targets[b, k] = value
        marked = [1, 2, 3, 4]
        targets[8, 200:] = value  # padding: not bad at all
        if bad != "blank":
            input_lengths[5] = target_lengths[6] = value
            input_lengths[7], target_lengths[7] = value, ~value
            marked += [5, 6, 7]
        expected[0][marked], expected[1][marked] = -1, -INF
        case = log_probs, targets, input_lengths, target_lengths
        given = drawn()[0]
        assert_equal(emulated(*case, conditions=given), expected, given)
        if -(2**31) <= value < 2**31 and ~value < 2**31:
            narrow = emulated(log_probs, *(x.int() for x in case[1:]), conditions=given)
            assert_equal(narrow, (expected[0].int(), expected[1]), given)


@pytest.mark.parametrize("T", [0, 1, 2, 130])
def test_bad_values_in_short_items(emulated, drawn, T):
    """One frame is aligned without a sweep, none without anything."""
    for value, C in itertools.product([*BAD, 0], [3, 40]):
        targets = torch.tensor([[1], [value], [1], [1], [value], [value]])
        lengths = torch.tensor([T, T, value or -1, T, value or -1, T]), torch.tensor([1, 1, 1, value or -1, value, 0])
        given = drawn()[0]
        paths, scores = emulated(torch.zeros(6, T, C), targets, *lengths, conditions=given)
        assert (paths[1:5] == -1).all(), given
        assert (scores[1:5] == -INF).all(), given
        assert (paths[[0]] == 1).all(), given
        assert (paths[[5]] == 0).all(), given
        assert (scores[[0, 5]] == 0).all(), given


def test_bad_values_everywhere(generator, emulated, draw, drawn):
    """Noise in place of every argument: the emulator runs to its end."""
    for _ in range(20 * MORE):
        B, T, L, C = (draw.choice(sizes) for sizes in ([1, 3], [1, 130, 600], [0, 1, 300], [1, 2, 40]))
        some = torch.tensor([*BAD, 0, 0, 1, 1, 2, L, T])
        targets, input_lengths, target_lengths = (
            some[torch.randint(0, len(some), shape, generator=generator)] for shape in [(B, L), (B,), (B,)]
        )
        log_probs = torch.randint(-(2**31), 2**31, (B, T, C), generator=generator).int().view(torch.float32)
        paths, scores = emulated(log_probs, targets, input_lengths, target_lengths, conditions=drawn()[0])
        assert ((paths >= -1) & (paths < C)).all()
        assert ((paths == -1) == (scores == -INF)).all()


def test_padding_is_never_read(random_case, generator, emulated, drawn):
    B, T, L = 5, 560, 270
    for dtype, C in KINDS:
        log_probs, targets = random_case(B, T, L, C, dtype=dtype)
        input_lengths = torch.randint(0, T + 1, (B,), generator=generator)
        target_lengths = torch.randint(0, L + 1, (B,), generator=generator)
        expected = forced_align(log_probs, targets, input_lengths, target_lengths)
        log_probs[torch.arange(T) >= input_lengths[:, None]] = torch.nan
        targets[torch.arange(L) >= target_lengths[:, None]] = INT64_MAX
        for given in drawn(2):
            assert_equal(emulated(log_probs, targets, input_lengths, target_lengths, conditions=given), expected, given)


def test_replay_with_other_contents_and_lengths(random_case, emulated, drawn):
    """As a CUDA graph does it: the workspace still holds what the call before has left there."""
    T, L, C = 1100, 300, 12
    for given in drawn(2):
        for i, (frames, labels) in enumerate([(T, L), (700, 290), (290, 300), (1, 1), (0, 0), (1050, 10), (T, L)]):
            log_probs, targets = random_case(2, T, L, C, steps=3)
            lengths = torch.tensor([frames, T]), torch.tensor([labels, 200])
            expected = forced_align(log_probs, targets, *lengths)
            if i % 3 == 1:
                targets[1, 100] = C
                expected[0][1], expected[1][1] = -1, -INF
            assert_equal(emulated(log_probs, targets, *lengths, conditions=given, replay=i > 0), expected, given)


def message_of(function, *arguments):
    with pytest.raises(ValueError) as caught:
        function(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"input_lengths": (1, 21)},
        {"input_lengths": (2, -1)},
        {"target_lengths": (2, 7)},
        {"target_lengths": (0, INT64_MIN)},
        {"input_lengths": (3, INT64_MAX), "target_lengths": (1, -5)},
        {"targets": ((1, 2), 5)},
        {"targets": ((2, 5), -1)},
        {"targets": ((3, 0), 0)},
        {"targets": ((2, 1), INT64_MAX), "target_lengths": (3, 8)},
        {"input_lengths": (3, 1), "targets": ((3, 5), 5)},  # item 0 is too short as well
    ],
    ids=str,
)
@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
def test_function_says_of_marked_items_what_it_says_on_the_cpu(random_case, emulated, change, integer):
    """On CUDA bad values are marked at first; the strict function then names the one that it names on the CPU."""
    arguments = dict(zip(["log_probs", "targets"], random_case(4, 20, 6, 5), strict=True))
    arguments |= {"input_lengths": torch.tensor([1, 20, 19, 20]), "target_lengths": torch.tensor([6, 5, 6, 6])}
    for name, (place, value) in change.items():
        arguments[name][place] = value if integer == torch.int64 else max(min(value, 2**31 - 1), -(2**31))
    log_probs, *others = [x if x.is_floating_point() else x.to(integer) for x in arguments.values()]
    paths, _ = emulated(log_probs, *others)
    assert (paths[:, 0] < 0).any()
    said = message_of(torch_ctc_align.functional._raise_for_marked_items, paths, log_probs, *others, 0, None)
    assert said == message_of(torch_ctc_align.forced_align, log_probs, *others)


def test_function_says_it_of_batches_without_frames():
    log_probs = torch.zeros(2, 0, 3)
    for lengths in (([0, 1], [0, 0]), ([0, 0], [0, -1]), ([0, 0], [0, 3])):
        others = torch.ones(2, 2, dtype=torch.int64), *map(torch.tensor, lengths)
        said = message_of(
            torch_ctc_align.functional._raise_for_marked_items, torch.zeros(2, 0), log_probs, *others, 0, None
        )
        assert said == message_of(torch_ctc_align.forced_align, log_probs, *others)


WITHOUT_LIBRARY = """
import torch
torch.version.cuda = "13.0"
import torch_ctc_align

print(torch_ctc_align.__file__)
log_probs, targets, grad = torch.zeros(1, 2, 3), torch.ones(1, 1).long(), torch.zeros(1, 2, 2)
calls = dict.fromkeys(("forced_align", "posteriors", "class_posteriors"), (log_probs, targets))
calls["occupancies"] = log_probs, targets, None, None, 0, torch.zeros(1, 2)
calls |= {"posteriors_backward": (grad, log_probs, targets), "span_posteriors": (log_probs, *[targets] * 3)}
print(torch.ops.ctc_align.forced_align(log_probs, targets)[0].tolist())
for name, arguments in calls.items():
    operator = getattr(torch.ops.ctc_align, name).default
    operator(*arguments)
    try:
        operator.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *arguments)
    except NotImplementedError as error:
        print(error)
"""
OPERATORS = "forced_align", "posteriors", "class_posteriors", "occupancies", "posteriors_backward", "span_posteriors"


def test_without_the_cuda_library_cuda_tensors_are_refused_in_one_sentence(tmp_path):
    """Where torch has CUDA and the library has not been built. CPU tensors are aligned as ever."""
    package = Path(torch_ctc_align.__file__).parent
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("_C_cuda*", "__pycache__"))
    command = [sys.executable, "-c", WITHOUT_LIBRARY]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""})
    assert result.returncode == 0, result.stderr
    place, paths, *errors = result.stdout.splitlines()
    assert Path(place).is_relative_to(tmp_path)
    assert paths == "[[1, 1]]"
    assert errors == [
        f"{name}: this installation of torch_ctc_align has no CUDA library; move the tensors to the CPU, or install "
        "from source where nvcc is: CTC_ALIGN_CUDA=1 pip install --no-build-isolation --force-reinstall --no-deps ."
        for name in OPERATORS
    ]


# ---------------------------------------------------------------------------------------------- AddressSanitizer


@pytest.fixture(scope="module", autouse=True)
def sanitized(request):
    """A run under AddressSanitizer: a process beside the other tests, if the last of them is to run, too."""
    wanted = any(item.name == "test_under_address_sanitizer" for item in request.session.items)
    cases = "frames[pairs-1] or frames[pairs-130] or frames[pairs-514] or bad_values or padding or replay or any_layout"
    cases += " or half_types_of_few_frames or frames[1] or any_class_as_blank[32-17]"
    files = [__file__, str(Path(__file__).with_name("test_cuda_stars.py"))]
    process = start_under_address_sanitizer(files, cases) if wanted else None
    yield process
    if process is not None:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_under_address_sanitizer(sanitized, missing):
    """Bad input, padding, replay and a few sizes: no access leaves its tensor or its part of the workspace."""
    if sanitized is None:
        missing("asan", "the compiler has no AddressSanitizer, or this is the run under it")
    said, _ = sanitized.communicate(timeout=600)
    assert sanitized.returncode == 0, said
