"""``open_manifest``: what there is to align, in shards that any process can read for itself."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch_ctc_align.speech.command.inputs import is_json
from torch_ctc_align.speech.command.ledger import FAILURES
from torch_ctc_align.speech.corpus.lhotse_cuts import CUT_NAMES, is_cut, read_cut
from torch_ctc_align.speech.corpus.manifest_lines import Lines, is_zipped, scan_lines
from torch_ctc_align.speech.corpus.manifest_pairs import open_pairs
from torch_ctc_align.speech.corpus.manifest_parquet import open_parquet
from torch_ctc_align.speech.corpus.manifest_rows import (
    ROW_COLUMNS,
    Names,
    Row,
    bad_row,
    choose_names,
    read_row,
    show_name,
)
from torch_ctc_align.speech.errors import SpeechError, require

__all__ = ["Manifest", "open_manifest"]

# Which kind a file is. In a folder, *.json are not taken for manifests: ctc-align writes one for each recording.
SUFFIXES = {
    **dict.fromkeys([".jsonl", ".ndjson", ".json", ".manifest"], "jsonl"),
    **dict.fromkeys([".csv", ".tsv"], "csv"),
    **dict.fromkeys([".parquet", ".pq"], "parquet"),
}
ALONE = (".json", ".manifest")
CLIPS = "clips"  # where Common Voice has the recordings that its tables name
MOST_CANDIDATES = 1000  # hashes that are looked at again for one id that is there twice
LONGEST_DOCUMENT = 100_000_000  # bytes; whether a longer file is one JSON document is not found out


class Source(Protocol):
    """Where the rows are. Small, and can be pickled."""

    def rows(self, shard: int) -> Iterator[Row]:
        """Reads the rows of a shard."""

    def ids(self, shard: int) -> Iterator[tuple[str, str]]:
        """Reads places and ids of a shard."""

    def digest(self) -> str:
        """SHA-256 of what decides the rows."""


@dataclass(frozen=True)
class Manifest:
    """Recordings and their texts, in shards.

    It holds where the shards are, not what is in them: 33 kB for a million lines. Workers get a copy, by pickle, and
    read their shards themselves, from the same path: machines that share the work share the file system. No process
    depends on its working directory, as all paths are absolute.

    Attributes:
        path: the file or the folder, absolute; symbolic links stay what they are.
        kind: "jsonl", "parquet", "csv", "pairs" or "cuts".
        num_rows: in all, with those that cannot be used.
        shard_rows: rows of every shard but the last.
        source: reads them.
        notes: sentences for the user: what was left out.
    """

    path: Path
    kind: str
    num_rows: int
    shard_rows: int
    source: Source = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def num_shards(self) -> int:
        """The number of shards."""
        return -(-self.num_rows // self.shard_rows)

    def read(self, shard: int) -> dict[str, list[Any]]:
        """Reads a shard.

        A thread that reads shards in ascending order reads a gzipped file, or a large row group of Parquet, once.

        Args:
            shard: its number, 0 to ``num_shards - 1``.

        Returns:
            Columns, lists of one length, in the order of the manifest:

            - ``id``: str, never empty, which UTF-8 can write.
            - ``audio``: str, the absolute path; bytes where Parquet holds recordings; None where there is a problem.
            - ``path``: str or None, the recording as the manifest names it, which UTF-8 can write.
            - ``text``: str or None. An empty text is no problem here.
            - ``offset``: float, seconds that are left out; 0.0 if nothing is said.
            - ``duration``: float, seconds that are read, or None: to the end.
            - ``problem``: None, or a sentence that says why the row cannot be used.

        Raises:
            IndexError: there is no such shard.
            SpeechError: a file is gone, cannot be read, or is not what it was when the manifest was opened.
        """
        self._check(shard)
        columns = zip(*self.source.rows(shard), strict=True)
        return {name: list(column) for name, column in zip(ROW_COLUMNS, columns, strict=True)}

    def digest(self) -> str:
        """SHA-256, 64 hexadecimal digits, of what decides the rows; it does not depend on where the files are.

        Of a file of lines: that of its bytes, as ``sha256sum`` prints it; of several: that of a list of theirs. Of
        Parquet: of names, sizes and footers. Of pairs: of all names, and the sizes of the texts.
        What is in the recordings is never looked at.

        Raises:
            SpeechError: a text of a folder is gone.
        """
        return self.source.digest()

    def find_duplicates(self) -> tuple[str, list[str]] | None:
        """Looks for an id that several rows have, in 9 bytes a row.

        It reads the whole manifest: some seconds for a million lines.

        Returns:
            The id and the places of its rows (``manifest.jsonl:17``), or None: every id is there once.

        Raises:
            SpeechError: as in :meth:`read`.
        """
        numpy = require("numpy", "looking for ids that are there twice")
        hashes = array("q")
        for shard in range(self.num_shards):
            hashes.extend(hash(id) for _, id in self.source.ids(shard))
        ordered = numpy.frombuffer(hashes, dtype=numpy.int64)
        ordered.sort()
        candidates = set(ordered[1:][ordered[1:] == ordered[:-1]][:MOST_CANDIDATES].tolist())
        places: dict[str, list[str]] = {}
        for shard in range(self.num_shards if candidates else 0):  # two ids may have one hash
            for place, id in self.source.ids(shard):
                if hash(id) in candidates:
                    places.setdefault(id, []).append(place)
        return next(((id, found) for id, found in places.items() if len(found) > 1), None)

    def _check(self, shard: int) -> None:
        if not 0 <= shard < self.num_shards:
            raise IndexError(f"shard must be 0 to {self.num_shards - 1}, found {shard}")


def open_manifest(
    path: str | os.PathLike[str],
    *,
    shard_rows: int = 1000,
    audio_column: str | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
) -> Manifest:
    """Opens a manifest of any kind.

    - JSON lines (``.jsonl``, ``.json``, ``.ndjson``, ``.manifest``), as NeMo has them; blank lines do not count.
    - Cuts of Lhotse (the same endings), known by their ``"type"``. The package lhotse is not needed.
    - CSV with a header (``.csv``; commas, or else semicolons, tabs or bars), fields in quotation marks where needed.
      TSV (``.tsv``), where a line is a row and quotation marks are part of the text, as in Common Voice.
    - Each of these gzipped (``.gz``).
    - Parquet (``.parquet``, ``.pq``); audio is a path, bytes, or a structure ``{bytes, path}`` as datasets writes it.
    - A folder with files of one of these kinds (of JSON lines: ``.jsonl`` and ``.ndjson``): their rows, in order of the
      files' names.
    - Any other folder: the recordings in it and below, each with its text beside it, ``name.wav`` with ``name.txt`` or
      ``name.lab``. Hidden files are left out, links are followed.

    Columns are found by their names. Audio is the first that there is of ``audio_filepath``, ``audio``, ``audio_path``,
    ``path``, ``file``, ``file_name``, ``filename``, ``wav_filename``, ``wav``; text that of ``text``, ``transcript``,
    ``transcription``, ``sentence``; the id, if there is any, that of ``id``, ``utt_id``, ``uniq_id``; ``offset`` and
    ``duration`` may say which part of the recording is meant, in seconds. Upper and lower case are one. Other columns
    are not read.

    Where a row has no id, it is the path as the manifest has it, and the part of the recording: ``a/b.wav``,
    ``a/b.wav#12.5`` (an offset), ``a/b.wav#12.5+3`` (offset and duration). The row alone decides, so an id stays the
    same when other rows come and go. A row without any has its place, ``manifest.jsonl:17``.

    Paths count from the folder of the manifest; those of a table of Common Voice from ``clips`` beside it; those of
    cuts from the working directory, as lhotse has it. Addresses (``https://``, ``s3://``) are a problem of their row.

    Args:
        path: a file or a folder.
        shard_rows: rows of a shard, at least 1. Parquet with recordings inside needs a shard's recordings in memory.
        audio_column, text_column, id_column: the names of these columns, exactly.

    Raises:
        SpeechError: there is no such file, it cannot be read or is empty, its kind is not known, or it has no column
            for audio or text.
    """
    where = os.path.abspath(os.fsdecode(path))
    shown = show_name(where)
    if isinstance(shard_rows, bool) or not isinstance(shard_rows, int) or shard_rows < 1:
        raise SpeechError(f"shard_rows must be a whole number of at least 1, found {shard_rows!r}")
    columns = {"audio_column": audio_column, "text_column": text_column, "id_column": id_column}
    source: Source
    if os.path.isdir(where):
        folder, kind, files = where, *_find_files(where)
        if kind == "pairs":
            source, num_rows, notes = open_pairs(where, shard_rows)
            return Manifest(Path(where), kind, num_rows, shard_rows, source, notes)
    else:
        folder, kind, files = os.path.dirname(where), _find_kind(where), [where]
    if kind == "parquet":
        parquet = open_parquet(files, shard_rows, folder, shown, columns)
        num_rows, source = parquet.num_rows, parquet
    else:
        lines = scan_lines(files, shard_rows, is_csv=kind == "csv")
        num_rows = lines.num_rows
        if lines.num_rows:
            source = _open_lines(lines, folder, shown, columns)
            kind = "cuts" if source.are_cuts else kind
    if not num_rows:
        raise SpeechError(f"{shown} has no rows; expected one for each recording")
    return Manifest(Path(where), kind, num_rows, shard_rows, source)


def _find_kind(path: str) -> str:
    kind = _kind_of(os.path.basename(path))
    if not os.path.exists(path):
        raise SpeechError(f"there is no manifest {show_name(path)}")
    if kind is None:
        raise SpeechError(f"{show_name(path)} must end in {', '.join(SUFFIXES)}, or in one of these and .gz")
    if not os.path.isfile(path):
        raise SpeechError(f"{show_name(path)} is not a regular file, so it cannot be read again; save it as a file")
    return kind


def _kind_of(name: str) -> str | None:
    zipped = is_zipped(name)
    kind = SUFFIXES.get(os.path.splitext(name[:-3] if zipped else name)[1].lower())
    return None if zipped and kind == "parquet" else kind


def _find_files(folder: str) -> tuple[str, list[str]]:
    """The kind of a folder, and its files if it is one of manifests."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith(".") and name != FAILURES)
    except OSError as error:
        raise SpeechError(f"{show_name(folder)} cannot be read: {error.strerror}") from None
    files: dict[str, list[str]] = {}
    for name in names:
        kind = _kind_of(name)
        if kind is None or os.path.isdir(os.path.join(folder, name)):
            continue
        if os.path.splitext(name.removesuffix(".gz"))[1].lower() not in ALONE:
            files.setdefault(kind, []).append(os.path.join(folder, name))
    if len(files) > 1:
        shown = " and ".join(show_name(os.path.basename(listed[0])) for listed in files.values())
        raise SpeechError(f"{show_name(folder)} holds manifests of several kinds, {shown}; name the file that is meant")
    return next(iter(files.items()), ("pairs", []))


# Lines ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LineSource:
    """Rows of lines.

    Attributes:
        lines: where they are.
        names: of the columns.
        root: the folder from which paths count.
        are_cuts: whether they are Lhotse's.
    """

    lines: Lines
    names: Names
    root: str
    are_cuts: bool = False

    def rows(self, shard: int) -> Iterator[Row]:
        """Reads the rows of a shard."""
        return (row for _, row in self._read(shard))

    def ids(self, shard: int) -> Iterator[tuple[str, str]]:
        """Reads places and ids of a shard."""
        return ((place, row[0]) for place, row in self._read(shard))

    def digest(self) -> str:
        """SHA-256 of what decides the rows."""
        return self.lines.digest()

    def _read(self, shard: int) -> Iterator[tuple[str, Row]]:
        for place, record in self.lines.records(shard):
            if isinstance(record, SpeechError):
                yield place, bad_row(place, str(record))
            elif self.are_cuts:
                yield place, self._read_cut(record, place)
            else:
                yield place, read_row(record, self.names, place, self.root)

    def _read_cut(self, record: dict[str, Any], place: str) -> Row:
        try:
            return read_row(read_cut(record), self.names, place, self.root)
        except SpeechError as error:
            id = record.get("id")
            return bad_row(show_name(id) if isinstance(id, str) and id else place, str(error))


def _open_lines(lines: Lines, folder: str, shown: str, columns: dict[str, str | None]) -> LineSource:
    """Finds out what the rows are, from those of the first shard, or the header."""
    first = lines.files[0]
    if first.delimiter is not None:
        names = choose_names(first.header, shown, **columns)
        for file in lines.files:
            for name in names.used():
                if file.header.count(name) != 1:
                    raise SpeechError(
                        f"{show_name(file.path)} must have one column {name!r} in its first line, the header; found "
                        f"{file.header.count(name)}"
                    )
        return _enter_clips(LineSource(lines, names, folder))

    records = [record for _, record in lines.records(0)]
    objects = [record for record in records if isinstance(record, dict)]
    if not isinstance(records[0], dict) and _is_document(first.path):
        raise SpeechError(f"{shown} is one JSON document, not a manifest: that has a JSON object in each line")
    if not objects:
        raise SpeechError(
            f"{shown} is no manifest: none of its first {len(records)} lines is a JSON object ({records[0]})"
        )
    if is_cut(objects[0]):
        if given := [name for name, value in columns.items() if value is not None]:
            raise SpeechError(f"{shown} has cuts of lhotse, whose columns are known; leave out {', '.join(given)}")
        return LineSource(lines, CUT_NAMES, os.getcwd(), are_cuts=True)
    keys = dict.fromkeys(key for record in objects for key in record)
    return LineSource(lines, choose_names(keys, shown, **columns), folder)


def _is_document(path: str) -> bool:
    """Whether a file is one JSON document, over several lines."""
    if is_zipped(path) or os.path.getsize(path) > LONGEST_DOCUMENT:
        return False
    return is_json(Path(path).read_text(encoding="utf-8-sig", errors="replace"))


def _enter_clips(source: LineSource) -> LineSource:
    """Lets paths count from the folder of Common Voice if the first recording is there, and not beside the table."""
    audio = next((row[1] for row in source.rows(0) if row[1] is not None), None)
    clips = os.path.join(source.root, CLIPS)
    if audio is None or os.path.exists(audio):
        return source
    is_there = os.path.exists(os.path.join(clips, os.path.relpath(audio, source.root)))
    return replace(source, root=clips) if is_there else source
