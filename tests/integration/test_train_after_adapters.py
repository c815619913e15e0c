"""`callboard adapter` against an engine on a real bus: adapters come, are replaced by newer ones, and go."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
from own_server import OwnServer

from callboard.actors.serve.engine import Engine, EngineConfig
from callboard.actors.train.commands_after import JOBS, adapter
from callboard.kernels import native
from callboard.runtime.actor import Actor, handler
from callboard.runtime.errors import CallboardError, ModelDamaged, RequestInvalid
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.serve import Generate
from callboard.schemas.train import AskTraining, JobState, TrainJob

UNIT = Path(__file__).parents[1] / "unit" / "train"

pytestmark = [
    pytest.mark.anyio,
    # What PEFT itself calls of transformers.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


def helper(name: str) -> Any:
    """A module beside the unit tests, imported when torch may be."""
    if str(UNIT) not in sys.path:
        sys.path.insert(0, str(UNIT))
    return importlib.import_module(name)


class JobsConfig(msgspec.Struct, frozen=True):
    state: JobState
    folder: str
    out: str


class Jobs(Actor[JobsConfig]):
    """Knows one job, as the actor that keeps them does."""

    @handler
    async def asked(self, message: AskTraining) -> TrainJob:
        config = self.config
        return TrainJob(job=message.job, state=config.state, folder=config.folder, out=config.out, model="m", data="d")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helper("tiny_models").write_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
async def engine(node: Node, base: Path, monkeypatch: pytest.MonkeyPatch) -> Ref:
    monkeypatch.setattr(native, "unavailable", lambda: "they would have to be compiled first")
    await node.spawn(Engine, EngineConfig(model=str(base), dtype="float32", num_blocks=64, threads=1), name="engine")
    return node.actor("engine.scheduler")


async def command(server: OwnServer, *arguments: str) -> None:
    """What somebody else types while the engine runs: in a thread, with a connection of its own."""
    parser = ArgumentParser()
    adapter.configure(parser)
    args = parser.parse_args([*arguments, "--nats", server.url])
    assert await anyio.to_thread.run_sync(adapter.run, args) == 0


async def says(engine: Ref, name: str = "") -> tuple[int, ...]:
    request = Generate(prompt="the river sings", max_tokens=8, ignore_eos=True, adapter=name)
    async with engine.stream(request) as pieces:
        return tuple([token async for piece in pieces for token in piece.token_ids])


async def test_an_adapter_is_loaded_replaced_and_unloaded_while_the_engine_runs(
    server: OwnServer, engine: Ref, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_adapter = helper("adapters_by_peft").save_adapter
    first, second = (save_adapter(base, tmp_path / name, seed=seed) for seed, name in enumerate(("first", "second")))
    plain = await says(engine)
    await command(server, "load", "mine", str(first))
    with_first = await says(engine, "mine")
    assert with_first != plain == await says(engine)
    broken = Path(shutil.copytree(second, tmp_path / "broken"))
    (broken / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelDamaged):
        await command(server, "load", "mine", str(broken))
    assert await says(engine, "mine") == with_first, "the old one stays where the new one cannot be loaded"
    await command(server, "load", "mine", str(second))
    assert await says(engine, "mine") not in (with_first, plain)
    capsys.readouterr()
    await command(server, "list", "--json")
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["name"], listed["path"], listed["rank"]) == ("mine", str(second), 4)
    await command(server, "unload", "mine")
    with pytest.raises(RequestInvalid, match="no adapter named 'mine'"):
        await says(engine, "mine")
    assert await says(engine) == plain


async def test_the_newest_adapter_of_a_job_is_loaded_by_its_name_or_folder(
    server: OwnServer, node: Node, engine: Ref, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_adapter = helper("adapters_by_peft").save_adapter
    folder, out = tmp_path / "job", tmp_path / "out"
    for step in (10, 9, 200):
        save_adapter(base, folder / "adapters" / f"step-{step:08d}", seed=step)
    save_adapter(base, out, seed=3)

    async def loaded(*source: str) -> str:
        await command(server, "load", "mine", *source, "--json")
        (info,) = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        return info["path"]

    assert await loaded(str(folder)) == str(folder / "adapters" / "step-00000200")
    for state, expected in (
        (JobState.RUNNING, folder / "adapters" / "step-00000200"),
        (JobState.FINISHED, out),
    ):
        await node.spawn(Jobs, JobsConfig(state, str(folder), str(out)), name=JOBS)
        assert await loaded("night-run") == str(expected)
        await node.stop(JOBS)
    with pytest.raises(CallboardError, match="no adapter"):
        await command(server, "load", "mine", str(tmp_path))
