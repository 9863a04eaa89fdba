"""Manifests of Parquet: a file, or several in a row. A shard is read without the row groups before it."""

from __future__ import annotations

import hashlib
import os
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch_ctc_align.speech.corpus.manifest_rows import Names, Row, choose_names, read_row, show_name
from torch_ctc_align.speech.errors import SpeechError, require

__all__ = ["ParquetSource", "open_parquet"]

WHAT_FOR = "reading Parquet"
TAIL = 8  # bytes behind the footer: its length, and four letters

_kept = threading.local()


@dataclass(frozen=True)
class ParquetSource:
    """Rows of Parquet files.

    Attributes:
        paths: the files, in order.
        names: of the columns.
        root: the folder from which paths count.
        shard_rows, num_rows: as of the manifest.
        file_starts: first row of every file.
        group_starts: first row of every row group of all files.
        first_groups: how many row groups there are before every file.
        footers: of every file, its size in bytes and the SHA-256 of its footer.
        embedded: what the column audio has: None is a path; else the field of a structure with the path, or "".
    """

    paths: tuple[str, ...]
    names: Names
    root: str
    shard_rows: int
    num_rows: int
    file_starts: array[int] = field(repr=False)
    group_starts: array[int] = field(repr=False)
    first_groups: array[int] = field(repr=False)
    footers: tuple[tuple[int, str], ...] = field(repr=False)
    embedded: str | None = None

    def rows(self, shard: int) -> Iterator[Row]:
        """Reads a shard."""
        for place, record in self._records(shard, self.names.used()):
            yield read_row(record, self.names, place, self.root)

    def ids(self, shard: int) -> Iterator[tuple[str, str]]:
        """Places and ids of a shard, without recordings that lie in the file, and without texts."""
        columns = [name for name in self.names.used() if name not in (self.names.audio, self.names.text)]
        if self.embedded is None:
            columns.append(self.names.audio)
        elif self.embedded:
            columns.append(f"{self.names.audio}.{self.embedded}")
        for place, record in self._records(shard, columns):
            if self.embedded is not None:
                record[self.names.audio] = {"bytes": b"-"} | (record.get(self.names.audio) or {})
            yield place, read_row(record | {self.names.text: None}, self.names, place, self.root)[0]

    def digest(self) -> str:
        """SHA-256 of names, sizes and footers.

        The footer has the places, sizes and extreme values of everything in the file. Whole files may hold the
        recordings, and would take hours.
        """
        listed = (f"{size} {footer} {os.path.basename(path)}\n" for path, (size, footer) in self._files())
        return hashlib.sha256("".join(listed).encode("utf-8", "surrogateescape")).hexdigest()

    def _files(self) -> Iterator[tuple[str, tuple[int, str]]]:
        return zip(self.paths, self.footers, strict=True)

    def _records(self, shard: int, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        begin = shard * self.shard_rows
        end = min(begin + self.shard_rows, self.num_rows)
        key = (self.paths, self.footers, tuple(columns), self.shard_rows)
        cursor = getattr(_kept, "cursor", None)
        group = self.group_starts[bisect_right(self.group_starts, begin) - 1]
        if cursor is None or cursor.key != key or not group <= cursor.row <= begin:
            cursor = _Cursor(self, columns, begin, key)
        _kept.cursor = None  # it is of no use behind an error
        place = begin
        for batch in cursor.take(begin, end):
            for record in batch.to_pylist():
                file = bisect_right(self.file_starts, place) - 1
                name = show_name(os.path.basename(self.paths[file]))
                yield f"{name}:{place - self.file_starts[file] + 1}", record
                place += 1
        _kept.cursor = cursor


class _Cursor:
    """Where a thread has come to.

    A row group may have a million rows: the next shard goes on from here, and does not read the group from its
    beginning again.
    """

    def __init__(self, source: ParquetSource, columns: Sequence[str], row: int, key: Any) -> None:
        self.source, self.columns, self.key = source, list(columns), key
        group = bisect_right(source.group_starts, row) - 1
        self.row = source.group_starts[group]
        self.batches = self._read(group)
        self.rest: Any = None

    def _read(self, group: int) -> Iterator[Any]:
        source = self.source
        for file in range(bisect_right(source.first_groups, group) - 1, len(source.paths)):
            path, first = source.paths[file], source.first_groups[file]
            with _opened(path) as parquet:
                if _read_footer(path) != source.footers[file]:
                    raise SpeechError(
                        f"{show_name(path)} has changed since it was opened: put back what it was, or begin a new job"
                    )
                groups = list(range(max(group - first, 0), parquet.metadata.num_row_groups))
                yield from parquet.iter_batches(
                    batch_size=source.shard_rows, row_groups=groups, columns=self.columns, use_threads=False
                )

    def take(self, begin: int, end: int) -> Iterator[Any]:
        """Yields the rows from one to another, in pieces."""
        while self.row < end:
            batch = self.rest if self.rest is not None else next(self.batches)
            first, stop = max(begin - self.row, 0), min(end - self.row, len(batch))
            self.rest = batch.slice(stop) if stop < len(batch) else None
            self.row += stop
            if first < stop:
                yield batch.slice(first, stop - first)


def open_parquet(
    paths: Sequence[str], shard_rows: int, root: str, shown: str, columns: dict[str, Any]
) -> ParquetSource:
    """Reads the footers of files.

    Args:
        paths: the files.
        shard_rows: of the manifest.
        root: the folder from which paths count.
        shown: the manifest, for messages.
        columns: arguments of :func:`choose_names`.

    Raises:
        SpeechError: a file cannot be read, or a column is missing.
    """
    arrow = require("pyarrow", WHAT_FOR)
    file_starts, group_starts, first_groups = array("q"), array("q"), array("q")
    footers, num_rows, names, embedded = [], 0, None, None
    for path in paths:
        with _opened(path) as parquet:
            metadata, schema = parquet.metadata, parquet.schema_arrow
            file_starts.append(num_rows)
            first_groups.append(len(group_starts))
            for group in range(metadata.num_row_groups):
                group_starts.append(num_rows)
                num_rows += metadata.row_group(group).num_rows
        footers.append(_read_footer(path))
        if names is None:
            names = choose_names(schema.names, shown, **columns)
        for name in names.used():
            if name not in schema.names:
                raise SpeechError(f"{show_name(path)} has no column {name!r}, and {show_name(paths[0])} has one")
        kind = schema.field(names.audio).type
        here = None
        if arrow.types.is_struct(kind):
            here = "path" if kind.get_field_index("path") >= 0 else ""
        elif arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind):
            here = ""
        if path != paths[0] and here != embedded:
            raise SpeechError(f"{names.audio} is {kind} in {show_name(path)}, and not in {show_name(paths[0])}")
        embedded = here
    assert names is not None
    return ParquetSource(
        *(tuple(paths), names, root, shard_rows, num_rows),
        *(file_starts, group_starts, first_groups, tuple(footers), embedded),
    )


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    arrow, parquet = require("pyarrow", WHAT_FOR), require("pyarrow.parquet", WHAT_FOR)
    try:
        with open(path, "rb") as file, parquet.ParquetFile(file) as opened:
            yield opened
    except (OSError, arrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0].rstrip(".")
        raise SpeechError(f"{show_name(path)} cannot be read: {reason}") from None


def _read_footer(path: str) -> tuple[int, str]:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(-TAIL, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-TAIL - length, os.SEEK_END)
        return size, hashlib.sha256(file.read()).hexdigest()
