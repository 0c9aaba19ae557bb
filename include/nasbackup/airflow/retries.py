"""Which failures Airflow tries again: the error tree decides, so that a retry never repeats a lost cause."""

from __future__ import annotations

from collections.abc import Iterator

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
