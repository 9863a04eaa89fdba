"""Windows: arguments, samples and outputs of models that are refused, each with its whole message."""

import numpy as np
import pytest
import torch

from torch_ctc_align import AlignmentError, iter_windows, plan_windows, run_windows

WAV2VEC2 = {"hop": 320, "receptive_field": 400, "window_frames": 12, "context_frames": 3}


def refused(call, *arguments, error=AlignmentError, **options):
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "change, error, text",
    [
        ({"num_samples": -1}, AlignmentError, "num_samples must be at least 0, found -1"),
        ({"num_samples": 1e4}, TypeError, "num_samples must be an int, found 10000.0"),
        ({"hop": 0}, AlignmentError, "hop must be at least 1, found 0"),
        ({"hop": "320"}, TypeError, "hop must be an int, found '320'"),
        ({"receptive_field": -1}, AlignmentError, "receptive_field must be at least 0, found -1"),
        ({"context_frames": -1}, AlignmentError, "context_frames must be at least 0, found -1"),
        ({"context_frames": 0.5}, TypeError, "context_frames must be an int, found 0.5"),
        ({"window_frames": 6}, AlignmentError, "window_frames must be more than 2 * context_frames = 6, found 6"),
        ({"window_frames": 0}, AlignmentError, "window_frames must be at least 1, found 0"),
    ],
)
def test_sizes_that_plan_nothing_are_refused(change, error, text):
    arguments = {"num_samples": 10_000} | WAV2VEC2 | change
    assert refused(plan_windows, error=error, **arguments) == f"plan_windows: {text}"
    assert refused(run_windows, print, iter([]), error=error, **arguments) == f"run_windows: {text}"


def test_sizes_may_be_whole_numbers_of_any_library():
    plan = plan_windows(np.int64(10_000), **{name: torch.tensor(size) for name, size in WAV2VEC2.items()})
    assert plan == plan_windows(10_000, **WAV2VEC2)
    assert all(type(number) is int for window in plan for number in window)


FEW = "samples must be enough for one frame"


@pytest.mark.parametrize(
    "samples, options, error, text",
    [
        (torch.zeros(399), {}, AlignmentError, f"{FEW}, expected at least 400, found 399"),
        (torch.zeros(0), {}, AlignmentError, f"{FEW}, expected at least 400, found 0"),
        (torch.zeros(0), {"receptive_field": 0}, AlignmentError, f"{FEW}, expected at least 1, found 0"),
        (torch.zeros(1, 999), {}, AlignmentError, "samples must have shape (N,), one channel, found (1, 999)"),
        (
            torch.zeros(999, dtype=torch.int16),
            {},
            AlignmentError,
            "samples must be floating point in [-1, 1], found int16",
        ),
        (
            torch.zeros(999),
            {"num_samples": 9},
            AlignmentError,
            "num_samples must be that of samples, expected 999, found 9",
        ),
        (
            np.zeros(999, np.float32),
            {},
            TypeError,
            "samples must be a tensor of shape (N,), found a numpy.ndarray; use torch.as_tensor",
        ),
        (None, {}, TypeError, "samples must be a tensor of shape (N,), found None; use torch.as_tensor"),
        (
            [torch.zeros(999)],
            {},
            AlignmentError,
            "num_samples must be given where samples come in blocks, expected an int",
        ),
        (
            [np.zeros(999)],
            {"num_samples": 999},
            TypeError,
            "samples must be a tensor of shape (N,), found a numpy.ndarray; use torch.as_tensor",
        ),
        (
            [torch.zeros(999, 2)],
            {"num_samples": 999},
            AlignmentError,
            "samples must have shape (N,), one channel, found (999, 2)",
        ),
        (
            [torch.zeros(500), torch.zeros(498)],
            {"num_samples": 999},
            AlignmentError,
            "samples must reach to the end of the last window, expected at least 999 here, found 998 in all; pass the "
            "right num_samples",
        ),
    ],
)
def test_samples_that_no_model_can_hear_are_refused(samples, options, error, text):
    arguments = WAV2VEC2 | options
    assert refused(run_windows, print, samples, error=error, **arguments) == f"run_windows: {text}"


@pytest.mark.parametrize(
    "output, text",
    [
        (torch.zeros(1, 11, 3), "expected 12 for 3927 samples, found 11"),
        (torch.zeros(1, 13, 3), "expected 12 for 3927 samples, found 13"),
        ((torch.zeros(1, 13, 3), torch.tensor([11])), "expected 12 for 3927 samples, found 11"),
        ((torch.zeros(1, 11, 3), torch.tensor([12])), "expected 12 for 3927 samples, found 11"),
    ],
)
def test_another_number_of_frames_is_refused(output, text):
    assert refused(run_windows, lambda *_: output, torch.zeros(18_327), **WAV2VEC2) == (
        f"run_windows: run must return a frame for every hop of its samples, {text}; pass the model's own hop and "
        "receptive_field"
    )


SHAPE = "log_probs (B, T, C) with B = 1, alone or with the frames of each item"


@pytest.mark.parametrize(
    "output, text",
    [
        (torch.zeros(12, 3), f"{SHAPE}, found shape (12, 3)"),
        (torch.zeros(2, 12, 3), f"{SHAPE}, found shape (2, 12, 3)"),
        (None, f"{SHAPE}, found None"),
        ((torch.zeros(1, 12, 3), torch.tensor([12, 12])), "the frames (B,) of each item with B = 1, found 2 numbers"),
        (torch.zeros(1, 12, 3, dtype=torch.int64), "float16, bfloat16, float32 or float64, found int64"),
    ],
)
def test_another_output_is_refused(output, text):
    assert refused(run_windows, lambda *_: output, torch.zeros(18_327), **WAV2VEC2) == (
        f"run_windows: run must return {text}"
    )


def test_another_number_of_classes_is_refused():
    classes = iter([3, 4])
    assert refused(run_windows, lambda *_: torch.zeros(1, 12, next(classes)), torch.zeros(18_327), **WAV2VEC2) == (
        "run_windows: run must return as many classes for every window, expected C = 3, found 4 at frame 9"
    )


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"out": torch.zeros(57, 4)}, AlignmentError, "out must have shape (T, C) = (57, 3), found (57, 4)"),
        ({"out": torch.zeros(56, 3)}, AlignmentError, "out must have shape (T, C) = (57, 3), found (56, 3)"),
        (
            {"out": torch.zeros(57, 3, dtype=torch.int64)},
            AlignmentError,
            "out must be float16, bfloat16, float32 or float64, found int64",
        ),
        ({"out": [[0.0]]}, TypeError, "out must be a tensor of shape (T, C), found a list; use torch.as_tensor"),
        (
            {"dtype": torch.int8},
            AlignmentError,
            "dtype must be float16, bfloat16, float32 or float64, found torch.int8",
        ),
        ({"batch_size": 0}, AlignmentError, "batch_size must be at least 1, found 0"),
        ({"run": None}, TypeError, "run must be callable as run(samples, lengths), found None"),
    ],
)
def test_other_arguments_that_fit_nothing_are_refused(options, error, text):
    arguments = {"run": lambda *_: torch.zeros(1, 12, 3), "samples": torch.zeros(18_327)} | WAV2VEC2 | options
    assert refused(run_windows, error=error, **arguments) == f"run_windows: {text}"


def test_a_mistake_shows_when_the_loop_is_made():
    assert refused(iter_windows, None, torch.zeros(9), [], error=TypeError) == (
        "iter_windows: run must be callable as run(samples, lengths), found None"
    )
    assert refused(iter_windows, print, torch.zeros(9, 9), []) == (
        "iter_windows: samples must have shape (N,), one channel, found (9, 9)"
    )
