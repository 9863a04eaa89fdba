"""The CUDA sums over all paths without a GPU: their text, run by the emulator, gives the bits of the CPU operators.

``harness/sums.py`` says what *conditions* are; CTC_ALIGN_LAUNCHES asks for more of them. Every output lies amid numbers
that nobody may change. The longest cases, and those that repeat others under more conditions, are marked slow.
"""

import itertools
import random
from dataclasses import replace

import pytest
import torch
from conftest import SEED
from harness.emulated import MORE, UNDER_ASAN, mostly_slow, start_under_address_sanitizer, without_repeats
from harness.sums import (
    EmulatedSums,
    SumCase,
    SumConditions,
    draw_conditions,
    make_case,
    same_bits,
)
from test_agreement import LAYOUTS

INF = torch.inf
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
FEW_CLASSES, MANY_CLASSES = 20, 40  # whole rows of up to 32 classes are shared; of more, each pair's own label
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
if UNDER_ASAN:
    DTYPES.remove(torch.float64)
KINDS = list(itertools.product(DTYPES[: 1 if UNDER_ASAN else 2], [FEW_CLASSES, MANY_CLASSES]))


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    return EmulatedSums(tmp_path_factory)


@pytest.fixture
def draw(request):
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def drawn(draw):
    """drawn(n): n conditions, at random."""
    return lambda n=1: [draw_conditions(draw) for _ in range(n * MORE)]


def assert_same(found, expected, *given):
    for i, (left, right) in enumerate(zip(found, expected, strict=True)):
        if not same_bits(left, right):
            places = ((left != right) & ~(left.isnan() & right.isnan())).nonzero()
            where = tuple(places[0].tolist()) if len(places) else "signs of zero"
            pytest.fail(f"output {i} differs at {len(places)} places, first {where}: {given}")


@pytest.fixture
def assert_agrees(sums, drawn):
    """assert_agrees(case) holds for all operators, each under one condition drawn at random, or under those given.

    `expected` are the outputs of each operator. Without them the CPU's are.
    """

    def check(case, names=None, conditions=None, expected=None):
        for name in names or case.names():
            right = expected[name] if expected else case.run(name)
            for given in conditions or drawn():
                shape = *case.log_probs.shape, case.targets.shape[1]
                assert_same(sums(name, case, given), right, name, shape, case.log_probs.dtype, given)

    return check


def mark(outputs, items):
    """The outputs of all operators, with some items marked: zeros, and log-likelihoods of -inf."""
    for first, *log_likelihoods in outputs.values():
        first[items] = 0
        for tensor in log_likelihoods:
            tensor[items] = -INF
    return outputs


# ---------------------------------------------------------------------------------------------------------- sizes

FRAMES = [1, 2, 3, 4, 5, 15, 16, 17, 18, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257]


@pytest.mark.parametrize("T", mostly_slow(FRAMES, [1, 2, 5, 17, 33, 129]))
def test_any_number_of_frames(generator, assert_agrees, T):
    """With no label, one, some, as many as frames, and one too many; and items that are shorter than the batch."""
    most = min(T + 1, 130)
    for i, (dtype, C) in enumerate(KINDS):
        case = make_case(generator, 7, T, most, C, dtype=dtype, stars=i % 2 == 1)
        case.targets[:5] = without_repeats(case.targets, C)[:5]
        case.input_lengths = torch.cat([torch.full((5,), T), torch.randint(0, T + 1, (2,), generator=generator)])
        case.target_lengths = torch.tensor([min(n, most) for n in [0, 1, T // 3, T, T + 1, T // 2, T // 4]])
        assert_agrees(case)


LABELS = [0, 1, 2, 62, 63, 64, 65, 66, 126, 127, 128, 129, 191, 192, 193]


@pytest.mark.parametrize("L", mostly_slow(LABELS, [0, 63, 64, 192]))
def test_any_number_of_warps(generator, assert_agrees, L):
    """The last pair has its blank alone, so 63 labels fill a warp."""
    for i, (dtype, C) in enumerate(KINDS):
        assert_agrees(make_case(generator, 2, L + L // 4 + 3, L, C, dtype=dtype, stars=i % 2 == 1, ragged=True))


COLUMNS = [254, 255, 256, 257, 320, 511, 512, 513]


@pytest.mark.parametrize("L", mostly_slow(COLUMNS, [255, 256, 513]))
def test_any_number_of_columns(generator, assert_agrees, draw, L):
    """Items that end in another column than the longest one."""
    for i, (dtype, C) in enumerate(KINDS if L % 2 else KINDS[::-1][:2]):
        case = make_case(generator, 2, L + 60, L, C, dtype=dtype, stars=i % 2 == 1)
        case.target_lengths = torch.tensor([L, min(L, draw.choice([0, 1, 254, 255, 256, L - 1]))])
        assert_agrees(case, draw.sample(case.names(), 2))


@pytest.mark.parametrize("spare", mostly_slow([0, 1, 2, 15, 16, 255, 256, 257], [0, 1]))
def test_dense_speech(generator, assert_agrees, draw, spare):
    """T = L + R + spare: columns enter the band late and leave it early."""
    for L, (dtype, C) in zip([520, 300, 300, 256], KINDS, strict=False):
        case = make_case(generator, 1, 2 * L + spare, L, C, dtype=dtype)
        frames = L + int((case.targets[0, 1:] == case.targets[0, :-1]).sum()) + spare
        case.input_lengths = torch.tensor([frames])
        assert_agrees(case, draw.sample(case.names(), 2))
        assert (case.run("posteriors")[1] > -INF).all()


@pytest.mark.parametrize("C", mostly_slow([1, 2, 3, 31, 32, 33, 300], [1, 32, 33]))
def test_any_class_as_blank(generator, assert_agrees, C):
    for dtype, blank in itertools.product(DTYPES[: len(KINDS) // 2], {0, C // 2, C - 1}):
        for stars in (False, True):
            L = 30 if C > 1 or stars else 0
            assert_agrees(make_case(generator, 2, 70, L, C, dtype=dtype, blank=blank, stars=stars, ragged=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(generator, assert_agrees, dtype):
    for C, stars in itertools.product([FEW_CLASSES, MANY_CLASSES], [False, True]):
        for scale in (1, 20):
            assert_agrees(make_case(generator, 2, 90, 40, C, dtype=dtype, stars=stars, scale=scale, ragged=True))


def test_empty_extents(assert_agrees):
    for B, T, L in [(2, 0, 0), (2, 0, 3), (2, 5, 0), (1, 1, 0), (1, 0, 300), (1, 3, 300)]:
        case = SumCase(torch.zeros(B, T, 4), torch.arange(B * L).reshape(B, L) % 3 + 1)
        case.starts, case.ends = torch.zeros(B, L).long(), torch.ones(B, L).long()
        case.path_values = torch.ones(B, T, L + 1)
        assert_agrees(case)


# -------------------------------------------------------------------------------------------- how a batch is cut

CUTS = [(0, 16, 16), (0, 16, 32), (0, 16, 80), (0, 32, 32), (0, 32, 96), (0, 48, 144), (0, 64, 128), (0, 128, 128)]
CUTS += [(1, 16, 16), (2, 16, 48), (1, 0, 0), (2, 0, 0), (3, 0, 64), (0, 0, 0)]


@pytest.mark.parametrize("sizes", mostly_slow(CUTS, CUTS[::5]), ids=str)
def test_any_cut_into_groups_segments_and_chapters(generator, assert_agrees, draw, sizes):
    """One column and three, so that columns enter and leave the band in every chapter; one item ends early."""
    for i, (B, T, L, C) in enumerate([(3, 130, 30, FEW_CLASSES), (2, 560, 513, MANY_CLASSES), (3, 97, 96, 33)]):
        case = make_case(generator, B, T, L, C, stars=i != 1)
        case.targets[0] = without_repeats(case.targets, C)[0]
        case.input_lengths = torch.tensor([T, T - 34, 17][:B])
        case.target_lengths = torch.tensor([L, L // 2, 3][:B])
        conditions = [SumConditions(sizes, draw.choice([1, 2, 5]), 2, draw.randrange(2**32)) for _ in range(MORE)]
        assert_agrees(case, None if L < 100 else draw.sample(case.names(), 2), conditions)


@pytest.mark.parametrize("end", mostly_slow([0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 96], [0, 16, 33]))
def test_items_that_end_at_any_border(generator, assert_agrees, end):
    """Segments of 16 frames, chapters of 32: the item's last frame is the first or the last of either, or between."""
    case = make_case(generator, 3, 96, 12, FEW_CLASSES, stars=True)
    case.input_lengths, case.target_lengths = torch.tensor([end, 96, end]), torch.tensor([5, 12, 0])
    for sizes in ((0, 16, 32), (2, 32, 32)):
        assert_agrees(case, conditions=[SumConditions(sizes)])


def test_chapters_at_two_levels(generator, assert_agrees):
    """More than 64 chapters: rows before parts, and before the chapters of a part."""
    case = make_case(generator, 2, 1100, 9, 6, ragged=True)
    assert_agrees(case, conditions=[SumConditions((0, 16, 16), 2, 2, 5)])


@pytest.mark.slow
def test_chapters_at_two_levels_of_three_columns(generator, assert_agrees):
    case = make_case(generator, 2, 1300, 600, FEW_CLASSES, stars=True, ragged=True)
    assert_agrees(case, conditions=[SumConditions((0, 16, 16), 3, 2, 5)])


ORDERS = list(itertools.product([1, 3, 9], range(3)))


@pytest.mark.parametrize("order", mostly_slow(ORDERS, [(1, 1), (3, 2)]), ids=str)
def test_any_order_of_blocks(generator, assert_agrees, order):
    """However few blocks are resident, none waits for one that cannot begin."""
    case = make_case(generator, 2, 600, 520, FEW_CLASSES, stars=True)
    for name in ("span_posteriors", "posteriors_backward"):
        assert_agrees(case, [name], [SumConditions((0, 64, 192), *order, 1)])


def test_twenty_equal_runs(generator, sums, draw):
    for L, C in [(20, FEW_CLASSES), (20, MANY_CLASSES), (257, FEW_CLASSES)]:
        case = make_case(generator, 3, L + 20, L, C, stars=True, ragged=True)
        for name in ["posteriors_backward", *(case.names()[:3] if L < 100 else [])]:
            expected = sums(name, case)
            for _ in range(20):
                given = draw_conditions(draw)
                assert_same(sums(name, case, given), expected, name, given)


def test_an_item_alone_and_in_batches_of_other_sizes(generator, sums, drawn):
    """Padding more labels and frames, in as many columns as the longest item has."""
    for C in (FEW_CLASSES, MANY_CLASSES):
        small = make_case(generator, 1, 50, 20, C, stars=True)
        large = make_case(generator, 3, 330, 280, C, stars=True)
        large.input_lengths, large.target_lengths = torch.tensor([330, 50, 200]), torch.tensor([280, 20, 100])
        for name, there in vars(small).items():
            if isinstance(there, torch.Tensor) and name != "path_values":
                getattr(large, name)[(1, *map(slice, there.shape[1:]))] = there[0]
        large.wild_gaps[1, 21:] = True
        large.path_values[1, :50, :20] = small.path_values[0, :, :20]
        large.path_values[1, :50, -2:] = small.path_values[0, :, -2:]
        for name in small.names():
            for given in drawn(2):
                alone, *_ = sums(name, small, given)
                found, *_ = sums(name, large, given)
                if name == "span_posteriors":
                    found = found[1:2, :20]
                elif name == "posteriors":
                    found = torch.cat([found[1:2, :50, :20], found[1:2, :50, -1:]], 2)
                else:
                    found = found[1:2, :50]
                assert_same([found], [alone], name, given)


# ---------------------------------------------------------------------------------------------------------- stars


@pytest.mark.parametrize("T", [1, 2, 3, 40])
def test_nothing_but_stars(generator, assert_agrees, T):
    for C, L in itertools.product([1, FEW_CLASSES, MANY_CLASSES], [0, 1, min(T, 20)]):
        for wild in (True, False):
            case = make_case(generator, 2, T, L, C, stars=True)
            case.targets.fill_(C)
            assert_agrees(replace(case, wild_gaps=torch.full((2, L + 1), wild)))
            assert_agrees(replace(case, wild_gaps=None))


@pytest.mark.parametrize("L", [30, 300])
def test_stars_of_minus_infinity_are_none(generator, assert_agrees, L):
    for C in (FEW_CLASSES, MANY_CLASSES):
        case = make_case(generator, 2, L + 20, L, C)
        stars = replace(case, star_scores=torch.full((2, L + 20), -INF), wild_gaps=torch.ones(2, L + 1).bool())
        names = ["posteriors", "class_posteriors", "span_posteriors"]
        assert_agrees(stars, names, expected={name: case.run(name) for name in names})


def test_free_ends(generator, assert_agrees):
    """The path is in the wild gaps at both ends of two columns."""
    case = make_case(generator, 1, 500, 260, FEW_CLASSES, stars=True)
    case.wild_gaps = torch.zeros(1, 261, dtype=torch.bool)
    case.wild_gaps[:, [0, 260]] = True
    case.log_probs[:, :100] -= 20
    case.log_probs[:, 420:] -= 20
    assert_agrees(case, conditions=[SumConditions((0, 64, 128))])


# --------------------------------------------------------------------------------------------------------- values

LEVELS = [-INF, INF, torch.nan, -30000.0, 2.0**18, -(2.0**18), 2.0**20, 2.0**100, -3e38]


@pytest.mark.parametrize("level", mostly_slow(LEVELS, [-INF, -30000.0, 2.0**18]), ids=str)
def test_emissions_far_from_zero(generator, assert_agrees, level):
    """Some of them; then all of one frame; then all."""
    for i, (dtype, C) in enumerate(KINDS):
        case = make_case(generator, 3, 60, 25, C, dtype=dtype, stars=i % 2 == 1, scale=4)
        for values in (case.log_probs, case.star_scores):
            if values is not None:
                values[torch.rand(values.shape, generator=generator) < 0.05] = level
                values[1, 30] = level
                values[2] = level
        assert_agrees(case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_emissions_of_every_kind(generator, assert_agrees, draw, dtype):
    """One beside another, subnormal numbers as well; in one column and two."""
    limits = torch.finfo(dtype)
    levels = [*LEVELS, limits.smallest_normal / 2, -limits.tiny, limits.max, limits.min, 0.0, -0.0, 88.8, -104.0]
    levels = torch.tensor(levels, dtype=torch.float64).to(dtype)
    for (T, L), C in itertools.product([(60, 25), (300, 260)], [FEW_CLASSES, MANY_CLASSES]):
        case = make_case(generator, 2, T, L, C, dtype=dtype, stars=True, scale=4)
        names = case.names() if L < 100 else draw.sample(case.names(), 2)
        for values in (case.log_probs, case.star_scores):
            chosen = torch.rand(values.shape, generator=generator) < 0.1
            values[chosen] = levels[torch.randint(0, len(levels), (int(chosen.sum()),), generator=generator)]
        assert_agrees(case, names)


def test_masks_of_many_labels(generator, assert_agrees, draw):
    """-30000 in every frame of 300 labels: states of a frame lie millions of bits apart."""
    for C in (FEW_CLASSES, MANY_CLASSES):
        case = make_case(generator, 1, 340, 300, C)
        case.log_probs[torch.rand(case.log_probs.shape, generator=generator) < 0.5] = -30000
        assert_agrees(case)
        case.log_probs[..., 1:] = -30000
        assert_agrees(case, draw.sample(case.names(), 2))


PATH_VALUES = [torch.nan, INF, -INF, 3e38, -1e30, -1e-45, 0.0]


@pytest.mark.parametrize("value", mostly_slow(PATH_VALUES, [torch.nan, 3e38]), ids=str)
def test_path_values_of_any_kind(generator, assert_agrees, value):
    """Their sums overflow as the CPU's do, whatever states are outside the band; and no other item notices."""
    for (T, L), (dtype, C) in zip([(40, 12), (300, 257), (40, 12), (40, 12)], KINDS, strict=False):
        case = make_case(generator, 3, T, L, C, dtype=dtype, stars=C == FEW_CLASSES, ragged=True)
        without = case.run("posteriors_backward")[0]
        for share in (0.1, 0.01, 1e-4):
            case = case.copy()
            case.path_values[1][torch.rand(case.path_values[1].shape, generator=generator) < share] = value
            expected = case.run("posteriors_backward")
            assert_same([expected[0][[0, 2]]], [without[[0, 2]]])
            assert_agrees(case, ["posteriors_backward"], expected={"posteriors_backward": expected})


BORDERS = [INT64_MIN, -(2**32), -1, 0, 59, 60, 61, 2**31, 2**32 + 3, INT64_MAX]


@pytest.mark.parametrize("border", mostly_slow(BORDERS, [INT64_MIN, -1, 60, 2**32 + 3]), ids=str)
def test_spans_out_of_range(generator, assert_agrees, border):
    """Also empty ones, and such as end before they begin."""
    for stars in (False, True):
        case = make_case(generator, 4, 60, 20, FEW_CLASSES, stars=stars, ragged=True)
        case.starts[0], case.ends[1] = border, border
        case.starts[2], case.ends[2] = border, ~border
        assert_agrees(case, ["span_posteriors"], [SumConditions(), SumConditions((0, 16, 32))])


def test_spans_of_whole_items_and_across_borders(generator, assert_agrees):
    case = make_case(generator, 2, 340, 300, MANY_CLASSES)
    for starts, lengths in [(0, 340), (15, 18), (100, 40)]:
        case.starts.fill_(starts)
        case.ends = case.starts + lengths
        assert_agrees(case, ["span_posteriors"], [SumConditions((0, 32, 64), 2, 2, 9), SumConditions()])


# ------------------------------------------------------------------------------------------------ lengths, bad input


def test_items_without_a_path(generator, assert_agrees, draw):
    """No frame, too few frames, a wall; beside others."""
    for L in (20, 260):
        case = make_case(generator, 6, L + 30, L, FEW_CLASSES, stars=True)
        case.targets[4, :8] = 3
        names = case.names() if L < 100 else draw.sample(case.names(), 2)
        case.input_lengths = torch.tensor([L + 30, 0, 0, L - 1, 14, L + 30])
        case.target_lengths = torch.tensor([L, 0, 2, L, 8, L])
        case.log_probs[5, 7], case.star_scores[5, 7] = -INF, -INF
        assert case.run("posteriors")[1].isfinite().tolist() == [True, True, False, False, False, False]
        assert_agrees(case, names)


# Integers that are neither a length nor a class here.
BAD = [INT64_MIN, -(2**32) + 1, -(2**31), -1, 1100, 2**31 - 1, 2**32 + 1, INT64_MAX]


@pytest.mark.parametrize("bad", mostly_slow([*BAD, "blank", "C + 1"], [INT64_MIN, "blank"]), ids=str)
@pytest.mark.parametrize("L", [20, 270])
def test_bad_values_mark_their_items_alone(generator, assert_agrees, draw, L, bad):
    """Labels and lengths out of their ranges: nothing is read there, and the neighbours do not notice."""
    T = L + 40
    for dtype, C in draw.sample(KINDS, min(2, len(KINDS))):
        stars = bad == "C + 1" or draw.random() < 0.5
        case = make_case(generator, 9, T, L, C, dtype=dtype, stars=stars)
        case.input_lengths, case.target_lengths = torch.full((9,), T), torch.full((9,), L)
        case.input_lengths[8], case.target_lengths[8] = T - 5, 15
        names = draw.sample(case.names(), 2) if L > 100 else case.names()
        expected = {name: case.run(name) for name in names}
        value = {"blank": case.blank, "C + 1": C + 1}.get(bad, bad)
        for b, k in ((1, 0), (2, L // 2), (3, L - 1)):
            case.targets[b, k] = value
        case.targets[8, 15:] = value  # padding: not bad at all
        marked = [1, 2, 3]
        if bad != "blank" and not 0 <= value <= L:
            case.input_lengths[5] = case.target_lengths[6] = value if not 0 <= value <= T else -1
            case.input_lengths[7], case.target_lengths[7] = -1, INT64_MAX
            marked += [5, 6, 7]
        assert_agrees(case, names, expected=mark(expected, marked))


def test_bad_values_everywhere(generator, sums, draw, drawn):
    """Noise in place of every argument: the emulator runs to its end, and sums are sums."""
    for _ in range(20 * MORE):
        B, T, L, C = (draw.choice(sizes) for sizes in ([1, 3], [1, 40, 300], [0, 1, 30, 260], [1, 2, 40]))
        case = make_case(generator, B, T, L, C, stars=draw.choice([False, True]))
        some = torch.tensor([*BAD, 0, 1, 1, 2, L, T])
        case.targets, case.input_lengths, case.target_lengths, case.starts, case.ends = (
            some[torch.randint(0, len(some), shape, generator=generator)]
            for shape in [(B, L), (B,), (B,), (B, L), (B, L)]
        )
        noise = torch.randint(-(2**31), 2**31, (B, T, C), generator=generator).int().view(torch.float32)
        case.log_probs = noise if draw.random() < 0.5 else case.log_probs
        for name in case.names():
            first, *log_likelihoods = sums(name, case, drawn()[0])
            if log_likelihoods and case.log_probs is not noise:
                marked = log_likelihoods[0] == -INF
                assert first.isfinite().all()
                assert (first[marked] == 0).all()


@pytest.mark.parametrize("value", mostly_slow([torch.nan, INF, -3e38], [torch.nan]), ids=str)
def test_padding_is_never_read(generator, assert_agrees, draw, value):
    for L, (dtype, C) in [*((25, kind) for kind in KINDS), (270, draw.choice(KINDS))]:
        T = L + 40
        case = make_case(generator, 5, T, L, C, dtype=dtype, stars=True)
        case.input_lengths = torch.tensor([T, T - 1, T - 30, 3, 0])
        case.target_lengths = torch.tensor([L, L - 1, 2, 1, 0])
        names = case.names() if L < 100 else ["span_posteriors", "posteriors_backward"]
        expected = {name: case.run(name) for name in names}
        frames = torch.arange(T) >= case.input_lengths[:, None]
        labels = torch.arange(L) >= case.target_lengths[:, None]
        case.log_probs[frames] = case.star_scores[frames] = case.path_values[frames] = value
        case.path_values[..., :L][labels[:, None].expand(-1, T, -1)] = value
        case.targets[labels] = case.starts[labels] = INT64_MIN
        case.ends[labels] = INT64_MAX
        case.wild_gaps[:, 1:][labels] ^= True
        assert_agrees(case, names, expected=expected)


def test_replay_with_other_contents_and_lengths(generator, sums, drawn):
    """As a CUDA graph does it: the workspace still holds what the call before has left there."""
    for L, name in [
        (40, "span_posteriors"),
        (280, "posteriors"),
        (280, "span_posteriors"),
        (280, "posteriors_backward"),
    ]:
        T = L + 40
        for given in drawn():
            for i, (frames, labels) in enumerate([(T, L), (T - 9, L - 3), (L, L), (1, 1), (0, 0), (T, 3), (T, L)]):
                case = make_case(generator, 2, T, L, FEW_CLASSES, stars=True)
                case.input_lengths, case.target_lengths = torch.tensor([frames, T]), torch.tensor([labels, 10])
                expected = {name: case.run(name)}
                if i % 3 == 1:
                    case.targets[1, 7] = -1
                    mark(expected, [1])
                assert_same(sums(name, case, given, replay=i > 0), expected[name], name, given, i)


# --------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_any_layout(generator, assert_agrees, layout):
    def apart(x):
        return torch.stack([x, x.flip(-1)], -1)[..., 0]

    for dtype, C in KINDS:
        case = make_case(generator, 3, 60, 20, C, dtype=dtype, stars=True)
        lengths = torch.tensor([[60, 20], [50, 8], [33, 0]])  # with stride 2
        case.input_lengths, case.target_lengths = lengths[:, 0], lengths[:, 1]
        case = replace(case, log_probs=layout(case.log_probs), path_values=layout(case.path_values))
        names = ["targets", "star_scores", "wild_gaps", "starts", "ends"]
        assert_agrees(replace(case, **{name: apart(getattr(case, name)) for name in names}))
        assert_agrees(replace(case, **{name: getattr(case, name).t().contiguous().t() for name in names}))


def test_tensors_of_one_number(generator, assert_agrees):
    """Expanded, with strides of 0."""
    for C in (FEW_CLASSES, MANY_CLASSES):
        case = make_case(generator, 3, 60, 20, C, stars=True)
        case.log_probs = case.log_probs[:1, :1].expand(3, 60, C)
        case.star_scores = case.star_scores[:, :1].expand(3, 60)
        case.wild_gaps = torch.tensor(True).expand(3, 21)
        case.starts, case.ends = torch.tensor(3).expand(3, 20), case.ends[:1].expand(3, 20)
        case.path_values = case.path_values[:, :, :1].expand(3, 60, 22)
        assert_agrees(case)


def test_either_integer_type(generator, assert_agrees):
    case = make_case(generator, 3, 60, 20, 9, stars=True, ragged=True)
    names = ["targets", "input_lengths", "target_lengths"]
    for types in itertools.product([torch.int32, torch.int64], repeat=3):
        assert_agrees(
            replace(case, **{name: getattr(case, name).to(to) for name, to in zip(names, types, strict=True)})
        )


def test_many_items(generator, assert_agrees):
    """From nothing to everything, in groups and alone."""
    B, T, L = 80, 40, 18
    case = make_case(generator, B, T, L, 12, stars=True)
    case.input_lengths, case.target_lengths = torch.arange(B) % (T + 1), torch.arange(B) * 7 % (L + 1)
    assert_agrees(case, conditions=[SumConditions((sizes, 0, 0), 5, 2, 3) for sizes in (0, 30, 1)])


# ----------------------------------------------------------------------------------------------------- drawn cases


def check_drawn_case(seed, sums):
    """A case and conditions from a seed: every size and value that is likely to meet a seam."""
    draw, generator = random.Random(f"{SEED} {seed}"), torch.Generator().manual_seed(SEED * 1_000_000 + seed)
    if seed % 10 == 0:
        T, L = draw.choice([(300, 256), (300, 255), (420, 300), (560, 513), (280, 280), (600, 257)])
    else:
        T = draw.choice([1, 2, 3, 5, 15, 16, 17, 18, 31, 33, 50, 80, draw.randint(1, 150)])
        L = min(draw.choice([0, 1, 2, 5, 20, 60, 63, 64, 65, draw.randint(0, 90)]), T)
    C = draw.choice([2, 3, 5, 20, 31, 32, 33, 40, draw.randint(2, 80)])
    options = {"dtype": draw.choice(DTYPES), "blank": draw.choice([0, C // 2, C - 1]), "scale": draw.choice([1, 4, 20])}
    options |= {"stars": draw.random() < 0.5, "ragged": draw.random() < 0.6}
    case = make_case(generator, draw.randint(1, 3), T, L, C, **options)
    if draw.random() < 0.2:
        holes = torch.rand(case.log_probs.shape, generator=generator) < 0.1
        case.log_probs[holes] = draw.choice([-INF, torch.nan, -1e4, -30000.0, 2.0**18])
    if draw.random() < 0.5:
        case.targets = case.targets.int()
    if draw.random() < 0.2:
        case.wild_gaps = None
    given = draw_conditions(draw)
    for name in draw.sample(case.names(), 1):
        assert_same(sums(name, case, given), case.run(name), f"seed {seed}", name, given)


def test_drawn_cases(sums):
    for seed in range(150 * MORE):
        check_drawn_case(seed, sums)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(1, 9))
def test_more_drawn_cases(sums, block):
    for seed in range(1000 * block, 1000 * (block + 1)):
        check_drawn_case(seed, sums)


# ---------------------------------------------------------------------------------------------- AddressSanitizer


@pytest.fixture(scope="module", autouse=True)
def sanitized(request):
    """A run under AddressSanitizer: a process beside the other tests, if the last of them is to run, too."""
    wanted = any(item.name == "test_sums_under_address_sanitizer" for item in request.session.items)
    cases = "frames[1] or frames[17] or frames[129] or warps[64] or columns[256] or bad_values or padding or replay or "
    cases += "any_layout or blank[1] or blank[32] or blank[33] or any_cut or out_of_range"
    process = start_under_address_sanitizer([__file__], cases) if wanted else None
    yield process
    if process is not None:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_sums_under_address_sanitizer(sanitized, missing):
    """Bad input, padding, replay and a few sizes: no access leaves its tensor or its part of the workspace."""
    if sanitized is None:
        missing("asan", "the compiler has no AddressSanitizer, or this is the run under it")
    said, _ = sanitized.communicate(timeout=900)
    assert sanitized.returncode == 0, said
