"""The recording of a page: as it is, or encoded anew so that browsers play it and seek in it exactly.

What is heard after a seek to t, in a recording of ten minutes, was compared with WAV in Chromium 156. FLAC is exact.
Ogg Opus is 6.5 ms early, with a seek or without. Ogg Vorbis is 32 ms late. MP3 is 30 to 70 ms early at a constant
bit rate, and 0.2 to 1.1 s at a variable one, since the browser estimates where t lies. So MP3 and Vorbis are always
encoded anew, and from what the aligner's reader gives, so that both hear the same times.
"""

import io
import os
from pathlib import Path
from typing import NamedTuple

from torch_ctc_align.speech.errors import SpeechError, require

MEGABYTE = 1_000_000
LARGEST_AS_IT_IS = 10 * MEGABYTE  # five minutes of WAV at 16 kHz
LARGEST_EMBEDDED = 40 * MEGABYTE
LONGEST_FLAC = 600.0  # seconds; about 1 MB a minute. Opus takes a quarter of that.
OPUS_BYTES_A_SECOND = 4_500  # more than was measured (4,000), to foresee what is too large
NUM_PEAKS = 2_000  # more than a screen has bars
HIGH, LOW = 24_000, 16_000  # Hz; rates that FLAC and Opus both have
# What browsers play, and seek in to a few milliseconds.
PLAYED_EXACTLY = {
    **{("WAV", subtype): "audio/wav" for subtype in ("PCM_U8", "PCM_16", "PCM_24", "FLOAT")},
    **{("FLAC", subtype): "audio/flac" for subtype in ("PCM_S8", "PCM_16", "PCM_24")},
    ("OGG", "OPUS"): "audio/ogg",
}


class Sound(NamedTuple):
    """The recording for a page; ``data`` is empty where the page links to it."""

    kind: str
    data: bytes
    peaks: bytes  # loudest sample of each of equal parts, 255 for the loudest of all; empty if it could not be read
    seconds: float  # that the peaks cover


def listen(path: Path, seconds: float, embed: bool | None) -> Sound:
    """Reads the recording of a page, about ``seconds`` long, and encodes it if it has to be.

    Raises:
        SpeechError: it cannot be read, or a library is missing, and the page cannot do without.
    """
    if embed is None and seconds * OPUS_BYTES_A_SECOND > LARGEST_EMBEDDED:
        embed = False
    try:
        rate, as_it_is = _look(path)
        if embed is False:
            return _read(path, rate, None)
        if as_it_is is not None:
            return _read(path, rate, None)._replace(kind=as_it_is, data=path.read_bytes())
        return _read(path, rate, "FLAC" if seconds <= LONGEST_FLAC else "OGG")
    except SpeechError:
        if embed is False:  # the file may be put beside the page later; the overview stays empty
            return Sound("", b"", b"", seconds)
        raise


def _look(path: Path) -> tuple[int, str | None]:
    """The rate to read at (Hz), and the media type if the file is embedded as it is."""
    soundfile = require("soundfile", "a page to listen to")
    try:
        facts = soundfile.info(os.fsencode(path))  # soundfile itself would encode the name as UTF-8
        small = path.stat().st_size <= LARGEST_AS_IT_IS
    except (OSError, RuntimeError):  # another library may read it; if none does, open_audio says why
        return HIGH, None
    kind = PLAYED_EXACTLY.get((facts.format, facts.subtype)) if small and facts.channels <= 2 else None
    return LOW if facts.samplerate <= LOW else HIGH, kind


def _read(path: Path, rate: int, format: str | None) -> Sound:
    """One pass over the recording, in blocks: its peaks and, unless ``format`` is None, its encoding."""
    from torch_ctc_align.speech.audio import open_audio

    soundfile = require("soundfile", "a page to listen to")
    numpy = require("numpy", "a page to listen to")
    recording = open_audio(path, rate)
    part = max(1, -(-recording.num_samples // NUM_PEAKS))  # samples a peak
    peaks = numpy.zeros(-(-recording.num_samples // part), numpy.float32)
    encoded = io.BytesIO()
    writer = None
    if format is not None:
        subtype = {"FLAC": "PCM_16", "OGG": "OPUS"}[format]
        writer = soundfile.SoundFile(encoded, "w", rate, 1, format=format, subtype=subtype)
    place = 0
    try:
        for block in recording.blocks():
            samples = block.numpy()
            numpy.maximum.at(peaks, numpy.arange(place, place + len(samples)) // part, numpy.abs(samples))
            place += len(samples)
            if writer is not None:
                writer.write(samples)
    finally:
        if writer is not None:
            writer.close()
    loudest = float(peaks.max()) or 1.0
    heights = (peaks / loudest * 255).round().astype(numpy.uint8).tobytes()
    kind = {"FLAC": "audio/flac", "OGG": "audio/ogg", None: ""}[format]
    return Sound(kind, encoded.getvalue(), heights, recording.seconds)
