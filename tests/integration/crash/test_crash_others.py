"""QEMU, libvirtd and PostgreSQL are killed with SIGKILL: between any two steps, and in the middle of one."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import libvirt
import nbd
import pytest
from nasbackup import steps
from nasbackup.catalog import Database, repositories
from nasbackup.errors import CatalogUnreachable, JobLost, NasBackupError
from nasbackup.model import BackupStatus, BackupType, Host, Reason, VmState
from nasbackup.nas import repository as nas_repository

from lab import vm as lab
from lab.daemons import own_libvirt, own_postgresql
from lab.places import QEMU_USER
from tests.integration.crash.world import SIZES, STEPS, Run, World, vm_with_base, whole_backup

Kill = Callable[[], None]

MOMENTS = [*(f"before {step}" for step in STEPS[1:]), "amid checkpoint", "amid copy", "amid record", "amid end_job"]
AMID: dict[str, tuple[Any, str]] = {
    "checkpoint": (libvirt.virDomain, "backupBegin"),
    "copy": (nbd.NBD, "pwrite"),
    "record": (os, "rename"),
    "end_job": (libvirt.virDomain, "abortJob"),
}
"""The effect of a step after which somebody is killed, once."""


@contextmanager
def amid(step: str, kill: Kill) -> Iterator[None]:
    """In the block, kill right after the first effect of the step that counts, which waits until that is done.

    A thread kills, in this process: the effect may be that of a fork, in which libvirt's connections are of no use.
    """
    owner, name = AMID[step]
    real = getattr(owner, name)
    with tempfile.TemporaryDirectory() as directory:
        asked, done = Path(directory, "asked"), Path(directory, "done")

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = real(*args, **kwargs)
            asked.touch()
            while not done.exists():
                time.sleep(0.002)
            return result

        def kill_when_asked() -> None:
            while not (asked.exists() or over.is_set()):
                time.sleep(0.002)
            if asked.exists():
                kill()
            done.touch()

        over = threading.Event()
        with ThreadPoolExecutor(1) as executor:
            killed = executor.submit(kill_when_asked)
            setattr(owner, name, wrapper)
            try:
                yield
            finally:
                setattr(owner, name, real)
                over.set()
                killed.result()
        assert asked.exists(), f"{step} has no {name} any more"


def tell(run: Run, moment: str, kill: Kill) -> NasBackupError | None:
    """The whole run, as Airflow would do it, with somebody killed at the moment. Returns why it failed, if it did."""
    failure = None
    for step in STEPS[:-1]:
        try:
            _do(run, step, moment, kill)
        except NasBackupError as error:
            failure = error
            break
    _do(run, "end_job", moment, kill)
    return failure


def _do(run: Run, step: str, moment: str, kill: Kill) -> None:
    """One step; tried twice, unless the error says that this would not help."""
    when, _, where = moment.partition(" ")
    if when == "before" and where == step:
        kill()
    with amid(step, kill) if when == "amid" and where == step else nullcontext():
        try:
            run.do(step)
        except NasBackupError as error:
            if not error.retryable:
                raise
        else:
            return
    run.do(step)


# --- QEMU -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", MOMENTS)
def test_qemu_killed(moment: str, libvirt_connection: Any, site: steps.Site, vm_name: str, tmp_path: Path) -> None:
    with vm_with_base(libvirt_connection, site=site, name=vm_name, work=tmp_path, running=True) as world:
        world.write()

        def kill() -> None:
            for target in SIZES:  # QEMU keeps metadata of its images in memory: what the guest flushed is safe
                world.machine.guest_io(target, "flush")
            world.machine.crash()

        run = Run(world=world, run_id="qemu")
        failure = tell(run, moment, kill)
        backup = run.backup()
        world.assert_clean(running=False)
        if moment in ("amid checkpoint", "before copy", "amid copy"):
            assert isinstance(failure, JobLost)
            assert "new point in time" in str(failure)
            assert backup.status is BackupStatus.FAILED
        else:
            assert failure is None
            assert backup.status is BackupStatus.BACKED_UP, "what was read before is a backup"
            stopped = moment == "before checkpoint"
            assert backup.vm_state is (VmState.STOPPED if stopped else VmState.RUNNING)
            world.assert_content(backup)

        world.machine.start()
        world.write()
        after = Run(world=world, run_id="after", incremental=False).go_on("decide_chain")
        if moment == "before checkpoint":
            # Decided anew for the stopped VM, whose bitmaps were in use: a full, which seeded new ones.
            assert (backup.type, backup.reason) == (BackupType.FULL, Reason.BITMAP_UNUSABLE)
            assert after.type is BackupType.INCREMENTAL
        else:
            assert (after.type, after.reason) == (BackupType.FULL, Reason.BITMAP_UNUSABLE)
        world.assert_clean(running=True)
        whole_backup(world, run_id="last")
        world.assert_clean(running=True)
        world.assert_every_content()


# --- libvirtd -------------------------------------------------------------------------------------------------


@pytest.fixture
def killable_libvirt(
    database: Database, site: steps.Site, vm_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[World, Kill]]:
    with own_libvirt() as own:
        monkeypatch.setattr(lab, "LOGS", own.logs)
        monkeypatch.setattr(lab, "PID_FILES", own.pid_files)
        host = Host(name="kvm_own", uri=own.uri)
        own_site = steps.Site(database=database, host=host, repository=site.repository)
        with vm_with_base(
            own.connect(), site=own_site, name=vm_name, work=tmp_path, running=True, owner=QEMU_USER
        ) as world:

            def kill() -> None:
                own.daemon.kill()
                own.daemon.start()
                world.machine.connection = own.connect()

            yield world, kill


@pytest.mark.parametrize("moment", MOMENTS)
def test_libvirtd_killed_and_started(moment: str, killable_libvirt: tuple[World, Kill]) -> None:
    world, kill = killable_libvirt
    world.write()
    run = Run(world=world, run_id="libvirtd")
    failure = tell(run, moment, kill)
    assert failure is None, "the job goes on in QEMU, and libvirtd finds it there"
    world.assert_clean(running=True)
    backup = run.backup()
    assert (backup.status, backup.type) == (BackupStatus.BACKED_UP, BackupType.INCREMENTAL)
    world.assert_content(backup)
    whole_backup(world, run_id="next")
    world.assert_clean(running=True)
    world.assert_every_content()


# --- PostgreSQL -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["between", "amid"])
def test_postgresql_killed_and_started(
    moment: str, libvirt_connection: Any, site: steps.Site, vm_name: str, tmp_path: Path
) -> None:
    """At every step: it fails as one that a retry helps, and the retry goes on where it was."""
    with own_postgresql() as (daemon, database):
        with database.transaction() as cursor:
            repositories.register(cursor, repository=site.repository, uuid=nas_repository.register(site.repository))
        own_site = steps.Site(database=database, host=site.host, repository=site.repository)
        with vm_with_base(libvirt_connection, site=own_site, name=vm_name, work=tmp_path, running=True) as world:
            world.write()
            run = Run(world=world, run_id="postgresql")
            for step in STEPS:
                if moment == "between":
                    daemon.kill()
                    _assert_unreachable(run, step)
                    daemon.start()
                elif step in AMID:
                    with amid(step, daemon.kill):
                        _assert_unreachable(run, step)
                    daemon.start()
                run.do(step)
            backup = run.backup()
            assert (backup.status, backup.type) == (BackupStatus.BACKED_UP, BackupType.INCREMENTAL)
            world.assert_clean(running=True)
            whole_backup(world, run_id="next")
            world.assert_clean(running=True)
            world.assert_every_content()


def _assert_unreachable(run: Run, step: str) -> None:
    """Called as Airflow calls it: the arguments are from before."""
    with pytest.raises(CatalogUnreachable) as caught:
        getattr(steps, step)(**run.arguments(step))
    assert caught.value.retryable
