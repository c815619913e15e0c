"""Lists that are given out in pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from .errors import BadBody


class PageQuery(msgspec.Struct, kw_only=True):
    """Of a list that is given out in pages: `after` is the id of the last one that was seen."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str = ""


def page(items: Sequence[dict[str, Any]], asked: PageQuery) -> dict[str, Any]:
    """`items`, each with its `id`, the oldest first. Raises BadBody where `after` is none of them."""
    ordered = list(items) if asked.order == "asc" else list(reversed(items))
    if asked.after:
        ids = [item["id"] for item in ordered]
        if asked.after not in ids:
            raise BadBody(f"after: there is no '{asked.after}' in this list", param="after")
        ordered = ordered[ids.index(asked.after) + 1 :]
    shown = ordered[: asked.limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else "",
        "last_id": shown[-1]["id"] if shown else "",
        "has_more": len(shown) < len(ordered),
    }
