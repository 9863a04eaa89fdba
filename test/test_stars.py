"""Stars: their scores, the gaps that may take them, and where a path took them: answers written by hand, slow twins."""

import inspect
import itertools
import math

import pytest
import torch
from test_arguments import log_probs as emissions
from test_arguments import message_of
from test_graphs import assert_compiled_once, compile_fully, cxx  # noqa: F401
from test_operator import assert_same
from test_wild_gaps import random_words

import torch_ctc_align
from torch_ctc_align import (
    GAP_STAR,
    AlignmentError,
    AlignmentWarning,
    TokenSpan,
    forced_align,
    merge_stars,
    merge_tokens,
    reference,
    star_scores,
    star_spans,
    token_indices,
    token_spans,
    wild_gaps,
)

INF, NAN = math.inf, math.nan
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


# star_scores


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_star_scores_the_best_class_less_the_penalty(dtype):
    log_probs = torch.tensor([[[-4.0, -1.0], [-2.0, -3.0]], [[-0.5, -INF], [-INF, -INF]]], dtype=dtype)
    scores = star_scores(log_probs)
    assert scores.dtype == dtype
    assert scores.tolist() == [[-1.5, -2.5], [-1.0, -INF]]
    assert star_scores(log_probs, 2).tolist() == [[-3.0, -4.0], [-2.5, -INF]]
    assert star_scores(log_probs, penalty=0.0).tolist() == [[-1.0, -2.0], [-0.5, -INF]]


def test_the_penalty_of_the_study_is_the_default_everywhere():
    for function, name in [
        (star_scores, "penalty"),
        (forced_align, "star_penalty"),
        (torch_ctc_align.ForcedAligner, "star_penalty"),
    ]:
        assert inspect.signature(function).parameters[name].default == 0.5


def test_the_gradient_of_a_star_goes_to_the_best_class():
    log_probs = torch.tensor([[[-4.0, -1.0, -3.0], [-2.0, -3.0, -2.0]]], requires_grad=True)
    star_scores(log_probs).sum().backward()
    assert log_probs.grad.tolist() == [[[0, 1, 0], [0.5, 0, 0.5]]]  # classes that tie share it


def test_star_scores_refuse():
    for arguments, message in [
        ((torch.zeros(2, 3),), "log_probs must have shape (B, T, C), found (2, 3)"),
        ((torch.zeros(2, 3, 0),), "log_probs must have shape (B, T, C), found (2, 3, 0)"),
        (
            (torch.zeros(2, 3, 4, dtype=torch.int64),),
            "log_probs must be float16, bfloat16, float32 or float64, found int64",
        ),
        ((torch.zeros(2, 3, 4), -0.5), "penalty must be at least 0, found -0.5"),
        ((torch.zeros(2, 3, 4), NAN), "penalty must be at least 0, found nan"),
    ]:
        with pytest.raises(AlignmentError) as error:
            star_scores(*arguments)
        assert str(error.value) == f"star_scores: {message}"
    with pytest.raises(TypeError, match="star_scores: log_probs must be a tensor of shape"):
        star_scores([[[0.0]]])


# forced_align


def random_speech(random_case, generator, dtype=torch.float32, items=24):
    """Arguments of a batch in which stars of all kinds win frames; the separator is 1, and star labels occur."""
    targets, lengths, _, counts = random_words(generator, items)
    lengths = torch.tensor(lengths)
    targets = torch.where((torch.rand(targets.shape, generator=generator) < 0.1) & (targets > 1), 10, targets)
    log_probs, _ = random_case(items, 2 * targets.shape[1] + 9, 1, 10, dtype=dtype)
    input_lengths = 2 * lengths + torch.randint(0, 9, (items,), generator=generator)
    return log_probs, targets, input_lengths, lengths, counts


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("star", ["ends", "words", "all"])
def test_star_makes_scores_and_gaps(random_case, generator, star, dtype):
    *arguments, _ = random_speech(random_case, generator, dtype)
    separator = 1 if star == "words" else None
    found = forced_align(*arguments, star=star, star_penalty=0.25, separator=separator)
    chosen = {
        "star_scores": star_scores(arguments[0], 0.25),
        "wild_gaps": wild_gaps(arguments[1], arguments[3], star, separator),
    }
    assert_same(found, forced_align(*arguments, **chosen))
    assert_same(found, reference.forced_align(*arguments, **chosen))
    assert (found[0] == GAP_STAR).any()
    assert (found[0] == 10).any(), "there are star labels"


def test_words_may_be_counted(random_case, generator):
    *arguments, counts = random_speech(random_case, generator)
    found = forced_align(*arguments, star="words", separator=1, tokens_per_word=counts)
    lists = [[count for count in row if count] for row in counts.tolist()]
    assert_same(found, forced_align(*arguments, star="words", separator=1, tokens_per_word=lists))
    chosen = wild_gaps(arguments[1], arguments[3], "words", 1, counts)
    assert_same(found, forced_align(*arguments, star_scores=star_scores(arguments[0]), wild_gaps=chosen))


def test_given_star_scores_replace_those_that_are_made(random_case, generator):
    *arguments, _ = random_speech(random_case, generator)
    scores = torch.full((), -1.0).expand(arguments[0].shape[:2])
    found = forced_align(*arguments, star="ends", star_scores=scores)
    assert_same(
        found, forced_align(*arguments, star_scores=scores, wild_gaps=wild_gaps(arguments[1], arguments[3], "ends"))
    )
    assert (found[1][found[0] == GAP_STAR] == -1).all()


def test_a_star_of_infinite_penalty_is_no_star(random_case):
    arguments = random_case(5, 20, 6, 7)
    assert_same(forced_align(*arguments, star="all", star_penalty=INF), forced_align(*arguments))


def test_the_gradient_comes_through_the_best_class(random_case):
    """A frame of a star gives 1 to the class that made its score."""
    log_probs, targets = random_case(3, 20, 3, 6, dtype=torch.float64)
    log_probs.requires_grad_()
    paths, scores = forced_align(log_probs, targets, star="ends")
    is_star = paths == GAP_STAR
    assert is_star.any()
    assert not is_star.all()
    scores.sum().backward()
    classes = torch.where(is_star, log_probs.argmax(-1), paths.clamp(min=0))
    assert torch.equal(log_probs.grad, torch.nn.functional.one_hot(classes, 6).double())


def test_star_scores_alone_may_need_a_gradient():
    log_probs, targets = torch.full((1, 4, 3), -2.0), torch.tensor([[1, 3]])  # a label, then a star label
    scores = torch.tensor([[-1.0, -9.0, -9.0, -1.0]], requires_grad=True)
    paths, found = forced_align(log_probs, targets, star_scores=scores, wild_gaps=wild_gaps(targets))
    assert paths.tolist() == [[-2, 1, 0, 3]]
    assert found.tolist() == [[-1.0, -2.0, -2.0, -1.0]]
    found.sum().backward()
    assert scores.grad.tolist() == [[1.0, 0.0, 0.0, 1.0]]


def test_a_path_that_begins_with_a_star_is_not_marked():
    """With strict, where an item without a path raises."""
    log_probs = torch.tensor([[[-5.0, -5.0, -0.01], [-5.0, -0.01, -5.0]]])
    assert forced_align(log_probs, torch.tensor([[1]]), star="ends")[0].tolist() == [[-2, 1]]
    # One item with a star at frame 0, one without a path: the second is named.
    message = message_of(forced_align, log_probs.expand(2, 2, 3), torch.tensor([[1, 1], [1, 1]]), [2, 2], [1, 2], 0)
    assert "item 1 is too short for its target" in message
    with pytest.raises(AlignmentError) as error:
        forced_align(log_probs.expand(2, 2, 3), torch.tensor([[1, 1], [1, 1]]), None, [1, 2], star="ends")
    assert error.value.item == 1


def refused(*arguments, **options):
    return message_of(forced_align, *arguments, **options)


def test_forced_align_refuses_stars():
    log_probs, targets = emissions(), torch.tensor([[1, 2], [3, 1]])
    scores, gaps = torch.zeros(2, 5), torch.ones(2, 3, dtype=torch.bool)
    for options, message in [
        ({"star": "word"}, "star must be one of ends, words, all, found 'word'"),
        ({"star": "words"}, "separator or tokens_per_word must be given, to say where a word ends"),
        (
            {"star": "ends", "wild_gaps": gaps},
            "wild_gaps must not be given together with star, found both, star='ends'",
        ),
        ({"separator": 1}, 'separator says where a word ends, expected star="words" with it, found None'),
        (
            {"tokens_per_word": [[2], [2]], "star": "all"},
            "tokens_per_word says where a word ends, expected star=\"words\" with it, found 'all'",
        ),
        (
            {"star": "words", "separator": 0},
            "separator must not be the blank, expected a label of targets, found 0",
        ),
        ({"star": "ends", "star_penalty": -1}, "star_penalty must be at least 0, found -1"),
        (
            {"star": "words", "tokens_per_word": [[2], [1]]},
            "tokens_per_word must sum to the labels of words, expected 2 in item 1, found 1",
        ),
        ({"wild_gaps": gaps}, "wild_gaps need star_scores, which say what a frame of a wild gap scores; found None"),
        ({"star_scores": scores[:1]}, "star_scores must have shape (B, T) = (2, 5), found (1, 5)"),
        ({"star_scores": scores.half(), "star": "ends"}, None),
        ({"star_scores": scores, "wild_gaps": gaps[:, 1:]}, None),
        ({"star_scores": scores, "wild_gaps": gaps.int()}, None),
    ]:
        with pytest.raises(AlignmentError) as error:
            forced_align(log_probs, targets, **options)
        assert str(error.value).startswith("forced_align: ")
        assert message is None or str(error.value) == f"forced_align: {message}"
    for options, message in [
        ({"star_scores": [[0.0]]}, "star_scores must be a tensor of shape (B, T), found a list; use torch.as_tensor"),
        ({"wild_gaps": [[True]]}, "wild_gaps must be a tensor of shape (B, L + 1), found a list; use torch.as_tensor"),
        ({"star": "words", "separator": "|"}, "separator must be an int, a label of targets, found '|'"),
    ]:
        with pytest.raises(TypeError) as type_error:
            forced_align(log_probs, targets, **options)
        assert str(type_error.value) == f"forced_align: {message}"


@pytest.mark.parametrize("star", [None, "ends"])
def test_other_mistakes_are_refused_in_the_same_words_with_stars(star):
    log_probs, targets = emissions(), torch.tensor([[1, 2], [3, 1]])
    for arguments, message in [
        ((log_probs[0], targets), "log_probs must be 3-D (batch_size, input length, num classes). "),
        ((log_probs, targets[0]), "targets must be 2-D (batch_size, target length,). "),
        ((log_probs, targets[:1]), "The batch dimension for log_probs must be 1 at the current version. "),
        ((log_probs.long(), targets), "log_probs must be float64, float32 or float16 (half) type. "),
        ((log_probs, targets.half()), "targets must be int32 or int64 type. "),
        ((log_probs, targets, [5]), "input_lengths must be 1-D (batch_size,). "),
        ((log_probs, targets, None, [2]), "target_lengths must be 1-D (batch_size,). "),
        ((log_probs, targets, None, [2, 3]), "target length mismatch. "),
        ((log_probs, targets, [5, 6]), "input length mismatch. "),
        ((log_probs, targets, None, None, 4), "blank must be within [0, num classes). "),
        ((log_probs, targets, None, None, 3), "targets Tensor shouldn't contain blank index. "),
        ((log_probs[..., :0], targets), "targets values must be less than the CTC dimension. "),
    ]:
        with pytest.raises(AlignmentError) as error:
            forced_align(*arguments, star=star)
        assert str(error.value).startswith(f"{message}forced_align: ")
    for arguments in [(log_probs.tolist(), targets), (log_probs, [[1]]), (log_probs, targets, None, None, "-")]:
        with pytest.raises(TypeError, match=r"^forced_align: "):
            forced_align(*arguments, star=star)


def test_a_star_label_is_not_blamed_for_other_mistakes():
    log_probs, targets = emissions(), torch.tensor([[1, 4], [3, 1]])
    for lengths, message in [(([5], None), "input_lengths must be 1-D"), ((None, [2]), "target_lengths must be 1-D")]:
        with pytest.raises(AlignmentError, match=f"^{message}"):
            forced_align(log_probs, targets, *lengths, star="ends")


def test_the_label_behind_the_last_class_is_the_star():
    """Where there are star scores; without them it is refused as it was."""
    log_probs, targets = emissions(C=4), torch.tensor([[1, 4], [3, 1]])
    scores = star_scores(log_probs)
    assert (forced_align(log_probs, targets, star_scores=scores)[0] == 4).any()
    phrase = "targets values must be less than the CTC dimension. forced_align: "
    text = "targets[0, 1] must be a class of log_probs, expected 0 <= label < C = 4, found 4"
    with pytest.raises(AlignmentError) as error:
        forced_align(log_probs, targets)
    assert str(error.value) == phrase + text
    targets[1, 0] = 5
    text = "targets[1, 0] must be a class of log_probs or the star, expected 0 <= label <= C = 4, found 5"
    for options in ({"star_scores": scores}, {"star": "ends"}):
        with pytest.raises(AlignmentError) as error:
            forced_align(log_probs, targets, **options)
        assert str(error.value) == phrase + text


def test_an_item_without_a_path_names_both_emissions():
    log_probs, targets = emissions(B=1), torch.tensor([[1, 4]])
    scores = torch.full((1, 5), NAN)
    with pytest.raises(AlignmentError) as error:
        forced_align(log_probs, targets, star_scores=scores)
    assert str(error.value) == (
        "forced_align: item 0 has no path of finite score, expected one that meets no NaN and no infinity in log_probs "
        "and star_scores, found T = 5 frames, L = 2 labels, R = 0 neighbouring repeats"
    )
    paths, found = forced_align(log_probs, targets, star_scores=scores, strict=False)
    assert (paths == -1).all()
    assert (found == -INF).all()


def test_a_star_above_zero_says_nothing_of_log_probs(shown_afresh, recwarn):
    """A score above 0 that is an entry of log_probs still does."""
    log_probs, targets = torch.full((1, 6, 4), -1.0), torch.tensor([[1, 4]])
    scores = torch.full((1, 6), 1.5)
    for _ in range(5):
        forced_align(log_probs, targets, star_scores=scores, wild_gaps=wild_gaps(targets))
    assert not [warning for warning in recwarn if issubclass(warning.category, AlignmentWarning)]
    log_probs[0, 2, 1] = 9.0
    with pytest.warns(AlignmentWarning, match="item 0 has a score of 9 nats at frame 2, expected at most 0"):
        forced_align(log_probs, targets, star_scores=scores)


# From a path to stars and tokens


# A gap that changes between star and blank, one of stars alone, a star label (class 9), stars around padding.
PATHS = torch.tensor(
    [
        [-2, 0, -2, 1, 1, -2, 2, 0, 9, 9, 0, -2],
        [0, 3, -2, 3, 0, 0, 0, 0, 0, 0, 0, 0],
        [-1] * 12,
        [-2, -2, -2, -2, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
)
LABELS = torch.tensor([[1, 2, 9], [3, 3, 7], [1, 2, 3], [0, 0, 0]])
SCORES = torch.tensor(
    [
        [-1.0, -9, -2, -1, -3, -4, -5, -9, -6, -8, -9, -7],
        [-9.0, -1, -4, -3, -9, 0, 0, 0, 0, 0, 0, 0],
        [-INF] * 12,
        [-1.0, -2, -3, -4, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
def test_star_spans(dtype, integer):
    starts, ends, means = star_spans(PATHS.to(integer), SCORES.to(dtype), LABELS.to(integer))
    assert starts.tolist() == [[0, 5, -1, 11], [-1, 2, -1, -1], [-1] * 4, [0, -1, -1, -1]]
    assert ends.tolist() == [[3, 6, -1, 12], [-1, 3, -1, -1], [-1] * 4, [4, -1, -1, -1]]
    assert means.tolist() == [[-1.5, -4, 0, -7], [0, -4, 0, 0], [-INF] * 4, [-2.5, 0, 0, 0]]
    assert means.dtype == dtype


def test_the_stars_of_a_gap_belong_to_no_token():
    starts, ends, means = token_spans(PATHS, SCORES, LABELS)
    assert starts.tolist() == [[3, 6, 8], [1, 3, -1], [-1] * 3, [-1] * 3]
    assert ends.tolist() == [[5, 7, 10], [2, 4, -1], [-1] * 3, [-1] * 3]
    assert means.tolist() == [[-2, -5, -7], [-1, -3, 0], [-INF] * 3, [0] * 3]
    assert token_indices(PATHS, LABELS).tolist() == [
        [-1, -1, -1, 0, 0, -1, 1, -1, 2, 2, -1, -1],
        [-1, 0, -1, 1, -1, -1, -1, -1, -1, -1, -1, -1],
        [-1] * 12,
        [-1] * 12,
    ]
    assert merge_tokens(PATHS[0], SCORES[0]) == [
        TokenSpan(1, 3, 5, -2.0),
        TokenSpan(2, 6, 7, -5.0),
        TokenSpan(9, 8, 10, -7.0),
    ]


def test_merge_stars():
    assert merge_stars(PATHS[0], SCORES[0]) == [
        TokenSpan(-2, 0, 1, -1.0),
        TokenSpan(-2, 2, 3, -2.0),
        TokenSpan(-2, 5, 6, -4.0),
        TokenSpan(-2, 11, 12, -7.0),
    ]
    assert merge_stars(PATHS[3, :4], SCORES[3, :4]) == [TokenSpan(-2, 0, 4, -2.5)]
    assert merge_stars(PATHS[2], SCORES[2]) == []
    assert merge_stars(PATHS[2, :0], SCORES[2, :0]) == []


@pytest.mark.parametrize("star", ["ends", "words", "all"])
def test_star_spans_are_those_of_merge_stars(random_case, generator, star):
    """Of random alignments: gap by gap, the runs between the tokens on both sides."""
    *arguments, _ = random_speech(random_case, generator, torch.float64)
    paths, scores = forced_align(*arguments, star=star, separator=1 if star == "words" else None)
    starts, ends, means = star_spans(paths, scores, arguments[1])
    tokens = token_spans(paths, scores, arguments[1])
    wild = wild_gaps(arguments[1], arguments[3], star, 1 if star == "words" else None)
    assert not (starts[~wild] >= 0).any()
    for b, (T, L) in enumerate(zip(arguments[2].tolist(), arguments[3].tolist(), strict=True)):
        runs = merge_stars(paths[b, :T], scores[b, :T])
        assert [run.token for run in runs] == [-2] * len(runs)
        borders = [0, *itertools.chain(*zip(tokens.starts[b, :L].tolist(), tokens.ends[b, :L].tolist(), strict=True))]
        borders.append(T)
        for k in range(L + 1):
            own = [run for run in runs if borders[2 * k] <= run.start and run.end <= borders[2 * k + 1]]
            if own:
                frames = [float(scores[b, t]) for run in own for t in range(run.start, run.end)]
                assert (own[0].start, own[-1].end) == (starts[b, k], ends[b, k])
                # At most 40 terms below 20, in any order: below 40 * 40 * 20 * 2^-53 = 4e-12.
                assert abs(math.fsum(frames) / len(frames) - means[b, k]) < 4e-12
            else:
                assert (starts[b, k], ends[b, k], means[b, k]) == (-1, -1, 0)
        assert (starts[b, L + 1 :] == -1).all()


def test_star_spans_of_nothing():
    for B, T, L in [(0, 5, 3), (2, 0, 0), (2, 0, 3), (2, 5, 0), (0, 0, 0)]:
        spans = star_spans(torch.zeros(B, T, dtype=torch.int64), torch.zeros(B, T), torch.ones(B, L, dtype=torch.int64))
        assert [x.shape for x in spans] == [(B, L + 1)] * 3
        assert (spans.starts == -1).all()


def test_star_spans_and_merge_stars_refuse():
    for function, arguments, message in [
        (star_spans, (PATHS[0], SCORES[0], LABELS), "paths and scores must have the same shape (B, T), found (12,) a"),
        (
            star_spans,
            (PATHS, SCORES, LABELS[:1]),
            "targets must have shape (B, L) with B = 4 as in paths, found (1, 3)",
        ),
        (star_spans, (PATHS, SCORES, LABELS, 1), "paths[0] does not spell targets[0] with blank = 1; pass the blank"),
        (merge_stars, (PATHS, SCORES), "tokens and scores must have shape (T,), found (4, 12) and (4, 12)"),
        (merge_stars, (PATHS[0], SCORES[0, :3]), "tokens and scores must have the same length, found 12 and 3"),
    ]:
        with pytest.raises(AlignmentError) as error:
            function(*arguments)
        assert str(error.value).startswith(f"{function.__name__}: {message}")
    with pytest.raises(TypeError, match="merge_stars: tokens must be a tensor of shape"):
        merge_stars(PATHS[0].tolist(), SCORES[0])


def test_star_spans_are_differentiable():
    """Each frame of a star gives its part of the mean, and the blanks between stars give nothing."""
    scores = SCORES[:1].clone().requires_grad_()
    star_spans(PATHS[:1], scores, LABELS[:1]).scores.sum().backward()
    assert scores.grad.tolist() == [[0.5, 0, 0.5, 0, 0, 1, 0, 0, 0, 0, 0, 1]]


def test_stars_compile_into_one_graph_of_any_size(random_case, generator, compile_fully):  # noqa: F811
    def align(log_probs, targets, input_lengths, target_lengths):
        paths, scores = forced_align(
            log_probs, targets, input_lengths, target_lengths, strict=False, star="words", separator=1
        )
        return paths, scores, *star_spans(paths, scores, targets)

    compiled = compile_fully(align)
    for i, items in enumerate([24, 17, 9]):
        *arguments, _ = random_speech(random_case, generator, items=items)
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            found = compiled(*arguments)
        expected = align(*arguments)
        assert_same(found[:4], expected[:4])
        torch.testing.assert_close(found[4], expected[4])
        assert (found[0] == GAP_STAR).any()
    assert_compiled_once()
