"""What people hear of alerts, whoever keeps the book: a machine that looks, lets channels fail, and listens.

``tests/unit`` runs it on a book in memory, ``tests/integration`` on PostgreSQL.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from nasbackup.sla import LOOK_EVERY
from nasbackup.sla.alerts import CALM, Changes, Event, Identity, OpenAlert, Scope, changes, identity
from nasbackup.sla.channels import Channel, ChannelType
from nasbackup.sla.findings import Finding, Kind, Severity, Subject, SubjectKind

BEGIN = datetime(2026, 1, 31, 22, 0, tzinfo=UTC)

EAST = Subject(kind=SubjectKind.VM, key="5b1f2c1e-0000-4000-8000-000000000001", label="i-2-1-VM")
WEST = Subject(kind=SubjectKind.VM, key="5b1f2c1e-0000-4000-8000-000000000002", label="i-2-2-VM")
HOST = Subject(kind=SubjectKind.HOST, key="kvm_one", label="kvm_one")
SCOPES = {
    identity(EAST): Scope(zone="east", policy="gold"),
    identity(WEST): Scope(zone="west", policy="silver"),
}
EVERYTHING = frozenset({EAST, WEST, HOST})

MAIL = Channel(name="mail", type=ChannelType.SMTP, connection="smtp_ops")
PAGER = Channel(name="pager", type=ChannelType.WEBHOOK, connection="http_pager", severity=Severity.CRITICAL)
EAST_CHAT = Channel(name="east_chat", type=ChannelType.APPRISE, connection="chat", zones=("east",))
CHANNELS = (MAIL, PAGER, EAST_CHAT)

# One that is over at once, one that has to stay away for a while.
NAMES = ((Kind.STALE, EAST), (Kind.STALE, WEST), (Kind.FAILING, EAST), (Kind.HOST_SILENT, HOST))


def finding(kind: Kind = Kind.STALE, subject: Subject = EAST, **changes: Any) -> Finding:
    text = {"text": "The newest restorable backup is 27 hours old.", "hint": "Look at the VM's last runs."}
    return replace(Finding(kind=kind, severity=Severity.WARNING, subject=subject, **text), **changes)


@dataclass(frozen=True)
class Heard:
    alert_id: int
    channel: str
    event: Event
    severity: Severity


class Book(Protocol):
    def look(
        self, findings: Sequence[Finding], looked_at: Iterable[Subject], channels: Sequence[Channel], now: datetime
    ) -> Changes: ...

    def open_alerts(self) -> list[OpenAlert]: ...

    def deliver(self, channel: Channel, now: datetime, *, works: bool) -> list[Heard]:
        """What the channel hears now."""


@dataclass
class MemoryBook:
    """The rules of ``catalog/alerts.py`` without a database."""

    alerts: dict[int, OpenAlert] = field(default_factory=dict)
    severities: dict[int, Severity] = field(default_factory=dict)
    pending: list[tuple[int, str, Event]] = field(default_factory=list)

    def open_alerts(self) -> list[OpenAlert]:
        return list(self.alerts.values())

    def look(
        self, findings: Sequence[Finding], looked_at: Iterable[Subject], channels: Sequence[Channel], now: datetime
    ) -> Changes:
        names = {identity(subject) for subject in looked_at}
        found = changes(
            self.open_alerts(), findings, looked_at=names, ours=names, channels=channels, scopes=SCOPES, now=now
        )
        for number in found.confirmed:
            self.alerts[number] = replace(self.alerts[number], confirmed_at=now)
        for opening in found.opened:
            number = len(self.severities) + 1
            self.alerts[number] = OpenAlert(alert_id=number, finding=opening.finding, opened_at=now, confirmed_at=now)
            self._note(number, [(channel, Event.OPENED) for channel in opening.channels])
        for update in found.updated:
            number = update.alert_id
            self.alerts[number] = replace(self.alerts[number], finding=update.finding)
            withdrawn = [(number, channel, Event.OPENED) for channel in update.withdrawn]
            self.pending = [due for due in self.pending if due not in withdrawn]
            if update.due:
                self.pending = [due for due in self.pending if due[0] != number or due[2] is Event.OPENED]
            self._note(number, update.due)
        for closing in found.closed:
            self.pending = [due for due in self.pending if due[0] != closing.alert_id]
            self._note(closing.alert_id, [(channel, Event.CLOSED) for channel in closing.channels])
            del self.alerts[closing.alert_id]
        return found

    def _note(self, number: int, due: Sequence[tuple[str, Event]]) -> None:
        self.pending += [(number, channel, event) for channel, event in due]
        if number in self.alerts:
            self.severities[number] = self.alerts[number].finding.severity
            waiting = frozenset(c for n, c, event in self.pending if n == number and event is Event.OPENED)
            self.alerts[number] = replace(self.alerts[number], waiting=waiting)

    def deliver(self, channel: Channel, now: datetime, *, works: bool) -> list[Heard]:
        if not works:
            return []
        due = [entry for entry in self.pending if entry[1] == channel.name]
        self.pending = [entry for entry in self.pending if entry[1] != channel.name]
        for number, name, event in due:
            if event is Event.OPENED:
                alert = self.alerts[number]
                self.alerts[number] = replace(alert, told=alert.told | {name}, waiting=alert.waiting - {name})
        return [Heard(number, name, event, self.severities[number]) for number, name, event in due]


class AlertMachine(RuleBasedStateMachine):
    """Looks find this and that, hosts are away, channels are down; subclasses say who keeps the book."""

    make_book: Callable[[], Book]

    def __init__(self) -> None:
        super().__init__()
        self.book = type(self).make_book()
        self.now = BEGIN
        self.heard: dict[tuple[int, str], list[Heard]] = defaultdict(list)
        self.seen: dict[tuple[Kind, Identity], tuple[int, datetime]] = {}
        self.present: dict[tuple[Kind, Identity], Severity] = {}

    @rule(
        found=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(list(Severity)), max_size=4),
        unseen=st.sets(st.sampled_from([EAST, WEST, HOST]), max_size=2),
        later=st.integers(min_value=1, max_value=5),
    )
    def look(self, found: dict[tuple[Kind, Subject], Severity], unseen: set[Subject], later: int) -> None:
        self.now += LOOK_EVERY * later
        findings = [
            finding(kind, subject, severity=severity, text=f"as of {self.now}")
            for (kind, subject), severity in found.items()
            if subject not in unseen
        ]
        before = {(a.finding.kind, identity(a.finding.subject)): a for a in self.book.open_alerts()}
        self.book.look(findings, EVERYTHING - unseen, CHANNELS, self.now)
        after = {(a.finding.kind, identity(a.finding.subject)): a for a in self.book.open_alerts()}
        expected = {(kind, identity(subject)) for (kind, subject) in found if subject not in unseen}
        assert expected <= set(after), "what was found is open"
        for name, alert in before.items():
            again = after.get(name)
            if name in expected or name[1] in {identity(subject) for subject in unseen}:
                assert again is not None, "still true, or nobody could ask: not closed"
                assert (again.alert_id, again.opened_at) == (alert.alert_id, alert.opened_at), "opened once"
            elif self.now - alert.confirmed_at >= CALM.get(name[0], timedelta(0)):
                assert again is None, "it is over"
            else:
                assert again is not None, "it has not been away for long enough"

    @rule(channel=st.sampled_from(CHANNELS), works=st.booleans())
    def deliver(self, channel: Channel, works: bool) -> None:
        for heard in self.book.deliver(channel, self.now, works=works):
            story = self.heard[heard.alert_id, heard.channel]
            if not story:
                assert heard.event is Event.OPENED, "nobody hears of the end of what they never heard of"
                assert channel.severity is Severity.WARNING or heard.severity is Severity.CRITICAL
            else:
                assert story[-1].event is not Event.CLOSED, "it is over once"
                assert heard.event is not Event.OPENED, "no repetition"
            story.append(heard)
        assert self.book.deliver(channel, self.now, works=works) == [], "what was told is not told again"

    @invariant()
    def one_open_alert_per_kind_and_subject(self) -> None:
        names = [(alert.finding.kind, identity(alert.finding.subject)) for alert in self.book.open_alerts()]
        assert len(names) == len(set(names))

    def teardown(self) -> None:
        """Everything is healthy for long, every channel works: nothing is open, all who heard of it hear that."""
        self.now += timedelta(hours=2)
        self.book.look([], EVERYTHING, CHANNELS, self.now)
        assert self.book.open_alerts() == []
        for channel in CHANNELS:
            self.deliver(channel, works=True)
        for story in self.heard.values():
            assert story[-1].event is Event.CLOSED
