"""``fleet.yaml``: zones, their hosts and repositories (ids of Airflow Connections), and policies.

::

    zones:
      default:
        hosts: [kvm_one, kvm_two]         # Connections of type libvirt
        repositories: [nas_main]          # Connections of type nas; the first is the zone's default
    policies:                             # the first that matches a VM is the VM's
      gold:
        vms: ["*-db"]                     # globs of instance names
        timezone: Europe/Berlin
        schedule: "0 1,13 * * *"          # cron; without it backups are begun by hand
        blackout: ["Mon-Fri 08:00-18:00"] # nothing is begun then
        rpo: {warn_after: 14 hours, error_after: 26 hours}
        retention: {keep_daily: 7, keep_weekly: 4, recovery_window: 14 days}
    retention:
      keep_orphaned: 90 days              # backups of VMs without a policy, or that are not defined any more
      at_most: {backups: 200, percent: 20}   # more in one run is asked about first
    capacity: {warn_percent: 85, warn_days: 30}
    alerts:
      channels:
        ops: {type: smtp, connection: smtp_ops, to: [ops@example.org]}

Read while Airflow parses DAG files, so this package stays light. docs/fleet.md has every field.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nasbackup.errors import FleetInvalid, ParamInvalid
from nasbackup.fleet.document import Document, first_problem, read, schema
from nasbackup.fleet.parse import parse, require_timezone
from nasbackup.fleet.policy import Fleet, Policy, Rpo, Selector, Zone, is_chosen
from nasbackup.retention.rules import RetentionRules

__all__ = [
    "DEFAULT_PATH",
    "ENVIRONMENT",
    "Fleet",
    "FleetInvalid",
    "Policy",
    "Rpo",
    "Selector",
    "Zone",
    "is_chosen",
    "load",
    "path",
    "read_document",
    "require_timezone",
    "retention_rules",
]

ENVIRONMENT = "NASBACKUP_FLEET"
DEFAULT_PATH = "/etc/nasbackup/fleet.yaml"


def path() -> Path:
    return Path(os.environ.get(ENVIRONMENT, DEFAULT_PATH))


def load(file: Path | None = None) -> Fleet:
    """The fleet. Raises FleetInvalid, which names file, line, field and problem.

    For what a person does. What Airflow does by itself asks ``fleet.last_valid``, which survives a slip of the pen.
    """
    return parse(read_document(file or path()))


def read_document(file: Path) -> Document:
    """Raises FleetInvalid."""
    return read(file, where_from=f"its place is set by ${ENVIRONMENT}")


def retention_rules(document: Any, *, named: str) -> RetentionRules:
    """Rules that come from elsewhere than fleet.yaml, checked the same way. Raises ParamInvalid."""
    wrong = first_problem(document, schema={**schema()["$defs"]["retention"], "$defs": schema()["$defs"]})
    if wrong is not None:
        where = ".".join(str(part) for part in wrong[0])
        raise ParamInvalid(name=named, value=document, problem=": ".join(filter(None, (where, wrong[1]))))
    return RetentionRules.from_document(document)
