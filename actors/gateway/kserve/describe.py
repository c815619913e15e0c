"""What the protocol's questions about the server and its models are answered with."""

from __future__ import annotations

from typing import Any

from ..engines import Engine
from ..site import Site
from .signature import INPUTS, OUTPUTS, PLATFORM, VERSION, Described, check_version

EXTENSIONS = ("binary_tensor_data", "generate", "model_configuration", "model_repository")
READY = "READY"


async def is_ready(site: Site) -> bool:
    """Whether there is a model to ask."""
    return bool((await site.engines.look()).engines)


async def find(site: Site, name: str, version: str) -> Engine:
    """Raises ModelUnknown, StillLoading."""
    engine = await site.engines.find(name)
    check_version(name, version)
    return engine


async def index_of(site: Site) -> list[dict[str, str]]:
    found = await site.engines.look()
    return [{"name": name, "version": VERSION, "state": READY, "reason": ""} for name in sorted(found.engines)]


def _tensor(described: Described) -> dict[str, Any]:
    return {"name": described.name, "datatype": described.datatype, "shape": [-1]}


def inputs_of() -> list[dict[str, Any]]:
    return [_tensor(one) for one in INPUTS]


def outputs_of() -> list[dict[str, Any]]:
    return [_tensor(one) for one in OUTPUTS]


def config_of(name: str) -> dict[str, Any]:
    """A model's configuration in Triton's terms: no batches in a first dimension, several responses to a request."""

    def typed(described: Described) -> dict[str, Any]:
        datatype = "STRING" if described.datatype == "BYTES" else described.datatype
        return {"name": described.name, "data_type": f"TYPE_{datatype}", "dims": [-1]}

    return {
        "name": name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": 0,
        "input": [typed(one) | {"optional": one.optional} for one in INPUTS],
        "output": [typed(one) for one in OUTPUTS],
        "model_transaction_policy": {"decoupled": True},
    }
