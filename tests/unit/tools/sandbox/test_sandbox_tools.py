"""The tools `python` and `shell`, called as an actor calls them, and their sessions over the life of their owner."""

from __future__ import annotations

import json
import platform
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from sandbox_rig import LIMITS

from callboard.actors.tools.context import ToolContext
from callboard.actors.tools.errors import ToolError
from callboard.actors.tools.load import load_tools
from callboard.actors.tools.outcome import Outcome
from callboard.actors.tools.sandbox import Kernel, Part, SandboxKilled, SandboxLacks, checks, probe
from callboard.actors.tools.sandbox import sandbox as sandbox_module
from callboard.actors.tools.sandbox.tools import SandboxOptions, session_name, tools
from callboard.actors.tools.tool import Tool
from callboard.actors.tools.values import File
from callboard.runtime.checks import Surroundings, Verdict
from callboard.runtime.errors import ConfigError
from callboard.runtime.folders import Paths
from callboard.runtime.settings import Settings

pytestmark = pytest.mark.anyio


def _options(folder: Path, **more: object) -> SandboxOptions:
    return SandboxOptions(limits=LIMITS, sessions=str(folder), **more)  # type: ignore[arg-type]


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[Tool, Tool]]:
    made = tools(_options(tmp_path / "sessions"))
    yield made[0], made[1]
    for tool in made:
        await _close(tool)


async def _close(tool: Tool) -> None:
    await tool.once.close(ToolContext().in_thread)


async def _call(tool: Tool, session: str = "", media: dict[str, File] | None = None, **arguments: object) -> Outcome:
    context = ToolContext(session=session)
    try:
        outcome = await tool.call(json.dumps(arguments), media, context)
        return Outcome(outcome.value, outcome.text, {name: file.kept() for name, file in outcome.media.items()})
    finally:
        context.close()


async def test_python_says_what_a_terminal_would(both: tuple[Tool, Tool]) -> None:
    outcome = await _call(both[0], code="print('hi')\n1 + 1")
    assert outcome.text == "hi\n2"
    value = json.loads(outcome.value)
    assert (value["stdout"], value["value"]) == ("hi\n", "2")


async def test_error_of_the_code_is_a_result_with_its_traceback(both: tuple[Tool, Tool]) -> None:
    outcome = await _call(both[0], code="print('so far')\n1 / 0")
    assert outcome.text.startswith("so far\nTraceback")
    assert outcome.text.endswith("ZeroDivisionError: division by zero")


async def test_files_and_plots_come_back_as_media(both: tuple[Tool, Tool]) -> None:
    pytest.importorskip("matplotlib")
    code = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nopen('d.csv', 'w').write('a,b')"
    outcome = await _call(both[0], code=code)
    value = json.loads(outcome.value)
    picture, table = outcome.media[value["images"][0]], outcome.media[value["files"][0]]
    assert (picture.mime, picture.bytes()[:4]) == ("image/png", b"\x89PNG")
    assert (table.mime, table.name, table.bytes()) == ("text/csv", "d.csv", b"a,b")
    assert "made: image-1.png, d.csv" in outcome.text


async def test_files_go_in_as_media(both: tuple[Tool, Tool]) -> None:
    given = File.from_bytes(b"1\n2\n", "text/csv", "numbers.csv")
    outcome = await _call(
        both[0], code="sum(map(int, open('numbers.csv')))", files=["numbers.csv"], media={"numbers.csv": given}
    )
    assert json.loads(outcome.value)["value"] == "3"


async def test_shell_gives_output_and_status(both: tuple[Tool, Tool]) -> None:
    outcome = await _call(both[1], command="echo out; echo x > made; false")
    assert json.loads(outcome.value)["exit_status"] == 1
    assert "(exit status 1)" in outcome.text
    assert "(made: made)" in outcome.text
    assert (await _call(both[1], command="true")).text == "(no output)"


async def test_session_is_the_same_for_both_tools_and_other_callers_have_others(both: tuple[Tool, Tool]) -> None:
    python, shell = both
    await _call(python, "run-1", code="x = 7; open('f', 'w').write('from python')")
    assert (await _call(shell, "run-1", command="cat f")).text == "from python"
    assert (await _call(python, "run-1", code="x")).text == "7"
    assert "NameError" in (await _call(python, "run-2", code="x")).text
    assert session_name("run", "own") == "run/own"
    assert session_name("", "own") == "own"


async def test_session_survives_its_owner(tmp_path: Path) -> None:
    first = tools(_options(tmp_path))
    await _call(first[0], "kept", code="def f(n): return n * 2\nx = [1, 2]\ng = (n for n in x)")
    for tool in first:
        await _close(tool)
    second = tools(_options(tmp_path))
    try:
        outcome = await _call(second[0], "kept", code="f(x[1]), 'g' in globals()")
        assert json.loads(outcome.value)["value"] == "(4, False)"
    finally:
        for tool in second:
            await _close(tool)


async def test_session_is_as_before_the_call_that_was_ended(both: tuple[Tool, Tool]) -> None:
    python, _ = both
    await _call(python, "safe", code="x = 1")
    with pytest.raises(SandboxKilled, match="printed too much"):
        await _call(python, "safe", code="x = 2\nwhile True: print('x' * 1000)")
    assert (await _call(python, "safe", code="x")).text == "1"


async def test_more_sessions_than_processes_are_kept(tmp_path: Path) -> None:
    made = tools(_options(tmp_path, max_sessions=2))
    try:
        for n in range(4):
            await _call(made[0], f"s{n}", code=f"x = {n}")
        assert [(await _call(made[0], f"s{n}", code="x")).text for n in range(4)] == ["0", "1", "2", "3"]
    finally:
        for tool in made:
            await _close(tool)


async def test_session_that_nobody_uses_any_more_is_forgotten(tmp_path: Path) -> None:
    for days, text in ((1.0, "1"), (0.0, "NameError")):
        made = tools(_options(tmp_path, forget_days=days))
        try:
            await _call(made[0], "old" if days else "other", code="x = 1")
            assert text in (await _call(made[0], "old", code="x")).text
        finally:
            for tool in made:
                await _close(tool)


def _damage(folder: Path) -> None:
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:40])


async def test_snapshot_that_is_damaged_is_said_and_the_session_begins_anew(tmp_path: Path) -> None:
    first = tools(_options(tmp_path))
    await _call(first[0], "hurt", code="x = 1")
    for tool in first:
        await _close(tool)
    _damage(tmp_path)
    second = tools(_options(tmp_path))
    try:
        outcome = await _call(second[0], "hurt", code="'x' in globals()")
        assert outcome.text.startswith("False\n(of the session, everything is lost")
    finally:
        for tool in second:
            await _close(tool)


async def test_ended_code_is_an_error_with_what_it_printed(both: tuple[Tool, Tool], tmp_path: Path) -> None:
    quick = tools(SandboxOptions(limits=msgspec.structs.replace(LIMITS, wall_s=1.5), keep_sessions=False))
    try:
        with pytest.raises(ToolError, match=r"ran for too long .*; it had printed: begun") as caught:
            await _call(quick[0], code="print('begun', flush=True)\nimport time; time.sleep(60)")
        assert caught.value.code == "tool.sandbox.killed"
        assert caught.value.hint
    finally:
        for tool in quick:
            await _close(tool)


async def test_tools_refuse_where_the_kernel_lacks_something_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    less = probe().without(Part.SECCOMP)
    monkeypatch.setattr(sandbox_module, "probe", lambda: less)
    python, _ = tools(_options(tmp_path))
    with pytest.raises(SandboxLacks, match="seccomp"):
        await _call(python, code="1")
    accepting, _ = tools(_options(tmp_path, accept=(Part.SECCOMP,)))
    try:
        assert (await _call(accepting, code="1 + 1")).text == "2"
    finally:
        await _close(accepting)


def test_set_is_announced_and_its_options_are_checked() -> None:
    found, single = load_tools("sandbox")
    assert ([tool.info.name for tool in found], single) == (["python", "shell"], False)
    assert not found[0].info.annotations.open_world
    with pytest.raises(ConfigError, match="acept"):
        load_tools("sandbox", '{"acept": []}')
    with pytest.raises(ConfigError, match="gravity"):
        load_tools("sandbox", '{"accept": ["gravity"]}')


@pytest.mark.parametrize(
    ("here", "accept", "verdict", "text"),
    [
        (probe(), [], Verdict.OK, "all of it"),
        (probe().without(Part.USER_NAMESPACE), [], Verdict.WARNING, "user_namespace"),
        (probe().without(Part.SECCOMP), ["seccomp"], Verdict.OK, "goes without, as configured: seccomp"),
        (Kernel(frozenset(), 0, ((Part.LINUX, "Darwin"),)), [], Verdict.ABSENT, "need Linux"),
    ],
)
def test_doctor_says_what_is_lacking_without(
    here: Kernel, accept: list[str], verdict: Verdict, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if verdict is Verdict.OK and not accept and here.lacking:
        pytest.skip("this kernel lacks parts")
    monkeypatch.setattr(checks, "probe", lambda: here)
    settings = Settings(tools={"sandbox": {"accept": accept}})
    (finding,) = checks.sandbox(Surroundings(Paths.find(str(tmp_path)), settings, None))
    assert finding.verdict is verdict
    assert text in finding.text
    if verdict is Verdict.WARNING:
        assert 'accept = ["user_namespace"' in finding.mend


def test_probe_finds_what_a_security_module_takes_away() -> None:
    """In a process that may make no namespace, what rests on one is lacking, and the reason is the kernel's."""
    import subprocess
    import sys

    unshare = {"x86_64": 272, "aarch64": 97}[platform.machine()]
    program = f"""
from callboard.actors.tools.sandbox import linux, seccomp, probe
linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
import struct
deny = b''.join(struct.pack('=HBBI', *one) for one in [
    (0x20, 0, 0, 0), (0x15, 0, 1, {unshare}), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)
])
seccomp.install(deny)
kernel = probe()
print(sorted(kernel.lacking), kernel.reason('user_namespace'))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert "'user_namespace'" in done.stdout, done.stderr
    assert "'mount_namespace'" in done.stdout
    assert "'landlock'" not in done.stdout
    assert "Operation not permitted" in done.stdout
