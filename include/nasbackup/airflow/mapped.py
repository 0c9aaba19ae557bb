"""How long a list may be of which Airflow makes a task each."""

from __future__ import annotations

from airflow.sdk.configuration import conf


def most() -> int:
    """What Airflow is configured to take; it fails the task that returns more."""
    return int(conf.getint("core", "max_map_length", fallback=1024))
