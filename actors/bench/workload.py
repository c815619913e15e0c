"""The load of `callboard bench serve`: which prompts, how long the answers, and when each comes.

All of it is drawn from a seed, so two runs send the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from .errors import DatasetInvalid

# How widely synthetic lengths scatter: the standard deviation of their logarithm. Half of them lie between two thirds
# of the median and one and a half times it, as those of conversations do.
SPREAD = 0.6
_USERS = ("human", "user")
_MODELS = ("gpt", "assistant", "chatgpt", "model")


@dataclass(frozen=True)
class Asked:
    """One request: its prompt, and how many tokens answer it."""

    prompt_ids: tuple[int, ...]
    output: int


@dataclass(frozen=True)
class Lengths:
    """Mean lengths in tokens; a request is `longest` tokens at most, prompt and answer together."""

    prompt: int
    output: int
    longest: int


def poisson_arrivals(rate: float, count: int, seed: str) -> list[float]:
    """Seconds after the start at which `count` requests come, `rate` a second on average and each when it likes: the
    times between them are exponentially distributed."""
    numbers = random.Random(seed)
    times: list[float] = []
    now = 0.0
    for _ in range(count):
        now += numbers.expovariate(rate)
        times.append(now)
    return times


def synthetic(count: int, lengths: Lengths, vocab_size: int, seed: str) -> list[Asked]:
    """Random tokens, in log-normal lengths around the means."""
    numbers = random.Random(seed)

    def length(mean: int, most: int) -> int:
        # The mean of a log-normal is exp(mu + sigma^2 / 2).
        drawn = numbers.lognormvariate(math.log(mean) - SPREAD**2 / 2, SPREAD)
        return min(max(1, round(drawn)), most)

    asked: list[Asked] = []
    for _ in range(count):
        output = length(lengths.output, lengths.longest - 1)
        prompt = length(lengths.prompt, lengths.longest - output)
        asked.append(Asked(tuple(numbers.randrange(vocab_size) for _ in range(prompt)), output))
    return asked


class _Turn(msgspec.Struct, frozen=True):
    who: str = msgspec.field(name="from", default="")
    text: str = msgspec.field(name="value", default="")


class _Conversation(msgspec.Struct, frozen=True):
    conversations: tuple[_Turn, ...] = ()


def read_sharegpt(path: Path) -> list[tuple[str, str]]:
    """The first question and its answer of each conversation that has both, from a file in ShareGPT's format: a JSON
    list of `{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]}`.

    Raises DatasetInvalid.
    """
    try:
        conversations = msgspec.json.decode(path.read_bytes(), type=list[_Conversation])
    except OSError as error:
        raise DatasetInvalid(f"the data set {path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise DatasetInvalid(
            f"{path} is no data set in ShareGPT's format: {error}",
            hint='it is a JSON list of {"conversations": [{"from": "human", "value": "..."}, ...]}',
        ) from error
    pairs: list[tuple[str, str]] = []
    for conversation in conversations:
        question, answer = (*conversation.conversations, _Turn(), _Turn())[:2]
        if question.who in _USERS and answer.who in _MODELS and question.text and answer.text:
            pairs.append((question.text, answer.text))
    if not pairs:
        raise DatasetInvalid(f"no conversation in {path} begins with a question and its answer")
    return pairs


def from_pairs(
    pairs: Sequence[tuple[str, str]], count: int, longest: int, encode: Callable[[str], list[int]], seed: str
) -> list[Asked]:
    """`count` requests drawn from questions and answers, whose lengths they take; what is over `longest` tokens is
    passed over. Where there are fewer, they come again. Raises DatasetInvalid where none is short enough."""
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    asked: list[Asked] = []
    for at in order:
        if len(asked) == count:
            break
        question, answer = pairs[at]
        request = Asked(tuple(encode(question)), len(encode(answer)))
        if request.prompt_ids and request.output and len(request.prompt_ids) + request.output <= longest:
            asked.append(request)
    if not asked:
        raise DatasetInvalid(f"no conversation of the data set fits into {longest} tokens")
    return [asked[at % len(asked)] for at in range(count)]
