"""Every error of ctc_loss and CTCLoss, word by word: which argument, which item, what was expected and found."""

import pytest
import torch

from torch_ctc_align import AlignmentError, CTCLoss, ctc_loss

LOG_PROBS = torch.zeros(7, 2, 5)  # T, N, C
TARGETS = torch.tensor([[1, 2, 3], [4, 1, 0]])  # the last label is padding
ROW = torch.tensor([1, 2, 3, 4, 1])
INPUT_LENGTHS, TARGET_LENGTHS = torch.tensor([7, 6]), torch.tensor([3, 2])
GOOD = LOG_PROBS, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS
NAMES = "log_probs", "targets", "input_lengths", "target_lengths"


def call(*, form=GOOD, **changed):
    arguments = dict(zip(NAMES, form, strict=True)) | changed
    return ctc_loss(**arguments)


def test_the_cases_below_differ_from_a_good_one():
    assert call().isfinite()
    assert torch.equal(call(), call(targets=ROW))


SHAPES = {
    "log_probs must have shape (T, N, C), or (T, C) for one item, found (5,)": {"log_probs": torch.zeros(5)},
    "log_probs must have shape (T, N, C), or (T, C) for one item, found (1, 7, 2, 5)": {"log_probs": LOG_PROBS[None]},
    "log_probs must be float16, bfloat16, float32 or float64, found int64": {"log_probs": LOG_PROBS.long()},
    "targets must have shape (N, S) with N = 2 as in log_probs, or be in a row, found (1, 3)": {"targets": TARGETS[:1]},
    "targets must have shape (N, S) with N = 2 as in log_probs, or be in a row, found (1, 2, 3)": {
        "targets": TARGETS[None]
    },
    "targets must have shape (N, S) with N = 7 as in log_probs, or be in a row, found (2, 3); if log_probs are "
    "(N, T, C), pass log_probs.transpose(0, 1)": {"log_probs": LOG_PROBS.transpose(0, 1)},
    "targets must have shape (S,) for one item, found (2, 3)": {"log_probs": LOG_PROBS[:, 0]},
    "targets must be integers, found float32; pass targets.long()": {"targets": TARGETS.float()},
    "targets must be integers, found bool; pass targets.long()": {"targets": TARGETS > 1},
    "targets must be on the device of log_probs or on the CPU, expected cpu, found meta": {
        "targets": TARGETS.to("meta")
    },
    "input_lengths must have shape (N,) = (2,), found (3,)": {"input_lengths": torch.tensor([7, 7, 7])},
    "input_lengths must have shape (N,) = (2,), found ()": {"input_lengths": torch.tensor(7)},
    "target_lengths must have shape (N,) = (2,), found (1, 2)": {"target_lengths": TARGET_LENGTHS[None]},
    "target_lengths must have shape (N,) = (2,), found (1,)": {"target_lengths": [3]},
    "input_lengths must have shape () or (1,), found (2,)": {"log_probs": LOG_PROBS[:, 0], "targets": TARGETS[0]},
    "input_lengths must be integers, found float32": {"input_lengths": INPUT_LENGTHS.float()},
    "input_lengths must be integers, found bool": {"input_lengths": INPUT_LENGTHS > 0},
    "target_lengths must be integers, found float32": {"target_lengths": [3.0, 2.0]},
    "blank must be a class of log_probs, expected 0 <= blank < C = 5, found 5": {"blank": 5},
    "blank must be a class of log_probs, expected 0 <= blank < C = 5, found -1": {"blank": -1},
    "blank must be a class of log_probs, expected 0 <= blank < C = 0, found 0": {"log_probs": LOG_PROBS[:, :, :0]},
    'reduction must be "none", "mean" or "sum", found \'average\'': {"reduction": "average"},
    'reduction must be "none", "mean" or "sum", found None': {"reduction": None},
}

VALUES = {
    "input_lengths[1] must be between 0 and T = 7, found 8": {"input_lengths": [7, 8]},
    "input_lengths[0] must be between 0 and T = 7, found -1": {"input_lengths": torch.tensor([-1, 7])},
    "target_lengths[0] must be between 0 and S = 3, found 4": {"target_lengths": [4, 1]},
    "target_lengths[1] must be between 0 and S = 3, found -1": {"target_lengths": torch.tensor([3, -1])},
    "targets in a row must hold the labels of all items, expected sum(target_lengths) = 6, found 5": {
        "targets": ROW,
        "target_lengths": [3, 3],
    },
    "targets in a row must hold the labels of all items, expected sum(target_lengths) = 4, found 5": {
        "targets": ROW,
        "target_lengths": torch.tensor([3, 1]),
    },
    "target_lengths[0] must be between 0 and S = 6, found -1": {"targets": ROW, "target_lengths": [-1, 6]},
    "targets[1, 0] must be a class of log_probs, expected 0 <= label < C = 5, found 5": {
        "targets": torch.tensor([[1, 2, 3], [5, 1, 1]])
    },
    "targets[0, 2] must be a class of log_probs, expected 0 <= label < C = 5, found -1; if this is padding, "
    "target_lengths must not count it": {"targets": torch.tensor([[1, 2, -1], [4, 1, -1]])},
    "targets[1, 2] must not be the blank, expected a label other than 0, found 0; if this is padding, "
    "target_lengths must not count it": {"target_lengths": [3, 3]},
    "targets[4], label 1 of item 1, must be a class of log_probs, expected 0 <= label < C = 5, found 9": {
        "targets": torch.tensor([1, 2, 3, 4, 9])
    },
    "targets[3], label 0 of item 1, must not be the blank, expected a label other than 0, found 0": {
        "targets": torch.tensor([1, 2, 3, 0, 1])
    },
}

TYPES = {
    "log_probs must be a tensor of shape (T, N, C), found a list; use torch.as_tensor": {"log_probs": [[[0.0]]]},
    "targets must be a tensor of shape (N, S), found a list; use torch.as_tensor": {"targets": [[1, 2, 3]]},
    "blank must be an int, the index of a class, found 0.5": {"blank": 0.5},
    "input_lengths must be a tensor or a sequence of int, one for each item, found 7; pass [7]": {"input_lengths": 7},
    "target_lengths must be numbers of frames or labels, found ['a', 'b']": {"target_lengths": ["a", "b"]},
}


@pytest.mark.parametrize("message, changed", [*SHAPES.items(), *VALUES.items()], ids=str)
def test_values_and_shapes(message, changed):
    with pytest.raises(AlignmentError) as raised:
        call(**changed)
    assert str(raised.value) == f"ctc_loss: {message}"


@pytest.mark.parametrize("message, changed", TYPES.items(), ids=str)
def test_types(message, changed):
    with pytest.raises(TypeError) as raised:
        call(**changed)
    assert str(raised.value) == f"ctc_loss: {message}"


def test_the_errors_are_those_of_torch_too():
    """Code that catches what torch.nn.functional.ctc_loss raises goes on doing so."""
    for kind in (ValueError, RuntimeError):
        with pytest.raises(kind):
            call(input_lengths=[7, 8])
    with pytest.raises(ValueError):
        torch.nn.functional.ctc_loss(*GOOD, reduction="average")
    with pytest.raises(RuntimeError):
        torch.nn.functional.ctc_loss(*GOOD[:2], torch.tensor([7, 8]), TARGET_LENGTHS)


def test_lengths_of_the_host_are_checked_on_any_device():
    """The values of a list are known. A device that is not the CPU does not say what it thinks of them."""
    meta = [x.to("meta") for x in GOOD]
    for changed, message in (
        ({"input_lengths": [7, 8]}, "input_lengths[1] must be between 0 and T = 7, found 8"),
        ({"target_lengths": torch.tensor([-1, 2])}, "target_lengths[0] must be between 0 and S = 3, found -1"),
        ({"targets": ROW, "target_lengths": [3, 3]}, "targets in a row must hold the labels of all items, expected "
                                                     "sum(target_lengths) = 6, found 5"),
    ):  # fmt: skip
        with pytest.raises(AlignmentError) as raised:
            call(form=meta, **changed)
        assert str(raised.value) == f"ctc_loss: {message}"


@pytest.mark.parametrize(
    "options, kind, message",
    [
        ({"blank": -1}, AlignmentError, "blank must be a class, expected 0 <= blank, found -1"),
        ({"blank": "0"}, TypeError, "blank must be an int, the index of a class, found '0'"),
        ({"reduction": "avg"}, AlignmentError, 'reduction must be "none", "mean" or "sum", found \'avg\''),
    ],
)
def test_the_module_is_refused_when_it_is_made(options, kind, message):
    with pytest.raises(kind) as raised:
        CTCLoss(**options)
    assert str(raised.value) == f"CTCLoss: {message}"
