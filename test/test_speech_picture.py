"""The picture of an alignment: it shows what the alignment says, and mistakes are sentences."""

import sys
import warnings
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from torch_ctc_align import forced_align, star_scores, wild_gaps
from torch_ctc_align.speech import Segment, SpeechAlignment, SpeechError, Stretch, Word
from torch_ctc_align.speech.alignment import Evidence


@pytest.fixture
def picture(missing, tmp_path):
    """The module of pictures, the harness's model, numpy and soundfile."""
    try:
        import matplotlib.figure
        import numpy
        import soundfile
        from harness import speech
    except ImportError as error:
        missing("speech", f"{error}; see requirements-dev.txt")
    from torch_ctc_align.speech import picture

    return SimpleNamespace(module=picture, numpy=numpy, soundfile=soundfile, speech=speech, matplotlib=matplotlib)


def align(picture, folder, said, text, *, star=None, unspoken=(), inferred=(), unexplained=(), model=None, start=0.0):
    """An alignment of ``said`` with ``text``, by hand: the words of ``text`` that are spoken are aligned."""
    speech = picture.speech
    model = model or speech.loud_model()
    audio = folder / "a.wav"
    classes = speech.silence(round(start * 50)) + speech.say(said)
    picture.soundfile.write(audio, speech.sound_of(classes), speech.SAMPLE_RATE, subtype="FLOAT")
    samples = torch.from_numpy(speech.sound_of(speech.say(said)))[None]
    log_probs, frames = model.run(samples, torch.tensor([samples.shape[1]]))
    words = text.split()
    spoken = [word for word in words if word not in unspoken]
    star_label = log_probs.shape[2]
    labels = [[star_label] if word in inferred else [speech.LABELS.index(c) for c in word] for word in spoken]
    targets = torch.tensor([[c for k, word in enumerate(labels) for c in ([speech.SEPARATOR] if k else []) + word]])
    counts = [len(word) for word in labels]
    options = {}
    if star:
        gaps = wild_gaps(targets, where=star, separator=speech.SEPARATOR, tokens_per_word=[counts])
        options = {"star_scores": star_scores(log_probs), "wild_gaps": gaps}
    paths, scores = torch.ops.ctc_align.forced_align(
        log_probs, targets, None, None, model.blank, *options.values()
    ) if options else forced_align(log_probs, targets, blank=model.blank)  # fmt: skip

    # The k-th word's frames: runs of equal labels of the path, in the order of the targets.
    runs = []
    place = 0
    for label, group in groupby(paths[0].tolist()):
        length = len(list(group))
        if label not in (model.blank, -2):
            runs.append((label, place, place + length))
        place += length
    made, at, begin = [], 0, 0
    for word in words:
        begin = text.index(word, begin)
        times = None, None
        if word not in unspoken:
            own = runs[at : at + counts[spoken.index(word)]]
            at += len(own) + 1
            times = tuple(start + frame * model.seconds_per_frame for frame in (own[0][1], own[-1][2]))
        status = "unspoken" if word in unspoken else "inferred" if word in inferred else "spoken"
        score = -0.1 if status == "spoken" else None
        made.append(Word(word, begin, begin + len(word), 0, *times, score, None, status))
    segment = Segment(text, 0, len(text), range(len(words)), made[0].start, made[-1].end, 0.9, 0.9, None)
    evidence = Evidence(
        log_probs[0], paths[0], scores[0], targets[0], counts, *(x[0] for x in options.values() or ((None,), (None,))),
        model=model, start=start,
    )  # fmt: skip
    return SpeechAlignment(
        text, made, [segment], [], [Stretch(*pair) for pair in unexplained], len(classes) * 0.02, 0.02,
        float(scores.sum()), "loud", audio=audio, evidence=evidence,
    )  # fmt: skip
