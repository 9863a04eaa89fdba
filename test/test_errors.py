"""Kinds of errors: AlignmentError and its attributes, and the same kinds on every torch.

From torch 2.15 on, whatever a kernel throws arrives as a RuntimeError. The functions, and the operators by way of their
autograd kernels, make ValueError and MemoryError of it again; in inference mode the operators cannot.
"""

import copy
import pickle

import pytest
import torch
from torch.torch_version import TorchVersion

import torch_ctc_align
from torch_ctc_align import AlignmentError, ForcedAligner
from torch_ctc_align._library import as_raised
from torch_ctc_align._refusals import explain

FUNCTIONS = ["forced_align", "posteriors", "class_posteriors", "span_posteriors"]
TOO_MANY_FRAMES = 2**58  # an output would take more bytes than an address can count
operators = torch.ops.ctc_align


def arguments_of(name, log_probs=None, targets=None):
    """Arguments of a function or operator, by its name; good ones unless others are given."""
    log_probs = torch.zeros(2, 5, 4).log_softmax(-1) if log_probs is None else log_probs
    targets = torch.tensor([[1, 2], [3, 1]]) if targets is None else targets
    arguments = [log_probs, targets]
    if name == "span_posteriors":
        arguments += [torch.zeros(1, 1, dtype=torch.int64).expand_as(targets)] * 2
    if name == "posteriors_backward":
        arguments.insert(0, torch.zeros(1).expand(*log_probs.shape[:2], targets.shape[1] + 1))
    return arguments


def bad_label(name):
    return arguments_of(name, targets=torch.tensor([[1, 2], [3, 4]]))


def without_memory(name):
    """The sizes of the results that no memory holds, in tensors of one element."""
    log_probs, label = torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.int64)
    if name == "span_posteriors":
        return arguments_of(name, log_probs.expand(1, 2, 4), label.expand(1, TOO_MANY_FRAMES))
    return arguments_of(name, log_probs.expand(1, TOO_MANY_FRAMES, 4), label)


BAD_LABEL = "targets[1, 1] must be a class of log_probs, expected 0 <= label < C = 4, found 4"


def error_of(function, *arguments):
    with pytest.raises(BaseException) as caught:
        function(*arguments)
    return caught.value


# AlignmentError


def test_it_is_what_clients_of_torchaudio_catch_and_what_ours_do():
    """Whichever of the two a client names, and whichever it names first."""
    for kind in (ValueError, RuntimeError, AlignmentError, Exception):
        with pytest.raises(kind) as caught:
            torch_ctc_align.forced_align(torch.zeros(1, 1, 4), torch.tensor([[1, 2]]))
        assert caught.type is AlignmentError
    assert not issubclass(AlignmentError, TypeError | MemoryError)


@pytest.mark.parametrize(
    "log_probs, targets, lengths, expected",
    [
        # item, frames, labels, repeats, counted by hand
        (torch.zeros(1, 1, 4), [[1, 2]], (), (0, 1, 2, 0)),
        (torch.zeros(2, 5, 4), [[1, 2, 3], [2, 2, 2]], ([5, 4], None), (1, 4, 3, 2)),
        (torch.zeros(3, 4, 4), [[1, 1, 1], [2, 2, 2], [3, 3, 3]], (None, [1, 3, 3]), (1, 4, 3, 2)),
        (torch.zeros(1, 3, 4), [[1, 1, 2, 2]], (torch.tensor([2]), torch.tensor([3])), (0, 2, 3, 1)),
        (torch.zeros(2, 0, 4), [[1], [1]], ([0, 0], [0, 1]), (1, 0, 1, 0)),
    ],
)
def test_an_item_that_is_too_short_is_described(log_probs, targets, lengths, expected):
    error = error_of(torch_ctc_align.forced_align, log_probs, torch.tensor(targets), *lengths)
    assert type(error) is AlignmentError
    assert (error.item, error.frames, error.labels, error.repeats) == expected
    assert all(type(x) is int for x in (error.item, error.frames, error.labels, error.repeats))
    assert len(error.args) == 1
    assert error.args[0].startswith("targets length is too long for CTC")
    assert str(error) == error.args[0]


def test_an_item_whose_paths_are_all_blocked_is_described():
    """It has frames enough, and no phrase of torchaudio's, which aligns it all the same."""
    log_probs = torch.zeros(2, 6, 4)
    log_probs[1, 3] = -torch.inf
    error = error_of(torch_ctc_align.forced_align, log_probs, torch.tensor([[1, 2, 2], [3, 3, 1]]), None, [3, 2])
    assert (error.item, error.frames, error.labels, error.repeats) == (1, 6, 2, 1)
    assert str(error).startswith("forced_align: item 1 has no path of finite score")


@pytest.mark.parametrize("name", [*FUNCTIONS, "ForcedAligner"])
def test_a_wrong_argument_has_no_item(name):
    function = ForcedAligner() if name == "ForcedAligner" else getattr(torch_ctc_align, name)
    for arguments in (
        bad_label(name),
        arguments_of(name, torch.zeros(2, 5, 4, 1)),
        arguments_of(name, torch.zeros(2, 5, 4, dtype=torch.int32)),
        arguments_of(name, torch.zeros(3, 5, 4)),
    ):
        error = error_of(function, *arguments)
        assert type(error) is AlignmentError
        assert (error.item, error.frames, error.labels, error.repeats) == (None,) * 4


def test_helpers_raise_it_too():
    paths = torch.zeros(2, 5, dtype=torch.int64)
    for function, *arguments in (
        (torch_ctc_align.token_indices, paths[0], paths),
        (torch_ctc_align.token_spans, paths, paths[0], paths),
        (torch_ctc_align.min_frames, paths[0]),
        (torch_ctc_align.min_frames, paths, [1]),
        (torch_ctc_align.min_frames, paths, [1.0, 2.0]),
        (torch_ctc_align.merge_tokens, paths, paths),
    ):
        assert type(error_of(function, *arguments)) is AlignmentError


def test_it_goes_to_other_processes_and_back():
    """As a worker of a pool sends it: the attributes come along, not the message alone."""
    error = error_of(torch_ctc_align.forced_align, torch.zeros(1, 2, 4), torch.tensor([[1, 1, 2]]))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        twin = pickle.loads(pickle.dumps(error, protocol))
        assert type(twin) is AlignmentError
        assert twin.args == error.args
        assert (twin.item, twin.frames, twin.labels, twin.repeats) == (0, 2, 3, 1)
    assert copy.copy(error).frames == 2
    assert AlignmentError("a sentence").item is None


def test_what_torch_raised_is_not_shown():
    """The user sees one sentence, not two tracebacks, the first of them about the kernel."""
    error = error_of(torch_ctc_align.forced_align, *bad_label("forced_align"))
    assert error.__cause__ is None
    assert error.__suppress_context__


# The same kinds on every torch


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("inference", [False, True], ids=["", "inference"])
def test_kinds_of_a_function(name, inference):
    function = getattr(torch_ctc_align, name)
    phrase = "targets values must be less than the CTC dimension. " if name == "forced_align" else ""
    with torch.inference_mode(inference):
        error = error_of(function, *bad_label(name))
        assert (type(error), str(error)) == (AlignmentError, f"{phrase}{name}: {BAD_LABEL}")
        error = error_of(function, *without_memory(name))
    assert type(error) is MemoryError
    assert str(error).startswith(f"{name}: no memory for a tensor of shape (1, {TOO_MANY_FRAMES}")


@pytest.mark.parametrize("name", [*FUNCTIONS, "posteriors_backward"])
@pytest.mark.parametrize("mode", ["plain", "no_grad", "requires_grad"])
def test_kinds_of_an_operator(name, mode):
    """Whether somebody differentiates or not."""
    operator = getattr(operators, name)
    with torch.set_grad_enabled(mode != "no_grad"):
        for arguments, kind in ((bad_label(name), ValueError), (without_memory(name), MemoryError)):
            if mode == "requires_grad":
                arguments = [x.requires_grad_() if x.is_floating_point() else x for x in arguments]
            error = error_of(operator, *arguments)
            assert type(error) is kind
            assert str(error).startswith(f"{name}: {BAD_LABEL if kind is ValueError else 'no memory for a tensor'}")


@pytest.mark.parametrize("name", [*FUNCTIONS, "posteriors_backward"])
def test_kinds_of_an_operator_in_inference_mode(name):
    """There torch decides the type; the text is the same."""
    as_ever = TorchVersion(torch.__version__) < (2, 15)
    operator = getattr(operators, name)
    for arguments, kind in ((bad_label(name), ValueError), (without_memory(name), MemoryError)):
        expected = error_of(operator, *arguments)
        with torch.inference_mode():
            error = error_of(operator, *arguments)
        assert type(error) is (kind if as_ever else RuntimeError)
        assert str(error) == str(expected)


@pytest.mark.parametrize("name", ["posteriors", "class_posteriors", "span_posteriors"])
def test_kinds_of_a_backward_pass(name):
    """The results fit, and their gradient, of as many classes as no memory holds, does not."""
    if name == "class_posteriors":  # its results are of the size of the gradient; the second derivative is not
        with pytest.raises(MemoryError, match="posteriors_backward: no memory for a tensor of shape"):
            operators.posteriors_backward(*without_memory("posteriors_backward"))
        return
    log_probs = torch.zeros(1, 1, 1, requires_grad=True)
    arguments = arguments_of(name, log_probs.expand(1, 3, TOO_MANY_FRAMES), torch.tensor([[1]]))
    if name == "span_posteriors":
        arguments[3] = torch.tensor([[2]])
    results = getattr(torch_ctc_align, name)(*arguments)
    for result, operator in zip(results, ("posteriors_backward", "class_posteriors"), strict=True):
        error = error_of(lambda result=result: result.sum().backward(retain_graph=True))
        assert type(error) is MemoryError
        assert str(error) == f"{operator}: no memory for a tensor of shape (1, 3, {TOO_MANY_FRAMES})"


# What is not a refusal


def test_a_failure_of_cuda_is_not_taken_for_a_refusal():
    """Code that skips items that cannot be aligned must not skip a broken device."""
    failed = RuntimeError("forced_align: CUDA failed in launching the sweep: an illegal memory access was encountered")
    raised = explain("forced_align", failed, *arguments_of("forced_align"), None, 0)
    assert raised is failed


def test_an_interrupt_without_an_exception_stays_what_it_is():
    """Another thread has taken it, say."""
    interrupted = RuntimeError("forced_align: interrupted")
    assert as_raised(interrupted) is interrupted
    assert explain("forced_align", interrupted, *arguments_of("forced_align"), None, 0) is interrupted


def test_kinds_in_a_compiled_graph():
    compiled = torch.compile(lambda *x: operators.forced_align(*x), backend="aot_eager", fullgraph=True)
    assert torch.equal(
        compiled(*arguments_of("forced_align"))[0], operators.forced_align(*arguments_of("forced_align"))[0]
    )
    error = error_of(compiled, *bad_label("forced_align"))
    assert isinstance(error, ValueError | RuntimeError)
    assert str(error).startswith(f"forced_align: {BAD_LABEL}")
