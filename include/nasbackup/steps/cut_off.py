"""A VM that libvirt cannot look at: does a volume wait for a restore that was cut off to be undone?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nasbackup.catalog import leases, restores
from nasbackup.catalog.restores import RestoreRow, RestoreState
from nasbackup.errors import CatalogError, HypervisorError, RestoreCutOff
from nasbackup.hypervisor import Hypervisor
from nasbackup.model import Target
from nasbackup.restore.plan import from_document
from nasbackup.steps.ticket import Site


@contextmanager
def restore_explained(site: Site, hypervisor: Hypervisor, *, vm: str) -> Iterator[None]:
    """Libvirt's words about a missing file become those about the restore that took it away. The catalog is asked only
    after such words. Raises RestoreCutOff, or VmBusy when somebody is at work on the VM just now.
    """
    try:
        yield
    except HypervisorError as error:
        row = None
        with suppress(HypervisorError, CatalogError):  # then the first error is the one to tell
            row = _moving(site, hypervisor, vm=vm)
        missing = _missing(row) if row is not None else []
        if row is None or not missing:
            raise
        with site.database.transaction() as cursor:
            leases.require_free(cursor, vm_uuid=row.vm_uuid, vm=vm)
        raise RestoreCutOff(vm=vm, backup=row.plan["backup"], host=row.host, missing=", ".join(missing)) from error


def _moving(site: Site, hypervisor: Hypervisor, *, vm: str) -> RestoreRow | None:
    domain = hypervisor.domain(name=vm)
    with hypervisor.doing(f"reading the UUID of VM {vm}"):
        uuid = domain.UUIDString()
    with site.database.transaction() as cursor:
        row = restores.find(cursor, vm_uuid=uuid)
    return row if row is not None and row.state is RestoreState.MOVING else None


def _missing(row: RestoreRow) -> list[str]:
    plan = from_document(row.plan)
    if plan.target is not Target.IN_PLACE:
        return []
    return [volume.path for volume in plan.volumes if not os.path.lexists(volume.path)]
