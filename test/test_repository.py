"""Rules for the files themselves: their length, the version, the tables of CONTRIBUTING.md, and what CI requires."""

import os
import re
import subprocess
import sys
from pathlib import Path

import check_release
import conftest
import pytest

import torch_ctc_align

ROOT = Path(__file__).parents[1]
SOURCES = {".py", ".h", ".cpp", ".cu", ".cuh"}
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def files(folder):
    """The source files in a folder and in the folders below it."""
    return [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SOURCES]


def table(heading):
    """The rows of the only table under a heading of CONTRIBUTING.md, without its first two."""
    text = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", CONTRIBUTING, re.MULTILINE | re.DOTALL)[1]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    assert all(len(row) == 2 for row in rows), rows
    return [(first.strip(), second.strip()) for first, second in rows[2:]]


def paths_named(heading):
    """Every path in the first column of a table."""
    return [path for first, _ in table(heading) for path in re.findall(r"`([^`]+)`", first)]


@pytest.mark.parametrize("folder, most", [("csrc", 400), ("test", 600), ("benchmarks", 600)])
def test_files_are_short(folder, most):
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files(folder)
    }
    assert lengths
    assert {path: lines for path, lines in lengths.items() if lines > most} == {}


def test_the_version_is_the_same_everywhere():
    """So is the day of its release. Later changes are above it in the changelog."""
    (newest, no_date), (version, date), *_ = check_release.read_releases(ROOT)
    assert (newest, no_date) == ("Unreleased", "")
    assert set(check_release.read_versions(ROOT).values()) == {version, torch_ctc_align.__version__}
    assert f"\ndate-released: {date}\n" in (ROOT / "CITATION.cff").read_text()


COMMIT = ["-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "--allow-empty", "--message", "x"]


@pytest.fixture
def released(tmp_path):
    """A repository in which 0.2.0 can be released."""
    (tmp_path / "torch_ctc_align").mkdir()
    (tmp_path / "torch_ctc_align" / "__init__.py").write_text('__version__ = "0.2.0"\n')
    (tmp_path / "CITATION.cff").write_text("title: x\nversion: 0.2.0\ndate-released: 2027-01-31\nlicense: y\n")
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [0.2.0] - 2027-01-31\n\n### Added\n\n- a thing\n")
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://example.org/o/n"\n')
    for command in (["init", "--quiet"], ["add", "."], COMMIT, ["tag", "v0.2.0"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_a_release_that_lacks_nothing(released):
    assert check_release.find_gaps(released, "0.2.0") == []
    subprocess.run(["git", *COMMIT], cwd=released, check=True)
    assert check_release.find_gaps(released, "0.2.0") == ["this commit must have the tag v0.2.0"]  # not the one before


def test_everything_that_a_release_lacks_is_said_at_once(released):
    """Each file that the check reads is broken here once, and each break is one sentence."""
    for name, old, new in (
        ("torch_ctc_align/__init__.py", "0.2.0", "0.1.0"),
        ("CITATION.cff", "0.2.0\ndate-released: 2027-01-31", "0.1.0\ndate-released: 2026-11-28"),
        ("CHANGELOG.md", "## [Unreleased]\n", "## [Unreleased]\n\n### Fixed\n\n- another thing\n"),
        ("pyproject.toml", "Repository", "Homepage"),
    ):
        text = (released / name).read_text()
        assert old in text
        (released / name).write_text(text.replace(old, new))
    subprocess.run(["git", "tag", "--delete", "v0.2.0"], cwd=released, check=True)
    assert check_release.find_gaps(released, "0.2.0") == [
        "__version__ in torch_ctc_align/__init__.py must be 0.2.0, found 0.1.0",
        "version in CITATION.cff must be 0.2.0, found 0.1.0",
        "[Unreleased] in CHANGELOG.md must be empty: its entries belong under [0.2.0]",
        "date-released in CITATION.cff must be 2027-01-31, as in CHANGELOG.md",
        '[project.urls] in pyproject.toml must have Repository = "https://...", where README.md\'s links lead',
        "the tree must be clean, found 4 changed or new files, as CHANGELOG.md",
        "this commit must have the tag v0.2.0",
    ]


def test_a_release_of_another_version_or_of_none(released):
    assert check_release.find_gaps(released, "0.3.0") == [
        "__version__ in torch_ctc_align/__init__.py must be 0.3.0, found 0.2.0",
        "version in CITATION.cff must be 0.3.0, found 0.2.0",
        "the newest release in CHANGELOG.md must be 0.3.0, found 0.2.0",
        "this commit must have the tag v0.3.0",
    ]
    assert check_release.find_gaps(released, "") == ["VERSION must be like 0.2.0 or 0.2.0rc1, found ''"]


# ---------------------------------------------------------------------------------- tables of CONTRIBUTING.md


def test_the_table_of_test_files_is_complete():
    """A folder with a slash at its end stands for all that is in it."""
    named = paths_named("Tests")
    assert len(named) == len(set(named)), "a file is in the table twice"
    assert [path for path in named if not (ROOT / "test" / path).exists()] == []
    folders = tuple(path for path in named if path.endswith("/"))
    here = [str(path.relative_to(ROOT / "test")) for path in files("test")]
    assert [path for path in here if path not in named and not path.startswith(folders)] == []


def test_the_table_of_places_is_complete():
    """It names every module of the package, or its folder in `speech`, and every folder of the sources."""
    named = paths_named("Where things live")
    assert len(named) == len(set(named)), "a path is in the table twice"
    assert [path for path in named if not (ROOT / path).exists()] == []
    folders = {f"{path.parent.relative_to(ROOT)}/" for path in files("csrc")}
    modules = {str(path.relative_to(ROOT)) for path in files("torch_ctc_align")} - {"torch_ctc_align/__init__.py"}
    rooms = tuple(path for path in named if path.startswith("torch_ctc_align/speech/") and path.endswith("/"))
    modules = {path for path in modules if not path.startswith(rooms)}
    assert sorted((folders - {"csrc/"} | modules) - set(named)) == []


def glossary():
    """The words, in the order of the table; a row may define several that belong together."""
    return [word.strip(" *") for words, _ in table("Words") for word in words.split(",")]


def test_a_word_has_one_meaning():
    words = glossary()
    assert len(words) > 50, "the search finds too little"
    assert all(meaning for _, meaning in table("Words"))
    assert sorted({word for word in words if words.count(word) > 1}) == []
    assert words == sorted(words, key=str.lower)


def test_pages_define_a_word_once():
    """A page defines a word where it is set in bold. The glossary has one meaning for it, so one page at most does."""
    places = {}
    for page in sorted((ROOT / "docs").glob("*.md")):
        for bold in re.findall(r"(?<![*\w])\*\*([a-z][a-z -]*)\*\*", page.read_text(encoding="utf-8")):
            if bold in glossary():
                places.setdefault(bold, []).append(page.name)
    assert "tile" in places, "the search finds nothing"
    assert {word: pages for word, pages in places.items() if len(pages) > 1} == {}


# ---------------------------------------------------------------------------------------- what CI demands


def run_pytest(folder, test, required, *options):
    """Exit status and output of one module in a process of its own, with the project's conftest.py."""
    (folder / "test_one.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-q", "-rs", "--rootdir", folder, *options, folder]
    done = subprocess.run(
        command,
        env=os.environ
        | {"CTC_ALIGN_REQUIRE": required, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "test")])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def test_what_is_required_fails_instead_of_being_skipped(tmp_path):
    test = "def test_one(missing):\n    missing('{name}', 'not here')\n"
    status, said = run_pytest(
        tmp_path, test.format(name="asan") + test.format(name="nvcc").replace("one", "two"), "asan"
    )
    assert status == pytest.ExitCode.TESTS_FAILED, said
    assert "1 failed, 1 skipped" in said


def test_an_unknown_requirement_is_an_error(tmp_path):
    status, said = run_pytest(tmp_path, "def test_one():\n    pass\n", "avx2,avx1024")
    assert status == pytest.ExitCode.USAGE_ERROR, said
    assert "CTC_ALIGN_REQUIRE must name some of" in said
    assert "found avx1024" in said


@pytest.mark.parametrize("processes", ["0", "2"])
def test_the_end_says_which_promise_broke(tmp_path, processes):
    """Of every module with a failure, whether a test fails, or a fixture, or the module cannot be imported."""
    modules = {
        "holds": '"""What holds."""\ndef test_it():\n    pass\n',
        "fails": '"""One rule: two\nlines, as in a.py. Another sentence."""\ndef test_it():\n    assert False\n',
        "fixture": '"""Second rule."""\nimport pytest\n@pytest.fixture\ndef f():\n    1 / 0\ndef test_it(f): pass\n',
        "import": '"""Third rule: it is there."""\nimport no_such_module\n',
    }
    for name, text in modules.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    _, said = run_pytest(tmp_path, modules["holds"], "", "--numprocesses", processes, "--continue-on-collection-errors")
    (extract,) = re.findall(r"(sed .*) log >>", (ROOT / ".github" / "workflows" / "test.yml").read_text())
    shown = subprocess.run(
        extract, shell=True, input=said, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "Broken promises" in shown[0]
    assert [line.strip() for line in shown[1:-1]] == [
        "test_fails.py: One rule: two lines, as in a.py.",
        "test_fixture.py: Second rule.",
        "test_import.py: Third rule: it is there.",
    ]


def test_no_promise_is_broken_without_a_failure(tmp_path):
    status, said = run_pytest(tmp_path, "def test_one():\n    pass\n", "")
    assert status == pytest.ExitCode.OK
    assert "Broken promises" not in said


def test_ci_requires_words_that_are_known():
    """CI tries the words of its own machine. This also holds those of other machines."""
    words = re.findall(r"^\s*.*required\+=\((.*?)\)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert set(" ".join(words).split()) >= {"c++", "asan", "avx512", "avx2", "portable", "nvcc", "cuda"}
    assert set(" ".join(words).split()) <= conftest.REQUIRABLE
