"""Sizes and lengths of time in words, the same wherever they are said: tables, the page, alerts. Pure."""

from __future__ import annotations

from datetime import timedelta

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_LENGTHS = (("day", "d", 86_400), ("hour", "h", 3600), ("minute", "min", 60), ("second", "s", 1))


def size(count: float) -> str:
    """Bytes in the largest unit, of 1024 each, that leaves a whole number: ``12.4 GiB``, from 100 on ``115 GiB``."""
    value, unit = float(round(count)), 0
    while abs(value) >= 1023.5 and unit < len(_SIZES) - 1:
        value, unit = value / 1024, unit + 1
    text = f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.1f}"
    return f"{text.removesuffix('.0')} {_SIZES[unit]}"


def speed(bytes_per_second: float) -> str:
    return f"{size(bytes_per_second)}/s"


def short_span(seconds: float) -> str:
    """Where there is little room: ``3 h 12 min``, ``45 s``, ``2 d 4 h``."""
    return " ".join(f"{count} {short}" for count, _, short in _parts(seconds))


def span(length: timedelta) -> str:
    """In a sentence: ``1 day 2 hours``, ``40 minutes``, ``12 seconds``."""
    return " ".join(f"{count} {name}{'s' if count != 1 else ''}" for count, name, _ in _parts(length.total_seconds()))


def _parts(seconds: float) -> list[tuple[int, str, str]]:
    """The largest unit that counts and the one after it, with their numbers; to the minute from an hour on."""
    left = max(0, round(seconds))
    if left >= 60 * 60:
        left = round(left / 60) * 60
    parts: list[tuple[int, str, str]] = []
    for name, short, length in _LENGTHS:
        count, left = divmod(left, length)
        if count:
            parts.append((count, name, short))
        elif parts:
            break
        if len(parts) == 2:
            break
    return parts or [(0, "second", "s")]
