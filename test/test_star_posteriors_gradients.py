"""Stars in the sums over all paths: derivatives by both inputs, what torch demands, W-CTC, and what is refused."""

import math

import pytest
import torch
from conftest import RecordCalls
from test_posteriors import same
from test_star_posteriors import by_all_paths, star_case  # noqa: F401

from torch_ctc_align import class_posteriors, posteriors, span_posteriors
from torch_ctc_align import reference_posteriors as twin

INF = math.inf
operators = torch.ops.ctc_align
FUNCTIONS = [posteriors, class_posteriors]


@pytest.fixture(params=FUNCTIONS, ids=lambda function: function.__name__)
def function(request):
    return request.param


@pytest.fixture
def inputs(star_case):  # noqa: F811
    """Both inputs, and call(function, log_probs, star_scores): small items of several lengths, all with a path."""
    log_probs, targets, *lengths, blank, star_scores, wild_gaps = star_case(3, 9, 3, 4, marked=False)

    def call(function, log_probs, star_scores, *spans):
        stars = {"star_scores": star_scores, "wild_gaps": wild_gaps}
        return function(log_probs, targets, *spans, *lengths, blank, **stars)

    return log_probs.requires_grad_(), star_scores.requires_grad_(), call


# ---------------------------------------------------------------------------------------------------------- gradients


def test_gradcheck(inputs, function):
    """Against finite differences, by both inputs: both outputs once, the log-likelihood twice."""
    *leaves, call = inputs
    assert call(function, *leaves)[1].isfinite().all()
    torch.autograd.gradcheck(lambda x, s: call(function, x, s), leaves)
    torch.autograd.gradgradcheck(lambda x, s: call(function, x, s)[1], leaves)


def test_gradcheck_of_spans(inputs):
    *leaves, call = inputs
    starts = torch.tensor([[0, 2, 4]] * 3)
    torch.autograd.gradcheck(lambda x, s: call(span_posteriors, x, s, starts, starts + 3), leaves)
    torch.autograd.gradgradcheck(lambda x, s: call(span_posteriors, x, s, starts, starts + 3)[1], leaves)


@pytest.mark.parametrize("which", [0, 1], ids=["log_probs", "star_scores"])
def test_one_input_alone(inputs, function, which):
    """Either input may be a constant."""
    *leaves, call = inputs
    weights = torch.rand(call(function, *leaves)[0].shape, dtype=torch.float64)

    def loss(log_probs, star_scores):
        table, log_likelihoods = call(function, log_probs, star_scores)
        return (table * weights).sum() + log_likelihoods.sum()

    both = torch.autograd.grad(loss(*leaves), leaves)
    others = [x if i == which else x.detach() for i, x in enumerate(leaves)]
    assert torch.equal(torch.autograd.grad(loss(*others), leaves[which])[0], both[which])
    assert both[which].abs().max() > 0.1


def test_a_step_of_the_star_score(star_case):  # noqa: F811
    """Finite differences of the log-likelihood, frame by frame, on longer items than gradcheck takes."""
    log_probs, targets, *rest, star_scores, wild_gaps = star_case(2, 60, 12, 9, marked=False)
    shares = operators.occupancies(log_probs, targets, *rest, star_scores, wild_gaps)[0][:, :, 9]
    for t in range(0, 60, 7):
        step = torch.zeros_like(star_scores)
        step[:, t] = 1e-5
        above, below = (
            operators.posteriors(log_probs, targets, *rest, star_scores + sign * step, wild_gaps)[1] for sign in (1, -1)
        )
        torch.testing.assert_close((above - below) / 2e-5, shares[:, t], atol=1e-8, rtol=0)
    assert shares.max() > 0.5


@pytest.mark.parametrize("name", ["posteriors", "class_posteriors", "span_posteriors"])
def test_gradients_answer_to_those_of_the_twin(star_case, generator, name):  # noqa: F811
    """Of both outputs and twice of the log-likelihoods; the tolerance is that of test_reference_posteriors.py."""
    log_probs, targets, *rest, star_scores, wild_gaps = star_case(4, 40, 9, 7)
    starts = torch.arange(9).expand(4, -1) * 3
    spans = (starts, starts + 4) if name == "span_posteriors" else ()
    log_probs.nan_to_num_(-INF, -INF, -INF)
    weights = torch.rand(getattr(twin, name)(log_probs, targets, *spans)[0].shape, generator=generator).double()
    direction = torch.rand(4, 40, 8, generator=generator).double()

    def derivatives(module):
        leaves = log_probs.clone().requires_grad_(), star_scores.clone().requires_grad_()
        table, totals = getattr(module, name)(leaves[0], targets, *spans, *rest, leaves[1], wild_gaps)
        total = torch.where(totals.isfinite(), totals, 0).sum()
        by_table = torch.autograd.grad((table * weights).sum(), leaves, retain_graph=True)
        by_total = torch.autograd.grad(total, leaves, create_graph=True)
        along = (by_total[0] * direction[:, :, :7]).sum() + (by_total[1] * direction[:, :, 7]).sum()
        return *by_table, *by_total, *torch.autograd.grad(along, leaves)

    for found, expected in zip(derivatives(operators), derivatives(twin), strict=True):
        assert expected.abs().max() > 0.01
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_gradients_of_other_types(star_case, function, dtype):  # noqa: F811
    log_probs, targets, *rest, star_scores, wild_gaps = star_case(3, 40, 6, 9, dtype=dtype)
    gradients = []
    for kind in (dtype, torch.float64):
        leaves = [x.detach().to(kind).requires_grad_() for x in (log_probs, star_scores)]
        table, totals = function(leaves[0], targets, *rest, star_scores=leaves[1], wild_gaps=wild_gaps)
        (table.square().sum() + torch.where(totals.isfinite(), totals, 0).sum()).backward()
        gradients.append([x.grad for x in leaves])
        assert {x.grad.dtype for x in leaves} == {kind}
    # A difference of two sums of 40 numbers between 0 and 2, in float32, as in test_posteriors_gradients.py.
    atol = 40 * 2 * torch.finfo(torch.float32).eps * 2
    for found, expected in zip(*gradients, strict=True):
        assert expected.abs().max() > 0.5
        torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps, atol=atol)


def test_items_without_a_path_get_no_gradient(star_case, function):  # noqa: F811
    """Not even where the incoming gradient is NaN. Nor does a frame of NaN, in an item with a path."""
    log_probs, targets, *rest, star_scores, wild_gaps = star_case()
    star_scores[0, 3] = math.nan
    leaves = log_probs.requires_grad_(), star_scores.requires_grad_()
    _, totals = function(log_probs, targets, *rest, star_scores=star_scores, wild_gaps=wild_gaps)
    assert totals.isfinite().tolist() == [True, True, False]
    totals.backward(torch.tensor([1.0, 1.0, math.nan], dtype=torch.float64))
    for leaf in leaves:
        assert not leaf.grad[2].any()
        assert leaf.grad[:2].isfinite().all()
        assert leaf.grad[0].any()
    assert star_scores.grad[0, 3] == 0


def test_a_third_derivative_is_refused(inputs):
    *leaves, call = inputs
    tokens, _ = call(posteriors, *leaves)
    (gradient,) = torch.autograd.grad(tokens.square().sum(), leaves[1], create_graph=True)
    with pytest.raises(NotImplementedError, match="posteriors_backward: not differentiable"):
        torch.autograd.grad(gradient.square().sum(), leaves[1])


# --------------------------------------------------------------------------------------------- what torch demands


@pytest.mark.parametrize("name", ["posteriors", "class_posteriors", "occupancies", "span_posteriors"])
@pytest.mark.parametrize("wild", [True, False], ids=["wild", "labels"])
def test_opcheck(star_case, name, wild):  # noqa: F811
    log_probs, targets, *rest, star_scores, wild_gaps = star_case(2, 9, 3, 5, marked=False)
    starts = torch.tensor([[0, 2, 4]] * 2)
    spans = (starts, starts + 2) if name == "span_posteriors" else ()
    leaves = log_probs.requires_grad_(), star_scores.requires_grad_()
    arguments = leaves[0], targets, *spans, *rest, leaves[1], wild_gaps if wild else None
    torch.library.opcheck(getattr(operators, name).default, arguments)
    if not spans:
        grad = torch.rand(2, 9, 5, dtype=torch.float64)
        checks = "test_schema", "test_faketensor"
        torch.library.opcheck(operators.posteriors_backward.default, (grad, *arguments), test_utils=checks)


def test_vmap_is_one_call(star_case, function):  # noqa: F811
    name = function.__name__
    arguments = star_case(8, 15, 4, 6, marked=False)
    expected = getattr(operators, name)(*arguments)
    split = [x.unflatten(0, (4, 2)) if isinstance(x, torch.Tensor) else x for x in arguments]
    in_dims = tuple(0 if isinstance(x, torch.Tensor) else None for x in arguments)
    with RecordCalls() as recorded:
        found = torch.vmap(getattr(operators, name), in_dims)(*split)
    assert recorded.calls.count(getattr(operators, name).default) == 1
    assert same([x.flatten(0, 1) for x in found], expected)
    first = [x[:2] if isinstance(x, torch.Tensor) else x for x in arguments]  # the stars alone are mapped
    stars = split[5].movedim(0, 2)
    found = torch.vmap(lambda s: getattr(operators, name)(*first[:5], s, first[6]), in_dims=2)(stars)
    for n in range(4):
        assert same([x[n] for x in found], getattr(operators, name)(*first[:5], split[5][n], first[6]))


def test_func_transforms(star_case, function):  # noqa: F811
    arguments = star_case(3, 9, 3, 4, marked=False)
    log_probs, targets, stars, wild = arguments[0], arguments[1], arguments[5], arguments[6]

    def log_likelihood(item, star, target, gaps):
        return function(item[None], target[None], star_scores=star[None], wild_gaps=gaps[None])[1].sum()

    def square(item, star, target, gaps):
        return function(item[None], target[None], star_scores=star[None], wild_gaps=gaps[None])[0].square().sum()

    everything = operators.occupancies(log_probs, targets, None, None, 0, stars, wild)[0]
    found = torch.vmap(torch.func.grad(log_likelihood, (0, 1)))(log_probs, stars, targets, wild)
    torch.testing.assert_close(found, (everything[:, :, :4], everything[:, :, 4]))
    leaves = log_probs.clone().requires_grad_(), stars.clone().requires_grad_()
    function(leaves[0], targets, star_scores=leaves[1], wild_gaps=wild)[0].square().sum().backward()
    found = torch.vmap(torch.func.grad(square, (0, 1)))(log_probs, stars, targets, wild)
    torch.testing.assert_close(found, tuple(x.grad for x in leaves))
    # The Hessian of a sum over paths is a covariance, by both inputs together: symmetric, no negative variance.
    both = torch.cat((log_probs[0], stars[0, :, None]), 1)
    hessian = torch.func.jacrev(
        torch.func.grad(lambda x: log_likelihood(x[:, :4], x[:, 4], targets[0], wild[0])),
    )(both)
    hessian = hessian.flatten(0, 1).flatten(1)
    torch.testing.assert_close(hessian, hessian.T)
    assert torch.linalg.eigvalsh(hessian).min() > -1e-12
    assert hessian.abs().max() > 0.1


def test_forward_mode(inputs):
    """Of class_posteriors, against the backward pass, by both inputs, by either alone; twice in a Hessian."""
    *leaves, call = inputs
    leaves = tuple(x.detach() for x in leaves)
    tangents = tuple(torch.randn_like(x) for x in leaves)

    def both(x, s):
        return call(class_posteriors, x, s)

    _, by_log_probs = torch.func.jvp(lambda x: both(x, leaves[1]), leaves[:1], tangents[:1])
    _, by_stars = torch.func.jvp(lambda s: both(leaves[0], s), leaves[1:], tangents[1:])
    _, found = torch.func.jvp(both, leaves, tangents)
    torch.testing.assert_close(found, tuple(x + y for x, y in zip(by_log_probs, by_stars, strict=True)))
    jacobians = torch.func.jacrev(both, (0, 1))(*leaves)
    for output, jacobian in zip(found, jacobians, strict=True):
        expected = torch.tensordot(jacobian[0], tangents[0], 3) + torch.tensordot(jacobian[1], tangents[1], 2)
        torch.testing.assert_close(output, expected)
        assert output.abs().max() > 0.1
    torch.autograd.gradcheck(both, [x.clone().requires_grad_() for x in leaves], check_forward_ad=True)

    def log_likelihood(x, s):
        return both(x, s)[1].sum()

    forward = torch.func.hessian(log_likelihood, (0, 1))(*leaves)
    backward = torch.func.jacrev(torch.func.jacrev(log_likelihood, (0, 1)), (0, 1))(*leaves)
    torch.testing.assert_close(forward, backward)
    for refuses in (posteriors, lambda *x, **y: span_posteriors(*x[:2], x[1] * 0, x[1] * 0 + 1, *x[2:], **y)):
        with pytest.raises(NotImplementedError, match="no forward-mode"):
            torch.func.jvp(lambda s, refuses=refuses: call(refuses, leaves[0], s), leaves[1:], tangents[1:])


class Loss(torch.nn.Module):
    def forward(self, logits, targets, input_lengths, target_lengths, wild_gaps):
        log_probs = logits.log_softmax(-1)
        stars = {"star_scores": log_probs[:, :, 1:].logsumexp(-1) - 1, "wild_gaps": wild_gaps}
        tokens, _ = posteriors(log_probs, targets, input_lengths, target_lengths, **stars)
        _, log_likelihoods = class_posteriors(log_probs, targets, input_lengths, target_lengths, **stars)
        feasible = log_likelihoods.isfinite()
        return torch.where(feasible, -log_likelihoods, 0).sum() + tokens[..., :-1].sum(1).square().sum()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_forward_and_backward(star_case, backend):  # noqa: F811
    torch.compiler.reset()
    loss = Loss()
    compiled = torch.compile(loss, backend=backend, fullgraph=True, dynamic=True)
    for i, sizes in enumerate([(3, 20, 5, 9), (4, 33, 9, 12)]):
        log_probs, targets, *lengths, _, _, wild_gaps = star_case(*sizes, marked=False)
        lengths[0][0] = 2  # too few frames
        gradients, values = [], []
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            for function in (loss, compiled):
                leaf = log_probs.clone().requires_grad_()
                values.append(function(leaf, targets, *lengths, wild_gaps))
                values[-1].backward()
                gradients.append(leaf.grad)
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*gradients)
        assert gradients[0].any()
    torch.compiler.reset()


def test_exports(star_case, tmp_path):  # noqa: F811
    log_probs, targets, *lengths, _, _, wild_gaps = star_case(marked=False)
    arguments = log_probs, targets, *lengths, wild_gaps
    exported = torch.export.export(Loss(), arguments)
    torch.export.save(exported, tmp_path / "loss.pt2")
    loaded = torch.export.load(tmp_path / "loss.pt2").module()
    torch.testing.assert_close(loaded(*arguments), Loss()(*arguments))
