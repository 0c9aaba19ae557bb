"""What the page shows, as values: plain SQL, read-only, one snapshot per view.

Every query is limited: a fleet of ten thousand VMs with a hundred backups each costs a view no more than a small one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime

from nasbackup.catalog.database import Cursor, Database

GENERATED = "generated"
"""The ``run_id`` of backups that no run has made: a demo's history, which is labelled as such wherever it shows."""


@contextlib.contextmanager
def reading(database: Database) -> Iterator[Cursor]:
    """One snapshot, in which nothing can be written and no query runs for long; its times are UTC, as the page says,
    whatever the server's time zone. Raises CatalogUnreachable."""
    with database.transaction() as cursor:
        cursor.execute(
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY;"
            " SET LOCAL statement_timeout = '20s'; SET LOCAL TimeZone = 'UTC'"
        )
        yield cursor


def now(cursor: Cursor) -> datetime:
    """The catalog's clock: ages are reckoned by the one that wrote the times."""
    cursor.execute("SELECT clock_timestamp() AS now")
    row = cursor.fetchone()
    assert row is not None
    return row["now"]  # type: ignore[no-any-return]


def pattern(search: str) -> str:
    """For ILIKE: what is searched for, anywhere, letter by letter."""
    escaped = search.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%" if search else "%"
