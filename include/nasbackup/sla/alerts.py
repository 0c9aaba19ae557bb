"""From the open alerts and the findings of one look to what changes, and who is told what. Pure.

An alert is named by its kind and its subject. It is opened by the first look that finds it, goes on as long as looks
find it, and is closed by the first look that had its subject before it and does not find it any more. Told are:

- its opening, to every channel that wants it;
- a change of its severity, to those that were told. A channel that wants only critical alerts and now gets to hear
  of this one is told that it was opened. A text that changed (an age that grew) is told nobody;
- its end, to those that were told of it. Nobody is told of one that was over before anybody was. That nobody looks
  at its subject any more is an end too, and told as such.

A channel that is new in fleet.yaml is not told of what was open before it, unless that gets worse; one that went from
it is told nothing any more.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from nasbackup.sla.channels import Channel
from nasbackup.sla.findings import Finding, Kind, Severity, Subject, SubjectKind

Identity = tuple[SubjectKind, str]
"""Of a subject: its kind and key. (Its label may change.)"""

CALM: Mapping[Kind, timedelta] = {
    Kind.HOST_SILENT: timedelta(minutes=15),
    Kind.REPOSITORY_FILLING: timedelta(hours=1),
    Kind.FLEET_INVALID: timedelta(minutes=15),  # workers may have files of their own
    Kind.SETTING_INVALID: timedelta(minutes=15),
}
"""What comes and goes by itself is over, or less severe, when it was not found for so long; all else at once."""

ANYWHERE = frozenset({Kind.HOST_DROPPED})
"""What every fleet's look would find, of whichever subject, and is over when one does not."""

FORGOTTEN = timedelta(days=7)
"""What was not looked at for so long (its host went from fleet.yaml) is closed: nobody would ever say that it is over,
and nobody knows whether it is."""

_RANK = {Severity.WARNING: 0, Severity.CRITICAL: 1}


class Event(StrEnum):
    """What a channel is told of an alert."""

    OPENED = "opened"
    RAISED = "raised"
    LOWERED = "lowered"
    CLOSED = "closed"


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What channels can be limited to, as far as the subject has it."""

    zone: str | None = None
    policy: str | None = None


NOWHERE = Scope()


@dataclass(frozen=True, kw_only=True)
class OpenAlert:
    """``confirmed_at``: the last look that found it as severe as this. ``told``: channels that heard of it;
    ``waiting``: those to which its opening is still to be delivered."""

    alert_id: int
    finding: Finding
    opened_at: datetime
    confirmed_at: datetime
    told: frozenset[str] = frozenset()
    waiting: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Opening:
    finding: Finding
    channels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Update:
    """``due``: (channel, event); ``withdrawn``: channels that need not hear of its opening any more."""

    alert_id: int
    finding: Finding
    due: tuple[tuple[str, Event], ...] = ()
    withdrawn: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Closing:
    """``forgotten``: not because it was not found, but because nobody has looked."""

    alert_id: int
    channels: tuple[str, ...] = ()
    forgotten: bool = False


@dataclass(kw_only=True)
class Changes:
    """``confirmed``: numbers of the open alerts that this look found again, as severe as they are."""

    opened: list[Opening] = field(default_factory=list)
    updated: list[Update] = field(default_factory=list)
    closed: list[Closing] = field(default_factory=list)
    confirmed: list[int] = field(default_factory=list)


def identity(subject: Subject) -> Identity:
    return subject.kind, subject.key


def changes(
    open_alerts: Collection[OpenAlert],
    findings: Sequence[Finding],
    *,
    looked_at: Container[Identity],
    ours: Container[Identity],
    channels: Sequence[Channel],
    scopes: Mapping[Identity, Scope],
    now: datetime,
    anywhere: Container[Kind] = (),
) -> Changes:
    """``looked_at``: subjects that could be judged this time. What is not in it (VMs of a host that does not answer)
    keeps its alerts; what is known to exist no more belongs in it. ``ours``: those that no other fleet that shares the
    catalog looks at. Whoever was told of the others may be a channel of such a fleet. ``anywhere``: kinds that would
    have been found of any subject."""
    result = Changes()
    found = _most_severe(findings)
    known = frozenset(channel.name for channel in channels)
    for alert in open_alerts:
        if identity(alert.finding.subject) in ours:
            alert = replace(alert, told=alert.told & known)  # as far as there is still anybody to tell
        finding = found.pop((alert.finding.kind, *identity(alert.finding.subject)), None)
        if finding is not None:
            _go_on(alert, finding, channels=channels, scopes=scopes, now=now, result=result)
        elif alert.finding.kind in anywhere or identity(alert.finding.subject) in looked_at:
            if _calm(alert, now=now):
                result.closed.append(Closing(alert_id=alert.alert_id, channels=tuple(sorted(alert.told))))
        elif now - alert.confirmed_at >= FORGOTTEN:
            result.closed.append(Closing(alert_id=alert.alert_id, channels=tuple(sorted(alert.told)), forgotten=True))
    for finding in found.values():
        names = tuple(channel.name for channel in channels if _wants(channel, finding, scopes=scopes))
        result.opened.append(Opening(finding=finding, channels=names))
    return result


def _go_on(
    alert: OpenAlert,
    finding: Finding,
    *,
    channels: Sequence[Channel],
    scopes: Mapping[Identity, Scope],
    now: datetime,
    result: Changes,
) -> None:
    step = _RANK[finding.severity] - _RANK[alert.finding.severity]
    if step < 0 and not _calm(alert, now=now):
        return  # it stays as severe as it was, and what is said of it as well
    result.confirmed.append(alert.alert_id)
    if finding == alert.finding:
        return
    update = Update(alert_id=alert.alert_id, finding=finding)
    if step:
        known = {channel.name for channel in channels}
        wanting = {channel.name for channel in channels if _wants(channel, finding, scopes=scopes)}
        event = Event.RAISED if step > 0 else Event.LOWERED
        new = wanting - alert.told - alert.waiting if step > 0 else set()
        update = replace(
            update,
            due=tuple([(name, event) for name in sorted(alert.told)] + [(name, Event.OPENED) for name in sorted(new)]),
            withdrawn=tuple(name for name in sorted(alert.waiting - wanting) if name in known) if step < 0 else (),
        )
    result.updated.append(update)


def _calm(alert: OpenAlert, *, now: datetime) -> bool:
    return now - alert.confirmed_at >= CALM.get(alert.finding.kind, timedelta(0))


def _wants(channel: Channel, finding: Finding, *, scopes: Mapping[Identity, Scope]) -> bool:
    scope = scopes.get(identity(finding.subject), NOWHERE)
    return channel.wants(severity=finding.severity, zone=scope.zone, policy=scope.policy)


def _most_severe(findings: Sequence[Finding]) -> dict[tuple[Kind, SubjectKind, str], Finding]:
    """One per alert: a look may come to the same by two ways."""
    found: dict[tuple[Kind, SubjectKind, str], Finding] = {}
    for finding in findings:
        name = (finding.kind, *identity(finding.subject))
        if name not in found or _RANK[finding.severity] > _RANK[found[name].severity]:
            found[name] = finding
    return found
