"""The documentation site has every page and every public name. That its links lead somewhere, `make docs` checks."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

import torch_ctc_align
from torch_ctc_align import speech
from torch_ctc_align.speech import corpus

DOCS = Path(__file__).parents[1] / "docs"
SPEC = importlib.util.spec_from_file_location("build_site", DOCS / "build_site.py")
build_site = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build_site)


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
    assert "measurements/*" in listed
    assert pages - {"index"} == {page for page in listed if not page.startswith("measurements/")}


def changelog(unreleased):
    releases = "## [1.2.0] - 2027-01-01\n\n### Added\n\n- Much.\n\n## [1.1.0] - 2026-12-01\n"
    return f"# Changelog\n\n## [Unreleased]\n\n{unreleased}{releases}"


def test_the_tree_of_a_release_has_its_version_and_a_later_one_is_dev():
    assert build_site.name_of_tree(changelog("")) == "1.2.0"
    assert build_site.name_of_tree(changelog("### Added\n\n- More.\n\n")) == "dev"


@pytest.mark.parametrize(
    "folders, newest, versions",
    [
        (["dev"], "dev", ["dev"]),
        (["0.1.0"], "0.1.0", ["0.1.0"]),
        (["0.10.0", "0.2.0", "dev", "0.9.1", "_static"], "0.10.0", ["dev", "0.10.0", "0.9.1", "0.2.0"]),
        (["0.2.0rc1", "0.1.0"], "0.1.0", ["0.2.0rc1", "0.1.0"]),  # a candidate is listed, and nobody is led to it
    ],
)
def test_the_newest_release_comes_first(folders, newest, versions):
    assert build_site.list_versions(folders) == {"newest": newest, "versions": versions}


def test_the_first_page_leads_to_the_newest_release(tmp_path):
    for name in ("dev", "0.1.0", "0.2.0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").touch()
    build_site.write_lists(tmp_path)
    assert json.loads((tmp_path / "versions.json").read_text()) == {
        "newest": "0.2.0",
        "versions": ["dev", "0.2.0", "0.1.0"],
    }
    page = (tmp_path / "index.html").read_text()
    assert 'location.replace("0.2.0/index.html")' in page
    assert re.findall('<a href="(.*?)">', page) == ["dev/index.html", "0.2.0/index.html", "0.1.0/index.html"]
