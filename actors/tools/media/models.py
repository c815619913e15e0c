"""The model behind a tool: found by the name that the user gave it, checked to be of the right kind, loaded, let go.

A folder of Hugging Face's layout, loaded by transformers without the network, without code from the folder, and from
safetensors alone. A name is a path, or a model of the store (`callboard pull hf:ORG/NAME`).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....runtime.errors import CallboardError
from ....runtime.extras import missing_extra
from ...models.folder import CONFIG, PIPELINE_INDEX, is_model_folder, is_pipeline_folder, read_json
from ...models.store import ModelStore, is_path
from ..errors import ToolError, ToolSetupFailed

if TYPE_CHECKING:
    import torch

# Used in training only; checkpoints for use leave them out.
_NOT_NEEDED = ("masked_spec_embed",)


@dataclass(frozen=True)
class ModelKind:
    """What a tool needs of a model. `mappings`: the tables of transformers (`MODEL_FOR_..._MAPPING_NAMES`, without
    both ends) that list the families which do that. `example`: a model that many know."""

    purpose: str
    mappings: tuple[str, ...]
    example: str

    def classes(self) -> Iterator[tuple[str, str]]:
        """(family, name of its class), in the order of the tables."""
        from transformers.models.auto import modeling_auto

        for mapping in self.mappings:
            table: dict[str, Any] = getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES")
            for family, names in table.items():
                for name in (names,) if isinstance(names, str) else names:
                    yield family, name


@dataclass
class LoadedModel:
    """A model of transformers that is ready to compute, and where it came from."""

    name: str
    folder: Path
    model: Any
    device: torch.device
    dtype: torch.dtype

    @property
    def family(self) -> str:
        return self.model.config.model_type

    def part(self, auto: str) -> Any:
        """What stands beside the model in its folder: "AutoTokenizer", "AutoProcessor" and so on. ToolSetupFailed."""
        import transformers

        try:
            with quietly():
                return getattr(transformers, auto).from_pretrained(
                    self.folder, local_files_only=True, trust_remote_code=False
                )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            what = auto.removeprefix("Auto")
            raise ToolSetupFailed(
                f"the model '{self.name}' is incomplete: its {what} cannot be read: {first_line(error)}",
                hint="fetch the model again, with all its files",
            ) from error
        except ImportError as error:
            raise _needs(self.name, error) from error


def find_model(name: str, tool: str, setting: str) -> Path:
    """The folder of the model that is set for a tool. ToolSetupFailed where none is, or it is not there."""
    if not name:
        raise ToolSetupFailed(
            f"no model is set for the tool '{tool}'",
            hint=f"whoever runs it sets {setting} to a model's folder, or to hf:ORG/NAME",
        )
    if is_path(name):
        path = Path(name).expanduser()
        if is_model_folder(path) or is_pipeline_folder(path):
            return path
        problem = f"has neither {CONFIG} nor {PIPELINE_INDEX}" if path.is_dir() else "is not there"
        raise ToolSetupFailed(
            f"the model of the tool '{tool}', the folder {path}, {problem}", hint=f"look at what {setting} is set to"
        )
    try:
        path = ModelStore().path(name)
    except CallboardError as error:
        raise ToolSetupFailed(f"the model of the tool '{tool}': {error}", hint=error.hint) from error
    if not path.is_dir():
        raise ToolSetupFailed(
            f"the model of the tool '{tool}', '{name}', is the single file {path.name}",
            hint="name one that is a folder with safetensors",
        )
    return path


def load_model(name: str, folder: Path, kind: ModelKind, tool: str, device: str = "") -> LoadedModel:
    """The model in a folder. ToolSetupFailed for one of another kind, or damaged; MissingExtra without transformers."""
    with importing(tool):
        import torch
        import transformers
        from safetensors import SafetensorError
    where, dtype = place(device)
    wanted = class_for(name, folder, kind, tool)
    try:
        with quietly():
            model, report = getattr(transformers, wanted).from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except ImportError as error:
        raise _needs(name, error) from error
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ToolSetupFailed(
            f"the model '{name}' cannot be loaded as {wanted}: {first_line(error)}",
            hint="it may be damaged, or keep its weights in other files than safetensors",
        ) from error
    # A tensor that is not in the files would be random numbers: the tool would answer, and all of it be wrong.
    absent = [key for key in map(str, report["missing_keys"]) if not key.endswith(_NOT_NEEDED)]
    if absent:
        raise _wrong_kind(name, folder, kind, tool, f"; {len(absent)} tensors are missing, among them '{min(absent)}'")
    with torch.inference_mode():
        return LoadedModel(name, folder, model.to(where).eval(), where, dtype)


def class_for(name: str, folder: Path, kind: ModelKind, tool: str) -> str:
    """The class of transformers to load a folder with: the one that it says it holds, where that does what is wanted,
    else the first of its family that does. ToolSetupFailed where there is none."""
    if not is_model_folder(folder):
        raise _wrong_kind(name, folder, kind, tool, "; it is a pipeline of diffusers")
    config = config_of(name, folder)
    family, holds = config.get("model_type"), config.get("architectures") or []
    usable = [cls for known, cls in kind.classes() if known == family]
    if not usable:
        raise _wrong_kind(name, folder, kind, tool)
    return next((cls for cls in usable if cls in holds), usable[0])


def place(device: str) -> tuple[torch.device, torch.dtype]:
    """Where to compute and in which type: in 16 bits on a card, in 32 on a CPU, most of which have no others."""
    import torch

    from ...models.device import card_of, compute_device, half_type

    where = compute_device(device)
    card = card_of(where)
    return where, torch.float32 if card is None else getattr(torch, half_type(card))


def unload() -> None:
    """Give back what a model has held, once nobody names it any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def importing(tool: str) -> Iterator[None]:
    """What is imported within may be missing: MissingExtra says which extra brings it."""
    try:
        yield
    except ImportError as error:
        extra = missing_extra(error, f"the tool '{tool}'")
        if extra is None:
            raise
        raise extra from error


@contextmanager
def quietly() -> Iterator[None]:
    from ...models.transformers_model import quiet

    with quiet():
        yield


def config_of(name: str, folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / CONFIG)
    except CallboardError as error:
        raise ToolSetupFailed(f"the model '{name}': {error}", hint=error.hint) from error


def _wrong_kind(name: str, folder: Path, kind: ModelKind, tool: str, why: str = "") -> ToolError:
    if is_model_folder(folder):
        config = config_of(name, folder)
        what = " and ".join(config.get("architectures") or []) or f"a model of the family '{config.get('model_type')}'"
    else:
        what = str(read_json(folder / PIPELINE_INDEX).get("_class_name", "a pipeline"))
    families = sorted({family for family, _ in kind.classes()})
    shown = ", ".join(families[:12]) + (f" and {len(families) - 12} more" if len(families) > 12 else "")
    return ToolSetupFailed(
        f"the model '{name}' is {what}, and the tool '{tool}' needs one for {kind.purpose}{why}",
        hint=f"{kind.example} is one; the families are {shown}",
    )


def _needs(name: str, error: ImportError) -> ToolError:
    """Some families want a package of their own: transformers names it in a text of many lines."""
    return ToolSetupFailed(
        f"the model '{name}' needs a package that is not installed: {first_line(error)}",
        hint=f"pip install {error.name}" if error.name else "",
    )


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
