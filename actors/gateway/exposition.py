"""What `/metrics` says, in Prometheus' text format.

Series of the engines and of what goes through this gateway have the names that vLLM's dashboards read, with the labels
`model_name` and `engine` (https://docs.vllm.ai/en/stable/usage/metrics/). The gateway's own begin with
`callboard_http_` and `callboard_key_`; those of the company's nodes follow, from runtime/metrics.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ...runtime.metrics import Around, prometheus
from ...schemas.gateway import GatewayMeters
from ...schemas.serve_stats import EngineStats
from .exposition_grpc import of_grpc
from .histogram import Histogram, buckets
from .http_meters import HttpMeter
from .meters import ModelMeter
from .site import Counts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MODEL = ("model_name", "engine")


@dataclass(frozen=True)
class Observed:
    """All that one answer of `/metrics` is made of. `engines`: what each said of itself, by its scheduler's address.
    `grpc`: what each gRPC gateway counts, by its address. `loading`: engines that do not serve yet. `flush_s`: until
    the NATS server had everything, None without one."""

    gateway: str
    counts: Counts
    http: HttpMeter
    meters: Mapping[tuple[str, str], ModelMeter]
    engines: Mapping[str, EngineStats]
    grpc: Mapping[str, GatewayMeters]
    loading: Sequence[str]
    nodes: Around
    flush_s: float | None


def exposition(observed: Observed) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(observed))
    return generate_latest(registry) + prometheus(observed.nodes.found).encode()


class _Collector(Collector):
    def __init__(self, observed: Observed) -> None:
        self._observed = observed

    def collect(self) -> Iterable[Metric]:
        yield from _of_engines(self._observed.engines)
        yield from _of_answers(self._observed.meters)
        yield from _of_http(self._observed)
        yield from of_grpc(self._observed.grpc)

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is known before it is asked for


# Name without vLLM's prefix, meaning, and where it is found. Counters get `_total`.
_ENGINE_GAUGES = (
    ("num_requests_running", "Requests that are being computed.", lambda stats: stats.running),
    ("num_requests_waiting", "Requests that wait for room.", lambda stats: stats.waiting),
    (
        "kv_cache_usage_perc",
        "Share of the key/value cache that is held by requests; 1 is all of it.",
        lambda stats: (stats.num_blocks - stats.free_blocks) / stats.num_blocks if stats.num_blocks else 0.0,
    ),
)
_ENGINE_COUNTERS = (
    ("prompt_tokens", "Prompt tokens taken in.", lambda stats: stats.prompt_tokens),
    ("generation_tokens", "Tokens generated.", lambda stats: stats.generated_tokens),
    ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", lambda stats: stats.prompt_tokens),
    ("prefix_cache_hits", "Prompt tokens found computed already.", lambda stats: stats.cached_tokens),
    ("num_preemptions", "Requests put back for want of room in the cache.", lambda stats: stats.preemptions),
    ("spec_decode_num_draft_tokens", "Tokens guessed ahead.", lambda stats: stats.drafted_tokens),
    ("spec_decode_num_accepted_tokens", "Guesses that were right.", lambda stats: stats.accepted_tokens),
)
# Of an engine, and known to no other server.
_OWN_COUNTERS = (
    ("refused", "Requests refused because too many wait.", lambda stats: stats.refused),
    ("failed", "Requests that failed.", lambda stats: stats.failed),
    ("aborted", "Requests given up by who asked.", lambda stats: stats.aborted),
    ("steps", "Forward passes.", lambda stats: stats.steps),
    ("step_seconds", "Time from sending steps to having their results.", lambda stats: stats.step_seconds),
    ("compute_seconds", "The replicas' own part of that.", lambda stats: stats.compute_seconds),
    ("plan_seconds", "The scheduler's own time.", lambda stats: stats.plan_seconds),
    ("busy_seconds", "Time with something to compute.", lambda stats: stats.busy_seconds),
    ("replica_failures", "Replicas that died or did not answer.", lambda stats: stats.replica_failures),
    ("evictions", "Cached blocks that made room for others.", lambda stats: stats.evictions),
)
_OWN_GAUGES = (
    ("sessions", "Conversations that keep their keys and values.", lambda stats: stats.sessions),
    ("pinned_blocks", "Blocks kept for conversations.", lambda stats: stats.pinned_blocks),
    ("cached_blocks", "Free blocks that keep what may be asked for again.", lambda stats: stats.cached_blocks),
    ("replicas", "Replicas that compute.", lambda stats: len(stats.replicas)),
    ("adapters", "LoRA adapters that are loaded.", lambda stats: len(stats.adapters)),
)


def _of_engines(engines: Mapping[str, EngineStats]) -> Iterator[Metric]:
    for prefix, gauges in (("vllm:", _ENGINE_GAUGES), ("callboard_engine_", _OWN_GAUGES)):
        for name, meaning, value in gauges:
            gauge = GaugeMetricFamily(prefix + name, meaning, labels=_MODEL)
            for address, stats in engines.items():
                gauge.add_metric((stats.model, address), value(stats))
            yield gauge
    for prefix, counters in (("vllm:", _ENGINE_COUNTERS), ("callboard_engine_", _OWN_COUNTERS)):
        for name, meaning, value in counters:
            counter = CounterMetricFamily(prefix + name, meaning, labels=_MODEL)
            for address, stats in engines.items():
                counter.add_metric((stats.model, address), value(stats))
            yield counter
    cache = GaugeMetricFamily(
        "vllm:cache_config_info",
        "How the key/value cache is divided; always 1.",
        labels=(*_MODEL, "block_size", "num_gpu_blocks", "cache_dtype"),
    )
    for address, stats in engines.items():
        cache.add_metric((stats.model, address, str(stats.block_size), str(stats.num_blocks), stats.dtype), 1)
    yield cache


_HISTOGRAMS = (
    ("time_to_first_token_seconds", "From asking to the first token.", lambda meter: meter.to_first_token),
    ("inter_token_latency_seconds", "From one token of an answer to the next.", lambda meter: meter.between_tokens),
    ("time_per_output_token_seconds", "The same, by its older name.", lambda meter: meter.between_tokens),
    ("request_time_per_output_token_seconds", "The mean of that in a request.", lambda meter: meter.per_output_token),
    ("e2e_request_latency_seconds", "From asking to the whole answer.", lambda meter: meter.whole),
    ("request_queue_time_seconds", "From an engine's taking a request to its first step.", lambda meter: meter.queue),
    ("request_prefill_time_seconds", "From the first step to the first token.", lambda meter: meter.prefill),
    ("request_inference_time_seconds", "From the first step to the whole answer.", lambda meter: meter.inference),
    ("request_decode_time_seconds", "From the first token to the whole answer.", lambda meter: meter.decode),
    ("request_prompt_tokens", "Tokens of a request's prompt.", lambda meter: meter.prompt_tokens),
    ("request_generation_tokens", "Tokens generated for a request.", lambda meter: meter.generation_tokens),
    ("request_params_max_tokens", "`max_tokens` of requests that say it.", lambda meter: meter.max_tokens),
    ("request_params_n", "How many answers a request wants.", lambda meter: meter.answers),
)


def _of_answers(meters: Mapping[tuple[str, str], ModelMeter]) -> Iterator[Metric]:
    for name, meaning, of in _HISTOGRAMS:
        family = HistogramMetricFamily(f"vllm:{name}", meaning, labels=_MODEL)
        for key, meter in meters.items():
            _add(family, key, of(meter))
        yield family
    success = CounterMetricFamily(
        "vllm:request_success", "Requests by how they ended.", labels=(*_MODEL, "finished_reason")
    )
    for key, meter in meters.items():
        for reason, count in meter.ended.items():
            success.add_metric((*key, reason), count)
    yield success


def _of_http(observed: Observed) -> Iterator[Metric]:
    labels = ("gateway",)
    here = (observed.gateway,)
    up = GaugeMetricFamily("callboard_http_requests_open", "HTTP requests under way.", labels=labels)
    up.add_metric(here, observed.counts.open)
    yield up
    loading = GaugeMetricFamily("callboard_engines_loading", "Engines that do not serve yet.", labels=labels)
    loading.add_metric(here, len(observed.loading))
    yield loading
    silent = GaugeMetricFamily("callboard_nodes_silent", "Nodes that did not say what they count.", labels=labels)
    silent.add_metric(here, len(observed.nodes.silent))
    yield silent
    if observed.flush_s is not None:
        flush = GaugeMetricFamily(
            "callboard_bus_flush_seconds", "Until the NATS server had all that was sent, just now.", labels=labels
        )
        flush.add_metric(here, observed.flush_s)
        yield flush
    latency = GaugeMetricFamily(
        "callboard_bus_answer_seconds",
        "From asking a node over the bus to its answer, just now.",
        labels=(*labels, "node"),
    )
    for node, took in observed.nodes.took.items():
        latency.add_metric((*here, node), took)
    yield latency
    http = observed.http
    requests = CounterMetricFamily(
        "callboard_http_requests", "HTTP requests answered.", labels=(*labels, "route", "method", "status")
    )
    for (route, method, status), count in http.requests.items():
        requests.add_metric((*here, route, method, str(status)), count)
    yield requests
    seconds = HistogramMetricFamily(
        "callboard_http_request_duration_seconds",
        "From the head of a request to the end of its answer.",
        labels=(*labels, "route"),
    )
    for route, histogram in http.seconds.items():
        _add(seconds, (*here, route), histogram)
    yield seconds
    strangers = CounterMetricFamily(
        "callboard_http_unknown_key", "Requests refused because no good key came with them.", labels=labels
    )
    strangers.add_metric(here, http.strangers)
    yield strangers
    for name, meaning in (
        ("requests", "Requests let in, by key."),
        ("refused", "Requests that a key has no scope for."),
        ("limited", "Requests over a key's rate."),
        ("tokens", "Tokens of prompts and answers, by key."),
    ):
        family = CounterMetricFamily(f"callboard_key_{name}", meaning, labels=(*labels, "key"))
        for key, meter in http.keys.items():
            family.add_metric((*here, key), getattr(meter, name))
        yield family


def _add(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    family.add_metric(labels, buckets(histogram.bounds, histogram.counts), histogram.sum)
