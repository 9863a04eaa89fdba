"""The CUDA kernels without a GPU: their text, run by the emulator, gives the bits of the CPU operator.

``csrc/emulated_align.cpp`` is compiled here and called through ctypes. What the kernels' results must not depend on is
called a *launch*: pairs a thread, how a batch is cut into tasks, how many blocks of threads are resident, and the order
in which they run. Each case runs under several launches, drawn at random.

CTC_ALIGN_LAUNCHES=20    so many times more launches a case
CTC_ALIGN_ASAN=1         build with AddressSanitizer, which has to be preloaded (the last test here does that)
"""

import ctypes
import faulthandler
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from conftest import SEED
from test_agreement import LAYOUTS

import torch_ctc_align
from torch_ctc_align import reference

INF = torch.inf
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
forced_align = torch.ops.ctc_align.forced_align

HARNESS = Path(__file__).parent / "csrc" / "emulated_align.cpp"
KERNELS = Path(__file__).parents[1] / "csrc" / "cuda" / "viterbi" / "kernels.cuh"

UNDER_ASAN = os.environ.get("CTC_ALIGN_ASAN", "0") == "1"
MORE = int(os.environ.get("CTC_ALIGN_LAUNCHES", "1"))
PAIRS = [2] if UNDER_ASAN else [1, 2, 4]
REALS = {torch.float32: "float"} if UNDER_ASAN else {torch.float32: "float", torch.float64: "double"}
FEW_CLASSES, MANY_CLASSES = 20, 40  # a warp holds a row of up to 32 classes; more are read by each thread for itself


# -------------------------------------------------------------------------------------------------- the harness


@dataclass(frozen=True)
class Launch:
    pairs: int = 2  # a thread; 0: as the library would choose
    # Blocks of frames in the regions of a second and a third pass, 0: none; task_blocks, ring_tasks, stagger (plan.h),
    # 0: as the library would choose, one task a column wherever possible.
    cut: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    resident: int = 2
    schedule: int = 0  # in order, reversed, random
    seed: int = 0


def is_legal(tasks: tuple[int, int, int]) -> bool:
    """Whatever the number of tasks: a reader of the ring must have an earlier ticket than its next writer."""
    _, ring_tasks, stagger = tasks
    return ring_tasks * stagger > 1


TASKS = [*filter(is_legal, itertools.product([1, 2, 3], [1, 2, 3], [1, 2, 5])), (99, 1, 1)]
ONE_PASS = [(0, 0, 0, 0, 0), *((0, 0, *tasks) for tasks in TASKS)]
TWO_PASSES = [(n, 0, 0, 0, 0) for n in (1, 2, 3, 4)]
TWO_PASSES += [(1, 0, 1, 1, 2), (2, 0, 1, 1, 2), (2, 0, 1, 2, 5), (4, 0, 1, 2, 1), (3, 0, 1, 3, 2)]
THREE_PASSES = [(2, 1, 0, 0, 0), (3, 1, 0, 0, 0), (4, 2, 0, 0, 0), (4, 1, 1, 1, 2), (2, 1, 1, 2, 1), (4, 2, 1, 2, 5)]
CUTS = ONE_PASS + TWO_PASSES + THREE_PASSES
AS_CHOSEN = (-1, 0, 0, 0, 0)


def draw_launch(draw: random.Random, pairs: int) -> Launch:
    cut = draw.choice(draw.choice([ONE_PASS, TWO_PASSES, THREE_PASSES]))
    return Launch(pairs, cut, draw.choice([1, 2, 5]), draw.choice([0, 1, 2, 2]), draw.randrange(2**32))


def structure(name: str, *fields: str | tuple[str, type]) -> type:
    """A struct; a string of names stands for as many int64 or pointers."""
    typed = []
    for field in fields:
        typed += [(word, ctypes.c_int64) for word in field.split()] if isinstance(field, str) else [field]
    return type(name, (ctypes.Structure,), {"_fields_": typed})


# As in emulated_align.cpp.
PlanArguments = structure(
    "PlanArguments", "batch frames labels second_blocks third_blocks task_blocks ring_tasks stagger"
)
Call = structure(
    "Call",
    ("plan", PlanArguments),
    "log_probs item_stride frame_stride class_stride classes",
    "targets wide target_item_stride label_stride",
    "input_lengths target_lengths input_wide target_wide lengths_stride",
    "blank paths scores pairs_per_thread replay resident_blocks schedule seed",
)


def compile_harness(output: Path, real: str, pairs: list[int], kernels: Path = KERNELS, asan: bool = False) -> Path:
    flags = ["-O1", "-g", "-fsanitize=address"] if asan else ["-O2"]
    definitions = {
        "CTC_ALIGN_REAL": real,
        "CTC_ALIGN_PAIRS": ",".join(map(str, pairs)),
        "CTC_ALIGN_KERNELS": f'"{kernels}"',
    }
    command = [*os.environ.get("CXX", "g++").split(), "-std=c++20", "-Wall", "-Wextra", *flags, "-ffp-contract=off"]
    command += ["-Wno-missing-field-initializers", *(f"-D{name}={value}" for name, value in definitions.items())]
    command += ["-shared", "-fPIC", str(HARNESS), "-o", str(output)]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[:5000]
    return output


def load_harness(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.emulated_align.restype = library.emulated_tickets.restype = ctypes.c_char_p
    library.emulated_plan.restype = ctypes.c_int64
    return library


class Emulated:
    """emulated(log_probs, targets, ..., launch=Launch()) as the operator, without its checks."""

    def __init__(self, libraries: dict[torch.dtype, ctypes.CDLL]):
        self.libraries = libraries

    def __call__(self, log_probs, targets, input_lengths=None, target_lengths=None, blank=0, **options):
        call, paths, scores = self.prepare(log_probs, targets, input_lengths, target_lengths, blank, **options)
        error = self.libraries[log_probs.dtype].emulated_align(ctypes.byref(call))
        assert error is None, error.decode()
        return paths, scores

    def prepare(self, log_probs, targets, input_lengths, target_lengths, blank, launch=Launch(), replay=False):
        B, T, C = log_probs.shape
        paths = torch.full((B, T), -77, dtype=targets.dtype)
        scores = torch.full((B, T), 77, dtype=log_probs.dtype)
        lengths = [x for x in (input_lengths, target_lengths) if x is not None]
        pointers = [0 if x is None else x.data_ptr() for x in (input_lengths, target_lengths)]
        call = Call(
            PlanArguments(B, T, targets.shape[1], *launch.cut),
            *(log_probs.data_ptr(), *log_probs.stride(), C),
            *(targets.data_ptr(), targets.dtype == torch.int64, *targets.stride()),
            *pointers,
            *(x is not None and x.dtype == torch.int64 for x in (input_lengths, target_lengths)),
            lengths[0].stride(0) if lengths else 0,
            *(blank, paths.data_ptr(), scores.data_ptr(), launch.pairs),
            *(replay, launch.resident, launch.schedule, launch.seed),
        )
        return call, paths, scores


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Where the libraries come to lie, by name; all compilers start at once."""
    folder = tmp_path_factory.mktemp("emulated")
    with ThreadPoolExecutor(2) as pool:
        jobs = {
            real: pool.submit(compile_harness, folder / f"{real}.so", real, PAIRS, asan=UNDER_ASAN)
            for real in REALS.values()
        }
        if not UNDER_ASAN:
            jobs["breakable"] = pool.submit(compile_breakable, folder)
        yield jobs


@pytest.fixture(scope="module")
def emulated(built):
    return Emulated({dtype: load_harness(built[real].result()) for dtype, real in REALS.items()})


@pytest.fixture
def draw(request):
    return random.Random(f"{SEED} {request.node.name}")


def assert_equal(found, expected, launch):
    assert torch.equal(found[0], expected[0]), launch
    assert torch.equal(found[1], expected[1]), launch


@pytest.fixture
def assert_agrees(emulated, draw):
    """assert_agrees(case, blank) holds under two launches with other pairs a thread, or one, or under those given."""

    def check(case, blank=0, launches=2, expected=None):
        if isinstance(launches, int):
            different = min(launches, len(PAIRS))
            launches = [draw_launch(draw, pairs) for _ in range(MORE) for pairs in draw.sample(PAIRS, different)]
        expected = expected or forced_align(*case, blank=blank)
        for launch in launches:
            assert_equal(emulated(*case, blank=blank, launch=launch), expected, launch)

    return check


# ------------------------------------------------------------------------------------------------- equal results


def without_repeats(targets, C):
    """Other targets of the same shape, in which no two neighbours are equal (blank 0)."""
    return 1 + (targets % (C - 2) + 1).cumsum(1) % (C - 1)


KINDS = list(itertools.product(REALS, [FEW_CLASSES, MANY_CLASSES]))
FRAMES = [0, 1, 2, 3, 15, 16, 17, 18, 33, 127, 128, 129, 130, 257, 511, 512, 513, 514, 515, 641, 1024, 1025, 1026]
LABELS = [254, 255, 256, 257, 511, 512, 513, 600, 700]


@pytest.mark.parametrize("T", FRAMES)
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
        assert_agrees((log_probs, targets, input_lengths, target_lengths), launches=2 if T < 300 else 1)


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("L", LABELS)
def test_any_number_of_columns(random_case, assert_agrees, L, steps):
    """Over two rebases. The others' bits depend on the item alone, whatever columns the longest one has."""
    for dtype, C in [KINDS[L % len(KINDS)], KINDS[(L + 1) % len(KINDS)]]:
        case = random_case(2, 1200, L, C, steps=steps, dtype=dtype)
        assert_agrees((*case, torch.tensor([1200, 1100]), torch.tensor([L, min(L - 1, 300)])), launches=1)


@pytest.mark.parametrize("spare", [0, 1, 2, 127, 255, 256, 257])
def test_dense_speech(random_case, assert_agrees, spare):
    """T = L + R + spare: columns leave the band early, and the path's segments touch up to 129 pairs."""
    for dtype, C in KINDS:
        log_probs, targets = random_case(1, 1300, 700, C, steps=3, dtype=dtype)
        repeats = int((targets[0, 1:] == targets[0, :-1]).sum())
        assert_agrees((log_probs[:, : 700 + repeats + spare], targets), launches=1)
        if spare == 0:
            assert_agrees((log_probs[:, : 700 + repeats - 1], targets))  # marked
            assert_agrees((log_probs[:, : 700 + spare], without_repeats(targets, C)))


def test_no_frame_to_spare(random_case, assert_agrees):
    """The band is so narrow that a label one frame less at its begin or end changes paths."""
    for dtype in REALS:
        log_probs, targets = random_case(24, 130, 128, MANY_CLASSES, steps=3, dtype=dtype)
        assert_agrees((log_probs, without_repeats(targets, MANY_CLASSES)), launches=1)


@pytest.mark.parametrize("T", [4097, 4098])
def test_one_column_with_many_rows(random_case, assert_agrees, T):
    """Each warp of the trace goes back to its own row, or there is a hop."""
    for dtype, C in KINDS[T % 2 :: 2]:
        assert_agrees((*random_case(1, T, 100, C, steps=3, dtype=dtype), torch.tensor([T]), None), launches=1)


def test_nothing_but_repeats(random_case, assert_agrees):
    log_probs, _ = random_case(1, 640, 300, 5, steps=3, dtype=torch.float32)
    for T in (640, 600, 599, 598):
        assert_agrees((log_probs[:, :T], torch.full((1, 300), 3)))


def test_long_items_beside_short_ones(random_case, generator, assert_agrees):
    """Six blocks of frames, four columns."""
    T, L = 2600, 800
    for dtype, C in KINDS:
        log_probs, targets = random_case(3, T, L, C, steps=3, dtype=dtype)
        lengths = torch.tensor([T, 1, 1700]), torch.tensor([L, 1, 500])
        assert_agrees((log_probs, targets, *lengths))


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_any_cut_into_passes_and_tasks(random_case, assert_agrees, draw, cut):
    """Four blocks of frames and three columns: tasks of one block make rings of every size turn."""
    log_probs, targets = random_case(2, 1700, 520, 6, steps=3)
    case = log_probs, targets, torch.tensor([1700, 700]), torch.tensor([520, 100])
    orders = [draw.choice([(1, 0, 0), (5, 1, 0)])]
    orders += [(draw.choice([2, 3, 5]), 2, draw.randrange(2**32)) for _ in range(MORE)]
    assert_agrees(case, launches=[Launch(draw.choice(PAIRS[1:] or PAIRS), cut, *order) for order in orders])


def test_one_ticket_for_every_task_and_none_waits_for_a_later_one(emulated):
    (library, *_) = emulated.libraries.values()
    shapes = [(1, 50_000, 25_000), (1, 178_572, 40_931), (256, 1500, 200), (64, 13_000, 2600), (1, 1_800_000, 540_000)]
    plans = [PlanArguments(*shape, *AS_CHOSEN) for shape in shapes]
    plans += [PlanArguments(3, 3000, 1500, *cut) for cut in CUTS]
    for plan in plans:
        error = library.emulated_tickets(ctypes.byref(plan))
        assert error is None, error
    illegal = PlanArguments(3, 3000, 1500, 0, 0, 1, 1, 1)
    assert library.emulated_tickets(ctypes.byref(illegal)).startswith(b"waits for a later ticket")


def test_plans_use_little_memory(emulated):
    """Edges are kept for the whole sweep while that is little; else for as many tasks as the stagger allows to run."""
    (library, *_) = emulated.libraries.values()
    for shape in [(1, 1500, 200), (64, 1500, 200), (1, 50_000, 25_000), (256, 20_000, 3000), (1, 1_800_000, 540_000)]:
        plan = PlanArguments(*shape, *AS_CHOSEN)
        library.emulated_plan(ctypes.byref(plan))
        columns = shape[0] * (shape[2] // 256 + 1)
        assert columns * plan.ring_tasks * plan.task_blocks * 528 * 8 <= 2**26 or plan.task_blocks == 1


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
    assert emulated.libraries[torch.float32].emulated_plan(ctypes.byref(plan)) < megabytes * 1e6


# The rebase. The cases are those that test_agreement.py aims at one clause each.


@pytest.mark.parametrize("dear", ["nothing", "blank", "labels"])
def test_who_has_a_say_in_a_rebase(random_case, assert_agrees, dear):
    log_probs, targets = random_case(2, 1100, 700, 33, steps=3, dtype=torch.float32)
    if dear != "nothing":
        log_probs[..., slice(1) if dear == "blank" else slice(1, None)] -= 10 / 3
    assert_agrees((log_probs, without_repeats(targets, 33), torch.tensor([1100, 800]), None))


@pytest.mark.parametrize("level", [-2000.0, 50.0, -65504.0])
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


def test_small_batches_agree_with_the_reference(random_case, generator, emulated, draw, threads):
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
        launch = draw_launch(draw, draw.choice(PAIRS))
        assert_equal(emulated(*case, launch=launch), reference.forced_align(*case), launch)


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
    """From nothing to everything, with what the library would choose for so many."""
    B, T, L = 150, 50, 24
    case = random_case(B, T, L, 12, steps=3)
    lengths = torch.arange(B) % (T + 1), torch.arange(B) * 7 % (L + 1)
    assert_agrees((*case, *lengths))
    assert_agrees((*case, *lengths), launches=[Launch(0, schedule=2)] if not UNDER_ASAN else [Launch()])


# ------------------------------------------------------------------------------------------------------ bad input

# What an integer may hold that is no length and no class of anything here.
BAD = [INT64_MIN, -(2**32) + 1, -(2**31), -1, 1100, 2**31 - 1, 2**32 + 1, INT64_MAX]


@pytest.mark.parametrize("bad", [*BAD, "blank"], ids=str)
def test_bad_values_mark_their_items_alone(random_case, emulated, draw, bad):
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
        launch = draw_launch(draw, draw.choice(PAIRS))
        assert_equal(emulated(*case, launch=launch), expected, launch)
        if -(2**31) <= value < 2**31 and ~value < 2**31:
            narrow = emulated(log_probs, *(x.int() for x in case[1:]), launch=launch)
            assert_equal(narrow, (expected[0].int(), expected[1]), launch)


@pytest.mark.parametrize("T", [0, 1, 2, 130])
def test_bad_values_in_short_items(emulated, draw, T):
    """One frame is aligned without a sweep, none without anything."""
    for value, C in itertools.product([*BAD, 0], [3, 40]):
        targets = torch.tensor([[1], [value], [1], [1], [value], [value]])
        lengths = torch.tensor([T, T, value or -1, T, value or -1, T]), torch.tensor([1, 1, 1, value or -1, value, 0])
        launch = draw_launch(draw, draw.choice(PAIRS))
        paths, scores = emulated(torch.zeros(6, T, C), targets, *lengths, launch=launch)
        assert (paths[1:5] == -1).all(), launch
        assert (scores[1:5] == -INF).all(), launch
        assert (paths[[0]] == 1).all(), launch
        assert (paths[[5]] == 0).all(), launch
        assert (scores[[0, 5]] == 0).all(), launch


def test_bad_values_everywhere(generator, emulated, draw):
    """Noise in place of every argument: the emulator runs to its end."""
    for _ in range(20 * MORE):
        B, T, L, C = (draw.choice(sizes) for sizes in ([1, 3], [1, 130, 600], [0, 1, 300], [1, 2, 40]))
        some = torch.tensor([*BAD, 0, 0, 1, 1, 2, L, T])
        targets, input_lengths, target_lengths = (
            some[torch.randint(0, len(some), shape, generator=generator)] for shape in [(B, L), (B,), (B,)]
        )
        log_probs = torch.randint(-(2**31), 2**31, (B, T, C), generator=generator).int().view(torch.float32)
        paths, scores = emulated(
            log_probs, targets, input_lengths, target_lengths, launch=draw_launch(draw, draw.choice(PAIRS))
        )
        assert ((paths >= -1) & (paths < C)).all()
        assert ((paths == -1) == (scores == -INF)).all()


def test_padding_is_never_read(random_case, generator, emulated, draw):
    B, T, L = 5, 560, 270
    for dtype, C in KINDS:
        log_probs, targets = random_case(B, T, L, C, dtype=dtype)
        input_lengths = torch.randint(0, T + 1, (B,), generator=generator)
        target_lengths = torch.randint(0, L + 1, (B,), generator=generator)
        expected = forced_align(log_probs, targets, input_lengths, target_lengths)
        log_probs[torch.arange(T) >= input_lengths[:, None]] = torch.nan
        targets[torch.arange(L) >= target_lengths[:, None]] = INT64_MAX
        for launch in [draw_launch(draw, pairs) for pairs in draw.sample(PAIRS, min(2, len(PAIRS)))]:
            assert_equal(emulated(log_probs, targets, input_lengths, target_lengths, launch=launch), expected, launch)


def test_replay_with_other_contents_and_lengths(random_case, emulated, draw):
    """As a CUDA graph does it: the workspace still holds what the call before has left there."""
    T, L, C = 1100, 300, 12
    for launch in [draw_launch(draw, pairs) for pairs in draw.sample(PAIRS, min(2, len(PAIRS)))]:
        for i, (frames, labels) in enumerate([(T, L), (700, 290), (290, 300), (1, 1), (0, 0), (1050, 10), (T, L)]):
            log_probs, targets = random_case(2, T, L, C, steps=3)
            lengths = torch.tensor([frames, T]), torch.tensor([labels, 200])
            expected = forced_align(log_probs, targets, *lengths)
            if i % 3 == 1:
                targets[1, 100] = C
                expected[0][1], expected[1][1] = -1, -INF
            assert_equal(emulated(log_probs, targets, *lengths, launch=launch, replay=i > 0), expected, launch)


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
    said = message_of(torch_ctc_align.functional._raise_for_marked_items, paths, log_probs, *others, 0)
    assert said == message_of(torch_ctc_align.forced_align, log_probs, *others)


def test_function_says_it_of_batches_without_frames():
    log_probs = torch.zeros(2, 0, 3)
    for lengths in (([0, 1], [0, 0]), ([0, 0], [0, -1]), ([0, 0], [0, 3])):
        others = torch.ones(2, 2, dtype=torch.int64), *map(torch.tensor, lengths)
        said = message_of(torch_ctc_align.functional._raise_for_marked_items, torch.zeros(2, 0), log_probs, *others, 0)
        assert said == message_of(torch_ctc_align.forced_align, log_probs, *others)


WITHOUT_LIBRARY = """
import torch

torch.version.cuda = "13.0"
import torch_ctc_align

print(torch_ctc_align.__file__)
operator, arguments = torch.ops.ctc_align.forced_align.default, (torch.zeros(1, 2, 3), torch.ones(1, 1).long())
print(operator(*arguments)[0].tolist())
try:
    operator.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *arguments)
except NotImplementedError as error:
    print(error)
"""


def test_without_the_cuda_library_cuda_tensors_are_refused_in_one_sentence(tmp_path):
    """Where torch has CUDA and the library has not been built. CPU tensors are aligned as ever."""
    package = Path(torch_ctc_align.__file__).parent
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("_C_cuda*", "__pycache__"))
    command = [sys.executable, "-c", WITHOUT_LIBRARY]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""})
    assert result.returncode == 0, result.stderr
    place, paths, error = result.stdout.splitlines()
    assert Path(place).is_relative_to(tmp_path)
    assert paths == "[[1, 1]]"
    assert error == (
        "forced_align: this installation of torch_ctc_align has no CUDA library; move the tensors to the CPU, or "
        "install from source where nvcc is: CTC_ALIGN_CUDA=1 pip install --no-build-isolation --force-reinstall "
        "--no-deps ."
    )


# ---------------------------------------------------------------------------------------------- broken on purpose

# What is broken, and how: every match of the pattern in kernels.cuh is replaced. In the new text {broken} is true when
# this mistake is asked for and \g<0> is the old text. Any word of it may change with the kernels, and then has to here.
PUBLISH = "if (Device::thread() == 0) { Device::store_release(done(task.column), static_cast<uint32_t>(task.number)); }"
SLOWLY = "for (int i = 0; i < 4; ++i) { Device::pause(); }"
UNLESS = r"if (!{broken}) { \g<0> }"
MISTAKES = {
    "no barrier between the steps of the warps": (
        r"(?<=void end_step\(\) { )Device::block_barrier\(\);",
        r"if (!{broken}) { Device::block_barrier(); }",
    ),
    "a row is published before it is stored": (r"\bstore_row\(\);", rf"if ({{broken}}) {{ {PUBLISH} {SLOWLY} }} \g<0>"),
    "a task does not wait for its own past": (r"\bwait_until_done\(task\.column, task\.number - 1\);", UNLESS),
    "a task does not wait for a place in the ring": (r"\bwait_until_done\(reader, before\);", UNLESS),
    "words of the ring are not unset": (r"plan\.tasks\(\) > plan\.ring_tasks", r"!{broken} && \g<0>"),
    "edges are not waited for": (r"Device::any\(!EdgeWords<Device>::is_there\(found\)\)", r"!{broken} && \g<0>"),
    "edges are sent before they are known": (
        r"step > kWarps\) {\s*send_edges\(words_out, step - 1 - kWarps\);",
        r"step > kWarps - ({broken} ? 1 : 0)) { send_edges(words_out, step - ({broken} ? 0 : 1) - kWarps);",
    ),
    "blocks of threads go by their own numbers": (
        r"Device::take_ticket\(pass\.ticket\) \+ 1",
        r"({broken} ? Device::block() : \g<0>)",
    ),
    "the first rebase is left out": (r"kRebases<Real> && q > 0", r"kRebases<Real> && q > ({broken} ? 1 : 0)"),
    "edges cross without the difference of bases": (
        r"settle_base\(q, frames.has_left\)\.offset",
        r"\g<0> * ({broken} ? 0 : 1)",
    ),
    "the left base is not waited for": (r"\bword == ~uint64_t{0}", r"!{broken} && \g<0>"),
    "no barrier before the warps' maxima are read": (
        r"end_step\(\);(?=\s*float best = shared)",
        r"if (!{broken}) { end_step(); }",
    ),
    "warps run in step with the couriers": (r"skip_steps\(1 \+ warp\)", r"skip_steps(({broken} ? 0 : 1) + warp)"),
    "couriers of labels run in step with one another": (r"kWholeRows \? 0 : warp\b", r"\g<0> * ({broken} ? 0 : 1)"),
    "a ring of rows that is too short": (r"% kRing\b", r"% (kWholeRows && {broken} ? kWarps : kRing)"),
    "a ring of labels that is too short": (
        r"uint32_t slot_of\(int32_t frame\) { return",
        r"\g<0> !kWholeRows && {broken} ? 0 :",
    ),
    "a label is brought a frame late": (r"from_frame = first_pair;", r"from_frame = first_pair + ({broken} ? 1 : 0);"),
    "a label is brought a frame too few": (
        r"first_pair \+ R - 1 : -1",
        r"first_pair + R - 1 - ({broken} ? 1 : 0) : -1",
    ),
    "the trace reads a label a frame late": (
        r"begin - 1 \+ k - left_pair,",
        r"begin - ({broken} ? 0 : 1) + k - left_pair,",
    ),
    "the trace reads a label a frame too few": (
        r"end - 1 - \(right_pair - k\)",
        r"end - 1 - (right_pair - k) - ({broken} ? 1 : 0)",
    ),
    "the hop fetches a chunk too few": (
        r"down <= row && down <= chunk",
        r"down + ({broken} ? 1 : 0) <= row && down <= chunk",
    ),
    "a region always begins with a row of the pass before": (
        r"pass > 0 && segments % passes\[pass\]\.plan\.segments\(\) == 0",
        r"!{broken} && \g<0>",
    ),
    "the walk does not wait for the records": (
        r"(pair\[1\] = [^;]*;[\s}]*)Device::warp_barrier\(\);",
        r"\1if (!{broken}) { Device::warp_barrier(); }",
    ),
}


def breakable_kernels() -> str:
    """kernels.cuh with all mistakes in it. The variable ctc_align_broken chooses one of them; 0 is none."""
    text = KERNELS.read_text()
    for i, (name, (pattern, broken)) in enumerate(MISTAKES.items(), 1):
        text, found = re.subn(pattern, broken.replace("{broken}", f"(ctc_align_broken == {i})"), text)
        assert found == 1, f"{name}: the pattern is found {found} times in kernels.cuh"
    text = re.sub(r'#include "(?!/)', lambda match: f'#include "{KERNELS.parent}/', text)
    return 'extern "C" { inline int ctc_align_broken = 0; }\n' + text


def compile_breakable(folder: Path) -> Path:
    (folder / "kernels.cuh").write_text(breakable_kernels())
    return compile_harness(folder / "breakable.so", "float", [2], folder / "kernels.cuh")


CATCHING_LAUNCHES = [
    Launch(2, cut, resident, schedule, seed)
    for resident, schedule, seed in [*((3, 2, seed) for seed in range(8)), (1, 1, 0), (3, 0, 0)]
    for cut in [(0, 0, 1, 2, 1), (0, 0, 2, 1, 2), (3, 1, 0, 0, 0)]
]


class Breakable:
    """outcome(i, launch): what mistake i leads to; a process of its own, which may well crash, finds it out."""

    def __init__(self, library, cases):
        self.library = library
        self.cases = cases
        self.expected = [x.numpy().tobytes() for case in cases for x in forced_align(*case)]
        self.chosen = ctypes.c_int.in_dll(library, "ctc_align_broken")

    def outcome(self, mistake, launch):
        # Prepared before the fork: torch's threads do not live behind it.
        prepared = [Emulated.prepare(None, *case, blank=0, launch=launch) for case in self.cases]
        places = [(x.data_ptr(), x.nbytes) for _, *outputs in prepared for x in outputs]
        self.chosen.value = mistake
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "multi-threaded, use of fork() may lead to deadlocks"
            child = os.fork()
        if child == 0:
            faulthandler.disable()
            signal.alarm(20)
            errors = [self.library.emulated_align(ctypes.byref(call)) for call, *_ in prepared]
            same = [ctypes.string_at(*place) for place in places] == self.expected
            os.write(write, next(filter(None, errors), b"right" if same else b"wrong"))
            os._exit(0)
        os.close(write)
        _, status = os.waitpid(child, 0)
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read().decode()
        return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else said


@pytest.fixture
def breakable(built, random_case):
    if UNDER_ASAN:
        pytest.skip("mistakes read where they should not")
    log_probs, targets = random_case(3, 1700, 300, 6, steps=3)
    # The last path enters its second column late, in the last of four blocks of frames.
    case = log_probs, targets, torch.tensor([1700, 1200, 1700]), torch.tensor([300, 260, 268])
    one_column = random_case(2, 700, 200, 6, steps=3)  # no tickets; the warps of the trace hop
    many_classes = random_case(2, 700, 200, MANY_CLASSES, steps=3)
    narrow, targets = random_case(64, 130, 128, MANY_CLASSES, steps=3)  # a frame more or less matters
    cases = [case, (*one_column, None, None), (*many_classes, None, None)]
    cases.append((narrow, without_repeats(targets, MANY_CLASSES), None, None))
    return Breakable(load_harness(built["breakable"].result()), cases)


def test_nothing_is_wrong_without_a_mistake(breakable):
    assert {breakable.outcome(0, launch) for launch in CATCHING_LAUNCHES[::3]} == {"right"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_some_schedule_shows_each_mistake(breakable, mistake):
    number = list(MISTAKES).index(mistake) + 1
    outcomes = (breakable.outcome(number, launch) for launch in CATCHING_LAUNCHES)
    assert any(outcome != "right" for outcome in outcomes)


def test_without_tickets_there_is_a_deadlock(breakable):
    """Blocks of threads arrive in any order, and nobody may hold the place that an awaited one needs."""
    number = list(MISTAKES).index("blocks of threads go by their own numbers") + 1
    outcome = breakable.outcome(number, replace(CATCHING_LAUNCHES[0], resident=1, schedule=1))
    assert outcome.startswith("emulator: deadlock, everybody waits or polls")


# ---------------------------------------------------------------------------------------------- AddressSanitizer


@pytest.fixture(scope="module", autouse=True)
def sanitized(request):
    """This file's run under AddressSanitizer: a process beside the other tests, if the last of them is to run too."""
    wanted = any(item.name == "test_under_address_sanitizer" for item in request.session.items)
    compiler = os.environ.get("CXX", "g++").split()
    # With the C++ library beside it: torch throws and catches while it is imported, and ASan wants to know by whom.
    names = [f"-print-file-name={library}" for library in ("libasan.so", "libstdc++.so")]
    preload = [subprocess.run([*compiler, name], capture_output=True, text=True).stdout.strip() for name in names]
    if UNDER_ASAN or not wanted or not all(Path(library).is_absolute() for library in preload):
        yield None
        return
    environment = os.environ | {"CTC_ALIGN_ASAN": "1", "ASAN_OPTIONS": "detect_leaks=0"}
    environment["LD_PRELOAD"] = ":".join(preload)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    command += ["-k", "bad_values or padding or frames[1] or frames[130] or frames[514] or replay or any_layout"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    yield process
    process.kill()
    process.wait()


def test_under_address_sanitizer(sanitized, missing):
    """Bad input, padding, replay and a few sizes: no access leaves its tensor or its part of the workspace."""
    if sanitized is None:
        missing("asan", "the compiler has no AddressSanitizer, or this is the run under it")
    said, _ = sanitized.communicate(timeout=300)
    assert sanitized.returncode == 0, said
