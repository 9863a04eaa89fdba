"""The operator as a citizen of PyTorch: registrations, opcheck, fake tensors, vmap.

Gradients are in test_gradients.py, compiled and exported graphs in test_graphs.py, processes in test_processes.py.
"""

import itertools
import math
import random
import warnings

import pytest
import torch
from conftest import SEED, RecordCalls
from torch._subclasses.fake_tensor import FakeTensorMode

import torch_ctc_align

INF = math.inf
forced_align = torch.ops.ctc_align.forced_align


def assert_same(found, expected):
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


def make_arguments(random_case, B=3, T=20, L=6, C=7, **options):
    """Arguments of a call; the items are short, full, and marked (a wall of -inf)."""
    log_probs, targets = random_case(B, T, L, C, **options)
    log_probs[B - 1, 1] = -INF
    return log_probs, targets, torch.arange(T - B + 1, T + 1), torch.arange(L - B + 1, L + 1)


# Registrations


def test_schema():
    assert str(forced_align.default._schema) == (
        "ctc_align::forced_align(Tensor log_probs, Tensor targets, Tensor? input_lengths=None, "
        "Tensor? target_lengths=None, int blank=0, Tensor? star_scores=None, Tensor? wild_gaps=None) "
        "-> (Tensor paths, Tensor scores)"
    )


def test_has_kernels():
    """Its own for each, and nothing that would decompose it."""
    for key in ("CPU", "Meta", "Autograd", "FuncTorchBatched"):
        assert forced_align.default.has_kernel_for_dispatch_key(key), key
    assert not forced_align.default.has_kernel_for_dispatch_key("CompositeImplicitAutograd")
    assert not forced_align.default.has_kernel_for_dispatch_key("CompositeExplicitAutograd")


def test_the_kernel_can_be_asked_for(random_case):
    arguments = make_arguments(random_case)
    kernel = torch.library.get_kernel("ctc_align::forced_align", "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    assert_same(kernel.call_boxed(keys, *arguments, 0), forced_align(*arguments))


def test_it_is_a_pure_function():
    """No tag says otherwise: torch may drop, repeat or reorder calls. (The stable ABI can tag from torch 2.12 on.)"""
    assert set(forced_align.default.tags) <= {torch.Tag.pt2_compliant_tag}
    assert not forced_align.default._schema.is_mutable


# opcheck


def lay_out(tensor, layout):
    """The same values with other strides. Expanded: item 0 for all items."""
    if layout == "transposed":
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "expanded":
        return tensor[:1].contiguous().expand_as(tensor)
    if layout == "sliced":
        return torch.stack([tensor] * 2, -1)[..., 0]
    return tensor


FACTORS = {
    "operator": ["forced_align", "posteriors", "class_posteriors", "span_posteriors", "posteriors_backward"],
    "dtype": [torch.float16, torch.bfloat16, torch.float32, torch.float64],
    "layout": ["contiguous", "transposed", "expanded", "sliced"],
    "lengths": ["none", "input", "target", "both"],
    "targets_dtype": [torch.int32, torch.int64],
    "lengths_dtype": [torch.int32, torch.int64],
    "targets_layout": ["contiguous", "transposed", "expanded", "sliced"],
    "blank": [0, 2, 6],
    "sizes": [(3, 20, 6), (1, 1, 1), (0, 5, 3), (2, 0, 3), (2, 0, 0), (2, 5, 0), (2, 3, 9)],
    "requires_grad": [False, True],
}


def pairs_of(case):
    return {(i, j, case[i], case[j]) for i, j in itertools.combinations(range(len(case)), 2)}


def choose_cases():
    """Cases in which any two values of two factors meet: some forty, where the whole product would be 215,040."""
    rng = random.Random(SEED)
    names = range(len(FACTORS))
    values = list(FACTORS.values())
    missing = {(i, j, x, y) for i, j in itertools.combinations(names, 2) for x in values[i] for y in values[j]}
    cases = []
    while missing:
        i, j, x, y = rng.choice(sorted(missing, key=repr))
        candidates = [[rng.choice(of_factor) for of_factor in values] for _ in range(50)]
        for candidate in candidates:
            candidate[i], candidate[j] = x, y
        cases.append(max(candidates, key=lambda case: len(pairs_of(case) & missing)))
        missing -= pairs_of(cases[-1])
    return [dict(zip(FACTORS, case, strict=True)) for case in cases]


CASES = choose_cases()


def test_opcheck_cases_cover_all_pairs():
    assert len(CASES) < 60
    for x, y in itertools.combinations(FACTORS, 2):
        met = {(case[x], case[y]) for case in CASES}
        assert met == set(itertools.product(FACTORS[x], FACTORS[y]))


# test_aot_dispatch_dynamic asks for the gradient of every output. forced_align has one of integers, so
# test_compiled_gradient (test_graphs.py) takes its place there; posteriors_backward has a gradient in none.
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor")
NOT_ALL_DIFFERENTIABLE = ("forced_align", "posteriors_backward")


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(x).removeprefix("torch.") for x in case.values()))
def test_opcheck(random_case, case):
    B, T, L = case["sizes"]
    name = case["operator"]
    log_probs, targets = random_case(B, T, L, 7, blank=case["blank"], dtype=case["dtype"])
    log_probs = lay_out(log_probs, case["layout"]).requires_grad_(case["requires_grad"])
    targets = lay_out(targets.to(case["targets_dtype"]), case["targets_layout"])
    lengths = {"input": None, "target": None}
    for which, extent in (("input", T), ("target", L)):
        if case["lengths"] in (which, "both"):
            lengths[which] = torch.arange(B).add(extent - B + 1).clamp(0, extent).to(case["lengths_dtype"])
    arguments = [log_probs, targets, *lengths.values(), case["blank"]]
    if name == "span_posteriors":
        starts = lay_out(torch.zeros(B, L, dtype=torch.int64), case["targets_layout"])
        arguments[2:2] = starts, starts + 2
    if name == "posteriors_backward":
        gradient = torch.randn(B, T, L + 1, dtype=torch.promote_types(case["dtype"], torch.float32))
        arguments.insert(0, lay_out(gradient, case["layout"]))
    partly = case["requires_grad"] and name in NOT_ALL_DIFFERENTIABLE
    utilities = UTILITIES if partly else (*UTILITIES, "test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(torch.ops.ctc_align, name).default, arguments, test_utils=utilities)


def test_opcheck_of_an_emission_whose_batch_is_strided(random_case):
    """Every second item of a batch, every second frame, and classes from the far end of a wider model."""
    log_probs, targets = random_case(6, 20, 3, 30)
    arguments = log_probs[::2, ::2, -7:], (targets % 6 + 1)[1::2]
    torch.library.opcheck(forced_align.default, arguments)


# Fake tensors


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
def test_fake_outputs_are_those_of_the_kernel(random_case, dtype, integer):
    """Shape, dtype, device and strides, also for an emission of other strides than the outputs."""
    log_probs, targets = random_case(3, 20, 6, 7, dtype=dtype)
    arguments = lay_out(log_probs, "transposed"), targets.to(integer)
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


# vmap


def vmap_once(function, **options):
    """torch.vmap of a function that has to call the kernel once, without a warning of a slow fallback."""

    def mapped(*arguments):
        with warnings.catch_warnings(), RecordCalls() as recorded:
            warnings.simplefilter("error")
            result = torch.vmap(function, **options)(*arguments)
        assert recorded.calls.count(forced_align.default) == 1
        return result

    return mapped


def test_a_loop_is_counted_as_many_calls(random_case):
    """Guards vmap_once."""
    arguments = make_arguments(random_case)
    with RecordCalls() as recorded:
        for _ in range(3):
            forced_align(*arguments)
    assert recorded.calls.count(forced_align.default) == 3


@pytest.mark.parametrize("dims", [(0, 0), (1, 0), (2, 1), (0, None), (None, 1)], ids=str)
def test_vmap(random_case, dims):
    """Over an extra dimension N of one or both arguments, wherever it lies."""
    N, (B, T, L, C) = 4, (2, 15, 4, 6)
    log_probs, targets = random_case(N * B, T, L, C)
    log_probs, targets = log_probs.unflatten(0, (N, B)), targets.unflatten(0, (N, B))
    each = [(log_probs[0 if dims[0] is None else n], targets[0 if dims[1] is None else n]) for n in range(N)]
    mapped = [x[0] if dim is None else x.movedim(0, dim) for x, dim in zip((log_probs, targets), dims, strict=True)]
    paths, scores = vmap_once(forced_align, in_dims=dims)(*mapped)
    for n, case in enumerate(each):
        assert_same((paths[n], scores[n]), forced_align(*case))


@pytest.mark.parametrize("input_dim", [None, 0], ids=["shared_frames", "own_frames"])
@pytest.mark.parametrize("target_dim", [None, 0], ids=["shared_labels", "own_labels"])
def test_vmap_with_lengths_and_blank(random_case, input_dim, target_dim):
    log_probs, targets = (x.unflatten(0, (4, 2)) for x in random_case(8, 15, 4, 6, blank=5))
    input_lengths = torch.tensor([[15, 14], [13, 12], [11, 10], [9, 8]])
    target_lengths = torch.tensor([[4, 3], [2, 1], [0, 1], [2, 3]])
    if input_dim is None:
        input_lengths = input_lengths[0]
    if target_dim is None:
        target_lengths = target_lengths[0]
    arguments = log_probs, targets, input_lengths, target_lengths
    dims = 0, 0, input_dim, target_dim
    found = vmap_once(lambda *x: forced_align(*x, blank=5), in_dims=dims)(*arguments)
    for n in range(4):
        alone = [x if dim is None else x[n] for x, dim in zip(arguments, dims, strict=True)]
        assert_same([x[n] for x in found], forced_align(*alone, 5))


@pytest.mark.parametrize("which", ["input_lengths", "target_lengths"])
def test_vmap_with_one_of_the_lengths(random_case, which):
    log_probs, targets = (x.unflatten(0, (3, 2)) for x in random_case(6, 9, 4, 6))
    lengths = torch.tensor([[4, 3], [2, 1], [0, 4]]) + (5 if which == "input_lengths" else 0)
    found = vmap_once(lambda x, y, n: forced_align(x, y, **{which: n}))(log_probs, targets, lengths)
    for n in range(3):
        assert_same([x[n] for x in found], forced_align(log_probs[n], targets[n], **{which: lengths[n]}))


def test_nested_vmap(random_case):
    """Over two dimensions, one of the emissions and one of the targets: three models, two transcripts."""
    log_probs, targets = random_case(6, 15, 4, 6)
    log_probs, targets = log_probs.unflatten(0, (3, 2)), targets[:4].unflatten(0, (2, 2))
    transcripts = torch.vmap(forced_align, in_dims=(None, 0))
    paths, scores = vmap_once(lambda x: transcripts(x, targets))(log_probs)
    assert paths.shape == (3, 2, 2, 15)
    for m, n in itertools.product(range(3), range(2)):
        assert_same((paths[m, n], scores[m, n]), forced_align(log_probs[m], targets[n]))


def test_vmap_over_nothing_to_align():
    """No items, no frames, no labels."""
    for B, T, L in [(0, 5, 2), (2, 0, 0), (2, 5, 0)]:
        arguments = torch.zeros(3, B, T, 4), torch.ones(3, B, L, dtype=torch.int64)
        paths, scores = vmap_once(forced_align)(*arguments)
        assert paths.shape == scores.shape == (3, B, T)
        assert not paths.any()


@pytest.mark.parametrize("dims", [(0, 0), (1, 0), (2, None), (None, 0)], ids=str)
def test_vmap_over_no_calls(dims):
    """A mapped dimension of size 0: results of size 0, which still know the shape of the others."""
    B, T, L, C = 2, 5, 3, 4
    log_probs, targets = torch.zeros(0, B, T, C), torch.ones(0, B, L, dtype=torch.int64)
    mapped = [
        x.new_ones(x.shape[1:]) if dim is None else x.movedim(0, dim)
        for x, dim in zip((log_probs, targets), dims, strict=True)
    ]
    operators = torch.ops.ctc_align
    starts = torch.zeros(B, L, dtype=torch.int64)
    for function, shapes in (
        (operators.forced_align, [(0, B, T), (0, B, T)]),
        (operators.posteriors, [(0, B, T, L + 1), (0, B)]),
        (operators.class_posteriors, [(0, B, T, C), (0, B)]),
        (lambda x, y: operators.span_posteriors(x, y, starts, starts + 1), [(0, B, L), (0, B)]),
        (lambda x, y: (operators.posteriors_backward(torch.ones(B, T, L + 1), x, y),), [(0, B, T, C)]),
    ):
        assert [tuple(result.shape) for result in torch.vmap(function, in_dims=dims)(*mapped)] == shapes


def test_vmap_of_a_gradient_over_no_calls():
    def loss(log_probs):
        return forced_align(log_probs[None], torch.tensor([[1]]))[1].sum()

    assert torch.vmap(torch.func.grad(loss))(torch.zeros(0, 5, 4)).shape == (0, 5, 4)


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
