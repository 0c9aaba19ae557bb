"""One real VM with small disks and two repositories; everything that is done to it is told to the model, too."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import libvirt
import pytest
from nasbackup import steps
from nasbackup.catalog import Database, backups, repositories
from nasbackup.errors import JobLost, VmStarted
from nasbackup.hypervisor import offline
from nasbackup.model import (
    Backup,
    BackupStatus,
    BackupType,
    Host,
    Mode,
    Quiesce,
    Repository,
    RepositoryType,
    VmState,
    VolumeReason,
)
from nasbackup.nas import repository as nas_repository
from nasbackup.reconcile import act, observe, plan
from nasbackup.restore.image import locate, restore_images
from nasbackup.steps import BackupRequest, Site, Ticket
from nasbackup.steps.delete import delete

from lab import vm as lab
from tests.integration.stateful.model import GRANULE, Change, Disk, Expected, Model, Recorded
from tests.integration.story import Story, tool

SIZES = (2 << 20, (1 << 20) + 512)
MOST_DISKS = 4
REPOSITORIES = ("nas_first", "nas_second")
HOLDER = "nas_reconcile/stateful"

CLOCK = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
"""It stands still: every name is a function of the sequence, and all backups are made in the same second."""

DECIDED, BEGUN, ONE_COPIED, ALL_COPIED, VERIFIED, RECORDED = range(6)
"""How far a run gets."""

LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
Signature = Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A recorded backup: what it must restore to (by source), and what its files look like on the NAS."""

    story: Story
    backup: Backup
    content: Mapping[str, bytes]
    signature: Signature


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of nas_backup that got somewhere; nobody has called end_job yet."""

    story: Story
    ticket: Ticket
    checkpoint: str | None


@dataclass(kw_only=True)
class World:
    machine: lab.LabVm
    model: Model
    stories: Mapping[str, Story]
    kept: list[Kept] = field(default_factory=list)
    abandoned: list[Run] = field(default_factory=list)
    """Runs that died; what they left is still there."""
    leftovers: set[str] = field(default_factory=set)
    """Bitmaps that nothing needs and that the next recorded backup, or nas_reconcile, takes away..."""
    hidden: set[str] = field(default_factory=set)
    """...once the VM was stopped."""
    lines: dict[int, tuple[str, int | None]] = field(default_factory=dict)
    """Number of every backup that was ever recorded -> its external id, and its parent's number."""
    runs: int = 0

    # --- the guest --------------------------------------------------------------------------------------------

    def disk(self, number: int) -> Disk:
        return self.model.attached[number % len(self.model.attached)]

    def change(self, changes: Sequence[Change]) -> None:
        """By the guest; of a stopped VM by a tool on its host, which keeps the bitmaps in the image up to date."""
        for change in changes:
            disk = self.disk(change.disk)
            offset, length = disk.extent(change)
            what = {"zeroes": "write -z", "unmapped zeroes": "write -z -u", "write": f"write -P {change.pattern}"}
            command = f"{what.get(change.kind, change.kind)} {offset} {length}"
            if self.model.running:
                self.machine.guest_io(disk.target, command)
            else:
                tool("qemu-io", "-f", "qcow2", "-d", "unmap", "-c", command, disk.source)
            if change.kind != "discard" or self._was_heard(disk, offset, length):
                disk.apply(change)

    def _was_heard(self, disk: Disk, offset: int, length: int) -> bool:
        """While a backup job is open, QEMU may do nothing about a discard (its filter node passes none on)."""
        if not self.model.running or not _has_job(self.machine.domain):
            return True
        try:
            self.machine.guest_io(disk.target, f"read -P 0 {offset} {length}")
        except lab.LabError:
            return False
        return True

    def stop(self) -> None:
        self.machine.destroy()
        self.model.running = False
        self._stored()

    def start(self) -> None:
        self.machine.start()
        self.model.running = True

    def switch_power(self) -> None:
        if self.model.running:
            self.stop()
        else:
            self.start()

    def kill(self, *, flushed: bool) -> None:
        """What the guest had not flushed may be lost, and is not ours: the disks hold what they hold then."""
        for disk in self.model.attached if flushed else ():
            self.machine.guest_io(disk.target, "flush")
        self.machine.crash()
        self.model.kill()
        self._stored()
        for disk in self.model.attached:
            found = self._read(disk)
            assert not flushed or found == disk.content
            disk.content = bytearray(found)

    def _stored(self) -> None:
        self.leftovers |= self.hidden
        self.hidden.clear()

    def lose_checkpoint_metadata(self) -> None:
        if self.model.running:
            # A superseded base of a run that died before its end_job is then in QEMU's memory alone, where nobody sees
            # it before QEMU stores it in the image.
            self.hidden |= self.leftovers
        for checkpoint in self.machine.domain.listAllCheckpoints():
            checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)

    # --- its disks --------------------------------------------------------------------------------------------

    def hotplug(self, *, size: int) -> None:
        target = self.machine.attach(volume=lab.Volume(size=size))
        source = str(self.machine.disks[target])
        self.model.disks.append(Disk(source=source, target=target, content=bytearray(size)))

    def detach(self, number: int) -> None:
        """Nobody in this guest would answer a request to unplug, so of a stopped VM; the image stays where it is."""
        disk = self.disk(number)
        definition = lab.disk_xml(target=disk.target, path=Path(disk.source))
        self.machine.domain.detachDeviceFlags(definition, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        disk.attached = False

    def detached(self) -> Sequence[Disk]:
        taken = {disk.target for disk in self.model.attached}
        return [disk for disk in self.model.disks if not disk.attached and disk.target not in taken]

    def reattach(self, number: int) -> None:
        """With the bitmaps that it had when it was detached, which may be those of an active checkpoint, or stale."""
        disk = self.detached()[number % len(self.detached())]
        self.leftovers |= set(offline.bitmaps(Path(disk.source))) - self.model.active()
        definition = lab.disk_xml(target=disk.target, path=Path(disk.source))
        flags = LIVE if self.model.running else libvirt.VIR_DOMAIN_AFFECT_CONFIG
        self.machine.domain.attachDeviceFlags(definition, flags)
        disk.attached = True

    def resize(self, number: int, *, size: int) -> None:
        """Never to a size that it had: bitmaps do not show that a disk was shrunk and grown back (not promised)."""
        disk = self.disk(number)
        if size < disk.size:
            size = max(size - size % GRANULE, GRANULE)  # what is cut off is then really gone
        while size in disk.sizes_had:
            size += GRANULE
        try:
            if self.model.running:
                self.machine.domain.blockResize(disk.target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
            else:
                tool("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", disk.source, str(size))
        except (libvirt.libvirtError, AssertionError):
            if not disk.broken and not self.abandoned:  # QEMU resizes no disk with a broken bitmap, or that a job reads
                raise
        else:
            disk.resize(size)

    def _read(self, disk: Disk) -> bytes:
        raw = self.machine.directory / "content.raw"
        try:
            tool("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", disk.source, str(raw))
            return raw.read_bytes()
        finally:
            raw.unlink(missing_ok=True)

    # --- backups ----------------------------------------------------------------------------------------------

    def backup(
        self,
        repository: str,
        *,
        forced: bool = False,
        excluded: int | None = None,
        power_switched: bool = False,
        meanwhile: Sequence[Change] = (),
    ) -> None:
        run = self.run(
            repository,
            as_far_as=RECORDED,
            forced=forced,
            excluded=excluded,
            power_switched=power_switched,
            meanwhile=meanwhile,
        )
        ending = steps.end_job(run.story.site, ticket=run.ticket)
        assert ending.status is BackupStatus.BACKED_UP
        self.model.dropped_all_but_the_active()
        self.leftovers.clear()
        self.abandoned.clear()
        self.assert_restores(self.kept[-1])

    def fail(self, repository: str, *, as_far_as: int, interrupted: str | None, meanwhile: Sequence[Change]) -> None:
        """end_job is called after the first steps; before that, the VM may be switched on or off, or killed."""
        run = self.run(repository, as_far_as=as_far_as, meanwhile=meanwhile)
        if interrupted == "power switched":
            self.switch_power()
        elif interrupted == "killed" and self.model.running:
            self.kill(flushed=False)
        else:
            interrupted = None
        if interrupted and as_far_as >= BEGUN:
            volume = run.story.load(run.ticket.backup_id).volumes[-1].name
            with pytest.raises((JobLost, VmStarted)):
                steps.copy(run.story.site, ticket=run.ticket, volume=volume)
        ending = steps.end_job(run.story.site, ticket=run.ticket, why_failed="this sequence stopped it")
        assert ending.status is BackupStatus.FAILED
        self._cleaned_up(run)
        self.abandoned.clear()

    def die(self, repository: str, *, as_far_as: int, meanwhile: Sequence[Change]) -> None:
        """Nobody calls end_job, and the lease expires."""
        run = self.run(repository, as_far_as=as_far_as, meanwhile=meanwhile)
        self.abandoned.append(run)
        with run.story.site.database.transaction() as cursor:
            cursor.execute("UPDATE lease SET expires_at = clock_timestamp() - interval '1 second'")

    def run(
        self,
        repository: str,
        *,
        as_far_as: int,
        forced: bool = False,
        excluded: int | None = None,
        power_switched: bool = False,
        meanwhile: Sequence[Change] = (),
    ) -> Run:
        """The steps up to one; ``power_switched``: between decision and checkpoint."""
        story, model = self.stories[repository], self.model
        without = {self.disk(excluded).target} if excluded is not None and len(model.attached) > 1 else set()
        self.runs += 1
        ticket, backup = steps.decide_chain(
            story.site,
            request=BackupRequest(
                vm=self.machine.name,
                mode=Mode.FULL if forced else Mode.AUTO,
                exclude_volumes=tuple(without),
            ),
            settings=story.settings(),
            run_id=f"stateful/{self.runs}",
            now=CLOCK,
        )
        self._recovered()
        expected = model.next_backup(repository=repository, forced=forced, excluded=without)
        _assert_decided(backup, expected=expected, running=model.running)
        if power_switched:
            self.switch_power()
            expected = model.next_backup(repository=repository, forced=forced, excluded=without)
        run = Run(story=story, ticket=ticket, checkpoint=backup.checkpoint)
        if as_far_as == DECIDED:
            return run

        backup = steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
        _assert_decided(backup, expected=expected, running=model.running)
        changed = self._changed(backup, repository=repository)
        content = {disk.source: bytes(disk.content) for disk in model.attached if disk.target not in without}
        model.began(checkpoint=backup.checkpoint, targets={volume.target for volume in backup.volumes})
        if model.running:
            self.change(meanwhile)
        if as_far_as == BEGUN:
            return run

        for volume in backup.volumes[: 1 if as_far_as == ONE_COPIED else None]:
            copied = steps.copy(story.site, ticket=ticket, volume=volume.name)
            if volume.reason is VolumeReason.INCREMENTAL:
                assert copied.bytes_read is not None
                assert copied.bytes_read <= changed[volume.target] * GRANULE, "more was read than has changed"
        if as_far_as == ONE_COPIED:
            return run
        story.freeze_and_compare(backup)
        for volume in backup.volumes:
            frozen = story.frozen[backup.external_id][volume.name].read_bytes()
            assert frozen == content[volume.source], f"{volume.name}: not the point in time that the guest wrote"
        if as_far_as == ALL_COPIED:
            return run

        for volume in backup.volumes:
            steps.verify(story.site, ticket=ticket, volume=volume.name)
        if as_far_as == VERIFIED:
            return run

        recorded = steps.record(story.site, ticket=ticket)
        before = model.latest.get(repository)
        if before is not None and before.checkpoint is not None:
            self.leftovers.add(before.checkpoint)  # until end_job
        model.latest[repository] = Recorded(
            external_id=recorded.external_id,
            checkpoint=recorded.checkpoint,
            position=recorded.chain_position,
            sizes={source: len(data) for source, data in content.items()},
        )
        signature = _signature(Path(story.site.repository.path) / recorded.external_id)
        self.kept.append(Kept(story=story, backup=recorded, content=content, signature=signature))
        self.lines[recorded.backup_id] = recorded.external_id, recorded.parent_id
        return run

    def _changed(self, backup: Backup, *, repository: str) -> Mapping[str, int]:
        """Target -> how many granules changed since the latest backup."""
        base = self.model.latest.get(repository)
        if backup.type is BackupType.FULL or base is None or base.checkpoint is None:
            return {}
        return {disk.target: len(disk.bitmaps.get(base.checkpoint, ())) for disk in self.model.attached}

    def _recovered(self) -> None:
        """A new run has cleaned up after the ones that died before they had recorded anything."""
        recorded = {kept.backup.backup_id for kept in self.kept}
        for run in self.abandoned:
            if run.ticket.backup_id not in recorded:
                self._cleaned_up(run)
        # What they had recorded counts; its job is still open.
        self.abandoned = [run for run in self.abandoned if run.ticket.backup_id in recorded]

    def _cleaned_up(self, run: Run) -> None:
        self.model.dropped([run.checkpoint] if run.checkpoint else [])

    # --- nas_reconcile, restore -------------------------------------------------------------------------------

    def reconcile(self, *, names: Sequence[str]) -> None:
        for name in names:
            site = self.stories[name].site
            outcomes = act(site, actions=plan(observe(site)).to_do, holder=HOLDER)
            assert [outcome for outcome in outcomes if not outcome.done] == []
        for story in self.stories.values():
            assert plan(observe(story.site)).actions == ()
        self._recovered()
        self.model.dropped_all_but_the_active()
        self.leftovers.clear()
        self.abandoned.clear()

    def deletable(self) -> Sequence[Kept]:
        """All but those whose runs died before their jobs were ended: one thing at a time."""
        dead = {run.ticket.backup_id for run in self.abandoned}
        return [kept for kept in self.kept if kept.backup.backup_id not in dead]

    def delete(self, number: int) -> None:
        """A parent waits for its children: those that are kept, and those that runs which died have left."""
        kept = self.deletable()[number % len(self.deletable())]
        self.kept.remove(kept)
        repository = kept.story.site.repository.name
        latest = self.model.latest.get(repository)
        if latest is not None and latest.external_id == kept.backup.external_id:
            del self.model.latest[repository]
            self.leftovers |= {latest.checkpoint} - {None}
        (deletion,) = delete(kept.story.site, external_ids=[kept.backup.external_id], holder="stateful")
        children = [run.ticket.external_id for run in self.abandoned] + [k.backup.external_id for k in self.kept]
        assert set(deletion.kept_by) <= {*children, *self._there(kept.story)}

    def _there(self, story: Story) -> dict[str, int]:
        """What has to be in a repository: every backup that is kept, and what those are built on."""
        there: dict[str, int] = {}
        for kept in self.kept:
            number: int | None = kept.backup.backup_id if kept.story is story else None
            while number is not None:
                external_id, parent = self.lines[number]
                there[external_id] = number
                number = parent
        return there

    def restore(self, number: int) -> None:
        self.assert_restores(self.kept[number % len(self.kept)])

    def restore_over(self, number: int) -> None:
        """By hand, onto the stopped VM's own images, where it still has them."""
        kept = self.kept[number % len(self.kept)]
        to = kept.story.work / "over"
        for volume in restore_images(self._locate(kept), to=to):
            for disk in self.model.attached:
                if disk.source == volume.source:
                    Path(disk.source).unlink()
                    shutil.move(volume.file, disk.source)
                    disk.replace(kept.content[disk.source])
        shutil.rmtree(to)

    def assert_restores(self, kept: Kept) -> None:
        self._locate(kept)
        kept.story.assert_restores(kept.backup.external_id)

    def _locate(self, kept: Kept) -> Any:
        located = locate(kept.story.site.database, external_id=kept.backup.external_id)
        assert located.backup.backup_id == kept.backup.backup_id, "its name leads to another backup"
        return located

    def assert_everything_restores(self) -> None:
        for kept in self.kept:
            self.assert_restores(kept)

    # --- what always holds ------------------------------------------------------------------------------------

    def assert_holds(self) -> None:
        """After every step. A run that died leaves things behind, but nothing that the guest would notice."""
        state = self.machine.domain.state()[0]
        expected = libvirt.VIR_DOMAIN_RUNNING if self.model.running else libvirt.VIR_DOMAIN_SHUTOFF
        assert state == expected, "running or stopped as it was told to be, never paused"
        for kept in self.kept:
            directory = Path(kept.story.site.repository.path) / kept.backup.external_id
            assert _signature(directory) == kept.signature, f"{kept.backup.external_id} was touched"
        if not self.abandoned:
            self.assert_tidy()

    def assert_tidy(self) -> None:
        """Like that of the story, with two repositories and with what only the next backup takes away."""
        domain, model = self.machine.domain, self.model
        assert not _has_job(domain)
        allowed = model.active() | self.leftovers | self.hidden
        assert {checkpoint.getName() for checkpoint in domain.listAllCheckpoints()} <= allowed
        for names in self._bitmaps():
            assert set(names) <= allowed
        host = next(iter(self.stories.values())).site.host
        for directory in (host.socket_dir, host.scratch_dir):
            assert list(Path(directory).glob(f"{self.machine.uuid}*")) == []
        for name, story in self.stories.items():
            latest = model.latest.get(name)
            assert story.active_checkpoint() == (latest.checkpoint if latest else None)
            root = Path(story.site.repository.path)
            on_nas = {str(path.relative_to(root)) for path in root.glob("*/*") if path.is_dir()}
            mine = {kept.backup.external_id for kept in self.kept if kept.story is story}
            there = self._there(story)
            assert on_nas == there.keys(), "every directory is a backup, and every backup has its directory"
            with story.site.database.transaction() as cursor:
                cursor.execute("SELECT holder FROM lease WHERE expires_at > clock_timestamp()")
                assert cursor.fetchall() == []
                recorded = backups.list_backups(cursor, statuses=[BackupStatus.BACKED_UP])
                assert {backup.external_id for backup in recorded if backup.repository == name} == mine
                pending = backups.list_backups(cursor, statuses=[BackupStatus.DELETE_PENDING])
                assert {b.external_id for b in pending if b.repository == name} == there.keys() - mine
                cursor.execute(
                    "SELECT external_id FROM backup JOIN repository USING (repository_id)"
                    " WHERE name = %s AND (status IN ('BackingUp', 'Deleting') OR cleaned_at IS NULL)",
                    (name,),
                )
                assert {row["external_id"] for row in cursor.fetchall()} == there.keys()

    def _bitmaps(self) -> Iterator[Collection[str]]:
        if self.model.running:
            yield from self.machine.dirty_bitmaps().values()
            return
        for image in self.machine.disks.values():
            yield offline.bitmaps(image)


@contextmanager
def world(connection: Any, *, database: Database, name: str, work: Path) -> Iterator[World]:
    """A running VM that was never backed up, an empty catalog, and two empty repositories."""
    work.mkdir()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, work)
        _empty(database)
        volumes = [lab.Volume(size=size) for size in SIZES]
        machine = stack.enter_context(lab.lab_vm(connection, name=name, volumes=volumes))
        disks = [
            Disk(source=str(path), target=target, content=bytearray(size))
            for (target, path), size in zip(machine.disks.items(), SIZES, strict=True)
        ]
        model = Model(disks=disks, running=True)
        stories = {
            repository: _story(database, machine=machine, name=repository, work=work, variables=model.variables)
            for repository in REPOSITORIES
        }
        yield World(machine=machine, model=model, stories=stories)


def _story(database: Database, *, machine: lab.LabVm, name: str, work: Path, variables: dict[str, str]) -> Story:
    path, own = work / name, work / f"{name}-work"
    path.mkdir()
    own.mkdir()
    repository = Repository(name=name, type=RepositoryType.LOCAL, path=str(path))
    with database.transaction() as cursor:
        repositories.register(cursor, repository=repository, uuid=nas_repository.register(repository))
    site = Site(database=database, host=Host(name="kvm_test"), repository=repository)
    return Story(site=site, machine=machine, work=own, variables=variables)


def _empty(database: Database) -> None:
    with database.transaction() as cursor:
        cursor.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'schema_migration'"
        )
        tables = ", ".join(row["tablename"] for row in cursor.fetchall())
        cursor.execute(f"TRUNCATE {tables} RESTART IDENTITY CASCADE")


def _assert_decided(backup: Backup, *, expected: Expected, running: bool) -> None:
    found = Expected(
        type=backup.type,
        reason=backup.reason,
        parent=backup.parent,
        position=backup.chain_position,
        has_checkpoint=backup.checkpoint is not None,
        volumes={volume.target: volume.reason for volume in backup.volumes},
    )
    assert found == expected, backup.explanation
    assert backup.vm_state is (VmState.RUNNING if running else VmState.STOPPED)


def _signature(directory: Path) -> Signature:
    """Whoever writes to a file, or puts another in its place, changes this."""
    status = {path.name: path.stat() for path in directory.iterdir()}
    return {name: (found.st_ino, found.st_size, found.st_mtime_ns) for name, found in status.items()}


def _has_job(domain: Any) -> bool:
    try:
        domain.backupGetXMLDesc()
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID):
            return False
        raise
    return True
