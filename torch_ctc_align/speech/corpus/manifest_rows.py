"""A record of a manifest, however it is stored, becomes a row: which columns it has, and what is checked."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch_ctc_align.speech.command.inputs import check_part
from torch_ctc_align.speech.errors import SpeechError

__all__ = [
    "AUDIO_COLUMNS",
    "ID_COLUMNS",
    "ROW_COLUMNS",
    "TEXT_COLUMNS",
    "Names",
    "Row",
    "bad_row",
    "choose_names",
    "read_row",
    "show_name",
]

# A row, in this order. ``path`` is the recording as the manifest names it, as text that can be written to any file.
ROW_COLUMNS = ("id", "audio", "path", "text", "offset", "duration", "problem")
Row = tuple[str, Any, str | None, str | None, float, float | None, str | None]

# What columns are called. Where a manifest has several of these, the first is taken. Upper and lower case are one.
AUDIO_COLUMNS = (
    "audio_filepath",
    "audio",
    "audio_path",
    "path",
    "file",
    "file_name",
    "filename",
    "wav_filename",
    "wav",
)
TEXT_COLUMNS = ("text", "transcript", "transcription", "sentence")
ID_COLUMNS = ("id", "utt_id", "uniq_id")
MOST_LISTED = 20  # columns in a message

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True)
class Names:
    """What the columns of a manifest are called. None: it has no such column."""

    audio: str
    text: str
    id: str | None = None
    offset: str | None = None
    duration: str | None = None

    def used(self) -> list[str]:
        """The columns that are read."""
        return [name for name in (self.audio, self.text, self.id, self.offset, self.duration) if name is not None]


def choose_names(
    columns: Collection[str],
    where: str,
    *,
    audio_column: str | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
) -> Names:
    """Finds the columns of a manifest.

    Args:
        columns: those that it has, in order.
        where: the manifest, for messages.
        audio_column, text_column, id_column: their names, where the caller knows.

    Raises:
        SpeechError: one is missing.
    """
    folded: dict[str, str] = {}
    for column in columns:
        folded.setdefault(column.lower(), column)

    def choose(what: str, wanted: str | None, known: tuple[str, ...]) -> str | None:
        if wanted is not None and wanted not in columns:
            raise SpeechError(f"{where} has no column {wanted!r}, which --{what}-column names; it has {_list(columns)}")
        return wanted or next((folded[name] for name in known if name in folded), None)

    def need(what: str, wanted: str | None, known: tuple[str, ...]) -> str:
        found = choose(what, wanted, known)
        if found is None:
            raise SpeechError(
                f"{where} has no column called {', '.join(known[:-1])} or {known[-1]}; it has {_list(columns)}: name "
                f"the one with the {what} with --{what}-column ({what}_column= in Python)"
            )
        return found

    return Names(
        need("audio", audio_column, AUDIO_COLUMNS),
        need("text", text_column, TEXT_COLUMNS),
        choose("id", id_column, ID_COLUMNS),
        folded.get("offset"),
        folded.get("duration"),
    )


def _list(columns: Collection[str]) -> str:
    shown = ", ".join(f"{column!r:.60}" for column in list(columns)[:MOST_LISTED])
    return "the columns " + shown + (", ..." if len(columns) > MOST_LISTED else "")


def read_row(record: Mapping[str, Any], names: Names, place: str, root: str) -> Row:
    """Checks a record.

    The id is that of the record. Where it has none, it is the path as the manifest has it, with the part of the
    recording: ``a/b.wav``, ``a/b.wav#12.5`` (an offset), ``a/b.wav#12.5+3`` (offset and duration). The record alone
    decides, so an id stays the same when others come and go. A row without a path has its ``place``.

    Args:
        record: its cells. None, NaN and an empty string are cells without a value.
        names: of the columns.
        place: where the record is, ``manifest.jsonl:17``.
        root: the folder, absolute, from which paths count.

    Returns:
        The row. What is wrong with it is its ``problem``, a sentence.
    """
    cell = record.get
    id: Any = None if names.id is None else cell(names.id)
    offset: Any = None if names.offset is None else cell(names.offset)
    duration: Any = None if names.duration is None else cell(names.duration)
    text = cell(names.text)
    path = None
    try:
        if id is not None:
            id = _read_id(id, names.id)
        audio, path = _read_audio(cell(names.audio), names.audio, root)
        given = None if offset is None else _read_number(offset)
        offset, duration = check_part(given, None if duration is None else _read_number(duration))
        if text is not None and type(text) is not str:
            if not _is_nan(text):
                raise SpeechError(f"{names.text} must be a string, found {text!r:.80}")
            text = None
        if text is not None and not _is_writable(text):
            raise SpeechError(
                f"{names.text} holds half a character, as \\ud83d is without its other half: {text!r:.80}"
            )
        if id is None:
            id = place if path is None else path if given is None else _name_part(path, given, duration)
    except SpeechError as error:
        return bad_row(id if type(id) is str else place, str(error), path)
    return id, audio, path, text, offset, duration, None


def bad_row(id: str, problem: str, path: str | None = None) -> Row:
    """A row that cannot be used."""
    return id, None, path, None, 0.0, None, show_name(problem)


def show_name(path: str) -> str:
    """A path as text that can be written: file names may be any bytes. They are shown with backslashes."""
    return path if path.isascii() else path.encode("utf-8", "backslashreplace").decode()


def _read_id(id: Any, column: str | None) -> str | None:
    if isinstance(id, float) and id.is_integer():  # whole numbers beside missing ones
        id = int(id)
    if isinstance(id, int) and not isinstance(id, bool):
        return str(id)
    if _is_nan(id) or id == "":
        return None
    if not isinstance(id, str):
        raise SpeechError(f"{column} must be a string or a whole number, found {id!r:.80}")
    return show_name(id)


def _read_audio(audio: Any, column: str, root: str) -> tuple[Any, str | None]:
    """What is to be aligned, and its path as the manifest has it."""
    path = audio
    if isinstance(audio, Mapping):
        path = audio.get("path")
        shown = show_name(path) if isinstance(path, str) and path else None
        if isinstance(audio.get("bytes"), bytes) and audio["bytes"]:
            return audio["bytes"], shown
        if audio.get("array") is not None:
            return audio, shown
    elif isinstance(audio, bytes) and audio:
        return audio, None
    if not isinstance(path, str) or not path.strip():
        raise SpeechError(f"{column} must be the path of a recording, found {audio!r:.80}")
    if "\0" in path:
        raise SpeechError(f"{column} must be the path of a recording, found a zero byte in it")
    if "://" in path and ADDRESS.match(path):
        raise SpeechError(f"{column} must be the path of a file, found the address {path}: download it, or mount it")
    return os.path.join(root, path), show_name(path)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _read_number(value: Any) -> Any:
    """A number of any kind, also of one that is written down; what is none is left for the check."""
    if isinstance(value, (int, float)):  # also a bool, which is refused
        return None if _is_nan(value) else value
    if isinstance(value, str) and not value.strip():
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return None if math.isnan(number) else number


def _name_part(path: str, offset: float, duration: float | None) -> str:
    return f"{path}#" + "+".join(repr(float(x)).removesuffix(".0") for x in (offset, duration) if x is not None)


def _is_writable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
