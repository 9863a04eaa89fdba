"""An acoustic model for tests: every character is a label, and a frame of sound is as loud as the number of its class.

``samples_of("the cat")`` is a recording in which the text is said, ``loud_model()`` hears it.
"""

import numpy as np
import torch

from torch_ctc_align.speech.models import AcousticModel

LABELS = ["-", "|", *"abcdefghijklmnopqrstuvwxyz'"]  # digital silence is a blank
BLANK, SEPARATOR = 0, 1
SAMPLE_RATE, HOP = 16_000, 320
SURE = 0.9


def say(text):
    """The class of every frame: 2 frames of a letter, 2 of silence, between words a separator."""
    spelled = [LABELS.index("|" if letter == " " else letter) for letter in text]
    return [frame for label in spelled for frame in (label, label, BLANK, BLANK)]


def silence(frames):
    return [BLANK] * frames


def sound_of(classes):
    """(frames * HOP,) float32: samples that the model hears as these classes."""
    return np.repeat(np.array(classes, np.float32) / 100, HOP)


def samples_of(text):
    return sound_of(say(text))


def hear(samples, lengths, hop=HOP):
    """Loudness to classes. Frame t is samples hop t to hop (t + 1)."""
    frames = lengths // hop
    classes = torch.round(samples[:, : samples.shape[1] // hop * hop : hop] * 100).long()
    classes = classes.clamp(0, len(LABELS) - 1)
    other = (1 - SURE) / (len(LABELS) - 1)
    probabilities = torch.full((*classes.shape, len(LABELS)), other).scatter(2, classes[..., None], SURE)
    return probabilities.log(), frames


def loud_model(**facts):
    facts = {"run": hear, "labels": LABELS, "blank": BLANK, "hop": HOP, "sample_rate": SAMPLE_RATE,
             "receptive_field": HOP, "separator": SEPARATOR, "language": "en", "name": "loud"} | facts  # fmt: skip
    return AcousticModel(**facts)
