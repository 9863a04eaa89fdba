"""What there is to align: which recording belongs with which text, and what the output is to be called."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch_ctc_align.speech.errors import SpeechError

__all__ = [
    "AUDIO_SUFFIXES",
    "TEXT_SUFFIXES",
    "Failure",
    "Item",
    "Work",
    "check_part",
    "find_folder",
    "find_text",
    "is_audio",
    "is_json",
    "is_text",
    "pair_names",
    "parse_object",
    "read_manifest",
    "refuse_clashes",
    "take_recordings",
    "walk_folder",
]

# What a folder is searched for. A recording that is named on the command line may be called anything.
# fmt: off
AUDIO_SUFFIXES = frozenset([
    ".wav", ".wave", ".w64", ".aif", ".aiff", ".aifc", ".au", ".caf", ".flac", ".wv", ".sph",
    ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".m4b", ".aac", ".wma", ".amr", ".mka",
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".3gp",
])
# fmt: on
LONGEST = 1e9  # seconds; no recording has more
TEXT_SUFFIXES = (".txt", ".lab")  # where a recording has both, the first is taken
NOT_TEXT = ".labels.txt"  # what the format audacity writes


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

    def fail(error: OSError) -> None:
        work.failures.append(Failure(str(error.filename), f"cannot be read ({error.strerror})"))

    for place, names in walk_folder(folder, fail, None if out_dir is None else out_dir.resolve()):
        pairs, texts = pair_names(names)
        for name, text in pairs:
            audio = Path(place, name)
            if text is None:
                work.without_text.append(audio)
                continue
            output = (out_dir or folder) / audio.with_suffix("").relative_to(folder)
            work.items.append(Item(str(audio.relative_to(folder)), audio, Path(place, text), output, source=str(audio)))
        work.without_recording += [Path(place, name) for name in texts]
    return work


def walk_folder(
    folder: str | Path, fail: Callable[[OSError], None], left_out: Path | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Every folder from this one down, with its files that are not hidden, in order of their names.

    Links are followed, each folder is read once. ``fail`` is called with the error of one that cannot be read.
    """
    seen = set()
    top = os.path.realpath(folder)
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or (left_out is not None and real == str(left_out) != top):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield place, sorted(name for name in names if not name.startswith("."))


def pair_names(names: Iterable[str]) -> tuple[list[tuple[str, str | None]], list[str]]:
    """The recordings among the files of a folder, each with its text or None; and the texts that have none."""
    recordings: list[tuple[str, str]] = []
    texts: dict[str, list[str]] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in AUDIO_SUFFIXES:
            recordings.append((name, stem))
        elif suffix.lower() in TEXT_SUFFIXES and not name.lower().endswith(NOT_TEXT):
            texts.setdefault(stem, []).append(name)

    def order(name: str) -> int:
        return TEXT_SUFFIXES.index(os.path.splitext(name)[1].lower())  # whatever the case of its letters

    pairs = [(name, min(texts[stem], key=order) if stem in texts else None) for name, stem in recordings]
    for _, stem in recordings:
        texts.pop(stem, None)
    return pairs, [name for listed in texts.values() for name in listed]


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
            found.append(_read_line(line, source, path.parent))
        except SpeechError as error:
            work.failures.append(Failure(source, str(error)))
    if not found and is_json("\n".join(lines)):
        raise SpeechError(f"{path} is one JSON document, not a manifest: that has a JSON object in each line")
    if out_dir is not None:
        found = _place(found, path.parent, out_dir)
    lines_of = Counter(item.audio for item in found)
    numbers: Counter[Path] = Counter()
    for item in found:
        numbers[item.audio] += 1
        if lines_of[item.audio] > 1:
            ending = f"-{numbers[item.audio]}"
            output = item.output.with_name(item.output.name + ending)
            item = replace(item, name=item.name + ending, output=output)
        work.items.append(item)
    return work


def is_json(text: str) -> bool:
    """Whether it is one JSON document."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _place(items: Sequence[Item], folder: Path, out_dir: Path) -> list[Item]:
    """Puts the output into ``out_dir``.

    Folders below that of the manifest are kept; for recordings elsewhere, those below the folder that they share.
    """

    def is_inside(item: Item) -> bool:
        named = Path(item.name)
        return not named.is_absolute() and ".." not in named.parts

    outside = {item: Path(os.path.abspath(item.audio)) for item in items if not is_inside(item)}
    shared = os.path.commonpath([path.parent for path in outside.values()]) if outside else ""
    placed = []
    for item in items:
        below = outside[item].relative_to(shared) if item in outside else Path(item.name)
        placed.append(replace(item, output=out_dir / below.with_suffix("")))
    return placed


def _read_line(line: str, source: str, folder: Path) -> Item:
    entry = parse_object(line)
    for key in ("audio_filepath", "text"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            found = "nothing" if key not in entry else repr(entry[key])
            raise SpeechError(f"{key} must be a string that is not empty, found {found}")
    if "\0" in entry["audio_filepath"]:
        raise SpeechError("audio_filepath must be the name of a file, found a zero byte in it")
    offset, duration = check_part(entry.get("offset"), entry.get("duration"))
    named = Path(entry["audio_filepath"])
    audio = folder / named
    return Item(str(named), audio, entry["text"], audio.with_suffix(""), offset, duration, source)


def parse_object(line: str) -> dict[str, Any]:
    """A line of a manifest. Raises SpeechError if it is not a JSON object."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:  # the line that it counts is the first of one, and would mislead
        raise SpeechError(f"is not JSON ({error.msg} at character {error.pos + 1})") from None
    except (ValueError, RecursionError) as error:
        raise SpeechError(f"is not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise SpeechError(f"must be a JSON object with audio_filepath and text, found {type(entry).__name__}")
    return entry


def check_part(offset: Any, duration: Any) -> tuple[float, float | None]:
    """Which part of a recording is meant: seconds left out, and seconds read or None. Raises SpeechError."""

    def check(key: str, value: Any) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LONGEST:
            raise SpeechError(f"{key} must be a number of seconds, 0 or above, found {value!r}")
        return float(value)

    begin, seconds = check("offset", offset) or 0.0, check("duration", duration)
    if seconds == 0:
        raise SpeechError("duration must be above 0 seconds, found 0")
    return begin, seconds


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
