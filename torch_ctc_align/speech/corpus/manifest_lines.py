"""Manifests of lines: JSON objects, or CSV and TSV with a header; plain or gzipped; one file or several in a row."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import os
import threading
import zlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, BinaryIO, cast

from torch_ctc_align.speech.command.inputs import parse_object
from torch_ctc_align.speech.corpus.manifest_rows import show_name
from torch_ctc_align.speech.errors import SpeechError

__all__ = ["LineFile", "Lines", "is_zipped", "scan_lines"]

LARGEST_FIELD = 50_000_000  # characters, as of a text file; csv's own limit is shorter than the text of some hours

BLOCK = 1 << 20  # bytes

_kept = threading.local()


@dataclass(frozen=True)
class LineFile:
    """One of the files: where its rows begin, and how they are read."""

    path: str
    begin: int  # byte
    line: int  # number of the first line that can be a row, from 1
    delimiter: str | None = None  # None: JSON
    header: tuple[str, ...] = ()
    is_quoted: bool = False  # whether a field in quotation marks may hold delimiters and line breaks

    @property
    def name(self) -> str:
        """For messages."""
        return show_name(os.path.basename(self.path))


@dataclass(frozen=True)
class Lines:
    """Rows of some files, found again by the places of their shards.

    Attributes:
        files: in order.
        shard_rows, num_rows: rows that are blank do not count.
        marks: of every shard: file, byte, line.
        checks: CRC-32 of every shard's rows.
        sha256: of every file.
    """

    files: tuple[LineFile, ...]
    shard_rows: int
    num_rows: int
    marks: array[int] = field(repr=False)
    checks: array[int] = field(repr=False)
    sha256: tuple[str, ...] = field(repr=False)

    def records(self, shard: int) -> Iterator[tuple[str, dict[str, Any] | SpeechError]]:
        """Yields place and cells of every row of a shard; in place of the cells, what is wrong with the row.

        Raises:
            SpeechError: a file cannot be read, or is no longer what it was.
        """
        first, offset, line = self.marks[3 * shard : 3 * shard + 3]
        expected = min(self.shard_rows, self.num_rows - shard * self.shard_rows)
        found: list[tuple[LineFile, int, bytes]] = []
        check = 0
        for file in self.files[first:]:
            if found:  # the shard goes on at the beginning of the next file
                offset, line = file.begin, file.line
            with _opened(file.path) as stream:
                stream.seek(offset)
                for number, _, row in islice(_find_rows(stream, file, line, offset), expected - len(found)):
                    found.append((file, number, row))
                    check = zlib.crc32(row, check)
            if len(found) == expected:
                break
        if len(found) < expected or check != self.checks[shard]:
            raise SpeechError(
                f"{show_name(self.files[first].path)} has changed since it was opened: the rows from line "
                f"{self.marks[3 * shard + 2]} on are others; put back what it was, or begin a new job"
            )
        for file, number, row in found:
            place = f"{file.name}:{number}"
            try:
                yield place, _parse(row, file)
            except SpeechError as error:
                yield place, SpeechError(f"{place} {error}")

    def digest(self) -> str:
        """The SHA-256 of the file; of several, that of a list of theirs and their names."""
        if len(self.sha256) == 1:
            return self.sha256[0]
        listed = (
            f"{sha256}  {os.path.basename(file.path)}\n" for sha256, file in zip(self.sha256, self.files, strict=True)
        )
        return hashlib.sha256("".join(listed).encode("utf-8", "surrogateescape")).hexdigest()


def scan_lines(paths: Iterable[str], shard_rows: int, *, is_csv: bool) -> Lines:
    """Reads files once, to learn where the shards are.

    Raises:
        SpeechError: a file cannot be read, or has no header.
    """
    files: list[LineFile] = []
    sums = []
    marks, checks = array("q"), array("L")
    num_rows = check = 0
    for path in paths:
        sha256 = hashlib.sha256()
        with _opened(path, sha256) as stream:
            file, lines = _begin(stream, path, is_csv)
            for number, offset, row in _find_rows(lines, file, file.line, file.begin):
                if num_rows % shard_rows == 0:
                    if num_rows:
                        checks.append(check)
                    check = 0
                    marks.extend((len(files), offset, number))
                check = zlib.crc32(row, check)
                num_rows += 1
        files.append(file)
        sums.append(sha256.hexdigest())
    if num_rows:
        checks.append(check)
    return Lines(tuple(files), shard_rows, num_rows, marks, checks, tuple(sums))


def _begin(stream: BinaryIO, path: str, is_csv: bool) -> tuple[LineFile, Iterator[bytes]]:
    """Reads the header, if there has to be one. Returns the lines behind it."""
    first = stream.readline()
    if first[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise SpeechError(f"{show_name(path)} is UTF-16; save it as UTF-8")
    begin = len(codecs.BOM_UTF8) if first.startswith(codecs.BOM_UTF8) else 0
    lines = chain([first[begin:]], stream)
    if not is_csv:
        return LineFile(path, begin, 1), lines
    # In TSV a line is a row, and quotation marks are the text's: one that is opened in a sentence and closed three
    # sentences on would swallow these.
    tabs = path.lower().removesuffix(".gz").endswith(".tsv")
    delimiter = "\t" if tabs else next((sign for sign in ",;\t|" if sign.encode() in first), ",")
    file = LineFile(path, begin, 1, delimiter, is_quoted=not tabs)
    for number, offset, row in _find_rows(lines, file, 1, begin):
        try:
            header = tuple(name.strip() for name in _split(row, file))
        except SpeechError as error:
            raise SpeechError(f"the header of {show_name(path)} {error}") from None
        end = offset + len(row)
        return LineFile(path, end, number + row.count(b"\n"), delimiter, header, not tabs), lines
    return file, lines


def _find_rows(lines: Iterable[bytes], file: LineFile, number: int, offset: int) -> Iterator[tuple[int, int, bytes]]:
    """Yields number of the first line, place in bytes, and content of every row that is not blank."""
    lines = iter(lines)
    for line in lines:
        row, count = line, 1
        if file.is_quoted and b'"' in line:
            row = _complete(line, lines, file)
            count = row.count(b"\n") or 1
        if not row.isspace() and row:
            yield number, offset, row
        number += count
        offset += len(row)


def _complete(line: bytes, lines: Iterator[bytes], file: LineFile) -> bytes:
    """A row of CSV to its end: line breaks in quotation marks are the field's."""
    taken = [line]

    def feed() -> Iterator[str]:
        yield line.decode("latin-1")  # never fails, and keeps what CSV knows of: ASCII
        for more in lines:
            taken.append(more)
            yield more.decode("latin-1")

    with suppress(csv.Error):  # said where the row is read
        next(_reader(feed(), file))
    return b"".join(taken)


def _reader(lines: Iterable[str], file: LineFile) -> Iterator[list[str]]:
    if csv.field_size_limit() < LARGEST_FIELD:
        csv.field_size_limit(LARGEST_FIELD)
    if not file.is_quoted:
        return csv.reader(lines, delimiter=file.delimiter or ",", quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=file.delimiter or ",", strict=True)


def _split(row: bytes, file: LineFile) -> list[str]:
    try:
        return next(_reader([_decode(row)], file))
    except csv.Error as error:
        advice = "a quotation mark in a field in quotation marks is doubled, and each is closed"
        raise SpeechError(f"is not CSV ({error}): {advice}") from None


def _decode(row: bytes) -> str:
    try:
        return row.decode()
    except UnicodeDecodeError as error:
        raise SpeechError(f"is not UTF-8 text ({error.reason} at byte {error.start}): save the file as UTF-8") from None


def _parse(row: bytes, file: LineFile) -> dict[str, Any]:
    if file.delimiter is None:
        return parse_object(_decode(row).rstrip("\r\n"))  # or else a line that is cut short ends in a control character
    cells = _split(row, file)
    if len(cells) != len(file.header):
        raise SpeechError(
            f"has {len(cells)} fields, and the header has {len(file.header)}: a field with a {file.delimiter!r} in it "
            "must be in quotation marks"
        )
    return dict(zip(file.header, cells, strict=True))


# Files ------------------------------------------------------------------------------------------------------------


class _Hashed(io.RawIOBase):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, path: str, sha256: Any) -> None:
        self.file, self.sha256 = io.FileIO(path), sha256

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.file.readinto(buffer) or 0
        self.sha256.update(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


@contextmanager
def _opened(path: str, sha256: Any = None) -> Iterator[BinaryIO]:
    """A file for reading its lines; its bytes are hashed, unzipped or not. Errors become those of the package."""
    try:
        if sha256 is not None:
            with io.BufferedReader(_Hashed(path, sha256), BLOCK) as raw:
                yield _unzip(path, raw) if is_zipped(path) else raw
        elif not is_zipped(path):
            with open(path, "rb") as stream:
                yield stream
        else:
            yield _keep_open(path)
    except (OSError, EOFError, zlib.error) as error:
        _kept.key = None
        raise SpeechError(f"{show_name(path)} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _keep_open(path: str) -> BinaryIO:
    """A gzipped file where this thread left it.

    It can only be read forwards, and a process mostly goes from shard to shard in their order: so each unzips the file
    once, and not once for every shard.
    """
    stat = os.stat(path)
    key = (path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if getattr(_kept, "key", None) != key:
        _kept.stream = _unzip(path)
        _kept.key = key
    return cast(BinaryIO, _kept.stream)


def _unzip(path: str, raw: BinaryIO | None = None) -> BinaryIO:
    return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(path, "rb", fileobj=raw)), BLOCK)


def is_zipped(path: str) -> bool:
    """Whether the name is one of a gzipped file."""
    return path.lower().endswith(".gz")
