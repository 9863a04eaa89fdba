"""The readable twin of the posteriors: brute force says that it is right, and every operator answers to it."""

import math

import pytest
import torch
from test_posteriors import by_all_paths, double_ctc

import torch_ctc_align
from torch_ctc_align import forced_align, token_spans
from torch_ctc_align import reference_posteriors as twin
from torch_ctc_align.config import _forced

INF = math.inf
operators = torch.ops.ctc_align


def make_batch(random_case, T, L, C, dtype=torch.float64, blank=0):
    """Items of several lengths: all frames, fewer, no labels; too short for its target; without a path at frame 1."""
    log_probs, targets = random_case(5, T, L, C, dtype=dtype, blank=blank)
    log_probs[4, 1] = -INF
    log_probs[0, 2, C - 1], log_probs[1, 3, 1], log_probs[2, 4, 2] = math.nan, INF, -INF
    return log_probs, targets, torch.tensor([T, T - 1, T - 3, L - 1, T]), torch.tensor([L, L - 2, 0, L, L])


# ------------------------------------------------------------------------------------------ the twin is right


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("target", [[], [1], [1, 1], [1, 3], [3, 1, 1], [1, 3, 1, 3]], ids=str)
def test_twin_against_all_paths(random_case, target, blank):
    targets, starts = torch.tensor([target], dtype=torch.int64), torch.arange(len(target))[None]
    for T in range(6):
        log_probs, _ = random_case(1, T, 0, 4, dtype=torch.float64)
        expected, log_likelihood = by_all_paths(log_probs[0], target, blank)
        tokens, found = twin.posteriors(log_probs, targets, blank=blank)
        torch.testing.assert_close(tokens[0], expected)
        torch.testing.assert_close(found[0], log_likelihood)
        classes, found = twin.class_posteriors(log_probs, targets, blank=blank)
        torch.testing.assert_close(found[0], log_likelihood)
        for c in range(4):
            columns = [k for k, label in enumerate([*target, blank]) if label == c]
            torch.testing.assert_close(classes[0, :, c], expected[:, columns].sum(1))
        confidences, found = twin.span_posteriors(log_probs, targets, starts, starts + 2, blank=blank)
        torch.testing.assert_close(found[0], log_likelihood)
        for k in range(len(target)):
            frames = [expected[t, k] for t in (k, k + 1) if t < T]
            assert float(confidences[0, k]) == pytest.approx(float(sum(frames)) / max(len(frames), 1))


def test_twin_stops_at_the_lengths(random_case):
    """Each item gives what it gives alone, cut to its lengths; there is nothing after them."""
    log_probs, targets, *lengths = make_batch(random_case, 12, 4, 5)
    tokens, log_likelihoods = twin.posteriors(log_probs, targets, *lengths)
    for b, (frames, labels) in enumerate(zip(*map(torch.Tensor.tolist, lengths), strict=True)):
        alone, log_likelihood = twin.posteriors(log_probs[b : b + 1, :frames], targets[b : b + 1, :labels])
        assert torch.equal(log_likelihoods[b], log_likelihood[0])
        assert torch.equal(tokens[b, :frames, [*range(labels), 4]], alone[0])
        assert not tokens[b, frames:].any()
        assert not tokens[b, :, labels:4].any()
    assert log_likelihoods.isfinite().tolist() == [True, True, True, False, False]
    assert log_likelihoods[3:].tolist() == [-INF, -INF]
    assert not tokens[3:].any()


@pytest.mark.parametrize("entry", [math.nan, INF, -INF, 2.0**18, -(2.0**18)])
def test_twin_passes_no_entry_that_is_not_a_log_probability(entry):
    log_probs = torch.tensor([[[0.0, -1, -2], [-1, 0, -1], [-2, -1, 0], [-1, -1, -1]]])
    masked = log_probs.clone()
    log_probs[0, 1, 1], masked[0, 1, 1] = entry, -INF
    (tokens, found), targets = twin.posteriors(log_probs, torch.tensor([[1, 2]])), [1, 2]
    expected, log_likelihood = by_all_paths(masked[0], targets)
    torch.testing.assert_close(tokens[0], expected)
    torch.testing.assert_close(found[0], log_likelihood)
    log_probs[0, 1, 1] = 2.0**18 - 1  # the greatest float below is 2^18 - 1/64; this entry is all that counts
    assert twin.posteriors(log_probs, torch.tensor([[1, 2]]))[1] > 2.0**18 - 10


def test_gradient_of_the_twin_is_that_of_ctc_loss(random_case):
    """After a log_softmax, where the gradient of ctc_loss is right; both by torch.autograd in float64."""
    logits, targets = random_case(3, 40, 9, 7, dtype=torch.float64)
    lengths = torch.tensor([40, 35, 38]), torch.tensor([9, 2, 7])
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    log_likelihoods = twin.posteriors(ours.log_softmax(-1), targets, *lengths)[1]
    losses = double_ctc(theirs.log_softmax(-1), targets, *lengths)
    torch.testing.assert_close(-log_likelihoods, losses)
    torch.testing.assert_close(
        *(torch.autograd.grad(x.sum(), leaf)[0] for x, leaf in ((-log_likelihoods, ours), (losses, theirs)))
    )


# ------------------------------------------------------------------------------- every operator answers to it


def relative_error(log_probs, dtype):
    """How far apart an operator with sums of this dtype and its twin may come out, relative to a posterior.

    The weight of a path meets every frame once, in the forward pass or in the backward pass. A frame costs an operator
    six roundings of half an epsilon: three for the exponential of the emission, two for the sums, one for the product.
    The total, by which it divides, costs as many; adding up tokens or frames costs at most T more. The twin
    rounds the logarithm of a weight by half an epsilon twice a frame and three times at the end, both of the weight and
    of the total; no logarithm is greater than T times the greatest emission.
    """
    T = log_probs.shape[1]
    emissions = log_probs.double()
    greatest = float(emissions[emissions.abs() < 2.0**18].abs().max())
    return 7 * T * torch.finfo(dtype).eps + (2 * T + 3) * torch.finfo(torch.float64).eps * T * greatest


def assert_answers(found, expected, log_probs):
    """Compares the outputs of an operator with those of its twin.

    A posterior becomes 0 where its exponent falls below that of the least normal number. Its mantissa is a product of
    two, each below 2^35 (csrc/lattice/forward_backward).
    """
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    error, limits = relative_error(log_probs, dtype), torch.finfo(dtype)
    assert [x.dtype for x in found] == [dtype, dtype]
    torch.testing.assert_close(found[0].double(), expected[0], rtol=error, atol=limits.tiny * 2.0**70)
    torch.testing.assert_close(found[1].double(), expected[1], rtol=limits.eps, atol=error)  # error of a logarithm


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", [(30, 5, 6), (120, 40, 9), (200, 60, 40)], ids=str)
def test_operators_answer_to_the_twin(random_case, dtype, sizes):
    log_probs, targets, *lengths = make_batch(random_case, *sizes, dtype=dtype)
    spans = token_spans(*forced_align(log_probs, targets, *lengths, strict=False), targets)
    borders = (
        spans.starts - 2,
        spans.ends + 2,
    )  # beyond the first frame and the last one, too; -3 to 1 where there is none
    by_token = twin.posteriors(log_probs, targets, *lengths)
    by_class = twin.class_posteriors(log_probs, targets, *lengths)
    by_span = twin.span_posteriors(log_probs, targets, *borders, *lengths)
    assert by_token[1].isfinite().sum() == 3
    assert by_span[0].max() > 0.1
    for cpu in torch_ctc_align.config().cpus:
        with _forced(cpu=cpu):
            assert_answers(operators.posteriors(log_probs, targets, *lengths), by_token, log_probs)
            assert_answers(operators.class_posteriors(log_probs, targets, *lengths), by_class, log_probs)
            assert_answers(operators.span_posteriors(log_probs, targets, *borders, *lengths), by_span, log_probs)


@pytest.mark.parametrize("blank", [2, 5])
def test_operators_answer_to_the_twin_with_another_blank(random_case, blank):
    log_probs, targets, *lengths = make_batch(random_case, 30, 5, 6, blank=blank)
    for name in ("posteriors", "class_posteriors"):
        expected = getattr(twin, name)(log_probs, targets, *lengths, blank)
        assert_answers(getattr(operators, name)(log_probs, targets, *lengths, blank), expected, log_probs)


@pytest.mark.parametrize("name", ["posteriors", "class_posteriors", "span_posteriors"])
def test_gradients_answer_to_those_of_the_twin(random_case, generator, name):
    """Of both outputs, and the second derivative of the log-likelihoods: torch.autograd differentiates the twin.

    The derivative by an emission is its posterior times the difference of two means of a sum over the T frames of a
    path, of at most T times the greatest entry of the incoming gradient each. An error of a weight is an error of as
    much in both, and of the posterior itself.
    """
    log_probs, targets, *lengths = make_batch(random_case, 40, 9, 7)
    log_probs.nan_to_num_(-INF, -INF, -INF)
    arguments = targets, *lengths
    if name == "span_posteriors":
        spans = token_spans(*forced_align(log_probs, targets, *lengths, strict=False), targets)
        arguments = targets, spans.starts, spans.ends, *lengths

    def derivatives(function):
        leaf = log_probs.clone().requires_grad_()
        table, log_likelihoods = function(leaf, *arguments)
        total = torch.where(log_likelihoods.isfinite(), log_likelihoods, 0).sum()
        (by_table,) = torch.autograd.grad((table * weights).sum(), leaf, retain_graph=True)
        (by_total,) = torch.autograd.grad(total, leaf, create_graph=True)
        (twice,) = torch.autograd.grad((by_total * direction).sum(), leaf)
        return by_table, by_total.detach(), twice

    weights = torch.rand(getattr(twin, name)(log_probs, *arguments)[0].shape, generator=generator).double()
    direction = torch.rand(log_probs.shape, generator=generator).double()
    error = relative_error(log_probs, torch.float64) * 3 * 40
    assert error < 1e-9
    for found, expected in zip(derivatives(getattr(operators, name)), derivatives(getattr(twin, name)), strict=True):
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(found, expected, rtol=0, atol=error)
