"""Windows in which no backup is begun: ``Mon-Fri 08:00-18:00``, ``22:00-02:00`` (every day, past midnight)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Self
from zoneinfo import ZoneInfo

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

_WINDOW = re.compile(
    r"(?:(?P<days>[A-Z][a-z]{2}(?:[-,][A-Z][a-z]{2})*) )?"
    r"(?P<start>(?:[01][0-9]|2[0-3]):[0-5][0-9])-(?P<end>(?:[01][0-9]|2[0-3]):[0-5][0-9]|24:00)",
    re.ASCII,
)


@dataclass(frozen=True, kw_only=True)
class Blackout:
    """``days``: numbers of the days on which the window begins, Monday is 0. It ends on the next day when ``end`` is
    not later than ``start``. Times are those on the wall, also on a day on which the clock is changed.
    """

    days: frozenset[int]
    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError."""
        match = _WINDOW.fullmatch(text)
        days = None if match is None else _days(match["days"])
        if match is None or days is None:
            raise ValueError(
                f"{text!r} is no window such as 'Mon-Fri 08:00-18:00', 'Sat,Sun 10:00-12:00' or '22:00-02:00'"
            )
        end = "00:00" if match["end"] == "24:00" else match["end"]
        if match["start"] == match["end"]:
            raise ValueError(f"{text!r} is empty: it ends when it begins (a whole day is 00:00-24:00)")
        return cls(days=days, start=time.fromisoformat(match["start"]), end=time.fromisoformat(end))

    def ends(self, now: datetime, *, timezone: str) -> datetime | None:
        """When the window that ``now`` is in ends; None: it is in none. Aware times."""
        local = now.astimezone(ZoneInfo(timezone))
        for back in (0, 1):
            day = local.date() - timedelta(days=back)
            if day.weekday() not in self.days:
                continue
            until = day + timedelta(days=self.end <= self.start)
            start = datetime.combine(day, self.start, tzinfo=local.tzinfo)
            end = datetime.combine(until, self.end, tzinfo=local.tzinfo)
            if start.timestamp() <= now.timestamp() < end.timestamp():
                return end
        return None


def open_at(windows: Sequence[Blackout], now: datetime, *, timezone: str) -> datetime:
    """The first moment from ``now`` on that is in no window; ``now`` itself when it is in none.

    Raises ValueError when the windows leave no such moment within two weeks.
    """
    moment = now
    while ends := [end for window in windows if (end := window.ends(moment, timezone=timezone))]:
        moment = max(ends)
        if moment - now > timedelta(days=14):
            raise ValueError("the blackout windows leave no time for a backup")
    return moment


def _days(text: str | None) -> frozenset[int] | None:
    """Every day without a word; None: not understood."""
    if text is None:
        return frozenset(range(7))
    found: set[int] = set()
    for part in text.split(","):
        names = part.split("-")
        if len(names) > 2 or any(name not in DAYS for name in names):
            return None
        first, last = DAYS.index(names[0]), DAYS.index(names[-1])
        found.update((first + offset) % 7 for offset in range((last - first) % 7 + 1))
    return frozenset(found)
