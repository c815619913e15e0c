"""How an answer in words is compared with the right ones: as SQuAD does (Rajpurkar et al. 2016), or by its number."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
# Where GSM8K (Cobbe et al. 2021) puts the number that is the answer.
_MARK = "####"


def normalised(answer: str) -> str:
    """Without case, punctuation, articles and needless space."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(said: str, answers: Sequence[str]) -> bool:
    return any(normalised(said) == normalised(answer) for answer in answers)


def token_f1(said: str, answers: Sequence[str]) -> float:
    """The harmonic mean of how many of the said words are right and how many of the right ones were said; of the answer
    for which it is highest."""
    return max(_f1(normalised(said).split(), normalised(answer).split()) for answer in answers)


def _f1(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    same = sum((Counter(said) & Counter(right)).values())
    return 2 * same / (len(said) + len(right))


def last_number(answer: str) -> str | None:
    """The number behind ####, else the last one, in one way of writing it; None where there is none."""
    _, mark, behind = answer.rpartition(_MARK)
    found = _NUMBER.findall(behind)
    if mark and found:
        return _plain(found[0])
    found = _NUMBER.findall(answer)
    return _plain(found[-1]) if found else None


def _plain(number: str) -> str:
    """7, 7.0, 7.00 and 0,007 are one number."""
    sign = "-" if number.startswith("-") else ""
    whole, _, part = number.lstrip("-").replace(",", "").partition(".")
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    written = f"{whole}.{part}" if part else whole
    return written if written == "0" else sign + written
