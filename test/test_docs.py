"""The documentation tells the truth: its Python runs, its links lead somewhere.

A ```python block is either a session with >>> prompts, whose results are compared, or a script, which has to run
through. The blocks of a page share their names, from top to bottom, as a reader would type them.
"""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import torch_ctc_align

ROOT = Path(__file__).parents[1]
FOLDERS = ["docs", "benchmarks", "examples", "test"]
PAGES = [*sorted(ROOT.glob("*.md")), *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("*.md")))]
SLOW = {"docs/exporting.md"}  # it compiles a C++ program, and a package ahead of time
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def page_id(page):
    return str(page.relative_to(ROOT))


def python_blocks(text):
    """(line, source) of every ```python block; `line` is that of the fence, so that line + 1 is the block's first."""
    for match in FENCE.finditer(text):
        if match[1] == "python":
            yield text.count("\n", 0, match.start()) + 1, match[2]


def run_session(source, names, page, line):
    """Runs a doctest session in `names` and returns what failed, as doctest reports it."""
    session = doctest.DocTestParser().get_doctest(source, names, page_id(page), str(page), line)
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    failures = []
    runner.run(session, out=failures.append, clear_globs=False)
    names.update(session.globs)
    return "".join(failures)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page_id(page) in SLOW), id=page_id(page)) for page in PAGES],
)
def test_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # pages write files
    names = {"__name__": page.stem}
    for line, source in python_blocks(page.read_text(encoding="utf-8")):
        if source.lstrip().startswith(">>>"):
            failures = run_session(source, names, page, line)
            assert not failures, failures
        else:
            code = compile("\n" * line + source, str(page), "exec")  # so that a traceback names the page's own line
            exec(code, names)


def test_pages_and_their_examples_are_found():
    """Guards the searches: a page that is not found, or whose fences are not, would pass without running anything."""
    assert {"README.md", "CONTRIBUTING.md", "examples/README.md", "benchmarks/README.md", *SLOW} <= set(
        map(page_id, PAGES)
    )
    assert list(python_blocks((ROOT / "README.md").read_text(encoding="utf-8")))


def test_the_program_of_a_page_is_the_one_that_is_tested():
    blocks = [match[2] for match in FENCE.finditer((ROOT / "docs/exporting.md").read_text()) if match[1] == "cpp"]
    assert blocks == [(ROOT / "test/csrc/aoti_align.cpp").read_text()]


PACKAGE = Path(torch_ctc_align.__file__).parent
MODULES = [
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if re.search(r"^ *>>> ", path.read_text(), re.MULTILINE)
]
MODULES.remove("drop_in")  # its example needs torchaudio: see test_drop_in.py


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module):
    names = {name: getattr(torch_ctc_align, name) for name in torch_ctc_align.__all__}
    module = importlib.import_module(f"torch_ctc_align.{module}")
    result = doctest.testmod(module, extraglobs={"torch_ctc_align": torch_ctc_align} | names)
    assert result.attempted > 0
    assert result.failed == 0


def test_modules_with_examples_are_found():
    assert {"aligner", "functional", "words"} <= set(MODULES)


def anchor_of(heading):
    """The fragment under which a rendered page offers a heading: lower case, hyphens for spaces, no punctuation."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page):
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {anchor_of(heading) for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_of_a_page_lead_somewhere(page):
    """Links to files and headings of this repository; nothing is fetched."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page_id(page)} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page_id(page)} links to {link}"


# In code, inline or in a block, where a command begins.
MAKE = re.compile(r"(?:^|`|\|)\s*make ([a-z][a-z0-9-]*)", re.MULTILINE)
SCRIPT = re.compile(r"(?:python[\d.]* )([\w/]+\.py)\b([^`\n|]*)")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_of_a_page_exist(page):
    """Targets of the Makefile; scripts of this repository, from its root on, and their options."""
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(MAKE.findall(text)) <= set(targets)
    for script, arguments in SCRIPT.findall(text):
        assert (ROOT / script).is_file(), f"{page_id(page)} runs {script}"
        source = (ROOT / script).read_text()
        for option in re.findall(r"(?<!\S)--[a-z-]+", arguments):
            assert f'"{option}"' in source, f"{page_id(page)} gives {script} {option}"


def test_commands_are_found():
    """Guards the search."""
    assert MAKE.findall("`make test`, or\n    make bench ARGS\n```sh\nmake demo\n") == ["test", "bench", "demo"]
    assert SCRIPT.findall("python examples/align_speech.py a.wav --text b\n") == [
        ("examples/align_speech.py", " a.wav --text b")
    ]
