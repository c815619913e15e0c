"""What code may use up: each limit is passed by a program, and what it must not take is looked at from outside."""

from __future__ import annotations

import time

import msgspec
import psutil
import pytest
from sandbox_rig import LIMITS, MakeRig, Rig
from sandbox_world import World

from callboard.actors.tools.sandbox import Limits, Part, RunResult, SandboxKilled, probe


def _with(**changes: float | int) -> Limits:
    return msgspec.structs.replace(LIMITS, **changes)


def _killed(rig: Rig, code: str, session: str = "", timeout: float | None = None) -> SandboxKilled:
    with pytest.raises(SandboxKilled) as caught:
        rig.python(code, session, timeout=timeout)
    return caught.value


@pytest.fixture(scope="module", params=["locked", pytest.param("bare", marks=pytest.mark.slow)])
def either(request: pytest.FixtureRequest, make_rig: MakeRig) -> Rig:
    """With all the kernel has, and with Landlock and seccomp only."""
    kernel = probe() if request.param == "locked" else probe().without(Part.USER_NAMESPACE)
    return make_rig(LIMITS, kernel, accept=kernel.lacking)


@pytest.fixture(scope="module", params=["locked", pytest.param("bare", marks=pytest.mark.slow)])
def hurried(request: pytest.FixtureRequest, make_rig: MakeRig) -> Rig:
    """The same, with little processor time."""
    kernel = probe() if request.param == "locked" else probe().without(Part.USER_NAMESPACE)
    return make_rig(_with(cpu_s=0.5, wall_s=40.0), kernel, accept=kernel.lacking)


_STUBBORN = """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
"""


def test_endless_loop_ends_at_its_cpu_time(hurried: Rig) -> None:
    assert _killed(hurried, f"{_STUBBORN}\nprint('begun')\nwhile True: pass").reason == "cpu_time"


def test_cpu_time_of_children_counts(hurried: Rig) -> None:
    code = "import os\nfor _ in range(4):\n    if os.fork() == 0:\n        while True: pass\nos.wait()"
    assert _killed(hurried, code).reason == "cpu_time"


def test_cpu_time_of_children_that_ended_counts(hurried: Rig) -> None:
    code = """
import os, time
while True:
    if os.fork() == 0:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        os._exit(0)
    os.wait()
"""
    assert _killed(hurried, code).reason == "cpu_time"


def test_sleeping_past_the_wall_time_ends(either: Rig) -> None:
    began = time.monotonic()
    killed = _killed(
        either, f"{_STUBBORN}\nprint('begun', flush=True)\nimport time\nwhile True: time.sleep(100)", timeout=2.0
    )
    assert killed.reason == "wall_time"
    assert killed.stdout == "begun\n"
    assert time.monotonic() - began < LIMITS.wall_s


def test_a_call_may_ask_for_less_time(rig: Rig) -> None:
    with pytest.raises(SandboxKilled, match=r"more than 0\.2 s"):
        rig.python("import time; time.sleep(100)", timeout=0.2)


def test_one_big_allocation_is_a_memory_error(rig: Rig) -> None:
    result = rig.python("x = bytearray(8 << 30)")
    assert result.error is not None
    assert result.error.type == "MemoryError"


@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(b'x') * (1 << 30)\nimport time; time.sleep(5)",
        "import mmap\nm = mmap.mmap(-1, 1 << 30)\nfor at in range(0, 1 << 30, 4096): m[at] = 1",
        "x = []\nwhile True: x.append(bytearray(b'x') * 100_000)",
        """
import os, time
for _ in range(10):
    if os.fork() == 0:
        x = bytearray(b'x') * (60 << 20)
        time.sleep(30)
        os._exit(0)
time.sleep(30)
""",
        """
import os, mmap, time
shared = mmap.mmap(-1, 1 << 29)
for part in range(8):
    if os.fork() == 0:
        for at in range(part << 26, (part + 1) << 26, 4096): shared[at] = 1
        time.sleep(30)
time.sleep(30)
""",
    ],
    ids=["one value", "mapped", "many values", "many children", "shared by children"],
)
def test_memory_is_bounded_over_all_processes(code: str, either: Rig) -> None:
    assert _killed(either, code).reason == "memory"


def test_pages_that_processes_share_count_once(rig: Rig) -> None:
    code = """
import os, time
x = bytearray(b'x') * (100 << 20)
children = []
for _ in range(6):
    child = os.fork()
    if child == 0:
        time.sleep(0.3)
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
'fine'
"""
    assert rig.python(code).value == "'fine'"


def test_scratch_space_is_bounded(rig: Rig) -> None:
    code = """
written = 0
try:
    for number in range(100):
        with open(f'f{number}', 'wb') as file:
            for _ in range(15):
                written += file.write(bytes(1 << 20))
except OSError as error:
    print(error.errno)
written
"""
    result = rig.python(code)
    assert result.stdout == "28\n"  # ENOSPC
    assert result.value is not None
    assert int(result.value) <= LIMITS.scratch_bytes


def test_scratch_space_is_bounded_without_a_mount_namespace(make_rig: MakeRig) -> None:
    kernel = probe().without(Part.USER_NAMESPACE)
    bare = make_rig(LIMITS, kernel, accept=kernel.lacking)
    code = "import time\nfor n in range(100): open(f'f{n}', 'wb').write(bytes(10 << 20))\ntime.sleep(10)"
    assert _killed(bare, code).reason == "scratch"


def test_number_of_files_is_bounded(rig: Rig) -> None:
    result = rig.python("for number in range(10_000): open(f'f{number}', 'w').close()")
    assert result.error is not None
    assert "No space" in result.error.message
    assert len(result.files) <= LIMITS.result_files


def test_one_file_is_bounded(rig: Rig) -> None:
    result = rig.python("with open('big', 'wb') as file:\n    file.truncate(1 << 40)")
    assert result.error is not None
    assert "too large" in result.error.message
    assert [file.size for file in result.files] == [0]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_is_bounded(stream: str, rig: Rig) -> None:
    killed = _killed(rig, f"import sys\nwhile True: print('x' * 1000, file=sys.{stream})")
    assert killed.reason == "output"
    assert len(getattr(killed, stream)) == LIMITS.output_bytes


def test_output_of_children_is_bounded(rig: Rig) -> None:
    with pytest.raises(SandboxKilled) as caught:
        rig.shell("yes & yes & yes")
    assert caught.value.reason == "output"


def test_open_files_are_bounded(rig: Rig) -> None:
    result = rig.python("x = []\nwhile True: x.append(open('/dev/null'))")
    assert result.error is not None
    assert "Too many open files" in result.error.message


def test_fork_bomb_finds_no_more_processes(rig: Rig) -> None:
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    assert _killed(rig, bomb, timeout=1.0).reason == "wall_time"
    assert _alive_soon_gone(rig)


def test_processes_are_counted_by_the_kernel(rig: Rig) -> None:
    code = """
import os, time
made = 0
try:
    for _ in range(200):
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        made += 1
except BlockingIOError:
    pass
made
"""
    result = rig.python(code)
    assert result.value == str(LIMITS.processes - 1)
    assert result.usage.most_processes <= LIMITS.processes


def test_processes_are_counted_without_a_user_namespace(make_rig: MakeRig) -> None:
    kernel = probe().without(Part.USER_NAMESPACE)
    bare = make_rig(LIMITS, kernel, accept=kernel.lacking)
    code = "import os, time\nfor _ in range(100):\n    if os.fork() == 0:\n        time.sleep(30)\ntime.sleep(30)"
    assert _killed(bare, code).reason == "processes"
    assert _alive_soon_gone(bare)


def test_threads_are_processes(rig: Rig) -> None:
    code = "for _ in range(100): threading.Thread(target=time.sleep, args=(5,), daemon=True).start()"
    result = rig.python(f"import threading, time\n{code}")
    assert result.error is not None
    assert "start new thread" in result.error.message


_DAEMON = """
import os, time, signal, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        os.execv('/bin/sleep', ['sleep', '{seconds}'])
    os._exit(0)
os.wait()
time.sleep(0.1)
"""


@pytest.mark.parametrize("session", ["", "kept"])
def test_daemon_does_not_outlive_its_call(session: str, either: Rig) -> None:
    seconds = f"7{abs(hash((session, id(either)))) % 10**6}"
    either.python(_DAEMON.replace("{seconds}", seconds), session)
    assert _alive_soon_gone(either)
    assert not [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", seconds]]


_HIDDEN = "import ctypes\nassert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0\n"  # PR_SET_DUMPABLE


def test_process_that_hides_itself_is_measured_all_the_same(hurried: Rig, either: Rig) -> None:
    assert _killed(hurried, f"{_HIDDEN}while True: pass").reason == "cpu_time"
    assert _killed(either, f"{_HIDDEN}x = []\nwhile True: x.append(bytearray(b'x') * 100_000)").reason == "memory"


def test_daemon_that_hides_itself_does_not_outlive_its_call(rig: Rig) -> None:
    code = _HIDDEN + "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\n    os._exit(0)"
    rig.python(code, "hiding")
    listed = "import os; sorted(int(name) for name in os.listdir('/proc') if name.isdigit())"
    assert rig.python(listed, "hiding").value == "[1, 2]"


def test_nothing_runs_in_a_session_between_calls(rig: Rig) -> None:
    rig.python(
        "import threading, time\nticks = 0\ndef tick():\n    global ticks\n    while True:\n        ticks += 1\n"
        "        time.sleep(0.001)\nthreading.Thread(target=tick, daemon=True).start()\ntime.sleep(0.05)",
        "ticking",
    )
    before = rig.python("ticks", "ticking")
    time.sleep(0.5)
    after = rig.python("ticks", "ticking")
    assert before.value is not None
    assert after.value is not None
    assert int(before.value) > 0
    assert int(after.value) - int(before.value) < 200


def test_session_is_not_woken_by_who_it_left_behind(rig: Rig) -> None:
    code = """
import os, signal, threading, time
ticks = 0
def tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.001)
threading.Thread(target=tick, daemon=True).start()
main = os.getpid()
for _ in range(10):
    if os.fork() == 0:
        while True:
            os.kill(main, signal.SIGCONT)
ticks
"""
    rig.python(code, "woken")
    before = rig.python("ticks", "woken")
    time.sleep(1)
    after = rig.python("ticks", "woken")
    assert before.value is not None
    assert after.value is not None
    assert int(after.value) - int(before.value) < 200


def test_killed_session_begins_anew(rig: Rig) -> None:
    rig.python("x = 1", "doomed")
    _killed(rig, "while True: print('x' * 1000)", "doomed")
    result = rig.python("x", "doomed")
    assert result.error is not None
    assert result.error.type == "NameError"


def test_everything_dies_with_the_host(tmp_path: object, world: World) -> None:
    """Also where the host is killed and can do nothing about it."""
    import subprocess
    import sys

    program = """
import anyio, sys
from callboard.actors.tools.sandbox import Sandbox
async def main():
    async with Sandbox() as box:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(box.run_shell, 'sleep 98765 & sleep 98766')
            both = "import subprocess, time; subprocess.Popen(['sleep', '98767']); time.sleep(98768)"
            tasks.start_soon(box.run_python, both, 'kept')
            print('up', flush=True)
anyio.run(main)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        found: list[psutil.Process] = []
        while sum(_name(one) == "sleep" for one in found) < 3:
            time.sleep(0.01)  # nothing tells when both calls are at it
            found = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    _, alive = psutil.wait_procs(found, timeout=10)
    assert not alive


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def _alive_soon_gone(rig: Rig) -> bool:
    """Whether all processes of finished calls end without being waited for."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if rig.portal.call(rig.box.processes_gone):
            return True
        time.sleep(0.01)
    return False


def test_usage_is_told(rig: Rig) -> None:
    result = rig.python("x = bytearray(b'x') * (100 << 20)\nimport time; time.sleep(0.2); len(x)")
    assert isinstance(result, RunResult)
    assert result.usage.wall_s > 0.2
    assert 100 << 20 < result.usage.peak_memory < 250 << 20
