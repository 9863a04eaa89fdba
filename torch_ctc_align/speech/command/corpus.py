"""``ctc-align corpus``: the items of a manifest, with many processes, into a folder of parts."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch

from torch_ctc_align.speech import command
from torch_ctc_align.speech.command.corpus_report import Report
from torch_ctc_align.speech.command.report import count, some, warn
from torch_ctc_align.speech.corpus.files import FORMATS
from torch_ctc_align.speech.corpus.job import Job, Summary
from torch_ctc_align.speech.corpus.local import run_local
from torch_ctc_align.speech.corpus.manifests import open_manifest
from torch_ctc_align.speech.errors import SpeechError

__all__ = ["build_parser", "run"]

LEAST_ROWS = 20  # of the first shard: if all of them are errors, it is the model that is wrong, or we

EXAMPLES = """\
examples:
  ctc-align corpus manifest.jsonl aligned
  ctc-align corpus manifest.jsonl aligned --resume     does what is missing
  ctc-align corpus manifest.jsonl aligned --retry-failed
                               aligns again what failed, after it was mended
  ctc-align corpus table.parquet aligned --format parquet --model some-user/wav2vec2
  ctc-align corpus manifest.jsonl aligned --resume --shard 3/64
                               one of 64 such processes, on any machines
  ctc-align corpus manifest.jsonl aligned --engine ray --workers 1-8 --gpus-per-worker 0.5

OUT gets a file part-00000.jsonl for each shard of the manifest, which is there
whole or not at all; failures.jsonl, which lists the items without words and
why; low_confidence.jsonl; and summary.json. A folder whose name is corpus is
aligned with ctc-align ./corpus

exit status: 0 all is aligned, 2 nothing could be done or OUT cannot be
written, 3 some items failed, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="ctc-align corpus",
        description="Finds when each word is said, in all recordings of a manifest.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "manifest",
        type=Path,
        metavar="MANIFEST",
        help="JSON lines as NeMo has them, CSV, Parquet, Lhotse's cuts, a folder of such files, or of recordings and "
        "texts",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder of the results")

    work = parser.add_argument_group("which work")
    work.add_argument("--resume", action="store_true", help="do what is missing in OUT")
    work.add_argument("--retry-failed", action="store_true", help="align again the items that failed")
    work.add_argument(
        "--shard",
        type=nth,
        default=(0, 1),
        metavar="I/N",
        help="one of N processes that share OUT, from 0/N to N-1/N: the shards I, I + N, I + 2N, ...",
    )

    how = parser.add_argument_group("how it is done")
    how.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="processes of this machine, or of a Ray cluster (default: %(default)s)",
    )
    how.add_argument(
        "--workers",
        type=at_most,
        metavar="N",
        help="processes, each with a model; with Ray also MIN-MAX (default: a GPU each; on the CPU a core each with "
        "the English model, and two cores with others)",
    )
    how.add_argument(
        "--gpus-per-worker",
        type=share,
        metavar="FRACTION",
        help="with Ray: of a GPU, as 0.5 (default: 1 with --model or --onnx, if there is a GPU)",
    )
    how.add_argument("--batch-seconds", type=share, metavar="S", help="sound that the model gets at once")

    rows = parser.add_argument_group("the manifest")
    rows.add_argument(
        "--shard-rows",
        type=command.positive,
        default=1000,
        metavar="N",
        help="items of a part: what is lost at most if a process ends (default: %(default)s)",
    )
    for what, default in (
        ("id", "id, or else the path of the recording"),
        ("audio", "as NeMo has it"),
        ("text", "text"),
    ):
        rows.add_argument(f"--{what}-column", metavar="NAME", help=f"(default: {default})")

    command.add_text_arguments(parser)

    output = parser.add_argument_group("what is written")
    output.add_argument("--format", choices=FORMATS, default="jsonl", help="of the parts (default: %(default)s)")
    output.add_argument("--quiet", action="store_true", help="print failures and warnings only")
    output.add_argument("--debug", action="store_true", help="show the traceback where all stops")

    command.add_model_arguments(parser)
    return parser


def nth(text: str) -> tuple[int, int]:
    """``3/64``."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"must be I/N, from 0/N to N-1/N as 0/64 to 63/64, found {text!r}")
    return int(found[1]), int(found[2])


def at_most(text: str) -> tuple[int, int]:
    """``4`` or ``1-8``: the least and the most."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    least, most = (0, 0) if found is None else (int(found[1]), int(found[2] or found[1]))
    if not 1 <= least <= most:
        raise argparse.ArgumentTypeError(f"must be N, at least 1, or MIN-MAX, found {text!r}")
    return least, most


def share(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, found {text!r}")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Does what the arguments ask for, and returns the exit status."""
    command.check_arguments(arguments)
    check_arguments(arguments)
    job = open_job(arguments)
    first, step = arguments.shard
    mine = range(first, job.manifest.num_shards, step)
    job.begin()
    for note in job.manifest.notes:
        warn(note)
    shards = choose_shards(job, mine, arguments)
    report = Report(job, mine, shards, arguments.quiet)
    with terminated_as_interrupted(), contextlib.closing(start(job, shards, arguments, report)) as summaries:
        try:
            for summary in summaries:
                report.add(summary)
                refuse_nonsense(report, summary)
        except KeyboardInterrupt:
            summaries.close()
            return report.interrupt()
        finally:
            report.close()
    return report.end()


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raises SpeechError for what can be refused before anything is read."""
    if arguments.onnx is not None and (arguments.onnx.suffix != ".onnx" or not arguments.onnx.is_file()):
        found = "found no such file" if not arguments.onnx.is_file() else "found another file"
        raise SpeechError(f"--onnx must name a file that ends in .onnx, {found}: {arguments.onnx}")
    if arguments.engine == "local":
        if arguments.gpus_per_worker is not None:
            raise SpeechError("--gpus-per-worker is for --engine ray; with local processes give --device or --workers")
        if arguments.workers is not None and arguments.workers[0] != arguments.workers[1]:
            raise SpeechError("--workers must be one number with --engine local; MIN-MAX is for ray")


def open_job(arguments: argparse.Namespace) -> Job:
    """The job that the arguments describe."""
    manifest = open_manifest(
        arguments.manifest,
        shard_rows=arguments.shard_rows,
        id_column=arguments.id_column,
        audio_column=arguments.audio_column,
        text_column=arguments.text_column,
    )
    out, source = arguments.out.resolve(), manifest.path.resolve()
    if manifest.kind != "pairs" and source.is_dir() and out.is_relative_to(source):
        raise SpeechError(
            f"OUT must not be in the folder of the manifest, found {arguments.out} in {arguments.manifest}"
        )
    if out.exists() and not out.is_dir():
        raise SpeechError(f"OUT must be a folder, found the file {arguments.out}")
    # Where the job has begun, whoever began it has looked.
    twice = None if (out / "job.json").exists() else manifest.find_duplicates()
    if twice is not None:
        name, places = twice
        raise SpeechError(
            f"ids must be unique, and {name!r} is there {len(places)} times, at {some(places)}: give another column "
            "with --id-column, or remove what is there twice"
        )
    device = arguments.device
    if arguments.engine == "local" and device is None and wants_gpu(device, arguments) and torch.cuda.is_available():
        device = "cuda"
    settings = {
        "model": choose_model(arguments),
        "star": None if arguments.star == "none" else arguments.star,
        "unspoken": arguments.unspoken,
        "split": arguments.split,
        "language": arguments.language,
        "device": device,
        "dtype": arguments.dtype and getattr(torch, arguments.dtype),
        "batch_seconds": arguments.batch_seconds,
    }
    return Job(manifest, out, arguments.format, settings, arguments.retry_failed)


def choose_model(arguments: argparse.Namespace) -> Any:
    """The model as ``Align`` takes it."""
    return arguments.model or (arguments.onnx and str(arguments.onnx.resolve())) or "english"


def wants_gpu(device: str | None, arguments: argparse.Namespace) -> bool:
    """Whether the model is better off on a GPU. The English one is small, and runs on the CPU."""
    return bool(arguments.model or arguments.onnx) if device is None else device.startswith("cuda")


def choose_shards(job: Job, mine: Sequence[int], arguments: argparse.Namespace) -> list[int]:
    """The shards that are to be done."""
    missing = job.missing(mine)
    if not (arguments.resume or arguments.retry_failed) and len(missing) < len(mine):
        raise SpeechError(
            f"{arguments.out} has {len(mine) - len(missing)} of {count(len(mine), 'part')} already: give --resume to "
            "do what is missing, or another folder"
        )
    shards = set(missing) if arguments.resume or not arguments.retry_failed else set()
    if arguments.retry_failed:
        shards |= set(job.failed(mine))
    return sorted(shards)


def start(job: Job, shards: list[int], arguments: argparse.Namespace, report: Report) -> Any:
    """Begins the work. Returns an iterator over summaries."""
    if not shards:
        return iter_nothing()
    if arguments.engine == "ray":
        from torch_ctc_align.speech.corpus.on_ray import run_ray

        gpus = arguments.gpus_per_worker
        if gpus is None:
            gpus = float(torch.cuda.is_available() and wants_gpu(job.settings["device"], arguments))
        return run_ray(
            job, shards, workers=arguments.workers or (1, len(shards)), gpus=gpus, on_progress=report.progress
        )
    workers = arguments.workers[0] if arguments.workers else default_workers(job, arguments)
    return run_local(job, shards, workers=workers, on_progress=report.progress, on_death=report.warn)


def iter_nothing() -> Iterator[Summary]:
    """No summaries."""
    yield from ()


def default_workers(job: Job, arguments: argparse.Namespace) -> int:
    """One for each GPU that the model may use; or for each core; or for two, where a model may be large.

    With the English model two workers on two cores align 1.3 times as many items as one does.
    """
    device = job.settings["device"] or "cpu"
    if device.startswith("cuda"):
        return torch.cuda.device_count() if device == "cuda" else 1
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // 2) if arguments.model or arguments.onnx else cores


def refuse_nonsense(report: Report, summary: Summary) -> None:
    """Raises SpeechError if nothing of the first shard could be aligned for a reason that is no item's."""
    if report.run.shards == 1 and summary.rows >= LEAST_ROWS and summary.statuses == {"error": summary.rows}:
        raise SpeechError(
            f"all {summary.rows} items of the first shard failed, so this is the model's or our mistake: "
            f"{summary.failures[0]['message']}; mend it, then run the same command with --resume --retry-failed"
        )


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, as Slurm sends it before it takes a machine away, is as Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough, and more would disturb the cleaning up
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
