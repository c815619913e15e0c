"""A sandbox that tests without an event loop can use, and the limits that most of them use."""

from __future__ import annotations

from collections.abc import Callable

from anyio.from_thread import BlockingPortal

from callboard.actors.tools.sandbox import Limits, RunResult, Sandbox, SandboxKilled

# Small enough that tests of limits are quick, big enough for what other tests do.
LIMITS = Limits(
    wall_s=20.0,
    cpu_s=20.0,
    memory=256 << 20,
    address_space=2048 << 20,
    processes=24,
    open_files=128,
    file_bytes=16 << 20,
    scratch_bytes=32 << 20,
    scratch_files=500,
    output_bytes=200_000,
    result_bytes=24 << 20,
    result_files=50,
    snapshot_bytes=4 << 20,
)


class Rig:
    """A sandbox that tests without an event loop can use."""

    def __init__(self, portal: BlockingPortal, box: Sandbox) -> None:
        self.portal = portal
        self.box = box

    def python(self, code: str, session: str = "", **given: object) -> RunResult:
        return self.portal.call(lambda: self.box.run_python(code, session, **given))  # type: ignore[arg-type]

    def shell(self, command: str, session: str = "", **given: object) -> RunResult:
        return self.portal.call(lambda: self.box.run_shell(command, session, **given))  # type: ignore[arg-type]

    def attempt(self, code: str, session: str = "") -> RunResult | SandboxKilled:
        """What came of it, a limit that ended it included."""
        try:
            return self.python(code, session)
        except SandboxKilled as killed:
            return killed


MakeRig = Callable[..., Rig]
