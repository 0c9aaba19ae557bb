"""Numbers as people read them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

NOTHING = "\N{EN DASH}"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: float | None) -> str:
    """Bytes in the largest unit that leaves a whole number: ``12.4 GiB``."""
    if count is None:
        return NOTHING
    value, unit = float(count), 0
    while abs(value) >= 1023.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    text = f"{value:.0f}" if unit == 0 or abs(value) >= 99.95 else f"{value:.1f}"
    return f"{text.removesuffix('.0')} {_UNITS[unit]}"


def speed(count: float | None) -> str:
    return NOTHING if count is None else f"{size(count)}/s"


def span(seconds: float | None) -> str:
    """In the two largest units that count: ``3 h 12 min``, ``45 s``, ``2 d 4 h``."""
    if seconds is None:
        return NOTHING
    left = max(0, round(seconds))
    if left >= 60 * 60:
        left = round(left / 60) * 60
    parts = []
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts) or "0 s"


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
