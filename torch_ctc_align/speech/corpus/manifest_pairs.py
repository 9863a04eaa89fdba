"""A folder of recordings with their texts beside them."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch_ctc_align.speech.command.inputs import pair_names, walk_folder
from torch_ctc_align.speech.corpus.manifest_rows import Row, bad_row, show_name
from torch_ctc_align.speech.errors import SpeechError

__all__ = ["PairSource", "open_pairs"]


@dataclass(frozen=True)
class PairSource:
    """Recordings with the files of their texts beside them.

    Attributes:
        root: the folder.
        shards: of every shard, the names below ``root`` of recordings and texts in turn, with zeros between.
            Compressed: those of a folder are alike, and take about a tenth.
    """

    root: str
    shards: tuple[bytes, ...] = field(repr=False)

    def rows(self, shard: int) -> Iterator[Row]:
        """Reads the texts of a shard."""
        from torch_ctc_align.speech.text import read_text_file

        for audio, text in self._names(shard):
            id, place = show_name(audio), os.path.join(self.root, text)
            try:
                said = read_text_file(place) if os.path.getsize(place) else ""
            except OSError as error:
                yield bad_row(id, f"{show_name(place)} cannot be read: {error.strerror}", id)
            except SpeechError as error:
                yield bad_row(id, show_name(str(error)), id)
            else:
                yield id, os.path.join(self.root, audio), id, said, 0.0, None, None

    def ids(self, shard: int) -> Iterator[tuple[str, str]]:
        """Names of a shard."""
        return ((show_name(audio), show_name(audio)) for audio, _ in self._names(shard))

    def digest(self) -> str:
        """SHA-256 of what decides the rows."""
        sha256 = hashlib.sha256()
        for shard in range(len(self.shards)):
            for audio, text in self._names(shard):
                place = os.path.join(self.root, text)
                try:
                    size = os.path.getsize(place)
                except OSError as error:
                    raise SpeechError(f"{show_name(place)} cannot be read: {error.strerror}") from None
                sha256.update(os.fsencode(f"{audio}\0{text}\0{size}\n"))
        return sha256.hexdigest()

    def _names(self, shard: int) -> Iterator[tuple[str, str]]:
        names = os.fsdecode(zlib.decompress(self.shards[shard])).split("\0")
        return zip(names[::2], names[1::2], strict=True)


def open_pairs(folder: str, shard_rows: int) -> tuple[PairSource, int, tuple[str, ...]]:
    """Looks for pairs in a folder and all folders below it.

    Returns:
        The pairs, their number, and notes: what was left out.

    Raises:
        SpeechError: there are none, or a folder cannot be read.
    """
    shown, cut = show_name(folder), len(os.path.join(folder, ""))
    shards: list[bytes] = []
    names: list[str] = []  # of the shard that is being filled
    num_rows = 0
    lonely: dict[str, list[Any]] = {"recordings without a text": [0, ""], "texts without a recording": [0, ""]}

    def fail(error: OSError) -> None:  # or else its recordings would be missing without a word
        where = show_name(str(error.filename))
        raise SpeechError(f"{where} cannot be read ({error.strerror}); let it be read, or move it elsewhere")

    def leave_out(what: str, name: str) -> None:
        count, example = lonely[what]
        lonely[what] = [count + 1, example or name]

    for place, found in walk_folder(folder, fail):
        prefix = os.path.join(place, "")[cut:]
        pairs, texts = pair_names(found)
        for audio, text in pairs:
            if text is None:
                leave_out("recordings without a text", prefix + audio)
                continue
            names += (prefix + audio, prefix + text)
            num_rows += 1
            if num_rows % shard_rows == 0:
                shards.append(_compress(names))
                names = []
        for text in texts:
            leave_out("texts without a recording", prefix + text)
    if names:
        shards.append(_compress(names))
    if not num_rows:
        raise SpeechError(
            f"{shown} holds no recording with its text, name.wav with name.txt or name.lab, and no manifest "
            "(*.jsonl, *.csv, *.tsv, *.parquet)"
        )
    notes = [f"{what} are left out: {count}, as {show_name(name)}" for what, (count, name) in lonely.items() if count]
    return PairSource(folder, tuple(shards)), num_rows, tuple(notes)


def _compress(names: list[str]) -> bytes:
    return zlib.compress(os.fsencode("\0".join(names)))
