"""Lengths: short items, empty items, the padding after them, and items that have no path."""

import math

import pytest
import torch

import torch_ctc_align
from torch_ctc_align import reference

INF = math.inf


def test_padding_is_filled(align):
    """Item 0 uses two of four frames. Its path ends there, and blanks with score 0 follow."""
    log_probs = torch.tensor([[0.0, -1.0], [-1.0, 0.0], [-5.0, 5.0], [-5.0, 5.0]]).expand(2, 4, 2)
    targets = torch.tensor([[1], [1]])
    paths, scores = align(log_probs, targets, torch.tensor([2, 4]), torch.tensor([1, 1]))
    assert paths.tolist() == [[0, 1, 0, 0], [0, 1, 1, 1]]
    assert scores.tolist() == [[0, 0, 0, 0], [0, 0, 5, 5]]


def test_padding_is_filled_with_the_blank_of_the_caller(align):
    log_probs = torch.tensor([[[-1.0, 0.0], [-7.0, -7.0]]])
    paths, scores = align(log_probs, torch.tensor([[0]]), torch.tensor([1]), None, 1)
    assert paths.tolist() == [[0, 1]]
    assert scores.tolist() == [[-1, 0]]


GARBAGE = [math.nan, INF, -INF, 1e30]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
def test_padding_is_never_read(align, random_case, generator, garbage, dtype):
    """Padding frames and padding labels of any value change nothing, not even the sign of a zero."""
    B, T, L, C = 6, 40, 12, 7
    log_probs, targets = random_case(B, T, L, C, blank=3, dtype=dtype)
    input_lengths = torch.randint(0, T + 1, (B,), generator=generator)
    target_lengths = torch.randint(0, L + 1, (B,), generator=generator)
    clean = align(log_probs, targets, input_lengths, target_lengths, 3)
    log_probs[torch.arange(T) >= input_lengths[:, None]] = torch.tensor(garbage).to(
        dtype
    )  # 1e30 is infinity in float16
    for label in (-1, 3, C, -(2**31), 2**31 - 1):  # also the blank, and no class at all
        dirty = targets.where(torch.arange(L) < target_lengths[:, None], label)
        for target_type in (torch.int32, torch.int64):
            paths, scores = align(log_probs, dirty.to(target_type), input_lengths, target_lengths, 3)
            assert torch.equal(paths, clean[0].to(target_type))
            assert torch.equal(scores, clean[1])


@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
def test_unused_classes_are_never_used(align, random_case, garbage):
    log_probs, targets = random_case(2, 30, 8, 6)
    targets = targets.clamp(max=3)
    expected = align(log_probs, targets)
    log_probs[..., 4:] = garbage
    assert all(torch.equal(x, y) for x, y in zip(align(log_probs, targets), expected, strict=True))


def test_no_lengths_means_all(align, random_case):
    log_probs, targets = random_case(3, 20, 6, 5)
    frames, labels = torch.full((3,), 20), torch.full((3,), 6)
    expected = align(log_probs, targets)
    for lengths in ((frames, labels), (frames, None), (None, labels)):
        assert all(torch.equal(x, y) for x, y in zip(align(log_probs, targets, *lengths), expected, strict=True))


def test_one_of_the_lengths_alone(align, random_case):
    log_probs, targets = random_case(2, 20, 6, 5)
    short, few = torch.tensor([20, 15]), torch.tensor([2, 6])
    for lengths, spelled_out in (
        ((short, None), (short, torch.tensor([6, 6]))),
        ((None, few), (torch.tensor([20, 20]), few)),
    ):
        found, expected = align(log_probs, targets, *lengths), align(log_probs, targets, *spelled_out)
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_an_item_without_a_path_is_marked_and_the_others_are_not_touched(align, random_case):
    """Item 1 has too few frames, item 3 a wall of -inf in its frames. Padding of a marked item is marked too."""
    log_probs, targets = random_case(5, 30, 10, 40)
    log_probs[3, 7] = -INF
    lengths = torch.tensor([30, 9, 25, 29, 20]), torch.tensor([10, 10, 3, 4, 0])
    paths, scores = align(log_probs, targets, *lengths)
    for marked in (1, 3):
        assert (paths[marked] == -1).all()
        assert (scores[marked] == -INF).all()
    for b in (0, 2, 4):
        frames, labels = lengths[0][b], lengths[1][b]
        alone = align(log_probs[b : b + 1, :frames], targets[b : b + 1, :labels])
        assert torch.equal(paths[b, :frames], alone[0][0])
        assert torch.equal(scores[b, :frames], alone[1][0])
        assert (paths[b, frames:] == 0).all()
        assert (scores[b, frames:] == 0).all()


@pytest.mark.parametrize(
    "target, least", [([1], 1), ([1, 2], 2), ([1, 1], 3), ([1, 2, 2, 1], 5), ([2, 2, 2], 5), ([], 0)]
)
def test_the_least_number_of_frames_is_labels_plus_repeats(align, target, least):
    targets = torch.tensor([target], dtype=torch.int64)
    for frames in range(least + 3):
        paths, _ = align(torch.zeros(1, 8, 3), targets, torch.tensor([frames]), None)
        assert (paths == -1).all() if frames < least else (paths >= 0).all(), frames


def test_no_frames_and_no_labels_is_a_path_of_nothing(align):
    """Length 0 with 0 labels: only padding. Length 0 with a label: marked."""
    paths, scores = align(
        torch.full((2, 3, 2), -1.0), torch.tensor([[1], [1]]), torch.tensor([0, 0]), torch.tensor([0, 1])
    )
    assert paths.tolist() == [[0, 0, 0], [-1, -1, -1]]
    assert scores.tolist() == [[0, 0, 0], [-INF, -INF, -INF]]


@pytest.mark.parametrize("B, T, L", [(0, 5, 3), (0, 0, 0), (2, 0, 0), (2, 0, 3), (2, 5, 0), (0, 5, 0), (0, 0, 3)])
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_empty_dimensions(align, B, T, L, with_lengths, dtype):
    lengths = (torch.full((B,), T), torch.full((B,), L)) if with_lengths else (None, None)
    paths, scores = align(torch.full((B, T, 3), -1.0), torch.ones(B, L, dtype=dtype), *lengths, 2)
    assert paths.shape == scores.shape == (B, T)
    assert paths.dtype == dtype
    assert (paths == 2).all()
    assert (scores == -1).all()


def test_one_class(align):
    """C = 1: the class is the blank, and no target but the empty one exists."""
    paths, scores = align(
        torch.tensor([[[-1.0], [-2.0]]]), torch.zeros(1, 3, dtype=torch.int64), None, torch.tensor([0])
    )
    assert paths.tolist() == [[0, 0]]
    assert scores.tolist() == [[-1, -2]]


def test_many_items_of_all_lengths(random_case):
    """More items than threads, from nothing to everything."""
    B, T, L = 150, 50, 24
    log_probs, targets = random_case(B, T, L, 12, steps=3)
    lengths = torch.arange(B) % (T + 1), torch.arange(B) * 7 % (L + 1)
    found = torch.ops.ctc_align.forced_align(log_probs, targets, *lengths)
    expected = reference.forced_align(log_probs, targets, *lengths)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_function_and_operator_return_the_same(random_case):
    """The function takes lengths as tensors of either type or as lists."""
    log_probs, targets = random_case(2, 20, 6, 5)
    frames, labels = torch.tensor([20, 15]), torch.tensor([2, 6])
    expected = torch.ops.ctc_align.forced_align(log_probs, targets, frames, labels)
    for lengths in ((frames, labels), (frames.int(), labels.int()), ([20, 15], [2, 6]), ((20, 15), labels)):
        found = torch_ctc_align.forced_align(log_probs, targets, *lengths)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_function_takes_torchaudio_arguments_by_name(random_case):
    log_probs, targets = random_case(1, 20, 6, 5, blank=4)
    found = torch_ctc_align.forced_align(
        log_probs=log_probs, targets=targets, input_lengths=None, target_lengths=None, blank=4
    )
    assert torch.equal(found[0], torch.ops.ctc_align.forced_align(log_probs, targets, blank=4)[0])


def test_function_returns_marked_items_unless_strict():
    log_probs, targets = torch.zeros(2, 3, 3), torch.tensor([[1, 1], [1, 2]])
    log_probs, lengths = log_probs, [2, 3]
    paths, scores = torch_ctc_align.forced_align(log_probs, targets, lengths, strict=False)
    assert paths.tolist() == [[-1, -1, -1], [1, 2, 2]]
    assert scores.tolist() == [[-INF] * 3, [0, 0, 0]]
