"""wild_gaps: which gaps of a target may take the star; answers written by hand, and the words of merge_words."""

import itertools

import pytest
import torch
from test_graphs import assert_compiled_once, compile_fully, cxx  # noqa: F401
from test_operator import assert_same
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_ctc_align import AlignmentError, TokenSpan, merge_words, wild_gaps


def gaps(*arguments, **options):
    found = wild_gaps(*arguments, **options)
    assert found.dtype == torch.bool
    return ["".join(".*"[wild] for wild in row) for row in found.tolist()]


TARGETS = torch.tensor([[5, 6, 4, 7, 8, 4], [4, 5, 4, 4, 6, 7], [5, 5, 5, 4, 4, 4]])  # 4 lies between words


@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
def test_wild_gaps_at_the_ends(integer):
    targets = TARGETS.to(integer)
    assert gaps(targets) == ["*.....*"] * 3
    assert gaps(targets, torch.tensor([6, 1, 0], dtype=integer)) == ["*.....*", "**.....", "*......"]
    assert gaps(targets, [6, 1, 0], where="ends") == ["*.....*", "**.....", "*......"]


def test_all_gaps_wild():
    assert gaps(TARGETS, where="all") == ["*******"] * 3
    assert gaps(TARGETS, [6, 1, 0], "all") == ["*******", "**.....", "*......"]


def test_gaps_around_separators_are_wild():
    """At the ends and repeated, too; not those of padding."""
    assert gaps(TARGETS, where="words", separator=4) == ["*.**.**", "*****.*", "*..****"]
    assert gaps(TARGETS, [5, 2, 3], where="words", separator=4) == ["*.**.*.", "***....", "*..*..."]
    assert gaps(TARGETS, where="words", separator=9) == ["*.....*"] * 3


@pytest.mark.parametrize(
    "counts",
    [
        [[2, 4], [1, 1, 1, 3], [6]],
        ((2, 4), (1, 1, 1, 3), (6,)),
        torch.tensor([[2, 4, 0, 0], [1, 1, 1, 3], [6, 0, 0, 0]]),
        torch.tensor([[2, 4, 0, 0], [1, 1, 1, 3], [6, 0, 0, 0]], dtype=torch.int32),
        torch.tensor([[2, 4, 0, 0], [1, 1, 1, 3], [6, 0, 0, 0]]).numpy(),
        [torch.tensor([2, 4]), torch.tensor([1, 1, 1, 3]), torch.tensor([6])],
    ],
    ids=["lists", "tuples", "int64", "int32", "numpy", "tensors"],
)
def test_gaps_between_counted_words_are_wild(counts):
    assert gaps(TARGETS, where="words", tokens_per_word=counts) == ["*.*...*", "****..*", "*.....*"]


@pytest.mark.parametrize("counts", [[2, 3], [[2, 3]], (2, 3), torch.tensor([2, 3]), torch.tensor([[2, 3, 0]])], ids=str)
def test_counts_of_a_batch_of_one(counts):
    assert gaps(TARGETS[:1], [5], where="words", tokens_per_word=counts) == ["*.*..*."]


def test_counts_leave_separators_out():
    """As merge_words does: the gaps around a separator between words are wild, not those of one within a word."""
    assert gaps(TARGETS, where="words", separator=4, tokens_per_word=[[2, 2], [1, 2], [3]]) == [
        "*.**.**",
        "*****.*",
        "*..****",
    ]
    assert gaps(TARGETS, where="words", separator=4, tokens_per_word=[[1, 3], [3], [1, 2]]) == [
        "**...**",
        "**....*",
        "**.****",
    ]
    assert gaps(TARGETS, [2, 3, 4], where="words", separator=4, tokens_per_word=[[1, 1], [1], [2, 1]]) == [
        "***....",
        "****...",
        "*.***..",
    ]


def test_counts_go_where_targets_are_whatever_the_default_device_is():
    expected = wild_gaps(TARGETS, [6, 6, 6], "words", 4, [[2, 2], [1, 2], [3]])
    counts = torch.tensor([[2, 2], [1, 2], [3, 0]])
    torch.set_default_device("meta")
    try:
        found = [wild_gaps(TARGETS, [6, 6, 6], "words", 4, x) for x in (counts, counts.numpy(), [[2, 2], [1, 2], [3]])]
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(gaps, expected) for gaps in found)


def test_wild_gaps_of_nothing():
    for B, L in [(0, 3), (2, 0), (0, 0)]:
        targets = torch.ones(B, L, dtype=torch.int64)
        for options in ({"where": "ends"}, {"where": "all"}, {"where": "words", "separator": 1}):
            assert wild_gaps(targets, **options).shape == (B, L + 1)
        counts = torch.zeros(B, 0, dtype=torch.int64)
        if L == 0 or B == 0:
            assert wild_gaps(targets, where="words", tokens_per_word=counts).shape == (B, L + 1)
            assert wild_gaps(targets, where="words", tokens_per_word=[[]] * B).shape == (B, L + 1)
    assert gaps(torch.ones(1, 0, dtype=torch.int64), where="words", tokens_per_word=[]) == ["*"]


def random_words(generator, items=60):
    """Targets of words of 1 to 4 labels with separators (label 1) here and there, lengths, and counts."""
    draw = lambda low, high: int(torch.randint(low, high + 1, (1,), generator=generator))  # noqa: E731
    rows, counts = [], []
    for _ in range(items):
        row, words = [1] * draw(0, 1), []
        for _ in range(draw(0, 5)):
            words.append(draw(1, 4))
            row += [draw(2, 9) for _ in range(words[-1])]
            row += [1] * max(0, draw(-1, 2))
        rows.append(row)
        counts.append(words)
    width, most = max(map(len, rows)), max(map(len, counts))
    targets = torch.tensor([row + [draw(-1, 3) for _ in range(width - len(row))] for row in rows])
    tensor = torch.tensor([words + [0] * (most - len(words)) for words in counts])
    return targets, list(map(len, rows)), counts, tensor


def test_wild_gaps_are_those_between_the_words_of_merge_words(generator):
    """Label k as a span of frame k: a gap is wild if no word reaches from the label before it to the one after it."""
    targets, lengths, counts, tensor = random_words(generator)

    def expected(b, names, **options):
        spans = [TokenSpan(label, k, k + 1, 0.0) for k, label in enumerate(targets[b, : lengths[b]].tolist())]
        words = merge_words(spans, names, seconds_per_frame=1.0, borders="drop", **options)
        inner = {k for word in words for k in range(int(word.start) + 1, int(word.end))}
        return "".join("*" if k not in inner and k <= lengths[b] else "." for k in range(targets.shape[1] + 1))

    for b, (row, words) in enumerate(zip(targets.tolist(), counts, strict=True)):
        by_separator = [
            "".join(map(str, group)) for bar, group in itertools.groupby(row[: lengths[b]], lambda x: x == 1) if not bar
        ]
        names = list(map(str, words))
        assert gaps(targets, lengths, "words", 1)[b] == expected(b, by_separator, separator=1)
        found = gaps(targets[b : b + 1], lengths[b : b + 1], "words", 1, words)
        assert found == [expected(b, names, separator=1, tokens_per_word=words)]
    both = wild_gaps(targets, lengths, "words", 1, counts)
    assert torch.equal(both, wild_gaps(targets, torch.tensor(lengths), "words", 1, tensor))
    assert torch.equal(both[7:8], wild_gaps(targets[7:8], lengths[7:8], "words", 1, counts[7]))


def test_wild_gaps_refuse():
    words = {"where": "words"}
    for arguments, options, message in [
        ((TARGETS,), {"where": "word"}, "where must be one of ends, words, all, found 'word'"),
        ((TARGETS,), {"where": None}, "where must be one of ends, words, all, found None"),
        ((TARGETS[0],), {}, "targets must have shape (B, L), found (6,)"),
        ((TARGETS.float(),), {}, "targets must be int32 or int64, found float32"),
        ((TARGETS, [6]), {}, "target_lengths must have shape (B,) = (3,), found (1,)"),
        ((TARGETS, [6.0, 1.0, 1.0]), {}, "target_lengths must be int32 or int64, found float32"),
        ((TARGETS,), words, "separator or tokens_per_word must be given, to say where a word ends"),
        (
            (TARGETS,),
            {"separator": 4},
            "separator says where a word ends, expected where=\"words\" with it, found 'ends'",
        ),
        (
            (TARGETS, None, "all"),
            {"tokens_per_word": [[1]] * 3},
            "tokens_per_word says where a word ends, expected where=\"words\" with it, found 'all'",
        ),
        (
            (TARGETS,),
            words | {"tokens_per_word": [6]},
            "tokens_per_word must be one sequence for each of the B = 3 items, found the counts of one item",
        ),
        (
            (TARGETS,),
            words | {"tokens_per_word": [[6], [6]]},
            "tokens_per_word must be one sequence for each of the B = 3 items, found 2",
        ),
        (
            (TARGETS,),
            words | {"tokens_per_word": torch.ones(2, 6, dtype=torch.int64)},
            "tokens_per_word must have shape (B, W) with B = 3 as in targets, found (2, 6)",
        ),
        (
            (TARGETS,),
            words | {"tokens_per_word": torch.ones(3, 6)},
            "tokens_per_word must be int32 or int64, found float32",
        ),
        (
            (TARGETS,),
            words | {"tokens_per_word": [[6], [3, 0, 3], [6]]},
            "tokens_per_word[1][1] must be a number of tokens, expected at least 1, found 0",
        ),
        (
            (TARGETS[:1],),
            words | {"tokens_per_word": [7, -1]},
            "tokens_per_word[1] must be a number of tokens, expected at least 1, found -1",
        ),
        (
            (TARGETS[:1],),
            words | {"tokens_per_word": torch.tensor([[7, -1]])},
            "tokens_per_word[0, 1] must be a number of tokens, expected at least 1, or 0 for padding, found -1",
        ),
        (
            (TARGETS, [6, 5, 6]),
            words | {"tokens_per_word": [[2, 4], [6], [6]]},
            "tokens_per_word must sum to the labels of words, expected 5 in item 1, found 6",
        ),
        (
            (TARGETS,),
            words | {"separator": 4, "tokens_per_word": [[2, 2], [1, 2], [6]]},
            "tokens_per_word must sum to the labels of words, expected 3 in item 2, found 6",
        ),
    ]:
        with pytest.raises(AlignmentError) as error:
            wild_gaps(*arguments, **options)
        assert str(error.value) == f"wild_gaps: {message}"


def test_wild_gaps_want_numbers():
    for arguments, message in [
        (([[1, 2]],), "targets must be a tensor of shape (B, L), found a list; use torch.as_tensor"),
        ((TARGETS, None, "words", "|"), "separator must be an int, a label of targets, found '|'"),
        ((TARGETS, None, "words", True), "separator must be an int, a label of targets, found True"),
        (
            (TARGETS, None, "words", None, 6),
            "tokens_per_word must be a tensor or sequences of int, one for each item, found an int",
        ),
        ((TARGETS, None, "words", None, [[2.5], [6], [6]]), "tokens_per_word must be numbers of tokens, found 2.5"),
    ]:
        with pytest.raises(TypeError) as error:
            wild_gaps(*arguments)
        assert str(error.value) == f"wild_gaps: {message}"


def test_wild_gaps_compile_into_one_graph_of_any_size(generator, compile_fully):  # noqa: F811
    def choose(targets, lengths, counts):
        words = wild_gaps(targets, lengths, "words", 1)
        return wild_gaps(targets, lengths), words, wild_gaps(targets, lengths, "words", 1, counts)

    compiled = compile_fully(choose)
    for i, items in enumerate([12, 17, 30]):
        targets, lengths, _, counts = random_words(generator, items)
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            found = compiled(targets, torch.tensor(lengths), counts)
        assert_same(found, choose(targets, torch.tensor(lengths), counts))
    assert_compiled_once()


def test_wild_gaps_under_vmap(generator):
    targets, lengths, _, counts = random_words(generator, 12)
    arguments = targets, torch.tensor(lengths), counts
    expected = wild_gaps(*arguments[:2], "words", 1, counts)
    found = torch.vmap(lambda x, n, w: wild_gaps(x, n, "words", 1, w))(*(x.unflatten(0, (3, 4)) for x in arguments))
    assert torch.equal(found.flatten(0, 1), expected)


def test_no_value_is_looked_at():
    """Elsewhere than on the CPU: wrong sums pass, and no index is out of bounds."""
    counts = torch.tensor([[9, 9], [1, 2], [0, 0]])
    with FakeTensorMode() as mode:
        targets, fake = mode.from_tensor(TARGETS), mode.from_tensor(counts)
        assert wild_gaps(targets, where="words", separator=4, tokens_per_word=fake).shape == (3, 7)
    assert wild_gaps(TARGETS.to("meta"), [6, 5, 4], "words", 4, [[1], [1], [1]]).device.type == "meta"
    one = torch.vmap(lambda x, w: wild_gaps(x, None, "words", None, w))(TARGETS[None], counts[None])[0]
    assert one.shape == (3, 7)
    assert one[:, [0, 6]].all()
