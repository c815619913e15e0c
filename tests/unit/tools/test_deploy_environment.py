"""Environments for tools: what they hold, what they do not, and that they are made once."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import shutil
import subprocess
from pathlib import Path

import anyio
import pytest
from deploy_wheels import make_wheel

from callboard.actors.tools.deploy.bridge import sort_out
from callboard.actors.tools.deploy.environment import Environment, environment_for, variables
from callboard.actors.tools.deploy.errors import EnvironmentFailed
from callboard.runtime.log import log
from callboard.schemas.tool_deploy import Manifest

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The node's own settings of pip and uv: a folder of wheels, and no index."""
    folder = tmp_path / "index"
    make_wheel(folder, "tiny_thing", "1.0", {"tiny_thing.py": "VALUE = 41\n"})
    make_wheel(folder, "tiny_thing", "2.0", {"tiny_thing.py": "VALUE = 42\n"}, ("msgspec",))
    make_wheel(folder, "wants_old", "1.0", {"wants_old.py": ""}, ("msgspec==0.1",))
    make_wheel(folder, "msgspec", "0.1", {"msgspec.py": "raise ImportError('the wrong one')\n"})
    for name in ("PIP", "UV"):
        monkeypatch.setenv(f"{name}_NO_INDEX", "1")
        monkeypatch.setenv(f"{name}_FIND_LINKS", str(folder))
    return folder


def manifest(*requirements: str, python: str = "") -> Manifest:
    return Manifest(name="t", version="1", entry="a:b", requirements=requirements, python=python, files=())


async def made(base: Path, *requirements: str) -> Environment:
    return await environment_for(manifest(*requirements), base, base / "envs")


def run(environment: Environment, code: str) -> str:
    done = subprocess.run(
        [environment.python, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **variables(environment.folder)},
        check=False,
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("installer", ["pip", "uv"])
async def test_it_has_what_was_required_and_callboard_and_nothing_else(
    tmp_path: Path, installer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if installer == "uv" and shutil.which("uv") is None:
        pytest.skip("there is no `uv`")
    if installer == "pip":
        monkeypatch.setenv("PATH", os.defpath)
    environment = await made(tmp_path, "tiny_thing==1.0")
    assert run(environment, "import tiny_thing; print(tiny_thing.VALUE)") == "41"
    assert run(environment, "import callboard.runtime.worker, callboard; print(callboard.__version__)") == (
        importlib.metadata.version("callboard")
    )
    kinds = "from callboard.runtime.kinds import known_kinds; print('counter' in known_kinds())"
    assert run(environment, kinds) == "True"
    assert importlib.metadata.version("pytest")
    assert "No module named 'pytest'" in run(environment, "import pytest")
    assert "No module named 'torch'" in run(environment, "import torch")


async def test_it_is_made_once_also_by_two_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found: list[Environment] = []

    async def make(*requirements: str) -> None:
        found.append(await made(tmp_path, *requirements))

    log.setLevel("INFO")
    caplog.set_level("INFO")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(make)
        tasks.start_soon(make)
    await make()
    assert found[0] == found[1] == found[2]
    assert caplog.text.count("making the environment") == 1
    for environment in found:
        environment.kept.release()
    (found[0].folder / "whole").unlink()  # as one whose making was cut short
    await make()
    assert caplog.text.count("making the environment") == 2


async def test_a_requirement_that_does_not_exist_is_an_error_that_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with pytest.raises(EnvironmentFailed, match="no_such_package_anywhere") as failed:
        await made(tmp_path, "no_such_package_anywhere==9")
    assert "index" in failed.value.hint
    assert failed.value.detail
    assert "no_such_package_anywhere" in caplog.text
    with pytest.raises(EnvironmentFailed):  # nothing half done is taken for an environment
        await made(tmp_path, "no_such_package_anywhere==9")


async def test_what_callboard_runs_on_cannot_be_replaced(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="wants_old"):
        await made(tmp_path, "wants_old")


@pytest.mark.slow
async def test_a_wheel_that_came_along_is_installed_and_counts_by_its_content(tmp_path: Path, index: Path) -> None:
    from callboard.actors.tools.deploy.gather import gather

    folders = []
    for value in (1, 2):
        wheel = make_wheel(tmp_path / "own", "own_thing", "1.0", {"own_thing.py": f"VALUE = {value}\n"})
        (tmp_path / "a.py").write_text("")
        (tmp_path / "r.txt").write_text(str(wheel))
        found = gather(tmp_path / "a.py", requirements=tmp_path / "r.txt")
        content = tmp_path / f"content {value}"
        (content / "_wheels").mkdir(parents=True)
        (content / "_wheels" / wheel.name).write_bytes(wheel.read_bytes())
        environment = await environment_for(found.manifest, content, tmp_path / "envs")
        assert run(environment, "import own_thing; print(own_thing.VALUE)") == str(value)
        folders.append(environment.folder)
    assert folders[0] != folders[1]


async def test_a_python_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match=r"runs on Python >=3\.99"):
        await environment_for(manifest(python=">=3.99"), tmp_path, tmp_path)


async def test_an_installation_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="were not installed within"):
        await environment_for(manifest("tiny_thing"), tmp_path, tmp_path / "envs", timeout=0.05)
    gc.collect()  # a process that was forgotten in mid-start would complain here


def test_callboard_among_the_requirements_is_the_nodes_own() -> None:
    version = importlib.metadata.version("callboard")
    plain = sort_out(["tiny"])
    asked = sort_out(["tiny", f"callboard>={version}", "callboard[http]"])
    assert asked.lines == plain.lines == ("tiny",)
    names = {package.name for package in asked.linked} - {package.name for package in plain.linked}
    assert {"starlette", "uvicorn"} <= names
    assert f"msgspec=={importlib.metadata.version('msgspec')}" in plain.constraints
    assert not any(line.startswith("callboard") for line in plain.constraints)
    assert "pytest" not in {package.name for package in asked.linked}
    with pytest.raises(EnvironmentFailed, match="this node has callboard"):
        sort_out(["callboard>=99"])
    with pytest.raises(EnvironmentFailed, match="no extra 'nonsense'"):
        sort_out(["callboard[nonsense]"])
