"""The JSON of an alignment, which holds all that is known of it, and how to read it. ``schema.json`` describes it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from torch_ctc_align.speech.alignment import Segment, SpeechAlignment, Stretch, Token, Word
from torch_ctc_align.speech.errors import SpeechError

__all__ = ["DIGITS", "VERSION", "load", "to_json"]

VERSION = 1
DIGITS = 6  # decimals of scores, confidences and posteriors

# What the fields hold, for the check of what is read. bool is an int in Python, but not here.
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("text", "model", "status", "label"), (str,)),
    **dict.fromkeys(("language", "audio"), (str, NoneType)),
    **dict.fromkeys(("begin", "stop", "segment", "word"), (int,)),
    **dict.fromkeys(("seconds", "seconds_per_frame"), (int, float)),
    **dict.fromkeys(("start", "end", "score", "posterior", "confidence", "weakest"), (int, float, NoneType)),
}


def to_json(alignment: SpeechAlignment) -> str:
    """The JSON of a rounded alignment: each word, segment and token on a line of its own."""
    from torch_ctc_align import __version__

    def certain(value: float | None) -> float | None:
        return None if value is None else round(value, DIGITS)

    data = {
        "version": VERSION,
        "generator": f"torch_ctc_align {__version__}",
        "audio": None if alignment.audio is None else os.fspath(alignment.audio),
        "seconds": alignment.seconds,
        "model": alignment.model,
        "language": alignment.language,
        "seconds_per_frame": alignment.seconds_per_frame,
        "score": alignment.score,
        "confidence": certain(alignment.confidence),
        "posterior": certain(alignment.posterior),
        "text": alignment.text,
        "segments": [
            {
                "text": segment.text,
                "start": segment.start,
                "end": segment.end,
                "confidence": segment.confidence,
                "weakest": segment.weakest,
                "posterior": segment.posterior,
                "words": [segment.words.start, segment.words.stop],
                "begin": segment.begin,
                "stop": segment.stop,
            }
            for segment in alignment.segments
        ],
        "words": [
            {
                "text": word.text,
                "start": word.start,
                "end": word.end,
                "status": word.status,
                "confidence": certain(word.confidence),
                "posterior": word.posterior,
                "score": word.score,
                "segment": word.segment,
                "begin": word.begin,
                "stop": word.stop,
            }
            for word in alignment.words
        ],
        "tokens": [
            {"label": token.label, "start": token.start, "end": token.end, "score": token.score, "word": token.word}
            for token in alignment.tokens
        ],
        "unexplained": [{"start": stretch.start, "end": stretch.end} for stretch in alignment.unexplained],
    }
    text = _dump(data, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, from the name of a file that is not UTF-8
        text = _dump(data, ensure_ascii=True)
    return text


def _dump(data: dict[str, Any], *, ensure_ascii: bool) -> str:
    def dump(value: Any) -> str:
        try:
            return json.dumps(value, ensure_ascii=ensure_ascii, allow_nan=False)
        except ValueError:
            raise SpeechError(f"JSON has no infinity and no NaN, found {value!r}") from None

    entries = []
    for key, value in data.items():
        if isinstance(value, list) and value:
            lines = ",\n".join(f"    {dump(item)}" for item in value)
            entries.append(f'  "{key}": [\n{lines}\n  ]')
        else:
            entries.append(f'  "{key}": {dump(value)}')
    return "{\n" + ",\n".join(entries) + "\n}\n"


def load(path: str | os.PathLike[str]) -> SpeechAlignment:
    """Reads an alignment from the JSON that ``save`` wrote.

    Everything is as it was saved, times to the millisecond and scores to the sixth decimal, but for ``evidence``,
    which is None. Fields that are not known are left alone.

    Raises:
        SpeechError: the file is not such JSON, or of a version that this release does not know.
        OSError: the file cannot be read.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise SpeechError(f"{path} is not JSON: {error}") from None
    version = data.get("version") if isinstance(data, dict) else None
    if version != VERSION:
        raise SpeechError(
            f'{path} must be the JSON of an alignment, with "version": {VERSION}, found '
            + (f'"version": {version!r}; a newer torch_ctc_align may read it' if version is not None else "no version")
        )
    try:
        return _from_json(data)
    except _NotSo as error:
        raise SpeechError(f"{path} is not the JSON of an alignment as schema.json describes it: {error}") from None


class _NotSo(Exception):
    """What is wrong with a field."""


def _from_json(data: dict[str, Any]) -> SpeechAlignment:
    def items(name: str) -> list[dict[str, Any]]:
        if not isinstance(data.get(name), list):
            raise _NotSo(f"{name} must be a list")
        for index, item in enumerate(data[name]):
            if not isinstance(item, dict):
                raise _NotSo(f"{name}[{index}] must be an object, found {item!r:.40}")
        return list(data[name])

    def fields(item: dict[str, Any], names: str) -> dict[str, Any]:
        for name in names.split():
            if name not in item:
                raise _NotSo(f"{name} is missing in {item!r:.80}")
            if not isinstance(item[name], KINDS[name]) or isinstance(item[name], bool):
                raise _NotSo(f"{name} must not be {item[name]!r:.40}")
        return {name: item[name] for name in names.split()}

    def times(item: dict[str, Any], names: str) -> dict[str, Any]:
        if item.get("start") is None or item.get("end") is None:
            raise _NotSo(f"start and end must be numbers in {item!r:.80}")
        return fields(item, f"start end {names}")

    words = [
        Word(**fields(item, "text begin stop segment start end score posterior status")) for item in items("words")
    ]
    segments = [
        Segment(
            **fields(item, "text begin stop start end confidence weakest posterior"),
            words=_range(item.get("words"), len(words)),
        )
        for item in items("segments")
    ]
    tokens = [Token(**times(item, "label score word")) for item in items("tokens")]
    for token in tokens:
        if token.score is None or not -1 <= token.word < len(words):
            raise _NotSo(f"a token must have a score and the index of a word, or -1, found {token}")
    for word in words:
        if word.status not in ("spoken", "inferred", "unspoken"):
            raise _NotSo(f"status must be spoken, inferred or unspoken, found {word.status!r}")
        if (word.status == "unspoken") != (word.start is None) or (word.start is None) != (word.end is None):
            raise _NotSo(f"a word has a start and an end unless it is unspoken, found {word}")
        if not 0 <= word.segment < len(segments):
            raise _NotSo(f"segment must be one of {len(segments)}, found {word}")
    head = fields(data, "text seconds seconds_per_frame score model language audio")
    if head["score"] is None:
        raise _NotSo("score must not be None")
    head["audio"] = None if head["audio"] is None else Path(head["audio"])
    unexplained = [Stretch(**times(item, "")) for item in items("unexplained")]
    return SpeechAlignment(**head, words=words, segments=segments, tokens=tokens, unexplained=unexplained)


def _range(words: Any, count: int) -> range:
    """The words of a segment."""
    if (
        not isinstance(words, Sequence)
        or len(words) != 2
        or not all(type(index) is int for index in words)
        or not 0 <= words[0] <= words[1] <= count
    ):
        raise _NotSo(
            f"words of a segment must be [first, stop] with 0 <= first <= stop <= {count}, found {words!r:.40}"
        )
    return range(*words)
