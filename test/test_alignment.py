"""Small cases with answers worked out by hand."""

import math

import pytest
import torch

INF = math.inf
NAN = math.nan


def align_one(align, rows, target, blank=0, dtype=torch.float32):
    """Path and scores of one item, as lists."""
    log_probs = torch.tensor(rows, dtype=dtype)[None]
    paths, scores = align(log_probs, torch.tensor([target], dtype=torch.int64), None, None, blank)
    assert paths.shape == scores.shape == log_probs.shape[:2]
    return paths[0].tolist(), scores[0].tolist()


# The emission of warp-ctc's first test, as probabilities; its blank is the last class.
WARP_CTC = [
    [0.633766, 0.221185, 0.0917319, 0.0129757, 0.0142857, 0.0260553],
    [0.111121, 0.588392, 0.278779, 0.0055756, 0.00569609, 0.010436],
    [0.0357786, 0.633813, 0.321418, 0.00249248, 0.00272882, 0.0037688],
    [0.0663296, 0.643849, 0.280111, 0.00283995, 0.0035545, 0.00331533],
    [0.458235, 0.396634, 0.123377, 0.00648837, 0.00903441, 0.00623107],
]


@pytest.mark.parametrize(
    "target, path",
    [
        ([0, 1, 1, 0], [0, 1, 5, 1, 0]),
        ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        ([3, 3, 3], [3, 5, 3, 5, 3]),
        ([0, 1, 2], [0, 1, 1, 1, 2]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_torchaudio_facts(align, target, path, dtype):
    """What torchaudio's own tests expect of this emission."""
    log_probs = torch.tensor(WARP_CTC, dtype=dtype).log()
    found, scores = align_one(align, log_probs.tolist(), target, blank=5, dtype=dtype)
    assert found == path
    assert scores == [log_probs[t, c].item() for t, c in enumerate(path)]


def test_where_torchaudio_loses_a_tie(align):
    """Label 2 at the last frame is reached from the blank and from label 1 for -1, from itself for -2.

    torchaudio (2.11 and before) takes the worst of the three when the better two tie, and returns 1 2 2.
    """
    path, scores = align_one(align, [[-2, -1, -1], [0, 0, -1], [-2, -1, 0]], [1, 2])
    assert path == [1, 0, 2]
    assert scores == [-1, 0, 0]


# Every class costs 0 at every frame unless a row says otherwise.
FREE = [0.0, 0.0, 0.0]


def test_stay_wins_ties(align):
    assert align_one(align, [FREE] * 4, [1])[0] == [1, 1, 1, 1]
    assert align_one(align, [FREE] * 4, [1, 2])[0] == [1, 2, 2, 2]


def test_advance_wins_over_skip(align):
    """Label 2 is dear at frame 1 and enters at frame 2: from the blank and from label 1 at the same price."""
    assert align_one(align, [FREE, [0, 0, -1], FREE], [1, 2])[0] == [1, 0, 2]


def test_stay_wins_over_skip(align):
    """The blank at frame 1 is dear: label 2 at frame 2 comes from itself or from label 1 at the same price."""
    assert align_one(align, [FREE, [-1, 0, 0], FREE], [1, 2])[0] == [1, 2, 2]


def test_last_label_wins_over_last_blank(align):
    """Ending in the blank costs as much as ending in the label. Cheaper, the blank is taken."""
    assert align_one(align, [[-1, 0], [0, 0]], [1])[0] == [1, 1]
    assert align_one(align, [[-1, 0], [0, -0.5]], [1])[0] == [1, 0]


def test_first_blank_or_first_label(align):
    assert align_one(align, [[0, -1], [-1, 0]], [1])[0] == [0, 1]
    assert align_one(align, [[-1, 0], [-1, 0]], [1])[0] == [1, 1]


def test_repeat_needs_a_blank(align):
    """However dear the blank is, 1 1 has to pass through it."""
    path, scores = align_one(align, [[-9, 0], [-9, 0], [-9, 0]], [1, 1])
    assert path == [1, 0, 1]
    assert scores == [0, -9, 0]


def test_different_labels_need_no_blank(align):
    assert align_one(align, [[-9, 0, 0], [-9, 0, 0]], [1, 2])[0] == [1, 2]


def test_blank_between_different_labels_is_optional(align):
    assert align_one(align, [[-9, 0, -9], [0, -1, -1], [-9, -9, 0]], [1, 2])[0] == [1, 0, 2]
    assert align_one(align, [[-9, 0, -9], [-1, 0, -1], [-9, -9, 0]], [1, 2])[0] == [1, 1, 2]


def test_no_frame_to_spare(align):
    """T = L + R: there is one path only, at any cost."""
    free = [[0.0, -7.0]] * 5
    assert align_one(align, free, [1, 1, 1]) == ([1, 0, 1, 0, 1], [-7, 0, -7, 0, -7])
    assert align_one(align, [[0.0, -7.0, -7.0]] * 4, [2, 1, 1]) == ([2, 1, 0, 1], [-7, -7, 0, -7])


def test_one_frame_too_few(align):
    marked = [-1] * 4, [-INF] * 4
    assert align_one(align, [[0.0, 0.0]] * 4, [1, 1, 1]) == marked
    assert align_one(align, [[0.0, 0.0, 0.0]] * 4, [1, 2, 2, 1]) == marked
    assert align_one(align, [FREE] * 4, [1, 2, 1, 2, 1]) == marked


def test_many_more_labels_than_frames(align):
    assert align_one(align, [FREE, FREE], [1, 2] * 500) == ([-1, -1], [-INF, -INF])


def test_one_frame(align):
    assert align_one(align, [[-1, -2, -3]], [2]) == ([2], [-3])
    assert align_one(align, [[-1, -2, -3]], []) == ([0], [-1])
    assert align_one(align, [[-1, -2, -3]], [2, 1]) == ([-1], [-INF])
    assert align_one(align, [[-1, -2, -3]], [1, 1]) == ([-1], [-INF])


def test_no_labels(align):
    """Silence: every frame is blank, even where another class is cheaper."""
    assert align_one(align, [[-1, 0], [-2, 0], [-3, 0]], []) == ([0, 0, 0], [-1, -2, -3])
    assert align_one(align, [[0, -4], [0, -5]], [], blank=1) == ([1, 1], [-4, -5])


def test_no_labels_and_a_blank_that_is_not_finite(align):
    assert align_one(align, [[-1, 0], [-INF, 0], [-3, 0]], []) == ([-1] * 3, [-INF] * 3)


def test_only_the_blank_class(align):
    assert align_one(align, [[-1.0], [-2.0]], []) == ([0, 0], [-1, -2])


@pytest.mark.parametrize("blank", [0, 1, 2, 3])
def test_any_class_may_be_blank(align, blank):
    """The same case with the blank first, in the middle and last: - 1 1 - 2 3 3 -."""
    a, b, c = (k for k in range(4) if k != blank)
    path = [blank, a, a, blank, b, c, c, blank]
    rows = [[0.0 if k == best else -1.0 - k for k in range(4)] for best in path]
    assert align_one(align, rows, [a, b, c], blank) == (path, [0.0] * 8)


def test_the_cheapest_class_may_be_none_of_the_target(align):
    assert align_one(align, [[-5, -3, 0], [-5, -3, 0]], [1]) == ([1, 1], [-3, -3])


def test_an_early_loss_may_pay_off(align):
    """Frame by frame the best classes are 1 0 1, which spells 1 1. For a single 1 the first frame has to give in."""
    assert align_one(align, [[-1, 0], [0, -5], [-5, 0]], [1]) == ([0, 0, 1], [-1, 0, 0])


@pytest.mark.parametrize("hole", [-INF, INF, NAN], ids=str)
def test_a_detour_around_what_is_not_finite(align, hole):
    """Without the hole the path would be 0 1 0. NaN, +inf and -inf all count as -inf."""
    assert align_one(align, [[0, -2], [-2, 0], [0, -2]], [1])[0] == [0, 1, 0]
    assert align_one(align, [[0, -2], [-2, hole], [0, -2]], [1]) == ([0, 0, 1], [0, -2, -2])
    assert align_one(align, [[0, -2], [-2, hole], [0, -1]], [1]) == ([0, 0, 1], [0, -2, -1])
    assert align_one(align, [[0, -1], [-2, hole], [0, -2]], [1]) == ([1, 0, 0], [-1, -2, 0])


@pytest.mark.parametrize("hole", [-INF, INF, NAN], ids=str)
def test_a_wall_of_what_is_not_finite(align, hole):
    """A frame, or a whole class that the target needs, without any finite entry: marked, and no NaN comes out."""
    assert align_one(align, [[0, 0], [hole, hole], [0, 0]], [1]) == ([-1] * 3, [-INF] * 3)
    assert align_one(align, [[0, hole], [0, hole], [0, hole]], [1]) == ([-1] * 3, [-INF] * 3)
    assert align_one(align, [[hole, hole, hole]] * 3, [1, 2]) == ([-1] * 3, [-INF] * 3)


@pytest.mark.parametrize("hole", [-INF, INF, NAN], ids=str)
def test_a_class_that_the_target_does_not_use_may_hold_anything(align, hole):
    assert align_one(align, [[0, -1, hole], [-1, 0, hole]], [1]) == ([0, 1], [0, 0])


@pytest.mark.parametrize("hole", [-INF, INF, NAN], ids=str)
def test_a_blank_that_is_never_finite_can_be_avoided(align, hole):
    assert align_one(align, [[hole, -1, -5], [hole, -1, -5], [hole, -1, -2]], [1, 2]) == ([1, 1, 2], [-1, -1, -2])
    assert align_one(align, [[hole, -1]] * 3, [1, 1]) == ([-1] * 3, [-INF] * 3)


def test_a_sum_beyond_the_largest_float_is_no_path(align):
    huge = -3e38  # twice that is more than float32 holds, and far from the end of float64
    rows = [[huge, huge]] * 3
    assert align_one(align, rows, [1]) == ([-1] * 3, [-INF] * 3)
    assert align_one(align, rows, [1], dtype=torch.float64) == ([1, 1, 1], [huge] * 3)


def test_a_sum_beyond_the_largest_float_brings_no_nan(align):
    rows = [[3e38, 3e38], [3e38, 3e38], [-INF, 3e38], [-INF, -3e38]]
    _, scores = align_one(align, rows, [1])
    assert not any(math.isnan(score) for score in scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_entries_of_2_to_100_and_more_are_no_log_probabilities(align, dtype):
    """They count as -inf, so that no sum becomes +inf. The largest number below is still one."""
    limit = torch.tensor(2.0**100, dtype=dtype)
    below = limit.nextafter(torch.zeros_like(limit)).item()
    assert align_one(align, [[0, below], [0, -below]], [1], dtype=dtype) == ([1, 0], [below, 0])
    assert align_one(align, [[0, limit.item()], [0, -1]], [1], dtype=dtype) == ([0, 1], [0, -1])
    assert align_one(align, [[below, below]] * 9, [1], dtype=dtype) == ([1] * 9, [below] * 9)


def test_logits_are_fine_too(align):
    """Nothing asks for normalised or negative entries."""
    assert align_one(align, [[5, 1], [1, 7], [9, 8]], [1]) == ([0, 1, 0], [5, 7, 9])


def test_the_smallest_floats_decide(align):
    """-1e-44 is subnormal; flushed to zero, both paths would tie and stay would win: 1 1."""
    assert align_one(align, [[0, -1e-44], [-1, 0]], [1])[0] == [0, 1]
