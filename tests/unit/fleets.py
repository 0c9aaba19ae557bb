"""Files that are right, to be read or to be broken."""

from __future__ import annotations

from pathlib import Path

GOOD = """
zones:
  east:
    hosts: [kvm_one, kvm-two]
    repositories: [nas_main, nas.spare]
  west:
    hosts: [kvm_three]
    repositories: [nas_main]
"""

POLICIES = (
    GOOD
    + """
policies:
  databases:
    vms: ["db-*", "i-2-7-VM"]
    zones: [east]
    timezone: Europe/Berlin
    retention: {keep_last: 3, keep_daily: 7, recovery_window: 14 days, minimum_fulls: 2, max_backups: 90}
  numbered:
    vms: ["i-[0-9]-?-VM"]
  standard:
    vms: ["*"]
    zones: [east]
retention:
  keep_orphaned: 90 days
  at_most: {backups: 50, percent: 10}
capacity: {warn_percent: 80, warn_days: 14}
"""
)

PROMISE = """
zones:
  east: {hosts: [kvm_one], repositories: [nas_main, nas_spare], host_slots: 3}
policies:
  gold:
    titles: ["Database *"]
    metadata: {"http://example.org/tier": "gold*"}
    timezone: Europe/Berlin
    schedule: ["0 1 * * *", "0 13 * * 1-5"]
    blackout: ["Mon-Fri 08:00-12:00"]
    repository: nas_spare
    rpo: {warn_after: 14 hours, error_after: 26 hours}
    slo: 99.9
    deadline: 4 hours
    quiesce: off
    compression: zstd
    bandwidth: 200 MiB/s
    verify: {level: structure, every: 30 days}
    drill: {every: 12 weeks}
  silver: {vms: ["*"], rpo: 2 days}
alerts:
  channels:
    ops: {type: smtp, connection: smtp_ops, to: [ops@example.org], severity: critical, policies: [gold]}
    chat: {type: apprise, connection: chat}
"""


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "fleet.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file
