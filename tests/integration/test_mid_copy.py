"""A copy that is killed, or hangs, in its midst, and a guest that goes away meanwhile.

Airflow may leave a task's process running beside its retry. Here that process is a real one that hangs in the middle
of its work, as on a NAS that does not answer, and goes on when another has taken over.
"""

from __future__ import annotations

import json
import os
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
from nasbackup.errors import JobLost, NasBackupError
from nasbackup.model import Backup, BackupStatus, BackupType, Quiesce
from nasbackup.steps import Site, Ticket

from lab import vm as lab
from tests.integration.half_runs import MIB, begin, expire_leases, finish, names_on_nas
from tests.integration.story import Story, tool

COPY = """
import json, os, sys
from nasbackup import steps
from nasbackup.catalog import Database
from nasbackup.errors import NasBackupError
from nasbackup.model import Host, Repository, RepositoryType
given = json.loads(sys.argv[1])
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

    def wake_up(self) -> str:
        """What became of it: the class of its error."""
        with suppress(ProcessLookupError):  # it may have noticed by itself
            os.kill(self.qemu_nbd, signal.SIGCONT)
        return self.end()

    def end(self) -> str:
        output, _ = self.process.communicate(timeout=60)
        return output.strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)


@contextmanager
def hanging_in_mid_copy(story: Story, ticket: Ticket, decided: Backup) -> Iterator[Copying]:
    given = {
        "parameters": dict(story.site.database.parameters),
        "host": asdict(story.site.host),
        "repository": asdict(story.site.repository),
        "ticket": asdict(ticket),
        "volume": decided.volumes[0].name,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", COPY, json.dumps(given)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield _hanging(process, story, decided, known=set(attempts(story, decided)))
    finally:
        process.kill()
        process.communicate()


def attempts(story: Story, decided: Backup) -> list[Path]:
    instance, directory = decided.external_id.split("/")
    return list((Path(story.site.repository.path) / instance / f".partial-{directory}").glob("*.attempt-*"))


def _hanging(process: subprocess.Popen[str], story: Story, decided: Backup, *, known: set[Path]) -> Copying:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the copy ended before it could be stopped"
        for file in set(attempts(story, decided)) - known:
            with suppress(FileNotFoundError):
                if file.stat().st_blocks * 512 > MIB:
                    server = _child_of(process.pid)
                    os.kill(server, signal.SIGSTOP)
                    assert file.stat().st_blocks * 512 < BIG // 2, "in the middle"
                    return Copying(process=process, qemu_nbd=server, file=file)
        time.sleep(0.001)
    raise AssertionError("the copy has not begun to write")


def _child_of(parent: int) -> int:
    (child,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    assert b"qemu-nbd" in Path(f"/proc/{child}/cmdline").read_bytes()
    return int(child)


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


BIG = 192 * MIB


@pytest.fixture
def big_story(libvirt_connection: Any, site: Site, vm_name: str, tmp_path: Path) -> Iterator[Story]:
    """A volume that takes long enough to be caught in mid-copy."""
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
        expire_leases(story)
        story.machine.guest_io("vda", "write -P 0x22 0 4M")
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
    with hanging_in_mid_copy(story, ticket, decided) as copying:
        story.machine.qmp("nbd-server-stop")
        os.kill(copying.qemu_nbd, signal.SIGCONT)
        if dies:
            time.sleep(1)
            story.machine.destroy()
        assert copying.end() == ("JobLost" if dies else "ReadFailed")
    steps.end_job(story.site, ticket=ticket)
    assert names_on_nas(story) == set()
