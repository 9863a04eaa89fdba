"""Aligning many recordings: one after the other, what is finished is skipped, what fails stops nothing.

Nothing is printed here. ``inputs.py`` finds what there is to do; ``ledger.py`` remembers what was written.
"""

import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torch_ctc_align.errors import AlignmentError
from torch_ctc_align.speech.alignment import Segment, SpeechAlignment, Token, Word
from torch_ctc_align.speech.command.inputs import Item
from torch_ctc_align.speech.command.ledger import Ledger, digest_of, fingerprint
from torch_ctc_align.speech.errors import SpeechError
from torch_ctc_align.speech.formats import save_all

__all__ = ["Result", "align_all", "explain", "refuse_folder", "refuse_formats"]


@dataclass
class Result:
    """What became of an item: exactly one of ``alignment``, ``skipped`` and ``reason`` is true.

    Attributes:
        item: the recording and its text.
        alignment: with its evidence; drop it before the next one is computed.
        files: that were written.
        notes: what the reader should know, in sentences.
        skipped: it was finished before.
        reason: why it failed.
        error: the exception behind ``reason``, for its traceback.
        took: seconds of work.
    """

    item: Item
    alignment: SpeechAlignment | None = None
    files: Sequence[Path] = ()
    notes: Sequence[str] = ()
    skipped: bool = False
    reason: str | None = None
    error: BaseException | None = None
    took: float = 0.0


def refuse_folder(folder: Path) -> None:
    """Raises SpeechError if no file can be written into a folder, which need not exist yet."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise SpeechError(f"cannot write to {folder}: {place} is not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise SpeechError(f"cannot write to {folder} (no permission for {place}): give another folder with --out-dir")


def refuse_formats(formats: Mapping[str, str]) -> None:
    """Raises SpeechError if a format lacks a library: before a model runs for an hour, not after."""
    word = Word("a", 0, 1, 0, 0.0, 0.1, -0.1, 0.9, "spoken")
    segment = Segment("a", 0, 1, range(1), 0.0, 0.1, 0.9, 0.9, 0.9)
    tiny = SpeechAlignment("a", [word], [segment], [Token("a", 0.0, 0.1, -0.1, 0)], [], 0.1, 0.1, -0.1, "none")
    with tempfile.TemporaryDirectory() as folder:
        for name, suffix in formats.items():
            try:
                tiny.save(Path(folder, f"a{suffix}"), name)
            except SpeechError as error:
                if isinstance(error.__context__, ImportError):  # see errors.require
                    raise
            except Exception:  # what this alignment lacks, a real one has
                continue


def _read_text(item: Item) -> str:
    if isinstance(item.text, str):
        return item.text
    from torch_ctc_align.speech.text import read_text_file

    return str(read_text_file(item.text))


def align_all(
    items: Iterable[Item],
    load: Callable[[], Any],
    formats: Mapping[str, str],
    options: Mapping[str, Any],
    *,
    call: Mapping[str, Any],
    force: bool = False,
    resume: bool = True,
    progress: Callable[[Item, str, int, int], None] | None = None,
) -> Iterator[Result]:
    """Aligns one item after the other. A failure, of whichever kind, does not stop the others.

    Args:
        items: what to align.
        load: returns the aligner; called once, and only if something is to be aligned. What it raises is not caught.
        formats: suffix of each format to write.
        options: whatever the result depends on, beside the recording and the text.
        call: keyword arguments of the aligner.
        force: align what is finished, and overwrite files that are not ours.
        resume: skip what is finished.
        progress: called with the item, and what the aligner says.

    Yields:
        A result for each item, in order.
    """
    ledgers: dict[Path, Ledger] = {}
    aligner: Any = None
    for item in items:
        began = time.monotonic()
        try:
            folder = item.output.parent
            if not item.audio.is_file():
                reason = "is not a file" if item.audio.exists() else "no such file"
                raise SpeechError(reason if item.source == str(item.audio) else f"{item.audio}: {reason}")
            text = _read_text(item)
            if folder not in ledgers:
                ledgers[folder] = Ledger(folder)
            ledger = ledgers[folder]
            ledger.refresh()
            files = item.files(formats.values())
            made_from = fingerprint(item, text, options)
            if resume and not force and _is_finished(item, files, ledger, made_from):
                yield Result(item, files=files, skipped=True)
                continue
            refuse_folder(folder)
            foreign = [path for path in files if not force and not ledger.may_replace(path)]
            if foreign:
                known = foreign[0].name in ledger.entries
                why = "was changed after ctc-align wrote it" if known else "exists, and ctc-align did not write it"
                raise SpeechError(f"{foreign[0]} {why}: give --force to overwrite it, or another folder with --out-dir")
        except Exception as error:
            yield _failed(item, error, began)
            continue
        if aligner is None:
            aligner = load()
            began = time.monotonic()
        try:
            report = None if progress is None else _bind(progress, item)
            alignment = aligner(item.audio, text, offset=item.offset, duration=item.duration, progress=report, **call)
            notes = list(aligner.notes)
            folder.mkdir(parents=True, exist_ok=True)
            ledger.add(None, dict.fromkeys(files))
            save_all(alignment, dict(zip(files, formats, strict=True)))
            ledger.add(made_from, {path: digest_of(path) for path in files})
        except Exception as error:
            yield _failed(item, error, began)
            continue
        yield Result(item, alignment, files, notes, took=time.monotonic() - began)
        alignment = None  # its evidence is large


def _bind(progress: Callable[[Item, str, int, int], None], item: Item) -> Callable[[str, int, int], None]:
    return lambda what, done, total: progress(item, what, done, total)


def _is_finished(item: Item, files: Sequence[Path], ledger: Ledger, made_from: str) -> bool:
    recorded = item.audio.stat().st_mtime_ns
    return all(
        ledger.has_made(path, made_from) and path.is_file() and path.stat().st_mtime_ns >= recorded for path in files
    )


def _failed(item: Item, error: Exception, began: float) -> Result:
    return Result(item, reason=explain(error), error=error, took=time.monotonic() - began)


def explain(error: Exception) -> str:
    """One line for the reader."""
    message = " ".join(str(error).split())
    if isinstance(error, (SpeechError, AlignmentError)):
        return message
    if isinstance(error, torch.OutOfMemoryError):
        return f"does not fit into the memory of the device: give a smaller --batch-size ({message})"
    if isinstance(error, MemoryError):
        return "does not fit into memory; cut the recording, or use a machine with more"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        full = "; make room, and run the command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{where}{error.strerror}{full}"
    return f"{type(error).__name__}: {message} (unexpected: please report it, with what --debug prints)"
