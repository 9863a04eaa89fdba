"""Corpora on Ray: a worker dies, the driver dies, items are bad, and the parts have the same bytes.

They run in an environment of their own: make test-corpora. One Ray on this machine serves all of them.
"""

import contextlib
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from harness.troubled import Model, broken, text_of, write_corpus

from torch_ctc_align.speech.corpus import COLUMNS, Align, on_ray
from torch_ctc_align.speech.corpus.job import Job
from torch_ctc_align.speech.corpus.journal import Journal
from torch_ctc_align.speech.corpus.manifests import open_manifest
from torch_ctc_align.speech.corpus.on_ray import run_ray
from torch_ctc_align.speech.errors import SpeechError

ROOT = Path(__file__).parents[1]
SHARD_ROWS = 4


@pytest.fixture
def corpus(tmp_path, library):
    """corpus(count, trouble=...) -> the status that each id is to get; the manifest is in tmp_path / "corpus"."""
    soundfile = library("soundfile")
    return lambda count=12, **options: write_corpus(tmp_path / "corpus", soundfile, count, **options)


@pytest.fixture
def job(tmp_path):
    """job("a", deadly=...): a job in the folder tmp_path / "a", with a model of its own."""

    def make(name, **model):
        manifest = open_manifest(tmp_path / "corpus" / "manifest.jsonl", shard_rows=SHARD_ROWS)
        settings = {"model": Model(str(tmp_path / f"{name}.heard"), **model)}
        job = Job(manifest, tmp_path / name, settings=settings)
        job.begin()
        return job

    return make


def shards(job):
    return range(job.manifest.num_shards)


def run(job, **options):
    """The summaries of a run that does what is missing."""
    return list(run_ray(job, job.missing(shards(job)), **{"workers": 1, "cpus": 0.5} | options))


def parts(job):
    """The bytes of each part by its name; nothing else may be in the folder but what a job keeps there."""
    return {path.name: path.read_bytes() for path in sorted(job.out.glob("part-*"))}


def rows(job):
    return [json.loads(line) for part in parts(job).values() for line in part.splitlines()]


def in_a_plain_loop(job):
    """What the parts must hold, from one call of Align for each item, without any of the job's code."""
    folder = job.manifest.path.parent
    align = Align(Model(os.devnull))
    texts = []
    for line in job.manifest.path.read_text().splitlines():
        item = json.loads(line)
        done = align({"audio": [str(folder / item["audio_filepath"])], "text": [item["text"]]})
        head = {"id": item["id"], "audio": item["audio_filepath"], "offset": 0.0, "duration": None}
        row = head | {name: done[name][0] for name in COLUMNS}
        texts.append(json.dumps(row, ensure_ascii=False) + "\n")
    pieces = ["".join(texts[k : k + SHARD_ROWS]).encode() for k in range(0, len(texts), SHARD_ROWS)]
    return {f"part-{k:05}.jsonl": piece for k, piece in enumerate(pieces)}


def wait_until(condition, seconds=60):
    for _ in range(seconds * 20):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it has taken too long")


# ---- All is well, or only the items are bad ----


def test_every_item_is_there_once_and_bad_ones_cost_nobody_else(ray, corpus, job):
    """Ten hours among short ones, what cannot be read, texts that do not fit: the others equal a plain loop's bits."""
    expected = corpus(trouble=True)
    one = job("ray")
    counts = []
    summaries = run(one, workers=2, on_progress=counts.append)
    assert {row["id"]: row["status"] for row in rows(one)} == expected
    assert len(rows(one)) == len(expected)
    assert parts(one) == in_a_plain_loop(one)
    assert sorted(summary.shard for summary in summaries) == list(shards(one))
    assert counts == [summary.rows for summary in summaries]
    assert sum(counts) == len(expected)
    failed = {failure["id"]: failure["status"] for summary in summaries for failure in summary.failures}
    assert failed == {id: status for id, status in expected.items() if status != "ok"}


# ---- Somebody dies ----


def test_a_worker_that_is_killed_is_replaced_and_the_bytes_are_the_same(ray, corpus, job):
    corpus()
    deadly = text_of(5)  # the second of its shard
    one = job("ray", deadly=deadly)
    run(one)
    assert parts(one) == in_a_plain_loop(one)
    model = one.settings["model"]
    assert len(model.processes) == 2
    assert model.texts.count(deadly) == 2
    assert all(model.texts.count(text_of(k)) == 1 for k in (*range(4), *range(8, 12)))  # the other shards
    assert not list((one.out / ".journal").glob("part-*"))


def test_an_item_that_kills_every_worker_is_crashed_and_the_others_are_aligned(ray, corpus, job):
    corpus(8)
    one = job("ray", deadly=text_of(6), deaths=100)
    run(one)
    statuses = {row["id"]: row["status"] for row in rows(one)}
    assert statuses.pop("good-06") == "crashed"
    assert set(statuses.values()) == {"ok"}
    expected = b"".join(in_a_plain_loop(one).values()).splitlines()
    written = b"".join(parts(one).values()).splitlines()
    assert [line for line in written if b'"good-06"' not in line] == [
        line for line in expected if b'"good-06"' not in line
    ]


DRIVER = """
import pickle, sys
from torch_ctc_align.speech.corpus.on_ray import run_ray
job = pickle.load(open(sys.argv[1], "rb"))
for summary in run_ray(job, job.missing(range(job.manifest.num_shards)), workers=1, cpus=0.5):
    print(summary.shard, flush=True)
"""


def start_driver(ray, job, folder, program=DRIVER, *words, **environment):
    """A process of its own that does a job on the Ray that is there; without one, on a Ray of its own."""
    (folder / "job.pickle").write_bytes(pickle.dumps(job))
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "test")])
    if ray is not None:
        environment["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    return subprocess.Popen(
        [sys.executable, "-c", program, str(folder / "job.pickle"), *words],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_after_the_driver_was_killed_a_second_run_does_what_is_missing(ray, corpus, job, tmp_path):
    corpus(16)
    one = job("ray", takes=0.5)
    model = one.settings["model"]
    driver = start_driver(ray, one, tmp_path)
    wait_until(lambda: len(parts(one)) == 2 and len(model.texts) > 9)  # two parts, and in the middle of the third
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    # Its workers notice, and go. A part that they finish at that time is one that the second run need not do.
    wait_until(lambda: not any(os.path.exists(f"/proc/{process}") for process in model.processes))
    finished = parts(one)
    assert 2 <= len(finished) < 4
    before = len(model.texts)
    run(one)
    again = model.texts[before:]
    assert not {text_of(k) for k in range(SHARD_ROWS * len(finished))} & set(again)
    assert len(again) == 16 - SHARD_ROWS * len(finished)
    assert len({row["id"] for row in rows(one)}) == len(rows(one)) == 16
    assert parts(one) == in_a_plain_loop(one)
    assert parts(one).items() >= finished.items()


COMMAND = """
import pickle, sys
from torch_ctc_align.speech.command import corpus, main
model = pickle.load(open(sys.argv[1], "rb")).settings["model"]
corpus.choose_model = lambda arguments: model
sys.exit(main(["corpus", *sys.argv[2:]]))
"""


def test_the_command_stops_when_it_is_asked_to_and_goes_on(ray, corpus, job, tmp_path):
    """SIGTERM is no death of a worker. The second run starts a Ray of its own, and a worker is killed in it."""
    corpus()
    one = job("ray", takes=0.25, deadly=text_of(9))
    shutil.rmtree(one.out)  # the command begins with more settings
    model = one.settings["model"]
    words = [str(one.manifest.path), str(one.out), "--engine=ray", "--workers=1", f"--shard-rows={SHARD_ROWS}"]
    first = start_driver(ray, one, tmp_path, COMMAND, *words)
    wait_until(lambda: len(model.texts) > 5)  # in the middle of the second part
    first.terminate()
    said, complained = first.communicate(timeout=60)
    assert first.returncode == 130
    assert re.fullmatch(r"ctc-align: interrupted after 1 of 3 shards; .*--resume.*\n", complained)
    assert "begin" in one.journal(1).read_text()
    with Journal(one.journal(1)) as journal:
        assert not journal.has_deaths
    finished = parts(one)
    with tempfile.TemporaryDirectory() as folder:  # the names of sockets must be short
        second = start_driver(None, one, tmp_path, COMMAND, *words, "--resume", RAY_TMPDIR=folder)
        said, complained = second.communicate(timeout=120)
    assert (second.returncode, complained) == (0, "")
    assert said.startswith("12 items in 3 shards")
    assert model.texts.count(text_of(0)) == 1
    assert model.texts.count(text_of(9)) == 2
    assert parts(one).items() >= finished.items()
    assert parts(one) == in_a_plain_loop(one)


def test_a_run_that_is_closed_ends_its_workers_and_blames_nobody(ray, corpus, job):
    """Ray itself is the test's, and goes on."""
    corpus()
    one = job("ray", takes=0.25)
    model = one.settings["model"]
    with contextlib.closing(run_ray(one, shards(one), cpus=0.5)) as summaries:
        assert next(summaries).rows == SHARD_ROWS
        wait_until(lambda: len(model.texts) > SHARD_ROWS)  # the next shard is begun
    wait_until(lambda: not any(os.path.exists(f"/proc/{process}") for process in model.processes), 10)
    assert len(parts(one)) == 1
    with Journal(one.journal(1)) as journal:
        assert not journal.has_deaths
    assert ray.is_initialized()


# ---- Many workers ----


def test_workers_are_added_while_shards_wait(ray, corpus, job):
    corpus(24)
    one = job("ray", awaits=2)
    run(one, workers=(1, 2))
    assert len(one.settings["model"].processes) == 2
    assert parts(one) == in_a_plain_loop(one)


# ---- What it says ----


def test_the_driver_says_nothing_of_its_own(ray, corpus, job, tmp_path):
    corpus(8)
    driver = start_driver(ray, job("ray"), tmp_path)
    said, complained = driver.communicate(timeout=120)
    assert sorted(said.split()) == ["0", "1"]
    assert complained == ""


def test_a_folder_that_cannot_be_written_ends_the_job_with_its_sentence(ray, corpus, job):
    """Where part 1 is to appear stands a folder; as root, permissions would not stop us."""
    corpus()
    one = job("ray")
    one.part(1).mkdir()
    (one.part(1) / "full").touch()
    with pytest.raises(SpeechError) as caught:
        list(run_ray(one, [1, 2], workers=1, cpus=0.5))
    assert str(one.part(1)) in str(caught.value)
    assert "Ray" not in str(caught.value)


def test_a_full_disk_ends_the_job_and_a_second_run_does_the_rest(ray, corpus, job, small_disk):
    corpus()
    with_room = job("room")
    run(with_room)
    one = replace(job("ray"), out=small_disk / "out")
    one.begin()
    disk = os.statvfs(small_disk)
    # Room for the journal, the summary and the part of one shard, a block each.
    (small_disk / "filler").write_bytes(bytes(disk.f_bsize * (disk.f_bavail - 3)))
    with pytest.raises(SpeechError, match="No space left on device; make room, then run the same command") as caught:
        run(one)
    assert "Ray" not in str(caught.value)
    assert list(parts(one).items()) == list(parts(with_room).items())[:1]
    assert not one.journal(1).exists()  # of shard 2 there may be one: the worker goes on until the driver has heard
    assert not list(one.out.glob(".summaries/*.json.*"))
    (small_disk / "filler").unlink()
    run(one)
    assert parts(one) == parts(with_room)
    model = one.settings["model"]
    assert all(model.texts.count(text_of(k)) == 1 for k in range(SHARD_ROWS))  # what was finished is not done again


def test_a_model_that_cannot_be_loaded_ends_the_job_with_its_sentence(ray, corpus, job):
    corpus()
    one = job("ray")
    one.settings["model"] = broken
    with pytest.raises(SpeechError) as caught:
        run(one)
    assert str(caught.value) == "there are no weights"


def test_a_cluster_that_is_not_there_is_said_at_once(ray, corpus, job, tmp_path):
    corpus(4)
    with socket.socket() as taken:  # nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        driver = start_driver(None, job("ray"), tmp_path, RAY_ADDRESS=address)
        _, complained = driver.communicate(timeout=60)
    assert complained.splitlines()[-1].endswith(
        f"SpeechError: there is no Ray cluster at {address}: Connection refused; mend RAY_ADDRESS, or unset it to use "
        "this machine"
    )


def test_a_worker_that_asks_for_too_much_is_refused():
    """Ray would wait for another machine."""
    there = {"CPU": 2.0}
    on_ray._check_resources(there, 2.0, 0.0)
    with pytest.raises(SpeechError) as caught:
        on_ray._check_resources(there, 1.0, 0.5)
    assert str(caught.value) == (
        "a worker needs 0.5 GPUs, and this machine has 0; ask for less, or set RAY_ADDRESS to a cluster"
    )


def test_ray_that_is_missing_is_a_sentence_with_the_command(corpus, job, monkeypatch):
    corpus()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SpeechError) as caught:
        run(job("ray"))
    assert str(caught.value) == (
        "the engine ray needs the package ray, which is not installed; run: pip install 'torch_ctc_align[ray]'"
    )
