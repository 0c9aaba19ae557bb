"""The demo: a VM whose guest really runs, backed up by Airflow while it writes, and restored with proof.

Run by ``scripts/demo``, which has set up everything that this needs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nasbackup.catalog import Database, backups, repositories
from nasbackup.errors import NasBackupError
from nasbackup.hypervisor import connect, job
from nasbackup.model import Backup, BackupStatus, Host, Repository, RepositoryType
from nasbackup.nas import repository as nas_repository
from nasbackup.words import size
from rich.console import Console
from rich.table import Table

from lab import history, proof
from lab import vm as lab
from lab.airflow import Airflow, AirflowError, Task
from lab.console import ConsoleError

VM = "i-2-1234-VM"
HOST = "kvm_demo"
REPOSITORY = "nas_demo"
LATE = "i-2-1240-VM"
"""Its policy has no schedule: it is out of its SLA on purpose."""
OTHERS = ["i-2-1235-VM", "i-2-1236-VM", LATE, "tmp-17-VM"]
"""Small VMs without an operating system; no policy is for the last one."""
VOLUMES = [lab.Volume(size=192 << 20, filesystem=True), lab.Volume(size=96 << 20, filesystem=True)]

_stderr = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    _stderr.print(text, soft_wrap=True)  # lines break where the terminal breaks them


@dataclass(kw_only=True)
class Demo:
    airflow: Airflow
    database: Database
    directory: Path
    machine: lab.LabVm
    fresh: bool
    """The VM was made by this run: a full backup has to come first."""
    sums: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def nas(self) -> Path:
        return self.directory / "nas"

    def set_up(self) -> None:
        """What an operator does once: the Connections, and the repository's registration."""
        self.nas.mkdir(parents=True, exist_ok=True)
        repository = Repository(name=REPOSITORY, type=RepositoryType.LOCAL, path=str(self.nas))
        with self.database.transaction() as cursor:
            repositories.register(cursor, repository=repository, uuid=nas_repository.register(repository))
        self.airflow.put_connection(connection_id=HOST, conn_type="libvirt", extra={"uri": lab.URI})
        self.airflow.put_connection(
            connection_id=REPOSITORY, conn_type="nas", extra={"type": "local", "path": str(self.nas)}
        )
        for dag_id in ("nas_backup", "nas_restore", "nas_sla_watch", "nas_backup_policy_standard"):
            self.airflow.wait_for_dag(dag_id, containing=HOST if dag_id == "nas_backup" else "")
        self.give_a_past()

    def give_a_past(self) -> None:
        """Generated backups of the last month, for VMs that have none: the page has something to show."""
        connection = self.machine.connection
        for name in (VM, *OTHERS[:3]):
            machine = lab.LabVm(connection=connection, name=name)
            history.generate(
                self.database,
                vm=name,
                vm_uuid=machine.uuid,
                host=HOST,
                repository=REPOSITORY,
                policy="late" if name == LATE else "standard",
                volumes={
                    target: (image, machine.domain.blockInfo(target)[0]) for target, image in machine.disks.items()
                },
                newest=timedelta(days=3) if name == LATE else timedelta(hours=20),
                now=datetime.now(UTC),
            )

    def run(self, dag_id: str, **conf: Any) -> str:
        """A run of this DAG, to its end; returns its id."""
        run_id = self.airflow.trigger(dag_id, conf=conf)
        say(f"  {dag_id} {run_id}")
        state = self.airflow.wait(dag_id, run_id, on_change=show_task)
        if state != "success":
            raise AirflowError(f"the run {run_id} of {dag_id} is {state}; its tasks' logs say why")
        return run_id

    def guest_writes(self, name: str, *, kib: int) -> None:
        """A file on each volume, safely on its disk; the guest tells the checksum."""
        with step(f"the guest writes {kib} KiB to each volume (and never stops writing besides)"):
            for target in self.machine.disks:
                self.machine.console().write(target, name, kib=kib)
                self.sums[target] = self.machine.console().sums(target)

    def backup(self) -> tuple[Backup, Mapping[str, Path]]:
        """A run of ``nas_backup``; meanwhile, from the open job, a copy of the point in time per disk."""
        run_id = self.airflow.trigger("nas_backup", conf={"vm": VM, "host": HOST, "repository": REPOSITORY})
        say(f"  nas_backup {run_id}")
        with ThreadPoolExecutor(max_workers=1) as pool:
            frozen = pool.submit(self._freeze, timeout=300)
            state = self.airflow.wait("nas_backup", run_id, on_change=show_task)
            if state != "success":
                raise AirflowError(f"the run {run_id} of nas_backup is {state}; its tasks' logs say why")
            recorded = self.airflow.result("nas_backup", run_id, "record")
        with self.database.transaction() as cursor:
            backup = backups.find(cursor, external_id=recorded["external_id"])
        say(f"  {backup.external_id}: {backup.explanation}")
        return backup, frozen.result()

    def restore(self, backup: Backup) -> dict[str, Path]:
        """A run of ``nas_restore`` to raw images; returns them per source path."""
        to = self.directory / "restored" / backup.directory
        run_id = self.run("nas_restore", backup=backup.external_id, to=str(to), format="raw")
        done = self.airflow.result("nas_restore", run_id, "summary")
        return {volume["source"]: Path(volume["file"]) for volume in done}

    def prove(self, backup: Backup, *, frozen: Mapping[str, Path], restored: Mapping[str, Path]) -> None:
        for volume in backup.volumes:
            image, expected = restored[volume.source], self.sums[volume.target]
            with step(f"{volume.name}: restored image = the point in time, byte for byte"):
                proof.assert_identical(image=image, image_format="raw", frozen=frozen[volume.target])
            with step(f"{volume.name}: file system clean, {len(expected)} files with the guest's checksums"):
                proof.assert_file_system(image=image, expected=expected)

    def show(self) -> None:
        with self.database.transaction() as cursor:
            recorded = backups.list_backups(cursor, vm=VM, statuses=[BackupStatus.BACKED_UP])
        made = [backup for backup in recorded if backup.run_id != history.GENERATED]
        table = Table(title=f"Backups of {VM} in {self.nas}", title_justify="left", box=None, header_style="bold")
        for heading in ("Backup", "Type", "Reason", "Volume"):
            table.add_column(heading, no_wrap=heading == "Backup")
        for heading in ("Pos.", "Read", "Written", "Seconds", "On the NAS"):
            table.add_column(heading, justify="right")
        table.add_column("Verified")
        for backup in made:
            for index, volume in enumerate(backup.volumes):
                first = index == 0
                table.add_row(
                    backup.directory if first else "",
                    backup.type.value if first else "",
                    backup.reason.value if first else "",
                    volume.name,
                    str(backup.chain_position) if first else "",
                    size(volume.bytes_read or 0),
                    size(volume.bytes_written or 0),
                    f"{volume.copy_seconds:.2f}",
                    size(backup.size or 0) if first else "",
                    ("yes" if backup.verified else "no") if first else "",
                )
        Console(width=max(Console().width, 120), highlight=False).print(table)

    def _freeze(self, *, timeout: float) -> dict[str, Path]:
        host, uuid = Host(name=HOST, uri=lab.URI), self.machine.uuid
        deadline = time.monotonic() + timeout
        with connect(host) as hypervisor:
            while (socket := job.running_job(hypervisor, vm_uuid=uuid)) is None:
                if time.monotonic() > deadline:
                    raise AirflowError(f"no backup job was seen within {timeout:g} s")
                time.sleep(0.1)
        stamp = Path(socket).stem.removeprefix(f"{uuid}-")
        name = job.JobName(host=host, vm_uuid=uuid, stamp=stamp)
        frozen = {target: self.directory / "frozen" / f"{target}.raw" for target in self.machine.disks}
        for target, path in frozen.items():
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True)
            _freeze_disk(name.nbd_uri(target), to=path)
        return frozen


def _freeze_disk(nbd_uri: str, *, to: Path) -> None:
    """libvirt speaks of a job a moment before QEMU has all its exports."""
    deadline = time.monotonic() + 10
    while True:
        try:
            proof.freeze(nbd_uri=nbd_uri, to=to)
            return
        except proof.ProofError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def tell(demo: Demo) -> None:
    if demo.fresh:
        say(f"[bold]Full backup of {VM}, while its guest runs")
        demo.guest_writes("first", kib=8192)
        demo.backup()
    say(f"[bold]Incremental backup of {VM}, the guest was never stopped")
    demo.guest_writes(time.strftime("run-%H%M%S"), kib=2048)
    backup, frozen = demo.backup()
    say(f"[bold]Restore of {backup.external_id} to new images")
    restored = demo.restore(backup)
    demo.prove(backup, frozen=frozen, restored=restored)
    for directory in ("frozen", "restored"):
        shutil.rmtree(demo.directory / directory)
    say("[bold]What the policy standard does each night: back up all of its VMs (here: two small ones)")
    demo.run("nas_backup_policy_standard", vms=["i-2-1235-VM", "i-2-1236-VM"], ignore_blackout=True)
    say("[bold]Is every VM protected as promised?")
    looked = demo.airflow.result("nas_sla_watch", demo.run("nas_sla_watch"), "look")
    for sentence in looked["worst"]:
        say(f"    [yellow]{sentence}[/]")
    demo.show()


def open_others(connection: Any) -> None:
    known = {domain.name() for domain in connection.listAllDomains()}
    with step(f"{len(OTHERS)} small VMs without an operating system"):
        for name in OTHERS:
            machine = lab.LabVm(connection=connection, name=name)
            if name not in known:
                machine = lab.define_vm(connection, name=name, volumes=[lab.Volume(size=8 << 20)])
            if not machine.running and name != LATE:
                machine.start()


def open_vm(connection: Any) -> tuple[lab.LabVm, bool]:
    """The demo VM, running and obeying; True when it was made now."""
    machine = lab.LabVm(connection=connection, name=VM)
    fresh = VM not in (domain.name() for domain in connection.listAllDomains())
    with step(f"VM {VM}: 2 volumes, a Linux guest that writes files"):
        if fresh:
            machine = lab.define_vm(connection, name=VM, volumes=VOLUMES, operating_system=True)
        if not machine.running:
            machine.start(timeout=120)
        machine.console().wait_ready(timeout=120)
    return machine, fresh


def show_task(task: Task) -> None:
    if task.state in ("success", "failed", "up_for_retry", "upstream_failed"):
        mark = {"success": "[green]done[/]", "failed": "[red]failed[/]"}.get(task.state, f"[yellow]{task.state}[/]")
        say(f"    {task.title.replace('[', chr(92) + '[')}: {mark}")


@contextmanager
def step(title: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    say(f"  {title}: [green]done[/] ({time.monotonic() - started:.1f} s)")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo")
    parser.add_argument("--down", action="store_true", help="remove the demo VM and its backups")
    arguments = parser.parse_args()
    connection = lab.connect()
    try:
        if arguments.down:
            for name in (VM, *OTHERS):
                lab.LabVm(connection=connection, name=name).remove()
            return 0
        airflow = Airflow.of_stack()
        open_others(connection)
        machine, fresh = open_vm(connection)
        database = Database(parameters={"dsn": os.environ["AIRFLOW_CONN_NAS_BACKUP_CATALOG"]})
        directory = Path(os.environ["NASBACKUP_STACK_DIR"])
        demo = Demo(airflow=airflow, database=database, directory=directory, machine=machine, fresh=fresh)
        demo.set_up()
        tell(demo)
        say(f"\nAirflow's UI: {os.environ['NASBACKUP_AIRFLOW_URL']}   login: {airflow.user} / {airflow.password}")
        say(f"The page: {os.environ['NASBACKUP_AIRFLOW_URL']}/plugin/nas-backup (a month of its history is generated)")
        say("The backups stay: try `scripts/nasbackup list`. `scripts/demo --down` removes everything.")
    except (AirflowError, ConsoleError, NasBackupError, lab.LabError, proof.ProofError) as error:
        say(f"[red]scripts/demo:[/] {error}")
        say(f"The logs are in {os.environ.get('NASBACKUP_STACK_DIR', 'var/demo')}/log and in Airflow's UI.")
        return 1
    finally:
        connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
