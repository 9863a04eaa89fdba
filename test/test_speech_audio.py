"""Reading recordings: what comes out is the sound that was put in, for every kind of file, and mistakes are sentences.

Expected sound is computed here (tones, exact integers), or read by other programs (wave, ffmpeg).
"""

import io
import math
import os
import shutil
import subprocess
import sys
import warnings
import wave
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from torch_ctc_align.speech import SpeechError
from torch_ctc_align.speech.audio import open_audio, read_samples

RATE = 16_000


@pytest.fixture
def libraries(missing):
    try:
        import numpy
        import soundfile
        import soxr
    except ImportError as error:
        missing("speech", f"{error}; see requirements-dev.txt")
    return SimpleNamespace(numpy=numpy, soundfile=soundfile, soxr=soxr)


@pytest.fixture
def av(missing):
    try:
        import av
    except ImportError as error:
        missing("speech", f"{error}; see requirements-dev.txt")
    return av


@pytest.fixture
def ffmpeg(missing):
    """ffmpeg("-i", path, ..., target) runs the program."""
    if not shutil.which("ffmpeg"):
        missing("ffmpeg", "there is no ffmpeg")

    def run(*arguments):
        subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True, timeout=60)

    return run


def tone(rate, seconds, frequency=440.0, loudness=0.5):
    """(N,) float32: a sine."""
    times = torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    return (loudness * torch.sin(2 * math.pi * frequency * times)).float()


def sweep(rate, seconds, low=150.0, high=1500.0):
    """(N,) float32: every moment sounds different, so a shift shows. Louder and softer, so bit rates vary."""
    times = torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    phase = 2 * math.pi * (low * times + (high - low) * times**2 / (2 * seconds))
    return (0.4 * torch.sin(phase) * (1 + torch.sin(6 * times)) / 2).float()


def write_wave(path, samples, rate):
    """(N,) or (channels, N) int16, by the standard library."""
    samples = samples[None] if samples.ndim == 1 else samples
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.T.contiguous().numpy().tobytes())
    return path


def to_int16(samples):
    return (samples * 32767).round().to(torch.int16)


def refuse(*arguments, **options):
    """The message of the error. Reading is part of it."""
    with pytest.raises(SpeechError) as error:
        read_samples(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


# What is read --------------------------------------------------------------------------------------------------------


def test_int16_is_read_exactly_and_again(tmp_path, libraries, generator):
    samples = torch.randint(-(2**15), 2**15, (50_001,), generator=generator).to(torch.int16)
    audio = open_audio(write_wave(tmp_path / "a.wav", samples, RATE), RATE)
    assert (audio.num_samples, audio.sample_rate, audio.seconds, audio.offset) == (50_001, RATE, 50_001 / RATE, 0)
    assert audio.notes == []
    for _ in range(2):
        blocks = list(audio.blocks())
        assert len(blocks) > 1
        assert all(block.dtype == torch.float32 and block.ndim == 1 for block in blocks)
        assert torch.equal(torch.cat(blocks), samples.float() / 2**15)
        assert audio.peak == samples.float().abs().max() / 2**15


# Steps of the format, as a part of full scale: rounding is off by half a step, truncation by one. µ-law: the steps of
# its loudest eighth are 1/32 of it. Vorbis, Opus and MP3 keep a loud tone within a tenth.
FORMATS = [
    ("WAV", "PCM_16", 2**-15),
    ("WAV", "PCM_24", 2**-23),
    ("WAV", "PCM_U8", 2**-7),
    ("WAV", "FLOAT", 0.0),
    ("WAV", "DOUBLE", 0.0),
    ("WAV", "ULAW", 2**-5),
    ("FLAC", "PCM_16", 2**-15),
    ("FLAC", "PCM_24", 2**-23),
    ("AIFF", "PCM_16", 2**-15),
    ("OGG", "VORBIS", 0.05),
    ("OGG", "OPUS", 0.05),
    ("MP3", "MPEG_LAYER_III", 0.05),
]


def test_the_content_of_a_file_is_read_as_the_file(tmp_path, libraries, generator):
    samples = (torch.rand(20_000, generator=generator) * 2 - 1).numpy()
    for suffix in (".wav", ".flac", ".mp3"):
        path = tmp_path / f"sound{suffix}"
        libraries.soundfile.write(path, samples, 16_000)
        audio = open_audio(io.BytesIO(path.read_bytes()), 16_000, offset=0.25)
        assert audio.path is None
        for _ in range(2):  # every call of blocks() begins again
            assert torch.equal(torch.cat(list(audio.blocks())), read_samples(path, 16_000, offset=0.25))
    held = audio.held.name
    assert os.path.exists(held)
    del audio
    assert not os.path.exists(held)


@pytest.mark.parametrize("format, subtype, step", FORMATS)
def test_every_format_gives_its_sound(format, subtype, step, tmp_path, libraries):
    samples = tone(RATE, 2.0)
    path = tmp_path / f"a.{format.lower()}"
    libraries.soundfile.write(path, samples.numpy(), RATE, format=format, subtype=subtype)
    read = read_samples(path, RATE)
    assert len(read) == 32_000
    assert (read - samples)[500:-500].abs().max() <= step  # lossy formats smear the ends


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_resampled_tone_is_the_tone_at_the_new_rate(rate, tmp_path, libraries):
    frames = 2 * rate + 1
    path = tmp_path / "a.wav"
    libraries.soundfile.write(path, tone(rate, frames / rate).numpy(), rate, subtype="FLOAT")
    audio = open_audio(path, RATE)
    read = torch.cat(list(audio.blocks()))
    assert len(read) == audio.num_samples == round(frames * RATE / rate)
    assert audio.notes == [f"resampled from {rate} Hz to 16000 Hz"]
    # soxr's HQ is good to 20 bits. Its filter is some 100 samples long on both sides, so the sudden ends ring there.
    expected = tone(RATE, len(read) / RATE)
    assert (read - expected)[400:-400].abs().max() < 2**-18


@pytest.mark.parametrize("rate, target", [(44_100, 16_000), (48_000, 16_000), (8_000, 16_000), (16_000, 22_050)])
@pytest.mark.parametrize("frames", [1, 7, 16_384, 100_003])
def test_blocks_are_resampled_as_the_whole_would_be(rate, target, frames, libraries, generator):
    samples = (torch.randn(frames, generator=generator) / 8).clamp(-0.9, 0.9)
    if not round(frames * target / rate):
        assert "too short" in refuse((samples, rate), target)
        return
    read = read_samples((samples, rate), target)
    assert len(read) == round(frames * target / rate)
    whole = torch.from_numpy(libraries.soxr.resample(samples.numpy(), rate, target)).clamp(-1, 1)
    # The same filter over the same samples; float32 sums in another order differ by some ulp of 1, 2**-23.
    assert abs(len(whole) - len(read)) <= 1
    common = min(len(whole), len(read))
    assert (read[:common] - whole[:common]).abs().max() <= 2**-20


def test_channels_are_mixed_to_their_mean(tmp_path, libraries):
    left, right = torch.tensor([[100, -200, 32767, 0]] * 5000).to(torch.int16).flatten().repeat(2, 1)
    right = right.flip(0)
    audio = open_audio(write_wave(tmp_path / "a.wav", torch.stack([left, right]), RATE), RATE)
    assert audio.notes == ["2 channels mixed down to one"]
    assert torch.equal(torch.cat(list(audio.blocks())), (left.float() + right.float()) / 2**16)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_offset_and_duration_cut_the_recording(suffix, tmp_path, libraries):
    path = tmp_path / f"a.{suffix}"
    libraries.soundfile.write(path, sweep(44_100, 4.0).numpy(), 44_100)
    whole = read_samples(path, 44_100)
    audio = open_audio(path, 44_100, offset=1.25, duration=0.5)
    assert (audio.offset, audio.seconds) == (1.25, 0.5)
    # A decoder that begins in the middle of lossy sound adds up in another order: 16 bits of 24 are left.
    assert torch.allclose(torch.cat(list(audio.blocks())), whole[55_125:77_175], rtol=0, atol=2**-16)
    assert open_audio(path, 44_100, offset=3.5, duration=100).num_samples == 22_050
    assert open_audio(path, 16_000, offset=1, duration=1.5).num_samples == 24_000


def test_variable_bit_rate_is_read_as_ffmpeg_reads_it(tmp_path, libraries, ffmpeg):
    write_wave(tmp_path / "a.wav", to_int16(sweep(44_100, 20.0)), 44_100)
    for name, options in {
        "tag": [],
        "no-tag": ["-write_xing", "0"],
        "no-tags": ["-write_xing", "0", "-id3v2_version", "0", "-write_id3v1", "1"],
    }.items():
        path = tmp_path / f"{name}.mp3"
        ffmpeg("-i", tmp_path / "a.wav", "-q:a", 5, *options, path)
        ffmpeg("-i", path, "-f", "f32le", tmp_path / "a.f32")
        expected = torch.from_numpy(libraries.numpy.fromfile(tmp_path / "a.f32", "float32"))
        read = read_samples(path, 44_100)
        # Without a tag soundfile alone gives a fifth of it; in blocks, with seeks between them, other sound.
        assert len(read) == len(expected), name
        assert (read - expected).abs().max() < 1e-4, name  # MP3 decoders agree to 2**-14 of full scale


def test_mp3_files_in_a_row_are_all_read(tmp_path, libraries, ffmpeg, av):
    write_wave(tmp_path / "a.wav", to_int16(sweep(44_100, 5.0)), 44_100)
    ffmpeg("-i", tmp_path / "a.wav", tmp_path / "a.mp3")
    once = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "b.mp3").write_bytes(2 * once)
    assert open_audio(tmp_path / "a.mp3", 44_100).seconds == 5.0
    # Between the two stands the encoder's padding, at most three frames of 1152.
    assert 10.0 <= open_audio(tmp_path / "b.mp3", 44_100).seconds <= 10.0 + 3 * 1152 / 44_100


@pytest.mark.parametrize(
    "name", ["with space.wav", "ümläut ß 東京.wav", "-i.wav", "a:b;$(c).wav", b"\xe4\xff.wav", "noext"]
)
def test_any_name_will_do(name, tmp_path, libraries, ffmpeg, av):
    samples = to_int16(tone(RATE, 1.0))
    path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
    write_wave(tmp_path / "plain.wav", samples, RATE)
    ffmpeg("-i", tmp_path / "plain.wav", "-c:a", "alac", tmp_path / "plain.m4a")
    for source in ("plain.wav", "plain.m4a"):
        shutil.copy(tmp_path / source, path)
        assert torch.equal(read_samples(os.fsdecode(path), RATE), samples.float() / 2**15)
        assert torch.equal(read_samples(Path(os.fsdecode(path)), RATE), samples.float() / 2**15)


def test_wav_of_unknown_length_is_read_to_its_end(tmp_path, libraries, ffmpeg):
    samples = to_int16(sweep(RATE, 3.0))
    write_wave(tmp_path / "a.wav", samples, RATE)
    for format in ("wav", "flac"):
        path = tmp_path / f"pipe.{format}"
        with path.open("wb") as file:  # ffmpeg cannot go back to the header
            command = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "a.wav"), "-f", format, "-"]
            subprocess.run(command, stdout=file, check=True, timeout=60)
        assert torch.equal(read_samples(path, RATE), samples.float() / 2**15)
        assert torch.equal(read_samples(path, RATE, offset=2.0), samples[32_000:].float() / 2**15)


# What soundfile does not read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "suffix, codec", [("m4a", "alac"), ("mkv", "flac"), ("mov", "pcm_s16le"), ("mka", "pcm_s16le")]
)
def test_lossless_sound_in_containers_is_exact(suffix, codec, tmp_path, libraries, ffmpeg, av):
    samples = torch.stack([to_int16(sweep(44_100, 3.0)), to_int16(tone(44_100, 3.0))])
    write_wave(tmp_path / "a.wav", samples, 44_100)
    path = tmp_path / f"a.{suffix}"
    ffmpeg("-i", tmp_path / "a.wav", "-c:a", codec, path)
    audio = open_audio(path, 44_100)
    assert audio.notes == ["2 channels mixed down to one"]
    read = torch.cat(list(audio.blocks()))
    assert len(read) == audio.num_samples
    assert (read - samples.float().mean(0) / 2**15).abs().max() <= 2**-24  # one rounded addition
    part = read_samples(path, 44_100, offset=0.5, duration=1.0)
    assert torch.equal(part, read[22_050:66_150])


@pytest.mark.parametrize("suffix", ["m4a", "mp4", "webm", "aac"])
def test_lossy_sound_in_containers_is_in_its_place(suffix, tmp_path, libraries, ffmpeg, av):
    samples = sweep(48_000, 3.0)
    write_wave(tmp_path / "a.wav", to_int16(samples), 48_000)
    path = tmp_path / f"a.{suffix}"
    video = ["-f", "lavfi", "-i", "testsrc=d=3:s=64x64:r=5", "-c:v", "mpeg4"] if suffix == "mp4" else []
    ffmpeg("-i", tmp_path / "a.wav", *video, "-b:a", "128k", path)
    read = read_samples(path, 48_000)
    delay = 1024 if suffix == "aac" else 0  # containers say how much the encoder put in front; plain AAC does not
    assert len(samples) <= len(read) <= len(samples) + delay + 1024  # the codec's last frame is full
    error = read[delay : delay + len(samples)] - samples
    # 1 % of the power: 20 dB. Other sound has 200 %, and the sweep that is shifted by two samples 5 %.
    assert error.square().mean() < 0.01 * samples.square().mean()


def test_sound_stands_where_a_video_plays_it(tmp_path, libraries, ffmpeg, av):
    samples = to_int16(sweep(RATE, 3.0))
    write_wave(tmp_path / "a.wav", samples, RATE)
    video = ["-f", "lavfi", "-i", "testsrc=d=3:s=64x64:r=5", "-map", "0:a", "-map", "1:v", "-c:v", "mpeg4"]
    late = tmp_path / "late.mkv"
    ffmpeg("-itsoffset", "0.5", "-i", tmp_path / "a.wav", *video, "-c:a", "pcm_s16le", late)
    read = read_samples(late, RATE)
    assert torch.equal(read, torch.cat([torch.zeros(8000), samples.float() / 2**15]))

    gap = tmp_path / "gap.mka"
    ffmpeg("-i", tmp_path / "a.wav", "-af", "asetnsamples=160,aselect='lt(t,1)+gte(t,2)'", "-c:a", "pcm_s16le", gap)
    read = read_samples(gap, RATE)
    expected = samples.float() / 2**15
    expected[16_000:32_000] = 0
    assert torch.equal(read, expected)


def test_damaged_packets_leave_the_rest_in_its_place(tmp_path, libraries, ffmpeg, av):
    samples = sweep(RATE, 20.0)
    write_wave(tmp_path / "a.wav", to_int16(samples), RATE)
    path = tmp_path / "a.m4a"
    ffmpeg("-i", tmp_path / "a.wav", "-b:a", "64k", "-movflags", "faststart", path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)
    path.write_bytes(data)
    audio = open_audio(path, RATE)
    read = torch.cat(list(audio.blocks()))
    assert any(note.startswith("damaged packets left out: ") for note in audio.notes)
    rest = slice(14 * RATE, 19 * RATE)
    assert (read[rest] - samples[rest]).square().mean() < 0.01 * samples[rest].square().mean()


def test_torchcodec_is_asked_where_pyav_is_missing(tmp_path, libraries, monkeypatch, generator):
    sound = torch.randn(2, 25 * RATE, generator=generator) / 8
    first = 0.5  # seconds before the sound begins

    class AudioDecoder:
        def __init__(self, source):
            assert Path(source).name == "a.m4a"
            self.metadata = SimpleNamespace(sample_rate=RATE, num_channels=2)

        def get_samples_played_in_range(self, start_seconds=0.0, stop_seconds=None):
            begin, end = (max(round((time - first) * RATE), 0) for time in (start_seconds, stop_seconds))
            data = sound[:, begin:end]
            if not data.shape[1]:
                raise RuntimeError("No audio frames were decoded.")
            return SimpleNamespace(data=data, pts_seconds=max(start_seconds, first), sample_rate=RATE)

    (tmp_path / "a.m4a").write_bytes(b"not for soundfile")
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace(decoders=None))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(AudioDecoder=AudioDecoder))
    expected = torch.cat([torch.zeros(RATE // 2), sound.mean(0)]).clamp(-1, 1)
    assert torch.equal(read_samples(tmp_path / "a.m4a", RATE), expected)
    assert torch.equal(read_samples(tmp_path / "a.m4a", RATE, offset=12, duration=3), expected[12 * RATE : 15 * RATE])


def test_a_file_for_no_library_gets_the_command(tmp_path, libraries, monkeypatch):
    path = tmp_path / "it's a talk.m4a"
    path.write_bytes(b"not for soundfile")
    for module in ("av", "torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, module, None)
    message = refuse(path, RATE)
    assert "pip install 'torch_ctc_align[media]'" in message
    quoted = str(tmp_path).replace("'", "'\"'\"'") + "/it'\"'\"'s a talk"
    assert message.endswith(f"convert it: ffmpeg -i '{quoted}.m4a' -ar 16000 -ac 1 '{quoted}.wav'")


def test_the_command_of_the_message_works(tmp_path, libraries, ffmpeg, monkeypatch):
    samples = to_int16(tone(RATE, 1.0))
    write_wave(tmp_path / "a.wav", samples, RATE)
    ffmpeg("-i", tmp_path / "a.wav", "-c:a", "alac", tmp_path / "-a $x's.m4a")
    monkeypatch.chdir(tmp_path)
    for module in ("av", "torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, module, None)
    command = refuse("-a $x's.m4a", RATE).partition("convert it: ")[2]
    subprocess.run(command, shell=True, check=True, capture_output=True, timeout=60)
    assert torch.equal(read_samples("-a $x's.wav", RATE), samples.float() / 2**15)


# Samples in memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, one", [("int8", 2**7), ("int16", 2**15), ("int32", 2**31)])
def test_integers_are_parts_of_full_scale(dtype, one, libraries):
    samples = torch.tensor([-one, -one // 2, 0, one // 4, one - 1], dtype=getattr(torch, dtype))
    for source in (samples, samples.numpy()):
        assert read_samples((source, RATE), RATE).tolist() == pytest.approx([-1, -0.5, 0, 0.25, 1], abs=1 / one)


def test_unsigned_bytes_have_silence_in_the_middle():
    samples = torch.tensor([0, 128, 192], dtype=torch.uint8)
    assert read_samples((samples, RATE), RATE).tolist() == [-1, 0, 0.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_point_comes_as_float32(dtype):
    samples = torch.tensor([0.5, -0.25, 1.0], dtype=dtype, requires_grad=True)
    audio = open_audio((samples, RATE), RATE)
    read = torch.cat(list(audio.blocks()))
    assert (read.dtype, read.requires_grad, read.tolist()) == (torch.float32, False, [0.5, -0.25, 1.0])
    assert (audio.path, audio.peak) == (None, 1.0)


def test_channels_come_first():
    samples = torch.arange(12.0).reshape(2, 6) / 16
    assert torch.equal(read_samples((samples, RATE), RATE), samples.mean(0))
    assert torch.equal(read_samples((samples, RATE), RATE, offset=2 / RATE, duration=3 / RATE), samples.mean(0)[2:5])
    assert refuse((samples.T, RATE), RATE) == (
        "samples must be (N,) or (channels, N), found the shape (6, 2); if that is (N, channels), pass samples.T"
    )


def test_any_array_of_numpy_will_do(libraries):
    samples = libraries.numpy.arange(-4, 4, dtype="int16") * 4096
    expected = torch.tensor([-0.5, -0.375, -0.25, -0.125, 0, 0.125, 0.25, 0.375])
    frozen = samples.copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(read_samples((samples.astype(">i2"), RATE), RATE), expected)
        assert torch.equal(read_samples((samples[::-1], RATE), RATE), expected.flip(0))
        assert torch.equal(read_samples((frozen, RATE), RATE), expected)
    # Strides do not change what a resampler makes of it.
    sparse = torch.arange(2000.0).sin()[::2]
    assert torch.equal(read_samples((sparse, 8000), RATE), read_samples((sparse.clone(), 8000), RATE))


def test_too_loud_samples_are_clipped_and_said():
    audio = open_audio((torch.tensor([0.5, 3.0, -1.25]), RATE), RATE)
    assert torch.cat(list(audio.blocks())).tolist() == [0.5, 1.0, -1.0]
    assert audio.notes == ["samples up to 3.00 clipped to 1"]
    assert audio.peak == 1.0
    list(audio.blocks())
    assert audio.notes == ["samples up to 3.00 clipped to 1"]


def test_samples_at_the_right_rate_need_torch_alone(monkeypatch):
    for module in ("numpy", "soundfile", "soxr", "av"):
        monkeypatch.setitem(sys.modules, module, None)
    assert read_samples((torch.ones(3), 8000), 8000).tolist() == [1, 1, 1]


# Mistakes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, message",
    [
        (torch.zeros(3), "a recording is a path, io.BytesIO or a pair (samples, rate), found Tensor"),
        (None, "a recording is a path, io.BytesIO or a pair (samples, rate), found NoneType"),
        ((torch.zeros(3),), "samples come as a pair (samples, rate), the rate a whole number of Hz above 0"),
        ((torch.zeros(3), 0), "samples come as a pair (samples, rate), the rate a whole number of Hz above 0"),
        ((torch.zeros(3), 16e3), "samples come as a pair (samples, rate), the rate a whole number of Hz above 0"),
        ((torch.zeros(3).long(), RATE), "samples must be floating point in [-1, 1] or integers of 8 to 32 bits, "
         "found torch.int64"),
        ((torch.zeros(1, 1, 3), RATE), "samples must be (N,) or (channels, N), found the shape (1, 1, 3)"),
        ((torch.zeros(0), RATE), "the recording holds no sound: it has 0 samples"),
        ((torch.zeros(2, 0), RATE), "the recording holds no sound: it has 0 samples"),
        ((torch.zeros(0, 2), RATE), "the recording holds no sound: it has 0 samples"),
        ((torch.zeros(1), 96_000), "the recording is too short: 1 samples at 96000 Hz are none at 16000 Hz"),
        ((torch.full((3,), 32767.0), RATE), "the recording holds samples up to 32767, and they must lie in [-1, 1]; "
         "divide them by the largest integer of their type, 32768 for 16 bits"),
    ],
)  # fmt: skip
def test_wrong_samples_are_a_sentence(source, message):
    assert refuse(source, RATE) == message


def test_what_is_not_numbers_is_a_sentence():
    assert refuse((["a", "b"], RATE), RATE).startswith("samples must be a tensor or an array of numbers: ")


@pytest.mark.parametrize(
    "rate, options, message",
    [
        (0, {}, "sample_rate must be a whole number of Hz above 0, found 0"),
        (16e3, {}, "sample_rate must be a whole number of Hz above 0, found 16000.0"),
        (RATE, {"offset": -1}, "offset must be a number of seconds, 0 or above, found -1"),
        (RATE, {"offset": math.nan}, "offset must be a number of seconds, 0 or above, found nan"),
        (RATE, {"offset": "1"}, "offset must be a number of seconds, 0 or above, found '1'"),
        (RATE, {"duration": 0}, "duration must be a number of seconds above 0, found 0"),
        (RATE, {"duration": math.inf}, "duration must be a number of seconds above 0, found inf"),
        (RATE, {"offset": 2}, "offset is 2 s, but the recording is only 1.500 s long"),
    ],
)
def test_wrong_arguments_are_a_sentence(rate, options, message):
    assert refuse((torch.zeros(24_000), RATE), rate, **options) == message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_samples_that_are_not_finite_are_named_with_their_time(value, tmp_path, libraries):
    samples = torch.zeros(44_100 * 3)
    samples[44_100 * 5 // 2] = value
    libraries.soundfile.write(tmp_path / "a.wav", samples.numpy(), 44_100, subtype="FLOAT")
    for source in (tmp_path / "a.wav", (samples, 44_100)):
        assert f" holds {value} at 2.500 s, and samples must be finite" in refuse(source, RATE)
        assert f" holds {value} at 2.500 s, and samples must be finite" in refuse(source, RATE, offset=1)
        assert read_samples(source, RATE, duration=2.5).abs().max() == 0  # that sample is the first one behind


def test_what_is_no_recording_is_a_sentence(tmp_path, libraries, av):
    assert refuse(tmp_path / "nothing.wav", RATE) == f"there is no file {tmp_path}/nothing.wav"
    assert refuse(tmp_path, RATE) == f"{tmp_path} is a folder; give the file of a recording"
    assert "is not a regular file" in refuse("/dev/null", RATE)
    assert "cannot be opened: " in refuse("a\0b", RATE)

    path = tmp_path / "a.wav"
    path.write_bytes(b"")
    assert refuse(path, RATE) == f"{path} is empty: it has 0 bytes"
    for content in (b"Once upon a time\n" * 40, b"RIFF\x00\x01\x00\x00WAVEfmt \x10\x00\x00\x00", b"\x00" * 3000, b"x"):
        path.write_bytes(content)
        message = refuse(path, RATE)
        assert message.startswith(f"{path} cannot be read as sound (soundfile says ")
        assert message.endswith(f"convert it: ffmpeg -i {path} -ar 16000 -ac 1 {tmp_path}/a.converted.wav")
    write_wave(path, torch.zeros(0, dtype=torch.int16), RATE)
    assert refuse(path, RATE) == f"{path} holds no sound: it has 0 samples"


def test_a_file_that_may_not_be_read_is_a_sentence(tmp_path, libraries):
    path = write_wave(tmp_path / "a.wav", torch.zeros(100, dtype=torch.int16), RATE)
    path.chmod(0)
    root = os.geteuid() == 0  # who may read all
    if root:
        os.seteuid(65534)
    try:
        assert refuse(path, RATE) == f"{path} cannot be opened: Permission denied"
    finally:
        if root:
            os.seteuid(0)


def test_a_video_without_sound_is_a_sentence(tmp_path, libraries, ffmpeg, av):
    path = tmp_path / "a.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=d=1:s=64x64:r=5", "-c:v", "mpeg4", path)
    assert refuse(path, RATE) == f"{path} has no sound: there is no audio stream in it"


@pytest.mark.parametrize("suffix", ["wav", "mp3", "m4a", "mka"])
def test_a_file_that_is_cut_short_is_named(suffix, tmp_path, libraries, ffmpeg, av):
    path = tmp_path / f"a.{suffix}"
    whole = tmp_path / f"whole.{suffix}"
    write_wave(tmp_path / "a.wav", to_int16(sweep(44_100, 20.0)), 44_100)
    options = {"wav": [], "mp3": [], "m4a": ["-movflags", "faststart"], "mka": ["-c:a", "pcm_s16le"]}[suffix]
    ffmpeg("-i", tmp_path / "a.wav", *options, whole)
    data = whole.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    message = refuse(path, RATE)
    assert message.startswith(f"{path} ends after ")
    assert ", though its header says 20.0" in message
    assert "in Python or a manifest" in message, "the command has no such option"
    there = float(message.rpartition("duration=")[2])
    assert 9 < there < 11
    # What the message advises works, and fits the offset.
    assert len(read_samples(path, RATE, duration=there)) == pytest.approx(there * RATE, abs=1)
    rest = float(refuse(path, RATE, offset=2.5).rpartition("duration=")[2])
    assert rest == pytest.approx(there - 2.5, abs=1.1e-3)  # rounded down to milliseconds
    assert len(read_samples(path, RATE, offset=2.5, duration=rest)) == pytest.approx(rest * RATE, abs=1)


def test_a_damaged_flac_says_where(tmp_path, libraries, av):
    path = tmp_path / "a.flac"
    libraries.soundfile.write(path, sweep(RATE, 20.0).numpy(), RATE)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    message = refuse(path, RATE)
    start, end = (float(word) for word in message.partition("between ")[2].partition(" s ")[0].split(" and "))
    assert 5 < start < end < 15
    assert "get it again, or leave that place out, in Python or a manifest, with" in message
    assert len(read_samples(path, RATE, duration=start)) == start * RATE


def test_missing_libraries_are_named_with_the_command(tmp_path, libraries, monkeypatch):
    path = write_wave(tmp_path / "a.wav", torch.zeros(100, dtype=torch.int16), 8000)
    for module, what in [("soxr", "resampling"), ("soundfile", "reading audio")]:
        monkeypatch.setitem(sys.modules, module, None)
        assert refuse(path, RATE) == (
            f"{what} needs the package {module}, which is not installed; run: pip install 'torch_ctc_align[speech]'"
        )


# Length --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["wav", "mp3", "m4a"])
def test_an_hour_takes_no_more_memory_than_a_minute(suffix, tmp_path, libraries, ffmpeg, av, fresh_python):
    # The peak of this process alone; what getrusage says may be that of the process that started it.
    code = """
from torch_ctc_align.speech.audio import open_audio
audio = open_audio(PATH, 16_000)
samples = sum(len(block) for block in audio.blocks())
assert samples == audio.num_samples
status = open("/proc/self/status").read()
print(samples, status.split("VmHWM:")[1].split()[0])
"""
    minute, hour = (tmp_path / f"{minutes}.{suffix}" for minutes in (1, 60))
    ffmpeg("-f", "lavfi", "-i", "sine=f=300:r=44100:d=60", minute)
    ffmpeg("-stream_loop", "59", "-i", minute, "-c", "copy", hour)
    (short, low), (long, high) = (
        map(int, fresh_python(code.replace("PATH", repr(str(path)))).split()) for path in (minute, hour)
    )
    hour.unlink()
    assert long == pytest.approx(60 * short, abs=60 * 2048)  # a codec fills its last frame, or cuts the filling
    # KiB; the samples alone are 225,000, int16 at 44.1 kHz 310,000. FFmpeg keeps an index of an MP4 file: 113 bytes
    # for each of its 155,000 frames.
    assert high - low < (40_000 if suffix == "m4a" else 16_000)
