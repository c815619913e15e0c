"""What the routes of a gateway share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.requests import Request

from ...runtime.node import Node
from ...runtime.refs import Ref
from .background import Background
from .config import GatewayConfig
from .engines import Engines
from .exporting import Exporter
from .file_store import FileStore
from .fine_tuning import FineTunes
from .http_meters import HttpMeter
from .prompt_ends import PromptEnds
from .responses_store import ResponseStore
from .token_words import TokenWords


@dataclass
class Counts:
    requests: int = 0
    open: int = 0
    failed: int = 0


@dataclass
class Site:
    node: Node
    config: GatewayConfig
    engines: Engines
    background: Background
    responses: ResponseStore
    files: FileStore
    fine_tunes: FineTunes
    counts: Counts = field(default_factory=Counts)
    http: HttpMeter = field(default_factory=HttpMeter)
    draining: bool = False
    exporter: Exporter | None = None
    _words: dict[str, TokenWords] = field(default_factory=dict)
    _prompt_ends: dict[str, PromptEnds] = field(default_factory=dict)

    @property
    def max_body_bytes(self) -> int:
        return self.config.max_body_mib << 20

    def words(self, scheduler: Ref, model: str) -> TokenWords:
        """The words of that model's tokens, as that scheduler knows them."""
        return self._words.setdefault(f"{scheduler.address} {model}", TokenWords(scheduler))

    def prompt_ends(self, scheduler: Ref, model: str) -> PromptEnds:
        """How that model's template ends prompts."""
        return self._prompt_ends.setdefault(f"{scheduler.address} {model}", PromptEnds(scheduler))


Endpoint = Callable[[Site, Request], Awaitable[object]]
