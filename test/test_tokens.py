"""token_indices: which token of its target a frame belongs to; min_frames: how many frames a target needs."""

import itertools
import math

import pytest
import torch
from test_graphs import assert_compiled_once, compile_fully, cxx  # noqa: F401
from test_operator import assert_same, make_arguments
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

import torch_ctc_align
from torch_ctc_align import AlignmentError, ForcedAligner, min_frames, reference, token_indices, token_spans

INF = math.inf
forced_align = torch.ops.ctc_align.forced_align


def walk(path, blank):
    """The token and the lattice state of every frame of a path, one frame after the other."""
    tokens, states, spoken, before = [], [], 0, blank
    for label in path:
        if label == blank:
            tokens.append(-1)
            states.append(2 * spoken)  # the blank after the tokens spoken so far
        else:
            spoken += label != before
            tokens.append(spoken - 1)
            states.append(2 * spoken - 1)
        before = label
    return tokens, states


def random_batch(random_case, generator, blank=0):
    """Returns paths of 40 items. Each has lengths of its own, and a path."""
    B, T, L, C = 40, 60, 15, 6
    log_probs, targets = random_case(B, T, L, C, blank=blank)
    target_lengths = torch.randint(0, L + 1, (B,), generator=generator)
    input_lengths = torch.randint(2 * L, T + 1, (B,), generator=generator)
    paths, _ = forced_align(log_probs, targets, input_lengths, target_lengths, blank)
    assert (paths >= 0).all()
    return paths, targets, input_lengths, target_lengths


# token_indices


@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
def test_token_indices(integer):
    """A repeat, labels that touch, padding frames and padding tokens, silence, a label that lasts, a marked item."""
    paths = [
        [0, 1, 1, 0, 1, 2, 2, 0],
        [3, 3, 3, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [4, 4, 4, 4, 4, 4, 4, 4],
        [-1, -1, -1, -1, -1, -1, -1, -1],
    ]
    targets = [[1, 1, 2, -1], [3, 0, 77, 3], [1, 2, 3, 4], [4, 4, 4, 4], [1, 1, 1, 1]]
    indices = token_indices(torch.tensor(paths, dtype=integer), torch.tensor(targets, dtype=integer))
    assert indices.dtype == torch.int64
    assert indices.tolist() == [
        [-1, 0, 0, -1, 1, 2, 2, -1],
        [0, 0, 0, -1, -1, -1, -1, -1],
        [-1] * 8,
        [0] * 8,
        [-1] * 8,
    ]


def test_token_indices_with_another_blank():
    paths = torch.tensor([[0, 0, 2, 2, 1, 0], [2, 2, 2, 0, 2, 0]])
    indices = token_indices(paths, torch.tensor([[0, 1, 0], [0, 0, 2]]), blank=2)
    assert indices.tolist() == [[0, 0, -1, -1, 1, 2], [-1, -1, -1, 0, -1, 1]]


@pytest.mark.parametrize("B, T, L", [(0, 5, 3), (2, 0, 0), (2, 0, 3), (2, 5, 0), (0, 0, 0)])
def test_token_indices_of_nothing(B, T, L):
    indices = token_indices(torch.zeros(B, T, dtype=torch.int64), torch.ones(B, L, dtype=torch.int64))
    assert indices.shape == (B, T)
    assert (indices == -1).all()


@pytest.mark.parametrize("blank", [0, 2, 5])
def test_token_indices_are_those_of_a_walk(random_case, generator, blank):
    paths, targets, _, target_lengths = random_batch(random_case, generator, blank)
    indices = token_indices(paths, targets, blank)
    for path, row, labels in zip(paths.tolist(), indices.tolist(), target_lengths.tolist(), strict=True):
        assert row == walk(path, blank)[0]
        assert sorted({*row} - {-1}) == list(range(labels))  # every token is there


@pytest.mark.parametrize("blank", [0, 2, 5])
def test_states_of_the_lattice_are_two_k_and_two_k_plus_one(random_case, generator, blank):
    """As the docstring makes them of the index, in labels and in blanks; and they move as section 3 allows."""
    paths, targets, input_lengths, target_lengths = random_batch(random_case, generator, blank)
    index = token_indices(paths, targets, blank)
    states = torch.where(index >= 0, 2 * index + 1, 2 * (torch.cummax(index, 1).values + 1))
    for b, (frames, labels) in enumerate(zip(input_lengths.tolist(), target_lengths.tolist(), strict=True)):
        row = states[b].tolist()
        assert row == walk(paths[b].tolist(), blank)[1]
        assert row[0] in (0, 1)
        assert row[frames - 1] in (2 * labels - 1, 2 * labels)
        classes = reference_classes(targets[b, :labels].tolist(), blank)
        assert [classes[s] for s in row[:frames]] == paths[b, :frames].tolist()
        for s, n in itertools.pairwise(row[:frames]):
            assert n - s in (0, 1) or (n - s == 2 and n % 2 == 1 and classes[s] != classes[n])


def reference_classes(target, blank):
    """Every state has one: a blank before, between and after the labels."""
    return [blank, *itertools.chain.from_iterable((label, blank) for label in target)]


def test_token_indices_agree_with_spans(random_case, generator):
    paths, targets, _, target_lengths = random_batch(random_case, generator)
    starts, ends, _ = token_spans(paths, paths.float(), targets)
    indices = token_indices(paths, targets)
    for b, labels in enumerate(target_lengths.tolist()):
        for k in range(labels):
            assert (indices[b] == k).nonzero()[:, 0].tolist() == list(range(starts[b, k], ends[b, k]))


def test_an_alignment_has_them(random_case):
    """The last item is marked."""
    arguments = make_arguments(random_case, blank=3)
    alignment = ForcedAligner(3)(*arguments)
    assert_same([alignment.token_indices], [token_indices(alignment.paths, arguments[1], 3)])
    assert (alignment.token_indices[2] == -1).all()
    assert alignment.token_indices[0].tolist() == walk(alignment.paths[0].tolist(), 3)[0]


def test_targets_of_another_dtype_or_stride_than_paths(random_case, generator):
    paths, targets, *_ = random_batch(random_case, generator)
    expected = token_indices(paths, targets)
    for other in (targets.int(), targets.t().contiguous().t(), torch.stack([targets] * 2, -1)[..., 0]):
        assert torch.equal(token_indices(paths, other), expected)
    assert torch.equal(token_indices(paths.t().contiguous().t(), targets), expected)


def test_token_indices_compile_into_one_graph_of_any_size(random_case, compile_fully):  # noqa: F811
    compiled = compile_fully(lambda paths, targets: token_indices(paths, targets, 2))
    for i, (B, T, L) in enumerate([(3, 30, 9), (2, 41, 7), (5, 50, 12)]):
        log_probs, targets = random_case(B, T, L, 6, blank=2)
        log_probs[0, 3] = -INF  # a marked item
        paths, _ = forced_align(log_probs, targets, None, None, 2)
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            found = compiled(paths, targets)
        assert found.tolist() == [[-1] * T, *(walk(path, 2)[0] for path in paths[1:].tolist())]
    assert_compiled_once()


def test_token_indices_are_in_an_exported_program(random_case):
    arguments = make_arguments(random_case, 3, 20, 6)
    batch, frames, labels = Dim("batch"), Dim("frames"), Dim("labels")
    dims = {0: batch, 1: frames}, {0: batch, 1: labels}, {0: batch}, {0: batch}
    program = torch.export.export(ForcedAligner(), arguments, dynamic_shapes=dims)
    for sizes in ((3, 20, 6), (5, 44, 9)):
        arguments = make_arguments(random_case, *sizes)
        alignment = program.module()(*arguments)
        expected = [walk(path, 0)[0] for path in alignment.paths[:-1].tolist()]
        assert alignment.token_indices.tolist() == [*expected, [-1] * sizes[1]]


def test_vmap_of_token_indices(random_case):
    log_probs, targets = random_case(6, 20, 5, 6)
    paths, _ = forced_align(log_probs, targets)
    expected = token_indices(paths, targets)
    paths, targets = paths.unflatten(0, (3, 2)), targets.unflatten(0, (3, 2))
    assert torch.equal(torch.vmap(token_indices)(paths, targets).flatten(0, 1), expected)
    once = torch.vmap(lambda x: token_indices(x, targets[0]))(paths[:1])
    assert torch.equal(once[0], expected[:2])


def test_no_value_is_looked_at():
    """On any device but the CPU, which has them at hand: a tensor without values passes."""
    paths, targets = torch.zeros(2, 9, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)
    lengths = torch.tensor([3, 2])
    with FakeTensorMode() as mode:
        indices = token_indices(mode.from_tensor(paths), mode.from_tensor(targets))
        needed = min_frames(mode.from_tensor(targets), mode.from_tensor(lengths))
    assert (indices.shape, indices.dtype, needed.shape, needed.dtype) == ((2, 9), torch.int64, (2,), torch.int64)
    indices = token_indices(paths.to("meta"), targets.to("meta"))
    assert (indices.shape, indices.device.type) == ((2, 9), "meta")
    assert min_frames(targets.to("meta"), lengths.to("meta")).shape == (2,)
    assert token_spans(paths.to("meta"), paths.to("meta"), targets.to("meta")).ends.shape == (2, 3)


# A path that does not spell the target, as with a forgotten blank


def wrong_paths():
    """The blank is 5; taken for 0, item 0 spells more labels than there are, item 1 as many others, item 2 fits."""
    paths = torch.tensor([[5, 1, 5, 2, 5, 3], [5, 5, 5, 5, 5, 5], [1, 1, 1, 2, 2, 3]])
    return paths, torch.tensor([[1, 2, 3], [0, 0, 0], [1, 2, 3]])


def test_a_forgotten_blank_raises_on_the_cpu():
    paths, targets = wrong_paths()
    with pytest.raises(AlignmentError) as caught:
        token_indices(paths, targets)
    assert str(caught.value) == (
        "token_indices: paths[0] does not spell targets[0] with blank = 0; "
        "pass the blank and the targets that were aligned"
    )
    with pytest.raises(AlignmentError, match=r"paths\[1\] does not spell"):
        token_indices(paths[[2, 1]], targets[[2, 1]])
    with pytest.raises(AlignmentError, match=r"paths\[0\] does not spell"):
        token_indices(paths[:1], targets[:1, :0])


def test_a_forgotten_blank_is_marked_in_graphs(compile_fully):  # noqa: F811
    """No index is out of bounds, and the other items are not affected."""
    paths, targets = wrong_paths()
    scores = -torch.ones(paths.shape)

    def find(paths, scores, targets):
        return token_indices(paths, targets), *token_spans(paths, scores, targets)

    indices, starts, ends, means = compile_fully(find)(paths, scores, targets)
    assert indices.tolist() == [[-1] * 6, [-1] * 6, [0, 0, 0, 1, 1, 2]]
    assert starts.tolist() == [[-1] * 3, [-1] * 3, [0, 3, 5]]
    assert ends.tolist() == [[-1] * 3, [-1] * 3, [3, 5, 6]]
    assert means.tolist() == [[-INF] * 3, [-INF] * 3, [-1] * 3]


def test_a_forgotten_blank_is_marked_under_vmap():
    paths, targets = wrong_paths()
    found = torch.vmap(token_indices)(paths[None], targets[None])
    assert found.tolist() == [[[-1] * 6, [-1] * 6, [0, 0, 0, 1, 1, 2]]]


# min_frames


@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
def test_min_frames(integer):
    targets = torch.tensor([[1, 2, 2, 2], [1, 1, 0, 0], [7, 7, 7, 7], [-1, -1, -1, -1]], dtype=integer)
    lengths = torch.tensor([4, 1, 3, 0], dtype=integer)
    assert min_frames(targets).tolist() == [6, 6, 7, 7]
    assert min_frames(targets, lengths).tolist() == [6, 1, 5, 0]
    assert min_frames(targets, lengths.tolist()).tolist() == [6, 1, 5, 0]
    assert min_frames(targets, lengths).dtype == torch.int64
    assert min_frames(targets).dtype == torch.int64


@pytest.mark.parametrize("B, L", [(0, 3), (2, 0), (0, 0), (2, 1)])
def test_min_frames_of_almost_nothing(B, L):
    targets = torch.ones(B, L, dtype=torch.int64)
    assert min_frames(targets).tolist() == [L] * B
    assert min_frames(targets, [0] * B).tolist() == [0] * B


def test_min_frames_are_what_it_takes(random_case, generator):
    """The operator finds a path in exactly these frames, and none in one less."""
    targets = torch.randint(1, 4, (200, 9), generator=generator)
    lengths = torch.randint(0, 10, (200,), generator=generator)
    needed = min_frames(targets, lengths)
    log_probs = torch.zeros(200, int(needed.max()) + 1, 4)
    by_trying = torch.full((200,), -1)
    for frames in reversed(range(log_probs.shape[1])):
        # The operator marks an item without a path; of 0 frames there is nothing to mark, and 0 labels fit alone.
        paths, _ = forced_align(log_probs, targets, torch.full((200,), frames), lengths)
        fits = paths[:, 0] >= 0
        by_trying[fits] = frames
    assert torch.equal(needed, by_trying)
    assert needed.unique().numel() > 8


def test_padding_does_not_count():
    targets = torch.tensor([[1, 1, 1], [2, 2, 2]])
    for padding in (1, -1, 0, 2**40):
        targets[:, 2] = padding
        assert min_frames(targets, [2, 2]).tolist() == [3, 3]


def test_min_frames_compile_into_one_graph_of_any_size(generator, compile_fully):  # noqa: F811
    compiled = compile_fully(min_frames)
    for i, (B, L) in enumerate([(3, 9), (2, 7), (5, 12)]):
        targets = torch.randint(1, 3, (B, L), generator=generator)
        lengths = torch.randint(0, L + 1, (B,), generator=generator)
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            found = compiled(targets, lengths)
        for row, length, needed in zip(targets.tolist(), lengths.tolist(), found.tolist(), strict=True):
            row = row[:length]
            assert needed == length + sum(a == b for a, b in itertools.pairwise(row))
    assert_compiled_once()


def test_vmap_of_min_frames(generator):
    targets = torch.randint(1, 3, (3, 4, 9), generator=generator)
    lengths = torch.randint(0, 10, (3, 4), generator=generator)
    found = torch.vmap(min_frames)(targets, lengths)
    assert torch.equal(found.flatten(), min_frames(targets.flatten(0, 1), lengths.flatten()))
    assert torch.vmap(min_frames, in_dims=(0, None))(targets, lengths[0]).shape == (3, 4)


def test_items_are_chosen_by_it(random_case):
    """What it is for: what fits is aligned, and strict finds nothing to refuse."""
    log_probs, targets = random_case(50, 12, 9, 3)
    fits = min_frames(targets) <= 12
    assert 0 < fits.sum() < 50
    torch_ctc_align.forced_align(log_probs[fits], targets[fits])
    paths, _ = reference.forced_align(log_probs, targets)
    assert torch.equal(fits, paths[:, 0] >= 0)
