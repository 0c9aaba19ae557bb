"""Bitmaps on the host: at most the active one of each repository, and one in the making."""

from __future__ import annotations

from nasbackup.catalog import Database, vms
from nasbackup.hypervisor import Hypervisor, checkpoints


def drop_unneeded(database: Database, hypervisor: Hypervisor, *, vm_uuid: str) -> list[str]:
    """Drop this catalog's checkpoints of the VM that are neither active nor in the making; foreign ones stay.

    By the holder of the VM's lease. Returns their names.
    """
    with database.transaction() as cursor:
        ours = vms.checkpoints_ever_made(cursor, vm_uuid=vm_uuid)
        unneeded = ours - vms.checkpoints_in_use(cursor, vm_uuid=vm_uuid)
    dropped = checkpoints.drop(hypervisor, vm_uuid=vm_uuid, unneeded=unneeded)
    with database.transaction() as cursor:
        vms.forget_old_checkpoints(cursor, vm_uuid=vm_uuid)
    return dropped
