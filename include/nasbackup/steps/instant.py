"""instant: a VM runs from a backup within seconds, and is copied out of it while it runs.

::

    lend the volumes ─▶ overlays ─▶ define and start ─▶ pull: the backup's blocks come into the overlays ─▶ independent

Nothing is written to the backup. Until the VM is independent the catalog keeps the backup from being deleted, also when
this process dies: the VM runs on, and the same request goes on where it stands.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nasbackup.catalog import Database, readings
from nasbackup.errors import BackupNotRestorable, InstantBusy, InstantUnfinished, NasBackupError
from nasbackup.hypervisor import Hypervisor, define, live
from nasbackup.nas import state
from nasbackup.nas.durable import write_durably
from nasbackup.restore.definition import check_name, redefine
from nasbackup.restore.files import doing, require_outside_backups, require_room
from nasbackup.restore.held import held_by_name
from nasbackup.restore.image import Located, choose, image_bytes
from nasbackup.restore.overlay import (
    Overlay,
    create_all,
    disk_files,
    lend_all,
    on_backup,
    plan_overlays,
    remove_unused,
    take_back_all,
)
from nasbackup.steps.restore.plan import described

HOLD_SECONDS = 7 * 86400.0
"""So long the backup is kept for a VM that runs from it, and that nobody goes on with."""
_LOOK_SECONDS = 0.3
_LOOKS = 3
"""libvirt needs a moment to write down that a copy has ended well."""
_NAMES = uuid.UUID("5b1f2c1e-7d3f-4b53-9a43-6a1e0d2b6a11")

Follow = Callable[[Sequence[live.Pull]], None]


@dataclass(frozen=True, kw_only=True)
class InstantVm:
    """``until``: the backup is kept until then, unless the VM is independent before; None: there is no catalog."""

    backup: str
    name: str
    uuid: str
    directory: Path
    overlays: Sequence[Overlay]
    notes: Sequence[str]
    reading_id: int | None
    until: datetime | None


def start(
    hypervisor: Hypervisor, located: Located, *, database: Database | None, name: str, to: Path, socket_dir: str
) -> InstantVm:
    """Start a VM of this name from the backup, or go on with one that an earlier call has started.

    ``to``: an absolute directory that QEMU's user can reach; it gets the VM's images. Raises ParamInvalid, VmExists,
    TargetExists, NotEnoughSpace, BackupNotRestorable, DefinitionUnusable, HypervisorError: then nothing is left of it.
    Raises InstantBusy when another process is just doing that: its VM is left alone.
    """
    check_name(name)
    require_outside_backups(to)
    own = str(uuid.uuid5(_NAMES, f"{located.backup.external_id}\n{name}"))
    key = f"instant-{own}"
    overlays = plan_overlays(located.backup.volumes, directory=to, socket_dir=socket_dir, key=key)
    busy = InstantBusy(vm=name, backup=located.backup.external_id)
    with held_by_name(Path(socket_dir, f".{key}"), busy=busy):
        return _start(hypervisor, located, database=database, name=name, uuid=own, to=to, overlays=overlays)


def _start(
    hypervisor: Hypervisor,
    located: Located,
    *,
    database: Database | None,
    name: str,
    uuid: str,
    to: Path,
    overlays: Sequence[Overlay],
) -> InstantVm:
    """By the only process that makes, or starts, this VM."""
    define.require_free(hypervisor, name=name, uuid=uuid)
    known = hypervisor.domain_by_uuid(uuid)
    mark = _keep(database, located, reader=reader_of(name=name, host=hypervisor.host.name))
    notes: tuple[str, ...] = ()
    try:
        if known is None:
            notes = _create(hypervisor, located, name=name, uuid=uuid, to=to, overlays=overlays)
        elif not live.is_running(known):
            _require_ours(known, overlays=overlays)
            lend_all(located, overlays=overlays)
            define.start(hypervisor, uuid=uuid, name=name)
    except BaseException:
        if known is None and mark is not None and database is not None:
            with database.transaction() as cursor:
                readings.end(cursor, reading_id=mark[0])
        raise
    vm = InstantVm(
        backup=located.backup.external_id,
        name=name,
        uuid=uuid,
        directory=to,
        overlays=overlays,
        notes=notes,
        reading_id=mark[0] if mark else None,
        until=mark[1] if mark else None,
    )
    live.begin_next_pull(hypervisor, hypervisor.connection.lookupByUUIDString(uuid))
    return vm


def reader_of(*, name: str, host: str) -> str:
    """Whose mark is on the backup from the VM's start on: with it ``locate`` finds one that was deleted meanwhile."""
    return f"VM {name} on {host}, which runs from it"


def finish(
    hypervisor: Hypervisor,
    vm: InstantVm,
    *,
    database: Database | None,
    follow: Follow = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Wait until the VM is independent, then give the backup free.

    Raises InstantUnfinished when ``stop`` says so, when the VM was shut down, or when the NAS fails: the VM stays.
    """
    domain = hypervisor.domain_by_uuid(vm.uuid)
    begun: set[str] = set()
    idle = 0
    while True:
        if domain is None or not live.is_running(domain):
            raise _unfinished(vm, why="it was shut down")
        found = live.pulls(hypervisor, domain)
        follow(found)
        if all(pull.independent for pull in found):
            break
        idle = 0 if any(pull.copying for pull in found) else idle + 1
        if idle == _LOOKS:
            target = live.begin_next_pull(hypervisor, domain)
            if target in begun:
                raise _unfinished(
                    vm, why=f"copying {target} stopped (look after the NAS, and for room in {vm.directory})"
                )
            begun |= {target} if target else set()
            idle = 0
        if stop():
            raise _unfinished(vm, why="waiting for it was ended")
        time.sleep(_LOOK_SECONDS)
    take_back_all(vm.overlays)
    if database is not None and vm.reading_id is not None:
        with database.transaction() as cursor:
            readings.end(cursor, reading_id=vm.reading_id)


def _create(
    hypervisor: Hypervisor, located: Located, *, name: str, uuid: str, to: Path, overlays: Sequence[Overlay]
) -> tuple[str, ...]:
    needs = [image_bytes(located, volume=volume) for volume in choose(located.backup, volumes=())]
    require_room([(to, size) for size in needs])
    found = described(located)
    variables = to / f"{uuid}.nvram.fd"
    definition = redefine(
        found.domain_xml,
        name=name,
        uuid=uuid,
        disks=disk_files(overlays),
        nvram=str(variables) if found.nvram is not None else None,
    )
    made: list[Path] = []
    defined = False
    remove_unused(overlays)  # of a call that was killed before it had defined the VM
    with doing("Making", to):
        to.mkdir(parents=True, exist_ok=True, mode=0o711)
    try:
        lend_all(located, overlays=overlays)
        for overlay in overlays:
            create_all([overlay])
            made.append(overlay.file)
        if found.nvram is not None:
            made.append(variables)
            write_durably(variables, state.load(located.directory, entry=found.nvram))
        xml = on_backup(definition.xml, overlays=overlays)
        defined = True  # from here on: libvirt may have it although we are told of an error, or interrupted
        define.define(hypervisor, definition=xml, name=name, uuid=uuid)
        define.start(hypervisor, uuid=uuid, name=name)
    except BaseException:
        if defined:
            with suppress(NasBackupError):
                define.undefine(hypervisor, uuid=uuid)
        take_back_all(overlays)
        for file in made:
            file.unlink(missing_ok=True)
        with suppress(OSError):  # others' files are in it
            to.rmdir()
        raise
    notes = [*found.missing, *definition.notes]
    if definition.has_tpm:
        notes.append("the VM gets an empty TPM; `nasbackup restore --target new-vm` brings the old one's state")
    return tuple(notes)


def _require_ours(domain: object, *, overlays: Sequence[Overlay]) -> None:
    missing = [str(overlay.file) for overlay in overlays if not overlay.file.exists()]
    if missing:
        raise BackupNotRestorable(
            backup=domain.name(),  # type: ignore[attr-defined]
            why=f"the VM was started before with other images; {', '.join(missing)} is not there. Name the same --to",
        )


def _keep(database: Database | None, located: Located, *, reader: str) -> tuple[int, datetime] | None:
    if database is None:
        return None
    backup = located.backup
    with database.transaction() as cursor:
        return readings.keep(
            cursor, backup_id=backup.backup_id, reader=reader, backup=backup.external_id, seconds=HOLD_SECONDS
        )


def _unfinished(vm: InstantVm, *, why: str) -> InstantUnfinished:
    until = f"{vm.until:%Y-%m-%d %H:%M} UTC" if vm.until else "it is independent"
    return InstantUnfinished(vm=vm.name, backup=vm.backup, why=why, until=until)
