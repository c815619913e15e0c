"""Starting an actor from the page of the company: what is asked for, and what is then sent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...runtime.client import MAIN
from ...runtime.errors import ConfigError
from ...runtime.placement import OnNode
from ...runtime.supervision import Restart
from ...schemas.inspecting import ListKinds
from ..widgets.fields_dialog import Field, FieldsDialog

if TYPE_CHECKING:
    from ...runtime.client import Client
    from .base import Page

HERE, PROCESS, ANY = "here", "process", "any"
_ON = "on:"


@dataclass(frozen=True)
class SpawnOrder:
    """`where`: in the daemon (`here`), in a process of its own (`process`), on any node that takes actors (`any`), or
    `on:NAME`."""

    kind: str
    name: str = ""
    config: str = "{}"
    where: str = HERE
    restart: str = "permanent"


async def ask_what_to_spawn(page: Page, node: str = "") -> SpawnOrder | None:
    """None where it was thought better of. `node`: which one is meant unless another is chosen."""
    kinds = [kind.name for kind in (await page.session.ask(MAIN, ListKinds())).kinds]
    taking = [info.node for info in await page.session.client.nodes() if info.accepts]
    places = [(HERE, "in the daemon"), (PROCESS, "in a process of its own")]
    places += [(ANY, "on a node that the daemon picks")] if taking else []
    places += [(f"{_ON}{name}", f"on node {name}") for name in taking]
    values = await page.app.push_screen_wait(
        FieldsDialog(
            "Spawn an actor",
            [
                Field(
                    "kind",
                    "Kind",
                    suggest=kinds,
                    placeholder=f"{len(kinds)} kinds; right takes what is suggested",
                    needed=True,
                ),
                Field("name", "Name", placeholder="made up from the kind"),
                Field("where", "Where", f"{_ON}{node}" if node in taking else HERE, places),
                Field("restart", "Restart", "permanent", [(kind.value, kind.value) for kind in Restart]),
                Field("config", "Configuration", "{}", placeholder='JSON, {"model": "smollm2"} say'),
            ],
            yes="Spawn",
        )
    )
    return None if values is None else SpawnOrder(**{**values, "config": values["config"] or "{}"})


async def spawn(client: Client, order: SpawnOrder) -> str:
    """The address of what runs then. Raises ConfigError for a configuration that is no JSON, and what a spawn does."""
    try:
        json.loads(order.config)
    except ValueError as error:
        raise ConfigError(f"the configuration is no JSON: {error}", hint='write it as {"name": "value"}') from None
    where = None
    if order.where == ANY:
        where = OnNode()
    elif order.where.startswith(_ON):
        where = OnNode(labels=(f"node={order.where.removeprefix(_ON)}",))
    ref = await client.spawn(
        order.kind,
        order.config,
        name=order.name,
        process=order.where == PROCESS,
        where=where,
        restart=Restart(order.restart),
    )
    return ref.address
