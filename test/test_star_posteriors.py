"""Stars in the sums over all paths: every path of tiny lattices, the readable twin, what must not change the bits."""

import itertools
import math

import pytest
import torch
from test_posteriors import same

import torch_ctc_align
from torch_ctc_align import AlignmentError, class_posteriors, posteriors, span_posteriors
from torch_ctc_align import reference_posteriors as twin
from torch_ctc_align.config import _forced

INF = math.inf
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
operators = torch.ops.ctc_align
NAMES = ["posteriors", "class_posteriors", "occupancies"]


@pytest.fixture
def star_case(random_case, generator):
    """make(B, T, L, C, ...) -> the arguments of an operator: items of several lengths, star labels, wild gaps.

    The last item has no path (a frame of -inf, and a star of NaN).
    """

    def make(B=3, T=20, L=6, C=7, *, dtype=torch.float64, blank=0, marked=True, stars=0.3, wild=0.5):
        log_probs, targets = random_case(B, T, L, C, dtype=dtype, blank=blank)
        star_scores = (torch.randn(B, T, generator=generator, dtype=torch.float64) - 1).to(dtype)
        targets = torch.where(torch.rand(B, L, generator=generator) < stars, C, targets)
        wild_gaps = torch.rand(B, L + 1, generator=generator) < wild
        if marked:
            log_probs[B - 1, 1], star_scores[B - 1, 1] = -INF, math.nan
        lengths = torch.arange(T - B + 1, T + 1), torch.arange(L - B + 1, L + 1).clamp(min=0)
        return log_probs, targets, *lengths, blank, star_scores, wild_gaps

    return make


def by_all_paths(log_probs, target, star_scores, wild, blank=0):
    """The log-likelihood of one item, and by frame the posteriors of its tokens, of the blank, and of stars in gaps.

    A path is a gap, a run of the first label, a gap, a run of the second, ..., and a gap. A gap holds blanks, and stars
    too if it is wild; it must not be empty between equal labels.
    """
    frames, classes = log_probs.shape
    labels = len(target)
    entries = torch.cat((log_probs, star_scores[:, None]), 1).double()
    probs = entries.masked_fill(~(entries.abs() < 2.0**18), -INF).exp().tolist()
    columns = {**{k: k for k in range(labels)}, "blank": labels, "star": labels + 1}
    table = torch.zeros(frames, labels + 2, dtype=torch.float64)
    total = 0.0

    def pieces(k):
        """What may stand at place k, gap k / 2 or the run of a label: tuples of (column, class), one for each frame."""
        for length in range(frames + 1):
            if k % 2 == 1:
                if length > 0:
                    yield ((k // 2, target[k // 2]),) * length
            else:
                gap = k // 2
                repeats = 0 < gap < labels and target[gap - 1] == target[gap]
                kinds = [("blank", blank)] + [("star", classes)] * wild[gap]
                if length > 0 or not repeats:
                    yield from itertools.product(kinds, repeat=length)

    def walk(k, path):
        nonlocal total
        if len(path) > frames:
            return
        if k == 2 * labels + 1:
            if len(path) == frames:
                weight = math.prod(probs[t][c] for t, (_, c) in enumerate(path))
                total += weight
                for t, (column, _) in enumerate(path):
                    table[t, columns[column]] += weight
            return
        for piece in pieces(k):
            if len(path) + len(piece) <= frames:
                walk(k + 1, path + piece)

    walk(0, ())
    return torch.tensor(total, dtype=torch.float64).log(), table / total if total > 0 else table


def expected_of(name, table, target, classes, blank):
    """The first output of an operator for one item, from the table of :func:`by_all_paths`."""
    labels = len(target)
    if name == "posteriors":
        return torch.cat((table[:, :labels], table[:, labels:].sum(1, keepdim=True)), 1)
    by_class = torch.zeros(len(table), classes + 1, dtype=torch.float64)
    for column, label in enumerate([*target, blank, classes]):
        by_class[:, label] += table[:, column]
    return by_class if name == "occupancies" else by_class[:, :-1]


# ------------------------------------------------------------------------------------------------ the right values

TINY = [
    ([], [1]),
    ([1], [1, 1]),
    ([4], [0, 0]),
    ([1, 1], [0, 1, 0]),
    ([1, 3], [1, 0, 1]),
    ([4, 4], [1, 1, 1]),
    ([4, 1], [0, 1, 1]),
    ([3, 4, 3], [1, 1, 0, 0]),
]


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("target, wild", TINY, ids=str)
def test_against_all_paths(random_case, generator, target, wild, blank):
    """C is 4, so label 4 is the star."""
    for T in range(6):
        log_probs, _ = random_case(1, T, 0, 4, dtype=torch.float64)
        stars = torch.randn(1, T, generator=generator, dtype=torch.float64) - 1
        if T == 4:
            stars[0, 1], stars[0, 2] = math.nan, -INF
        log_likelihood, table = by_all_paths(log_probs[0], target, stars[0], wild, blank)
        targets = torch.tensor([target], dtype=torch.int64)
        arguments = log_probs, targets, None, None, blank, stars, torch.tensor([wild], dtype=torch.bool)
        for name in NAMES:
            expected = expected_of(name, table, target, 4, blank)
            found = [getattr(twin, name)(*arguments)]
            for cpu in torch_ctc_align.config().cpus:
                with _forced(cpu=cpu):
                    found.append(getattr(operators, name)(*arguments))
            for first, total in found:
                torch.testing.assert_close(first[0], expected)
                torch.testing.assert_close(total[0], log_likelihood)


def test_of_two_frames_by_hand():
    """Target 1, free ends: paths 11, 1-, 1*, -1, *1 with probabilities 1/2 for 1, 1/4 for -, 1/8 for *."""
    log_probs = torch.tensor([[[1 / 4, 1 / 2, 1 / 4]] * 2]).log()
    stars = torch.full((1, 2), 1 / 8).log()
    tokens, log_likelihoods = posteriors(
        log_probs, torch.tensor([[1]]), star_scores=stars, wild_gaps=torch.ones(1, 2, dtype=torch.bool)
    )
    total = 1 / 4 + 2 * (1 / 8 + 1 / 16)
    torch.testing.assert_close(log_likelihoods.exp(), torch.tensor([total]))
    token = (1 / 4 + 1 / 8 + 1 / 16) / total
    torch.testing.assert_close(tokens, torch.tensor([[[token, 1 - token]] * 2]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(3, 30, 5, 6), (3, 120, 40, 32), (3, 200, 60, 33), (3, 64, 9, 31)], ids=str)
def test_operators_answer_to_the_twin(star_case, dtype, sizes):
    """32 classes are looked up in registers on some processors, 33 are not."""
    arguments = star_case(*sizes, dtype=dtype, blank=2)
    log_probs, targets = arguments[:2]
    starts = torch.arange(sizes[2]).expand_as(targets) * 2
    # As in test_reference_posteriors.py, but a frame of a wild gap costs four roundings more: the sum of its emission,
    # which takes the star's exponential, and the two of a share.
    T, epsilon = sizes[1], torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    entries = torch.cat((log_probs.double().flatten(), arguments[5].double().flatten()))
    greatest = float(entries[entries.abs() < 2.0**18].abs().max())
    error = 11 * T * epsilon + (2 * T + 3) * 2.0**-52 * T * greatest
    for name in [*NAMES, "span_posteriors"]:
        spans = (starts, starts + 3) if name == "span_posteriors" else ()
        call = log_probs, targets, *spans, *arguments[2:]
        expected = getattr(twin, name)(*call)
        assert expected[1].isfinite().tolist() == [True, True, False]
        for cpu in torch_ctc_align.config().cpus:
            with _forced(cpu=cpu):
                found = getattr(operators, name)(*call)
            least = torch.finfo(found[0].dtype).tiny * 2.0**70
            torch.testing.assert_close(found[0].double(), expected[0], rtol=error, atol=least)
            torch.testing.assert_close(found[1].double(), expected[1], rtol=epsilon, atol=error)
            assert not found[0][2].any()


def test_shares_sum_to_one_within_the_lengths(star_case):
    arguments = star_case(3, 300, 60, 30, dtype=torch.float32)
    for name in ("posteriors", "occupancies"):
        table, log_likelihoods = getattr(operators, name)(*arguments)
        used = (torch.arange(300) < arguments[2][:, None]) & log_likelihoods.isfinite()[:, None]
        assert used.sum() == 298 + 299
        torch.testing.assert_close(table.sum(2), used.float(), atol=2e-6, rtol=0)
        assert (table >= 0).all()
        assert not table[~used].any()


def test_the_outputs_agree(star_case):
    """Bit for bit where they are the same number. The star's share is what class_posteriors lack, and a gradient."""
    arguments = star_case(4, 60, 12, 9)
    tokens, totals = operators.posteriors(*arguments)
    classes, of_classes = operators.class_posteriors(*arguments)
    everything, of_everything = operators.occupancies(*arguments)
    assert torch.equal(totals, of_classes)
    assert torch.equal(totals, of_everything)
    assert torch.equal(classes, everything[:, :, :-1])
    torch.testing.assert_close(everything.sum(2) - classes.sum(2), everything[:, :, 9], atol=1e-14, rtol=0)
    labels = torch.arange(12) < arguments[3][:, None]
    of_stars = torch.where(labels[:, None] & (arguments[1] == 9)[:, None], tokens[:, :, :-1], 0).sum(2)
    in_gaps = tokens[:, :, -1] - classes[:, :, 0]
    torch.testing.assert_close(everything[:, :, 9], of_stars + in_gaps, atol=1e-14, rtol=0)
    assert of_stars.max() > 0.1
    assert in_gaps.max() > 0.1

    log_probs, star_scores = arguments[0].clone().requires_grad_(), arguments[5].clone().requires_grad_()
    found, totals = operators.class_posteriors(log_probs, *arguments[1:5], star_scores, arguments[6])
    assert torch.equal(found, classes)
    assert found.is_contiguous()
    assert found.untyped_storage().nbytes() == classes.untyped_storage().nbytes()
    gradients = torch.autograd.grad(totals.sum(), (log_probs, star_scores))
    assert torch.equal(gradients[0], classes)
    assert torch.equal(gradients[1], everything[:, :, 9])


def test_a_target_of_masked_classes(star_case):
    """States lie tens of millions of nats apart, with stars among them, and float32 says what float64 says."""
    log_probs, targets, *_, star_scores, wild_gaps = star_case(2, 1100, 900, 6, dtype=torch.float32, marked=False)
    targets = targets.clamp(max=5)
    targets[:, ::300] = 6
    log_probs[..., 1:] -= 60_000
    wild_gaps[:] = torch.arange(901) % 300 < 2
    arguments = targets, torch.tensor([1100, 1000]), torch.tensor([400, 500]), 0, star_scores, wild_gaps
    exact = log_probs.double(), *arguments[:4], star_scores.double(), wild_gaps
    for name in NAMES:
        found, expected = getattr(operators, name)(log_probs, *arguments), getattr(operators, name)(*exact)
        assert expected[1].max() < -20e6
        torch.testing.assert_close(found[0].double(), expected[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-7, atol=0)
    narrow = [log_probs.clone().requires_grad_(), star_scores.clone().requires_grad_()]
    wide = [x.detach().double().requires_grad_() for x in narrow]
    weights = torch.rand(2, 1100, 6)
    gradients = []
    for log_probs, star_scores in (narrow, wide):
        table, _ = operators.class_posteriors(log_probs, *arguments[:4], star_scores, wild_gaps)
        gradients.append(torch.autograd.grad((table * weights).sum(), (log_probs, star_scores)))
    # A path's values add up to some 30 more or less than the mean, rounded by 1e-6 at each of 1100 frames: together by
    # 3e-5 if these were drawn at random, and the gradient has the posterior, at most 1, as a factor.
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found.double(), expected, atol=3e-5, rtol=1e-6)
        assert expected.abs().max() > 1e-3


# ---------------------------------------------------------------------------------------------- what changes nothing


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [7, 31, 32, 40])
def test_stars_that_nothing_takes_change_no_bit(star_case, dtype, classes):
    """No gap is wild; or the star is impossible in all gaps."""
    log_probs, targets, *rest, star_scores, wild_gaps = star_case(3, 80, 20, classes, dtype=dtype, stars=0)
    impossible = torch.full_like(star_scores, -INF)
    for name in NAMES[:2]:
        operator = getattr(operators, name)
        expected = operator(log_probs, targets, *rest)
        assert same(operator(log_probs, targets, *rest, star_scores), expected)
        assert same(operator(log_probs, targets, *rest, star_scores, torch.zeros_like(wild_gaps)), expected)
        for value in (-INF, INF, math.nan, 2.0**18 if dtype != torch.float16 else -INF):
            found = operator(log_probs, targets, *rest, torch.full_like(impossible, value), wild_gaps)
            assert same(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_star_labels_are_a_column_of_log_probs(star_case, dtype):
    """Bit for bit what one gets by concatenating the scores as class C, to the derivatives."""
    log_probs, targets, *rest, star_scores, _ = star_case(3, 80, 20, 7, dtype=dtype)
    column = torch.cat((log_probs, star_scores[:, :, None]), 2).requires_grad_()
    log_probs, star_scores = log_probs.requires_grad_(), star_scores.requires_grad_()
    for name in NAMES[:2]:
        expected = getattr(operators, name)(column, targets, *rest)
        found = getattr(operators, name)(log_probs, targets, *rest, star_scores)
        size = found[0].shape[2]
        assert same(found, (expected[0][:, :, :size], expected[1]))
        weights = torch.rand(found[0].shape, dtype=found[0].dtype)
        inner = torch.where(found[1].isfinite(), found[1], 0).sum()
        outer = torch.where(expected[1].isfinite(), expected[1], 0).sum()
        ours = torch.autograd.grad((found[0] * weights).sum() + inner, (log_probs, star_scores))
        theirs = torch.autograd.grad((expected[0][:, :, :size] * weights).sum() + outer, column)[0]
        assert same(ours, (theirs[:, :, :7], theirs[:, :, 7]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", [(2, 60, 15, 5), (2, 90, 17, 40), (1, 300, 128, 33)], ids=str)
def test_bits_do_not_depend_on_the_way_of_computing(star_case, threads, dtype, sizes):
    """Instruction set, memory budget, number of threads, strides, neighbours in the batch; with path values too."""
    log_probs, targets, *lengths, blank, star_scores, wild_gaps = star_case(*sizes, dtype=dtype, marked=False)
    grad = torch.randn(sizes[0], sizes[1], sizes[2] + 2).to(torch.promote_types(dtype, torch.float32))

    def results(log_probs, targets, star_scores, wild_gaps, grad, lengths=lengths):
        rest = log_probs, targets, *lengths, blank, star_scores, wild_gaps
        found = [x for name in NAMES for x in getattr(operators, name)(*rest)]
        return [*found, operators.posteriors_backward(grad, *rest)]

    arguments = log_probs, targets, star_scores, wild_gaps, grad
    with _forced(cpu="portable"):
        expected = results(*arguments)
    for name in torch_ctc_align.config().cpus:
        with _forced(cpu=name):
            assert same(results(*arguments), expected)
    try:
        for budget in (1, 20_000, 100_000):
            torch_ctc_align.set_memory_budget(budget)
            assert same(results(*arguments), expected)
    finally:
        torch_ctc_align.set_memory_budget(None)
    threads(3)
    many = results(*(x.repeat(9, *[1] * (x.dim() - 1)) for x in arguments), [x.repeat(9) for x in lengths])
    assert same([x[: sizes[0]] for x in many], expected)
    assert same([x[-sizes[0] :] for x in many], expected)
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in arguments]
    assert same(results(*turned), expected)


def test_a_number_is_as_good_as_a_tensor_of_it(star_case):
    """Strides of 0, and half types."""
    for dtype in DTYPES:
        log_probs, targets, *rest, _, wild_gaps = star_case(dtype=dtype)
        number = torch.tensor(-1.5, dtype=dtype, requires_grad=True)
        for name in NAMES:
            operator = getattr(operators, name)
            found = operator(log_probs, targets, *rest, number.expand(3, 20), wild_gaps[:1].expand(3, -1))
            full = torch.full((3, 20), -1.5, dtype=dtype, requires_grad=True)
            expected = operator(log_probs, targets, *rest, full, wild_gaps[:1].repeat(3, 1))
            assert same(found, expected)
            shares = torch.autograd.grad(expected[1][:2].sum(), full)[0]
            torch.testing.assert_close(torch.autograd.grad(found[1][:2].sum(), number)[0], shares.sum())
            assert shares[:2].any()


def test_padding_is_never_read(star_case):
    log_probs, targets, *_, star_scores, wild_gaps = star_case(2, 30, 6, 8, marked=False)
    lengths = torch.full((2,), 25), torch.full((2,), 4)
    expected = operators.posteriors(
        log_probs[:, :25], targets[:, :4], None, None, 0, star_scores[:, :25], wild_gaps[:, :5]
    )
    star_scores[:, 25:] = 50
    log_probs[:, 25:] = math.nan
    for other in (True, False):
        wild_gaps[:, 5:] = other
        found = operators.posteriors(log_probs, targets, *lengths, 0, star_scores, wild_gaps)
        assert torch.equal(found[1], expected[1])
        assert torch.equal(found[0][:, :25, [0, 1, 2, 3, 6]], expected[0])
        assert not found[0][:, 25:].any()


# ------------------------------------------------------------------------------------------------------------- W-CTC


def w_ctc(log_probs, target, outside, blanks_at_ends, blank=0):
    """The total of W-CTC (Cai et al., ICLR 2022; the sum over all ends) of one item, from every path.

    A path is some frames outside, a window that spells the target, and some frames outside: alpha may start at any
    frame, and the end is at any frame. Frame t outside costs outside[t]; W-CTC itself has 1.
    """
    frames, classes = log_probs.shape
    probs = log_probs.exp().tolist()
    total = 0.0
    for start, end in itertools.combinations(range(frames + 1), 2):
        rest = math.prod(outside[:start]) * math.prod(outside[end:])
        for path in itertools.product(range(classes), repeat=end - start):
            spells = [c for c, _ in itertools.groupby(path) if c != blank] == target
            if spells and (blanks_at_ends or (path[0] != blank and path[-1] != blank)):
                total += rest * math.prod(probs[start + t][c] for t, c in enumerate(path))
    return total


def w_ctc_by_alphas(log_probs, target, blank=0):
    """The same as recurrence: the paper's alphas, with a wildcard of probability 1 before the first blank."""
    probs = log_probs.exp()
    classes = [blank, *itertools.chain.from_iterable((label, blank) for label in target)]
    alpha, total = [0.0] * len(classes), 0.0
    for t in range(len(probs)):
        before, alpha = [0.0, 1.0, *alpha], []  # 1.0: the wildcard, from which blank 0 and label 0 can be reached
        for s, c in enumerate(classes):
            skips = s == 1 or (s % 2 == 1 and c != classes[s - 2])
            alpha.append((before[s + 2] + before[s + 1] + skips * before[s]) * float(probs[t, c]))
        total += alpha[-1] + alpha[-2]
    return total


def free_ends(log_probs, target, star_scores):
    wild = torch.zeros(1, len(target) + 1, dtype=torch.bool)
    wild[0, 0] = wild[0, -1] = True
    stars = {"star_scores": star_scores[None], "wild_gaps": wild}
    return float(posteriors(log_probs[None], torch.tensor([target]), **stars)[1].exp())


@pytest.mark.parametrize("target", [[1], [1, 2], [1, 1], [2, 1, 2]], ids=str)
def test_free_ends_and_w_ctc(random_case, target):
    """A frame outside costs p(blank) + p(star), and W-CTC lets blanks of their own stand at the ends.

    So the totals are equal where the two add up to 1, for W-CTC without blanks at its ends; and with a star of
    probability 1 only where there are no such blanks. Elsewhere that star counts more paths than W-CTC.
    """
    for T in range(1, 6):
        log_probs = random_case(1, T, 0, 3, dtype=torch.float64)[0][0]
        certain = torch.zeros(T, dtype=torch.float64)
        anything_else = log_probs[:, 1:].logsumexp(1)
        assert w_ctc(log_probs, target, [1] * T, True) == pytest.approx(w_ctc_by_alphas(log_probs, target), rel=1e-12)
        one = w_ctc(log_probs, target, [1] * T, False)
        assert free_ends(log_probs, target, anything_else) == pytest.approx(one, rel=1e-12)
        outside = (1 + log_probs[:, 0].exp()).tolist()
        with_certain = free_ends(log_probs, target, certain)
        assert with_certain == pytest.approx(w_ctc(log_probs, target, outside, False), rel=1e-12)
        with_blanks = w_ctc(log_probs, target, [1] * T, True)
        assert with_certain >= with_blanks * (1 - 1e-12)
        assert with_blanks >= one
        if one > 0 and len(target) + 3 <= T:  # two frames at an end: a star after a blank
            assert with_certain > 1.01 * with_blanks > 1.02 * one
        if target == [2, 1, 2]:  # without blanks all are the same
            log_probs[:, 0] = -INF
            expected = w_ctc(log_probs, target, [1] * T, True)
            assert free_ends(log_probs, target, certain) == pytest.approx(expected, rel=1e-12)
            assert (expected > 0) == (T >= 3)


# ------------------------------------------------------------------------------------------------------------ errors


def test_errors_are_those_of_forced_align():
    """Of every operator, also with meta tensors; checks of values need values."""
    zero, one = torch.zeros(2, 5, 4), torch.ones(2, 3, dtype=torch.int64)
    stars, wild = torch.zeros(2, 5), torch.zeros(2, 4, dtype=torch.bool)
    cases = [
        ((zero, one), (None, wild)),
        ((zero, one), (stars[:, :4], wild)),
        ((zero, one), (stars[0], None)),
        ((zero, one), (stars.double(), None)),
        ((zero, one), (stars, wild[:, :3])),
        ((zero, one), (stars, wild.int())),
        ((zero, one * 5), (stars, wild)),
        ((zero, one * 0), (stars, wild)),
        ((zero, -one), (stars, None)),
    ]
    for (log_probs, targets), (star_scores, wild_gaps) in cases:
        rest = None, None, 0, star_scores, wild_gaps
        with pytest.raises(ValueError) as error:
            operators.forced_align(log_probs, targets, *rest)
        text = str(error.value).removeprefix("forced_align: ")
        borders = torch.zeros_like(targets)
        grad = torch.zeros(2, 5, 5)
        calls = [
            ("posteriors", (log_probs, targets, *rest)),
            ("class_posteriors", (log_probs, targets, *rest)),
            ("class_posteriors", (log_probs.clone().requires_grad_(), targets, *rest)),
            ("span_posteriors", (log_probs, targets, borders, borders, *rest)),
            ("posteriors_backward", (grad, log_probs, targets, *rest)),
        ]
        for name, arguments in calls:
            meta = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in arguments]
            for call in (arguments, meta) if "[" not in text else (arguments,):
                with pytest.raises(ValueError) as error:
                    getattr(operators, name)(*call)
                assert str(error.value) == f"{name}: {text}"
        for function in (posteriors, class_posteriors):
            with pytest.raises(AlignmentError) as error:
                function(log_probs, targets, star_scores=star_scores, wild_gaps=wild_gaps)
            assert str(error.value) == f"{function.__name__}: {text}"


def test_a_gradient_of_posteriors_has_a_column_for_the_star():
    zero, one = torch.zeros(2, 5, 4), torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError) as error:
        operators.posteriors_backward(torch.zeros(2, 5, 4), zero, one, None, None, 0, torch.zeros(2, 5))
    text = "posteriors_backward: grad_posteriors must have shape (B, T, L + 2) = (2, 5, 5), found (2, 5, 4)"
    assert str(error.value) == text
    with pytest.raises(ValueError) as error:
        operators.posteriors_backward(
            *(x.to("meta") for x in (zero, zero, one)), None, None, 0, zero[:, :, 0].to("meta")
        )
    assert str(error.value) == text


def test_lists_are_no_tensors():
    zero, one = torch.zeros(1, 2, 3), torch.ones(1, 1, dtype=torch.int64)
    for function in (posteriors, class_posteriors, lambda *x, **y: span_posteriors(*x, one, one, **y)):
        with pytest.raises(TypeError, match=r"star_scores must be a tensor of shape \(B, T\), found a list"):
            function(zero, one, star_scores=[[0, 0]])
        with pytest.raises(TypeError, match=r"wild_gaps must be a tensor of shape \(B, L \+ 1\), found a tuple"):
            function(zero, one, star_scores=zero[:, :, 0], wild_gaps=(True, True))
