"""Numbers as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from nasbackup.web import words


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "\N{EN DASH}"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1023.6 * 1024, "1 MiB"),
        (1 << 40, "1 TiB"),
        (123456789012, "115 GiB"),
        (5 << 60, "5120 PiB"),
    ],
)
def test_bytes_come_in_the_largest_unit_that_fits(count: float | None, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "\N{EN DASH}"),
        (-3, "0 s"),
        (0.4, "0 s"),
        (59.6, "1 min"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3599.9, "1 h"),
        (3600 * 26, "1 d 2 h"),
        (86_400 + 59, "1 d"),
        (86_400 + 61, "1 d"),  # never days with seconds
        (3600 + 90, "1 h 2 min"),
    ],
)
def test_lengths_of_time_come_in_two_neighbouring_units(seconds: float | None, text: str) -> None:
    assert words.span(seconds) == text


def test_a_broken_promise_is_never_rounded_to_a_kept_one() -> None:
    assert words.percent(100.0) == "100 %"
    assert words.percent(99.99999) == "99.99 %"
    assert words.percent(99.6, digits=0) == "99 %"
    assert words.percent(12.5) == "12.5 %"
    assert words.percent(100 / 3) == "33.33 %"


def test_times_are_utc_whatever_the_connection_said() -> None:
    berlin = timezone(timedelta(hours=2))
    assert words.time(datetime(2026, 7, 1, 0, 30, tzinfo=berlin)) == "2026-06-30 22:30"
    assert words.age(datetime(2026, 7, 1, 0, 30, tzinfo=berlin), now=datetime(2026, 7, 1, tzinfo=UTC)) == "1 h 30 min"


def test_far_away_is_said_roughly() -> None:
    assert [words.days(value) for value in (0.2, 1, 12.4, 100, 900, 9000)] == [
        *("less than a day", "1 day", "12 days", "3 months", "2 years", "more than 10 years")
    ]


def test_thousands_are_apart() -> None:
    assert words.number(1234567) == "1 234 567"
