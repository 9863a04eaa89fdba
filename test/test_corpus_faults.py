"""What may happen to a job of many processes: workers and parents die, disks are full, somebody wants to stop."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from harness import corpora

from torch_ctc_align.speech import command
from torch_ctc_align.speech.command import corpus

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "test/harness/corpora.py"


@pytest.fixture(autouse=True)
def folder(library, monkeypatch, tmp_path):
    """What the model hears is in the file heard."""
    for name in ("soundfile", "soxr"):
        library(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEARD", str(tmp_path / "heard"))
    monkeypatch.setenv("ONCE", str(tmp_path))
    monkeypatch.setattr(corpus, "choose_model", lambda arguments: corpora.watched_model)
    return tmp_path


def run(*arguments):
    """The command, with its parent in this process and workers of their own. Returns its exit status."""
    return command.main(["corpus", "in/manifest.jsonl", *map(str, arguments)])


def run_here(out, *arguments, monkeypatch):
    """The same without any other process: what a plain loop gives."""
    from torch_ctc_align.speech.corpus.shards import ShardAligner

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "run_local", lambda job, shards, **options: (ShardAligner(job)(k) for k in shards))
        return run(out, *arguments)


def start(*arguments):
    """The command as a program, the leader of a group as a terminal has it."""
    return subprocess.Popen(
        [sys.executable, PROGRAM, "in/manifest.jsonl", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'test'}"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def put(*texts):
    corpora.put_corpus(Path("in"), texts)


def heard():
    return [text for _, text in corpora.heard(Path("heard"))]


def workers():
    return {process for process, _ in corpora.heard(Path("heard"))} - {os.getpid()}


def parts(out):
    """{name: bytes}; a file that is half-written would be there too."""
    return {path.name: path.read_bytes() for path in Path(out).glob("*part-*")}


def rows(out):
    return {row["id"]: row for part in parts(out).values() for row in map(json.loads, part.splitlines())}


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("this does not come true in 30 s")


def is_gone(process):
    """A process that nobody waits for stays in the table as a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def assert_nothing_is_left(out):
    """No worker, no journal, no half-written file."""
    wait_for(lambda: all(map(is_gone, workers())))
    assert os.listdir(Path(out) / ".journal") in ([], ["lock"])
    assert not list(Path(out).glob(".summaries/*.json.*"))


# Processes die --------------------------------------------------------------------------------------------------------


def test_a_worker_is_killed_in_the_middle_of_a_shard(monkeypatch, capsys):
    put("the cat", "go home", "zap", "a dog", "it was late")
    Path("zap").touch()  # as if it had happened
    assert run_here("alone", "--shard-rows", 4, monkeypatch=monkeypatch) == 0
    Path("zap").unlink()
    assert run("out", "--shard-rows", 4, "--workers", 1) == 0
    assert capsys.readouterr().err == "ctc-align: a worker died (SIGKILL) with shard 0, which is begun again\n"
    assert parts("out") == parts("alone")
    assert_nothing_is_left("out")


def test_an_item_that_kills_its_process_is_left_out(monkeypatch, capsys):
    others = ["the cat", "go home", "a dog", "it was late"]
    put(*others[:2], (None, "we all"), *others[2:])
    assert run_here("alone", "--shard-rows", 4, monkeypatch=monkeypatch) == 3
    corpora.put_sound(Path("in/2.wav"), "kill")
    Path("heard").unlink()
    assert run("out", "--shard-rows", 4, "--workers", 1) == 3
    found, expected = rows("out"), rows("alone")
    assert found.pop("item 2")["status"] == "crashed"
    assert expected.pop("item 2")["status"] == "unreadable"
    assert found == expected
    # Once with the others, three times alone. What is finished is not done again when each item is done alone.
    assert Counter(heard()) == {"kill": 4, "the cat": 2, "go home": 2, "a dog": 1, "it was late": 1}
    assert capsys.readouterr().err.count("a worker died (SIGKILL)") == 4
    assert_nothing_is_left("out")


def test_the_parent_is_killed_and_the_next_run_does_what_is_missing(monkeypatch):
    put("the cat", "go home", "a dog", "sleep", "it was late", "we all")
    process = start("out", "--shard-rows", 2, "--workers", 1)
    wait_for(lambda: "sleep" in heard())
    process.kill()
    process.communicate()
    assert_nothing_is_left("out")  # the worker ends by itself, and has not died
    assert sorted(parts("out")) == ["part-00000.jsonl"]
    assert heard() == ["the cat", "go home", "a dog", "sleep"]
    Path("heard").unlink()
    assert run("out", "--shard-rows", 2, "--workers", 1) == 2  # it has parts
    assert run("out", "--shard-rows", 2, "--workers", 1, "--resume") == 0
    assert heard() == ["a dog", "sleep", "it was late", "we all"]
    ids = [json.loads(line)["id"] for name in sorted(parts("out")) for line in parts("out")[name].splitlines()]
    assert ids == [f"item {k}" for k in range(6)]
    assert run_here("alone", "--shard-rows", 2, monkeypatch=monkeypatch) == 0
    assert parts("out") == parts("alone")
    assert_nothing_is_left("out")


# Somebody wants to stop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wish", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_stopping_is_clean_and_the_next_run_goes_on(wish, monkeypatch):
    """A terminal sends Ctrl-C to workers too, and so does Slurm with SIGTERM."""
    put("the cat", "go home", "a dog", "sleep", "it was late")
    process = start("out", "--shard-rows", 2, "--workers", 1)
    wait_for(lambda: "sleep" in heard())
    os.killpg(process.pid, wish)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert err == ("ctc-align: interrupted after 1 of 3 shards; the same command with --resume goes on from here\n")
    assert_nothing_is_left("out")
    assert sorted(parts("out")) == ["part-00000.jsonl"]
    assert json.loads(Path("out/summary.json").read_text())["shards"] == 1
    Path("heard").unlink()
    assert run_here("out", "--shard-rows", 2, "--resume", monkeypatch=monkeypatch) == 0
    assert heard() == ["a dog", "sleep", "it was late"]


# The disk is full -----------------------------------------------------------------------------------------------------


def test_a_full_disk_stops_all_and_loses_nothing(small_disk, monkeypatch, capsys):
    put(*corpora.texts(100))
    out = small_disk / "out"
    assert run_here("alone", "--shard-rows", 20, monkeypatch=monkeypatch) == 0
    first, second, *_ = (len(content) for _, content in sorted(parts("alone").items()))
    Path("heard").unlink()
    out.mkdir()
    # A tmpfs gives whole pages. Room for one part and the small files around it, but not for two parts.
    room = first + second // 2 + 5 * 4096
    with (small_disk / "filler").open("wb") as filler:
        filler.write(bytes((1 << 20) - room))
    capsys.readouterr()
    assert run(out, "--shard-rows", 20, "--workers", 1) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert (
        "No space left on device; make room, then run the same command with --resume: what is finished is kept" in err
    )
    finished = parts(out)
    assert finished == {name: parts("alone")[name] for name in finished}
    assert len(finished) == 1
    assert_nothing_is_left(out)
    (small_disk / "filler").unlink()
    Path("heard").unlink()
    assert run_here(out, "--shard-rows", 20, "--resume", monkeypatch=monkeypatch) == 0
    assert len(heard()) == 80
    assert parts(out) == parts("alone")


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_file_that_may_not_grow_is_not_there(monkeypatch, capsys, library, format):
    """The kernel refuses files above the limit of a process. (Python ignores the signal, so that writing fails.)"""
    if format == "parquet":
        library("pyarrow")
    put(*corpora.texts(40))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        assert run_here("out", "--format", format, monkeypatch=monkeypatch) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.strerror(errno.EFBIG) + "; make room" in capsys.readouterr().err
    assert parts("out") == {}
    assert_nothing_is_left("out")
    assert run_here("out", "--format", format, "--resume", monkeypatch=monkeypatch) == 0
    assert len(parts("out")) == 1


# Several share a folder -----------------------------------------------------------------------------------------------


def test_processes_share_a_folder(monkeypatch):
    """Two halves, and one that wants all of it: what another works on is awaited, and not done twice."""
    put(*corpora.texts(60), (None, "go"))
    shared = ("out", "--shard-rows", 7, "--workers", 1, "--resume", "--shard")
    processes = [start(*shared, which) for which in ("0/2", "1/2", "0/1")]
    ends = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [3, 0, 3], ends  # the last of 9 shards has a failure
    assert len(heard()) == 60
    assert run_here("alone", "--shard-rows", 7, monkeypatch=monkeypatch) == 3
    assert parts("out") == parts("alone")
    for name in ("failures.jsonl", "job.json"):
        assert Path("out", name).read_bytes() == Path("alone", name).read_bytes()
    counts = json.loads(Path("out/summary.json").read_text())
    assert (counts["shards"], counts["num_shards"], counts["rows"]) == (9, 9, 61)
    assert_nothing_is_left("out")
