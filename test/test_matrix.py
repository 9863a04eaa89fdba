"""`make test-matrix` and the table that it writes: what it says of cells that fail, crash, or cannot be installed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import check_matrix
import matrix_cell
import pytest

from torch_ctc_align import _library

VERSIONS = {"torch": "2.12.1+cu130", "cuda": "13.0", "python": "3.13.0"}


def result(torch="2.12", python="3.13", **more):
    found = {"status": "passed", "failed": {}, "refused": {}, "versions": VERSIONS, "date": "2026-11-28"}
    return found | {"torch": torch, "python": python} | more


def rows(text):
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines]


# ------------------------------------------------------------------------------ the page


def the_table():
    text = check_matrix.PAGE.read_text(encoding="utf-8")
    between = text.split(check_matrix.BEGIN)[1].split(check_matrix.END)
    assert len(between) == 2
    return between[0]


def test_the_page_has_every_torch_and_python():
    head, _, *body = rows(the_table())
    assert [re.match(r"\d\.\d+", row[0])[0] for row in body] == list(check_matrix.TORCHES)
    pythons = [re.sub(r"(\d\.\d+)[.\d]*( free-threaded)?$", lambda m: m[1] + "t" * bool(m[2]), x) for x in head[2:]]
    assert [name.removeprefix("Python ") for name in pythons] == list(check_matrix.PYTHONS)
    assert all(len(row) == len(head) for row in body)


def test_the_page_is_whole_and_good():
    """A cell says yes, or has the number of a note that says why there is none. Most Pythons say yes."""
    notes = re.findall(r"^(\d+)\. \S", the_table(), re.MULTILINE)
    cells = [cell for row in rows(the_table())[2:] for cell in row[2:]]
    assert [cell for cell in cells if not re.fullmatch(r"yes( \[\d+\])*|- \[\d+\]", cell)] == []
    assert {number for cell in cells for number in re.findall(r"\[(\d+)\]", cell)} == set(notes)
    for torch, _, *row in rows(the_table())[2:]:
        assert sum(cell.startswith("yes") for cell in row) > len(row) / 2, torch


def test_the_oldest_ones_are_those_of_pyproject():
    torch, python = check_matrix.promised()
    assert check_matrix.TORCHES[0] == torch == ".".join(map(str, _library.OLDEST_TORCH))
    assert check_matrix.PYTHONS[0] == python
    page = check_matrix.PAGE.read_text(encoding="utf-8")
    assert f"every torch from {torch} on and every Python from {python} on" in page


def test_the_page_shows_the_message_for_an_older_torch():
    with pytest.raises(ImportError) as raised:
        _library._refuse_old_torch("2.9.1+cu128")
    message = str(raised.value).replace("2.9.1+cu128", "2.9.1")
    assert f"    ImportError: {message}\n" in check_matrix.PAGE.read_text(encoding="utf-8")
    for version in ("2.10.0", "2.15.0a0+git1234567", "3.0"):
        _library._refuse_old_torch(version)


# ------------------------------------------------------------------------------ the table


def test_a_failed_promise_is_named():
    text = check_matrix.table([result(status="failed", failed={"backward": "AssertionError: 1 | 2"})], "a.whl", "here")
    assert rows(text)[2] == ["2.12.1+cu130", "13.0 (cu13)", "**no** [1]"]
    assert "1. backward: AssertionError: 1 / 2" in text


def test_what_cannot_be_installed_is_in_the_table():
    text = check_matrix.table(
        [
            result(),
            result(python="3.14t", status="missing", why="no package", versions={}),
            result(torch="2.13"),
            result(torch="2.13", python="3.14t", refused={"compile": "RuntimeError: no"}),
        ],
        "a.whl",
        "here",
    )
    assert rows(text)[0] == ["torch", "its CUDA", "Python 3.13.0", "3.13.0 free-threaded"]
    assert [row[2:] for row in rows(text)[2:]] == [["yes", "- [1]"], ["yes", "yes [2]"]]
    assert "1. no package\n2. torch refuses compile without us, too: RuntimeError: no" in text


def test_the_table_goes_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    shutil.copy(check_matrix.PAGE, page)
    before = page.read_text(encoding="utf-8")
    check_matrix.write_table("| new |\n", page)
    after = page.read_text(encoding="utf-8")
    assert after.split(check_matrix.BEGIN)[0] == before.split(check_matrix.BEGIN)[0]
    assert after.split(check_matrix.BEGIN)[1].split(check_matrix.END)[0] == "\n| new |\n\n"
    assert after.split(check_matrix.END)[1] == before.split(check_matrix.END)[1]


# ------------------------------------------------------------------------------ a cell


def test_a_crash_has_the_name_of_the_open_promise():
    output = '{"begin": "align"}\n{"end": "align", "seconds": 1}\n{"begin": "AOTInductor"}\nSegmentation fault\n'
    found = check_matrix.read_lines(output, "exit status -11: ")
    assert found["status"] == "failed"
    assert found["failed"] == {"AOTInductor": "exit status -11: "}


def test_silence_is_a_failure():
    assert check_matrix.read_lines("", "")["failed"] == {"import": "ended without a word"}


def run_cell(monkeypatch, capsys, tmp_path, check, control=None):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matrix_cell, "PROMISES", {})
    matrix_cell.promise("first", control)(check)
    matrix_cell.promise("second")(lambda: None)
    matrix_cell.main()
    return check_matrix.read_lines(capsys.readouterr().out, "")


def fail():
    raise ValueError("no\n  way")


def test_a_failure_does_not_stop_the_others(monkeypatch, capsys, tmp_path):
    found = run_cell(monkeypatch, capsys, tmp_path, fail)
    assert (found["status"], found["failed"]) == ("failed", {"first": "ValueError: no way"})
    assert set(found["seconds"]) == {"first", "second"}


def test_torch_is_blamed_only_where_it_fails_without_us(monkeypatch, capsys, tmp_path):
    assert run_cell(monkeypatch, capsys, tmp_path, fail, lambda: None)["status"] == "failed"
    found = run_cell(monkeypatch, capsys, tmp_path, fail, fail)
    assert (found["status"], found["refused"]) == ("passed", {"first": "ValueError: no way"})


def test_the_package_must_be_the_installed_one(tmp_path):
    """The clone's own package, which this process imports, is not."""
    command = [sys.executable, "-c", "import matrix_cell; matrix_cell.check_import()"]
    places = f"{Path(check_matrix.ROOT)}:{Path(matrix_cell.__file__).parent}"
    done = subprocess.run(command, env={"PYTHONPATH": places}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "AssertionError: " in done.stderr


def test_an_interpreter_is_asked_for_its_version():
    name = "{}.{}".format(*sys.version_info)
    assert check_matrix.find_interpreters([sys.executable])[name] == sys.executable
    with pytest.raises(SystemExit, match="--interpreters: /bin/false does not start"):
        check_matrix.find_interpreters(["/bin/false"])
