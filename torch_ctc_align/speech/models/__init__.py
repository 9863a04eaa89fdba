"""What the speech layer asks of a CTC acoustic model: a callable and a few facts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["STAR", "AcousticModel"]

STAR = -1  # among the labels of a word: a star label, which stands for characters that cannot be spelt

# samples (B, N) float32 in [-1, 1] and lengths (B,) int64 -> log_probs (B, T, C), and frames of each item (B,)
Run = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class AcousticModel:
    """A CTC model and the facts that an aligner needs.

    Attributes:
        run: ``run(samples, lengths) -> (log_probs, frames)``: samples ``(B, N)`` float32, lengths ``(B,)`` int64;
            natural-log probabilities ``(B, T, C)``, frames of each item ``(B,)``.
        labels: the names of the classes, in order; characters or pieces of words.
        blank: the class that spells nothing.
        hop: samples a frame.
        sample_rate: Hz.
        receptive_field: N samples give ``(N - receptive_field) // hop + 1`` frames; 400 for wav2vec 2.0, 0 for models
            whose spectrogram is padded on both sides.
        separator: the class between words; None if there is none.
        frame_offset: frame t covers the time from ``(t + frame_offset) * hop`` samples on, for one frame.
        window: seconds of sound that the model gets at once, at most.
        context: seconds on each side of a window whose frames are not used, where there are neighbours.
        spell: ``spell(part) -> labels``, for one part of a word, lower case as the text has it; None if the part cannot
            be spelt. Default: character by character, with the characters among ``labels``.
        language: of the model, where it has only one, as an IETF tag ("en") or ISO 639-3 ("eng").
        name: for the reader of a result.
        licence: of the weights, where it is known.
    """

    run: Run
    labels: Sequence[str]
    blank: int
    hop: int
    sample_rate: int
    receptive_field: int = 0
    separator: int | None = None
    frame_offset: float = 0.0
    window: float = 30.0
    context: float = 2.0
    spell: Callable[[str], Sequence[int] | None] | None = None
    language: str | None = None
    name: str = "a CTC model"
    licence: str | None = None

    @property
    def seconds_per_frame(self) -> float:
        """Duration of a frame."""
        return self.hop / self.sample_rate
