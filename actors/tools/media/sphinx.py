"""Speech of which the words are known, by PocketSphinx: its models are in its wheel, so nothing is fetched.

It hears right only where few words can come: a list of words, a grammar, or keywords in speech that is otherwise let
pass. English as the United States speak it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ToolError
from .grammar_size import grammar_words
from .models import importing
from .sounds import Sound, pcm16, resampled

if TYPE_CHECKING:
    import numpy as np
    from pocketsphinx import Decoder

RATE = 16_000
_FRAMES_A_SECOND = 100
_SEARCH = "call"
# The decoder writes rules out where they are used, and twice where `+` follows: a few lines can become billions.
MAX_WORDS = 20_000
# Wide beams cost little where few words can come. The second pass, over the lattice of the first, is for language
# models: with a grammar it loses words. A word must be a little better than none at all.
_OPTIONS = {
    "beam": 1e-80,
    "pbeam": 1e-80,
    "wbeam": 1e-60,
    "maxhmmpf": -1,
    "bestpath": False,
    "wip": 0.2,
}
# The models have heard rooms, not the silence between the words of a synthesizer, which is all zeros.
_LOUDEST = 0.6
_ROOM_NOISE = 0.005
_SILENCE = 0.003  # a loudest sample below this is no speech, and noise made loud is heard as some word
# How sure it must be to hear a keyword, by its number of letters: short ones are heard in anything, long ones seldom
# reach much.
_KEYWORD_THRESHOLDS = ((5, 1e-5), (8, 1e-20), (11, 1e-30))
_LONG_KEYWORD_THRESHOLD = 1e-40
# Silence, breath, and the joints of a grammar.
_NO_WORD = re.compile(r"^(<.*>|\[.*\]|\+\+.*\+\+|\(NULL\))$")
_VARIANT = re.compile(r"\(\d+\)$")  # the dictionary's second pronunciation of a word


@dataclass(frozen=True)
class HeardWord:
    """A word, or a keyword's phrase, with the seconds from and to which it was heard."""

    text: str
    start: float
    end: float


class SphinxRecognizer:
    """One decoder, kept between calls. Not for two calls at once."""

    def __init__(self) -> None:
        """MissingExtra where PocketSphinx is not installed."""
        with importing("transcribe"):
            from pocketsphinx import Decoder
        self._decoder: Decoder = Decoder(lm=None, samprate=RATE, loglevel="FATAL", **_OPTIONS)

    def hear_words(self, sound: Sound, words: Sequence[str]) -> list[HeardWord]:
        """What was said, of these words or phrases in any number and order. ToolError for one it does not know."""
        phrases = [self._known(phrase) for phrase in words]
        choice = " | ".join(phrases)
        return self.hear_grammar(sound, f"#JSGF V1.0; grammar words; public <words> = ( {choice} )+ ;")

    def hear_grammar(self, sound: Sound, grammar: str) -> list[HeardWord]:
        """What was said, by a grammar in JSGF (https://www.w3.org/TR/jsgf/). ToolError where it is none."""
        if grammar_words(grammar) > MAX_WORDS:
            raise ToolError(
                f"the grammar is too large: written out it would have over {MAX_WORDS:,} words",
                hint="take fewer rules within rules, and fewer of `+` within brackets",
            )
        # A weight where the decoder expects none ends its whole process.
        if re.search(r"/\s*[\d.]", grammar):
            raise ToolError("a grammar with weights is not read here", hint="leave out what is between two '/'")
        if re.search(r"\bimport\b", grammar):
            raise ToolError("a grammar cannot import others", hint="write the rules out")
        self._check_words_of(grammar)
        used, made = set(re.findall(r"<([^<>]+)>", grammar)), set(re.findall(r"<([^<>]+)>\s*=", grammar))
        if missing := sorted(used - made - {"NULL", "VOID"}):
            raise ToolError(f"the grammar uses <{missing[0]}>, which it does not define", hint="add a rule for it")
        try:
            self._decoder.add_jsgf_string(_SEARCH, grammar)
        except (ValueError, RuntimeError) as error:
            raise ToolError(
                f"that is no grammar: {error}",
                hint="JSGF is wanted, as in: #JSGF V1.0; grammar lights; public <order> = turn ( on | off );",
            ) from error
        return self._decode(sound)

    def hear_keywords(self, sound: Sound, keywords: Sequence[str]) -> list[HeardWord]:
        """Each place where one of these phrases is heard. ToolError for a word it does not know."""
        with tempfile.NamedTemporaryFile("w", suffix=".kws", encoding="utf-8") as file:
            for phrase in map(self._known, keywords):
                file.write(f"{phrase} /{_threshold(phrase):g}/\n")
            file.flush()
            self._decoder.add_kws(_SEARCH, file.name)
        return self._decode(sound)

    def _known(self, phrase: str) -> str:
        """The phrase as the dictionary writes it."""
        words = re.findall(r"[a-z0-9'.-]+", phrase.lower())
        if not words or re.sub(r"[a-z0-9'.\s-]", "", phrase.lower()):
            raise ToolError(f"'{phrase}' is no English word or phrase", hint="write numbers and signs out as words")
        self._check(words)
        return " ".join(words)

    def _check(self, words: Sequence[str]) -> None:
        unknown = sorted({word for word in words if not self._decoder.lookup_word(word)})
        if unknown:
            raise ToolError(
                f"the dictionary does not have: {', '.join(unknown)}",
                hint="it has 134,000 English words, in small letters; write numbers and names as common words",
            )

    def _check_words_of(self, grammar: str) -> None:
        """The decoder itself would leave out what it does not know, and tell nobody."""
        body = re.sub(r"//[^\n]*|/\*.*?\*/|<[^>]*>|\{[^}]*\}", " ", grammar, flags=re.DOTALL)
        words = []
        for statement in body.split(";"):
            text = statement.strip()
            if text and not text.startswith("#JSGF") and not re.match(r"grammar\s", text):
                words += re.findall(r"[^\s|()\[\]*+=\"]+", re.sub(r"^public\b", "", text))
        self._check(words)

    def _decode(self, sound: Sound) -> list[HeardWord]:
        samples = resampled(sound, RATE).samples
        decoder = self._decoder
        try:
            if abs(samples).max(initial=0.0) < _SILENCE:
                return []
            decoder.activate_search(_SEARCH)
            decoder.start_utt()
            # The whole at once: the decoder then knows how loud it all is before it begins.
            decoder.process_raw(pcm16(_in_a_room(samples)).tobytes(), no_search=False, full_utt=True)
            decoder.end_utt()
            return [_heard(piece) for piece in decoder.seg() or () if not _NO_WORD.match(piece.word)]
        finally:
            decoder.remove_search(_SEARCH)


def _threshold(phrase: str) -> float:
    return next((value for length, value in _KEYWORD_THRESHOLDS if len(phrase) <= length), _LONG_KEYWORD_THRESHOLD)


def _heard(piece: Any) -> HeardWord:
    start, end = piece.start_frame / _FRAMES_A_SECOND, (piece.end_frame + 1) / _FRAMES_A_SECOND
    return HeardWord(_VARIANT.sub("", piece.word).strip(), start, end)


def _in_a_room(samples: np.ndarray) -> np.ndarray:
    """As loud as its loudest sample allows, over the noise of a quiet room: the same one for the same sound."""
    import numpy as np

    level = samples * (_LOUDEST / float(np.abs(samples).max()))
    return level + np.random.default_rng(0).normal(0.0, _ROOM_NOISE, len(samples))
