"""Derivatives of the posteriors and log-likelihoods: finite differences, ctc_loss in float64, torch.func."""

import math

import pytest
import torch
from conftest import RecordCalls
from test_posteriors import double_ctc, make_arguments, same

from torch_ctc_align import class_posteriors, forced_align, posteriors, span_posteriors, token_spans

INF = math.inf
operators = torch.ops.ctc_align


@pytest.fixture(params=[posteriors, class_posteriors], ids=lambda function: function.__name__)
def function(request):
    return request.param


# ---------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("lengths", [False, True], ids=["all", "lengths"])
def test_gradcheck(random_case, function, lengths):
    """Against finite differences: both outputs once, the log-likelihood twice."""
    log_probs, targets, *rest = make_arguments(random_case, 3, 9, 3, 4, dtype=torch.float64)
    arguments = [x[:2] for x in (targets, *(rest if lengths else ()))]  # at -inf there is no finite difference
    log_probs = log_probs[:2].requires_grad_()
    torch.autograd.gradcheck(lambda x: function(x, *arguments), log_probs)
    torch.autograd.gradgradcheck(lambda x: function(x, *arguments)[1], log_probs)


def test_gradcheck_of_spans(random_case):
    log_probs, targets = random_case(2, 12, 3, 5, dtype=torch.float64)
    spans = token_spans(*forced_align(log_probs, targets), targets)
    arguments = targets, spans.starts, spans.ends
    torch.autograd.gradcheck(lambda x: span_posteriors(x, *arguments), log_probs.requires_grad_())
    torch.autograd.gradgradcheck(lambda x: span_posteriors(x, *arguments)[1], log_probs)


def test_gradient_after_log_softmax_is_that_of_ctc_loss(random_case, function):
    """There ctc_loss is right as well. Targets repeat classes, and 40 classes do not fit into registers."""
    logits, targets = random_case(3, 60, 14, 40, dtype=torch.float64)
    lengths = torch.tensor([60, 50, 55]), torch.tensor([14, 3, 9])
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    weights = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    (-function(ours.log_softmax(-1), targets, *lengths)[1] * weights).sum().backward()
    (double_ctc(theirs.log_softmax(-1), targets, *lengths) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_gradient_is_the_true_one(random_case, function):
    """For emissions that do not sum to one, too; the gradient of ctc_loss sums to zero over the classes even there."""
    log_probs, targets = random_case(1, 30, 7, 6, dtype=torch.float64)
    log_probs = (log_probs + 0.3).requires_grad_()
    (true,) = torch.autograd.grad(function(log_probs, targets)[1].sum(), log_probs)
    torch.testing.assert_close(true, class_posteriors(log_probs, targets)[0])
    (other,) = torch.autograd.grad(-double_ctc(log_probs, targets).sum(), log_probs)
    torch.testing.assert_close(other.sum(2), torch.zeros(1, 30, dtype=torch.float64), atol=0.4, rtol=0)
    assert (true - other).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_gradients_of_other_types(random_case, function, dtype):
    log_probs, targets, *lengths = make_arguments(random_case, 3, 40, 6, 9, dtype=dtype)
    log_probs.requires_grad_()
    table, log_likelihoods = function(log_probs, targets, *lengths)
    (table.square().sum() + torch.where(log_likelihoods.isfinite(), log_likelihoods, 0).sum()).backward()
    double = log_probs.detach().double().requires_grad_()
    table, log_likelihoods = function(double, targets, *lengths)
    (table.square().sum() + torch.where(log_likelihoods.isfinite(), log_likelihoods, 0).sum()).backward()
    assert log_probs.grad.dtype == dtype
    assert double.grad.abs().max() > 0.5
    # The gradient of posteriors is a difference of two sums of 40 numbers between 0 and 2, in float32.
    atol = 40 * 2 * torch.finfo(torch.float32).eps * 2
    torch.testing.assert_close(log_probs.grad.double(), double.grad, rtol=torch.finfo(dtype).eps, atol=atol)


def test_the_gradient_of_posteriors_keeps_its_precision(random_case, function):
    """A number added to the incoming gradient of all states changes nothing, be it 1 or 1,000 in 2,000 frames."""
    log_probs, targets = random_case(1, 2000, 300, 20)
    weights = torch.randn_like(function(log_probs, targets)[0])
    for common in (0.0, 1.0, 1000.0):
        gradients = []
        for dtype in (torch.float32, torch.float64):
            leaf = log_probs.detach().to(dtype, copy=True).requires_grad_()
            table, _ = function(leaf, targets)
            (table * (weights + common).to(dtype)).sum().backward()
            gradients.append(leaf.grad.double())
        scale = gradients[1].abs().max()
        assert scale > 1
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-4 * float(scale) * max(1.0, common / 100))


def test_items_without_a_path_get_no_gradient(random_case, function):
    """Not even where the incoming gradient is NaN."""
    log_probs, targets, *lengths = make_arguments(random_case)
    log_probs.requires_grad_()
    _, log_likelihoods = function(log_probs, targets, *lengths)
    log_likelihoods.backward(torch.tensor([1.0, 1.0, math.nan]))
    assert not log_probs.grad[2].any()
    assert log_probs.grad[:2].isfinite().all()
    assert log_probs.grad[0].any()


def test_a_third_derivative_is_refused(random_case):
    log_probs, targets = random_case(1, 8, 2, 4, dtype=torch.float64)
    log_probs.requires_grad_()
    tokens, _ = posteriors(log_probs, targets)
    (gradient,) = torch.autograd.grad(tokens.square().sum(), log_probs, create_graph=True)
    with pytest.raises(NotImplementedError, match="posteriors_backward: not differentiable"):
        torch.autograd.grad(gradient.square().sum(), log_probs)


def test_without_gradients_nothing_is_saved(random_case, function):
    log_probs, targets = random_case(1, 10, 3, 5)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        assert not function(log_probs, targets)[1].requires_grad
        log_probs.requires_grad_()
        with torch.no_grad():
            assert not function(log_probs, targets)[1].requires_grad
        assert saved == []
        assert function(log_probs, targets)[1].requires_grad
        assert saved


# ------------------------------------------------------------------------------------------------- torch.func


def test_vmap_is_one_call(random_case, function):
    name = function.__name__
    log_probs, targets = random_case(8, 15, 4, 6)
    lengths = torch.tensor([15, 14, 13, 12, 11, 10, 9, 8]), torch.tensor([4, 3, 2, 1, 0, 1, 2, 3])
    expected = function(log_probs, targets, *lengths)
    split = [x.unflatten(0, (4, 2)) for x in (log_probs, targets, *lengths)]
    with RecordCalls() as recorded:
        found = torch.vmap(getattr(operators, name))(*split)
    assert recorded.calls.count(getattr(operators, name).default) == 1
    assert same([x.flatten(0, 1) for x in found], expected)
    found = torch.vmap(lambda x: function(x, targets[:2]), in_dims=2)(split[0].movedim(0, 2))
    for n in range(4):
        assert same([x[n] for x in found], function(split[0][n], targets[:2]))


def test_func_transforms(random_case, function):
    log_probs, targets = random_case(3, 9, 3, 4, dtype=torch.float64)

    def log_likelihood(item, target):
        return function(item[None], target[None])[1].sum()

    def square(item, target):
        return function(item[None], target[None])[0].square().sum()

    expected = class_posteriors(log_probs, targets)[0]
    torch.testing.assert_close(torch.vmap(torch.func.grad(log_likelihood))(log_probs, targets), expected)
    torch.testing.assert_close(
        torch.func.grad(lambda x: torch.vmap(log_likelihood)(x, targets).sum())(log_probs), expected
    )
    leaf = log_probs.clone().requires_grad_()
    function(leaf, targets)[0].square().sum().backward()
    torch.testing.assert_close(torch.vmap(torch.func.grad(square))(log_probs, targets), leaf.grad)
    # The Hessian of a sum over paths is a covariance: symmetric, and no direction has a negative variance.
    hessian = torch.func.jacrev(torch.func.grad(log_likelihood))(log_probs[0], targets[0]).flatten(0, 1).flatten(1)
    torch.testing.assert_close(hessian, hessian.T)
    assert torch.linalg.eigvalsh(hessian).min() > -1e-12
    assert hessian.abs().max() > 0.1


def test_forward_mode(random_case):
    """Of class_posteriors, against the backward pass; the others refuse instead of returning a tangent of zero."""
    log_probs, targets, *lengths = make_arguments(random_case, 3, 9, 3, 4, dtype=torch.float64)
    arguments = [x[:2] for x in (targets, *lengths)]
    log_probs = log_probs[:2]
    tangent = torch.randn_like(log_probs)

    def both(x):
        return class_posteriors(x, *arguments)

    _, found = torch.func.jvp(both, (log_probs,), (tangent,))
    expected = (torch.tensordot(jacobian, tangent, 3) for jacobian in torch.func.jacrev(both)(log_probs))
    torch.testing.assert_close(found, tuple(expected))
    assert found[1].abs().min() > 0
    torch.autograd.gradcheck(both, log_probs.clone().requires_grad_(), check_forward_ad=True)

    def log_likelihood(x):
        return both(x)[1].sum()

    torch.testing.assert_close(
        torch.func.hessian(log_likelihood)(log_probs), torch.func.jacrev(torch.func.jacrev(log_likelihood))(log_probs)
    )
    marked = torch.func.jvp(
        lambda x: class_posteriors(x, targets[:1], [2], [3]), (log_probs[:1],), (torch.full((1, 9, 4), INF).double(),)
    )
    assert marked[1][1].tolist() == [0]

    borders = torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)
    for function in (
        lambda x: operators.posteriors(x, arguments[0]),
        lambda x: operators.span_posteriors(x, arguments[0], *borders),
        lambda x: operators.posteriors_backward(torch.ones(2, 9, 4).double(), x, arguments[0]),
    ):
        with pytest.raises(NotImplementedError, match=r"no forward-mode|not differentiable"):
            torch.func.jvp(function, (log_probs,), (tangent,))


def test_nodes_have_names(random_case):
    log_probs, targets = random_case(1, 9, 3, 4)
    _, log_likelihoods = class_posteriors(log_probs.requires_grad_(), targets)
    assert log_likelihoods.grad_fn.name() == "ctc_align_class_posteriors_Backward"
