"""What is known of a model's quality: the results that quantizing and training write beside the weights, and the
evaluations that are kept beside the store."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from ...runtime.errors import NoSuchModel
from ...runtime.messages import UNDECODABLE
from ...schemas.models import FineTuneResults, ModelResults
from ...schemas.quantize import QuantizeReport
from .digest import ADAPTER
from .evaluations import evaluations_of
from .folder import CONFIG, is_model_folder
from .store import ModelStore, is_path

T = TypeVar("T")

# Written by `callboard quantize` and by a training run.
REPORT = "report.json"
TRAINING = "training.json"


class _Training(msgspec.Struct, frozen=True):
    """What is read here of `training.json`. One of an earlier release has no results."""

    results: FineTuneResults | None = None


def results_of(store: ModelStore, name: str) -> ModelResults:
    """Of a model of the store, or of a path: a file, or a folder with a model or an adapter.

    Raises NoSuchModel, ModelDamaged. Results that cannot be read are a line of their own, not an error: those of the
    other models are still worth a look.
    """
    path = Path(name).expanduser()
    if not is_path(name) or path.is_file():
        path = store.path(name)
    elif not is_model_folder(path) and not (path / ADAPTER).is_file():
        raise NoSuchModel(
            f"{path} is the folder of neither a model nor an adapter", hint=f"it would have {CONFIG} or {ADAPTER}"
        )
    troubles: list[str] = []
    evaluations = tuple(evaluations_of(store, name, troubles))
    if path.is_file():
        size = path.stat().st_size
        return ModelResults(model=name, size=size, evaluations=evaluations, trouble="; ".join(troubles))
    files = [file for file in path.rglob("*") if file.is_file()]
    training = _read(path / TRAINING, _Training, troubles)
    report = _read(path / REPORT, QuantizeReport, troubles)
    return ModelResults(
        model=name,
        size=sum(file.stat().st_size for file in files),
        quantized=msgspec.structs.replace(report, errors=()) if report is not None else None,
        fine_tuned=training.results if training is not None else None,
        evaluations=evaluations,
        trouble="; ".join(troubles),
    )


def _read(path: Path, kind: type[T], troubles: list[str]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (*UNDECODABLE, OSError) as error:
        troubles.append(f"{path.name} cannot be read: {error}")
        return None
