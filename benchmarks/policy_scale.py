"""500 VMs are due at the same minute: is what runs at once bounded, does the scheduler stall, what memory does it take?

Airflow, PostgreSQL and the backups are real; the hypervisor is libvirt's test driver (``lab.simulated``).
The stack ``bench`` is this benchmark's own (``scripts/benchmark policy_scale`` starts and removes it).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nasbackup.catalog import Database, repositories
from nasbackup.model import Repository, RepositoryType
from nasbackup.nas import repository as nas_repository

from lab import simulated
from lab.airflow import Airflow

POLICY = "nas_backup_policy_rush"
PARTS = ("scheduler", "dag-processor", "triggerer")
SAMPLE_SECONDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/benchmark policy_scale")
    parser.add_argument("--vms", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=6, help="how long to watch; the rest of the queue is left")
    arguments = parser.parse_args()
    stack = Path(os.environ["NASBACKUP_STACK_DIR"])
    airflow, database = Airflow.of_stack(), Database(parameters={"dsn": os.environ["AIRFLOW_CONN_NAS_BACKUP_CATALOG"]})
    _prepare(airflow, database, stack=stack, vms=arguments.vms)
    before = _memory(stack)
    started = time.monotonic()
    run_id = airflow.trigger(POLICY, conf={})
    due_after = None
    samples: list[dict[str, Any]] = []
    while time.monotonic() - started < arguments.minutes * 60:
        time.sleep(SAMPLE_SECONDS)
        if due_after is None and _due_is_done(airflow, run_id):
            due_after = time.monotonic() - started
        samples.append(
            {
                "seconds": round(time.monotonic() - started),
                "at_once": _active(airflow),
                "done": _done(database),
                "heartbeat_age": _heartbeat_age(airflow),
                "memory": _memory(stack),
            }
        )
        if samples[-1]["done"] >= arguments.vms:
            break
    last = samples[-1]
    result = {
        "vms": arguments.vms,
        "watched_seconds": last["seconds"],
        "due_known_after_seconds": None if due_after is None else round(due_after, 1),
        "backups_recorded": last["done"],
        "backups_per_minute": round(last["done"] * 60 / last["seconds"], 1),
        "most_backups_at_once": max(sample["at_once"] for sample in samples),
        "oldest_scheduler_heartbeat_seconds": max(sample["heartbeat_age"] for sample in samples),
        "memory_mib_before": before,
        "memory_mib_most": {part: max(sample["memory"][part] for sample in samples) for part in PARTS},
    }
    print(json.dumps(result, indent=2))


def _prepare(airflow: Airflow, database: Database, *, stack: Path, vms: int) -> None:
    uri = simulated.host(stack / "vms", vms=vms, size=1 << 20)
    nas = stack / "nas"
    nas.mkdir(exist_ok=True)
    repository = Repository(name="nas_bench", type=RepositoryType.LOCAL, path=str(nas))
    with database.transaction() as cursor:
        repositories.register(cursor, repository=repository, uuid=nas_repository.register(repository))
    airflow.put_connection(connection_id="kvm_bench", conn_type="libvirt", extra={"uri": uri})
    airflow.put_connection(connection_id="nas_bench", conn_type="nas", extra={"type": "local", "path": str(nas)})
    for dag_id in ("nas_backup", POLICY):
        airflow.wait_for_dag(dag_id)


def _due_is_done(airflow: Airflow, run_id: str) -> bool:
    return any(task.task_id == "kvm_bench.back_up" and task.map_index >= 0 for task in airflow.tasks(POLICY, run_id))


def _active(airflow: Airflow) -> int:
    """Backups that have been begun and have not ended."""
    query = {"state": ["running", "queued"], "limit": 1}
    return int(airflow.request("GET", "/dags/nas_backup/dagRuns", params=query)["total_entries"])


def _done(database: Database) -> int:
    with database.reading() as cursor:
        cursor.execute("SELECT count(*) AS count FROM backup WHERE status = 'BackedUp'")
        row = cursor.fetchone()
    assert row is not None
    return int(row["count"])


def _heartbeat_age(airflow: Airflow) -> float:
    beat = airflow.request("GET", "/monitor/health")["scheduler"]["latest_scheduler_heartbeat"]
    return round((datetime.now(UTC) - datetime.fromisoformat(beat)).total_seconds(), 1)


def _memory(stack: Path) -> dict[str, int]:
    """MiB that parts of this stack's Airflow have in memory, their own children included, tasks left out."""
    found = dict.fromkeys(PARTS, 0)
    for part, pages in _processes(stack):
        found[part] += pages * os.sysconf("SC_PAGE_SIZE") >> 20
    return found


def _processes(stack: Path) -> Iterator[tuple[str, int]]:
    mark = f"NASBACKUP_STACK_DIR={stack}".encode()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            part = next(
                (part for part in PARTS if f"airflow {part}" in words.replace("api-server", "api_server")), None
            )
            if part is not None and mark in (directory / "environ").read_bytes().split(b"\0"):
                yield part, int((directory / "statm").read_text().split()[1])
        except OSError:  # it has ended
            continue


if __name__ == "__main__":
    main()
