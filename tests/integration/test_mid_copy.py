"""A copy that is killed, or hangs, in its midst, and a guest that goes away meanwhile.

Airflow may leave a task's process running beside its retry. Here that process is a real one that hangs in the middle
of its work, as on a NAS that does not answer, and goes on when another has taken over.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from nasbackup import steps
from nasbackup.catalog import Database
from nasbackup.errors import JobLost, NasBackupError
from nasbackup.model import Backup, BackupStatus, BackupType, Quiesce
from nasbackup.steps import Site, Ticket

from lab import vm as lab
from tests.integration.half_runs import MIB, begin, expire_leases, finish, names_on_nas
from tests.integration.story import Story, tool

BIG = 64 * MIB
PIECES = 16
"""So many pieces, of 1 MiB each, a copy begins to write before it hangs. (It writes a few at a time.)"""

COPY = """
import json, os, signal, sys, threading
from nasbackup import steps
from nasbackup.catalog import Database
from nasbackup.errors import NasBackupError
from nasbackup.model import Host, Repository, RepositoryType
from nasbackup.steps import source
from nasbackup.transfer.qcow2_target import Target
given = json.loads(sys.argv[1])

write, pieces, one_at_a_time = Target.write, iter(range(1, 1 << 30)), threading.Lock()
def stop_in_the_middle(target, piece, content):
    with one_at_a_time:
        if next(pieces) == given["pieces"]:
            qemu_nbd = target._server._process.pid
            os.kill(qemu_nbd, signal.SIGSTOP)
            print(json.dumps([qemu_nbd, str(target._path)]), flush=True)
    write(target, piece, content)
Target.write = stop_in_the_middle

explain = source.RunningSource.explain
def say_so(running):
    print("explaining", flush=True)
    explain(running)
source.RunningSource.explain = say_so
source._NOTICED = given["noticed"] or source._NOTICED

site = steps.Site(
    database=Database(parameters=given["parameters"]),
    host=Host(**given["host"]),
    repository=Repository(**{**given["repository"], "type": RepositoryType(given["repository"]["type"])}),
)
try:
    steps.copy(site, ticket=steps.Ticket(**given["ticket"]), volume=given["volume"])
except NasBackupError as error:
    print(type(error).__name__)
"""


@dataclass(kw_only=True)
class Copying:
    """A copy in a process of its own, which hangs in mid-copy because its qemu-nbd is stopped (SIGSTOP)."""

    process: subprocess.Popen[str]
    qemu_nbd: int
    file: Path

    def fall_asleep(self, database: Database) -> None:
        """Stop the process itself as well (SIGSTOP), but not within a transaction, with a lock on its lease."""
        deadline = time.monotonic() + 60
        self.process.send_signal(signal.SIGSTOP)
        while in_a_transaction(database):
            assert time.monotonic() < deadline, "one transaction after the other"
            self.process.send_signal(signal.SIGCONT)
            time.sleep(0.1)
            self.process.send_signal(signal.SIGSTOP)

    def wake_up(self) -> str:
        """What became of it: the class of its error."""
        self.process.send_signal(signal.SIGCONT)
        with suppress(ProcessLookupError):  # it may have noticed by itself
            os.kill(self.qemu_nbd, signal.SIGCONT)
        return self.end()

    def end(self) -> str:
        output, _ = self.process.communicate(timeout=60)
        return output.strip().rpartition("\n")[2]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)


@contextmanager
def hanging_in_mid_copy(
    story: Story, ticket: Ticket, decided: Backup, *, noticed: float | None = None
) -> Iterator[Copying]:
    """``noticed``: how many seconds it gives libvirt to notice that QEMU is gone, if not the usual."""
    given = {
        "parameters": dict(story.site.database.parameters),
        "host": asdict(story.site.host),
        "repository": asdict(story.site.repository),
        "ticket": asdict(ticket),
        "volume": decided.volumes[0].name,
        "pieces": PIECES,
        "noticed": noticed,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", COPY, json.dumps(given)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        qemu_nbd, file = json.loads(said_by(process))
        assert b"qemu-nbd" in Path(f"/proc/{qemu_nbd}/cmdline").read_bytes()
        assert MIB < Path(file).stat().st_blocks * 512 < BIG // 2, "in the middle"
        yield Copying(process=process, qemu_nbd=qemu_nbd, file=Path(file))
    finally:
        process.kill()
        process.communicate()


def said_by(process: subprocess.Popen[str]) -> str:
    """The next line of its output."""
    assert process.stdout
    assert select.select([process.stdout], [], [], 60)[0], "it says nothing"
    line = process.stdout.readline()
    assert line, f"it has ended: {process.communicate()[1]}"
    return line.strip()


def attempts(story: Story, decided: Backup) -> list[Path]:
    instance, directory = decided.external_id.split("/")
    return list((Path(story.site.repository.path) / instance / f".partial-{directory}").glob("*.attempt-*"))


def in_a_transaction(database: Database) -> bool:
    """Whether anybody is. Looked twice: what was just sent is not yet seen."""
    for _ in range(2):
        time.sleep(0.2)
        with database.transaction() as cursor:
            cursor.execute(
                "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database()"
                " AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'idle'"
            )
            row = cursor.fetchone()
        assert row is not None
        if row["n"]:
            return True
    return False


def gone(process: int, *, within: float = 10) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def big_story(libvirt_connection: Any, site: Site, vm_name: str, tmp_path: Path) -> Iterator[Story]:
    """A volume of many pieces."""
    with lab.lab_vm(libvirt_connection, name=vm_name, volumes=[lab.Volume(size=BIG)]) as machine:
        machine.guest_io("vda", f"write -P 0x11 0 {BIG // MIB}M")
        yield Story(site=site, machine=machine, work=tmp_path)


def test_a_copy_killed_in_the_middle_leaves_no_process_and_its_retry_is_byte_identical(big_story: Story) -> None:
    story = big_story
    ticket, decided = begin(story)
    with hanging_in_mid_copy(story, ticket, decided) as copying:
        copying.kill()
        assert gone(copying.qemu_nbd), "the kernel ends it with the process that started it, though it was stopped"
        assert copying.file.exists()
    recorded = finish(story, ticket, decided)
    assert not copying.file.exists()
    assert recorded.volumes[0].bytes_read == BIG
    directory = Path(story.site.repository.path) / recorded.external_id
    assert {path.name for path in directory.iterdir()} == {"domain.xml", "manifest.json", recorded.volumes[0].file}
    story.assert_everything_restores()
    story.assert_tidy()


def test_orphans_that_wake_up_beside_their_retries_change_nothing(big_story: Story) -> None:
    story = big_story
    ticket, decided = begin(story, run_id="run")
    volume = decided.volumes[0].name
    with (
        hanging_in_mid_copy(story, ticket, decided) as first,
        hanging_in_mid_copy(story, ticket, decided) as second,
    ):
        # The task alone was tried again: orphan and retry show the same token, the catalog names the attempt.
        assert first.wake_up() in ("AttemptSuperseded", "WriteFailed")  # its file was taken away from it, too
        # The whole run is tried again: the orphan's token is void, though the row and the job are the same.
        retry, again = story.decide(run_id="run")
        assert again.backup_id == decided.backup_id
        steps.checkpoint(story.site, ticket=retry, quiesce=Quiesce.OFF)
        named = steps.copy(story.site, ticket=retry, volume=volume)
        assert second.end() == "LeaseLost"  # it notices while it hangs
    assert {file.name for file in attempts(story, decided)} == {f"{named.file}.attempt-{named.attempt}"}
    story.freeze_and_compare(decided)
    assert steps.verify(story.site, ticket=retry, volume=volume).attempt == named.attempt
    recorded = steps.record(story.site, ticket=retry)
    assert recorded.volumes[0].attempt == named.attempt
    steps.end_job(story.site, ticket=retry)
    story.assert_everything_restores()
    story.assert_tidy()


def test_an_orphan_that_wakes_up_after_another_run_took_over_leaves_no_byte(big_story: Story) -> None:
    story = big_story
    ticket, orphaned = begin(story, run_id="orphan")
    with hanging_in_mid_copy(story, ticket, orphaned) as orphan:
        story.machine.guest_io("vda", "write -P 0x22 0 4M")
        orphan.fall_asleep(story.site.database)  # else it renews its lease every few seconds, and may be faster
        expire_leases(story)
        heir, inherited = begin(story, run_id="heir")
        assert orphan.wake_up() in ("JobLost", "LeaseLost")
        recorded = finish(story, heir, inherited)
    assert story.load(orphaned.backup_id).status is BackupStatus.FAILED
    assert names_on_nas(story) == {recorded.external_id}
    story.assert_everything_restores()
    story.assert_tidy()


# --- a guest that goes away -----------------------------------------------------------------------------------


def test_a_vm_destroyed_in_mid_run_is_a_lost_job_and_the_next_run_works(story: Story) -> None:
    base = story.backup()
    story.machine.guest_io("vda", "write -P 0x44 0 1M")
    ticket, decided = begin(story)
    steps.copy(story.site, ticket=ticket, volume=decided.volumes[0].name)
    story.machine.destroy()
    with pytest.raises(JobLost, match=f"The backup job of VM {story.machine.name} ended"):
        steps.copy(story.site, ticket=ticket, volume=decided.volumes[1].name)
    assert steps.end_job(story.site, ticket=ticket).status is BackupStatus.FAILED
    assert names_on_nas(story) == {base.external_id}

    story.machine.start()
    after = story.backup()
    assert (after.type, after.parent) == (BackupType.INCREMENTAL, base.external_id)
    assert after.volumes[0].bytes_read == MIB
    story.assert_everything_restores()
    story.assert_tidy()


@pytest.mark.parametrize("restarted", [True, False])
def test_volumes_of_two_points_in_time_are_never_recorded_as_one_backup(story: Story, restarted: bool) -> None:
    """The job was lost after one volume was copied, and checkpoint alone was tried again."""
    ticket, decided = begin(story)
    first, second = decided.volumes
    steps.copy(story.site, ticket=ticket, volume=first.name)
    steps.verify(story.site, ticket=ticket, volume=first.name)
    story.machine.guest_io("vda", "write -P 0x45 0 1M")
    story.machine.guest_io("vdb", "write -P 0x45 0 1M")
    story.machine.destroy()
    if restarted:
        story.machine.start()
    steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    steps.copy(story.site, ticket=ticket, volume=second.name)
    steps.verify(story.site, ticket=ticket, volume=second.name)
    with pytest.raises(NasBackupError):
        steps.record(story.site, ticket=ticket)
    steps.end_job(story.site, ticket=ticket)
    assert names_on_nas(story) == set()


def test_a_vm_destroyed_in_mid_copy_ends_the_copy_at_once_and_says_so(big_story: Story) -> None:
    story = big_story
    ticket, decided = begin(story)
    with hanging_in_mid_copy(story, ticket, decided) as copying:
        story.machine.destroy()
        assert copying.wake_up() == "JobLost"
    steps.end_job(story.site, ticket=ticket)
    assert names_on_nas(story) == set()
    assert tool("qemu-img", "check", str(story.machine.disks["vda"]))


@pytest.mark.parametrize("dies", [True, False], ids=["qemu_dies", "only_the_export_is_gone"])
def test_an_export_that_breaks_before_libvirt_knows_why(big_story: Story, dies: bool) -> None:
    """The sockets of a QEMU that dies are closed a moment before libvirt notices."""
    story = big_story
    ticket, decided = begin(story)
    with hanging_in_mid_copy(story, ticket, decided, noticed=None if dies else 1.0) as copying:
        story.machine.qmp("nbd-server-stop")
        os.kill(copying.qemu_nbd, signal.SIGCONT)
        assert said_by(copying.process) == "explaining"
        if dies:
            time.sleep(1)
            story.machine.destroy()
        assert copying.end() == ("JobLost" if dies else "ReadFailed")
    steps.end_job(story.site, ticket=ticket)
    assert names_on_nas(story) == set()
