"""Reads recordings of any length in blocks: one channel, at the rate that the model wants."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Union

import torch
from torch import Tensor

from torch_ctc_align.speech.errors import SpeechError, require

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Audio", "open_audio", "read_samples"]

Source = Union[str, "os.PathLike[str]", tuple[Union[Tensor, "np.ndarray[Any, Any]"], int]]

BLOCK_FRAMES = 1 << 16  # of the source, read at once
MAX_FRAMES = 1 << 48  # what libsndfile says where it does not know the length is above it
LEAST_SHORTFALL = 0.1  # seconds; a recording that ends so much before its header says is not trusted


class Reader(Protocol):
    """What can be read as sound; ``frames`` is None where only reading tells how many there are."""

    rate: int
    channels: int
    frames: int | None

    def read(self, begin: int) -> Iterator[Tensor]:
        """Yields (n,) float32, the mean of all channels, from frame ``begin`` on."""
        ...


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
        for block in self._resampled():
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
        left = self.frames
        for block in self.reader.read(self.begin):
            block = block[:left]
            finite = torch.isfinite(block)
            if not finite.all():
                frame = self.begin + self.frames - left + int((~finite).int().argmax())
                raise SpeechError(
                    f"{self.name} has a sample that is not a finite number, {float(block[~finite][0])} at "
                    f"{frame / self.reader.rate:.3f} s; repair the recording, or align the part before it with duration="
                )
            left -= len(block)
            yield block
            if not left:
                return
        if left > LEAST_SHORTFALL * self.reader.rate:
            end = (self.begin + self.frames - left) / self.reader.rate
            said = (self.begin + self.frames) / self.reader.rate
            raise SpeechError(
                f"{self.name} ends after {end:.3f} s, though its header says {said:.3f} s; the file is cut short: get it "
                f"again, or align what is there with duration={max(end - self.offset, 0):.3f}"
            )


def open_audio(source: Source, sample_rate: int, *, offset: float = 0.0, duration: float | None = None) -> Audio:
    """Opens a recording; reading happens in :meth:`Audio.blocks`.

    Args:
        source: a file, or ``(samples, rate)``: a tensor or an array, ``(N,)`` or ``(channels, N)``, floating point in
            [-1, 1] or integers of 8 to 32 bits; and its rate in Hz. Channels are mixed down to their mean.
        sample_rate: Hz, of the samples that come out.
        offset: seconds of the recording that are left out at its beginning.
        duration: seconds that are read from there on, or up to the end if that comes earlier. Default: all.

    Returns:
        The recording: ``round(frames * sample_rate / rate)`` samples.

    Raises:
        SpeechError: there is no such file, it holds no sound or cannot be read, or an argument is out of range.
    """
    if not isinstance(sample_rate, int) or sample_rate < 1:
        raise SpeechError(f"sample_rate must be a whole number of Hz above 0, found {sample_rate!r}")
    if not (math.isfinite(offset) and offset >= 0):
        raise SpeechError(f"offset must be a number of seconds, 0 or above, found {offset!r}")
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise SpeechError(f"duration must be a number of seconds above 0, found {duration!r}")

    notes: list[str] = []
    path = None
    if isinstance(source, tuple):
        reader, name = _read_array(source), "the recording"
    elif isinstance(source, (str, bytes, os.PathLike)):
        path = Path(os.fsdecode(source))
        reader, name = _read_file(path, sample_rate), show(path)
    else:
        raise SpeechError(f"a recording is a path or a pair (samples, rate), found {type(source).__name__}")

    rate = reader.rate
    begin = round(offset * rate)
    wanted = None if duration is None else max(round(duration * rate), 1)
    there = reader.frames
    if there is None:
        there = _count(reader, None if wanted is None else begin + wanted)
    if not there:
        raise SpeechError(f"{name} holds no sound: it has 0 samples")
    if begin >= there:
        raise SpeechError(f"offset is {offset:g} s, but {name} is only {there / rate:.3f} s long")
    frames = there - begin if wanted is None else min(wanted, there - begin)
    num_samples = round(Fraction(frames * sample_rate, rate))
    if not num_samples:
        raise SpeechError(f"{name} is too short: {frames} samples at {rate} Hz are none at {sample_rate} Hz")
    if reader.channels > 1:
        notes.append(f"{reader.channels} channels mixed down to one")
    if rate != sample_rate:
        require("soxr", "resampling")
        notes.append(f"resampled from {rate} Hz to {sample_rate} Hz")
    return Audio(path, sample_rate, num_samples, begin / rate, reader, begin, frames, name, notes)


def read_samples(source: Source, sample_rate: int, *, offset: float = 0.0, duration: float | None = None) -> Tensor:
    """Reads a recording, or a part of it, at once: (N,) float32 in [-1, 1]. See :func:`open_audio`."""
    audio = open_audio(source, sample_rate, offset=offset, duration=duration)
    samples = torch.empty(audio.num_samples)
    place = 0
    for block in audio.blocks():
        samples[place : place + len(block)] = block
        place += len(block)
    return samples


def show(path: Path) -> str:
    """Returns the path as text that can be printed: file names need not be valid text."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def _count(reader: Reader, enough: int | None) -> int:
    """Decodes, without keeping anything, to learn how many frames there are; stops at ``enough``."""
    frames = 0
    for block in reader.read(0):
        frames += len(block)
        if enough is not None and frames >= enough:
            return enough
    return frames


# Samples in memory ---------------------------------------------------------------------------------------------------


@dataclass
class ArrayReader:
    """Samples in memory, (N,) or (channels, N)."""

    samples: Tensor
    rate: int

    def __post_init__(self) -> None:
        self.channels = self.samples.shape[0] if self.samples.ndim == 2 else 1
        self.frames: int | None = self.samples.shape[-1]

    def read(self, begin: int) -> Iterator[Tensor]:
        for start in range(begin, self.samples.shape[-1], BLOCK_FRAMES):
            block = self.samples[..., start : start + BLOCK_FRAMES].detach().cpu()
            if block.dtype == torch.uint8:  # silence is 128
                block = (block.float() - 128) / 128
            elif not block.is_floating_point():
                block = (block.double() / -torch.iinfo(block.dtype).min).float()
            block = block.float()
            yield block.mean(0) if block.ndim == 2 else block


def _read_array(source: tuple[Any, ...]) -> Reader:
    if len(source) != 2 or isinstance(source[1], bool) or not isinstance(source[1], int) or source[1] < 1:
        raise SpeechError("samples come as a pair (samples, rate), rate a whole number of Hz above 0")
    try:
        samples = torch.as_tensor(source[0])
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpeechError(f"samples must be a tensor or an array of numbers: {error}") from None
    integers = (torch.uint8, torch.int8, torch.int16, torch.int32)
    if not (samples.is_floating_point() or samples.dtype in integers):
        raise SpeechError(
            f"samples must be floating point in [-1, 1] or integers of 8 to 32 bits, found {samples.dtype}"
        )
    if samples.ndim not in (1, 2):
        raise SpeechError(f"samples must be (N,) or (channels, N), found the shape {tuple(samples.shape)}")
    if samples.ndim == 2 and samples.shape[0] > samples.shape[1] > 0:
        raise SpeechError(
            f"samples must be (N,) or (channels, N), found the shape {tuple(samples.shape)}; if that is (N, channels), "
            f"pass samples.T"
        )
    return ArrayReader(samples, source[1])


# Files ---------------------------------------------------------------------------------------------------------------


def _read_file(path: Path, sample_rate: int) -> Reader:
    name = show(path)
    try:
        with open(path, "rb") as file:
            head = file.read(1)
    except FileNotFoundError:
        raise SpeechError(f"there is no file {name}") from None
    except IsADirectoryError:
        raise SpeechError(f"{name} is a folder, not a recording") from None
    except (OSError, ValueError) as error:  # a null character in the name is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise SpeechError(f"{name} cannot be opened: {reason}") from None
    if not head:
        raise SpeechError(f"{name} is empty: it has 0 bytes")

    reasons = []
    sound: Reader | None = None
    for kind in (SoundfileReader, AvReader, TorchcodecReader):
        try:
            sound = kind(path)
        except Unreadable as error:
            reasons.append(str(error))
        else:
            return sound
    raise SpeechError(f"{name} cannot be read as a recording ({'; '.join(reasons)}); {_convert(path, sample_rate)}")


def _convert(path: Path, sample_rate: int) -> str:
    """Says how to get a file that can be read."""
    target = path.with_suffix(".wav" if path.suffix.lower() != ".wav" else ".converted.wav")
    # A name that begins with a dash would be an option.
    source, result = (("./" if str(p).startswith("-") else "") + show(p) for p in (path, target))
    return f"convert it: ffmpeg -i {shlex.quote(source)} -ar {sample_rate} -ac 1 {shlex.quote(result)}"


class Unreadable(Exception):
    """A library cannot read a file; another one may."""


@dataclass
class SoundfileReader:
    """WAV, FLAC, OGG, MP3, and what else libsndfile knows."""

    path: Path

    def __post_init__(self) -> None:
        self.soundfile = require("soundfile", "reading audio")
        with self.open() as file:
            self.rate, self.channels = int(file.samplerate), int(file.channels)
            self.frames: int | None = int(file.frames)
            mp3 = file.format == "MP3" or file.subtype.startswith("MPEG")
        if self.frames is None or self.frames > MAX_FRAMES:
            raise Unreadable("its header does not say how long it is")
        if mp3:
            self.frames = None

    def open(self) -> Any:
        try:
            return self.soundfile.SoundFile(os.fsencode(self.path))
        except (self.soundfile.SoundFileError, TypeError, OSError) as error:
            reason = getattr(error, "error_string", error)
            raise Unreadable(f"soundfile: {str(reason).rstrip('.')}") from None

    def read(self, begin: int) -> Iterator[Tensor]:
        with self.open() as file:
            try:
                if begin:
                    file.seek(begin)
                while len(block := file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
                    yield torch.from_numpy(block.mean(axis=1) if self.channels > 1 else block[:, 0])
            except self.soundfile.LibsndfileError as error:
                raise SpeechError(f"{show(self.path)} is damaged: {error.error_string}") from None


@dataclass
class AvReader:
    """What FFmpeg reads: M4A, MP4, MKV, WebM and many more."""

    path: Path

    def __post_init__(self) -> None:
        try:
            self.av = require("av", "reading this file")
        except SpeechError as error:
            raise Unreadable(str(error)) from None
        self.frames: int | None = None
        with self.open() as container:
            if not container.streams.audio:
                raise SpeechError(f"{show(self.path)} has no sound: there is no audio stream in it")
            stream = container.streams.audio[0]
            self.rate, self.channels = int(stream.codec_context.sample_rate), int(stream.codec_context.channels)

    def open(self) -> Any:
        # Only this file: a playlist may name others, or addresses.
        try:
            return self.av.open(f"file:{self.path}", options={"protocol_whitelist": "file"})
        except (self.av.FFmpegError, ValueError, OSError) as error:
            raise Unreadable(f"PyAV: {getattr(error, 'strerror', None) or error}") from None

    def read(self, begin: int) -> Iterator[Tensor]:
        resampler = self.av.AudioResampler(format="fltp")
        with self.open() as container:
            try:
                for frame in container.decode(container.streams.audio[0]):
                    for part in resampler.resample(frame):
                        block = torch.from_numpy(part.to_ndarray())
                        if begin >= block.shape[1]:
                            begin -= block.shape[1]
                            continue
                        yield block[:, begin:].mean(0)
                        begin = 0
            except self.av.FFmpegError as error:
                raise SpeechError(f"{show(self.path)} is damaged: {error.strerror}") from None


@dataclass
class TorchcodecReader:
    """As :class:`AvReader`, through torchcodec."""

    path: Path
    SECONDS = 10  # decoded at once

    def __post_init__(self) -> None:
        with suppress(Exception):  # what it raises where its FFmpeg is missing differs between versions
            from torchcodec.decoders import AudioDecoder

            self.decoder = AudioDecoder
            metadata = AudioDecoder(self.path).metadata
            self.rate, self.channels = int(metadata.sample_rate), int(metadata.num_channels)
            self.frames: int | None = None
            return
        raise Unreadable("torchcodec")

    def read(self, begin: int) -> Iterator[Tensor]:
        raise NotImplementedError
