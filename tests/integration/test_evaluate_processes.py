"""`callboard eval` with a real daemon and engine, and an evaluator that is killed in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest
from board import Board

from callboard.actors.evaluate.evaluator import EvaluatorConfig
from callboard.runtime.daemon_info import find_daemon
from callboard.runtime.errors import ActorStopped
from callboard.runtime.node import Node
from callboard.runtime.placement import Process
from callboard.runtime.supervision import Restart
from callboard.schemas.evaluate import Evaluate, EvaluationReport

pytestmark = pytest.mark.timeout(120)

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]

QUESTIONS = [
    {"question": f"What comes after {n}?", "choices": [str(n + 1), f"the number {n}"], "answer": n % 2}
    for n in range(10)
]


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def lines_of(path: Path) -> list[bytes]:
    """The whole ones. (`str.splitlines` takes some characters that a model may say for the ends of lines.)"""
    return path.read_bytes().split(b"\n")[:-1]


def last_words(board: Board) -> list[tuple[psutil.Process, str]]:
    """The company's processes, each with the end of its command."""
    found: list[tuple[psutil.Process, str]] = []
    for process in board.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append((process, "".join(process.cmdline()[-1:])))
    return found


def workers(board: Board) -> list[str]:
    return [last for _, last in last_words(board) if last.startswith("evaluate-run-")]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path) -> Iterator[Board]:
    board = Board.at(tmp_path_factory.mktemp("eval"))
    board.up()
    yield board
    board.close()


@pytest.mark.slow
def test_a_model_that_nobody_serves_is_served_for_this_alone(board: Board, tiny_path: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "after.jsonl", *QUESTIONS)
    done = board.run("eval", str(tiny_path), "--data", str(data), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["task"], report["samples"], report["num_left_out"]) == ("choices", 10, 0)
    (model,) = report["models"]
    assert [metric["name"] for metric in model["metrics"]] == ["acc", "acc_norm"]
    assert (model["context_length"], model["dtype"], model["resumed"]) == (256, "float32", 0)
    actors = json.loads(board.run("actors", "--json").stdout)
    assert not [actor for actor in actors if "evaluate" in actor["address"] or "engine" in actor["address"]]

    # It is done, so it is shown; and found again.
    table = board.run("eval", str(tiny_path), "--data", str(data))
    assert table.returncode == 0, table.stderr
    acc = next(metric for metric in model["metrics"] if metric["name"] == "acc")
    assert f"{acc['value']:.1%} ± {acc['error']:.1%}" in table.stdout
    assert "10 samples, 0 left out" in table.stdout
    listed = json.loads(board.run("eval", "--list", "--json").stdout)
    assert [(one["id"], one["done"]) for one in listed] == [(model["id"], 10)]
    assert model["id"] in board.run("eval", "--list").stdout
    assert json.loads(board.run("eval", "--show", model["id"], "--json").stdout) == report
    wrong = board.run("eval", "--show", model["id"], "--wrong", "--json").stdout.splitlines()
    assert len(wrong) == round(10 * (1 - acc["value"]))
    assert all(json.loads(line)["is_right"] is False for line in wrong)
    if wrong:
        assert "Question: What comes after" in board.run("eval", "--show", model["id"], "--wrong").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ([], 2, "no model is named"),
        (["m"], 2, "no samples are named"),
        (["m", "--wrong", "--data", "x"], 2, "--show ID"),
        (["--show", "nothing"], 2, "is none of the evaluations"),
        (["m", "--data", "{folder}/nowhere.jsonl"], 1, "cannot be read"),
        (["m", "--data", "{folder}/empty.jsonl"], 1, "is empty"),
        (["m", "--data", "{folder}/odd.jsonl"], 1, "odd.jsonl:1: it fits no format"),
        (["m", "--data", "{folder}/good.jsonl", "--task", "hellaswog"], 2, "did you mean hellaswag?"),
        (["nobody", "--data", "{folder}/good.jsonl"], 1, "'nobody' is not in the store"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    board: Board, tmp_path: Path, arguments: list[str], code: int, complaint: str
) -> None:
    write(tmp_path / "empty.jsonl")
    write(tmp_path / "odd.jsonl", {"a": 1})
    write(tmp_path / "good.jsonl", *QUESTIONS)
    done = board.run("eval", *(argument.replace("{folder}", str(tmp_path)) for argument in arguments))
    assert (done.returncode, done.stdout) == (code, "")
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


async def evaluate(node: Node, request: Evaluate, folder: Path, *, kill_at: int = 0) -> EvaluationReport | None:
    """By an evaluator in a process of its own; killed, none."""
    where, config = Process(ready_timeout=60), EvaluatorConfig(str(folder / "models"))
    evaluator = await node.spawn("evaluate.run", config, name="evaluator", where=where, restart=Restart.TEMPORARY)
    pid = node.actors["evaluator"].info().pid
    assert pid not in (0, os.getpid())
    try:
        async with evaluator.stream(request) as heard:
            async for progress in heard:
                if kill_at and progress.stage == "asking" and progress.done >= kill_at:
                    os.kill(pid, signal.SIGKILL)
                    kill_at = 0
            return heard.result
    except ActorStopped:
        return None
    finally:
        if "evaluator" in node.actors:
            await node.stop("evaluator")


def adapter_of(base: Path, folder: Path) -> Path:
    """Random matrices beside the queries of both layers."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1)
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    shapes = {"A": (4, 48), "B": (48, 4)}
    tensors = {name.format(layer, side): torch.randn(shape) for layer in (0, 1) for side, shape in shapes.items()}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"],
        "base_model_name_or_path": str(base),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
def test_an_adapter_is_compared_with_its_base(board: Board, tiny_path: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "after.jsonl", *QUESTIONS)
    adapter = adapter_of(tiny_path, tmp_path / "adapter")
    done = board.run("eval", str(tiny_path), str(adapter), "--data", str(data), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    base, adapted = report["models"]
    assert (base["model"], adapted["model"]) == (str(tiny_path), str(adapter))
    assert base["digest"] != adapted["digest"]
    samples = [
        json.loads(lines_of(board.paths.data / "evaluations" / model["id"] / "samples.jsonl")[0])
        for model in (base, adapted)
    ]
    assert samples[0]["logprobs"] != pytest.approx(samples[1]["logprobs"], abs=1e-3)
    assert [(one["model"], one["metric"]) for one in report["differences"]] == [
        (str(adapter), "acc"),
        (str(adapter), "acc_norm"),
    ]
    table = board.run("eval", str(tiny_path), str(adapter), "--data", str(data)).stdout
    assert "against tiny.gguf, sample by sample" in table
    assert "95% interval" in table


@pytest.mark.slow
@pytest.mark.anyio
async def test_an_evaluator_whose_command_is_killed_ends_by_itself(
    board: Board, eventually: Eventually, tiny_path: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "long.jsonl", *({"prompt": f"on and on {n}", "answer": "x"} for n in range(5000)))

    running = board.start("eval", str(tiny_path), "--data", str(data), "--max-tokens", "100")
    await eventually(lambda: len(workers(board)) == 2)  # the evaluator's, and its engine's
    running.kill()
    await eventually(lambda: workers(board) == [])


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("victim", ["daemon", "engine"])
async def test_a_killed_daemon_or_engine_is_one_line_and_the_same_command_goes_on(
    board: Board, eventually: Eventually, tiny_path: Path, tmp_path: Path, victim: str
) -> None:
    data = write(tmp_path / "long.jsonl", *({"prompt": f"{victim}, go on {n}", "answer": "x"} for n in range(800)))
    command = ("eval", str(tiny_path), "--data", str(data), "--max-tokens", "100", "--json")
    evaluations = board.paths.data / "evaluations"
    before = {path.name for path in evaluations.glob("*")}
    running = board.start(*command)

    def samples() -> list[bytes]:
        found = [path for path in evaluations.glob("*/samples.jsonl") if path.parent.name not in before]
        return lines_of(found[0]) if found else []

    await eventually(lambda: len(samples()) >= 5)
    what = {"daemon": "callboard.runtime.daemon", "engine": "-engine"}[victim]
    first_life = board.info().daemon_pid
    (process,) = (process for process, last in last_words(board) if last.endswith(what))
    process.kill()
    _, complaints = running.communicate(timeout=30)
    assert running.returncode in (1, 3)
    assert complaints.startswith("callboard: ")
    assert "the same command goes on" in complaints
    assert "Traceback" not in complaints
    assert 5 <= len(samples()) < 800
    if victim == "daemon":
        await eventually(lambda: (info := find_daemon(board.paths)) is not None and info.daemon_pid != first_life)
    done = board.run(*command)
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(done.stdout)["models"]
    assert 5 <= model["resumed"] < 800
    assert len({json.loads(line)["index"] for line in samples()}) == len(samples()) == 800


@pytest.mark.anyio
async def test_a_killed_evaluator_leaves_its_samples_and_the_next_goes_on(
    node: Node, tiny_path: Path, tmp_path: Path
) -> None:
    from callboard.actors.serve.engine import Engine, EngineConfig

    engine = EngineConfig(model=str(tiny_path), num_blocks=600, block_size=4, threads=1)
    await node.spawn(Engine, engine, name="engine")
    data = write(tmp_path / "data.jsonl", *({"prompt": f"go on {n}", "answer": "x"} for n in range(120)))
    request = Evaluate(models=(str(tiny_path),), data=str(data), max_tokens=32)
    unbroken = await evaluate(node, request, tmp_path / "unbroken")
    assert unbroken is not None
    assert await evaluate(node, request, tmp_path / "broken", kill_at=8) is None
    (record,) = (tmp_path / "broken" / "evaluations").iterdir()
    done = len(lines_of(record / "samples.jsonl"))
    assert 8 <= done < 120
    report = await evaluate(node, request, tmp_path / "broken")
    assert report is not None
    assert report.models[0].resumed == done
    assert report.models[0].metrics == unbroken.models[0].metrics
    (whole,) = (tmp_path / "unbroken" / "evaluations").iterdir()
    assert whole.name == record.name
    broken_samples, samples = (
        sorted(lines_of(folder / "samples.jsonl"), key=lambda line: json.loads(line)["index"])
        for folder in (record, whole)
    )
    assert len(samples) == 120
    assert broken_samples == samples
