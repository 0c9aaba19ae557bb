"""Which failures Airflow tries again: the error tree decides, so that a retry never repeats a lost cause."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule

from nasbackup.errors import NasBackupError


def retry_policy() -> ExceptionRetryPolicy:
    """Fail at once on errors that the same attempt cannot overcome; everything else follows the task's retries."""
    final = [f"{error.__module__}.{error.__qualname__}" for error in _tree(NasBackupError) if not error.retryable]
    return ExceptionRetryPolicy(
        rules=[
            RetryRule(
                exception=[*final],
                match_subclasses=False,
                action=RetryAction.FAIL,
                reason="Trying again would not help: the message says what to do.",
            )
        ]
    )


def _tree(root: type[NasBackupError]) -> Iterator[type[NasBackupError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def task_defaults() -> dict[str, Any]:
    """What the tasks of every DAG here have in common."""
    return {
        "owner": "nas-backup",
        "retries": 2,
        "retry_delay": timedelta(seconds=20),
        "retry_policy": retry_policy(),
    }
