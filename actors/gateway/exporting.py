"""Sends the spans of traced requests to a collector of OpenTelemetry, those of all nodes that had a part in them.

Nodes are asked a moment after the answer, since spans are known when they end; what ends later than that is not sent.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from ...runtime.errors import CallboardError
from ...runtime.log import log
from ...runtime.node import Node
from ...runtime.otlp_http import require_httpx2, send, traces_url
from ...runtime.traces import collect_around, otlp
from ...schemas.trace import Span

EVERY_S = 2.0
# Requests that may wait for that; more are left out.
MAX_WAITING = 1000
# A client's trace may have several requests: what was sent for one is not sent again for the next.
MAX_REMEMBERED = 50_000


class Exporter:
    """Raises ConfigError for what is no address, MissingExtra."""

    def __init__(self, node: Node, endpoint: str) -> None:
        require_httpx2()
        self._node = node
        self._url = traces_url(endpoint)
        self._waiting: dict[str, None] = {}
        self._sent: OrderedDict[str, None] = OrderedDict()
        self._news = asyncio.Event()
        self._left_out = 0

    def ended(self, trace: str) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._left_out += 1
            return
        self._waiting[trace] = None
        self._news.set()

    async def run(self) -> None:
        """For ever. A collector that does not answer costs traces, and nothing else."""
        while True:
            await self._news.wait()
            await asyncio.sleep(EVERY_S)
            await self.flush()

    async def flush(self) -> None:
        """Send what waits."""
        traces, self._waiting = list(self._waiting), {}
        self._news.clear()
        if self._left_out:
            log.warning("%d traced requests were too many to export", self._left_out)
            self._left_out = 0
        spans: list[Span] = []
        for trace in traces:
            found = await collect_around(self._node, trace)
            spans += [span for span in found.spans if span.span not in self._sent]
        if not spans:
            return
        try:
            await send([otlp(spans)], self._url)
        except CallboardError as error:
            log.warning("%d spans are lost: %s", len(spans), error)
            return
        for span in spans:
            self._sent[span.span] = None
        while len(self._sent) > MAX_REMEMBERED:
            self._sent.popitem(last=False)
