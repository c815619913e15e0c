"""Answers to `$SRV.PING|INFO|STATS`, so that NATS's own tools see the company (NATS ADR-32, Service API).

A service is one actor kind on one node; its endpoints are the actors of that kind.
"""

from __future__ import annotations

import collections
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from .actor import kind_name
from .cell import Cell

if TYPE_CHECKING:
    from .node import Node

# A kind with ten thousand actors must still fit in one message.
MAX_ENDPOINTS = 200

_STARTED = datetime.now(UTC).isoformat().replace("+00:00", "Z")


def answer_discovery(node: Node, subject: str) -> list[bytes]:
    """One JSON answer for each kind on the node that `$SRV.<verb>[.<name>[.<id>]]` asks about."""
    from .. import __version__

    verb, name, service_id = (*subject.split(".")[1:], "", "")[:3]
    kinds: dict[str, list[Cell]] = collections.defaultdict(list)
    for child in node.actors.values():
        if isinstance(child, Cell):
            kinds[kind_name(child.kind)].append(child)
    found: list[bytes] = []
    for kind, cells in kinds.items():
        service: dict[str, Any] = {
            "type": f"io.nats.micro.v1.{verb.lower()}_response",
            "name": re.sub(r"[^A-Za-z0-9_-]", "_", kind),
            "id": f"{node.name}-{re.sub(r'[^A-Za-z0-9_-]', '_', kind)}",
            "version": __version__,
            "metadata": {"node": node.name, "kind": kind, "actors": str(len(cells))},
        }
        if (name and name.lower() != service["name"].lower()) or (service_id and service_id != service["id"]):
            continue
        if verb == "INFO":
            service["description"] = (cells[0].kind.__doc__ or "").strip().partition("\n")[0]
            service["endpoints"] = [_endpoint(cell) for cell in cells[:MAX_ENDPOINTS]]
        elif verb == "STATS":
            service["started"] = _STARTED
            service["endpoints"] = [{**_endpoint(cell), **_statistics(cell)} for cell in cells[:MAX_ENDPOINTS]]
        found.append(msgspec.json.encode(service))
    return found


def _endpoint(cell: Cell) -> dict[str, Any]:
    return {
        "name": cell.address.replace(".", "_"),
        "subject": f"actor.{cell.address}",
        "queue_group": "",
        "metadata": {"state": cell.state},
    }


def _statistics(cell: Cell) -> dict[str, Any]:
    # The handlers' own time, in nanoseconds: by samples beyond the first messages (meters.py).
    meter = cell.durations
    seconds, count = (meter.seconds, sum(meter.counts)) if meter is not None else (0.0, 0)
    return {
        "num_requests": cell.processed,
        "num_errors": cell.errors,
        "last_error": cell.last_error,
        "processing_time": int(seconds * 1e9),
        "average_processing_time": int(seconds * 1e9 / count) if count else 0,
        "data": {"mailbox": len(cell.inbox), "restarts": cell.restarts, "dropped": cell.dropped},
    }
