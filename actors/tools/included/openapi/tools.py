"""The set `openapi`: the operations of the APIs that its options name, each a tool `<api>_<operation>`."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.from_thread
import msgspec

from .....runtime.errors import ConfigError
from ...context import ToolContext
from ...errors import ToolDefinition
from ...schema_tool import SchemaTool
from ...tool import Tool
from ..net.addresses import networks
from ..net.client import Bounds, Client
from .document import fetch_document, read_document
from .operations import Operation, base_url, operations_of
from .request import prepared, value_of
from .security import check_schemes, credentials_for

_SAFE = ("GET", "HEAD", "OPTIONS")
_IDEMPOTENT = (*_SAFE, "PUT", "DELETE")


class ApiOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`document`: a file or an address. `keys`: by security scheme, `env:NAME` or `file:PATH`.

    `operations`: patterns of names to offer, `list*`. `base_url`: where it is, if the document does not say. `allow`:
    networks that are not public and may be asked all the same. `read_only`: only what changes nothing.
    """

    document: str
    base_url: str = ""
    keys: dict[str, str] = {}
    operations: tuple[str, ...] = ("*",)
    allow: tuple[str, ...] = ()
    read_only: bool = False
    seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 30.0
    max_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1 << 28)] = 8 << 20


class OpenApiOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    apis: dict[str, ApiOptions] = {}


class Api:
    """One API: its document, and the client that its tools share."""

    def __init__(self, options: ApiOptions, document: Mapping[str, Any]) -> None:
        self.options = options
        self.document = document
        self.base = (options.base_url or base_url(document, options.document)).rstrip("/")
        check_schemes(document, options.keys)
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            bounds = Bounds(self.options.seconds, self.options.max_bytes)
            self._client = Client(networks(self.options.allow), bounds)
        return self._client

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def call(self, operation: Operation, arguments: dict[str, Any]) -> Any:
        request = prepared(operation, self.base, arguments)
        credentials = credentials_for(operation, self.document, self.options.keys)
        headers = {**request.headers, **credentials.headers}
        if credentials.cookies:
            given = "; ".join(f"{name}={value}" for name, value in credentials.cookies)
            headers["cookie"] = f"{headers['cookie']}; {given}" if "cookie" in headers else given
        answer = await self.client.request(
            request.method,
            request.url,
            headers=headers,
            params=[*request.query, *credentials.query],
            content=request.content,
            # A redirect would take the key along, or turn a change into a reading.
            redirects=3 if request.method == "GET" and not self.options.keys else 0,
        )
        return value_of(operation, answer)


class OperationTool(SchemaTool):
    """An operation, which is asked over HTTP."""

    def __init__(self, api: Api, operation: Operation, name: str) -> None:
        async def run(arguments: dict[str, Any], context: ToolContext) -> Any:
            return await api.call(operation, arguments)

        super().__init__(
            name,
            operation.description,
            operation.schema,
            run,
            read_only=operation.method in _SAFE,
            destructive=operation.method in ("PUT", "DELETE", "PATCH", "POST"),
            idempotent=operation.method in _IDEMPOTENT,
            timeout=api.options.seconds + 5.0,
            tags=operation.tags,
            version=str((api.document.get("info") or {}).get("version", "")),
        )
        self._api = api

    async def close(self) -> None:
        await self._api.close()


def loaded(options: ApiOptions) -> dict[str, Any]:
    """The document that the options name. Raises ToolDefinition, FetchFailed."""
    if not options.document.startswith(("http://", "https://")):
        return read_document(Path(options.document).expanduser())
    # A set is made in a process of its own, before it answers anybody; its event loop may be running already.
    with anyio.from_thread.start_blocking_portal() as portal:
        return portal.call(fetch_document, options.document, networks(options.allow))


def tools_of_api(name: str, options: ApiOptions) -> list[Tool]:
    """Raises ToolDefinition where no operation of the API is left."""
    api = Api(options, loaded(options))
    found: list[Tool] = []
    for operation in operations_of(api.document):
        if not any(fnmatch.fnmatchcase(operation.name, pattern) for pattern in options.operations):
            continue
        if options.read_only and operation.method not in _SAFE:
            continue
        prefix = f"{name}_" if name else ""
        found.append(OperationTool(api, operation, f"{prefix}{operation.name}"[:64]))
    if not found:
        raise ToolDefinition(f"the API '{name}' has no operation that its options let through")
    return found


def tools(options: OpenApiOptions) -> list[Tool]:
    """The set, over the APIs of its options."""
    if not options.apis:
        raise ConfigError(
            "there is no API", hint='`[tools.openapi.apis.weather]` of callboard.toml: document = "weather.yaml"'
        )
    return [tool for name, api in options.apis.items() for tool in tools_of_api(name, api)]
