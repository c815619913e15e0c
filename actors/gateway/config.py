"""What a gateway is told when it is started."""

from __future__ import annotations

from typing import Annotated

import msgspec


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`host`, `port`: where it listens; port 0 is a free one. `models`: the scheduler's address for names that clients
    may use beside those of the models themselves.

    `max_body_mib`: a larger request is refused. `request_timeout_s`: an answer that is not whole after so long is given
    up. `header_timeout_s`, `body_timeout_s`: what a client may take to send these. `max_connections`: at once; what is
    asked beyond is refused. `cors_origins`: web pages from there may ask; none may by default. `keys_file`: who may ask
    (`callboard gateway key` writes it), "" for everybody who reaches the gateway. `tls_cert`, `tls_key`: files in PEM
    for HTTPS. `otel`: a collector of OpenTelemetry (http://localhost:4318, say) that gets the spans of traced requests.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    models: dict[str, str] = {}
    max_body_mib: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    request_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    header_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 15.0
    body_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 2048
    cors_origins: tuple[str, ...] = ()
    keys_file: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    otel: str = ""
