"""install_in_torchaudio: what it replaces, what it keeps, and that undoing leaves nothing behind.

Most of it needs torchaudio and runs in the environment of `make test-clients`; what a process without torchaudio sees
is tested everywhere, and so are torchaudio's refusals, which our functions make in the same words.
"""

import doctest
import pickle
import re
import sys
import threading
import types

import pytest
import torch

import torch_ctc_align
from torch_ctc_align import AlignmentError, install_in_torchaudio

OPERATOR = "torchaudio::forced_align"


@pytest.fixture
def without_torchaudio(monkeypatch):
    """Whatever this process has imported of torchaudio is out of sight until the end of the test."""
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def case(random_case):
    """The arguments of torchaudio's function: one item, no ties."""
    log_probs, targets = random_case(1, 40, 12, 6)
    return log_probs, targets, torch.tensor([40]), torch.tensor([12]), 0


def not_contiguous(log_probs):
    """The same values; torchaudio's kernel refuses them, and ours does not: it shows which of the two has run."""
    return log_probs.transpose(1, 2).contiguous().transpose(1, 2)


def state(torchaudio):
    """All that an installation may change."""
    held = [
        (name, attribute)
        for name, module in list(sys.modules.items())
        for attribute, value in list(getattr(module, "__dict__", {}).items())
        if value is torchaudio.functional.forced_align or value is torchaudio.functional.merge_tokens
    ]
    functions = torchaudio.functional.forced_align, torchaudio.functional.merge_tokens, torchaudio.functional.TokenSpan
    return held, functions, torch._C._dispatch_dump(OPERATOR)


# Where torchaudio is not there


def test_importing_us_does_not_import_torchaudio(fresh_python):
    assert fresh_python("import sys, torch_ctc_align; print('torchaudio' in sys.modules)") == "False\n"


def test_refuses_where_torchaudio_is_not_installed(without_torchaudio, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", None)  # makes its import fail
    with pytest.raises(ImportError) as caught:
        install_in_torchaudio()
    assert str(caught.value) == "install_in_torchaudio: torchaudio is not installed, there is nothing to replace"


@pytest.mark.parametrize(
    "init, functional, message",
    [
        ("raise OSError('libx.so: no such file')", "", "torchaudio cannot be loaded: libx.so: no such file"),
        (
            "import a_module_that_is_not_there",
            "",
            "torchaudio cannot be loaded: No module named 'a_module_that_is_not_there'",
        ),
        ("raise RuntimeError('another CUDA')", "", "torchaudio cannot be loaded: another CUDA"),
        (
            "__version__ = '2.0.2'",
            "def merge_tokens(): pass",
            "torchaudio must have forced_align and merge_tokens, expected 2.1 or newer, found 2.0.2",
        ),
    ],
    ids=["library", "dependency", "version", "old"],
)
def test_refuses_a_torchaudio_that_does_not_work(without_torchaudio, monkeypatch, tmp_path, init, functional, message):
    package = tmp_path / "torchaudio"
    package.mkdir()
    (package / "__init__.py").write_text(init)
    (package / "functional.py").write_text(functional)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(ImportError) as caught:
            install_in_torchaudio()
    finally:  # before the real modules come back
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
    assert str(caught.value) == f"install_in_torchaudio: {message}"


# What is replaced


def test_functions_are_replaced_where_torchaudio_looks_them_up(torchaudio, case):
    with install_in_torchaudio():
        paths, scores = torchaudio.functional.forced_align(not_contiguous(case[0]), *case[1:])
    expected = torch_ctc_align.forced_align(*case)
    assert torch.equal(paths, expected[0])
    assert torch.equal(scores, expected[1])


@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_batch_of_one_as_in_torchaudio(torchaudio, case, dtype, integer):
    """The emissions of float16 are multiples of 1/8, so that no sum is rounded in either."""
    log_probs, targets, *rest = case
    log_probs = (log_probs.double() * 8).round().div(8).to(dtype) if dtype is torch.float16 else log_probs.to(dtype)
    theirs = torchaudio.functional.forced_align(log_probs, targets.to(integer), *rest)
    with install_in_torchaudio():
        ours = torchaudio.functional.forced_align(log_probs, targets.to(integer), *rest)
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
    if dtype is not torch.float16:  # there ties are many, and theirs are not those of the best path
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    assert ours[1].double().sum() >= theirs[1].double().sum()


def test_batches_and_lengths_are_taken_too(torchaudio, random_case):
    log_probs, targets = random_case(3, 20, 5, 6)
    lengths = torch.tensor([20, 15, 12]), torch.tensor([5, 3, 0])
    with install_in_torchaudio():
        paths, scores = torchaudio.functional.forced_align(log_probs, targets, *lengths)
    expected = torch_ctc_align.forced_align(log_probs, targets, *lengths)
    assert torch.equal(paths, expected[0])
    assert torch.equal(scores, expected[1])


def test_modules_that_imported_the_function_earlier_or_meanwhile(torchaudio, case, monkeypatch):
    """A program's own modules, and a notebook's, hold the functions under names of their choice."""
    earlier, meanwhile = types.ModuleType("earlier"), types.ModuleType("meanwhile")
    for module in (earlier, meanwhile):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    exec("from torchaudio.functional import forced_align as align, merge_tokens", earlier.__dict__)
    theirs = earlier.align, earlier.merge_tokens
    own = types.ModuleType("own")
    monkeypatch.setitem(sys.modules, "own", own)
    exec("from torch_ctc_align import forced_align, merge_tokens", own.__dict__)
    with install_in_torchaudio():
        exec("from torchaudio.functional import forced_align as align, merge_tokens", meanwhile.__dict__)
        assert earlier.align is meanwhile.align is torchaudio.functional.forced_align is not theirs[0]
        assert earlier.merge_tokens is meanwhile.merge_tokens is torchaudio.functional.merge_tokens is not theirs[1]
        earlier.align(not_contiguous(case[0]), *case[1:])
    assert (earlier.align, earlier.merge_tokens) == theirs
    assert (meanwhile.align, meanwhile.merge_tokens) == theirs
    assert own.forced_align is torch_ctc_align.forced_align  # not from torchaudio, so it stays
    assert own.merge_tokens is torch_ctc_align.merge_tokens


def test_references_that_no_module_holds_reach_our_kernel(torchaudio, case):
    """A closure keeps torchaudio's own function, which calls its operator. (Which takes contiguous tensors alone.)"""
    held = [torchaudio.functional.forced_align]
    before = held[0](*case)
    with pytest.raises(RuntimeError, match="log_probs must be contiguous"):
        held[0](not_contiguous(case[0]), *case[1:])
    with install_in_torchaudio():
        assert held[0] is not torchaudio.functional.forced_align
        within = held[0](not_contiguous(case[0]), *case[1:])
    with pytest.raises(RuntimeError, match="log_probs must be contiguous"):
        held[0](not_contiguous(case[0]), *case[1:])
    for found, expected in zip(within, before, strict=True):
        assert torch.equal(found, expected)


def test_what_is_no_tensor_is_refused_in_our_words(torchaudio, case):
    with install_in_torchaudio(), pytest.raises(TypeError, match=r"^forced_align: log_probs must be a tensor"):
        torchaudio.functional.forced_align(case[0].tolist(), case[1])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_scripted_programs_reach_our_kernel(torchaudio, case):
    unit = torch.jit.CompilationUnit("""
def align(log_probs: Tensor, targets: Tensor, frames: Tensor, labels: Tensor, blank: int) -> Tensor:
    paths, scores = torch.ops.torchaudio.forced_align(log_probs, targets, frames, labels, blank)
    return paths
""")
    expected = unit.align(*case)
    with install_in_torchaudio():
        assert torch.equal(unit.align(not_contiguous(case[0]), *case[1:]), expected)
    with pytest.raises(RuntimeError, match="log_probs must be contiguous"):
        unit.align(not_contiguous(case[0]), *case[1:])


def test_operator_returns_what_torchaudios_does(torchaudio, case):
    before = torch.ops.torchaudio.forced_align(*case)
    with install_in_torchaudio():
        within = torch.ops.torchaudio.forced_align(*case)
    for found, expected in zip(within, before, strict=True):
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype
        assert found.stride() == expected.stride()
        assert (found.data_ptr() == case[0].data_ptr()) == (expected.data_ptr() == case[0].data_ptr())


@pytest.mark.filterwarnings("ignore:torchaudio..forced_align. an autograd kernel was not registered")  # with theirs too
def test_gradients_through_either_function(torchaudio, case):
    held = [torchaudio.functional.forced_align]
    gradients = []

    def gradient(align):
        log_probs = case[0].clone().requires_grad_()
        align(log_probs, *case[1:])[1].sum().backward()
        gradients.append(log_probs.grad)

    gradient(held[0])
    with install_in_torchaudio():
        gradient(held[0])
        gradient(torchaudio.functional.forced_align)
    assert gradients[0].sum() == 40  # one entry of 1 a frame
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_operator_keeps_to_one_item_of_full_length(torchaudio, case):
    """torchaudio's function gathers the scores along the path of the first item, so that others must be refused."""
    log_probs, targets, frames, labels, blank = case
    operator = torch.ops.torchaudio.forced_align
    two = log_probs.expand(2, -1, -1), targets.expand(2, -1)
    refused = [
        (r"^The batch dimension for log_probs must be 1", (*two, frames, labels, blank)),
        (
            r"^The batch dimension for log_probs must be 1",
            (two[0], targets, frames, labels, blank),
        ),
        (r"^The batch dimension for targets must be 1", (log_probs, two[1], frames, labels, blank)),
        (r"^input length mismatch", (log_probs, targets, frames - 1, labels, blank)),
        (r"^target length mismatch", (log_probs, targets, frames, labels - 1, blank)),
    ]
    for message, arguments in refused:
        contiguous = [x.contiguous() if isinstance(x, torch.Tensor) else x for x in arguments]
        with pytest.raises(RuntimeError, match=message[1:]):  # theirs puts the path of a file first
            operator(*contiguous)
        with install_in_torchaudio(), pytest.raises(AlignmentError, match=message):
            operator(*arguments)


def test_spans_stay_those_of_torchaudio(torchaudio, case):
    paths, scores = torchaudio.functional.forced_align(*case)
    theirs = torchaudio.functional.merge_tokens(paths[0], scores[0])
    with install_in_torchaudio():
        ours = torchaudio.functional.merge_tokens(paths[0], scores[0])
        assert torchaudio.functional.TokenSpan is type(theirs[0])
    assert [type(span) for span in ours] == [type(theirs[0])] * 12
    assert [(s.token, s.start, s.end, len(s)) for s in ours] == [(s.token, s.start, s.end, len(s)) for s in theirs]
    assert [s.score for s in ours] == pytest.approx([s.score for s in theirs], rel=1e-6)  # sums of up to 40 float32


def test_aligner_of_a_pipeline(torchaudio, case):
    aligner = torchaudio.pipelines.MMS_FA.get_aligner()
    tokens = [case[1][0, :5].tolist(), case[1][0, 5:].tolist()]
    theirs = aligner(case[0][0], tokens)
    with install_in_torchaudio():
        ours = aligner(not_contiguous(case[0])[0], tokens)
    assert [[(s.token, s.start, s.end) for s in word] for word in ours] == [
        [(s.token, s.start, s.end) for s in word] for word in theirs
    ]
    with pytest.raises(RuntimeError, match="contiguous"):
        aligner(not_contiguous(case[0])[0], tokens)


@pytest.mark.parametrize("has_library", [False, True])
def test_cuda_tensors_go_to_torchaudio_where_we_have_no_cuda_library(torchaudio, case, monkeypatch, has_library):
    """Stand-ins for a tensor on a GPU, and for torchaudio's function. No kernel for CUDA is replaced either."""
    before = torch._C._dispatch_dump(OPERATOR)
    monkeypatch.setattr(torchaudio.functional, "forced_align", lambda *arguments: "theirs")
    monkeypatch.setattr(torch_ctc_align.functional, "forced_align", lambda *arguments: "ours")
    monkeypatch.setattr(torch_ctc_align.drop_in, "HAS_CUDA_LIBRARY", has_library)
    with install_in_torchaudio():
        within = torch._C._dispatch_dump(OPERATOR)
        found = torchaudio.functional.forced_align(types.SimpleNamespace(is_cuda=True), None)
        assert torchaudio.functional.forced_align(types.SimpleNamespace(is_cuda=False), None) == "ours"
    assert found == ("ours" if has_library else "theirs")
    assert ("CUDA (inactive)" in within) == has_library
    assert torch._C._dispatch_dump(OPERATOR) == before


def test_docstring_example(torchaudio):
    result = doctest.testmod(torch_ctc_align.drop_in, extraglobs={"torch": torch})
    assert result.attempted == 5
    assert result.failed == 0


def test_installed_functions_can_be_pickled(torchaudio):
    """They are found under torchaudio's names: a worker process gets those that it has there."""
    with install_in_torchaudio():
        functions = torchaudio.functional.forced_align, torchaudio.functional.merge_tokens
        assert pickle.loads(pickle.dumps(functions)) == functions
        pickled = pickle.dumps(functions)
    assert pickle.loads(pickled) == (torchaudio.functional.forced_align, torchaudio.functional.merge_tokens)


# How it ends


def test_nothing_is_left_behind(torchaudio):
    before = state(torchaudio)
    with install_in_torchaudio():
        within = state(torchaudio)
    assert state(torchaudio) == before
    assert within[0] == before[0]  # in the same places
    assert within[1][:2] != before[1][:2]
    assert within[2] != before[2]


def test_an_exception_ends_it_too(torchaudio):
    before = state(torchaudio)
    with pytest.raises(KeyError), install_in_torchaudio():
        raise KeyError
    assert state(torchaudio) == before


def test_nested(torchaudio):
    before = state(torchaudio)
    with install_in_torchaudio():
        outer = state(torchaudio)
        with install_in_torchaudio():
            assert state(torchaudio) == outer
        assert state(torchaudio) == outer
    assert state(torchaudio) == before


def test_blocks_of_two_threads_that_overlap(torchaudio):
    before = state(torchaudio)
    first, second = install_in_torchaudio(), install_in_torchaudio()
    first.__enter__()
    second.__enter__()
    within = state(torchaudio)
    first.__exit__(None, None, None)
    assert state(torchaudio) == within
    second.__exit__(None, None, None)
    assert state(torchaudio) == before


def test_a_plain_call_lasts_until_it_is_undone(torchaudio):
    """A notebook runs a cell twice, and has lost the result of the first run."""
    before = state(torchaudio)
    install_in_torchaudio()
    installation = install_in_torchaudio()
    within = state(torchaudio)
    assert within != before
    with install_in_torchaudio():
        pass
    assert state(torchaudio) == within
    installation.undo()
    assert state(torchaudio) == before
    installation.undo()
    assert state(torchaudio) == before
    with installation:
        assert state(torchaudio)[1] != before[1]
    assert state(torchaudio) == before


def test_undo_within_a_block(torchaudio):
    before = state(torchaudio)
    with install_in_torchaudio() as installation:
        installation.undo()
        assert state(torchaudio) == before
    assert state(torchaudio) == before


def test_many_threads(torchaudio, case):
    """Blocks come and go in eight threads; in each of them ours is there."""
    before = state(torchaudio)
    errors = []

    def use():
        try:
            for _ in range(5):
                with install_in_torchaudio():
                    torchaudio.functional.forced_align(not_contiguous(case[0]), *case[1:])
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=use) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == []
    assert state(torchaudio) == before


def test_installing_warns_of_nothing(torchaudio, fresh_python):
    """PyTorch says once a process that a kernel is replaced."""
    code = """
import warnings
import torchaudio, torch_ctc_align
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    torch_ctc_align.install_in_torchaudio()
print([str(warning.message) for warning in caught])
"""
    assert fresh_python(code) == "[]\n"


# What torchaudio refuses, in its words. Each is a type and a phrase that a caller may look for.

REFUSED = {
    "too short": (RuntimeError, "targets length is too long for CTC", {"targets": [[1, 1, 2, 3, 4]]}),
    "blank": (ValueError, "targets Tensor shouldn't contain blank index", {"targets": [[1, 0]]}),
    "class": (ValueError, "targets values must be less than the CTC dimension", {"targets": [[1, 6]]}),
    "dtype of log_probs": (
        RuntimeError,
        "log_probs must be float64, float32 or float16 (half) type",
        {"log_probs": torch.zeros(1, 5, 6, dtype=torch.int32)},
    ),
    "dtype of targets": (RuntimeError, "targets must be int32 or int64 type", {"targets": torch.tensor([[1.0, 2.0]])}),
    "batch of log_probs": (
        RuntimeError,
        "The batch dimension for log_probs must be 1 at the current version.",
        {"log_probs": torch.zeros(3, 5, 6)},
    ),
    "batch of targets": (
        RuntimeError,
        "The batch dimension for targets must be 1 at the current version.",
        {"targets": [[1, 2], [3, 4]]},
    ),
    "shape of input_lengths": (
        RuntimeError,
        "input_lengths must be 1-D (batch_size,)",
        {"input_lengths": torch.full((1, 2), 5)},
    ),
    "shape of target_lengths": (
        RuntimeError,
        "target_lengths must be 1-D (batch_size,)",
        {"target_lengths": torch.full((1, 2), 2)},
    ),
    "input_lengths": (RuntimeError, "input length mismatch", {"input_lengths": torch.tensor([6])}),
    "target_lengths": (RuntimeError, "target length mismatch", {"target_lengths": torch.tensor([3])}),
    "blank out of range": (RuntimeError, "blank must be within [0, num classes)", {"blank": 6}),
}


def arguments_of(changed):
    changed = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in changed.items()}
    log_probs = torch.zeros(1, 5, 6).log_softmax(-1)
    return {"log_probs": log_probs, "targets": torch.tensor([[1, 2]]), "blank": 0} | changed


@pytest.mark.parametrize("kind, phrase, changed", REFUSED.values(), ids=REFUSED)
def test_refuses_in_torchaudios_words(kind, phrase, changed):
    """The phrase comes first: some callers ask for startswith, some for the phrase anywhere."""
    with pytest.raises(kind) as caught:
        torch_ctc_align.forced_align(**arguments_of(changed))
    assert str(caught.value).startswith(phrase)
    assert isinstance(caught.value, AlignmentError)


@pytest.mark.parametrize("kind, phrase, changed", REFUSED.values(), ids=REFUSED)
def test_those_words_are_torchaudios(torchaudio, kind, phrase, changed):
    """Within an installation torchaudio's own function, with our kernel below, says the same."""
    held = [torchaudio.functional.forced_align]
    with pytest.raises(kind, match=re.escape(phrase)):
        held[0](**arguments_of(changed))
    with install_in_torchaudio(), pytest.raises(kind, match=re.escape(phrase)):
        held[0](**arguments_of(changed))


@pytest.mark.parametrize(
    "kind, phrase, changed",
    [
        # labels before everything else
        (ValueError, "targets Tensor shouldn't contain", {"targets": [[0, 9]], "target_lengths": torch.tensor([7])}),
        (ValueError, "targets values must be less", {"targets": [[9]], "blank": 6, "input_lengths": torch.tensor([9])}),
        # then dtypes, then shapes, then the blank, then lengths
        (RuntimeError, "targets must be int32", {"targets": torch.tensor([[1.0]]), "blank": 6}),
        (RuntimeError, "input_lengths must be 1-D", {"input_lengths": torch.tensor([[9]]), "blank": 6}),
        (RuntimeError, "blank must be within", {"blank": 6, "input_lengths": torch.tensor([9])}),
        (
            RuntimeError,
            "input length mismatch",
            {"input_lengths": torch.tensor([9]), "target_lengths": torch.tensor([9]), "targets": [[1, 2, 3, 4, 5, 5]]},
        ),
    ],
)
def test_of_several_mistakes_torchaudios_first_is_named(kind, phrase, changed):
    with pytest.raises(kind) as caught:
        torch_ctc_align.forced_align(**arguments_of(changed))
    assert str(caught.value).startswith(phrase)
