"""Whole values with sensible defaults: a test states only what it is about."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

from nasbackup.model import (
    Backup,
    BackupStatus,
    BackupType,
    BackupVolume,
    ChainLink,
    Consistency,
    Reason,
    Vm,
    VmState,
    Volume,
    VolumeReason,
)
from nasbackup.past import PastBackup, PastVolume

GIB = 1 << 30
VM_UUID = "5b1f2c1e-0000-4000-8000-000000000001"
CHAIN_ID = "5b1f2c1e-0000-4000-8000-0000000000c1"
ROOT = "/images/ROOT-1.qcow2"
DATA = "/images/DATA-2.qcow2"


def volume(source: str = ROOT, **changes: Any) -> Volume:
    return replace(Volume(source=source, target="vda", format="qcow2", virtual_size=GIB), **changes)


def vm(*volumes: Volume, **changes: Any) -> Vm:
    """Running, with the two volumes ROOT and DATA unless told otherwise."""
    default = (volume(ROOT), volume(DATA, target="vdb"))
    return replace(Vm(name="i-2-1234-VM", uuid=VM_UUID, state=VmState.RUNNING, volumes=volumes or default), **changes)


def backup_volume(source: str = ROOT, **changes: Any) -> BackupVolume:
    stem = source.rsplit("/", 1)[-1].split(".")[0]
    return replace(
        BackupVolume(
            name=stem,
            source=source,
            target="vda" if source == ROOT else "vdb",
            format="qcow2",
            file=f"{'root' if source == ROOT else 'datadisk'}.{stem}.qcow2",
            virtual_size=GIB,
            type=BackupType.FULL,
            reason=VolumeReason.FULL_BACKUP,
            backing=None,
            bytes_read=1 << 20,
            bytes_written=1 << 19,
            digest="sha256:" + "ab" * 32,
            attempt="0123456789ab",
            verified_at=datetime(2026, 1, 31, 22, 1, tzinfo=UTC),
        ),
        **changes,
    )


def backup(*volumes: BackupVolume, **changes: Any) -> Backup:
    """A recorded full of ROOT and DATA, the owner of checkpoint ``backup-1``."""
    return replace(
        Backup(
            backup_id=17,
            external_id="i-2-1234-VM/2026.01.31.22.00.05",
            vm="i-2-1234-VM",
            vm_uuid=VM_UUID,
            host="kvm_one",
            repository="nas_main",
            type=BackupType.FULL,
            status=BackupStatus.BACKED_UP,
            reason=Reason.NO_ACTIVE_CHECKPOINT,
            explanation="full: the chain starts here",
            chain_id=CHAIN_ID,
            chain_position=0,
            parent_id=None,
            parent=None,
            checkpoint="backup-1",
            created_at=datetime(2026, 1, 31, 22, 0, 5, tzinfo=UTC),
            consistency=Consistency.CRASH,
            volumes=volumes or (backup_volume(ROOT), backup_volume(DATA)),
        ),
        **changes,
    )


def past_volume(source: str = ROOT, **changes: Any) -> PastVolume:
    of = backup_volume(source)
    return replace(PastVolume(**{field.name: getattr(of, field.name) for field in fields(PastVolume)}), **changes)


def past_backup(*volumes: PastVolume, **changes: Any) -> PastBackup:
    """What the next backup has to know of ``backup()``."""
    shared = {field.name: getattr(backup(), field.name) for field in fields(ChainLink)}
    return replace(PastBackup(**shared, volumes=volumes or (past_volume(ROOT), past_volume(DATA))), **changes)
