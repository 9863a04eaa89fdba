"""The engine ``ray``: shards of a job on the workers of a Ray cluster, or of a Ray that is started for the job.

Ray Data maps over the numbers of shards, not over rows. A worker reads its shard, writes its part, and sends back the
summary: a few hundred bytes, so that neither sound nor results travel between machines. When a worker dies, Ray starts
another and gives it the same shard; when the driver dies, the next run asks which parts there are. What is done twice
is written once, because a part has one name (:mod:`torch_ctc_align.speech.corpus.job`). Ray's own checkpoints are not
used: they know rows, and rows of several shards end up in one file.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from torch_ctc_align.speech.corpus.shards import ShardAligner
from torch_ctc_align.speech.errors import SpeechError, require

if TYPE_CHECKING:
    from torch_ctc_align.speech.corpus.job import Job, Summary

__all__ = ["run_ray"]

# Of these Ray's scheduler keeps an eye on each. A block of several shards is one that a worker does on its own.
MOST_BLOCKS = 10_000

# Bytes, of a Ray that is started for the job: all that goes through it are numbers and summaries.
OBJECT_STORE = 200 << 20

CONNECTING = 10.0  # seconds that the machine of an address has to answer
STOPPING = 5.0  # seconds that workers have to die


def run_ray(
    job: Job,
    shards: Sequence[int],
    *,
    workers: int | tuple[int, int] = 1,
    gpus: float = 0.0,
    cpus: float = 1.0,
    address: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[Summary]:
    """Does shards of a job on Ray.

    If Ray is initialised, that is used. Otherwise it connects to ``address``; without one to the cluster that Ray finds
    (``RAY_ADDRESS``, or one that ``ray start`` has started on this machine); and if there is none, it starts Ray on
    this machine, and ends it at the end. Every machine of a cluster needs this package, its model, the recordings and
    ``job.out`` under the same paths.

    Args:
        job: what to do.
        shards: the numbers of those that are to be done. Those whose parts are there cost nothing.
        workers: how many work at once, or the least and the most: Ray adds workers while there is room.
        gpus: of one worker: 1, a fraction if several share one, or 0 for the CPU.
        cpus: cores of one worker, for decoding too.
        address: of a cluster, as ``ray.init`` takes it.
        on_progress: called with the number of items of a shard, when it is done.

    Yields:
        The summaries, in the order in which the shards are done.

    Raises:
        SpeechError: Ray is missing; there is no such cluster; this machine has not got what a worker needs; the model
            cannot be loaded.
        OutputError: the folder cannot be written.
    """
    # Ray would write to standard output, in five lines, that a worker died. It reads this when it is imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed|the task will be retried")
    ray = require("ray", "the engine ray")
    require("ray.data", "the engine ray")
    shards = list(shards)
    if not shards:
        return
    job = replace(job, out=Path(os.path.abspath(job.out)))
    if job.settings.get("device") is None and (not gpus or job.settings.get("model", "english") != "english"):
        # A worker without a share of a GPU may see one nevertheless. The model of English is for the CPU.
        job = replace(job, settings={**job.settings, "device": "cuda" if gpus else "cpu"})
    least, most = (workers, workers) if isinstance(workers, int) else workers
    most = min(most, len(shards))
    least = min(least, most)
    left = set(shards)
    with _absolved(job, left), _ray(ray, address) as is_alone, _quiet_data(ray):
        if is_alone:
            _check_resources(ray.cluster_resources(), cpus, gpus)
        pool = (
            # The next shard waits with the driver, and goes to whoever is free first.
            ray.data.ActorPoolStrategy(size=most, max_tasks_in_flight_per_actor=1)
            if least == most
            # Here two a worker: Ray adds workers when those that it has have shards waiting.
            else ray.data.ActorPoolStrategy(min_size=least, max_size=most)
        )
        summaries = ray.data.from_items(shards, override_num_blocks=min(len(shards), MOST_BLOCKS)).map_batches(
            Worker,
            fn_constructor_args=(job, os.getcwd(), max(int(cpus), 1)),
            batch_size=1,
            batch_format="numpy",
            compute=pool,
            num_cpus=cpus,
            num_gpus=gpus,
        )
        # Closed, so that the workers end although Ray may go on.
        with contextlib.closing(_results(summaries.iter_batches(batch_size=1, prefetch_batches=0))) as results:
            for result in results:
                left.discard(result.shard)
                if on_progress is not None:
                    on_progress(result.rows)
                yield result


class Worker:
    """What Ray runs: a :class:`ShardAligner` whose errors come home as they are.

    An exception that leaves it would reach the user inside two of Ray's, with their tracebacks.
    """

    def __init__(self, job: Job, folder: str, threads: int) -> None:
        with contextlib.suppress(OSError):  # paths of a model may be relative to it
            os.chdir(folder)
        torch.set_num_threads(threads)
        self.failure: Exception | None = None
        try:
            self.align = ShardAligner(job)
        except Exception as error:
            self.failure = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"result": [self._do(int(shard)) for shard in batch["item"]]}

    def _do(self, shard: int) -> bytes:
        if self.failure is not None:
            return _pickle_error(self.failure)
        try:
            return pickle.dumps(self.align(shard))
        except Exception as error:
            return _pickle_error(error)


def _pickle_error(error: Exception) -> bytes:
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)  # an exception whose constructor wants more than its message fails here
        return pickled
    except Exception:
        return pickle.dumps(SpeechError(f"{type(error).__name__}: {error}"))


def _results(blocks: Iterable[Any]) -> Generator[Summary, None, None]:
    """The summaries that come home. An error that comes home is raised."""
    with contextlib.closing(iter(blocks)) as coming:  # type: ignore[type-var]
        while True:
            try:
                block = next(coming, None)
            except Exception as error:  # Ray's own: it has no workers, or they die before they begin
                lines = str(error).strip().splitlines() or [type(error).__name__]
                raise SpeechError(f"Ray has given up: {lines[-1].strip()}") from error
            if block is None:
                return
            for pickled in block["result"]:
                result = pickle.loads(pickled)
                if isinstance(result, BaseException):
                    raise result
                yield result


@contextlib.contextmanager
def _absolved(job: Job, left: set[int]) -> Iterator[None]:
    """If the job is stopped, Ray kills its workers. No item that they were at is to blame: their journals say so."""
    try:
        yield
    finally:
        patience = time.monotonic() + STOPPING
        folder = job.journal(0).parent
        begun = set(os.listdir(folder)) if left and folder.is_dir() else set()
        for shard in [shard for shard in left if job.journal(shard).name in begun]:
            with contextlib.suppress(OSError), open(job.journal(shard), "rb+", buffering=0) as file:
                while time.monotonic() < patience:  # a worker that still lives has it locked
                    with contextlib.suppress(BlockingIOError):
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    time.sleep(0.05)
                file.seek(0, os.SEEK_END)
                file.write(b'\n{"stopped": true}\n')  # the worker may have died in the middle of a line


@contextlib.contextmanager
def _ray(ray: Any, address: str | None) -> Iterator[bool]:
    """Connects to a cluster, or starts Ray; yields whether it has started it. What was there stays."""
    if ray.is_initialized():
        yield False
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # who aligns does not want to report
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else a line on every worker that is started
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a line about it at every start
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    is_alone = False
    where = address or os.environ.get("RAY_ADDRESS")
    _check_address(where)
    try:
        try:
            with _no_stderr():
                ray.init(address=address or "auto", **quiet)
        except ConnectionError as error:
            if where is not None:
                raise SpeechError(f"there is no Ray cluster at {where}: {error}") from None
            with _no_stderr():
                ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
            is_alone = True
        if in_main_thread and handler is not None:
            signal.signal(signal.SIGTERM, handler)  # ray.init sets one of its own
        yield is_alone
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Ray's C++ part says at the start which level its messages have. What fails is an exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _quiet_data(ray: Any) -> Iterator[None]:
    """No bars and reports of Ray Data: the command has its own."""
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)


def _check_address(address: str | None) -> None:
    """Ray itself waits for minutes, and says nothing of it."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:  # "auto", "local", "ray://..."
        return
    try:
        socket.create_connection((host, int(port)), CONNECTING).close()
    except OSError as error:
        raise SpeechError(
            f"there is no Ray cluster at {address}: {error.strerror or error}; mend RAY_ADDRESS, or unset it to use "
            "this machine"
        ) from None


def _check_resources(there: dict[str, float], cpus: float, gpus: float) -> None:
    """Ray waits for what it has not got, in case that a machine joins. A machine alone will not grow."""
    for name, wanted, kind in (("CPU", cpus, "cores"), ("GPU", gpus, "GPUs")):
        if wanted > there.get(name, 0.0):
            raise SpeechError(
                f"a worker needs {wanted:g} {kind}, and this machine has {there.get(name, 0.0):g}; ask for less, or "
                "set RAY_ADDRESS to a cluster"
            )
