"""Durations of tokens, and the module that follows a model: ForcedAligner."""

import copy
import inspect
import math
import pickle

import pytest
import torch
from test_graphs import assert_compiled_once, compile_fully, cxx  # noqa: F401
from test_operator import assert_same, make_arguments
from torch.utils._pytree import tree_leaves, tree_map

import torch_ctc_align
from torch_ctc_align import (
    GAP_STAR,
    Alignment,
    ForcedAligner,
    TokenSpans,
    reference,
    star_scores,
    star_spans,
    token_durations,
    token_indices,
    token_spans,
    wild_gaps,
)

INF = math.inf
BLANKS = ["split", "before", "after", "drop"]

# Durations. Item 0 is c a t with blanks before, between (1 and 2 frames) and after; item 1 has labels that touch, a
# padding label and a padding frame; item 2 is marked; item 3 is silence: no label.
PATHS = torch.tensor(
    [
        [0, 0, 2, 2, 0, 1, 0, 0, 3, 0],
        [5, 5, 5, 6, 0, 0, 0, 0, 0, 0],
        [-1] * 10,
        [0] * 10,
    ]
)
TARGETS = torch.tensor([[2, 1, 3], [5, 6, -1], [1, 2, 3], [0, 0, 0]])
LENGTHS = torch.tensor([10, 9, 10, 8])
DURATIONS = {
    "split": [[4, 3, 3], [3, 6, 0], [0] * 3, [0] * 3],  # borders 4 = (4 + 5) // 2 and 7 = (6 + 8) // 2
    "before": [[5, 3, 2], [3, 6, 0], [0] * 3, [0] * 3],
    "after": [[4, 2, 4], [3, 6, 0], [0] * 3, [0] * 3],
    "drop": [[2, 1, 1], [3, 1, 0], [0] * 3, [0] * 3],
}


@pytest.fixture
def spans():
    return token_spans(PATHS, torch.zeros(4, 10), TARGETS)


@pytest.mark.parametrize("blanks", BLANKS)
def test_durations(spans, blanks):
    durations = token_durations(spans, LENGTHS, blanks=blanks)
    assert durations.dtype == torch.int64
    assert durations.tolist() == DURATIONS[blanks]


def test_split_is_the_default(spans):
    assert token_durations(spans, LENGTHS).tolist() == DURATIONS["split"]


@pytest.mark.parametrize("lengths", [LENGTHS.int(), LENGTHS.tolist()], ids=["int32", "list"])
def test_durations_take_lengths_as_forced_align_does(spans, lengths):
    assert_same([token_durations(spans, lengths)], [token_durations(spans, LENGTHS)])


def test_one_length_for_all_items(spans):
    assert token_durations(spans, 10).tolist() == [[4, 3, 3], [3, 7, 0], [0] * 3, [0] * 3]


@pytest.mark.parametrize("blanks", BLANKS[:3])
def test_durations_add_up_to_the_input(random_case, blanks):
    """And count, by a loop over frames, each frame for the token on its side of the border."""
    log_probs, targets = random_case(20, 40, 12, 6)
    input_lengths, target_lengths = torch.arange(21, 41), torch.arange(20) % 12 + 1
    paths, scores = torch_ctc_align.forced_align(log_probs, targets, input_lengths, target_lengths, strict=False)
    assert (paths >= 0).all()
    spans = token_spans(paths, scores, targets)
    durations = token_durations(spans, input_lengths, blanks=blanks)
    assert torch.equal(durations.sum(1), input_lengths)
    for b in range(20):
        token, counts = 0, [0] * 12
        starts, ends = spans.starts[b].tolist(), spans.ends[b].tolist()
        for t in range(input_lengths[b]):
            while token + 1 < target_lengths[b]:
                border = {
                    "split": (ends[token] + starts[token + 1]) // 2,
                    "before": starts[token + 1],
                    "after": ends[token],
                }
                if t < border[blanks]:
                    break
                token += 1
            counts[token] += 1
        assert durations[b].tolist() == counts


def test_durations_of_nothing():
    for B, L in [(0, 3), (2, 0), (0, 0)]:
        empty = torch.full((B, L), -1)
        for blanks in BLANKS:
            durations = token_durations(TokenSpans(empty, empty, empty.float()), 7, blanks=blanks)
            assert durations.shape == (B, L)


def test_durations_refuse(spans):
    for arguments, blanks, message in [
        (LENGTHS, "both", "blanks must be one of split, before, after, drop, found 'both'"),
        (None, "split", "input_lengths must be given, log_probs.shape[1] for all frames, found None"),
        (LENGTHS[:2], "split", "input_lengths must be a number or have shape (B,) = (4,) as in spans, found (2,)"),
        (LENGTHS[None], "drop", "input_lengths must be a number or have shape (B,) = (4,) as in spans, found (1, 4)"),
        (LENGTHS.float(), "split", "input_lengths must be int32 or int64, found float32"),
    ]:
        with pytest.raises(ValueError) as error:
            token_durations(spans, arguments, blanks=blanks)
        assert str(error.value) == f"token_durations: {message}"


# The module


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("blanks", BLANKS)
def test_alignment(random_case, dtype, blanks):
    """Against the reference, item by item; the last one is marked."""
    log_probs, targets, input_lengths, target_lengths = make_arguments(random_case, dtype=dtype, blank=3)
    alignment = ForcedAligner(3, blanks)(log_probs, targets, input_lengths, target_lengths)
    paths, scores = reference.forced_align(log_probs, targets, input_lengths, target_lengths, 3)
    assert isinstance(alignment, Alignment)
    assert_same(alignment[:2], (paths, scores))
    assert isinstance(alignment.spans, TokenSpans)
    assert_same(alignment.spans, token_spans(paths, scores, targets, 3))
    assert_same([alignment.durations], [token_durations(alignment.spans, input_lengths, blanks=blanks)])
    assert alignment.aligned.tolist() == [True, True, False]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert alignment.path_scores.dtype == wide
    for b in (0, 1):
        exact = math.fsum(scores[b, : input_lengths[b]].tolist())
        # A sum of 20 terms of one sign: at most 19 roundings of half a unit in the last place each.
        assert abs(alignment.path_scores[b].item() - exact) <= 19 * torch.finfo(wide).eps / 2 * abs(exact) * 1.01
    assert alignment.path_scores[2] == -INF


def test_lengths_may_be_lists_or_left_out(random_case):
    log_probs, targets = random_case(2, 9, 3, 5)
    everything = ForcedAligner()(log_probs, targets)
    assert_same(tree_leaves(everything), tree_leaves(ForcedAligner()(log_probs, targets, [9, 9], [3, 3])))
    for lengths in [([9, 8], None), (None, [3, 2])]:
        full = [x if x is not None else [n, n] for x, n in zip(lengths, (9, 3), strict=True)]
        found = ForcedAligner()(log_probs, targets, *lengths)
        assert_same(tree_leaves(found), tree_leaves(ForcedAligner()(log_probs, targets, *full)))


@pytest.mark.parametrize("frames", [0, 4])
def test_aligned_is_right_for_items_without_frames(frames):
    """No frames and no labels is the empty path; no frames and a label is none. Nothing can be marked if T = 0."""
    arguments = torch.zeros(3, frames, 2), torch.tensor([[1], [1], [-5]])
    alignment = ForcedAligner()(*arguments, [0, 0, 0], [0, 1, 0])
    assert alignment.aligned.tolist() == [True, False, True]
    assert alignment.path_scores.tolist() == [0, -INF, 0]
    assert not alignment.durations.any()


def test_a_batch_without_frames_or_items():
    """Lengths left out: T and L decide."""
    assert ForcedAligner()(torch.zeros(2, 0, 3), torch.ones(2, 1, dtype=torch.int64)).aligned.tolist() == [False] * 2
    assert ForcedAligner()(torch.zeros(2, 0, 3), torch.ones(2, 0, dtype=torch.int64)).aligned.tolist() == [True] * 2
    assert ForcedAligner()(torch.zeros(0, 4, 3), torch.ones(0, 1, dtype=torch.int64)).aligned.shape == (0,)


def test_too_short_and_blocked_items_are_not_aligned():
    log_probs = torch.zeros(3, 3, 2)
    log_probs[1, 1] = -INF
    alignment = ForcedAligner()(log_probs, torch.tensor([[1, 1], [1, 1], [1, 1]]), [2, 3, 3])
    assert alignment.aligned.tolist() == [False, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_masked_path_scores_have_a_clean_gradient(random_case, dtype):
    """The idiom of docs/in_compiled_graphs.md: 1 along each path, and nothing of the marked item."""
    log_probs, *rest = make_arguments(random_case, dtype=dtype)
    log_probs.requires_grad_()
    alignment = ForcedAligner()(log_probs, *rest)
    loss = -torch.where(alignment.aligned, alignment.path_scores, 0).sum()
    loss.backward()
    assert loss.isfinite()
    used = torch.arange(20) < rest[1][:, None]
    used[2] = False
    expected = torch.zeros_like(log_probs).scatter(
        2, alignment.paths.clamp(min=0)[..., None], -used[..., None].to(dtype)
    )
    assert torch.equal(log_probs.grad, expected)


def test_masked_span_scores_have_a_clean_gradient(random_case):
    """A mean over a span sends 1 / length to each of its entries."""
    log_probs, *rest = make_arguments(random_case)
    log_probs.requires_grad_()
    alignment = ForcedAligner()(log_probs, *rest)
    torch.where(alignment.aligned[:, None], alignment.spans.scores, 0).sum().backward()
    expected = torch.zeros_like(log_probs)
    for b in (0, 1):
        for k in range(rest[2][b]):
            start, end = alignment.spans.starts[b, k], alignment.spans.ends[b, k]
            expected[b, start:end, rest[0][b, k]] = 1 / (end - start)
    torch.testing.assert_close(log_probs.grad, expected)


def test_masked_scores_have_a_clean_gradient(random_case):
    log_probs, *rest = make_arguments(random_case)
    log_probs.requires_grad_()
    alignment = ForcedAligner()(log_probs, *rest)
    torch.where(alignment.aligned[:, None], alignment.scores, 0).sum().backward()
    assert log_probs.grad.isfinite().all()
    assert log_probs.grad.sum() == rest[1][:2].sum()


def test_what_a_module_is(random_case):
    """It has no state, it prints its choices, and copies and pickles do the same."""
    aligner = ForcedAligner(3, "after")
    assert repr(aligner) == "ForcedAligner(blank=3, blanks='after')"
    assert not aligner.state_dict()
    arguments = make_arguments(random_case, blank=3)
    expected = tree_leaves(aligner(*arguments))
    model = torch.nn.Sequential(torch.nn.Identity(), aligner)
    for twin in (copy.deepcopy(aligner), pickle.loads(pickle.dumps(aligner)), copy.deepcopy(model)[1], aligner.eval()):
        assert repr(twin) == repr(aligner)
        assert_same(tree_leaves(twin(*arguments)), expected)
    again = pickle.loads(pickle.dumps(aligner(*arguments)))
    assert isinstance(again, Alignment)
    assert_same(tree_leaves(again), expected)


def test_an_alignment_is_a_tree():
    """What torch maps over: to another device or dtype in one line, and over a batch by torch.func."""
    alignment = ForcedAligner()(torch.zeros(1, 3, 2), torch.ones(1, 1, dtype=torch.int64))
    moved = tree_map(lambda x: x.to("meta"), alignment)
    assert isinstance(moved, Alignment)
    assert isinstance(moved.spans, TokenSpans)
    assert moved.spans.starts.device.type == "meta"


def test_vmap_of_a_module(random_case):
    arguments = [x.unflatten(0, (2, 2)) for x in make_arguments(random_case, B=4)]
    found = torch.vmap(ForcedAligner())(*arguments)
    for n in range(2):
        assert_same([x[n] for x in tree_leaves(found)], tree_leaves(ForcedAligner()(*(x[n] for x in arguments))))


def test_a_module_compiles_to_one_graph_of_any_size(random_case, compile_fully):  # noqa: F811
    aligner = ForcedAligner()
    compiled = compile_fully(aligner)
    for i, sizes in enumerate([(3, 20, 6), (4, 33, 9), (5, 64, 11)]):
        arguments = make_arguments(random_case, *sizes, steps=8)  # eighths: sums are exact
        gradients, results = [], []
        for function in (aligner, compiled):
            log_probs = arguments[0].clone().requires_grad_()
            with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
                alignment = function(log_probs, *arguments[1:])
                torch.where(alignment.aligned, alignment.path_scores, 0).square().sum().backward()
            results.append([x.detach() for x in tree_leaves(alignment)])
            gradients.append(log_probs.grad)
        assert isinstance(alignment, Alignment)
        assert_same(*results)
        assert torch.equal(*gradients)
        assert gradients[0].any()
    assert_compiled_once()


# Stars


def make_speech(random_case, generator, B=5, T=40, L=9, **options):
    """Random arguments in which class 1 separates words; label C = 8 is the star. The last item is marked."""
    log_probs, _ = random_case(B, T, 1, 8, **options)
    targets = torch.randint(1, 9, (B, L), generator=generator)
    log_probs[B - 1, 2] = -INF
    return log_probs, targets, torch.arange(T - B + 1, T + 1), torch.arange(L - B + 1, L + 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("blanks", BLANKS)
def test_alignment_with_stars(random_case, generator, dtype, blanks):
    """Against the functions; the last item is marked."""
    arguments = make_speech(random_case, generator, dtype=dtype)
    aligner = ForcedAligner(0, blanks, star="words", star_penalty=0.25, separator=1)
    alignment = aligner(*arguments)
    log_probs, targets, input_lengths, target_lengths = arguments
    chosen = star_scores(log_probs, 0.25), wild_gaps(targets, target_lengths, "words", 1)
    paths, scores = reference.forced_align(*arguments, 0, *chosen)
    assert_same(alignment[:2], (paths, scores))
    assert (paths == GAP_STAR).any()
    assert_same(alignment.spans, token_spans(paths, scores, targets))
    assert isinstance(alignment.stars, TokenSpans)
    assert_same(alignment.stars, star_spans(paths, scores, targets))
    durations = token_durations(alignment.spans, input_lengths, blanks=blanks, stars=alignment.stars)
    assert_same([alignment.durations], [durations])
    assert_same([alignment.token_indices], [token_indices(paths, targets)])
    assert alignment.aligned.tolist() == [True] * 4 + [False], "a star at frame 0 is no mark"
    sums = scores.double()[:4].sum(1)
    torch.testing.assert_close(alignment.path_scores[:4].double(), sums)
    assert alignment.path_scores[4] == -INF


def test_stars_of_a_call(random_case, generator):
    """Counts of words, scores and gaps may come with each batch."""
    arguments = make_speech(random_case, generator)
    counts = [[1] * n for n in arguments[3].tolist()]  # a word for each label: every gap
    everywhere = tree_leaves(ForcedAligner(star="all")(*arguments))
    assert_same(tree_leaves(ForcedAligner(star="words")(*arguments, counts)), everywhere)
    chosen = star_scores(arguments[0]), wild_gaps(arguments[1], arguments[3], "all")
    assert_same(tree_leaves(ForcedAligner()(*arguments, None, *chosen)), everywhere)
    found = ForcedAligner(star="all")(*arguments, star_scores=chosen[0] - 1)
    assert_same(tree_leaves(found), tree_leaves(ForcedAligner(star="all", star_penalty=1.5)(*arguments)))
    labels_alone = ForcedAligner()(*arguments, star_scores=chosen[0])
    assert (labels_alone.stars.starts == -1).all()
    assert (labels_alone.paths == 8).any()


def test_without_stars_an_alignment_has_the_leaves_that_it_had(random_case):
    """None would be a leaf. Alignments of seven fields, pickled earlier, load, and so do modules."""
    arguments = make_arguments(random_case)
    alignment = ForcedAligner()(*arguments)
    assert len(tree_leaves(alignment)) == 9
    assert alignment.stars == ()
    assert Alignment(*alignment[:7]) == alignment
    assert len(tree_leaves(ForcedAligner(star="ends")(*arguments[:1], arguments[1].clamp(max=4), *arguments[2:]))) == 12
    assert not {"star", "star_penalty", "separator"} & {*vars(ForcedAligner(2))}, "as in a pickle made earlier"
    moved = tree_map(lambda x: x.to("meta"), alignment)
    assert moved.stars == ()


def test_a_module_with_stars_is_copied_and_pickled(random_case, generator):
    aligner = ForcedAligner(0, "drop", star="words", star_penalty=0.75, separator=1)
    assert repr(aligner) == "ForcedAligner(blank=0, blanks='drop', star='words', star_penalty=0.75, separator=1)"
    assert repr(ForcedAligner(star="ends")) == "ForcedAligner(blank=0, blanks='split', star='ends', star_penalty=0.5)"
    arguments = make_speech(random_case, generator)
    for twin in (copy.deepcopy(aligner), pickle.loads(pickle.dumps(aligner))):
        assert repr(twin) == repr(aligner)
        assert_same(tree_leaves(twin(*arguments)), tree_leaves(aligner(*arguments)))
    again = pickle.loads(pickle.dumps(aligner(*arguments)))
    assert isinstance(again.stars, TokenSpans)


def test_the_gradient_of_a_path_with_stars(random_case, generator):
    """1 at each class on the path, and for a star at the best class, whose score it has."""
    log_probs, *rest = make_speech(random_case, generator, dtype=torch.float64)
    log_probs.requires_grad_()
    alignment = ForcedAligner(star="all")(log_probs, *rest)
    torch.where(alignment.aligned, alignment.path_scores, 0).sum().backward()
    is_star = (alignment.paths == GAP_STAR) | (alignment.paths == 8)
    assert is_star.any()
    classes = torch.where(is_star, log_probs.argmax(-1), alignment.paths.clamp(min=0))
    used = (torch.arange(40) < rest[1][:, None]) & alignment.aligned[:, None]
    expected = torch.nn.functional.one_hot(classes, 8) * used[..., None]
    assert torch.equal(log_probs.grad, expected.double())


def test_vmap_of_a_module_with_stars(random_case, generator):
    aligner = ForcedAligner(star="words", separator=1)
    arguments = [x.unflatten(0, (2, 2)) for x in make_speech(random_case, generator, B=4)]
    found = torch.vmap(aligner)(*arguments)
    for n in range(2):
        assert_same([x[n] for x in tree_leaves(found)], tree_leaves(aligner(*(x[n] for x in arguments))))


def test_a_module_with_stars_compiles_to_one_graph_of_any_size(random_case, generator, compile_fully):  # noqa: F811
    """With its gradient, through the scores of the stars."""
    aligner = ForcedAligner(star="words", separator=1)
    compiled = compile_fully(aligner)
    for i, sizes in enumerate([(3, 20, 6), (4, 33, 9), (5, 64, 11)]):
        arguments = make_speech(random_case, generator, *sizes, steps=8)  # eighths: sums are exact
        gradients, results = [], []
        for function in (aligner, compiled):
            log_probs = arguments[0].clone().requires_grad_()
            with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
                alignment = function(log_probs, *arguments[1:])
                torch.where(alignment.aligned, alignment.path_scores, 0).square().sum().backward()
            gradients.append(log_probs.grad)
            results.append([x.detach() for x in tree_leaves(alignment)])
        assert len(results[0]) == len(results[1]) == 12
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*gradients)
        assert gradients[0].any()
    assert_compiled_once()


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("star", [None, "all"])
def test_a_module_is_traced_with_stars_and_without(random_case, star):
    """The empty tuple passes through torch.jit.trace; None does not."""
    aligner = ForcedAligner(star=star)
    log_probs, targets = random_case(2, 30, 6, 5)
    traced = torch.jit.trace(aligner, (log_probs[:, :20], targets[:, :4]))
    assert_same(tree_leaves(traced(log_probs, targets)), tree_leaves(aligner(log_probs, targets)))


def test_a_module_refuses_stars():
    for options, message in [
        ({"star": "no"}, "star must be one of ends, words, all, found 'no'"),
        ({"separator": 1}, 'separator says where a word ends, expected star="words" with it, found None'),
        (
            {"star": "ends", "separator": 1},
            'separator says where a word ends, expected star="words" with it, found \'en',
        ),
        ({"star": "words", "separator": 0}, "separator must not be the blank, expected a label of targets, found 0"),
        ({"star": "ends", "star_penalty": -1}, "star_penalty must be at least 0, found -1"),
    ]:
        with pytest.raises(ValueError) as error:
            ForcedAligner(**options)
        assert str(error.value).startswith(f"ForcedAligner: {message}")
    with pytest.raises(TypeError, match="ForcedAligner: separator must be an int, a label of targets, found 'x'"):
        ForcedAligner(star="words", separator="x")
    arguments = torch.zeros(1, 5, 3), torch.ones(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="forced_align: separator or tokens_per_word must be given"):
        ForcedAligner(star="words")(*arguments)
    with pytest.raises(ValueError, match='forced_align: tokens_per_word says where a word ends, expected star="words"'):
        ForcedAligner(star="ends")(*arguments, tokens_per_word=[2])


def test_a_module_has_the_arguments_of_the_function():
    function = inspect.signature(torch_ctc_align.forced_align).parameters
    forward = inspect.signature(ForcedAligner.forward).parameters
    assert list(forward)[1:5] == list(function)[:4]
    assert list(forward)[5:] == ["tokens_per_word", "star_scores", "wild_gaps"]
    assert {*forward} - {"self"} <= {*function}


def test_a_module_refuses():
    with pytest.raises(ValueError, match="ForcedAligner: blanks must be one of split, before, after, drop, found 'no'"):
        ForcedAligner(blanks="no")
    with pytest.raises(ValueError, match="ForcedAligner: blank must be a class, expected 0 <= blank, found -1"):
        ForcedAligner(-1)
    with pytest.raises(ValueError, match="forced_align: log_probs must have shape"):
        ForcedAligner()(torch.zeros(2, 3), torch.ones(2, 1, dtype=torch.int64))
