"""Manifests of Parquet, cuts of Lhotse, folders of manifests, folders of pairs."""

import gzip
import json
import os
import pickle
import random
import shutil
import wave

import pytest
from conftest import SEED
from test_corpus_manifests import GOOD, only, refusal, rows_of, write

from torch_ctc_align.speech.corpus.manifests import open_manifest
from torch_ctc_align.speech.errors import SpeechError


@pytest.fixture
def pyarrow(library):
    library("pyarrow.parquet")
    return library("pyarrow")


# Parquet --------------------------------------------------------------------------------------------------------------


def test_shards_of_parquet_in_any_order(tmp_path, pyarrow):
    """Whatever the row groups and the files; empty ones too."""
    generator = random.Random(SEED)
    for case in range(15):
        folder = tmp_path / str(case)
        folder.mkdir()
        count = generator.randrange(1, 60)
        cells = [(f"{k}.wav", generator.choice([None, "", f"é{k}"])) for k in range(count)]
        table = pyarrow.table({"other": [0.5] * count, "path": [a for a, _ in cells], "text": [b for _, b in cells]})
        cuts = [0, *sorted(generator.randrange(count + 1) for _ in range(3)), count]
        for k in range(4):
            part = table.slice(cuts[k], cuts[k + 1] - cuts[k])
            pyarrow.parquet.write_table(part, folder / f"{k}.parquet", row_group_size=generator.randrange(1, 20))
        manifest = pickle.loads(pickle.dumps(open_manifest(folder, shard_rows=generator.randrange(1, 30))))
        assert (manifest.kind, manifest.num_rows) == ("parquet", count)
        found = {}
        for shard in generator.choices(range(manifest.num_shards), k=5) + list(range(manifest.num_shards)):
            columns = manifest.read(shard)
            found[shard] = list(zip(columns["path"], columns["text"], strict=True))
        assert [row for shard in sorted(found) for row in found[shard]] == cells


def test_what_parquet_has_for_missing_values(tmp_path, pyarrow):
    nan = float("nan")
    table = {
        "audio": ["a.wav", "b.wav", "c.wav", None, "", "d.wav"],
        "text": ["one", None, "", "t", "t", "t"],
        "offset": [1.5, None, nan, 0.0, 0.0, -1.0],
        "duration": [2.0, nan, None, 1.0, 1.0, 1.0],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "m.parquet")
    rows = rows_of(open_manifest(tmp_path / "m.parquet", shard_rows=2))
    assert [tuple(row.values()) for row in rows[:3]] == [
        ("a.wav#1.5+2", f"{tmp_path}/a.wav", "a.wav", "one", 1.5, 2.0, None),
        ("b.wav", f"{tmp_path}/b.wav", "b.wav", None, 0.0, None, None),
        ("c.wav", f"{tmp_path}/c.wav", "c.wav", "", 0.0, None, None),
    ]
    assert [(row["id"], row["problem"]) for row in rows[3:]] == [
        ("m.parquet:4", "audio must be the path of a recording, found None"),
        ("m.parquet:5", "audio must be the path of a recording, found ''"),
        ("m.parquet:6", "offset must be a number of seconds, 0 or above, found -1.0"),
    ]


def test_ids_that_are_numbers_and_decimal_seconds(tmp_path, pyarrow):
    table = pyarrow.table(
        {
            "id": pyarrow.array([7, None], pyarrow.int32()),
            "path": pyarrow.array(["a.wav", "b.wav"]).dictionary_encode(),
            "text": pyarrow.array(["t", "u"], pyarrow.large_string()),
            "offset": pyarrow.array([1, 2], pyarrow.float32()).cast(pyarrow.decimal128(9, 2)),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    first, second = rows_of(open_manifest(tmp_path / "m.parquet"))
    assert (first["id"], first["path"], first["text"], first["offset"]) == ("7", "a.wav", "t", 1.0)
    assert (second["id"], second["text"], second["offset"]) == ("b.wav#2", "u", 2.0)


def test_recordings_inside_of_parquet(tmp_path, pyarrow):
    """As the package datasets writes them: a structure of bytes and path; or bytes alone."""
    sound = [b"RIFF" + bytes([k]) * 10 for k in range(4)]
    audio = [
        {"bytes": sound[0], "path": "a.wav"},
        {"bytes": sound[1], "path": None},
        {"bytes": None, "path": "c.wav"},
        None,
    ]
    pyarrow.parquet.write_table(pyarrow.table({"audio": audio, "text": list("abcd")}), tmp_path / "m.parquet")
    manifest = open_manifest(tmp_path / "m.parquet", shard_rows=3)
    assert [(row["id"], row["audio"], row["path"], row["text"]) for row in rows_of(manifest)] == [
        ("a.wav", sound[0], "a.wav", "a"),
        ("m.parquet:2", sound[1], None, "b"),
        ("c.wav", f"{tmp_path}/c.wav", "c.wav", "c"),
        ("m.parquet:4", None, None, None),
    ]
    assert manifest.find_duplicates() is None
    pyarrow.parquet.write_table(pyarrow.table({"audio": sound, "text": list("abcd")}), tmp_path / "n.parquet")
    assert [(row["id"], row["audio"]) for row in rows_of(open_manifest(tmp_path / "n.parquet"))] == [
        (f"n.parquet:{k + 1}", sound[k]) for k in range(4)
    ]


@pytest.mark.parametrize("with_id", [False, True])
def test_looking_for_duplicates_does_not_read_recordings(tmp_path, pyarrow, monkeypatch, with_id):
    columns = {"audio": [{"bytes": b"RIFF", "path": f"{k % 9}.wav"} for k in range(10)], "text": ["t"] * 10}
    if with_id:
        columns["id"] = [f"{k % 8}" for k in range(10)]
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "m.parquet")
    manifest = open_manifest(tmp_path / "m.parquet", shard_rows=4)
    asked = []
    read = pyarrow.parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile,
        "iter_batches",
        lambda self, *, columns, **rest: asked.append(columns) or read(self, columns=columns, **rest),
    )
    expected = ("0", ["m.parquet:1", "m.parquet:9"]) if with_id else ("0.wav", ["m.parquet:1", "m.parquet:10"])
    assert manifest.find_duplicates() == expected
    assert asked
    assert {name for columns in asked for name in columns} == {*(["id"] if with_id else []), "audio.path"}


def test_a_large_row_group_is_read_once(tmp_path, pyarrow, monkeypatch):
    table = pyarrow.table({"path": [f"{k}.wav" for k in range(1000)], "text": ["t"] * 1000})
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    manifest = open_manifest(tmp_path / "m.parquet", shard_rows=10)
    begun = []
    read = pyarrow.parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile, "iter_batches", lambda self, **options: begun.append(1) or read(self, **options)
    )
    for shard in range(0, 100, 3):  # as one of three workers
        assert manifest.read(shard)["id"] == [f"{10 * shard + k}.wav" for k in range(10)]
    assert len(begun) == 1
    assert manifest.read(5)["id"][0] == "50.wav"  # back
    assert len(begun) == 2


def test_row_groups_between_two_shards_are_not_read(tmp_path, pyarrow, monkeypatch):
    table = pyarrow.table({"path": [f"{k}.wav" for k in range(100)], "text": ["t"] * 100})
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet", row_group_size=10)
    manifest = open_manifest(tmp_path / "m.parquet", shard_rows=5)
    first_groups = []
    read = pyarrow.parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile,
        "iter_batches",
        lambda self, *, row_groups, **rest: (
            first_groups.append(row_groups[0]) or read(self, row_groups=row_groups, **rest)
        ),
    )
    for shard in (1, 17, 18):
        assert manifest.read(shard)["id"][0] == f"{5 * shard}.wav"
    assert first_groups == [0, 8]  # rows 85 to 89, and then on


def test_parquet_that_cannot_be_used(tmp_path, pyarrow):
    path = tmp_path / "m.parquet"
    path.write_bytes(b"PAR1 is not enough")
    assert refusal(path).startswith(f"{path} cannot be read: ")
    path.write_bytes(b"")
    assert refusal(path).startswith(f"{path} cannot be read: ")
    pyarrow.parquet.write_table(pyarrow.table({"clip": ["a"], "text": ["t"]}), path)
    assert "it has the columns 'clip', 'text': name the one with the audio with --audio-column" in refusal(path)
    pyarrow.parquet.write_table(pyarrow.table({"path": pyarrow.array([], "string"), "text": []}), path)
    assert refusal(path) == f"{path} has no rows; expected one for each recording"
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a"], "text": ["t"]}), path)
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a"], "sentence": ["t"]}), tmp_path / "n.parquet")
    assert refusal(tmp_path) == f"{tmp_path}/n.parquet has no column 'text', and {path} has one"


def test_parquet_that_changes_is_noticed(tmp_path, pyarrow):
    path = tmp_path / "m.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a", "b"], "text": ["t", "u"]}), path)
    manifest = open_manifest(path, shard_rows=1)
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a", "b"], "text": ["t", "v"]}), path)
    assert open_manifest(path).digest() != manifest.digest()
    with pytest.raises(SpeechError, match=r"m\.parquet has changed since it was opened"):
        manifest.read(1)
    path.unlink()
    with pytest.raises(SpeechError, match=r"m\.parquet cannot be read: No such file or directory"):
        manifest.read(0)


# Cuts of Lhotse -------------------------------------------------------------------------------------------------------


def cut(**facts):
    recording = {
        "id": "r", "sources": [{"type": "file", "channels": [0], "source": "r.wav"}], "sampling_rate": 16000,
        "num_samples": 160000, "duration": 10.0, "channel_ids": [0],
    }  # fmt: skip
    supervisions = [
        {"id": "b", "recording_id": "r", "start": 2.0, "duration": 1.0, "text": "world"},
        {"id": "c", "recording_id": "r", "start": 3.0, "duration": 1.0},
        {"id": "a", "recording_id": "r", "start": 0.5, "duration": 1.0, "text": "hello"},
    ]
    return {"id": "x", "start": 1.5, "duration": 5.0, "channel": 0, "supervisions": supervisions,
            "recording": recording, "type": "MonoCut"} | facts  # fmt: skip


def sources(*listed):
    return cut()["recording"] | {"sources": list(listed)}


def test_a_cut_is_a_part_of_a_recording_with_the_texts_of_its_supervisions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "cuts.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(cut()).encode()))
    manifest = open_manifest(path)
    monkeypatch.chdir("/")
    assert manifest.kind == "cuts"
    # In lhotse paths count from the working directory, not from the manifest.
    assert tuple(only(manifest).values()) == ("x", f"{tmp_path}/r.wav", "r.wav", "hello\nworld", 1.5, 5.0, None)


FILE = {"type": "file", "channels": [0], "source": "r.wav"}


@pytest.mark.parametrize(
    "facts, problem",
    [
        ({"type": "PaddingCut"}, "a cut must be a MonoCut or a MultiCut, found 'PaddingCut'"),
        ({"type": "MixedCut", "tracks": []}, "a cut must be a MonoCut or a MultiCut, found 'MixedCut'"),
        ({"recording": None}, "a cut must have a recording, found none"),
        (
            {"recording": cut()["recording"] | {"transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]}},
            "a cut must be as its file is, found the transform Speed",
        ),
        (
            {"recording": sources(FILE | {"channels": [0, 1]})},
            "a cut must be of all channels of one file, found [0] of 1 files with [0, 1]",
        ),
        ({"channel": 3}, "a cut must be of all channels of one file, found [3] of 0 files with []"),
        (
            {"channel": [0, 1], "recording": sources(FILE, FILE | {"channels": [1]}), "type": "MultiCut"},
            "a cut must be of all channels of one file, found [0, 1] of 2 files with [0, 1]",
        ),
        (
            {"recording": sources(FILE | {"type": "command"})},
            "a cut must be of a file, found a source of type 'command'",
        ),
        (
            {"recording": sources(FILE | {"source": "https://x/y"})},
            "audio must be the path of a file, found the address",
        ),
        ({"recording": sources(3)}, "a cut must be as lhotse writes it ("),
        ({"supervisions": [{"text": 5}]}, "a cut must be as lhotse writes it ("),
        ({"start": "soon"}, "offset must be a number of seconds, 0 or above, found 'soon'"),
    ],
)
def test_a_cut_that_is_not_a_part_of_one_file_is_a_problem(tmp_path, facts, problem):
    path = write(tmp_path / "cuts.jsonl", cut(id="before"), cut(**facts), cut(id="after"))
    before, bad, after = rows_of(open_manifest(path))
    assert bad["problem"].startswith(problem)
    assert (bad["id"], bad["audio"]) == ("x", None)
    assert (before["id"], before["problem"], after["id"], after["problem"]) == ("before", None, "after", None)


@pytest.mark.parametrize(
    "facts",
    [
        {"recording": sources(FILE, {"type": "file", "channels": [1], "source": "other.wav"})},
        {"recording": sources(FILE | {"channels": [0, 1]}), "channel": [1, 0], "type": "MultiCut"},
        {"recording": cut()["recording"] | {"transforms": [{"name": "Resample"}, {"name": "Volume"}]}},
    ],
)
def test_a_cut_of_one_file_among_others_of_all_channels_or_resampled(tmp_path, facts):
    row = only(open_manifest(write(tmp_path / "cuts.jsonl", cut(**facts))))
    assert (row["path"], row["problem"]) == ("r.wav", None)


def test_cuts_have_columns_of_their_own(tmp_path):
    path = write(tmp_path / "cuts.jsonl", cut())
    assert refusal(path, text_column="t") == (
        f"{path} has cuts of lhotse, whose columns are known; leave out text_column"
    )


def test_lhotse_reads_the_same_samples_and_texts(tmp_path, missing, monkeypatch):
    """Cuts that lhotse made: what it loads is what our path, offset and duration name."""
    lhotse = _lhotse(missing)
    import numpy as np

    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(SEED)
    for name, channels in (("mono", 1), ("stereo", 2)):
        samples = generator.integers(-9999, 9999, (40000, channels), dtype=np.int16)
        with wave.open(f"{name}.wav", "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(samples.tobytes())
    recordings = [lhotse.Recording.from_file(f"{name}.wav") for name in ("mono", "stereo")]
    supervisions = [
        lhotse.SupervisionSegment(id=f"s{k}", recording_id="mono", start=0.4 * k, duration=0.4, text=f"word {k}")
        for k in range(5)
    ]
    whole = lhotse.MonoCut("whole", 0, 2.5, 0, recording=recordings[0], supervisions=supervisions[::-1])
    stereo = lhotse.MultiCut("stereo", 0.5, 1.5, [0, 1], recording=recordings[1])
    cuts = [
        whole,
        whole.truncate(offset=0.9, duration=0.8).with_id("middle"),
        *whole.cut_into_windows(1.0),
        *whole.trim_to_supervisions(),
        whole.resample(8000).with_id("resampled"),
        stereo,
    ]
    lhotse.CutSet.from_cuts(cuts).to_file("cuts.jsonl.gz")
    manifest = open_manifest("cuts.jsonl.gz", shard_rows=4)
    rows = rows_of(manifest)
    assert [row["id"] for row in rows] == [one.id for one in cuts]
    for row, one in zip(rows, cuts, strict=True):
        said = sorted((one.start, one.text) for one in one.supervisions)
        assert (row["text"] or "").split() == " ".join(text for _, text in said).split()
        assert row["problem"] is None
        with wave.open(row["audio"]) as file:
            file.setpos(round(row["offset"] * 16000))
            data = file.readframes(round(row["duration"] * 16000))
        there = np.frombuffer(data, np.int16).reshape(-1, 2 if one.id == "stereo" else 1).T / 32768
        if one.id == "resampled":
            assert row["duration"] == one.duration
        else:
            np.testing.assert_array_equal(one.load_audio(), there.astype(np.float32))


def _lhotse(missing):
    try:
        import lhotse
    except ImportError as error:
        missing("corpora", f"lhotse cannot be imported ({error}); see make test-corpora")
    return lhotse


# Folders of manifests -------------------------------------------------------------------------------------------------


def test_a_folder_of_manifests_is_one_manifest_in_the_order_of_names(tmp_path):
    generator = random.Random(SEED)
    expected = []
    for k in range(6):
        names = [f"{k}-{j}.wav" for j in range(generator.choice([0, 1, 2, 7]))]
        data = "".join(json.dumps({"path": name, "text": "t"}) + "\n" for name in names).encode()
        if k % 2:
            (tmp_path / f"{k}.jsonl").write_bytes(data)
        else:
            (tmp_path / f"{k}.jsonl.gz").write_bytes(gzip.compress(data))
        expected += names
    write(tmp_path / "6.jsonl", {"path": "last.wav", "text": "t"}, "?")
    write(tmp_path / "failures.jsonl", {"path": "x", "reason": "y"})  # ctc-align's own
    write(tmp_path / ".hidden.jsonl", {"path": "x", "text": "y"})
    write(tmp_path / "talk.json", {"words": []})
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "last.wav").touch()
    for shard_rows in (1, 3, 100):
        manifest = open_manifest(tmp_path, shard_rows=shard_rows)
        rows = rows_of(manifest)
        assert manifest.kind == "jsonl"
        assert [row["id"] for row in rows] == [*expected, "last.wav", "6.jsonl:2"]
        assert rows[-2]["audio"] == f"{tmp_path}/last.wav"
        last = manifest.num_shards - 1
        assert manifest.read(last)["id"] == [row["id"] for row in rows][last * shard_rows :]


def test_tables_of_a_folder_may_have_their_columns_in_another_order(tmp_path):
    write(tmp_path / "a.csv", "path,text", "a.wav,one")
    write(tmp_path / "b.csv", "text;more;path", '"two;\n";x;b.wav', "three;y;c.wav")
    rows = rows_of(open_manifest(tmp_path, shard_rows=2))
    assert [(row["id"], row["text"]) for row in rows] == [("a.wav", "one"), ("b.wav", "two;\n"), ("c.wav", "three")]
    write(tmp_path / "c.csv", "path,sentence", "d.wav,four")
    assert refusal(tmp_path) == (f"{tmp_path}/c.csv must have one column 'text' in its first line, the header; found 0")


def test_the_digest_of_a_folder_tells_what_was_changed_but_not_where_it_is(tmp_path):
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "1.jsonl", GOOD)
    write(tmp_path / "a" / "2.jsonl", GOOD, GOOD)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    digest = open_manifest(tmp_path / "a").digest()
    assert open_manifest(tmp_path / "b").digest() == digest
    (tmp_path / "b" / "1.jsonl").rename(tmp_path / "b" / "3.jsonl")
    assert open_manifest(tmp_path / "b").digest() != digest


def test_a_folder_with_several_kinds_is_ambiguous(tmp_path):
    write(tmp_path / "a.jsonl", GOOD)
    write(tmp_path / "b.csv", "path,text", "a,b")
    assert (
        refusal(tmp_path)
        == f"{tmp_path} holds manifests of several kinds, a.jsonl and b.csv; name the file that is meant"
    )


def test_a_file_of_a_folder_that_is_gone_is_not_left_out_in_silence(tmp_path):
    write(tmp_path / "a.jsonl", GOOD)
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "nowhere")
    assert refusal(tmp_path) == f"{tmp_path}/b.jsonl cannot be read: No such file or directory"


# Folders of pairs -----------------------------------------------------------------------------------------------------


def test_pairs_are_found_below_and_their_texts_are_read_with_the_shard(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/é 1.flac", "a.WAV", "c.wav", "c.mp3", "lonely.wav", ".hidden.wav", "e.wav", "f.wav"):
        (tmp_path / name).touch()
    for name, text in (("b/é 1.txt", "eins\nzwei\n"), ("a.lab", "ah"), ("c.txt", "see"), ("c.lab", "not this"),
                       ("words.txt", "of nobody"), (".hidden.txt", "h"), ("e.txt", ""), ("f.txt", "f")):  # fmt: skip
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "f.txt").write_bytes(b"\xff\xfe\xfd")
    manifest = open_manifest(tmp_path, shard_rows=4)
    assert (manifest.kind, manifest.num_rows, manifest.num_shards) == ("pairs", 6, 2)
    rows = rows_of(pickle.loads(pickle.dumps(manifest)))
    assert [(row["id"], row["text"]) for row in rows] == [
        ("a.WAV", "ah"), ("c.mp3", "see"), ("c.wav", "see"), ("e.wav", ""), ("f.wav", None),
        ("b/é 1.flac", "eins\nzwei\n"),
    ]  # fmt: skip
    assert [row["audio"] for row in rows if row["audio"]] == [
        str(tmp_path / row["id"]) for row in rows if row["id"] != "f.wav"
    ]
    assert [row["problem"] for row in rows if row["id"] != "f.wav"] == [None] * 5
    assert rows[4]["problem"] == f"{tmp_path}/f.txt is not UTF-16, as its first two bytes say, at byte 2"
    assert manifest.notes == (
        "recordings without a text are left out: 1, as lonely.wav",
        "texts without a recording are left out: 1, as words.txt",
    )
    (tmp_path / "a.lab").write_text("later")
    (tmp_path / "c.txt").unlink()
    assert manifest.read(0)["text"][:2] == ["later", None]
    assert manifest.read(0)["problem"][1] == f"{tmp_path}/c.txt cannot be read: No such file or directory"
    assert manifest.find_duplicates() is None


def test_names_of_pairs_that_are_not_utf8(tmp_path):
    for suffix in (b".wav", b".txt"):
        with open(os.fsencode(tmp_path) + b"/caf\xe9" + suffix, "w") as file:
            file.write("said")
    manifest = open_manifest(tmp_path)
    row = only(manifest)
    assert os.path.exists(row["audio"])
    assert (row["id"], row["path"], row["text"]) == (r"caf\udce9.wav", r"caf\udce9.wav", "said")
    assert len(manifest.digest()) == 64


def test_the_digest_of_pairs_tells_names_and_sizes_of_texts(tmp_path):
    def digest():
        return open_manifest(tmp_path).digest()

    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
        (tmp_path / name).with_suffix(".txt").write_text("said")
    found = [digest()]
    (tmp_path / "c.wav").touch()  # without a text
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    assert digest() == found[0]
    (tmp_path / "c.txt").write_text("more")
    found.append(digest())
    (tmp_path / "c.txt").write_text("longer")
    found.append(digest())
    (tmp_path / "c.wav").rename(tmp_path / "c.flac")
    found.append(digest())
    (tmp_path / "c.txt").rename(tmp_path / "c.lab")
    found.append(digest())
    assert len(set(found)) == 5


def test_links_are_followed_once(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.wav").touch()
    (tmp_path / "sub" / "a.txt").write_text("said")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "b.wav").symlink_to(tmp_path / "sub" / "a.wav")
    (tmp_path / "b.txt").symlink_to(tmp_path / "sub" / "a.txt")
    assert [row["id"] for row in rows_of(open_manifest(tmp_path))] == ["b.wav", "sub/a.wav"]


def test_a_folder_without_pairs(tmp_path):
    (tmp_path / "a.wav").touch()
    assert refusal(tmp_path) == (
        f"{tmp_path} holds no recording with its text, name.wav with name.txt or name.lab, and no manifest "
        "(*.jsonl, *.csv, *.tsv, *.parquet)"
    )


def test_a_folder_that_cannot_be_read_is_not_left_out_in_silence(tmp_path, monkeypatch):
    (tmp_path / "a.wav").touch()
    (tmp_path / "a.txt").write_text("said")
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert refusal(tmp_path).startswith(f"{tmp_path}/closed cannot be read (Permission denied); ")
