"""What a gateway is told when it is started."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ...schemas.train import (
    BatchSettings,
    ComputeSettings,
    LoraSettings,
    Method,
    OptimizerSettings,
    ShardSettings,
)


class FineTuningSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request of `/v1/fine_tuning/jobs` does not say; see `TrainConfig`. Its `learning_rate_multiplier` is one
    of `optimizer.lr`, or of `preference_lr` for the method dpo. `models`: that may be trained beside those that are
    served, names of the store or paths."""

    models: tuple[str, ...] = ()
    method: Method = Method.LORA
    epochs: Annotated[int, msgspec.Meta(ge=1)] = 3
    preference_lr: float = 2e-5
    lora: LoraSettings = LoraSettings()
    batch: BatchSettings = BatchSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    compute: ComputeSettings = ComputeSettings()
    shards: ShardSettings = ShardSettings()


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`host`, `port`: where it listens; port 0 is a free one. `models`: the scheduler's address for names that clients
    may use beside those of the models themselves.

    `max_body_mib`: a larger request is refused. `request_timeout_s`: an answer that is not whole after so long is given
    up. `header_timeout_s`, `body_timeout_s`: what a client may take to send these. `write_timeout_s`: a client that
    takes nothing of its answer for so long loses its connection. `max_connections`: at once; what is asked beyond is
    refused. `cors_origins`: web pages from there may ask; none may by default. `keys_file`: who may ask (`callboard
    gateway key` writes it), "" for everybody who reaches the gateway. `tls_cert`, `tls_key`: files in PEM for HTTPS.
    `otel`: a collector of OpenTelemetry (http://localhost:4318, say) that gets the spans of traced requests.

    `responses_ttl_s`: how long what `/v1/responses` made can be asked for; `responses_max_mib`: the room for all of it.
    `max_file_mib`: the largest file that may be uploaded; `files_max_mib`: the room for all of them.
    `fine_tuning`: what jobs of `/v1/fine_tuning` are like.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    models: dict[str, str] = {}
    max_body_mib: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    request_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    header_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 15.0
    body_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    write_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 2048
    cors_origins: tuple[str, ...] = ()
    keys_file: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    otel: str = ""
    responses_ttl_s: Annotated[float, msgspec.Meta(ge=1)] = 30 * 86400.0
    responses_max_mib: Annotated[int, msgspec.Meta(ge=1)] = 256
    max_file_mib: Annotated[int, msgspec.Meta(ge=1)] = 512
    files_max_mib: Annotated[int, msgspec.Meta(ge=1)] = 8192
    fine_tuning: FineTuningSettings = FineTuningSettings()
