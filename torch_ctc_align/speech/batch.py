"""Many recordings: which belong with which text, what they are to be called, which are finished, which failed.

Nothing is printed here. ``find_folder``, ``read_manifest`` and ``take_recordings`` make a :class:`Work`, ``align_all``
does it. The command ``ctc-align`` reads the command line and prints.

What was written is remembered in a file ``.ctc-align.jsonl`` in each folder that files are written to, so that a second
run skips what is finished, and so that a file that somebody else made, or edited, is never overwritten.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from torch_ctc_align.speech.alignment import SpeechAlignment
from torch_ctc_align.speech.errors import SpeechError

__all__ = [
    "AUDIO_SUFFIXES",
    "FAILURES",
    "LEDGER",
    "TEXT_SUFFIXES",
    "Failure",
    "Item",
    "Result",
    "Work",
    "align_all",
    "find_folder",
    "find_text",
    "read_manifest",
    "take_recordings",
    "write_failures",
]

# What a folder is searched for. A recording that is named on the command line may be called anything.
# fmt: off
AUDIO_SUFFIXES = frozenset([
    ".wav", ".wave", ".w64", ".aif", ".aiff", ".aifc", ".au", ".caf", ".flac", ".wv",
    ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".m4b", ".aac", ".wma", ".amr", ".mka",
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".3gp",
])
# fmt: on
LONGEST = 1e9  # seconds; no recording has more
TEXT_SUFFIXES = (".txt", ".lab")  # where a recording has both, the first is taken
NOT_TEXT = ".labels.txt"  # what the format audacity writes

FAILURES = "failures.jsonl"
LEDGER = ".ctc-align.jsonl"


@dataclass(frozen=True)
class Item:
    """A recording, or a part of one, and its text.

    Attributes:
        name: for the reader.
        audio: the recording.
        text: what is said, or the file that says it.
        output: path of the files to write, without suffix.
        offset, duration: seconds; which part of the recording.
        source: what is named when it fails; the recording, or a line of a manifest.
    """

    name: str
    audio: Path
    text: str | Path
    output: Path
    offset: float = 0.0
    duration: float | None = None
    source: str = ""

    def files(self, suffixes: Iterable[str]) -> list[Path]:
        """The files to write."""
        return [self.output.with_name(self.output.name + suffix) for suffix in suffixes]


@dataclass(frozen=True)
class Failure:
    """What could not be aligned, and why. ``path``: a recording, or ``manifest.jsonl:3`` for a line of a manifest."""

    path: str
    reason: str


@dataclass
class Work:
    """What there is to do.

    Attributes:
        items: in the order in which they are aligned.
        failures: what cannot even be tried.
        without_text, without_recording: the files of a folder that have no partner.
        root: the folder for ``failures.jsonl``.
        inputs: files that must not be overwritten, beside the recordings and the texts.
    """

    items: list[Item]
    root: Path
    failures: list[Failure] = field(default_factory=list)
    without_text: list[Path] = field(default_factory=list)
    without_recording: list[Path] = field(default_factory=list)
    inputs: list[Path] = field(default_factory=list)


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


# Finding ----------------------------------------------------------------------------------------------------------


def is_audio(path: Path) -> bool:
    """Whether the name is one of a recording."""
    return path.suffix.lower() in AUDIO_SUFFIXES


def is_text(path: Path) -> bool:
    """Whether the name is one of a text."""
    return path.suffix.lower() in TEXT_SUFFIXES and not path.name.lower().endswith(NOT_TEXT)


def find_text(audio: Path) -> Path | None:
    """The text beside a recording."""
    candidates = (audio.with_suffix(suffix) for suffix in TEXT_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def take_recordings(
    recordings: Sequence[Path], text: str | Path | None = None, out_dir: Path | None = None, root: Path | None = None
) -> Work:
    """The work on recordings that were named one by one.

    Args:
        recordings: the files.
        text: of the only recording. Default: the files beside the recordings.
        out_dir: folder of the output. Default: beside each recording.
        root: folder for ``failures.jsonl``. Default: ``out_dir``, or else the working directory.
    """
    work = Work([], root or out_dir or Path())
    for audio in recordings:
        found = find_text(audio) if text is None else text
        if not audio.exists():
            work.failures.append(Failure(str(audio), "no such file"))
        elif audio.is_dir():
            work.failures.append(Failure(str(audio), "is a folder; give a folder alone, without other recordings"))
        elif found is None:
            beside = " or ".join(audio.with_suffix(suffix).name for suffix in TEXT_SUFFIXES)
            work.failures.append(Failure(str(audio), f"has no text: there is no {beside} beside it"))
        else:
            output = (out_dir or audio.parent) / audio.stem
            work.items.append(Item(audio.name, audio, found, output, source=str(audio)))
    return work


def find_folder(folder: Path, out_dir: Path | None = None) -> Work:
    """The pairs of a folder and all folders below it: ``name.wav`` with ``name.txt`` or ``name.lab``.

    Hidden files and folders are left out, and so is ``out_dir`` if it lies within.
    """
    work = Work([], out_dir or folder)
    recordings: list[Path] = []
    texts: dict[Path, list[Path]] = {}
    for path in _walk(folder, work, None if out_dir is None else out_dir.resolve()):
        if is_audio(path):
            recordings.append(path)
        elif is_text(path):
            texts.setdefault(path.with_suffix(""), []).append(path)
    with_recording = {path.with_suffix("") for path in recordings}
    for audio in recordings:
        stem = audio.with_suffix("")
        if stem in texts:
            # In the order of TEXT_SUFFIXES, whatever the case of their letters.
            text = min(texts[stem], key=lambda path: TEXT_SUFFIXES.index(path.suffix.lower()))
            output = (out_dir or folder) / stem.relative_to(folder)
            work.items.append(Item(str(audio.relative_to(folder)), audio, text, output, source=str(audio)))
        else:
            work.without_text.append(audio)
    work.without_recording += [path for stem in texts if stem not in with_recording for path in texts[stem]]
    return work


def _walk(folder: Path, work: Work, left_out: Path | None) -> Iterator[Path]:
    """Every file that is not hidden, in order of its name. Links are followed, each folder is read once."""

    def fail(error: OSError) -> None:
        work.failures.append(Failure(str(error.filename), f"cannot be read ({error.strerror})"))

    seen = set()
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or (left_out is not None and real == str(left_out) != str(folder.resolve())):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def read_manifest(path: Path, out_dir: Path | None = None) -> Work:
    """The lines of a manifest as NeMo has it: one JSON object a line, with ``audio_filepath`` and ``text``.

    ``audio_filepath`` is relative to the manifest; ``offset`` and ``duration`` (seconds) may say which part of the
    recording it is. Where several lines have one recording, the names of their output end in -1, -2 and so on.

    Raises:
        OSError: the file cannot be read.
        SpeechError: it is not UTF-8 text.
    """
    work = Work([], out_dir or path.parent, inputs=[path])
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise SpeechError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from None
    found: list[Item] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        source = f"{path}:{number}"
        try:
            found.append(_read_line(line, source, path.parent, out_dir))
        except SpeechError as error:
            work.failures.append(Failure(source, str(error)))
    lines_of: dict[Path, list[Item]] = {}
    for item in found:
        lines_of.setdefault(item.output, []).append(item)
    for item in found:
        same = [other for other in lines_of[item.output] if other.audio == item.audio]
        if len(same) > 1:
            number = 1 + next(k for k, other in enumerate(same) if other is item)
            output = item.output.with_name(f"{item.output.name}-{number}")
            item = replace(item, name=f"{item.name}-{number}", output=output)
        work.items.append(item)
    return work


def _read_line(line: str, source: str, folder: Path, out_dir: Path | None) -> Item:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SpeechError(f"is not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise SpeechError(f"must be a JSON object with audio_filepath and text, found {type(entry).__name__}")
    for key in ("audio_filepath", "text"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            found = "nothing" if key not in entry else repr(entry[key])
            raise SpeechError(f"{key} must be a string that is not empty, found {found}")
    if "\0" in entry["audio_filepath"]:
        raise SpeechError("audio_filepath must be the name of a file, found a zero byte in it")

    def number(key: str) -> float | None:
        value = entry.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LONGEST:
            raise SpeechError(f"{key} must be a number of seconds, found {value!r}")
        return float(value)

    offset, duration = number("offset") or 0.0, number("duration")
    if duration == 0:
        raise SpeechError("duration must be above 0 seconds, found 0")
    named = Path(entry["audio_filepath"])
    audio = folder / named
    if out_dir is None:
        output = audio.with_suffix("")
    else:  # the folders of the manifest are kept, but for those outside its own
        inside = not named.is_absolute() and ".." not in named.parts
        output = out_dir / (named.with_suffix("") if inside else named.stem)
    # NeMo writes the duration of the whole recording into lines without an offset. Then nothing is cut.
    return Item(str(named), audio, entry["text"], output, offset, duration, source)


# Checks that need no model ----------------------------------------------------------------------------------------


def refuse_clashes(work: Work, suffixes: Sequence[str]) -> None:
    """Takes out what would overwrite an input, and what would write the same file as another; both become failures."""
    inputs = {path.resolve() for path in work.inputs}
    for item in work.items:
        inputs |= {path.resolve() for path in (item.audio, item.text) if isinstance(path, Path)}
    writers: dict[Path, list[Item]] = {}
    for item in work.items:
        writers.setdefault(_real(item.output), []).append(item)
    kept = []
    for item in work.items:
        rivals = [other.name for other in writers[_real(item.output)] if other is not item]
        overwritten = [path for path in item.files(suffixes) if _real(path) in inputs]
        if rivals:
            reason = f"would write the same files as {rivals[0]} ({item.output}.*): rename one, or use another folder"
        elif overwritten:
            reason = f"would overwrite {overwritten[0]}, which is an input: give --out-dir"
        else:
            kept.append(item)
            continue
        work.failures.append(Failure(item.source, reason))
    work.items = kept


def _real(path: Path) -> Path:
    return path.parent.resolve() / path.name


def refuse_folder(folder: Path) -> None:
    """Raises SpeechError if no file can be written into a folder, which need not exist yet."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise SpeechError(f"cannot write to {folder}: {place} is not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise SpeechError(f"cannot write to {folder} (no permission for {place}): give another folder with --out-dir")


# What was written -------------------------------------------------------------------------------------------------


class _Ledger:
    """Which files of a folder are ours, and what they were made from.

    A line of the file is ``{"made_from": fingerprint, "files": {name: digest}}``; of two lines about a file the later
    one counts. Before files are written a line without fingerprint and digests says that they are ours: so they are if
    the process is killed.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER
        self.entries: dict[str, tuple[str | None, str | None]] = {}
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return
        for line in lines:
            try:  # the last line is torn where the disk was full
                entry = json.loads(line)
                self.entries |= {name: (entry["made_from"], digest) for name, digest in entry["files"].items()}
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    def add(self, made_from: str | None, files: Mapping[Path, str | None]) -> None:
        names = {path.name: digest for path, digest in files.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"made_from": made_from, "files": names}) + "\n")
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
        return digest is None or digest == _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _fingerprint(item: Item, text: str, options: Mapping[str, Any]) -> str:
    facts = {
        "recording": [item.audio.name, item.audio.stat().st_size],
        "part": [item.offset, item.duration],
        "text": text,
        "options": dict(options),
    }
    return hashlib.sha256(
        json.dumps(facts, sort_keys=True, default=str).encode("utf-8", "backslashreplace")
    ).hexdigest()


def _read_text(item: Item) -> str:
    if isinstance(item.text, str):
        return item.text
    from torch_ctc_align.speech.transcript import read_text_file

    return str(read_text_file(item.text))


def write_failures(work: Work, failures: Sequence[Failure]) -> Path | None:
    """Writes ``failures.jsonl``, a line for each failure; removes the file of an earlier run if there are none.

    Returns:
        The file; None if there are no failures.
    """
    path = work.root / FAILURES
    if not failures:
        if path.is_file() and _is_list_of_failures(path):
            path.unlink()
        return None
    lines = [json.dumps({"path": each.path, "reason": each.reason}, ensure_ascii=False) + "\n" for each in failures]
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    # A name that is not UTF-8 has surrogates; "\udcff" is how JSON spells them too.
    scratch.write_bytes("".join(lines).encode("utf-8", "backslashreplace"))
    scratch.replace(path)
    return path


def _is_list_of_failures(path: Path) -> bool:
    try:
        return all(json.loads(line).keys() == {"path", "reason"} for line in path.read_text("utf-8").splitlines())
    except (OSError, ValueError, AttributeError):
        return False


# Aligning ---------------------------------------------------------------------------------------------------------


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
    ledgers: dict[Path, _Ledger] = {}
    aligner: Any = None
    for item in items:
        began = time.monotonic()
        try:
            folder = item.output.parent
            if not item.audio.is_file():
                reason = "is not a file" if item.audio.exists() else "no such file"
                raise SpeechError(reason if item.source == str(item.audio) else f"{item.audio}: {reason}")
            text = _read_text(item)
            ledger = ledgers.setdefault(folder, _Ledger(folder))
            files = item.files(formats.values())
            made_from = _fingerprint(item, text, options)
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
            for name, path in zip(formats, files, strict=True):
                alignment.save(path, name)
            ledger.add(made_from, {path: _digest(path) for path in files})
        except Exception as error:
            yield _failed(item, error, began)
            continue
        yield Result(item, alignment, files, notes, took=time.monotonic() - began)
        alignment = None  # its evidence is large


def _bind(progress: Callable[[Item, str, int, int], None], item: Item) -> Callable[[str, int, int], None]:
    return lambda what, done, total: progress(item, what, done, total)


def _is_finished(item: Item, files: Sequence[Path], ledger: _Ledger, made_from: str) -> bool:
    recorded = item.audio.stat().st_mtime_ns
    return all(
        ledger.has_made(path, made_from) and path.is_file() and path.stat().st_mtime_ns >= recorded for path in files
    )


def _failed(item: Item, error: Exception, began: float) -> Result:
    return Result(item, reason=_explain(error), error=error, took=time.monotonic() - began)


def _explain(error: Exception) -> str:
    """One line for the reader."""
    from torch_ctc_align import AlignmentError

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
