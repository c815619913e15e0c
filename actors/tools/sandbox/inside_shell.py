"""Commands in the sandbox, by the system's shell. A session's variables, functions and folder outlive each command."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

# The state is read and written by the shell itself: nothing else knows its quoting.
_BASH = """
if [ -f {state} ]; then . {state} 2>/dev/null; fi
trap '{{ declare -p; declare -f; printf "cd -- %q\\n" "$PWD"; }} 2>/dev/null >{state}' EXIT
eval {command}
"""
_SH = """
if [ -f {state} ]; then . {state} 2>/dev/null; fi
trap '{{ export -p; }} 2>/dev/null >{state}' EXIT
eval {command}
"""


class Shell:
    """`state`: the file that holds it. `folder`: where the first command begins."""

    def __init__(self, state: str, folder: str) -> None:
        self._state = state
        self._folder = folder

    def run(self, command: str) -> int:
        """The exit status; 128 and the signal's number for a command that a signal ended."""
        bash = next((path for path in ("/bin/bash", "/usr/bin/bash") if os.path.exists(path)), "")
        script = (_BASH if bash else _SH).format(state=shlex.quote(self._state), command=shlex.quote(command))
        sys.stdout.flush()
        done = subprocess.run(
            [bash or "/bin/sh", "-c", script, "shell"], cwd=self._folder, stdin=subprocess.DEVNULL, check=False
        )
        return done.returncode if done.returncode >= 0 else 128 - done.returncode
