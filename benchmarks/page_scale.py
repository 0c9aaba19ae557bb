"""The page over a million backups of ten thousand VMs: how long the server takes for each view.

The catalog is real (a PostgreSQL of its own), its content is generated (lab.seed). The views are asked for over HTTP,
one after the other, each with other parameters than before. Airflow's check of the login is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import httpx
import uvicorn
from fastapi import FastAPI
from nasbackup.catalog import Database, repositories
from nasbackup.fleet import ENVIRONMENT
from nasbackup.model import Repository, RepositoryType
from nasbackup.web.app import Guards, create

from lab import seed
from lab.daemons import own_postgresql

PREFIX = "i-2-"
FLEET = """
zones: {default: {hosts: [kvm_one], repositories: [nas_scale]}}
policies:
  gold: {vms: ["i-2-*4-VM"], rpo: {warn_after: 14 hours, error_after: 26 hours}}
  standard: {vms: ["*"], rpo: {warn_after: 26 hours, error_after: 50 hours}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vms", type=int, default=10_000)
    parser.add_argument("--backups-each", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=50, help="requests of each view")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with own_postgresql() as (_, database), tempfile.TemporaryDirectory() as directory:
        fleet = Path(directory, "fleet.yaml")
        fleet.write_text(FLEET)
        os.environ[ENVIRONMENT] = str(fleet)
        repository = Repository(name="nas_scale", type=RepositoryType.NFS, path="/mnt/nas")
        with database.transaction() as cursor:
            repositories.register(cursor, repository=repository, uuid=str(uuid4()))
        started = time.perf_counter()
        plan = seed.Plan(
            vms=options.vms, each=options.backups_each, now=datetime.now(UTC), prefix=PREFIX, repository="nas_scale"
        )
        seed.fleet(database, plan)
        print(f"{options.vms * options.backups_each:,} backups generated in {time.perf_counter() - started:.0f} s")
        uuids = _uuids(database)
        with _served(database) as client:
            figures = _figures(client, uuids=uuids, vms=options.vms, repeat=options.repeat)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for name, figure in figures.items():
        print(f"{name}: " + ", ".join(f"{key} {value:,.3g}" for key, value in figure.items()))


def _figures(client: httpx.Client, *, uuids: list[str], vms: int, repeat: int) -> dict[str, dict[str, float]]:
    dice = random.Random(1)
    pages = max(1, vms // 25)
    views: dict[str, Callable[[], str]] = {
        "fleet, first page": lambda: "/",
        "fleet, any page, any order": lambda: (
            f"/?page={dice.randint(1, pages)}&sort={dice.choice(['urgency', 'name', 'age', 'size', 'policy'])}"
            f"&order={dice.choice(['asc', 'desc'])}"
        ),
        "fleet, search": lambda: f"/?q={dice.randint(1, vms)}",
        "fleet, a filter": lambda: f"/?status={dice.choice(['critical', 'warning', 'ok'])}&policy=gold",
        "VM": lambda: f"/vms/{dice.choice(uuids)}",
        "running": lambda: "/running",
        "repositories": lambda: "/repositories",
        "alerts": lambda: f"/alerts?page={dice.randint(1, 20)}",
        "JSON of a fleet page": lambda: f"/api/fleet?page={dice.randint(1, pages)}",
    }
    first = _milliseconds(client, "/")
    figures = {"the very first view of a new process": {"ms": first}}
    for name, address in views.items():
        taken = [_milliseconds(client, address()) for _ in range(repeat)]
        figures[name] = {"median ms": statistics.median(taken), "95 % below ms": statistics.quantiles(taken, n=20)[-1]}
    return figures


def _milliseconds(client: httpx.Client, address: str) -> float:
    started = time.perf_counter()
    answer = client.get(f"/nasbackup{address}", headers={"Accept": "text/html"})
    taken = time.perf_counter() - started
    assert answer.status_code == 200, f"{address}: {answer.status_code} {answer.text[:300]}"
    return 1000 * taken


def _uuids(database: Database) -> list[str]:
    with database.transaction() as cursor:
        cursor.execute("SELECT uuid::text AS uuid FROM vm")
        return [row["uuid"] for row in cursor.fetchall()]


@contextmanager
def _served(database: Database) -> Iterator[httpx.Client]:
    def view() -> None: ...

    def triggers() -> frozenset[str]:
        return frozenset({"nas_backup", "nas_restore"})

    root = FastAPI()
    root.mount("/nasbackup", create(database=lambda: database, guards=Guards(view=view, triggers=triggers)))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(root, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60, trust_env=False
            ) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    main()
