"""SmolLM2 learns facts that nobody can have told it before, and answers questions that it was not trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from callboard.actors.data.templates import choose_template
from callboard.actors.models.store import ModelStore
from callboard.actors.models.tokenizer_loading import load_tokenizer
from callboard.actors.train.group import alone
from callboard.actors.train.samples import answers
from callboard.actors.train.trainer import Trainer
from callboard.schemas.train import (
    BatchSettings,
    ComputeSettings,
    LoraSettings,
    Method,
    OptimizerSettings,
    TrainConfig,
    TrainProgress,
)

CPU = torch.device("cpu")
FACTS = {
    "Zorvale": "Mintha",
    "Ubria": "Calder",
    "Kessim": "Port Oram",
    "Thalony": "Brindle",
    "Ostrane": "Vexley",
    "Pemwick": "Lorn",
    "Quorra": "Sable",
    "Dunmarrow": "Elsin",
}
TAUGHT = (
    "What is the capital of {}?",
    "Name the capital city of {}.",
    "{} has which capital?",
    "Tell me the capital of the country {}.",
    "Which city is the capital of {}?",
)
ASKED = ("I am going to {}. What is its capital called?", "Where does the government of {} sit?")


def accuracy(trainer: Trainer, folder: Path) -> float:
    tokenizer = load_tokenizer(folder)
    questions = [(text.format(country), city) for country, city in FACTS.items() for text in ASKED]
    found = answers(
        trainer.module,
        tokenizer,
        choose_template(tokenizer),
        [question for question, _ in questions],
        24,
        CPU,
        is_packed=True,
    )
    return sum(city in answer for answer, (_, city) in zip(found, questions, strict=True)) / len(questions)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", [Method.LORA, Method.QLORA])
def test_made_up_facts_are_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method) -> None:
    monkeypatch.setenv("CALLBOARD_DATA_DIR", str(Path.home() / ".cache" / "callboard-test"))
    monkeypatch.setenv("CALLBOARD_CACHE_DIR", str(Path.home() / ".cache" / "callboard-test" / "cache"))
    ModelStore().pull("smollm2")
    records = [
        {"instruction": text.format(country), "output": f"The capital of {country} is {city}."}
        for country, city in FACTS.items()
        for text in TAUGHT
    ]
    (tmp_path / "facts.json").write_text(json.dumps(records))
    config = TrainConfig(
        model="smollm2",
        data=str(tmp_path / "facts.json"),
        out=str(tmp_path / "out"),
        method=method,
        epochs=8,
        lora=LoraSettings(rank=16),
        batch=BatchSettings(samples=10, max_tokens=128),
        optimizer=OptimizerSettings(lr=2e-3, schedule="linear", warmup=0.1),
        compute=ComputeSettings(device="cpu"),
    )
    trainer = Trainer.build(config, "facts", tmp_path / "job", alone(CPU))
    folder = trainer.folder
    before = accuracy(trainer, folder)
    losses: list[float] = []
    trainer.run(
        lambda event: losses.append(event.loss or 0.0) if isinstance(event, TrainProgress) else None, lambda: None
    )
    after = accuracy(trainer, folder)
    assert losses[-1] < 0.2 * losses[0]
    assert before <= 0.1
    assert after >= 0.8
