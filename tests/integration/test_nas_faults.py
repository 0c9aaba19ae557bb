"""A NAS that is full, fails or hangs: the run fails with a clear word, the guest and the other VMs don't notice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import libvirt
import pytest
from nasbackup import steps
from nasbackup.catalog import Database, repositories
from nasbackup.errors import HostNotReady, NasBackupError, NasIo, RepositoryFull
from nasbackup.model import Backup, BackupStatus, BackupType, Host, Quiesce, Repository, RepositoryType
from nasbackup.nas import publish, watchdog
from nasbackup.nas import repository as nas_repository
from nasbackup.nas.watchdog import watched
from nasbackup.steps import Site, Ticket

from lab import vm as lab
from lab.nas import FaultyNas, faulty_nas, small_nas, waits_uninterruptibly
from lab.places import QEMU_USER
from tests.integration.story import Story

MIB = 1 << 20
NO_ANSWER_SECONDS = 3.0
ENDS_SECONDS = 15.0
"""On top of that: threads and a qemu-nbd that are stuck are waited for a little before they are left behind."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a healthy NAS is one in memory: on this machine's disk an fsync may wait that long for what others write."""
    monkeypatch.setattr(watchdog, "NO_ANSWER_SECONDS", NO_ANSWER_SECONDS)
    monkeypatch.setattr("nasbackup.transfer.qemu_nbd._KILLED_SECONDS", 2.0)
    # The package's attribute of this name is the step itself, which hides its module.
    monkeypatch.setattr(sys.modules["nasbackup.steps.copy"], "PROGRESS_SECONDS", 0.05)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "place"


@pytest.fixture
def faulty(place: Path) -> Iterator[FaultyNas]:
    with faulty_nas(place, write_delay_ms=3) as nas:
        yield nas


@pytest.fixture
def tell(libvirt_connection: Any, database: Database, vm_name: str, tmp_path: Path) -> Callable[..., Any]:
    """``with tell(nas) as story``: a VM with one disk, and a repository of its own in that place."""

    @contextmanager
    def telling(nas: Path, *, number: int = 1, scratch: Path | None = None) -> Iterator[Story]:
        nas.mkdir(exist_ok=True)
        repository = Repository(name=f"nas_{number}", type=RepositoryType.LOCAL, path=str(nas))
        with database.transaction() as cursor:
            repositories.register(cursor, repository=repository, uuid=nas_repository.register(repository))
        host = Host(name="kvm_test")
        if scratch is not None:
            host = replace(host, scratch_dir=str(scratch))
        site = Site(database=database, host=host, repository=repository)
        work = tmp_path / f"work-{number}"
        work.mkdir()
        name = vm_name.replace("i-2-", f"i-{number}-")
        with lab.lab_vm(libvirt_connection, name=name, volumes=[lab.Volume(size=24 * MIB)]) as machine:
            yield Story(site=site, machine=machine, work=work)

    return telling


def begin(story: Story) -> tuple[Ticket, Backup]:
    ticket, decided = story.decide()
    steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    return ticket, decided


def copy(story: Story, ticket: Ticket, decided: Backup, *, at: int, happens: Callable[[], None]) -> None:
    """Copy the only volume; something happens as soon as so many bytes have been copied."""
    done = []

    def follow(progress: Any) -> None:
        if progress.done >= at and not done:
            done.append(progress)
            happens()

    steps.copy(story.site, ticket=ticket, volume=decided.volumes[0].name, on_progress=follow)


def with_retries(step: Callable[[], object]) -> None:
    """As Airflow does: what can be retried is retried twice."""
    for retries in (2, 1, 0):
        try:
            step()
            return
        except NasBackupError as error:
            if not retries or not error.retryable:
                raise


def finish(story: Story, ticket: Ticket, decided: Backup) -> Backup:
    story.freeze_and_compare(decided)
    for volume in decided.volumes:
        with_retries(partial(steps.verify, story.site, ticket=ticket, volume=volume.name))
    with_retries(partial(steps.record, story.site, ticket=ticket))
    steps.end_job(story.site, ticket=ticket)
    return story.load(ticket.backup_id)


def assert_the_next_run_is_incremental(story: Story, *, base: Backup) -> None:
    after = story.backup()
    assert (after.type, after.parent) == (BackupType.INCREMENTAL, base.external_id)
    story.assert_everything_restores()
    story.assert_tidy()


def has_job(story: Story) -> bool:
    try:
        story.machine.domain.backupGetXMLDesc()
    except libvirt.libvirtError:
        return False
    return True


def fill(nas: Path) -> Path:
    """Not one block is left."""
    ballast = nas / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return ballast


# --- full -----------------------------------------------------------------------------------------------------


def test_a_nas_that_is_too_small_is_told_before_anything_is_begun(tell: Callable[..., Any], place: Path) -> None:
    with small_nas(place, size=6 * MIB) as nas, tell(nas) as story:
        story.machine.guest_io("vda", "write -P 1 0 8M")
        with pytest.raises(RepositoryFull, match=r"is full: needs \d+ bytes, has \d+\. Free some space") as caught:
            story.decide()
        assert 8 * MIB < caught.value.data["needs"] < 11 * MIB
        assert 5 * MIB < caught.value.data["has"] < 6 * MIB
        assert not caught.value.retryable
        assert story.machine.domain.listAllCheckpoints() == []
        assert [path.name for path in nas.iterdir()] == [".nasbackup-repository.json"]
        story.assert_tidy()

        subprocess.run(["mount", "-o", "remount,size=32m", str(nas)], check=True)
        assert story.backup().type is BackupType.FULL


def test_a_nas_that_gets_full_during_the_copy(tell: Callable[..., Any], place: Path) -> None:
    with small_nas(place, size=20 * MIB) as nas, tell(nas) as story:
        story.machine.guest_io("vda", "write -P 1 0 8M")
        story.backup()
        story.machine.guest_io("vda", "write -P 2 0 64k")
        base = story.backup()
        story.machine.guest_io("vda", "write -P 3 4M 20M")  # what no history could tell
        ticket, decided = begin(story)
        assert decided.type is BackupType.INCREMENTAL
        with pytest.raises(RepositoryFull) as caught:
            copy(story, ticket, decided, at=0, happens=lambda: None)
        assert 8 * MIB < caught.value.data["needs"] <= 20 * MIB
        assert caught.value.data["has"] < MIB
        assert not caught.value.retryable
        ending = steps.end_job(story.site, ticket=ticket)
        assert ending.status is BackupStatus.FAILED
        story.assert_tidy()
        assert nas_repository.free_bytes(nas) > 10 * MIB, "what was written is gone again"

        subprocess.run(["mount", "-o", "remount,size=64m", str(nas)], check=True)
        assert_the_next_run_is_incremental(story, base=base)


def test_a_nas_that_gets_full_before_the_manifest(tell: Callable[..., Any], place: Path) -> None:
    with small_nas(place, size=32 * MIB) as nas, tell(nas) as story:
        story.machine.guest_io("vda", "write -P 1 0 1M")
        base = story.backup()
        story.machine.guest_io("vda", "write -P 2 0 1M")
        ticket, decided = begin(story)
        copy(story, ticket, decided, at=0, happens=lambda: None)
        steps.verify(story.site, ticket=ticket, volume=decided.volumes[0].name)
        ballast = fill(nas)
        with pytest.raises(RepositoryFull) as caught:
            steps.record(story.site, ticket=ticket)
        assert caught.value.data["needs"] > 500, "the manifest"
        assert caught.value.data["has"] == 0
        assert not (nas / decided.external_id).exists()
        steps.end_job(story.site, ticket=ticket)
        story.assert_tidy()
        ballast.unlink()
        assert_the_next_run_is_incremental(story, base=base)


# --- scratch --------------------------------------------------------------------------------------------------


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A small directory for QEMU's scratch files."""
    path = Path("/var/lib/nasbackup") / f"scratch-{os.getpid()}"
    with small_nas(path, size=32 * MIB):
        subprocess.run(["chown", f"{QEMU_USER}:", str(path)], check=True)
        yield path
    path.rmdir()


def test_scratch_that_is_too_small_is_told_before_anything_is_begun(
    tell: Callable[..., Any], place: Path, scratch: Path
) -> None:
    ballast = fill_to(scratch, leave=12 * MIB)
    with small_nas(place, size=64 * MIB) as nas, tell(nas, scratch=scratch) as story:
        with pytest.raises(HostNotReady, match=r"scratch-\d+ needs \d+ bytes .* has \d+; free some space"):
            story.decide()
        story.assert_tidy()
        ballast.unlink()
        assert story.backup().type is BackupType.FULL


def test_a_guest_that_overwrites_more_than_scratch_can_hold_ends_its_backup_and_not_itself(
    tell: Callable[..., Any], faulty: FaultyNas, scratch: Path
) -> None:
    with tell(faulty.path, scratch=scratch) as story:
        story.machine.guest_io("vda", "write -P 1 0 8M")
        base = story.backup()
        story.machine.guest_io("vda", "write -P 2 0 24M")
        ticket, decided = begin(story)
        other = fill_to(scratch, leave=MIB)  # somebody else needs the space
        with pytest.raises(HostNotReady, match="kept free for the guest"):
            copy(story, ticket, decided, at=0, happens=lambda: None)
        assert not has_job(story), "it was ended at once: the guest's writes depend on it"
        story.machine.guest_io("vda", "write -P 3 0 24M")
        assert story.machine.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
        steps.end_job(story.site, ticket=ticket)
        other.unlink()
        assert_the_next_run_is_incremental(story, base=base)


def fill_to(directory: Path, *, leave: int) -> Path:
    ballast = directory / "ballast"
    ballast.write_bytes(bytes(nas_repository.free_bytes(directory) - leave))
    return ballast


# --- EIO ------------------------------------------------------------------------------------------------------


def test_a_nas_that_fails_during_the_copy_and_is_repaired(tell: Callable[..., Any], faulty: FaultyNas) -> None:
    with tell(faulty.path) as story:
        story.machine.guest_io("vda", "write -P 1 0 2M")
        base = story.backup()
        story.machine.guest_io("vda", "write -P 2 0 12M")
        ticket, decided = begin(story)
        with pytest.raises(NasBackupError) as caught:
            copy(story, ticket, decided, at=MIB, happens=faulty.fail_writes)
        assert caught.value.retryable, caught.value
        with pytest.raises(NasBackupError) as caught:
            copy(story, ticket, decided, at=MIB, happens=lambda: None)
        assert caught.value.retryable, caught.value
        assert has_job(story), "the point in time is still there for the retry"

        faulty.heal()
        with_retries(partial(copy, story, ticket, decided, at=0, happens=lambda: None))
        recorded = finish(story, ticket, decided)
        assert (recorded.status, recorded.parent) == (BackupStatus.BACKED_UP, base.external_id)
        story.machine.guest_io("vda", "write -P 3 1M 1M")
        assert_the_next_run_is_incremental(story, base=recorded)


def test_a_nas_that_fails_until_the_run_is_given_up(tell: Callable[..., Any], faulty: FaultyNas) -> None:
    with tell(faulty.path) as story:
        story.machine.guest_io("vda", "write -P 1 0 2M")
        base = story.backup()
        story.machine.guest_io("vda", "write -P 2 0 12M")
        ticket, decided = begin(story)
        with pytest.raises(NasBackupError):
            copy(story, ticket, decided, at=MIB, happens=faulty.fail_writes)
        with suppress(NasIo):  # the partial directory may or may not go away on such a NAS
            steps.end_job(story.site, ticket=ticket)
        assert not has_job(story)
        assert story.load(ticket.backup_id).status is BackupStatus.FAILED
        faulty.heal()
        assert_the_next_run_is_incremental(story, base=base)


# --- a NAS that does not answer -------------------------------------------------------------------------------


@dataclass
class Guest:
    """Writes to a guest's disk again and again, and keeps when each write began and ended."""

    machine: lab.LabVm
    writes: list[tuple[float, float]] = field(default_factory=list)

    @contextmanager
    def writing(self) -> Iterator[None]:
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.wait(0.05):
                started = time.monotonic()
                self.machine.guest_io("vda", f"write -P {number % 255 + 1} {number % 12}M 1M")
                self.writes.append((started, time.monotonic()))
                number += 1

        with ThreadPoolExecutor(1) as pool:
            writer = pool.submit(write)
            try:
                yield
            finally:
                stop.set()
                writer.result()


def test_a_nas_that_hangs_during_the_copy(
    tell: Callable[..., Any], faulty: FaultyNas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        small_nas(tmp_path / "healthy", size=64 * MIB) as healthy,
        tell(faulty.path) as story,
        tell(healthy, number=7) as other,
    ):
        story.machine.guest_io("vda", "write -P 1 0 2M")
        base = story.backup()
        story.machine.guest_io("vda", "write -P 2 0 20M")
        ticket, decided = begin(story)
        guest = Guest(story.machine)
        hung = threading.Event()
        given_up: list[float] = []
        ended: list[float] = []

        def hang() -> None:
            faulty.hang()
            hung.set()

        def no_answer(*arguments: Any) -> NasIo:
            given_up.append(time.monotonic())
            return said(*arguments)

        def copy_until_it_ends() -> None:
            try:
                copy(story, ticket, decided, at=MIB, happens=hang)
            finally:
                ended.append(time.monotonic())

        said = watchdog._no_answer
        monkeypatch.setattr(watchdog, "_no_answer", no_answer)
        with ThreadPoolExecutor(1) as worker:
            copying = worker.submit(copy_until_it_ends)
            assert hung.wait(30)
            started = time.monotonic()
            with guest.writing():
                other.backup()
                other.machine.guest_io("vda", "write -P 1 0 64k")
                assert other.backup().type is BackupType.INCREMENTAL
                with pytest.raises(NasIo, match=r"on repository nas_1 failed: the NAS does not answer for \d+ s"):
                    copying.result(timeout=NO_ANSWER_SECONDS + ENDS_SECONDS)
        assert ended[0] - started < NO_ANSWER_SECONDS + ENDS_SECONDS
        assert len(guest.writes) > 10
        # A write may take long for once: others use this machine, too. One that waited for the NAS could not end before
        # resume(), and one that waited for the copy would be under way when that gives up.
        assert max(end - begun for begun, end in guest.writes) < 8, "a guest never waits for the NAS"
        waited = [(begun, end) for begun, end in guest.writes if begun < given_up[0] - 1.5 and given_up[0] <= end]
        assert waited == [], "nor for the copy"

        # The teardown frees guest and VM, although it cannot remove what is on the NAS.
        for refused in (
            partial(steps.end_job, story.site, ticket=ticket),
            story.decide,
        ):
            started = time.monotonic()
            with pytest.raises(NasIo, match="does not answer"):
                refused()
            assert time.monotonic() - started < NO_ANSWER_SECONDS + ENDS_SECONDS
        assert not has_job(story)
        assert story.load(ticket.backup_id).status is BackupStatus.FAILED
        with story.site.database.transaction() as cursor:
            cursor.execute("SELECT holder FROM lease")
            assert cursor.fetchall() == []

        faulty.resume()
        after = story.backup()
        assert (after.type, after.parent) == (BackupType.INCREMENTAL, base.external_id)
        for one in (story, other):
            assert len(one.frozen) > 1
            for external_id in one.frozen:
                one.assert_restores(external_id)
            assert list(Path(one.site.repository.path).glob("*/.partial-*")) == []
            assert [c.getName() for c in one.machine.domain.listAllCheckpoints()] == [one.active_checkpoint()]


@pytest.fixture
def nas(faulty: FaultyNas) -> Repository:
    repository = Repository(name="nas_test", type=RepositoryType.LOCAL, path=str(faulty.path))
    nas_repository.register(repository)
    return repository


def test_a_process_that_gave_up_can_end_and_what_it_left_behind_does_nothing_more(
    nas: Repository, faulty: FaultyNas
) -> None:
    root = Path(nas.path)
    external_id = "i-1-1-VM/2026.01.31.22.00.05"
    partial_directory = publish.prepare(nas, root=root, external_id=external_id, domain_xml="<domain/>")
    (partial_directory / "root.a.qcow2.attempt-1").write_bytes(b"data")
    faulty.hang()
    try:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                publishing = {"root": root, "external_id": external_id, "manifest": b"{}"}
                watched(nas, "publishing", publish.publish, nas, attempts={"root.a.qcow2": "1"}, **publishing)
            except NasIo as error:
                code = 42 if "Publishing on repository nas_test failed: the NAS does not answer" in str(error) else 1
            finally:
                os._exit(code)
        deadline = time.monotonic() + NO_ANSWER_SECONDS + ENDS_SECONDS
        while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert os.waitstatus_to_exitcode(ended[1]) == 42
    finally:
        faulty.resume()
    time.sleep(1)
    assert not (root / external_id).exists()
    assert not (partial_directory / "manifest.json").exists()
    assert watched(nas, "reading the marker", nas_repository.read_identity, nas)


def test_a_process_with_a_thread_that_waits_for_the_nas_cannot_end(nas: Repository, faulty: FaultyNas) -> None:
    """Why a thread and a timeout are not enough. When this fails, watchdog and apart can be simpler."""
    faulty.hang()
    try:
        child = os.fork()
        if child == 0:
            threading.Thread(target=lambda: (Path(nas.path) / "file").write_bytes(b"x"), daemon=True).start()
            within(15, lambda: waits_uninterruptibly(os.getpid()))
            time.sleep(0.5)
            os._exit(0)
        assert within(20, lambda: state_of(child) == "Z"), "its main thread has ended"
        time.sleep(1)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        assert waits_uninterruptibly(child)
    finally:
        faulty.resume()
    os.waitpid(child, 0)


def within(seconds: float, true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def state_of(pid: int) -> str:
    """Of its main thread."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_nas_that_is_slow_is_waited_for(nas: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "NO_ANSWER_SECONDS", 4.0)  # after half of it the NAS is asked
    started = time.monotonic()
    assert watched(nas, "something long", lambda: time.sleep(2.5) or "done") == "done"
    assert time.monotonic() - started > 2.5


def test_errors_come_back_as_they_are(nas: Repository) -> None:
    with pytest.raises(NasIo, match="Removing earlier attempts of a") as caught:
        watched(nas, "x", publish.remove_attempts, nas, partial=Path(nas.path) / "missing", file="a")
    assert caught.value.data["repository"] == "nas_test"
    assert caught.value.retryable
