"""A line of Lhotse's ``cuts.jsonl``, as a record with audio, text, offset and duration.

The package lhotse is not needed: a cut of one file is a handful of JSON fields, and lhotse would make objects of
millions of lines that are then taken apart. The tests compare with lhotse itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch_ctc_align.speech.corpus.manifest_rows import Names
from torch_ctc_align.speech.errors import SpeechError

__all__ = ["CUT_NAMES", "is_cut", "read_cut"]

CUT_NAMES = Names("audio", "text", "id", "offset", "duration")
KINDS = ("MonoCut", "MultiCut", "Cut", "MixedCut", "PaddingCut")
SAVE = "write it to a file of its own, with CutSet.save_audios of lhotse"

# What lhotse does to the sound while it reads. Of these the words stay where they are in the file.
HARMLESS = ("Resample", "Volume", "LoudnessNormalization")


def is_cut(record: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a cut."""
    return record.get("type") in KINDS and "id" in record


def read_cut(cut: Mapping[str, Any]) -> dict[str, Any]:
    """The file of a cut, which part of it is meant, and the texts of its supervisions.

    Each supervision that has a text is a line, in order of their beginnings.

    Raises:
        SpeechError: it is not a part of one file, with all of its channels, as it is on disk.
    """
    try:
        return _read(cut)
    except (AttributeError, KeyError, TypeError) as error:
        raise SpeechError(f"a cut must be as lhotse writes it ({error})") from None


def _read(cut: Mapping[str, Any]) -> dict[str, Any]:
    recording = cut.get("recording")
    if cut.get("type") not in ("MonoCut", "MultiCut", "Cut"):
        raise SpeechError(f"a cut must be a MonoCut or a MultiCut, found {cut.get('type')!r}; {SAVE}")
    if not isinstance(recording, Mapping):
        raise SpeechError("a cut must have a recording, found none; make the cuts from recordings, not features alone")
    changes = [change.get("name") for change in recording.get("transforms") or ()]
    if changed := [name for name in changes if name not in HARMLESS]:
        raise SpeechError(f"a cut must be as its file is, found the transform {changed[0]}; {SAVE}")
    channels = cut.get("channel")
    wanted = channels if isinstance(channels, list) else [0 if channels is None else channels]
    sources = [source for source in recording.get("sources") or () if set(wanted) & set(source.get("channels") or ())]
    if len(sources) != 1 or sorted(sources[0]["channels"]) != sorted(wanted):
        there = [channel for source in sources for channel in source["channels"]]
        raise SpeechError(
            f"a cut must be of all channels of one file, found {wanted} of {len(sources)} files with {there}; {SAVE}"
        )
    if sources[0].get("type") != "file":
        raise SpeechError(f"a cut must be of a file, found a source of type {sources[0].get('type')!r}; {SAVE}")
    supervisions = sorted(cut.get("supervisions") or (), key=lambda one: one.get("start") or 0.0)
    texts = [text for one in supervisions if (text := one.get("text"))]
    return {
        "id": cut.get("id"),
        "audio": sources[0].get("source"),
        "text": "\n".join(texts) if texts else None,
        "offset": cut.get("start"),
        "duration": cut.get("duration"),
    }
