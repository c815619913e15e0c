"""Requests of the page's own routes must come from the page: not from another site that somebody has open beside it.

A browser lets any site send a request to a server on the user's own machine, and where no key is needed nothing else
would stand between such a site and an approval. So what a browser says of a request's origin is heeded, and a name that
was pointed at this machine afterwards (DNS rebinding) opens nothing.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from .config import GatewayConfig
from .errors import GatewayError


class ForeignPage(GatewayError):
    code = "gateway.origin"
    status = 403


def check_origin(headers: Headers, config: GatewayConfig) -> None:
    """Raises ForeignPage. Programs that are no browsers send none of these headers, and pass."""
    host = headers.get("host", "")
    origin = headers.get("origin", "")
    if origin in config.cors_origins:
        return
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise ForeignPage("another site may not ask this")
    if origin and urlsplit(origin).netloc != host:
        raise ForeignPage(f"a page from {origin} may not ask this")
    if not config.keys_file and not _is_own(host, config):
        name = urlsplit(f"//{host}").hostname or "no name"
        raise ForeignPage(
            f"without keys this is answered under the machine's own names, and {name} is none",
            hint="set the gateway's `keys_file`, or name the page's origin in its `cors_origins`",
        )


def _is_own(host: str, config: GatewayConfig) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    known = {config.host.lower(), "localhost", *(urlsplit(origin).hostname for origin in config.cors_origins)}
    if name in known or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
