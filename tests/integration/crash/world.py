"""One VM whose bytes are known, its backups told step by step, and what must be so after any crash.

What a backup holds is found out with ``qemu-img`` alone: nothing of the product vouches for itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libvirt
from nasbackup import layout, steps
from nasbackup.catalog import backups, vms
from nasbackup.hypervisor import offline
from nasbackup.model import Backup, BackupStatus, BackupType, Quiesce
from nasbackup.settings import Settings
from nasbackup.steps import BackupRequest, Site, Ticket

from lab import vm as lab
from tests.integration.story import tool

SIZES = {"vda": 4 << 20, "vdb": (1 << 20) + 512}
STEPS = ("decide_chain", "checkpoint", "copy", "verify", "record", "end_job")
SETTINGS = Settings(full_every=999_999, stopped_incremental_enabled=True)  # a full would hide what an incremental lacks

GRANULE = 64 << 10  # of bitmaps and clusters
SLOT = 2 * GRANULE
RUNNER = "-m tests.integration.crash.runner"
PROCESS_SECONDS = 20.0
"""How long what a killed process has started may take to notice, or to come to its end."""

Content = Mapping[str, bytes]
"""Target -> every byte."""


@dataclass(kw_only=True)
class World:
    site: Site
    machine: lab.LabVm
    work: Path
    points: dict[int, tuple[Content, ...]] = field(default_factory=dict, repr=False)
    """Number of a backup -> what it may hold: the guest's bytes at one of these points in time."""
    _disks: dict[str, bytearray] = field(
        default_factory=lambda: {target: bytearray(size) for target, size in SIZES.items()}, repr=False
    )
    _writes: int = 0

    @property
    def root(self) -> Path:
        return Path(self.site.repository.path)

    # --- the guest --------------------------------------------------------------------------------------------

    def content(self) -> Content:
        return {target: bytes(disk) for target, disk in self._disks.items()}

    def write(self) -> None:
        """By the guest, or by a tool while it is stopped, which keeps the bitmaps in the image up to date.

        Always the same kinds of changes on all disks, so that every run of a step has the same effects: new data, a
        granule of zeroes where there was data, and the last sector. What is left of earlier data is in older layers.
        """
        number = self._writes
        self._writes += 1
        pattern = number % 255 + 1
        for target, disk in self._disks.items():
            slots = len(disk) // SLOT
            data = number % slots * SLOT + 512
            zeroes = (number - 1) % slots * SLOT + GRANULE
            changes = [
                (data, SLOT - 4096, pattern),
                (zeroes, GRANULE, 0),
                (len(disk) - 512, 512, pattern),
            ]
            commands = [
                f"write -P {value} {offset} {length}" if value else f"write -z {offset} {length}"
                for offset, length, value in changes
            ]
            if self.machine.running:
                self.machine.guest_io(target, *commands)
            else:
                words = [word for command in commands for word in ("-c", command)]
                tool("qemu-io", "-f", "qcow2", *words, str(self.machine.disks[target]))
            for offset, length, value in changes:
                disk[offset : offset + length] = bytes([value]) * length

    # --- the backups ------------------------------------------------------------------------------------------

    def recorded(self) -> list[Backup]:
        """In the order in which they were begun."""
        with self.site.database.transaction() as cursor:
            return backups.list_backups(cursor, statuses=[BackupStatus.BACKED_UP])

    def assert_content(self, backup: Backup) -> None:
        """All its volumes are those of one point in time."""
        assert backup.status is BackupStatus.BACKED_UP
        assert backup.backup_id in self.points, f"{backup.external_id}: nobody here has fixed its point in time"
        assert sorted(volume.target for volume in backup.volumes) == sorted(SIZES)
        restored = {}
        for volume in backup.volumes:
            raw = self.work / "restored.raw"
            layer = self.root / backup.external_id / volume.file
            try:
                tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(layer), str(raw))
                restored[volume.target] = raw.read_bytes()
            finally:
                raw.unlink(missing_ok=True)
        differences = [_differences(restored, point) for point in self.points[backup.backup_id]]
        assert {} in differences, f"{backup.external_id}: {backup.explanation}"

    def assert_every_content(self) -> None:
        recorded = self.recorded()
        assert len(recorded) > 1, "one full backup proves little"
        for backup in recorded:
            self.assert_content(backup)

    # --- what must be so after every crash --------------------------------------------------------------------

    def assert_clean(self, *, running: bool) -> None:
        """The guest goes on (or is off) and nothing is left that a backup needs only while it is being made."""
        self.assert_no_process()
        self._assert_host_clean(running=running)
        self._assert_nas_clean()
        self._assert_catalog_clean()
        self._assert_no_directory()
        assert _differences(self._images(), self.content()) == {}, "a backup only reads the VM's images"

    def assert_no_process(self) -> None:
        """Nothing that a step has started lives on; what was killed with its user may take a moment to be gone."""
        deadline = time.monotonic() + PROCESS_SECONDS
        while (found := self._processes()) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert found == {}

    def _processes(self) -> Mapping[int, str]:
        """Those that name a file of this world, and forks of a victim, which is a fork of its runner itself."""
        files = (f"{self.work}/", f"{self.machine.directory}/")
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = process.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if not command or int(process.name) == os.getpid():  # without a command: the kernel's, or a zombie
                    continue
                is_vm = Path(command.split()[0]).name.startswith("qemu-system-")
                is_left = not is_vm and any(file in command for file in files)
                if is_left or (RUNNER in command and self._is_fork_of_runner(process)):
                    found[int(process.name)] = command
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
        return found

    def _is_fork_of_runner(self, process: Path) -> bool:
        """The runner itself is our child; its place for temporary files tells it from those of other tests."""
        environment = process.joinpath("environ").read_bytes().split(b"\0")
        # After the name, in which there may be anything: state, parent...
        parent = int(process.joinpath("stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        return f"TMPDIR={self.work}/tmp".encode() in environment and parent != os.getpid()

    def _assert_host_clean(self, *, running: bool) -> None:
        domain, active = self.machine.domain, self._active()
        assert domain.state()[0] == (libvirt.VIR_DOMAIN_RUNNING if running else libvirt.VIR_DOMAIN_SHUTOFF)
        assert not _has_job(domain, running=running)
        checkpoints = {checkpoint.getName() for checkpoint in domain.listAllCheckpoints()}
        if running:
            assert checkpoints == active
            bitmaps = self.machine.dirty_bitmaps()
            assert {target: set(found) for target, found in bitmaps.items()} == dict.fromkeys(SIZES, active)
            every = [bitmap for found in bitmaps.values() for bitmap in found.values()]
            assert [bitmap for bitmap in every if bitmap.busy or bitmap.inconsistent or not bitmap.recording] == []
        else:
            # That the active one is there, if QEMU was not killed, is told by the next backup: it is incremental.
            assert checkpoints <= active
            for image in self.machine.disks.values():
                assert set(offline.bitmaps(image)) <= active
        for directory in (self.site.host.socket_dir, self.site.host.scratch_dir):
            assert Path(directory).is_dir()
            assert list(Path(directory).glob(f"*{self.machine.uuid}*")) == []

    def _active(self) -> set[str]:
        """The checkpoint of the latest recorded backup, which the catalog must have as the active one."""
        with self.site.database.transaction() as cursor:
            active = vms.active_checkpoint(cursor, vm_uuid=self.machine.uuid, repository=self.site.repository.name)
        assert active is not None
        assert active == self.recorded()[-1].checkpoint
        return {active}

    def _assert_nas_clean(self) -> None:
        """Every directory is a recorded backup, with its files and no others; and the other way round."""
        expected = {
            backup.external_id: {layout.MANIFEST, layout.DOMAIN_XML, *(volume.file for volume in backup.volumes)}
            for backup in self.recorded()
        }
        found = {
            str(directory.relative_to(self.root)): {path.name for path in directory.iterdir()}
            for directory in self.root.glob("*/*")  # pathlib's * takes names with a leading dot, too
            if directory.is_dir()
        }
        assert [name for name in found if layout.PARTIAL_PREFIX in name] == []
        assert found == expected

    def _assert_catalog_clean(self) -> None:
        with self.site.database.transaction() as cursor:
            cursor.execute(
                "SELECT external_id, status FROM backup WHERE status NOT IN ('BackedUp', 'Failed')"
                " OR (status = 'Failed' AND cleaned_at IS NULL)"
            )
            assert [dict(row) for row in cursor.fetchall()] == []
            # One that has expired is harmless: whoever comes takes it.
            cursor.execute("DELETE FROM lease WHERE expires_at < clock_timestamp()")
            cursor.execute("SELECT holder FROM lease")
            assert [row["holder"] for row in cursor.fetchall()] == []

    def _assert_no_directory(self) -> None:
        """Of this process, which was not killed; what victims left is for the next one that needs such a directory."""
        for directory in {tempfile.gettempdir(), "/tmp"}:
            assert list(Path(directory).glob(f"nasbackup-{os.getpid()}-*")) == []

    def _images(self) -> Content:
        content = {}
        for target, image in self.machine.disks.items():
            raw = self.work / "image.raw"
            if self.machine.running:
                self.machine.guest_io(target, "flush")
            try:
                tool("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", str(image), str(raw))
                content[target] = raw.read_bytes()
            finally:
                raw.unlink(missing_ok=True)
        return content


@dataclass(kw_only=True)
class Run:
    """One run of nas_backup. Only its own memory says what a step is called with, as in Airflow."""

    world: World
    run_id: str
    incremental: bool = True
    """It has to be decided so; False: whatever comes."""
    ticket: Ticket | None = None
    volumes: tuple[str, ...] = ()

    def arguments(self, step: str) -> dict[str, Any]:
        """Of one call of the step: of copy and verify, that for the first volume."""
        if step == "decide_chain":
            request = BackupRequest(vm=self.world.machine.name)
            return {"site": self.world.site, "request": request, "settings": SETTINGS, "run_id": self.run_id}
        assert self.ticket, "decide_chain comes first"
        arguments: dict[str, Any] = {"site": self.world.site, "ticket": self.ticket}
        if step == "checkpoint":
            arguments["quiesce"] = Quiesce.OFF
        elif step in ("copy", "verify"):
            arguments["volume"] = self.volumes[0]
        return arguments

    def do(self, step: str) -> None:
        """The whole step: copy and verify for every volume."""
        arguments = self.arguments(step)
        if step == "decide_chain":
            self.ticket, decided = steps.decide_chain(**arguments)
            self.volumes = tuple(volume.name for volume in decided.volumes)
            if self.incremental:
                assert decided.type is BackupType.INCREMENTAL, decided.explanation
        elif step == "checkpoint":
            steps.checkpoint(**arguments)
            self._fixed(arguments["ticket"])
        elif step in ("copy", "verify"):
            for volume in self.volumes:
                getattr(steps, step)(**{**arguments, "volume": volume})
        else:
            getattr(steps, step)(**arguments)

    def _fixed(self, ticket: Ticket) -> None:
        if ticket.backup_id not in self.world.points:
            self.fix(self.world.content())
        if self.world.machine.running:
            self.world.write()  # the guest goes on, and what it writes now is not in this backup

    def fix(self, *points: Content) -> None:
        """Its point in time is one of these."""
        assert self.ticket
        self.world.points[self.ticket.backup_id] = points

    def until(self, step: str) -> None:
        """All steps before this one."""
        for before in STEPS[: STEPS.index(step)]:
            self.do(before)

    def go_on(self, step: str) -> Backup:
        """This step and all after it."""
        for following in STEPS[STEPS.index(step) :]:
            self.do(following)
        return self.backup()

    def backup(self) -> Backup:
        assert self.ticket
        with self.world.site.database.transaction() as cursor:
            return backups.get(cursor, backup_id=self.ticket.backup_id)


def whole_backup(world: World, *, run_id: str, incremental: bool = True) -> Backup:
    """Of what the guest has just written."""
    world.write()
    backup = Run(world=world, run_id=run_id, incremental=incremental).go_on("decide_chain")
    assert backup.status is BackupStatus.BACKED_UP
    return backup


@contextmanager
def vm_with_base(
    connection: Any, *, site: Site, name: str, work: Path, running: bool, owner: str | None = None
) -> Iterator[World]:
    """With one full backup. ``owner`` gets the images: a libvirtd that is not root's cannot see to that itself."""
    volumes = [lab.Volume(size=size) for size in SIZES.values()]
    with lab.lab_vm(connection, name=name, volumes=volumes, start=False) as machine:
        if owner is not None:
            for path in (machine.directory, *machine.disks.values()):
                shutil.chown(path, owner)
        if running:
            machine.start()
        world = World(site=site, machine=machine, work=work)
        base = whole_backup(world, run_id="base", incremental=False)
        assert base.type is BackupType.FULL
        world.assert_clean(running=running)
        world.assert_content(base)
        yield world


def _differences(restored: Content, point: Content) -> Mapping[str, str]:
    """Target -> what is wrong with it; said in few words, of millions of bytes."""
    assert set(restored) == set(point)
    wrong = {}
    for target, data in restored.items():
        expected = point[target]
        if len(data) != len(expected):
            wrong[target] = f"{len(data)} bytes, not {len(expected)}"
        elif data != expected:
            granules = [
                start // GRANULE
                for start in range(0, len(data), GRANULE)
                if data[start : start + GRANULE] != expected[start : start + GRANULE]
            ]
            wrong[target] = f"granules {granules}"
    return wrong


def _has_job(domain: Any, *, running: bool) -> bool:
    try:
        domain.backupGetXMLDesc()
    except libvirt.libvirtError as error:
        # libvirt does not even look for one in a stopped VM.
        none = libvirt.VIR_ERR_NO_DOMAIN_BACKUP if running else libvirt.VIR_ERR_OPERATION_INVALID
        if error.get_error_code() in (none, libvirt.VIR_ERR_NO_DOMAIN_BACKUP):
            return False
        raise
    return True
