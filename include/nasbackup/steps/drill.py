"""drill: boot a backup, shut away from everything, and see whether the guest answers.

::

    protect the backup ─▶ overlay in the scratch directory ─▶ throwaway VM ─▶ an answer, in time? ─▶ checksums ─▶ record

The VM is called ``drill-<vm>-<number of the backup>``, has no network, and what it writes is thrown away. Its source is
not touched: neither the VM, which may run meanwhile, nor its checkpoint, nor the chain. When this process is killed,
libvirt ends the VM, its loss of the connection ends what served the backup, and the next drill removes the files.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nasbackup import layout
from nasbackup.catalog import Database, drills, readings
from nasbackup.catalog.drills import DrillRecord
from nasbackup.errors import (
    CatalogError,
    DrillBusy,
    DrillFailed,
    FileTrouble,
    GuestSilent,
    HostNotReady,
    HostUnreachable,
    NasBackupError,
    ParamInvalid,
    ReadingLost,
    ToolMissing,
)
from nasbackup.hypervisor import Hypervisor, connect, live, scratch
from nasbackup.model import Host
from nasbackup.nas import state
from nasbackup.restore import overlay as overlays
from nasbackup.restore.definition import redefine
from nasbackup.restore.files import doing
from nasbackup.restore.filesystems import opened
from nasbackup.restore.held import held
from nasbackup.restore.image import Located, locate
from nasbackup.restore.sums import compare
from nasbackup.steps.reading import Protection, protected
from nasbackup.steps.restore.plan import described
from nasbackup.transfer.lend import take_back

log = logging.getLogger(__name__)

PREFIX = "drill-"
_LOOK_SECONDS = 0.2
_KEPT_SECONDS = 86400.0
_LOGIN = r"(?m)login: *$"
_LONGEST_NAME = 120  # bytes of the VM's own name in that of its drill


@dataclass(frozen=True, kw_only=True)
class DrillRequest:
    """``pattern``: what the console has to show (a regular expression); None: the guest agent has to answer, and of a
    VM without one the console has to show a login.

    ``sums``: a file in the guest, as sha256sum writes it, of files that are compared with the backup. ``keep``: let the
    VM run on afterwards, for a look; it is ended with `virsh destroy`.
    """

    backup: str
    pattern: str | None = None
    sums: str | None = None
    timeout: float = 600.0
    keep: bool = False


def drill(database: Database, *, host: Host, request: DrillRequest, reader: str) -> DrillRecord:
    """Carry one out, and record what it found: also that the backup does not come up, which is no exception here.

    Raises BackupNotFound, BackupNotRestorable (it is not there to be drilled), ParamInvalid, DrillBusy, HostNotReady
    (its scratch directory is needed for backups), HostUnreachable, CatalogError, ReadingLost: then there was no drill.
    """
    pattern = _pattern(request.pattern)
    located = locate(database, external_id=request.backup)
    backup = located.backup
    with protected(database, external_id=request.backup, reader=reader) as protection, connect(host) as hypervisor:
        sweep(hypervisor)
        begun, clock = datetime.now(UTC), time.monotonic()
        how, rto, detail = "none", None, ""
        try:
            with _running(hypervisor, located, request=request) as (vm, definition):
                if pattern is None and not overlays.has_agent(definition):
                    pattern = re.compile(_LOGIN)
                how = "agent" if pattern is None else f"console: {pattern.pattern}"
                vm.wait(pattern=pattern, end=clock + request.timeout, timeout=request.timeout, protection=protection)
                rto = time.monotonic() - clock
                log.info("%s has answered after %.1f s", vm.name, rto)
            if request.sums is not None:
                detail = _compare(located, path=request.sums, protection=protection)
            ok = True
        except (CatalogError, DrillBusy, FileTrouble, HostNotReady, HostUnreachable, ReadingLost, ToolMissing):
            raise
        except NasBackupError as error:
            ok, detail = False, str(error)
        record = DrillRecord(
            external_id=backup.external_id,
            vm=backup.vm,
            started_at=begun,
            finished_at=datetime.now(UTC),
            ok=ok,
            rto_seconds=rto,
            how=how,
            detail=detail,
        )
        with database.transaction() as cursor:
            drills.record(cursor, backup_id=backup.backup_id, vm_uuid=backup.vm_uuid, found=record)
            if request.keep and rto is not None:
                why = f"VM {drill_name(located)}, which a drill left running"
                readings.begin(cursor, backup_id=backup.backup_id, reader=why, seconds=_KEPT_SECONDS, held=True)
    return record


def require_ok(record: DrillRecord) -> DrillRecord:
    """Raises DrillFailed."""
    if not record.ok:
        raise DrillFailed(backup=record.external_id, why=record.detail)
    return record


def drill_name(located: Located) -> str:
    name = located.backup.vm.encode()[:_LONGEST_NAME].decode(errors="ignore").strip()
    return f"{PREFIX}{name}-{located.backup.backup_id}"


def sweep(hypervisor: Hypervisor) -> list[str]:
    """Remove what drills left that were killed: directories that nobody holds and no VM of this host uses."""
    alive, removed = live.active_names(hypervisor), []
    for directory in Path(hypervisor.host.scratch_dir).glob(f"{PREFIX}*"):
        busy = DrillBusy(backup=directory.name, place=directory)
        with suppress(DrillBusy, OSError), held(directory, busy=busy):
            name, key = _read(directory / "name"), _read(directory / "key")
            if name in alive:
                continue  # it was kept, for a look
            for socket in Path(hypervisor.host.socket_dir).glob(f"{key}-*.nbd") if key else ():
                take_back(socket)
            shutil.rmtree(directory)
            removed.append(directory.name)
    return removed


def _read(file: Path) -> str:
    """Empty when its drill was killed before it had written it."""
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


@dataclass(frozen=True, kw_only=True)
class _Vm:
    name: str
    host: Host
    domain: object
    console: live.Console

    def wait(self, *, pattern: re.Pattern[str] | None, end: float, timeout: float, protection: Protection) -> None:
        """Raises GuestSilent with the last words of the console; HostNotReady when the guest writes too much."""
        wanted = (
            "the guest agent did not answer" if pattern is None else f"the console did not show {pattern.pattern!r}"
        )
        while True:
            protection.check()
            scratch.require_reserve_of_backups(self.host)
            if pattern is not None and pattern.search(self.console.text):
                return
            if not live.is_running(self.domain):
                raise self._no_answer(f"the VM ended before it answered; {wanted}")
            if pattern is None and live.agent_answers(self.domain):
                return
            if time.monotonic() > end:
                raise self._no_answer(f"{wanted} within {timeout:g} s")
            time.sleep(_LOOK_SECONDS)

    def _no_answer(self, what: str) -> GuestSilent:
        last = self.console.last()
        return GuestSilent(
            why=f"{what}. " + (f"The console's last words: {last}" if last else "The console is silent.")
        )


@contextmanager
def _running(hypervisor: Hypervisor, located: Located, *, request: DrillRequest) -> Iterator[tuple[_Vm, str]]:
    """The throwaway VM, and its definition; nothing of it is left afterwards, unless it is to be kept."""
    host, name = hypervisor.host, drill_name(located)
    directory = Path(host.scratch_dir, layout.safe_component(name))
    scratch.require_reserve_of_backups(host)
    with doing("Making", directory), suppress(FileExistsError):
        directory.mkdir()
    with held(directory, busy=DrillBusy(backup=located.backup.external_id, place=directory)):
        if name in live.active_names(hypervisor):
            raise DrillBusy(backup=located.backup.external_id, place=f"VM {name} runs: `virsh destroy` ends it")
        own, keep = str(uuid.uuid4()), False
        key = f"{PREFIX}{own}"
        with doing("Writing to", directory):
            directory.chmod(0o711)  # QEMU's user passes through
            (directory / "name").write_text(name)
            (directory / "key").write_text(key)
        made = overlays.plan_overlays(located.backup.volumes, directory=directory, socket_dir=host.socket_dir, key=key)
        try:
            definition = _definition(located, name=name, uuid=own, directory=directory, made=made)
            overlays.lend_all(located, overlays=made)
            overlays.create_all(made)
            with live.throwaway(hypervisor, definition=definition, name=name, keep=request.keep) as (domain, console):
                yield _Vm(name=name, host=host, domain=domain, console=console), definition
                keep = request.keep
        finally:
            if not keep:
                with suppress(NasBackupError):
                    live.wait_gone(hypervisor, name=name)
                overlays.take_back_all(made)
                shutil.rmtree(directory, ignore_errors=True)


def _definition(located: Located, *, name: str, uuid: str, directory: Path, made: list[overlays.Overlay]) -> str:
    found = described(located)
    variables = directory / "nvram.fd"
    definition = redefine(
        found.domain_xml,
        name=name,
        uuid=uuid,
        disks=overlays.disk_files(made),
        isolate=True,
        nvram=str(variables),  # also when the backup has none: libvirt would leave those that it makes elsewhere
    )
    if found.nvram is not None:
        variables.write_bytes(state.load(located.directory, entry=found.nvram))
    for note in (*found.missing, *definition.notes):
        log.info("%s: %s", name, note)
    return overlays.with_console(overlays.on_backup(definition.xml, overlays=made))


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise ParamInvalid(name="pattern", value=text, problem=f"it is no regular expression ({error})") from error


def _compare(located: Located, *, path: str, protection: Protection) -> str:
    with opened(located) as files:
        good, bad = compare(files, path=path, check=protection.check)
    if bad:
        raise GuestSilent(why=f"{len(bad)} of the files in {path} are not as it says: {'; '.join(bad)}")
    return f"{good} files are as {path} says"
