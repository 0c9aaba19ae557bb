"""The fleet's measurements as Prometheus metrics (docs/metrics.md). Pure.

A metric that is not known of a VM (it was never backed up, nothing was promised) has no series of that VM.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TypeVar

from prometheus_client.core import GaugeMetricFamily, Metric

from nasbackup.retention.capacity import Forecast
from nasbackup.sla.findings import Severity
from nasbackup.sla.measured import JudgedVm, LastBackup, LastDrill, LastVolume, Measurements, Name

T = TypeVar("T")

Labels = tuple[str, ...]
Known = Sequence[tuple[Labels, T]]
"""Things with the values of their labels."""

Gauges = Sequence[tuple[str, str, Callable[[T], float | None]]]
"""Name, meaning, and how to read it off a thing."""

VM_LABELS = ("vm", "uuid", "policy", "zone")

_DAY_SECONDS = 86_400


def _epoch(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _per_second(per_day: float | None) -> float | None:
    return None if per_day is None else per_day / _DAY_SECONDS


def _in_seconds(days: float | None) -> float | None:
    return None if days is None else days * _DAY_SECONDS


VMS: Gauges[JudgedVm] = (
    (
        "vm_newest_backup_timestamp_seconds",
        "Point in time of the newest restorable backup.",
        lambda vm: _epoch(vm.newest_at),
    ),
    ("vm_rpo_seconds", "The promise: a newest backup that is older is a breach.", lambda vm: vm.error_seconds),
    ("vm_rpo_warning_seconds", "A newest backup that is older is a warning.", lambda vm: vm.warn_seconds),
    ("vm_backups", "Restorable backups.", lambda vm: vm.backups),
    ("vm_backups_size_bytes", "Bytes of them on the NAS, and of those that wait for them.", lambda vm: vm.size),
    (
        "verify_timestamp_seconds",
        "Since when every layer of the newest backup has been read back.",
        lambda vm: _epoch(vm.verified_at),
    ),
    (
        "drill_success_timestamp_seconds",
        "When a restore drill last succeeded.",
        lambda vm: _epoch(vm.drilled_at),
    ),
)

BACKUPS: Gauges[LastBackup] = (
    ("backup_size_bytes", "Size of the newest backup on the NAS.", lambda backup: backup.size),
    ("backup_duration_seconds", "From its point in time until it was recorded.", lambda backup: backup.seconds),
    ("backup_incremental", "1 when every volume of it is incremental.", lambda backup: int(backup.incremental)),
    (
        "backup_changed_bytes",
        "What an incremental one read: it had changed since its parent.",
        lambda backup: backup.changed,
    ),
    ("verify_success", "1 when all volumes of it were read back.", lambda backup: int(backup.verified)),
)

VOLUMES: Gauges[LastVolume] = (
    ("volume_virtual_size_bytes", "Size that the guest sees.", lambda volume: volume.virtual_size),
    ("volume_read_bytes", "What the newest backup read of it.", lambda volume: volume.bytes_read),
    ("volume_copy_duration_seconds", "What its copy took.", lambda volume: volume.copy_seconds),
)

DRILLS: Gauges[LastDrill] = (
    ("drill_success", "1 when the last restore drill succeeded.", lambda drill: int(drill.ok)),
    ("drill_timestamp_seconds", "When the last restore drill ended.", lambda drill: _epoch(drill.finished_at)),
    (
        "drill_rto_seconds",
        "From the begin of the last successful drill until the guest answered.",
        lambda drill: drill.rto_seconds,
    ),
)

REPOSITORIES: Gauges[Forecast] = (
    ("repository_size_bytes", "Of its file system.", lambda found: found.now.total),
    ("repository_free_bytes", "Of its file system.", lambda found: found.now.free),
    ("repository_backups_size_bytes", "Of the backups that the catalog knows.", lambda found: found.now.backups),
    (
        "repository_growth_bytes_per_second",
        "The straight line through the last 30 days.",
        lambda found: _per_second(found.growth_per_day),
    ),
    (
        "repository_full_in_seconds",
        "At that growth; none while it does not grow.",
        lambda found: _in_seconds(found.full_in_days),
    ),
    (
        "repository_measured_timestamp_seconds",
        "When it was measured.",
        lambda found: _epoch(found.now.measured_at),
    ),
)


def families(found: Measurements, *, volumes: bool = True) -> Iterator[Metric]:
    """``volumes``: also what there is a series of per volume."""
    yield from _fleet(found)
    vms = [(_labels(vm.name), vm) for vm in found.vms]
    yield _gauge(
        "vm_status",
        "1 for the status that the last look gave the VM.",
        (*VM_LABELS, "status"),
        [((*labels, vm.status), 1) for labels, vm in vms],
    )
    yield from _all(VMS, labels=VM_LABELS, of=vms)
    backups = [((*_labels(backup.name), backup.repository), backup) for backup in found.last]
    yield from _all(BACKUPS, labels=(*VM_LABELS, "repository"), of=backups)
    if volumes:
        named = [((*labels, volume.name), volume) for labels, backup in backups for volume in backup.volumes]
        yield from _all(VOLUMES, labels=(*VM_LABELS, "repository", "volume"), of=named)
    yield from _all(DRILLS, labels=VM_LABELS, of=[(_labels(drill.name), drill) for drill in found.drills])
    repositories = [((name,), forecast) for name, forecast in found.repositories.items()]
    yield from _all(REPOSITORIES, labels=("repository",), of=repositories)


def _fleet(found: Measurements) -> Iterator[Metric]:
    looked_at = _epoch(found.looked_at)
    yield _gauge("last_look_timestamp_seconds", "When nas_sla_watch last looked at every host.", (), [((), looked_at)])
    counts = Counter((vm.status, vm.name.policy, vm.name.zone) for vm in found.vms)
    yield _gauge("vms", "VMs by what the last look found.", ("status", "policy", "zone"), sorted(counts.items()))
    yield _gauge(
        "compliance_ratio",
        "Part of the looks that found a VM of the policy within its RPO.",
        ("policy", "window"),
        [((policy, f"{days}d"), ratio) for (policy, days), ratio in found.compliance.items()],
    )
    yield _gauge(
        "alerts_open",
        "Alerts that are open.",
        ("severity",),
        [((severity.value,), found.alerts.get(severity.value, 0)) for severity in Severity],
    )
    yield _gauge(
        "alert_deliveries_pending",
        "What is still to be told through the channel.",
        ("channel",),
        [((channel,), count) for channel, count in found.undelivered.items()],
    )
    yield _gauge("backups", "Backups in the catalog.", ("repository", "type", "status"), sorted(found.backups.items()))


def _all(gauges: Gauges[T], *, labels: Labels, of: Known[T]) -> Iterator[Metric]:
    for name, meaning, read in gauges:
        yield _gauge(name, meaning, labels, [(values, read(thing)) for values, thing in of])


def _gauge(name: str, meaning: str, labels: Labels, samples: Iterable[tuple[Labels, float | None]]) -> Metric:
    family = GaugeMetricFamily(f"nasbackup_{name}", meaning, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, value)
    return family


def _labels(name: Name) -> Labels:
    return (name.vm, name.uuid, name.policy, name.zone)
