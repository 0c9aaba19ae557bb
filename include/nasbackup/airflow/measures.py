"""Numbers through Airflow's own metrics (StatsD or OpenTelemetry, as airflow.cfg says): the fleet, not each VM.

What they are about is part of their name, since plain StatsD has no tags: ``nasbackup.vms.critical`` (docs/metrics.md).
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import timedelta

from airflow.sdk.observability import stats

from nasbackup.model import Backup, BackupVolume
from nasbackup.sla.findings import Severity
from nasbackup.sla.measured import Measurements
from nasbackup.sla.verdict import Status

_UNNAMEABLE = re.compile(r"[^A-Za-z0-9_-]")


def emit(found: Measurements) -> None:
    """Gauges of the fleet, after each look."""
    statuses = Counter(vm.status for vm in found.vms)
    for status in Status:
        stats.gauge(f"nasbackup.vms.{status}", statuses[status])
    for severity in Severity:
        stats.gauge(f"nasbackup.alerts_open.{severity}", found.alerts.get(severity, 0))
    for (policy, days), ratio in found.compliance.items():
        stats.gauge(f"nasbackup.compliance.{_part(policy)}.{days}d", ratio)
    for repository, forecast in found.repositories.items():
        name = f"nasbackup.repository.{_part(repository)}"
        stats.gauge(f"{name}.size_bytes", forecast.now.total)
        stats.gauge(f"{name}.free_bytes", forecast.now.free)
        if forecast.full_in_days is not None:
            stats.gauge(f"{name}.full_in_days", forecast.full_in_days)


def copied(volume: BackupVolume) -> None:
    """One volume of a backup."""
    if volume.copy_seconds is not None:
        stats.timing(f"nasbackup.copy.{volume.type.lower()}", timedelta(seconds=volume.copy_seconds))
    stats.incr("nasbackup.copy.bytes_read", volume.bytes_read or 0)
    stats.incr("nasbackup.copy.bytes_written", volume.bytes_written or 0)


def recorded(backup: Backup) -> None:
    """One backup, from its point in time until it counted."""
    if backup.recorded_at is not None:
        stats.timing(f"nasbackup.backup.{backup.type.lower()}", backup.recorded_at - backup.created_at)
    stats.incr(f"nasbackup.backups.{backup.type.lower()}")


def _part(name: str) -> str:
    """As one part of a metric's name, where a point would begin another."""
    return _UNNAMEABLE.sub("_", name)
