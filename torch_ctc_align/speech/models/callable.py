"""Any CTC model that is a Python function: its facts are checked, what it computes is measured."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_ctc_align.errors import AlignmentWarning
from torch_ctc_align.speech.errors import SpeechError
from torch_ctc_align.speech.models import AcousticModel

__all__ = [
    "Geometry",
    "check_labels",
    "find_separator",
    "from_callable",
    "measure_geometry",
    "probe",
    "what_sums_to_one",
]

SEPARATORS = ("|", " ", "▁")  # what vocabularies call the end of a word, the usual one first

# exp of float16 log-probabilities: each has a relative error up to 2**-11 times its size, which is below 20 wherever
# exp of it is worth a thousandth; so the sum is off by less than 20 * 2**-11, a hundredth.
SUM_TOLERANCE = 1e-2

# samples (B, N) float32 and lengths (B,) int64 -> (B, T, C), alone or with frames (B,)
AnyRun = Callable[[Tensor, Tensor], Any]


class Geometry(NamedTuple):
    """How samples become frames: N samples give ``(N - receptive_field) // hop + 1``."""

    hop: int
    receptive_field: int

    def frames(self, samples: int) -> int:
        """Frames of a recording."""
        return max(0, (samples - self.receptive_field) // self.hop + 1)

    @property
    def centre_offset(self) -> float:
        """``frame_offset`` of a model whose frame t sees samples ``hop * t`` to ``hop * t + receptive_field``."""
        return (self.receptive_field - self.hop) / 2 / self.hop


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


# Measurements -------------------------------------------------------------------------------------------------------


def split_result(result: Any, samples: Tensor, name: str) -> tuple[Tensor, Tensor | None]:
    """Takes apart what ``run`` returned.

    Raises:
        SpeechError: it is no floating-point tensor ``(B, T, C)``, alone or with frames ``(B,)``.
    """
    emissions, frames = result if isinstance(result, tuple | list) and len(result) == 2 else (result, None)
    if not isinstance(emissions, Tensor) or not emissions.is_floating_point() or emissions.dim() != 3:
        found = (
            f"a {emissions.dtype} tensor of shape {tuple(emissions.shape)}"
            if isinstance(emissions, Tensor)
            else f"{type(emissions).__name__}"
        )
        raise SpeechError(f"{name} must return log-probabilities (B, T, C), alone or with frames (B,), found {found}")
    if len(emissions) != len(samples):
        raise SpeechError(f"{name} was given {len(samples)} items and returned {len(emissions)}, in dimension 0")
    if frames is not None and (not isinstance(frames, Tensor) or frames.shape != (len(samples),)):
        found = f"shape {tuple(frames.shape)}" if isinstance(frames, Tensor) else type(frames).__name__
        raise SpeechError(f"{name} must return the frames of each item as a tensor ({len(samples)},), found {found}")
    return emissions, frames


def probe(run: AnyRun, num_samples: int, name: str) -> tuple[Tensor, int]:
    """Lets the model hear silence. Returns emissions ``(1, T, C)`` and how many frames are in use.

    Raises:
        SpeechError: the model raises an error, or returns something else.
    """
    samples, lengths = torch.zeros(1, num_samples), torch.tensor([num_samples])
    try:
        with torch.inference_mode():
            result = run(samples, lengths)
    except SpeechError:
        raise
    except Exception as error:
        raise SpeechError(
            f"{name} fails on {num_samples} samples of silence, given as run(samples (1, {num_samples}) float32, "
            f"lengths (1,) int64): {type(error).__name__}: {first_line(error)}"
        ) from error
    emissions, frames = split_result(result, samples, name)
    count = emissions.shape[1] if frames is None else int(frames[0])
    if count > emissions.shape[1]:
        raise SpeechError(f"{name} returns {emissions.shape[1]} frames and says that {count} are in use")
    return emissions, count


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["without a message"])[0][:300]


def what_sums_to_one(emissions: Tensor) -> str:
    """Tells ``"log_probs"``, ``"probabilities"`` and ``"logits"`` apart, by what adds up to 1 in every frame."""
    values = emissions.double()
    if ((values.exp().sum(-1) - 1).abs() < SUM_TOLERANCE).all():
        return "log_probs"
    if (values >= 0).all() and ((values.sum(-1) - 1).abs() < SUM_TOLERANCE).all():
        return "probabilities"
    return "logits"


def are_logits(emissions: Tensor, name: str) -> bool:
    """Whether a log_softmax is missing.

    Raises:
        SpeechError: the emissions are probabilities, hold NaN, or there are none.
    """
    if not emissions.numel():
        raise SpeechError(f"{name} returns no frames for a second of silence: {tuple(emissions.shape)}")
    if emissions.isnan().any():
        raise SpeechError(f"{name} returns NaN for a second of silence")
    kind = what_sums_to_one(emissions)
    if kind == "probabilities":
        raise SpeechError(f"{name} returns probabilities, and log-probabilities are needed: return their .log()")
    return kind == "logits"


def geometry_frames(lengths: Tensor, geometry: Geometry) -> Tensor:
    """Frames of each item, ``(B,)`` int64."""
    return ((lengths - geometry.receptive_field).div(geometry.hop, rounding_mode="floor") + 1).clamp_min(0)


def measure_geometry(
    run: AnyRun, *, hop: int | None, sample_rate: int, name: str, receptive_field: int | None = None
) -> Geometry:
    """Finds how many frames N samples give, by running the model on about a second of silence.

    The number of frames grows by one at the samples ``receptive_field + k * hop`` and nowhere else; a bisection over
    one hop finds such a place, and the places around it and one a second later are looked at.

    Args:
        run: see :func:`from_callable`.
        hop: samples a frame; None to measure it too.
        sample_rate: Hz.
        name: for messages.
        receptive_field: if it is known; then it is compared with the model at two lengths only.

    Raises:
        SpeechError: the model counts frames in another way. The message has the frames of some lengths.
    """
    measured: dict[int, int] = {}

    def frames(samples: int) -> int:
        if samples not in measured:
            measured[samples] = probe(run, samples, name)[1]
        return measured[samples]

    def first_with(count: int, low: int, high: int) -> int:
        """The least number of samples in (low, high] that gives ``count`` frames; ``high`` does, ``low`` does not."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if frames(middle) >= count else (middle, high)
        return high

    start = max(sample_rate, 8 * (hop or 1))
    if hop is None:
        seconds = frames(2 * start) - frames(start)
        if seconds < 2:
            raise SpeechError(f"{name} gives {table(measured)}, which does not grow with the recording: give hop")
        rough = start // seconds
        steps = [first_with(frames(start) + k, start, start + (k + 2) * rough + 2) for k in (1, 2)]
        hop = steps[1] - steps[0]
    if receptive_field is None:
        if frames(start - hop) != frames(start) - 1:
            raise SpeechError(wrong_count(name, hop, measured))
        edge = first_with(frames(start), start - hop, start)
        receptive_field = edge - (frames(start) - 1) * hop
    geometry = Geometry(hop, receptive_field)
    edge = receptive_field + (geometry.frames(start) - 1) * hop
    later = sample_rate // hop * hop
    for samples in (edge - 1, edge, edge + hop - 1, edge + hop, edge + later - 1, edge + later):
        if frames(samples) != (samples - receptive_field) // hop + 1:
            raise SpeechError(wrong_count(name, hop, measured, receptive_field))
    if receptive_field < 0:
        raise SpeechError(
            f"{name} gives {table(measured)}, which are more than N // {hop} + 1: let it return fewer, or their number "
            "as a second result"
        )
    return geometry


def table(measured: Mapping[int, int]) -> str:
    """What was measured, in words."""
    few = sorted(measured.items())
    few = few if len(few) <= 6 else [*few[:3], *few[-3:]]
    return ", ".join(f"{frames} frames for {samples} samples" for samples, frames in few)


def wrong_count(name: str, hop: int, measured: Mapping[int, int], receptive_field: int | None = None) -> str:
    field = "receptive_field" if receptive_field is None else receptive_field
    return (
        f"{name} does not give (N - {field}) // {hop} + 1 frames for N samples: it gives {table(measured)}; give the "
        "right hop" + (" and receptive_field" if receptive_field is not None else "") + ", or let it return the frames "
        "of each item as a second result"
    )
