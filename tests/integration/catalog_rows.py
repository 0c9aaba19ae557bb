"""What tests of the catalog put into it: VMs, decisions, backups that are announced and recorded, leases."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from nasbackup.catalog import Cursor, Database, backups, leases
from nasbackup.catalog.standing import Standing, standing
from nasbackup.model import BackupType, ChainDecision, Lease, Reason, VolumePlan, VolumeReason

VM = "5b1f2c1e-0000-4000-8000-000000000001"
OTHER_VM = "5b1f2c1e-0000-4000-8000-000000000002"
CHAIN = "5b1f2c1e-0000-4000-8000-0000000000c1"
BEGIN = datetime(2026, 1, 31, 22, 0, 5, tzinfo=UTC)
COPIED: dict[str, Any] = {"bytes_read": 3, "bytes_written": 4, "digest": "sha256:aa", "seconds": 0.5}
T = TypeVar("T")


def together(*actions: Callable[[], T]) -> list[T | Exception]:
    """Run all at the same moment, each in a thread of its own; what one raises stands in its place."""
    barrier = threading.Barrier(len(actions))

    def run(action: Callable[[], T]) -> T | Exception:
        barrier.wait(timeout=30)
        try:
            return action()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(run, actions))


def plan(name: str = "ROOT-1", **changes: Any) -> VolumePlan:
    return replace(
        VolumePlan(
            name=name,
            source=f"/images/{name}.qcow2",
            target="vda",
            format="qcow2",
            file=f"root.{name}.qcow2",
            virtual_size=1 << 30,
            type=BackupType.FULL,
            reason=VolumeReason.FULL_BACKUP,
        ),
        **changes,
    )


def full(checkpoint: str | None = "backup-1", *, volumes: Sequence[VolumePlan] = (), **changes: Any) -> ChainDecision:
    return replace(
        ChainDecision(
            type=BackupType.FULL,
            reason=Reason.NO_ACTIVE_CHECKPOINT,
            explanation="full: the chain starts here",
            checkpoint=checkpoint,
            base_checkpoint=None,
            chain_id=CHAIN,
            chain_position=0,
            parent_id=None,
            parent=None,
            volumes=tuple(volumes) or (plan(),),
        ),
        **changes,
    )


def incremental(checkpoint: str, *, parent: int, position: int) -> ChainDecision:
    return full(
        checkpoint,
        volumes=[plan(type=BackupType.INCREMENTAL, reason=VolumeReason.INCREMENTAL, backing="../x/root.ROOT-1.qcow2")],
        type=BackupType.INCREMENTAL,
        reason=Reason.INCREMENTAL,
        chain_position=position,
        parent_id=parent,
    )


def opened(
    cursor: Cursor, decision: ChainDecision, *, vm: str = VM, repository: str = "nas_one", **changes: Any
) -> int:
    number = next(_numbers)
    when = BEGIN + timedelta(seconds=number)
    values: dict[str, Any] = {
        "external_id": f"i-2-1-VM/{when:%Y.%m.%d.%H.%M.%S}",
        "host": "kvm_one",
        "run_id": "run",
        "created_at": when,
        **changes,
    }
    lease = leases.join(cursor, vm_uuid=vm, vm=vm, holder=values["run_id"])
    return backups.open_backup(
        cursor, decision=decision, vm_uuid=vm, vm=vm, repository=repository, lease_token=lease.token, **values
    ).backup_id


_numbers = iter(range(10_000))


def recorded(database: Database, decision: ChainDecision, **where: Any) -> int:
    with database.transaction() as cursor:
        backup_id = opened(cursor, decision, **where)
        backups.record(cursor, backup_id=backup_id, size=4096)
    return backup_id


def chain_of_three(database: Database) -> list[int]:
    one = recorded(database, full("backup-1"))
    two = recorded(database, incremental("backup-2", parent=one, position=1))
    return [one, two, recorded(database, incremental("backup-3", parent=two, position=2))]


def acquire(database: Database, holder: str, *, vm: str = VM, seconds: int = 900) -> Lease:
    with database.transaction() as cursor:
        return leases.acquire(cursor, vm_uuid=vm, vm="i-2-1-VM", holder=holder, seconds=seconds)


def expire(database: Database) -> None:
    with database.transaction() as cursor:
        cursor.execute("UPDATE lease SET expires_at = now() - interval '1 second'")


def stands(
    cursor: Cursor, *, vm: str = VM, external_id: str = "vm/free", checkpoint: str = "free", **more: Any
) -> Standing:
    return standing(cursor, vm_uuid=vm, repository="nas_one", external_id=external_id, checkpoint=checkpoint, **more)
