"""Sounds: WAV files read into numbers, and one rate made into another.

Only WAV is read here, by numpy alone: the standard library's reader knows neither floats nor 24 bits in its extensible
form, and trusts heads that a program writes before it knows the length.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ToolError

if TYPE_CHECKING:
    import numpy as np

MAX_SECONDS = 3600.0
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
# The low-pass filter of `resampled`.
_CROSSINGS = 16
_BETA = 8.6
_ROWS = 1 << 15
# Hertz: from the slowest telephone to the fastest sound card. Beyond, the filter would grow without bound.
_RATES = range(1_000, 768_001)
_HINT = "give a WAV file; `ffmpeg -i IN OUT.wav` makes one of any other"


@dataclass(frozen=True)
class Sound:
    """`samples`: [num_samples] float32, one channel, from -1 to 1. `rate`: samples a second."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def read_wav(data: bytes, *, name: str = "the sound", max_seconds: float = MAX_SECONDS) -> Sound:
    """A WAV file's sound, its channels mixed into one: PCM of 8, 16, 24 or 32 bits, or floats of 32 or 64.

    A length in the head that goes past the end of the file is taken as "to the end". ToolError for what is no such
    file, has no sample, or lasts for over `max_seconds`.
    """
    if not data:
        raise ToolError(f"{name} is empty: it has no bytes", hint=_HINT)
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ToolError(f"{name} is no WAV file: it starts with {data[:8]!r}", hint=_HINT)
    kind = channels = rate = bits = 0
    at = 12
    while at + 8 <= len(data):
        mark, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = memoryview(data)[at + 8 : at + 8 + size]
        if mark == b"fmt " and len(body) >= 16:
            kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
            if kind == _EXTENSIBLE and len(body) >= 26:
                kind = int.from_bytes(body[24:26], "little")
        elif mark == b"data":
            if not (kind and channels and rate):
                raise ToolError(f"{name} is damaged: it says nothing of its rate and channels", hint=_HINT)
            return _sound(body, kind, channels, rate, bits, name, max_seconds)
        at += 8 + size + size % 2
    raise ToolError(f"{name} is damaged: it has no samples", hint="it may be cut short; send the whole file again")


def pcm16(samples: np.ndarray) -> np.ndarray:
    """[num_samples] from -1 to 1 as 16-bit whole numbers."""
    import numpy as np

    whole = np.rint(np.nan_to_num(samples.astype(np.float64)) * 32768.0)
    return np.clip(whole, -32768, 32767).astype("<i2")


def resampled(sound: Sound, rate: int) -> Sound:
    """The same sound at another rate, by a polyphase low-pass filter.

    A Kaiser-windowed sinc with 16 zero crossings on each side at the lower of the two rates; beta 8.6 puts what folds
    back 90 dB down. Phase by phase: output sample n is at n * down / up of the input, and all n of one remainder
    modulo `up` have the same taps. (Oppenheim and Schafer, Discrete-Time Signal Processing, sections 4.6 and 7.5.)
    """
    import numpy as np

    if rate == sound.rate or not len(sound.samples):
        return Sound(sound.samples, rate)
    common = math.gcd(rate, sound.rate)
    up, down = rate // common, sound.rate // common
    cutoff = min(1.0, up / down)  # of the input's band
    half = math.ceil(_CROSSINGS / cutoff)  # input samples that an output sample looks at on each side
    length = -(-len(sound.samples) * up // down)
    padded = np.pad(sound.samples.astype(np.float32, copy=False), (half, half + 1))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)  # [num_samples + 1, taps]
    out = np.empty(length, np.float32)
    offsets = np.arange(-half, half + 1)
    for phase in range(min(up, length)):
        first, fraction = divmod(phase * down, up)
        distance = offsets - fraction / up
        inside = np.clip(1.0 - (distance / (half + 1)) ** 2, 0.0, None)
        taps = cutoff * np.sinc(cutoff * distance) * np.i0(_BETA * np.sqrt(inside)) / np.i0(_BETA)
        taps /= taps.sum()  # a constant stays what it is
        count = len(range(phase, length, up))
        rows = windows[first : first + (count - 1) * down + 1 : down]
        # In parts: a product copies its rows, each of them as long as the filter.
        for start in range(0, count, _ROWS):
            some = rows[start : start + _ROWS] @ taps.astype(np.float32)
            out[phase + start * up : phase + (start + len(some) - 1) * up + 1 : up] = some
    return Sound(out, rate)


def _sound(body: memoryview, kind: int, channels: int, rate: int, bits: int, name: str, max_seconds: float) -> Sound:
    import numpy as np

    if rate not in _RATES:
        raise ToolError(f"{name} has {rate:,} samples a second; {_RATES[0]:,} to {_RATES[-1]:,} are read", hint=_HINT)
    if (kind, bits) not in ((_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)):
        raise ToolError(f"{name} holds samples of format {kind} with {bits} bits, not read here", hint=_HINT)
    frame = channels * bits // 8
    count = len(body) // frame
    if not count:
        raise ToolError(f"{name} is empty: it has no samples", hint=_HINT)
    if count / rate > max_seconds:
        raise ToolError(
            f"{name} lasts for {count / rate:,.0f} seconds; up to {max_seconds:,.0f} are taken",
            hint="send it in parts",
        )
    raw = body[: count * frame]
    if kind == _FLOAT:
        values = np.nan_to_num(np.frombuffer(raw, f"<f{bits // 8}").astype(np.float32))
    elif bits == 8:  # the one width without a sign
        values = (np.frombuffer(raw, np.uint8).astype(np.float32) - 128.0) / 128.0
    elif bits == 24:
        parts = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(parts), 4), np.uint8)
        wide[:, 1:] = parts  # the low byte stays 0, so the sign is where 32 bits have it
        values = (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    else:
        values = (np.frombuffer(raw, f"<i{bits // 8}") / 2.0 ** (bits - 1)).astype(np.float32)
    return Sound(values.reshape(count, channels).mean(axis=1, dtype=np.float32), rate)
