"""What `callboard doctor` says of models: those in the store, the GPU with what computes on it, the CPU's kernels.

Nothing is imported to find out: how torch was built stands in a file of its own, and importing it takes seconds.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from ...runtime.checks import Finding, Surroundings, absent, ask_program, ok, warning

# The oldest cards with bf16, and that current Triton compiles for.
_LEAST_CAPABILITY = 8.0


def models(given: Surroundings) -> Iterator[Finding]:
    from .store import ModelStore

    store = ModelStore(given.paths.data / "models")
    found = [model.name for model in store.installed()]
    wanted = given.settings.model
    if wanted in found:
        yield ok("models", ", ".join(found))
    else:
        have = f" ({', '.join(found)} are)" if found else ""
        yield absent("models", f"the default model, {wanted}, is not here{have}", f"callboard pull {wanted}")


def kernels(_: Surroundings) -> Iterator[Finding]:
    """Whether the native kernels will compute here. They are compiled by who first needs them, not by this."""
    from ...kernels import native

    why = native.missing()
    if not why:
        yield ok("kernels", "native kernels on the CPU (compiled for this processor when a model is first loaded)")
    elif "compiler" in why:
        yield warning("kernels", f"torch on the CPU, much slower than the native kernels: {why}", "apt-get install g++")
    else:
        yield absent("kernels", f"torch on the CPU, for the native kernels cannot run: {why}")


def gpu(_: Surroundings) -> Iterator[Finding]:
    cuda = torch_cuda()
    program = shutil.which("nvidia-smi")
    listed = (
        ask_program(program, "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader") if program else None
    )
    if program is not None and listed is None:
        yield warning("gpu", "nvidia-smi does not answer: the driver does not work", "nvidia-smi")
        return
    if not listed:
        yield absent("gpu", "none: models run on the CPU")
        return
    for line in listed.splitlines():
        yield card(line, cuda)


def card(line: str, cuda: str | None) -> Finding:
    """One line of nvidia-smi, `name, compute capability, memory`, against the CUDA version of torch ("": built for
    the CPU; None: torch is not installed)."""
    name, capability, memory = (part.strip() for part in line.rsplit(",", 2))
    text = f"{name}, {memory}, compute capability {capability}"
    if cuda is None:
        return warning("gpu", f"{text}, and torch is not installed", "pip install 'callboard[gpu]'")
    if not cuda:
        return warning("gpu", f"{text}, and torch is built for the CPU", "pip install --force-reinstall torch")
    if float(capability) < _LEAST_CAPABILITY:
        return ok("gpu", f"{text}, torch for CUDA {cuda}; too old for bf16 and Triton, so fp16 and torch's own kernels")
    return ok("gpu", f"{text}, torch for CUDA {cuda}")


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch is built for; "" where it is none, None where there is no torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    version = Path(os.path.dirname(found.origin)) / "version.py"
    cuda = re.search(r"^cuda(?:: [^=]+)? = ['\"]([\d.]+)['\"]", version.read_text(), re.MULTILINE)
    return cuda[1] if cuda else ""
