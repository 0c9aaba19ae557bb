"""Pools: how many backups run at once on a host, how many volumes move at once to or from a repository.

A task's pool is fixed in its DAG, but the repository of a run is in its conf. Airflow's place for that is the cluster
policy ``task_instance_mutation_hook`` (entry point ``airflow.policy``), which the scheduler calls for every task
instance that it makes. A pool that does not exist would keep its tasks waiting for ever, so it is made here, in the
scheduler's own transaction; its size is the operator's from then on.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.policies import hookimpl

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


@hookimpl
def task_instance_mutation_hook(task_instance: Any, dag_run: Any) -> None:
    """Never raises: that would stop the scheduler. A task that finds no pool stays in the default pool."""
    try:
        if dag_run is None:
            return
        pool = _pool_of(task_instance, dag_run)
        if pool is not None and _ensure(dag_run, name=pool[0], slots=pool[1]):
            task_instance.pool = pool[0]
    except Exception:
        log.exception("%s of %s stays in its pool", task_instance.task_id, task_instance.dag_id)


def _pool_of(task_instance: Any, dag_run: Any) -> tuple[str, int] | None:
    """Name and first size."""
    dag_id, task_id = task_instance.dag_id, task_instance.task_id
    if dag_id.startswith(POLICY_DAG) and task_id.endswith("." + BACK_UP):
        group = task_id.removesuffix("." + BACK_UP)
        found = [
            (HOST + host, zone.host_slots) for zone in _fleet().zones for host in zone.hosts if group_of(host) == group
        ]
        return found[0] if found else None
    if dag_id == "nas_backup" and task_id in _MOVES_DATA:
        conf = dag_run.conf or {}
        zone = _fleet().find_zone(conf.get("host") or _fleet().hosts[0])
        if zone is not None:
            return REPOSITORY + (conf.get("repository") or zone.repositories[0]), zone.repository_slots
    return None


def _fleet() -> Any:
    from nasbackup.fleet.current import current

    return current()


def _ensure(dag_run: Any, *, name: str, slots: int) -> bool:
    """Whether the pool is there (by now). In the session that the run belongs to: opening or committing one is not
    allowed here.
    """
    from airflow.models.pool import Pool
    from sqlalchemy import select
    from sqlalchemy.orm import object_session

    session = object_session(dag_run)
    if session is None:
        return False
    if session.scalar(select(Pool.id).where(Pool.pool == name)) is not None:
        return True
    session.execute(_insert(session.get_bind().dialect.name, Pool.__table__, name=name, slots=slots))
    return True


def _insert(dialect: str, table: Any, *, name: str, slots: int) -> Any:
    """Leaves a pool alone which another scheduler makes at the same moment."""
    from sqlalchemy.dialects import mysql, postgresql, sqlite

    values = {
        "pool": name,
        "slots": slots,
        "description": "Made by nasbackup; change its slots as you like.",
        "include_deferred": name.startswith(HOST),  # who waits for a backup holds its slot
    }
    if dialect == "mysql":
        return mysql.insert(table).values(values).prefix_with("IGNORE")
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(table).values(values).on_conflict_do_nothing()
