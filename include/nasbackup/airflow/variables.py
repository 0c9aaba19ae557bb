"""Settings from Airflow's Variables."""

from __future__ import annotations

from airflow.sdk import Variable

from nasbackup.settings import Settings, resolve


def settings(*, zone: str) -> Settings:
    """The settings that hold in this zone now. Raises SettingInvalid, which names the Variable."""
    return resolve(_lookup, zone=zone)


def _lookup(key: str) -> str | None:
    value = Variable.get(key, default=None)
    return None if value is None else str(value)
