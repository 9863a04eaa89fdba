"""The folder of a job, and one shard of it: parts, summaries, journals. No process but this one."""

import fcntl
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from torch_ctc_align.speech import SpeechError
from torch_ctc_align.speech.corpus import COLUMNS
from torch_ctc_align.speech.corpus.files import OutputError, decode_rows, encode_rows, write_whole
from torch_ctc_align.speech.corpus.job import Job, Summary
from torch_ctc_align.speech.corpus.journal import Journal

ROOT = Path(__file__).parents[1]


@pytest.fixture
def corpora(library, monkeypatch, tmp_path):
    """The harness; what its model hears is in tmp_path / "heard"."""
    for name in ("soundfile", "soxr"):
        library(name)
    from harness import corpora

    monkeypatch.setenv("HEARD", str(tmp_path / "heard"))
    monkeypatch.setenv("ONCE", str(tmp_path))
    return corpora


@pytest.fixture
def make_job(corpora, tmp_path):
    """make_job(texts, format=...) -> a job of shards of 4 items, begun."""

    def make(texts, *, name="in", out="out", shard_rows=4, settings=None, **options):
        from torch_ctc_align.speech.corpus.manifests import open_manifest

        manifest = open_manifest(corpora.put_corpus(tmp_path / name, texts), shard_rows=shard_rows)
        settings = {"model": corpora.watched_model} | (settings or {})
        job = Job(manifest, tmp_path / out, settings=settings, **options)
        job.begin()
        return job

    return make


@pytest.fixture
def heard(corpora, tmp_path):
    """heard() -> the texts that the model heard since the last call."""
    state = {"count": 0}

    def since():
        texts = [text for _, text in corpora.heard(tmp_path / "heard")]
        new, state["count"] = texts[state["count"] :], len(texts)
        return new

    return since


def aligner(job, **options):
    from torch_ctc_align.speech.corpus.shards import ShardAligner

    return ShardAligner(job, **options)


def do_all(job):
    align = aligner(job)
    return [align(shard) for shard in range(job.manifest.num_shards)]


def part(job, shard=0):
    return [json.loads(line) for line in job.part(shard).read_text().splitlines()]


def names(folder):
    return sorted(os.listdir(folder))


# Rows and bytes -------------------------------------------------------------------------------------------------------

EMPTY = {"id": "a", "audio": None, "offset": 0.0, "duration": None} | {
    name: [] if kind.startswith("list") else None for name, kind in COLUMNS.items()
}
FULL = EMPTY | {
    "id": 'ä\u2028\n"',
    "audio": "b c.wav",
    "duration": 0.1,
    "status": "ok",
    "words": ["naïve", "你好", ""],
    "starts": [0.1, None, 1 / 3],
    "unexplained": [{"start": 0.5, "end": 1e-9}],
    "unspoken": [1],
    "score": -1e300,
}


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_rows_come_back_from_their_bytes(format, library):
    if format == "parquet":
        library("pyarrow")
    content = encode_rows([EMPTY, FULL], format)
    assert decode_rows(content, format) == [EMPTY, FULL]
    shuffled = [dict(reversed(row.items())) for row in (EMPTY, FULL)]
    assert encode_rows(shuffled, format) == content


def test_parquet_has_the_kinds_of_the_columns_even_if_all_are_empty(library):
    arrow = library("pyarrow")
    parquet = library("pyarrow.parquet")
    schema = parquet.ParquetFile(arrow.BufferReader(encode_rows([EMPTY], "parquet"))).schema_arrow
    assert schema.names == ["id", "audio", "offset", "duration", *COLUMNS]
    assert str(schema.field("words").type) == "list<element: string>"
    assert str(schema.field("duration").type) == "double"
    assert str(schema.field("unexplained").type) == "list<element: struct<start: double, end: double>>"


def test_another_reader_reads_json_lines(library):
    json_reader = library("pyarrow.json")
    table = json_reader.read_json(io.BytesIO(encode_rows([EMPTY, FULL], "jsonl")))
    assert table["words"].to_pylist() == [[], FULL["words"]]
    assert table["id"].to_pylist() == ["a", FULL["id"]]
    assert table["starts"].to_pylist() == [[], FULL["starts"]]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_name_that_is_not_utf_8_can_be_written(format, library):
    if format == "parquet":
        library("pyarrow")
    name = os.fsdecode(b"caf\xe9.wav")
    (row,) = decode_rows(encode_rows([EMPTY | {"audio": name}], format), format)
    assert row["audio"] == (name if format == "jsonl" else "caf\\udce9.wav")


def test_the_rows_of_a_part(make_job):
    """A letter is 4 frames of 0.02 s, see harness/speech.py: "the" begins at 0, "cat" 16 frames later less a border."""
    job = make_job(["the cat", ("the cat", " "), (None, "go"), "go"])
    do_all(job)
    rows = part(job)
    assert [row["id"] for row in rows] == ["item 0", "item 1", "item 2", "item 3"]
    assert [row["status"] for row in rows] == ["ok", "no_text", "unreadable", "ok"]
    assert list(rows[0]) == ["id", "audio", "offset", "duration", *COLUMNS]
    assert (rows[0]["audio"], rows[0]["offset"], rows[0]["duration"]) == ("0.wav", 0.0, None)
    assert (rows[0]["words"], rows[0]["starts"]) == (["the", "cat"], [0.0, 0.26])
    assert rows[2]["words"] == []
    assert "2.wav" in rows[2]["message"]
    assert job.summary(0).statuses == {"no_text": 1, "ok": 2, "unreadable": 1}
    assert [failure["id"] for failure in job.summary(0).failures] == ["item 1", "item 2"]


def test_a_row_that_cannot_be_read_is_a_bad_row(make_job, corpora, tmp_path):
    manifest = corpora.put_corpus(tmp_path / "in", ["go"])
    manifest.write_text(manifest.read_text() + "{\n")
    from torch_ctc_align.speech.corpus.manifests import open_manifest

    job = Job(open_manifest(manifest), tmp_path / "out", settings={"model": corpora.watched_model})
    job.begin()
    (summary,) = do_all(job)
    assert summary.statuses == {"bad_row": 1, "ok": 1}
    assert "JSON" in summary.failures[0]["message"]


def test_numbers_that_are_not_finite_are_an_error(make_job, monkeypatch):
    job = make_job(["go", "go"])
    align = aligner(job)
    whole = align.align

    def spoil(batch):
        done = whole(batch)
        done["score"][1] = float("nan")
        return done

    align.align = spoil
    assert align(0).statuses == {"error": 1, "ok": 1}
    assert part(job)[1]["words"] == []


def test_low_confidence_is_listed(make_job):
    job = make_job(["go home", ("zzz zzzzzz", "go home"), (None, "go")])
    (summary,) = do_all(job)
    low = summary.low_confidence
    assert [entry["id"] for entry in low] == ["item 1"]
    assert low[0]["confidence"] == part(job)[1]["confidence"] < 0.3
    totals = job.finish()
    assert json.loads((job.out / "summary.json").read_text())["low_confidence"] == 1 == totals.low_confidence
    assert [json.loads(line) for line in (job.out / "low_confidence.jsonl").read_text().splitlines()] == low


# Whole or not at all --------------------------------------------------------------------------------------------------


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    """Wherever writing fails, the old file is there, and nothing else."""
    path = tmp_path / "file"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    write_whole(path, b"old", scratch)
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def fail(*args, **options):
                raise OSError(28, "No space left on device")

            patch.setattr(*((os, "fsync") if name == "fsync" else (Path, "replace")), fail)
            with pytest.raises(OutputError, match=r"cannot write .*file: No space left on device; make room"):
                write_whole(path, b"new", scratch)
        assert path.read_bytes() == b"old"
        assert names(scratch) == []
    write_whole(path, b"new", scratch)
    assert path.read_bytes() == b"new"
    write_whole(path, b"newer", scratch, only_new=True)
    assert path.read_bytes() == b"new"


def test_who_sees_a_part_finds_its_summary(make_job, monkeypatch):
    """A new part comes after its summary; where a part is replaced, the summary must not forget failures before."""
    from torch_ctc_align.speech.corpus import job as module

    order = []
    whole = module.write_whole
    job = make_job(["go", (None, "go")])
    monkeypatch.setattr(module, "write_whole", lambda path, *rest: (order.append(path.suffix), whole(path, *rest)))
    do_all(job)
    do_all(replace(job, retry_failed=True))
    assert order == [".json", ".jsonl", ".jsonl", ".json"]


def test_a_summary_that_is_lost_is_made_from_the_part(make_job):
    job = make_job(["go", (None, "go")])
    (summary,) = do_all(job)
    for content in (None, "{", "[]"):
        path = job.out / ".summaries/part-00000.json"
        path.unlink() if content is None else path.write_text(content)
        assert job.summary(0) == replace(summary, took=0.0)


def test_a_part_that_is_spoilt_is_named(make_job):
    job = make_job(["go"])
    do_all(job)
    (job.out / ".summaries/part-00000.json").unlink()
    job.part(0).write_text("{")
    with pytest.raises(SpeechError, match=r"part-00000.jsonl cannot be read .*remove it"):
        job.summary(0)


def test_a_shard_is_done_once(make_job, heard):
    job = make_job(["go", "go home"])
    align = aligner(job)
    first = align(0)
    assert heard() == ["go", "go home"]
    assert align(0) == first
    assert heard() == []


def test_a_summary_goes_through_json(make_job):
    (summary,) = do_all(make_job(["go", (None, "go")]))
    assert Summary.from_json(summary.to_json()) == summary


def test_lists_and_counts_of_all_parts(make_job):
    job = make_job(["go", (None, "a"), "go", "go", (None, "ä"), "go"])
    do_all(job)
    job.finish()
    lines = [json.loads(line) for line in (job.out / "failures.jsonl").read_text("utf-8").splitlines()]
    assert [(line["id"], line["status"]) for line in lines] == [("item 1", "unreadable"), ("item 4", "unreadable")]
    counts = json.loads((job.out / "summary.json").read_text())
    assert (counts["shards"], counts["rows"], counts["statuses"]) == (2, 6, {"ok": 4, "unreadable": 2})
    assert counts["seconds"] == pytest.approx(4 * 8 * 0.02, rel=1e-12)  # "go": 2 letters of 4 frames
    assert names(job.out) == [".journal", ".summaries", "failures.jsonl", "job.json", "part-00000.jsonl",
                              "part-00001.jsonl", "summary.json"]  # fmt: skip


# The journal ----------------------------------------------------------------------------------------------------------


def lines(job, *entries):
    job.journal(0).write_text(
        "".join(entry if isinstance(entry, str) else json.dumps(entry) + "\n" for entry in entries)
    )


SHARD = {"begin": "shard"}


def test_no_journal_is_left_behind(make_job):
    job = make_job(["go", "go home"])
    do_all(job)
    assert names(job.out / ".journal") == []


def test_after_a_death_each_item_is_done_alone_with_the_same_bytes(make_job, heard):
    texts = ["the cat", (None, "go"), "go home", ("zzz", "go home")]
    do_all(make_job(texts))
    expected = heard()
    job = make_job(texts, out="again")
    lines(job, SHARD)
    align, batches = aligner(job), []
    whole = align.align
    align.align = lambda batch: (batches.append(len(batch["id"])), whole(batch))[1]
    align(0)
    assert batches == [1, 1, 1, 1]
    assert heard() == expected
    assert job.part(0).read_bytes() == (job.out.parent / "out/part-00000.jsonl").read_bytes()


def test_an_item_that_three_workers_died_with_is_left_out(make_job, heard):
    job = make_job(["go", "kill", "go home"])
    lines(job, SHARD, SHARD, {"begin": 1}, SHARD, {"begin": 1}, SHARD, {"begin": 1})
    progress = []
    summary = aligner(job, on_progress=progress.append)(0)
    assert summary.statuses == {"crashed": 1, "ok": 2}
    assert summary.failures[0]["message"] == "the process died 3 times when it worked on this item"
    assert heard() == ["go", "go home"]
    assert sum(progress) == 3


def test_two_deaths_are_too_few(make_job, heard):
    job = make_job(["go", "go home"])
    lines(job, SHARD, {"begin": 1}, SHARD, {"begin": 1})
    assert aligner(job)(0).statuses == {"ok": 2}


def test_what_was_done_is_not_done_again(make_job, heard):
    job = make_job(["go", "go home"])
    do_all(job)
    expected = part(job)
    heard()
    columns = {name: expected[0][name] for name in COLUMNS}
    job.part(0).unlink()
    lines(job, SHARD, SHARD, {"begin": 0}, {"row": 0, "columns": columns}, {"begin": 1})
    do_all(job)
    assert heard() == ["go home"]
    assert part(job) == expected


def test_what_failed_before_is_tried_again(make_job, heard):
    """The file may have come since."""
    job = make_job(["go"])
    failed = {name: [] if kind.startswith("list") else None for name, kind in COLUMNS.items()} | {
        "status": "unreadable"
    }
    lines(job, SHARD, {"begin": 0}, {"row": 0, "columns": failed})
    assert aligner(job)(0).statuses == {"ok": 1}


def test_a_torn_line_is_no_line(make_job, heard):
    job = make_job(["go", "go home"])
    lines(job, SHARD, "nonsense\n", {"begin": 0}, '{"row": 0, "col')
    with Journal(job.journal(0)) as journal:
        assert (journal.lost, dict(journal.deaths), journal.rows) == (0, {0: 1}, {})


def test_a_worker_that_stopped_did_not_die(make_job, heard):
    """With Ctrl-C nothing is left behind; after an earlier death its traces are, and what has been done since."""
    job = make_job(["go", "stop", "go home"])
    with pytest.raises(KeyboardInterrupt):
        aligner(job)(0)
    assert names(job.out) == [".journal", ".summaries", "job.json"]
    assert names(job.out / ".journal") == names(job.out / ".summaries") == []
    for _ in range(9):  # more often than the item or the shard may die
        lines(job, SHARD) if not job.journal(0).exists() else None
        with pytest.raises(KeyboardInterrupt):
            aligner(job)(0)
    with Journal(job.journal(0)) as journal:
        assert (journal.lost, dict(journal.deaths), list(journal.rows)) == (1, {}, [0])
        assert journal.has_deaths
    assert heard().count("go") == 1 + 1


def test_a_shard_that_kills_without_an_item_is_given_up(make_job):
    job = make_job(["go"])
    lines(job, *[SHARD] * 5)
    with pytest.raises(SpeechError, match=r"a worker died 5 times when it read shard 0.*remove .*part-00000 to try"):
        aligner(job)(0)
    lines(job, *[SHARD] * 4)
    assert aligner(job)(0).statuses == {"ok": 1}


def test_what_a_dead_worker_has_half_written_is_removed(make_job):
    job = make_job(["go"])
    lines(job, SHARD)
    (job.out / ".journal/part-00000.jsonl.1234").write_text("{")
    (job.out / ".journal/part-00001.jsonl.1234").write_text("another's")
    do_all(job)
    assert names(job.out / ".journal") == ["part-00001.jsonl.1234"]


def test_a_shard_that_another_works_on_is_awaited(make_job, heard):
    job = make_job(["go"])
    align = aligner(job)
    with open(job.journal(0), "a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        found = []
        thread = threading.Thread(target=lambda: found.append(align(0)))
        thread.start()
        time.sleep(0.3)
        assert not found
        rows = [{"id": "by the other", "audio": None, "offset": 0.0, "duration": None} | {**EMPTY, "status": "ok"}]
        job.write_part(0, rows, 0.0)
        os.unlink(job.journal(0))
    thread.join(10)
    assert found[0].rows == 1
    assert heard() == []


def test_a_file_system_without_locks_will_do(make_job, monkeypatch):
    def refuse(file, what):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    job = make_job(["go"])
    assert do_all(job)[0].rows == 1
    job.finish()


def test_a_device_that_gives_up_ends_the_process_as_a_kill_does(make_job, monkeypatch):
    """What torch says of an illegal access on CUDA. An item that does it three times is left out."""
    if not hasattr(torch, "AcceleratorError"):
        pytest.skip("this torch has no AcceleratorError")
    job = make_job(["go", "we all"])
    exits = []

    def leave(status):
        exits.append(status)
        raise SystemExit  # in place of the end

    def fail(batch):
        if "item 1" in batch["id"]:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")
        return whole(batch)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(Journal, "__exit__", lambda self, *args: os.close(self.file))  # nobody is there to do it
    for _ in range(4):
        align = aligner(job)
        whole, align.align = align.align, fail
        with pytest.raises(SystemExit):
            align(0)
    monkeypatch.undo()
    assert exits == [1] * 4
    assert aligner(job)(0).statuses == {"crashed": 1, "ok": 1}


# Failures again -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_failed_items_are_tried_again_and_the_others_stay(make_job, heard, format, library, corpora, tmp_path):
    if format == "parquet":
        library("pyarrow")
    whole = make_job(["go", "go home", "the cat", "a dog", "it"], name="whole", out="whole out", format=format)
    do_all(whole)
    heard()
    job = make_job(["go", (None, "go home"), "the cat", (None, "a dog"), "it"], format=format)
    do_all(job)
    assert heard() == ["go", "the cat", "it"]
    again = replace(job, retry_failed=True)
    assert job.failed(range(2)) == again.failed(range(2)) == [0]
    corpora.put_sound(tmp_path / "in/1.wav", "go home")
    do_all(again)
    assert heard() == ["go home"]
    assert job.summary(0).statuses == {"ok": 3, "unreadable": 1}
    corpora.put_sound(tmp_path / "in/3.wav", "a dog")
    do_all(again)
    assert job.failed(range(2)) == []
    assert [job.part(k).read_bytes() for k in range(2)] == [whole.part(k).read_bytes() for k in range(2)]
    job.finish()
    assert not (job.out / "failures.jsonl").exists()


# Whose folder it is ---------------------------------------------------------------------------------------------------


def test_another_job_is_refused_with_the_fact_that_differs(make_job):
    job = make_job(["go", "go home"])
    job.begin()
    for change, words in [
        ({"format": "parquet"}, "its format is 'jsonl', and now it is 'parquet'"),
        ({"settings": job.settings | {"language": "de"}}, "its language is None, and now it is 'de'"),
        ({"settings": {"model": "english"}}, "its model is 'harness.corpora.watched_model', and now it is 'english'"),
    ]:
        with pytest.raises(SpeechError, match=rf"out is the folder of another job: {words}; give another folder"):
            replace(job, **change).begin()
    with pytest.raises(SpeechError, match=r"its shard_rows is 4, and now it is 5"):
        make_job(["go", "go home"], shard_rows=5)
    with pytest.raises(SpeechError, match=r"its digest is"):
        make_job(["go", "go house"])


def test_what_the_rows_do_not_depend_on_may_differ(make_job):
    job = make_job(["go"])
    replace(job, settings=job.settings | {"device": "cuda", "batch_seconds": 10.0, "threads": 3}).begin()


def test_a_model_counts_by_its_content(make_job, tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"1")
    job = make_job(["go"], settings={"model": str(model)})
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere/model.onnx"
    moved.write_bytes(b"1")
    replace(job, settings={"model": str(moved)}).begin()
    moved.write_bytes(b"2")
    with pytest.raises(SpeechError, match=r"its model is 'model.onnx, sha256 "):
        replace(job, settings={"model": str(moved)}).begin()


@pytest.mark.parametrize("name", ["part-00000.jsonl", "failures.jsonl", "summary.json"])
def test_files_of_no_job_are_not_taken_for_ours(make_job, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/slurm-1.out").touch()
    make_job(["go"])
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / name).touch()
    with pytest.raises(SpeechError, match=rf"foreign has no job.json, but a file {name}: give another folder"):
        make_job(["go"], out="foreign")


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_spoilt_job_file_is_named(make_job, content):
    job = make_job(["go"])
    (job.out / "job.json").write_text(content)
    with pytest.raises(SpeechError, match=r"job.json cannot be read"):
        job.begin()


def test_many_may_begin_at_once(make_job, corpora, tmp_path):
    job = make_job(["go"], out="warm")
    fresh = replace(job, out=tmp_path / "fresh")
    failures = []
    barrier = threading.Barrier(8)

    def begin():
        barrier.wait()
        try:
            fresh.begin()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names(fresh.out / ".journal") == []
    assert (fresh.out / "job.json").read_bytes() == (job.out / "job.json").read_bytes()


def test_a_folder_that_cannot_be_made_is_a_sentence(make_job, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SpeechError, match=r"cannot write .*file/out"):
        make_job(["go"], out="file/out")


def test_a_job_is_small_when_it_is_pickled(make_job):
    job = make_job(["go"] * 50)
    assert len(pickle.dumps(job)) < 5000
    assert pickle.loads(pickle.dumps(job)) == job


def test_reading_parquet_does_not_abort_the_process(make_job, library, tmp_path):
    """Arrow's threads abort a process, often, if torch was imported before them."""
    library("pyarrow")
    job = make_job(["go"], format="parquet")
    do_all(job)
    code = "import sys, torch; from torch_ctc_align.speech.corpus.files import decode_rows; " \
           "decode_rows(open(sys.argv[1], 'rb').read(), 'parquet')"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, job.part(0)], env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0
