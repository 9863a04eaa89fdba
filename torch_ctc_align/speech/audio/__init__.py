"""Reads recordings of any length in blocks: one channel, at the rate that the model wants."""

from __future__ import annotations

import io
import math
import os
import shlex
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import torch
from torch import Tensor

from torch_ctc_align.speech.audio.readers import (
    ArrayReader,
    AvReader,
    CutShort,
    Reader,
    SoundfileReader,
    TorchcodecReader,
    Unreadable,
    show,
)
from torch_ctc_align.speech.errors import SpeechError, require

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Audio", "gather", "open_audio", "read_samples"]

Source = Union[str, "os.PathLike[str]", io.BytesIO, tuple[Union[Tensor, "np.ndarray[Any, Any]"], int]]

LOUDEST = 256.0  # 48 dB above full scale: what is louder holds integers
LEAST_CLIPPED = 1.5  # lossy formats go a little above 1, and that is not worth a word
LEAST_SHORTFALL = 0.1  # seconds; a recording that ends so much before its header says is not trusted


@dataclass
class Audio:
    """A recording, or a part of it: one channel, at the rate that was asked for.

    Attributes:
        path: its file; None if samples were given.
        sample_rate: Hz, of what :meth:`blocks` yields.
        num_samples: what :meth:`blocks` yields in all.
        offset: seconds from the beginning of the recording to the first sample.
        notes: sentences about what was done to the sound, for the user.
        peak: the largest absolute value of the samples; valid after the last block.
    """

    path: Path | None
    sample_rate: int
    num_samples: int
    offset: float
    reader: Reader = field(repr=False)
    begin: int = field(repr=False)  # frames of the reader
    frames: int = field(repr=False)
    name: str = field(repr=False)  # for messages
    notes: list[str] = field(default_factory=list)
    peak: float = 0.0
    held: Any = field(default=None, repr=False)  # the file of a recording that was given as its content

    @property
    def seconds(self) -> float:
        """Duration of what is read."""
        return self.num_samples / self.sample_rate

    def blocks(self) -> Iterator[Tensor]:
        """Yields the samples from the first one on, (n,) float32 in [-1, 1].

        Every call begins again. Memory does not depend on the recording's length.

        Raises:
            SpeechError: the file is damaged or ends early, or a sample is not a finite number.
        """
        self.peak = 0.0
        left = self.num_samples
        for block in _call_it(self.name, self.held, self._resampled()):
            block = block[:left].clamp(-1, 1)
            if len(block):
                left -= len(block)
                self.peak = max(self.peak, float(block.abs().max()))
                yield block
        if left:  # a resampler and a header may round differently
            yield torch.zeros(left)

    def _resampled(self) -> Iterator[Tensor]:
        if self.reader.rate == self.sample_rate:
            yield from self._source_blocks()
            return
        stream = require("soxr", "resampling").ResampleStream(self.reader.rate, self.sample_rate, 1, dtype="float32")
        for block in self._source_blocks():
            yield torch.from_numpy(stream.resample_chunk(block.numpy()))
        yield torch.from_numpy(stream.resample_chunk(torch.zeros(0).numpy(), last=True))

    def _source_blocks(self) -> Iterator[Tensor]:
        """Yields the part of the recording that is wanted, checked."""
        rate, left, loudest = self.reader.rate, self.frames, 0.0
        for block in self.reader.read(self.begin, self.frames):
            block = block[:left]
            finite = torch.isfinite(block)
            if not finite.all():
                time = (self.begin + self.frames - left + int((~finite).int().argmax())) / rate
                raise SpeechError(
                    f"{self.name} holds {float(block[~finite][0])} at {time:.3f} s, and samples must be finite; "
                    f"repair it, or leave that place out, in Python or a manifest, with duration= or offset="
                )
            loudest = max(loudest, float(block.abs().max())) if len(block) else loudest
            if loudest > LOUDEST:
                raise SpeechError(
                    f"{self.name} holds samples up to {loudest:g}, and they must lie in [-1, 1]; divide them by the "
                    f"largest integer of their type, 32768 for 16 bits"
                )
            left -= len(block)
            yield block
            if not left:
                break
        if left > LEAST_SHORTFALL * rate:
            end, said = (self.begin + self.frames - left) / rate, (self.begin + self.frames) / rate
            raise CutShort(self.name, end, said, self.offset)
        notes = [
            *self.reader.notes,
            *([f"samples up to {loudest:.2f} clipped to 1"] if loudest > LEAST_CLIPPED else []),
        ]
        self.notes += [note for note in notes if note not in self.notes]


def open_audio(source: Source, sample_rate: int, *, offset: float = 0.0, duration: float | None = None) -> Audio:
    """Opens a recording; reading happens in :meth:`Audio.blocks`.

    Args:
        source: a file; or ``io.BytesIO(content)`` of one; or ``(samples, rate)``: a tensor or an array, ``(N,)`` or
            ``(channels, N)``, floating point in [-1, 1] or integers of 8 to 32 bits; and its rate in Hz. Channels are
            mixed down to their mean.
        sample_rate: Hz, of the samples that come out.
        offset: seconds of the recording that are left out at its beginning.
        duration: seconds that are read from there on, or up to the end if that comes earlier. Default: all.

    Returns:
        The recording: ``round(frames * sample_rate / rate)`` samples.

    Raises:
        SpeechError: there is no such file, it holds no sound or cannot be read, or an argument is out of range.
    """
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, int) or sample_rate < 1:
        raise SpeechError(f"sample_rate must be a whole number of Hz above 0, found {sample_rate!r}")
    if not isinstance(offset, Real) or not 0 <= offset < math.inf:
        raise SpeechError(f"offset must be a number of seconds, 0 or above, found {offset!r}")
    if duration is not None and (not isinstance(duration, Real) or not 0 < duration < math.inf):
        raise SpeechError(f"duration must be a number of seconds above 0, found {duration!r}")

    path, name, held = None, "the recording", None
    reader: Reader
    if isinstance(source, tuple):
        reader = ArrayReader(source)
    elif isinstance(source, io.BytesIO):
        held = _hold(source)
        with _called(name, held):
            reader = _read_file(Path(held.name), None)
    elif isinstance(source, (str, bytes, os.PathLike)):
        path = Path(os.fsdecode(source))
        reader, name = _read_file(path, sample_rate), show(path)
    else:
        raise SpeechError(f"a recording is a path, io.BytesIO or a pair (samples, rate), found {type(source).__name__}")

    rate = reader.rate
    begin = round(offset * rate)
    wanted = None if duration is None else max(round(duration * rate), 1)
    there = reader.frames
    if there is None:
        try:
            with _called(name, held):
                there = _count(reader, None if wanted is None else begin + wanted)
        except CutShort as error:  # only here is the offset known
            raise CutShort(name, error.end, error.said, offset) from None
    if not there:
        raise SpeechError(f"{name} holds no sound: it has 0 samples")
    if begin >= there:
        raise SpeechError(f"offset is {offset:g} s, but {name} is only {there / rate:.3f} s long")
    frames = there - begin if wanted is None else min(wanted, there - begin)
    num_samples = round(Fraction(frames * sample_rate, rate))
    if not num_samples:
        raise SpeechError(f"{name} is too short: {frames} samples at {rate} Hz are none at {sample_rate} Hz")
    notes = list(reader.notes)
    if reader.channels > 1:
        notes.append(f"{reader.channels} channels mixed down to one")
    if rate != sample_rate:
        require("soxr", "resampling")
        notes.append(f"resampled from {rate} Hz to {sample_rate} Hz")
    return Audio(path, sample_rate, num_samples, begin / rate, reader, begin, frames, name, notes, held=held)


def read_samples(source: Source, sample_rate: int, *, offset: float = 0.0, duration: float | None = None) -> Tensor:
    """Reads a recording, or a part of it, at once: (N,) float32 in [-1, 1]. See :func:`open_audio`."""
    return gather(open_audio(source, sample_rate, offset=offset, duration=duration))


def gather(audio: Audio) -> Tensor:
    """Reads all of an opened recording: (N,) float32 in [-1, 1]."""
    samples = torch.empty(audio.num_samples)
    place = 0
    for block in audio.blocks():
        samples[place : place + len(block)] = block
        place += len(block)
    return samples


def _count(reader: Reader, enough: int | None) -> int:
    """Decodes, without keeping anything, to learn how many frames there are; stops at ``enough``."""
    frames = 0
    for block in reader.read(0, enough):
        frames += len(block)
        if enough is not None and frames >= enough:
            return enough
    return frames


# Content -------------------------------------------------------------------------------------------------------------


def _hold(content: io.BytesIO) -> Any:
    """A file with this content, for libraries that open names; it goes away with the object that is returned."""
    held = tempfile.NamedTemporaryFile()  # noqa: SIM115
    held.write(content.getbuffer())
    held.flush()
    return held


@contextmanager
def _called(name: str, held: Any) -> Iterator[None]:
    """Gives the recording its name in messages, in place of that of a temporary file."""
    try:
        yield
    except SpeechError as error:
        if held is not None:
            error.args = (str(error).replace(held.name, name),)
        raise


def _call_it(name: str, held: Any, blocks: Iterator[Tensor]) -> Iterator[Tensor]:
    with _called(name, held):
        yield from blocks


# Files ---------------------------------------------------------------------------------------------------------------


def _read_file(path: Path, sample_rate: int | None) -> Reader:
    """Opens a file; ``sample_rate`` is for the advice to convert it, None for a file that the caller does not have."""
    name = show(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            what = "a folder" if path.is_dir() else "not a regular file, so it cannot be read twice"
            raise SpeechError(f"{name} is {what}; give the file of a recording")
        with open(path, "rb") as file:
            empty = not file.read(1)
    except FileNotFoundError:
        raise SpeechError(f"there is no file {name}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        if isinstance(error, SpeechError):
            raise
        raise SpeechError(f"{name} cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    if empty:
        raise SpeechError(f"{name} is empty: it has 0 bytes")

    reasons = []
    kinds: list[Callable[[Path], Reader]] = [SoundfileReader, AvReader, TorchcodecReader]
    for kind in kinds:
        try:
            return kind(path)
        except Unreadable as error:
            reasons.append(str(error))
    advice = "" if sample_rate is None else f"; {_convert(path, sample_rate)}"
    raise SpeechError(f"{name} cannot be read as sound ({', '.join(reasons)}){advice}")


def _convert(path: Path, sample_rate: int) -> str:
    """Says how to get a file that can be read."""
    target = path.with_suffix(".wav" if path.suffix.lower() != ".wav" else ".converted.wav")
    # A name that begins with a dash would be an option.
    source, result = (("./" if str(p).startswith("-") else "") + show(p) for p in (path, target))
    return f"convert it: ffmpeg -i {shlex.quote(source)} -ar {sample_rate} -ac 1 {shlex.quote(result)}"
