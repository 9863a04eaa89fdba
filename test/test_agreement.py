"""Equal bits: however the same numbers are stored, batched, threaded or summed, the operator returns the same path.

The float32 twin in ``reference.py`` makes the additions of the contract one by one. Cases whose ties only rounding
breaks (``steps=3``: thirds) agree with it only if every addition of the operator is the same: frame order, one rounding
each, and the rebase by 256 pairs and 512 frames.
"""

import pytest
import torch

import torch_ctc_align
from torch_ctc_align import reference
from torch_ctc_align.config import _forced

forced_align = torch.ops.ctc_align.forced_align


def assert_same(found, expected):
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert found[0].dtype == expected[0].dtype
    assert found[1].dtype == expected[1].dtype


def assert_agrees(case, blank=0, feasible=True):
    """On any instruction set the operator has the bits of the reference, and a path where the test means one to be."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the reference makes many small steps, and waking threads for each takes longer
    expected = reference.forced_align(*case, blank=blank)
    torch.set_num_threads(threads)
    assert not feasible or (expected[0] >= 0).all()
    for cpu in torch_ctc_align.config().cpus:
        with _forced(cpu=cpu):
            assert_same(forced_align(*case, blank=blank), expected)


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("steps", [None, 1, 3])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_small_batches(random_case, generator, dtype, steps):
    """Random shapes and lengths, feasible or not, random class as blank."""
    for _ in range(60):
        B, T, L, C = (
            int(torch.randint(low, high, (), generator=generator)) for low, high in [(1, 5), (1, 90), (0, 45), (2, 40)]
        )
        blank = int(torch.randint(0, C, (), generator=generator))
        case = random_case(B, T, L, C, blank=blank, dtype=dtype, steps=steps)
        input_lengths = torch.randint(0, T + 1, (B,), generator=generator)
        target_lengths = torch.randint(0, L + 1, (B,), generator=generator)
        assert_agrees((*case, input_lengths, target_lengths), blank, feasible=False)


@pytest.mark.parametrize("C", [2, 3, 31, 32, 33, 127, 128, 129, 1000])
def test_any_number_of_classes(random_case, C):
    assert_agrees(random_case(2, 120, 30, C, blank=C - 1), blank=C - 1)


# One label fewer and more than whole columns of 256 pairs; the last pair is a blank alone, so 255 labels fill a column.
LABELS_AROUND_COLUMNS = [1, 254, 255, 256, 257, 510, 511, 512, 513, 767, 768]


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("L", LABELS_AROUND_COLUMNS)
def test_around_columns(random_case, L, steps):
    """Long enough for two rebases, and in the longer ones short enough for a tight band."""
    assert_agrees(random_case(2, 1100, L, 32, steps=steps))


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("T", [511, 512, 513, 514, 515, 1024, 1025, 1026, 1536, 1537, 1538])
def test_around_frame_blocks(random_case, T, steps):
    assert_agrees(random_case(3, T, 300, 32, steps=steps))


@pytest.mark.parametrize("spare", [0, 1, 2, 7, 255, 256, 257])
def test_dense_speech(random_case, spare):
    """T = L + R + spare: the band is narrow, and T < 2L - 2."""
    log_probs, targets = random_case(1, 1300, 1000, 40, steps=3)
    repeats = int((targets[0, 1:] == targets[0, :-1]).sum())
    assert_agrees((log_probs[:, : 1000 + repeats + spare], targets))


@pytest.mark.parametrize("L", [300, 513, 700])
def test_nothing_but_repeats(random_case, L):
    """R = L - 1: every label needs a blank of its own before the next one."""
    log_probs, _ = random_case(1, 2 * L + 40, L, 5, steps=3)
    targets = torch.full((1, L), 3)
    assert_agrees((log_probs, targets))
    assert_agrees((log_probs[:, : 2 * L - 1], targets))
    assert (forced_align(log_probs[:, : 2 * L - 2], targets)[0] == -1).all()


# The next tests are aimed at one clause of the rebase each. With the clause changed in the reference they fail.


def without_repeats(targets, C):
    """The targets with every other label drawn from another half of the classes: R = 0."""
    half = (C - 1) // 2
    return 1 + (targets - 1) % half + half * (torch.arange(targets.shape[1]) % 2)


@pytest.mark.parametrize("T, L", [(1100, 1000), (1600, 1200)])
def test_pairs_that_are_too_late_have_no_say_in_a_rebase(random_case, T, L):
    """Blanks are so cheap that the best alphas belong to pairs that cannot reach the end, down to the very last one."""
    log_probs, targets = random_case(12, T, L, 33, steps=3)
    log_probs[..., 1:] -= 10 / 3
    assert_agrees((log_probs, without_repeats(targets, 33)))


@pytest.mark.parametrize("dear", ["blank", "labels"])
def test_blanks_and_labels_have_a_say_in_a_rebase(random_case, dear):
    log_probs, targets = random_case(8, 1600, 700, 32, steps=3)
    log_probs[..., slice(1) if dear == "blank" else slice(1, None)] -= 10 / 3
    assert_agrees((log_probs, targets))


def test_one_rounding_where_columns_meet(random_case):
    """Many rebases and many columns: the difference of two float64 bases is rounded, then added."""
    log_probs, targets = random_case(6, 3000, 2600, 7, steps=3)
    assert_agrees((log_probs, without_repeats(targets, 7)))


def test_columns_that_speech_reaches_late(random_case):
    """Silence in the first half: most columns are reached long after the first rebase."""
    log_probs, targets = random_case(3, 3000, 900, 20, steps=3)
    log_probs[:, :1500, 1:] -= 20
    assert_agrees((log_probs, targets))


@pytest.mark.parametrize("level", [-2000.0, 50.0])
def test_far_from_zero(random_case, level):
    """Sums of a large magnitude of either sign."""
    log_probs, targets = random_case(4, 3000, 900, 20, steps=3)
    assert_agrees((log_probs + level, targets))


@pytest.mark.parametrize("steady", [0.0, -4e35])
def test_bases_below_the_range_of_float32(steady):
    """Totals of -4e38 and more: columns that speech reaches only then begin with a base that no float32 holds."""
    log_probs = torch.full((1, 1341, 3), steady)
    if steady == 0:
        log_probs[:, 100] = log_probs[:, 700] = -2e38
    assert_agrees((log_probs, torch.arange(1281)[None] % 2 + 1))


def test_a_column_that_dies_far_above_its_neighbour():
    """Its base falls by more than float32 holds; what crosses into it later is a path all the same."""
    log_probs = torch.zeros(1, 1600, 5)
    targets = torch.tensor([[1, 3] * 128 + [2, 4] * 22])
    log_probs[:, 300, [0, 1, 3]] = log_probs[:, 800, [1, 3]] = -1.8e38  # a toll that only the second column escapes
    log_probs[:, 800, [0, 2, 4]] = -torch.inf  # and there it ends
    assert_agrees((log_probs, targets))
    assert (forced_align(log_probs, targets)[0] != -1).all()


def test_holes_in_a_long_emission(random_case, generator):
    """NaN and infinities beside one path that is certainly finite."""
    T, L, C = 1800, 600, 12
    log_probs, targets = random_case(1, T, L, C, steps=3)
    finite, _ = forced_align(*random_case(1, T, L, C)[:1], targets)
    holes = torch.rand(log_probs.shape, generator=generator) < 0.4
    holes.scatter_(2, finite[..., None], False)
    kinds = torch.tensor([-torch.inf, torch.inf, torch.nan])
    log_probs[holes] = kinds[torch.randint(0, 3, (int(holes.sum()),), generator=generator)]
    assert_agrees((log_probs, targets))


def test_float64_is_summed_plainly(random_case):
    """No rebase: a tie of thirds falls as the plain float64 sums do."""
    assert_agrees(random_case(1, 1800, 600, 20, steps=3, dtype=torch.float64))


@pytest.mark.parametrize(
    "T, L, C", [(1500, 200, 32), (1500, 600, 5), (3000, 1000, 32), (4000, 3000, 64), (9000, 100, 32), (9000, 3000, 300)]
)
def test_float32_finds_the_path_of_float64(random_case, T, L, C):
    """At any length, for entries that are multiples of 2^-11.

    float32 holds such a sum exactly up to 2^13. What a block of 512 frames and a column of 256 pairs add to a base is
    less, so no sum of a good path is rounded, and the paths are equal, ties included. The total of the last case is
    several times more: without a rebase its path is lost.
    """
    log_probs, targets = random_case(1, T, L, C)
    log_probs = (log_probs * 2**11).round() / 2**11
    paths, _ = forced_align(log_probs, targets)
    truth, _ = forced_align(log_probs.double(), targets)
    assert torch.equal(paths, truth)
    truth, _ = reference.forced_align(log_probs, targets, accumulate=torch.float64)
    assert torch.equal(paths, truth)


@pytest.mark.parametrize("mask", [-65504.0, -1e6, -1e9])
def test_large_finite_penalties_cost_no_precision(random_case, generator, mask):
    """Masks that some paths pay for, as -65504, the lowest float16: the best path pays for none and stays exact.

    Near ties may fall otherwise than in float64, by less than the rounding of sums over one block: 1e-3 nats.
    """
    T, L = 3000, 1400
    log_probs, targets = random_case(1, T, L, 40)
    path = reference.forced_align(log_probs, targets)[0]
    masked = torch.rand(log_probs.shape, generator=generator) < 0.6
    masked.scatter_(2, path[..., None], False)  # one path is left free
    log_probs = log_probs.masked_fill(masked, mask)
    assert_agrees((log_probs, targets))
    truth = reference.forced_align(log_probs, targets, accumulate=torch.float64)[1].double().sum()
    assert forced_align(log_probs, targets)[1].double().sum() > truth - 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_summed_in_float32(random_case, dtype):
    log_probs, targets = random_case(2, 1300, 300, 24, dtype=dtype)
    paths, scores = forced_align(log_probs, targets)
    wide_paths, wide_scores = forced_align(log_probs.float(), targets)
    assert torch.equal(paths, wide_paths)
    assert scores.dtype == dtype
    assert torch.equal(scores.float(), wide_scores)


def test_scores_are_the_entries_along_the_path(random_case):
    for dtype in FLOATS:
        log_probs, targets = random_case(3, 200, 40, 24, dtype=dtype)
        paths, scores = forced_align(log_probs, targets)
        assert torch.equal(scores, log_probs.gather(2, paths[..., None])[..., 0])


def test_either_integer_type(random_case):
    log_probs, targets = random_case(3, 60, 20, 9)
    lengths = torch.tensor([60, 50, 55]), torch.tensor([20, 7, 0])
    paths, scores = forced_align(log_probs, targets, *lengths)
    assert paths.dtype == torch.int64
    for target_type in (torch.int32, torch.int64):
        for length_type in (torch.int32, torch.int64):
            found = forced_align(log_probs, targets.to(target_type), *(n.to(length_type) for n in lengths))
            assert found[0].dtype == target_type
            assert torch.equal(found[0], paths)
            assert torch.equal(found[1], scores)


# Views of one emission (B, T, C): how it may lie in memory.
LAYOUTS = {
    "time first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "classes first": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "frames innermost": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "batch innermost": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "every other class": lambda x: torch.stack([x, x + 1], -1).flatten(2)[..., ::2],
    "every third frame": lambda x: x.repeat_interleave(3, 1)[:, 1::3],
    "part of a larger batch": lambda x: torch.nn.functional.pad(x, (3, 5, 7, 2, 1, 1), value=9.0)[1:-1, 7:-2, 3:-5],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_any_layout_of_log_probs(random_case, layout):
    for dtype in FLOATS:
        log_probs, targets = random_case(3, 70, 20, 9, dtype=dtype)
        view = layout(log_probs)
        assert torch.equal(view, log_probs)
        assert view.stride() != log_probs.stride()
        assert_same(forced_align(view, targets), forced_align(log_probs, targets))


def test_expanded_log_probs(random_case):
    """Stride 0: one emission for several transcripts, one frame for all frames, one value for all classes."""
    log_probs, targets = random_case(1, 40, 10, 9)
    targets = targets[:, torch.randperm(10)].repeat(4, 1)
    views = log_probs.expand(4, -1, -1), log_probs[:, :1].expand(4, 40, 9), log_probs[..., :1].expand(4, 40, 9)
    for view in views:
        assert_same(forced_align(view, targets), forced_align(view.contiguous(), targets))


def test_any_layout_of_targets_and_lengths(random_case):
    log_probs, targets = random_case(3, 70, 20, 9)
    input_lengths, target_lengths = torch.tensor([70, 60, 65]), torch.tensor([20, 8, 15])
    expected = forced_align(log_probs, targets, input_lengths, target_lengths)
    interleaved = torch.stack([input_lengths, target_lengths], 1)  # lengths with stride 2
    for view in (targets.t().contiguous().t(), torch.stack([targets, -targets], -1)[..., 0]):
        assert not view.is_contiguous()
        assert_same(forced_align(log_probs, view, interleaved[:, 0], interleaved[:, 1]), expected)
    one_target = targets[:1].expand(3, -1)
    one_length = torch.tensor([60]).expand(3)
    assert_same(
        forced_align(log_probs, one_target, one_length, None),
        forced_align(log_probs, one_target.contiguous(), one_length.contiguous(), None),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_item_in_a_batch_is_the_item_alone(random_case, generator, dtype):
    B, T, L, C = 12, 700, 300, 16
    log_probs, targets = random_case(B, T, L, C, steps=3, dtype=dtype)
    input_lengths = torch.randint(T // 2, T + 1, (B,), generator=generator)
    target_lengths = torch.randint(0, L + 1, (B,), generator=generator)
    paths, scores = forced_align(log_probs, targets, input_lengths, target_lengths)
    for b, (t, n) in enumerate(zip(input_lengths.tolist(), target_lengths.tolist(), strict=True)):
        alone = forced_align(log_probs[b : b + 1, :t], targets[b : b + 1, :n])
        assert torch.equal(paths[b, :t], alone[0][0])
        assert torch.equal(scores[b, :t], alone[1][0])
        assert (paths[b, t:] == 0).all() or (paths[b] == -1).all()


def test_any_number_of_threads(random_case, generator, threads):
    """Also when called a second time: nothing is kept from the call before."""
    case = random_case(9, 600, 280, 32, steps=3)
    lengths = torch.randint(300, 601, (9,), generator=generator), torch.randint(0, 281, (9,), generator=generator)
    threads(1)
    expected = forced_align(*case, *lengths)
    for n in (1, 2, 3, 8, 1):
        threads(n)
        assert_same(forced_align(*case, *lengths), expected)
    assert torch.get_num_threads() == 1


def test_nothing_is_mutated_or_aliased(random_case):
    log_probs, targets = random_case(2, 30, 8, 5)
    arguments = [log_probs, targets, torch.tensor([30, 20]), torch.tensor([8, 3])]
    before = [x.clone() for x in arguments]
    outputs = forced_align(*arguments)
    assert all(torch.equal(x, y) for x, y in zip(arguments, before, strict=True))
    storages = {x.untyped_storage().data_ptr() for x in [*arguments, *outputs]}
    assert len(storages) == len(arguments) + len(outputs)
    assert all(x.is_contiguous() and x.storage_offset() == 0 for x in outputs)
