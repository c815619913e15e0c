"""Speech: eSpeak NG says it, PocketSphinx hears it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from callboard import Audio, Image, ToolContext
from callboard.actors.tools.errors import ToolArguments, ToolError, ToolSetupFailed
from callboard.actors.tools.media import espeak
from callboard.actors.tools.media.grammar_size import grammar_words
from callboard.actors.tools.media.sounds import read_wav, resampled
from callboard.actors.tools.media.speak import Speak
from callboard.actors.tools.media.transcribe import Transcribe
from callboard.runtime.errors import Cancelled

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which(espeak.PROGRAM) is None, reason="needs espeak-ng (Debian: espeak-ng)"),
]

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
# Forty short rules that written out have a million million words.
DOUBLED = "<r0> = one; " + " ".join(f"<r{n}> = <r{n - 1}> <r{n - 1}>;" for n in range(1, 41))


@pytest.fixture(scope="module")
def mouth() -> Speak:
    return Speak()


@pytest.fixture(scope="module")
def ear() -> Transcribe:
    return Transcribe()


async def said(mouth: Speak, text: str, **options: Any) -> Audio:
    outcome = await mouth.call({"text": text, "voice": "en-us", "words_per_minute": 130, **options})
    (audio,) = outcome.media.values()
    assert isinstance(audio, Audio)
    return audio


async def heard(ear: Transcribe, audio: Audio, **expected: Any) -> dict[str, Any]:
    return (await ear.call({"audio": "speech", **expected}, {"speech": audio})).data


@pytest.mark.parametrize("spoken", ["one two three", "nine zero five", "six seven eight four"])
async def test_digits_that_are_said_are_heard(mouth: Speak, ear: Transcribe, spoken: str) -> None:
    found = await heard(ear, await said(mouth, spoken), words=DIGITS)
    assert found["text"] == spoken
    times = [(segment["start"], segment["end"]) for segment in found["segments"]]
    assert times == sorted(times)
    assert 0 <= times[0][0] < times[-1][1] <= found["seconds"] + 0.1
    assert all(start < end for start, end in times)


async def test_a_grammar_is_followed(mouth: Speak, ear: Transcribe) -> None:
    grammar = "#JSGF V1.0; grammar lights; public <order> = turn ( on | off ) the ( lights | radio );"
    for order in ("turn on the lights", "turn off the radio"):
        assert (await heard(ear, await said(mouth, order), grammar=grammar))["text"] == order


async def test_phrases_are_words_too(mouth: Speak, ear: Transcribe) -> None:
    audio = await said(mouth, "please call back tomorrow")
    assert (await heard(ear, audio, words=["Call back", "tomorrow", "yesterday", "please"]))["text"] == (
        "please call back tomorrow"
    )


async def test_a_keyword_is_heard_in_other_speech_and_not_where_it_is_not(mouth: Speak, ear: Transcribe) -> None:
    keywords = ["kitchen lights", "heating"]
    with_it = await said(mouth, "turn on the kitchen lights and the heating")
    assert (await heard(ear, with_it, keywords=keywords))["text"] == "kitchen lights heating"
    without = await said(mouth, "where is the railway station")
    assert (await heard(ear, without, keywords=keywords))["text"] == ""


async def test_a_sound_at_another_rate_is_heard_the_same(mouth: Speak, ear: Transcribe) -> None:
    sound = read_wav((await said(mouth, "one two three")).bytes())
    faster = resampled(sound, 44100)
    stereo = np.stack([faster.samples, faster.samples], axis=1)
    assert (await heard(ear, Audio.from_array(stereo, 44100), words=DIGITS))["text"] == "one two three"


@pytest.mark.parametrize("samples", [np.zeros(16000, np.float32), np.zeros(10, np.float32)])
async def test_silence_has_no_words(ear: Transcribe, samples: np.ndarray) -> None:
    assert (await heard(ear, Audio.from_array(samples, 16000), words=DIGITS))["text"] == ""


@pytest.mark.parametrize(
    ("expected", "says"),
    [
        ({}, "exactly one of"),
        ({"words": ["one"], "grammar": "x"}, "exactly one of"),
        ({"words": ["one"], "language": "de"}, "English alone"),
        ({"words": ["one", "qwrtzpf"]}, "qwrtzpf"),
        ({"words": ["größer"]}, "no English word"),
        ({"words": [" "]}, "no English word"),
        ({"keywords": ["qwrtzpf"]}, "qwrtzpf"),
        ({"grammar": "nonsense"}, "dictionary does not have|no grammar"),
        ({"grammar": "#JSGF V1.0; grammar a; public <a> = one ("}, "no grammar"),
        ({"grammar": "#JSGF V1.0; grammar a; public <a> = one qwrtzpf;"}, "qwrtzpf"),
        ({"grammar": "#JSGF V1.0; grammar a; public <a> = <b>;"}, "<b>"),
        ({"grammar": f"#JSGF V1.0; grammar a; public <a> = {'(' * 21} one {')' * 21};"}, "too large"),
        ({"grammar": f"#JSGF V1.0; grammar a; public <a> = {'(' * 15} one {')+' * 15};"}, "too large"),
        ({"grammar": f"#JSGF V1.0; grammar a; {DOUBLED} public <a> = <r40>;"}, "too large"),
        ({"grammar": "#JSGF V1.0; grammar a; public <a> = one /2/ two;"}, "weights"),
        ({"grammar": "#JSGF V1.0; grammar a; import <etc.passwd>; public <a> = one;"}, "import"),
    ],
)
async def test_what_cannot_be_listened_for_is_an_error(
    mouth: Speak, ear: Transcribe, expected: Mapping[str, Any], says: str
) -> None:
    audio = await said(mouth, "one")
    with pytest.raises(ToolError, match=says) as caught:
        await heard(ear, audio, **expected)
    assert caught.value.hint
    assert (await heard(ear, audio, words=DIGITS))["text"] == "one"


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("public <a> = one two;", 2),
        ("public <a> = ( one | two )+;", 4),
        ("public <a> = one <b>; <b> = two three; // four five", 5),
        ("public <a> = one <a>;", 2),
        ("public <a> = one <b>; <b> = two <a>;", 5),
        ("<z> = " + " ".join(["one"] * 500) + "; public <a> = <z> <z>;", 1500),
    ],
)
def test_the_size_of_a_grammar_is_known_before_it_is_read(rules: str, words: int) -> None:
    assert grammar_words(f"#JSGF V1.0; grammar a; {rules}") in range(words, 2 * words + 1)


@pytest.mark.parametrize("data", [b"", b"RIFF", b"\xff\xfb\x90\x00 an mp3", b"RIFF\0\0\0\0WAVE"])
async def test_what_is_no_sound_is_an_error(ear: Transcribe, data: bytes) -> None:
    with pytest.raises(ToolError, match="the sound"):
        await heard(ear, Audio.from_bytes(data, "audio/wav", "call.wav"), words=DIGITS)


async def test_an_image_is_no_sound(ear: Transcribe) -> None:
    with pytest.raises(ToolArguments):
        await ear.call({"audio": "a", "words": DIGITS}, {"a": Image.from_bytes(b"\x89PNG\r\n\x1a\n", "image/png")})


async def test_faster_is_shorter_and_higher_is_higher(mouth: Speak) -> None:
    text = "the quick brown fox jumps over the lazy dog"
    slow, fast = [read_wav((await said(mouth, text, words_per_minute=speed)).bytes()).seconds for speed in (100, 300)]
    assert slow > 2 * fast
    low, high = [await said(mouth, "ah", pitch=pitch) for pitch in (5, 95)]
    assert _pitch(high) > 1.2 * _pitch(low)


def _pitch(audio: Audio) -> float:
    """Hertz, by the first peak of the autocorrelation of the loudest tenth of a second."""
    sound = read_wav(audio.bytes())
    size = sound.rate // 10
    loudest = max(
        range(0, len(sound.samples) - size, size // 4), key=lambda at: np.square(sound.samples[at : at + size]).sum()
    )
    piece = sound.samples[loudest : loudest + size]
    likeness = np.correlate(piece, piece, "full")[size - 1 :]
    first, last = sound.rate // 400, sound.rate // 50
    return sound.rate / (first + int(likeness[first:last].argmax()))


async def test_other_languages_have_other_sounds(mouth: Speak) -> None:
    english, german = [await said(mouth, "Zweiundvierzig", voice=code) for code in ("en", "de")]
    assert english.bytes() != german.bytes()
    assert (await said(mouth, "Zweiundvierzig", voice="de+f3")).bytes() != german.bytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"text": " "}, "empty"),
        ({"text": "a" * 20_001}, "20,001"),
        ({"text": "a", "voice": "klingon"}, "no voice 'klingon'"),
        ({"text": "a", "voice": "en-uss"}, "no voice"),
        ({"text": "a", "voice": "-f/etc/passwd"}, "no voice"),
        ({"text": "a", "voice": "en+../../etc/passwd"}, "no voice"),
        ({"text": "a", "words_per_minute": 1000}, "words_per_minute"),
    ],
)
async def test_what_cannot_be_said_is_an_error(mouth: Speak, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ToolError, match=says):
        await mouth.call(arguments)


async def test_a_text_that_looks_like_an_option_is_said(mouth: Speak) -> None:
    text = "--version"
    audio = await said(mouth, text)
    assert read_wav(audio.bytes()).seconds > 0.3


async def test_without_the_program_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    espeak.voices.cache_clear()
    with pytest.raises(ToolSetupFailed, match="espeak-ng is not installed") as caught:
        await Speak().call({"text": "hello"})
    assert "package espeak-ng" in caught.value.hint


async def test_a_program_that_takes_its_time_hears_all_of_the_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = "one two three " * 1_400
    script = tmp_path / "espeak-ng"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --voices ] && exec {espeak.program()} --voices\n'
        f"sleep {3 * espeak._LOOK_S}\ncat > {tmp_path}/heard\necho nothing >&2\n"  # pyright: ignore[reportPrivateUsage]
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    espeak.voices.cache_clear()
    with pytest.raises(ToolError, match="nothing"):
        await Speak().call({"text": text})
    assert (tmp_path / "heard").read_text().strip() == text.strip()


async def test_a_call_that_is_given_up_ends_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in that never ends, in place of the program, says its process number before it hangs."""
    began = tmp_path / "pid"
    script = tmp_path / "espeak-ng"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --voices ] && exec {espeak.program()} --voices\necho $$ > {began}.new\n'
        f"mv {began}.new {began}\nexec sleep 1000\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    espeak.voices.cache_clear()
    context = ToolContext()
    failed: list[BaseException] = []

    async def call() -> None:
        try:
            await Speak().call({"text": "hello"}, {}, context)
        except Cancelled as error:
            failed.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        while not began.exists():
            await anyio.sleep(0.01)
        context.cancel()
    assert failed
    with pytest.raises(ProcessLookupError):
        os.kill(int(began.read_text()), 0)
