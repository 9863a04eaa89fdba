"""Worker processes of this machine: the same bytes as a plain loop, and an end to every worker."""

import itertools
import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from harness import corpora
from harness.speech import loud_model

from torch_ctc_align.speech import Aligner, SpeechError
from torch_ctc_align.speech.corpus.job import Job
from torch_ctc_align.speech.corpus.local import choose_device, run_local
from torch_ctc_align.speech.corpus.manifests import open_manifest
from torch_ctc_align.speech.corpus.shards import ShardAligner

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def folder(library, monkeypatch, tmp_path):
    """What the model hears is in the file heard."""
    for name in ("soundfile", "soxr"):
        library(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEARD", str(tmp_path / "heard"))
    return tmp_path


def make_job(texts, out="out", *, shard_rows=40, format="jsonl", model=corpora.watched_model):
    manifest = open_manifest(corpora.put_corpus(Path("in"), texts), shard_rows=shard_rows)
    job = Job(manifest, Path(out).absolute(), format, {"model": model})
    job.begin()
    return job


def everything(job):
    return range(job.manifest.num_shards)


def parts(job):
    return [job.part(shard).read_bytes() for shard in everything(job)]


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_bytes_are_those_of_a_plain_loop_with_any_number_of_workers(library, capfd):
    library("pyarrow")
    texts = [*corpora.texts(150), (None, "go"), ("go", " "), "we all know", ("go home now", "go, HOME now!")]
    for format in ("jsonl", "parquet"):
        loop = make_job(texts, f"loop {format}", format=format)
        summaries = list(map(ShardAligner(loop), everything(loop)))
        for workers in (1, 2):
            job = make_job(texts, f"{workers} {format}", format=format)
            progress = []
            found = list(run_local(job, everything(job), workers=workers, on_progress=progress.append))
            assert parts(job) == parts(loop)
            assert sum(progress) == len(texts)
            assert sorted(summary.shard for summary in found) == [0, 1, 2, 3]
            for summary in found:
                assert summary.statuses == summaries[summary.shard].statuses
    assert capfd.readouterr() == ("", "")
    # The loop itself, against the aligner for one recording.
    aligner = Aligner.from_model(loud_model())
    rows = [row for shard in everything(loop) for row in loop.read_part(shard)]
    for row, text in itertools.islice(zip(rows, texts, strict=True), 0, 150, 30):
        alignment = aligner(Path("in", row["audio"]), text)
        assert row["words"] == [word.text for word in alignment.words]
        assert row["starts"] == pytest.approx([word.start for word in alignment.words], abs=0.0005)  # ms


def test_each_worker_loads_its_model_once_and_all_work():
    texts = [word + " nap" for word in corpora.texts(12)]
    job = make_job(texts, shard_rows=1)
    list(run_local(job, everything(job), workers=2))
    processes = {process for process, _ in corpora.heard(Path("heard"))}
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_shards_that_are_asked_for_are_done_and_no_other():
    job = make_job(corpora.texts(10), shard_rows=2)
    assert [summary.shard for summary in run_local(job, [3, 1], workers=1)] == [3, 1]
    assert job.missing(everything(job)) == [0, 2, 4]
    assert list(run_local(job, [], workers=1)) == []


def test_closing_the_iterator_ends_the_workers():
    job = make_job(["go", "nap", "nap nap", "we all"], shard_rows=1)
    summaries = run_local(job, everything(job), workers=1)
    assert next(summaries).shard == 0
    began = time.monotonic()
    summaries.close()
    assert time.monotonic() - began < 9  # a worker that has to be killed takes 10 s
    ((process, _), *_) = corpora.heard(Path("heard"))
    assert not is_running(process)
    assert os.listdir(job.out / ".journal") == []


def test_a_model_that_cannot_be_loaded_ends_all():
    job = make_job(["go"], model=corpora.broken_model)
    with pytest.raises(RuntimeError, match=r"^RuntimeError: no such layer$") as caught:
        list(run_local(job, [0], workers=1))
    assert "in broken_model" in str(caught.value.__cause__)
    job = make_job(["go"], "other", model="nowhere.onnx")
    with pytest.raises(SpeechError, match=r"nowhere\.onnx"):
        list(run_local(job, [0], workers=1))


def test_a_model_that_kills_while_it_is_loaded_ends_all():
    job = make_job(["go"], model=corpora.deadly_model)
    deaths = []
    with pytest.raises(SpeechError, match=r"3 workers died before their model was loaded, the last one with SIGKILL"):
        list(run_local(job, [0], workers=1, on_death=deaths.append))
    assert deaths == ["a worker died (SIGKILL)"] * 2


def test_a_script_without_a_guard_is_not_run_by_its_workers():
    """multiprocessing would run it once more in each worker; so does the program that make writes as ctc-align."""
    job = make_job(["go", "we all"], shard_rows=1)
    Path("script.py").write_text(
        "import pickle\n"
        "from torch_ctc_align.speech.corpus.local import run_local\n"
        "print(len(list(run_local(pickle.load(open('job', 'rb')), [0, 1], workers=1))))\n"
    )
    Path("job").write_bytes(pickle.dumps(job))
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'test'}"}
    done = subprocess.run([sys.executable, "script.py"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


def test_workers_take_turns_with_the_devices(monkeypatch):
    job = make_job(["go"])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)

    def devices(device):
        settings = {"device": device}
        environments = [choose_device(replace(job, settings=settings), number) for number in range(4)]
        return [environment.get("CUDA_VISIBLE_DEVICES") for environment in environments]

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices("cuda") == devices(None) == ["0", "1", "2", "0"]
    assert devices("cuda:1") == devices("cpu") == [None] * 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5,GPU-6")
    assert devices("cuda") == ["4", "5", "GPU-6", "4"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert devices("cuda") == [None] * 4


def test_what_goes_wrong_in_a_worker_is_told(monkeypatch):
    """A manifest that has gone since; and one that is cut short, which is no end of the connection."""
    job = make_job(["go"])
    Path("in/manifest.jsonl").unlink()
    with pytest.raises(SpeechError, match=r"manifest\.jsonl"):
        list(run_local(job, [0], workers=1))
    cut = replace(job.manifest, source=CutShort())
    with pytest.raises(RuntimeError, match=r"^EOFError: the file ends early$"):
        list(run_local(replace(job, manifest=cut), [0], workers=1))


class CutShort:
    def rows(self, shard):
        raise EOFError("the file ends early")
