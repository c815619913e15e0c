"""Nothing gets out: each attempt is a program, run by the same interpreter inside, with witnesses outside."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from sandbox_attempts import CALL, PLAIN
from sandbox_attempts_lists import LISTED_OTHER, LISTED_PLAIN, SOURCES
from sandbox_attempts_other import OTHER
from sandbox_calls import CALLS
from sandbox_rig import LIMITS, MakeRig, Rig
from sandbox_world import World

from callboard.actors.tools.sandbox import Part, RunResult, probe

_PLAIN = {**PLAIN, **LISTED_PLAIN}
_EVERY = {**_PLAIN, **OTHER, **LISTED_OTHER}
_only_x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64")


@pytest.mark.parametrize("name", _EVERY)
def test_attempt_fails(name: str, rig: Rig, world: World) -> None:
    result = rig.attempt(world.told(_EVERY[name]))
    world.check_silent(result)
    world.check_untouched()


@pytest.mark.slow
@pytest.mark.parametrize("name", _PLAIN)
def test_attempt_works_where_nothing_holds_it(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """So that the tests above are known to try something."""
    world = World(tmp_path_factory.mktemp("open"))
    try:
        done = subprocess.run(
            [sys.executable, "-c", world.told(_PLAIN[name])],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            errors="replace",
            pass_fds=[world.facts["descriptor"]],
            timeout=20,
        )
    finally:
        world.close()
    assert "ESCAPED" in done.stdout, done.stderr


def test_the_lists_that_attempts_are_from_are_named_and_none_is_there_twice() -> None:
    docs = (Path(__file__).parents[4] / "docs" / "sandbox.md").read_text()
    assert [title for title in SOURCES if title not in docs] == []
    assert len(_EVERY) == len(PLAIN) + len(OTHER) + len(LISTED_PLAIN) + len(LISTED_OTHER)


@_only_x86_64
@pytest.mark.parametrize("name", CALLS)
def test_system_call_is_not_there(name: str, rig: Rig) -> None:
    number, arguments = CALLS[name]
    result = rig.python(f"{CALL}\n-call({number}, {', '.join(map(str, arguments)) or 'None'})")
    assert result.value in ("1", "38"), f"{name}: {result}"  # EPERM, ENOSYS


# Root stays root there, without its capabilities; and how others are scheduled can be seen, not changed.
_HARMLESS_WITHOUT = ("become root", "see another process's scheduling")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in _EVERY if name not in _HARMLESS_WITHOUT])
def test_attempt_fails_without_namespaces(name: str, bare: Rig, world: World) -> None:
    """Where a container allows no namespaces, Landlock and seccomp alone keep files, sockets and processes."""
    result = bare.attempt(world.told(_EVERY[name]))
    world.check_silent(result)
    world.check_untouched()


@pytest.fixture(scope="module")
def bare(make_rig: MakeRig, world: World) -> Rig:
    kernel = probe().without(Part.USER_NAMESPACE)
    return make_rig(LIMITS, kernel, read=(str(world.data),), accept=kernel.lacking)


@pytest.mark.parametrize("name", ["read /etc/passwd", "read a file by its path", "connect by TCP", "signal a process"])
def test_attempt_fails_without_landlock(name: str, make_rig: MakeRig, world: World) -> None:
    """The namespaces alone keep them too."""
    kernel = probe().without(Part.LANDLOCK)
    open_landlock = make_rig(LIMITS, kernel, accept=kernel.lacking)
    world.check_silent(open_landlock.attempt(world.told(_EVERY[name])))
    world.check_untouched()


@pytest.mark.parametrize(
    "name", ["connect by TCP", "connect to an abstract socket", "send a datagram", "trace a process"]
)
def test_attempt_fails_without_seccomp(name: str, make_rig: MakeRig, world: World) -> None:
    kernel = probe().without(Part.SECCOMP)
    open_calls = make_rig(LIMITS, kernel, accept=kernel.lacking)
    result = open_calls.attempt(world.told(_EVERY[name]))
    world.check_untouched()
    if name != "send a datagram":  # sending into nowhere is no error
        world.check_silent(result)


def test_data_that_is_given_can_be_read_and_not_written(rig: Rig, world: World) -> None:
    path = world.data / "given.txt"
    assert rig.python(f"open({str(path)!r}).read()").value == "'given'"
    result = rig.python(f"open({str(path)!r}, 'a')")
    assert result.error is not None
    assert result.error.type in ("OSError", "PermissionError")
    world.check_untouched()


def test_nothing_of_a_call_is_left_for_the_next(rig: Rig) -> None:
    rig.python("import builtins, os; builtins.mark = 1; open('f', 'w').write('x'); os.environ['MARK'] = '1'")
    result = rig.python("import builtins, os; hasattr(builtins, 'mark'), os.listdir('.'), 'MARK' in os.environ")
    assert isinstance(result, RunResult)
    assert result.value == "(False, [], False)"
