"""The drawn example of docs/retention.md is what the simulation says."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from nasbackup.retention.rules import RetentionRules
from nasbackup.retention.simulate import simulate

DOCUMENT = Path(__file__).parents[2] / "docs" / "retention.md"
MARK = {"BackedUp": "●", "DeletePending": "◌"}


def test_the_drawn_example() -> None:
    *_, before, last = simulate(
        rules=RetentionRules(keep_last=2, keep_weekly=3),
        timezone="UTC",
        days=18,
        full_every=4,
        start=datetime(2026, 1, 5, 22, tzinfo=UTC),
    )
    found = {f"{point.created_at:%a} {point.created_at.day}": MARK[point.status] for point, _, _ in last.verdicts}
    heading, _, drawn = (line for line in DOCUMENT.read_text().split("```")[5].splitlines()[1:4])
    days = [day for day in found if day in heading]
    assert days == list(found), "every backup that is left is drawn"
    assert {day: drawn[heading.index(day)] for day in days} == found
    assert drawn.split() == ["gone", "◌", "◌", "●", "gone", "gone", "◌", "●", "gone", "gone", "●", "●"]
    rules = {rule for point, _, rule in last.verdicts if point.status == "BackedUp"}
    assert rules == {"keep_weekly", "keep_last"}
    the_day_before = {point.created_at.day: point.status for point, _, _ in before.verdicts}
    assert (the_day_before[19], the_day_before[20]) == ("DeletePending", "BackedUp"), "as the text below says"
