"""What the watch itself goes by can be wrong: then it goes on without, and says so. Pure."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from nasbackup.errors import SettingInvalid
from nasbackup.sla.findings import Finding, Kind, Severity, Subject, SubjectKind

OF_AIRFLOW = frozenset({Kind.FLEET_INVALID, Kind.SETTING_INVALID})

PREFIX = "airflow/"
"""Of the keys of Airflows, before the name of a host."""


def airflow_of(host: str) -> Subject:
    """Whose settings they are: the Airflow that looks at this host. Several may share the catalog."""
    return Subject(kind=SubjectKind.HOST, key=f"{PREFIX}{host}", label="Airflow")


def this_airflow(hosts: Collection[str]) -> Subject:
    """That of the fleet with these hosts, whatever their order in fleet.yaml."""
    return airflow_of(min(hosts))


def fleet_invalid(*, problem: str, written_at: datetime, airflow: Subject) -> Finding:
    """``problem``: where, and what, is wrong; ``written_at``: of the file that counts meanwhile."""
    return Finding(
        kind=Kind.FLEET_INVALID,
        severity=Severity.CRITICAL,
        subject=airflow,
        text=f"fleet.yaml is wrong ({problem}): scheduled backups go on with the document of "
        f"{written_at:%Y-%m-%d %H:%M} UTC, and nas_retention deletes nothing.",
        hint="Correct it: `nasbackup fleet check` says what is wrong, and what else.",
    )


def setting_invalid(error: SettingInvalid, *, counts: str, airflow: Subject) -> Finding:
    """``counts``: what counts in place of the Variable."""
    return Finding(
        kind=Kind.SETTING_INVALID,
        severity=Severity.WARNING,
        subject=airflow,
        text=f"Variable {error.name} is {error.value!r}: it must be {error.expected}. Until then {counts} counts.",
        hint="Correct it under Admin > Variables.",
    )
