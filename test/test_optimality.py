"""The path is a best path, and of equal ones the promised one: against every path of tiny lattices.

Nothing here knows a lattice. A path spells a target if merging its repeats and dropping its blanks leaves the target;
all C**T paths are listed, and the best one that spells the target is the answer.
"""

import functools
import itertools
import math

import pytest
import torch

INF = math.inf


def spelled_by(path, blank):
    """What a path spells: B(path) of Graves et al. 2006, section 3.1."""
    return tuple(c for c, _ in itertools.groupby(path) if c != blank)


def preference(path, blank):
    """Sorts paths of one target and equal total so that the promised one comes first.

    A path is compared from its end. The last label wins over the last blank; before that the path that is further on
    in the target wins, because it stays where the other one advances, or advances where the other one skips.
    """
    ended = [len(spelled_by(path[: t + 1], blank)) for t in range(len(path))]  # labels begun up to frame t
    progress = [2 * n - (c != blank) for n, c in zip(ended, path, strict=True)]
    return path[-1:] == (blank,), [-p for p in reversed(progress[:-1])]


@functools.cache
def paths_by_target(T, C, blank):
    """target -> (N, T) tensor of all paths that spell it, the preferred ones first."""
    groups = {}
    for path in itertools.product(range(C), repeat=T):
        groups.setdefault(spelled_by(path, blank), []).append(path)
    return {
        target: torch.tensor(sorted(group, key=lambda path: preference(path, blank))).reshape(-1, T)
        for target, group in groups.items()
    }


def best_by_enumeration(log_probs, target, blank):
    """(path, scores) of one item as lists; path -1 and scores -inf for an item without any path."""
    T, C = log_probs.shape
    paths = paths_by_target(T, C, blank).get(tuple(target))
    usable = log_probs.where(log_probs.isfinite(), -INF)
    if paths is not None:
        scores = usable[torch.arange(T), paths]
        totals = scores.sum(1)
        best = totals.argmax()  # of equals, the first
        if totals[best] > -INF:
            return paths[best].tolist(), scores[best].tolist()
    return [-1] * T, [-INF] * T


def check_against_enumeration(align, log_probs, targets, target_lengths, blank):
    paths, scores = align(log_probs, targets, None, target_lengths, blank)
    for b in range(len(log_probs)):
        target = targets[b, : target_lengths[b]].tolist()
        expected = best_by_enumeration(log_probs[b], target, blank)
        found = paths[b].tolist(), scores[b].tolist()
        assert found == expected, f"item {b}: target {target}, blank {blank}, log_probs {log_probs[b].tolist()}"


@pytest.mark.parametrize("T, C, values", [(2, 3, (0.0, -1.0, -INF)), (3, 2, (0.0, -1.0, -INF)), (3, 3, (0.0, -1.0))])
def test_every_tiny_case(align, T, C, values):
    """Every emission over a few values with every target of up to T labels: ties and dead ends of all kinds."""
    emissions = torch.tensor(list(itertools.product(values, repeat=T * C))).reshape(-1, T, C)
    targets = [y for L in range(T + 1) for y in itertools.product(range(1, C), repeat=L)]
    padded = torch.tensor([y + (-1,) * (T - len(y)) for y in targets])
    lengths = torch.tensor([len(y) for y in targets])
    n = len(emissions)
    check_against_enumeration(
        align, emissions.repeat_interleave(len(targets), 0), padded.repeat(n, 1), lengths.repeat(n), blank=0
    )


@pytest.mark.parametrize("blank", [0, 1, 2])
@pytest.mark.parametrize("T", [1, 2, 4, 5, 6, 7])
def test_thousands_of_tied_cases(align, random_case, generator, T, blank):
    B, L = 150, min(T, 4)
    log_probs, targets = random_case(B, T, L, 3, blank=blank, steps=1)
    lengths = torch.randint(0, L + 1, (B,), generator=generator)
    check_against_enumeration(align, log_probs, targets, lengths, blank)


@pytest.mark.parametrize("hole", [-INF, INF, math.nan], ids=str)
def test_no_path_through_what_is_not_finite(align, random_case, generator, hole):
    B, T, L, C = 300, 5, 3, 4
    log_probs, targets = random_case(B, T, L, C, steps=1)
    log_probs[torch.rand(log_probs.shape, generator=generator) < 0.3] = hole
    check_against_enumeration(align, log_probs, targets, torch.randint(0, L + 1, (B,), generator=generator), blank=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_random_cases(align, random_case, generator, dtype):
    """No ties, and gaps far above rounding: so few frames cannot round a worse path to the top."""
    B, T, L, C = 300, 6, 4, 4
    log_probs, targets = random_case(B, T, L, C, blank=3, dtype=dtype)
    check_against_enumeration(align, log_probs, targets, torch.randint(0, L + 1, (B,), generator=generator), blank=3)


@pytest.mark.parametrize("deviation, labels", [(0.01, 150), (0.01, 600), (1.0, 600)])
def test_float32_loses_no_more_of_the_best_total_than_is_said(generator, deviation, labels):
    """docs/semantics.md, section 6: paths of float32 may lie below the best total, float64's may not.

    2^-22 of the total is a unit in the last place of a float32 or two; what is told there is less.
    """
    T, B, C = 1500, 12, 32
    log_probs = (deviation * torch.randn(B, T, C, generator=generator)).log_softmax(-1)
    targets = torch.randint(1, C, (B, labels), generator=generator)
    wide = log_probs.double()
    narrow_totals, best_totals = (
        wide.gather(2, torch.ops.ctc_align.forced_align(x, targets)[0][..., None]).sum((1, 2))
        for x in (log_probs, wide)
    )
    gaps = best_totals - narrow_totals
    assert (gaps >= -1e-9).all()
    assert (gaps <= 2.0**-22 * best_totals.abs()).all()
    if deviation < 1:
        assert (gaps > 1e-5).any()  # the other half of the claim


def test_equal_emissions_give_the_earliest_labels(align):
    """The example of docs/semantics.md, section 3, over two frame blocks and two columns."""
    labels, T = 260, 520
    targets = torch.arange(labels)[None] % 2 + 1
    paths, _ = align(torch.zeros(1, T, 3), targets, None, None, 0)
    assert paths[0].tolist() == targets[0].tolist() + [int(targets[0, -1])] * (T - labels)
