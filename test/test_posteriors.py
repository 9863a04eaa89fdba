"""Posteriors and log-likelihoods: the right values, and what must not change them."""

import itertools
import math

import pytest
import torch
from torch.export import Dim

import torch_ctc_align
from torch_ctc_align import class_posteriors, forced_align, posteriors, span_posteriors, token_spans
from torch_ctc_align.config import _forced

INF = math.inf
operators = torch.ops.ctc_align


@pytest.fixture(params=[posteriors, class_posteriors], ids=lambda function: function.__name__)
def function(request):
    return request.param


def by_all_paths(log_probs, target, blank=0):
    """Posteriors (T, L + 1) and log-likelihood of one item, from the probability of every sequence of classes.

    A sequence that collapses to the target passes through its tokens in order: a token for every run of a label.
    """
    frames, classes = log_probs.shape
    probs = log_probs.double().nan_to_num(-INF, -INF, -INF).exp()
    table = torch.zeros(frames, len(target) + 1, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for path in itertools.product(range(classes), repeat=frames):
        runs = [(c, len(list(run))) for c, run in itertools.groupby(path)]
        if [c for c, _ in runs if c != blank] != target:
            continue
        weight = math.prod(float(probs[t, c]) for t, c in enumerate(path))
        total += weight
        t = token = 0
        for c, length in runs:
            column = len(target) if c == blank else token
            table[t : t + length, column] += weight
            t += length
            token += c != blank
    return (table / total if total > 0 else table), total.log()


def double_ctc(log_probs, targets, input_lengths=None, target_lengths=None, blank=0):
    """torch's ctc_loss in float64, (B,)."""
    batch, frames, _ = log_probs.shape
    if input_lengths is None:
        input_lengths = torch.full((batch,), frames)
    if target_lengths is None:
        target_lengths = torch.full((batch,), targets.shape[1])
    arguments = log_probs.double().transpose(0, 1), targets, input_lengths, target_lengths
    return torch.nn.functional.ctc_loss(*arguments, blank, reduction="none")


def make_arguments(random_case, B=3, T=20, L=6, C=7, **options):
    """Items of several lengths; the last one has no path (a frame of -inf)."""
    log_probs, targets = random_case(B, T, L, C, **options)
    log_probs[B - 1, 1] = -INF
    return log_probs, targets, torch.arange(T - B + 1, T + 1), torch.arange(L - B + 1, L + 1)


# ------------------------------------------------------------------------------------------------ the right values


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("target", [[], [1], [1, 1], [1, 3], [3, 1, 1], [1, 3, 1, 3]], ids=str)
def test_against_all_paths(cpu, random_case, target, blank):
    for T in range(6):
        log_probs, _ = random_case(1, T, 0, 4, dtype=torch.float64)
        expected, log_likelihood = by_all_paths(log_probs[0], target, blank)
        tokens, found = operators.posteriors(log_probs, torch.tensor([target], dtype=torch.int64), blank=blank)
        torch.testing.assert_close(tokens[0], expected)
        torch.testing.assert_close(found[0], log_likelihood)


def test_entries_that_are_not_log_probabilities():
    """No path goes through NaN, an infinity, or the most negative float, with which people mask."""
    for entry in (math.nan, INF, -INF, torch.finfo(torch.float32).min, 2.0**18, -(2.0**18)):
        log_probs = torch.tensor([[0.0, -1, -2], [-1, 0, -1], [-2, -1, 0], [-1, -1, -1]])
        log_probs[1, 1] = entry
        masked = log_probs.clone()
        masked[1, 1] = -INF
        expected, log_likelihood = by_all_paths(masked, [1, 2])
        tokens, found = posteriors(log_probs[None], torch.tensor([[1, 2]]))
        torch.testing.assert_close(tokens[0].double(), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(found[0].double(), log_likelihood, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", [(3, 50, 12, 9), (2, 400, 90, 33), (1, 700, 300, 200), (2, 64, 0, 3)], ids=str)
def test_the_log_likelihood_is_that_of_ctc_loss(cpu, random_case, function, dtype, sizes):
    B, T, L, C = sizes
    log_probs, targets = random_case(B, T, L, C, dtype=dtype)
    lengths = torch.arange(T - B + 1, T + 1), torch.full((B,), L)
    expected = -double_ctc(log_probs, targets, *lengths)
    _, found = function(log_probs, targets, *lengths)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # A float32 total is rounded once at the end, and its mantissas once a frame and state. In float64 the error is that
    # of ctc_loss: it rounds its logarithms once a frame, by half an epsilon of the total.
    epsilon = torch.finfo(found.dtype).eps
    rounds = 1 if found.dtype == torch.float32 else T / 2
    torch.testing.assert_close(found.double(), expected, rtol=epsilon * rounds, atol=epsilon * T)


def test_the_sum_of_a_long_item_keeps_its_precision(random_case):
    """At 15,000 nats our error is at most the rounding of the result; that of ctc_loss in float32 is greater."""
    log_probs, targets = random_case(1, 5000, 1000, 40)
    expected = -double_ctc(log_probs, targets)
    assert -16_000 < expected < -15_000
    _, found = class_posteriors(log_probs, targets)
    error = abs(float(found.double() - expected))
    assert error <= 2.0**-11  # half a unit in the last place of 15,000 as a float32
    lengths = torch.tensor([5000]), torch.tensor([1000])
    theirs = -torch.nn.functional.ctc_loss(log_probs.transpose(0, 1), targets, *lengths, reduction="none")
    assert error < abs(float(theirs.double() - expected))
    exact, _ = posteriors(log_probs.double(), targets)
    single, _ = posteriors(log_probs, targets)
    torch.testing.assert_close(single.double(), exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("level", [0.0, 1e3, 2.0**18 - 32, 32 - 2.0**18])
def test_emissions_of_any_size(random_case, level):
    """A number that is added to all emissions does not change the posteriors."""
    log_probs, targets = random_case(2, 64, 12, 6)
    log_probs = log_probs + level  # rounded here, before anything is compared
    tokens, log_likelihoods = posteriors(log_probs, targets)
    expected, total = posteriors(log_probs.double(), targets)
    torch.testing.assert_close(tokens.double(), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(log_likelihoods.double(), total, rtol=1e-7, atol=1e-5)


@pytest.mark.parametrize("mask, times", [(-2e5, 290), (-1e5, 290), (-1e5, 90), (-30_000.0, 280), (-1e4, 280)])
def test_a_masked_class_that_the_target_needs(random_case, mask, times):
    """The states of a frame then lie up to 58 million nats apart, and paths need all of them."""
    log_probs, _ = random_case(1, 600, 0, 6)
    log_probs[..., 3] = mask
    targets = torch.tensor([[3, 1]]).repeat(1, times)
    tokens, _ = posteriors(log_probs, targets)
    expected, _ = posteriors(log_probs.double(), targets)
    torch.testing.assert_close(tokens.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sign", [1, -1])
def test_weights_out_of_range(random_case, sign):
    """186 million nats below or above 0 a path does not count. The other item keeps its bits."""
    log_probs, targets = random_case(2, 900, 3, 5)
    expected = class_posteriors(log_probs, targets)
    log_probs[1] += sign * 250_000.0
    occupancies, log_likelihoods = class_posteriors(log_probs, targets)
    assert log_likelihoods[1] == -INF
    assert not occupancies[1].any()
    assert torch.equal(occupancies[0], expected[0][0])
    assert log_likelihoods[0] == expected[1][0]
    shorter, log_likelihoods = class_posteriors(log_probs, targets, torch.tensor([700, 700]))
    torch.testing.assert_close(shorter.sum(2)[:, :700], torch.ones(2, 700))
    assert log_likelihoods.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_target_of_masked_classes(random_case, dtype):
    """States lie 40 million nats apart, more than a float32 can count, and the results are right all the same.

    Judged by ctc_loss in float64, whose gradient is exp(log_probs) - occupancies.
    """
    log_probs, targets = random_case(2, 1100, 900, 6)
    log_probs[..., 1:] -= 60_000  # -40 million nats a path
    log_probs, lengths = log_probs.to(dtype), (torch.tensor([1100, 1000]), torch.tensor([400, 500]))
    exact = log_probs.double().requires_grad_()
    loss = double_ctc(exact, targets, *lengths)
    loss.sum().backward()
    expected = exact.detach().exp() - exact.grad
    expected[1, 1000:] = 0
    occupancies, log_likelihoods = class_posteriors(log_probs, targets, *lengths)
    # ctc_loss adds logarithms of 30 million in float64: its error is some T * 2e-16 of that, about 1e-6.
    torch.testing.assert_close(occupancies.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(log_likelihoods.double(), -loss.detach(), rtol=1e-7, atol=0)

    # The other three operators in float32 and in float64.
    borders = torch.zeros_like(targets), torch.full_like(targets, 300)
    for function in (posteriors, lambda *x: span_posteriors(*x[:2], *borders, *x[2:])):
        narrow = log_probs.clone().requires_grad_()
        (found, _), (wide, _) = function(narrow, targets, *lengths), function(exact, targets, *lengths)
        torch.testing.assert_close(found.double(), wide, atol=1e-6, rtol=0)
        weights = torch.linspace(-1, 1, found[0].numel()).view_as(found[0])
        gradient = torch.autograd.grad((found * weights).sum(), narrow)[0]
        expected = torch.autograd.grad((wide * weights).sum(), exact)[0]
        epsilon = torch.finfo(dtype).eps
        torch.testing.assert_close(gradient.double(), expected, atol=1e-6, rtol=epsilon)


def test_tokens_and_classes_agree(random_case):
    log_probs, targets, *lengths = make_arguments(random_case, 4, 40, 9, 5, dtype=torch.float64)
    tokens, first = posteriors(log_probs, targets, *lengths)
    classes, second = class_posteriors(log_probs, targets, *lengths)
    assert torch.equal(first, second)
    columns = torch.nn.functional.pad(targets, (0, 1))[:, None].expand_as(tokens)
    torch.testing.assert_close(torch.zeros_like(classes).scatter_add(2, columns, tokens), classes)


def test_rows_sum_to_one_within_the_lengths(random_case, function):
    log_probs, targets, *lengths = make_arguments(random_case, 4, 300, 60, 30)
    table, log_likelihoods = function(log_probs, targets, *lengths)
    used = (torch.arange(300) < lengths[0][:, None]) & log_likelihoods.isfinite()[:, None]
    assert used.sum() == 297 + 298 + 299
    torch.testing.assert_close(table.sum(2), used.float(), atol=2e-6, rtol=0)
    assert (table >= 0).all()
    assert not table[~used].any()


def test_an_item_without_a_path(function):
    """An item that is too short, blocked, or without frames gives -inf and zeros; the item beside it stays the same."""
    log_probs = torch.zeros(4, 4, 3)
    log_probs[1, 2] = -INF
    targets = torch.tensor([[1, 1, 1], [1, 2, 2], [1, 2, 1], [1, 2, 1]])
    table, log_likelihoods = function(log_probs, targets, [4, 4, 0, 4], [3, 2, 1, 3])
    assert log_likelihoods[:3].tolist() == [-INF] * 3
    assert not table[:3].any()
    alone = function(log_probs[3:], targets[3:])
    assert torch.equal(table[3:], alone[0])
    assert torch.equal(log_likelihoods[3:], alone[1])
    # With no frames and no labels there is one path, the empty one.
    assert function(torch.zeros(1, 0, 3), torch.zeros(1, 0, dtype=torch.int64))[1].tolist() == [0]


# ------------------------------------------------------------------------------------------- the same every time


def same(found, expected):
    return all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", [(2, 60, 15, 5), (2, 90, 17, 40), (1, 300, 128, 33)], ids=str)
def test_bits_do_not_depend_on_the_way_of_computing(random_case, threads, function, dtype, sizes):
    """Instruction set, memory budget, number of threads, strides, dtype of the integers, neighbours in the batch."""
    log_probs, targets = random_case(*sizes, dtype=dtype)
    with _forced(cpu="portable"):
        expected = function(log_probs, targets)
    for name in torch_ctc_align.config().cpus:
        with _forced(cpu=name):
            assert same(function(log_probs, targets), expected)
    try:
        for budget in (1, 20_000, 100_000):
            torch_ctc_align.set_memory_budget(budget)
            assert same(function(log_probs, targets), expected)
    finally:
        torch_ctc_align.set_memory_budget(None)
    threads(3)
    many = function(log_probs.repeat(9, 1, 1), targets.repeat(9, 1))
    assert same([x[: sizes[0]] for x in many], expected)
    assert same([x[-sizes[0] :] for x in many], expected)
    by_class = log_probs.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert same(function(by_class, targets.int().t().contiguous().t()), expected)


BUSY_THREADS = """
import os, torch, torch_ctc_align

def ticks():
    times = {}
    for task in os.listdir("/proc/self/task"):
        fields = open(f"/proc/self/task/{task}/stat").read().rsplit(")", 1)[1].split()
        times[task] = int(fields[11]) + int(fields[12])
    return times

torch.set_num_threads(2)
log_probs, targets = torch.zeros(1).expand(2, 40_000, 4), torch.arange(1000)[None].expand(2, 1000) % 3 + 1
torch.ops.ctc_align.class_posteriors(log_probs[:, :2000], targets[:, :500])  # starts the threads
before = ticks()
torch.ops.ctc_align.class_posteriors(log_probs, targets)
used = sorted((after - before.get(task, 0) for task, after in ticks().items()), reverse=True)
print(used[0], used[1])
"""


@pytest.mark.slow
def test_long_items_are_shared_out(fresh_python):
    """Two items that cannot be split, on two threads: each thread works on one of them."""
    most, second = map(int, fresh_python(BUSY_THREADS).split())
    assert most >= 10, "hundredths of a second"
    assert second > most / 4


def test_padding_is_never_read(random_case, function):
    log_probs, targets = random_case(2, 30, 6, 8)
    expected = function(log_probs[:, :25], targets[:, :4])
    log_probs[:, 25:] = math.nan
    targets[:, 4:] = -7
    table, log_likelihoods = function(log_probs, targets, [25, 25], [4, 4])
    assert torch.equal(log_likelihoods, expected[1])
    assert not table[:, 25:].any()
    blank = table.shape[2] - 1
    if function is posteriors:  # columns of the labels, and the last one: the blank's
        assert torch.equal(table[:, :25, [0, 1, 2, 3, blank]], expected[0])
        assert not table[:, :, 4:blank].any()
    else:
        assert torch.equal(table[:, :25], expected[0])


def test_flushing_subnormals_changes_nothing(random_case, function):
    log_probs, targets = random_case(1, 80, 20, 6, dtype=torch.float16)
    expected = function(log_probs, targets)
    supported = torch.set_flush_denormal(True)
    try:
        assert same(function(log_probs, targets), expected)
    finally:
        torch.set_flush_denormal(False)
    assert supported


# Rounding modes have numbers of their own on each platform: those of <fenv.h> on x86-64 and aarch64.
ROUNDING = """
import ctypes, itertools, platform, torch
from torch_ctc_align.config import _forced, config

libm = ctypes.CDLL("libm.so.6")
x86 = platform.machine() == "x86_64"
modes = {"down": 0x400, "up": 0x800, "zero": 0xC00} if x86 else {"down": 0x800000, "up": 0x400000, "zero": 0xC00000}
operators = torch.ops.ctc_align
generator = torch.Generator().manual_seed(0)
tiny = 1e-41  # subnormal in float32

def results(log_probs, targets, starts, grad):
    found = [*operators.forced_align(log_probs, targets), *operators.posteriors(log_probs, targets)]
    found += operators.class_posteriors(log_probs, targets)
    found += operators.span_posteriors(log_probs, targets, starts, starts + 7)
    stars = log_probs.amax(2), torch.ones(*grad.shape[:1], grad.shape[2], dtype=torch.bool)
    found += operators.occupancies(log_probs, targets, None, None, 0, *stars)
    with_star = torch.cat((grad, grad[:, :, :1]), 2)
    found += [operators.posteriors_backward(with_star, log_probs, targets, None, None, 0, *stars)]
    found += [operators.posteriors_backward(grad, log_probs, targets)]
    return found

cases = []
for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
    for B, T, L, scale in [(1, 60, 20, 1), (4, 700, 200, 1), (2, 60, 20, 1e-39)]:
        log_probs = torch.randn(B, T, 9, generator=generator, dtype=torch.float64).log_softmax(-1) * scale
        targets = torch.randint(1, 9, (B, L), generator=generator)
        starts = torch.randint(0, T - 7, (B, L), generator=generator)
        sums = torch.float64 if dtype == torch.float64 else torch.float32
        grad = torch.randn(B, T, L + 1, generator=generator, dtype=sums) * (tiny if scale < 1 else 1)
        cases.append((log_probs.to(dtype), targets, starts, grad))
expected = [results(*case) for case in cases]
assert cases[8][3].count_nonzero() and expected[8][-1].count_nonzero()  # float32, subnormal
for name, threads, cpu in itertools.product([*modes, "flush"], [1, 2], config().cpus):
    torch.set_num_threads(threads)
    with _forced(cpu=cpu):
        for i, case in enumerate(cases):
            if name == "flush":
                torch.set_flush_denormal(True)
            else:
                assert libm.fesetround(modes[name]) == 0
            found = results(*case)
            assert libm.fegetround() == modes.get(name, 0)  # as it was
            libm.fesetround(0)
            torch.set_flush_denormal(False)
            for j, (x, y) in enumerate(zip(found, expected[i])):
                if not torch.equal(x, y):
                    print(name, threads, cpu, case[0].dtype, tuple(case[0].shape), "result", j)
print("done")
"""


@pytest.mark.slow
def test_the_rounding_of_the_caller_changes_nothing(fresh_python):
    """For every operator: neither the sums nor the last rounding of a result."""
    assert fresh_python(ROUNDING) == "done\n"


# ------------------------------------------------------------------------------------------------------------- graphs


class Loss(torch.nn.Module):
    def forward(self, logits, targets, input_lengths, target_lengths):
        log_probs = logits.log_softmax(-1)
        tokens, log_likelihoods = posteriors(log_probs, targets, input_lengths, target_lengths)
        feasible = log_likelihoods.isfinite()
        expected_durations = tokens[..., :-1].sum(1)
        return torch.where(feasible, -log_likelihoods, 0).sum() + expected_durations.square().sum()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_forward_and_backward(random_case, backend):
    torch.compiler.reset()
    loss = Loss()
    compiled = torch.compile(loss, backend=backend, fullgraph=True, dynamic=True)
    for i, sizes in enumerate([(3, 20, 6, 7), (4, 33, 9, 12), (5, 64, 11, 40)]):
        log_probs, targets, *lengths = make_arguments(random_case, *sizes, dtype=torch.float64)
        log_probs.nan_to_num_(neginf=-30)
        lengths[0][0] = 2  # too few frames
        gradients, values = [], []
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            for function in (loss, compiled):
                leaf = log_probs.clone().requires_grad_()
                values.append(function(leaf, targets, *lengths))
                values[-1].backward()
                gradients.append(leaf.grad)
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*gradients)
        assert gradients[0].any()
    torch.compiler.reset()


def test_exports(random_case, tmp_path):
    B, T, L = Dim("B", min=1, max=64), Dim("T", min=2, max=4096), Dim("L", min=2, max=2048)
    arguments = make_arguments(random_case)
    exported = torch.export.export(Loss(), arguments, dynamic_shapes=({0: B, 1: T}, {0: B, 1: L}, {0: B}, {0: B}))
    torch.export.save(exported, tmp_path / "loss.pt2")
    loaded = torch.export.load(tmp_path / "loss.pt2").module()
    other = make_arguments(random_case, 5, 50, 8, 7)
    torch.testing.assert_close(loaded(*other), Loss()(*other), equal_nan=True)


def test_meta_tensors():
    log_probs = torch.empty(2, 1000, 50, device="meta", dtype=torch.bfloat16)
    targets = torch.empty(2, 100, device="meta", dtype=torch.int32)
    tokens, log_likelihoods = operators.posteriors(log_probs, targets)
    assert (tokens.shape, tokens.dtype, log_likelihoods.shape) == ((2, 1000, 101), torch.float32, (2,))
    classes, _ = operators.class_posteriors(log_probs.double(), targets)
    assert (classes.shape, classes.dtype) == (log_probs.shape, torch.float64)


# -------------------------------------------------------------------------------------------------------- confidences


def test_span_posteriors_are_means_of_posteriors(random_case):
    log_probs, targets, *lengths = make_arguments(random_case, 4, 40, 6, 9, dtype=torch.float64)
    spans = token_spans(*forced_align(log_probs, targets, *lengths, strict=False), targets)
    found, log_likelihoods = span_posteriors(log_probs, targets, spans.starts, spans.ends, *lengths)
    tokens, expected = posteriors(log_probs, targets, *lengths)
    assert torch.equal(log_likelihoods, expected)
    for b, k in itertools.product(range(4), range(6)):
        start, end = int(spans.starts[b, k]), int(spans.ends[b, k])
        mean = tokens[b, start:end, k].mean() if end > start else torch.tensor(0.0, dtype=torch.float64)
        torch.testing.assert_close(found[b, k], mean)
    assert not found[3].any()
    assert (found[:3, 0] > 0).all()


def test_borders_may_hold_anything(random_case):
    log_probs, targets = random_case(1, 9, 4, 5)
    starts, ends = torch.tensor([[-1, 5, -(2**63), 0]]), torch.tensor([[-1, 3, 2**63 - 1, 10**12]])
    found, _ = span_posteriors(log_probs.requires_grad_(), targets, starts, ends)
    tokens, _ = posteriors(log_probs, targets)
    torch.testing.assert_close(found[0], torch.tensor([0.0, 0.0, 1.0, 1.0]) * tokens[0, :, :4].mean(0))
    (gradient,) = torch.autograd.grad(found.sum(), log_probs)
    (expected,) = torch.autograd.grad(tokens[0, :, 2:4].sum() / 9, log_probs)
    torch.testing.assert_close(gradient, expected)


def test_confidence_of_a_real_transcript_and_of_a_wrong_one():
    """The phonemes of a clip. Where those of a word are replaced, they are less certain than the right ones."""
    import numpy as np
    from test_docs import ROOT

    data = np.load(ROOT / "test" / "data" / "sense_and_sensibility_0870.npz")
    log_probs, targets = torch.from_numpy(data["log_probs"])[None], torch.from_numpy(data["targets"])[None]
    blank = int(data["blank"])

    def confidences(targets):
        spans = token_spans(*forced_align(log_probs, targets, blank=blank), targets, blank)
        return span_posteriors(log_probs, targets, spans.starts, spans.ends, blank=blank)

    found, log_likelihood = confidences(targets)
    torch.testing.assert_close(log_likelihood.double(), -double_ctc(log_probs, targets, blank=blank))
    assert found.median() > 0.9
    wrong = targets.clone()
    wrong[0, 40:44] = (wrong[0, 40:44] + 50) % 189
    damaged, worse = confidences(wrong)  # still rather sure: the target must be somewhere
    assert damaged[0, 40:44].mean() < found[0, 40:44].mean() - 0.05
    assert worse < log_likelihood - 10


# ------------------------------------------------------------------------------------------------------------- limits

MEMORY = """
import resource, sys, torch, torch_ctc_align

def peak():
    return 1024 * int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM:")).split()[1])

torch.set_num_threads(1)
T, L = {T}, {L}
log_probs = torch.zeros(1, 1, 1).expand(1, T, 4)
targets = torch.randint(1, 4, (1, L))
torch.ops.ctc_align.class_posteriors(log_probs[:, :100], targets[:, :10])
torch_ctc_align.set_memory_budget({budget})
before = peak()
classes, log_likelihoods = torch.ops.ctc_align.class_posteriors(log_probs, targets)
print(peak() - before - classes.numel() * 4)
assert log_likelihoods.isfinite().all()
"""


@pytest.mark.slow
def test_memory_of_a_long_item(fresh_python):
    """All alphas of 20,000 x 2,000 would take 640 MB. The default is 1024 bytes a frame; a budget is kept."""
    by_default = int(fresh_python(MEMORY.format(T=20_000, L=2_000, budget=None)))
    assert 5e6 < by_default <= 20.5e6 + 2e6
    budgeted = int(fresh_python(MEMORY.format(T=20_000, L=2_000, budget=3_000_000)))
    assert budgeted <= 3e6 + 1e6


def test_errors_name_the_operator():
    zero = torch.zeros(2, 5, 4)
    one = torch.ones(2, 3, dtype=torch.int64)
    cases = [
        (operators.posteriors, (zero[0], one), "posteriors: log_probs must have shape (B, T, C), found (5, 4)"),
        (
            operators.class_posteriors,
            (zero, one, None, torch.tensor([1, 4])),
            "class_posteriors: target_lengths[1] must be between 0 and L = 3, found 4",
        ),
        (
            operators.posteriors,
            (zero, one * 4),
            "posteriors: targets[0, 0] must be a class of log_probs, expected 0 <= label < C = 4, found 4",
        ),
        (
            operators.span_posteriors,
            (zero, one, one[:, :2], one),
            "span_posteriors: starts must have the shape of targets, expected (2, 3), found (2, 2)",
        ),
        (operators.span_posteriors, (zero, one, one, one.int()), "span_posteriors: ends must be int64, found int32"),
        (
            operators.posteriors_backward,
            (zero, zero, one[:, :2]),
            "posteriors_backward: grad_posteriors must have shape (B, T, L + 1) = (2, 5, 3), found (2, 5, 4)",
        ),
        (
            operators.posteriors_backward,
            (zero.double(), zero, one),
            "posteriors_backward: grad_posteriors must have the dtype of the posteriors, found float64",
        ),
    ]
    for operator, arguments, message in cases:
        with pytest.raises(ValueError) as error:
            operator(*arguments)
        assert str(error.value) == message
        if "[" in message:
            continue  # fake tensors have no values
        with pytest.raises(ValueError) as error:
            operator(*(x.to("meta") for x in arguments))
        assert str(error.value) == message
