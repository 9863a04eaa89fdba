"""Beyond 2^31: more lattice cells than a 32-bit index counts, and offsets that it cannot hold.

The right answer is known without a second aligner. A long emission is made of many short ones. Between two of them
stands an *anchor*: a frame and a label of a class that is used nowhere else. Leaving one anchor is dearer than all
that the rest of the emission could win. So every best path goes through all anchors, and between two of them it is the
best path of the short emission alone. Entries are integers, and float32 sums stay exact: ties are ties, and the path
must be the promised one to the last frame. (A sum is relative to the base of its column. A column of 256 labels holds
a dozen anchors, so that its alphas and the bases beside it are within some dozens of anchors of each other: < 2^24.)
"""

import pytest
import torch

from torch_ctc_align import reference

BLANK, ANCHOR, CLASSES = 0, 1, 8


def make_anchored_case(generator, pieces, frames, labels, different=64):
    """log_probs (1, T, C), targets (1, L) and the right path (T,), of pieces of `frames` frames and `labels` labels."""
    leave_anchor = float(-(2**17))
    assert 3 * pieces * frames < -leave_anchor  # an entry is at least -3
    assert different <= pieces

    log_probs = torch.randint(-3, 1, (different, frames + 1, CLASSES), generator=generator).float()
    log_probs[:, :, ANCHOR] = leave_anchor
    log_probs[:, 0] = leave_anchor
    log_probs[:, 0, ANCHOR] = 0
    targets = torch.randint(ANCHOR + 1, CLASSES, (different, labels + 1), generator=generator)
    targets[:, 0] = ANCHOR

    # Each piece is aligned together with the anchor after it, which decides how the piece ends.
    paths, _ = reference.forced_align(
        torch.cat([log_probs, log_probs[:, :1]], 1), torch.cat([targets, targets[:, :1]], 1), accumulate=torch.float64
    )
    assert (paths[:, [0, -1]] == ANCHOR).all()
    order = torch.cat(
        [torch.arange(different), torch.randint(0, different, (pieces - different,), generator=generator)]
    )
    end = [log_probs[:1, :1], targets[:1, :1], paths[:1, :1]]  # a last anchor
    pieces_in_order = [x[order].flatten(0, 1)[None] for x in (log_probs, targets, paths[:, :-1])]
    log_probs, targets, path = (torch.cat(both, 1) for both in zip(pieces_in_order, end, strict=True))
    return log_probs, targets, path[0]


@pytest.mark.parametrize("pieces, frames, labels", [(64, 1, 1), (70, 9, 4), (100, 30, 17)])
def test_anchored_cases_are_what_they_claim(generator, pieces, frames, labels):
    """The construction, checked against the reference where that is quick."""
    log_probs, targets, path = make_anchored_case(generator, pieces, frames, labels)
    found, _ = reference.forced_align(log_probs, targets, accumulate=torch.float64)
    assert torch.equal(found[0], path)
    assert torch.equal(torch.ops.ctc_align.forced_align(log_probs, targets)[0][0], path)


def test_more_than_two_giga_cells(generator):
    """T * (2L + 1) > 2^31; nearly 2^30 of these cells are in the band."""
    log_probs, targets, path = make_anchored_case(generator, pieces=1000, frames=42, labels=24)
    assert log_probs.shape[1] * (2 * targets.shape[1] + 1) > 2**31
    paths, scores = torch.ops.ctc_align.forced_align(log_probs, targets)
    assert torch.equal(paths[0], path)
    assert torch.equal(scores[0], log_probs[0].gather(1, path[:, None])[:, 0])


def test_more_than_two_giga_cells_without_a_path():
    """Feasibility is decided before anything of that size is asked for."""
    log_probs = torch.zeros(1, 50_000, 2)
    paths, scores = torch.ops.ctc_align.forced_align(log_probs, torch.ones(1, 25_001, dtype=torch.int64))
    assert (paths == -1).all()
    assert (scores == -torch.inf).all()


@pytest.mark.parametrize("dimension", [0, 1, 2])
def test_strides_beyond_two_giga_elements(dimension):
    """The entries of one dimension lie 2^30 elements apart; only the pages in use are ever touched."""
    sizes = [3, 3, 3]
    strides = [9, 3, 1]
    strides[dimension] = 2**30
    storage = torch.empty(2**31 + 30, dtype=torch.float16)
    log_probs = storage.as_strided(sizes, strides)
    log_probs[:] = torch.tensor([[0, -1, -1], [-1, 0, -1], [-1, -1, 0]])
    log_probs[2, 1] = torch.tensor([-1, -1, 0])
    paths, scores = torch.ops.ctc_align.forced_align(log_probs, torch.tensor([[1, 2]] * 3))
    assert paths.tolist() == [[0, 1, 2], [0, 1, 2], [1, 2, 2]]
    assert scores.tolist() == [[0, 0, 0], [0, 0, 0], [-1, 0, 0]]
