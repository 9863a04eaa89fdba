"""Compiled and exported graphs: one graph, any size, forward and backward, from Python and from C++."""

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SEED
from test_operator import assert_same, make_arguments
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code
from torch.export import Dim
from torch.nn import functional
from torch.utils._pytree import tree_leaves

import torch_ctc_align
from torch_ctc_align import ForcedAligner, class_posteriors

ROOT = Path(__file__).parents[1]
INF = math.inf
forced_align = torch.ops.ctc_align.forced_align


def align_and_span(logits, targets, input_lengths, target_lengths):
    """A model's end: everything from logits to the times of tokens, in one graph."""
    log_probs = logits.log_softmax(-1)
    paths, scores = forced_align(log_probs, targets, input_lengths, target_lengths, 0)
    return paths, scores, *torch_ctc_align.token_spans(paths, scores, targets, 0)


SIZES = [(3, 20, 6, 7), (4, 33, 9, 12), (5, 64, 11, 40), (3, 9, 6, 8)]


@pytest.fixture
def cxx(missing):
    if not shutil.which(os.environ.get("CXX", "c++")):
        missing("c++", "there is no C++ compiler")


@pytest.fixture(params=["aot_eager", "inductor"])
def compile_fully(request):
    """torch.compile into one graph of any size."""
    if request.param == "inductor":
        request.getfixturevalue("cxx")
    torch.compiler.reset()
    counters.clear()
    yield lambda function: torch.compile(function, backend=request.param, fullgraph=True, dynamic=True)
    torch.compiler.reset()


def assert_compiled_once():
    """Dynamo has seen one graph, and AOTAutograd too, with its backward; nothing broke in two."""
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["aot_autograd"]["ok"] == 1
    assert not counters["graph_break"]


# Compile


def test_compiles_to_one_graph_of_any_size(random_case, compile_fully):
    compiled = compile_fully(align_and_span)
    for i, sizes in enumerate(SIZES):
        arguments = make_arguments(random_case, *sizes)
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            found = compiled(*arguments)
        expected = align_and_span(*arguments)
        # log_softmax may be compiled to other roundings than eager's, and the spans' means too.
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1])
        assert_same(found[2:4], expected[2:4])
        torch.testing.assert_close(found[4], expected[4])
    assert_compiled_once()


def test_a_second_graph_is_counted(random_case, compile_fully):
    """Guards assert_compiled_once: another dtype is another graph."""
    compiled = compile_fully(forced_align)
    for dtype in (torch.float32, torch.float64):
        compiled(*make_arguments(random_case, dtype=dtype))
    with pytest.raises(AssertionError):
        assert_compiled_once()


@pytest.mark.parametrize("count", [2, 4], ids=["all", "lengths"])
def test_the_function_compiles_too(random_case, compile_fully, count):
    """With strict=False. Raising for marked items needs their values, which a graph does not have."""
    arguments = make_arguments(random_case)[:count]
    found = compile_fully(lambda *x: torch_ctc_align.forced_align(*x, strict=False))(*arguments)
    assert_same(found, forced_align(*arguments))


def test_compiles_in_inference_mode(random_case, compile_fully):
    arguments = make_arguments(random_case)
    with torch.inference_mode():
        found = compile_fully(lambda *x: forced_align(*x))(*arguments)
        assert_same(found, forced_align(*arguments))


def test_compiled_gradient(random_case, compile_fully):
    """In place of test_aot_dispatch_dynamic: compiled and eager gradients agree, for all sizes of one graph."""

    def loss(logits, targets, input_lengths, target_lengths):
        log_probs = logits.sin()
        _, scores = forced_align(log_probs, targets, input_lengths, target_lengths)
        return scores.clamp(min=-100).square().sum()

    compiled = compile_fully(loss)
    for i, sizes in enumerate(SIZES):
        logits, *rest = make_arguments(random_case, *sizes)
        logits = logits.clamp(min=-9)  # sin(-inf) is NaN
        gradients = []
        for function in (loss, compiled):
            leaf = logits.clone().requires_grad_()
            with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
                function(leaf, *rest).backward()
            gradients.append(leaf.grad)
        torch.testing.assert_close(*gradients)
        assert gradients[0].any()
    assert_compiled_once()


class AcousticModel(torch.nn.Module):
    """Features (B, T, 12) to log-probabilities (B, T, 7): a convolution, then attention."""

    def __init__(self):
        super().__init__()
        self.front = torch.nn.Conv1d(12, 16, 3, padding=1)
        self.head = torch.nn.Linear(16, 7)

    def forward(self, features):
        hidden = self.front(features.transpose(1, 2)).relu().transpose(1, 2)
        attended = functional.scaled_dot_product_attention(hidden, hidden, hidden)
        return self.head(hidden + attended).log_softmax(-1)


def make_training_batch(generator, B, T, L):
    """Item 0 has fewer frames than labels, so that it is marked."""
    targets = torch.randint(1, 7, (B, L), generator=generator)
    input_lengths, target_lengths = torch.arange(T - B + 1, T + 1), torch.arange(L - B + 1, L + 1)
    input_lengths[0] = target_lengths[0] - 1
    return torch.randn(B, T, 12, generator=generator), targets, input_lengths, target_lengths


@pytest.mark.slow
def test_a_training_step_compiles(generator, cxx):
    """Model, alignment, its loss and a CTC loss are one graph, whatever the sizes, and C++ forward and backward.

    The CTC loss is ours. torch's own cannot be in a graph, but says what the value should be.
    """
    torch.compiler.reset()
    counters.clear()
    torch.manual_seed(SEED)
    model, aligner = AcousticModel(), ForcedAligner()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def model_and_alignment(features, targets, input_lengths, target_lengths):
        log_probs = model(features)
        alignment = aligner(log_probs, targets, input_lengths, target_lengths)
        best = torch.where(alignment.aligned, alignment.path_scores, 0).sum()
        _, log_likelihoods = class_posteriors(log_probs, targets, input_lengths, target_lengths)
        ctc = torch.where(log_likelihoods.isfinite(), log_likelihoods / target_lengths, 0).sum()
        return log_probs, -best / alignment.aligned.sum().clamp(min=1), -ctc / len(targets)

    def gradients(function, features, targets, input_lengths, target_lengths):
        optimizer.zero_grad()
        log_probs, alignment_loss, ctc_loss = function(features, targets, input_lengths, target_lengths)
        torch.testing.assert_close(
            ctc_loss,
            functional.ctc_loss(log_probs.transpose(0, 1), targets, input_lengths, target_lengths, zero_infinity=True),
        )
        loss = ctc_loss + alignment_loss
        loss.backward()
        return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]

    compiled = torch.compile(model_and_alignment, fullgraph=True, dynamic=True)
    first = make_training_batch(generator, 3, 20, 6)
    with torch._inductor.config.patch(force_disable_caches=True):
        found, code = run_and_get_code(gradients, compiled, *first)
    forward, backward = code
    assert "cpp_fused" in forward
    assert "cpp_fused" in backward
    assert "torch.ops.ctc_align.forced_align.default" in forward
    assert "forced_align" not in re.sub(r"#.*", "", backward)  # the gradient needs no second alignment
    for step, sizes in enumerate([(3, 20, 6), (4, 33, 9), (5, 64, 11), (3, 9, 4)]):
        batch = make_training_batch(generator, *sizes) if step else first
        with torch.compiler.set_stance("fail_on_recompile"):
            found = gradients(compiled, *batch)
        expected = gradients(model_and_alignment, *batch)
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y)
        assert all(gradient.isfinite().all() for gradient in found)
        optimizer.step()
    assert_compiled_once()


def test_transforms_compile(random_case, compile_fully):
    """Per-item gradients, vmap(grad(...)), in one graph."""
    log_probs, *rest = (x.unflatten(0, (2, 2)) for x in make_arguments(random_case, B=4))
    log_probs = log_probs.clamp(min=-9)

    def gradients(*arguments):
        return torch.vmap(torch.func.grad(lambda *x: forced_align(*x)[1].square().sum()))(*arguments)

    arguments = log_probs, *rest
    torch.testing.assert_close(compile_fully(gradients)(*arguments), gradients(*arguments))
    assert gradients(*arguments).flatten(1).any(1).all()


# What does not fit fails while a graph is made, and says so in the operator's words

MISFITS = {
    "no_batch": ((9, 3), (2, 3), torch.int64, 0, "log_probs must have shape (B, T, C), found (9, 3)"),
    "half_targets": ((2, 9, 3), (2, 3), torch.float16, 0, "targets must be int32 or int64, found float16"),
    "other_batch": (
        *((2, 9, 3), (3, 4), torch.int64, 0),
        "targets must have shape (B, L) with B = 2 as in log_probs, found (3, 4)",
    ),
    "blank": (
        *((2, 9, 3), (2, 4), torch.int64, 3),
        "blank must be a class of log_probs, expected 0 <= blank < C = 3, found 3",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS)
@pytest.mark.parametrize("way", ["eager", "export", "compile", "compile_dynamic"])
@pytest.mark.parametrize("star", [None, "all"])
def test_misfits_fail_at_trace_time(misfit, way, star):
    emission_shape, targets_shape, dtype, blank, message = misfit
    arguments = torch.zeros(emission_shape), torch.ones(targets_shape, dtype=dtype)
    aligner = ForcedAligner(blank, star=star)
    message = f"forced_align: {message}"
    if way == "compile_dynamic":  # there the numbers are symbols
        torch.compiler.reset()
        message = re.sub(r"(?<=[(= ])\d+(?=[,) ])", "SYMBOL", re.sub(r"(?<=, )\d+(?=\))", "SYMBOL", message))
        message = re.escape(message).replace("SYMBOL", r"(s\d+|\d+)")
        with pytest.raises(RuntimeError, match=message):
            torch.compile(aligner, backend="eager", fullgraph=True, dynamic=True)(*arguments)
    elif way == "compile":
        torch.compiler.reset()
        with pytest.raises(RuntimeError, match=re.escape(message)):
            torch.compile(aligner, backend="eager", fullgraph=True, dynamic=False)(*arguments)
    else:
        with pytest.raises(ValueError, match=re.escape(message)):
            torch.export.export(aligner, arguments) if way == "export" else aligner(*arguments)


def test_bad_labels_fail_when_the_graph_runs(compile_fully):
    """No value is looked at while a graph is made; the kernel looks at them."""
    compiled = compile_fully(ForcedAligner())
    compiled(torch.zeros(1, 5, 3), torch.tensor([[1, 2]]))
    for label, message in [(0, "must not be the blank"), (3, "must be a class of log_probs")]:
        with pytest.raises(ValueError, match=rf"forced_align: targets\[0, 1\] {message}"):
            compiled(torch.zeros(1, 5, 3), torch.tensor([[1, label]]))


# torch.fx


class ModelAndAligner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = torch.nn.Linear(4, 5)
        self.aligner = ForcedAligner()

    def forward(self, features, targets, input_lengths=None):
        alignment = self.aligner(self.model(features).log_softmax(-1), targets, input_lengths)
        return alignment.paths, alignment.spans.starts


def test_symbolic_trace_takes_the_module_for_a_leaf(generator):
    model = ModelAndAligner()
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["model", "aligner"]
    features, targets = torch.randn(2, 9, 4, generator=generator), torch.tensor([[1, 2, 1], [2, 1, 4]])
    for lengths in (None, torch.tensor([9, 7])):
        assert_same(traced(features, targets, lengths), model(features, targets, lengths))


def test_symbolic_trace_of_the_operator(generator):
    class Model(torch.nn.Module):
        def forward(self, log_probs, targets):
            return forced_align(log_probs, targets)

    traced = torch.fx.symbolic_trace(Model())
    arguments = torch.randn(2, 9, 4, generator=generator).log_softmax(-1), torch.tensor([[1, 2, 1], [2, 1, 3]])
    assert_same(traced(*arguments), forced_align(*arguments))


# Export


class Aligner(torch.nn.Module):
    """The operator and token_spans, without a class of ours around them."""

    def forward(self, log_probs, targets, input_lengths, target_lengths):
        paths, scores = forced_align(log_probs, targets, input_lengths, target_lengths, blank=2)
        return paths, scores, *torch_ctc_align.token_spans(paths, scores, targets, blank=2)


def make_exact_arguments(B, T, L, C=7, blank=2):
    """Multiples of 1/8, so that every sum is exact and its order does not matter. The last item is marked."""
    generator = torch.Generator().manual_seed(SEED)
    log_probs = torch.randint(-64, 1, (B, T, C), generator=generator) / 8
    log_probs[B - 1, 1] = -INF
    targets = torch.randint(0, C - 1, (B, L), generator=generator)
    targets += targets >= blank
    return log_probs, targets, torch.arange(T - B + 1, T + 1), torch.arange(L - B + 1, L + 1)


def export(aligner, lengths=True):
    B, T, L = Dim("B", max=64), Dim("T", min=2, max=4096), Dim("L", max=2048)
    arguments, shapes = make_exact_arguments(3, 20, 6), ({0: B, 1: T}, {0: B, 1: L}, {0: B}, {0: B})
    count = 4 if lengths else 2
    return torch.export.export(aligner, arguments[:count], dynamic_shapes=shapes[:count])


@pytest.fixture(params=["function", "module", "module_without_lengths"])
def exported(request):
    """(module, its exported program, how many arguments it takes)"""
    if request.param == "function":
        return Aligner(), export(Aligner()), 4
    if request.param == "module":
        return ForcedAligner(2), export(ForcedAligner(2)), 4
    return ForcedAligner(2, "before"), export(ForcedAligner(2, "before"), lengths=False), 2


OTHER_SIZES = [(3, 20, 6), (4, 33, 9), (7, 150, 40)]


def test_exports_with_dynamic_batch_frames_and_labels(exported, tmp_path):
    aligner, program, count = exported
    assert "ctc_align.forced_align" in program.graph_module.code
    torch.export.save(program, tmp_path / "aligner.pt2")
    loaded = torch.export.load(tmp_path / "aligner.pt2")
    for sizes in OTHER_SIZES:
        arguments = make_exact_arguments(*sizes)[:count]
        expected = aligner(*arguments)
        for found in (program.module()(*arguments), loaded.module()(*arguments)):
            assert type(found) is type(expected)
            assert_same(tree_leaves(found), tree_leaves(expected))


def test_a_loaded_program_is_a_module_without_state(exported):
    _, program, _ = exported
    assert not program.state_dict
    assert not program.constants


def test_a_saved_program_loads_elsewhere(fresh_python, tmp_path):
    """In another process, which only imports the package."""
    torch.export.save(export(ForcedAligner(2)), tmp_path / "aligner.pt2")
    arguments = make_exact_arguments(4, 33, 9)
    torch.save(arguments, tmp_path / "arguments.pt")
    printed = fresh_python(
        f"""
import torch, torch_ctc_align
aligner = torch.export.load(r"{tmp_path}/aligner.pt2").module()
alignment = aligner(*torch.load(r"{tmp_path}/arguments.pt"))
print(type(alignment) is torch_ctc_align.Alignment, type(alignment.spans) is torch_ctc_align.TokenSpans)
print(alignment.durations.tolist())
"""
    )
    assert printed.split("\n")[0] == "True True"
    assert printed.split("\n")[1] == str(ForcedAligner(2)(*arguments).durations.tolist())


STARS = {"star": "words", "separator": 1}


def make_star_arguments(B, T, L, W=0):
    """Label 1 separates words and label C = 7 is the star; or, with W, counts of words follow the lengths."""
    log_probs, targets, input_lengths, target_lengths = make_exact_arguments(B, T, L)
    targets = targets.masked_fill(targets == 3, 7)
    if W == 0:
        return log_probs, targets, input_lengths, target_lengths
    counts = torch.zeros(B, W, dtype=torch.int64)
    counts[:, 0], counts[:, 1] = 2, target_lengths - 2
    return log_probs, targets, input_lengths, target_lengths, counts


def export_with_stars(aligner, counts=False):
    B, T, L, W = Dim("B", max=64), Dim("T", min=2, max=4096), Dim("L", max=2048), Dim("W", max=2048)
    arguments = make_star_arguments(3, 20, 6, 4 if counts else 0)
    shapes = {0: B, 1: T}, {0: B, 1: L}, {0: B}, {0: B}, {0: B, 1: W}
    return torch.export.export(aligner, arguments, dynamic_shapes=shapes[: len(arguments)])


@pytest.mark.parametrize("counts", [False, True], ids=["separator", "counts"])
def test_exports_stars_with_dynamic_batch_frames_and_labels(counts, tmp_path):
    aligner = ForcedAligner(2, star="words") if counts else ForcedAligner(2, **STARS)
    torch.export.save(export_with_stars(aligner, counts), tmp_path / "aligner.pt2")
    loaded = torch.export.load(tmp_path / "aligner.pt2").module()
    for i, sizes in enumerate(OTHER_SIZES):
        arguments = make_star_arguments(*sizes, 4 + i if counts else 0)
        found, expected = loaded(*arguments), aligner(*arguments)
        assert isinstance(found, torch_ctc_align.Alignment)
        assert isinstance(found.stars, torch_ctc_align.TokenSpans)
        assert (found.paths == torch_ctc_align.GAP_STAR).any()
        assert_same(tree_leaves(found), tree_leaves(expected))


def test_a_program_without_stars_has_the_outputs_that_it_had():
    assert len(export(ForcedAligner(2)).graph_signature.user_outputs) == 9


def test_symbolic_trace_takes_a_module_with_stars_for_a_leaf():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.aligner = ForcedAligner(2, star="words")

        def forward(self, log_probs, targets, counts):
            return self.aligner(log_probs, targets, tokens_per_word=counts).stars.starts

    log_probs, targets, *_ = make_star_arguments(3, 20, 6)
    counts = torch.tensor([[6, 0], [1, 5], [3, 3]])
    traced = torch.fx.symbolic_trace(Model())
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["aligner"]
    assert_same([traced(log_probs, targets, counts)], [Model()(log_probs, targets, counts)])


# AOTInductor


@pytest.mark.slow
def test_ahead_of_time_inductor_with_stars(cxx, tmp_path):
    aligner = ForcedAligner(2, **STARS)
    path = torch._inductor.aoti_compile_and_package(
        export_with_stars(aligner), package_path=str(tmp_path / "aligner.pt2")
    )
    loaded = torch._inductor.aoti_load_package(path)
    for sizes in OTHER_SIZES:
        arguments = make_star_arguments(*sizes)
        assert_same(tree_leaves(loaded(*arguments)), tree_leaves(aligner(*arguments)))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """ForcedAligner(2), compiled ahead of time."""
    path = tmp_path_factory.mktemp("aoti") / "aligner.pt2"
    return torch._inductor.aoti_compile_and_package(export(ForcedAligner(2)), package_path=str(path))


@pytest.mark.slow
def test_ahead_of_time_inductor(cxx, package):
    """An exported graph, compiled to a shared library, calls the same kernel."""
    loaded = torch._inductor.aoti_load_package(package)
    for sizes in OTHER_SIZES:
        arguments = make_exact_arguments(*sizes)
        found, expected = loaded(*arguments), ForcedAligner(2)(*arguments)
        assert isinstance(found, torch_ctc_align.Alignment)
        assert_same(tree_leaves(found), tree_leaves(expected))


@pytest.mark.slow
def test_errors_of_a_package_keep_their_text(cxx, package):
    """They do not keep their type, as docs/exporting.md says."""
    log_probs, targets, *lengths = make_exact_arguments(*OTHER_SIZES[0])
    targets[0, 1] = 2
    text = r"forced_align: targets\[0, 1\] must not be the blank, expected a label other than 2, found 2"
    with pytest.raises(RuntimeError, match=text) as raised:
        torch._inductor.aoti_load_package(package)(log_probs, targets, *lengths)
    assert not isinstance(raised.value, ValueError)
    with pytest.raises(ValueError, match=text):
        forced_align(log_probs, targets, *lengths, 2)


@pytest.mark.slow
def test_ahead_of_time_inductor_without_python(cxx, package, tmp_path):
    """The C++ program, compiled and run with the commands of docs/exporting.md, finds the same bits."""
    page = (ROOT / "docs/exporting.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    compiling, running = commands.split("\n\n")
    assert "./aoti_align" in running

    def shell(lines):
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # python is the one that runs this
        python_path = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
        environment = os.environ | {"PATH": path, "PYTHONPATH": python_path}
        done = subprocess.run(
            ["sh", "-ec", lines], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shutil.copy(ROOT / "test/csrc/aoti_align.cpp", tmp_path)
    shutil.copy(package, tmp_path / "aligner.pt2")
    shell(compiling)
    linked = subprocess.run(["ldd", tmp_path / "aoti_align"], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu" in linked
    assert "python" not in re.sub(r"=> .*", "", linked)  # names, not where they lie
    for sizes in OTHER_SIZES[1:]:
        arguments = make_exact_arguments(*sizes)
        torch.save(arguments, tmp_path / "arguments.pt")
        printed = shell(running)
        found = torch.load(tmp_path / "results.pt")
        assert_same(found, tree_leaves(ForcedAligner(2)(*arguments)))
        assert printed.splitlines()[0] == f"long int [{sizes[0]}, {sizes[1]}]"
