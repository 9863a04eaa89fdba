"""Real emissions: a clip of English speech, aligned with its transcript. test/data/README.md has the origin."""

import json
from itertools import zip_longest
from pathlib import Path
from statistics import mean, median

import numpy as np
import pytest
import torch

import torch_ctc_align
from torch_ctc_align.words import Pauses, merge_words, word_borders

DATA = Path(__file__).parent / "data"

# word, first frame, end frame (exclusive), confidence in per cent. The operator and an independent float64 Viterbi
# in numpy agreed on it. The reader swallows "Mister", and the low confidence says so.
WORDS = """
    And 15 19 95, Mister 21 32 1, John 36 49 82, Dashwood 52 79 63, had 84 90 98, then 94 103 100,
    leisure 117 133 97, to 140 145 99, consider 149 170 99, how 176 181 95, much 203 210 100, there 221 227 98,
    might 230 239 94, be 242 245 100, prudently 251 271 67, in 276 279 99, his 281 286 92, power 290 301 94,
    to 305 308 100, do 311 315 93, for 323 331 94, them 334 340 89
"""


class Clip:
    def __init__(self):
        with np.load(DATA / "sense_and_sensibility_0870.npz") as saved:
            self.log_probs = torch.from_numpy(saved["log_probs"])
            self.targets = torch.from_numpy(saved["targets"])
            self.texts = saved["words"].tolist()
            self.tokens_per_word = saved["tokens_per_word"].tolist()
            self.blank, self.separator = int(saved["blank"]), int(saved["separator"])
            self.seconds_per_frame = float(saved["seconds_per_frame"])
        paths, scores = torch.ops.ctc_align.forced_align(
            self.log_probs[None], self.targets[None], None, None, self.blank
        )
        self.path, self.scores = paths[0], scores[0]
        self.spans = torch_ctc_align.merge_tokens(self.path, self.scores, self.blank)

    def merge_words(self, borders="drop", **grouping):
        return merge_words(
            self.spans, self.texts, seconds_per_frame=self.seconds_per_frame, borders=borders, **grouping
        )


@pytest.fixture(scope="module")
def clip():
    return Clip()


def edit_distance(left, right):
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        above, row = row, [i]
        for j, b in enumerate(right, 1):
            row.append(min(row[-1] + 1, above[j] + 1, above[j - 1] + (a != b)))
    return row[-1]


def test_emissions_are_log_probabilities(clip):
    assert clip.log_probs.shape == (356, 191)
    assert clip.blank == 190, "the last class"
    # The model rounds in float32: half an ulp of a logarithm of some 10 nats changes a probability by 5e-7 of itself,
    # and its softmax adds 191 terms. 1e-5 leaves room for both.
    torch.testing.assert_close(clip.log_probs.double().exp().sum(1), torch.ones(356).double(), rtol=0, atol=1e-5)


def test_greedy_decode_is_close_to_the_transcript(clip):
    best = torch.unique_consecutive(clip.log_probs.argmax(1))
    heard = best[best != clip.blank].tolist()
    # 6 of 98: the reader says "mister" as "mer a", swallows the t of "prudently", and has s for sh in "Dashwood".
    assert edit_distance(heard, clip.targets.tolist()) == 6


def test_path_spells_the_transcript(clip):
    assert [span.token for span in clip.spans] == clip.targets.tolist()


def test_total_score(clip):
    # 356 addends of up to 10 nats in float64: the order of summation shows far after the ninth digit.
    assert clip.scores.double().sum().item() == pytest.approx(-45.55458869, abs=1e-8)


def test_no_frame_beats_the_greedy_choice(clip):
    assert (clip.scores <= clip.log_probs.max(1).values).all()


def test_word_table(clip):
    words = clip.merge_words(separator=clip.separator)
    frames = 1 / clip.seconds_per_frame
    table = [f"{w.word} {w.start * frames:.0f} {w.end * frames:.0f} {100 * w.confidence:.0f}" for w in words]
    assert table == [row.strip() for row in WORDS.split(",")]


def test_separators_and_counts_give_the_same_words(clip):
    words = clip.merge_words(separator=clip.separator)
    assert clip.merge_words(separator=clip.separator, tokens_per_word=clip.tokens_per_word) == words


def test_words_come_from_token_spans_too(clip):
    spans = torch_ctc_align.token_spans(clip.path[None], clip.scores[None], clip.targets[None], clip.blank)
    word_indices = (clip.targets == clip.separator).cumsum(0).where(clip.targets != clip.separator, -1)
    for options in ({"borders": "drop"}, {"frame_offset": -0.5, "recording_end": 7.1}):
        expected = clip.merge_words(separator=clip.separator, **{"borders": Pauses(), **options})
        (row,) = zip(*spans, strict=True)
        found = merge_words(
            row,
            clip.texts,
            tokens=clip.targets,
            separator=clip.separator,
            seconds_per_frame=clip.seconds_per_frame,
            **options,
        )
        limits = {"recording_ends": options.pop("recording_end")} if "recording_end" in options else {}
        batch = word_borders(
            spans, word_indices[None], 22, seconds_per_frame=clip.seconds_per_frame, **options, **limits
        )
        for k, (ours, theirs) in enumerate(zip_longest(found, expected)):
            assert (ours.word, ours.start, ours.end) == (theirs.word, theirs.start, theirs.end)
            assert ours.score == pytest.approx(theirs.score, abs=1e-5)  # float32 means of a few frames
            assert batch.starts[0, k] == pytest.approx(theirs.start, abs=1e-9)
            assert batch.ends[0, k] == pytest.approx(theirs.end, abs=1e-9)
            assert batch.scores[0, k] == pytest.approx(theirs.score, abs=1e-5)


def pocketsphinx_words():
    return json.loads((DATA / "sense_and_sensibility_0870_pocketsphinx.json").read_text(encoding="utf-8"))["words"]


def test_word_times_agree_with_an_independent_aligner(clip):
    reference = pocketsphinx_words()
    words = clip.merge_words(separator=clip.separator)
    assert [word.word.lower() for word in words] == [word for word, _, _ in reference]
    late_starts = [word.start - start for word, (_, start, _) in zip_longest(words, reference)]
    late_ends = [word.end - end for word, (_, _, end) in zip_longest(words, reference)]
    # Measured: 80 ms and 20 ms. A CTC model says a phoneme once it has heard enough of it, so words start late, by
    # about four frames; one more frame and one of pocketsphinx's (10 ms) are what we allow on top.
    assert 0.05 < median(late_starts) < 0.11
    assert median(map(abs, late_starts)) < 0.11
    assert median(map(abs, late_ends)) < 0.05
    assert max(map(abs, late_starts)) < 0.2


def test_default_borders_are_twice_as_close(clip):
    """Between two words; frame t of the model is centred on 0.02 t, frame i of pocketsphinx on 0.01 i + 0.0128."""
    reference = pocketsphinx_words()

    def mean_error(borders):
        words = clip.merge_words(separator=clip.separator, frame_offset=-0.5, borders=borders)
        starts = [word.start - start - 0.0078 for word, (_, start, _) in zip_longest(words, reference)]
        ends = [word.end - end - 0.0078 for word, (_, _, end) in zip_longest(words, reference)]
        return mean(map(abs, starts[1:] + ends[:-1]))

    # Measured: 21 ms and 57 ms. docs/measurements/word_borders.md has more recordings.
    assert mean_error(Pauses()) < mean_error("drop") / 2
    assert mean_error(Pauses()) < 0.025
