"""Starting the daemon from the app, by `callboard up --detach` as in a terminal: it stays when the app goes."""

from __future__ import annotations

import asyncio
import contextlib
import sys

from ..runtime.errors import CallboardError
from .session import Access


class NotStarted(CallboardError):
    """The daemon could not be started; the message is what `callboard up` said."""

    code = "tui.not_started"


async def start_daemon(access: Access) -> None:
    """Returns once it is ready. Raises NotStarted."""
    where = ["--state-dir", access.state_dir] if access.state_dir else []
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "callboard.runtime.cli", "up", "--detach", *where),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        raise
    if process.returncode:
        lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
        what = lines[0].removeprefix("callboard: ") if lines else f"callboard up ended with {process.returncode}"
        raise NotStarted(what, hint=" ".join(lines[1:]) or "`callboard doctor` looks at what it needs")
