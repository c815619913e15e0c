"""Which of several launch configurations is fastest on this card: tried once, kept in a file, never tried again.

    config = tuning.pick("linear_int4", (num_rows_class, num_out, num_in), CONFIGS, lambda config: launch(config, out))

What was found holds for a card's name, a version of Triton and the sources of these kernels: a file for each of these,
in `tuning/` of the cache folder. So a change of any begins anew, and machines may share the folder.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import statistics
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ..cache import cache_folder
from .launch import interpreted

Key: TypeAlias = tuple[int | bool | str, ...]
Run: TypeAlias = Callable[["Config"], None]
Measure: TypeAlias = Callable[[Sequence["Config"], Run], Sequence[float | None]]

ROUNDS = 12
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """How a kernel is launched: the values of its `tl.constexpr` parameters, and Triton's own options."""

    constants: Mapping[str, int] = field(default_factory=dict, hash=False)
    num_warps: int = 4
    num_stages: int = 3

    def options(self) -> dict[str, int]:
        """What goes into the launch: `kernel[grid](..., **config.options())`."""
        return {**self.constants, "num_warps": self.num_warps, "num_stages": self.num_stages}


def pick(name: str, key: Key, configs: Sequence[Config], run: Run) -> Config:
    """The fastest of `configs` for the kernel `name` where its inputs are such as `key` says.

    `configs` is the same for the same name and key; all of them compute the same. `run(config)` launches the kernel
    once, on the current device and stream; it is called many times, so it may write over its result but not add to it.
    A configuration that needs more shared memory or registers than the card has is passed over; where all do, the first
    one's error is raised.

    Under the interpreter, and where nothing is known while a CUDA graph is recorded (nothing can be timed then), it is
    the first one: let that be one that fits every card.
    """
    if len(configs) == 1 or interpreted():
        return configs[0]
    return _book(torch.cuda.current_device()).pick(name, key, configs, run)


class Book:
    """What is known for one card: in memory, and in `file`. Threads and processes may share it.

    `measure` gives a time for each configuration, None for one that does not fit the card.
    """

    def __init__(self, file: Path, measure: Measure) -> None:
        self._file = file
        self._measure = measure
        self._lock = threading.Lock()
        self._picked: dict[tuple[str, Key], Config] = {}
        self._known: dict[str, dict[str, Any]] | None = None  # what the file said; None: not read yet

    def pick(self, name: str, key: Key, configs: Sequence[Config], run: Run) -> Config:
        found = self._picked.get((name, key))
        if found is not None:
            return found
        with self._lock:  # two threads would disturb each other's times
            return self._picked.get((name, key)) or self._find(name, key, configs, run)

    def _find(self, name: str, key: Key, configs: Sequence[Config], run: Run) -> Config:
        entry = json.dumps([name, *key])
        if self._known is None:
            self._known = _read(self._file)
        kept = self._known.get(entry)
        found = next((config for config in configs if kept == asdict(config)), None)
        if found is None:
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                return configs[0]
            times = self._measure(configs, run)
            _, best = min((time, i) for i, time in enumerate(times) if time is not None)
            found = configs[best]
            self._known[entry] = asdict(found)
            _add(self._file, entry, asdict(found))
        self._picked[name, key] = found
        return found


@functools.cache
def _book(index: int) -> Book:
    import triton

    name = re.sub(r"\W+", "-", torch.cuda.get_device_name(index))
    file = f"{name}-triton{triton.__version__}-{sources_digest()}.json"
    return Book(cache_folder("tuning") / file, measure)


def sources_digest(folder: Path = Path(__file__).parent) -> str:
    """Of all modules in a folder: those that a kernel is made of, its own and what it shares, are among them."""
    digest = hashlib.sha256()
    for source in sorted(folder.glob("*.py")):
        content = source.read_bytes()
        digest.update(f"{source.name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:16]


def measure(configs: Sequence[Config], run: Run) -> list[float | None]:
    """Milliseconds of each on the current device, the median of several; None where it does not fit the card.

    They take turns, so that a card that grows warm or changes its clock slows all of them. Before each turn the cache
    of the card is filled with something else: in a model, what a kernel reads was not read just before.
    """
    from triton.runtime.errors import OutOfResources, PTXASError

    errors: dict[int, Exception] = {}
    for i, config in enumerate(configs):
        try:
            run(config)  # compiles it
        except (OutOfResources, PTXASError) as error:
            errors[i] = error
    if len(errors) == len(configs):
        raise errors[0]
    fitting = [i for i in range(len(configs)) if i not in errors]
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    other = torch.empty(2 * properties.L2_cache_size, dtype=torch.int8, device="cuda")
    spans: dict[int, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {i: [] for i in fitting}
    for _ in range(ROUNDS):
        for i in fitting:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            other.zero_()  # also keeps the card busy until the launch behind it has arrived
            begin.record()
            run(configs[i])
            end.record()
            spans[i].append((begin, end))
    torch.cuda.synchronize()
    times = {i: statistics.median(begin.elapsed_time(end) for begin, end in spans[i]) for i in fitting}
    return [times.get(i) for i in range(len(configs))]


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """What a file says; nothing where there is none, or where it is damaged: then it is written anew."""
    try:
        content = json.loads(file.read_text())
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, so its launch configurations are searched again: %s", file, error)
        return {}
    return content


def _add(file: Path, entry: str, config: dict[str, Any]) -> None:
    """One entry more in a file, beside those that other processes have added meanwhile. Who reads it sees the old
    content or the new."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = {**_read(file), entry: config}
            with tempfile.TemporaryDirectory(dir=file.parent, prefix=".tuning-") as aside:
                new = Path(aside) / file.name
                new.write_text(json.dumps(content, indent=1, sort_keys=True))
                os.replace(new, file)
    except OSError as error:
        log.warning("%s cannot be written, so the next start searches again: %s", file, error)
