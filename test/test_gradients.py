"""Gradients of the scores: of all orders, in every mode of torch.func, and nothing is kept if none is asked for."""

import math

import pytest
import torch
import torch._decomp.decompositions_for_jvp  # forward mode loads it, which prints a warning of torch's own
from test_operator import RecordCalls, make_arguments, vmap_once
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import torch_ctc_align

INF = math.inf
forced_align = torch.ops.ctc_align.forced_align

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def case(random_case):
    """float64 log_probs (2, 9, 5), targets, and lengths that leave padding."""
    log_probs, targets = random_case(2, 9, 3, 5, dtype=torch.float64)
    return log_probs, targets, torch.tensor([9, 7]), torch.tensor([3, 2])


@pytest.fixture
def cases(random_case):
    """Three such cases in one more dimension."""
    log_probs, targets = (x.unflatten(0, (3, 2)) for x in random_case(6, 9, 3, 5, dtype=torch.float64))
    return log_probs, targets, torch.tensor([[9, 7], [8, 9], [5, 6]]), torch.tensor([[3, 2], [1, 3], [0, 1]])


def cube(log_probs, *rest):
    """A loss whose first and second derivatives depend on the scores."""
    return (forced_align(log_probs, *rest)[1] ** 3).sum()


def along(paths, input_lengths, values):
    """By a loop: `values` (B, T) at the entries of a (B, T, C) tensor that the paths go through, 0 elsewhere."""
    result = torch.zeros(*paths.shape, 5, dtype=values.dtype)
    for b, frames in enumerate(input_lengths.tolist()):
        for t in range(frames):
            result[b, t, paths[b, t]] = values[b, t]
    return result


# By backward()


def test_the_gradient_goes_along_the_path():
    """By hand: path 0 1 1 of two classes, the gradients of the three scores at the three entries, zero elsewhere."""
    log_probs = torch.tensor([[[0.0, -1.0], [-1.0, 0.0], [-1.0, 0.0]]], requires_grad=True)
    paths, scores = forced_align(log_probs, torch.tensor([[1]]))
    assert paths.tolist() == [[0, 1, 1]]
    scores.backward(torch.tensor([[2.0, 3.0, 5.0]]))
    assert log_probs.grad.tolist() == [[[2, 0], [0, 3], [0, 5]]]


def test_padding_and_marked_items_get_no_gradient():
    """Item 0 ends after one frame; item 1 has too few frames; neither an infinite gradient nor NaN may get through."""
    log_probs = torch.zeros(2, 2, 2, requires_grad=True)
    targets, lengths = torch.tensor([[1, 1], [1, 1]]), torch.tensor([1, 2])
    paths, scores = forced_align(log_probs, targets, lengths, torch.tensor([1, 2]))
    assert paths.tolist() == [[1, 0], [-1, -1]]
    scores.backward(torch.tensor([[2.0, INF], [math.nan, INF]]))
    assert log_probs.grad.tolist() == [[[0, 2], [0, 0]], [[0, 0], [0, 0]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_gradient_of_any_type_and_layout(random_case, dtype):
    log_probs, *rest = make_arguments(random_case, dtype=dtype)
    leaf = log_probs.transpose(0, 1).contiguous().requires_grad_()  # (T, B, C)
    paths, scores = forced_align(leaf.transpose(0, 1), *rest)
    scores.nan_to_num(neginf=0).sum().backward()
    used = (torch.arange(20) < rest[1][:, None]) & (paths >= 0)
    expected = torch.zeros_like(log_probs).scatter(2, paths.clamp(min=0)[..., None], used[..., None].to(dtype))
    assert leaf.grad.dtype == dtype
    assert torch.equal(leaf.grad.transpose(0, 1), expected)


def test_gradient_of_an_expanded_emission(random_case):
    """One emission for two transcripts collects the gradients of both."""
    log_probs, targets = random_case(1, 10, 3, 5)
    targets = torch.cat([targets, targets.flip(1)])
    log_probs.requires_grad_()
    paths, scores = forced_align(log_probs.expand(2, -1, -1), targets)
    scores.sum().backward()
    assert torch.equal(log_probs.grad, torch.nn.functional.one_hot(paths, 5).sum(0, keepdim=True).float())


def test_gradcheck(random_case):
    """Against finite differences, which stay on one path because the best one leads by far more than a step."""
    log_probs, *rest = make_arguments(random_case, T=9, L=3, dtype=torch.float64)
    # A marked item's scores are -inf and have no finite difference.
    log_probs, rest = log_probs[:-1].requires_grad_(), [x[:-1] for x in rest]
    scores = lambda x: forced_align(x, *rest)[1]  # noqa: E731
    torch.autograd.gradcheck(scores, log_probs, check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(scores, log_probs)
    torch.autograd.gradgradcheck(lambda x: cube(x, *rest), log_probs)


def test_double_backward(case):
    """d/dx sum((d/dx sum(s^3))^2) = d/dx sum(9 s^4) = 36 s^3, along the path."""
    log_probs, *rest = case
    log_probs.requires_grad_()
    (first,) = torch.autograd.grad(cube(log_probs, *rest), log_probs, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), log_probs)
    paths, scores = forced_align(log_probs.detach(), *rest)
    torch.testing.assert_close(first.detach(), along(paths, rest[1], 3 * scores**2))
    torch.testing.assert_close(second, along(paths, rest[1], 36 * scores**3))
    assert second.any()


def test_paths_carry_no_gradient(random_case):
    log_probs, targets = random_case(1, 10, 3, 5)
    paths, scores = forced_align(log_probs.requires_grad_(), targets)
    assert not paths.requires_grad
    assert scores.requires_grad
    with torch.no_grad():
        assert not forced_align(log_probs, targets)[1].requires_grad


def test_the_function_carries_gradients(random_case):
    log_probs, targets = random_case(2, 10, 3, 5)
    log_probs.requires_grad_()
    torch_ctc_align.forced_align(log_probs, targets, [10, 9], [3, 2])[1].sum().backward()
    assert log_probs.grad.sum() == 19


def test_scores_are_the_same_bits_with_and_without_gradient(random_case):
    """Padding and marked items too."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        log_probs, *rest = make_arguments(random_case, dtype=dtype)
        expected = forced_align(log_probs, *rest)
        found = forced_align(log_probs.requires_grad_(), *rest)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1].detach(), expected[1])
        assert found[1].stride() == expected[1].stride()


# What is kept for later


def saved_tensors(function):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        function()
    return saved


def test_nothing_is_saved_where_nobody_differentiates(random_case):
    arguments = make_arguments(random_case)
    leaf = arguments[0].clone().requires_grad_()

    def under_no_grad():
        with torch.no_grad():
            return forced_align(leaf, *arguments[1:])

    def under_inference_mode():
        with torch.inference_mode():
            return forced_align(*arguments)

    for function in (lambda: forced_align(*arguments), under_no_grad, under_inference_mode):
        assert saved_tensors(function) == []
        with RecordCalls() as recorded:
            function()
        assert recorded.calls == [forced_align.default]  # and nothing is computed for it either


def test_no_copy_of_the_emission_is_saved(random_case):
    """A call saves tensors of the path's size, beside log_probs itself."""
    log_probs, *rest = make_arguments(random_case)
    log_probs.requires_grad_()
    saved = saved_tensors(lambda: forced_align(log_probs, *rest))
    assert saved
    for tensor in saved:
        assert tensor.numel() == 3 * 20 or tensor.data_ptr() == log_probs.data_ptr()


# By torch.func


def test_func_grad(case):
    log_probs, *rest = case
    paths, scores = forced_align(*case)
    expected = along(paths, rest[1], 3 * scores**2)
    torch.testing.assert_close(grad(cube)(*case), expected)
    assert torch.equal(torch.compile(grad(cube), backend="aot_eager", fullgraph=True)(*case), grad(cube)(*case))

    leaf = log_probs.clone().requires_grad_()
    cube(leaf, *rest).backward()
    assert torch.equal(grad(cube)(*case), leaf.grad)


def test_func_grad_leaves_paths_alone(case):
    """As an auxiliary output, next to the gradient."""

    def loss(log_probs, *rest):
        paths, scores = forced_align(log_probs, *rest)
        return scores.sum(), paths

    gradient, paths = grad(loss, has_aux=True)(*case)
    assert torch.equal(paths, forced_align(*case)[0])
    assert torch.equal(gradient, along(paths, case[2], torch.ones(2, 9, dtype=torch.float64)))


def test_func_vjp_and_jvp(case):
    """The two products with the Jacobian, which picks entries: by hand, and against each other."""
    log_probs, *rest = case
    scores = lambda x: forced_align(x, *rest)[1]  # noqa: E731
    paths, expected = forced_align(*case)
    cotangent, tangent = expected.sin(), log_probs.cos()

    found, pull = vjp(scores, log_probs)
    assert torch.equal(found, expected)
    (pulled,) = pull(cotangent)
    assert torch.equal(pulled, along(paths, rest[1], cotangent))

    found, pushed = jvp(scores, (log_probs,), (tangent,))
    assert torch.equal(found, expected)
    padding = torch.arange(9) >= rest[1][:, None]
    assert torch.equal(pushed, tangent.gather(2, paths[..., None]).squeeze(2).masked_fill(padding, 0))
    torch.testing.assert_close((pushed * cotangent).sum(), (pulled * tangent).sum())


def test_dual_tensors(case):
    """Forward mode outside torch.func: no tangent may get lost."""
    log_probs, *rest = case
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(log_probs, torch.ones_like(log_probs))
        _, scores = forced_align(dual, *rest)
        tangent = forward_ad.unpack_dual(scores).tangent
    assert torch.equal(tangent, (torch.arange(9) < rest[1][:, None]).double())


def test_func_jacobians_and_hessian(case):
    log_probs, *rest = case
    scores = lambda x: forced_align(x, *rest)[1]  # noqa: E731
    paths, values = forced_align(*case)
    jacobian = jacrev(scores)(log_probs)  # (B, T, B, T, C)
    assert torch.equal(jacobian.sum((0, 1)), along(paths, rest[1], torch.ones_like(values)))
    assert jacobian.count_nonzero() == rest[1].sum()
    assert torch.equal(jacfwd(scores)(log_probs), jacobian)

    second = hessian(cube)(*case).reshape(log_probs.numel(), log_probs.numel())
    expected = along(paths, rest[1], 6 * values).flatten().diag()
    torch.testing.assert_close(second, expected)


@pytest.mark.parametrize("shared", [None, 2, 3], ids=["all_mapped", "input_lengths_shared", "target_lengths_shared"])
def test_vmap_and_grad_in_both_orders(cases, shared):
    """vmap(grad), grad(vmap) and a loop; a gradient of a gradient as well."""
    dims = [0, 0, 0, 0]
    cases = list(cases)
    if shared is not None:
        cases[shared], dims[shared] = cases[shared][0], None
        cases[2] = torch.full_like(cases[2], 9)  # so that every item fits
    alone = [[x if dim is None else x[n] for x, dim in zip(cases, dims, strict=True)] for n in range(3)]
    expected = torch.stack([grad(cube)(*x) for x in alone])
    assert expected.flatten(1).any(1).all()

    found = vmap_once(grad(cube), in_dims=tuple(dims))(*cases)
    assert torch.equal(found, expected)
    total = lambda x, *rest: vmap(cube, in_dims=tuple(dims))(x, *rest).sum()  # noqa: E731
    assert torch.equal(grad(total)(*cases), expected)

    square = lambda *x: (grad(cube)(*x) ** 2).sum()  # noqa: E731
    expected = torch.stack([grad(square)(*x) for x in alone])
    assert torch.equal(vmap(grad(square), in_dims=tuple(dims))(*cases), expected)


def test_func_grad_of_marked_items(random_case):
    """They get none, and no NaN, in torch.func as by backward()."""
    arguments = make_arguments(random_case, dtype=torch.float64)
    gradient = grad(lambda *x: forced_align(*x)[1].sum())(*arguments)
    assert forced_align(*arguments)[0][2, 0] == -1
    assert not gradient[2].any()
    assert gradient.sum() == arguments[2][:2].sum()
