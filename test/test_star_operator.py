"""Stars through PyTorch: gradients to the star scores, torch.func, opcheck, graphs; as without stars."""

import itertools
import math

import pytest
import torch
import torch._decomp.decompositions_for_jvp  # forward mode loads it, which prints a warning of torch's own
from test_graphs import compile_fully as compile_fully
from test_graphs import cxx as cxx
from test_operator import RecordCalls, assert_same, lay_out, vmap_once
from torch.export import Dim
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

INF = math.inf
GAP_STAR = -2
forced_align = torch.ops.ctc_align.forced_align


def make_arguments(random_case, B=3, T=20, L=6, C=7, blank=2, **options):
    """log_probs, targets with star labels, lengths, blank, star scores, wild gaps. The last item is marked."""
    log_probs, targets = random_case(B, T, L, C, blank=blank, **options)
    stars = log_probs.amax(-1) - 0.25
    log_probs[B - 1, 1] = stars[B - 1, 1] = -INF
    targets[:, ::4] = C
    gaps = torch.arange(L + 1).expand(B, -1) % 3 == 0
    lengths = torch.arange(T - B + 1, T + 1), torch.arange(L - B + 1, L + 1)
    return log_probs, targets, *lengths, blank, stars, gaps


@pytest.fixture
def case(random_case):
    """float64, two items of 9 and 7 frames; nothing is marked."""
    log_probs, targets, *_ = make_arguments(random_case, 2, 9, 3, 5, dtype=torch.float64)
    log_probs, _ = random_case(2, 9, 3, 5, dtype=torch.float64)
    return log_probs, targets, torch.tensor([9, 7]), torch.tensor([3, 2]), 2, log_probs.amax(-1) - 0.25


GAPS = torch.tensor([[True, False, True, True]])


def cube(log_probs, stars, *rest):
    """A loss whose first and second derivatives depend on the scores."""
    return (forced_align(log_probs, *rest, stars, GAPS.expand(len(log_probs), -1))[1] ** 3).sum()


def split(case):
    log_probs, *rest, stars = case
    return log_probs, stars, *rest


# Gradients


def test_the_gradient_of_a_star_goes_to_the_star():
    """By hand: the star of a gap, a label, a star label, a blank."""
    log_probs = torch.tensor([[[-3.0, -9], [-9, 0], [-9, -9], [0, -9]]], requires_grad=True)
    stars = torch.full((1, 4), -1.0, requires_grad=True)
    gaps = torch.tensor([[True, False, True]])
    paths, scores = forced_align(log_probs, torch.tensor([[1, 2]]), None, None, 0, stars, gaps)
    assert paths.tolist() == [[GAP_STAR, 1, 2, 0]]
    scores.backward(torch.tensor([[2.0, 3.0, 5.0, 7.0]]))
    assert log_probs.grad.tolist() == [[[0, 0], [0, 3], [0, 0], [7, 0]]]
    assert stars.grad.tolist() == [[2, 0, 5, 0]]


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)], ids=["emissions", "stars", "both"])
def test_gradcheck(case, wanted):
    """Against finite differences, of what is asked for alone; both orders, forward mode, batched."""
    log_probs, stars, *rest = split(case)
    paths = forced_align(log_probs, *rest, stars, GAPS.expand(2, -1))[0]
    assert (paths == GAP_STAR).any()
    assert (paths == 5).any()
    leaves = log_probs.requires_grad_(wanted[0]), stars.requires_grad_(wanted[1])
    scores = lambda x, y: forced_align(x, *rest, y, GAPS.expand(2, -1))[1]  # noqa: E731
    torch.autograd.gradcheck(scores, leaves, check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(lambda x, y: cube(x, y, *rest), leaves)


def test_the_gradient_passes_through_the_rule_of_the_stars(random_case):
    """Stars made from log_probs by a maximum: their gradient arrives at the largest class of the frame."""
    log_probs, targets, *lengths, blank, _, gaps = make_arguments(random_case, 2, dtype=torch.float64)
    log_probs = random_case(2, 20, 6, 7, dtype=torch.float64)[0].requires_grad_()
    paths, scores = forced_align(log_probs, targets, *lengths, blank, log_probs.amax(-1) - 0.25, gaps)
    scores.sum().backward()
    classes = torch.where((paths == GAP_STAR) | (paths == 7), log_probs.argmax(-1), paths)
    used = torch.arange(20) < lengths[0][:, None]
    expected = torch.zeros(2, 20, 7, dtype=torch.float64).scatter(2, classes[..., None], used[..., None].double())
    assert torch.equal(log_probs.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_scores_are_the_same_bits_with_and_without_gradient(random_case, dtype):
    """Padding and marked items too; and these get no gradient."""
    log_probs, *rest, stars, gaps = make_arguments(random_case, dtype=dtype)
    expected = forced_align(log_probs, *rest, stars, gaps)
    found = forced_align(log_probs.requires_grad_(), *rest, stars.requires_grad_(), gaps)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1].detach(), expected[1])
    found[1].nan_to_num(neginf=0).sum().backward()
    assert log_probs.grad.dtype == stars.grad.dtype == dtype
    assert not log_probs.grad[2].any()
    assert not stars.grad[2].any()
    assert not stars.grad[0, 18:].any()
    assert log_probs.grad.sum() + stars.grad.sum() == 18 + 19


def test_nothing_is_saved_where_nobody_differentiates(random_case):
    arguments = make_arguments(random_case)
    with RecordCalls() as recorded:
        forced_align(*arguments)
    assert recorded.calls == [forced_align.default]


def test_func_transforms(case):
    log_probs, stars, *rest = split(case)
    leaves = log_probs.clone().requires_grad_(), stars.clone().requires_grad_()
    cube(*leaves, *rest).backward()
    for found, leaf in zip(grad(cube, argnums=(0, 1))(log_probs, stars, *rest), leaves, strict=True):
        assert torch.equal(found, leaf.grad)

    scores = lambda x: forced_align(log_probs, *rest, x, GAPS.expand(2, -1))[1]  # noqa: E731
    _, pushed = jvp(scores, (stars,), (stars.cos(),))
    paths = forced_align(log_probs, *rest, stars, GAPS.expand(2, -1))[0]
    is_star = (paths == GAP_STAR) | (paths == 5)
    assert torch.equal(pushed, torch.where(is_star, stars.cos(), 0))
    assert torch.equal(jacrev(scores)(stars), jacfwd(scores)(stars))
    second = hessian(cube, argnums=1)(log_probs, stars, *rest).reshape(18, 18)
    torch.testing.assert_close(second, torch.where(is_star, 6 * stars, 0).flatten().diag())


def test_vmap_and_grad_in_both_orders(random_case):
    cases = [split(make_arguments(random_case, 2, 9, 3, 5, dtype=torch.float64)[:-1]) for _ in range(3)]
    for log_probs, stars, *_ in cases:
        log_probs.clamp_(min=-9)
        stars.clamp_(min=-9)
    log_probs, stars, targets = (torch.stack(tensors) for tensors in list(zip(*cases, strict=True))[:3])
    rest = cases[0][3:]
    expected = [grad(cube, argnums=(0, 1))(x, y, z, *rest) for x, y, z in zip(log_probs, stars, targets, strict=True)]
    found = vmap_once(lambda x, y, z: grad(cube, argnums=(0, 1))(x, y, z, *rest))(log_probs, stars, targets)
    total = lambda x, y: vmap(lambda x, y, z: cube(x, y, z, *rest))(x, y, targets).sum()  # noqa: E731
    for gradients in (found, grad(total, argnums=(0, 1))(log_probs, stars)):
        for i in range(2):
            assert torch.equal(gradients[i], torch.stack([alone[i] for alone in expected]))
            assert gradients[i].any()


# vmap


@pytest.mark.parametrize("star_dim", [None, 0, 1])
@pytest.mark.parametrize("gap_dim", [None, 0, 1])
def test_vmap(random_case, generator, star_dim, gap_dim):
    """Over the stars, the gaps, or neither, wherever the mapped dimension lies; one call of the kernel."""
    log_probs, targets = (x.unflatten(0, (4, 2)) for x in random_case(8, 15, 4, 6))
    stars, gaps = log_probs.amax(-1) - 0.5, torch.rand(4, 2, 5, generator=generator) < 0.5
    dims = 0, None, star_dim, gap_dim
    tensors = log_probs, targets, stars, gaps
    alone = [[x[0 if dim is None else n] for x, dim in zip(tensors, dims, strict=True)] for n in range(4)]
    mapped = [x[0] if dim is None else x.movedim(0, dim) for x, dim in zip(tensors, dims, strict=True)]
    function = lambda x, y, star, gap: forced_align(x, y, star_scores=star, wild_gaps=gap)  # noqa: E731
    paths, scores = vmap_once(function, in_dims=dims)(*mapped)
    for n in range(4):
        assert_same((paths[n], scores[n]), function(*alone[n]))


# opcheck and fake tensors

LAYOUTS = ["contiguous", "transposed", "expanded", "sliced"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("requires", ["neither", "stars", "both"])
@pytest.mark.parametrize("with_gaps", [False, True], ids=["labels", "gaps"])
def test_opcheck(random_case, dtype, requires, with_gaps):
    for (B, T, L), layout in itertools.product([(3, 20, 6), (0, 5, 3), (2, 0, 0), (2, 5, 0)], LAYOUTS):
        log_probs, targets = random_case(B, T, L, 7, dtype=dtype)
        targets[:, ::3] = 7
        stars = lay_out(torch.full((B, T), -1.0, dtype=dtype), layout).requires_grad_(requires != "neither")
        gaps = lay_out(torch.ones(B, L + 1, dtype=torch.bool), layout) if with_gaps else None
        arguments = log_probs.requires_grad_(requires == "both"), targets, None, None, 0, stars, gaps
        # As for test_opcheck in test_operator.py: paths have no gradient, so test_compiled_gradient takes its place.
        utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
        if requires == "neither":
            utilities = (*utilities, "test_aot_dispatch_dynamic")
        torch.library.opcheck(forced_align.default, arguments, test_utils=utilities)


# Graphs

SIZES = [(3, 20, 6, 9), (4, 33, 9, 12), (5, 64, 11, 40), (3, 9, 6, 8)]


def test_compiled_gradient(random_case, compile_fully):
    """Stars made in the graph; compiled and eager results and gradients agree, for all sizes of one graph."""

    def loss(logits, targets, input_lengths, target_lengths, blank, gaps):
        log_probs = logits.sin()
        stars = log_probs.amax(-1) - 0.25
        paths, scores = forced_align(log_probs, targets, input_lengths, target_lengths, blank, stars, gaps)
        return paths, scores.clamp(min=-100).square().sum()

    compiled = compile_fully(loss)
    for i, sizes in enumerate(SIZES):
        logits, *rest, _, gaps = make_arguments(random_case, *sizes)
        results = []
        for function in (loss, compiled):
            leaf = logits.clamp(min=-9).requires_grad_()  # sin(-inf) is NaN
            with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
                paths, value = function(leaf, *rest, gaps)
                value.backward()
            results.append((paths, leaf.grad))
        assert torch.equal(results[0][0], results[1][0])
        assert (results[0][0] == GAP_STAR).any()
        torch.testing.assert_close(results[0][1], results[1][1])


class Aligner(torch.nn.Module):
    def forward(self, log_probs, targets, input_lengths, target_lengths, gaps):
        stars = log_probs.amax(-1) - 0.25
        return forced_align(log_probs, targets, input_lengths, target_lengths, 2, stars, gaps)


def export(random_case):
    B, T, L = Dim("B", max=64), Dim("T", min=2, max=4096), Dim("L", max=2048)
    log_probs, *rest, _, _, gaps = make_arguments(random_case)
    shapes = {0: B, 1: T}, {0: B, 1: L}, {0: B}, {0: B}, {0: B, 1: L + 1}
    return torch.export.export(Aligner(), (log_probs, *rest, gaps), dynamic_shapes=shapes)


def test_exports_with_dynamic_batch_frames_and_labels(random_case, tmp_path):
    torch.export.save(export(random_case), tmp_path / "aligner.pt2")
    loaded = torch.export.load(tmp_path / "aligner.pt2").module()
    for sizes in [(3, 20, 6), (4, 33, 9), (7, 150, 40)]:
        log_probs, *rest, _, _, gaps = make_arguments(random_case, *sizes)
        assert_same(loaded(log_probs, *rest, gaps), Aligner()(log_probs, *rest, gaps))


@pytest.mark.slow
def test_ahead_of_time_inductor(random_case, cxx, tmp_path):
    package = torch._inductor.aoti_compile_and_package(export(random_case), package_path=str(tmp_path / "star.pt2"))
    loaded = torch._inductor.aoti_load_package(package)
    for sizes in [(3, 20, 6), (4, 33, 9), (7, 150, 40)]:
        log_probs, *rest, _, _, gaps = make_arguments(random_case, *sizes)
        assert_same(loaded(log_probs, *rest, gaps), Aligner()(log_probs, *rest, gaps))


def test_in_inference_mode_and_under_autocast(random_case):
    arguments = make_arguments(random_case)
    expected = forced_align(*arguments)
    with torch.inference_mode():
        assert_same(forced_align(*arguments), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(forced_align(*arguments), expected)


def test_the_operator_takes_the_stars_by_name(random_case):
    log_probs, targets, input_lengths, target_lengths, blank, stars, gaps = make_arguments(random_case)
    found = forced_align(
        wild_gaps=gaps,
        star_scores=stars,
        blank=blank,
        log_probs=log_probs,
        targets=targets,
        target_lengths=target_lengths,
        input_lengths=input_lengths,
    )
    assert_same(found, forced_align(log_probs, targets, input_lengths, target_lengths, blank, stars, gaps))
