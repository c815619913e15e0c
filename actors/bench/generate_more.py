"""What our engine is measured in by itself: second turns, a busy neighbour, exactness, the quality of its formats."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from .contenders import Contender, busy_core
from .errors import ContenderFailed
from .generate_company import OURS, Company
from .generate_orders import MeasurePerplexity, PerplexityAnswer, SecondTurn, SecondTurnAnswer
from .generate_report import RATE, RATIO
from .generate_rows import MAIN_ROW, REFERENCE, Row
from .sample_text import sample_texts

# What a second turn adds to a conversation.
MORE_TOKENS = 24
# A format's perplexity over bfloat16's is to be this at most.
PERPLEXITY_GOALS = {"int8": 1.01, "int4": 1.05}


def second_turn(company: Company) -> None:
    """Time to the first token of a follow-up whose session kept the history, over that of a cold prompt as long."""
    name, goal = "second_turn_ttft_ratio", 0.1
    row, ours = _main(company)
    if ours is None:
        company.report.miss_target(name, goal, RATIO, _why_no_main(company, row), at_most=True)
        return
    answers: list[SecondTurnAnswer] = []
    try:
        for number in range(company.options.rounds):
            company.step(f"second turn, round {number + 1} of {company.options.rounds}")
            order = SecondTurn(company.options.history, MORE_TOKENS, company.next_seed(), company.vocab_size)
            answers.append(ours.ask(order, SecondTurnAnswer))
    except ContenderFailed as error:
        company.lose(ours.name, error)
        company.report.miss_target(name, goal, RATIO, str(error), at_most=True)
        return
    company.report.add("second_turn_ttft", [answer.warm_ms for answer in answers], "ms")
    company.report.add("second_turn_cold_ttft", [answer.cold_ms for answer in answers], "ms")
    company.report.add_target(name, goal, RATIO, [each.warm_ms / each.cold_ms for each in answers], at_most=True)


def contended(company: Company) -> None:
    """Throughput while another process keeps one of our cores busy, over that of the quiet moment before it."""
    name, goal = "contended_share", 0.45
    found = _two_ways(company, "a busy neighbour", busy_core)
    if isinstance(found, str):
        company.report.miss_target(name, goal, RATIO, found)
        return
    quiet, loud = found
    company.report.add("batch16_contended", loud, RATE)
    company.report.add_target(name, goal, RATIO, [b / a for a, b in zip(quiet, loud, strict=True)])


def deterministic(company: Company) -> None:
    """What batch-invariant arithmetic costs: how many times as long the same batch takes."""
    found = _two_ways(company, "batch-invariant arithmetic", nullcontext, deterministic=True)
    if isinstance(found, str):
        company.report.notes.append(f"the cost of batch-invariant arithmetic was not measured: {found}")
        return
    fast, exact = found
    company.report.add("batch16_deterministic", exact, RATE)
    company.report.add("batch16_deterministic_cost", [a / b for a, b in zip(fast, exact, strict=True)], RATIO)


def perplexity(company: Company) -> None:
    """What a format costs in quality: its perplexity over bfloat16's, on one text, by the engine's own scores."""
    texts = sample_texts(company.options.perplexity_chars, company.options.chunk_chars)
    found: dict[str, float] = {}
    for weights in (REFERENCE, *PERPLEXITY_GOALS):
        ours = company.contenders.get(OURS + weights)
        if ours is None:
            continue
        company.step(f"perplexity in {weights}")
        try:
            found[weights] = ours.ask(MeasurePerplexity(texts), PerplexityAnswer).perplexity
        except ContenderFailed as error:
            company.lose(ours.name, error)
            continue
        company.report.add(f"perplexity.{weights}", [found[weights]], "")
    for weights, goal in PERPLEXITY_GOALS.items():
        name = f"{weights}_ppl_ratio"
        missing = [each for each in (REFERENCE, weights) if each not in found]
        if missing:
            why = company.why_lost(OURS + missing[0])
            company.report.miss_target(name, goal, RATIO, why, at_most=True)
        else:
            company.report.add_target(name, goal, RATIO, [found[weights] / found[REFERENCE]], at_most=True)


def _main(company: Company) -> tuple[Row | None, Contender | None]:
    """The row of 16, and our engine in the format that is held against the targets there."""
    row = company.row(MAIN_ROW)
    return row, company.contenders.get(OURS + row.weights[0]) if row is not None else None


def _why_no_main(company: Company, row: Row | None) -> str:
    return f"the row {MAIN_ROW} was left out" if row is None else company.why_lost(OURS + row.weights[0])


def _two_ways(
    company: Company, what: str, around: Callable[[], AbstractContextManager[None]], *, deterministic: bool = False
) -> tuple[list[float], list[float]] | str:
    """Our rates in the row of 16, as it is and in another way, or why there are none."""
    row, ours = _main(company)
    if row is None or ours is None:
        return _why_no_main(company, row)
    plain: list[float] = []
    other: list[float] = []
    try:
        for number in range(company.options.rounds):
            company.step(f"{what}, round {number + 1} of {company.options.rounds}")
            answer = company.batch(ours, row, output=row.output, seed=company.next_seed())
            plain.append(row.size * row.output / answer.seconds)
            seed = company.next_seed()
            with around():
                answer = company.batch(ours, row, output=row.output, seed=seed, deterministic=deterministic)
            other.append(row.size * row.output / answer.seconds)
    except ContenderFailed as error:
        company.lose(ours.name, error)
        return str(error)
    return plain, other
