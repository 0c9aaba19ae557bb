"""A million backups of ten thousand VMs: how long the report, one delete and one decision take in the catalog.

The catalog is real (a PostgreSQL of its own; without fsync, whose time is the disk's), its content is generated. NAS
and hypervisor are left out: ``steps.delete`` runs without files to remove, ``steps.decide_chain`` with a hypervisor
that answers at once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from nasbackup.catalog import Database, backups, repositories
from nasbackup.fleet import Fleet, Policy, Selector, Zone
from nasbackup.model import Backup, BackupType, Host, Repository, RepositoryType, Vm, VmState, Volume
from nasbackup.nas import repository as nas_repository
from nasbackup.retention.rules import RetentionRules
from nasbackup.settings import Settings
from nasbackup.steps import BackupRequest, Site, decide_chain, retention
from nasbackup.steps.delete import delete

from lab import seed
from lab.daemons import own_postgresql

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vms", type=int, default=10_000)
    parser.add_argument("--backups-each", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=200, help="deletes and decisions that are measured")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with own_postgresql() as (_, database), tempfile.TemporaryDirectory() as directory:
        site = _site(database, path=Path(directory))
        started = time.perf_counter()
        _generate(database, vms=options.vms, each=options.backups_each)
        print(f"{options.vms * options.backups_each:,} backups generated in {time.perf_counter() - started:.0f} s")
        figures = {
            "report, one day's deletions": _report(database, RetentionRules(keep_last=options.backups_each - 1)),
            "report, policy of six rules": _report(
                database,
                RetentionRules(
                    keep_last=3, keep_hourly=24, keep_daily=14, keep_weekly=8, keep_monthly=12, keep_yearly=5
                ),
            ),
            "one delete, catalog": _many(site, _delete, repeat=options.repeat, numbers=range(1, options.vms, 2)),
            "one decide_chain, catalog": _many(site, _decide, repeat=options.repeat, numbers=range(2, options.vms, 2)),
        }
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for name, figure in figures.items():
        print(f"{name}: " + ", ".join(f"{key} {value:,.3g}" for key, value in figure.items()))


def _site(database: Database, *, path: Path) -> Site:
    repository = Repository(name="nas_scale", type=RepositoryType.LOCAL, path=str(path))
    with database.transaction() as cursor:
        repositories.register(cursor, repository=repository, uuid=nas_repository.register(repository))
    return Site(database=database, host=Host(name="kvm_one"), repository=repository)


def _generate(database: Database, *, vms: int, each: int) -> None:
    seed.backups(database, seed.Plan(vms=vms, each=each, now=NOW, repository="nas_scale"))


# --- the report -----------------------------------------------------------------------------------------------


def _report(database: Database, rules: RetentionRules) -> dict[str, float]:
    """In a process of its own, whose largest size is the report's. (Spawned: a fork begins with its parent's size.)"""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure_report, (dict(database.parameters), rules))


def _measure_report(parameters: dict[str, Any], rules: RetentionRules) -> dict[str, float]:
    fleet = Fleet(
        zones=(Zone(name="default", hosts=("kvm_one",), repositories=("nas_scale",)),),
        policies=(Policy(name="all", selector=Selector(vms=("*",)), timezone="Europe/Berlin", retention=rules),),
    )
    started = time.perf_counter()
    found = retention.report(Database(parameters=parameters), fleet=fleet, now=NOW)
    return {
        "seconds": time.perf_counter() - started,
        "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "backups": found.backups,
        "to delete": found.deletions,
    }


# --- one delete, one decision ---------------------------------------------------------------------------------


def _many(site: Site, action: Callable[[Site, Backup], None], *, repeat: int, numbers: range) -> dict[str, float]:
    """Milliseconds that one takes in the catalog: in transactions, with everything that opens and ends them."""
    taken = []
    for number in random.Random(1).sample(numbers, repeat):
        with site.database.transaction() as cursor:
            (latest,) = backups.list_backups(cursor, vm=f"i-2-{number}-VM")[-1:]
        with _stopwatch() as spent:
            action(site, latest)
        taken.append(1000 * sum(spent))
    return {"median ms": statistics.median(taken), "95 % below ms": statistics.quantiles(taken, n=20)[-1]}


def _delete(site: Site, latest: Backup) -> None:
    (done,) = delete(site, external_ids=[latest.external_id], holder="benchmark")
    assert [removal.external_id for removal in done.removed] == [latest.external_id]


def _decide(site: Site, latest: Backup) -> None:
    volume = Volume(source="/images/ROOT.qcow2", target="vda", format="qcow2", virtual_size=100 << 30)
    vm = Vm(name=latest.vm, uuid=latest.vm_uuid, state=VmState.RUNNING, volumes=(volume,))
    with _instant_hypervisor(vm):
        _, backup = decide_chain(
            replace(site),  # a run's own: it has asked for nothing yet
            request=BackupRequest(vm=vm.name),
            settings=Settings(full_every=999),
            run_id=f"benchmark/{vm.name}",
        )
    assert backup.type is BackupType.INCREMENTAL, backup.explanation


@contextmanager
def _instant_hypervisor(vm: Vm) -> Iterator[None]:
    """The boundary: what decide_chain asks the host, answered at once."""
    place = "nasbackup.steps.decide"
    with ExitStack() as stack:
        connection = stack.enter_context(patch(f"{place}.connect"))
        connection.return_value.__enter__.return_value.domain.return_value.listAllCheckpoints.return_value = []
        stack.enter_context(patch(f"{place}.observe_vm", return_value=vm))
        stack.enter_context(patch(f"{place}.require_room"))
        usable = {volume.source: True for volume in vm.volumes}
        stack.enter_context(patch("nasbackup.hypervisor.checkpoints.usable_bitmaps", return_value=usable))
        yield


@contextmanager
def _stopwatch() -> Iterator[list[float]]:
    """Whatever uses the catalog: with or without a transaction around it."""
    spent: list[float] = []
    real = Database._connected

    @contextmanager
    def timed(self: Database, **options: bool) -> Iterator[Any]:
        started = time.perf_counter()
        with real(self, **options) as cursor:
            yield cursor
        spent.append(time.perf_counter() - started)

    with patch.object(Database, "_connected", timed):
        yield spent


if __name__ == "__main__":
    main()
