"""TorchScript: the operators compile and travel; the functions and the module say what to call instead."""

import io

import pytest
import torch

import torch_ctc_align
from torch_ctc_align import ForcedAligner

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")  # TorchScript is deprecated

LOG_PROBS = torch.tensor([[[-2.0, -1, -1], [0, 0, -1], [-2, -1, 0]]])
PATHS = torch.tensor([[1, 0, 2]])


class Scripted(torch.nn.Module):
    def forward(
        self, log_probs: torch.Tensor, targets: torch.Tensor, input_lengths: torch.Tensor | None = None, blank: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ops.ctc_align.forced_align(log_probs, targets, input_lengths, None, blank)


def test_the_operator_is_scripted_saved_and_loaded():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(Scripted()), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    paths, scores = loaded(LOG_PROBS, torch.tensor([[1, 2]]))
    assert torch.equal(paths, PATHS)
    assert torch.equal(scores, torch.tensor([[-1.0, 0, 0]]))
    paths, _ = loaded(LOG_PROBS, torch.tensor([[1, 2]]), torch.tensor([2]))
    assert torch.equal(paths, torch.tensor([[1, 2, 0]]))
    # The loaded operator has its gradient, and its errors.
    log_probs = LOG_PROBS.clone().requires_grad_()
    loaded(log_probs, torch.tensor([[1, 2]]))[1].sum().backward()
    assert torch.equal(log_probs.grad, torch.nn.functional.one_hot(PATHS, 3).float())
    with pytest.raises(Exception, match="forced_align: blank must be a class of log_probs"):
        loaded(LOG_PROBS, torch.tensor([[1, 2]]), None, 7)


@pytest.mark.parametrize("name", ["posteriors", "class_posteriors"])
def test_the_soft_operators_are_scripted(name):
    source = f"def total(x, targets):\n    return torch.ops.ctc_align.{name}(x, targets)[1]\n"
    scripted = torch.jit.CompilationUnit(source).total
    assert torch.equal(scripted(LOG_PROBS, PATHS[:, ::2]), getattr(torch_ctc_align, name)(LOG_PROBS, PATHS[:, ::2])[1])


def call_the_function(log_probs: torch.Tensor, targets: torch.Tensor):
    return torch_ctc_align.forced_align(log_probs, targets)


class CallsTheFunction(torch.nn.Module):
    def forward(self, log_probs: torch.Tensor, targets: torch.Tensor):
        return torch_ctc_align.forced_align(log_probs, targets)


@pytest.mark.parametrize("code", [torch_ctc_align.forced_align, call_the_function, CallsTheFunction()])
def test_the_function_names_the_operator(code):
    with pytest.raises(RuntimeError) as raised:
        torch.jit.script(code)
    assert str(raised.value) == (
        "TorchScript error: torch_ctc_align.forced_align: TorchScript cannot compile this function; call "
        "torch.ops.ctc_align.forced_align, which takes lengths as tensors or None (docs/exporting.md)"
    )


@pytest.mark.parametrize(
    "name, instead",
    [
        ("class_posteriors", "call torch.ops.ctc_align.class_posteriors, which"),
        ("merge_tokens", "call it outside of the scripted code"),
        ("token_spans", "call it outside of the scripted code"),
    ],
)
def test_other_functions_say_what_to_do(name, instead):
    with pytest.raises(RuntimeError, match=f"torch_ctc_align.{name}: TorchScript cannot compile.*; {instead}"):
        torch.jit.script(getattr(torch_ctc_align, name))


@pytest.mark.parametrize("module", [ForcedAligner(), torch.nn.Sequential(ForcedAligner())], ids=["alone", "inside"])
def test_the_module_names_the_operator(module):
    with pytest.raises(
        NotImplementedError, match=r"ForcedAligner: TorchScript cannot compile this module; call torch\.ops"
    ):
        torch.jit.script(module)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_module_is_traced():
    targets = torch.tensor([[1, 2]])
    traced = torch.jit.trace(ForcedAligner(), (LOG_PROBS, targets))
    longer = torch.cat([LOG_PROBS, LOG_PROBS], 1)
    expected = ForcedAligner()(longer, targets)
    found = traced(longer, targets)
    assert torch.equal(found[0], expected.paths)
    assert torch.equal(found[2][1], expected.spans.ends)
