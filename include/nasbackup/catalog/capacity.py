"""How full each repository was, over time."""

from __future__ import annotations

from datetime import datetime, timedelta

from nasbackup.catalog.database import Cursor
from nasbackup.retention.capacity import LOOK_BACK, Sample

KEPT = timedelta(days=400)

EVERY = timedelta(minutes=59)
"""So that it is an hour from look to look, although none begins at the very second."""

SKEW = timedelta(minutes=5)
"""Clocks differ by so much."""


def add_sample(cursor: Cursor, *, repository: str, sample: Sample) -> None:
    """Note the measurement, which says that the repository answers.

    Those of more than a year ago go; of those that are too old for a forecast the first of each day (UTC) stays. What a
    wrong clock has dated in the future goes with the next one, for it would be the newest for ever. The clock that
    dated this one may be wrong as well: nothing goes that the database's clock would keep.
    """
    cursor.execute(
        """
        INSERT INTO capacity_sample (repository_id, measured_at, total, free, backups)
        SELECT repository_id, %s, %s, %s, %s FROM repository WHERE name = %s
        ON CONFLICT DO NOTHING
        """,
        (sample.measured_at, sample.total, sample.free, sample.backups, repository),
    )
    cursor.execute("UPDATE repository SET measure_error = NULL WHERE name = %s", (repository,))
    cursor.execute(
        """
        DELETE FROM capacity_sample s USING repository r
         WHERE r.repository_id = s.repository_id AND r.name = %(repository)s
           AND (s.measured_at < least(%(at)s, clock_timestamp()) - %(kept)s
                OR s.measured_at > greatest(%(at)s, clock_timestamp()) + %(skew)s
                OR s.measured_at < least(%(at)s, clock_timestamp()) - %(hourly)s AND EXISTS (
                    SELECT 1 FROM capacity_sample e
                     WHERE e.repository_id = s.repository_id AND e.measured_at < s.measured_at
                       AND e.measured_at >= date_trunc('day', s.measured_at, 'UTC')))
        """,
        {
            "repository": repository,
            "at": sample.measured_at,
            "kept": KEPT,
            "skew": SKEW,
            "hourly": LOOK_BACK + timedelta(days=1),
        },
    )


def ask_again(cursor: Cursor, *, repository: str) -> bool:
    """Whether it is time to measure the repository: nobody has asked it for an hour. The caller has to, then.

    By the database's clock, whoever asks: fleets that share a repository measure it once, and a NAS that does not
    answer is not asked at every look. False for one that is not registered.
    """
    cursor.execute(
        "UPDATE repository SET measure_asked_at = clock_timestamp() WHERE name = %s AND"
        " (measure_asked_at IS NULL OR NOT measure_asked_at BETWEEN clock_timestamp() - %s AND clock_timestamp())",
        (repository, EVERY),
    )
    return cursor.rowcount > 0


def note_failure(cursor: Cursor, *, repository: str, why: str) -> None:
    """It could not be measured."""
    cursor.execute("UPDATE repository SET measure_error = %s WHERE name = %s", (why, repository))


def failure(cursor: Cursor, *, repository: str) -> str | None:
    """Why it could not be measured when it was last asked; None: it could."""
    cursor.execute("SELECT measure_error FROM repository WHERE name = %s", (repository,))
    row = cursor.fetchone()
    return row["measure_error"] if row else None


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
