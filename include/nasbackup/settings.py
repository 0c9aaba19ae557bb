"""Settings as operators know them: Airflow Variables, each with an override per zone (``<key>.<zone>``).

This module parses; where the words come from is the caller's ``lookup`` (Airflow's Variables in a task, a
dictionary in a test). Keys and defaults follow CloudStack's NAS backup provider (PR #13074).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from nasbackup.errors import SettingInvalid

T = TypeVar("T")

Lookup = Callable[[str], str | None]
"""The value of a Variable, or None when there is no such Variable."""

INCREMENTAL_ENABLED = "nas.backup.incremental.enabled"
FULL_EVERY = "nas.backup.full.every"
STOPPED_INCREMENTAL_ENABLED = "nas.backup.stopped.incremental.enabled"
DEADLINE = "nas.backup.deadline.seconds"

DEFAULT_DEADLINE = timedelta(hours=6)
"""Of one backup, where its policy names none."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """``full_every`` counts the backups of a chain, the full included: 10 means a full and nine incrementals."""

    incremental_enabled: bool = True
    full_every: int = 10
    stopped_incremental_enabled: bool = False


def resolve(lookup: Lookup, *, zone: str) -> Settings:
    """The settings that hold in this zone. Raises SettingInvalid, which names the Variable that is wrong."""
    default = Settings()
    return Settings(
        incremental_enabled=_setting(lookup, INCREMENTAL_ENABLED, zone, _boolean, default.incremental_enabled),
        full_every=_setting(lookup, FULL_EVERY, zone, _count, default.full_every),
        stopped_incremental_enabled=_setting(
            lookup, STOPPED_INCREMENTAL_ENABLED, zone, _boolean, default.stopped_incremental_enabled
        ),
    )


def deadline(lookup: Lookup) -> timedelta:
    """How long a backup may take before somebody is told. Raises SettingInvalid."""
    value = lookup(DEADLINE)
    if value is None:
        return DEFAULT_DEADLINE
    seconds = value.strip()
    if not (seconds.isascii() and seconds.isdecimal() and 0 < int(seconds) <= 999_999):
        raise SettingInvalid(name=DEADLINE, value=value, expected="a whole number of seconds from 1 to 999999")
    return timedelta(seconds=int(seconds))


def _setting(lookup: Lookup, key: str, zone: str, parse: Callable[[str, str], T], default: T) -> T:
    for name in (f"{key}.{zone}", key):
        value = lookup(name)
        if value is not None:
            return parse(name, value)
    return default


def _boolean(name: str, value: str) -> bool:
    word = value.strip().lower()
    if word not in ("true", "false"):
        raise SettingInvalid(name=name, value=value, expected="true or false")
    return word == "true"


def _count(name: str, value: str) -> int:
    word = value.strip()
    if not (word.isascii() and word.isdecimal() and len(word) <= 6):
        raise SettingInvalid(name=name, value=value, expected="a whole number from 0 to 999999")
    return int(word)
