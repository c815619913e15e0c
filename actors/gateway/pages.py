"""Lists that are given out in pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from .errors import BadBody


class PageQuery(msgspec.Struct, kw_only=True):
    """`after` is the id of the last one that was seen."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str = ""


def page(items: Sequence[Any], *, limit: int, order: str, after: str) -> dict[str, Any]:
    """`items`, structs or dictionaries with an `id`, the oldest first. Raises BadBody where `after` is none of them."""
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after:
        ids = [_id(item) for item in ordered]
        if after not in ids:
            raise BadBody(f"after: there is no '{after}' in this list", param="after")
        ordered = ordered[ids.index(after) + 1 :]
    shown = ordered[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": _id(shown[0]) if shown else None,
        "last_id": _id(shown[-1]) if shown else None,
        "has_more": len(shown) < len(ordered),
    }


def _id(item: Any) -> str:
    return item["id"] if isinstance(item, dict) else item.id
