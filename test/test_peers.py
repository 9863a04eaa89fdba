"""Where torchaudio is right, its forced_align and ours return the same; where it is not, ours scores more.

``torchaudio`` is taken if it can be imported, as in the environment of `make test-clients`. Beside a CPU-only torch it
often cannot, although its operator needs nothing of CUDA on CPU tensors; then name a folder in CTC_ALIGN_PEERS:

    DIR/lib/python3*/site-packages/torchaudio/lib/libtorchaudio*.so    a virtual environment with torchaudio in it
    DIR/stubs/*.so*                                                    what has to be loaded first, if anything

With CTC_ALIGN_REQUIRE=torchaudio a missing torchaudio is a failure, not a skip.
"""

import ctypes
import os
from pathlib import Path

import pytest
import torch

import torch_ctc_align

LONGEST_EQUAL = 513  # frames; from here on we rebase and torchaudio's float32 sums lose digits


@pytest.fixture
def torchaudio_align(missing):
    try:
        return load_torchaudio()
    except (ImportError, OSError, RuntimeError) as error:
        missing("torchaudio", f"torchaudio cannot be loaded ({error}); see CTC_ALIGN_PEERS in test_peers.py")


def load_torchaudio():
    """torchaudio's forced_align as a function with its Python arguments."""
    peers = os.environ.get("CTC_ALIGN_PEERS")
    if not peers:
        from torchaudio.functional import forced_align

        return forced_align
    for library in sorted(Path(peers, "stubs").glob("*.so*")):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    libraries = sorted(Path(peers).glob("lib/python3*/site-packages/torchaudio/lib/libtorchaudio*.so"))
    if not libraries:
        raise ImportError(f"no libtorchaudio in CTC_ALIGN_PEERS={peers}")
    torch.ops.load_library(str(libraries[0]))

    def forced_align(log_probs, targets, input_lengths=None, target_lengths=None, blank=0):
        B, T, _ = log_probs.shape
        input_lengths = torch.full((B,), T) if input_lengths is None else input_lengths
        target_lengths = torch.full((B,), targets.shape[1]) if target_lengths is None else target_lengths
        paths, _ = torch.ops.torchaudio.forced_align(log_probs, targets, input_lengths, target_lengths, blank)
        return paths, log_probs.gather(2, paths.long()[..., None])[..., 0]  # its Python function does that too

    return forced_align


def total(log_probs, paths):
    """The score of each path, summed in float64."""
    return log_probs.double().gather(2, paths.long()[..., None]).sum((1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
def test_short_emissions_without_ties(torchaudio_align, random_case, generator, dtype, integer):
    """Random continuous values: equal sums, and with them torchaudio's tie defect, hardly ever meet on a best path.

    One frame or no label is not asked of it: it crashes.
    """
    for _ in range(60):
        T = int(torch.randint(2, LONGEST_EQUAL + 1, (), generator=generator))
        C = int(torch.randint(2, 60, (), generator=generator))
        L = int(torch.randint(1, T // 2 + 1, (), generator=generator))
        blank = int(torch.randint(0, C, (), generator=generator))
        log_probs, targets = random_case(1, T, L, C, blank=blank, dtype=dtype)
        arguments = log_probs, targets.to(integer), None, None, blank
        theirs, ours = torchaudio_align(*arguments), torch_ctc_align.forced_align(*arguments)
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
        assert ours[0].dtype == theirs[0].dtype
        assert ours[1].dtype == theirs[1].dtype


def test_lengths_of_the_only_item(torchaudio_align, random_case):
    """torchaudio takes one item only, and its lengths must be those of the tensors."""
    log_probs, targets = random_case(1, 100, 30, 12)
    arguments = log_probs, targets, torch.tensor([100]), torch.tensor([30])
    for found, expected in zip(torch_ctc_align.forced_align(*arguments), torchaudio_align(*arguments), strict=True):
        assert torch.equal(found, expected)


def test_never_worse_in_a_tie(torchaudio_align, random_case):
    """Integer values: torchaudio loses some of them, and we lose none to it."""
    gains = []
    for _ in range(300):
        log_probs, targets = random_case(1, 12, 4, 3, steps=1)
        ours, theirs = torch_ctc_align.forced_align(log_probs, targets)[0], torchaudio_align(log_probs, targets)[0]
        gains.append(float(total(log_probs, ours) - total(log_probs, theirs)))
    assert min(gains) >= 0


@pytest.mark.parametrize("T, L, C", [(1500, 200, 32), (6000, 1500, 100), (9000, 3000, 32)])
def test_never_worse_in_a_long_emission(torchaudio_align, random_case, T, L, C):
    """Beyond 513 frames their float32 sums lose digits; ours may differ from theirs only for the better."""
    log_probs, targets = random_case(1, T, L, C)
    ours, theirs = torch_ctc_align.forced_align(log_probs, targets)[0], torchaudio_align(log_probs, targets)[0]
    assert total(log_probs, ours) >= total(log_probs, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_spans_of_words_agree(torchaudio_align, dtype):
    """The one-import change: a clear emission gives the same spans through either aligner."""
    best = [0, 1, 1, 0, 2, 0, 2, 2, 3, 0]
    log_probs = torch.full((1, len(best), 4), -5.0).scatter(2, torch.tensor(best)[None, :, None], -0.125).to(dtype)
    targets = torch.tensor([[1, 2, 2, 3]])
    spans = []
    for align in (torchaudio_align, torch_ctc_align.forced_align):
        paths, scores = align(log_probs, targets)
        spans.append(torch_ctc_align.merge_tokens(paths[0], scores[0]))
    assert spans[0] == spans[1]
    assert [(s.token, s.start, s.end, s.score) for s in spans[1]] == [
        (1, 1, 3, -0.125),
        (2, 4, 5, -0.125),
        (2, 6, 8, -0.125),
        (3, 8, 9, -0.125),
    ]
