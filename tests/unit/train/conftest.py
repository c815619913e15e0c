"""A tiny random LLaMA, data of a few shapes, a configuration that trains on them in a moment; and processes that are a
group's ranks."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from callboard.kernels.threads import prepare_process
from callboard.schemas.train import BatchSettings, ComputeSettings, Method, OptimizerSettings, TrainConfig

if TYPE_CHECKING:
    from rank_processes import Ranks

sys.path.insert(0, str(Path(__file__).parent))  # helper modules beside the tests

prepare_process()  # tests run beside each other: torch, which is imported after this, must not spin for long


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_models import write_model

    return write_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short exchanges of different lengths."""
    rng = random.Random(3)
    words = ["red", "blue", "old", "new", "tree", "stone", "river", "sings", "falls", "sleeps"]

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(low, high)))

    path = tmp_path_factory.mktemp("data") / "chats.json"
    path.write_text(json.dumps([{"instruction": text(2, 12), "input": "", "output": text(1, 9)} for _ in range(40)]))
    return path


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve preferences: shouting is chosen."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    words = ["tree", "stone", "river", "cloud"]
    records = [
        {"prompt": f"say {words[i % 4]} {i}", "chosen": words[i % 4].upper(), "rejected": f"a {words[i % 4]}"}
        for i in range(12)
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


@pytest.fixture
def make_config(tiny_llama: Path, chats: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A configuration of ten steps in float32; keywords replace fields, `batch` and others their own parts."""

    def make(**changes: Any) -> TrainConfig:
        fields: dict[str, Any] = {
            "model": str(tiny_llama),
            "data": str(chats),
            "out": str(tmp_path / "out"),
            "method": Method.LORA,
            "steps": 10,
            "batch": BatchSettings(samples=8, max_tokens=128, micro_tokens=256),
            "optimizer": OptimizerSettings(lr=5e-3, warmup=2),
            "compute": ComputeSettings(precision="float32", device="cpu"),
        }
        return TrainConfig(**{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    from rank_processes import Ranks

    pair = Ranks(tmp_path_factory.mktemp("ranks"))
    yield pair
    pair.close()
