"""What the page says of a number or a moment, and of none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from nasbackup.web import words


def test_what_is_not_known_is_a_dash() -> None:
    assert [words.size(None), words.speed(None), words.span(None), words.age(None, now=datetime.now(UTC))] == [
        *4 * (words.NOTHING,)
    ]


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
