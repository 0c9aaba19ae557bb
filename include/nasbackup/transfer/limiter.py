"""How fast a transfer may be: pure bookkeeping, no waiting. Sizes are bytes, times are seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

BURST_SECONDS = 0.25
"""What was not used may be made up for, of this long at most: a source that hesitates costs no speed on average."""


class Limiter:
    """A token bucket for all workers of one transfer: who takes first is served first. Not thread-safe.

    In any span of time no more is begun than ``rate`` times the span and ``burst``, and one request.
    """

    def __init__(self, *, rate: int, burst: float = BURST_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        """``rate``: bytes a second."""
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._paid_until = clock()

    def take(self, size: int) -> float:
        """How long to wait before these bytes are moved. They count as moved: take them once."""
        now = self._clock()
        begin = max(self._paid_until, now - self._burst)
        self._paid_until = begin + size / self._rate
        return max(0.0, begin - now)
