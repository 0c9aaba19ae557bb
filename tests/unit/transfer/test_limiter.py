"""Promise: a transfer is as fast as it may be on average, never faster, and its workers share the one limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from nasbackup.transfer.limiter import Limiter

RATE = 1000


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_the_first_goes_at_once_and_the_next_waits_until_it_is_paid() -> None:
    clock = Clock()
    limiter = Limiter(rate=RATE, burst=0.0, clock=clock)
    assert limiter.take(500) == 0.0
    clock.now += 0.2
    assert round(limiter.take(100), 9) == 0.3


def test_workers_that_ask_at_once_queue_up() -> None:
    limiter = Limiter(rate=RATE, burst=0.0, clock=Clock())
    assert [round(limiter.take(250), 9) for _ in range(4)] == [0.0, 0.25, 0.5, 0.75]


def test_who_waited_longer_than_asked_makes_up_for_it_within_the_burst_only() -> None:
    clock = Clock()
    limiter = Limiter(rate=RATE, burst=0.25, clock=clock)
    limiter.take(100)
    clock.now += 3600
    assert [round(limiter.take(250), 9) for _ in range(3)] == [0.0, 0.0, 0.25]


def test_known_zeroes_cost_nothing() -> None:
    limiter = Limiter(rate=RATE, clock=Clock())
    limiter.take(1 << 20)
    before = limiter.take(0)
    assert limiter.take(0) == before > 0


@given(
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(0, 2000)), min_size=2, max_size=30),
    burst=st.sampled_from([0.0, 0.25, 2.0]),
)
def test_no_span_of_time_sees_more_than_its_share(steps: list[tuple[float, int]], burst: float) -> None:
    """One worker that waits as told: what it moved in any span is at most the rate's share and the burst."""
    clock = Clock()
    limiter = Limiter(rate=RATE, burst=burst, clock=clock)
    begun: list[tuple[float, int]] = []
    for idle, size in steps:
        clock.now += idle
        clock.now += limiter.take(size)
        begun.append((clock.now, size))
    for first in range(len(begun)):
        for last in range(first, len(begun)):
            span = begun[last][0] - begun[first][0]
            moved = sum(size for _, size in begun[first:last])  # the last one is only beginning
            assert moved <= RATE * (span + burst) + 1e-6


@given(sizes=st.lists(st.integers(1, 2000), min_size=1, max_size=30))
def test_who_is_always_there_gets_the_whole_rate(sizes: list[int]) -> None:
    clock = Clock()
    began = clock.now
    limiter = Limiter(rate=RATE, burst=0.0, clock=clock)
    for size in sizes:
        clock.now += limiter.take(size)
    assert abs((clock.now - began) * RATE - sum(sizes[:-1])) < 1e-3
