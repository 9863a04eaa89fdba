"""``Align``: columns in, columns out, on any engine."""

from __future__ import annotations

import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from torch_ctc_align.errors import AlignmentWarning
from torch_ctc_align.speech.aligner import Aligner
from torch_ctc_align.speech.alignment import round_time
from torch_ctc_align.speech.corpus.cells import Request, read_requests, write_columns
from torch_ctc_align.speech.corpus.columns import COLUMNS, failed_columns
from torch_ctc_align.speech.errors import SpeechError
from torch_ctc_align.speech.models import AcousticModel
from torch_ctc_align.speech.path import Star
from torch_ctc_align.speech.stages import (
    Item,
    Options,
    Placed,
    choose_words,
    find_paths,
    listen,
    open_item,
    place_words,
    read_ahead,
    score_of,
    seconds_of,
    spell,
)
from torch_ctc_align.speech.text import Split, Transcript
from torch_ctc_align.speech.text.spelling import Spelling

__all__ = ["Align"]

Model = str | os.PathLike[str] | Callable[[], AcousticModel | Aligner]

CUDA_SECONDS = 600.0  # of sound that a model on CUDA gets at once, where nothing else is asked for
AHEAD = 4  # recordings a thread that are opened before the model is ready for them
LONGEST_READ_AHEAD = 600.0  # seconds; a longer recording is read while the model listens, so that memory is bounded
GROUP_CELLS = 1 << 24  # of emissions whose paths are found in one call: 64 MB of float32
CONFIDENCE_DIGITS = 4
IMPORTER = os.getpid()  # other processes are its forks
OF_OTHERS: list[Aligner | None] = []  # what a fork has of the process before it: kept, not used


class Align:
    """Aligns a batch of recordings with their texts: columns in, columns out.

    For ``ray.data.Dataset.map_batches``, ``datasets.Dataset.map(batched=True)``, pandas, and whatever else hands over
    columns; ``docs/corpora.md`` has recipes. It never raises for data: a recording that cannot be read, a text that
    does not fit have a ``status`` and a ``message``, and the items beside them are aligned. It raises for mistakes of a
    program: a column that is missing, a model that cannot be loaded.

    The result of an item does not depend on its batch: alone or among others, it has the same bits. So the model gets
    windows of one recording at once, never those of two; and no padding.

    An instance can be pickled; the model is loaded where it is called first, once a process. In a process that was
    forked torch gets one thread.

    Args:
        model (str, path or callable): ``"english"``, the model that the extra ``speech`` brings; a name or a directory
            for transformers; the path of an ``.onnx`` file; or a function of no arguments that returns an
            :class:`AcousticModel` or an :class:`Aligner`. For other processes it must be one that pickle finds by name.
        audio, text (str): names of columns. A recording is a path; ``bytes``, the content of a file; a mapping with
            ``array`` and ``sampling_rate``, or with ``bytes`` and ``path``; a pair ``(samples, rate)``; or an array,
            whose rate stands in the column ``sampling_rate``.
        offset, duration, sampling_rate (str): names of columns that need not be there: the part of a recording that is
            meant (seconds), and the rate of arrays (Hz).
        star, unspoken, split, language: see :class:`Aligner`.
        device, dtype: of the model; see :meth:`Aligner.load`.
        batch_seconds (float, optional): sound that the model gets at once: as many windows of a recording as fit. If
            they do not fit into memory, that recording is tried again with half as many. Default: 600 on CUDA, and
            elsewhere one window.
        threads (int): that open and read recordings while the model works. Default: 2.

    Attributes:
        progress (callable, optional): called with the number of items that the model is done with since the last call.

    Example::

        align = Align()
        done = align({"id": ["a", "b"], "audio": ["talk.wav", "missing.wav"], "text": ["Hello there.", "Hi!"]})
        done["status"]  # ["ok", "unreadable"]
        done["words"], done["starts"]  # [["Hello", "there"], []], [[0.31, 0.74], []]
    """

    def __init__(
        self,
        model: Model = "english",
        *,
        audio: str = "audio",
        text: str = "text",
        offset: str = "offset",
        duration: str = "duration",
        sampling_rate: str = "sampling_rate",
        star: Star | None = "ends",
        unspoken: bool = False,
        split: Split = "lines",
        language: str | None = None,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        batch_seconds: float | None = None,
        threads: int = 2,
    ) -> None:
        if split not in ("lines", "sentences", "words"):
            raise SpeechError(f"split must be 'lines', 'sentences' or 'words', found {split!r}")
        if batch_seconds is not None and not 0 < batch_seconds < math.inf:
            raise SpeechError(f"batch_seconds must be a number of seconds above 0, found {batch_seconds!r}")
        if threads < 1:
            raise SpeechError(f"threads must be at least 1, found {threads!r}")
        self.columns = {"audio": audio, "text": text, "offset": offset, "duration": duration,
                        "sampling_rate": sampling_rate}  # fmt: skip
        self.options = Options(star, unspoken, split, language)
        self.model, self.device, self.dtype = model, device, dtype
        self.batch_seconds, self.threads = batch_seconds, threads
        self.progress: Callable[[int], None] | None = None
        self._aligner: Aligner | None = None
        self._spelling: Spelling | None = None
        self._process: int | None = None  # which has loaded them

    def __getstate__(self) -> dict[str, Any]:
        """Settings alone: the model is loaded in the other process."""
        return self.__dict__ | {"_aligner": None, "_spelling": None, "_process": None, "progress": None}

    @property
    def aligner(self) -> Aligner:
        """The aligner, whose model is loaded now if this process has not loaded it."""
        if self._aligner is None or self._process != os.getpid():
            if os.getpid() != IMPORTER:
                # A fork of a process that has used GNU's OpenMP hangs or crashes where that wants threads; and a
                # session of onnxruntime hangs at its end, where it waits for threads that only the other process has.
                torch.set_num_threads(1)
                OF_OTHERS.append(self._aligner)
            self._process = os.getpid()
            language = self.options.language
            self._aligner = _load(self.model, self.device, self.dtype, language)
            model = self._aligner.model
            self._spelling = Spelling(model, language or model.language, None)
        return self._aligner

    @property
    def versions(self) -> str:
        """What the result depends on: the package, torch, the model."""
        from torch_ctc_align import __version__

        return f"torch_ctc_align {__version__}, torch {torch.__version__}, model {self.aligner.model.name}"

    def __call__(self, batch: Any) -> Any:
        """Aligns a batch.

        Args:
            batch: a mapping of names to lists or arrays, a ``pyarrow.Table`` or a ``pandas.DataFrame``.

        Returns:
            The same kind, with the columns of ``batch`` and those of :data:`COLUMNS`. Times are seconds from the
            beginning of the recording, to the millisecond; confidences have four decimals.

        Raises:
            SpeechError: a column is missing, or there is one already that the result would replace; columns differ in
                length; the model cannot be loaded.
        """
        requests = read_requests(batch, self.columns)
        rows = self._align(requests)
        return write_columns(batch, {name: [row[name] for row in rows] for name in COLUMNS})

    def _align(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """Returns the columns of every item."""
        versions = self.versions
        rows: list[dict[str, Any]] = [{}] * len(requests)
        group: list[_Opened] = []
        cells = 0
        for opened in self._open_all(requests):
            try:
                item = opened.item()
                self._listen(item)
                choose_words(item, self.aligner.model, self.options)
            except Exception as error:
                rows[opened.place] = _failed(error, versions, opened.seconds)
            else:
                group.append(opened)
                cells += item.log_probs.numel()
            if self.progress is not None:
                self.progress(1)
            if cells >= GROUP_CELLS:
                self._finish(group, rows, versions)
                group, cells = [], 0
        self._finish(group, rows, versions)
        return rows

    def _open_all(self, requests: Sequence[Request]) -> Iterator[_Opened]:
        """Opens recordings in threads, some ahead of the one that is wanted, and yields them in order.

        Texts are spelt here, in the thread of the caller: a model's ``spell`` need not allow for more.
        """
        model = self.aligner.model
        spelling = self._spelling
        waiting: deque[_Opened] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="ctc-align")
        try:
            for place, request in enumerate(requests):
                try:
                    transcript = spell(request.text, model, self.options, spelling)
                    future = pool.submit(_open, request, transcript, model)
                except Exception as error:
                    future = Future()
                    future.set_exception(error)
                waiting.append(_Opened(place, future))
                if len(waiting) > AHEAD * self.threads:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            pool.shutdown(cancel_futures=True)

    def _listen(self, item: Item) -> None:
        """Runs the model, on fewer windows at once where memory is short."""
        model = self.aligner.model
        size = self._batch_size(model)
        while True:
            try:
                return listen(item, model, size, self.aligner.dtype)
            except Exception as error:
                if size == 1 or not _is_out_of_memory(error):
                    raise
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                size //= 2
                warnings.warn(
                    f"{model.name}: {2 * size} windows of {model.window:g} s at once do not fit into memory; "
                    f"{size} are tried. batch_seconds={size * model.window:g} would try no more",
                    AlignmentWarning,
                    stacklevel=2,
                )

    def _batch_size(self, model: AcousticModel) -> int:
        seconds = self.batch_seconds
        if seconds is None:
            on_cuda = self.device is not None and torch.device(self.device).type == "cuda"
            if not (on_cuda or (self.device is None and torch.cuda.is_available())):
                return self.aligner.batch_size
            seconds = CUDA_SECONDS
        return max(1, int(seconds / model.window))

    def _finish(self, group: Sequence[_Opened], rows: list[dict[str, Any]], versions: str) -> None:
        """Finds the paths of a group and describes them."""
        model = self.aligner.model
        try:
            find_paths([opened.item() for opened in group], model)
        except Exception as error:
            if len(group) == 1:
                rows[group[0].place] = _failed(error, versions, group[0].seconds)
                return
            half = len(group) // 2
            self._finish(group[:half], rows, versions)
            self._finish(group[half:], rows, versions)
            return
        for opened in group:
            item = opened.item()
            try:
                placed = place_words(item, model, self.aligner.borders)
                rows[opened.place] = _columns_of(item, placed, model, versions)
            except Exception as error:
                rows[opened.place] = _failed(error, versions, opened.seconds)


class _Opened(NamedTuple):
    """An item that a thread opens, or has opened."""

    place: int
    future: Future[Item]

    def item(self) -> Item:
        """Waits for it, and raises what its thread has raised."""
        return self.future.result()

    @property
    def seconds(self) -> float | None:
        return None if self.future.exception() else self.item().recording.seconds


def _load(model: Model, device: str | None, dtype: torch.dtype | str | None, language: str | None) -> Aligner:
    if callable(model):
        made = model()
        return made if isinstance(made, Aligner) else Aligner.from_model(made)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return Aligner.load(model, device=device, dtype=wanted, language=language)


def _open(request: Request, transcript: Transcript, model: AcousticModel) -> Item:
    """The work of a thread. What has been read takes 4 bytes a sample until the model has heard it."""
    item = open_item(request.source(), transcript, model, request.offset, request.duration)
    if item.recording.seconds <= LONGEST_READ_AHEAD:
        read_ahead(item)
    return item


def _columns_of(item: Item, placed: Placed, model: AcousticModel, versions: str) -> dict[str, Any]:
    words = placed.words
    confidences = [word.confidence for word in words]
    known = [confidence for confidence in confidences if confidence is not None]
    return {
        "status": "ok",
        "message": None,
        "words": [word.text for word in words],
        "starts": [round_time(word.start) for word in words],
        "ends": [round_time(word.end) for word in words],
        "confidences": [None if value is None else round(value, CONFIDENCE_DIGITS) for value in confidences],
        "unexplained": [
            {
                "start": round_time(seconds_of(item, model, piece.start)),
                "end": round_time(seconds_of(item, model, piece.end)),
            }
            for piece in placed.pieces
        ],
        "unspoken": [place for place, word in enumerate(words) if word.status == "unspoken"],
        "confidence": round(math.fsum(known) / len(known), CONFIDENCE_DIGITS) if known else None,
        "score": score_of(item),
        "seconds": item.recording.seconds,
        "versions": versions,
    }


def _failed(error: Exception, versions: str, seconds: float | None) -> dict[str, Any]:
    """The columns of an item that failed.

    Raises:
        AcceleratorError: the device is in a state in which nothing more can be done in this process.
    """
    if isinstance(error, getattr(torch, "AcceleratorError", ())) and not _is_out_of_memory(error):
        raise error
    message = " ".join(str(error).split())
    if _is_out_of_memory(error):
        message = f"does not fit into memory: {message}" if message else "does not fit into memory"
    elif isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif not isinstance(error, SpeechError):
        message = f"{type(error).__name__}: {message}"
    return failed_columns(getattr(error, "status", SpeechError.status), message, versions, seconds)


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory was short, on any device. A model may have wrapped the error; ONNX has no type for it."""
    while error is not None:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            return True
        text = str(error)
        if isinstance(error, RuntimeError) and ("out of memory" in text or "allocate memory" in text):
            return True
        error = error.__cause__
    return False
