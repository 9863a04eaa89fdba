"""ctc_loss and CTCLoss: the values and gradients of torch's own, in float64; the true gradient; the module."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SEED, RecordCalls

from torch_ctc_align import CTCLoss, class_posteriors, ctc_loss

INF = math.inf
REDUCTIONS = ["none", "mean", "sum"]


def draw(generator, blank=0, *, most=20):
    """A case of random extents in torch's layout: logits (T, N, C), targets (N, S), two lengths; some have no path."""

    def integer(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    T, N, C, S = integer(1, most), integer(1, 4), integer(blank + 2, blank + 6), integer(0, most // 2)
    logits = torch.randn(T, N, C, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, C - 1, (N, S), generator=generator)  # few classes: many repeats
    targets += targets >= blank
    input_lengths = torch.randint(0, T + 1, (N,), generator=generator)
    target_lengths = torch.randint(0, S + 1, (N,), generator=generator)
    return logits, targets, input_lengths, target_lengths


def in_a_row(targets, target_lengths):
    return torch.cat([row[:length] for row, length in zip(targets, target_lengths, strict=True)])


def gradient(function, logits, *arguments, **keywords):
    leaf = logits.detach().clone().requires_grad_()
    function(leaf.log_softmax(-1), *arguments, **keywords).sum().backward()
    return leaf.grad


# ------------------------------------------------------------------------------------------------- beside torch's own


@pytest.mark.parametrize("zero_infinity", [False, True], ids=["inf", "zero"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_values_and_gradients_are_those_of_torch(generator, reduction, zero_infinity):
    """On padded targets and on targets in a row. Where torch's gradient is NaN (no path), ours is 0."""
    infinite = 0
    for number in range(60):
        blank = number % 3
        logits, targets, *lengths = draw(generator, blank)
        options = {"blank": blank, "reduction": reduction, "zero_infinity": zero_infinity}
        expected = F.ctc_loss(logits.log_softmax(-1), targets, *lengths, **options)
        expected_gradient = gradient(F.ctc_loss, logits, targets, *lengths, **options)
        infinite += int(expected.isinf().sum())
        for form in (targets, in_a_row(targets, lengths[1])):
            found = ctc_loss(logits.log_softmax(-1), form, *lengths, **options)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
            found = gradient(ctc_loss, logits, form, *lengths, **options)
            torch.testing.assert_close(found, expected_gradient.nan_to_num(0), rtol=1e-10, atol=1e-10)
    assert (infinite > 0) == (not zero_infinity)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_integers_of_any_size(generator, dtype):
    logits, targets, *lengths = draw(generator)
    log_probs = logits.log_softmax(-1)
    expected = F.ctc_loss(log_probs, targets, *lengths, reduction="none")
    targets, *lengths = (x.to(dtype) for x in (targets, *lengths))
    for form in (targets, in_a_row(targets, lengths[1])):
        torch.testing.assert_close(ctc_loss(log_probs, form, *lengths, reduction="none"), expected)


@pytest.mark.parametrize("kind", [tuple, list, torch.Size, np.array])
def test_lengths_that_are_no_tensors(generator, kind):
    logits, targets, *lengths = draw(generator)
    log_probs = logits.log_softmax(-1)
    expected = F.ctc_loss(log_probs, targets, *lengths)
    sequences = [kind(x.tolist()) for x in lengths]
    for form in (targets, in_a_row(targets, lengths[1])):
        torch.testing.assert_close(ctc_loss(log_probs, form, *sequences), expected)
        torch.testing.assert_close(ctc_loss(log_probs, form, sequences[0], lengths[1]), expected)
        torch.testing.assert_close(ctc_loss(log_probs, form, lengths[0], sequences[1]), expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_item_without_a_batch(generator, reduction):
    logits, targets, *_ = draw(generator)
    frames, labels = logits.shape[0], targets.shape[1]
    log_probs, target = logits.log_softmax(-1)[:, 0], targets[0]
    for lengths in (
        (torch.tensor(frames), torch.tensor(labels)),
        (torch.tensor([frames]), torch.tensor([labels])),
        ((frames,), (labels,)),
    ):
        expected = F.ctc_loss(log_probs, target, *lengths, reduction=reduction)
        assert expected.shape == ()
        for form in (target, target[None]):
            found = ctc_loss(log_probs, form, *lengths, reduction=reduction)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_one_item_may_be_padded(generator):
    """So that vmap can map over items; torch wants as many labels as the length says."""
    log_probs = torch.randn(9, 4, generator=generator).log_softmax(-1)
    found = ctc_loss(log_probs, torch.tensor([1, 2, 7, -1]), torch.tensor(9), torch.tensor(2))
    torch.testing.assert_close(found, F.ctc_loss(log_probs, torch.tensor([1, 2]), torch.tensor(9), torch.tensor(2)))


def test_lengths_of_zero():
    """No frames and no labels: one path, the empty one. No frames and a label: none."""
    log_probs = torch.zeros(3, 3, 2).log_softmax(-1)
    arguments = log_probs, torch.tensor([[1], [1], [1]]), torch.tensor([0, 0, 3]), torch.tensor([0, 1, 0])
    expected = [0.0, INF, 3 * math.log(2)]
    for function in (F.ctc_loss, ctc_loss):
        assert function(*arguments, reduction="none").tolist() == pytest.approx(expected)
        assert function(*arguments, zero_infinity=True).item() == pytest.approx(sum(expected[::2]) / 3)
    nothing = torch.tensor([0, 0, 0])
    for empty in (torch.empty(3, 0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)):
        found = ctc_loss(log_probs, empty, torch.tensor([3, 3, 3]), nothing, reduction="none")
        assert found.tolist() == pytest.approx([3 * math.log(2)] * 3)
        assert ctc_loss(log_probs, empty, nothing, nothing).item() == 0


def test_empty_dimensions():
    """torch refuses them. The sum over no items is 0 and the mean NaN, as of every loss of torch."""
    nothing = torch.empty(0, dtype=torch.int64)
    no_items = torch.zeros(4, 0, 3), torch.empty(0, 2, dtype=torch.int64), nothing, nothing
    assert ctc_loss(*no_items, reduction="none").shape == (0,)
    assert ctc_loss(*no_items, reduction="sum").item() == 0
    assert ctc_loss(*no_items).isnan()
    assert ctc_loss(no_items[0], nothing, [], [], reduction="none").shape == (0,)
    no_frames = torch.zeros(0, 2, 3), torch.tensor([[1], [1]]), [0, 0], [0, 1]
    assert ctc_loss(*no_frames, reduction="none").tolist() == [0, INF]


def test_targets_in_a_row_with_strides(generator):
    logits, targets, *lengths = draw(generator)
    log_probs = logits.log_softmax(-1)
    expected = ctc_loss(log_probs, targets, *lengths, reduction="none")
    row = in_a_row(targets, lengths[1])
    strided = torch.stack([row, torch.full_like(row, -5)], 1)[:, 0]
    assert strided.numel() < 2 or not strided.is_contiguous()
    assert torch.equal(ctc_loss(log_probs, strided, *lengths, reduction="none"), expected)
    assert torch.equal(ctc_loss(log_probs, targets.T.contiguous().T, *lengths, reduction="none"), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_summed_in_float32(generator, dtype):
    """What torch does under autocast. It has no other way on the CPU, and without autocast raises an error."""
    logits, targets, *lengths = draw(generator)
    log_probs = logits.log_softmax(-1).to(dtype).requires_grad_()
    wide = log_probs.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        theirs = F.ctc_loss(log_probs, targets, *lengths, reduction="none")
        inside = ctc_loss(log_probs, targets, *lengths, reduction="none")
    outside = ctc_loss(log_probs, targets, *lengths, reduction="none")
    assert theirs.dtype == inside.dtype == outside.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert torch.equal(inside, ctc_loss(wide, targets, *lengths, reduction="none"))
    torch.testing.assert_close(inside, theirs)
    inside.sum().backward()
    ctc_loss(wide, targets, *lengths, reduction="sum").backward()
    assert log_probs.grad.dtype == dtype
    assert torch.equal(log_probs.grad, wide.grad.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast_leaves_other_types(dtype):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ctc_loss(torch.zeros(4, 1, 3, dtype=dtype), torch.tensor([[1]]), [4], [1]).dtype == dtype


# ---------------------------------------------------------------------------------------------------- the gradient


def feasible(generator):
    """Log-probabilities that are not normalised, of items that have a path: at infinity there is no difference."""
    log_probs = torch.randn(6, 2, 4, generator=generator, dtype=torch.float64)
    return log_probs.requires_grad_(), (torch.tensor([[1, 1, 2], [3, 2, 0]]), torch.tensor([6, 5]), [3, 2])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_gradient_is_the_true_one(generator, reduction):
    """Against finite differences, once and twice; torch's own is not, without a log_softmax."""
    log_probs, (targets, *lengths) = feasible(generator)

    def of(function):
        return lambda x: function(x, targets, *lengths, reduction=reduction)

    assert torch.autograd.gradcheck(of(ctc_loss), log_probs)
    assert torch.autograd.gradgradcheck(of(ctc_loss), log_probs)
    lengths[1] = torch.tensor(lengths[1])
    assert not torch.autograd.gradcheck(of(F.ctc_loss), log_probs, raise_exception=False)


def test_a_row_has_the_same_gradients(generator):
    log_probs, (targets, *lengths) = feasible(generator)
    row = in_a_row(targets, lengths[1])
    assert torch.autograd.gradcheck(lambda x: ctc_loss(x, row, *lengths), log_probs)


@pytest.mark.parametrize("zero_infinity", [False, True], ids=["inf", "zero"])
def test_items_without_a_path_get_no_gradient(zero_infinity):
    """Nor do they harm the others: torch's gradient of an infinite loss is NaN."""
    logits = torch.zeros(3, 2, 3, requires_grad=True)
    arguments = torch.tensor([[1, 1], [1, 2]]), torch.tensor([2, 3]), torch.tensor([2, 2])
    ctc_loss(logits.log_softmax(-1), *arguments, zero_infinity=zero_infinity).backward()
    assert not logits.grad[:, 0].any()
    alone = gradient(ctc_loss, logits[:, 1:], *(x[1:] for x in arguments))
    torch.testing.assert_close(logits.grad[:, 1:], alone / 2)
    assert alone.any()


def test_the_precision_is_that_of_class_posteriors():
    """At 1,500 frames torch's float32 gradient is off by some thousandths."""
    generator = torch.Generator().manual_seed(SEED)
    logits = torch.randn(1500, 1, 32, generator=generator)
    arguments = torch.randint(1, 32, (1, 200), generator=generator), torch.tensor([1500]), torch.tensor([200])
    exact = gradient(ctc_loss, logits.double(), *arguments, reduction="sum")
    ours = gradient(ctc_loss, logits, *arguments, reduction="sum")
    theirs = gradient(F.ctc_loss, logits, *arguments, reduction="sum")
    assert (ours - exact).abs().max() < 1e-5
    assert (theirs - exact).abs().max() > 1e-4


# ------------------------------------------------------------------------------------------------------ the operator


class RecordStrides(RecordCalls):
    """What class_posteriors gets."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.ctc_align.class_posteriors.default:
            self.log_probs = args[0]
        return super().__torch_dispatch__(function, types, args, kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_log_probs_are_not_copied(dtype):
    """The operator reads the caller's memory, by strides; under autocast, too, where torch makes a float32 copy."""
    log_probs = torch.zeros(5, 2, 4, dtype=dtype)
    for given in (log_probs, torch.zeros(2, 5, 4, dtype=dtype).transpose(0, 1)):
        with RecordStrides() as seen, torch.autocast("cpu"):
            ctc_loss(given, torch.tensor([[1], [2]]), [5, 5], [1, 1])
        assert seen.calls.count(torch.ops.ctc_align.class_posteriors.default) == 1
        assert seen.log_probs.data_ptr() == given.data_ptr()
        assert seen.log_probs.stride() == given.transpose(0, 1).stride()


def test_it_is_the_log_likelihood(generator):
    logits, targets, *lengths = draw(generator)
    log_probs = logits.log_softmax(-1)
    _, log_likelihoods = class_posteriors(log_probs.transpose(0, 1), targets, *lengths)
    assert torch.equal(ctc_loss(log_probs, targets, *lengths, reduction="none"), -log_likelihoods)


# -------------------------------------------------------------------------------------------------------- the module


def test_the_module(generator):
    logits, targets, *lengths = draw(generator, 1)
    log_probs = logits.log_softmax(-1)
    for options in ({"blank": 1}, {"blank": 1, "reduction": "sum", "zero_infinity": True}):
        module = CTCLoss(**options)
        expected = ctc_loss(log_probs, targets, *lengths, **options)
        for one in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(one(log_probs, targets, *lengths), expected)
    assert CTCLoss(2, "none", True)(log_probs, targets * 0, *lengths).shape == lengths[0].shape


def test_what_print_shows():
    assert repr(CTCLoss()) == "CTCLoss(blank=0, reduction='mean', zero_infinity=False)"
    assert repr(CTCLoss(3, "sum", True)) == "CTCLoss(blank=3, reduction='sum', zero_infinity=True)"


def test_the_module_has_no_state():
    module = CTCLoss(1)
    assert module.state_dict() == {}
    assert list(module.parameters()) == list(module.buffers()) == []
    assert [module.blank, module.reduction, module.zero_infinity] == [1, "mean", False]
