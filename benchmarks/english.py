"""The English model of torch_ctc_align.speech on the clips of examples/speech_data.py, as the benchmarks need it."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from torch_ctc_align import run_windows
from torch_ctc_align.speech import AcousticModel, SpeechError
from torch_ctc_align.speech.audio import read_samples
from torch_ctc_align.speech.text import read_transcript


def spell(words: Sequence[str], model: AcousticModel) -> list[list[int]]:
    """The labels of each word; words without hyphens, as speech_data.read_words gives them."""
    transcript = read_transcript(" ".join(words), model)
    for word in transcript.words:
        if word.inferred or len(word.labels) != 1:
            raise SpeechError(f"{model.name} cannot spell {word.text!r} in one part; leave the clip out")
    if len(transcript.words) != len(words):
        raise SpeechError(f"{' '.join(words)!r} has {len(transcript.words)} words, expected {len(words)}")
    return [list(word.labels[0]) for word in transcript.words]


def join(words: list[list[int]], separator: int) -> list[int]:
    """The target: the labels of all words, with separators between them."""
    return [token for word in words for token in [separator, *word]][1:]


def listen(samples: Tensor, model: AcousticModel) -> Tensor:
    """(N,) samples -> (T, C) log-probabilities."""
    return run_windows(
        model.run,
        samples,
        hop=model.hop,
        receptive_field=model.receptive_field,
        window_frames=round(model.window / model.seconds_per_frame),
        context_frames=round(model.context / model.seconds_per_frame),
    )


def read_and_listen(path: Path, model: AcousticModel) -> Tensor:
    """(T, C) log-probabilities of a recording."""
    return listen(read_samples(path, model.sample_rate), model)
