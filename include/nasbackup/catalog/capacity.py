"""How full each repository was, over time."""

from __future__ import annotations

from datetime import datetime, timedelta

from nasbackup.catalog.database import Cursor
from nasbackup.retention.capacity import Sample

KEPT = timedelta(days=400)


def add_sample(cursor: Cursor, *, repository: str, sample: Sample) -> None:
    """Note the measurement; those of more than a year before the one before it go: its own clock may be wrong."""
    cursor.execute(
        """
        INSERT INTO capacity_sample (repository_id, measured_at, total, free, backups)
        SELECT repository_id, %s, %s, %s, %s FROM repository WHERE name = %s
        ON CONFLICT DO NOTHING
        """,
        (sample.measured_at, sample.total, sample.free, sample.backups, repository),
    )
    cursor.execute(
        """
        WITH earlier AS (
            SELECT s.* FROM capacity_sample s JOIN repository USING (repository_id)
             WHERE name = %s AND measured_at < %s
        )
        DELETE FROM capacity_sample s USING earlier e
         WHERE s.repository_id = e.repository_id AND s.measured_at = e.measured_at
           AND e.measured_at < (SELECT max(measured_at) FROM earlier) - %s
        """,
        (repository, sample.measured_at, KEPT),
    )


def samples(cursor: Cursor, *, repository: str, now: datetime | None = None) -> list[Sample]:
    """In the order of time. Those from after ``now`` (None: PostgreSQL's) are left out: some clock was wrong."""
    cursor.execute(
        "SELECT measured_at, total, free, backups FROM capacity_sample JOIN repository USING (repository_id)"
        " WHERE name = %s AND measured_at <= coalesce(%s, clock_timestamp()) ORDER BY measured_at",
        (repository, now),
    )
    return [Sample(**row) for row in cursor.fetchall()]


def size_of_backups(cursor: Cursor, *, repository: str) -> int:
    """Bytes of all backups that are there, those included that are on their way out."""
    cursor.execute(
        "SELECT coalesce(sum(size), 0)::bigint AS size FROM backup JOIN repository r USING (repository_id)"
        " WHERE r.name = %s AND status IN ('BackedUp', 'DeletePending', 'Deleting')",
        (repository,),
    )
    row = cursor.fetchone()
    assert row is not None, "an aggregate gives a row"
    return int(row["size"])
