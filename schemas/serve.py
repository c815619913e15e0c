"""What clients say to the serving engine and hear from it: requests, answers, adapters, sessions."""

from __future__ import annotations

import enum

import msgspec

from .base import Message, Request, StreamRequest


class FinishReason(enum.StrEnum):
    """Why an answer ended: the model, a stop string or a grammar ended it, or it reached its length."""

    STOP = "stop"
    LENGTH = "length"


class ModelToolCall(msgspec.Struct, frozen=True):
    """A tool call as a model makes it. `id` is the call's own, by which its answer names it; `arguments`: JSON."""

    id: str
    name: str
    arguments: str = "{}"


class OfferedTool(msgspec.Struct, frozen=True):
    """A tool that a model may call. `parameters`: the JSON Schema of its arguments, as JSON."""

    name: str
    description: str = ""
    parameters: str = '{"type": "object"}'


class ChatMessage(msgspec.Struct, frozen=True):
    """One turn of a conversation. `role` is what the model's chat template knows: system, user, assistant, tool.

    `tool_calls`: what an assistant's turn called. `tool_call_id`: the call that a tool's turn answers.
    """

    role: str
    content: str
    tool_calls: tuple[ModelToolCall, ...] = ()
    tool_call_id: str = ""


class Usage(msgspec.Struct, frozen=True):
    """Tokens of the prompt as the model saw it, and tokens generated (the one that ends the turn included).

    `cached_tokens`: how many of the prompt's were found computed already. `drafted_tokens` and `accepted_tokens`:
    guesses of speculative decoding that were verified, and those among them that were right.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Timings(msgspec.Struct, frozen=True):
    """`ttft_ms`: from the request's arrival at the engine to its first token. `tokens_per_s`: the rate of the tokens
    after the first; of a single token, its share of the time to it. `queue_ms`: from the arrival to the first step that
    computes it."""

    ttft_ms: float
    tokens_per_s: float
    queue_ms: float = 0.0


class TokenLogprob(msgspec.Struct, frozen=True):
    """The natural logarithm of a token's probability, and the likeliest tokens at its place, likeliest first.

    Of the model's own distribution: before temperature, penalties, bias, grammar and cuts.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Token(Message, frozen=True, tag="serve.token"):
    """A piece of an answer: whole characters, never part of a stop string.

    `token_ids` are the ids generated since the last piece. Text may lag behind ids (half a character, the possible
    beginning of a stop string), so the last piece may be ids without text. `index` says which of `n` answers it
    belongs to. `logprobs`: one for each of `token_ids` where they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


class Choice(msgspec.Struct, frozen=True):
    """One of several answers to one prompt. `likelihood`: the mean log-probability of its tokens. `stop`: the string of
    the request's `stop` that ended it, "" for none."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    likelihood: float | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ModelToolCall, ...] = ()
    stop: str = ""


class Completion(Message, frozen=True, tag="serve.completion"):
    """The end of an answer, and all of its text.

    `choices`: all `n` answers, best first where `best_of` chose them, else by index; `text` and `finish_reason` are
    the first one's. `prompt_logprobs`: one for each prompt token but the first, where they were asked for.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    choices: tuple[Choice, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ModelToolCall, ...] = ()
    cost: float = 0.0


class GrammarKind(enum.StrEnum):
    JSON_SCHEMA = "json_schema"
    JSON = "json"  # any JSON value; `text` is empty
    REGEX = "regex"
    EBNF = "ebnf"
    CHOICE = "choice"  # `text` is a JSON array of strings


class Grammar(msgspec.Struct, frozen=True):
    """What an answer must look like: a JSON Schema, a regular expression, a grammar in GBNF, or one of some strings.

    `compact`: JSON with one space after commas and colons and none elsewhere, as models mostly saw it in training; else
    space is free.
    """

    kind: GrammarKind
    text: str = ""
    compact: bool = False


class Generate(StreamRequest[Token, Completion], frozen=True, kw_only=True, tag="serve.generate"):
    """Ask the model to go on from `messages` (through its chat template), from the raw text `prompt`, or from
    `prompt_ids`; give one.

    By default the likeliest token is taken each time, so the same request has the same answer. With `temperature`
    above 0 tokens are drawn, from the `top_k` likeliest (0: all) that hold a share `top_p` of the probability and
    have at least `min_p` times the likeliest one's; the same `seed` draws the same random numbers whatever else is
    being served (None: a new seed each time).

    It ends at the model's own end of turn (unless `ignore_eos`; not before `min_tokens`), before a string of `stop`,
    or at `max_tokens` (None: the engine's default, or what the model's context still holds if that is less).
    RequestInvalid for values that can never be served, Overloaded where the queue is full.

    `repetition_penalty` (1: none) divides positive and multiplies negative logits of every token that occurred, the
    prompt's included; `presence_penalty` and `frequency_penalty` are taken off the logits of generated tokens, once
    and for each occurrence. `logit_bias`: (token id, what is added to its logit).

    `n` answers are streamed; with `best_of` above `n`, that many are computed, none is streamed before the end, and
    the `n` of the highest mean log-probability are the answer. `logprobs`, `prompt_logprobs`: how many of the
    likeliest tokens to report at each place beside the one that stands there (0: only that one; None: nothing).

    `session`: an id that keeps the conversation's keys and values, pinned for `session_ttl_s` after each turn (0: the
    engine's default), so that the next turn computes only what is new. It goes with any prompt, which must still hold
    the whole conversation. `priority`: higher is served first. `client`: who asks; clients of equal priority share
    the engine fairly. `deterministic`: arithmetic that does not depend on what else is in the batch: the same tokens,
    always. `grammar`: what the answer must look like. `adapter`: name of a loaded LoRA adapter. `speculative`: None:
    the engine's setting; False: never guess ahead; True: where the engine can.
    """

    messages: tuple[ChatMessage, ...] = ()
    prompt: str = ""
    model: str = ""
    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    prompt_ids: tuple[int, ...] = ()
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    n: int = 1
    best_of: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    session: str = ""
    session_ttl_s: float = 0.0
    priority: int = 0
    client: str = ""
    deterministic: bool = False
    grammar: Grammar | None = None
    adapter: str = ""
    speculative: bool | None = None
    tools: tuple[OfferedTool, ...] = ()
    tool_choice: str = ""


class Pooling(enum.StrEnum):
    """How the hidden states of a text's tokens become one vector."""

    MEAN = "mean"
    LAST = "last"


class Embeddings(Message, frozen=True, tag="serve.embeddings"):
    """A vector for each text, in the order asked; of length 1 where `normalize` was set."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int


class Embed(Request[Embeddings], frozen=True, kw_only=True, tag="serve.embed"):
    """Ask for a vector that stands for each of `texts`: the final hidden states, pooled over its tokens."""

    texts: tuple[str, ...]
    model: str = ""
    pooling: Pooling = Pooling.MEAN
    normalize: bool = True
    adapter: str = ""
    priority: int = 0
    client: str = ""


class ScoredText(msgspec.Struct, frozen=True):
    """`logprob`: the sum over the continuation's tokens; `is_greedy`: whether each was the likeliest at its place."""

    logprob: float
    num_tokens: int
    is_greedy: bool
    tokens: tuple[TokenLogprob, ...] = ()


class Scores(Message, frozen=True, tag="serve.scores"):
    """`perplexity`: exp of minus the mean log-probability over all scored tokens of all texts."""

    texts: tuple[ScoredText, ...]
    perplexity: float


class Score(Request[Scores], frozen=True, kw_only=True, tag="serve.score"):
    """Ask how likely texts are: each of `continuations` after the context of the same place.

    `contexts` may be empty: then each text is scored from its second token on (the first, if the model has a start
    token). `return_tokens` adds every token's log-probability.
    """

    continuations: tuple[str, ...]
    contexts: tuple[str, ...] = ()
    model: str = ""
    adapter: str = ""
    return_tokens: bool = False
    priority: int = 0
    client: str = ""


class AdapterInfo(msgspec.Struct, frozen=True):
    name: str
    path: str
    rank: int
    num_bytes: int


class Adapters(Message, frozen=True, tag="serve.adapters"):
    """The LoRA adapters that are loaded."""

    adapters: tuple[AdapterInfo, ...]


class LoadAdapter(Request[Adapters], frozen=True, tag="serve.load_adapter"):
    """Load a LoRA adapter in PEFT's format from a folder on the engine's machine; requests may then name it.

    `replace`: in place of the one that has the name, if there is one, once the requests that use it have ended; if the
    new one cannot be loaded, the old one stays.
    """

    name: str
    path: str
    replace: bool = False


class UnloadAdapter(Request[Adapters], frozen=True, tag="serve.unload_adapter"):
    """Forget an adapter, once the requests that use it have ended."""

    name: str


class ListAdapters(Request[Adapters], frozen=True, tag="serve.list_adapters"):
    """Ask which adapters are loaded."""


class SessionClosed(Message, frozen=True, tag="serve.session_closed"):
    """`known`: whether there was such a session."""

    known: bool


class CloseSession(Request[SessionClosed], frozen=True, tag="serve.close_session"):
    """Let go what a session keeps."""

    session: str


class SessionInfo(msgspec.Struct, frozen=True):
    """`num_blocks`: of keys and values that are kept for it, `expires_in_s`: unless another turn comes before."""

    session: str
    num_blocks: int
    expires_in_s: float


class SessionList(Message, frozen=True, tag="serve.session_list"):
    """The conversations that are kept, the one whose last turn is longest ago first."""

    sessions: tuple[SessionInfo, ...]


class ListSessions(Request[SessionList], frozen=True, tag="serve.list_sessions"):
    """Ask which conversations are kept."""


class SessionPinned(Message, frozen=True, tag="serve.session_pinned"):
    """`known`: whether there is such a session."""

    known: bool


class PinSession(Request[SessionPinned], frozen=True, tag="serve.pin_session"):
    """Keep what a session has for `ttl_s` seconds from now (0: the engine's default)."""

    session: str
    ttl_s: float = 0.0


class TokenIds(Message, frozen=True, tag="serve.token_ids"):
    token_ids: tuple[int, ...]


class Tokenize(Request[TokenIds], frozen=True, kw_only=True, tag="serve.tokenize"):
    """Ask for the tokens of a text, or of a conversation as the model would be asked to go on with it.

    `add_special`: with the tokens that the model wants around a text; of a conversation its template decides.
    """

    text: str = ""
    messages: tuple[ChatMessage, ...] = ()
    tools: tuple[OfferedTool, ...] = ()
    add_special: bool = True


class TokenText(Message, frozen=True, tag="serve.token_text"):
    """`pieces`: the bytes of each token as they are in a text, often a part of a character; of control tokens as they
    are written, which `text` leaves out."""

    text: str
    pieces: tuple[bytes, ...]


class Detokenize(Request[TokenText], frozen=True, tag="serve.detokenize"):
    """Ask for the text of tokens."""

    token_ids: tuple[int, ...]


class ModelDescription(Message, frozen=True, kw_only=True, tag="serve.model"):
    """What an engine serves. `started`: when, in seconds since 1970. `tool_format`: how it writes tool calls. `dtype`:
    how weights are kept, `kv_cache`: how keys and values are, `compute_dtype`: in what is computed."""

    model: str
    dtype: str
    context_length: int
    default_max_tokens: int
    vocab_size: int
    has_chat_template: bool
    tool_format: str
    eos_id: int | None
    adapters: tuple[str, ...]
    started: float
    compute_dtype: str = ""
    kv_cache: str = ""


class DescribeModel(Request[ModelDescription], frozen=True, tag="serve.describe"):
    """Ask an engine or a scheduler what it serves."""
