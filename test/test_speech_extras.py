"""The speech layer imports with torch alone, and a library that is missing is a sentence with the pip command."""

import re
import sys
import types
from pathlib import Path

import pytest

from torch_ctc_align.speech.errors import EXTRAS, SpeechError, require

ROOT = Path(__file__).parents[1]


def extras_of_the_package():
    """Extra -> packages, as pyproject.toml has them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = re.search(r"^\[project\.optional-dependencies\]\n(.*?)^\[", text, re.MULTILINE | re.DOTALL)[1]
    return {
        name: re.findall(r'"([A-Za-z0-9_-]+)', packages)
        for name, packages in re.findall(r"^(\w+) = \[(.*?)\]", table, re.MULTILINE | re.DOTALL)
    }


def test_every_library_is_in_the_extra_that_its_message_names():
    found = extras_of_the_package()
    assert set(found) == {"speech", "corpora", "hf", "media", "picture", "ray", "text"}
    assert {(module, extra) for module, extra in EXTRAS.items()} == {
        (package, extra) for extra, packages in found.items() for package in packages
    }


def test_libraries_of_extras_are_pinned_for_development():
    """Ray is as large as torch, and has an environment of its own: make test-corpora."""
    files = ROOT / "requirements-dev.txt", ROOT / "test" / "requirements-corpora.txt"
    pinned = [set(re.findall(r"^([\w-]+)(?:\[\w+\])?==", file.read_text(), re.MULTILINE)) for file in files]
    assert set(EXTRAS) - {"ray"} <= pinned[0]
    assert {"pyarrow", "ray"} <= pinned[1]


def test_the_layer_imports_with_torch_alone(fresh_python):
    """Nor are the libraries imported before they are needed."""
    code = f"""
import sys
for name in {sorted(EXTRAS)!r}:
    if name != "numpy":  # torch imports it where it is
        sys.modules[name] = None
import torch_ctc_align.speech, torch_ctc_align.speech.command
from torch_ctc_align.speech import Aligner, SpeechError
for load in (Aligner.english, lambda: Aligner.from_pretrained("."), lambda: Aligner.from_onnx(__file__)):
    try:
        load()
    except SpeechError as error:
        print(error)
"""
    said = fresh_python(code.replace("__file__", repr(__file__))).splitlines()
    assert len(said) == 3
    assert re.search(r"hama.*pip install 'torch_ctc_align\[speech\]'", said[0])
    assert re.search(r"transformers.*pip install 'torch_ctc_align\[hf\]'", said[1])
    assert re.search(r"onnxruntime.*pip install 'torch_ctc_align\[speech\]'", said[2])


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(SpeechError) as caught:
        require("soundfile", "reading audio")
    assert str(caught.value) == (
        "reading audio needs the package soundfile, which is not installed; run: pip install 'torch_ctc_align[speech]'"
    )


def test_a_library_that_lacks_something_itself_is_told_from_a_missing_one(monkeypatch, tmp_path):
    (tmp_path / "praatio.py").write_text("import typing_extensions_that_is_nowhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "praatio"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SpeechError, match=r"needs praatio, which cannot be imported \(No module named 'typing_ext"):
        require("praatio", "writing a TextGrid")


def test_a_library_that_is_there_is_returned(monkeypatch):
    module = types.ModuleType("tqdm")
    monkeypatch.setitem(sys.modules, "tqdm", module)
    assert require("tqdm", "a bar") is module
