"""Speech from text by eSpeak NG, a program of the operating system: small, quick, a hundred languages, a robot's voice.

https://github.com/espeak-ng/espeak-ng
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess

from ....runtime.matching import did_you_mean
from ..context import ToolContext
from ..errors import ToolError, ToolSetupFailed
from .sounds import Sound, read_wav

PROGRAM = "espeak-ng"
# A look at whether the call was given up, while the program runs.
_LOOK_S = 0.2


def program() -> str:
    """The program's path. ToolSetupFailed where it is not installed."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise ToolSetupFailed(
            f"the program {PROGRAM} is not installed here",
            hint="Debian and Ubuntu have it in the package espeak-ng, macOS's Homebrew in espeak-ng",
        )
    return found


@functools.cache
def voices() -> tuple[str, ...]:
    """The voices by their codes, `en-us`, `de`, `cmn` and so on, and each language by itself: `en`."""
    done = subprocess.run([program(), "--voices"], capture_output=True, text=True, check=True, timeout=30)
    codes = {line.split()[1] for line in done.stdout.splitlines()[1:] if len(line.split()) > 1}
    return tuple(sorted(codes | {code.partition("-")[0] for code in codes}))


def spoken(text: str, voice: str, words_per_minute: int, pitch: int, context: ToolContext) -> Sound:
    """`text` said in a voice, a code with a variant or not (`en-us`, `en+f3`). Raises ToolError, Cancelled."""
    known = voices()
    code, _, variant = voice.partition("+")
    if code not in known or (variant and not re.fullmatch(r"[A-Za-z0-9_-]+", variant)):
        meant = did_you_mean(code, known)
        languages = ", ".join(name for name in known if "-" not in name)
        raise ToolError(
            f"there is no voice '{voice}'", hint=f"did you mean {meant}?" if meant else f"there are {languages}"
        )
    # Text comes on standard input: on the command line one that starts with '-' would be taken as an option.
    command = [program(), "--stdout", "--stdin", "-b", "1", "-v", voice, "-s", str(words_per_minute), "-p", str(pitch)]
    wave, said = _output(command, text.encode(), context)
    if not wave:
        raise ToolError(f"{PROGRAM} said nothing: {said or 'there is no letter in the text'}")
    return read_wav(wave, name="what was said")


def _output(command: list[str], given: bytes, context: ToolContext) -> tuple[bytes, str]:
    """A program's standard output, and the first line of the other. It is killed where the call is given up."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    still: bytes | None = given
    try:
        while True:
            try:
                out, err = process.communicate(still, timeout=_LOOK_S)
            except subprocess.TimeoutExpired:
                still = None  # what is left of it goes on being sent
                context.check()
                continue
            if process.returncode:
                raise ToolError(f"{PROGRAM} ended with {process.returncode}: {_first_line(err)}")
            return out, _first_line(err)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _first_line(text: bytes) -> str:
    return text.decode(errors="replace").strip().partition("\n")[0]
