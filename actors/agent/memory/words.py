"""What of a text is indexed, and what of a question is looked for.

SQLite's tokenizer takes letters between other characters for words, so scripts that are written without spaces would be
one word a sentence. Their characters are therefore indexed one by one.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")
# Thai and Lao, Burmese, Khmer, kana, ideographs. Hangul is written with spaces.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff])"
)

# More words of a question change nothing but its cost.
MAX_QUERY_WORDS = 64


def indexed(text: str) -> str:
    """What the index is given for a text."""
    return _UNSPACED.sub(r" \1 ", text)


def match_of(query: str) -> str:
    """An FTS5 expression that finds texts with any of the query's words; "" where it has none.

    Words stand in quotes, so nothing in a query is taken for an operator.
    """
    words = dict.fromkeys(word.lower() for word in _WORD.findall(indexed(query)))
    return " OR ".join(f'"{word}"' for word in list(words)[:MAX_QUERY_WORDS])
