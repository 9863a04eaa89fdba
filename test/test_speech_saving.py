"""How a file of an alignment gets its format, appears whole or not at all, and fails. Its contents are the matter of
test_speech_formats.py and test_speech_subtitles.py.
"""

import math
import os
import stat
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from harness.alignments import small, with_evidence
from harness.stand_in import StandIn

from torch_ctc_align.speech import SpeechError, Word, formats
from torch_ctc_align.speech.command.batch import align_all
from torch_ctc_align.speech.command.inputs import Item
from torch_ctc_align.speech.formats import FORMATS, save, save_all

TEXTS = ["json", "srt", "vtt", "ass", "textgrid", "ctm", "tsv", "audacity"]
TSV = """\
start\tend\ttext\tconfidence\tstatus
0.500\t0.700\tHe\t0.9048\tspoken
0.700\t1.040\tsaid\t0.7788\tspoken
1.500\t2.000\tWait\t0.6065\tspoken
2.500\t2.700\tNo\t0.3679\tspoken
3.000\t3.200\t4\t\tinferred
"""


def stand_in(monkeypatch, name, **functions):
    module = types.ModuleType(f"torch_ctc_align.speech.formats.{name}")
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, module.__name__, module)


# ---------------------------------------------------------------------------------------------------- names and errors


@pytest.mark.parametrize(
    "name, format",
    [("a.json", "json"), ("a.JSON", "json"), ("a.TextGrid", "textgrid"), ("a.textgrid", "textgrid"), ("a.b.srt", "srt"),
     ("a.labels.txt", "audacity"), ("a.vtt", "vtt"), ("a.ass", "ass"), ("a.ctm", "ctm"), ("a.tsv", "tsv")],
)  # fmt: skip
def test_a_suffix_tells_the_format(name, format, tmp_path, library):
    library("praatio"), library("pysubs2")
    path = save(small(), tmp_path / name)
    assert path == tmp_path / name
    assert path.read_bytes() == save(small(), tmp_path / "other", format.upper()).read_bytes()


@pytest.mark.parametrize("name", ["a", "a.txt", "json", "a.doc"])
def test_a_suffix_that_is_not_known_is_a_sentence(name, tmp_path):
    with pytest.raises(SpeechError) as caught:
        save(small(), tmp_path / name)
    assert all(word in str(caught.value) for word in [*FORMATS, ".labels.txt", str(tmp_path / name)])


def test_a_format_that_is_not_known_is_a_sentence(tmp_path):
    with pytest.raises(SpeechError) as caught:
        save(small(), tmp_path / "a.srt", "docx")
    assert str(caught.value) == (
        "format must be one of json, srt, vtt, ass, textgrid, ctm, tsv, audacity, html, png, npz, found 'docx'"
    )


def test_an_option_that_is_not_known_is_a_sentence(tmp_path):
    with pytest.raises(SpeechError, match="the format srt has no option embed; it has none"):
        save(small(), tmp_path / "a.srt", embed=True)
    with pytest.raises(SpeechError, match="the format html has no option seconds; its options are embed"):
        save(small(), tmp_path / "a.html", seconds=1)
    with pytest.raises(SpeechError, match="level must be words, segments or tokens, found 'lines'"):
        save(small(), tmp_path / "a.tsv", level="lines")


@pytest.mark.parametrize("format, module", [("textgrid", "praatio.textgrid"), ("ass", "pysubs2"), ("npz", "numpy")])
def test_a_library_that_is_missing_is_a_sentence(format, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SpeechError, match=rf"the format {format} needs .*pip install 'torch_ctc_align\[speech\]'"):
        save(with_evidence(small()), tmp_path / "a", format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", TEXTS)
@pytest.mark.parametrize("times", [(1.0, 0.5), (0.5, 0.75), (-0.1, 2.0), (1.0, math.inf), (math.nan, 2.0)])
def test_times_that_are_not_in_order_are_a_sentence(format, times, tmp_path):
    alignment = small()
    words = [replace(alignment.words[0], start=0.5, end=0.6), Word("said", 3, 7, 0, *times, -1.0, None, "spoken")]
    if times == (0.5, 0.75):
        words[0] = replace(words[0], end=0.7)
    alignment = replace(alignment, words=[*words, *alignment.words[2:]])
    with pytest.raises(SpeechError, match="the times of an alignment must not decrease, but word 1 is from"):
        save(alignment, tmp_path / "a", format)


# ------------------------------------------------------------------------------------------------------ whole or not


def test_a_file_has_the_permissions_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        path = save(small(), tmp_path / "a.json")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_folders_are_created(tmp_path):
    assert save(small(), tmp_path / "new" / "er" / "a.tsv").is_file()


def test_a_string_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert small().save("a.tsv") == Path("a.tsv")
    assert Path("a.tsv").read_text() == TSV
    assert os.listdir() == ["a.tsv"]


def test_a_file_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    def fail(alignment, *, embed):
        raise KeyboardInterrupt

    stand_in(monkeypatch, "page", make_page=fail)
    (tmp_path / "a.html").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        save(small(), tmp_path / "a.html")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
    assert (tmp_path / "a.html").read_text() == "old"


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    def look(alignment, *, embed):
        assert (tmp_path / "a.html").read_text() == "old"
        return "new"

    stand_in(monkeypatch, "page", make_page=look)
    (tmp_path / "a.html").write_text("old")
    save(small(), tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text() == "new"


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("old", "new"):
        link = tmp_path / f"{name}.tsv"
        link.symlink_to(Path("there") / link.name)
    (tmp_path / "there" / "old.tsv").write_text("old")
    for name in ("old", "new"):
        save(small(), tmp_path / f"{name}.tsv")
        assert (tmp_path / f"{name}.tsv").is_symlink()
        assert (tmp_path / "there" / f"{name}.tsv").read_text() == TSV


def test_what_is_no_file_is_written_to(fresh_python):
    code = "from harness.alignments import small; small().save('/dev/stdout', 'tsv')"
    assert fresh_python(f"import sys; sys.path.insert(0, 'test'); {code}") == TSV


def test_a_folder_is_an_error(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a\.json"):
        save(small(), tmp_path / "a.json")


def test_a_file_in_place_of_a_folder_is_an_error(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises((FileExistsError, NotADirectoryError), match="a'"):
        save(small(), tmp_path / "a" / "b.json")


def test_an_error_names_the_file_that_was_asked_for(tmp_path, monkeypatch):
    """And not the temporary one, which nobody knows."""

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError) as caught:
        save(small(), tmp_path / "a.json")
    assert str(caught.value) == f"[Errno 13] Permission denied: '{tmp_path / 'a.json'}'"


def test_a_missing_recording_is_not_taken_for_the_file(tmp_path, monkeypatch):
    stand_in(monkeypatch, "page", make_page=lambda alignment, *, embed: Path("/no/talk.wav").read_text())
    with pytest.raises(FileNotFoundError, match=r"/no/talk\.wav"):
        save(small(), tmp_path / "a.html")


# ------------------------------------------------------------------------------------------------------- several files


def test_several_files_are_what_each_would_be_alone(tmp_path):
    files = {tmp_path / f"all.{name}": name for name in ("json", "srt", "vtt", "ctm", "tsv")}
    save_all(small(), files)
    for path, name in files.items():
        assert path.read_bytes() == save(small(), tmp_path / f"alone.{name}").read_bytes()


def test_the_command_rounds_once_for_all_formats(tmp_path, monkeypatch):
    rounded = []
    monkeypatch.setattr(formats, "round_alignment", lambda alignment: rounded.append(alignment) or alignment)
    (tmp_path / "a.wav").touch()
    item = Item("a.wav", tmp_path / "a.wav", "Good evening", tmp_path / "a")
    suffixes = {"json": ".json", "srt": ".srt", "tsv": ".tsv"}
    [result] = align_all([item], StandIn, suffixes, {}, call={})
    assert [path.name for path in result.files if path.stat().st_size] == ["a.json", "a.srt", "a.tsv"]
    assert len(rounded) == 1
