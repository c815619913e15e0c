"""Sounds: every kind of WAV file is read as the numbers that it holds, and resampling keeps what can be kept."""

from __future__ import annotations

import io
import math
import struct
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.tools.errors import ToolError
from callboard.actors.tools.media.sounds import Sound, pcm16, read_wav, resampled

RATE = 8000
TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(800) / RATE)


def chunk(mark: bytes, body: bytes) -> bytes:
    return mark + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def wav(
    samples: bytes, kind: int, bits: int, *, channels: int = 1, rate: int = RATE, extensible: bool = False
) -> bytes:
    frame = channels * bits // 8
    head = struct.pack("<HHIIHH", 0xFFFE if extensible else kind, channels, rate, rate * frame, frame, bits)
    if extensible:
        guid = struct.pack("<H", kind) + bytes.fromhex("000000001000800000aa00389b71")
        head += struct.pack("<HHI", 22, bits, 0) + guid
    body = b"WAVE" + chunk(b"fmt ", head) + chunk(b"LIST", b"odd") + chunk(b"data", samples)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def encoded(kind: int, bits: int) -> bytes:
    if kind == 3:
        return TONE.astype(f"<f{bits // 8}").tobytes()
    whole = np.rint(TONE * 2.0 ** (bits - 1)).astype(np.int64)
    if bits == 8:
        return (whole + 128).astype(np.uint8).tobytes()
    return b"".join(int(value).to_bytes(bits // 8, "little", signed=True) for value in whole)


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(("kind", "bits"), [(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64)])
def test_each_kind_of_sample_is_read_as_the_number_it_stands_for(kind: int, bits: int, extensible: bool) -> None:
    sound = read_wav(wav(encoded(kind, bits), kind, bits, extensible=extensible))
    assert sound.rate == RATE
    assert sound.samples.dtype == np.float32
    assert np.abs(sound.samples - TONE).max() <= max(2.0**-bits, 2.0**-23)


def test_what_the_standard_library_writes_is_read() -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(44100)
        out.writeframes(pcm16(TONE).tobytes())
    sound = read_wav(file.getvalue())
    assert (sound.rate, len(sound.samples)) == (44100, 800)
    assert np.array_equal(pcm16(sound.samples), pcm16(TONE))


def test_channels_are_mixed_into_one() -> None:
    left, right = pcm16(TONE), pcm16(-TONE / 2)
    sound = read_wav(wav(np.stack([left, right], axis=1).tobytes(), 1, 16, channels=2))
    assert np.abs(sound.samples - TONE / 4).max() < 2e-5


def test_a_length_that_the_writer_did_not_know_yet_is_to_the_end() -> None:
    data = bytearray(wav(encoded(1, 16), 1, 16))
    at = data.rindex(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0x7FFFF000)
    assert len(read_wav(bytes(data)).samples) == 800


def test_half_a_sample_at_the_end_is_left_out() -> None:
    assert len(read_wav(wav(encoded(1, 16), 1, 16)[:-1]).samples) == 799


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "has no bytes"),
        (b"ID3\x04\x00\x00\x00\x00 an mp3 file", "no WAV file"),
        (b"RIFF\x04\x00\x00\x00WAVE", "no samples"),
        (b"RIFF\x04\x00\x00\x00WAVE" + chunk(b"data", b"\0\0"), "nothing of its rate"),
        (wav(b"", 1, 16), "no samples"),
        (wav(b"\0" * 8, 7, 8), "format 7"),
        (wav(b"\0" * 8, 1, 12), "12 bits"),
        (wav(b"\0" * 8, 1, 16, channels=0), "rate and channels"),
        (wav(b"\0" * 8, 1, 16, rate=0), "rate and channels"),
        (wav(b"\0" * 8, 1, 16, rate=2_000_000_000), "samples a second"),
        (wav(b"\0" * 8, 1, 16, rate=1), "samples a second"),
    ],
)
def test_what_is_no_sound_is_an_error_that_says_why(data: bytes, says: str) -> None:
    with pytest.raises(ToolError, match=says) as caught:
        read_wav(data)
    assert caught.value.hint


def test_a_sound_that_is_too_long_is_refused() -> None:
    with pytest.raises(ToolError, match="lasts for"):
        read_wav(wav(encoded(1, 16), 1, 16), max_seconds=0.05)


@given(st.data())
def test_damaged_files_are_sounds_or_errors_and_nothing_else(data: st.DataObject) -> None:
    file = bytearray(wav(encoded(1, 16)[:64], 1, 16))
    for _ in range(data.draw(st.integers(1, 6))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(file[: data.draw(st.integers(0, len(file)))])
    try:
        sound = read_wav(cut)
    except ToolError:
        return
    assert sound.rate > 0
    assert sound.samples.ndim == 1
    assert np.isfinite(sound.samples).all()


@given(
    st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000]),
    st.sampled_from([8000, 16000, 24000, 44100]),
    st.floats(50.0, 3000.0),
)
def test_a_tone_comes_out_as_the_same_tone(given_rate: int, wanted: int, hertz: float) -> None:
    seconds = 0.1
    tone = np.sin(2 * np.pi * hertz * np.arange(int(given_rate * seconds)) / given_rate).astype(np.float32)
    out = resampled(Sound(tone, given_rate), wanted)
    assert out.rate == wanted
    assert len(out.samples) == math.ceil(len(tone) * wanted / given_rate)
    expected = np.sin(2 * np.pi * hertz * np.arange(len(out.samples)) / wanted)
    inside = slice(int(0.01 * wanted), -int(0.01 * wanted))  # the filter looks 16 crossings beyond each end
    assert np.abs(out.samples - expected)[inside].max() < 1e-3


def test_what_the_lower_rate_cannot_hold_is_taken_out() -> None:
    """Sampled again without a filter, 9,500 Hz would come back as 6,500 Hz at full strength."""
    tone = np.sin(2 * np.pi * 9500 * np.arange(48000) / 48000).astype(np.float32)
    out = resampled(Sound(tone, 48000), 16000).samples[200:-200]
    assert np.abs(out).max() < 1e-4


def test_nothing_and_a_constant_stay_what_they_are() -> None:
    assert len(resampled(Sound(np.zeros(0, np.float32), 8000), 16000).samples) == 0
    level = resampled(Sound(np.full(4000, 0.25, np.float32), 44100), 16000).samples
    assert np.allclose(level[100:-100], 0.25, atol=1e-5)
    same = Sound(np.ones(3, np.float32), 8000)
    assert resampled(same, 8000).samples is same.samples


def test_loud_and_broken_samples_are_kept_within_sixteen_bits() -> None:
    assert pcm16(np.array([2.0, -2.0, np.nan, 0.5])).tolist() == [32767, -32768, 0, 16384]
