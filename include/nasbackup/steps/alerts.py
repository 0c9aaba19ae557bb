"""What one look found becomes alerts, and alerts become messages.

::

    look ── settle ─▶ alert, alert_delivery ── deliver[channel] ─▶ people

``settle`` writes what is to be told in the transaction that changes the alert. ``deliver`` tells it, and notes that it
did: a process that dies between the two tells it twice, none forgets it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime

from nasbackup.catalog import Database, alerts, late, looks
from nasbackup.errors import AlertNotDelivered, ChannelRefused
from nasbackup.sla.alerts import Changes, Identity, OpenAlert, Scope, changes, identity
from nasbackup.sla.channels import Channel, ChannelType
from nasbackup.sla.findings import Finding, Kind, Subject, SubjectKind
from nasbackup.sla.messages import Notice
from nasbackup.sla.settings import OF_AIRFLOW, PREFIX

log = logging.getLogger(__name__)

Send = Callable[[Sequence[Notice]], None]
"""Delivers one message. Raises ChannelRefused, with the reason in words and no secret in it."""

_AT_ONCE = {ChannelType.WEBHOOK: 500}
"""Notices in one message: programs get all, in portions; people get one message, which lists the first."""

_NO_LIMIT = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """``busy``: another process is delivering to this channel; what is left is left to it, or to the next look."""

    channel: str
    notices: int = 0
    messages: int = 0
    busy: bool = False


def settle(
    database: Database,
    *,
    findings: Sequence[Finding],
    looked_at: Iterable[Subject],
    channels: Sequence[Channel],
    now: datetime,
    scopes: Mapping[Identity, Scope] | None = None,
    anywhere: Container[Kind] = (),
) -> Changes:
    """Open, update and close alerts (``sla.alerts``), and put what is to be told into the outbox.

    ``looked_at``: what was judged, healthy or not. VMs that no host defines any more need not be in it. ``anywhere``:
    kinds that were looked for everywhere. Call it after the look has written ``sla_status``: from there come zone and
    policy of the VMs; ``scopes`` adds those of others.
    """
    looked = {identity(subject) for subject in looked_at}
    with database.transaction() as cursor:
        alerts.begin_look(cursor)
        gone, judged = alerts.vms_that_are_gone(cursor), alerts.vm_scopes(cursor)
        recent = looks.recent(cursor, now=now)
        ours = _ours(looked, judged=judged, gone=gone, hosts=recent)
        dropped = alerts.drop_for_nobody(
            cursor, channels=[channel.name for channel in channels], subjects=ours, now=now
        )
        known, still_late = alerts.open_alerts(cursor), late.still(cursor, now=now)
        again = [alert.finding for alert in known if alert.alert_id in still_late]
        changed = changes(
            known,
            [*findings, *(finding for finding in again if identity(finding.subject) in looked)],
            looked_at=looked | gone.keys() | _without_hosts(known, hosts=recent),
            ours=ours,
            channels=channels,
            scopes={**judged, **(scopes or {})},
            now=now,
            anywhere=anywhere,
        )
        alerts.apply(cursor, changed, now=now)
    for channel, count in dropped.items():
        log.warning("%s is not in fleet.yaml: %d notices that waited for it for a day are dropped", channel, count)
    return changed


def _ours(
    looked: Set[Identity], *, judged: Iterable[Identity], gone: Mapping[Identity, str], hosts: Set[str]
) -> set[Identity]:
    """What only this fleet looks at, with those of its VMs that are gone: nothing, when another shares the catalog.

    So it is when VMs are judged, or ``hosts`` looked at, that are not here. A repository may be the other's as well,
    and a VM may have come from there, where its alert was told.
    """
    here = {key for kind, key in looked if kind is SubjectKind.HOST}
    if any(vm not in looked and vm not in gone for vm in judged) or not hosts <= here:
        return set()
    return {*looked, *(vm for vm, host in gone.items() if host in here)}


def _without_hosts(known: Sequence[OpenAlert], *, hosts: Set[str]) -> set[Identity]:
    """Airflows of which alerts are open and that are named by a host that nobody looks at any more: it went when
    fleet.yaml was put right."""
    airflows = [alert.finding.subject for alert in known if alert.finding.kind in OF_AIRFLOW]
    return {identity(subject) for subject in airflows if subject.key.removeprefix(PREFIX) not in hosts}


def deliver(database: Database, *, channel: Channel, send: Send, now: datetime) -> Delivered:
    """Tell what is pending for the channel. Raises AlertNotDelivered; what was not told stays pending.

    The transaction stays open while a message is on its way: a look does not change what is being told.
    """
    told = messages = 0
    while True:
        with database.transaction() as cursor:
            if not alerts.begin_delivery(cursor, channel=channel.name):
                return Delivered(channel=channel.name, notices=told, messages=messages, busy=True)
            notices = alerts.pending(cursor, channel=channel.name, limit=_AT_ONCE.get(channel.type, _NO_LIMIT))
            if not notices:
                return Delivered(channel=channel.name, notices=told, messages=messages)
            refused = _refused(send, notices)
            numbers = [notice.delivery_id for notice in notices]
            if refused is None:
                alerts.delivered(cursor, delivery_ids=numbers, now=now)
            else:
                alerts.not_delivered(cursor, delivery_ids=numbers, error=refused)
        if refused is not None:
            raise AlertNotDelivered(
                count=len(notices), channel=channel.name, connection=channel.connection, reason=refused
            )
        told, messages = told + len(notices), messages + 1


def _refused(send: Send, notices: Sequence[Notice]) -> str | None:
    """Why it could not be delivered. (The note of it has to be committed, so nothing is raised here.)"""
    try:
        send(notices)
    except ChannelRefused as error:
        return str(error)
    return None
