"""The card says what the run was, in a form that hubs read; a snapshot is the adapter of its step."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import write_model

from callboard.actors.models.results import results_of
from callboard.actors.models.store import ModelStore
from callboard.actors.train.adapter_snapshots import adapter_of_job, latest_adapter, write_adapter_snapshot
from callboard.actors.train.base_facts import BaseFacts, base_facts
from callboard.actors.train.group import alone
from callboard.actors.train.model_card import CURVE, README, Run, card_files, model_card
from callboard.actors.train.run_history import RunHistory
from callboard.actors.train.trainer import Trainer
from callboard.runtime.errors import NoSuchModel
from callboard.schemas.train import (
    EvaluationSettings,
    JobState,
    LoraSettings,
    Method,
    Task,
    TrainConfig,
    TrainEvaluated,
    TrainEvent,
    TrainJob,
    TrainProgress,
)

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

CONFIG = TrainConfig(model="hf:org/base@v1", data="hf:org/data:0.7,my|own.json:0.3", out="night run")


def progress(step: int, loss: float) -> TrainProgress:
    return TrainProgress(
        job="j",
        step=step,
        num_steps=9,
        loss=loss,
        lr=0.1,
        grad_norm=1.0,
        tokens=100,
        loss_tokens=60,
        tokens_per_s=1.0,
        memory_bytes=1,
        eta_s=0.0,
    )


def run_of(*losses: float, evaluations: tuple[tuple[int, float], ...] = ()) -> Run:
    history = RunHistory()
    for step, loss in enumerate(losses, 1):
        history.progressed(progress(step, loss))
    for step, loss in evaluations:
        history.evaluated(step, loss)
    return Run(len(losses), 1234, 12, history, min((loss for _, loss in evaluations), default=None))


def front_of(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def test_the_front_matter_is_what_hubs_accept() -> None:
    front = front_of(model_card(CONFIG, run_of(2.0, 1.0), BaseFacts("org/base", "Apache-2.0")))
    assert front == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "license": "apache-2.0",
        "datasets": ["org/data"],
        "tags": ["callboard", "lora", "sft"],
    }
    full = TrainConfig(model="./mine", data="a.json", out="o", method=Method.FULL, task=Task.REWARD)
    front = front_of(model_card(full, run_of(), BaseFacts("", "My own: Terms")))
    assert (front["license"], front["license_name"]) == ("other", "my-own--terms")
    assert (front["library_name"], front["pipeline_tag"]) == ("transformers", "text-classification")
    assert not {"base_model", "datasets"} & front.keys()


def test_the_card_counts_the_data_and_tells_how_it_is_used() -> None:
    card = model_card(CONFIG, run_of(2.0, 1.0, evaluations=((1, 1.9), (2, 1.5))), BaseFacts("org/base", "mit"))
    for row in (
        "| samples | 1,234 |",
        "| samples evaluated on | 12 |",
        "| tokens trained on | 200 |",
        "| of these with loss | 120 |",
        "| best evaluation loss | 1.5000 |",
        "| source | my\\|own.json, weight 0.3 |",
    ):
        assert row in card
    assert f"]({CURVE})" in card
    assert "callboard adapter load mine 'night run'" in card
    assert "callboard merge hf:org/base@v1 'night run' -o merged" in card
    settings = re.search(r"```json\n(.*?)\n```", card, re.DOTALL)
    assert settings is not None
    assert msgspec.json.decode(settings[1], type=TrainConfig) == CONFIG
    (python,) = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    compile(python, "card", "exec")
    assert "adapter load" not in model_card(
        msgspec.structs.replace(CONFIG, lora=LoraSettings(dora=True)), run_of(1.0), BaseFacts()
    )


def test_a_run_leaves_its_results_for_whoever_compares_models(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(steps=4, evaluation=EvaluationSettings(share=0.2, every=2))
    events: list[TrainEvent] = []
    folder = Path(config.out).parent / "job"
    Trainer.build(config, "job", folder, alone(torch.device("cpu"))).run(events.append, lambda: None)
    best = min(event.loss for event in events if isinstance(event, TrainEvaluated))
    found = results_of(ModelStore(folder), config.out)
    assert (found.quantized, found.trouble) == (None, "")
    tuned = found.fine_tuned
    assert tuned is not None
    assert (tuned.base, tuned.task, tuned.method, tuned.steps) == (config.model, "sft", "lora", 4)
    assert tuned.evaluation_loss == best
    assert tuned.samples + tuned.evaluated_on == 40
    assert tuned.evaluated_on > 0
    assert f"| best evaluation loss | {best:.4f} |" in (Path(config.out) / README).read_text()
    assert f"| training loss at the end | {tuned.training_loss:.4f} |" in (Path(config.out) / README).read_text()
    # Of a run of an earlier release, and one that somebody cut short.
    place = Path(config.out) / "training.json"
    whole = place.read_bytes()
    place.write_bytes(b'{"job": "j", "steps": 4}')
    assert results_of(ModelStore(folder), config.out).fine_tuned is None
    place.write_bytes(whole[:-20])
    assert "training.json cannot be read" in results_of(ModelStore(folder), config.out).trouble


def test_the_curve_is_a_picture_of_both_losses_however_long_the_run() -> None:
    losses = [3.0 - step / 2000 for step in range(5000)]
    losses[7] = float("nan")
    files = card_files(CONFIG, run_of(*losses, evaluations=((10, 2.9),)), BaseFacts())
    assert files.keys() == {README, CURVE}
    root = ElementTree.fromstring(files[CURVE])
    lines = [line.get("points", "").split() for line in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert 25 <= len(lines[0]) <= 50
    dots = [dot.get("cx") for dot in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert dots  # one evaluation makes no line
    heights = [float(point.split(",")[1]) for point in lines[0]]
    assert heights == sorted(heights), "the loss goes down, so the line does"
    assert len(files[CURVE]) < 20_000
    assert card_files(CONFIG, run_of(), BaseFacts()).keys() == {README}


def test_a_history_that_went_through_a_checkpoint_goes_on() -> None:
    whole, first = RunHistory(), RunHistory()
    for step in range(1, 21):
        whole.progressed(progress(step, step / 7))
    for step in range(1, 11):
        first.progressed(progress(step, step / 7))
    second = msgspec.json.decode(msgspec.json.encode(first), type=RunHistory)
    for step in range(11, 21):
        second.progressed(progress(step, step / 7))
    assert second == whole


def test_what_is_known_of_the_base_is_read_where_it_stands(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    assert base_facts(str(folder), folder) == BaseFacts()
    (folder / "README.md").write_text("---\nlicense: 'llama3.1'  # theirs\ntags: [a]\n---\n\nlicense: mit\n")
    assert base_facts("hf:org/base@main", folder) == BaseFacts("org/base", "llama3.1")
    assert base_facts("ms:org/base", folder) == BaseFacts("", "llama3.1")


class Sharded:
    """What a snapshot needs of the model that a shard trains: the trained parameters, by name."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def export(self) -> Any:
        return ((f"model.{name}", p.detach().clone()) for name, p in self.module.named_parameters() if p.requires_grad)


def test_snapshots_are_adapters_of_which_the_last_two_are_kept(tiny_llama: Path, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    from callboard.actors.train.adapters import add_adapter

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama)
    wrapped = add_adapter(model, LoraSettings(rank=2), Task.SFT)
    sharded, group, folder = Sharded(model), alone(torch.device("cpu")), tmp_path / "job"
    with pytest.raises(NoSuchModel, match="no adapter"):
        latest_adapter(folder)
    ids = torch.arange(12)[None]
    written: dict[int, torch.Tensor] = {}
    for step in (5, 10, 15):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.add_(0.05)
            written[step] = model(input_ids=ids, use_cache=False).logits
        place = write_adapter_snapshot(folder, group, sharded, wrapped, tiny_llama, step)  # pyright: ignore[reportArgumentType]
        assert place == latest_adapter(folder) == folder / "adapters" / f"step-{step:08d}"
    assert sorted(path.name for path in (folder / "adapters").iterdir()) == ["step-00000010", "step-00000015"]
    fresh = AutoModelForCausalLM.from_pretrained(tiny_llama)
    read: Any = peft.PeftModel.from_pretrained(fresh, str(folder / "adapters" / "step-00000010")).eval()
    with torch.no_grad():
        torch.testing.assert_close(read(input_ids=ids, use_cache=False).logits, written[10], rtol=1e-4, atol=1e-5)

    # A run that went back to an earlier checkpoint: what it had written after that is another run's.
    write_adapter_snapshot(folder, group, sharded, wrapped, tiny_llama, 10)  # pyright: ignore[reportArgumentType]
    assert latest_adapter(folder).name == "step-00000010"
    weights = load_file(latest_adapter(folder) / "adapter_model.safetensors")
    assert torch.equal(
        weights["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"],
        model.model.layers[0].self_attn.q_proj.lora_B["default"].weight,
    )
    job = TrainJob(job="j", state=JobState.RUNNING, folder=str(folder), out=str(tmp_path / "out"), model="m", data="d")
    assert adapter_of_job(job) == latest_adapter(folder)
