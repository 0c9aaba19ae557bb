"""The VM's lease for work that is no backup: deletion, restore, clean-up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nasbackup.catalog import Database, leases


@contextmanager
def held_lease(database: Database, *, vm_uuid: str, vm: str, holder: str) -> Iterator[int]:
    """The fencing token, for the time of the block. Raises VmBusy while somebody else is at work on the VM."""
    with database.transaction() as cursor:
        token = leases.acquire(cursor, vm_uuid=vm_uuid, vm=vm, holder=holder).token
    try:
        yield token
    finally:
        with database.transaction() as cursor:
            leases.release(cursor, vm_uuid=vm_uuid, token=token)
