"""What `callboard doctor` says of the code sandbox."""

from __future__ import annotations

from collections.abc import Iterator

from ....runtime.checks import Finding, Surroundings, absent, ok, warning
from .config import SandboxConfig
from .kernel import probe
from .parts import Part


def sandbox(given: Surroundings) -> Iterator[Finding]:
    """Whether code of a model can be run here, and what is accepted to be lacking."""
    import msgspec

    kernel = probe()
    if Part.LINUX in kernel.lacking:
        yield absent("sandbox", "the tools `python` and `shell` need Linux", "run them on a node with Linux")
        return
    table = given.settings.tools.get("sandbox", {})
    accepted = msgspec.convert(table.get("accept", ()), tuple[Part, ...])
    if not kernel.lacking:
        yield ok("sandbox", f"all of it: namespaces, seccomp, Landlock {kernel.landlock_abi}, a /proc of its own")
        return
    lacking = ", ".join(f"{part} ({kernel.reason(part)})" if kernel.reason(part) else part for part in kernel.lacking)
    missing = [part for part in kernel.lacking if part not in (*accepted, *SandboxConfig().accept)]
    if missing:
        accept = ", ".join(f'"{part}"' for part in kernel.lacking)
        hint = f"docs/sandbox.md; or in the settings: [tools.sandbox] accept = [{accept}]"
        yield warning("sandbox", f"`python` and `shell` refuse to run code here, for the kernel lacks: {lacking}", hint)
    else:
        yield ok("sandbox", f"goes without, as configured: {lacking}")
