"""What is said to and within the serving engine: requests for text, and the steps that compute it."""

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
    """What an engine serves. `started`: when, in seconds since 1970. `tool_format`: how it writes tool calls."""

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


class DescribeModel(Request[ModelDescription], frozen=True, tag="serve.describe"):
    """Ask an engine or a scheduler what it serves."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the tokens of one sequence are drawn, for its whole life; see `Generate`. `logprobs` -1: none.

    Token i (counted from the first generated one) uses the random number that `seed` has for i. `stop_ids` end the
    answer and are not drawn before `min_tokens`.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    min_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    logprobs: int = -1
    grammar: Grammar | None = None


class SequenceStart(msgspec.Struct, frozen=True, kw_only=True):
    """All that a replica must know of a sequence: sent when it is first computed, and again after a preemption, a
    migration, or a replica's death. `token_ids` are then the prompt and all that was generated so far.

    `prompt_logprobs`: -1 none, else as in `Generate`; reported for each token of the sequence that is computed now,
    so the planner starts such a sequence without cached tokens. `pooling`: the hidden states are wanted, no tokens.
    """

    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    sampling: Sampling = Sampling()
    adapter: str = ""
    prompt_logprobs: int = -1
    pooling: Pooling | None = None
    deterministic: bool = False


class StepSequence(msgspec.Struct, frozen=True):
    """One sequence's part of a step: its tokens from `num_cached` up to `num_cached + num_tokens` are computed.

    The replica knows the tokens: from `start`, and those that it drew itself in earlier steps, also in one that is
    still under way when this step is sent. `new_blocks` are appended to the sequence's block table (with `start`, to
    an empty one). With `draws`, a next token is wanted after the last of them; then up to `num_draft` guesses may be
    computed and verified behind it (the block table has room for their keys and values).
    """

    sequence_id: int
    num_cached: int
    num_tokens: int
    new_blocks: tuple[int, ...] = ()
    draws: bool = False
    num_draft: int = 0
    start: SequenceStart | None = None


class Drawn(msgspec.Struct, frozen=True):
    """What one sequence got: one token, or several where guesses were right (`num_drafted` were verified).

    `logprobs`: one for each token where they are wanted. `ended`: the grammar allows nothing more after these.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    num_drafted: int = 0
    ended: bool = False


class PromptLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of the tokens at places `first`, `first + 1`, ... of a sequence, as far as this step computed
    what stands before them."""

    sequence_id: int
    first: int
    tokens: tuple[TokenLogprob, ...]


class Pooled(msgspec.Struct, frozen=True):
    """The pooled hidden state of a sequence whose last token this step computed."""

    sequence_id: int
    vector: tuple[float, ...]


class FailedSequence(msgspec.Struct, frozen=True):
    """A sequence that could not be computed, while the others of the step were; the replica has forgotten it."""

    sequence_id: int
    code: str
    message: str


class StepResult(Message, frozen=True, tag="serve.computed"):
    """`drawn`: one for each sequence of the step that draws, in its order. `seconds`: time computing."""

    step_id: int
    drawn: tuple[Drawn, ...]
    seconds: float
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()
    pooled: tuple[Pooled, ...] = ()
    failed: tuple[FailedSequence, ...] = ()


class Step(Request[StepResult], frozen=True, tag="serve.compute"):
    """One forward pass over a batch. Steps are computed in the order they come.

    `life` is that of the replica whose cache the step builds on: another one refuses it (ReplicaChanged).
    `forget`: sequences that ended or were preempted; what the replica knows of them goes before anything else.
    """

    step_id: int
    sequences: tuple[StepSequence, ...]
    life: str = ""
    forget: tuple[int, ...] = ()


class ReplicaInfo(Message, frozen=True, kw_only=True, tag="serve.replica_info"):
    """What a replica is. `life` is a new one each time it starts: its cache is empty then."""

    life: str
    num_blocks: int
    block_size: int
    dtype: str
    kernels: str
    """What computes: `native`, `torch`, `triton`, `transformers`."""
    weight_bytes: int
    cache_bytes: int
    device: str = "cpu"
    """Where: `cpu`, `cuda:0` and so on."""
    slower_because: str = ""
    """Why, on a card, torch's own kernels compute and not ours."""


class AskReplica(Request[ReplicaInfo], frozen=True, tag="serve.ask_replica"):
    """Ask a replica what it is, before steps are sent to it.

    `forget`: from whoever begins to send it steps. It answers when no step is being computed any more, and knows no
    sequence then: those of a scheduler that is gone would stay for ever.
    """

    forget: bool = False


class UnderWay(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence that runs or waits. `age_s`: since it was taken in; `num_blocks`: that it holds now."""

    sequence_id: int
    running: bool
    prompt_tokens: int
    generated_tokens: int
    max_tokens: int
    cached_tokens: int = 0
    num_blocks: int = 0
    age_s: float = 0.0
    client: str = ""
    priority: int = 0
    adapter: str = ""


class ServedSecond(msgspec.Struct, frozen=True):
    """One second of an engine's recent past. `ttft_ms` and `token_ms` (the time between two tokens of one answer) are
    means over what came in it, 0 where nothing did."""

    tokens: int = 0
    first_tokens: int = 0
    ttft_ms: float = 0.0
    token_ms: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0


class LaneStats(msgspec.Struct, frozen=True, kw_only=True):
    """A replica and what is there for it. `info` is None while it is away.

    `cells`: the cache as a map, a byte for each `blocks_per_cell` blocks in a row, the highest of them: 0 for a block
    that is blank, 1 for one that nobody holds and that keeps what may be asked for again, n + 1 for one held by n
    sequences (254 at most). `under_way`: those that run, then those that wait in their order, at most `MAX_UNDER_WAY`.
    """

    address: str
    info: ReplicaInfo | None = None
    running: int = 0
    waiting: int = 0
    num_blocks: int = 0
    free_blocks: int = 0
    blocks_per_cell: int = 1
    cells: bytes = b""
    under_way: tuple[UnderWay, ...] = ()


# A map of more cells, or a list of more sequences, is more than anybody looks at.
MAX_CELLS = 4096
MAX_UNDER_WAY = 256


class EngineDetail(msgspec.Struct, frozen=True):
    """What `GetStats` tells beyond counts, where it is asked to. `seconds`: the last ones, the oldest first; the one
    that is going on is not among them."""

    lanes: tuple[LaneStats, ...]
    seconds: tuple[ServedSecond, ...] = ()


class EngineStats(Message, frozen=True, kw_only=True, tag="serve.stats"):
    """The engine at one moment, and its counts since it started."""

    model: str
    dtype: str
    running: int
    waiting: int
    num_blocks: int
    free_blocks: int
    """Blocks that nobody holds, those that keep what may be asked for again included."""
    block_size: int
    context_length: int
    requests: int
    finished: int
    aborted: int
    failed: int
    preemptions: int
    replica_failures: int
    prompt_tokens: int
    generated_tokens: int
    steps: int
    step_seconds: float
    """From sending steps to having their results."""
    compute_seconds: float
    """The replica's own part of that."""
    cached_blocks: int = 0
    """Those of `free_blocks` that keep what may be asked for again."""
    pinned_blocks: int = 0
    sessions: int = 0
    cached_tokens: int = 0
    """Prompt tokens that were found computed."""
    evictions: int = 0
    refused: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    plan_seconds: float = 0.0
    """The scheduler's own time: planning steps and taking their results."""
    busy_seconds: float = 0.0
    """Time during which there was something to compute."""
    replicas: tuple[ReplicaInfo, ...] = ()
    adapters: tuple[str, ...] = ()
    detail: EngineDetail | None = None


class GetStats(Request[EngineStats], frozen=True, tag="serve.get_stats"):
    """Ask a scheduler or an engine how it is doing. `detail`: also of each replica, each sequence and each second."""

    detail: bool = False
