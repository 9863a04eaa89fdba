"""Stars in the operator: answers by hand, every path of tiny lattices, and equal bits on every way.

In a wild gap a blank's emission is the larger of the blank's and the star's; label C is the star as a label.
"""

import functools
import itertools
import math
import random
import warnings

import pytest
import torch
from conftest import SEED
from test_agreement import FLOATS, assert_same
from test_memory_levels import BUDGETS, CPUS, CUTS, GROUPS, STRIPS, THREADS, Way
from test_optimality import INF, preference, spelled_by

import torch_ctc_align
from torch_ctc_align import reference

GAP_STAR = -2
forced_align = torch.ops.ctc_align.forced_align


def wild(*rows):
    return torch.tensor(rows, dtype=torch.bool)


# By hand


def test_a_wild_gap_takes_the_better_of_blank_and_star(align):
    """Frames: a star, a tie, the label, a blank, a star. Both gaps are wild; the blank wins the tie."""
    log_probs = torch.tensor([[[-3.0, -9], [-1, -9], [-9, 0], [-1, -9], [-5, -9]]])
    stars = torch.tensor([[-1.0, -1, -1, -2, -4]])
    paths, scores = align(log_probs, torch.tensor([[1]]), None, None, 0, stars, wild([1, 1]))
    assert paths.tolist() == [[GAP_STAR, 0, 1, 0, GAP_STAR]]
    assert scores.tolist() == [[-1, -1, 0, -1, -4]]


def test_only_the_wild_gap_takes_the_star(align):
    log_probs = torch.tensor([[[-3.0, -9], [-9, 0], [-3, -9]]])
    stars = torch.full((1, 3), -1.0)
    for gaps, expected in (([1, 0], [GAP_STAR, 1, 0]), ([0, 1], [0, 1, GAP_STAR]), ([0, 0], [0, 1, 0])):
        assert align(log_probs, torch.tensor([[1]]), None, None, 0, stars, wild(gaps))[0].tolist() == [expected]


def test_a_star_label_takes_a_frame(align):
    """Label 1, something, label 2. Without a frame to spare the star label takes the one that it must have."""
    log_probs = torch.tensor([[[-9.0, 0, -9], [-4, -5, -6], [-4, -5, -6], [-9, -9, 0]]])
    stars = torch.full((1, 4), -1.0)
    targets = torch.tensor([[1, 3, 2]])
    assert align(log_probs, targets, None, None, 0, stars)[0].tolist() == [[1, 3, 3, 2]]
    paths, scores = align(log_probs[:, 1:], targets, None, None, 0, stars[:, 1:])
    assert paths.tolist() == [[1, 3, 2]]
    assert scores.tolist() == [[-5, -1, 0]]


def test_two_star_labels_need_a_frame_between_them(align):
    log_probs = torch.full((1, 3, 2), -5.0)
    stars = torch.zeros(1, 3)
    targets = torch.tensor([[2, 2]])
    assert align(log_probs[:, :2], targets, None, None, 0, stars[:, :2])[0].tolist() == [[-1, -1]]
    assert align(log_probs, targets, None, None, 0, stars)[0].tolist() == [[2, 0, 2]]
    assert align(log_probs, targets, None, None, 0, stars, wild([0, 1, 0]))[0].tolist() == [[2, GAP_STAR, 2]]


def test_a_repeat_needs_a_frame_of_the_wild_gap(align):
    log_probs = torch.tensor([[[-5.0, 0], [-5, 0], [-5, 0]]])
    paths, _ = align(log_probs, torch.tensor([[1, 1]]), None, None, 0, torch.full((1, 3), -1.0), wild([0, 1, 0]))
    assert paths.tolist() == [[1, GAP_STAR, 1]]


def test_no_labels_and_a_wild_gap(align):
    log_probs = torch.tensor([[[-1.0, 0], [-3, 0], [-2, 0]]])
    empty = torch.zeros(1, 0, dtype=torch.int64)
    paths, scores = align(log_probs, empty, None, None, 0, torch.full((1, 3), -2.0), wild([1]))
    assert paths.tolist() == [[0, GAP_STAR, 0]]
    assert scores.tolist() == [[-1, -2, -2]]


def test_the_other_gaps_of_a_row_are_never_read(align, random_case):
    """Gap target_lengths[b] lies after the last label, whatever the row holds behind it."""
    log_probs, targets = random_case(2, 12, 6, 5)
    stars = log_probs.amax(-1)
    lengths = torch.tensor([3, 0])
    gaps = torch.zeros(2, 7, dtype=torch.bool)
    gaps[0, 3] = gaps[1, 0] = True
    expected = align(log_probs, targets, None, lengths, 0, stars, gaps)
    assert (expected[0] == GAP_STAR).any(1).all()
    gaps[0, 4:] = gaps[1, 1:] = True
    assert_same(align(log_probs, targets, None, lengths, 0, stars, gaps), expected)


@pytest.mark.parametrize("hole", [-INF, INF, math.nan, 2.0**101], ids=str)
def test_no_path_goes_through_a_star_that_is_no_log_probability(align, hole):
    log_probs = torch.tensor([[[-3.0, -9], [-9, 0], [-3, -9]]])
    stars = torch.tensor([[-1.0, hole, hole]])
    paths, _ = align(log_probs, torch.tensor([[1]]), None, None, 0, stars, wild([1, 1]))
    assert paths.tolist() == [[GAP_STAR, 1, 0]]
    both = log_probs.clone()
    both[0, 2] = -INF
    results = align(both, torch.tensor([[1]]), None, None, 0, stars, wild([1, 1]))
    assert [result.tolist() for result in results] == [[[-1, -1, -1]], [[-INF, -INF, -INF]]]
    assert align(log_probs, torch.tensor([[2]]), None, None, 0, stars)[0].tolist() == [[2, 0, 0]]


def test_the_star_saves_a_frame_that_has_no_log_probability(align):
    log_probs = torch.tensor([[[math.nan, math.nan], [-9, 0]]])
    paths, scores = align(log_probs, torch.tensor([[1]]), None, None, 0, torch.full((1, 2), -1.0), wild([1, 0]))
    assert paths.tolist() == [[GAP_STAR, 1]]
    assert scores.tolist() == [[-1, 0]]


# Every path of tiny lattices


@functools.cache
def paths_and_gaps(T, C, blank):
    """target -> all paths that spell it over the classes and the star, preferred first, and the gap of each frame."""
    groups = {}
    for path in itertools.product(range(C + 1), repeat=T):
        groups.setdefault(spelled_by(path, blank), []).append(path)
    found = {}
    for target, group in groups.items():
        ordered = sorted(group, key=lambda path: preference(path, blank))
        gaps = [[len(spelled_by(path[: t + 1], blank)) for t in range(T)] for path in ordered]
        found[target] = torch.tensor(ordered).reshape(-1, T), torch.tensor(gaps).reshape(-1, T)
    return found


def best_by_enumeration(log_probs, star, target, gaps_are_wild, blank):
    """(path, scores) of one item as lists, by listing every path: blanks are judged by the gap that they lie in."""
    T, C = log_probs.shape
    if tuple(target) not in paths_and_gaps(T, C, blank):
        return [-1] * T, [-INF] * T
    paths, gaps = paths_and_gaps(T, C, blank)[tuple(target)]
    usable = torch.cat((log_probs, star[:, None]), 1)
    usable = usable.where(usable.isfinite(), -INF)
    scores = usable[torch.arange(T), paths]
    is_star = (paths == blank) & gaps_are_wild[gaps] & (usable[:, C] > scores)
    scores = torch.where(is_star, usable[:, C], scores)
    totals = scores.sum(1)
    best = totals.argmax()  # of equals, the first
    if totals[best] == -INF:
        return [-1] * T, [-INF] * T
    return torch.where(is_star, GAP_STAR, paths)[best].tolist(), scores[best].tolist()


@pytest.mark.parametrize("T, blank", [(1, 0), (2, 1), (3, 0), (4, 1), (5, 0), (5, 1)])
def test_ten_thousand_tied_cases(align, random_case, generator, T, blank):
    """Whole numbers: ties between paths, and between blank and star, everywhere."""
    B, C, L = 1700, 2, 3
    log_probs, _ = random_case(B, T, L, C, steps=1)
    star = torch.randint(-3, 1, (B, T), generator=generator).float()
    holes = torch.rand(B, T, C + 1, generator=generator) < 0.05
    log_probs, star = log_probs.masked_fill(holes[..., :C], -INF), star.masked_fill(holes[..., C], math.nan)
    targets = torch.tensor([c for c in range(C + 1) if c != blank])[torch.randint(0, C, (B, L), generator=generator)]
    lengths = torch.randint(0, min(L, T) + 1, (B,), generator=generator)
    gaps = torch.rand(B, L + 1, generator=generator) < 0.5
    paths, scores = align(log_probs, targets, None, lengths, blank, star, gaps)
    for b in range(B):
        target = targets[b, : lengths[b]].tolist()
        expected = best_by_enumeration(log_probs[b], star[b], target, gaps[b], blank)
        assert (paths[b].tolist(), scores[b].tolist()) == expected, f"{target} {gaps[b]} {log_probs[b]} {star[b]}"


# Other ways to say the same


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("C", [5, 31, 32, 33, 200])
def test_star_labels_are_one_more_class(random_case, generator, cpu, C, dtype):
    """What peers do: a column concatenated to a copy of the emissions."""
    for steps in (None, 3):
        log_probs, targets = random_case(3, 90, 30, C, dtype=dtype, steps=steps)
        star = (log_probs.float().amax(-1) - 0.5).to(dtype)
        targets[torch.rand(targets.shape, generator=generator) < 0.3] = C
        expected = forced_align(torch.cat((log_probs, star[..., None]), 2), targets)
        assert_same(forced_align(log_probs, targets, star_scores=star), expected)


@pytest.mark.parametrize("C", [20, 300])
def test_stars_that_cannot_be_chosen_change_nothing(random_case, cpu, C):
    log_probs, targets = random_case(3, 90, 30, C, steps=3)
    expected = forced_align(log_probs, targets)
    star, none = torch.zeros(3, 90), torch.zeros(3, 31, dtype=torch.bool)
    assert_same(forced_align(log_probs, targets, star_scores=star), expected)
    assert_same(forced_align(log_probs, targets, star_scores=star, wild_gaps=none), expected)
    assert_same(forced_align(log_probs, targets, star_scores=star - INF, wild_gaps=~none), expected)


@pytest.mark.parametrize("C", [20, 300])
def test_a_wild_gap_everywhere_is_a_better_blank(random_case, cpu, C):
    log_probs, targets = random_case(3, 90, 30, C, steps=3, blank=4)
    star = torch.full((3, 90), -0.5)
    better = log_probs.clone()
    better[..., 4] = better[..., 4].maximum(star)
    paths, scores = forced_align(better, targets, blank=4)
    everywhere = torch.ones(3, 31, dtype=torch.bool)
    found = forced_align(log_probs, targets, blank=4, star_scores=star, wild_gaps=everywhere)
    assert torch.equal(found[1], scores)
    assert torch.equal(torch.where(found[0] == GAP_STAR, 4, found[0]), paths)
    assert (found[0] == GAP_STAR).any()


@pytest.mark.parametrize("intro", [1, 17, 512, 1400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_free_ends_make_an_intro_of_any_length_a_shift(random_case, intro, dtype):
    """Noise before and after a piece that says the target, each label for four frames and a blank for two."""
    _, targets = random_case(1, 0, 30, 20)
    said = torch.nn.functional.pad(targets[0, :, None].expand(30, 4), (1, 1)).reshape(1, -1)
    log_probs = (random_case(1, 180, 0, 20, dtype=dtype)[0] + 9 * torch.nn.functional.one_hot(said, 20)).log_softmax(-1)
    noise = random_case(1, intro, 1, 20, dtype=dtype)[0]
    long = torch.cat((noise, log_probs, noise.flip(1)), 1)
    free = torch.zeros(1, 31, dtype=torch.bool)
    free[:, 0] = free[:, -1] = True
    star = long.amax(-1) - 0.5
    paths, scores = forced_align(long, targets, star_scores=star, wild_gaps=free)
    inside = slice(intro, intro + 180)
    alone = forced_align(log_probs, targets, star_scores=star[:, inside], wild_gaps=free)
    assert torch.equal(paths[:, inside], alone[0])
    assert torch.equal(scores[:, inside], alone[1])
    outside = torch.cat((paths[:, :intro], paths[:, intro + 180 :]), 1)
    assert ((outside == GAP_STAR) | (outside == 0)).all()


# Equal bits


def random_stars(rng, kind, dtype):
    """log_probs, targets, lengths, blank, star_scores, wild_gaps: sizes and shares of stars at random."""
    B, C = rng.choice([1, 2, 3]), rng.choice([2, 5, 31, 32, 33, 90])
    L = rng.choice([0, 1, 7, 40, 150, 255, 256, 300, 520])
    T = 2 * L + rng.choice([0, 1, 30, 600])
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    log_probs = torch.randn(B, T, C + 1, generator=generator, dtype=torch.float64).log_softmax(-1)
    if kind == "thirds":
        log_probs = torch.randint(-3, 1, (B, T, C + 1), generator=generator).double() / 3
    log_probs = log_probs.to(dtype)
    log_probs, star = log_probs[..., :C], log_probs[..., C]  # both are strided
    if rng.random() < 0.3:
        star = torch.full((), -1.0, dtype=dtype).expand(B, T)
    if rng.random() < 0.3:
        log_probs = log_probs.transpose(0, 1).contiguous().transpose(0, 1)
    blank = rng.randrange(C)
    targets = torch.randint(0, C - 1, (B, L), generator=generator)
    targets += targets >= blank
    targets[torch.rand(B, L, generator=generator) < rng.choice([0, 0.2, 1])] = C
    gaps = torch.rand(B, L + 1, generator=generator) < rng.choice([0, 0.05, 0.5, 0.99, 1])
    input_lengths = torch.randint(T // 2, T + 1, (B,), generator=generator)
    target_lengths = torch.randint(0, L + 1, (B,), generator=generator)
    return log_probs, targets, input_lengths, target_lengths, blank, star, gaps


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["random", "thirds"])
def test_same_bits_on_every_way(threads, kind, dtype):
    """Instruction sets, memory levels, sizes of work, threads: all as reference.py, which goes none of these ways."""
    rng = random.Random(f"{SEED} {kind} {dtype}")
    for _ in range(12):
        arguments = random_stars(rng, kind, dtype)
        threads(1)
        expected = reference.forced_align(*arguments)
        for _ in range(6):
            way = Way(
                cpu=rng.choice(CPUS),
                cuts=rng.choice([*CUTS, None]),
                budget=rng.choice(BUDGETS),
                strip_frames=rng.choice(STRIPS),
                group_columns=rng.choice(GROUPS),
                threads=rng.choice(THREADS),
            )
            found = way.align(*arguments)
            assert torch.equal(found[0], expected[0]), way
            assert torch.equal(found[1], expected[1]), way


def test_same_bits_of_a_long_item_on_many_threads(threads, random_case, generator):
    """Many columns, some with wild gaps and some without, shared by several workers."""
    log_probs, targets = random_case(1, 6000, 2600, 32, steps=3)
    gaps = (torch.arange(2601) // 256 % 3 == 1)[None] | (torch.rand(1, 2601, generator=generator) < 0.02)
    arguments = log_probs, targets, None, None, 0, log_probs.amax(-1) - 1, gaps
    expected = Way(cpu=CPUS[-1], cuts=()).align(*arguments)
    for cpu, count in itertools.product(CPUS, (1, 2, 5)):
        assert_same(Way(cpu=cpu, cuts=None, budget=1_000_000, threads=count).align(*arguments), expected)


def test_an_item_in_a_batch_is_the_item_alone(random_case, generator):
    log_probs, targets = random_case(8, 60, 20, 9)
    star, gaps = log_probs.amax(-1) - 0.5, torch.rand(8, 21, generator=generator) < 0.5
    together = forced_align(log_probs, targets, star_scores=star, wild_gaps=gaps)
    for b in range(8):
        one = slice(b, b + 1)
        alone = forced_align(log_probs[one], targets[one], star_scores=star[one], wild_gaps=gaps[one])
        assert_same([result[one] for result in together], alone)


def test_integers_and_bools_of_any_layout(random_case, generator):
    log_probs, targets = random_case(4, 60, 20, 9)
    targets[:, ::5] = 9
    star, gaps = log_probs.amax(-1) - 0.5, torch.rand(4, 21, generator=generator) < 0.5
    expected = forced_align(log_probs, targets, star_scores=star, wild_gaps=gaps)
    strided = [tensor.t().contiguous().t() for tensor in (star, gaps)]
    found = forced_align(log_probs, targets.int(), star_scores=strided[0], wild_gaps=strided[1])
    assert found[0].dtype == torch.int32
    assert torch.equal(found[0].long(), expected[0])
    shared = forced_align(log_probs, targets, star_scores=star[:1].expand(4, -1), wild_gaps=gaps[:, :1].expand(-1, 21))
    copied = star[:1].repeat(4, 1), gaps[:, :1].repeat(1, 21)
    assert_same(shared, forced_align(log_probs, targets, star_scores=copied[0], wild_gaps=copied[1]))
    bytes_of_any_value = (gaps.to(torch.uint8) * 6).view(torch.bool)
    assert_same(forced_align(log_probs, targets, star_scores=star, wild_gaps=bytes_of_any_value), expected)


# Errors

MISFITS = {
    "gaps alone": (None, (2, 4), torch.bool, r"wild_gaps need star_scores, which say .*; found None"),
    "star shape": ((2, 4), None, torch.float32, r"star_scores must have shape \(B, T\) = \(2, 5\), found \(2, 4\)"),
    "star rank": ((5,), None, torch.float32, r"star_scores must have shape \(B, T\) = \(2, 5\), found \(5,\)"),
    "star dtype": (
        (2, 5),
        None,
        torch.float64,
        r"star_scores must have the dtype of log_probs, expected float32, found float64",
    ),
    "gaps shape": ((2, 5), (2, 3), torch.bool, r"wild_gaps must have shape \(B, L \+ 1\) = \(2, 4\), found \(2, 3\)"),
    "gaps dtype": ((2, 5), (2, 4), torch.int64, r"wild_gaps must be bool, found int64"),
}


@pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_misfits(misfit, device):
    """The kernel and the fake kernel say the same."""
    star, gaps, dtype, message = misfit
    log_probs = torch.zeros(2, 5, 6, device=device)
    targets = torch.ones(2, 3, dtype=torch.int64, device=device)
    star = None if star is None else torch.zeros(star, dtype=dtype if gaps is None else torch.float32, device=device)
    gaps = None if gaps is None else torch.zeros(gaps, dtype=dtype, device=device)
    with pytest.raises(ValueError, match=f"^forced_align: {message}$"):
        forced_align(log_probs, targets, star_scores=star, wild_gaps=gaps)


def test_a_label_past_the_star_is_refused():
    log_probs, stars = torch.zeros(1, 5, 4), torch.zeros(1, 5)
    text = r"targets\[0, 1\] must be a class of log_probs or the star, expected 0 <= label <= C = 4, found 5"
    with pytest.raises(ValueError, match=text):
        forced_align(log_probs, torch.tensor([[4, 5]]), star_scores=stars)
    with pytest.raises(ValueError, match=r"expected 0 <= label < C = 4, found 4"):
        forced_align(log_probs, torch.tensor([[1, 4]]))
    with pytest.raises(ValueError, match=r"blank must be a class of log_probs, expected 0 <= blank < C = 4, found 4"):
        forced_align(log_probs, torch.tensor([[1, 2]]), blank=4, star_scores=stars)


def test_empty_dimensions():
    for B, T, L in [(0, 5, 2), (2, 0, 0), (2, 5, 0), (0, 0, 0)]:
        stars, gaps = torch.zeros(B, T), torch.ones(B, L + 1, dtype=torch.bool)
        paths, scores = forced_align(
            torch.zeros(B, T, 4), torch.ones(B, L, dtype=torch.int64), None, None, 0, stars, gaps
        )
        assert paths.shape == scores.shape == (B, T)


def test_a_positive_star_is_no_mistake_of_log_probs(random_case):
    """The operator adds up any numbers, and the function does not blame log_probs: no warning, no error."""
    log_probs, targets = random_case(1, 9, 2, 5)
    stars = {"star_scores": torch.ones(1, 9), "wild_gaps": torch.ones(1, 3) > 0}
    for function in (forced_align, torch_ctc_align.forced_align):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            paths, scores = function(log_probs, targets, **stars)
        assert (paths == GAP_STAR).any()
        assert (scores[paths == GAP_STAR] == 1).all()
