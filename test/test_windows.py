"""Windows: every frame once, the frames of one pass, bounded memory, any device and dtype."""

import math
import weakref
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from torch_ctc_align import Window, iter_windows, plan_windows, run_windows

# Hop and receptive field of wav2vec 2.0; of a model whose spectrogram is padded on both sides; of one that subsamples a
# spectrogram of 10 ms a column by 8, as NeMo's do.
SHAPES = {"wav2vec2": (320, 400), "centred": (320, 0), "subsampled": (1280, 160)}
MOST, FEWER = 200_000, 40_000  # samples


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
@pytest.mark.parametrize("length, context", [(25, 5), (7, 2), (100, 0)])
def test_every_frame_is_kept_once_around_every_seam(shape, length, context):
    """All lengths at which a frame more begins, one sample less and more, and some between."""
    hop, field = SHAPES[shape]
    turns = {field + t * hop + d for t in range(-2, FEWER // hop) for d in (-1, 0, 1)}
    for num_samples in sorted({n for n in turns if n >= 0} | set(range(500)) | set(range(0, MOST, 997))):
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


# ---------------------------------------------------------------------------------------- samples and streams

WAV2VEC2 = {"hop": 320, "receptive_field": 400, "window_frames": 12, "context_frames": 3}


@pytest.fixture
def spoken(generator):
    """Samples of 57 frames, and the frames of one pass."""
    samples = whole_samples(400 + 56 * 320 + 7, generator)
    model = Exact(CASES["wav2vec2"].layers)
    return model, samples, one_pass(model, samples)


@pytest.mark.parametrize("longest", [5, 50, 5000, 100_000])
def test_a_stream_of_blocks_gives_what_the_tensor_gives(longest, spoken, generator):
    model, samples, expected = spoken
    sizes = torch.randint(0, longest + 1, (3 * len(samples),), generator=generator)  # some blocks are empty
    ends = sizes.cumsum(0)
    blocks = samples.tensor_split(ends[ends < len(samples)])
    assert sum(map(len, blocks)) == len(samples)
    found = run_windows(model, iter(blocks), num_samples=len(samples), batch_size=2, **WAV2VEC2)
    assert torch.equal(found, expected)


def test_samples_after_num_samples_are_not_read(spoken):
    model, samples, expected = spoken
    read = []

    def blocks():
        for block in (*samples.split(1000), None, None):
            read.append(block is None)
            yield torch.full((1000,), torch.nan) if block is None else block

    found = run_windows(model, blocks(), num_samples=len(samples), **WAV2VEC2)
    assert torch.equal(found, expected)
    assert not any(read)


def test_samples_may_have_any_stride_and_floating_dtype(spoken):
    model, samples, expected = spoken
    stereo = torch.stack([samples, torch.full_like(samples, torch.nan)], 1)
    assert torch.equal(run_windows(model, stereo[:, 0], **WAV2VEC2), expected)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):  # they hold small whole numbers exactly
        assert torch.equal(run_windows(model, samples.to(dtype), **WAV2VEC2), expected)
        blocks = [samples[:3000].to(dtype), samples[3000:]]
        assert torch.equal(run_windows(model, blocks, num_samples=len(samples), **WAV2VEC2), expected)


@pytest.mark.parametrize("as_blocks", [False, True])
def test_a_model_may_write_to_its_samples(as_blocks, spoken):
    model, samples, expected = spoken
    before = samples.clone()

    def careless(inputs, lengths):
        frames = model(inputs, lengths)
        inputs.zero_()
        lengths.zero_()
        return frames

    for batch_size in (1, 4):
        given = [samples] if as_blocks else samples
        found = run_windows(careless, given, num_samples=len(samples), batch_size=batch_size, **WAV2VEC2)
        assert torch.equal(found, expected)
        assert torch.equal(samples, before)


# Ten hours in blocks of a minute. The peak of resident memory is reset before the call.
TEN_HOURS = """
import torch, torch_ctc_align

def resident(name):
    line = next(x for x in open("/proc/self/status") if x.startswith(name + ":"))
    return 1024 * int(line.split()[1])

def quiet(samples, lengths):
    assert samples.shape == (2, 1249 * 256) or len(samples) == 1
    return torch.zeros(len(samples), 1250, 2)

def run(minutes):
    blocks = (torch.zeros(60 * 16_000) for _ in range(minutes))
    return torch_ctc_align.run_windows(
        quiet, blocks, num_samples=minutes * 60 * 16_000, hop=256, window_frames=1250, context_frames=125,
        batch_size=2, dtype=torch.float16,
    )

torch.set_num_threads(1)
run(2)  # what is set up once
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
found = run(600)
print(tuple(found.shape), resident("VmHWM") - before - found.nbytes)
"""


def test_ten_hours_pass_through_a_window_of_memory(fresh_python):
    """The recording has 2.3 GB. At once there can be: a block of a minute that is made, one that is copied and two that
    are kept, 3.84 MB each; two windows of 20 s and their copy in a batch, 1.28 MB each. Together 20 MB; pages and the
    allocator may take as much again."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("no /proc/self/clear_refs to reset the peak of memory with")
    shape, extra = fresh_python(TEN_HOURS).strip().rsplit(" ", 1)
    assert shape == f"({600 * 60 * 16_000 // 256 + 1}, 2)"
    assert int(extra) < 40e6


def test_a_reader_may_use_the_memory_of_a_block_again(spoken):
    model, samples, expected = spoken
    buffer = torch.empty(1000)

    def blocks():
        for block in samples.split(1000):
            yield buffer[: len(block)].copy_(block)
            buffer.fill_(torch.nan)

    assert torch.equal(run_windows(model, blocks(), num_samples=len(samples), **WAV2VEC2), expected)


# ---------------------------------------------------------------------------------- what the model gets and gives


def test_batches_hold_neighbours_of_one_length_and_the_last_one_the_rest(spoken):
    model, samples, _ = spoken
    shapes = []

    def watched(inputs, lengths):
        shapes.append(tuple(inputs.shape))
        assert inputs.is_contiguous()
        assert lengths.dtype == torch.int64
        return model(inputs, lengths)

    run_windows(watched, samples, batch_size=4, **WAV2VEC2)
    # 57 frames in windows of 12 that begin 6 frames apart: at 0, 6, ... 42, and 45. The recording is 7 samples longer
    # than its frames need, and so is each window.
    size = 11 * 320 + 400 + 7
    assert shapes == [(4, size), (4, size), (1, size)]


@pytest.mark.parametrize("lengths_as", ["tensor", "list", "none", "padded"])
def test_a_model_may_say_how_many_frames_it_made(lengths_as, spoken):
    model, samples, expected = spoken

    def run(inputs, lengths):
        frames = model(inputs, lengths)
        made = torch.full((len(inputs),), frames.shape[1])
        if lengths_as == "padded":
            frames = nn.functional.pad(frames, (0, 0, 0, 5), value=torch.nan)
        return frames, {"list": made.tolist(), "none": None}.get(lengths_as, made)

    assert torch.equal(run_windows(run, samples, batch_size=3, **WAV2VEC2), expected)


@pytest.mark.parametrize("made", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kept", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_has_the_dtype_that_was_asked_for(made, kept, spoken):
    """The model's whole numbers are exact in each."""
    model, samples, expected = spoken
    found = run_windows(lambda *inputs: model(*inputs).to(made), samples, dtype=kept, **WAV2VEC2)
    assert found.dtype == kept
    assert torch.equal(found, expected.to(kept))


def test_the_result_is_written_to_out(spoken):
    model, samples, expected = spoken
    wide = torch.full((57, 5), 9.0, dtype=torch.bfloat16)
    out = wide[:, 1:4]  # rows with gaps between them
    found = run_windows(model, samples, out=out, dtype=torch.float64, **WAV2VEC2)
    assert found is out
    assert torch.equal(out, expected.bfloat16())
    assert (wide[:, [0, 4]] == 9).all()


def test_a_recording_of_one_window_gives_a_result_of_its_own(spoken):
    """Not a view of what the model returned, which it may use again."""
    _, samples, _ = spoken
    kept = torch.zeros(1, 2, 3)
    found = run_windows(lambda *_: kept, samples[:720], **WAV2VEC2)
    kept.fill_(1)
    assert torch.equal(found, torch.zeros(2, 3))


def test_the_model_runs_without_gradients_and_the_callers_loop_with_them(spoken):
    model, samples, expected = spoken
    weight = torch.ones((), requires_grad=True)
    windows = plan_windows(len(samples), **WAV2VEC2)
    for begin, kept in iter_windows(lambda *inputs: weight * model(*inputs), samples.requires_grad_(), windows):
        assert torch.is_grad_enabled()
        assert not kept.requires_grad
        assert torch.equal(kept, expected[begin : begin + len(kept)])
    assert not run_windows(lambda *inputs: weight * model(*inputs), samples, **WAV2VEC2).requires_grad


def test_the_model_gets_its_input_on_its_device(spoken):
    """The device "meta", which every machine has."""
    _, samples, _ = spoken

    def run(inputs, lengths):
        assert inputs.device.type == lengths.device.type == "meta"
        assert inputs.dtype == torch.float32
        return torch.zeros(len(inputs), 12, 3)

    for dtype in (torch.float32, torch.float64):
        found = run_windows(run, samples.to(dtype), batch_size=2, device="meta", **WAV2VEC2)
        assert torch.equal(found, torch.zeros(57, 3))


def test_a_default_device_does_not_decide_where_the_result_is(spoken):
    model, samples, expected = spoken
    with torch.device("meta"):
        assert torch.equal(run_windows(model, samples, batch_size=2, **WAV2VEC2), expected)


def test_a_model_on_cuda(spoken, missing):
    if not torch.cuda.is_available():
        missing("cuda", "there is no GPU")
    _, samples, _ = spoken

    def run(inputs, lengths):  # the first sample of every frame
        assert inputs.is_cuda
        assert lengths.is_cuda
        frames = inputs[:, : (inputs.shape[1] - 400) // 320 * 320 + 1 : 320, None].expand(-1, -1, 3)
        return frames.half(), torch.full_like(lengths, frames.shape[1])

    expected = samples[: 56 * 320 + 1 : 320, None].expand(-1, 3)
    for out in (None, torch.empty(57, 3).pin_memory(), torch.empty(57, 3, device="cuda")):
        for given in (samples, samples.cuda()):
            found = run_windows(run, given, device="cuda", batch_size=2, out=out, **WAV2VEC2)
            assert found.is_cpu == (out is None or out.is_cpu)
            assert torch.equal(found.cpu(), expected)


# -------------------------------------------------------------------------------------- progress and cancellation


def test_progress_counts_frames(spoken):
    model, samples, _ = spoken
    seen = []
    run_windows(model, samples, batch_size=2, progress=lambda *counts: seen.append(counts), **WAV2VEC2)
    # Windows begin at 0, 6, ... 42, 45. A seam is 3 frames before the end of the left one; the last two windows share
    # the frames 45 to 53, whose middle is 49.
    assert seen == [(done, 57) for done in (9, 15, 21, 27, 33, 39, 45, 49, 57)]


def test_what_progress_raises_ends_the_run(spoken):
    model, samples, _ = spoken
    calls = []

    def stop(done, _):
        if done > 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_windows(lambda *inputs: calls.append(1) or model(*inputs), samples, progress=stop, **WAV2VEC2)
    assert len(calls) == 2


def test_a_loop_that_is_left_runs_and_reads_nothing_more(spoken):
    model, samples, _ = spoken
    calls, read = [], []

    def blocks():
        for block in samples.split(1000):
            read.append(len(block))
            yield block

    parts = iter_windows(
        lambda *inputs: calls.append(1) or model(*inputs), blocks(), plan_windows(len(samples), **WAV2VEC2)
    )
    assert (calls, read) == ([], [])
    assert next(parts)[0] == 0
    assert len(calls) == 1
    assert sum(read) == 4000  # the first window has 3927 samples
    parts.close()
    assert len(calls) == 1


@pytest.mark.parametrize("batch_size", [1, 3])
def test_what_the_model_made_of_a_batch_is_gone_before_the_next(batch_size):
    """The caller sizes a batch by what memory holds of it; it must not be needed twice."""

    class Memory(bytearray):
        """Bytes that a tensor keeps alive."""

    made = []

    def run(samples, lengths):
        assert all(memory() is None for memory in made)
        shape = (len(samples), samples.shape[1] // 10, 2)
        memory = Memory(4 * math.prod(shape))
        made.append(weakref.ref(memory))
        return torch.frombuffer(memory, dtype=torch.float32).reshape(shape)

    sizes = {"hop": 10, "receptive_field": 10, "window_frames": 20, "context_frames": 2}
    run_windows(run, torch.zeros(1000), batch_size=batch_size, **sizes)
    assert len(made) == -(-6 // batch_size)  # windows of 20 frames, 16 apart, for 100 frames
