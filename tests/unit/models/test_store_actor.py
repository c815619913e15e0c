"""The model store as an actor: what `callboard pull`, `models` and `quantize` do, for whoever asks on the bus."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import msgspec
import pytest
from hub_site import FILES, REPO, Hub, hub

from callboard.actors.models.store import ModelStore
from callboard.actors.models.store_actor import StoreConfig, StoreKeeper
from callboard.actors.quantize.prepare import prepare
from callboard.actors.quantize.run import run as quantize
from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import ModelDamaged, NoSuchModel, UsageError
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.models import (
    CancelStoreJob,
    CompareModels,
    InstalledModel,
    ListStore,
    ModelFile,
    ModelResults,
    PullModel,
    QuantizeModel,
    StoreJob,
    StoreJobState,
    StoreListing,
)
from callboard.schemas.quantize import Quantize

__all__ = ["hub"]  # a fixture
pytestmark = pytest.mark.anyio

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]
NAME = f"hf:{REPO}"


@pytest.fixture
async def keeper(tmp_path: Path) -> AsyncIterator[Ref]:
    async with Node("test") as node:
        yield await node.spawn(StoreKeeper, StoreConfig(str(tmp_path / "models")), name="models")


async def ended(keeper: Ref, job: StoreJob) -> StoreJob:
    while True:
        now = next(one for one in (await listing(keeper)).jobs if one.job == job.job)
        if now.state is not StoreJobState.RUNNING:
            return now
        await anyio.sleep(0.01)  # a job says nothing of itself unless it is asked


async def listing(keeper: Ref) -> StoreListing:
    return await keeper.ask(ListStore())


async def test_a_store_says_what_it_holds_and_what_it_could(keeper: Ref, tmp_path: Path) -> None:
    empty = await listing(keeper)
    assert (empty.models, empty.jobs, empty.root) == ((), (), str(tmp_path / "models"))
    assert [known.name for known in empty.known] == ["smollm2"]
    assert empty.known[0].size == 98_362_432
    assert 0 < empty.free_bytes <= shutil.disk_usage(tmp_path).total


async def test_a_pull_goes_on_by_itself_and_says_how_far_it_is(keeper: Ref, hub: type[Hub], tmp_path: Path) -> None:
    hub.hold_at["model.safetensors"] = 2 << 20
    job = await keeper.ask(PullModel(NAME))
    assert (job.state, job.name) == (StoreJobState.RUNNING, NAME)
    while True:
        (now,) = (await listing(keeper)).jobs
        if now.done >= 2 << 20:
            break
        await anyio.sleep(0.01)
    assert (now.stage, now.ended) == ("download", 0)
    assert (
        now.done < now.total == sum(len(FILES[name]) for name in ("config.json", "model.safetensors", "tokenizer.json"))
    )
    # Asked for again while it is under way, it is the same job.
    assert (await keeper.ask(PullModel(NAME))).job == job.job
    hub.gate.set()
    done = await ended(keeper, job)
    assert (done.state, done.error, done.ended >= done.started > 0) == (StoreJobState.DONE, None, True)
    assert [model.name for model in (await listing(keeper)).models] == [NAME]
    assert ModelStore(tmp_path / "models").path(NAME).is_dir()


async def test_a_cancelled_pull_leaves_no_model_and_goes_on_where_it_was(keeper: Ref, hub: type[Hub]) -> None:
    hub.hold_at["model.safetensors"] = 2 << 20
    job = await keeper.ask(PullModel(NAME))
    while (await listing(keeper)).jobs[0].done < 2 << 20:
        await anyio.sleep(0.01)
    await keeper.ask(CancelStoreJob(job.job))
    assert (await ended(keeper, job)).state is StoreJobState.CANCELLED
    assert (await listing(keeper)).models == ()
    del hub.hold_at["model.safetensors"]
    hub.gate.set()
    again = await keeper.ask(PullModel(NAME))
    assert again.job != job.job
    assert (await ended(keeper, again)).state is StoreJobState.DONE
    assert hub.sent[-1][0] in ("model.safetensors", "tokenizer.json")
    with pytest.raises(UsageError, match="no job 99"):
        await keeper.ask(CancelStoreJob(99))
    # One that is over stays as it is.
    assert (await keeper.ask(CancelStoreJob(again.job))).state is StoreJobState.DONE


async def test_a_pull_that_fails_says_why_and_what_to_do(keeper: Ref, hub: type[Hub]) -> None:
    failed = await ended(keeper, await keeper.ask(PullModel("hf:org/nobody")))
    assert failed.state is StoreJobState.FAILED
    assert failed.error is not None
    assert (failed.error.code, failed.error.hint != "") == ("model.pull", True)
    for wrong in ("no-such-model", "hf:one-part", "hf:../../x"):
        with pytest.raises(NoSuchModel):
            await keeper.ask(PullModel(wrong))
    assert len((await listing(keeper)).jobs) == 1


async def test_jobs_that_are_over_are_remembered_for_a_while_only(keeper: Ref, hub: type[Hub]) -> None:
    for _ in range(25):
        await ended(keeper, await keeper.ask(PullModel(NAME)))
    jobs = (await listing(keeper)).jobs
    assert [job.job for job in jobs] == list(range(25, 5, -1))


async def test_a_damaged_manifest_is_said_and_the_store_goes_on(keeper: Ref, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "broken"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ModelDamaged, match="manifest"):
        await listing(keeper)
    shutil.rmtree(folder)
    assert (await listing(keeper)).models == ()


def put_in_store(root: Path, name: str, file: Path) -> None:
    """A model's file as a pull would have left it."""
    (root / name).mkdir(parents=True)
    shutil.copy(file, root / name / file.name)
    files = (ModelFile(file.name, file.stat().st_size, "0" * 64),)
    model = InstalledModel(name, "a tiny model", "Apache-2.0", "written by a test", files)
    (root / name / "manifest.json").write_bytes(msgspec.json.encode(model))


async def test_results_of_models_are_put_side_by_side(keeper: Ref, tiny_path: Path, tmp_path: Path) -> None:
    request = Quantize(model=str(tiny_path), out=str(tmp_path / "q"), method="rtn", group_size=16, samples=4, length=32)
    job, tokens = prepare(request)
    report = quantize(job, tokens.calibration, tokens.held_out, lambda _: None)
    root = tmp_path / "models"
    root.mkdir()
    (tmp_path / "q").rename(root / "moving")
    ModelStore(root).adopt(root / "moving", InstalledModel("tiny-rtn4", "", "", "", ()))
    put_in_store(root, "tiny", tiny_path)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "report.json").write_text("{")
    found = (await keeper.ask(CompareModels(("tiny-rtn4", "tiny", str(adapter), str(tiny_path))))).results
    small, plain, broken, file = found
    size = (await listing(keeper)).models[0].size
    assert small.quantized == msgspec.structs.replace(report, errors=())
    assert report.perplexity_after > 0
    assert plain == ModelResults(model="tiny", size=size)
    assert file == ModelResults(model=str(tiny_path), size=size)
    assert (broken.quantized, broken.fine_tuned) == (None, None)
    assert broken.trouble.startswith("report.json cannot be read")
    for wrong in ("nobody", str(tmp_path / "nothing"), str(tmp_path)):
        with pytest.raises(NoSuchModel):
            await keeper.ask(CompareModels(("tiny", wrong)))


@pytest.mark.slow
async def test_a_quantized_model_becomes_one_of_the_store(nats_server: object, tiny_path: Path, tmp_path: Path) -> None:
    """The work is done by a process of its own, so this needs a bus."""
    root = tmp_path / "models"
    put_in_store(root, "tiny", tiny_path)
    async with Node("test", bus=BusOptions(nats_server.url)) as node:  # type: ignore[attr-defined]
        keeper = await node.spawn(StoreKeeper, StoreConfig(str(root)), name="models")
        request = QuantizeModel(model="tiny", method="rtn", group_size=16, samples=4, length=32)
        job = await keeper.ask(request)
        assert job.name == "tiny-rtn4"
        with pytest.raises(UsageError, match="being made"):
            await keeper.ask(request)
        done = await ended(keeper, job)
        assert (done.state, done.error) == (StoreJobState.DONE, None)
        assert done.report is not None
        assert done.report.bytes_after < done.report.bytes_before
        small = {model.name: model for model in (await listing(keeper)).models}["tiny-rtn4"]
        assert (small.files[0].name, small.license) == ("config.json", "Apache-2.0")
        assert (
            small.size
            == sum(path.stat().st_size for path in (root / "tiny-rtn4").iterdir())
            - (root / "tiny-rtn4" / "manifest.json").stat().st_size
        )
        assert ModelStore(root).path("tiny-rtn4") == root / "tiny-rtn4"
        # Nothing is left of the work: no folder, no process.
        assert [path.name for path in root.iterdir() if path.is_dir()] != []
        assert not [path for path in root.iterdir() if path.is_dir() and path.name.startswith(".")]
        assert list(node.actors) == ["node.test", "models"]
        for wrong, error in (
            (msgspec.structs.replace(request, model="nobody"), NoSuchModel),
            (request, UsageError),
            (msgspec.structs.replace(request, name="../x"), UsageError),
            (msgspec.structs.replace(request, name="smollm2"), UsageError),
        ):
            with pytest.raises(error):
                await keeper.ask(wrong)
        # What is wrong with the work itself is the job's end.
        failed = await ended(keeper, await keeper.ask(msgspec.structs.replace(request, name="odd", group_size=7)))
        assert failed.state is StoreJobState.FAILED
        assert failed.error is not None
        assert "odd" not in {model.name for model in (await listing(keeper)).models}
