"""Recordings that are too long for a model: windows with context, and the emissions that they give together.

The emissions of a recording have to be in one piece before they can be aligned. Each window gives frames near its ends
that lack context; they are left to its neighbours::

    recording   |--------------------------------------------------|
    window 0     ================....   = kept   . context
    window 1                 ....============....
    window 2                             ....=========.......
    window 3                                   .......=============

Frames are counted, never seconds: a window starts at a multiple of the hop, so that frame t of the recording is frame
t - start / hop of the window. Every frame of the recording is kept exactly once. All windows are of one length.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from torch_ctc_align._arguments import FLOATS, brief, check_tensor, dtype_name, index_of, kind_of
from torch_ctc_align._refusals import refusal

__all__ = ["Window", "iter_windows", "plan_windows", "run_windows"]

# samples (B, N) float32 and lengths (B,) int64 -> log_probs (B, T, C), alone or with the frames of each item (B,)
Run = Callable[[Tensor, Tensor], Tensor | tuple[Tensor, Tensor | None]]
Samples = Tensor | Iterable[Tensor]


class Window(NamedTuple):
    """A piece of a recording that a model gets, and what of its output is kept.

    Attributes:
        start: first sample.
        stop: sample after the last one.
        begin: first frame of the recording that is kept.
        end: frame after the last kept one.
        skip: frames of the output before the first kept one.
        frames: frames of the output, kept or not.
    """

    start: int
    stop: int
    begin: int
    end: int
    skip: int
    frames: int


def plan_windows(
    num_samples: int, *, hop: int, receptive_field: int = 0, window_frames: int, context_frames: int
) -> list[Window]:
    """Cuts a recording into windows of one length that overlap, and gives each frame to one of them.

    N samples give ``(N - receptive_field) // hop + 1`` frames. A recording of at most ``window_frames`` frames is one
    window. A longer one has windows of exactly ``window_frames`` frames; the last one is moved back to end with the
    recording. Two neighbours share the frames that both have: the seam lies in the middle, at least ``context_frames``
    away from the end of the one and the start of the other.

    No sample is left out: each window also holds the ``(N - receptive_field) % hop`` samples by which the recording is
    longer than its frames need, so the last frame hears what it would in one pass.

    Args:
        num_samples (int): N, samples of the recording.
        hop (int): samples a frame.
        receptive_field (int): samples of the first frame; 0 for a model that pads its input on both sides, so that
            frame t is centred on sample ``hop * t``. Default: 0.
        window_frames (int): frames of a window, more than ``2 * context_frames``.
        context_frames (int): frames at an end of a window that are not kept, where there is a neighbour that has them;
            at least 0.

    Returns:
        list[Window]: in order; empty where the recording has no frame, and for 0 samples.

    Raises:
        AlignmentError: a number is out of range.
        TypeError: a number is not an int.

    Integers only; time in the number of windows.

    Example::

        >>> for window in plan_windows(1000, hop=10, window_frames=50, context_frames=5):
        ...     print(window)
        Window(start=0, stop=490, begin=0, end=45, skip=0, frames=50)
        Window(start=400, stop=890, begin=45, end=70, skip=5, frames=50)
        Window(start=510, stop=1000, begin=70, end=101, skip=19, frames=50)
    """
    return _plan("plan_windows", num_samples, hop, receptive_field, window_frames, context_frames)


def iter_windows(
    run: Run,
    samples: Samples,
    windows: Sequence[Window],
    *,
    batch_size: int = 1,
    device: torch.device | str | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Runs a model on the windows of a recording and yields what is kept of each, in order.

    The caller sees how far it is, and stops by leaving the loop. :func:`run_windows` puts the parts together.

    Args:
        run: ``run(samples, lengths)`` with samples ``(B, N)`` float32 and lengths ``(B,)`` int64, which returns
            natural-log probabilities ``(B, T, C)``, alone or with the frames of each item ``(B,)``. It runs without
            gradients; it may write to its samples.
        samples (Tensor or iterable of Tensor): ``(N,)`` floating point, any stride; or blocks ``(n,)`` that follow each
            other, of any lengths. Of these only what windows still need is kept, as a copy.
        windows (sequence of Window): of :func:`plan_windows`.
        batch_size (int): windows that the model gets at once, at most. Default: 1.
        device (torch.device, optional): where the model gets its input. Default: that of the samples.

    Yields:
        tuple[int, Tensor]: the first frame, and the log-probabilities ``(frames, C)`` from there on, as the model
        returned them: on its device, and a view of the output of the whole batch.

    Raises:
        AlignmentError: the model returns another shape or another number of frames than the windows promise; the
            samples have another shape, or end before the windows do.
        TypeError: the samples are neither a tensor nor blocks; ``run`` is not callable.
    """
    return _iterate("iter_windows", run, samples, windows, batch_size, device)


def run_windows(
    run: Run,
    samples: Samples,
    *,
    hop: int,
    receptive_field: int = 0,
    window_frames: int,
    context_frames: int,
    num_samples: int | None = None,
    batch_size: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    out: Tensor | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Tensor:
    """Runs a model over a recording of any length, window by window, and returns its emissions in one tensor.

    Besides the result, memory holds a batch of windows and what the model makes of it, whatever the length.

    Where the model hears no farther than the context, the result is that of one pass. Where it does, and where it
    scales its input by statistics of all of it, frames differ a little; ``docs/windows.md`` has how much.

    Args:
        run: ``run(samples, lengths)``: see :func:`iter_windows`.
        samples (Tensor or iterable of Tensor): ``(N,)`` floating point, any stride; or blocks ``(n,)`` that follow each
            other, then ``num_samples`` is needed.
        hop, receptive_field, window_frames, context_frames (int): see :func:`plan_windows`.
        num_samples (int, optional): N. Samples of blocks after these are not read. Default: all, of a tensor.
        batch_size (int): windows that the model gets at once, at most. Default: 1.
        dtype (torch.dtype): of the result: float16, bfloat16, float32 or float64. Ignored with ``out``.
            Default: float32.
        device (torch.device, optional): where the model gets its input. Default: that of the samples.
        out (Tensor, optional): ``(T, C)``, written and returned; any device, pinned or not. Default: a new tensor on
            the CPU.
        progress: called as ``progress(frames_done, frames_total)`` after every window. What it raises ends the run.

    Returns:
        Tensor: ``(T, C)`` natural-log probabilities, ``T = (N - receptive_field) // hop + 1``.

    Raises:
        AlignmentError: the recording is too short for a frame; the samples, the model's output or ``out`` do not have
            the shape, dtype or length that they should have; a number is out of range.
        TypeError: an argument of another type.

    Example::

        >>> def loudness(samples, lengths):  # a "model" with a hop of 4 that hears 4 samples a frame
        ...     loud = samples.unfold(1, 4, 4).abs().mean(2)
        ...     return torch.stack([1 - loud, loud], 2).log(), lengths // 4
        >>> samples = torch.linspace(0, 1, 1000)
        >>> log_probs = run_windows(
        ...     loudness, samples, hop=4, receptive_field=4, window_frames=100, context_frames=10
        ... )
        >>> torch.equal(log_probs, loudness(samples[None], torch.tensor([1000]))[0][0])
        True
    """
    name = "run_windows"
    if isinstance(samples, Tensor):
        _check_block(name, samples)
        if num_samples is not None and _integer(name, "num_samples", num_samples, 0) != len(samples):
            raise refusal(
                name, None, f"num_samples must be that of samples, expected {len(samples)}, found {num_samples}"
            )
        num_samples = len(samples)
    elif num_samples is None:
        _blocks_of(name, samples)
        raise refusal(name, None, "num_samples must be given where samples come in blocks, expected an int")
    windows = _plan(name, num_samples, hop, receptive_field, window_frames, context_frames)
    if not windows:
        raise refusal(
            name,
            None,
            f"samples must be enough for one frame, expected at least {max(receptive_field, 1)}, found {num_samples}",
        )
    if dtype not in FLOATS:
        raise refusal(name, None, f"dtype must be float16, bfloat16, float32 or float64, found {dtype}")
    total = windows[-1].end
    for begin, kept in _iterate(name, run, samples, windows, batch_size, device):
        end = begin + len(kept)
        if begin == 0:
            out = _prepare(name, out, (total, kept.shape[1]), dtype)
        assert out is not None
        if kept.shape[1] != out.shape[1]:
            raise refusal(
                name,
                None,
                f"run must return as many classes for every window, expected C = {out.shape[1]}, found "
                f"{kept.shape[1]} at frame {begin}",
            )
        out[begin:end].copy_(kept)
        del kept  # a view of all that the model made of its batch
        if progress is not None:
            progress(end, total)
    assert out is not None
    return out


# ------------------------------------------------------------------------------------------------------ the plan


def _plan(
    name: str, num_samples: int, hop: int, receptive_field: int, window_frames: int, context_frames: int
) -> list[Window]:
    samples = _integer(name, "num_samples", num_samples, 0)
    hop = _integer(name, "hop", hop, 1)
    field = _integer(name, "receptive_field", receptive_field, 0)
    context = _integer(name, "context_frames", context_frames, 0)
    length = _integer(name, "window_frames", window_frames, 1)
    if length <= 2 * context:
        raise refusal(name, None, f"window_frames must be more than 2 * context_frames = {2 * context}, found {length}")
    if samples < max(field, 1):
        return []
    steps, rest = divmod(samples - field, hop)
    frames = steps + 1
    if frames <= length:
        return [Window(0, samples, 0, frames, 0, frames)]
    starts = [*range(0, frames - length, length - 2 * context), frames - length]
    seams = [0, *((left + length + right) // 2 for left, right in pairwise(starts)), frames]
    size = (length - 1) * hop + field + rest
    return [
        Window(start * hop, start * hop + size, begin, end, begin - start, length)
        for start, (begin, end) in zip(starts, pairwise(seams), strict=True)
    ]


# ------------------------------------------------------------------------------------------------------ the loop


def _iterate(
    name: str,
    run: Run,
    samples: Samples,
    windows: Sequence[Window],
    batch_size: int,
    device: torch.device | str | None,
) -> Iterator[tuple[int, Tensor]]:
    """Checks the arguments at once, not at the first step of the loop."""
    if not callable(run):
        raise TypeError(f"{name}: run must be callable as run(samples, lengths), found {kind_of(run)}")
    size = _integer(name, "batch_size", batch_size, 1)
    return _generate(name, run, _Stream(name, samples), _batches(windows, size), device)


def _generate(
    name: str, run: Run, stream: "_Stream", batches: Iterable[list[Window]], device: torch.device | str | None
) -> Iterator[tuple[int, Tensor]]:
    for batch in batches:
        # A copy in any case, so that the model may write to it.
        inputs = torch.stack([stream.take(window.start, window.stop) for window in batch])
        inputs = inputs.to(device, torch.float32)
        lengths = torch.full((len(batch),), inputs.shape[1], dtype=torch.int64, device=inputs.device)
        with torch.no_grad():  # not around the yield: the caller's code runs there
            output = run(inputs, lengths)
        log_probs = _check_output(name, output, batch)
        for item, window in zip(log_probs, batch, strict=True):
            yield window.begin, item[window.skip : window.skip + window.end - window.begin]
        del output, log_probs, item  # or two batches would be in memory at once


def _batches(windows: Sequence[Window], size: int) -> Iterator[list[Window]]:
    """Yields neighbouring windows of one length, at most ``size`` at once."""
    batch: list[Window] = []
    for window in windows:
        if batch and (len(batch) == size or window.stop - window.start != batch[0].stop - batch[0].start):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


class _Stream:
    """Samples, of which only those blocks are kept that later windows need."""

    def __init__(self, name: str, samples: Samples) -> None:
        self.name = name
        self.blocks = _blocks_of(name, samples)
        self.may_change = not isinstance(samples, Tensor)  # a reader may use the memory of a block again
        self.kept: deque[tuple[int, Tensor]] = deque()  # the first sample of each block; without gaps
        self.read = 0

    def take(self, start: int, stop: int) -> Tensor:
        """Returns the samples [start, stop). ``start`` never decreases from call to call."""
        while self.read < stop:
            block = next(self.blocks, None)
            if block is None:
                raise refusal(
                    self.name,
                    None,
                    f"samples must reach to the end of the last window, expected at least {stop} here, found "
                    f"{self.read} in all; pass the right num_samples",
                )
            _check_block(self.name, block)
            self.kept.append((self.read, block.detach().to(torch.float32, copy=True) if self.may_change else block))
            self.read += len(block)
            self._drop(start)
        self._drop(start)
        parts = [block[max(start - at, 0) : stop - at] for at, block in self.kept if at < stop]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _drop(self, start: int) -> None:
        while self.kept and self.kept[0][0] + len(self.kept[0][1]) <= start:
            self.kept.popleft()


# ---------------------------------------------------------------------------------------------------- the checks


def _integer(name: str, argument: str, value: object, least: int) -> int:
    number = index_of(value)
    if number is None:
        raise TypeError(f"{name}: {argument} must be an int, found {brief(value)}")
    if number < least:
        raise refusal(name, None, f"{argument} must be at least {least}, found {number}")
    return number


def _blocks_of(name: str, samples: Samples) -> Iterator[Tensor]:
    if isinstance(samples, Tensor):
        _check_block(name, samples)
        return iter([samples.detach()])
    if not isinstance(samples, Iterable) or hasattr(samples, "__array__"):
        check_tensor(name, "samples", samples, "(N,)")
    return iter(samples)


def _check_block(name: str, block: Tensor) -> None:
    check_tensor(name, "samples", block, "(N,)")
    if block.dim() != 1:
        raise refusal(name, None, f"samples must have shape (N,), one channel, found {tuple(block.shape)}")
    if not block.dtype.is_floating_point:
        raise refusal(name, None, f"samples must be floating point in [-1, 1], found {dtype_name(block)}")


def _check_output(name: str, output: object, batch: list[Window]) -> Tensor:
    """Returns the log_probs (B, T, C) of a model that made the frames that it should."""
    log_probs, lengths = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
    if not isinstance(log_probs, Tensor) or log_probs.dim() != 3 or len(log_probs) != len(batch):
        found = f"shape {tuple(log_probs.shape)}" if isinstance(log_probs, Tensor) else kind_of(output)
        raise refusal(
            name,
            None,
            f"run must return log_probs (B, T, C) with B = {len(batch)}, alone or with the frames of each item, "
            f"found {found}",
        )
    if log_probs.dtype not in FLOATS:
        raise refusal(
            name, None, f"run must return float16, bfloat16, float32 or float64, found {dtype_name(log_probs)}"
        )
    there = log_probs.shape[1]
    made = [there] * len(batch) if lengths is None else torch.as_tensor(lengths).flatten().tolist()
    if len(made) != len(batch):
        raise refusal(
            name,
            None,
            f"run must return the frames (B,) of each item with B = {len(batch)}, found {len(made)} numbers",
        )
    # Without lengths, all frames are said to be in use: one too many is as wrong as one too few.
    for window, frames in zip(batch, made, strict=True):
        if frames != window.frames or frames > there:
            raise refusal(
                name,
                None,
                f"run must return a frame for every hop of its samples, expected {window.frames} for "
                f"{window.stop - window.start} samples, found {min(frames, there)}; pass the model's own hop and "
                "receptive_field",
            )
    return log_probs


def _prepare(name: str, out: Tensor | None, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    if out is None:
        return torch.empty(shape, dtype=dtype, device="cpu")
    check_tensor(name, "out", out, "(T, C)")
    if tuple(out.shape) != shape:
        raise refusal(name, None, f"out must have shape (T, C) = {shape}, found {tuple(out.shape)}")
    if out.dtype not in FLOATS:
        raise refusal(name, None, f"out must be float16, bfloat16, float32 or float64, found {dtype_name(out)}")
    return out
