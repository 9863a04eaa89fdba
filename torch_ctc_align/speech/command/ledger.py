"""What was written, and what failed: how a second run knows what is finished and which files it may overwrite."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch_ctc_align.speech.command.inputs import Failure, Item

__all__ = ["FAILURES", "LEDGER", "Ledger", "digest_of", "fingerprint", "write_failures"]

FAILURES = "failures.jsonl"
LEDGER = ".ctc-align.jsonl"


class Ledger:
    """Which files of a folder are ours, and what they were made from.

    A line of the file is ``{"made_from": fingerprint, "files": {name: digest}}``; of two lines about a file the later
    one counts. Before files are written a line without fingerprint and digests says that they are ours: so they are if
    the process is killed. Another process may write to the same folder: ``refresh`` reads what it has added.

    Raises:
        OSError: there is a ledger, and it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER
        self.entries: dict[str, tuple[str | None, str | None]] = {}
        self.size = 0  # bytes that are read
        self.refresh()

    def refresh(self) -> None:
        """Reads what was added since."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.size)
                added = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return
        whole = added[: added.rfind(b"\n") + 1]  # the end of a line may still be on its way
        self.size += len(whole)
        for line in whole.splitlines():
            try:  # a line is torn where the disk was full
                entry = json.loads(line)
                self.entries |= {name: (entry["made_from"], digest) for name, digest in entry["files"].items()}
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    def add(self, made_from: str | None, files: Mapping[Path, str | None]) -> None:
        names = {path.name: digest for path, digest in files.items()}
        line = json.dumps({"made_from": made_from, "files": names}) + "\n"
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # behind a line that was torn the new one would be lost with it
                    line = "\n" + line
            file.write(line.encode())
        self.entries |= {name: (made_from, digest) for name, digest in names.items()}

    def has_made(self, path: Path, made_from: str) -> bool:
        return self.entries.get(path.name, (None, None))[0] == made_from

    def may_replace(self, path: Path) -> bool:
        """Whether the file is as we wrote it."""
        if not path.exists():
            return True
        if path.name not in self.entries:
            return False
        digest = self.entries[path.name][1]
        return digest is None or digest == digest_of(path)


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(item: Item, text: str, options: Mapping[str, Any]) -> str:
    facts = {
        "recording": [item.audio.name, item.audio.stat().st_size],
        "part": [item.offset, item.duration],
        "text": text,
        "options": dict(options),
    }
    return hashlib.sha256(
        json.dumps(facts, sort_keys=True, default=str).encode("utf-8", "backslashreplace")
    ).hexdigest()


def write_failures(root: Path, failures: Sequence[Failure]) -> Path | None:
    """Writes ``failures.jsonl``, a line for each failure; removes the file of an earlier run if there are none.

    Returns:
        The file; None if there are no failures.
    """
    path = root / FAILURES
    if not failures:
        if path.is_file() and _is_list_of_failures(path):
            path.unlink()
        return None
    lines = [json.dumps({"path": each.path, "reason": each.reason}, ensure_ascii=False) + "\n" for each in failures]
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # A name that is not UTF-8 has surrogates; "\udcff" is how JSON spells them too.
        scratch.write_bytes("".join(lines).encode("utf-8", "backslashreplace"))
        scratch.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None  # nobody knows the other file
    finally:
        scratch.unlink(missing_ok=True)
    return path


def _is_list_of_failures(path: Path) -> bool:
    try:
        return all(json.loads(line).keys() == {"path", "reason"} for line in path.read_text("utf-8").splitlines())
    except (OSError, ValueError, AttributeError):
        return False
