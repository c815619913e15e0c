"""Other actor frameworks that do the same work in the same run, where they are installed.

Each has a program in `tests/benchmarks/peers/` and a virtual environment in `.venv-peers/NAME` (`make peers`), because
their pins fight ours. Ray is measured in our own environment, where the extra `cluster` puts it.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...runtime.errors import CallboardError
from ...runtime.processes import dying_with_us

_CHECKOUT = Path(__file__).parents[2]
_PROGRAMS = _CHECKOUT / "tests" / "benchmarks" / "peers"
_TIMEOUT_S = 180.0


class PeerFailed(CallboardError):
    code = "bench.peer"


@dataclass(frozen=True)
class Peer:
    """`what`: the benchmark whose work its program does, `bench` for that of the bus."""

    name: str
    python: Path
    what: str = "bench"

    def measure(self) -> dict[str, list[float]]:
        """Its figures by the names of ours, each a list of rounds. Raises PeerFailed."""
        program = _PROGRAMS / f"{self.what}_{self.name}.py"
        try:
            done = subprocess.run(
                dying_with_us([str(self.python), str(program)]),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=True,
            )
            # Frameworks greet on standard output; the figures are the last line.
            return msgspec.json.decode(done.stdout.splitlines()[-1], type=dict[str, list[float]])
        except (subprocess.SubprocessError, msgspec.DecodeError, IndexError) as error:
            hint = f"run it by itself: {self.python} {program}"
            raise PeerFailed(f"the program of the peer {self.name} failed: {error}", hint=hint) from error


def installed() -> list[Peer]:
    """The peers that can be measured here; none outside a source checkout."""
    found: list[Peer] = []
    for program in sorted(_PROGRAMS.glob("bench_*.py")):
        name = program.stem.removeprefix("bench_")
        python = _CHECKOUT / ".venv-peers" / name / "bin" / "python"
        if (python.parent.parent / ".installed").exists():
            found.append(Peer(name, python))
        elif name == "ray" and importlib.util.find_spec("ray") is not None:
            found.append(Peer(name, Path(sys.executable)))
    return found


def installed_for(what: str) -> dict[str, Peer]:
    """The peers of another benchmark that can be measured here, by name: their programs are `<what>_<name>.py`."""
    names = [program.stem.removeprefix(f"{what}_") for program in sorted(_PROGRAMS.glob(f"{what}_*.py"))]
    found = {name: _CHECKOUT / ".venv-peers" / name for name in names}
    return {
        name: Peer(name, venv / "bin" / "python", what)
        for name, venv in found.items()
        if (venv / ".installed").exists()
    }
