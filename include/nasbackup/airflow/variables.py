"""Settings from Airflow's Variables."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Variable

from nasbackup.settings import Settings, resolve
from nasbackup.settings import deadline as parse_deadline


def settings(*, zone: str) -> Settings:
    """The settings that hold in this zone now. Raises SettingInvalid, which names the Variable."""
    return resolve(_lookup, zone=zone)


def deadline() -> timedelta:
    """How long a backup may take. Raises SettingInvalid."""
    return parse_deadline(_lookup)


def _lookup(key: str) -> str | None:
    value = Variable.get(key, default=None)
    return None if value is None else str(value)
