"""One backup told step by step, with the proof that no exit code can give: byte identity with the point in time."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from nasbackup import steps
from nasbackup.catalog import backups, vms
from nasbackup.hypervisor import offline
from nasbackup.model import Backup, BackupStatus, Quiesce, VmState
from nasbackup.restore.image import locate, restore_images
from nasbackup.settings import Settings, resolve
from nasbackup.steps import BackupRequest, Site, Ticket
from nasbackup.steps.ticket import partial_path

from lab.vm import LabVm

_runs = count(1)


@dataclass(kw_only=True)
class Story:
    site: Site
    machine: LabVm
    work: Path
    variables: dict[str, str] = field(default_factory=dict)
    frozen: dict[str, Mapping[str, Path]] = field(default_factory=dict)
    """External id -> volume name -> raw copy of the point in time, taken while the job was open."""

    def settings(self) -> Settings:
        return resolve(self.variables.get, zone="default")

    def decide(self, *, run_id: str | None = None, **request: object) -> tuple[Ticket, Backup]:
        return steps.decide_chain(
            self.site,
            request=BackupRequest(vm=self.machine.name, **request),  # type: ignore[arg-type]
            settings=self.settings(),
            run_id=run_id or f"test/{next(_runs)}",
        )

    def backup(
        self,
        *,
        before_checkpoint: Callable[[], None] = lambda: None,
        while_open: Callable[[], None] = lambda: None,
        quiesce: Quiesce = Quiesce.OFF,
        **request: object,
    ) -> Backup:
        """A whole run. ``while_open`` happens after the point in time was fixed and before anything is copied."""
        ticket, _ = self.decide(**request)
        try:
            before_checkpoint()
            decided = steps.checkpoint(self.site, ticket=ticket, quiesce=quiesce)
            while_open()
            for volume in decided.volumes:
                steps.copy(self.site, ticket=ticket, volume=volume.name)
            self.freeze_and_compare(decided)
            for volume in decided.volumes:
                steps.verify(self.site, ticket=ticket, volume=volume.name)
            steps.record(self.site, ticket=ticket)
        finally:
            steps.end_job(self.site, ticket=ticket)
        return self.load(ticket.backup_id)

    def load(self, backup_id: int) -> Backup:
        with self.site.database.transaction() as cursor:
            return backups.get(cursor, backup_id=backup_id)

    def freeze_and_compare(self, decided: Backup) -> None:
        """Compare each finished layer, through its whole chain, with what the open job still serves; keep a copy."""
        backup = self.load(decided.backup_id)
        partial = partial_path(self.site.root(), backup=backup)
        kept = {}
        for volume in backup.volumes:
            served, served_format = self.site.job_name(backup).nbd_uri(volume.target), "raw"
            if backup.vm_state is VmState.STOPPED:
                served, served_format = volume.source, volume.format
            layer = partial / f"{volume.file}.attempt-{volume.attempt}"
            tool("qemu-img", "compare", "-f", served_format, "-F", "qcow2", served, str(layer))
            kept[volume.name] = self.work / f"{backup.backup_id}.{volume.name}.raw"
            tool("qemu-img", "convert", "-f", served_format, "-O", "raw", served, str(kept[volume.name]))
        self.frozen[backup.external_id] = kept

    def assert_restores(self, external_id: str) -> None:
        """Restore through the product's own path; every byte must be that of the point in time."""
        to = self.work / "restore" / external_id.replace("/", "_")
        restored = restore_images(locate(self.site.database, external_id=external_id), to=to)
        frozen = self.frozen[external_id]
        assert {volume.name for volume in restored} == set(frozen)
        for volume in restored:
            tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(volume.file), str(frozen[volume.name]))
            volume.file.unlink()

    def assert_everything_restores(self) -> None:
        with self.site.database.transaction() as cursor:
            recorded = backups.list_backups(cursor, statuses=[BackupStatus.BACKED_UP])
        assert recorded, "a test that restores nothing proves nothing"
        for backup in recorded:
            self.assert_restores(backup.external_id)

    def active_checkpoint(self) -> str | None:
        with self.site.database.transaction() as cursor:
            return vms.active_checkpoint(cursor, vm_uuid=self.machine.uuid, repository=self.site.repository.name)

    def active_checkpoints(self) -> set[str]:
        """Of all repositories."""
        with self.site.database.transaction() as cursor:
            return set(vms.checkpoints_in_use(cursor, vm_uuid=self.machine.uuid))

    def assert_tidy(self) -> None:
        """No job, no lease, no partial directory, no socket or scratch, and no bitmap but the active one."""
        domain = self.machine.domain
        assert {checkpoint.getName() for checkpoint in domain.listAllCheckpoints()} <= self.active_checkpoints()
        for bitmaps in self.machine.dirty_bitmaps().values() if self.machine.running else ():
            assert set(bitmaps) <= self.active_checkpoints()
        for image in self.machine.disks.values() if not self.machine.running else ():
            assert set(offline.bitmaps(image)) <= self.active_checkpoints()
        root = Path(self.site.repository.path)
        assert list(root.glob("*/.partial-*")) == []
        for directory in (self.site.host.socket_dir, self.site.host.scratch_dir):
            assert list(Path(directory).glob(f"{self.machine.uuid}*")) == []
        with self.site.database.transaction() as cursor:
            cursor.execute("SELECT holder FROM lease")
            assert cursor.fetchall() == []
        visible = {str(path.parent.relative_to(root)) for path in root.glob("*/*/manifest.json")}
        with self.site.database.transaction() as cursor:
            recorded = backups.list_backups(cursor, statuses=[BackupStatus.BACKED_UP])
        assert visible == {backup.external_id for backup in recorded}


def tool(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
