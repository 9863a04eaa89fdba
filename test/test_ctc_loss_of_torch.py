"""PyTorch's own tests of ctc_loss, with ours in its place: the samples that ship with torch, and the cases of test_nn.

Where torch compares its gradient with a number, ours differs by the softmax: torch's is that of what went into a
log_softmax. So gradients are checked by finite differences, and beside torch's only behind a log_softmax.
"""

import pickle

import pytest
import torch
import torch.nn.functional as F

from torch_ctc_align import CTCLoss, ctc_loss


@pytest.fixture(scope="module")
def op_info():
    try:  # takes some seconds
        from torch.testing._internal.common_methods_invocations import op_db
    except ImportError as error:
        pytest.skip(f"this torch lacks its table of operators ({error})")
    return next(info for info in op_db if info.name == "nn.functional.ctc_loss")


@pytest.fixture(scope="module")
def module_inputs():
    try:
        from torch.testing._internal.common_modules import module_db
    except ImportError as error:
        pytest.skip(f"this torch lacks its table of modules ({error})")
    info = next(info for info in module_db if info.module_cls is torch.nn.CTCLoss)
    return info.module_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=False, training=True)


def samples_of(op_info, dtype, **options):
    samples = list(op_info.sample_inputs("cpu", dtype, **options))
    assert len(samples) >= 12  # reductions x zero_infinity x lengths as lists and as tensors
    return samples


# ------------------------------------------------------------------------------------------- samples that torch ships


def test_the_operators_samples(op_info):
    for sample in samples_of(op_info, torch.float64):
        found = ctc_loss(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(found, op_info.op(sample.input, *sample.args, **sample.kwargs), rtol=1e-10, atol=0)
        assert found.dtype == torch.float64


def test_the_operators_samples_in_float32(op_info):
    """The result is that of float64, rounded: in float32 as well, of which torch's has lost a digit or two."""
    eps = torch.finfo(torch.float32).eps
    for sample in samples_of(op_info, torch.float32):
        found = ctc_loss(sample.input, *sample.args, **sample.kwargs)
        exact = ctc_loss(sample.input.double(), *sample.args, **sample.kwargs)
        assert found.dtype == torch.float32
        # Rounded once, and in a reduction of 16 numbers of one sign at each step.
        torch.testing.assert_close(found.double(), exact, rtol=16 * eps, atol=0)


def test_the_operators_gradients(op_info):
    """As torch checks them, behind a log_softmax (pytorch#52241); without it; and the second ones, which it lacks."""
    for sample in samples_of(op_info, torch.float64, requires_grad=True):

        def as_torch_does(x, sample=sample):
            return op_info.gradcheck_wrapper(ctc_loss, x, *sample.args, **sample.kwargs)

        def alone(x, sample=sample):
            return ctc_loss(x, *sample.args, **sample.kwargs)

        assert torch.autograd.gradcheck(as_torch_does, sample.input, fast_mode=True)
        assert torch.autograd.gradcheck(alone, sample.input, fast_mode=True)
        assert torch.autograd.gradgradcheck(alone, sample.input, fast_mode=True)


def test_the_modules_samples(module_inputs):
    """Against torch's reference, which is Graves' algorithm in probabilities; the same module from a pickle."""
    assert len(module_inputs) >= 20
    for sample in module_inputs:
        module = CTCLoss(*sample.constructor_input.args, **sample.constructor_input.kwargs)
        arguments = sample.forward_input.args
        expected = sample.reference_fn(module, *arguments)
        found = module(*arguments)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
        assert torch.equal(pickle.loads(pickle.dumps(module))(*arguments), found)


def test_the_modules_samples_with_strides(module_inputs):
    """torch leaves this out for its own (pytorch#115585)."""
    for sample in module_inputs:
        module = CTCLoss(*sample.constructor_input.args, **sample.constructor_input.kwargs)
        log_probs, targets, *lengths = sample.forward_input.args
        expected = module(log_probs, targets, *lengths)

        def strided(x):
            return torch.stack([x, torch.zeros_like(x)], -1)[..., 0]

        lengths = [strided(x) if isinstance(x, torch.Tensor) else x for x in lengths]
        assert not strided(targets).is_contiguous()
        assert torch.equal(module(strided(log_probs), strided(targets), *lengths), expected)


# -------------------------------------------------------------------------------------------------- cases of test_nn


def test_no_frames_and_no_labels_have_no_gradient():
    targets, nothing = torch.randint(1, 200, (3, 2), dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    for labels, expected in ((nothing, 0.0), (nothing + 1, torch.inf)):
        log_probs = torch.randn(1, 3, 200).log_softmax(2).requires_grad_()
        losses = ctc_loss(log_probs, targets, nothing, labels, reduction="none")
        assert losses.tolist() == [expected] * 3
        losses.sum().backward()
        assert not log_probs.grad.any()


def test_empty_targets_among_others(generator):
    """The loss is that of blanks alone."""
    for lengths, labels in (([0, 0, 0], 0), ([0, 9, 0], 9)):
        log_probs = torch.randn(50, 3, 15, generator=generator, dtype=torch.float64).log_softmax(2)
        row = torch.randint(1, 15, (labels,), generator=generator)
        losses = ctc_loss(log_probs, row, [50, 50, 50], lengths, reduction="none")
        assert (losses >= 0).all()
        torch.testing.assert_close(losses[::2], -log_probs.sum(0)[::2, 0])


def test_zero_infinity_beside_items_that_have_a_path(generator):
    """The first target needs 60 frames and has 50. The dtype of targets makes no difference."""
    arguments = [50, 50, 50], [60, 25, 20]
    row = torch.randint(1, 15, (105,), generator=generator)
    logits = torch.randn(50, 3, 15, generator=generator, dtype=torch.float64)
    gradients = []
    for function, targets in ((ctc_loss, row), (ctc_loss, row.int()), (F.ctc_loss, row)):
        leaf = logits.clone().requires_grad_()
        options = {"reduction": "sum", "zero_infinity": True}
        loss = function(leaf.log_softmax(2), targets, *arguments, **options)
        (gradient,) = torch.autograd.grad(loss, leaf)
        gradients.append((loss, gradient))
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-10, atol=1e-10)
    assert all(torch.equal(*pair) for pair in zip(gradients[0], gradients[1], strict=True))
    assert not gradients[0][1][:, 0].any()


def test_target_of_256_labels(generator):
    """cuDNN's limit; the length has no dimension although there is a batch."""
    target = torch.randint(1, 10, (256,), generator=generator, dtype=torch.int32)
    log_probs = torch.randn(500, 1, 10, generator=generator, dtype=torch.float64).log_softmax(2)
    arguments = log_probs, target, torch.tensor([500]), torch.tensor(256, dtype=torch.int32)
    found, expected = (function(*arguments, reduction="none") for function in (ctc_loss, F.ctc_loss))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_long_targets(generator):
    """Targets of one label over and over: each needs a blank after it."""
    logits = torch.randn(1500, 2, 3, generator=generator, dtype=torch.float64)
    arguments = torch.ones(2, 500, dtype=torch.int64), [1500, 1400], [500, 450]
    gradients = []
    for function in (ctc_loss, F.ctc_loss):
        leaf = logits.clone().requires_grad_()
        loss = function(leaf.log_softmax(2), *arguments, reduction="sum")
        gradients.append((loss, *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("empty", ["none", "some", "all"])
def test_gradients_of_a_large_batch(generator, empty):
    """64 items of 101 classes, a tenth of the frames of test_nn; everything is a function of ten numbers."""
    frames, items, classes, labels = 40, 64, 101, 15
    tiles = torch.randn(frames * items * classes // 10 + 1, generator=generator)
    targets = torch.randint(1, classes, (items, labels), generator=generator)
    input_lengths = torch.randint(frames * 3 // 4, frames + 1, (items,), generator=generator).tolist()
    target_lengths = torch.randint(labels // 2, labels + 1, (items,), generator=generator)
    target_lengths[{"none": slice(0, 0), "some": slice(0, 10), "all": slice(None)}[empty]] = 0
    numbers = torch.randn(10, generator=generator, dtype=torch.float64, requires_grad=True)

    def of_numbers(x):
        logits = (x[:, None] * tiles).flatten()[: frames * items * classes].view(frames, items, classes)
        return ctc_loss(logits.log_softmax(2), targets, input_lengths, target_lengths.tolist())

    assert torch.autograd.gradcheck(of_numbers, [numbers])
