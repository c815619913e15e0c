"""The pages of the app, each imported when it is first shown: the first paint pays for one only."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .screens.base import Page


class PageEntry(NamedTuple):
    """`place` is `module:class` within this package; `key` the function key."""

    place: str
    title: str
    key: str


PAGES: dict[str, PageEntry] = {
    "chat": PageEntry("screens.chat:ChatPage", "Chat", "f2"),
    "company": PageEntry("screens.company:CompanyPage", "Company", "f3"),
    "bus": PageEntry("screens.bus:BusPage", "Bus", "f4"),
    "serving": PageEntry("screens.serving:ServingPage", "Serving", "f5"),
    "models": PageEntry("screens.models:ModelsPage", "Models", "f6"),
    "training": PageEntry("screens.training:TrainingPage", "Training", "f7"),
    "agents": PageEntry("screens.agents:AgentsPage", "Agents", "f8"),
    "approvals": PageEntry("screens.approvals:ApprovalsPage", "Approvals", "f9"),
    "tools": PageEntry("screens.tools:ToolsPage", "Tools", "f10"),
}
_PACKAGE = __package__ or "callboard.tui"


def page_names() -> list[str]:
    """Those whose module is there, in the order of their keys. Imports none of them."""
    return [name for name, entry in PAGES.items() if importlib.util.find_spec(_module(entry)) is not None]


def page_class(name: str) -> type[Page]:
    """The class of a page; imports its module."""
    entry = PAGES[name]
    return getattr(importlib.import_module(_module(entry)), entry.place.partition(":")[2])


def _module(entry: PageEntry) -> str:
    return f"{_PACKAGE}.{entry.place.partition(':')[0]}"
