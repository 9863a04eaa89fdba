"""What is known of a shard whose worker died: how often it was begun, and which item was under way.

A process that is killed leaves no word, so the word is left beforehand. Lines of a journal, each a JSON object:

    {"begin": "shard"}      somebody begins to work on the shard
    {"begin": 17}           ... begins item 17 alone
    {"row": 17, "columns"}  ... has done it: this is the result, which is not computed again
    {"stopped": true}       ... was asked to stop, and stopped: this was no death

What was begun, and neither done nor stopped, is where a worker died. The file is locked as long as somebody works on
the shard, and removed when its part is there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

from torch_ctc_align.speech.corpus.files import refusing_to_write

__all__ = ["Journal"]

PATIENCE = 0.2  # seconds between two looks whether another process has finished with the shard
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)  # from a file system without them


class Journal:
    """The journal of a shard, locked. If another process works on the shard, its end is awaited.

    As a context manager it removes the file at the end. After an exception, or Ctrl-C, what it knows of earlier deaths
    stays, and that the worker stopped.

    Attributes:
        rows: by item, the columns of those that were done.
        deaths: by item, how often a worker died when it worked on the item alone.
        lost: how often one died without an item being under way alone.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[int, dict[str, Any]] = {}
        self.deaths: Counter[int] = Counter()
        self.lost = 0
        self.found = self.kept = self.size = 0  # bytes: there before, worth keeping, in all
        with refusing_to_write(path):
            self.file = _open_locked(path)
            self._read()

    @property
    def has_deaths(self) -> bool:
        """Whether the shard should be done with care, item by item."""
        return bool(self.lost or self.deaths or self.rows)

    def begin_shard(self) -> None:
        """The shard is begun."""
        self._append({"begin": "shard"})

    def begin(self, item: int) -> None:
        """An item is begun, alone."""
        self._append({"begin": item})

    def end(self, item: int, columns: dict[str, Any]) -> None:
        """The item is done."""
        self._append({"row": item, "columns": columns})
        self.kept = self.size

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with contextlib.suppress(OSError):  # what cannot be written is worth less than the error under way
                if kind is None or not self.kept:
                    self.path.unlink()
                else:
                    os.ftruncate(self.file, self.kept)  # this needs no room, if the disk is full
                    if self.kept > self.found:
                        os.write(self.file, b'{"stopped": true}\n')
        finally:
            os.close(self.file)

    def _append(self, entry: dict[str, Any]) -> None:
        line = (json.dumps(entry, allow_nan=False) + "\n").encode()
        with refusing_to_write(self.path):
            while line:
                written = os.write(self.file, line)
                line, self.size = line[written:], self.size + written

    def _read(self) -> None:
        content = b""
        while block := os.read(self.file, 1 << 20):
            content += block
        content = content[: content.rfind(b"\n") + 1]  # a line is torn where the disk was full
        os.ftruncate(self.file, len(content))
        self.found = self.kept = self.size = len(content)
        under_way: Any = None
        for line in content.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if "row" in entry:
                self.rows[entry["row"]] = entry["columns"]
                del self.deaths[entry["row"]]
                under_way = "shard"
            elif entry.get("begin") == "shard":
                self._blame(under_way)
                under_way = "shard"
            else:
                under_way = entry.get("begin")
        self._blame(under_way)

    def _blame(self, under_way: Any) -> None:
        if under_way == "shard":
            self.lost += 1
        elif under_way is not None:
            self.deaths[under_way] += 1


def _open_locked(path: Path) -> int:
    """Opens the file to append to it, when nobody else holds it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(PATIENCE)
                except OSError as error:
                    if error.errno in NO_LOCKS:
                        break
                    raise
            if os.fstat(file).st_nlink:  # else the other has finished, and removed what was waited for
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)
