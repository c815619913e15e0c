"""What goes wrong between us and somebody else's endpoint.

CallboardError
└── UpstreamError          upstream
    ├── UpstreamAuth       upstream.auth          it does not accept our key
    ├── UpstreamRefused    upstream.refused       it says that the request is wrong
    ├── UpstreamFiltered   upstream.filtered      its policy, or its model, will not answer this
    ├── UpstreamLimited    upstream.rate_limited  too many requests or tokens, also after waiting
    ├── UpstreamQuota      upstream.quota         the account has nothing left: waiting does not help
    ├── UpstreamDown       upstream.unavailable   it fails by itself (5xx, overloaded), also when asked again
    ├── UpstreamLost       upstream.unreachable   no connection, or it broke before anything came
    ├── UpstreamTimeout    upstream.timeout       it kept us waiting for longer than we wait
    ├── UpstreamCutOff     upstream.cut_off       a stream that had begun ended before its end
    ├── UpstreamGarbled    upstream.garbled       what came is not the protocol that it should speak
    └── UpstreamBusy       upstream.busy          too many requests wait here for their turn

A request that can never be sent is `RequestInvalid` (model.request), as with an engine.
"""

from __future__ import annotations

from ....runtime.errors import CallboardError


class UpstreamError(CallboardError):
    """`retry_after`: seconds that the endpoint asks us to wait; None where it does not say."""

    code = "upstream"
    retry_after: float | None = None


class UpstreamAuth(UpstreamError):
    code = "upstream.auth"
    default_hint = "put a valid key into the variable or file that the upstream's `key_env` or `key_file` names"


class UpstreamRefused(UpstreamError):
    code = "upstream.refused"
    default_hint = "`base_url`, `model` and `omit` of the upstream's configuration must fit the endpoint"


class UpstreamFiltered(UpstreamError):
    code = "upstream.filtered"
    default_hint = "ask something else; asking again gives the same"


class UpstreamLimited(UpstreamError):
    code = "upstream.rate_limited"
    default_hint = "ask again later, or lower `requests_per_minute` and `tokens_per_minute` to what the account has"


class UpstreamQuota(UpstreamError):
    code = "upstream.quota"
    default_hint = "the account behind the key must be topped up"


class UpstreamDown(UpstreamError):
    code = "upstream.unavailable"
    default_hint = "ask again later"


class UpstreamLost(UpstreamError):
    code = "upstream.unreachable"
    default_hint = "check the network, and `base_url` of the upstream's configuration"


class UpstreamTimeout(UpstreamError):
    code = "upstream.timeout"
    default_hint = "`connect_s`, `first_byte_s` and `chunk_s` of the upstream's configuration say how long we wait"


class UpstreamCutOff(UpstreamError):
    code = "upstream.cut_off"
    default_hint = "what came before is not the whole answer: ask again"


class UpstreamGarbled(UpstreamError):
    code = "upstream.garbled"
    default_hint = "`api` and `base_url` must name an endpoint that speaks that API"


class UpstreamBusy(UpstreamError):
    code = "upstream.busy"
    default_hint = "ask again in a moment; `concurrency` and `max_waiting` of the upstream's configuration bound it"


# Those that may go away by themselves, as long as nothing of an answer has been handed on.
PASSING = (UpstreamLimited, UpstreamDown, UpstreamLost, UpstreamTimeout, UpstreamCutOff)
