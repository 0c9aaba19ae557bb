"""What the watch itself goes by can be wrong: then it goes on without, and says so. Pure."""

from __future__ import annotations

from datetime import datetime

from nasbackup.errors import SettingInvalid
from nasbackup.sla.findings import Finding, Kind, Severity, Subject, SubjectKind

AIRFLOW = Subject(kind=SubjectKind.HOST, key="airflow", label="Airflow")
"""Whose settings they are."""


def fleet_invalid(*, problem: str, written_at: datetime) -> Finding:
    """``problem``: where, and what, is wrong; ``written_at``: of the file that counts meanwhile."""
    return Finding(
        kind=Kind.FLEET_INVALID,
        severity=Severity.CRITICAL,
        subject=AIRFLOW,
        text=f"fleet.yaml is wrong ({problem}): scheduled backups go on with the document of "
        f"{written_at:%Y-%m-%d %H:%M} UTC, and nas_retention deletes nothing.",
        hint="Correct it: `nasbackup fleet check` says what is wrong, and what else.",
    )


def setting_invalid(error: SettingInvalid, *, counts: str) -> Finding:
    """``counts``: what counts in place of the Variable."""
    return Finding(
        kind=Kind.SETTING_INVALID,
        severity=Severity.WARNING,
        subject=AIRFLOW,
        text=f"Variable {error.name} is {error.value!r}: it must be {error.expected}. Until then {counts} counts.",
        hint="Correct it under Admin > Variables.",
    )
