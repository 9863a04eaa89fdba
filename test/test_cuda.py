"""The CUDA kernel against the CPU kernel, on a GPU: equal bits, no synchronisation, graphs, streams, bad values.

Skips where there is no GPU or the CUDA library is not built. CTC_ALIGN_REQUIRE=cuda makes that a failure.
"""

import pytest
import torch

import torch_ctc_align

forced_align = torch.ops.ctc_align.forced_align

INF = float("inf")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SIZES = [  # B, T, L, C: the classes fit a warp's row or do not; several columns, frame blocks, segments
    (3, 1, 1, 3),
    (4, 2, 2, 3),
    (3, 127, 20, 5),
    (3, 129, 40, 33),
    (5, 60, 20, 6),
    (3, 513, 256, 40),
    (3, 530, 200, 32),  # the last stage of frames is whole, or holds one
    (3, 529, 200, 32),
    (3, 514, 255, 32),
    (2, 1025, 511, 33),
    (3, 700, 300, 6),
    (2, 2049, 2049, 200),
    (2, 3000, 1500, 30),
    (20, 2100, 2049, 33),  # 180 columns: a few more than multiprocessors on some GPUs
    (8, 5000, 700, 32),
    (3, 4097, 100, 6),  # one column: as many rows as the trace hops over, and more
    (3, 4098, 100, 40),
    (300, 200, 30, 20),
]


@pytest.fixture(scope="module", autouse=True)
def gpu():
    import os

    reason = None
    if not torch.cuda.is_available():
        reason = "no CUDA device"
    elif not torch._C._dispatch_has_kernel_for_dispatch_key("ctc_align::forced_align", "CUDA"):
        reason = "the CUDA library is not built"
    if reason is not None:
        (pytest.fail if "cuda" in os.environ.get("CTC_ALIGN_REQUIRE", "").split(",") else pytest.skip)(reason)


def to_cuda(*arguments):
    return [x.cuda() if isinstance(x, torch.Tensor) else x for x in arguments]


def assert_equal_on_both(*arguments):
    paths, scores = forced_align(*arguments)
    cuda_paths, cuda_scores = forced_align(*to_cuda(*arguments))
    assert torch.equal(cuda_paths.cpu(), paths)
    assert torch.equal(cuda_scores.cpu(), scores)


def make_ragged(random_case, generator, B, T, L, C, **options):
    case = random_case(B, T, L, C, **options)
    input_lengths = torch.randint(T - T // 3, T + 1, (B,), generator=generator)
    target_lengths = torch.randint(0, L + 1, (B,), generator=generator)
    input_lengths[0], target_lengths[0] = T, L
    return *case, input_lengths, target_lengths


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["random", "ties", "holes"])
def test_equal_bits(random_case, generator, size, dtype, kind):
    C = size[-1]
    for blank in (0, C // 2, C - 1):
        log_probs, *rest = make_ragged(
            random_case, generator, *size, blank=blank, dtype=dtype, steps=3 if kind == "ties" else None
        )
        if kind == "holes":
            holes = torch.rand(log_probs.shape, generator=generator)
            for i, none in enumerate((-INF, INF, torch.nan)):
                log_probs[(holes * 100).int() == i] = none
        assert_equal_on_both(log_probs, *rest, blank)


def add_stars(case, generator):
    """To log_probs, targets and lengths: star labels, stars that tie with a class of their frame, and wild gaps."""
    log_probs, targets, *lengths = case
    (B, T, C), L = log_probs.shape, targets.shape[1]
    chosen = torch.randint(0, C, (B, T, 1), generator=generator)
    targets[torch.rand(B, L, generator=generator) < 0.1] = C
    wild_gaps = torch.rand(B, L + 1, generator=generator) < 0.5
    return log_probs, targets, *lengths, 0, log_probs.gather(2, chosen)[..., 0], wild_gaps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_stars(random_case, generator, size, dtype):
    for steps in (3, None):
        case = add_stars(make_ragged(random_case, generator, *size, dtype=dtype, steps=steps), generator)
        assert_equal_on_both(*case)
        *case, star_scores, wild_gaps = case
        assert_equal_on_both(*case, star_scores, None)
        every_other = torch.stack([star_scores, -star_scores], -1)[..., 0]
        assert_equal_on_both(*case, every_other, wild_gaps.t().contiguous().t())
        one_number = torch.full((), -0.5, dtype=dtype).expand(star_scores.shape)
        assert_equal_on_both(*case, one_number, torch.tensor(True).expand(wild_gaps.shape))


def test_stars_that_are_none(random_case, generator):
    *case, star_scores, wild_gaps = add_stars(make_ragged(random_case, generator, 3, 530, 200, 32), generator)
    holes = torch.rand(star_scores.shape, generator=generator)
    for i, none in enumerate((-INF, INF, torch.nan)):
        star_scores[(holes * 10).int() == i] = none
    assert_equal_on_both(*case, star_scores, wild_gaps)


def test_stars_in_long_items(random_case, generator):
    """Two passes, and many columns of one."""
    for size in [(1, 20_000, 5_000, 32), (1, 300_000, 60_000, 8)]:
        assert_equal_on_both(*add_stars((*random_case(*size), None, None), generator))


def test_a_star_label_without_stars_is_marked(random_case):
    log_probs, targets = random_case(3, 300, 40, 12)
    expected = forced_align(log_probs, targets)
    targets[1, 7], targets[2, 39] = 12, 13
    paths, scores = forced_align(*to_cuda(log_probs, targets))
    assert torch.equal(paths[0].cpu(), expected[0][0])
    assert (paths[1:] == -1).all()
    assert (scores[1:] == -INF).all()
    stars = torch.zeros(3, 300)
    paths, _ = forced_align(*to_cuda(log_probs, targets, None, None, 0, stars, None))
    assert (paths[1] == 12).any()
    assert (paths[2] == -1).all()


@pytest.mark.parametrize("size", [(1, 20_000, 5_000, 32), (1, 20_000, 5_000, 100), (2, 30_000, 12_000, 40)], ids=str)
def test_long_items(random_case, generator, size):
    assert_equal_on_both(*make_ragged(random_case, generator, *size))


def test_an_item_of_two_passes(random_case, generator):
    """Its rows would take more than 1 GiB: regions, of which the last is short, and a path that enters columns late."""
    log_probs, targets = random_case(1, 300_000, 60_000, 8)
    log_probs[:, 50_000:90_000, 1:] -= 30
    assert_equal_on_both(log_probs, targets)


def test_an_item_of_three_passes(random_case):
    """Rows of two passes would take more than 1 GiB too. T is little more than L, so that there is little to do."""
    T, L = 660_000, 640_000
    log_probs, _ = random_case(1, T, 1, 6)
    assert_equal_on_both(log_probs, torch.arange(L)[None] % 5 + 1)


def test_strides_and_integers(random_case, generator):
    log_probs, targets, *lengths = make_ragged(random_case, generator, 4, 300, 60, 40)
    expected = forced_align(log_probs, targets, *lengths)
    transposed = log_probs.transpose(0, 1).contiguous().transpose(0, 1)
    sliced = torch.stack([log_probs, -log_probs], dim=-1)[..., 0]
    for emissions in (transposed, sliced, log_probs.transpose(1, 2).contiguous().transpose(1, 2)):
        for integer in (torch.int32, torch.int64):
            integers = [x.to(integer) for x in (targets, *lengths)]
            paths, scores = forced_align(*to_cuda(emissions, *integers))
            assert paths.dtype == integer
            assert torch.equal(paths.cpu().long(), expected[0])
            assert torch.equal(scores.cpu(), expected[1])


def test_empty_extents():
    for B, T, L in [(0, 5, 2), (2, 0, 0), (2, 0, 3), (2, 5, 0), (1, 1, 0)]:
        assert_equal_on_both(torch.zeros(B, T, 4), torch.ones(B, L, dtype=torch.int64))


def test_more_frames_than_are_counted():
    """An expanded tensor has them for nothing."""
    for T in (2**30 + 1, 2**31 - 1, 2**41):
        with pytest.raises(ValueError, match=rf"2\^30 frames at most on CUDA, found T = {T}"):
            forced_align(torch.zeros(1, 1, 2).cuda().expand(1, T, 2), torch.ones(1, 1, dtype=torch.int64).cuda())


def test_more_items_than_are_counted():
    """Also where products of their number overflow."""
    for B in (2**31, 2**57, 2**60):
        with pytest.raises(ValueError, match="the batch is too large for one CUDA launch"):
            forced_align(torch.zeros(1, 1, 1).cuda().expand(B, 1, 1), torch.ones(1, 0).long().cuda().expand(B, 0))


def test_values_out_of_range_mark_their_item_alone(random_case):
    log_probs, targets = random_case(6, 300, 40, 12)
    lengths = torch.full((6,), 300), torch.full((6,), 40)
    expected = forced_align(log_probs, targets, *lengths)
    huge = torch.iinfo(torch.int64)
    targets[1, 7], targets[2, 0] = 12, huge.min
    lengths[0][3], lengths[1][4], targets[5, 39] = huge.max, -1, 0
    paths, scores = (x.cpu() for x in forced_align(*to_cuda(log_probs, targets, *lengths)))
    assert torch.equal(paths[0], expected[0][0])
    assert torch.equal(scores[0], expected[1][0])
    assert (paths[1:] == -1).all()
    assert (scores[1:] == -INF).all()
    with pytest.raises(ValueError, match=r"input_lengths\[3\] must be between 0 and T = 300"):
        torch_ctc_align.forced_align(*to_cuda(log_probs, targets, *lengths))
    with pytest.raises(ValueError, match=r"targets\[1, 7\] must be a class of log_probs"):
        torch_ctc_align.forced_align(*to_cuda(log_probs, targets))


def test_nothing_waits_for_the_device(random_case, generator):
    case = to_cuda(*make_ragged(random_case, generator, 4, 600, 60, 20))
    word_indices = (torch.arange(60) // 4).repeat(4, 1).cuda()
    ends = torch.tensor([12.0, 9.0, 12.0, 7.0]).cuda()

    def words_of(spans, word_indices, ends):
        return torch_ctc_align.word_borders(spans, word_indices, 15, seconds_per_frame=0.02, recording_ends=ends)

    forced_align(*case)
    torch.cuda.set_sync_debug_mode("error")
    try:
        paths, scores = forced_align(*case)
        spans = torch_ctc_align.token_spans(paths, scores, case[1])
        words = words_of(spans, word_indices, ends)
        words_of(spans, word_indices, 12.0)
        indices = torch_ctc_align.token_indices(paths, case[1])
        least = torch_ctc_align.min_frames(case[1], case[3])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(indices.cpu(), torch_ctc_align.token_indices(paths.cpu(), case[1].cpu()))
    assert torch.equal(least.cpu(), torch_ctc_align.min_frames(case[1].cpu(), case[3].cpu()))
    expected = words_of(torch_ctc_align.TokenSpans(*(x.cpu() for x in spans)), word_indices.cpu(), ends.cpu())
    for found, on_cpu in zip(words[:2], expected, strict=False):
        torch.testing.assert_close(found.cpu(), on_cpu, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [(3, 600, 60, 20), (2, 2500, 700, 50)], ids=str)
@pytest.mark.parametrize("stars", [False, True], ids=["plain", "stars"])
def test_a_graph_replays_with_other_contents(random_case, generator, size, stars):
    def make_case():
        case = make_ragged(random_case, generator, *size)
        return add_stars(case, generator) if stars else case

    held = to_cuda(*make_case())
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        forced_align(*held)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        paths, scores = forced_align(*held)
    for _ in range(3):
        case = make_case()
        for tensor, value in zip(held, case, strict=True):
            if isinstance(tensor, torch.Tensor):
                tensor.copy_(value)
        graph.replay()
        expected = forced_align(*case)
        assert torch.equal(paths.cpu(), expected[0])
        assert torch.equal(scores.cpu(), expected[1])


def test_the_current_stream_is_used(random_case):
    log_probs, targets = random_case(2, 500, 50, 20)
    expected = forced_align(log_probs, targets)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.full_like(log_probs, -1.0, device="cuda")
        torch.cuda._sleep(20_000_000)
        late.copy_(log_probs.pin_memory(), non_blocking=True)
        paths, _ = forced_align(late, targets.cuda(non_blocking=True))
    stream.synchronize()
    assert torch.equal(paths.cpu(), expected[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_the_second_device(random_case):
    log_probs, targets = random_case(2, 500, 50, 20)
    paths, _ = forced_align(log_probs.to("cuda:1"), targets.to("cuda:1"))
    assert paths.device == torch.device("cuda:1")
    assert torch.equal(paths.cpu(), forced_align(log_probs, targets)[0])


def test_gradients(random_case, generator):
    case = make_ragged(random_case, generator, 3, 80, 12, 9, dtype=torch.float64)
    gradients = []
    for arguments in (list(case), to_cuda(*case)):
        arguments[0].requires_grad_()
        forced_align(*arguments)[1].nan_to_num(neginf=0).sin().sum().backward()
        gradients.append(arguments[0].grad.cpu())
    torch.testing.assert_close(*gradients)


def test_gradients_to_stars(random_case, generator):
    *case, star_scores, wild_gaps = add_stars(
        make_ragged(random_case, generator, 3, 80, 12, 9, dtype=torch.float64), generator
    )
    gradients = []
    for to in (lambda *x: x, to_cuda):
        arguments = [*to(*case, star_scores, wild_gaps)]
        arguments[5] = arguments[5].clone().requires_grad_()
        forced_align(*arguments)[1].nan_to_num(neginf=0).sin().sum().backward()
        gradients.append(arguments[5].grad.cpu())
    torch.testing.assert_close(*gradients)
    assert gradients[0].any()


def test_opcheck(random_case, generator):
    case = make_ragged(random_case, generator, 2, 40, 7, 5)
    torch.library.opcheck(forced_align.default, tuple(to_cuda(*case)))
    torch.library.opcheck(forced_align.default, tuple(to_cuda(*add_stars(case, generator))))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(random_case, generator, mode):
    @torch.compile(fullgraph=True, mode=mode)
    def align(log_probs, targets, input_lengths, target_lengths):
        paths, scores = forced_align(log_probs - 1, targets, input_lengths, target_lengths)
        return paths, scores.sum(1)

    for _ in range(3):
        case = to_cuda(*make_ragged(random_case, generator, 4, 200, 30, 20))
        paths, totals = align(*case)
        expected, scores = forced_align(case[0] - 1, *case[1:])
        assert torch.equal(paths, expected)
        torch.testing.assert_close(totals, scores.sum(1))
