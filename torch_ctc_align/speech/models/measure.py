"""What a CTC model computes, measured: how samples become frames, and whether a log_softmax is missing."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_ctc_align.speech.errors import SpeechError

__all__ = [
    "AnyRun",
    "Geometry",
    "are_logits",
    "first_line",
    "geometry_frames",
    "measure_geometry",
    "probe",
    "split_result",
    "what_sums_to_one",
]

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
