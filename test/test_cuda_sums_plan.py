"""How the CUDA sums are cut: the memory that they take, their launches, and that every row is there when it is read.

All of it follows from the padded sizes, so that a CUDA graph may replay the launches. ``Memory`` goes through them one
by one: it knows what each launch leaves, and complains of one that reads anything else.
"""

import itertools

import pytest
from harness.sums import SumPlans

FORWARD, BACKWARD, SPANS, MEETING, FINISH = range(5)  # as SumKernel in plan.h
NOTHING, UNSET_FORWARD, UNSET_BACKWARD = range(3)  # as Unset
HOUR, TEN_HOURS = (1, 178_572, 40_931), (1, 1_800_000, 540_000)


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    return SumPlans(tmp_path_factory.mktemp("plans"))


def kernels_of(found):
    _, _, launches = found
    return [launch.kernel for launch in launches]


# --------------------------------------------------------------------------------------------- memory and launches


@pytest.mark.parametrize(
    "shape, megabytes, with_path_values",
    [
        ((64, 1500, 200), 320, 480),
        ((256, 1500, 200), 1000, 1000),
        ((2000, 30, 10), 21, 21),
        ((1, 50_000, 25_000), 400, 600),
        ((1, 1_800_000, 200), 80, 90),
        (HOUR, 1000, 1000),
        (TEN_HOURS, 1000, 1550),
        ((64, 20_000, 3000), 1000, 1000),
    ],
    ids=str,
)
def test_memory_of_the_workspace(plans, shape, megabytes, with_path_values):
    """float32, in units of 10^6 bytes."""
    for spans in (False, True):
        assert plans(*shape, spans=spans)[0] < megabytes * 1e6, spans
    assert plans(*shape, planes=3)[0] < with_path_values * 1e6


def test_one_launch_for_utterances_of_one_column(plans):
    """Two blocks an item, that meet; one with path values. Spans need the sums of whole frames, and a second launch."""
    for shape in [(64, 1500, 200), (1, 1, 0), (300, 200, 255), (1, 30_000, 255)]:
        assert kernels_of(plans(*shape)) == [MEETING], shape
        assert kernels_of(plans(*shape, planes=3)) == [BACKWARD], shape
        assert kernels_of(plans(*shape, spans=True)) == [BACKWARD, SPANS], shape


def test_a_launch_forward_and_one_back_for_more_columns(plans):
    for shape in [(4, 1500, 256), (1, 3000, 1500), (8, 5000, 700)]:
        assert kernels_of(plans(*shape)) == [FORWARD, BACKWARD, FINISH], shape
        assert kernels_of(plans(*shape, spans=True)) == [FORWARD, BACKWARD, SPANS], shape


@pytest.mark.parametrize("shape, most", [((1, 50_000, 25_000), 16), (HOUR, 60), (TEN_HOURS, 4000)], ids=str)
def test_hours_take_few_launches(plans, shape, most):
    assert len(kernels_of(plans(*shape))) <= most


def test_groups_of_a_large_batch(plans):
    """As many as the memory needs, and of equal size but for the last."""
    _, plan, launches = plans(1000, 1500, 200)
    assert [launch.first_item for launch in launches] == list(range(0, 1000, plan.group))
    assert len({launch.blocks for launch in launches[:-1]}) == 1
    assert sum(launch.blocks for launch in launches) == 2 * 1000


# ------------------------------------------------------------------------------------------------------------ rows


class Memory:
    """What lies in the workspace for the items of a group. A row stands for the frame that it is before."""

    def __init__(self, plan):
        self.plan = plan
        self.rows = {}  # before chapters
        self.later = {}  # q, on the way back
        self.begins = set()  # of chapters that were swept forward
        self.edges = None  # frames of the chapter whose forward edges and rows before segments are there
        self.summed = None  # frames of the chapter whose sums are there
        self.swept = []  # frames of chapters that were swept back, and whether for spans

    def run(self, launch):
        frames = launch.begin, launch.end
        if launch.kernel != FINISH and launch.begin > 0 and (launch.kernel == FORWARD or not self.plan.is_single):
            assert self.rows[launch.row] == launch.begin
        if launch.kernel == FORWARD:
            self.run_forward(launch, frames)
        elif launch.kernel in (BACKWARD, SPANS, MEETING):
            self.run_backward(launch, frames)
        else:
            assert launch.unset == NOTHING
            assert self.summed == frames

    def run_forward(self, launch, frames):
        assert launch.unset == UNSET_FORWARD
        self.begins.add(launch.begin)
        self.edges = frames if launch.keeps_rows else None
        if launch.row_to >= 0:
            assert launch.row_to < self.plan.rows
            self.rows[launch.row_to] = launch.end

    def run_backward(self, launch, frames):
        T = self.plan.frames
        assert launch.unset == (NOTHING if self.plan.is_single and launch.kernel != MEETING else UNSET_BACKWARD)
        if not self.plan.is_single:
            assert self.edges == frames
            assert self.begins == set(range(0, T, self.plan.chapter)) or T == 0  # the item's end is known
        if launch.end < T:
            assert self.later[(launch.row_to + 1) % 2] == launch.end
        if launch.kernel != SPANS:
            self.summed = frames
        assert self.summed == frames
        self.later[launch.row_to % 2] = launch.begin
        self.swept.append((*frames, launch.kernel == SPANS))


def check_launches(B, T, L, found, spans):
    _, plan, launches = found
    groups = [(item, list(own)) for item, own in itertools.groupby(launches, lambda launch: launch.first_item)]
    assert [item for item, _ in groups] == list(range(0, B, plan.group))
    begins = list(range(0, max(T, 1), plan.chapter))[::-1]
    for item, own in groups:
        memory = Memory(plan)
        for launch in own:
            blocks = {MEETING: 2, FINISH: launch.end - launch.begin}.get(launch.kernel, L // 256 + 1)
            assert launch.blocks == min(plan.group, B - item) * blocks
            memory.run(launch)
        passes = [False, True] if spans else [False]
        assert memory.swept == [(t, min(t + plan.chapter, T), number) for t in begins for number in passes]
        finished = [launch.begin for launch in own if launch.kernel == FINISH]
        assert finished == ([] if spans or L < 256 else begins)


SIZES = [(0, 0, 0), (2, 16, 16), (1, 16, 48), (0, 48, 48), (2, 64, 192), (0, 16, 16_000)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rows_are_there_when_a_launch_reads_them(plans, sizes):
    """Up to 300 chapters, at two levels: and just as many as fit one level, one more, and full squares."""
    shapes = [(3, 100, 20), (3, 1050, 300), (5, 0, 0), (2, 4800, 20), (1, 16, 256), (1, 1, 1)]
    shapes += [(1, 16 * chapters + more, 300) for chapters in (23, 24, 25, 26, 64, 81, 100) for more in (-1, 0, 1)]
    for shape, spans in itertools.product(shapes, (False, True)):
        check_launches(*shape, plans(*shape, sizes=sizes, spans=spans), spans)


@pytest.mark.parametrize("shape", [HOUR, TEN_HOURS, (1, 1_800_000, 200), (64, 20_000, 3000)], ids=str)
def test_rows_of_hours(plans, shape):
    for spans, planes in [(False, 2), (True, 2), (False, 3)]:
        check_launches(*shape, plans(*shape, spans=spans, planes=planes), spans)


def test_a_mistake_in_the_rows_is_found(plans):
    """Memory sees a launch that reads the row of another chapter, and one that is missing."""
    for change in (lambda launches: setattr(launches[3], "row", 0), lambda launches: launches.pop(2)):
        found = plans(1, 16 * 70, 300, sizes=(0, 16, 16))
        check_launches(1, 16 * 70, 300, found, False)
        change(found[2])
        with pytest.raises((AssertionError, KeyError)):
            check_launches(1, 16 * 70, 300, found, False)
