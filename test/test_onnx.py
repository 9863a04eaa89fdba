"""ONNX has no such operator; its export fails and says what to export instead."""

import importlib.util

import pytest
import torch

import torch_ctc_align
from torch_ctc_align import AlignmentWarning, ForcedAligner

EXPECTED = "ONNX has no such operator. Export the model up to log_probs and align what it returns with torch_ctc_align"


@pytest.mark.parametrize("name", ["forced_align", "posteriors", "class_posteriors", "span_posteriors"])
def test_tracing_for_onnx_warns(monkeypatch, recwarn, name):
    log_probs, targets = torch.empty(2, 6, 4, device="meta"), torch.empty(2, 3, dtype=torch.int64, device="meta")
    borders = (targets, targets) if name == "span_posteriors" else ()
    operator = getattr(torch.ops.ctc_align, name)
    operator(log_probs, targets, *borders)
    assert not recwarn.list
    monkeypatch.setattr("torch.onnx.is_in_onnx_export", lambda: True)
    with pytest.warns(AlignmentWarning, match=f"^{name}: {EXPECTED}"):
        operator(log_probs, targets, *borders)


class Function(torch.nn.Module):
    def forward(self, log_probs, targets):
        return torch_ctc_align.forced_align(log_probs, targets, strict=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", [Function(), ForcedAligner()], ids=["function", "module"])
def test_export_says_what_to_export(missing, module, tmp_path):
    if not importlib.util.find_spec("onnxscript"):
        missing("onnxscript", "onnxscript is not installed; torch.onnx.export needs it")
    arguments = torch.zeros(2, 6, 4).log_softmax(-1), torch.tensor([[1, 2], [2, 1]])
    with (
        pytest.warns(AlignmentWarning, match=f"^forced_align: {EXPECTED}"),
        pytest.raises(Exception, match="forced_align"),
    ):
        torch.onnx.export(module, arguments, tmp_path / "aligner.onnx", dynamo=True)
