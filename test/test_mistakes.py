"""Arguments of the right shape and type that say something else than was meant: refused, or warned of once.

And what is meant is left alone: energies, priors, masks, classes appended, whatever log_softmax returns.
"""

import math
import warnings

import pytest
import torch

import torch_ctc_align
from torch_ctc_align import (
    AlignmentError,
    AlignmentWarning,
    ForcedAligner,
    forced_align,
    merge_tokens,
    token_indices,
    token_spans,
)

INF = math.inf
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
operator = torch.ops.ctc_align.forced_align

pytestmark = pytest.mark.usefixtures("shown_afresh")


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=[(2, 1), (32, 0.1), (32, 3), (5000, 1), (5000, 10)], ids=str)
def model(request, generator, dtype):
    """Returns logits (2, 40, C), flat or peaked, and targets."""
    C, scale = request.param
    logits = (torch.randn(2, 40, C, generator=generator) * scale).to(dtype)
    return logits, torch.randint(1, C, (2, 5), generator=generator)


def warnings_of(function, *arguments, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*arguments, **options)
    assert all(x.category is AlignmentWarning for x in caught)
    return [str(x.message) for x in caught]


# Other numbers than log-probabilities


def test_probabilities_are_refused(model):
    logits, targets = model
    with pytest.raises(AlignmentError, match=r"^forced_align: log_probs must be natural-log probabilities, found prob"):
        forced_align(logits.softmax(-1), targets)


def test_probabilities_are_refused_once_a_warning_was_shown(generator):
    """The first mistake of a process does not hide the second."""
    logits = torch.randn(2, 40, 32, generator=generator) * 3
    targets = logits.argmax(-1)[:, :1].clamp(min=1)
    assert len(warnings_of(forced_align, logits, targets)) == 1
    for _ in range(10):
        with pytest.raises(AlignmentError, match="found probabilities: item 0"):
            forced_align(logits.softmax(-1), targets)


def test_negative_log_likelihoods_are_refused(model, dtype):
    logits, targets = model
    with pytest.raises(AlignmentError) as caught:
        forced_align(-logits.log_softmax(-1), targets)
    assert str(caught.value) == (
        "forced_align: log_probs must be natural-log probabilities, found their negatives: "
        "item 0 has no entry below 0; pass -log_probs. If this is meant, torch.ops.ctc_align.forced_align adds up any "
        "numbers"
    )


def test_the_item_that_is_wrong_is_named(generator):
    """Item 0 has been converted and item 1 has not."""
    log_probs = torch.randn(2, 40, 6, generator=generator).log_softmax(-1)
    targets = torch.tensor([[1, 2], [3, 4]])
    with pytest.raises(AlignmentError, match="found probabilities: item 1 has"):
        forced_align(torch.stack([log_probs[0], log_probs[1].exp()]), targets)
    with pytest.raises(AlignmentError, match="found their negatives: item 1 has"):
        forced_align(torch.stack([log_probs[0], -log_probs[1]]), targets)


def test_padding_takes_no_part_in_it(generator):
    """Frames past the input length hold zeros, as padded models leave them, or NaN."""
    probs = torch.randn(1, 40, 6, generator=generator).softmax(-1)
    for padding in (0, math.nan, -1):
        probs[:, 30:] = padding
        with pytest.raises(AlignmentError, match="found probabilities"):
            forced_align(probs, torch.tensor([[1, 2]]), [30])


@pytest.mark.parametrize("frames", [1, 63, 64, 65, 1000, 5001])
def test_of_a_long_item_some_frames_are_looked_at(generator, frames):
    probs = torch.randn(1, frames, 6, generator=generator).softmax(-1)
    with pytest.raises(AlignmentError, match="found probabilities"):
        forced_align(probs, torch.tensor([[1]]))


def test_other_functions_are_as_strict(generator):
    """ForcedAligner is forced_align; strict or not makes no difference, and one that is marked does not hide it."""
    probs = torch.randn(1, 40, 6, generator=generator).softmax(-1)
    with pytest.raises(AlignmentError, match="found probabilities"):
        ForcedAligner()(probs, torch.tensor([[1, 2]]))
    with pytest.raises(AlignmentError, match="found probabilities"):
        forced_align(probs.expand(2, -1, -1), torch.tensor([[1, 2], [1, 2]]), [1, 40], strict=False)
    with pytest.raises(AlignmentError, match="found probabilities"):
        forced_align(probs.clone().requires_grad_(), torch.tensor([[1, 2]]))


def test_logits_are_warned_of_once(generator):
    logits = torch.randn(2, 40, 32, generator=generator) * 3
    targets = logits.argmax(-1)[:, :1].clamp(min=1)
    (said,) = warnings_of(forced_align, logits, targets)
    assert said.startswith("forced_align: log_probs do not look like natural-log probabilities: item 0 has")
    for _ in range(10):
        assert warnings_of(forced_align, logits, targets) == []


def test_logits_give_the_path_of_their_log_softmax(generator):
    """As the warning says. Eighths, so that no sum is rounded."""
    logits = torch.randint(-8, 9, (2, 40, 32), generator=generator).double() / 8
    targets = torch.randint(1, 32, (2, 5), generator=generator)
    with pytest.warns(AlignmentWarning):
        paths, _ = forced_align(logits, targets)
    same = forced_align(logits - 2, targets)[0]  # a constant a frame changes no path
    assert torch.equal(paths, same)
    assert torch.equal(paths, forced_align(logits.log_softmax(-1), targets)[0])


# Layouts


def test_classes_before_frames_are_warned_of_once(model):
    """Labels fit by chance: with 40 frames taken for classes."""
    logits, _ = model
    log_probs = logits.log_softmax(-1).transpose(1, 2)
    targets = torch.ones(2, 1, dtype=torch.int64)
    (said,) = warnings_of(forced_align, log_probs, targets)
    assert said.startswith(f"forced_align: log_probs of shape {tuple(log_probs.shape)} sum to 1 over dimension 1")
    assert "pass log_probs.transpose(1, 2)" in said
    assert all(warnings_of(forced_align, log_probs, targets) == [] for _ in range(10))


def test_a_layout_is_looked_at_in_a_call_that_is_a_power_of_two(generator):
    """So that a mistake after a good start is found too, and a long run does not pay for it."""
    log_probs = torch.randn(1, 6, 40, generator=generator).log_softmax(-1)
    targets = torch.ones(1, 1, dtype=torch.int64)
    shown = []
    for call in range(1, 18):
        wrong = log_probs if call < 9 else log_probs.transpose(1, 2)
        shown += [call] * len(warnings_of(forced_align, wrong, targets))
    assert shown == [16]


def test_frames_before_items_are_refused_by_their_shape():
    with pytest.raises(AlignmentError, match=r"; if log_probs are \(T, B, C\), pass log_probs\.transpose\(0, 1\)$"):
        forced_align(torch.zeros(50, 2, 6), torch.ones(2, 3, dtype=torch.int64))


# A forgotten blank


def test_merge_tokens_without_the_blank_is_warned_of():
    tokens = torch.tensor([5, 5, 1, 5, 2, 2, 5, 5, 3, 5])
    scores = torch.zeros(10)
    (said,) = warnings_of(merge_tokens, tokens, scores)
    assert said == (
        "merge_tokens: the path has no frame of class 0, the blank, and 6 of its 10 frames in class 5; "
        "if that is the blank, pass blank=5"
    )
    assert warnings_of(merge_tokens, tokens, scores) == []


@pytest.mark.parametrize(
    "tokens", [[1, 2, 3], [1, 1, 1, 1], [0, 0, 0], [1, 2, 2, 1], [1, 0, 1, 1, 0, 1, 1], [-1, -1, -1], []], ids=str
)
def test_paths_that_merge_tokens_takes_as_they_are(tokens):
    """Without a blank because none was needed, all of one class, marked, or with a blank and much of one class."""
    assert warnings_of(merge_tokens, torch.tensor(tokens, dtype=torch.int64), torch.zeros(len(tokens))) == []


@pytest.mark.parametrize("blank", [0, 3, 5])
def test_token_spans_with_another_blank_are_refused(random_case, blank):
    """The path does not spell the target then, whichever class is given."""
    log_probs, targets = random_case(3, 30, 6, 6, blank=blank)
    paths, scores = operator(log_probs, targets, None, None, blank)
    token_spans(paths, scores, targets, blank)
    for other in {0, 1, 2, 3, 4, 5} - {blank}:
        for function in (
            lambda other=other: token_spans(paths, scores, targets, other),
            lambda other=other: token_indices(paths, targets, other),
        ):
            with pytest.raises(AlignmentError, match=f"does not spell targets.* with blank = {other}; pass the blank"):
                function()


def test_token_spans_of_other_targets_are_refused(random_case):
    log_probs, targets = random_case(3, 30, 6, 6)
    paths, scores = operator(log_probs, targets)
    other = targets.clone()
    other[1, 2] = other[1, 2] % 5 + 1
    with pytest.raises(AlignmentError) as caught:
        token_spans(paths, scores, other)
    assert str(caught.value) == (
        "token_spans: paths[1] does not spell targets[1] with blank = 0; "
        "pass the blank and the targets that were aligned"
    )


# How warnings are shown


def mistake(kind):
    """A call that is warned of."""
    if kind == "scores":
        return lambda: forced_align(torch.ones(1, 4, 3), torch.tensor([[1]]))
    if kind == "layout":
        return lambda: forced_align(torch.tensor([[[0.5, 0.2], [0.5, 0.8]]]).log(), torch.tensor([[1]]))
    return lambda: merge_tokens(torch.tensor([2, 1, 2, 1, 2, 2]), torch.zeros(6))


@pytest.fixture(params=["scores", "layout", "blank"])
def warned(request):
    return mistake(request.param)


def test_a_warning_points_at_the_caller(warned):
    with pytest.warns(AlignmentWarning) as caught:
        warned()
    assert [x.filename for x in caught] == [__file__]
    assert caught[0].lineno == warned.__code__.co_firstlineno


def test_a_warning_points_at_the_caller_of_a_module():
    """Past torch's own frames, which call forward."""
    with pytest.warns(AlignmentWarning) as caught:
        ForcedAligner()(torch.ones(1, 4, 3), torch.tensor([[1]]))
    assert [x.filename for x in caught] == [__file__]


def test_warnings_can_be_turned_off(warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", category=AlignmentWarning)
        warned()
    assert caught == []


def test_warnings_can_be_made_errors(warned, monkeypatch):
    """Then every call of that kind ends with it. (A layout is not looked at in every call.)"""
    monkeypatch.setattr(torch_ctc_align._mistakes, "_count", lambda: 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=AlignmentWarning)
        for _ in range(3):
            with pytest.raises(AlignmentWarning):
                warned()


def test_kinds_are_shown_apart():
    kinds = ["scores", "layout", "blank"]
    assert [len(warnings_of(mistake(kind))) for kind in kinds] == [1, 1, 1]


# What is meant


@pytest.fixture
def nothing_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("nothing_is_said")
def test_the_operator_warns_of_nothing_and_refuses_nothing(generator):
    logits = torch.randn(2, 40, 40, generator=generator)
    targets = torch.randint(1, 40, (2, 5), generator=generator)
    for log_probs in (logits, logits.softmax(-1), -logits.log_softmax(-1), logits.log_softmax(1)):
        paths, _ = operator(log_probs, targets)
        assert (paths >= 0).all()


@pytest.mark.usefixtures("nothing_is_said")
def test_log_softmax_is_never_warned_of(generator, dtype, monkeypatch):
    """1,000 random models, with the layout looked at in every call."""
    monkeypatch.setattr(torch_ctc_align._mistakes, "_count", lambda: 1)
    for case in range(1000):
        B, T, C = (int(torch.randint(1, n, (), generator=generator)) for n in (4, 50, 60))
        logits = torch.randn(B, T, C, generator=generator) * 10 ** (case % 5 - 2)
        L = int(torch.randint(0, T // 2 + 1, (), generator=generator)) if C > 1 else 0
        targets = torch.randint(1, max(C, 2), (B, L), generator=generator)
        forced_align(logits.to(dtype).log_softmax(-1), targets)


@pytest.mark.usefixtures("nothing_is_said")
@pytest.mark.parametrize("mask", [-INF, INF, math.nan, -1e4, -65504.0], ids=str)
def test_masks_are_left_alone(random_case, dtype, mask):
    """On classes, on single entries, and on a whole item, which is marked."""
    log_probs, targets = random_case(3, 40, 5, 12, dtype=dtype)
    targets = targets.clamp(max=6)
    log_probs[..., 7:] = mask
    log_probs[:, 3, 0] = mask
    log_probs[2] = mask
    found = forced_align(log_probs, targets, strict=False)
    for x, y in zip(found, operator(log_probs, targets), strict=True):
        assert torch.equal(x, y)


@pytest.mark.usefixtures("nothing_is_said")
def test_constant_emissions_are_left_alone(dtype):
    """Zeros for every class, one class, a class that always has probability 1."""
    for log_probs in (torch.zeros(1, 6, 4), torch.zeros(1, 6, 1), torch.full((1, 6, 4), -2.0)):
        forced_align(log_probs.to(dtype), torch.zeros(1, 0, dtype=torch.int64))
        forced_align(log_probs.to(dtype).expand(0, -1, -1), torch.zeros(0, 2, dtype=torch.int64))


@pytest.mark.usefixtures("nothing_is_said")
def test_a_class_of_zeros_for_anything_is_left_alone(random_case, dtype):
    """The trick of docs/in_training_pipelines.md: a star that stands for any speech."""
    log_probs, targets = random_case(2, 40, 5, 12, dtype=dtype)
    starred = torch.cat([log_probs, log_probs.new_zeros(2, 40, 1)], -1)
    targets[:, 2] = 12
    paths, scores = forced_align(starred, targets)
    assert (paths == 12).any(1).all()
    assert (scores[paths == 12] == 0).all()


def test_priors_subtracted_are_left_alone_once_the_warning_is_off(random_case, dtype):
    """Scores above 0 are meant, and the results are the operator's."""
    log_probs, targets = random_case(4, 60, 8, 12, dtype=torch.float64)
    priors = log_probs.logsumexp((0, 1), keepdim=True) - math.log(4 * 60)
    emission = (log_probs - priors).to(dtype)
    assert len(warnings_of(forced_align, emission, targets)) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            paths, scores = forced_align(emission, targets)
    assert torch.equal(paths, operator(emission, targets)[0])
    assert torch.equal(scores, operator(emission, targets)[1])
    assert (scores > 0).any()


@pytest.mark.parametrize("scale", [0.01, 1, 100])
def test_energies_that_are_all_positive_are_not_refused(generator, scale):
    """They do not sum to 1, nor do their exponentials."""
    emission = torch.rand(2, 40, 12, generator=generator) * scale + scale
    targets = torch.randint(1, 12, (2, 5), generator=generator)
    with pytest.warns(AlignmentWarning):
        found = forced_align(emission, targets)
    for x, y in zip(found, operator(emission, targets), strict=True):
        assert torch.equal(x, y)


@pytest.mark.usefixtures("nothing_is_said")
def test_graphs_and_fake_tensors_look_at_nothing(generator):
    from torch._subclasses.fake_tensor import FakeTensorMode

    probs, targets = torch.randn(2, 20, 6, generator=generator).softmax(-1), torch.ones(2, 3, dtype=torch.int64)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in (probs, targets)]
        assert forced_align(*fake, strict=False)[0].shape == (2, 20)
    assert forced_align(probs.to("meta"), targets.to("meta"), strict=False)[0].shape == (2, 20)
    compiled = torch.compile(forced_align, backend="eager", fullgraph=True)
    assert torch.equal(compiled(probs, targets, strict=False)[0], operator(probs, targets)[0])


# Modes and transforms that look on


def test_a_trace_is_the_same_whatever_came_before(fresh_python):
    """A look at the values, in the first call, the second, the fourth and so on, must not get into a graph."""
    code = """
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch_ctc_align import ForcedAligner, forced_align

log_probs, targets = torch.randn(1, 9, 5).log_softmax(-1), torch.tensor([[1, 2]])
graph = make_fx(lambda x, y: forced_align(x, y, strict=False))(log_probs, targets)
called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
assert called[0] == "ctc_align.forced_align.default", called
for _ in range(9):
    torch.jit.trace(ForcedAligner(), (log_probs, targets))
print("traced")
"""
    assert fresh_python(code) == "traced\n"


def test_a_function_mode_gets_its_gradient():
    """What it makes of the arguments may need a gradient where they themselves do not."""
    factor = torch.ones(1, requires_grad=True)

    class Multiply(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.ctc_align.forced_align, torch.ops.ctc_align.forced_align.default):
                args = (args[0] * factor, *args[1:])
            return function(*args, **(kwargs or {}))

    with Multiply():
        _, scores = forced_align(torch.randn(1, 9, 5).log_softmax(-1), torch.tensor([[1, 2]]))
    assert scores.requires_grad


def test_energies_of_0_and_1_are_meant(generator):
    """Every frame sums to 1, as a frame of probabilities does."""
    energies = torch.nn.functional.one_hot(torch.randint(0, 5, (1, 30), generator=generator), 5).float()
    targets = torch.tensor([[1, 2, 3]])
    assert len(warnings_of(forced_align, energies, targets)) == 1
    for _ in range(4):
        assert torch.equal(forced_align(energies, targets)[0], torch.ops.ctc_align.forced_align(energies, targets)[0])
