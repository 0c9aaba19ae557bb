"""A real Airflow with its scheduler, the one that scripts/test started, and VMs for it to back up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from nasbackup import steps
from nasbackup.catalog import Database, backups, repositories
from nasbackup.model import Backup, Host, Mode, Quiesce, Repository, RepositoryType
from nasbackup.nas import repository as nas_repository
from nasbackup.restore.image import locate, restore_images
from nasbackup.settings import Settings
from nasbackup.steps import Site

from lab import proof
from lab import vm as lab
from lab.airflow import Airflow


@dataclass(frozen=True, kw_only=True)
class Plant:
    """Airflow, the catalog and the NAS of the test stack."""

    airflow: Airflow
    database: Database
    nas: Path
    runs: list[str] = field(default_factory=list)
    """Ids of runs, for a test that wants to look into the last one."""

    def backup(self, vm: str, **conf: object) -> str:
        """Trigger a run of nas_backup; returns its id."""
        return self.airflow.trigger("nas_backup", conf={"vm": vm, "host": "kvm_test", **conf})

    @property
    def site(self) -> Site:
        repository = Repository(name="nas_test", type=RepositoryType.LOCAL, path=str(self.nas))
        return Site(database=self.database, host=Host(name="kvm_test"), repository=repository)

    def backup_at_once(self, vm: str, *, full_every: int = 10, mode: Mode = Mode.AUTO) -> Backup:
        """The steps without a scheduler, where a test is about what comes afterwards."""
        request = steps.BackupRequest(vm=vm, mode=mode)
        settings = Settings(full_every=full_every)
        ticket, backup = steps.decide_chain(self.site, request=request, settings=settings, run_id=f"at once/{uuid4()}")
        steps.checkpoint(self.site, ticket=ticket, quiesce=Quiesce.OFF)
        for volume in backup.volumes:
            steps.copy(self.site, ticket=ticket, volume=volume.name)
            steps.verify(self.site, ticket=ticket, volume=volume.name)
        steps.record(self.site, ticket=ticket)
        steps.end_job(self.site, ticket=ticket)
        with self.database.transaction() as cursor:
            return backups.get(cursor, backup_id=backup.backup_id)

    def wait(self, run_id: str, *, timeout: float = 240) -> str:
        return self.airflow.wait("nas_backup", run_id, timeout=timeout)

    def recorded(self, run_id: str) -> Backup:
        """The backup of a run that has to succeed."""
        state = self.wait(run_id)
        assert state == "success", self.airflow.tasks("nas_backup", run_id)
        external_id = self.airflow.result("nas_backup", run_id, "record")["external_id"]
        with self.database.transaction() as cursor:
            return backups.find(cursor, external_id=external_id)

    def backups_of(self, vm: str) -> list[Backup]:
        with self.database.transaction() as cursor:
            return backups.list_backups(cursor, vm=vm)

    def assert_restores_what_the_guest_has(self, machine: lab.LabVm, backup: Backup, *, work: Path) -> None:
        """For a guest that writes nothing since the backup: the restored images are its disks, byte for byte."""
        machine.destroy()
        to = work / machine.name / backup.directory
        for volume in restore_images(locate(self.database, external_id=backup.external_id), to=to):
            raw = work / "disk.raw"
            proof.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", volume.source, str(raw))
            proof.assert_identical(image=volume.file, image_format="qcow2", frozen=raw)
        machine.start()

    def assert_nothing_is_left(self, machine: lab.LabVm) -> None:
        assert list((self.nas / machine.name).glob(".partial-*")) == []
        assert list(Path("/var/lib/nasbackup/run").glob(f"{machine.uuid}*")) == []
        assert list(Path("/var/lib/nasbackup/scratch").glob(f"{machine.uuid}*")) == []
        with self.database.transaction() as cursor:
            cursor.execute("SELECT 1 FROM lease JOIN vm USING (vm_id) WHERE uuid = %s", (machine.uuid,))
            assert cursor.fetchall() == []
            cursor.execute(
                "SELECT a.checkpoint FROM active_checkpoint a JOIN vm USING (vm_id) WHERE uuid = %s", (machine.uuid,)
            )
            active = {row["checkpoint"] for row in cursor.fetchall()} - {None}
        assert {checkpoint.getName() for checkpoint in machine.domain.listAllCheckpoints()} == active


@pytest.fixture(scope="session")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    assert os.environ.get("NASBACKUP_STACK") == "test", "system tests run under scripts/test"
    nas = tmp_path_factory.mktemp("nas")
    database = Database(parameters={"dsn": os.environ["AIRFLOW_CONN_NAS_BACKUP_CATALOG"]})
    airflow = Airflow.of_stack()
    with database.transaction() as cursor:  # a kept stack knows the repository of the last session
        cursor.execute("TRUNCATE repository, vm CASCADE")
    repository = Repository(name="nas_test", type=RepositoryType.LOCAL, path=str(nas))
    with database.transaction() as cursor:
        repositories.register(cursor, repository=repository, uuid=nas_repository.register(repository))
    airflow.put_connection(connection_id="kvm_test", conn_type="libvirt", extra={"uri": lab.URI})
    airflow.put_connection(connection_id="nas_test", conn_type="nas", extra={"type": "local", "path": str(nas)})
    airflow.wait_for_dag("nas_backup", containing="kvm_test")
    airflow.wait_for_dag("nas_restore")
    airflow.wait_for_dag("nas_reconcile")
    airflow.wait_for_dag("nas_retention")
    airflow.wait_for_dag("nas_sla_watch")
    return Plant(airflow=airflow, database=database, nas=nas)


@pytest.fixture
def make_vm() -> Iterator[Callable[..., lab.LabVm]]:
    """Running VMs without an operating system: the test alone writes to their disks."""
    connection: Any = lab.connect()
    with ExitStack() as stack:

        def make(suffix: str, *sizes: int) -> lab.LabVm:
            name = f"i-3-{os.getpid()}-{suffix}"
            volumes = [lab.Volume(size=size) for size in sizes]
            return stack.enter_context(lab.lab_vm(connection, name=name, volumes=volumes))

        yield make
    connection.close()


@pytest.fixture
def variable(plant: Plant) -> Iterator[Callable[[str, str], None]]:
    """Set an Airflow Variable for the length of the test."""
    keys: set[str] = set()

    def put(key: str, value: str) -> None:
        keys.add(key)
        plant.airflow.put_variable(key=key, value=value)

    yield put
    for key in keys:
        plant.airflow.delete_variable(key=key)


@pytest.fixture
def fleet_file() -> Iterator[Path]:
    """The stack's own fleet.yaml, put back afterwards."""
    file = Path(os.environ["NASBACKUP_FLEET"])
    before = file.read_text()
    yield file
    file.write_text(before)


def away_from(*, seconds: float, every: float) -> None:
    """Wait until no multiple of ``every`` (of Unix time) is within so many seconds: a scheduled run would act, too."""
    left = every - time.time() % every
    if left < seconds:
        time.sleep(left + 1)


HOUR = 3600.0
DAY = 24 * HOUR


@contextmanager
def stopped_copy(vm: str, *, file: str, timeout: float) -> Iterator[int]:
    """Catch the qemu-nbd that writes this file of this VM, and hold the copy in its midst; yields the process's pid."""
    pid = _wait_for_writer(vm, file=file, timeout=timeout)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _wait_for_writer(vm: str, *, file: str, timeout: float) -> int:
    wanted = (b"qemu-nbd", f"/{vm}/.partial-".encode(), f"{file}.qcow2.attempt".encode())
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                words = (directory / "cmdline").read_bytes()
            except OSError:
                continue
            if all(word in words for word in wanted):
                os.kill(int(directory.name), signal.SIGSTOP)
                return int(directory.name)
        time.sleep(0.005)
    raise AssertionError(f"no copy of {vm} {file} was seen within {timeout:g} s")
