"""Alignments for tests of formats, built by hand: no aligner, no model."""

from dataclasses import replace
from pathlib import Path

import torch

from harness.speech import loud_model
from torch_ctc_align.speech import Segment, SpeechAlignment, Stretch, Token, Word
from torch_ctc_align.speech.alignment import Evidence


def aligned(lines, text, *, seconds, tokens=(), unexplained=(), audio="talk.wav", **facts):
    """A line is a list of words (text, start, end, score), in `text` in this order. A word whose start is None is
    unspoken, one whose score is None is inferred. A line ends where the last word's line of the text does.
    """
    words, segments, place, edge = [], [], 0, 0
    for number, line in enumerate(lines):
        first = len(words)
        for word, start, end, score in line:
            begin = text.index(word, place)
            place = begin + len(word)
            status = "unspoken" if start is None else "inferred" if score is None else "spoken"
            posterior = 0.75 if status == "spoken" else None
            words.append(Word(word, begin, place, number, start, end, score, posterior, status))
        stop = text.find("\n", place)
        stop = len(text) if stop < 0 else stop
        here = words[first:]
        timed = [word for word in here if word.start is not None]
        sure = [word.confidence for word in here if word.confidence is not None]
        start, end = (timed[0].start, timed[-1].end) if timed else (None, None)
        mean, least = (round(sum(sure) / len(sure), 6), round(min(sure), 6)) if sure else (None, None)
        indices, posterior = range(first, len(words)), 0.75 if sure else None
        segments.append(Segment(text[edge:stop], edge, stop, indices, start, end, mean, least, posterior))
        place = edge = stop + 1
    facts = {"seconds_per_frame": 0.02, "score": -12.5, "model": "by hand", "language": "en"} | facts
    return SpeechAlignment(
        text, words, segments, [Token(*token) for token in tokens], [Stretch(*stretch) for stretch in unexplained],
        seconds, audio=audio and Path(audio), **facts,
    )  # fmt: skip


def small():
    """All that can happen to a word, and characters that mean something in one format or another."""
    return aligned(
        [
            [("He", 0.5, 0.7, -0.1), ("said", 0.7, 1.04, -0.25), ("Wait", 1.5, 2.0, -0.5)],
            [("No", 2.5, 2.7, -1.0), ("3", None, None, None), ("4", 3.0, 3.2, None)],
            [("Gone", None, None, None)],
        ],
        'He said: "Wait!"\n{No} 3 & <4>.\nGone...',
        seconds=4.0,
        tokens=[
            ("h", 0.5, 0.6, -0.1, 0),
            ('"', 0.6, 0.7, -0.1, 0),
            ("|", 1.04, 1.1, -0.3, -1),
            ("*", 3.0, 3.2, -2.0, 5),
        ],
        unexplained=[(3.2, 4.0)],
    )


def with_evidence(alignment, **changes):
    """Four frames of three classes."""
    evidence = Evidence(
        log_probs=torch.full((4, 3), 1 / 3).log(),
        path=torch.tensor([0, 1, 2, 0]),
        scores=torch.full((4,), 1 / 3).log(),
        targets=torch.tensor([1, 2]),
        tokens_per_word=[1, 1, 0, 0, 0],
        star_scores=None,
        wild_gaps=None,
        model=loud_model(),
    )
    return replace(alignment, evidence=replace(evidence, **changes))
