"""The schedules of DAGs that do something to backups: the first run is at their next time."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import MultipleCronTriggerTimetable

_SCHEDULER_LAG = timedelta(seconds=45)

RESTART = timedelta(minutes=3)
"""A scheduler that is restarted is away for less."""


def at_its_times(*crons: str, timezone: str = "UTC", late: timedelta = _SCHEDULER_LAG) -> MultipleCronTriggerTimetable:
    """Cron expressions in a time zone. A DAG that is new, or unpaused for the first time, waits for its next time.

    A first time that has passed by less than ``late`` still counts. (Later ones are never lost.)

    Airflow 3.3 would begin a time that has passed by less than a tenth of the interval: a weekly DAG unpaused on a
    Sunday morning would run at once (``run_immediately=False`` is taken for None there, which means this tenth). None
    at all would be wrong, too: the first run is planned anew with each parse of the file, and a parse between the
    time and the scheduler's next look would move it to the next time, a day later.
    """
    return MultipleCronTriggerTimetable(*crons, timezone=timezone, run_immediately=late)
