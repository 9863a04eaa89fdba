"""Stars in the CUDA kernels without a GPU: star labels and wild gaps, run by the emulator, give the reference's bits.

As test_cuda_emulated.py, which has the rest of the kernels. The longest cases are marked slow.
"""

import itertools
import random

import pytest
import torch
from conftest import SEED
from harness.emulated import (
    CUTS,
    MORE,
    REALS,
    STORED,
    UNDER_ASAN,
    Conditions,
    Emulated,
    draw_conditions,
    mostly_slow,
    without_repeats,
)

import torch_ctc_align
from torch_ctc_align import reference

INF = torch.inf
GAP_STAR = -2
FEW_CLASSES, MANY_CLASSES = 20, 40  # whole rows of up to 32 classes are shared; of more, each pair's own label
KINDS = list(itertools.product(REALS, [FEW_CLASSES, MANY_CLASSES]))
DTYPES = list(REALS if UNDER_ASAN else STORED)
BAD = [-(2**63), -(2**32) + 1, -1, 1100, 2**32 + 1, 2**63 - 1]  # neither a length nor a class here
pytestmark = pytest.mark.usefixtures("one_thread")  # of torch: the reference's tensors are tiny


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    return Emulated(tmp_path_factory)


@pytest.fixture
def one_thread(threads):
    threads(1)


@pytest.fixture
def draw(request):
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def drawn(draw):
    """drawn(n): n conditions, at random."""
    return lambda n=1: [draw_conditions(draw, Conditions.pairs) for _ in range(n * MORE)]


def assert_equal(found, expected, given):
    assert torch.equal(found[0], expected[0]), given
    assert torch.equal(found[1], expected[1]), given


@pytest.fixture
def assert_agrees(emulated, drawn):
    """assert_agrees(*case) holds under a condition drawn at random, or under those given."""

    def check(*case, conditions=None, expected=None):
        expected = expected or reference.forced_align(*case)
        for given in conditions or drawn():
            assert_equal(emulated(*case, conditions=given), expected, given)
        return expected

    return check


@pytest.fixture
def star_case(random_case, generator):
    """make(B, T, L, C, ...) -> log_probs, targets, star_scores, wild_gaps.

    A frame's star ties with one of its classes, so that every choice falls either way and some are ties. `labels` of
    the targets are stars, and `gaps` of the gaps are wild.
    """

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    def make(B, T, L, C, *, labels=0.2, gaps=0.5, steps=3, **options):
        log_probs, targets = random_case(B, T, L, C, steps=steps, **options)
        if C == 1:
            targets.fill_(1)
        targets[rand(B, L) < labels] = C
        chosen = torch.randint(0, C, (B, T, 1), generator=generator)
        return log_probs, targets, log_probs.gather(2, chosen)[..., 0].clone(), rand(B, L + 1) < gaps

    return make


def as_arguments(case, input_lengths=None, target_lengths=None, blank=0):
    log_probs, targets, star_scores, wild_gaps = case
    return log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps


# ------------------------------------------------------------------------------------------------- equal results


def test_small_batches(star_case, generator, draw, assert_agrees):
    for _ in range(40 * MORE):
        B, T, L, C = (
            int(torch.randint(low, high, (), generator=generator)) for low, high in [(1, 5), (1, 300), (0, 60), (1, 50)]
        )
        blank = int(torch.randint(0, C, (), generator=generator))
        shares = {"labels": draw.choice([0, 0.2, 1]), "gaps": draw.choice([0, 0.5, 1])}
        case = star_case(B, T, L, C, blank=blank, dtype=draw.choice(DTYPES), **shares)
        lengths = (torch.randint(0, n + 1, (B,), generator=generator) for n in (T, L))
        *arguments, wild_gaps = as_arguments(case, *lengths, blank)
        assert_agrees(*arguments, draw.choice([wild_gaps, wild_gaps, None]))


FRAMES = [0, 1, 2, 3, 15, 16, 17, 18, 33, 127, 128, 129, 130, 257, 511, 512, 513, 514, 515, 641, 1024, 1025, 1026]


@pytest.mark.parametrize("T", mostly_slow(FRAMES, [0, 1, 2, 17, 130, 514, 1026]))
def test_any_number_of_frames(star_case, assert_agrees, T):
    """With no label, one, some, as many as frames, and one too many."""
    most = max(min(T + 1, 260), 1)
    for dtype, C in KINDS if T < 300 else KINDS[T % 2 :: 2]:
        case = star_case(5, T, most, C, dtype=dtype)
        case[1][:] = without_repeats(case[1], C + 1)  # of classes 1 to C, the star included
        case[1][1, 0], case[3][0] = C, True
        lengths = torch.full((5,), T), torch.tensor([min(n, most) for n in [0, 1, T // 3, T, T + 1]])
        paths, _ = assert_agrees(*as_arguments(case, *lengths))
        assert T < 130 or ((paths == GAP_STAR).any() and (paths[1] == C).any())


@pytest.mark.parametrize("L", mostly_slow([255, 256, 512, 600], [255, 600]))
def test_any_number_of_columns(star_case, assert_agrees, L):
    """Over two rebases."""
    for dtype, C in KINDS[L % 2 :: 2]:
        case = star_case(2, 1200, L, C, dtype=dtype)
        assert_agrees(*as_arguments(case, torch.tensor([1200, 1100]), torch.tensor([L, 200])))


@pytest.mark.parametrize("cut", mostly_slow(CUTS, CUTS[1::9]), ids=str)
def test_any_cut_into_passes_and_tasks(star_case, assert_agrees, draw, cut):
    orders = [(1, 0, 0), (draw.choice([2, 3, 5]), 2, draw.randrange(2**32))]
    conditions = [Conditions("kPairsPerThread", cut, *order) for order in orders]
    case = star_case(1, 1700, 520, draw.choice([6, MANY_CLASSES]))
    assert_agrees(*as_arguments(case), conditions=conditions)


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [1, 4])
def test_any_number_of_pairs_a_thread(star_case, assert_agrees, pairs):
    for C in (FEW_CLASSES, MANY_CLASSES):
        assert_agrees(*as_arguments(star_case(2, 700, 300, C)), conditions=[Conditions(pairs)])


@pytest.mark.parametrize("spare", mostly_slow([0, 1, 2, 127, 257], [0, 127]))
def test_dense_speech(star_case, assert_agrees, emulated, spare):
    """T = L + R + spare. Two star labels in a row are a repeat."""
    for dtype, C in KINDS:
        log_probs, targets, star_scores, wild_gaps = star_case(1, 700, 300, C, dtype=dtype, labels=0.4)
        frames = 300 + int((targets[0, 1:] == targets[0, :-1]).sum()) + spare
        case = log_probs[:, :frames], targets, star_scores[:, :frames], wild_gaps
        paths, _ = assert_agrees(*as_arguments(case))
        assert (paths != -1).all()
        if spare == 0:
            case = log_probs[:, : frames - 1], targets, star_scores[:, : frames - 1], wild_gaps
            assert (emulated(*as_arguments(case))[0] == -1).all()


@pytest.mark.parametrize("C, blank", [(1, 0), (2, 1), (31, 30), (32, 0), (32, 17), (32, 31), (33, 32), (300, 5)])
def test_any_class_as_blank(star_case, assert_agrees, C, blank):
    """32 classes still make whole rows: the star has the blank's place there."""
    for dtype in REALS:
        case = star_case(2, 140, 40, C, blank=blank, dtype=dtype)
        if C == 1:
            case[1].fill_(1)
        assert_agrees(*as_arguments(case, torch.tensor([140, 120]), None, blank))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(star_case, assert_agrees, dtype):
    for C in (FEW_CLASSES, MANY_CLASSES):
        assert_agrees(*as_arguments(star_case(2, 600, 100, C, dtype=dtype)))
        assert_agrees(*as_arguments(star_case(2, 600, 100, C, dtype=dtype, steps=None)))


@pytest.mark.parametrize("T", [1, 2, 300, 1100])
@pytest.mark.parametrize("wild", [False, True])
def test_no_label_but_a_gap(star_case, assert_agrees, T, wild):
    for C in (FEW_CLASSES, MANY_CLASSES):
        log_probs, targets, star_scores, _ = star_case(2, T, 0, C)
        star_scores[0], star_scores[1] = log_probs[0, :, 0] + 1 / 3, log_probs[1, :, 0]
        wild_gaps = torch.tensor([[wild], [wild]])
        paths, scores = assert_agrees(*as_arguments((log_probs, targets, star_scores, wild_gaps)))
        assert (paths[0] == (GAP_STAR if wild else 0)).all()
        assert (paths[1] == 0).all()  # the blank wins a tie
        assert torch.equal(scores[0], star_scores[0] if wild else log_probs[0, :, 0])


@pytest.mark.parametrize("T", [1, 2, 3, 140])
def test_nothing_but_stars(star_case, assert_agrees, T):
    for C, L in itertools.product([FEW_CLASSES, MANY_CLASSES], [1, 2, min(T, 70)]):
        assert_agrees(*as_arguments(star_case(2, T, L, C, labels=1, gaps=1)))
        assert_agrees(*as_arguments(star_case(2, T, L, C, labels=1)))


def test_free_ends_take_what_is_not_speech(random_case, assert_agrees):
    """Wild gaps at both ends of three columns: the path is in them before and after the speech, over two rebases."""
    for C in (FEW_CLASSES, MANY_CLASSES):
        log_probs, targets = random_case(1, 2200, 600, C, steps=3)
        log_probs[:, :700] -= 20
        log_probs[:, 2000:] -= 20
        wild_gaps = torch.zeros(1, 601, dtype=torch.bool)
        wild_gaps[:, [0, 600]] = True
        case = log_probs, without_repeats(targets, C), torch.full((1, 2200), -4.0), wild_gaps
        paths, _ = assert_agrees(*as_arguments(case))
        assert (paths[:, :700] == GAP_STAR).all()
        assert (paths[:, 2000:] == GAP_STAR).all()


@pytest.mark.parametrize("level", mostly_slow([-2000.0, 50.0, -65504.0], [-65504.0]))
def test_far_from_zero(star_case, assert_agrees, level):
    log_probs, targets, star_scores, wild_gaps = star_case(1, 1100, 300, FEW_CLASSES)
    assert_agrees(*as_arguments((log_probs + level, targets, star_scores + level, wild_gaps)))
    log_probs[torch.rand(log_probs.shape) < 0.3] = level  # some only: a mask
    assert_agrees(*as_arguments((log_probs, targets, star_scores, wild_gaps)))


# ------------------------------------------------------------------------------------- what stars are the same as


def test_stars_of_minus_infinity_are_none(star_case, emulated, drawn):
    for dtype, C in KINDS:
        log_probs, targets, star_scores, wild_gaps = star_case(2, 600, 270, C, dtype=dtype, labels=0)
        for given in drawn():
            expected = emulated(log_probs, targets, conditions=given)
            nothing = torch.full_like(star_scores, -INF)
            assert_equal(
                emulated(*as_arguments((log_probs, targets, nothing, wild_gaps)), conditions=given), expected, given
            )


@pytest.mark.parametrize("wild_gaps", [None, torch.zeros(2, 271, dtype=torch.bool)], ids=["none", "all-false"])
def test_without_a_wild_gap_stars_are_none(star_case, emulated, drawn, wild_gaps):
    for dtype, C in KINDS:
        log_probs, targets, star_scores, _ = star_case(2, 600, 270, C, dtype=dtype, labels=0)
        case = log_probs, targets, star_scores, wild_gaps
        for given in drawn():
            expected = emulated(log_probs, targets, conditions=given)
            assert_equal(emulated(*as_arguments(case), conditions=given), expected, given)


def test_a_star_label_is_one_more_class(star_case, emulated, drawn):
    """From 31 to 32 classes and from 32 to 33: the column beside makes rows wider than the star does."""
    for dtype, C in itertools.product(REALS, [5, 31, 32, MANY_CLASSES]):
        log_probs, targets, star_scores, _ = star_case(2, 600, 270, C, dtype=dtype)
        for given in drawn():
            expected = emulated(torch.cat((log_probs, star_scores[..., None]), 2), targets, conditions=given)
            case = log_probs, targets, star_scores, None
            assert_equal(emulated(*as_arguments(case), conditions=given), expected, given)


# ------------------------------------------------------------------------------------------- layouts and bad input


@pytest.mark.parametrize("layout", ["one number", "a number an item", "a row for all", "time first", "every other"])
def test_any_layout(star_case, assert_agrees, layout):
    for dtype, C in KINDS:
        log_probs, targets, star_scores, wild_gaps = star_case(3, 140, 30, C, dtype=dtype)
        pairs = torch.stack([star_scores, -star_scores], -1)
        star_scores = {
            "one number": star_scores.new_full((), -0.5).expand(3, 140),
            "a number an item": star_scores[:, :1].expand(3, 140),
            "a row for all": star_scores[:1].expand(3, 140),
            "time first": star_scores.t().contiguous().t(),
            "every other": pairs[..., 0],
        }[layout]
        for wild in (
            wild_gaps.t().contiguous().t(),
            torch.stack([wild_gaps, ~wild_gaps], -1)[..., 0],
            wild_gaps[:1].expand(3, 31),
            torch.tensor(True).expand(3, 31),
        ):
            assert_agrees(*as_arguments((log_probs, targets, star_scores, wild)))
        assert_agrees(*as_arguments((log_probs, targets.int(), star_scores, wild_gaps)))


@pytest.mark.parametrize("value", [INF, torch.nan, 2.0**100], ids=str)
def test_stars_that_are_none(star_case, generator, emulated, assert_agrees, value):
    """As -inf in their frames, and only there."""
    for dtype, C in KINDS:
        log_probs, targets, star_scores, wild_gaps = star_case(2, 700, 100, C, dtype=dtype, labels=0.05)
        star_scores[torch.rand(star_scores.shape, generator=generator) < 0.3] = value
        paths, scores = assert_agrees(*as_arguments((log_probs, targets, star_scores, wild_gaps)))
        assert (paths != -1).all()
        as_none = star_scores.masked_fill(~(star_scores < 2.0**100), -INF)
        assert_equal(emulated(*as_arguments((log_probs, targets, as_none, wild_gaps))), (paths, scores), value)
        star_scores[1] = value
        paths, _ = assert_agrees(*as_arguments((log_probs, targets, star_scores, wild_gaps)))
        assert (paths[1] == -1).all()  # its star labels


def test_a_star_where_the_blank_is_none(star_case, assert_agrees):
    for value in (-INF, INF, torch.nan):
        log_probs, targets, star_scores, _ = star_case(2, 600, 50, FEW_CLASSES)
        log_probs[..., 0] = value
        wild_gaps = torch.ones(2, 51, dtype=torch.bool)
        paths, _ = assert_agrees(*as_arguments((log_probs, targets, star_scores, wild_gaps)))
        assert (paths == GAP_STAR).any()
        assert not (paths == 0).any()


@pytest.mark.parametrize("bad", mostly_slow([*BAD, "blank", "C + 1"], [-(2**63), "C + 1"]), ids=str)
def test_bad_values_mark_their_items_alone(star_case, emulated, drawn, draw, bad):
    T, L = 530, 270
    for dtype, C in draw.sample(KINDS, min(2, len(KINDS))):
        log_probs, targets, star_scores, wild_gaps = star_case(6, T, L, C, dtype=dtype)
        lengths = torch.full((6,), T), torch.tensor([L, L, L, L, L, 200])
        expected = reference.forced_align(log_probs, targets, *lengths, 0, star_scores, wild_gaps)
        for b, k in ((1, 0), (2, 255), (3, 256), (4, L - 1)):
            targets[b, k] = {"blank": 0, "C + 1": C + 1}.get(bad, bad)
        targets[5, 200:] = targets[4, L - 1]  # padding: not bad at all
        expected[0][1:5], expected[1][1:5] = -1, -INF
        for given in drawn():
            found = emulated(log_probs, targets, *lengths, 0, star_scores, wild_gaps, conditions=given)
            assert_equal(found, expected, given)


@pytest.mark.parametrize("T", [1, 2, 130])
def test_without_star_scores_a_star_label_is_bad(emulated, drawn, T):
    for C in (3, 31, 32, MANY_CLASSES):
        log_probs, targets = torch.zeros(2, T, C), torch.tensor([[C], [1]])
        for given in drawn():
            paths, scores = emulated(log_probs, targets, conditions=given)
            assert (paths[0] == -1).all(), given
            assert (scores[0] == -INF).all(), given
            assert (paths[1] >= 0).all(), given


@pytest.mark.parametrize("mistake", ["a label after the star", "a star that is none", "too short"])
def test_function_says_of_marked_items_what_it_says_on_the_cpu(star_case, emulated, mistake):
    """On CUDA bad values are marked at first; the strict function then names the one that it names on the CPU."""
    log_probs, targets, star_scores, wild_gaps = star_case(3, 40, 8, 5)
    targets[:, 3] = 5  # the star
    input_lengths = torch.tensor([40, 40, 7 if mistake == "too short" else 40])
    if mistake == "a label after the star":
        targets[1, 6] = 6
    if mistake == "a star that is none":
        star_scores[2] = torch.nan
    arguments = log_probs, targets, input_lengths, None, 0
    paths, _ = emulated(*arguments, star_scores, wild_gaps)
    assert (paths[:, 0] == -1).any()
    with pytest.raises(ValueError) as on_cuda:
        torch_ctc_align.functional._raise_for_marked_items(paths, *arguments, star_scores)
    with pytest.raises(ValueError) as on_cpu:
        torch_ctc_align.forced_align(*arguments, star_scores=star_scores, wild_gaps=wild_gaps)
    assert str(on_cuda.value) == str(on_cpu.value)


def test_bad_values_everywhere(generator, emulated, draw, drawn):
    """Noise in place of every argument: the emulator runs to its end."""
    for _ in range(20 * MORE):
        B, T, L, C = (draw.choice(sizes) for sizes in ([1, 3], [1, 130, 600], [0, 1, 300], [1, 2, 32, 40]))
        some = torch.tensor([*BAD, 0, 1, 1, 2, C, C, C + 1, L, T])
        targets, input_lengths, target_lengths = (
            some[torch.randint(0, len(some), shape, generator=generator)] for shape in [(B, L), (B,), (B,)]
        )
        bits = torch.randint(-(2**31), 2**31, (B, T, C + 1), generator=generator).int().view(torch.float32)
        wild_gaps = torch.randint(0, 2, (B, L + 1), generator=generator).bool()
        case = bits[..., :C], targets, input_lengths, target_lengths, 0, bits[..., C], wild_gaps
        paths, scores = emulated(*case, conditions=drawn()[0])
        assert ((paths >= GAP_STAR) & (paths <= C)).all()
        assert ((paths == -1) == (scores == -INF)).all()


def test_padding_is_never_read(star_case, generator, assert_agrees):
    B, T, L = 5, 560, 270
    for dtype, C in KINDS:
        log_probs, targets, star_scores, wild_gaps = star_case(B, T, L, C, dtype=dtype)
        input_lengths = torch.randint(0, T + 1, (B,), generator=generator)
        target_lengths = torch.randint(0, L + 1, (B,), generator=generator)
        expected = reference.forced_align(
            log_probs, targets, input_lengths, target_lengths, 0, star_scores, wild_gaps.clone()
        )
        is_padding = torch.arange(T) >= input_lengths[:, None]
        log_probs[is_padding], star_scores[is_padding] = torch.nan, 0
        targets[torch.arange(L) >= target_lengths[:, None]] = C
        wild_gaps[torch.arange(L + 1) > target_lengths[:, None]] ^= True
        case = log_probs, targets, star_scores, wild_gaps
        assert_agrees(*as_arguments(case, input_lengths, target_lengths), expected=expected)


def test_replay_with_other_contents(star_case, emulated, drawn):
    """As a CUDA graph does it: the workspace still holds what the call before has left there."""
    given = drawn()[0]
    for i, (frames, labels) in enumerate([(1100, 300), (700, 290), (1, 1), (0, 0), (1050, 10)]):
        case = star_case(2, 1100, 300, 12)
        arguments = as_arguments(case, torch.tensor([frames, 1100]), torch.tensor([labels, 200]))
        expected = reference.forced_align(*arguments)
        assert_equal(emulated(*arguments, conditions=given, replay=i > 0), expected, given)
