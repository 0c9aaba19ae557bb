"""Pools: how many backups run at once on a host, how many volumes move at once to or from a repository.

A task's pool is fixed in its DAG, but the repository of a run is in its conf. Airflow's place for that is the cluster
policy ``task_instance_mutation_hook`` (entry point ``airflow.policy``), which the scheduler calls for every task
instance that it makes. A pool that does not exist would keep its tasks waiting for ever, so it is made here, in the
scheduler's own transaction.

Its size is the last that somebody said, in ``fleet.yaml`` or in Airflow: the pool's description remembers the number
that ``fleet.yaml`` had, and when that is another one the pool gets it. A pool with other words is its maker's alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.policies import hookimpl

if TYPE_CHECKING:
    from nasbackup.fleet import Fleet

log = logging.getLogger(__name__)

HOST = "nas_host_"
"""A backup that a policy has begun holds a slot of its host's pool to its end."""
REPOSITORY = "nas_repository_"
"""Copying a volume, or reading it back, takes a slot of its repository's pool."""

POLICY_DAG = "nas_backup_policy_"
BACK_UP = "back_up"
_MOVES_DATA = frozenset({"copy", "verify"})


def group_of(host: str) -> str:
    """The task group of a host: Airflow takes no dots in its name."""
    return host.replace(".", "_")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """As ``fleet.yaml`` has it."""

    name: str
    slots: int

    @property
    def words(self) -> str:
        """Its description in Airflow, which remembers the number."""
        return f"nasbackup: {self.slots} slots in fleet.yaml. What is set here stays until that number changes."


_WORDS = re.compile(r"nasbackup: \d+ slots in fleet\.yaml\.")


@hookimpl
def task_instance_mutation_hook(task_instance: Any, dag_run: Any) -> None:
    """Never raises: that would stop the scheduler. A task that finds no pool stays in the default pool."""
    try:
        if dag_run is None:
            return
        pools = _pools_of(task_instance, dag_run)
        if pools and _ensure(dag_run, mine=pools[0], others=pools[1:]):
            task_instance.pool = pools[0].name
    except Exception:
        log.exception("%s of %s stays in its pool", task_instance.task_id, task_instance.dag_id)


def _pools_of(task_instance: Any, dag_run: Any) -> list[Pool]:
    """The task's own first; then that of its host, whose waiting tasks were all made when the night began."""
    dag_id, task_id = task_instance.dag_id, task_instance.task_id
    if dag_id.startswith(POLICY_DAG) and task_id.endswith("." + BACK_UP):
        group = task_id.removesuffix("." + BACK_UP)
        fleet = _fleet()
        return [_of_host(host, fleet=fleet) for host in fleet.hosts if group_of(host) == group]
    if dag_id == "nas_backup" and task_id in _MOVES_DATA:
        conf, fleet = dag_run.conf or {}, _fleet()
        host = conf.get("host") or fleet.hosts[0]
        zone = fleet.find_zone(host)
        repository = conf.get("repository") or (zone.default if zone is not None else None)
        if zone is not None and repository in fleet.repositories:
            return [_of_repository(repository, fleet=fleet), _of_host(host, fleet=fleet)]
    return []


def _of_host(host: str, *, fleet: Fleet) -> Pool:
    return Pool(name=HOST + host, slots=fleet.zone_of(host).host_slots)


def _of_repository(repository: str, *, fleet: Fleet) -> Pool:
    """Zones that share a repository may say different numbers: no more at once than any of them allows."""
    slots = [zone.repository_slots for zone in fleet.zones if repository in zone.repositories]
    return Pool(name=REPOSITORY + repository, slots=min(slots))


def _fleet() -> Fleet:
    from nasbackup.fleet.current import current

    return current().fleet


def _ensure(dag_run: Any, *, mine: Pool, others: Sequence[Pool]) -> bool:
    """Whether the pool is there (by now), with one question for all of them. In the session that the run belongs to:
    opening or committing one is not allowed here.
    """
    from airflow.models.pool import Pool as Row
    from sqlalchemy import select
    from sqlalchemy.orm import object_session

    session = object_session(dag_run)
    if session is None:
        return False
    pools = {pool.name: pool for pool in (mine, *others)}
    # Columns, not objects: what the session has of a pool may be older than its row.
    rows = session.execute(select(Row.pool, Row.slots, Row.description).where(Row.pool.in_(pools)))
    there = {name: (slots, words or "") for name, slots, words in rows}
    for name, (slots, words) in there.items():
        if _WORDS.match(words) and words != pools[name].words:
            _resize(session, pool=pools[name], slots=slots, words=words)
    if mine.name not in there:
        with _apart(session) as connection:
            connection.execute(_insert(connection.dialect.name, Row.__table__, pool=mine))
    return True


def _resize(session: Any, *, pool: Pool, slots: int, words: str) -> None:
    """fleet.yaml has another number than when the pool was made, or last given its size.

    Never waits for the pool's row, so it can be part of no deadlock: who has locked it (a scheduler that hands out
    slots, another one at this same place) is gone by the time of the next task, which finds the difference again.
    """
    from airflow.models.pool import Pool as Row
    from sqlalchemy import select, update
    from sqlalchemy.exc import SQLAlchemyError

    mine = select(Row.id).where(Row.pool == pool.name, Row.description == words)
    try:
        with _apart(session) as connection:
            found = connection.scalar(mine.with_for_update(skip_locked=True, key_share=True))
            if found is None:
                return
            connection.execute(update(Row).where(Row.id == found).values(slots=pool.slots, description=pool.words))
    except SQLAlchemyError:
        log.exception("Pool %s keeps its %d slots", pool.name, slots)
        return
    log.info("Pool %s has %d slots now, as fleet.yaml says; it had %d", pool.name, pool.slots, slots)


@contextmanager
def _apart(session: Any) -> Iterator[Any]:
    """What fails in here leaves the scheduler's transaction usable. A savepoint of the connection: one of the session
    would be a commit to Airflow, which forbids that.
    """
    connection = session.connection()
    with connection.begin_nested():
        yield connection


def _insert(dialect: str, table: Any, *, pool: Pool) -> Any:
    """Leaves a pool alone which another scheduler makes at the same moment."""
    from sqlalchemy.dialects import mysql, postgresql, sqlite

    values = {
        "pool": pool.name,
        "slots": pool.slots,
        "description": pool.words,
        "include_deferred": pool.name.startswith(HOST),  # who waits for a backup holds its slot
    }
    if dialect == "mysql":
        return mysql.insert(table).values(values).prefix_with("IGNORE")
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(table).values(values).on_conflict_do_nothing()
