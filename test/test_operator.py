"""The operator as a citizen of PyTorch: schema, fake tensors, compile, export, gradients, vmap."""

import math
import shutil

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

import torch_ctc_align

INF = math.inf
forced_align = torch.ops.ctc_align.forced_align


def assert_same(found, expected):
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


def make_arguments(random_case, B=3, T=20, L=6, C=7, lengths=True, **options):
    """Arguments of a call; the items are short, full, and marked (a wall of -inf)."""
    log_probs, targets = random_case(B, T, L, C, **options)
    log_probs[B - 1, 1] = -INF
    if not lengths:
        return log_probs, targets
    return log_probs, targets, torch.arange(T - B + 1, T + 1), torch.arange(L - B + 1, L + 1)


def test_schema():
    assert str(forced_align.default._schema) == (
        "ctc_align::forced_align(Tensor log_probs, Tensor targets, Tensor? input_lengths=None, "
        "Tensor? target_lengths=None, SymInt blank=0) -> (Tensor paths, Tensor scores)"
    ).replace("SymInt", "int")


# test_aot_dispatch_dynamic cannot be run on an operator with an integer and a differentiable output: it asks for the
# gradient of both. test_compiled_gradient below takes its place.
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("lengths", [False, True], ids=["all", "lengths"])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["no_grad", "grad"])
def test_opcheck(random_case, lengths, dtype, requires_grad):
    arguments = make_arguments(random_case, lengths=lengths, dtype=dtype)
    arguments[0].requires_grad_(requires_grad)
    utilities = UTILITIES if requires_grad else (*UTILITIES, "test_aot_dispatch_dynamic")
    torch.library.opcheck(forced_align.default, arguments, {"blank": 0}, test_utils=utilities)


@pytest.mark.parametrize("sizes", [(0, 5, 3), (2, 0, 0), (2, 5, 0), (2, 3, 9)], ids=str)
def test_opcheck_of_empty_and_impossible_items(sizes):
    B, T, L = sizes
    arguments = torch.zeros(B, T, 3), torch.ones(B, L, dtype=torch.int32)
    torch.library.opcheck(forced_align.default, arguments)


# Fake tensors


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
def test_fake_outputs_are_those_of_the_kernel(random_case, dtype, integer):
    """Shape, dtype, device and strides, also for an emission of other strides than the outputs."""
    log_probs, targets = random_case(3, 20, 6, 7, dtype=dtype)
    arguments = log_probs.transpose(0, 1).contiguous().transpose(0, 1), targets.to(integer)
    real = forced_align(*arguments)
    with FakeTensorMode() as mode:
        fake = forced_align(*(mode.from_tensor(x) for x in arguments))
    for x, y in zip(real, fake, strict=True):
        assert (x.shape, x.dtype, x.device, x.stride()) == (y.shape, y.dtype, y.device, y.stride())


def test_meta_tensors():
    log_probs = torch.empty(2, 10**6, 50, device="meta", dtype=torch.bfloat16)
    paths, scores = forced_align(log_probs, torch.empty(2, 10**5, device="meta", dtype=torch.int32))
    assert (paths.shape, paths.dtype, paths.device.type) == ((2, 10**6), torch.int32, "meta")
    assert (scores.shape, scores.dtype, scores.device.type) == ((2, 10**6), torch.bfloat16, "meta")


# Compile and export


def align_and_span(logits, targets, input_lengths=None, target_lengths=None):
    """A model's end: everything from logits to the times of tokens, in one graph."""
    log_probs = logits.log_softmax(-1)
    paths, scores = forced_align(log_probs, targets, input_lengths, target_lengths, 0)
    return paths, scores, *torch_ctc_align.token_spans(paths, scores, targets, 0)


SIZES = [(3, 20, 6, 7), (4, 33, 9, 12), (5, 64, 11, 40), (3, 9, 6, 8)]


@pytest.fixture(params=["aot_eager", "inductor"])
def compile_fully(request):
    """torch.compile into one graph of any size; a second compilation for new sizes is an error."""
    if request.param == "inductor" and not shutil.which("g++") and not shutil.which("c++"):
        pytest.skip("inductor needs a C++ compiler")
    torch.compiler.reset()
    yield lambda function: torch.compile(function, backend=request.param, fullgraph=True, dynamic=True)
    torch.compiler.reset()


@pytest.mark.parametrize("lengths", [False, True], ids=["all", "lengths"])
def test_compiles_to_one_graph_of_any_size(random_case, compile_fully, lengths):
    compiled = compile_fully(align_and_span)
    for i, sizes in enumerate(SIZES):
        arguments = make_arguments(random_case, *sizes, lengths=lengths)
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            found = compiled(*arguments)
        expected = align_and_span(*arguments)
        # log_softmax may be compiled to other roundings than eager's, and the spans' means too.
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1])
        assert_same(found[2:4], expected[2:4])
        torch.testing.assert_close(found[4], expected[4])


def test_the_function_compiles_too(random_case, compile_fully):
    """With strict=False. Raising for marked items needs their values, which a graph does not have."""
    arguments = make_arguments(random_case)
    found = compile_fully(lambda *x: torch_ctc_align.forced_align(*x, strict=False))(*arguments)
    assert_same(found, forced_align(*arguments))


def test_compiles_in_inference_mode(random_case, compile_fully):
    arguments = make_arguments(random_case)
    with torch.inference_mode():
        found = compile_fully(lambda *x: forced_align(*x))(*arguments)
        assert_same(found, forced_align(*arguments))


def test_compiled_gradient(random_case, compile_fully):
    """In place of test_aot_dispatch_dynamic: compiled and eager gradients agree, for two sizes of one graph."""

    def loss(logits, targets, input_lengths, target_lengths):
        log_probs = logits.sin()
        _, scores = forced_align(log_probs, targets, input_lengths, target_lengths)
        return scores.clamp(min=-100).square().sum()

    compiled = compile_fully(loss)
    for sizes in SIZES[:2]:
        logits, *rest = make_arguments(random_case, *sizes)
        logits = logits.clamp(min=-9)  # sin(-inf) is NaN
        gradients = []
        for function in (loss, compiled):
            leaf = logits.clone().requires_grad_()
            function(leaf, *rest).backward()
            gradients.append(leaf.grad)
        torch.testing.assert_close(*gradients)
        assert gradients[0].any()


class Aligner(torch.nn.Module):
    def forward(self, log_probs, targets, input_lengths, target_lengths):
        paths, scores = forced_align(log_probs, targets, input_lengths, target_lengths, blank=2)
        return paths, scores, *torch_ctc_align.token_spans(paths, scores, targets, blank=2)


def export_aligner(random_case):
    B, T, L = Dim("B", min=1, max=64), Dim("T", min=2, max=4096), Dim("L", min=2, max=2048)
    shapes = {0: B, 1: T}, {0: B, 1: L}, {0: B}, {0: B}
    arguments = make_arguments(random_case, *SIZES[0][:3], 7, blank=2)
    return torch.export.export(Aligner(), arguments, dynamic_shapes=shapes)


def test_exports_with_dynamic_batch_frames_and_labels(random_case, tmp_path):
    exported = export_aligner(random_case)
    assert "ctc_align.forced_align" in exported.graph_module.code
    torch.export.save(exported, tmp_path / "aligner.pt2")
    loaded = torch.export.load(tmp_path / "aligner.pt2")
    for B, T, L in [(3, 20, 6), (4, 33, 9), (7, 150, 40)]:
        arguments = make_arguments(random_case, B, T, L, 7, blank=2)
        assert_same(exported.module()(*arguments), Aligner()(*arguments))
        assert_same(loaded.module()(*arguments), Aligner()(*arguments))


def test_ahead_of_time_inductor(random_case, tmp_path):
    """An exported graph, compiled to a shared library, calls the same kernel."""
    if not shutil.which("g++") and not shutil.which("c++"):
        pytest.skip("AOTInductor needs a C++ compiler")
    package = torch._inductor.aoti_compile_and_package(
        export_aligner(random_case), package_path=str(tmp_path / "aligner.pt2")
    )
    loaded = torch._inductor.aoti_load_package(package)
    for B, T, L in [(3, 20, 6), (4, 33, 9)]:
        arguments = make_arguments(random_case, B, T, L, 7, blank=2)
        found, expected = loaded(*arguments), Aligner()(*arguments)
        assert_same(found[:4], expected[:4])
        torch.testing.assert_close(found[4], expected[4])


# Gradients


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
    torch.autograd.gradcheck(lambda x: forced_align(x, *rest)[1], log_probs)
    torch.autograd.gradgradcheck(lambda x: forced_align(x, *rest)[1], log_probs)


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


# vmap


@pytest.mark.parametrize("dims", [(0, 0), (1, 0), (2, 1), (0, None), (None, 1)], ids=str)
def test_vmap(random_case, dims):
    """Over an extra dimension N of one or both arguments, wherever it lies."""
    N, (B, T, L, C) = 4, (2, 15, 4, 6)
    log_probs, targets = random_case(N * B, T, L, C)
    log_probs, targets = log_probs.unflatten(0, (N, B)), targets.unflatten(0, (N, B))
    each = [(log_probs[0 if dims[0] is None else n], targets[0 if dims[1] is None else n]) for n in range(N)]
    mapped = [x[0] if dim is None else x.movedim(0, dim) for x, dim in zip((log_probs, targets), dims, strict=True)]
    paths, scores = torch.vmap(forced_align, in_dims=dims)(*mapped)
    for n, case in enumerate(each):
        assert_same((paths[n], scores[n]), forced_align(*case))


def test_vmap_with_lengths_and_blank(random_case):
    log_probs, targets = random_case(8, 15, 4, 6, blank=5)
    lengths = torch.tensor([15, 14, 13, 12, 11, 10, 9, 8]), torch.tensor([4, 3, 2, 1, 0, 1, 2, 3])
    expected = forced_align(log_probs, targets, *lengths, 5)
    split = [x.unflatten(0, (4, 2)) for x in (log_probs, targets, *lengths)]
    found = torch.vmap(lambda *x: forced_align(*x, blank=5))(*split)
    assert_same([x.flatten(0, 1) for x in found], expected)


# Other ways to call


def test_under_autocast(random_case):
    """No autocast rule: the emission's dtype is kept."""
    log_probs, targets = random_case(1, 10, 3, 5)
    expected = forced_align(log_probs, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(forced_align(log_probs, targets), expected)


def test_in_inference_mode(random_case):
    arguments = make_arguments(random_case)
    expected = forced_align(*arguments)
    with torch.inference_mode():
        assert_same(forced_align(*arguments), expected)


def test_from_several_python_threads(random_case):
    """Calls at the same time do not share any state."""
    from concurrent.futures import ThreadPoolExecutor

    cases = [random_case(3, 400, 150, 20) for _ in range(4)]
    expected = [forced_align(*case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, wanted in zip(pool.map(lambda case: forced_align(*case), cases), expected, strict=True):
                assert_same(found, wanted)


def test_version():
    major, minor, *_ = torch_ctc_align.__version__.split(".")
    assert major.isdigit()
    assert minor.isdigit()
