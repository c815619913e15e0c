"""How much a key may ask for: buckets that fill at a steady rate, each holding what a minute brings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MINUTE_S = 60.0


@dataclass
class Bucket:
    """Holds up to `per_minute`, full at first, and fills at that rate. It may be overdrawn: what an answer costs is
    known only after it. `now` is of one monotonic clock."""

    per_minute: float
    level: float = field(init=False)
    at: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.per_minute

    def fill(self, now: float) -> None:
        if now > self.at:
            self.level = min(self.per_minute, self.level + (now - self.at) * self.per_minute / MINUTE_S)
            self.at = now

    def wait_for(self, amount: float, now: float) -> float:
        """Seconds until `amount` is in it; 0 if it is."""
        self.fill(now)
        return max(0.0, amount - self.level) * MINUTE_S / self.per_minute

    def take(self, amount: float, now: float) -> None:
        self.fill(now)
        self.level -= amount


class Allowance:
    """What one key may still ask for. A limit of 0 is none.

    A request is let in while a whole one is in the first bucket and anything is in the second; the tokens of an answer
    are taken out of the second when they are known, and until that is made good nothing more is let in.
    """

    def __init__(self, requests_per_minute: int, tokens_per_minute: int) -> None:
        self.limits = (requests_per_minute, tokens_per_minute)
        self._requests = Bucket(requests_per_minute) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute) if tokens_per_minute else None

    def admit(self, now: float) -> tuple[str, float]:
        """("", 0.0) where a request may pass, and it is counted; else what there is too much of ("requests",
        "tokens"), and the seconds until there is room."""
        waits = [
            ("requests", self._requests.wait_for(1.0, now) if self._requests else 0.0),
            ("tokens", self._tokens.wait_for(1.0, now) if self._tokens else 0.0),
        ]
        what, seconds = max(waits, key=lambda wait: wait[1])
        if seconds > 0:
            return what, seconds
        if self._requests:
            self._requests.take(1.0, now)
        return "", 0.0

    def spend(self, tokens: int, now: float) -> None:
        if self._tokens:
            self._tokens.take(tokens, now)

    def headers(self, now: float) -> dict[str, str]:
        """What is left of it, as OpenAI's API tells its clients."""
        found: dict[str, str] = {}
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                bucket.fill(now)
                found[f"x-ratelimit-limit-{what}"] = str(math.floor(bucket.per_minute))
                found[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(bucket.level)))
                found[f"x-ratelimit-reset-{what}"] = f"{bucket.wait_for(bucket.per_minute, now):.3f}s"
        return found
