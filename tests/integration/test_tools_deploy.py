"""Tools on another node: sent there signed, run there by themselves, called through what stands for them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from tool_sites import TOOLS, Site, call, make_wheel, value

import callboard
from callboard.actors.tools.deploy.archive import encode_manifest, pack
from callboard.actors.tools.deploy.client import deploy, deployments
from callboard.actors.tools.deploy.deployer import DeployerConfig
from callboard.actors.tools.deploy.errors import ArtifactDamaged, EnvironmentFailed, NotDeployed, ToolUntrusted
from callboard.actors.tools.deploy.keys import new_signer
from callboard.runtime.actor import Actor, NoConfig, handler
from callboard.runtime.bus import BusOptions
from callboard.runtime.client import Client
from callboard.runtime.errors import ActorStopped, NoNodeFits, NoSuchActor, UsageError
from callboard.runtime.leases import Offer, signer_label
from callboard.runtime.node import Node
from callboard.runtime.placement import OnNode
from callboard.schemas.tool import CallTool, DescribeTool, ListTools, Media, MediaKind, ToolProgress
from callboard.schemas.tool_deploy import (
    Artifact,
    DeployTools,
    GetPlan,
    ListDeployments,
    Plan,
    SwitchTools,
    UndeployTools,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """For tests that end nothing of it but what they deploy."""
    base = tmp_path_factory.mktemp("site")
    make_wheel(base / "index", "tiny_thing", "1.0", {"tiny_thing.py": "VALUE = 41\n"})
    site = Site.at(base)
    index = str(base / "index")
    site.node("far", "there", PIP_NO_INDEX="1", PIP_FIND_LINKS=index, UV_NO_INDEX="1", UV_FIND_LINKS=index)
    yield site
    site.close()


@pytest.fixture
async def bus(site: Site) -> Any:
    async with callboard.connect(state_dir=str(site.board.paths.state)) as bus:
        yield bus
        there = await deployments(bus)
        for left in (await there.ask(ListDeployments())).deployments:
            await there.ask(UndeployTools(left.name))


async def test_a_file_of_tools_runs_on_another_host_in_a_process_of_its_own(bus: Client, site: Site) -> None:
    done = await deploy(bus, site.tools(), site.signer, labels=("there",))
    assert (done.name, done.current, done.state, done.node) == ("kit", "1.0", "running", "far")
    assert await value(bus, "kit.version") == "1.0"
    assert await value(bus, "kit.pid") not in (os.getpid(), site.nodes["far"].pid)
    for address in ("kit", "kit.v1-0"):
        listed = (await bus.actor(address).ask(ListTools())).tools
        assert {info.name: info.address for info in listed}["kit.flipped"] == f"{address}.flipped"
        assert {info.version for info in listed} == {"1.0"}
    assert (await bus.actor("kit.version").ask(DescribeTool())).address == "kit.version"
    assert (await error_of(bus, "kit.wait_for")).startswith("tool.arguments: ")


async def error_of(bus: Client, address: str, **arguments: object) -> str:
    with pytest.raises(callboard.CallboardError) as raised:
        await value(bus, address, **arguments)
    return f"{raised.value.code}: {raised.value}"


@pytest.mark.parametrize("size", [1000, 3 << 20])
async def test_a_file_goes_to_a_tool_on_another_host_and_comes_back_from_it(bus: Client, site: Site, size: int) -> None:
    await deploy(bus, site.tools(), site.signer)
    data = os.urandom(size)
    blob = await bus.blobs.put(data)
    result = await call(bus, "kit.flipped", (Media("f", MediaKind.FILE, "", blob),), file="f")
    (medium,) = result.media
    assert await bus.blobs.get(medium.blob) == bytes([data[0] ^ 255]) + data[1:]
    assert medium.blob.owner in ("far", "")
    await bus.blobs.release(blob)


@pytest.mark.slow
async def test_it_imports_what_it_required_and_nothing_of_the_nodes_own(bus: Client, site: Site) -> None:
    text = (
        "# /// script\n# dependencies = ['tiny_thing']\n# ///\n"
        "from callboard.actors.tools.tool import tool\nimport importlib.util\nimport tiny_thing\n\n"
        "@tool\ndef has(name: str) -> bool:\n"
        '    """Whether a module is there.\n\n    Args:\n        name: which\n    """\n'
        "    return importlib.util.find_spec(name) is not None and tiny_thing.VALUE == 41\n"
    )
    await deploy(bus, site.tools(name="needy", text=text), site.signer)
    found = {name: await value(bus, "needy.has", name=name) for name in ("tiny_thing", "msgspec", "pytest", "torch")}
    assert found == {"tiny_thing": True, "msgspec": True, "pytest": False, "torch": False}


async def test_requirements_that_do_not_exist_are_an_error_and_leave_nothing(bus: Client, site: Site) -> None:
    text = "# /// script\n# dependencies = ['no_such_thing_anywhere']\n# ///\n"
    with pytest.raises(EnvironmentFailed, match="no_such_thing_anywhere") as failed:
        await deploy(bus, site.tools(name="needy", text=text), site.signer)
    assert "index" in failed.value.hint
    assert "no_such_thing_anywhere" in site.log("far")
    assert await listed(bus) == {}
    with pytest.raises(NoSuchActor):
        await bus.actor("needy").ask(ListTools())


async def test_a_file_that_cannot_be_imported_is_an_error_and_leaves_nothing(bus: Client, site: Site) -> None:
    with pytest.raises(callboard.CallboardError, match="no_such_module"):
        await deploy(bus, site.tools(name="broken", text="import no_such_module\n"), site.signer)
    assert await listed(bus) == {}


@pytest.mark.slow
async def test_a_package_with_a_set_of_tools_runs_from_its_source(bus: Client, site: Site, tmp_path: Path) -> None:
    from callboard.actors.tools.deploy.gather import gather

    package = tmp_path / "src" / "weather_kit"
    package.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(
        "[project]\nname='weather-kit'\nversion='2.1'\n"
        "[project.entry-points.'callboard.tools']\nweather = 'weather_kit.tools:TOOLS'\nsky = 'weather_kit.tools:sky'\n"
    )
    (package / "__init__.py").write_text("WORD = 'blue'\n")
    (package / "tools.py").write_text(
        "from callboard.actors.tools.tool import tool\nfrom . import WORD\n\n"
        '@tool\ndef sky() -> str:\n    """Its colour."""\n    return WORD\n\nTOOLS = [sky]\n'
    )
    done = await deploy(bus, gather(tmp_path, name="weather"), site.signer)
    assert (done.name, done.current) == ("weather", "2.1")
    assert await value(bus, "weather.sky") == "blue"
    await deploy(bus, gather(tmp_path, name="sky"), site.signer)  # one tool is a set by itself
    assert await value(bus, "sky") == "blue"
    assert await error_of(bus, "weather") == "tool.none: weather is a set of tools, not a tool"


async def test_the_tools_client_carries_large_files_there_and_back(bus: Client, site: Site) -> None:
    await deploy(bus, site.tools(), site.signer)
    data = os.urandom(2 << 20)
    async with callboard.open_tool(bus, "kit.flipped") as flip:
        for _ in range(2):
            back = await flip.call(file=callboard.File.from_bytes(data))
            assert back.bytes() == bytes([data[0] ^ 255]) + data[1:]
            assert (back.name, back.mime) == ("flipped", "application/octet-stream")


async def test_a_caller_who_goes_away_ends_the_call_in_the_tools_process(
    bus: Client, site: Site, tmp_path: Path, eventually: Any
) -> None:
    await deploy(bus, site.tools(), site.signer)
    path = tmp_path / "call"
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(value_of, bus, "kit.wait_for_ever", str(path))
            await eventually(path.with_suffix(".began").exists)
            scope.cancel()
    await eventually(path.with_suffix(".over").exists)


async def value_of(bus: Client, address: str, path: str) -> None:
    await value(bus, address, path=path)


# Who is trusted


async def test_a_signer_whom_the_node_does_not_know_is_refused_with_what_to_do(bus: Client, site: Site) -> None:
    stranger = new_signer(site.base / "stranger.key")
    with pytest.raises(ToolUntrusted, match="node far takes no tools of the signer") as refused:
        await deploy(bus, site.tools(), stranger, labels=("there",))
    assert f"--allow-tools-from {stranger.public}" in refused.value.hint
    with pytest.raises(NoNodeFits):
        await deploy(bus, site.tools(), site.signer, labels=("nowhere",))
    assert await listed(bus) == {}
    (site.base / "stranger.key").unlink()


class Liar(Actor[NoConfig]):
    """Says of itself that it is `deployments`, and has nodes run what it likes."""

    plan: Plan

    @handler
    async def tell(self, message: GetPlan) -> Plan:
        return Liar.plan


def artifact_of(site: Site) -> Artifact:
    from callboard.runtime.blobs import _inline

    gathered = site.tools()
    text = encode_manifest(gathered.manifest)
    archive = b"".join(pack(gathered.manifest, gathered.contents))
    return Artifact(text.decode(), site.signer.public, site.signer.sign(text), _inline(archive))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


CHANGES: dict[str, tuple[type[Exception], Any]] = {
    "a bit of the content": (ArtifactDamaged, lambda a: replace_content(a, flipped(a.content.data, 700))),
    "a bit of a header": (ArtifactDamaged, lambda a: replace_content(a, flipped(a.content.data, 110))),
    "content cut short": (ArtifactDamaged, lambda a: replace_content(a, a.content.data[:-512])),
    "a bit of the manifest": (
        ToolUntrusted,
        lambda a: msgspec.structs.replace(a, manifest=a.manifest.replace('"1.0"', '"1.1"')),
    ),
    "a bit of the signature": (
        ToolUntrusted,
        lambda a: msgspec.structs.replace(a, signature=flipped(bytes.fromhex(a.signature), 7).hex()),
    ),
    "no signature": (ToolUntrusted, lambda a: msgspec.structs.replace(a, signature="")),
    "no signer": (ToolUntrusted, lambda a: msgspec.structs.replace(a, signer="")),
}


def replace_content(artifact: Artifact, data: bytes) -> Artifact:
    from callboard.runtime.blobs import _inline

    return msgspec.structs.replace(artifact, content=_inline(data))


@pytest.mark.parametrize("what", CHANGES)
async def test_the_node_itself_refuses_what_was_changed_on_the_way(what: str, site: Site, nats_server: Any) -> None:
    """Whatever sent it: here that is somebody who has the daemon's place."""
    error, change = CHANGES[what]
    cache = Path(os.environ["CALLBOARD_CACHE_DIR"])
    async with (
        Node("liar", bus=BusOptions(nats_server.url)) as liar,
        Node("takes", bus=BusOptions(nats_server.url), offer=Offer(("x",), signers=(site.signer.public,))) as node,
    ):
        await liar.spawn(Liar, name="deployments")
        Liar.plan = Plan((change(artifact_of(site)),), "1.0")
        with pytest.raises(error):
            await liar.spawn("tool.deployer", DeployerConfig("kit"), name="kit", where=OnNode(("x",), patience=10))
        assert "kit" not in node.actors
    # But for the file by whose lock nobody else unpacks it meanwhile.
    assert {path.suffix for path in (cache / "deployed-tools").rglob("*") if path.is_file()} <= {".lock"}


async def test_a_node_that_only_claims_to_know_the_signer_refuses_too(site: Site, nats_server: Any) -> None:
    stranger = new_signer(site.base / "other.key")
    for offer in (Offer((signer_label(site.signer.public),)), Offer(signers=(stranger.public,))):
        async with (
            Node("home", bus=BusOptions(nats_server.url)) as home,
            Node("takes", bus=BusOptions(nats_server.url), offer=offer),
        ):
            await home.spawn(Liar, name="deployments")
            Liar.plan = Plan((artifact_of(site),), "1.0")
            with pytest.raises(ToolUntrusted, match="node takes takes no tools of the signer"):
                await home.spawn("tool.deployer", DeployerConfig("kit"), name="kit", where=OnNode(patience=10))
    (site.base / "other.key").unlink()


async def test_another_sets_tools_are_not_run_under_this_name(site: Site, nats_server: Any) -> None:
    async with (
        Node("home", bus=BusOptions(nats_server.url)) as home,
        Node("takes", bus=BusOptions(nats_server.url), offer=Offer(signers=(site.signer.public,))),
    ):
        await home.spawn(Liar, name="deployments")
        Liar.plan = Plan((artifact_of(site),), "1.0")
        with pytest.raises(ArtifactDamaged, match="these are the tools 'kit', and 'bank' was asked for"):
            await home.spawn("tool.deployer", DeployerConfig("bank"), name="bank", where=OnNode(patience=10))


async def test_what_was_changed_is_refused_by_deployments_already(bus: Client, site: Site) -> None:
    there = await deployments(bus)
    for error, change in CHANGES.values():
        with pytest.raises(error):
            await there.ask(DeployTools(change(artifact_of(site))))
    assert await listed(bus) == {}


async def test_the_tools_process_may_do_nothing_on_the_bus_but_answer(bus: Client, site: Site) -> None:
    spy = (Path(__file__).parent / "tool_spy.py").read_text()
    await deploy(bus, site.tools(name="spy", text=spy), site.signer)
    other = f"inbox.{bus.node.require_links().bus_name}.>"
    by_runtime: Any = await value(bus, "spy.through_the_runtime", other_inbox=other)
    assert {what: code for what, code in by_runtime.items() if code != "bus.forbidden"} == {}
    assert len(by_runtime) == 10
    by_client: Any = await value(bus, "spy.with_its_own_credentials", other_inbox=other)
    assert len(by_client) == 12
    assert all("permissions violation" in " ".join(refused).lower() for refused in by_client.values()), by_client


# Versions


async def listed(bus: Client) -> dict[str, tuple[str, list[str]]]:
    found = (await (await deployments(bus)).ask(ListDeployments())).deployments
    return {one.name: (one.current, [version.version for version in one.versions]) for one in found}


async def test_two_versions_at_once_then_a_switch_and_the_old_one_drains(
    bus: Client, site: Site, tmp_path: Path
) -> None:
    there = await deployments(bus)
    await deploy(bus, site.tools("1.0"), site.signer)
    await deploy(bus, site.tools("2.0"), site.signer, beside=True)
    assert await listed(bus) == {"kit": ("1.0", ["1.0", "2.0"])}
    assert await value(bus, "kit.version") == await value(bus, "kit.v1-0.version") == "1.0"
    assert await value(bus, "kit.v2-0.version") == "2.0"
    both = (await bus.actor("kit").ask(ListTools(names=("kit.version@1.0", "kit.version@2.0")))).tools
    assert {(info.version, info.address) for info in both} == {("1.0", "kit.version"), ("2.0", "kit.v2-0.version")}
    assert await value(bus, "kit.pid") != await value(bus, "kit.v2-0.pid")

    go, said = tmp_path / "go", []
    request = CallTool(json.dumps({"path": str(go)}))
    async with bus.actor("kit.wait_for").stream(request) as waiting:
        assert isinstance(await anext(waiting), ToolProgress)
        await there.ask(SwitchTools("kit", "2.0"))
        assert await value(bus, "kit.version") == "2.0"
        assert await listed(bus) == {"kit": ("2.0", ["2.0"])}
        go.touch()
        async for item in waiting:
            said.append(item)
        assert json.loads(waiting.result.value) == "1.0"  # the old version ended its call in peace
    with anyio.fail_after(20):
        while True:
            try:
                await value(bus, "kit.v1-0.version")
            except (NoSuchActor, ActorStopped):
                break
    assert await value(bus, "kit.version") == "2.0"


async def test_a_switch_back_waits_for_the_last_calls_of_the_version_that_comes_back(
    bus: Client, site: Site, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    await deploy(bus, site.tools("1.0"), site.signer)
    request = CallTool(json.dumps({"path": str(go)}))
    async with bus.actor("kit.wait_for").stream(request) as waiting, anyio.create_task_group() as tasks:
        assert isinstance(await anext(waiting), ToolProgress)
        await deploy(bus, site.tools("2.0"), site.signer)
        tasks.start_soon(deploy, bus, site.tools("1.0"), site.signer)
        assert await value(bus, "kit.version") == "2.0"
        go.touch()
        async for _ in waiting:
            pass
        assert json.loads(waiting.result.value) == "1.0"
    assert await value(bus, "kit.version") == "1.0"
    assert await listed(bus) == {"kit": ("1.0", ["1.0"])}


async def test_a_new_version_takes_the_place_of_the_old_one_only_when_it_runs(bus: Client, site: Site) -> None:
    await deploy(bus, site.tools("1.0"), site.signer)
    for text in ("import no_such_module\n", "# /// script\n# requires-python='>=3.99'\n# ///\n"):
        with pytest.raises(callboard.CallboardError):
            await deploy(bus, site.tools("2.0", text=text), site.signer)
        assert await value(bus, "kit.version") == "1.0"
        assert await listed(bus) == {"kit": ("1.0", ["1.0"])}
    more = site.tools("3.0", text=site_tools_with("extra")).manifest
    assert more.version == "3.0"
    await deploy(bus, site.tools("3.0", text=site_tools_with("extra")), site.signer)
    assert await value(bus, "kit.extra") == "3.0"
    assert await listed(bus) == {"kit": ("3.0", ["3.0"])}


def site_tools_with(name: str) -> str:
    return TOOLS + f'\n\n@tool\ndef {name}() -> str:\n    """One more."""\n    return VERSION\n'


@pytest.mark.slow
async def test_what_cannot_stand_beside_what_is_there_is_refused(bus: Client, site: Site) -> None:
    await deploy(bus, site.tools("1.0"), site.signer, labels=("there",))
    await deploy(bus, site.tools("1.0"), site.signer)  # the same once more changes nothing
    with pytest.raises(UsageError, match="deployed already, with other contents"):
        await deploy(bus, site.tools("1.0", text=site_tools_with("other")), site.signer)
    with pytest.raises(UsageError, match="is deployed on there"):
        await deploy(bus, site.tools("1.1"), site.signer, labels=("elsewhere",))
    with pytest.raises(UsageError, match="same address"):
        await deploy(bus, site.tools("1-0"), site.signer, beside=True)
    with pytest.raises(UsageError, match="by another signer"):
        await deploy(bus, site.tools("1.1"), new_signer(site.base / "third.key"))
    assert await listed(bus) == {"kit": ("1.0", ["1.0"])}


async def test_one_version_or_all_of_them_are_undeployed(bus: Client, site: Site) -> None:
    there = await deployments(bus)
    await deploy(bus, site.tools("1.0"), site.signer)
    await deploy(bus, site.tools("2.0"), site.signer, beside=True)
    with pytest.raises(UsageError, match=r"kit means its version 1\.0"):
        await there.ask(UndeployTools("kit", "1.0"))
    with pytest.raises(NotDeployed):
        await there.ask(UndeployTools("kit", "3.0"))
    await there.ask(UndeployTools("kit", "2.0"))
    assert await listed(bus) == {"kit": ("1.0", ["1.0"])}
    await there.ask(UndeployTools("kit"))
    assert await listed(bus) == {}
    with pytest.raises(NoSuchActor):
        await value(bus, "kit.version")
    with pytest.raises(NotDeployed):
        await there.ask(UndeployTools("kit"))
    with pytest.raises(NotDeployed):
        await there.ask(SwitchTools("kit", "1.0"))
    assert not list((site.board.paths.state / "tools" / "artifacts").iterdir())
