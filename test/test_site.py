"""The documentation site has every page and every public name. That its links lead somewhere, `make docs` checks."""

import re
from pathlib import Path

import pytest

import torch_ctc_align
from torch_ctc_align import speech
from torch_ctc_align.speech import corpus

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("module", [torch_ctc_align, speech, corpus], ids=lambda module: module.__name__)
def test_every_public_name_is_in_the_api(module):
    found = re.findall(r"^\.\. (?:auto)?\w+:: (\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == len(set(found))
    assert {name for name in found if name.rpartition(".")[0] == module.__name__} == {
        f"{module.__name__}.{name}" for name in module.__all__
    }


def test_every_page_is_in_the_index_once():
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", (DOCS / "index.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    listed = [re.sub(r".*<(.*)>", r"\1", line) for line in lines]  # "Title <page>"
    assert len(listed) == len(set(listed))
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.glob("*.md")}
    assert pages - {"index"} == set(listed) - {"measurements/*"}
