"""The command ctc-align corpus: what it takes, prints, and exits with.

The work is done in this process, with the model of harness/corpora.py, but for the last tests, where a user's command
runs with a model in a file.
"""

import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch
from harness import corpora
from harness.speech import HOP, LABELS, SAMPLE_RATE

from torch_ctc_align.speech import command
from torch_ctc_align.speech.command import corpus
from torch_ctc_align.speech.corpus.shards import ShardAligner
from torch_ctc_align.speech.errors import EXTRAS

ROOT = Path(__file__).parents[1]


class Runner:
    """run("in/manifest.jsonl", "out", ...) -> exit status; then .out, .err, and the .jobs that were begun."""

    def __init__(self, capsys, monkeypatch):
        self.capsys, self.jobs, self.calls = capsys, [], []
        monkeypatch.setattr(corpus, "choose_model", lambda arguments: corpora.watched_model)
        monkeypatch.setattr(corpus, "run_local", self.work)

    def work(self, job, shards, *, workers, on_progress, on_death):
        self.jobs.append(job)
        self.calls.append((list(shards), workers))
        align = ShardAligner(job, on_progress)
        yield from map(align, shards)

    def __call__(self, *arguments):
        self.jobs.clear()
        self.calls.clear()
        self.status = command.main(["corpus", *map(str, arguments)])
        self.out, self.err = self.capsys.readouterr()
        return self.status


@pytest.fixture
def run(capsys, monkeypatch, tmp_path, library):
    for name in ("soundfile", "soxr"):
        library(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEARD", str(tmp_path / "heard"))
    monkeypatch.setenv("ONCE", str(tmp_path))
    return Runner(capsys, monkeypatch)


MANIFEST = "in/manifest.jsonl"


def put(*texts):
    corpora.put_corpus(Path("in"), texts)


def parts(out="out"):
    return {path.name: path.read_bytes() for path in Path(out).glob("part-*")}


# What is done, and what is said ---------------------------------------------------------------------------------------


def test_a_manifest_becomes_parts(run, tmp_path):
    put("go home", "the cat", "a dog")
    assert run(MANIFEST, "out", "--shard-rows", 2) == 0
    # A letter is 4 frames of 0.02 s: 7, 7 and 5 letters.
    assert re.fullmatch(
        r"3 items in 2 shards, 2 s of sound: 3 ok\n"
        r"3 items now, in [\d.]+ s: [\de.+]+ times real time\n"
        rf"wrote {tmp_path}/out\n",
        run.out,
    ), run.out
    assert run.err == ""
    assert sorted(parts()) == ["part-00000.jsonl", "part-00001.jsonl"]


def test_failures_and_doubts_are_counted_and_listed(run, tmp_path):
    put("go home", (None, "go"), ("zzz zzzzzz", "go home"), (None, "we all"))
    assert run(MANIFEST, "out") == 3
    assert run.out.startswith("4 items in 1 shard, 1 s of sound: 2 ok, 2 unreadable\n")
    assert run.err == (
        f"ctc-align: 1 item with a mean confidence below 0.3, listed in {tmp_path}/out/low_confidence.jsonl\n"
        f"ctc-align: 2 items failed, listed in {tmp_path}/out/failures.jsonl\n"
    )
    listed = [json.loads(line) for line in Path("out/failures.jsonl").read_text().splitlines()]
    assert [(each["id"], each["status"]) for each in listed] == [("item 1", "unreadable"), ("item 3", "unreadable")]


def test_quiet_prints_failures_alone(run):
    put("go home", (None, "go"))
    assert run(MANIFEST, "out", "--quiet") == 3
    assert run.out == ""
    assert run.err.count("\n") == 1


def test_what_is_finished_is_refused_without_resume(run):
    put("go", "we all", "go home")
    assert run(MANIFEST, "out", "--shard-rows", 1) == 0
    Path("out/part-00001.jsonl").unlink()
    assert run(MANIFEST, "out", "--shard-rows", 1) == 2
    assert run.err == (
        "ctc-align: out has 2 of 3 parts already: give --resume to do what is missing, or another folder\n"
    )
    assert run.calls == []
    assert run(MANIFEST, "out", "--shard-rows", 1, "--resume") == 0
    assert run.calls[0][0] == [1]
    assert run.out.startswith("3 items in 3 shards")
    assert "\n1 item now, in " in run.out
    assert run(MANIFEST, "out", "--shard-rows", 1, "--resume") == 0
    assert run.calls == []
    assert "now" not in run.out


def test_a_new_folder_can_be_resumed(run):
    """So that one line in a script serves the first run and the others."""
    put("go")
    assert run(MANIFEST, "new/out", "--resume") == 0


@pytest.mark.parametrize(
    "change, fact",
    [
        ("--format parquet", "format is 'jsonl', and now it is 'parquet'"),
        ("--star none", "star is 'ends', and now it is None"),
        ("--unspoken", "unspoken is False, and now it is True"),
        ("--split words", "split is 'lines', and now it is 'words'"),
        ("--shard-rows 7", "shard_rows is 1000, and now it is 7"),
        ("--text-column id", "columns is {"),
        ("--language de", "language is None, and now it is 'de'"),
    ],
)
def test_the_folder_of_another_job_is_refused(run, change, fact):
    put("go")
    assert run(MANIFEST, "out") == 0
    before = parts()
    assert run(MANIFEST, "out", "--resume", *change.split()) == 2
    assert run.err.startswith("ctc-align: ")
    assert "out is the folder of another job: its " + fact in run.err
    assert "give another folder" in run.err
    assert parts() == before


def test_a_manifest_that_has_changed_is_refused(run):
    put("go")
    run(MANIFEST, "out")
    put("go", "home")
    assert run(MANIFEST, "out", "--resume") == 2
    assert "is the folder of another job" in run.err


def test_failures_are_tried_again_after_the_file_is_mended(run):
    put("go", (None, "we all"), "go home", (None, "a dog"))
    assert run(MANIFEST, "out", "--shard-rows", 2) == 3
    corpora.put_sound("in/1.wav", "we all")
    Path("heard").unlink()
    assert run(MANIFEST, "out", "--shard-rows", 2, "--retry-failed") == 3
    assert [text for _, text in corpora.heard(Path("heard"))] == ["we all"]
    assert "1 item failed" in run.err
    corpora.put_sound("in/3.wav", "a dog")
    Path("out/part-00000.jsonl").unlink()
    assert run(MANIFEST, "out", "--shard-rows", 2, "--retry-failed") == 3
    assert run.calls[0][0] == [1]  # not what is missing
    assert "1 part missing; --resume does them" in run.err
    assert run(MANIFEST, "out", "--shard-rows", 2, "--retry-failed", "--resume") == 0
    assert run.calls[0][0] == [0]
    assert not Path("out/failures.jsonl").exists()


def test_the_nth_of_n(run):
    put(*corpora.texts(10))
    assert run(MANIFEST, "out", "--shard-rows", 2, "--shard", "1/2") == 0
    assert run.calls[0][0] == [1, 3]
    assert run.out.startswith("4 items in 2 shards")
    assert run(MANIFEST, "out", "--shard-rows", 2, "--shard", "0/2") == 0  # parts of others are in nobody's way
    assert run.calls[0][0] == [0, 2, 4]
    assert json.loads(Path("out/summary.json").read_text())["shards"] == 5
    assert run(MANIFEST, "out", "--shard-rows", 2, "--shard", "7/8", "--resume") == 0
    assert run.out.startswith("0 items in 0 shards, 0 s of sound: none\n")


def test_a_shard_of_errors_stops_all(run):
    put(*["fail"] * 40)
    assert run(MANIFEST, "out", "--shard-rows", 20) == 2
    assert run.err == (
        "ctc-align: all 20 items of the first shard failed, so this is the model's or our mistake: RuntimeError: "
        "the model is broken; mend it, then run the same command with --resume --retry-failed\n"
    )
    assert sorted(parts()) == ["part-00000.jsonl"]
    put(*["fail"] * 19, "go", "go")
    assert run(MANIFEST, "other", "--shard-rows", 20) == 3
    assert run(MANIFEST, "third", "--shard-rows", 19) == 3  # too few to tell


def test_ctrl_c_says_how_to_go_on(run):
    put("go", "stop")
    assert run(MANIFEST, "out", "--shard-rows", 1) == 130
    assert run.err == ("ctc-align: interrupted after 1 of 2 shards; the same command with --resume goes on from here\n")
    assert sorted(parts()) == ["part-00000.jsonl"]
    assert os.listdir("out/.journal") == ["lock"]


def test_sigterm_is_as_ctrl_c_and_only_while_it_works(run, monkeypatch):
    put("go")

    def work(job, shards, **options):
        signal.raise_signal(signal.SIGTERM)
        yield

    monkeypatch.setattr(corpus, "run_local", work)
    before = signal.getsignal(signal.SIGTERM)
    assert run(MANIFEST, "out") == 130
    assert signal.getsignal(signal.SIGTERM) == before


# What is wrong --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("nowhere.jsonl out", "nowhere.jsonl"),
        (f"{MANIFEST} {MANIFEST}", "OUT must be a folder, found the file in/manifest.jsonl"),
        (f"{MANIFEST} out --shard 3/3", "must be I/N, from 0/N to N-1/N as 0/64 to 63/64, found '3/3'"),
        (f"{MANIFEST} out --shard 1", "must be I/N"),
        (f"{MANIFEST} out --shard -1/3", "must be I/N|expected one argument"),
        (f"{MANIFEST} out --workers 0", "must be N, at least 1, or MIN-MAX, found '0'"),
        (f"{MANIFEST} out --workers 3-2", "must be N"),
        (f"{MANIFEST} out --workers 1-2", "--workers must be one number with --engine local"),
        (f"{MANIFEST} out --gpus-per-worker 0.5", "--gpus-per-worker is for --engine ray"),
        (f"{MANIFEST} out --gpus-per-worker nan", "must be a number above 0, found 'nan'"),
        (f"{MANIFEST} out --shard-rows 0", "must be a whole number of at least 1"),
        (f"{MANIFEST} out --batch-seconds 0", "must be a number above 0"),
        (f"{MANIFEST} out --engine spark", "invalid choice: 'spark'"),
        (f"{MANIFEST} out --onnx m.onnx", "--onnx must name a file that ends in .onnx, found no such file: m.onnx"),
        (f"{MANIFEST} out --onnx {MANIFEST}", "ends in .onnx, found another file"),
        (f"{MANIFEST} out --dtype float16", "--dtype is for a model that --model names"),
        (f"{MANIFEST} out --device gpu", "--device must be cpu, cuda or cuda:1"),
        (f"{MANIFEST} out --id-column name", "'name'"),
        (MANIFEST, "the following arguments are required: OUT"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_with_a_sentence(run, arguments, words):
    put("go")
    assert run(*arguments.split()) == 2
    assert re.search(words, run.err), run.err
    assert "Traceback" not in run.err
    assert not Path("out").exists()


def test_an_id_that_is_there_twice_is_refused(run):
    put("go", "we all")
    line = Path(MANIFEST).read_text().splitlines()[0]
    Path(MANIFEST).write_text(f"{line}\n{line}\n")
    assert run(MANIFEST, "out") == 2
    assert "ids must be unique, and 'item 0' is there 2 times" in run.err


def test_the_folder_may_not_be_within_a_folder_of_manifests(run):
    """The next run would take its parts for manifests."""
    put("go")
    Path("in/0.wav").rename("0.wav")
    assert run("in", "in/out") == 2
    assert "OUT must not be in the folder of the manifest, found in/out in in" in run.err


def test_a_missing_engine_is_a_sentence(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(EXTRAS, "ray", "ray")
    put("go")
    assert run(MANIFEST, "out", "--engine", "ray") == 2
    assert re.search(r"needs the package ray.*pip install 'torch_ctc_align\[ray\]'", run.err)


def test_ray_gets_what_the_command_line_says(run, monkeypatch):
    from torch_ctc_align.speech.corpus import on_ray

    calls = []

    def work(job, shards, **options):
        calls.append((shards, {name: value for name, value in options.items() if name != "on_progress"}))
        return run.work(job, shards, workers=None, on_progress=options["on_progress"], on_death=None)

    monkeypatch.setattr(on_ray, "run_ray", work)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    put("go", "we all")
    assert run(MANIFEST, "out", "--engine", "ray", "--workers", "1-8", "--gpus-per-worker", "0.25") == 0
    assert run(MANIFEST, "b", "--engine", "ray", "--shard-rows", 1) == 0
    for out, model in (("c", ("--device", "cpu")), ("d", ("--model", "m/n"))):
        assert run(MANIFEST, out, "--engine", "ray", "--workers", 3, *model) == 0
    assert calls == [
        ([0], {"workers": (1, 8), "gpus": 0.25}),
        ([0, 1], {"workers": (1, 2), "gpus": 0.0}),  # the English model is small, and runs on the CPU
        ([0], {"workers": (3, 3), "gpus": 0.0}),
        ([0], {"workers": (3, 3), "gpus": 1.0}),
    ]


def test_what_a_folder_lacks_is_said(run):
    put("go", "go")
    folder = Path("folder")
    folder.mkdir()
    for name, recording in zip(("a.wav", "b.wav"), sorted(Path("in").rglob("*.wav")), strict=True):
        recording.rename(folder / name)
    (folder / "a.txt").write_text("go")
    assert run(folder, "out", "--quiet") == 0
    assert run.err == "ctc-align: recordings without a text are left out: 1, as b.wav\n"


@pytest.mark.parametrize(
    "arguments, cuda, device, workers",
    [
        ("", 0, None, 8),
        ("", 2, None, 8),  # the English model is small, and runs on the CPU
        ("--model m/n", 0, None, 4),
        ("--model m/n", 2, "cuda", 2),
        ("--model m/n --device cpu", 2, "cpu", 4),
        ("--model m/n --device cuda:1", 2, "cuda:1", 1),
        ("--model m/n --workers 6", 2, "cuda", 6),
    ],
)
def test_how_many_workers(run, monkeypatch, arguments, cuda, device, workers):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    put("go")
    assert run(MANIFEST, "out", *arguments.split()) == 0
    assert (run.jobs[0].settings["device"], run.calls[0][1]) == (device, workers)


def test_the_settings_of_align(run):
    put("go")
    assert run(MANIFEST, "out", "--star", "words", "--unspoken", "--split", "words", "--language", "de",
               "--batch-seconds", 60, "--model", "m", "--dtype", "float16", "--device", "cpu") == 0  # fmt: skip
    assert run.jobs[0].settings == {
        "model": corpora.watched_model, "star": "words", "unspoken": True, "split": "words", "language": "de",
        "device": "cpu", "dtype": torch.float16, "batch_seconds": 60.0,
    }  # fmt: skip


def test_the_model_that_is_asked_for(tmp_path):
    (tmp_path / "m.onnx").touch()
    for arguments, model in [
        ("", "english"),
        ("--model m/n", "m/n"),
        (f"--onnx {tmp_path}/m.onnx", f"{tmp_path}/m.onnx"),
    ]:
        assert corpus.choose_model(corpus.build_parser().parse_args(["a", "b", *arguments.split()])) == model


def test_examples_of_the_help_are_understood():
    lines = [line for line in corpus.EXAMPLES.splitlines() if line.startswith("  ctc-align corpus ")]
    assert len(lines) >= 6
    for line in lines:
        arguments = shlex.split(re.split(r"  +", line.strip())[0])[2:]
        assert corpus.build_parser().parse_intermixed_args(arguments)


def test_help_of_the_command_leads_here(capsys):
    assert command.main(["--help"]) == 0
    assert "corpus --help" in capsys.readouterr().out
    assert command.main(["corpus", "--help"]) == 0
    assert "--retry-failed" in capsys.readouterr().out


# As a user runs it ----------------------------------------------------------------------------------------------------


class Loudness(torch.nn.Module):
    """Samples (B, N) to logits (B, N // HOP, C): the nearer the mean loudness of a frame to k / 100, the higher k's."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 1, HOP), 1 / HOP))
        self.register_buffer("classes", torch.arange(len(LABELS)) / 100)

    def forward(self, samples):
        loudness = torch.nn.functional.conv1d(samples[:, None], self.mean, stride=HOP).transpose(1, 2)
        return (-100_000 * (loudness - self.classes) ** 2).log_softmax(-1)


@pytest.fixture
def model(run, library, tmp_path):
    """A model in a file, with its facts."""
    onnx = library("onnx")
    library("onnxruntime")
    path = tmp_path / "loud.onnx"
    free = {"samples": {0: "batch", 1: "n"}, "emissions": {0: "batch", 1: "t"}}
    torch.onnx.export(Loudness(), (torch.zeros(2, 3200),), str(path), dynamo=False, input_names=["samples"],
                      output_names=["emissions"], dynamic_axes=free)  # fmt: skip
    saved = onnx.load(path)
    facts = {"labels": json.dumps(LABELS), "blank": "0", "sample_rate": str(SAMPLE_RATE), "language": "en"}
    onnx.helper.set_model_props(saved, facts)
    onnx.save(saved, path)
    return path


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "torch_ctc_align.speech", "corpus", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE,
        **{"stderr": subprocess.PIPE} | options,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Converting a tensor")
def test_from_a_table_to_parquet(model, library):
    """With a bar for who watches."""
    parquet = library("pyarrow.parquet")
    library("tqdm")
    corpora.put_corpus(Path("sound"), ["the cat sat", "go home", "a dog"])
    Path("table.csv").write_text("audio,text,name\nsound/0.wav,The cat sat.,x\nsound/1.wav,go home,y\nnone.wav,a,z\n")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    process = start("table.csv", "out", "--format", "parquet", "--shard-rows", 2, "--onnx", model,
                    "--id-column", "name", "--workers", 1, stderr=theirs)  # fmt: skip
    out, _ = process.communicate(timeout=60)
    assert select.select([ours], [], [], 1)[0]
    shown = os.read(ours, 10_000).decode()  # while `theirs` is open, what was written to it stays
    os.close(theirs)
    os.close(ours)
    assert (process.returncode, out.splitlines()[0]) == (3, "3 items in 2 shards, 1 s of sound: 2 ok, 1 unreadable")
    assert "0/3 items" in shown
    assert "1 item failed" in shown
    first, second = (parquet.ParquetFile(f"out/part-0000{k}.parquet").read(use_threads=False) for k in range(2))
    assert first.column("id").to_pylist() == ["x", "y"]
    assert first.column("audio").to_pylist() == ["sound/0.wav", "sound/1.wav"]
    assert first.column("words").to_pylist() == [["The", "cat", "sat"], ["go", "home"]]
    # A letter and a space are 16 frames less a border of 3 in front of "cat", as in test_speech_command.py.
    assert first.column("starts").to_pylist()[0] == [0.0, 0.26, 0.58]
    assert second.column("status").to_pylist() == ["unreadable"]
    assert first.schema == second.schema


def test_a_folder_of_recordings_and_texts(run):
    for name, text in [("a/1", "go home"), ("b", "we all")]:
        Path("data/a").mkdir(parents=True, exist_ok=True)
        corpora.put_sound(f"data/{name}.wav", text)
        Path(f"data/{name}.txt").write_text(text)
    assert run("data", "data/aligned") == 0
    (part,) = parts("data/aligned").values()
    assert {json.loads(line)["audio"] for line in part.splitlines()} == {"a/1.wav", "b.wav"}
    assert run("data", "data/aligned", "--resume") == 0


def test_confidence_is_low_below_the_same_number_everywhere():
    from torch_ctc_align.speech.command import report
    from torch_ctc_align.speech.corpus import job

    assert job.LOW_CONFIDENCE == report.LOW_CONFIDENCE
