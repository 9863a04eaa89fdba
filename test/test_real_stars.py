"""Stars on real emissions: a right transcript stays where it is, and a wrong one costs no more than it must.

test/data/README.md has the origin of the clip. docs/measurements/stars.md has the same on 137 clips and two
models; the bars here are its findings.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from torch_ctc_align import find_unspoken, forced_align, star_scores, star_spans, token_spans, wild_gaps

WORDS = 22
FAR = 5  # frames, 100 ms


class Clip:
    def __init__(self):
        with np.load(Path(__file__).parent / "data" / "sense_and_sensibility_0870.npz") as saved:
            self.log_probs = torch.from_numpy(saved["log_probs"])[None]
            self.blank, self.separator = int(saved["blank"]), int(saved["separator"])
            counts, targets = saved["tokens_per_word"].tolist(), saved["targets"].tolist()
        self.star = self.log_probs.shape[2]
        self.words = []
        for count in counts:
            self.words.append(targets[:count])
            targets = targets[count + 1 :]
        self.right = self.borders(self.words)

    def join(self, words):
        return torch.tensor([[token for word in words for token in [self.separator, *word]][1:]])

    def borders(self, words, log_probs=None, **stars):
        """(W, 2) first frame of every word, and the frame after its last one."""
        targets = self.join(words)
        log_probs = self.log_probs if log_probs is None else log_probs
        paths, scores = forced_align(log_probs, targets, blank=self.blank, **stars)
        starts, ends, _ = token_spans(paths, scores, targets, self.blank)
        last = torch.tensor([len(word) for word in words]).cumsum(0) + torch.arange(len(words)) - 1
        return torch.stack([starts[0, torch.cat([torch.zeros(1).long(), last[:-1] + 2])], ends[0, last]], 1)

    def between_words(self, words):
        return wild_gaps(self.join(words), where="words", separator=self.separator)


@pytest.fixture(scope="module")
def clip():
    return Clip()


def unsure(log_probs):
    """The same model, less sure of everything."""
    return (0.35 * log_probs).log_softmax(-1)


def omit_four(clip, log_probs, penalty, place_known):
    """How far words move, in frames, when four of them are missing in the transcript: at each of 19 places."""
    moved = []
    for first in range(WORDS - 3):
        words = clip.words[:first] + clip.words[first + 4 :]
        wild = clip.between_words(words)
        if place_known:
            wild[:] = False
            place = sum(map(len, words[:first])) + max(0, first - 1)
            wild[:, place : place + (2 if 0 < first < WORDS - 4 else 1)] = True
        borders = clip.borders(words, log_probs, star_scores=star_scores(log_probs, penalty), wild_gaps=wild)
        moved.append((borders - torch.cat([clip.right[:first], clip.right[first + 4 :]])).abs().flatten())
    return torch.cat(moved).double()


# ------------------------------------------------------------------------------------------- a right transcript


@pytest.mark.parametrize("penalty", [0.25, 0.5, 1, 2])
@pytest.mark.parametrize("model", [lambda log_probs: log_probs, unsure], ids=["sure", "unsure"])
def test_gaps_everywhere_move_no_border_of_a_right_transcript(clip, model, penalty):
    log_probs = model(clip.log_probs)
    stars = {"star_scores": star_scores(log_probs, penalty), "wild_gaps": clip.between_words(clip.words)}
    assert torch.equal(clip.borders(clip.words, log_probs, **stars), clip.right)


def test_a_star_of_probability_one_moves_those_of_an_unsure_model(clip):
    """The usual star: it takes every frame that it may."""
    log_probs = unsure(clip.log_probs)
    stars = {"star_scores": torch.zeros(log_probs.shape[:2]), "wild_gaps": clip.between_words(clip.words)}
    moved = (clip.borders(clip.words, log_probs, **stars) - clip.right).abs()
    assert (moved > FAR).double().mean() > 0.03


@pytest.mark.parametrize("where", ["ends", "words"])
def test_the_flag_of_forced_align_moves_no_border(clip, where):
    options = {"star": where} | ({"separator": clip.separator} if where == "words" else {})
    assert torch.equal(clip.borders(clip.words, **options), clip.right)


# ---------------------------------------------------------------------------------- what the transcript leaves out


@pytest.mark.parametrize("model", [lambda log_probs: log_probs, unsure], ids=["sure", "unsure"])
def test_four_omitted_words_in_a_known_place_cost_a_tenth_of_a_frame(clip, model):
    log_probs = model(clip.log_probs)
    moved = omit_four(clip, log_probs, 0.5, place_known=True)
    assert moved.mean() <= 0.1
    assert (moved > FAR).double().mean() <= 0.01
    without = omit_four(clip, log_probs, torch.inf, place_known=True)  # a star that is never taken
    assert without.mean() > 0.3


def test_four_omitted_words_in_an_unknown_place(clip):
    assert omit_four(clip, clip.log_probs, 0.5, place_known=False).mean() < 0.5


def test_the_stars_say_what_was_left_out(clip):
    """Words 8 to 11, "consider how much there", frames 149 to 227."""
    words = clip.words[:8] + clip.words[12:]
    targets = clip.join(words)
    paths, scores = forced_align(clip.log_probs, targets, blank=clip.blank, star="words", separator=clip.separator)
    starts, ends, _ = (column[0] for column in star_spans(paths, scores, targets, clip.blank))
    gaps = (starts >= 0).nonzero()[:, 0]
    separator = sum(map(len, words[:8])) + 7
    assert gaps.tolist() == [separator, separator + 1], "the gaps on both sides of the separator, no others"
    assert abs(int(starts[separator]) - int(clip.right[8, 0])) <= FAR
    assert abs(int(ends[separator + 1]) - int(clip.right[11, 1])) <= FAR


# ----------------------------------------------------------------------------------------------------- free ends


@pytest.mark.parametrize("length", [1, 2, 7, 50, 356, 1000])
@pytest.mark.parametrize("sound", ["backwards", "noise"])
def test_an_intro_shifts_all_tokens_by_exactly_its_length(clip, length, sound):
    """After the transcript the same sound changes nothing."""
    if sound == "backwards":
        foreign = clip.log_probs.flip(1)
    else:
        generator = torch.Generator().manual_seed(length)
        foreign = (3 * torch.randn(1, 356, clip.star, generator=generator)).log_softmax(-1)
    foreign = foreign.repeat(1, length // 356 + 1, 1)[:, :length]
    targets = clip.join(clip.words)

    def spans(log_probs, **stars):
        paths, scores = forced_align(log_probs, targets, blank=clip.blank, **stars)
        return torch.stack(token_spans(paths, scores, targets, clip.blank)[:2])

    alone = spans(clip.log_probs)
    assert torch.equal(spans(torch.cat([foreign, clip.log_probs], 1), star="ends"), alone + length)
    assert torch.equal(spans(torch.cat([clip.log_probs, foreign], 1), star="ends"), alone)
    both = torch.cat([foreign, clip.log_probs, foreign], 1)
    assert torch.equal(spans(both, star="ends"), alone + length)


def test_without_stars_an_intro_smears_the_first_words(clip):
    moved = clip.borders(clip.words, torch.cat([clip.log_probs.flip(1), clip.log_probs], 1)) - 356 - clip.right
    assert moved.abs().max() > 100


# --------------------------------------------------------------------------------------------------- star labels


def test_unknown_tokens_move_nothing(clip):
    """The middle token of every third word is a star label, which stands for one token of any class."""
    words = [
        [*word[: len(word) // 2], clip.star, *word[len(word) // 2 + 1 :]] if k % 3 == 1 and len(word) > 2 else word
        for k, word in enumerate(clip.words)
    ]
    assert sum(clip.star in word for word in words) >= 5
    moved = (clip.borders(words, star_scores=star_scores(clip.log_probs)) - clip.right).abs().double()
    assert moved.mean() <= 0.1
    assert moved.max() <= FAR


def test_words_too_many_and_too_few_at_once(clip):
    """Five words too many and four too few at once: drop the ones, leave room for the others."""
    backwards = [word[::-1] for word in clip.words[6:11]]
    words = clip.words[:4] + backwards + clip.words[4:12] + clip.words[16:]
    counts = [sum(map(len, part)) for part in (words[:4], words[4:9], words[9:17], words[17:])]
    stars = star_scores(clip.log_probs, 2.0)
    found = find_unspoken(
        clip.log_probs, clip.join(words), counts, blank=clip.blank, separator=clip.separator, star_scores=stars
    )
    assert found.unspoken.tolist() == [False, True, False, False]
    kept = clip.words[:12] + clip.words[16:]
    assert torch.equal(clip.join(words)[:, found.kept], clip.join(kept))
    moved = clip.borders(kept, star="words", separator=clip.separator) - torch.cat([clip.right[:12], clip.right[16:]])
    assert moved.abs().max() <= FAR
