"""From the samples of the rounds to figures and targets."""

from __future__ import annotations

from .generate_company import OURS, Company, Samples
from .generate_rows import MAIN_ROW, PROMISES, REFERENCE, Promise, Row

RATE = "tokens/s"
RATIO = "x"


def report_rows(company: Company) -> None:
    add = company.report.add
    for row in company.options.rows:
        for name, samples in company.samples[row.name].items():
            add(f"{row.name}.{name}", rates(row, samples), RATE)
            if row.output > 1:
                add(f"{row.name}_prefill.{name}", samples.prefill, RATE)
                if samples.decode:
                    add(f"{row.name}_decode.{name}", samples.decode, RATE)
            if samples.ttft_ms:
                add(f"{row.name}_ttft.{name}", samples.ttft_ms, "ms")


def rates(row: Row, samples: Samples) -> list[float]:
    """What targets are about: the rate of output tokens, or where there is but one, that of the prompt's."""
    return samples.rate if row.output > 1 else samples.prefill


def report_agreement(company: Company) -> None:
    """How often contenders begin an answer with the same token as we in bfloat16: whether they compute one model."""
    same: dict[str, list[bool]] = {}
    for kept in company.samples.values():
        base = kept.get(OURS + REFERENCE)
        for name, samples in kept.items():
            if base is not None and samples is not base:
                pairs = zip(samples.first_tokens, base.first_tokens, strict=True)
                same.setdefault(name, []).extend(theirs == ours for theirs, ours in pairs)
    for name, agreed in same.items():
        company.report.add(f"same_first_token.{name}", [sum(agreed) / len(agreed)], "share")


def report_promises(company: Company) -> None:
    for promise in PROMISES:
        found = _ratios(company, promise)
        if isinstance(found, str):
            company.report.miss_target(promise.name, promise.goal, RATIO, found)
        else:
            company.report.add_target(promise.name, promise.goal, RATIO, found)


def _ratios(company: Company, promise: Promise) -> list[float] | str:
    """Our rate over the peer's, one for each round, or why there is none."""
    row = company.row(promise.row)
    if row is None:
        return f"the row {promise.row} was left out"
    weights = promise.weights or row.weights[0]
    if weights not in row.weights:
        return f"the row {row.name} was not run in {weights}"
    ours, kept = OURS + weights, company.samples[row.name]
    for name in (ours, promise.peer):
        if why := company.why_lost(name):
            return why
    return [a / b for a, b in zip(rates(row, kept[ours]), rates(row, kept[promise.peer]), strict=True)]


def report_overhead(company: Company) -> None:
    """Where the time goes at batch 16: what the replica does not compute, while there is something to, is overhead."""
    name, goal, unit = "engine_overhead_share_batch16", 0.05, "share"
    row = company.row(MAIN_ROW)
    if row is None:
        company.report.miss_target(name, goal, unit, f"the row {MAIN_ROW} was left out", at_most=True)
        return
    ours = OURS + row.weights[0]
    if why := company.why_lost(ours):
        company.report.miss_target(name, goal, unit, why, at_most=True)
        return
    times = company.samples[row.name][ours].times
    for part in ("busy", "step", "compute", "plan"):
        per_step = [1e3 * getattr(one, f"{part}_seconds") / one.steps for one in times]
        company.report.add(f"batch16_{part}_per_step", per_step, "ms")
    shares = [max(0.0, 1 - one.compute_seconds / one.busy_seconds) for one in times]
    company.report.add_target(name, goal, unit, shares, at_most=True)


def report_memory(company: Company) -> None:
    """The most memory that each held at once, all its processes together, caches included."""
    for name, contender in company.contenders.items():
        company.report.add(f"peak_memory.{name}", [contender.peak_bytes / (1 << 20)], "MiB")
