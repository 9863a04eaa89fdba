"""The package as a whole: where its names are found, and where it touches private names of torch."""

import ast
import pickle
from pathlib import Path

import pytest

import torch_ctc_align
from torch_ctc_align import functional

SOURCES = sorted(Path(torch_ctc_align.__file__).parent.glob("*.py"))
SEAM = "_torch_seam.py"


def private_names_of_torch(source):
    """Private attributes and imports that are reached from the name ``torch``, as "torch._C._functorch"."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            dotted = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names if alias.name.partition(".")[0] == "torch"]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
            value = node.value
            while isinstance(value, ast.Attribute):
                names.append(value.attr)
                value = value.value
            root = value.id if isinstance(value, ast.Name) else ""
            dotted = [".".join([root, *names[::-1]])] if root in ("torch", "forward_ad") else []
        else:
            continue
        yield from (name for name in dotted if any(part.startswith("_") for part in name.split(".")))


def test_the_search_finds_private_names():
    found = set(private_names_of_torch((SOURCES[0].parent / SEAM).read_text(encoding="utf-8")))
    assert "torch._C._AutoDispatchBelowAutograd" in found
    assert "torch._functorch.utils.enable_single_level_autograd_function" in found
    assert "torch.utils._pytree" in found
    assert "forward_ad._current_level" in found


@pytest.mark.parametrize("source", [path for path in SOURCES if path.name != SEAM], ids=lambda path: path.name)
def test_private_names_of_torch_are_in_the_seam(source):
    assert set(private_names_of_torch(source.read_text(encoding="utf-8"))) <= {"torch.__file__", "torch.__version__"}


@pytest.mark.parametrize("name", ["TokenSpan", "TokenSpans", "merge_tokens", "token_indices", "token_spans"])
def test_names_that_moved_are_still_found_where_they_were(name):
    assert getattr(functional, name) is getattr(torch_ctc_align, name)
    assert torch_ctc_align.aligner.token_durations is torch_ctc_align.token_durations


def test_spans_pickled_earlier_load():
    """Pickled when the class was in functional.py, at protocol 0, which is readable."""
    old = b"""ccopy_reg\n_reconstructor\n(ctorch_ctc_align.functional\nTokenSpan\nc__builtin__\nobject\nNtR(dVtoken\nI7
sVstart\nI1\nsVend\nI4\nsVscore\nF-0.5\nsb."""
    assert pickle.loads(old) == torch_ctc_align.TokenSpan(7, 1, 4, -0.5)
