"""How an endpoint is reached, what it can do, and what it costs."""

from __future__ import annotations

import enum
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from ....runtime.errors import ConfigError

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Price = Annotated[float, msgspec.Meta(ge=0)]

DEFAULT_URL = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com/v1"}


class Api(enum.StrEnum):
    """`VLLM` and `LLAMACPP` speak OpenAI's, and take constraints and ways to draw tokens beside it."""

    OPENAI = "openai"
    VLLM = "vllm"
    LLAMACPP = "llama.cpp"
    ANTHROPIC = "anthropic"


class UpstreamConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`base_url`: what comes before `/chat/completions` or `/messages` ("": the API's own home). `model`: the name
    that is sent; `models`: others that a request may name.

    The key is never written here: `key_env` names the variable that holds it, `key_file` a file (read again when the
    endpoint refuses it, so that it may be rotated). Neither: none is sent. `key_header`: where it goes if the API's
    own place is not wanted (Azure: `api-key`). `ca_file`: whom to trust, PEM.

    `connect_s`, `first_byte_s`, `chunk_s`: how long to wait for a connection, for the first of an answer, and then for
    each next piece. A failure that may pass is tried again `retries` times, after `backoff_s` that doubles up to
    `backoff_max_s`, with jitter; the endpoint's own Retry-After counts instead if it is at most `retry_after_max_s`.

    `requests_per_minute`, `tokens_per_minute`: kept on our side, in any 60 seconds (0: no limit). `concurrency`: how
    many requests are under way; `max_waiting`: how many more may wait for their turn.

    `omit`: fields of the request that this model does not take (`temperature`, `seed`, ...); `extra`: fields that are
    always sent. `max_tokens_field`: OpenAI's new name, or the old `max_tokens`. `default_max_tokens`: where a request
    does not say (0: the endpoint's own; Anthropic's has none, so 4096). `strict_schemas`: have OpenAI guarantee a JSON
    Schema, which then has to be of the kind that it guarantees. `anthropic_version`: of Anthropic's API; 2023-06-01 is
    the last one that lets a request say how tokens are drawn, for models that still take that.

    Prices are US dollars for a million tokens; `cached_price` for those of the prompt that the endpoint had cached
    (default: as `prompt_price`).
    """

    model: str
    api: Api = Api.OPENAI
    base_url: str = ""
    models: tuple[str, ...] = ()
    key_env: str = ""
    key_file: str = ""
    key_header: str = ""
    ca_file: str = ""
    connect_s: Seconds = 10.0
    first_byte_s: Seconds = 120.0
    chunk_s: Seconds = 60.0
    retries: Annotated[int, msgspec.Meta(ge=0, le=20)] = 4
    backoff_s: Seconds = 0.5
    backoff_max_s: Seconds = 30.0
    retry_after_max_s: Seconds = 120.0
    requests_per_minute: Count = 0
    tokens_per_minute: Count = 0
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 8
    max_waiting: Count = 256
    omit: tuple[str, ...] = ()
    extra: dict[str, Any] = {}
    max_tokens_field: str = "max_completion_tokens"
    default_max_tokens: Count = 0
    strict_schemas: bool = True
    anthropic_version: str = "2026-10-21"
    prompt_price: Price = 0.0
    cached_price: Price | None = None
    completion_price: Price = 0.0

    def url(self) -> str:
        """Where requests go. Raises ConfigError for what is no plain http(s) address."""
        own = DEFAULT_URL.get(self.api, "")
        base = self.base_url or own
        if not base:
            raise ConfigError(f"an upstream with api '{self.api}' needs a base_url", hint="http://localhost:8000/v1")
        parts = urlsplit(base)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("base_url is no http or https address", hint="for example https://api.openai.com/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            # What stands in an address ends up in logs.
            raise ConfigError(
                "base_url holds more than an address: a user, a password or a query",
                hint="keys belong in the file or variable that `key_file` or `key_env` names",
            )
        path = "messages" if self.api is Api.ANTHROPIC else "chat/completions"
        return f"{base.rstrip('/')}/{path}"

    def cost(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
        """In US dollars."""
        cached_price = self.prompt_price if self.cached_price is None else self.cached_price
        prompt = (prompt_tokens - cached_tokens) * self.prompt_price + cached_tokens * cached_price
        return (prompt + completion_tokens * self.completion_price) / 1e6
