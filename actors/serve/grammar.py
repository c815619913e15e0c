"""Structured output: which tokens a grammar allows at each place of an answer, through xgrammar (arXiv:2411.15100).

A grammar is compiled once for a tokenizer; each answer has a state of its own, which is nothing but what its tokens
make of it, so replaying them restores it after a preemption or on another replica.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ...runtime.errors import RequestInvalid
from ...schemas.serve import Grammar, GrammarKind
from ..models.tokenizer import Tokenizer
from .errors import GrammarFailed
from .grammar_pattern import check_anchors
from .grammar_schema import prepare_schema
from .grammar_words import has_words

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar
    from xgrammar import Grammar as XGrammar

MAX_GRAMMAR_BYTES = 64 << 10
CACHE_BYTES = 128 << 20
# Of a thread's own computing time. Usual grammars take well under a millisecond a token.
FOLLOW_SECONDS = 2.0
FOLLOW_SECONDS_A_TOKEN = 0.01
TRY_OUT_TOKENS = 64
TRY_OUT_SECONDS = 0.5
# Between two tokens of JSON. Without a bound a model that has nothing to say says spaces for ever.
MAX_WHITESPACE = 32
# Vocabularies whose compilers are kept in one process.
MAX_COMPILERS = 4

_vocabularies: weakref.WeakKeyDictionary[Tokenizer, bytes] = weakref.WeakKeyDictionary()
_compilers: dict[tuple[bytes, int], GrammarCompiler] = {}
_compilers_lock = threading.Lock()


class GrammarCompiler:
    """Compiles grammars for one tokenizer and a model whose logits have `vocab_size` entries.

    Safe to use from several threads. What was compiled is kept, up to `CACHE_BYTES`.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int = 0) -> None:
        import xgrammar

        vocab = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.vocab_size = vocab_size or tokenizer.vocab_size
        # No stop tokens here: which end an answer is the request's matter, and is given to its matcher.
        info = xgrammar.TokenizerInfo(
            vocab[: self.vocab_size], xgrammar.VocabType.RAW, vocab_size=self.vocab_size, stop_token_ids=[]
        )
        # One thread: compiling is short, and the others belong to the step that is being computed.
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._compiled: dict[Grammar, CompiledGrammar] = {}
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """RequestInvalid, with the reason, for one that is malformed, too large, or that nothing can satisfy."""
        with self._lock:
            compiled = self._compiled.get(grammar)
        if compiled is None:  # without the lock: it may take a second, and others need not wait for it
            try:
                compiled = self._compile(grammar)
            except (RuntimeError, ValueError) as error:
                raise RequestInvalid(f"the grammar ({grammar.kind}) cannot be used: {_reason(error)}") from error
        with self._lock:
            self._compiled.pop(grammar, None)
            self._compiled[grammar] = compiled  # the one used last stands last
            self._shrink()
        return compiled

    def start(self, grammar: Grammar, stop_ids: Iterable[int], generated: Iterable[int] = ()) -> GrammarState:
        """The state of an answer that so far consists of `generated`. RequestInvalid, GrammarFailed."""
        state = GrammarState(self.compile(grammar), self.vocab_size, sorted(stop_ids))
        for token in generated:
            state.accept(token)
        return state

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        if not _is_unicode(grammar.text):
            raise ValueError("it holds half a character (a lone surrogate)")
        if len(grammar.text.encode()) > MAX_GRAMMAR_BYTES:
            raise ValueError(f"it is longer than {MAX_GRAMMAR_BYTES >> 10} KiB")
        source = _source(grammar)
        if not has_words(str(source)):
            raise ValueError("nothing that comes to an end satisfies it")
        compiled = self._compiler.compile_grammar(source)
        self._try_out(compiled)
        return compiled

    def _try_out(self, compiled: CompiledGrammar) -> None:
        """Follow the grammar for a while, anywhere. ValueError if that takes too long: it is ambiguous."""
        state = GrammarState(compiled, self.vocab_size, [], seconds=TRY_OUT_SECONDS, seconds_a_token=0.0)
        chance = random.Random(0)
        for _ in range(TRY_OUT_TOKENS):
            if state.ended or state.is_stuck:
                return
            if state.is_slow:
                raise ValueError("it takes too long to follow: say the same with fewer ways to read one text")
            allowed = np.unpackbits(state.mask().view(np.uint8), bitorder="little").nonzero()[0]
            state.accept(int(allowed[chance.randrange(len(allowed))]))

    def _shrink(self) -> None:
        """Let go what was used longest ago."""
        total = sum(compiled.memory_size_bytes for compiled in self._compiled.values())
        while total > CACHE_BYTES and len(self._compiled) > 1:
            total -= self._compiled.pop(next(iter(self._compiled))).memory_size_bytes


def _source(grammar: Grammar) -> XGrammar:
    """RuntimeError or ValueError, with the reason, for one that is malformed."""
    from xgrammar import Grammar as XGrammar

    if grammar.kind in (GrammarKind.JSON, GrammarKind.JSON_SCHEMA):
        schema = prepare_schema(grammar.text) if grammar.kind is GrammarKind.JSON_SCHEMA else "{}"
        text = str(
            XGrammar.from_json_schema(
                schema,
                any_whitespace=not grammar.compact,
                max_whitespace_cnt=None if grammar.compact else MAX_WHITESPACE,
            )
        )
        # Strings of bounded length would let control characters through, which are no JSON.
        return XGrammar.from_ebnf(text.replace(r"[^\"\\\r\n]", r"[^\0-\x1f\"\\\r\n]"))
    if grammar.kind is GrammarKind.REGEX:
        check_anchors(grammar.text)
        return XGrammar.from_regex(grammar.text)
    return XGrammar.from_ebnf(choice_grammar(grammar.text) if grammar.kind is GrammarKind.CHOICE else grammar.text)


def grammar_compiler(tokenizer: Tokenizer, vocab_size: int = 0) -> GrammarCompiler:
    """The process's compiler for this vocabulary: what intake has checked, the replica need not compile again.

    `vocab_size`: entries of the model's logits (0: as many as the tokenizer has tokens).
    """
    with _compilers_lock:
        key = _vocabulary(tokenizer), vocab_size or tokenizer.vocab_size
        compiler = _compilers.pop(key, None) or GrammarCompiler(tokenizer, vocab_size)
        _compilers[key] = compiler  # the one used last stands last
        if len(_compilers) > MAX_COMPILERS:
            del _compilers[next(iter(_compilers))]
    return compiler


def _vocabulary(tokenizer: Tokenizer) -> bytes:
    """What tells its tokens from those of another."""
    digest = _vocabularies.get(tokenizer)
    if digest is None:
        hashed = hashlib.sha256()
        for token in range(tokenizer.vocab_size):
            token_bytes = tokenizer.token_bytes(token)
            hashed.update(len(token_bytes).to_bytes(4, "little") + token_bytes)
        digest = _vocabularies[tokenizer] = hashed.digest()
    return digest


def check_grammar(grammar: Grammar, tokenizer: Tokenizer, vocab_size: int = 0) -> None:
    """RequestInvalid, with the reason, for a grammar that no answer of this tokenizer's tokens can satisfy."""
    try:
        state = grammar_compiler(tokenizer, vocab_size).start(grammar, ())
        state.mask()
    except GrammarFailed as error:
        raise RequestInvalid(f"the grammar ({grammar.kind}) cannot be used: {error}") from error
    if state.ended:
        raise RequestInvalid(f"the grammar ({grammar.kind}) cannot be used: it allows nothing but the empty text")


class GrammarState:
    """Where one answer stands in its grammar.

    `ended`: the answer is complete and nothing but its end may follow; then there is no next token to mask. A stop
    token may be drawn where the answer is complete; without stop ids (an answer that is to ignore them) it goes on for
    as long as the grammar allows.

    A grammar that can read one text in very many ways takes ever longer to follow, while every other sequence waits:
    `seconds` of computing, and `seconds_a_token` for each token that was accepted, are all it may take.
    """

    def __init__(
        self,
        compiled: CompiledGrammar,
        vocab_size: int,
        stop_ids: list[int],
        *,
        seconds: float = FOLLOW_SECONDS,
        seconds_a_token: float = FOLLOW_SECONDS_A_TOKEN,
    ) -> None:
        import xgrammar

        # The stop tokens are this answer's own; None leaves the vocabulary's, of which there are none.
        self._matcher = xgrammar.GrammarMatcher(compiled, override_stop_tokens=stop_ids or None)
        self._mask = np.zeros(-(-vocab_size // 32), np.int32)
        self._vocabulary = _bits(vocab_size, range(vocab_size))
        self._not_stop = self._vocabulary & ~_bits(vocab_size, stop_ids)
        self._seconds_left = seconds
        self._seconds_a_token = seconds_a_token
        self._update()

    def mask(self) -> np.ndarray:
        """Bit t % 32 of word t // 32: whether token t may come next. int32, overwritten by the next change.

        GrammarFailed where no token may: the grammar needs bytes that no token of this model has.
        """
        if self.is_stuck:
            raise GrammarFailed("the model has no token with which the grammar could go on")
        if self.is_slow:
            raise GrammarFailed("the grammar takes too long to follow: it can read this text in too many ways")
        return self._mask

    def accept(self, token: int) -> None:
        """Go past a token. GrammarFailed if the grammar does not allow it here."""
        if not self.try_accept(token):
            raise GrammarFailed(f"the grammar does not allow the token {token} here")

    def try_accept(self, token: int) -> bool:
        """Go past a token that may be refused: then nothing changes."""
        if self.ended or not self._allows(token):
            return False
        began = time.thread_time()
        if not self._matcher.accept_token(token):
            return False
        self._seconds_left += self._seconds_a_token - (time.thread_time() - began)
        self._update()
        return True

    def guess(self, token: int) -> bool:
        """Go past a token after which another one could be drawn. False, and nothing changes, for any other."""
        if self.is_slow or not self.try_accept(token):
            return False
        if self.ended or self.is_stuck or self.is_slow:
            self.rollback(1)
            return False
        return True

    def rollback(self, num_tokens: int) -> None:
        self._matcher.rollback(num_tokens)
        self._update()

    def _allows(self, token: int) -> bool:
        return bool(int(self._mask[token >> 5]) >> (token & 31) & 1)

    def _update(self) -> None:
        self.ended = self.is_stuck = False
        if self._matcher.is_terminated():
            self.ended = True
            return
        began = time.thread_time()
        self._matcher.fill_next_token_bitmask(self._mask)
        self._seconds_left -= time.thread_time() - began
        self._mask &= self._vocabulary  # bits past the last token may be set
        if self._matcher.is_completed():
            self.ended = not np.any(self._mask & self._not_stop)
        else:
            self.is_stuck = not self._mask.any()

    @property
    def is_slow(self) -> bool:
        return self._seconds_left < 0


def _bits(vocab_size: int, tokens: Iterable[int]) -> np.ndarray:
    """A mask in which these tokens are set: int32 [ceil(vocab_size / 32)]."""
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view("<i4")


def choice_grammar(text: str) -> str:
    """EBNF for one of several strings, given as a JSON array. ValueError if it is none."""
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, list) or not options or not all(isinstance(option, str) for option in options):
        raise ValueError("a choice is a JSON array of strings, at least one")
    if not any(options):
        raise ValueError("a choice between empty strings leaves nothing to say")
    if not all(_is_unicode(option) for option in options):
        raise ValueError("a string holds half a character (a lone surrogate)")
    return "root ::= " + " | ".join(_quoted(option) for option in dict.fromkeys(options))


def _quoted(text: str) -> str:
    return '"' + "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08X}" for c in text) + '"'


def _is_unicode(text: str) -> bool:
    return not any(0xD800 <= ord(character) < 0xE000 for character in text)


def _reason(error: Exception) -> str:
    """What is wrong, without the place in xgrammar's sources that says so."""
    text = " ".join(str(error).split())
    if text.startswith("[") and ".cc:" in text:
        text = text.split(".cc:", 1)[1].partition(":")[2].strip()
    return text.partition("The JSON string is:")[0].strip() or type(error).__name__
