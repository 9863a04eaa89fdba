"""The sums over all paths on a GPU, against the CPU: equal bits, no synchronisation, graphs, streams, derivatives.

Skips where there is no GPU or the CUDA library is not built. CTC_ALIGN_REQUIRE=cuda makes that a failure.
"""

import itertools
from dataclasses import replace

import pytest
import torch
from harness.sums import SumCase, make_case, same_bits

import torch_ctc_align
from torch_ctc_align import class_posteriors, posteriors, span_posteriors

INF = float("inf")
DEVICE = "cuda"
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NAMES = ["posteriors", "class_posteriors", "span_posteriors", "occupancies", "posteriors_backward"]
SIZES = [  # B, T, L, C: classes make whole rows or not; warps, columns, segments
    (3, 1, 1, 3),
    (4, 2, 2, 3),
    (3, 17, 5, 31),
    (5, 60, 20, 6),
    (3, 129, 64, 33),
    (3, 300, 200, 32),
    (3, 514, 254, 40),
    (3, 514, 255, 32),
    (3, 400, 256, 6),
    (2, 700, 300, 33),
    (2, 1025, 513, 300),
    (2, 2049, 1500, 32),
    (64, 300, 30, 20),
]


@pytest.fixture(scope="module", autouse=True)
def gpu():
    import os

    reason = None
    if not torch.cuda.is_available():
        reason = "no CUDA device"
    elif not torch._C._dispatch_has_kernel_for_dispatch_key("ctc_align::posteriors", "CUDA"):
        reason = "the CUDA library is not built"
    if reason is not None:
        (pytest.fail if "cuda" in os.environ.get("CTC_ALIGN_REQUIRE", "").split(",") else pytest.skip)(reason)


def on_device(case):
    tensors = {name: x.to(DEVICE) for name, x in vars(case).items() if isinstance(x, torch.Tensor)}
    return replace(case, **tensors)


def assert_same(found, expected, *given):
    for i, (left, right) in enumerate(zip(found, expected, strict=True)):
        assert left.device.type == DEVICE
        assert same_bits(left.cpu(), right.cpu()), f"output {i} differs: {given}"


def assert_equal_on_both(case, names=None):
    for name in names or case.names():
        shape = *case.log_probs.shape, case.targets.shape[1]
        assert_same(case.run(name, DEVICE), case.run(name), name, shape, case.log_probs.dtype)


# ------------------------------------------------------------------------------------------------------ equal bits


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equal_bits(generator, size, dtype):
    for stars, scale in [(False, 1), (True, 1), (True, 20)]:
        blank = (0, size[-1] // 2, size[-1] - 1)[int(scale > 1) + int(stars)]
        assert_equal_on_both(
            make_case(generator, *size, dtype=dtype, blank=blank, stars=stars, scale=scale, ragged=True)
        )


def test_emissions_of_every_kind(generator):
    levels = torch.tensor([-INF, INF, torch.nan, -30000.0, 2.0**18, -(2.0**18), 2.0**100, -3e38, 1e-40, -104.0])
    for (T, L), C in itertools.product([(90, 25), (400, 260)], [20, 40]):
        case = make_case(generator, 3, T, L, C, stars=True, scale=4)
        for values in (case.log_probs, case.star_scores):
            chosen = torch.rand(values.shape, generator=generator) < 0.05
            values[chosen] = levels[torch.randint(0, len(levels), (int(chosen.sum()),), generator=generator)]
        assert_equal_on_both(case)
        case.log_probs[..., 1:] = -30000
        assert_equal_on_both(case)


@pytest.mark.parametrize("value", [torch.nan, INF, -1e30], ids=str)
def test_path_values_of_any_kind(generator, value):
    for T, L, C in [(60, 20, 20), (400, 300, 40)]:
        case = make_case(generator, 3, T, L, C, stars=True, ragged=True)
        case.path_values[1][torch.rand(case.path_values[1].shape, generator=generator) < 0.01] = value
        assert_equal_on_both(case, ["posteriors_backward"])


def test_many_groups_and_chapters(generator):
    """More items than fit the memory at once; and an item of several chapters. The CPU sums some of them."""
    case = make_case(generator, 300, 1500, 60, 6, ragged=True)
    few = replace(case, **{name: x[::75] for name, x in vars(case).items() if isinstance(x, torch.Tensor)})
    for name in case.names():
        found = case.run(name, DEVICE)
        assert_same([x[::75] for x in found], few.run(name), name)


def test_long_items(generator):
    assert_equal_on_both(
        make_case(generator, 1, 9000, 3000, 32, stars=True), ["posteriors_backward", "span_posteriors"]
    )


def test_strides_and_integers(generator):
    case = make_case(generator, 4, 300, 60, 40, stars=True, ragged=True)
    expected = {name: case.run(name) for name in NAMES}

    def apart(x):
        return torch.stack([x, x.flip(-1)], -1)[..., 0]

    def first_last(x):
        return x.transpose(0, 1).contiguous().transpose(0, 1)

    floats = ["log_probs", "path_values", "star_scores", "wild_gaps", "starts", "ends", "targets"]
    for layout, integers in itertools.product([apart, first_last], [torch.int32, torch.int64]):
        moved = on_device(replace(case, **{name: getattr(case, name) for name in floats}))
        moved = replace(moved, **{name: layout(getattr(moved, name)) for name in floats})
        moved = replace(moved, **{name: getattr(moved, name).to(integers) for name in ("targets", "input_lengths")})
        for name in NAMES:
            assert_same(moved.run(name, DEVICE), expected[name], name)


def test_tensors_of_one_number(generator):
    case = on_device(make_case(generator, 3, 200, 20, 20, stars=True))
    case.log_probs = case.log_probs[:1, :1].expand(3, 200, 20)
    case.wild_gaps = torch.tensor(True, device=DEVICE).expand(3, 21)
    case.path_values = case.path_values[:, :, :1].expand(3, 200, 22)
    for name in NAMES:
        assert_same(case.run(name, DEVICE), on_cpu(case).run(name), name)


def on_cpu(case):
    return replace(case, **{name: x.cpu() for name, x in vars(case).items() if isinstance(x, torch.Tensor)})


def test_empty_extents():
    for B, T, L in [(0, 5, 2), (2, 0, 0), (2, 0, 3), (2, 5, 0), (1, 1, 0), (0, 0, 300), (1, 3, 300)]:
        case = SumCase(torch.zeros(B, T, 4), torch.ones(B, L, dtype=torch.int64))
        case.starts, case.ends = torch.zeros(B, L).long(), torch.ones(B, L).long()
        case.path_values = torch.ones(B, T, L + 1)
        assert_equal_on_both(case)


def test_twenty_equal_runs_and_batches_of_other_sizes(generator):
    for T, L, C in [(200, 60, 20), (500, 300, 40)]:
        case = on_device(make_case(generator, 5, T, L, C, stars=True, ragged=True))
        for name in NAMES:
            first = case.run(name, DEVICE)
            for _ in range(20):
                assert_same(case.run(name, DEVICE), first, name)
            for b in range(5):
                assert_same(case.item(b).run(name, DEVICE), [x[b : b + 1] for x in first], name, b)


# ----------------------------------------------------------------------------------------- values out of range


def test_values_out_of_range_mark_their_item_alone(generator):
    """Zeros, and a log-likelihood of -inf; as for an item without a path."""
    for T, L in [(200, 40), (400, 300)]:
        case = make_case(generator, 7, T, L, 12, stars=True)
        case.input_lengths, case.target_lengths = torch.full((7,), T), torch.full((7,), L)
        expected = {name: case.run(name) for name in NAMES}
        huge = torch.iinfo(torch.int64)
        case.targets[1, 7], case.targets[2, 0], case.targets[5, L - 1] = 13, huge.min, 0
        case.input_lengths[3], case.target_lengths[4] = huge.max, -1
        for name in NAMES:
            found = case.run(name, DEVICE)
            assert_same([x[[0, 6]] for x in found], [x[[0, 6]] for x in expected[name]], name)
            assert not found[0][1:6].any()
            assert name == "posteriors_backward" or (found[1][1:6] == -INF).all()


def test_padding_is_never_read(generator):
    for T, L, C in [(100, 30, 20), (400, 270, 40)]:
        case = make_case(generator, 4, T, L, C, stars=True)
        case.input_lengths, case.target_lengths = torch.tensor([T, T - 30, 3, 0]), torch.tensor([L, L // 2, 1, 0])
        expected = {name: case.run(name) for name in NAMES}
        frames = torch.arange(T) >= case.input_lengths[:, None]
        labels = torch.arange(L) >= case.target_lengths[:, None]
        case.log_probs[frames] = case.star_scores[frames] = case.path_values[frames] = torch.nan
        case.targets[labels] = case.starts[labels] = torch.iinfo(torch.int64).min
        for name in NAMES:
            assert_same(case.run(name, DEVICE), expected[name], name)


MISTAKES = {
    "log_probs": lambda case: replace(case, log_probs=case.log_probs[0]),
    "dtype": lambda case: replace(case, log_probs=case.log_probs.int()),
    "targets": lambda case: replace(case, targets=case.targets[:2]),
    "blank": lambda case: replace(case, blank=9),
    "input_lengths": lambda case: replace(case, input_lengths=case.input_lengths[:2]),
    "target_lengths": lambda case: replace(case, target_lengths=case.target_lengths.double()),
    "star_scores": lambda case: replace(case, star_scores=case.star_scores.double()),
    "wild_gaps": lambda case: replace(case, wild_gaps=case.wild_gaps[:, 1:]),
    "starts": lambda case: replace(case, starts=case.starts.int()),
    "ends": lambda case: replace(case, ends=case.ends[:, 1:]),
    "path_values": lambda case: replace(case, path_values=case.path_values[:, :, 1:]),
}


OF_ONE = {"starts": "span_posteriors", "ends": "span_posteriors", "path_values": "posteriors_backward"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_messages_are_those_of_the_cpu(generator, mistake):
    case = MISTAKES[mistake](make_case(generator, 3, 20, 6, 9, stars=True, ragged=True))
    for name in [OF_ONE[mistake]] if mistake in OF_ONE else NAMES:
        said = [message_of(case, name, device) for device in ("cpu", DEVICE)]
        assert said[0] == said[1]


def message_of(case, name, device):
    with pytest.raises(ValueError) as caught:
        case.run(name, device)
    return str(caught.value)


def test_tensors_of_two_devices_are_refused(generator):
    case = on_device(make_case(generator, 3, 20, 6, 9))
    with pytest.raises(ValueError, match="posteriors: targets must be on the device of log_probs, expected cuda:0"):
        posteriors(case.log_probs, case.targets.cpu())


def test_more_frames_or_items_than_are_counted():
    """An expanded tensor has them for nothing."""
    one, label = torch.zeros(1, 1, 2, device=DEVICE), torch.ones(1, 1, dtype=torch.int64, device=DEVICE)
    for T in (2**30 + 1, 2**31 - 1, 2**41):
        with pytest.raises(ValueError, match=rf"2\^30 frames at most on CUDA, found T = {T}"):
            span_posteriors(one.expand(1, T, 2), label, label, label)


# ------------------------------------------------------------------------------------- streams, graphs, memory


def test_nothing_waits_for_the_device(generator):
    cases = [on_device(make_case(generator, 4, T, L, 20, stars=True, ragged=True)) for T, L in [(300, 60), (500, 300)]]

    def run():
        return [case.run(name, DEVICE) for case in cases for name in NAMES]

    expected = run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = run()
        leaf = cases[0].log_probs.clone().requires_grad_()
        (-class_posteriors(leaf, cases[0].targets)[1].sum()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for left, right in zip(found, expected, strict=True):
        assert_same(left, right)


@pytest.mark.parametrize("size", [(3, 300, 60, 20), (2, 600, 300, 50)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_graph_replays_with_other_contents_and_lengths(generator, size, name):
    held = on_device(make_case(generator, *size, stars=True, ragged=True))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        held.run(name, DEVICE)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = held.run(name, DEVICE)
    for i in range(4):
        case = make_case(generator, *size, stars=True, ragged=True)
        if i == 1:
            case.input_lengths[1], case.target_lengths[1] = 0, 0
        for key, value in vars(case).items():
            if isinstance(value, torch.Tensor):
                getattr(held, key).copy_(value)
        graph.replay()
        assert_same(found, case.run(name), name, i)


def test_the_current_stream_is_used(generator):
    case = make_case(generator, 2, 500, 50, 20)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        moved = on_device(case)
        moved.log_probs.fill_(-1)
        torch.cuda._sleep(20_000_000)
        moved.log_probs.copy_(case.log_probs.pin_memory(), non_blocking=True)
        found = moved.run("class_posteriors", DEVICE)
    stream.synchronize()
    assert_same(found, case.run("class_posteriors"))


def test_streams_side_by_side(generator):
    """Blocks of several launches wait for others of their own launch, at the same time."""
    cases = [on_device(make_case(generator, 40, 400, L, 20)) for L in (40, 60, 280, 300)]
    expected = [case.run("class_posteriors", DEVICE) for case in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    torch.cuda.synchronize()
    for _ in range(5):
        found = []
        for case, stream in zip(cases, streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(case.run("class_posteriors", DEVICE))
        torch.cuda.synchronize()
        for left, right in zip(found, expected, strict=True):
            assert_same(left, right)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_the_second_device(generator):
    case = make_case(generator, 2, 300, 50, 20)
    found = case.run("posteriors", "cuda:1")
    assert found[0].device == torch.device("cuda:1")
    assert_same(found, case.run("posteriors"))


@pytest.mark.parametrize("size", [(1, 178_572, 40_931, 32), (64, 1500, 200, 32), (500, 1500, 200, 8)], ids=str)
def test_memory_is_bounded(generator, size):
    """An hour, and batches: less than 1 GB beside inputs and outputs; and the spans' posteriors are probabilities."""
    B, T, L, C = size
    log_probs = torch.randn(T, C, generator=generator).log_softmax(-1).to(DEVICE).expand(B, T, C)
    targets = torch.randint(1, C, (B, L), generator=generator).to(DEVICE)
    starts = torch.arange(L, device=DEVICE).expand(B, L) * (T // L)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found, log_likelihoods = span_posteriors(log_probs, targets, starts, starts + T // L)
    assert torch.cuda.max_memory_allocated() - before < 1e9
    assert log_likelihoods.isfinite().all()
    assert ((found >= 0) & (found <= 1.001)).all()
    assert found.any()


# ------------------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("stars", [False, True], ids=["plain", "stars"])
def test_gradcheck(generator, stars):
    """Against finite differences, the log-likelihood twice."""
    case = on_device(make_case(generator, 2, 9, 3, 4, dtype=torch.float64, stars=stars))
    case.input_lengths = torch.tensor([9, 7], device=DEVICE)
    leaves = [case.log_probs.requires_grad_()]
    leaves += [case.star_scores.requires_grad_()] if stars else []

    def call(function, x, s=None, *spans):
        rest = case.input_lengths, None, 0
        return function(x, case.targets, *spans, *rest, star_scores=s, wild_gaps=case.wild_gaps)

    for function in (posteriors, class_posteriors):
        torch.autograd.gradcheck(lambda *x, f=function: call(f, *x), leaves)
        torch.autograd.gradgradcheck(lambda *x, f=function: call(f, *x)[1], leaves)
    spans = case.starts, case.starts + 3
    none = [] if stars else [None]
    torch.autograd.gradcheck(lambda *x: call(span_posteriors, *x, *none, *spans), leaves)
    torch.autograd.gradgradcheck(lambda *x: call(span_posteriors, *x, *none, *spans)[1], leaves)


@pytest.mark.parametrize("stars", [False, True], ids=["plain", "stars"])
def test_gradients_have_the_bits_of_the_cpu(generator, stars):
    """Of the log-likelihoods: they are the class posteriors times a gradient, and elementwise products are alike."""
    case = make_case(generator, 3, 300, 60, 20, stars=stars, ragged=True)
    gradients = []
    for device in ("cpu", DEVICE):
        leaf = case.log_probs.detach().clone().requires_grad_()
        _, log_likelihoods = replace(case, log_probs=leaf).run("class_posteriors", device)
        (log_likelihoods * torch.tensor([1.0, -0.5, 2.0], device=device)).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_loss_under_compile(generator, mode):
    """Forward and backward in one graph, with lengths that change from call to call."""

    def loss_of(logits, targets, input_lengths, target_lengths):
        log_probs = logits.log_softmax(-1)
        _, log_likelihoods = class_posteriors(log_probs, targets, input_lengths, target_lengths)
        return -log_likelihoods.sum()

    compiled = torch.compile(loss_of, fullgraph=True, mode=mode)
    for _ in range(3):
        case = on_device(make_case(generator, 4, 200, 30, 20, ragged=True))
        arguments = case.targets, case.input_lengths, case.target_lengths
        leaves = [case.log_probs.clone().requires_grad_() for _ in range(2)]
        losses = [function(leaf, *arguments) for function, leaf in zip((compiled, loss_of), leaves, strict=True)]
        for loss in losses:
            loss.backward()
        torch.testing.assert_close(losses[0], losses[1])
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_the_loss_is_that_of_torch_in_float64(generator):
    """torch's float32 loses digits with the length of items; in float64 both agree, gradients included."""
    case = on_device(make_case(generator, 4, 300, 40, 20, dtype=torch.float64, ragged=True))
    arguments = case.targets, case.input_lengths, case.target_lengths
    values = []
    for function in (torch_ctc_align.ctc_loss, torch.nn.functional.ctc_loss):
        leaf = case.log_probs.detach().clone().requires_grad_()
        loss = function(leaf.log_softmax(-1).transpose(0, 1), *arguments, reduction="sum")
        loss.backward()
        values.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(values[0], values[1], rtol=1e-9, atol=1e-12)


def test_opcheck(generator):
    case = on_device(make_case(generator, 2, 40, 7, 5, stars=True, ragged=True))
    for name in NAMES:
        operator = getattr(torch.ops.ctc_align, name).default
        torch.library.opcheck(operator, tuple(case.arguments(name)))
