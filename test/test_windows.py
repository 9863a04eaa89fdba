"""Windows: every frame once, the frames of one pass, bounded memory, any device and dtype; what is refused."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from torch_ctc_align import Window, plan_windows, run_windows

# Hop and receptive field of wav2vec 2.0; of a model whose spectrogram is padded on both sides; of one that subsamples a
# spectrogram of 10 ms a column by 8, as NeMo's do.
SHAPES = {"wav2vec2": (320, 400), "centred": (320, 0), "subsampled": (1280, 160)}
MOST = 200_000  # samples


def check_plan(windows, num_samples, hop, field, length, context):
    """Asserts what plan_windows promises, from the sizes of a plan alone. Frame t of a model starts at sample hop t."""
    frames = (num_samples - field) // hop + 1 if num_samples >= max(field, 1) else 0
    kept = 0
    size = windows[0].stop - windows[0].start if windows else 0
    for place, (start, stop, begin, end, skip, made) in enumerate(windows):
        assert begin == kept < end
        kept = end
        assert 0 <= start < stop <= num_samples
        assert start % hop == 0
        assert stop - start == size
        assert begin == start // hop + skip  # frame t of the recording is frame t - start / hop of the window
        assert made == (size - field) // hop + 1  # what the model makes of so many samples
        assert end <= start // hop + made
        assert skip >= context if place else start == begin == 0
        if place == len(windows) - 1:
            assert stop == num_samples, "samples are left out at the end"
            assert start // hop + made == end
        else:
            assert start // hop + made - end >= context
        assert made == length if len(windows) > 1 else made == frames
    assert kept == frames
    assert len(windows) <= 1 or frames > length


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length, context", [(25, 5), (7, 3), (100, 0)])
def test_every_frame_is_kept_once_around_every_seam(shape, length, context):
    """All lengths at which a frame more begins, one sample less and more, and some between."""
    hop, field = SHAPES[shape]
    turns = {field + t * hop + d for t in range(-2, MOST // hop) for d in (-1, 0, 1)}
    for num_samples in sorted({n for n in turns | set(range(0, MOST, 61)) if 0 <= n <= MOST} | set(range(500))):
        plan = plan_windows(num_samples, hop=hop, receptive_field=field, window_frames=length, context_frames=context)
        check_plan(plan, num_samples, hop, field, length, context)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length, context", [(25, 5), (100, 20)])
def test_every_frame_is_kept_once_at_every_length(shape, length, context):
    hop, field = SHAPES[shape]
    for num_samples in range(MOST + 1):
        plan = plan_windows(num_samples, hop=hop, receptive_field=field, window_frames=length, context_frames=context)
        check_plan(plan, num_samples, hop, field, length, context)


def test_a_plan_written_by_hand():
    """12 frames of 10 samples, 3 samples more. The seam of the last two windows is in the middle of what both have."""
    assert plan_windows(123, hop=10, receptive_field=10, window_frames=6, context_frames=1) == [
        Window(start=0, stop=63, begin=0, end=5, skip=0, frames=6),
        Window(start=40, stop=103, begin=5, end=8, skip=1, frames=6),
        Window(start=60, stop=123, begin=8, end=12, skip=2, frames=6),
    ]


def test_a_short_recording_is_one_window_with_all_samples():
    assert plan_windows(69, hop=10, receptive_field=10, window_frames=6, context_frames=2) == [
        Window(0, 69, 0, 6, 0, 6)
    ]
    assert len(plan_windows(70, hop=10, receptive_field=10, window_frames=6, context_frames=2)) == 2


def test_no_frame_no_window():
    assert plan_windows(399, hop=320, receptive_field=400, window_frames=9, context_frames=1) == []
    assert plan_windows(400, hop=320, receptive_field=400, window_frames=9, context_frames=1) != []
    assert plan_windows(0, hop=320, window_frames=9, context_frames=1) == []
    assert plan_windows(1, hop=320, window_frames=9, context_frames=1) == [Window(0, 1, 0, 1, 0, 1)]


# ----------------------------------------------------------------------------------------------------- the frames
# Models with small whole numbers as weights, on samples that are small whole numbers: every sum is exact in float32,
# so the frames of two ways are equal or one of them is wrong.


class Exact(nn.Module):
    """Convolutions over (B, C, N), each followed by the remainder of 7, which keeps numbers small."""

    def __init__(self, layers, classes=3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = []
        channels = 1
        for kernel, stride, padding in layers:
            weight = torch.randint(-2, 3, (classes, channels, kernel), generator=generator).float()
            self.layers.append((weight, stride, padding))
            channels = classes

    def forward(self, samples, lengths):
        assert samples.dtype == torch.float32
        assert lengths.tolist() == [samples.shape[1]] * len(samples)
        hidden = samples[:, None]
        for weight, stride, padding in self.layers:
            hidden = torch.nn.functional.conv1d(hidden, weight, None, stride, padding).remainder(7) - 3
        return hidden.transpose(1, 2)


class Case(NamedTuple):
    layers: list  # kernel, stride, padding
    context: int  # frames that a frame needs on each side, so that it is the one of one pass


# A convolution over frames comes last, so that a frame needs its neighbours, as in a real model.
AROUND = (7, 1, 3)
CASES = {
    "wav2vec2": Case([(10, 5, 0), (3, 2, 0), (3, 2, 0), (3, 2, 0), (3, 2, 0), (2, 2, 0), (2, 2, 0), AROUND], 3),
    # Frame t hears the samples from 320 t - 160 to 320 t + 160, and three frames on either side. The first frame of a
    # window lacks its left half, the last one its right half.
    "centred": Case([(320, 320, 160), AROUND], 4),
    # Three convolutions of stride 2 over columns of 160 samples hear 1 + 2 + 4 = 7 columns on either side, of which 8
    # make a frame.
    "subsampled": Case([(160, 160, 0), (3, 2, 1), (3, 2, 1), (3, 2, 1), AROUND], 4),
}


def whole_samples(count, generator):
    return torch.randint(-3, 4, (count,), generator=generator).float()


def one_pass(model, samples):
    return model(samples[None], torch.tensor([len(samples)]))[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_kept_frames_are_those_of_one_pass(shape, batch_size, generator):
    hop, field = SHAPES[shape]
    model, context = Exact(CASES[shape].layers), CASES[shape].context
    for frames in (1, 12, 13, 14, 30, 57):
        for rest in (0, 1, hop // 2, hop - 1):
            samples = whole_samples(max(field + (frames - 1) * hop + rest, 1), generator)
            expected = one_pass(model, samples)
            found = run_windows(
                model, samples, hop=hop, receptive_field=field, window_frames=12, context_frames=context,
                batch_size=batch_size,
            )  # fmt: skip
            assert len(found) == frames
            assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_context_that_is_too_short_shows(shape, generator):
    """The test above would find a frame that lacks one of context."""
    hop, field = SHAPES[shape]
    model = Exact(CASES[shape].layers)
    samples = whole_samples(field + 57 * hop, generator)
    found = run_windows(
        model, samples, hop=hop, receptive_field=field, window_frames=12, context_frames=CASES[shape].context - 1
    )
    assert not torch.equal(found, one_pass(model, samples))
