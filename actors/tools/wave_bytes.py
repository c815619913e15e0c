"""WAV files to arrays and back, by the standard library's reader."""

from __future__ import annotations

import io
import wave
from typing import TYPE_CHECKING, Any

from .errors import ToolError

if TYPE_CHECKING:
    import numpy

# Bytes a sample; a sample of one byte is unsigned.
_WIDTHS = {1: 0x80, 2: 0x8000, 3: 0x800000, 4: 0x80000000}


def _opened(data: bytes | memoryview) -> wave.Wave_read:
    try:
        return wave.open(io.BytesIO(data), "rb")  # the caller closes it
    except (wave.Error, EOFError) as error:
        raise ToolError(f"the sound is no WAV file of PCM samples: {error}", hint="convert it to WAV") from error


def wave_rate(data: bytes | memoryview) -> int:
    with _opened(data) as file:
        return file.getframerate()


def read_wave(data: bytes | memoryview) -> numpy.ndarray[Any, Any]:
    """float32 within [-1, 1]: [num_frames] of one channel, [num_frames, num_channels] of more."""
    import numpy

    with _opened(data) as file:
        width, channels = file.getsampwidth(), file.getnchannels()
        raw = file.readframes(file.getnframes())
    if width == 3:
        # Three bytes go to the upper part of four, so that the sign is where it belongs.
        spread = numpy.zeros((len(raw) // 3, 4), numpy.uint8)
        spread[:, 1:] = numpy.frombuffer(raw[: len(raw) // 3 * 3], numpy.uint8).reshape(-1, 3)
        samples = spread.view("<i4")[:, 0] >> 8
    elif width == 1:
        samples = numpy.frombuffer(raw, numpy.uint8).astype(numpy.int16) - _WIDTHS[1]
    else:
        samples = numpy.frombuffer(raw, f"<i{width}")
    floats = (samples / _WIDTHS[width]).astype(numpy.float32)
    return floats if channels == 1 else floats.reshape(-1, channels)


def write_wave(samples: numpy.ndarray[Any, Any], rate: int) -> bytes:
    """A 16-bit WAV file of floats within [-1, 1] or int16, [num_frames] or [num_frames, num_channels]."""
    import numpy

    if samples.dtype != numpy.int16:
        samples = numpy.round(numpy.clip(samples, -1.0, 1.0) * 0x7FFF).astype(numpy.int16)
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return target.getvalue()
