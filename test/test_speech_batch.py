"""Folders, manifests, names, and what a second run does. No model: see harness/stand_in.py."""

import json
import os
import sys
from pathlib import Path

import pytest
from harness.stand_in import StandIn

from torch_ctc_align.speech import SpeechError
from torch_ctc_align.speech.command import batch, inputs, ledger


def put(folder, **texts):
    """put(folder, a_wav="", b_txt="text"): files a.wav and b.txt; two underscores make a folder."""
    for name, text in texts.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(paths):
    return [path.name for path in paths]


# Folders --------------------------------------------------------------------------------------------------------------


def test_corpora_in_nist_sphere_are_found(tmp_path):
    put(tmp_path, a_sph="", a_txt="")
    assert [item.name for item in inputs.find_folder(tmp_path).items] == ["a.sph"]


def test_a_recording_belongs_to_the_text_with_its_name(tmp_path):
    put(tmp_path, a_wav="", a_txt="", b_MP3="", b_lab="", c_flac="", d_txt="", e_pdf="", _hidden_wav="")
    work = inputs.find_folder(tmp_path)
    assert [(item.name, item.text.name, item.output) for item in work.items] == [
        ("a.wav", "a.txt", tmp_path / "a"),
        ("b.MP3", "b.lab", tmp_path / "b"),
    ]
    assert names(work.without_text) == ["c.flac"]
    assert names(work.without_recording) == ["d.txt"]
    assert work.failures == []


def test_the_same_name_in_another_folder_is_no_partner(tmp_path):
    put(tmp_path, x__a_wav="", y__a_txt="")
    work = inputs.find_folder(tmp_path)
    assert work.items == []
    assert names(work.without_text) == ["a.wav"]
    assert names(work.without_recording) == ["a.txt"]


def test_folders_are_kept_below_the_output(tmp_path):
    put(tmp_path / "in", a_wav="", a_txt="", x__y__b_wav="", x__y__b_txt="")
    work = inputs.find_folder(tmp_path / "in", tmp_path / "out")
    assert [item.output for item in work.items] == [tmp_path / "out/a", tmp_path / "out/x/y/b"]
    assert work.root == tmp_path / "out"


def test_what_was_written_into_the_folder_is_not_read_as_input(tmp_path):
    put(tmp_path, a_wav="", a_txt="", a_labels_txt="", out__a_txt="", out__b_wav="")
    work = inputs.find_folder(tmp_path, tmp_path / "out")
    assert [item.name for item in work.items] == ["a.wav"]
    assert work.without_text == work.without_recording == []


def test_a_link_that_leads_in_a_circle_ends(tmp_path):
    put(tmp_path, x__a_wav="", x__a_txt="")
    (tmp_path / "x/again").symlink_to(tmp_path)
    assert [item.name for item in inputs.find_folder(tmp_path).items] == ["x/a.wav"]


def test_two_recordings_with_one_name_are_both_refused(tmp_path):
    put(tmp_path, a_wav="", a_mp3="", a_txt="", b_wav="", b_txt="")
    work = inputs.find_folder(tmp_path)
    inputs.refuse_clashes(work, [".json"])
    assert [item.name for item in work.items] == ["b.wav"]
    assert sorted(failure.path for failure in work.failures) == [str(tmp_path / "a.mp3"), str(tmp_path / "a.wav")]
    assert all("would write the same files as a." in failure.reason for failure in work.failures)


# Manifests ------------------------------------------------------------------------------------------------------------


def manifest(folder, *lines):
    path = folder / "m.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_lines_of_a_manifest(tmp_path):
    lines = [
        {"audio_filepath": "x/a.wav", "text": "one", "speaker": 7},
        {"audio_filepath": "/far/b.wav", "text": "two", "offset": 1.5, "duration": 2},
        "",
        {"audio_filepath": "x/a.wav", "text": "three", "offset": 9, "duration": None},
    ]
    work = inputs.read_manifest(manifest(tmp_path, *lines), tmp_path / "out")
    assert [(str(item.audio), item.text, item.offset, item.duration, item.output) for item in work.items] == [
        (f"{tmp_path}/x/a.wav", "one", 0.0, None, tmp_path / "out/x/a-1"),
        ("/far/b.wav", "two", 1.5, 2.0, tmp_path / "out/b"),
        (f"{tmp_path}/x/a.wav", "three", 9.0, None, tmp_path / "out/x/a-2"),
    ]
    assert [item.source for item in work.items] == [f"{tmp_path}/m.jsonl:{number}" for number in (1, 2, 4)]


def test_recordings_elsewhere_keep_the_folders_in_which_they_differ(tmp_path):
    audios = ["/data/s1/x/001.wav", "/data/s2/001.wav", "../data/001.wav", "001.wav"]
    path = manifest(tmp_path, *({"audio_filepath": audio, "text": "t"} for audio in audios[:2]), "")
    assert [item.output for item in inputs.read_manifest(path, tmp_path / "out").items] == [
        tmp_path / "out/s1/x/001",
        tmp_path / "out/s2/001",
    ]
    path = manifest(tmp_path / "..", *({"audio_filepath": audio, "text": "t"} for audio in audios))
    items = inputs.read_manifest(path, Path("out")).items
    assert items[3].output == Path("out/001")
    assert len({item.output for item in items}) == 4
    beside = [item.output for item in inputs.read_manifest(path).items]
    assert beside[:2] == [Path("/data/s1/x/001"), Path("/data/s2/001")]


def test_json_that_is_no_manifest_is_one_mistake(tmp_path):
    path = manifest(tmp_path, json.dumps({"words": [{"text": "a"}, {"text": "b"}]}, indent=2))
    with pytest.raises(SpeechError, match=r"m\.jsonl is one JSON document, not a manifest"):
        inputs.read_manifest(path)


def test_output_never_leaves_its_folder(tmp_path):
    line = {"audio_filepath": "../../a.wav", "text": "one"}
    (item,) = inputs.read_manifest(manifest(tmp_path, line), tmp_path / "out").items
    assert item.output == tmp_path / "out/a"


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"audio_filepath": 1 2}', "is not JSON (Expecting ',' delimiter at character 22)"),
        ("[1]", "must be a JSON object"),
        ('{"text": "t"}', "audio_filepath must be a string that is not empty, found nothing"),
        ('{"audio_filepath": "a.wav"}', "text must be a string that is not empty, found nothing"),
        ('{"audio_filepath": "a.wav", "text": " "}', "text must be a string that is not empty, found ' '"),
        ('{"audio_filepath": 3, "text": "t"}', "audio_filepath must be a string that is not empty, found 3"),
        (
            '{"audio_filepath": "a.wav", "text": "t", "offset": "1"}',
            "offset must be a number of seconds, 0 or above, found '1'",
        ),
        (
            '{"audio_filepath": "a.wav", "text": "t", "offset": -1}',
            "offset must be a number of seconds, 0 or above, found -1",
        ),
        (
            '{"audio_filepath": "a.wav", "text": "t", "offset": true}',
            "offset must be a number of seconds, 0 or above, found True",
        ),
        (
            '{"audio_filepath": "a.wav", "text": "t", "duration": NaN}',
            "duration must be a number of seconds, 0 or above, found nan",
        ),
        ('{"audio_filepath": "a.wav", "text": "t", "duration": 0}', "duration must be above 0 seconds, found 0"),
        ('{"audio_filepath": "a.wav", "text": "t", "duration": 1' + "0" * 400 + "}", "duration must be a number"),
        ('{"audio_filepath": "a\\u0000.wav", "text": "t"}', "found a zero byte"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_bad_line_is_reported_with_its_number_and_the_others_stay(tmp_path, line, reason):
    good = {"audio_filepath": "b.wav", "text": "good"}
    work = inputs.read_manifest(manifest(tmp_path, good, line, good))
    assert [item.text for item in work.items] == ["good", "good"]
    (failure,) = work.failures
    assert failure.path == f"{tmp_path}/m.jsonl:2"
    assert reason in failure.reason


def test_a_manifest_is_never_overwritten(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"audio_filepath": "a.wav", "text": "t"}')
    work = inputs.read_manifest(path)
    inputs.refuse_clashes(work, [".srt", ".json"])
    assert work.items == []
    assert work.failures[0].reason == f"would overwrite {path}, which is an input: give --out-dir"


# A second run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path):
    put(tmp_path, a_wav="", a_txt="good evening", b_wav="", b_txt="everybody", c_wav="", c_txt="is here")
    return tmp_path


def align(folder, formats="json", star="ends", loads=None, **options):
    """Aligns a folder; returns what became of each item, and whether a model was loaded."""
    loads = []

    def load():
        loads.append(StandIn())
        return loads[-1]

    suffixes = {name: {"json": ".json", "srt": ".srt"}[name] for name in formats.split(",")}
    call = {"star": star, "unspoken": False, "split": "lines", "language": None}
    work = inputs.find_folder(folder)
    results = list(batch.align_all(work.items, load, suffixes, call, call=call, **options))
    became = ["skipped" if each.skipped else each.reason or "aligned" for each in results]
    assert len(loads) <= 1
    return became, bool(loads)


def test_what_is_finished_is_skipped_and_no_model_is_loaded(pairs):
    assert align(pairs) == (["aligned"] * 3, True)
    assert align(pairs) == (["skipped"] * 3, False)
    assert align(pairs, force=True) == (["aligned"] * 3, True)
    assert align(pairs, resume=False) == (["aligned"] * 3, True)


def test_what_makes_an_item_unfinished(pairs):
    align(pairs)
    (pairs / "a.txt").write_text("another text")
    assert align(pairs)[0] == ["aligned", "skipped", "skipped"]
    (pairs / "b.json").unlink()
    assert align(pairs)[0] == ["skipped", "aligned", "skipped"]
    later = (pairs / "c.json").stat().st_mtime + 10
    os.utime(pairs / "c.wav", (later, later))
    assert align(pairs)[0] == ["skipped", "skipped", "aligned"]


def test_a_recording_of_another_size_is_another_recording(pairs):
    align(pairs)
    (pairs / "a.wav").write_text("longer")
    os.utime(pairs / "a.wav", (0, 0))  # as a copy that keeps the date
    assert align(pairs)[0] == ["aligned", "skipped", "skipped"]


def test_other_options_or_formats_align_again(pairs):
    align(pairs)
    assert align(pairs, star="words")[0] == ["aligned"] * 3
    assert align(pairs, star="words")[0] == ["skipped"] * 3
    assert align(pairs, formats="json,srt", star="words")[0] == ["aligned"] * 3
    assert align(pairs, formats="srt", star="words")[0] == ["skipped"] * 3
    assert align(pairs, formats="srt")[0] == ["aligned"] * 3
    assert align(pairs, formats="json", star="words")[0] == ["skipped"] * 3


def test_a_moved_folder_stays_finished(pairs):
    align(pairs)
    moved = pairs.rename(pairs.with_name("moved"))
    assert align(moved)[0] == ["skipped"] * 3


def test_a_file_that_others_made_or_changed_is_not_overwritten(pairs):
    (pairs / "a.json").write_text("mine")
    became, _ = align(pairs)
    assert became[1:] == ["aligned", "aligned"]
    assert "a.json exists, and ctc-align did not write it: give --force" in became[0]
    assert (pairs / "a.json").read_text() == "mine"

    (pairs / "b.json").write_text("corrected by hand")
    became, _ = align(pairs, star="words")
    assert "b.json was changed after ctc-align wrote it: give --force" in became[1]
    assert (pairs / "b.json").read_text() == "corrected by hand"

    assert align(pairs, star="words", force=True)[0] == ["aligned"] * 3
    assert json.loads((pairs / "b.json").read_text())["text"] == "everybody"


def test_a_process_that_was_killed_between_two_files_is_taken_up(pairs, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(path):
        raise Killed

    monkeypatch.setattr(batch, "digest_of", kill)
    with pytest.raises(Killed):
        align(pairs)
    monkeypatch.undo()
    assert (pairs / "a.json").exists()
    assert align(pairs)[0] == ["aligned"] * 3


def test_a_torn_ledger_forgets_no_more_than_its_torn_line(pairs):
    align(pairs)
    with (pairs / ledger.LEDGER).open("a") as file:
        file.write('{"made_from": "x", "fil')
    assert align(pairs)[0] == ["skipped"] * 3


def test_what_is_written_behind_a_torn_line_is_not_lost(pairs):
    (pairs / ledger.LEDGER).write_text('{"made_from": "x", "fil')
    ledger.Ledger(pairs).add(None, {pairs / "a.json": None})
    (pairs / "a.json").write_text("half of it, as the process was killed")
    assert align(pairs)[0] == ["aligned"] * 3


def test_what_another_process_finishes_meanwhile_is_skipped(pairs, monkeypatch):
    class Slow(StandIn):
        def __call__(self, audio, *arguments, **options):
            if audio.name == "a.wav":  # the other one begins later, and overtakes
                monkeypatch.undo()
                assert align(pairs)[0] == ["aligned"] * 3
            return super().__call__(audio, *arguments, **options)

    monkeypatch.setattr(sys.modules[__name__], "StandIn", Slow)
    assert align(pairs)[0] == ["aligned", "skipped", "skipped"]


def test_a_ledger_that_cannot_be_read_is_named(pairs):
    (pairs / ledger.LEDGER).mkdir()  # who runs the tests as root may read every file
    became, loaded = align(pairs)
    assert became == [f"{pairs / ledger.LEDGER}: Is a directory"] * 3
    assert not loaded


# Failures -------------------------------------------------------------------------------------------------------------


def test_a_failure_of_any_kind_does_not_stop_the_others(tmp_path):
    put(tmp_path, a_wav="", a_txt="broken", b_wav="", b_txt="bug", c_wav="", c_txt="memory", d_wav="", d_txt="fine")
    put(tmp_path, e_wav="", e_txt=" ", g_wav="", g_txt="fine")
    (tmp_path / "f.txt").write_bytes(b"caf\xe9")
    (tmp_path / "f.wav").touch()
    became, _ = align(tmp_path)
    assert became[0] == f"{tmp_path}/a.wav is broken"
    assert became[1] == "RuntimeError: shapes differ (unexpected: please report it, with what --debug prints)"
    assert became[2] == "does not fit into memory; cut the recording, or use a machine with more"
    assert became[3] == became[6] == "aligned"
    assert became[4] == "the text has no words"
    assert "UTF-8" in became[5], became[5]


def test_ctrl_c_comes_through(tmp_path):
    put(tmp_path, a_wav="", a_txt="interrupt")
    with pytest.raises(KeyboardInterrupt):
        align(tmp_path)


def test_the_list_of_failures_goes_when_nothing_fails(tmp_path):
    odd = os.fsdecode(b"a\xff.wav")  # a name that is not UTF-8
    path = ledger.write_failures(tmp_path, [inputs.Failure(odd, "no such “file”")])
    assert json.loads(path.read_text(encoding="utf-8")) == {"path": odd, "reason": "no such “file”"}
    assert ledger.write_failures(tmp_path, []) is None
    assert not path.exists()


def test_a_file_that_only_has_its_name_is_kept(tmp_path):
    (tmp_path / "failures.jsonl").write_text('{"audio_filepath": "a.wav", "text": "t"}\n')
    ledger.write_failures(tmp_path, [])
    assert (tmp_path / "failures.jsonl").exists()


def test_a_list_of_failures_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "failures.jsonl").mkdir()
    with pytest.raises(OSError, match=r"failures\.jsonl'$"):
        ledger.write_failures(tmp_path, [inputs.Failure("a.wav", "no such file")])
    assert names(tmp_path.iterdir()) == ["failures.jsonl"]


def test_a_format_that_lacks_its_library_is_refused_before_the_model_runs(monkeypatch):
    batch.refuse_formats({"json": ".json", "srt": ".srt"})
    monkeypatch.setitem(sys.modules, "praatio", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "praatio.textgrid", None)
    with pytest.raises(SpeechError, match=r"praatio.*pip install"):
        batch.refuse_formats({"json": ".json", "textgrid": ".TextGrid"})


def test_a_folder_without_permission_is_said(tmp_path, monkeypatch):
    batch.refuse_folder(tmp_path / "not/yet/there")
    (tmp_path / "file").touch()
    with pytest.raises(SpeechError, match="is not a folder"):
        batch.refuse_folder(tmp_path / "file/below")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # who runs the tests as root may write everywhere
    with pytest.raises(SpeechError, match=r"no permission for .*: give another folder with --out-dir"):
        batch.refuse_folder(tmp_path / "not/yet/there")
