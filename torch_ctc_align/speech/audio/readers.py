"""What can be read as sound: samples in memory, and files through soundfile, PyAV or torchcodec."""

from __future__ import annotations

import importlib
import io
import math
import operator
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from torch_ctc_align.speech.errors import SpeechError, require

__all__ = ["ArrayReader", "AvReader", "Reader", "SoundfileReader", "TorchcodecReader", "Unreadable", "show"]

BLOCK_FRAMES = 1 << 14  # of the recording, read at once
MAX_FRAMES = 1 << 48  # libsndfile says more where it does not know
MAX_WAV_BYTES = 0x7FFF0000  # programs that write into a pipe put a larger size into the header
TIME_SLACK = 0.1  # seconds; time stamps that are rounded or drift stay below, sound that is missing is above


class Unreadable(Exception):
    """A library cannot read a file; another one may."""


class Reader(Protocol):
    """One recording at its own rate.

    Attributes:
        rate: Hz.
        channels: how many there are; :meth:`read` yields their mean.
        frames: how many its header says there are; None where only reading tells.
        notes: sentences for the user.
    """

    rate: int
    channels: int
    frames: int | None
    notes: list[str]

    def read(self, begin: int, count: int | None = None) -> Iterator[Tensor]:
        """Yields (n,) float32 from frame ``begin`` on.

        Args:
            count: frames that the caller needs; more may come. Default: all.
        """


def show(path: Path) -> str:
    """Returns the path as text that can be printed: a file name may be any bytes."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


class CutShort(SpeechError):
    """A file ends at ``end``, though its header says ``said``; what is read begins at ``offset``. All in seconds."""

    def __init__(self, name: str, end: float, said: float, offset: float = 0.0) -> None:
        there = math.floor(1000 * max(end - offset, 0)) / 1000
        advice = f", or take what is there, in Python or a manifest, with duration={there:g}" if there else ""
        super().__init__(
            f"{name} ends after {end:.3f} s, though its header says {said:.3f} s: it is cut short; get it again{advice}"
        )
        self.end, self.said = end, said


class ArrayReader:
    """Samples in memory: ``(samples, rate)``."""

    def __init__(self, source: tuple[Any, ...]) -> None:
        try:
            samples, rate = source
            self.rate = operator.index(rate)
        except (TypeError, ValueError):
            self.rate = 0
        if self.rate < 1:
            raise SpeechError("samples come as a pair (samples, rate), the rate a whole number of Hz above 0")
        try:
            if not isinstance(samples, Tensor) and hasattr(samples, "__array__"):
                # torch takes no foreign byte order and no negative strides, and warns of arrays that are read-only.
                numpy = require("numpy", "reading arrays")
                samples = numpy.asarray(samples)
                samples = numpy.require(samples, samples.dtype.newbyteorder("="), ["C", "W"])
            self.samples = torch.as_tensor(samples).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise SpeechError(f"samples must be a tensor or an array of numbers: {error}") from None
        shape, dtype = tuple(self.samples.shape), self.samples.dtype
        if not (dtype.is_floating_point or dtype in (torch.uint8, torch.int8, torch.int16, torch.int32)):
            raise SpeechError(f"samples must be floating point in [-1, 1] or integers of 8 to 32 bits, found {dtype}")
        # soundfile returns (N, channels). No recording has more channels than samples, so that mistake shows.
        if len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] > shape[1] > 0):
            advice = "; if that is (N, channels), pass samples.T" if len(shape) == 2 else ""
            raise SpeechError(f"samples must be (N,) or (channels, N), found the shape {shape}{advice}")
        self.channels = shape[0] if len(shape) == 2 else 1
        self.frames: int | None = shape[-1] if self.channels else 0
        self.notes: list[str] = []

    def read(self, begin: int, count: int | None = None) -> Iterator[Tensor]:
        """See :class:`Reader`."""
        for start in range(begin, self.samples.shape[-1], BLOCK_FRAMES):
            block = self.samples[..., start : start + BLOCK_FRAMES].cpu()
            if block.dtype == torch.uint8:  # 128 is silence
                block = (block.float() - 128) / 128
            elif not block.is_floating_point():
                block = block.double() / -torch.iinfo(block.dtype).min
            block = block.float().contiguous()
            yield mix(block) if block.ndim == 2 else block


@dataclass
class SoundfileReader:
    """WAV, FLAC, OGG, MP3, and what else libsndfile knows."""

    path: Path
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.soundfile = require("soundfile", "reading audio")

        # SoundFile seeks to where it already is after every block. In an MP3 of varying bit rate it then arrives
        # elsewhere, and in a FLAC file of unknown length it fails. What cannot seek is read as it comes.
        class Sequential(self.soundfile.SoundFile):  # type: ignore[misc, name-defined]
            def seekable(self) -> bool:
                return False

        self.sequential = Sequential
        self.long_mp3 = False
        with self._open(self.soundfile.SoundFile) as file:
            self.rate, self.channels = int(file.samplerate), int(file.channels)
            self.frames: int | None = int(file.frames) if file.frames < MAX_FRAMES else None
            self.exact_seek = file.seekable() and not file.subtype.startswith("MPEG") and self.frames is not None
            self._correct_length(file)

    def _correct_length(self, file: Any) -> None:
        """Makes up for headers that libsndfile believes, and that are wrong."""
        if file.format == "MP3":
            tagged, concatenated = read_mp3_tag(self.path)
            if concatenated:
                raise Unreadable("soundfile reads only the first of the MP3 files that were put together here")
            if not tagged:
                self.frames, self.long_mp3 = None, True
        # A WAV file that is cut short has the length that is there, and says so only here.
        cut = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
        if cut and self.frames:
            said, found = map(int, cut.groups())
            if 0 < found < said < MAX_WAV_BYTES:
                self.frames = self.frames * said // found

    def _open(self, kind: Any) -> Any:
        try:
            return kind(LongFile(self.path) if self.long_mp3 else os.fsencode(self.path))
        except (self.soundfile.SoundFileError, TypeError, OSError) as error:  # TypeError: headerless, named .raw
            reason = getattr(error, "error_string", None) or str(error)
            raise Unreadable(f"soundfile says {reason.rstrip('.')!r}") from None

    def read(self, begin: int, count: int | None = None) -> Iterator[Tensor]:
        """See :class:`Reader`."""
        with self._open(self.soundfile.SoundFile if self.exact_seek else self.sequential) as file:
            place = 0
            end = None if count is None else begin + count
            try:
                if self.exact_seek:
                    place = file.seek(begin)
                while end is None or place < end:
                    # A damaged place behind the end does no harm.
                    size = BLOCK_FRAMES if end is None else min(BLOCK_FRAMES, end - place)
                    block = file.read(size, dtype="float32", always_2d=True)
                    if not len(block):
                        return
                    sound = block[max(begin - place, 0) :]
                    place += len(block)
                    if len(sound):
                        yield torch.from_numpy(sound.mean(axis=1) if self.channels > 1 else sound[:, 0])
            except self.soundfile.LibsndfileError as error:
                times = f"{place / self.rate:.2f} and {(place + BLOCK_FRAMES) / self.rate:.2f} s"
                raise SpeechError(
                    f"{show(self.path)} is damaged between {times} ({error.error_string.rstrip('.')}); get it again, "
                    f"or leave that place out, in Python or a manifest, with duration= or offset="
                ) from None


def read_mp3_tag(path: Path) -> tuple[bool, bool]:
    """Says whether an MP3 file has a tag with its length, and whether more MP3 follows what the tag describes."""
    with open(path, "rb") as file:
        head = file.read(10)
        start = 0
        if head[:3] == b"ID3":  # its size has 7 bits a byte
            start = 10 + sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        file.seek(start)
        head = file.read(4096)
        frame = re.search(rb"\xff[\xe0-\xff].{7,34}?(?:Xing|Info)(.{12})", head, re.DOTALL)
        if not frame or frame[1][3] & 3 != 3:  # it has both frames and bytes
            return False, False
        file.seek(start + frame.start() + int.from_bytes(frame[1][8:12], "big"))
        follows = file.read(131)
        if follows[:3] == b"TAG":  # 128 bytes at the end of a file
            follows = follows[128:]
        return True, follows[:3] == b"ID3" or (follows[:1] == b"\xff" and follows[1:2] >= b"\xe0")


class LongFile(io.RawIOBase):
    """A file that claims to be longer than it is.

    libsndfile takes the length of an MP3 file without a tag from its size and its first bit rate, and reads no further.
    The largest bit rate is 40 times the smallest.
    """

    FACTOR = 64

    def __init__(self, path: Path) -> None:
        self.file = open(path, "rb")  # noqa: SIM115
        self.size = os.path.getsize(path)
        self.place = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file."""
        self.place = offset + (0, self.place, self.size * self.FACTOR)[whence]
        return self.place

    def tell(self) -> int:
        """As of any file."""
        return self.place

    def readinto(self, buffer: Any) -> int:
        """Reads what there is, and zeros at the far end, where a tag is looked for."""
        if self.place >= self.size * self.FACTOR - 128:
            buffer[:] = bytes(len(buffer))
            count = len(buffer)
        else:
            self.file.seek(min(self.place, self.size))
            count = self.file.readinto(buffer)
        self.place += count
        return count

    def close(self) -> None:
        """As of any file."""
        self.file.close()
        super().close()


@dataclass
class AvReader:
    """What FFmpeg reads: M4A, MP4, MKV, WebM and many more, through PyAV.

    Sound stands where its time stamps say: what is missing at the beginning of a video or within is silence.
    """

    path: Path
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        try:
            self.av = importlib.import_module("av")
        except ImportError:
            raise Unreadable("PyAV is not installed: pip install 'torch_ctc_align[media]'") from None
        self.frames: int | None = None
        with open(self.path, "rb") as file, self._open(file) as container:
            streams = container.streams.audio
            if not streams:
                raise SpeechError(f"{show(self.path)} has no sound: there is no audio stream in it")
            if len(streams) > 1:
                self.notes.append(f"one of {len(streams)} audio streams read")
            # What the header says may be half the rate of what comes (HE-AAC).
            first = next((frame for frame in self._decode(container) if frame is not None), None)
            if first is None:
                raise Unreadable("PyAV cannot decode its sound")
            self.rate, self.channels = int(first.sample_rate), len(first.layout.channels)

    def _open(self, file: Any) -> Any:
        try:  # a playlist may name addresses: they are not followed
            return self.av.open(file, options={"protocol_whitelist": "file"})
        except (self.av.FFmpegError, ValueError, OSError) as error:
            raise Unreadable(f"PyAV says {str(getattr(error, 'strerror', None) or error)!r}") from None

    def _decode(self, container: Any) -> Iterator[Any]:
        """Yields frames of the best stream, and None for a packet that cannot be decoded."""
        try:
            for packet in container.demux(container.streams.best("audio")):
                try:
                    yield from packet.decode()
                except self.av.FFmpegError:
                    yield None
        except self.av.FFmpegError as error:
            raise SpeechError(f"{show(self.path)} is damaged: {error.strerror}") from None

    def read(self, begin: int, count: int | None = None) -> Iterator[Tensor]:
        """See :class:`Reader`."""
        pending: list[Tensor] = []
        frames, left = 0, math.inf if count is None else count
        for block in self._read_frames():  # of some 1024 samples: too few for the work on each to pay
            skipped, begin = min(begin, len(block)), max(begin - len(block), 0)
            pending.append(block[skipped:])
            frames += len(block) - skipped
            if frames >= min(BLOCK_FRAMES, left):
                yield torch.cat(pending)
                left -= frames
                if left <= 0:  # a file that is cut short has all that was asked for
                    return
                pending, frames = [], 0
        if frames:
            yield torch.cat(pending)

    def _read_frames(self) -> Iterator[Tensor]:
        resamplers: dict[tuple[str, str, int], Any] = {}
        place = damaged = 0  # in frames, in packets
        with open(self.path, "rb") as file, self._open(file) as container:
            zero = (container.start_time or 0) / 1_000_000
            # A time stamp behind the end is wrong. The end may be rounded.
            longest = math.inf if container.duration is None else (container.duration / 1_000_000 + 1) * self.rate
            for frame in self._decode(container):
                if frame is None:
                    damaged += 1
                    continue
                kind = (frame.format.name, frame.layout.name, frame.sample_rate)
                if kind not in resamplers:
                    resamplers[kind] = self.av.AudioResampler(format="fltp", rate=self.rate)
                blocks = [mix(torch.from_numpy(part.to_ndarray())) for part in resamplers[kind].resample(frame)]
                if frame.pts is not None:
                    gap = round((float(frame.pts * frame.time_base) - zero) * self.rate) - place
                    if (TIME_SLACK * self.rate if place else 0) < gap <= longest - place:
                        blocks[:0] = zeros(gap)
                for block in blocks:
                    place += len(block)
                    yield block
            self._check_end(container, place, damaged)

    def _check_end(self, container: Any, place: int, damaged: int) -> None:
        stream = container.streams.best("audio")
        said = 0.0
        # Other formats have no length, and FFmpeg guesses it.
        if "mp4" in container.format.name and stream.duration is not None:
            said = float(stream.duration * stream.time_base)
        elif "matroska" in container.format.name and len(container.streams) == 1 and container.duration is not None:
            said = container.duration / 1_000_000
        if place < (said - TIME_SLACK) * self.rate:
            raise CutShort(show(self.path), place / self.rate, said)
        note = f"damaged packets left out: {damaged}"
        if damaged and note not in self.notes:
            self.notes.append(note)


def mix(samples: Tensor) -> Tensor:
    """Returns the mean of the channels, (channels, n) to (n,)."""
    return samples[0] if len(samples) == 1 else samples.mean(0)


def zeros(count: int) -> list[Tensor]:
    """Returns silence in blocks."""
    return [torch.zeros(min(BLOCK_FRAMES, count - start)) for start in range(0, count, BLOCK_FRAMES)]


@dataclass
class TorchcodecReader:
    """What FFmpeg reads, through torchcodec."""

    path: Path
    notes: list[str] = field(default_factory=list)

    SECONDS = 10  # decoded at once

    def __post_init__(self) -> None:
        try:
            self.decoders = importlib.import_module("torchcodec.decoders")
        except Exception as error:  # what it raises where its FFmpeg is missing has changed before
            missing = isinstance(error, ModuleNotFoundError) and error.name == "torchcodec"
            raise Unreadable("torchcodec is not installed" if missing else "torchcodec cannot be loaded") from None
        try:
            metadata = self.decoders.AudioDecoder(self.path).metadata
            self.rate, self.channels = int(metadata.sample_rate), int(metadata.num_channels)
        except (RuntimeError, ValueError, TypeError) as error:
            raise Unreadable(f"torchcodec says {str(error).partition(chr(10))[0]!r}") from None
        self.frames: int | None = None

    def read(self, begin: int, count: int | None = None) -> Iterator[Tensor]:
        """See :class:`Reader`."""
        decoder = self.decoders.AudioDecoder(self.path)
        place, start = 0, 0
        while True:
            try:
                samples = decoder.get_samples_played_in_range(start, start + self.SECONDS)
            except RuntimeError:  # there is nothing in this range: the end
                return
            gap = round(samples.pts_seconds * self.rate) - place
            silence = zeros(gap) if gap > (TIME_SLACK * self.rate if place else 0) else []
            for block in (*silence, samples.data.float().mean(0)):
                place += len(block)
                if begin < len(block):
                    yield block[begin:]
                begin = max(begin - len(block), 0)
            start += self.SECONDS
