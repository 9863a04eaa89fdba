"""Blocks of a transcript that are not in the recording: on a real clip, on made emissions, and against brute force."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from torch_ctc_align import AlignmentError, find_unspoken, forced_align, min_frames, token_spans, unspoken

CLIP = Path(__file__).parent / "data" / "sense_and_sensibility_0870.npz"
CLASSES, SEPARATOR = 12, 11  # of made emissions; 0 is the blank


def say(tokens, seed=0, doubt=8.0):
    """Emissions (T, CLASSES) of a recording of these tokens: a frame or two of each, blanks around it."""
    generator = torch.Generator().manual_seed(seed)
    classes = [0] * 3
    for token in tokens:
        length, pause = torch.randint(1, 3, (2,), generator=generator).tolist()
        classes += [token] * length + [0] * pause
    logits = torch.rand(len(classes) + 3, CLASSES, generator=generator)
    logits[range(len(logits)), [*classes, 0, 0, 0]] += doubt
    return logits.log_softmax(-1)


def make_blocks(count, length, seed=0):
    """Blocks of random tokens: no separator, no blank."""
    return torch.randint(1, SEPARATOR, (count, length), generator=torch.Generator().manual_seed(seed)).tolist()


def join(blocks, separators=False):
    tokens = []
    for block in blocks:
        tokens += ([SEPARATOR] if separators and tokens else []) + block
    return tokens


def check(blocks, absent, separators=False, **options):
    """Finds exactly the blocks that are absent, and keeps what is needed to align the others."""
    present = [block for k, block in enumerate(blocks) if k not in absent]
    targets = torch.tensor(join(blocks, separators))
    spoken = join(present, separators)
    log_probs = say(spoken)
    missing = int(min_frames(targets[None])) + 20 - len(log_probs)  # the whole transcript has to fit
    log_probs = torch.cat([log_probs, say([]).repeat(max(0, missing) // 6 + 1, 1)])
    found = find_unspoken(
        log_probs, targets, [len(block) for block in blocks], separator=SEPARATOR if separators else None, **options
    )
    assert found.unspoken.nonzero()[:, 0].tolist() == sorted(absent)
    assert targets[found.kept].tolist() == spoken
    assert torch.equal(found.gains > 20, found.unspoken)
    return found


# ---------------------------------------------------------------------------------------------- a real clip


class Clip:
    """22 words, in blocks of four words (and one of two), with the phonemes of each block."""

    def __init__(self):
        with np.load(CLIP) as saved:
            self.log_probs = torch.from_numpy(saved["log_probs"])
            self.blank, self.separator = int(saved["blank"]), int(saved["separator"])
            counts, targets = saved["tokens_per_word"].tolist(), saved["targets"].tolist()
        self.words = []
        for count in counts:
            self.words.append(targets[:count])
            targets = targets[count + 1 :]
        self.blocks = [self.words[k : k + 4] for k in range(0, 22, 4)]

    def targets(self, blocks):
        tokens = [token for block in blocks for word in block for token in [*word, self.separator]]
        return torch.tensor(tokens[:-1]), [sum(map(len, block)) for block in blocks]

    def find(self, blocks, log_probs=None, **options):
        targets, counts = self.targets(blocks)
        log_probs = self.log_probs if log_probs is None else log_probs
        return find_unspoken(log_probs, targets, counts, blank=self.blank, separator=self.separator, **options)


@pytest.fixture(scope="module")
def clip():
    return Clip()


def foreign_blocks(clip):
    """Four words each that the clip does not have: its phonemes in other orders."""
    backwards = [word[::-1] for word in clip.words[::-1]]
    return [backwards[k : k + 4] for k in (0, 5, 9, 13, 17)]


def test_a_right_transcript_is_all_spoken(clip):
    found = clip.find(clip.blocks)
    assert not found.unspoken.any()
    assert found.kept.all()
    assert (found.gains < -30).all()


def test_a_foreign_block_is_found_and_nothing_else_lost(clip):
    """30 cases: five blocks at six places."""
    right, _ = clip.targets(clip.blocks)
    for foreign in foreign_blocks(clip):
        for place in range(len(clip.blocks)):
            blocks = [*clip.blocks[:place], foreign, *clip.blocks[place:]]
            found = clip.find(blocks)
            assert found.unspoken.nonzero()[:, 0].tolist() == [place]
            targets, _ = clip.targets(blocks)
            assert torch.equal(targets[found.kept], right)


def test_scores_of_words_cannot_tell(clip):
    """Why totals are compared: beside a foreign block, spoken words score as badly as its own words."""
    lost = spoken = 0
    for foreign in foreign_blocks(clip):
        for place in range(len(clip.blocks)):
            blocks = [*clip.blocks[:place], foreign, *clip.blocks[place:]]
            targets, _ = clip.targets(blocks)
            paths, scores = forced_align(clip.log_probs[None], targets[None], blank=clip.blank)
            starts, ends, means = (column[0] for column in token_spans(paths, scores, targets[None], clip.blank))
            word = (targets == clip.separator).cumsum(0).where(targets != clip.separator, 26)
            frames = torch.zeros(27).scatter_add(0, word, (ends - starts).float())
            score = torch.zeros(27).scatter_add(0, word, (ends - starts) * means) / frames
            is_foreign = torch.zeros(27, dtype=torch.bool)
            is_foreign[4 * place : 4 * place + 4] = True
            lost += int((score < -3)[:26][~is_foreign[:26]].sum())
            spoken += 22
    assert lost > 0.1 * spoken


@pytest.mark.parametrize("absent", [[0], [5], [2], [0, 1], [2, 3], [4, 5], [0, 5], [1, 3], [0, 2, 4], [1, 2, 3, 4]])
def test_what_was_cut_from_the_recording_is_found(clip, absent):
    """The frames of some blocks become silence, the model's own: its first frame."""
    targets, counts = clip.targets(clip.blocks)
    paths, scores = forced_align(clip.log_probs[None], targets[None], blank=clip.blank)
    starts, ends, _ = token_spans(paths, scores, targets[None], clip.blank)
    owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    tokens = (targets != clip.separator).nonzero()[:, 0]
    log_probs = clip.log_probs.clone()
    for block in absent:
        inside = tokens[owner == block]
        log_probs[starts[0, inside[0]] : ends[0, inside[-1]]] = clip.log_probs[0]
    assert clip.find(clip.blocks, log_probs).unspoken.nonzero()[:, 0].tolist() == absent


def test_an_unsure_model_finds_the_same(clip):
    log_probs = (0.35 * clip.log_probs).log_softmax(-1)
    foreign = foreign_blocks(clip)
    for place in range(len(clip.blocks)):
        blocks = [*clip.blocks[:place], foreign[place % 5], *clip.blocks[place:]]
        assert clip.find(blocks, log_probs).unspoken.nonzero()[:, 0].tolist() == [place]


def test_other_words_in_the_place_of_a_block_need_stars(clip):
    """The reader said four words, and the transcript has four others: without stars nothing explains the sound."""
    star_scores = clip.log_probs.amax(-1) - 0.5
    foreign = foreign_blocks(clip)
    for place in range(len(clip.blocks)):
        blocks = [*clip.blocks[:place], foreign[place % 5], *clip.blocks[place + 1 :]]
        assert clip.find(blocks, star_scores=star_scores).unspoken.nonzero()[:, 0].tolist() == [place]
    assert not clip.find(clip.blocks, star_scores=star_scores).unspoken.any()


# ------------------------------------------------------------------------------------------- made emissions


@pytest.mark.parametrize("separators", [False, True])
@pytest.mark.parametrize("absent", [[], [0], [7], [3], [0, 1, 2], [5, 6, 7], [2, 3, 4, 5], [0, 2, 4, 6], [1, 6]])
def test_every_place(absent, separators):
    check(make_blocks(8, 30), absent, separators)


@pytest.mark.parametrize("separators", [False, True])
def test_all_blocks_may_be_unspoken(separators):
    found = check(make_blocks(5, 20), range(5), separators)
    assert not found.kept.any()


def test_many_in_a_row():
    """More than a window tries in all combinations."""
    check(make_blocks(40, 20), range(8, 33))
    check(make_blocks(40, 20), [*range(3, 12), *range(14, 30), 39])


def test_one_block():
    check(make_blocks(1, 20), [])
    check(make_blocks(1, 20), [0])


def test_blocks_shorter_than_a_sure_run():
    check(make_blocks(60, 5), [7, 8, 30, 59])


def test_a_repetition_is_one_too_many():
    """A, B, B, C with B said once: either of the two may stay. Far apart, the text between them tells which one."""
    a, b, c, d = make_blocks(4, 30)
    log_probs = torch.cat([say(join([a, b, c])), say([]).repeat(5, 1)])
    found = find_unspoken(log_probs, torch.tensor(join([a, b, b, c])), [30] * 4)
    assert found.unspoken.tolist() in ([False, True, False, False], [False, False, True, False])
    check([a, b, c, b, d], [1])
    check([a, b, c, b, d], [3])
    check([a, b, c, b, d], [])


def test_separators_at_the_ends_and_doubled_ones_are_kept():
    blocks = make_blocks(3, 20)
    tokens = [SEPARATOR, *blocks[0], SEPARATOR, SEPARATOR, *blocks[1], SEPARATOR, *blocks[2], SEPARATOR, SEPARATOR]
    spoken = [SEPARATOR, *blocks[0], SEPARATOR, *blocks[2], SEPARATOR, SEPARATOR]
    log_probs = torch.cat([say(spoken), say([]).repeat(10, 1)])
    found = find_unspoken(log_probs, torch.tensor(tokens), [20, 20, 20], separator=SEPARATOR)
    assert found.unspoken.tolist() == [False, True, False]
    assert torch.tensor(tokens)[found.kept].tolist() == spoken


def test_a_separator_within_a_block_goes_with_it():
    words = make_blocks(6, 10)
    tokens, spoken = join(words, True), join(words[:2] + words[4:], True)
    log_probs = torch.cat([say(spoken), say([]).repeat(6, 1)])
    found = find_unspoken(log_probs, torch.tensor(tokens), [20, 20, 20], separator=SEPARATOR)
    assert found.unspoken.tolist() == [False, True, False]
    assert torch.tensor(tokens)[found.kept].tolist() == spoken


def test_the_best_choice_of_few_blocks_is_found():
    """All subsets, by brute force: emissions that say little, so that many are close."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        log_probs = (2 * torch.randn(60, CLASSES, generator=generator)).log_softmax(-1)
        blocks = make_blocks(5, 6, seed)
        threshold = 6.0

        def total(dropped, blocks=blocks, log_probs=log_probs):
            kept = torch.tensor([join([b for k, b in enumerate(blocks) if k not in dropped])], dtype=torch.int64)
            return forced_align(log_probs[None], kept)[1].double().sum().item()

        values = {
            dropped: total(dropped) - threshold * len(dropped)
            for size in range(6)
            for dropped in combinations(range(5), size)
        }
        found = find_unspoken(log_probs, torch.tensor(join(blocks)), [6] * 5, threshold=threshold)
        dropped = tuple(found.unspoken.nonzero()[:, 0].tolist())
        # Sums of the same scores in another order: 60 addends of some 3 nats in float64.
        assert values[dropped] == pytest.approx(max(values.values()), abs=1e-9)
        for block, gain in enumerate(found.gains.tolist()):
            without = total({*dropped, block})
            assert gain == pytest.approx(without - total({*dropped} - {block}), abs=1e-9)


def test_a_block_without_any_path_gains_infinitely():
    log_probs = say(make_blocks(1, 20)[0] * 2)
    log_probs[:, 5] = -torch.inf
    blocks = [[1, 2, 3], [4, 5, 6], [7, 8]]
    with pytest.raises(AlignmentError, match="no path of finite score"):
        find_unspoken(log_probs, torch.tensor(join(blocks)), [3, 3, 2])
    log_probs[60, 5] = -1e30  # one way, which costs more than anything
    found = find_unspoken(log_probs, torch.tensor(join(blocks)), [3, 3, 2])
    assert found.unspoken[1]
    assert found.gains[1] > 1e29


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_shapes_and_strides(dtype):
    blocks = make_blocks(6, 20)
    log_probs = torch.cat([say(join(blocks[:2] + blocks[3:])), say([]).repeat(5, 1)])
    targets = torch.tensor(join(blocks))
    expected = find_unspoken(log_probs, targets, [20] * 6)
    strided = log_probs.to(dtype).mT.contiguous().mT.requires_grad_()
    for found in (
        find_unspoken(strided, targets.int(), torch.tensor([20] * 6)),
        find_unspoken(strided[None], targets[None], (20,) * 6),
    ):
        assert torch.equal(found.unspoken, expected.unspoken)
        assert torch.equal(found.kept, expected.kept)
        # Scores of half types are rounded to 8 bits, some 1 % of a gain of some hundred nats, less on average.
        torch.testing.assert_close(found.gains, expected.gains, rtol=0.02, atol=1)
        assert not found.gains.requires_grad


def test_threads_do_not_matter():
    blocks = make_blocks(12, 30)
    log_probs = torch.cat([say(join(blocks[:4] + blocks[6:])), say([]).repeat(12, 1)])
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        results.append(find_unspoken(log_probs, torch.tensor(join(blocks)), [30] * 12))
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


def test_the_threshold_decides():
    blocks = make_blocks(5, 20)
    found = check(blocks, [2])
    gain = found.gains[2].item()
    check(blocks, [2], threshold=gain - 1)
    with pytest.raises(AssertionError):
        check(blocks, [2], threshold=gain + 1)


def test_work_is_bounded(monkeypatch):
    """200 sentences, 12 of them unspoken: windows are short, and all together cost a few alignments."""
    blocks = make_blocks(200, 40)
    wholes, windows = [], []

    def count(log_probs, targets, *arguments, strict):
        (wholes if strict else windows).append((len(targets), log_probs.shape[1] * targets.shape[1]))
        return forced_align(log_probs, targets, *arguments, strict=strict)

    monkeypatch.setattr(unspoken, "forced_align", count)
    check(blocks, [5, 6, 7, 50, 51, 90, 120, 121, 122, 123, 180, 199])
    (_, whole), *_ = wholes
    assert len(wholes) <= 5
    assert max(cells for _, cells in windows) < whole / 100
    assert sum(items * cells for items, cells in windows) < 5 * whole
    assert max(items for items, _ in windows) <= 2**unspoken.ALL_CHOICES


# ------------------------------------------------------------------------------------------------- mistakes


def call(**changes):
    arguments = {"log_probs": say([1, 2, 3, 4]), "targets": torch.tensor([1, 2, 3, 4]), "tokens_per_block": [2, 2]}
    arguments |= changes
    return find_unspoken(**arguments)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"log_probs": torch.zeros(2, 9, 5)}, r"log_probs must have shape \(T, C\).*found \(2, 9, 5\); pass the items"),
        ({"targets": torch.ones(2, 4, dtype=torch.int64)}, r"targets must have shape \(L,\).*found \(2, 4\)"),
        ({"targets": torch.tensor([1.0, 2, 3, 4])}, "targets must be int32 or int64, found float32"),
        ({"targets": torch.tensor([1, 2, 0, 4])}, "must not be the blank"),
        ({"targets": torch.tensor([1, 2, 99, 4])}, "must be a class of log_probs"),
        ({"tokens_per_block": [2, 0, 2]}, r"tokens_per_block\[1\] must be .* at least 1, found 0"),
        ({"tokens_per_block": [2, 3]}, "sum to the tokens of targets, expected 4, found 5; .*pass separator"),
        ({"separator": 2}, "targets without separators, expected 3, found 4"),
        ({"log_probs": say([])[:3]}, "too long for CTC.*expected T >= L . R = 4, found T = 3; pass the part"),
        ({"threshold": -1.0}, "threshold must be finite and at least 0"),
        ({"threshold": float("nan")}, "threshold must be finite and at least 0"),
        ({"star_scores": torch.zeros(3)}, "star_scores must have the frames of log_probs, expected 16, found 3"),
        ({"blank": 12}, "blank must be a class of log_probs"),
        ({"log_probs": torch.zeros(9, 0)}, "must be a class of log_probs.* C = 0"),
        (
            {"log_probs": torch.zeros(9, 5, dtype=torch.int64)},
            "log_probs must be float16, bfloat16, float32 or float64",
        ),
        ({"star_scores": torch.zeros(16, dtype=torch.float64)}, "star_scores must have the dtype of log_probs"),
    ],
)
def test_mistakes_are_explained(changes, message):
    if "star_scores" in changes:
        changes["log_probs"] = say([1, 2, 3, 4])[:16]
    with pytest.raises(AlignmentError, match=message) as raised:
        call(**changes)
    assert "find_unspoken" in str(raised.value) or "forced_align" in str(raised.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"log_probs": [[0.0]]}, "log_probs must be a tensor"),
        ({"targets": [1, 2, 3, 4]}, "targets must be a tensor"),
        ({"tokens_per_block": 4}, "tokens_per_block must be a sequence of int"),
        ({"tokens_per_block": [2.5, 1.5]}, "tokens_per_block must be a sequence of int"),
        ({"separator": "|"}, "separator must be an int"),
        ({"blank": "-"}, "blank must be an int"),
        ({"star_scores": -1.0}, "star_scores must be a tensor"),
    ],
)
def test_wrong_types_are_type_errors(changes, message):
    with pytest.raises(TypeError, match=message):
        call(**changes)


@pytest.mark.parametrize("frames", [0, 6])
def test_no_blocks(frames):
    found = find_unspoken(say([])[:frames], torch.zeros(0, dtype=torch.int64), [])
    assert [column.shape for column in found] == [(0,)] * 3
