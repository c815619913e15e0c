"""What a gateway is told when it is started."""

from __future__ import annotations

from typing import Annotated

import msgspec


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`host`, `port`: where it listens; port 0 is a free one. `models`: the scheduler's address for names that clients
    may use beside those of the models themselves.

    `max_body_mib`: a larger request is refused. `request_timeout_s`: after so long without an answer's next piece a
    request is given up. `max_connections`: at once. `cors_origins`: web pages from there may ask; none may by default.
    `keys_file`: who may ask, "" for everybody who reaches it. `tls_cert`, `tls_key`: files in PEM for HTTPS.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    models: dict[str, str] = {}
    max_body_mib: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    request_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 2048
    cors_origins: tuple[str, ...] = ()
    keys_file: str = ""
    tls_cert: str = ""
    tls_key: str = ""
