"""Priors of classes: means written by hand, what is in use, and what subtracting them does to a path."""

import numpy as np
import pytest
import torch

from torch_ctc_align import AlignmentError, forced_align, label_priors, subtract_priors

# Two items of two frames and three classes; over all frames the classes have 2, 1.5 and 0.5 of 4.
ITEMS = torch.tensor([[[0.5, 0.25, 0.25], [1, 0, 0]], [[0.25, 0.75, 0], [0.25, 0.5, 0.25]]])
LOG_PROBS = ITEMS.double().log()


def assert_priors(found, expected):
    """Sums of quarters are exact in float64. The logarithm, and the exponential of each, may be off by an ulp, of a
    logarithm that is at most 2: less than 1e-15 in all."""
    torch.testing.assert_close(found.exp(), torch.tensor(expected, dtype=torch.float64), rtol=2e-15, atol=0)


def test_a_prior_is_the_mean_posterior():
    assert_priors(label_priors(LOG_PROBS), [2 / 4, 1.5 / 4, 0.5 / 4])


def test_an_item_alone_has_two_dimensions():
    assert_priors(label_priors(LOG_PROBS[0]), [0.75, 0.125, 0.125])


@pytest.mark.parametrize("lengths", [[2, 1], (2, 1), torch.tensor([2, 1]), torch.tensor([2, 1], dtype=torch.int32)])
def test_frames_after_the_length_are_not_read(lengths):
    padded = LOG_PROBS.clone()
    padded[1, 1] = torch.nan
    assert_priors(label_priors(padded, lengths), [1.75 / 3, 1 / 3, 0.25 / 3])


def test_every_frame_counts_the_same_whatever_item_it_is_in():
    """Items of three frames and one: not the mean of two means."""
    items = [LOG_PROBS.flatten(0, 1)[:3], LOG_PROBS[1, 1:]]
    assert_priors(label_priors(items), [2 / 4, 1.5 / 4, 0.5 / 4])
    assert_priors(label_priors(iter(items)), [2 / 4, 1.5 / 4, 0.5 / 4])
    assert_priors(label_priors([LOG_PROBS[:1], LOG_PROBS[1:]]), [2 / 4, 1.5 / 4, 0.5 / 4])


def test_items_that_come_one_by_one_are_not_kept():
    """Each item is written over when the next one is asked for."""
    memory = torch.empty(2, 3, dtype=torch.float64)
    assert_priors(label_priors(memory.copy_(item) for item in LOG_PROBS), [2 / 4, 1.5 / 4, 0.5 / 4])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_priors_are_added_up_in_float64(dtype, generator):
    """A million frames of one class with a probability near 2**-10: a sum in a half type would stop growing at 2."""
    rare = torch.tensor(2.0**-10).log().to(dtype)
    log_probs = rare.expand(1_000_000, 1)
    found = label_priors(log_probs)
    assert found.dtype == torch.float64
    assert abs(float(found) - float(rare)) < 1e-9  # 1e6 additions, each off by at most 2**-53 of the sum


def test_more_entries_than_are_taken_at_once(generator):
    """Frames go through float64 some at a time: the pieces add up to numpy's mean, up to the order of additions."""
    probs = torch.rand(3, 700, 3000, generator=generator).softmax(-1)
    found = label_priors(probs.log(), [700, 3, 450])
    used = torch.cat([probs[0], probs[1, :3], probs[2, :450]]).log().numpy().astype(np.float64)
    np.testing.assert_allclose(found.exp().numpy(), np.exp(used).mean(0), rtol=1e-12)


# ------------------------------------------------------------------------------------------------- subtracted


def test_probabilities_are_divided_by_a_power_of_the_prior():
    """Powers of two: all logarithms to base 2, so that every number is exact."""
    log_probs = torch.tensor([[[-1.0, -2.0, -2.0], [-3.0, -1.0, -1.5]]])
    log_priors = torch.tensor([-0.5, -2.0, -4.0])
    assert subtract_priors(log_probs, log_priors).tolist() == [[[-0.5, 0.0, 2.0], [-2.5, 1.0, 2.5]]]
    assert subtract_priors(log_probs, log_priors, 0.5).tolist() == [[[-0.75, -1.0, 0.0], [-2.75, 0.0, 0.5]]]
    assert torch.equal(subtract_priors(log_probs, log_priors, scale=0), log_probs)
    assert torch.equal(subtract_priors(log_probs[0], log_priors), subtract_priors(log_probs, log_priors)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_is_that_of_the_log_probs(dtype):
    found = subtract_priors(LOG_PROBS.to(dtype), label_priors(LOG_PROBS))
    assert found.dtype == dtype
    assert found.shape == LOG_PROBS.shape


def test_a_class_that_is_never_said_stays_impossible():
    log_probs = torch.tensor([[[0.5, 0.5, 0.0]]]).log()
    log_priors = label_priors(log_probs)
    assert log_priors[2] == -torch.inf
    assert subtract_priors(log_probs, log_priors).tolist() == [[[0.0, 0.0, -torch.inf]]]
    assert subtract_priors(log_probs, log_priors, 0.0)[0, 0, 2] == -torch.inf


def test_a_common_class_costs_more():
    """One label in four frames, of which the blank is likelier in all but one, where the two are equal. With priors the
    label takes the frames in which it is likelier than in the mean: 0.4 and 0.5, and the mean is 0.33."""
    label = torch.tensor([0.02, 0.4, 0.5, 0.4])
    log_probs = torch.stack([1 - label, label], 1).log()[None]
    targets = torch.tensor([[1]])
    assert forced_align(log_probs, targets)[0].tolist() == [[0, 0, 1, 0]]
    freed = subtract_priors(log_probs, label_priors(log_probs))
    assert forced_align(freed.log_softmax(-1), targets)[0].tolist() == [[0, 1, 1, 1]]


def test_the_path_is_that_of_the_normalised_emissions(random_case):
    """Every path has one class a frame, so what is the same for all classes of a frame moves nothing."""
    log_probs, targets = random_case(4, 60, 8, 12, dtype=torch.float64)
    freed = subtract_priors(log_probs, label_priors(log_probs), 0.7)
    operator = torch.ops.ctc_align.forced_align
    assert torch.equal(operator(freed, targets)[0], operator(freed.log_softmax(-1), targets)[0])


def test_gradients_reach_the_log_probs():
    log_probs = LOG_PROBS[0, :1].clone().requires_grad_()
    priors = label_priors(log_probs)
    assert not priors.requires_grad
    subtract_priors(log_probs, priors, 0.5).sum().backward()
    assert log_probs.grad.tolist() == [[1, 1, 1]]


def test_subtraction_compiles_into_one_graph():
    compiled = torch.compile(subtract_priors, fullgraph=True, backend="eager")
    log_priors = label_priors(LOG_PROBS)
    assert torch.equal(compiled(LOG_PROBS, log_priors, 0.5), subtract_priors(LOG_PROBS, log_priors, 0.5))


# ---------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    "log_probs, lengths, error, text",
    [
        (LOG_PROBS[0, 0], None, AlignmentError, "log_probs must have shape (B, T, C) or (T, C), found (3,)"),
        (torch.zeros(2, 0), None, AlignmentError, "log_probs must have shape (B, T, C) or (T, C), found (2, 0)"),
        (torch.zeros(0, 3), None, AlignmentError, "log_probs must have a frame in use, found none"),
        ([], None, AlignmentError, "log_probs must have a frame in use, found none"),
        (LOG_PROBS, [0, 0], AlignmentError, "log_probs must have a frame in use, found none"),
        (LOG_PROBS, [2, 3], AlignmentError, "input_lengths[1] must be in 0 to T = 2, found 3"),
        (LOG_PROBS, [-1, 2], AlignmentError, "input_lengths[0] must be in 0 to T = 2, found -1"),
        (LOG_PROBS, [1.5, 2], AlignmentError, "input_lengths[0] must be in 0 to T = 2, found 1.5"),
        (LOG_PROBS, [2], AlignmentError, "input_lengths must have shape (B,) = (2,), found [2]"),
        (list(LOG_PROBS), [2, 2], AlignmentError, "input_lengths must be left out where log_probs are several items"),
        (
            [torch.zeros(2, 3), torch.zeros(2, 4)],
            None,
            AlignmentError,
            "log_probs must have C = 3 in every item, found 4",
        ),
        (
            torch.zeros(2, 3).long(),
            None,
            AlignmentError,
            "log_probs must be float16, bfloat16, float32 or float64, found int64",
        ),
        (
            np.zeros((2, 3)),
            None,
            TypeError,
            "log_probs must be a tensor of shape (B, T, C), found a numpy.ndarray; use torch.as_tensor",
        ),
        ([None], None, TypeError, "log_probs must be a tensor of shape (B, T, C) or (T, C), found None; "
         "use torch.as_tensor"),
    ],
)  # fmt: skip
def test_what_has_no_priors_is_refused(log_probs, lengths, error, text):
    with pytest.raises(error) as caught:
        label_priors(log_probs, lengths)
    assert str(caught.value) == f"label_priors: {text}"


@pytest.mark.parametrize(
    "log_probs, log_priors, error, text",
    [
        (LOG_PROBS, torch.zeros(2), AlignmentError, "log_priors must have shape (C,) = (3,), found (2,)"),
        (LOG_PROBS, torch.zeros(1, 3), AlignmentError, "log_priors must have shape (C,) = (3,), found (1, 3)"),
        (LOG_PROBS, torch.zeros(3).long(), AlignmentError, "log_priors must be floating point, found int64"),
        (
            LOG_PROBS.long(),
            torch.zeros(3),
            AlignmentError,
            "log_probs must be float16, bfloat16, float32 or float64, found int64",
        ),
        (LOG_PROBS, 0.5, TypeError, "log_priors must be a tensor of shape (C,), found a float; use torch.as_tensor"),
        (None, None, TypeError, "log_probs must be a tensor of shape (..., C), found None; use torch.as_tensor"),
    ],
)
def test_priors_of_other_classes_are_refused(log_probs, log_priors, error, text):
    with pytest.raises(error) as caught:
        subtract_priors(log_probs, log_priors)
    assert str(caught.value) == f"subtract_priors: {text}"
