"""Did an unusual amount change, and are the volumes still the same? Against the VM's own history."""

from __future__ import annotations

from collections.abc import Iterator
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
    """A spike in, or the end of, what changes. Nothing is said while the newest backup is a full: it does not know."""
    recorded = [backup for backup in facts.recent if backup.status is BackupStatus.BACKED_UP]
    if not recorded or recorded[0].changed is None:
        return
    known = [backup.changed for backup in recorded if backup.changed is not None]
    newest, earlier = known[0], known[1:]
    if len(earlier) >= HISTORY:
        usual = median(earlier)
        if newest >= SPIKE_BYTES and newest > SPIKE_FACTOR * usual:
            yield Finding(
                kind=Kind.CHANGE_SPIKE,
                severity=Severity.WARNING,
                subject=subject_of(facts),
                text=f"{size(newest)} of {facts.vm} changed before {recorded[0].external_id}; "
                f"usually it is {size(usual)}.",
                hint="See whether so much was meant to be rewritten; until you know, `nasbackup pin` an older backup.",
            )
    if len(known) >= STILL + HISTORY and not any(known[:STILL]) and all(known[STILL:]):
        yield Finding(
            kind=Kind.NO_CHANGE,
            severity=Severity.WARNING,
            subject=subject_of(facts),
            text=f"Nothing of {facts.vm} has changed in its last {STILL} backups, where something always did.",
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
