"""What a gateway's routes share, made for the actor that serves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...runtime.folders import Paths
from ...runtime.node import Node
from .background import Background
from .config import GatewayConfig
from .engines import Engines
from .file_store import FileStore
from .fine_tuning import FineTunes
from .responses_store import ResponseStore
from .site import Site

StartSoon = Callable[..., Any]


def make_site(node: Node, config: GatewayConfig, address: str, start_soon: StartSoon) -> Site:
    """Of the gateway at `address`, whose actor starts what goes on beside requests. Its engines load what was
    fine-tuned here when it is asked for by its name."""
    data = Paths.find().data
    responses = ResponseStore(node, config.responses_ttl_s, config.responses_max_mib << 20)
    files = FileStore(data / "files", config.files_max_mib << 20)
    engines = Engines(node, config.models)
    fine_tunes = FineTunes(node, data / "fine_tuning", files, engines, config.fine_tuning)
    engines.load = fine_tunes.load
    start_soon(engines.follow)
    return Site(node, config, engines, Background(node, address, responses, start_soon), responses, files, fine_tunes)
