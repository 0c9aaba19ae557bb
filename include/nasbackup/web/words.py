"""What the page says of a number or a moment, and of none. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from nasbackup import words

NOTHING = "\N{EN DASH}"


def size(count: float | None) -> str:
    return NOTHING if count is None else words.size(count)


def speed(count: float | None) -> str:
    return NOTHING if count is None else words.speed(count)


def span(seconds: float | None) -> str:
    return NOTHING if seconds is None else words.short_span(seconds)


def age(at: datetime | None, *, now: datetime) -> str:
    return NOTHING if at is None else span((now - at).total_seconds())


def time(at: datetime | None) -> str:
    """To the minute, in UTC: what every name on the NAS is in."""
    return NOTHING if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"


def percent(value: float | None, *, digits: int = 2) -> str:
    """Never rounded up to 100 %: a promise that was broken once was not kept."""
    if value is None:
        return NOTHING
    if value < 100:
        value = min(value, 100 - 10**-digits)
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def number(value: int) -> str:
    """Thousands apart: 12 345."""
    return f"{value:,}".replace(",", " ")


def days(value: float | None) -> str:
    """A time that is far away: ``12 days``, ``3 months``, ``more than 10 years``."""
    if value is None:
        return NOTHING
    if value < 1:
        return "less than a day"
    if value < 90:
        return f"{value:.0f} day{'s' if round(value) != 1 else ''}"
    if value < 730:
        return f"{value / 30.44:.0f} months"
    return f"{value / 365.25:.0f} years" if value < 3653 else "more than 10 years"
