"""`callboard bench kernels`: each kernel against what the machine itself can do, measured in the same run.

The ceilings are a large copy (bytes/s, read and written) and a large bfloat16 product (operations/s). A row's share is
what it must at least move or compute, over its time, over the ceiling. The goals are for cards; on a CPU the same rows
are reported for the paths that run there, with nothing held against them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...kernels.gpu import launch
from ...runtime.errors import CallboardError, ConfigError
from .kernels_loss import FASTER, SMALLER, measure_loss
from .kernels_meter import Ceilings, Meter, copy_rate, matrix_rate, meter_for
from .kernels_model import BATCH_OVER_PEER, STREAM_BF16, STREAM_W4, measure_model
from .kernels_rows import Row, grouped, linear_row, memory_rows, plain, prefill_attention
from .kernels_sizes import CARD, CPU, Sizes, quick
from .machine import machine_facts
from .report import Report

Step = Callable[[str], None]
Samples = list[float]

COPY, MATRIX = "of copy", "of matrix"
W4_OVER_BF16 = "w4a16_over_bf16"


@dataclass(frozen=True)
class Goal:
    """`row`: whose share it is about, if it is a share."""

    name: str
    goal: float
    unit: str
    row: str = ""
    at_most: bool = False


GOALS = (
    Goal("decode_attention_over_copy", 0.85, COPY, "decode_attention.kv_bfloat16"),
    Goal("w4a16_row_over_copy", 0.75, COPY, "w4a16_row"),
    Goal(W4_OVER_BF16, 1.0, "x"),
    Goal("rms_norm_over_copy", 0.85, COPY, "rms_norm"),
    Goal("rotary_write_over_copy", 0.85, COPY, "rotary_write"),
    Goal("gate_product_over_copy", 0.85, COPY, "gate_product"),
    Goal("prefill_attention_over_matrix", 0.6, MATRIX, "prefill_attention"),
    Goal(FASTER, 1.0, "x"),
    Goal(SMALLER, 0.25, "x", at_most=True),
    Goal(STREAM_BF16, 0.85, "of floor"),
    Goal(STREAM_W4, 0.65, "of floor"),
    Goal(BATCH_OVER_PEER, 1.0, "x"),
)


@dataclass(frozen=True)
class KernelsOptions:
    """`device`: "cpu", "cuda", "cuda:1"; "" for a card where there is one. `quick`: a check that all of it runs."""

    device: str = ""
    quick: bool = False
    rounds: int = 0


def run(options: KernelsOptions, step: Step) -> Report:
    """Measure all of it. `step` hears what is being done. What cannot be measured leaves a note, and its target says
    why.

    Raises ConfigError for a device that is not here.
    """
    device = choose_device(options.device)
    sizes = CARD if device.type == "cuda" else CPU
    if options.quick:
        sizes = quick(sizes)
    torch.manual_seed(0)
    bench = _Bench(meter_for(device, options.rounds or sizes.rounds), sizes, step)
    bench.report.machine |= _device_facts(device)
    bench.measure_all()
    return bench.report


def choose_device(name: str) -> torch.device:
    """Raises ConfigError."""
    if not name:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"there is no device '{name}'", hint="choose cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"kernels are not measured on '{name}'", hint="choose cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(f"there is no device '{name}': PyTorch sees {count} cards", hint="--device cpu")
        torch.cuda.set_device(device.index or 0)
        device = torch.device("cuda", device.index or 0)
        if why := launch.unavailable(device):
            raise ConfigError(f"there is nothing to measure on '{name}': {why}", hint="--device cpu")
    return device


def _device_facts(device: torch.device) -> dict[str, Any]:
    if device.type == "cpu":
        return {"device": "cpu", "threads": torch.get_num_threads()}
    facts = torch.cuda.get_device_properties(device)
    return {
        "device": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "device_memory_gib": round(facts.total_memory / (1 << 30), 1),
        "cuda": torch.version.cuda,
    }


class _Bench:
    def __init__(self, meter: Meter, sizes: Sizes, step: Step) -> None:
        self.meter = meter
        self.sizes = sizes
        self.step = step
        self.report = Report("kernels", machine_facts("torch", "triton", "transformers"))
        self.ceilings = Ceilings(0.0, 0.0)
        self._found: dict[str, Samples] = {}
        self._failed: dict[str, str] = {}

    def measure_all(self) -> None:
        self._measure_ceilings()
        device, sizes = self.meter.device, self.sizes
        for name, build in memory_rows(device, sizes):
            self._try(name, lambda name=name, build=build: self._row(name, build()))
        self._try(W4_OVER_BF16, self._w4_over_bf16)
        self._try("prefill_attention", self._prefill)
        self._try("cross_entropy", lambda: measure_loss(self.meter, sizes, self.report), FASTER, SMALLER)
        self._try(
            "the model",
            lambda: measure_model(self.meter, sizes, self.ceilings, self.report),
            *(STREAM_BF16, STREAM_W4, BATCH_OVER_PEER),
        )
        self._report_goals()

    def _measure_ceilings(self) -> None:
        self.step("a large copy")
        copies = copy_rate(self.meter, self.sizes.copy_bytes)
        self.report.add("copy", [rate / 1e9 for rate in copies], "GB/s")
        self.step("a large product")
        products = matrix_rate(self.meter, self.sizes.matrix_size)
        self.report.add("matrix_bf16", [rate / 1e12 for rate in products], "TFLOP/s")
        self.ceilings = Ceilings(statistics.median(copies), statistics.median(products))

    def _try(self, name: str, measure: Callable[[], Mapping[str, Samples] | None], *targets: str) -> None:
        """Keep what `measure` finds; where it fails, why, for the row and for its `targets`."""
        self.step(name)
        try:
            self._found |= measure() or {}
        except (CallboardError, ValueError, RuntimeError) as error:
            why = f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason'}"
            self.report.notes.append(why)
            self._failed |= dict.fromkeys((name, *targets), why)
        finally:
            if self.meter.device.type == "cuda":
                torch.cuda.empty_cache()

    def _row(self, name: str, row: Row) -> Mapping[str, Samples]:
        seconds = self.meter.seconds(row.calls)
        if row.num_bytes:
            rates, scale, unit, ceiling, share = row.num_bytes, 1e9, "GB/s", self.ceilings.copy, COPY
        else:
            rates, scale, unit, ceiling, share = row.operations, 1e12, "TFLOP/s", self.ceilings.matrix, MATRIX
        self.report.add(name, [rates / each / scale for each in seconds], unit)
        shares = [rates / each / ceiling for each in seconds]
        self.report.add(f"{name}_share", shares, share)
        return {name: shares}

    def _prefill(self) -> Mapping[str, Samples]:
        rows = prefill_attention(self.meter.device, self.sizes)
        return {name: self._row(name, row)[name] for name, row in rows.items()}

    def _w4_over_bf16(self) -> Mapping[str, Samples]:
        """bfloat16's time over that of four bits, by the number of rows; the worst of them in each round."""
        shape = (self.sizes.intermediate, self.sizes.hidden)
        worst: list[Samples] = []
        for count in self.sizes.row_counts:
            seconds: list[Samples] = []
            for make in (grouped, plain):
                self.step(f"products of {count} rows, {make.__name__}")
                seconds.append(self.meter.seconds(linear_row(self.meter.device, self.sizes, make, shape, count).calls))
            ratios = [theirs / ours for ours, theirs in zip(*seconds, strict=True)]
            self.report.add(f"w4a16_over_bf16.rows_{count}", ratios, "x")
            worst.append(ratios)
        return {W4_OVER_BF16: [min(each) for each in zip(*worst, strict=True)]}

    def _report_goals(self) -> None:
        for goal in GOALS:
            if self.meter.device.type != "cuda":
                why = "for cards"
            elif (samples := self._found.get(goal.row or goal.name)) is not None:
                self.report.add_target(goal.name, goal.goal, goal.unit, samples, at_most=goal.at_most)
                continue
            else:
                why = self._failed.get(goal.row or goal.name, "it was not measured")
            self.report.miss_target(goal.name, goal.goal, goal.unit, why, at_most=goal.at_most)
