"""Security schemes: where a key goes. Keys are named by `env:NAME` or `file:PATH` and read at each request."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .....runtime.errors import ConfigError
from ..keys import secret
from .document import References
from .operations import Operation


@dataclass(slots=True)
class Credentials:
    headers: dict[str, str] = field(default_factory=dict)
    query: list[tuple[str, str]] = field(default_factory=list)
    cookies: list[tuple[str, str]] = field(default_factory=list)


def credentials_for(operation: Operation, document: Mapping[str, Any], keys: Mapping[str, str]) -> Credentials:
    """What a request of this operation carries. Raises ConfigError where a key that it needs was not given."""
    found = Credentials()
    if not operation.security or (() in operation.security and not keys):
        return found
    for alternative in operation.security:
        if all(name in keys for name in alternative):
            for name in alternative:
                _apply(name, _scheme(document, name), keys[name], found)
            return found
    if () in operation.security:
        return found
    needed = " or ".join(" and ".join(alternative) for alternative in operation.security)
    raise ConfigError(f"{operation.name} needs a key for {needed}", hint="`keys` of the API's options names it")


def check_schemes(document: Mapping[str, Any], keys: Mapping[str, str]) -> None:
    """Raises ConfigError for a key of a scheme that the document does not have, or that is not supported."""
    for name in keys:
        scheme = _scheme(document, name)
        kind = (scheme.get("type"), str(scheme.get("scheme", "")).lower())
        if kind[0] not in ("apiKey", "oauth2", "openIdConnect") and kind not in (("http", "bearer"), ("http", "basic")):
            raise ConfigError(f"the security scheme '{name}' is {kind[0]} {kind[1]}, which is not supported")


def _scheme(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    schemes = (document.get("components") or {}).get("securitySchemes") or {}
    if name not in schemes:
        there = ", ".join(schemes) or "none"
        raise ConfigError(f"the document has no security scheme '{name}'", hint=f"it has: {there}")
    return References(document).resolved(schemes[name])


def _apply(name: str, scheme: Mapping[str, Any], reference: str, found: Credentials) -> None:
    key = secret(reference)
    if any(ord(character) < 32 or ord(character) == 127 for character in key):
        raise ConfigError(f"the key for '{name}' has control characters in it")
    kind, where = scheme.get("type"), scheme.get("in")
    if kind == "apiKey":
        target = str(scheme.get("name", ""))
        if where == "header":
            found.headers[target] = key
        elif where == "query":
            found.query.append((target, key))
        else:
            found.cookies.append((target, key))
    elif kind == "http" and str(scheme.get("scheme", "")).lower() == "basic":
        # `user:password` as it is.
        found.headers["authorization"] = "Basic " + base64.b64encode(key.encode()).decode()
    else:
        # Of OAuth 2 and OpenID Connect the token is given; getting one is not for a tool.
        found.headers["authorization"] = f"Bearer {key}"
