"""Did an unusual amount change, and are the volumes still the same? Against the VM's own history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from nasbackup.model import BackupStatus
from nasbackup.sla.facts import RecentBackup, VmFacts
from nasbackup.sla.findings import Finding, Kind, Severity
from nasbackup.sla.freshness import subject_of
from nasbackup.words import size

HISTORY = 5
"""Incrementals that have to be known before one is called unusual."""

SPIKE_FACTOR = 10
SPIKE_BYTES = 256 << 20
"""Mass rewriting, as ransomware does, is many times what changes on other days, and not a few megabytes."""

STILL = 2
"""So many incrementals without any change, where there always was some, say that the guest no longer writes."""


def volume(facts: VmFacts) -> Iterator[Finding]:
    """A spike in, or the end of, what changes, by the newest incremental: a full does not know what changed.

    So a full neither begins nor ends what is said here.
    """
    incrementals = [
        (backup.external_id, backup.changed)
        for backup in facts.recent
        if backup.status is BackupStatus.BACKED_UP and backup.changed is not None
    ]
    if len(incrementals) <= HISTORY:
        return
    known = [changed for _, changed in incrementals]
    yield from _spike(facts, external_id=incrementals[0][0], newest=known[0], usual=median(known[1:]))
    yield from _silence(facts, known=known)


def _spike(facts: VmFacts, *, external_id: str, newest: int, usual: float) -> Iterator[Finding]:
    if newest >= SPIKE_BYTES and newest > SPIKE_FACTOR * usual:
        yield Finding(
            kind=Kind.CHANGE_SPIKE,
            severity=Severity.WARNING,
            subject=subject_of(facts),
            text=f"{size(newest)} of {facts.vm} changed before {external_id}; usually it is {size(usual)}.",
            hint="See whether so much was meant to be rewritten; until you know, `nasbackup pin` an older backup.",
        )


def _silence(facts: VmFacts, *, known: Sequence[int]) -> Iterator[Finding]:
    """However long it has lasted, what was before it is the history; as long as that is among what is looked at."""
    still = next((number for number, changed in enumerate(known) if changed), len(known))
    before = known[still : still + HISTORY]
    if still >= STILL and len(before) == HISTORY and all(before):
        yield Finding(
            kind=Kind.NO_CHANGE,
            severity=Severity.WARNING,
            subject=subject_of(facts),
            text=f"Nothing of {facts.vm} has changed in its last {still} incremental backups, where something always "
            "did.",
            hint="See whether the guest is still at work, and whether it still writes to these volumes.",
        )


def schema(facts: VmFacts) -> Iterator[Finding]:
    """Volumes that came, went or grew between the newest backup and the one before it."""
    recorded = [backup for backup in facts.recent if backup.status is BackupStatus.BACKED_UP]
    if len(recorded) < 2:
        return
    changes = _differences(newer=recorded[0], older=recorded[1])
    if changes:
        yield Finding(
            kind=Kind.VOLUMES_CHANGED,
            severity=Severity.WARNING,
            subject=subject_of(facts),
            text=f"The volumes of {facts.vm} are others since {recorded[0].external_id}: {'; '.join(changes)}.",
            hint="Nothing to do when this was meant: the next backup closes the alert.",
        )


def _differences(*, newer: RecentBackup, older: RecentBackup) -> list[str]:
    changes = [f"{source} came" for source in sorted(set(newer.volumes) - set(older.volumes))]
    changes += [f"{source} went" for source in sorted(set(older.volumes) - set(newer.volumes))]
    for source in sorted(set(newer.volumes) & set(older.volumes)):
        before, after = older.volumes[source], newer.volumes[source]
        if before != after:
            changes.append(f"{source} {'grew' if after > before else 'shrank'} from {size(before)} to {size(after)}")
    return changes
