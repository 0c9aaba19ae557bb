"""Lengths of time and speeds as an operator writes them."""

from __future__ import annotations

import re
from datetime import timedelta

_DURATION = re.compile(r"([1-9][0-9]{0,4}) (minute|hour|day|week)s?", re.ASCII)
_RATE = re.compile(r"([1-9][0-9]{0,5}) (KiB|MiB|GiB)/s", re.ASCII)


def duration(text: str) -> timedelta:
    """From ``90 minutes``, ``26 hours``, ``2 days``, ``1 week``. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no length of time such as '90 minutes', '26 hours' or '2 days'")
    return timedelta(**{f"{match[2]}s": int(match[1])})


def rate(text: str) -> int:
    """Bytes a second, from ``200 MiB/s``. Raises ValueError."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no speed such as '200 MiB/s'")
    return int(match[1]) << {"KiB": 10, "MiB": 20, "GiB": 30}[match[2]]


def speed(bytes_per_second: int) -> str:
    """What ``rate`` reads as this; it has to be whole KiB, as whatever ``rate`` gives is."""
    unit = next(
        (shift, name)
        for shift, name in ((30, "GiB"), (20, "MiB"), (10, "KiB"))
        if bytes_per_second % (1 << shift) == 0 or shift == 10
    )
    return f"{bytes_per_second >> unit[0]} {unit[1]}/s"
