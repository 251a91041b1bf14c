"""How often somebody without a certificate may be listened to."""

import trio


class RateLimit:
    """A bucket of tokens for each caller: `burst` at once, then `per_minute`.

    Callers beyond `callers` share one. Where callers are known hosts, that is to be more than there will ever be: each
    newcomer to a full house costs a look at every bucket.
    """

    def __init__(self, *, per_minute: float, burst: int, callers: int = 4096) -> None:
        self._per_second, self._burst, self._callers = per_minute / 60, burst, callers
        self._buckets: dict[str, tuple[float, float]] = {}

    def allows(self, caller: str) -> bool:
        """Take a token of this caller, if there is one."""
        now = trio.current_time()
        if caller not in self._buckets and len(self._buckets) >= self._callers:
            self._forget_full(now)
            caller = caller if len(self._buckets) < self._callers else ""
        tokens = self._tokens(caller, now)
        if tokens < 1:
            return False
        self._buckets[caller] = (tokens - 1, now)
        return True

    def _tokens(self, caller: str, now: float) -> float:
        left, since = self._buckets.get(caller, (float(self._burst), now))
        return min(self._burst, left + (now - since) * self._per_second)

    def _forget_full(self, now: float) -> None:
        full = [caller for caller in self._buckets if self._tokens(caller, now) >= self._burst]
        for caller in full:
            del self._buckets[caller]
