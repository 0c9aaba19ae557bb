"""What a channel is told, in words and as JSON: one message with all that is due, however much it is. Pure.

Names and texts come from hosts and guests: each is made one line without control characters before it goes anywhere.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nasbackup.sla.alerts import FORGOTTEN, Event
from nasbackup.sla.findings import Kind, Severity, Subject, SubjectKind
from nasbackup.words import span

SHOWN = 100
"""Alerts that a message for people lists one by one."""

_LONGEST_TITLE = 150
_PREFIX = "[NAS backup]"
_FORGOTTEN = "no longer looked at"
_NOBODY = f"Nobody has looked for {span(FORGOTTEN)}: is the host still in fleet.yaml? The last that was seen:"
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Control and format characters (which turn the direction of a line round), line and paragraph separators."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """What is to be told of one alert: the event, and the alert as it is now."""

    delivery_id: int
    alert_id: int
    event: Event
    kind: Kind
    severity: Severity
    subject: Subject
    text: str
    hint: str
    opened_at: datetime
    closed_at: datetime | None = None
    forgotten: bool = False
    """It is closed because nobody looks at its subject any more, and may still be true."""

    @property
    def heading(self) -> str:
        """CRITICAL, WARNING or what became of it."""
        if self.event is Event.CLOSED:
            return "NO LONGER LOOKED AT" if self.forgotten else "OVER"
        now = {Event.OPENED: "", Event.RAISED: "now ", Event.LOWERED: "only "}[self.event]
        return f"{now}{self.severity.upper()}"


def in_order(notices: Sequence[Notice]) -> list[Notice]:
    """What is worst first, what is over last, and else the oldest first."""
    return sorted(
        notices, key=lambda n: (n.event is Event.CLOSED, n.severity is not Severity.CRITICAL, n.opened_at, n.alert_id)
    )


def title(notices: Sequence[Notice]) -> str:
    """One line, for a subject."""
    if len(notices) == 1:
        (notice,) = notices
        words = f"{_PREFIX} {notice.heading}: {one_line(notice.subject.label)}: {one_line(notice.text)}"
    else:
        counts = Counter(_in_a_word(notice) for notice in notices)
        parts = [f"{counts[word]} {word}" for word in ("critical", "warning", _FORGOTTEN, "over") if counts[word]]
        words = f"{_PREFIX} {', '.join(parts)}"
    return words if len(words) <= _LONGEST_TITLE else words[: _LONGEST_TITLE - 1] + "…"


def _in_a_word(notice: Notice) -> str:
    if notice.event is not Event.CLOSED:
        return notice.severity.value
    return _FORGOTTEN if notice.forgotten else "over"


def body(notices: Sequence[Notice], *, link: str) -> str:
    """Plain text, for chats and pagers."""
    blocks = []
    for notice in in_order(notices)[:SHOWN]:
        facts = facts_of(notice)
        lines = [f"{facts['heading']}: {facts['label']} ({facts['since']})", f"  {facts['text']}"]
        blocks.append("\n".join(lines if notice.event is Event.CLOSED else [*lines, f"  What to do: {facts['hint']}"]))
    if rest(notices):
        blocks.append(rest(notices))
    return "\n\n".join([*blocks, alerts_page(link)] if link else blocks)


def rest(notices: Sequence[Notice]) -> str:
    """How many the message does not list, as a sentence; empty when it lists all."""
    left_out = len(notices) - SHOWN
    return f"… and {left_out} more: `nasbackup alerts` lists all that are open." if left_out > 0 else ""


def facts_of(notice: Notice) -> dict[str, str]:
    """For the lines of a message; safe as plain text, not yet as HTML."""
    since = f"{notice.kind.value}, since {_utc(notice.opened_at)}"
    if notice.closed_at is not None:
        since = f"{notice.kind.value}, {_utc(notice.opened_at)} to {_utc(notice.closed_at)}"
    return {
        "heading": notice.heading,
        "event": notice.event.value,
        "severity": notice.severity.value,
        "label": one_line(notice.subject.label),
        "since": since,
        "text": f"{_NOBODY} {one_line(notice.text)}" if notice.forgotten else one_line(notice.text),
        "hint": one_line(notice.hint),
    }


def document(notices: Sequence[Notice], *, link: str) -> dict[str, Any]:
    """For programs (docs/alerts.md): all of them, whatever their number."""
    return {
        "source": "nasbackup",
        "version": 1,
        "title": title(notices),
        "link": alerts_page(link),
        "alerts": [
            {
                "alert": notice.alert_id,
                "event": notice.event.value,
                "kind": notice.kind.value,
                "severity": notice.severity.value,
                "subject_kind": notice.subject.kind.value,
                "subject": notice.subject.key,
                "label": notice.subject.label,
                "text": notice.text,
                "hint": notice.hint,
                "opened_at": notice.opened_at.isoformat(),
                "closed_at": notice.closed_at.isoformat() if notice.closed_at else None,
                "forgotten": notice.forgotten,
                "link": page_of(notice.subject, link=link),
            }
            for notice in in_order(notices)
        ],
    }


def alerts_page(link: str) -> str:
    """``link``: address of the fleet's page; empty where nobody knows it."""
    return f"{link}/alerts" if link else ""


def page_of(subject: Subject, *, link: str) -> str:
    """A VM has a page of its own."""
    return f"{link}/vms/{subject.key}" if link and subject.kind is SubjectKind.VM else alerts_page(link)


def one_line(text: str) -> str:
    """What stands for itself in a line: no control characters, and no more than one space at a time."""
    return " ".join("".join(" " if unicodedata.category(c) in _UNPRINTABLE else c for c in text).split())


def _utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
