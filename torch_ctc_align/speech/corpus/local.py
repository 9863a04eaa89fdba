"""``run_local``: worker processes of this machine.

The parent hands out the numbers of shards; each worker has a model, and writes the parts itself, with the class that
every engine runs. (One writer, the parent, would need the rows sent to it, and could lose what a worker has finished.)

Worker and parent are joined by a socket. A worker that dies closes its end: the parent starts another, and gives it
the shard again. A parent that dies, or stops, closes its end: a worker then stops within an item, and its journal knows
that it did not die. Workers are programs of their own, not children of ``multiprocessing``, which would run the
caller's script once more in each of them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from types import FrameType
from typing import Any, NoReturn

import torch

from torch_ctc_align.speech.corpus.job import Job, Summary
from torch_ctc_align.speech.errors import SpeechError

__all__ = ["run_local"]

PROGRAM = """
import sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
try:
    sys.path[:] = connection.recv()
    job = connection.recv_bytes()
except (EOFError, OSError):
    sys.exit()  # the parent has stopped already
from torch_ctc_align.speech.corpus.local import work
work(connection, job)
"""

MOST_STARTS = 3  # of workers that die before their model is loaded
GRACE = 10.0  # seconds for a worker to stop, before it is killed
STOPPED = 143  # a worker exits with it if it was asked to stop, as a shell has it for SIGTERM


def run_local(
    job: Job,
    shards: Sequence[int],
    *,
    workers: int,
    on_progress: Callable[[int], None] | None = None,
    on_death: Callable[[str], None] | None = None,
) -> Iterator[Summary]:
    """Does shards of a job with processes of this machine.

    Args:
        job: has begun.
        shards: their numbers.
        workers: processes. They share the cores; where the model runs on CUDA, they take turns with the devices.
        on_progress: called with the number of items that are done since the last call. It is negative where a worker
            died with items that must be done again.
        on_death: called with a sentence, for each worker that died.

    Yields:
        The summary of each shard, when its part is there. Close the iterator to stop: no worker is left then.

    Raises:
        SpeechError: the model cannot be loaded, the folder cannot be written, workers die for no item's sake.
        RuntimeError: anything else that went wrong in a worker, with its traceback as the cause.
    """
    waiting = deque(shards)
    team: list[Worker] = []
    numbers = list(range(min(workers, len(waiting))))  # of the workers that are to be started
    starts = 0

    def count(items: int) -> None:
        if on_progress is not None and items:
            on_progress(items)

    try:
        while waiting or any(worker.shard is not None for worker in team):
            while numbers and waiting:
                team.append(Worker(job, numbers.pop(0), workers))
            speaking = wait([worker.connection for worker in team])
            for worker in [worker for worker in team if worker.connection in speaking]:
                try:
                    kind, value = worker.connection.recv()
                except (EOFError, OSError):
                    team.remove(worker)
                    numbers.append(worker.number)
                    count(-worker.done)
                    if worker.shard is not None:
                        waiting.appendleft(worker.shard)
                    how = worker.end()
                    starts += not worker.ready
                    if starts >= MOST_STARTS:
                        raise SpeechError(
                            f"{starts} workers died before their model was loaded, the last one with {how}; is there "
                            "memory for it? Fewer --workers take less"
                        ) from None
                    if on_death is not None and how is not None:
                        on_death(f"a worker died ({how})" + worker.describe())
                    continue
                if kind == "progress":
                    worker.done += value
                    count(value)
                elif kind == "failed":
                    kind, message, trace = value
                    raise kind(message) from RuntimeError(f"in a worker:\n{trace}")
                else:
                    if kind == "done":
                        count(value.rows - worker.done)
                        worker.shard, worker.done = None, 0
                        yield value
                    worker.ready, starts = True, 0
                    if waiting:
                        worker.give(waiting.popleft())
    finally:
        stop(team)


class Worker:
    """A worker process, seen from its parent.

    Attributes:
        number: from 0; a worker that takes the place of another has its number.
        shard: what it works on.
        done: items of the shard.
        ready: whether its model is loaded.
    """

    def __init__(self, job: Job, number: int, workers: int) -> None:
        self.number = number
        self.shard: int | None = None
        self.done = 0
        self.ready = False
        self.connection, theirs = Pipe()
        with theirs, interrupts_held():  # a Ctrl-C is the parent's: the worker ends when its parent says so
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | choose_device(job, number),
            )
        threads = max(1, len(os.sched_getaffinity(0)) // workers)
        if job.settings.get("model", "english") == "english":
            threads = 1  # a second one gives little, and may change last bits: rows do not depend on --workers so
        with contextlib.suppress(OSError):  # it died: recv() will find out
            self.connection.send(sys.path)
            self.connection.send_bytes(pickle.dumps((job, threads)))

    def give(self, shard: int) -> None:
        """Gives it a shard to do."""
        self.shard = shard
        with contextlib.suppress(OSError):
            self.connection.send(shard)

    def end(self) -> str | None:
        """Waits for the end of a worker that died, and says how; None if it was asked to."""
        self.connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        self.process.kill()
        status = self.process.wait()
        if status == STOPPED:
            return None
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def describe(self) -> str:
        """What it worked on."""
        return "" if self.shard is None else f" with shard {self.shard}, which is begun again"


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """A process that is started here never gets SIGINT, and this thread gets it later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def choose_device(job: Job, number: int) -> dict[str, str]:
    """The environment of a worker: it sees one of several CUDA devices, whatever library asks."""
    devices = torch.cuda.device_count()
    if job.settings.get("device") not in (None, "cuda") or devices < 2:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if len(visible) >= devices else [str(device) for device in range(devices)]
    return {"CUDA_VISIBLE_DEVICES": names[number % devices].strip()}


def stop(team: Sequence[Worker]) -> None:
    """Ends all workers: those that work stop within an item, or are killed after some seconds."""
    for worker in team:
        worker.connection.close()
        worker.process.terminate()
    for worker in team:
        try:
            worker.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


# In the worker --------------------------------------------------------------------------------------------------------


def work(connection: Connection[Any, Any], pickled: bytes) -> NoReturn:
    """What a worker does: shards, as long as its parent gives some."""
    os.set_inheritable(connection.fileno(), False)
    status = 1
    try:
        try:
            signal.signal(signal.SIGTERM, stop_once)
            threading.Thread(target=watch, args=(connection.fileno(),), daemon=True).start()
            serve(connection, pickled)
        except KeyboardInterrupt:
            status = STOPPED
    finally:  # even if a signal comes late
        os._exit(status)  # without the farewells of libraries, some of which crash


def serve(connection: Connection[Any, Any], pickled: bytes) -> None:
    """Does what the parent says; what goes wrong is told to it."""

    def send(*message: Any) -> None:
        with stopping_at_the_end():
            connection.send(message)

    try:
        from torch_ctc_align.speech.corpus.shards import ShardAligner

        job, threads = pickle.loads(pickled)
        torch.set_num_threads(threads)
        align = ShardAligner(job, lambda items: send("progress", items))
        send("ready", None)
        while True:
            with stopping_at_the_end():
                shard = connection.recv()
            send("done", align(shard))
    except Exception as error:
        known = isinstance(error, SpeechError)
        message = str(error) if known else f"{type(error).__name__}: {error}"
        send("failed", (SpeechError if known else RuntimeError, message, traceback.format_exc()))


@contextlib.contextmanager
def stopping_at_the_end() -> Iterator[None]:
    """Where the parent has closed its end of the connection, it wants no more, or died: that is as Ctrl-C."""
    try:
        yield
    except (EOFError, OSError):
        raise KeyboardInterrupt from None


def stop_once(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the work as Ctrl-C does. What comes later would disturb the cleaning up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def watch(connection: int) -> None:
    """Stops this process when the parent's end of the connection is closed."""
    poll = select.poll()
    poll.register(connection, 0)  # what is left is the end
    poll.poll()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)  # a model may take its time until Python hears of the signal
    os._exit(STOPPED)
