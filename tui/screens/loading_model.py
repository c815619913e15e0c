"""Loading a model from the page of serving: which, how, and under which name."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..serving_figures import ENGINE_KIND
from ..store_access import list_store
from ..widgets.fields_dialog import Field, FieldsDialog

if TYPE_CHECKING:
    from ...runtime.client import Client
    from .base import Page

# The one that commands and gateways ask where nobody says which.
FIRST = "engine"
WEIGHTS = ("", "bfloat16", "float32", "int8", "int4", "nf4")


@dataclass(frozen=True)
class LoadOrder:
    """`weights`: how they are kept, "" for as the file keeps them."""

    model: str
    name: str
    weights: str = ""
    replicas: int = 1


async def ask_what_to_load(page: Page, taken: Container[str], model: str = "") -> LoadOrder | None:
    """None where it was thought better of. `taken`: names that engines have already."""
    names = [one.name for one in (await list_store(page.session)).models]
    values = await page.app.push_screen_wait(
        FieldsDialog(
            "Load a model",
            [
                Field("model", "Model", model or (names[0] if names else ""), suggest=names, needed=True),
                Field("weights", "Weights", "", [(one, one or "as its file keeps them") for one in WEIGHTS]),
                Field("replicas", "Replicas", "1", [(str(n), str(n)) for n in (1, 2, 4, 8)]),
                Field("name", "Engine", _free_name(taken), needed=True),
            ],
            detail="A name of the store, or the path of a file or folder on the daemon's machine. "
            f"The engine named `{FIRST}` is the one that is asked where nobody says which.",
            yes="Load",
        )
    )
    if values is None:
        return None
    return LoadOrder(values["model"], values["name"], values["weights"], int(values["replicas"]))


async def load_model(client: Client, order: LoadOrder) -> None:
    """With the table [engine] of the settings, as `callboard chat` would start it. Raises what its start does."""
    from ...runtime.settings import load_settings

    config = {**load_settings({}).engine, "model": order.model}
    if order.weights:
        config["weights"] = order.weights
    if order.replicas > 1:
        config |= {"replicas": order.replicas, "replica_process": True}
    await client.spawn(ENGINE_KIND, json.dumps(config), name=order.name, process=True)


def _free_name(taken: Container[str]) -> str:
    number = 1
    name = FIRST
    while name in taken:
        number += 1
        name = f"{FIRST}-{number}"
    return name
