"""What a gRPC gateway counts of its calls, and all that it counts as one message: HTTP gateways show it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ....schemas.gateway import AnswersMeter, CallsMeter, GatewayMeters, KeyCounts, Spread
from ..histogram import HTTP_S, Histogram
from ..site import Site


@dataclass
class CallMeter:
    """By method and status; seconds from a call's coming to its end."""

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: dict[str, Histogram] = field(default_factory=dict)

    def ended(self, method: str, status: str, seconds: float) -> None:
        self.calls[method, status] += 1
        if method not in self.seconds:
            self.seconds[method] = Histogram(HTTP_S)
        self.seconds[method].add(seconds)


def meters_of(site: Site, calls: CallMeter) -> GatewayMeters:
    return GatewayMeters(
        open=site.counts.open,
        unknown_keys=site.http.strangers,
        calls=tuple(
            CallsMeter(
                method,
                tuple((status, count) for (of, status), count in calls.calls.items() if of == method),
                _spread(seconds),
            )
            for method, seconds in calls.seconds.items()
        ),
        answers=tuple(
            AnswersMeter(
                model,
                engine,
                tuple(meter.ended.items()),
                round(meter.prompt_tokens.sum),
                round(meter.generation_tokens.sum),
                _spread(meter.to_first_token),
                _spread(meter.whole),
            )
            for (model, engine), meter in site.engines.meters.items()
        ),
        keys=tuple(
            KeyCounts(name, one.requests, one.refused, one.limited, one.tokens) for name, one in site.http.keys.items()
        ),
    )


def _spread(histogram: Histogram) -> Spread:
    return Spread(tuple(histogram.bounds), tuple(histogram.counts), histogram.sum)
