"""The files of a job: rows to and from bytes, and writing that leaves a whole file or none."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from torch_ctc_align.speech.corpus.columns import COLUMNS, arrow_schema
from torch_ctc_align.speech.errors import SpeechError, require

__all__ = [
    "FORMATS",
    "HEAD",
    "OutputError",
    "decode_rows",
    "encode_rows",
    "growing",
    "locked",
    "refusing_to_write",
    "write_whole",
]

FORMATS = ("jsonl", "parquet")

# What a row has in front of COLUMNS, with its kind in Arrow.
HEAD = {"id": "string", "audio": "string", "offset": "double", "duration": "double"}

Row = Mapping[str, Any]


class OutputError(SpeechError):
    """The folder of a job cannot be written: no item is to blame, and all work must stop."""


def encode_rows(rows: Sequence[Row], format: str) -> bytes:
    r"""Rows as the bytes of a file, the same for the same rows.

    Args:
        rows: each with the keys of :data:`HEAD` and :data:`COLUMNS`; numbers are finite.
        format: one of :data:`FORMATS`. JSONL is one object a line, UTF-8; Parquet is compressed with Zstandard.

    Raises:
        SpeechError: the package pyarrow is missing.

    A name of a file that is not UTF-8 has lone surrogates: JSON has an escape for them, in Parquet they become the text
    of that escape.

    Example::

        >>> row = {"id": "a", "audio": "a.wav", "offset": 0.0, "duration": None} | dict.fromkeys(COLUMNS)
        >>> encode_rows([row], "jsonl")[:40]
        b'{"id": "a", "audio": "a.wav", "offset": '
        >>> decode_rows(encode_rows([row], "jsonl"), "jsonl") == [row]
        True
    """
    ordered = [{name: row[name] for name in (*HEAD, *COLUMNS)} for row in rows]
    if format == "jsonl":
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in ordered)
        return "".join(lines).encode("utf-8", "backslashreplace")
    arrow, parquet = _require_parquet()
    kinds = {"string": arrow.string(), "double": arrow.float64()}
    schema = arrow.schema([(name, kinds[kind]) for name, kind in HEAD.items()] + list(arrow_schema()))
    columns = {name: [_printable(row[name]) for row in ordered] for name in schema.names}
    buffer = io.BytesIO()
    parquet.write_table(arrow.table(columns, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def decode_rows(content: bytes, format: str) -> list[dict[str, Any]]:
    """Rows from the bytes of a file that :func:`encode_rows` has made."""
    if format == "jsonl":
        return [json.loads(line) for line in content.split(b"\n") if line]
    arrow, parquet = _require_parquet()
    # Without Arrow's threads: if torch was imported first, they abort the process at its end (pyarrow 26, torch 2.13).
    file = parquet.ParquetFile(arrow.BufferReader(content), pre_buffer=False)
    rows: list[dict[str, Any]] = file.read(use_threads=False).to_pylist()
    return rows


def _require_parquet() -> tuple[Any, Any]:
    return require("pyarrow", "Parquet"), require("pyarrow.parquet", "Parquet")


def _printable(value: Any) -> Any:
    """Arrow has no lone surrogates."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return [_printable(each) for each in value] if isinstance(value, list) else value


@contextlib.contextmanager
def refusing_to_write(path: Path) -> Iterator[None]:
    """Turns an OSError while a file is written into an :class:`OutputError` that names the file."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "make room" if full else "mend that"
        raise OutputError(
            f"cannot write {path}: {error.strerror}; {advice}, then run the same command with --resume: what is "
            "finished is kept"
        ) from error


@contextlib.contextmanager
def growing(path: Path, scratch: Path, *, only_new: bool = False) -> Iterator[BinaryIO]:
    """A file to write to, which appears under its name at the end of the block: whole, or after an error not at all.

    Args:
        path: the name.
        scratch: a folder of the same file system, for the file while it grows.
        only_new: leave a file alone that has the name already.

    Raises:
        OutputError: the disk is full, for example. Nothing is left behind.
    """
    unfinished = scratch / f"{path.name}.{secrets.token_hex(4)}"
    with refusing_to_write(path):
        try:
            with open(unfinished, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # the content is on the disk before the name is
            if not only_new:
                unfinished.replace(path)
                return
            try:
                os.link(unfinished, path)
            except FileExistsError:
                return
            except OSError:  # a file system without hard links
                if not path.exists():
                    unfinished.replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                unfinished.unlink()


def write_whole(path: Path, content: bytes, scratch: Path, *, only_new: bool = False) -> None:
    """Writes a file that appears whole, or not at all; see :func:`growing`."""
    with growing(path, scratch, only_new=only_new) as file:
        file.write(content)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock on a file, which is made if need be. A file system without locks goes without."""
    with refusing_to_write(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
