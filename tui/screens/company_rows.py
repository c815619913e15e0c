"""What the tables of the company show: columns, and the cells of an actor and of a node."""

from __future__ import annotations

from ..census import ActorRow, NodeRow, short_rate, short_size, short_time
from ..widgets.live_table import Cell, Column

ACTORS = (
    Column("actor"),
    Column("kind"),
    Column("state"),
    Column("wait", right=True, width=4),
    Column("msg/s", right=True, show=short_rate, width=5),
    Column("mem", right=True, show=short_size, width=5),
    Column("restarts", right=True),
    Column("node"),
    Column("pid", right=True, width=7),
    Column("done", right=True, show=lambda n: f"{n:,}", width=9),
    Column("errors", right=True, show=lambda n: f"{n:,}", width=6),
    Column("age", right=True, show=short_time, width=6),
)
NODES = (
    Column("node"),
    Column("host", width=12),
    Column("pid", right=True, width=7),
    Column("actors", right=True),
    Column("msg/s", right=True, show=short_rate, width=5),
    Column("cpu", right=True, show=lambda share: f"{100 * share:.0f}%", width=4),
    Column("mem", right=True, show=short_size, width=5),
    Column("up", right=True, show=short_time, width=6),
    Column("offers"),
)


def actor_cells(row: ActorRow, now: float) -> tuple[Cell, ...]:
    info = row.info
    return (
        info.address,
        info.kind,
        info.state,
        info.mailbox,
        row.rate,
        row.memory or None,
        info.restarts,
        info.node,
        info.pid,
        info.processed,
        info.errors,
        int(now - info.since) if info.since else None,
    )


def node_cells(row: NodeRow) -> tuple[Cell, ...]:
    info = row.info
    offers = ", ".join((*info.labels, f"{info.cpus:g} cpus", short_size(info.memory))) if info.accepts else ""
    return (
        info.node,
        info.host,
        info.pid,
        row.actors,
        row.rate,
        row.cpu,
        row.memory or None,
        int(row.uptime_s) or None,
        offers,
    )
