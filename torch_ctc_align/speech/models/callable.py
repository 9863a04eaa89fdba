"""Any CTC model that is a Python function: its facts are checked, what it computes is measured."""

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from torch_ctc_align.errors import AlignmentWarning
from torch_ctc_align.speech.errors import SpeechError
from torch_ctc_align.speech.models import AcousticModel
from torch_ctc_align.speech.models.measure import (
    AnyRun,
    are_logits,
    geometry_frames,
    measure_geometry,
    probe,
    split_result,
)

__all__ = ["check_labels", "check_positive", "find_separator", "from_callable"]

SEPARATORS = ("|", " ", "▁")  # what vocabularies call the end of a word, the usual one first


def from_callable(
    run: AnyRun,
    *,
    labels: Sequence[str] | Mapping[str, int],
    blank: int | str,
    hop: int,
    sample_rate: int,
    receptive_field: int | None = None,
    separator: int | str | None = "auto",
    frame_offset: float | None = None,
    window: float = 30.0,
    context: float = 2.0,
    spell: Callable[[str], Sequence[int] | None] | None = None,
    language: str | None = None,
    name: str | None = None,
    licence: str | None = None,
    logits: bool | None = None,
) -> AcousticModel:
    """Makes an acoustic model of a function. It runs a few times, on a second of silence, so that mistakes show now.

    Args:
        run: ``run(samples, lengths)`` with samples ``(B, N)`` float32 in [-1, 1], zeros behind an item's length, and
            lengths ``(B,)`` int64, both on the CPU; returns natural-log probabilities or logits ``(B, T, C)`` of any
            floating-point dtype on any device, alone or with the frames of each item, ``(B,)``.
        labels: the names of the C classes in order, or a vocabulary from name to class.
        blank: the class that spells nothing, or its name.
        hop: samples a frame.
        sample_rate: Hz.
        receptive_field: N samples give ``(N - receptive_field) // hop + 1`` frames. Default: measured.
        separator: the class between words, or its name; None if there is none. Default: ``"|"``, ``" "`` or ``"▁"``,
            the first of them that is a label; but not ``"▁"`` where other labels begin with it.
        frame_offset: frame t covers the time from ``(t + frame_offset) * hop`` samples on, for one frame. Default:
            frame t sees the samples from ``hop * t`` to ``hop * t + receptive_field``, and its middle is theirs.
        window, context: seconds; see :class:`AcousticModel`.
        spell: from a part of a word to its classes, or None; see :class:`AcousticModel`.
        language, name, licence: see :class:`AcousticModel`.
        logits: whether ``run`` returns logits, so that a log_softmax is missing. Default: found out, with a warning
            if it is so.

    Raises:
        SpeechError: a fact is wrong; ``run`` raises an error; it returns what is neither log-probabilities nor logits,
            another number of classes, or another number of frames than the facts say. The message has what was
            measured.

    Example::

        >>> import torch
        >>> def run(samples, lengths):  # louder samples are later letters
        ...     loudness = samples[:, : samples.shape[1] // 160 * 160 : 160, None]
        ...     return (-100 * (loudness - torch.arange(4) / 4).abs()).log_softmax(-1)
        >>> model = from_callable(run, labels=["-", "|", "a", "b"], blank="-", hop=160, sample_rate=8000)
        >>> model.receptive_field, model.separator, model.seconds_per_frame
        (160, 1, 0.02)
    """
    name = name or "a CTC model"
    check_positive("hop", hop, "samples a frame")
    check_positive("sample_rate", sample_rate, "Hz")
    if not window > 2 * context >= 0:
        raise SpeechError(f"window must be longer than twice context (seconds), found {window!r} and {context!r}")
    names = check_labels(labels, name)
    blank = find_label("blank", blank, names)
    separator = find_separator(separator, names, blank)

    emissions, _ = probe(run, max(sample_rate, 8 * hop), name)
    if emissions.shape[-1] < len(names) or (emissions.shape[-1] > len(names) and not isinstance(labels, Mapping)):
        raise SpeechError(
            f"{name} returns {emissions.shape[-1]} classes, and labels has {len(names)}: give the name of every class"
        )
    names += [f"<{c}>" for c in range(len(names), emissions.shape[-1])]
    missing_softmax = are_logits(emissions, name) if logits is None else logits
    if missing_softmax and logits is None:
        warnings.warn(
            f"{name} returns logits, so a log_softmax is applied; give logits=True if they are meant",
            AlignmentWarning,
            stacklevel=2,
        )

    def normalised(samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():  # otherwise an hour of windows would keep all that the network computes
            emissions, frames = split_result(run(samples, lengths), samples, name)
            if missing_softmax:
                emissions = emissions.float().log_softmax(-1)
        if frames is None:
            frames = geometry_frames(lengths, geometry)
        return emissions, frames

    geometry = measure_geometry(run, hop=hop, sample_rate=sample_rate, name=name, receptive_field=receptive_field)
    return AcousticModel(
        normalised,
        labels=names,
        blank=blank,
        hop=hop,
        sample_rate=sample_rate,
        receptive_field=geometry.receptive_field,
        separator=separator,
        frame_offset=geometry.centre_offset if frame_offset is None else frame_offset,
        window=window,
        context=context,
        spell=spell,
        language=language,
        name=name,
        licence=licence,
    )


# Facts --------------------------------------------------------------------------------------------------------------


def check_positive(what: str, value: object, unit: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise SpeechError(f"{what} must be a positive integer ({unit}), found {value!r}")


def check_labels(labels: Sequence[str] | Mapping[str, int], name: str) -> list[str]:
    """Returns the names of classes 0, 1, 2, ... A class that a vocabulary leaves out is called ``<7>``.

    Raises:
        SpeechError: there are none; they are no names; a vocabulary gives a class twice or a negative one; a list has
            the same character twice, so that nobody knows which is meant.
    """
    if isinstance(labels, Mapping):
        names: dict[int, str] = {}
        for label, index in labels.items():
            if not isinstance(index, int) or index < 0:
                raise SpeechError(f"labels of {name} must map names to classes 0, 1, ..., found {label!r}: {index!r}")
            if index in names:
                raise SpeechError(f"labels of {name} give class {index} two names, {names[index]!r} and {label!r}")
            names[index] = label
        listed = [names.get(c, f"<{c}>") for c in range(max(names, default=-1) + 1)]
    else:
        listed = list(labels)
    if not listed:
        raise SpeechError(f"labels of {name} are empty: give the name of every class")
    if strange := [label for label in listed if not isinstance(label, str)]:
        raise SpeechError(f"labels of {name} must be strings, found {strange[0]!r}")
    seen: dict[str, int] = {}
    for c, label in enumerate(listed):
        if len(label) == 1 and label in seen:
            raise SpeechError(f"labels of {name} have {label!r} twice, as classes {seen[label]} and {c}")
        seen[label] = c
    return listed


def find_label(what: str, label: int | str, names: Sequence[str]) -> int:
    """The class of a label that is given by number or by name."""
    if isinstance(label, str):
        if label not in names:
            raise SpeechError(f"{what} is {label!r}, which is not among the labels: {show(names)}")
        return names.index(label)
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(names):
        raise SpeechError(f"{what} must be a class from 0 to {len(names) - 1} or its name, found {label!r}")
    return label


def find_separator(separator: int | str | None, names: Sequence[str], blank: int) -> int | None:
    """The class between words: as given, or with ``"auto"`` the first usual name that is a label."""
    if separator is None:
        return None
    if separator == "auto":
        usual = [label for label in SEPARATORS if label in names and names.index(label) != blank]
        if any(len(label) > 1 and label.startswith("▁") for label in names):  # words begin with it, nothing is between
            usual = [label for label in usual if label != "▁"]
        return names.index(usual[0]) if usual else None
    found = find_label("separator", separator, names)
    if found == blank:
        raise SpeechError(f"separator and blank are the same class, {blank}: give separator=None if there is none")
    return found


def show(names: Sequence[str]) -> str:
    return " ".join(map(repr, names[:12])) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
