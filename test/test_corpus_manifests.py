"""Manifests of lines: JSON, CSV, TSV. What a row is, and what a shard; test_corpus_manifest_kinds.py has other kinds.

What a shard should hold is written by hand, or comes from Python's json and csv, which read the whole file.
"""

import csv
import gzip
import hashlib
import io
import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SEED

import torch_ctc_align
from torch_ctc_align.speech.corpus.manifests import open_manifest
from torch_ctc_align.speech.errors import SpeechError

COLUMNS = ["id", "audio", "path", "text", "offset", "duration", "problem"]


def write(path, *lines):
    """Lines are bytes, text, or what becomes JSON."""

    def encode(line):  # fmt: skip
        return line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()

    path.write_bytes(b"".join(encode(line) + b"\n" for line in lines))
    return path


def rows_of(manifest):
    """All rows, as dictionaries."""
    shards = [manifest.read(shard) for shard in range(manifest.num_shards)]
    assert all(list(shard) == COLUMNS for shard in shards)
    return [dict(zip(COLUMNS, row, strict=True)) for shard in shards for row in zip(*shard.values(), strict=True)]


def only(manifest):
    (row,) = rows_of(manifest)
    return row


def refusal(*arguments, **options):
    with pytest.raises(SpeechError) as caught:
        open_manifest(*arguments, **options)
    return str(caught.value)


# Rows of JSON lines ---------------------------------------------------------------------------------------------------


def test_a_row_has_its_seven_columns(tmp_path):
    path = write(
        tmp_path / "m.jsonl",
        {"audio_filepath": "a/b c.wav", "text": "Guten Tag", "offset": 12.5, "duration": 3, "lang": "de", "id": "x1"},
        {"audio_filepath": "/elsewhere/d.flac", "text": "two\nlines"},
    )
    manifest = open_manifest(path)
    assert (manifest.kind, manifest.num_rows, manifest.num_shards, manifest.path) == ("jsonl", 2, 1, path)
    assert manifest.read(0) == {
        "id": ["x1", "/elsewhere/d.flac"],
        "audio": [f"{tmp_path}/a/b c.wav", "/elsewhere/d.flac"],
        "path": ["a/b c.wav", "/elsewhere/d.flac"],
        "text": ["Guten Tag", "two\nlines"],
        "offset": [12.5, 0.0],
        "duration": [3.0, None],
        "problem": [None, None],
    }


@pytest.mark.parametrize(
    "cells, id",
    [
        ({}, "a/b.wav"),
        ({"duration": 3.5}, "a/b.wav"),
        ({"offset": None, "duration": 3.5}, "a/b.wav"),
        ({"offset": 12.5}, "a/b.wav#12.5"),
        ({"offset": 0}, "a/b.wav#0"),
        ({"offset": 1, "duration": 2.0}, "a/b.wav#1+2"),
        ({"offset": 0.1, "duration": 7e-5}, "a/b.wav#0.1+7e-05"),
        ({"id": "own", "offset": 1}, "own"),
        ({"ID": "upper case"}, "upper case"),
        ({"id": 17}, "17"),
        ({"id": 17.0}, "17"),
        ({"id": 0}, "0"),
        ({"id": ""}, "a/b.wav"),
        ({"id": None}, "a/b.wav"),
        ({"id": float("nan")}, "a/b.wav"),
        ({"uniq_id": "c", "utt_id": "b"}, "b"),
        ({"uniq_id": "c", "utt_id": "b", "id": "a"}, "a"),
        ({"speaker_id": "s"}, "a/b.wav"),
    ],
)
def test_ids(tmp_path, cells, id):
    path = write(tmp_path / "m.jsonl", {"audio_filepath": "a/b.wav", "text": "t", **cells})
    assert only(open_manifest(path))["id"] == id


def test_an_id_stays_when_other_rows_come_and_go(tmp_path):
    lines = [{"audio_filepath": f"{k % 5}.wav", "text": "t", "offset": k, "duration": 1} for k in range(30)]
    ids = {row["id"] for row in rows_of(open_manifest(write(tmp_path / "m.jsonl", *lines)))}
    assert len(ids) == 30
    assert {row["id"] for row in rows_of(open_manifest(write(tmp_path / "n.jsonl", *lines[::-3])))} < ids


GOOD = {"audio_filepath": "a.wav", "text": "t"}


@pytest.mark.parametrize(
    "line, id, problem",
    [
        ("nonsense", "m.jsonl:2", "m.jsonl:2 is not JSON (Expecting value at character 1)"),
        ('{"audio_filepath": "a.wav", "te', "m.jsonl:2", "m.jsonl:2 is not JSON (Unterminated string"),
        ("[" * 100_000, "m.jsonl:2", "m.jsonl:2 is not JSON (maximum recursion"),
        ("9" * 5000, "m.jsonl:2", "m.jsonl:2 is not JSON (Exceeds the limit"),
        ("[1, 2]", "m.jsonl:2", "m.jsonl:2 must be a JSON object with audio_filepath and text, found list"),
        (b'{"audio_filepath": "a\xe9.wav", "text": "t"}', "m.jsonl:2", "m.jsonl:2 is not UTF-8 text (invalid contin"),
        ({"text": "t"}, "m.jsonl:2", "audio_filepath must be the path of a recording, found None"),
        ({"text": "t", "id": "x"}, "x", "audio_filepath must be the path of a recording, found None"),
        ({**GOOD, "audio_filepath": " "}, "m.jsonl:2", "audio_filepath must be the path of a recording, found ' '"),
        ({**GOOD, "audio_filepath": ["a"]}, "m.jsonl:2", "audio_filepath must be the path of a recording, found ['a"),
        ({**GOOD, "audio_filepath": "a\0"}, "m.jsonl:2", "audio_filepath must be the path of a recording, found a z"),
        (
            {**GOOD, "audio_filepath": "s3://bucket/a.wav"},
            "m.jsonl:2",
            "audio_filepath must be the path of a file, found the address s3://bucket/a.wav: download it, or mount it",
        ),
        ({**GOOD, "text": 5}, "m.jsonl:2", "text must be a string, found 5"),
        ({**GOOD, "text": "\ud83d"}, "m.jsonl:2", "text holds half a character"),
        ({**GOOD, "id": [1]}, "m.jsonl:2", "id must be a string or a whole number, found [1]"),
        ({**GOOD, "id": True}, "m.jsonl:2", "id must be a string or a whole number, found True"),
        ({**GOOD, "offset": -1}, "m.jsonl:2", "offset must be a number of seconds, 0 or above, found -1"),
        ({**GOOD, "offset": True}, "m.jsonl:2", "offset must be a number of seconds, 0 or above, found True"),
        ({**GOOD, "offset": float("inf")}, "m.jsonl:2", "offset must be a number of seconds, 0 or above, found inf"),
        ({**GOOD, "duration": 0}, "m.jsonl:2", "duration must be above 0 seconds, found 0"),
        ({**GOOD, "duration": "long", "id": "x"}, "x", "duration must be a number of seconds, 0 or above, found 'l"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row_is_its_own_problem(tmp_path, line, id, problem):
    path = write(tmp_path / "m.jsonl", {**GOOD, "offset": 0, "duration": 1, "id": "first"}, line, GOOD)
    before, bad, after = rows_of(open_manifest(path))
    assert bad["problem"].startswith(problem)
    assert bad["id"] == id
    assert (bad["audio"], bad["text"], bad["offset"], bad["duration"]) == (None, None, 0.0, None)
    assert before["problem"] is after["problem"] is None
    assert (before["id"], after["id"]) == ("first", "a.wav")


@pytest.mark.parametrize("cells, text", [({}, None), ({"text": None}, None), ({"text": ""}, ""), ({"text": " "}, " ")])
def test_a_row_without_text_is_no_problem_here(tmp_path, cells, text):
    path = write(tmp_path / "m.jsonl", GOOD, {"audio_filepath": "b.wav", **cells})
    row = rows_of(open_manifest(path))[1]
    assert (row["text"], row["problem"], row["id"]) == (text, None, "b.wav")


def test_numbers_that_are_missing_or_written_down(tmp_path):
    path = write(
        tmp_path / "m.jsonl",
        {**GOOD, "offset": float("nan"), "duration": float("nan")},
        {**GOOD, "offset": " 1.50 ", "duration": ""},
    )
    first, second = rows_of(open_manifest(path))
    assert (first["offset"], first["duration"], first["id"]) == (0.0, None, "a.wav")
    assert (second["offset"], second["duration"], second["id"]) == (1.5, None, "a.wav#1.5")


@pytest.mark.parametrize("cells", [{"audio_filepath": "s3://\udce9"}, {"id": {"\udce9": 1}}, {"text": ["\udce9"]}])
def test_what_a_problem_quotes_can_be_written(tmp_path, cells):
    row = only(open_manifest(write(tmp_path / "m.jsonl", {**GOOD, **cells})))
    assert b"udce9" in row["problem"].encode()


def test_recordings_are_not_in_json(tmp_path):
    """A string is no sound."""
    row = only(open_manifest(write(tmp_path / "m.jsonl", {"audio": {"bytes": "UklGRg==", "path": None}, "text": "t"})))
    assert row["problem"].startswith("audio must be the path of a recording, found {'bytes'")


def test_a_file_name_that_is_not_utf8_can_be_opened_and_written(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    path = write(tmp_path / "m.jsonl", {"audio_filepath": name, "text": "t"})  # as Python's json writes such a name
    row = only(open_manifest(path))
    assert os.fsencode(row["audio"]) == os.fsencode(tmp_path) + b"/caf\xe9.wav"
    assert row["id"] == row["path"] == r"caf\udce9.wav"
    assert row["problem"] is None


# Files ----------------------------------------------------------------------------------------------------------------


def test_mark_of_byte_order_line_endings_blank_lines_and_no_last_newline(tmp_path):
    path = tmp_path / "m.jsonl"
    line = b'{"audio_filepath": "%d.wav", "text": "t"}'
    path.write_bytes(b"\xef\xbb\xbf" + line % 1 + b"\r\n\r\n \t\n" + line % 2 + b"\r\n" + b"?\r\n" + line % 3)
    for shard_rows in (1, 2, 5):
        rows = rows_of(open_manifest(path, shard_rows=shard_rows))
        assert [row["id"] for row in rows] == ["1.wav", "2.wav", "m.jsonl:5", "3.wav"]


def test_paths_count_from_the_folder_of_the_manifest_not_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "other").mkdir()
    write(tmp_path / "sub" / "m.jsonl", GOOD)
    monkeypatch.chdir(tmp_path)
    manifest = open_manifest("sub/m.jsonl")
    monkeypatch.chdir(tmp_path / "other")
    assert only(manifest)["audio"] == f"{tmp_path}/sub/a.wav"
    # A link is where it is: the folder that it points to has other files.
    (tmp_path / "other" / "link.jsonl").symlink_to(tmp_path / "sub" / "m.jsonl")
    assert only(open_manifest("link.jsonl"))["audio"] == f"{tmp_path}/other/a.wav"


def test_another_process_reads_the_same_from_a_pickle(tmp_path):
    path = write(tmp_path / "m.jsonl", *({**GOOD, "id": f"é{k}"} for k in range(10)))
    manifest = open_manifest(path, shard_rows=3)
    (tmp_path / "pickle").write_bytes(pickle.dumps(manifest))
    code = "import pickle, sys; print(ascii(pickle.load(open(sys.argv[1], 'rb')).read(2)))"
    environment = os.environ | {"PYTHONPATH": str(Path(torch_ctc_align.__file__).parents[1])}
    command = [sys.executable, "-c", code, tmp_path / "pickle"]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ascii(manifest.read(2))
    assert manifest.read(2)["id"] == ["é6", "é7", "é8"]


@pytest.mark.parametrize("shard", [-1, 4])
def test_a_shard_that_is_not_there(tmp_path, shard):
    manifest = open_manifest(write(tmp_path / "m.jsonl", *[GOOD] * 10), shard_rows=3)
    with pytest.raises(IndexError, match=f"shard must be 0 to 3, found {shard}"):
        manifest.read(shard)


def test_what_cannot_be_opened(tmp_path):
    good = write(tmp_path / "m.jsonl", GOOD)
    assert refusal(tmp_path / "no.jsonl") == f"there is no manifest {tmp_path}/no.jsonl"
    assert (
        refusal(write(tmp_path / "e.jsonl", "", " "))
        == f"{tmp_path}/e.jsonl has no rows; expected one for each recording"
    )
    assert refusal(write(tmp_path / "m.xml", "<x/>")).startswith(f"{tmp_path}/m.xml must end in .jsonl, .ndjson, .json")
    assert refusal(good, shard_rows=0) == "shard_rows must be a whole number of at least 1, found 0"
    (tmp_path / "u.jsonl").write_text(json.dumps(GOOD), encoding="utf-16")
    assert refusal(tmp_path / "u.jsonl") == f"{tmp_path}/u.jsonl is UTF-16; save it as UTF-8"
    document = write(tmp_path / "d.json", json.dumps([GOOD], indent=1))
    assert refusal(document).startswith(f"{document} is one JSON document, not a manifest")
    write(document, "[", json.dumps(GOOD) + ",", GOOD, "]")  # whose last line but one is a row
    assert refusal(document).startswith(f"{document} is one JSON document, not a manifest")
    assert refusal(write(tmp_path / "t.jsonl", "some", "text")) == (
        f"{tmp_path}/t.jsonl is no manifest: none of its first 2 lines is a JSON object "
        "(t.jsonl:1 is not JSON (Expecting value at character 1))"
    )
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert refusal(tmp_path / "pipe.jsonl").startswith(f"{tmp_path}/pipe.jsonl is not a regular file")
    (tmp_path / "z.jsonl.gz").write_bytes(b"not zipped")
    assert refusal(tmp_path / "z.jsonl.gz") == f"{tmp_path}/z.jsonl.gz cannot be read: Not a gzipped file (b'no')"
    (tmp_path / "y.jsonl.gz").write_bytes(gzip.compress(good.read_bytes())[:-4])
    assert refusal(tmp_path / "y.jsonl.gz").startswith(f"{tmp_path}/y.jsonl.gz cannot be read: Compressed file ended")


# Columns --------------------------------------------------------------------------------------------------------------


def test_the_first_of_the_known_names_is_taken(tmp_path):
    audio = ["audio_filepath", "audio", "audio_path", "path", "file", "file_name", "filename", "wav_filename", "wav"]
    text = ["text", "transcript", "transcription", "sentence"]
    for names, key in ((audio, "path"), (text, "text")):
        for first in range(len(names)):
            cells = {name: name for name in reversed(names[first:])}
            path = write(tmp_path / "m.jsonl", {"wav": "w", "sentence": "s", **cells})
            assert only(open_manifest(path))[key] == names[first]


def test_columns_that_are_named(tmp_path):
    path = write(tmp_path / "m.jsonl", {**GOOD, "Audio": "b.wav", "norm": "u", "key": "k"})
    row = only(open_manifest(path, audio_column="Audio", text_column="norm", id_column="key"))
    assert (row["path"], row["text"], row["id"]) == ("b.wav", "u", "k")
    assert refusal(path, text_column="NORM") == (
        f"{path} has no column 'NORM', which --text-column names; it has the columns "
        "'audio_filepath', 'text', 'Audio', 'norm', 'key'"
    )


def test_missing_columns_are_told_with_those_there_are(tmp_path):
    path = write(tmp_path / "m.jsonl", {"clip": "a.wav"}, {"words": "t"})
    assert refusal(path) == (
        f"{path} has no column called audio_filepath, audio, audio_path, path, file, file_name, filename, wav_filename "
        "or wav; it has the columns 'clip', 'words': name the one with the audio with --audio-column (audio_column= in "
        "Python)"
    )
    assert refusal(path, audio_column="clip") == (
        f"{path} has no column called text, transcript, transcription or sentence; it has the columns 'clip', 'words': "
        "name the one with the text with --text-column (text_column= in Python)"
    )
    assert only(open_manifest(write(path, {"clip": "a.wav", "words": "t"}), audio_column="clip", text_column="words"))
    many = write(path, {f"c{k:02d}": 1 for k in range(30)})
    assert "'c19', ...: name" in refusal(many)


# CSV and TSV ----------------------------------------------------------------------------------------------------------


def test_csv_with_quoted_commas_marks_and_newlines(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes(
        b'\xef\xbb\xbfid,Path,transcript,offset,duration\r\n'
        b'1,a.wav,"one, two",,\r\n'
        b'2,b.wav,"she said ""no""\r\nand left",1.50,2\r\n'
        b'\r\n'
        b'3,c.wav,4" of rain,0,\r\n'
        b'4,d.wav,,,1'
    )  # fmt: skip
    for shard_rows in (1, 2, 9):
        rows = rows_of(open_manifest(path, shard_rows=shard_rows))
        assert [(row["id"], row["path"], row["text"], row["offset"], row["duration"]) for row in rows] == [
            ("1", "a.wav", "one, two", 0.0, None),
            ("2", "b.wav", 'she said "no"\r\nand left', 1.5, 2.0),
            ("3", "c.wav", '4" of rain', 0.0, None),
            ("4", "d.wav", "", 0.0, 1.0),
        ]
        assert [row["problem"] for row in rows] == [None] * 4


def test_rows_of_csv_that_are_broken(tmp_path):
    path = write(
        tmp_path / "m.csv", "path,text", "a.wav,one, two", "b.wav", 'c.wav,"so" he said', b"d.wav,\xff", "e.wav,t",
        'f.wav,"never closed', "g.wav,t",
    )  # fmt: skip
    advice = ": a quotation mark in a field in quotation marks is doubled, and each is closed"
    rows = rows_of(open_manifest(path, shard_rows=2))
    assert [row["id"] for row in rows] == ["m.csv:2", "m.csv:3", "m.csv:4", "m.csv:5", "e.wav", "m.csv:7"]
    assert [row["problem"] and row["problem"].partition(":")[2] for row in rows] == [
        "2 has 3 fields, and the header has 2: a field with a ',' in it must be in quotation marks",
        "3 has 1 fields, and the header has 2: a field with a ',' in it must be in quotation marks",
        "4 is not CSV (',' expected after '\"')" + advice,
        "5 is not UTF-8 text (invalid start byte at byte 6): save the file as UTF-8",
        None,
        "7 is not CSV (unexpected end of data)" + advice,
    ]


def test_places_in_csv_are_lines_as_an_editor_counts_them(tmp_path):
    path = write(tmp_path / "m.csv", '"path","the', 'text"', 'a.wav,"one', "", 'two"', "", ",t", "b")
    rows = rows_of(open_manifest(path, text_column="the\ntext", shard_rows=1))
    assert [row["id"] for row in rows] == ["a.wav", "m.csv:7", "m.csv:8"]
    assert rows[0]["text"] == "one\n\ntwo"


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters_of_csv(tmp_path, delimiter):
    path = write(tmp_path / "m.csv", delimiter.join(["path", "text"]), delimiter.join(["a.wav", '"one, two"']))
    assert (only(open_manifest(path))["path"], only(open_manifest(path))["text"]) == ("a.wav", "one, two")


def test_a_header_is_needed(tmp_path):
    path = write(tmp_path / "metadata.csv", "LJ001-0001|Printing|printing", "LJ001-0002|in being|in being")
    assert "it has the columns 'LJ001-0001', 'Printing', 'printing': name the one" in refusal(path)
    assert "must have one column 'text' in its first line" in refusal(write(path, "path,text,text", "a,b,c"))
    assert refusal(write(path, "path,text")) == f"{path} has no rows; expected one for each recording"


def test_common_voice(tmp_path):
    """Quotation marks are the text's, a line is a row, and the recordings lie in clips."""
    path = write(
        tmp_path / "validated.tsv",
        "client_id\tpath\tsentence_id\tsentence\tup_votes",
        'c\tcv_1.mp3\ts\t"So it begins,\t2',
        'c\tcv_2.mp3\ts\the said."\t2',
        'c\tcv_3.mp3\ts\t"No."\t2',
    )
    assert [row["audio"] for row in rows_of(open_manifest(path))] == [f"{tmp_path}/cv_{k}.mp3" for k in (1, 2, 3)]
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "cv_1.mp3").touch()
    rows = rows_of(open_manifest(path))
    assert [row["audio"] for row in rows] == [f"{tmp_path}/clips/cv_{k}.mp3" for k in (1, 2, 3)]
    assert [row["id"] for row in rows] == ["cv_1.mp3", "cv_2.mp3", "cv_3.mp3"]
    assert [row["text"] for row in rows] == ['"So it begins,', 'he said."', '"No."']
    (tmp_path / "cv_1.mp3").touch()
    assert rows_of(open_manifest(path))[0]["audio"] == f"{tmp_path}/cv_1.mp3"


def test_the_text_of_ten_hours_fits_into_a_field(tmp_path):
    text = "word, " * 200_000  # 1.2 MB; csv's own limit is 131 kB
    path = write(tmp_path / "m.csv", "path,text", f'a.wav,"{text}"', f'b.wav,"{text}"')
    assert [row["text"] for row in rows_of(open_manifest(path, shard_rows=1))] == [text, text]


# Shards ---------------------------------------------------------------------------------------------------------------


def random_text(generator):
    letters = ["a", "é", "語", "😀", " ", ",", '"', "'", "\t", "\\", "\n", "\r\n", "\u2028", ";", "#", "\x0b"]
    return "".join(generator.choices(letters, k=generator.randrange(12)))


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "csv.gz"])
def test_shards_in_any_order_are_what_plain_readers_read(tmp_path, kind):
    generator = random.Random(SEED)
    for _ in range(20):
        texts = [random_text(generator) for _ in range(generator.randrange(1, 40))]
        table = io.StringIO(newline="")
        if kind.startswith("json"):
            for k, text in enumerate(texts):
                cells = {"path": f"{k}.wav", "text": text}
                table.write(json.dumps(cells, ensure_ascii=generator.random() < 0.5))
                table.write(generator.choice(["\n", "\r\n", "\n\n"]))
        else:
            writer = csv.writer(table, lineterminator=generator.choice(["\n", "\r\n"]))
            writer.writerows([["path", "text"], *([f"{k}.wav", text] for k, text in enumerate(texts))])
        data = generator.choice([b"", b"\xef\xbb\xbf"]) + table.getvalue().encode()
        path = tmp_path / f"m.{kind}"
        path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
        manifest = open_manifest(path, shard_rows=generator.randrange(1, 45))
        assert manifest.num_rows == len(texts)
        assert manifest.num_shards == -(-len(texts) // manifest.shard_rows)
        found = {}
        for shard in generator.sample(range(manifest.num_shards), manifest.num_shards):
            columns = manifest.read(shard)
            assert columns["problem"] == [None] * len(columns["id"])
            found[shard] = list(zip(columns["path"], columns["text"], strict=True))
        rows = [row for shard in sorted(found) for row in found[shard]]
        assert rows == [(f"{k}.wav", text) for k, text in enumerate(texts)]


def test_a_manifest_that_changes_is_noticed_by_the_shards_that_change(tmp_path):
    lines = [json.dumps({"audio_filepath": f"{k}.wav", "text": "one"}) for k in range(6)]
    path = write(tmp_path / "m.jsonl", *lines)
    manifest = open_manifest(path, shard_rows=2)
    before = [manifest.read(shard) for shard in range(3)]
    write(path, *lines[:3], lines[3].replace("one", "two"), *lines[4:], *lines)  # and longer
    assert [manifest.read(0), manifest.read(2)] == [before[0], before[2]]
    with pytest.raises(SpeechError, match=r"m\.jsonl has changed since it was opened: the rows from line 3 on"):
        manifest.read(1)
    write(path, *lines[:5])
    with pytest.raises(SpeechError, match=r"m\.jsonl has changed since it was opened: the rows from line 5 on"):
        manifest.read(2)
    path.unlink()
    with pytest.raises(SpeechError, match=r"m\.jsonl cannot be read: No such file or directory"):
        manifest.read(0)


def test_a_gzipped_manifest_that_is_replaced_is_read_anew(tmp_path):
    """The file stays open between shards: that must not show."""
    path = tmp_path / "m.jsonl.gz"
    for name in ("a", "b"):
        lines = (json.dumps({"audio_filepath": f"{name}{k}.wav", "text": "t"}) for k in range(6))
        path.unlink(missing_ok=True)
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
        manifest = open_manifest(path, shard_rows=2)
        assert manifest.read(1)["id"] == [f"{name}2.wav", f"{name}3.wav"]
        assert manifest.read(0)["id"] == [f"{name}0.wav", f"{name}1.wav"]
    old = open_manifest(path, shard_rows=2)
    path.write_bytes(gzip.compress(b'{"audio_filepath": "c", "text": "t"}\n' * 6))
    with pytest.raises(SpeechError, match="has changed"):
        old.read(1)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz"])
def test_the_digest_is_that_of_the_bytes(tmp_path, kind):
    lines = "".join(json.dumps({"audio_filepath": f"{k}.wav", "text": "x" * 1000}) + "\n" for k in range(3000)).encode()
    path = tmp_path / f"m.{kind}"
    path.write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines)
    assert open_manifest(path).digest() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert open_manifest(path, shard_rows=7).digest() == open_manifest(path).digest()


# Ids that are there twice ---------------------------------------------------------------------------------------------


def test_an_id_that_is_there_twice_is_found_with_its_places(tmp_path):
    lines = [{"audio_filepath": f"{k}.wav", "text": "t", "offset": k} for k in range(50)]
    assert open_manifest(write(tmp_path / "m.jsonl", *lines), shard_rows=7).find_duplicates() is None
    path = write(tmp_path / "m.jsonl", *lines, "", lines[20], lines[20])
    manifest = open_manifest(path, shard_rows=7)
    assert manifest.find_duplicates() == ("20.wav#20", ["m.jsonl:21", "m.jsonl:52", "m.jsonl:53"])


def test_an_id_of_many_rows_is_found_too(tmp_path):
    path = write(tmp_path / "m.jsonl", *({"audio_filepath": f"{k}.wav", "text": "t", "id": "one"} for k in range(3000)))
    id, places = open_manifest(path).find_duplicates()
    assert (id, len(places), places[-1]) == ("one", 3000, "m.jsonl:3000")


def test_equal_hashes_of_different_ids_are_no_duplicates(tmp_path, monkeypatch):
    monkeypatch.setattr("torch_ctc_align.speech.corpus.manifests.hash", lambda id: len(id) % 2, raising=False)
    lines = [{"audio_filepath": f"{k}.wav", "text": "t"} for k in range(20)]
    assert open_manifest(write(tmp_path / "m.jsonl", *lines)).find_duplicates() is None
    path = write(tmp_path / "m.jsonl", *lines, lines[3])
    assert open_manifest(path).find_duplicates() == ("3.wav", ["m.jsonl:4", "m.jsonl:21"])
