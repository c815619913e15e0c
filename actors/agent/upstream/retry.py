"""When to ask again: exponential backoff with jitter, unless the endpoint says itself how long to wait."""

from __future__ import annotations

import email.utils
import math
import random
import time
from collections.abc import Mapping

from .config import UpstreamConfig
from .errors import PASSING, UpstreamError

# A wait is drawn between this share of the backoff and all of it, so that those who failed together part.
LEAST_SHARE = 0.5


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that `retry-after-ms` or `Retry-After` (seconds, or a date) ask for; None where they do not, or where
    it cannot be read."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * scale
        except (KeyError, ValueError):
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return max(0.0, date.timestamp() - time.time())


def wait_before_retry(config: UpstreamConfig, error: UpstreamError, attempt: int) -> float | None:
    """Seconds to wait after the failure of attempt `attempt` (from 0), or None where it is not to be tried again."""
    if attempt >= config.retries or not isinstance(error, PASSING):
        return None
    if error.retry_after is not None:
        return error.retry_after if error.retry_after <= config.retry_after_max_s else None
    backoff = min(config.backoff_max_s, config.backoff_s * 2**attempt)
    return backoff * random.uniform(LEAST_SHARE, 1.0)
