"""`callboard bench generate`: our engine beside its peers, offline: batches of random prompts, the likeliest tokens.

Every contender is a process of its own. They take turns within each round, one at a time, and a ratio is taken in each
round, so what the machine does meanwhile touches all alike. A figure is the median of its rounds.

A row is run twice by each contender in a round: with one output token, which is its prefill, and in full. What it
generated over the time of the full run is its rate, and the one that targets are about; the rate of decoding alone is
taken from the difference of the two.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import msgspec

from ...runtime.errors import ConfigError
from .contenders import Contender, peer_program
from .errors import BenchFailed, ContenderFailed
from .generate_company import OURS, Company, Samples, Step
from .generate_more import PERPLEXITY_GOALS, contended, deterministic, perplexity, second_turn
from .generate_report import report_agreement, report_memory, report_overhead, report_promises, report_rows
from .generate_rows import KV_CACHES, REFERENCE, GenerateOptions, Row
from .machine import machine_facts
from .model_folder import model_folder
from .report import Report

# Decoded in a warm-up, after which what is compiled or allocated on first use is there.
WARM_UP_OUTPUT = 4
# What contenders make room for beyond the longest row.
ROOM_TOKENS = 64


def run(options: GenerateOptions, step: Step) -> Report:
    """Measure all of it. `step` hears what is being done.

    Peers that fail are noted, and their targets say why. Raises ModelDamaged, ConfigError for options that our engine
    does not have, ContenderFailed where none of our own engines started.
    """
    ours = list(_ours(options))  # before anything that takes time: options may be wrong
    from ..models.loading import load_config

    report = Report("generate", machine_facts("torch", "transformers"))
    report.machine |= {"model": options.model.stem, "cache_mib": options.cache_mib, "engine": dict(options.engine)}
    company = Company(options, load_config(options.model).vocab_size, report, step)
    with ExitStack() as stack:
        for contender in ours:
            company.start(contender, stack)
        if not company.contenders:
            raise ContenderFailed("our own engine did not start", hint=report.notes[0])
        kernels = {contender.ready.kernels for contender in company.contenders.values()}
        report.machine["kernels"] = ", ".join(sorted(kernels))
        for contender in _peers(company):
            company.start(contender, stack)
            report.machine["versions"] |= contender.ready.versions
        for row in options.rows:
            _warm_up(company, row)
        for number in range(options.rounds):
            for row in options.rows:
                _round(company, row, number)
        report_rows(company)
        report_agreement(company)
        report_promises(company)
        report_overhead(company)
        if not options.only_rows:
            second_turn(company)
            contended(company)
            if options.deterministic:
                deterministic(company)
            perplexity(company)
        report_memory(company)
    return report


def _ours(options: GenerateOptions) -> Iterator[Contender]:
    """Our engine in every format that a row or a perplexity asks for."""
    from ..serve.engine import EngineConfig

    of_rows = [weights for row in options.rows for weights in row.weights]
    of_more = [] if options.only_rows else [REFERENCE, *PERPLEXITY_GOALS]
    for weights in dict.fromkeys([*of_rows, *of_more]):
        settings: dict[str, Any] = {
            "model": str(options.model),
            "dtype": "float32" if weights == "float32" else "bfloat16",
            "weights": weights,
            "kv_cache": KV_CACHES.get(weights, ""),
            "cache_mib": options.cache_mib,
            **options.engine,
        }
        try:
            msgspec.convert(settings, EngineConfig)
        except msgspec.ValidationError as error:
            raise ConfigError(f"the engine cannot be set up so: {error}", hint="see --engine and --weights") from error
        config = msgspec.json.encode(settings).decode()
        yield Contender(OURS + weights, [sys.executable, "-P", "-m", f"{__package__}.generate_ours", config])


def _peers(company: Company) -> Iterator[Contender]:
    """The peers that are there and have something to do."""
    options = company.options
    wanted = [name for name in options.peers if any(name in row.peers for row in options.rows)]
    length = max(row.prompt + row.output for row in options.rows) + ROOM_TOKENS
    for name in wanted:
        model = options.model
        if name != "llamacpp":
            company.step("the model as the peers read it")
            try:
                model = model_folder(options.model)
            except BenchFailed as error:
                company.lose(name, error)
                continue
        elif model.is_dir():
            company.lose(name, BenchFailed("llama.cpp reads GGUF files, and the model is a folder"))
            continue
        arguments = [str(model), str(options.cache_mib), str(length)]
        yield Contender(name, [str(options.peers[name]), peer_program(name), *arguments])


def _warm_up(company: Company, row: Row) -> None:
    for contender in company.of(row):
        company.step(f"{row.name}, {contender.name} warms up")
        try:
            company.batch(contender, row, output=min(row.output, WARM_UP_OUTPUT), seed=company.next_seed())
        except ContenderFailed as error:
            company.lose(contender.name, error)


def _round(company: Company, row: Row, number: int) -> None:
    """Everyone runs one row, in turns that go the other way in the next round."""
    contenders = company.of(row)
    prefill_seed, seed = company.next_seed(), company.next_seed()
    for contender in contenders if number % 2 == 0 else reversed(contenders):
        company.step(f"{row.name}, {contender.name}, round {number + 1} of {company.options.rounds}")
        try:
            prefill = company.batch(contender, row, output=1, seed=prefill_seed)
            full = company.batch(contender, row, output=row.output, seed=seed) if row.output > 1 else prefill
        except ContenderFailed as error:
            company.lose(contender.name, error)
            continue
        samples = company.samples[row.name].setdefault(contender.name, Samples())
        samples.prefill.append(row.size * row.prompt / prefill.seconds)
        samples.rate.append(row.size * row.output / full.seconds)
        if row.output > 1 and full.seconds > prefill.seconds:
            samples.decode.append(row.size * (row.output - 1) / (full.seconds - prefill.seconds))
        if full.first_s:
            samples.ttft_ms.append(1e3 * statistics.median(full.first_s))
        if full.times is not None:
            samples.times.append(full.times)
        samples.first_tokens += full.first_tokens
