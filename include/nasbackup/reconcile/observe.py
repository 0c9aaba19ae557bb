"""Gather the three views. All or nothing: a view that is partial would make living things look like leftovers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from nasbackup import layout
from nasbackup.catalog import deletions, overview, restores, vms
from nasbackup.catalog.restores import RestoreRow, RestoreState
from nasbackup.hypervisor import Hypervisor, checkpoints, connect, job
from nasbackup.nas.repository import doing
from nasbackup.reconcile.plan import LeftRestore, NasView, View, VmView
from nasbackup.steps.ticket import Site


def observe(site: Site, *, holder: str = "") -> View:
    """One host and one repository; leases of ``holder`` do not count.

    Raises HostUnreachable, NotARepository, NasIo, CatalogUnreachable: then there is no view at all.
    """
    root = site.root()
    with site.database.transaction() as cursor:
        known = overview.vms_on_host(cursor, host=site.host.name)
        leased = overview.leased_vms(cursor, besides=holder)
        ours = {uuid: vms.checkpoints_ever_made(cursor, vm_uuid=uuid) for uuid in known}
        in_use = {uuid: vms.checkpoints_in_use(cursor, vm_uuid=uuid) for uuid in known}
        # Before the rows: what falls stays so, and its row is gone or says why.
        falling = frozenset(backup.backup_id for backup in deletions.unfinished(cursor))
        rows = overview.backups_in(cursor, repository=site.repository.name)
        clean = overview.cleaned(cursor)
        left = [row for row in restores.list_all(cursor) if row.vm_uuid not in leased]
    with connect(site.host) as hypervisor:
        with hypervisor.doing("asking for the host's name"):
            here = hypervisor.connection.getHostname()
        machines = tuple(
            _vm(
                hypervisor,
                site=site,
                uuid=uuid,
                name=name,
                leased=uuid in leased,
                ours=ours[uuid],
                in_use=in_use[uuid],
            )
            for uuid, name in known.items()
        )
    with doing(site.repository, "listing backups"):
        nas = _nas(root)
    return View(
        vms=machines,
        nas=nas,
        backups=tuple(rows),
        clean=clean,
        socket_dir=site.host.socket_dir,
        falling=falling,
        restores=tuple(_left(row) for row in left if row.host == here),
        now=datetime.now(UTC),
    )


def _left(row: RestoreRow) -> LeftRestore:
    return LeftRestore(
        vm_uuid=row.vm_uuid,
        vm=row.vm,
        backup=row.plan["backup"],
        moving=row.state is not RestoreState.STAGING,
        begun_at=row.begun_at,
    )


def _vm(
    hypervisor: Hypervisor,
    *,
    site: Site,
    uuid: str,
    name: str,
    leased: bool,
    ours: frozenset[str],
    in_use: frozenset[str],
) -> VmView:
    domain = hypervisor.domain_by_uuid(uuid)
    files = job.JobName(host=site.host, vm_uuid=uuid, stamp="").leftovers()
    return VmView(
        uuid=uuid,
        name=name,
        leased=leased,
        on_host=domain is not None,
        job=job.running_job(hypervisor, vm_uuid=uuid),
        checkpoints=checkpoints.present(hypervisor, domain=domain) if domain is not None else frozenset(),
        ours=ours,
        in_use=in_use,
        files=tuple(map(str, files)),
    )


def _nas(root: Path) -> NasView:
    published, partial = set(), set()
    for machine in root.iterdir():
        if machine.name.startswith(".") or not machine.is_dir():
            continue
        for directory in machine.iterdir():
            relative = str(directory.relative_to(root))
            if layout.is_partial(directory.name):
                partial.add(relative)
            elif layout.is_backup_directory(directory.name):
                published.add(relative)
    return NasView(published=frozenset(published), partial=frozenset(partial))
