"""What `/metrics` says of gRPC gateways, which have no page of their own: they were asked over the bus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ...schemas.gateway import AnswersMeter, GatewayMeters, Spread
from .histogram import buckets

_MODEL = ("gateway", "model_name", "engine")
_KEYS = ("requests", "refused", "limited", "tokens")


def of_grpc(gateways: Mapping[str, GatewayMeters]) -> Iterator[Metric]:
    """`gateways`: by address, the label `gateway` of every series."""
    opened = GaugeMetricFamily("callboard_grpc_requests_open", "gRPC calls under way.", labels=("gateway",))
    strangers = CounterMetricFamily(
        "callboard_grpc_unknown_key", "Calls refused because no good key came with them.", labels=("gateway",)
    )
    calls = CounterMetricFamily("callboard_grpc_requests", "gRPC calls ended.", labels=("gateway", "method", "status"))
    seconds = HistogramMetricFamily(
        "callboard_grpc_request_duration_seconds", "From a call to its end.", labels=("gateway", "method")
    )
    keys = {
        name: CounterMetricFamily(f"callboard_grpc_key_{name}", "As callboard_key.", labels=("gateway", "key"))
        for name in _KEYS
    }
    for address, meters in gateways.items():
        opened.add_metric((address,), meters.open)
        strangers.add_metric((address,), meters.unknown_keys)
        for call in meters.calls:
            for status, count in call.statuses:
                calls.add_metric((address, call.method, status), count)
            _add(seconds, (address, call.method), call.seconds)
        for key in meters.keys:
            for name in _KEYS:
                keys[name].add_metric((address, key.key), getattr(key, name))
    yield from (opened, strangers, calls, seconds, *keys.values())
    yield from _of_answers(gateways)


_SPREADS: tuple[tuple[str, str, Callable[[AnswersMeter], Spread]], ...] = (
    ("time_to_first_token_seconds", "From asking to the first token.", lambda one: one.to_first_token),
    ("e2e_request_latency_seconds", "From asking to the whole answer.", lambda one: one.whole),
)
_COUNTS: tuple[tuple[str, str, Callable[[AnswersMeter], int]], ...] = (
    ("prompt_tokens", "Tokens of prompts.", lambda one: one.prompt_tokens),
    ("generation_tokens", "Tokens generated.", lambda one: one.generation_tokens),
)


def _of_answers(gateways: Mapping[str, GatewayMeters]) -> Iterator[Metric]:
    each = [(address, one) for address, meters in gateways.items() for one in meters.answers]
    for name, meaning, of in _SPREADS:
        histogram = HistogramMetricFamily(f"callboard_grpc_{name}", meaning, labels=_MODEL)
        for address, one in each:
            _add(histogram, (address, one.model, one.engine), of(one))
        yield histogram
    for name, meaning, of in _COUNTS:
        counter = CounterMetricFamily(f"callboard_grpc_{name}", meaning, labels=_MODEL)
        for address, one in each:
            counter.add_metric((address, one.model, one.engine), of(one))
        yield counter
    success = CounterMetricFamily(
        "callboard_grpc_request_success", "Requests by how they ended.", labels=(*_MODEL, "finished_reason")
    )
    for address, one in each:
        for reason, count in one.ended:
            success.add_metric((address, one.model, one.engine, reason), count)
    yield success


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], spread: Spread) -> None:
    family.add_metric(labels, buckets(spread.bounds, spread.counts), spread.sum)
