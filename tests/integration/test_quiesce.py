"""Freeze and thaw, with the real guest agent in a real guest: frozen for a moment, and never left frozen."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nasbackup import steps
from nasbackup.errors import GuestNotFrozen, HypervisorError
from nasbackup.hypervisor import Hypervisor, connect, freeze_guard, job, quiescing
from nasbackup.hypervisor.quiescing import frozen, thaw_left_frozen
from nasbackup.model import Consistency, Host, Quiesce
from nasbackup.steps import Site

from lab import vm as lab
from lab.console import Console
from tests.integration.story import Story, tool

MIB = 1 << 20
VOLUMES = [lab.Volume(size=32 * MIB, filesystem=True), lab.Volume(size=24 * MIB, filesystem=True)]
HOST = Host(name="kvm_test")


@pytest.fixture(scope="module")
def booted(libvirt_connection: Any) -> Iterator[lab.LabVm]:
    """One guest for the module; it was not left frozen by any test."""
    name = f"i-3-{os.getpid()}-VM"
    with lab.lab_vm(libvirt_connection, name=name, volumes=VOLUMES, operating_system=True) as vm:
        vm.wait_agent()
        yield vm


@pytest.fixture
def guest(booted: lab.LabVm) -> Iterator[lab.LabVm]:
    yield booted
    wait_thawed(booted.console())
    wait_until(lambda: not guards(booted), "the guard has ended")
    assert not freeze_guard.marked(booted.domain)


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    with connect(HOST) as hypervisor:
        yield hypervisor


@pytest.fixture
def story(guest: lab.LabVm, site: Site, tmp_path: Path) -> Iterator[Story]:
    yield Story(site=site, machine=guest, work=tmp_path)
    for checkpoint in guest.domain.listAllCheckpoints():  # the next test's catalog knows nothing of it
        checkpoint.delete()


def wait_until(true: Any, what: str, *, timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.05)


def wait_thawed(console: Console, *, timeout: float = 10) -> None:
    wait_until(lambda: not console.is_frozen("vda") and not console.is_frozen("vdb"), "thawed", timeout=timeout)


def guards(vm: lab.LabVm) -> list[int]:
    """The processes that keep this VM frozen."""
    wanted = (freeze_guard.__name__.encode(), vm.uuid.encode())
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = cmdline.read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        if all(word in words for word in wanted):
            found.append(int(cmdline.parent.name))
    return found


def needs_recovery(image: Path) -> bool:
    """Whether the ext4 file system in this raw image has to replay its journal, as after a power cut."""
    return "needs_recovery" in tool("dumpe2fs", "-h", str(image))


def running_job(story: Story) -> str | None:
    with connect(story.site.host) as hypervisor:
        return job.running_job(hypervisor, vm_uuid=story.machine.uuid)


# --- the backup -----------------------------------------------------------------------------------------------


def test_a_frozen_point_in_time_has_clean_journals_and_the_guest_writes_on(story: Story) -> None:
    console = story.machine.console()

    def still_open() -> None:
        before = console.tick("vda")
        assert not console.is_frozen("vda"), "thawed as soon as the job had begun"
        wait_until(lambda: console.tick("vda") > before, "the guest writes on")

    backup = story.backup(quiesce=Quiesce.FAIL, while_open=still_open)
    assert backup.consistency is Consistency.FILESYSTEM
    assert [needs_recovery(image) for image in story.frozen[backup.external_id].values()] == [False, False]
    story.assert_everything_restores()

    crash = story.backup(quiesce=Quiesce.OFF)
    assert crash.consistency is Consistency.CRASH
    assert [needs_recovery(image) for image in story.frozen[crash.external_id].values()] == [True, True]
    story.assert_everything_restores()
    story.assert_tidy()


@pytest.mark.parametrize("state", ["stopped", "hanging"])
def test_a_guest_that_cannot_freeze_is_backed_up_only_where_that_is_allowed(story: Story, state: str) -> None:
    console = story.machine.console()
    console.agent("stop" if state == "stopped" else "hang")
    if state == "stopped":
        story.machine.wait_agent(connected=False)
    try:
        ticket, _ = story.decide()
        started = time.monotonic()
        with pytest.raises(GuestNotFrozen, match="quiesce=continue"):
            steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.FAIL)
        assert time.monotonic() - started < freeze_guard.ASK_SECONDS + 25, "nor after _ANSWER_SECONDS, 60"
        assert running_job(story) is None
        assert story.machine.domain.listAllCheckpoints() == []
        steps.end_job(story.site, ticket=ticket)
        story.assert_tidy()

        assert story.backup(quiesce=Quiesce.CONTINUE).consistency is Consistency.CRASH
    finally:
        console.agent("start" if state == "stopped" else "resume")
        story.machine.wait_agent()
    assert story.backup(quiesce=Quiesce.FAIL).consistency is Consistency.FILESYSTEM
    story.assert_tidy()


# --- the thaw, in every outcome -------------------------------------------------------------------------------


def test_a_job_that_qemu_refuses_leaves_the_guest_thawed_and_nothing_behind(story: Story, tmp_path: Path) -> None:
    # Where QEMU may not write: that shows only when the guest is frozen already.
    nowhere = tmp_path / "scratch"
    nowhere.mkdir(mode=0o700)
    site = replace(story.site, host=replace(story.site.host, scratch_dir=str(nowhere)))
    ticket, _ = story.decide()
    with pytest.raises(HypervisorError, match="denied"):
        steps.checkpoint(site, ticket=ticket, quiesce=Quiesce.FAIL)
    assert not story.machine.console().is_frozen("vda")
    assert running_job(story) is None
    assert story.machine.domain.listAllCheckpoints() == []
    steps.end_job(story.site, ticket=ticket)
    story.assert_tidy()


@pytest.mark.parametrize("wanted", [Quiesce.FAIL, Quiesce.CONTINUE])
def test_a_begin_that_hangs_keeps_the_guest_frozen_no_longer_than_the_limit(
    guest: lab.LabVm, hypervisor: Hypervisor, wanted: Quiesce
) -> None:
    console = guest.console()
    outcome = (
        pytest.raises(GuestNotFrozen, match="took too long") if wanted is Quiesce.FAIL else contextlib.nullcontext()
    )
    # The limit counts from before the freeze: it has to leave time for that, and for the guest to tell.
    with outcome, frozen(hypervisor, domain=guest.domain, quiesce=wanted, limit=8) as freeze:
        (guard,) = guards(guest)
        assert Path(f"/proc/{guard}/cmdline").read_bytes().split(b"\0")[-2] == b"8", "not the limit that is usual"
        assert console.is_frozen("vda")
        wait_thawed(console, timeout=18)  # while the block, which is where libvirt would hang, goes on
    if wanted is Quiesce.CONTINUE:
        assert freeze.consistency is Consistency.CRASH


def test_somebody_else_thawing_makes_it_crash_consistent(guest: lab.LabVm, hypervisor: Hypervisor) -> None:
    with (
        pytest.raises(GuestNotFrozen, match="somebody else thawed"),
        frozen(hypervisor, domain=guest.domain, quiesce=Quiesce.FAIL),
    ):
        guest.domain.fsThaw()


def test_what_somebody_else_froze_stays_frozen(guest: lab.LabVm, hypervisor: Hypervisor) -> None:
    guest.domain.fsFreeze()
    try:
        with (
            pytest.raises(GuestNotFrozen, match="somebody else has frozen"),
            frozen(hypervisor, domain=guest.domain, quiesce=Quiesce.FAIL),
        ):
            pytest.fail("the block must not be reached")
        with frozen(hypervisor, domain=guest.domain, quiesce=Quiesce.CONTINUE) as freeze:
            pass
        assert freeze.consistency is Consistency.CRASH
        assert thaw_left_frozen(hypervisor, vm_uuid=guest.uuid) is False
        assert guest.console().is_frozen("vda")
    finally:
        assert guest.domain.fsThaw() == 2


def test_a_freeze_whose_answer_is_lost_is_thawed(guest: lab.LabVm, hypervisor: Hypervisor) -> None:
    console = guest.console()
    console.agent("slow")
    try:
        with (
            pytest.raises(GuestNotFrozen, match="agent"),
            frozen(hypervisor, domain=guest.domain, quiesce=Quiesce.FAIL, limit=1),
        ):
            pytest.fail("the block must not be reached")
    finally:
        console.agent("resume")
    assert guest.domain.fsThaw() == 0, "the freeze came after its answer was given up, and so did the thaw"
    assert not console.is_frozen("vda")


def test_an_agent_that_hangs_before_the_thaw_fails_the_backup_and_is_thawed_when_it_answers(
    guest: lab.LabVm, hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quiescing, "_THAW_SECONDS", 1.0)
    console = guest.console()
    with (
        pytest.raises(HypervisorError, match=r"may still be frozen.*virsh domfsthaw"),
        frozen(hypervisor, domain=guest.domain, quiesce=Quiesce.CONTINUE),
    ):
        console.agent("hang")
    assert console.is_frozen("vda")
    console.agent("resume")
    wait_thawed(console)


# --- killed in between ----------------------------------------------------------------------------------------

FREEZE_AND_WAIT = """
import sys, time
from nasbackup.hypervisor import connect
from nasbackup.hypervisor.quiescing import frozen
from nasbackup.model import Host, Quiesce

with connect(Host(name="kvm_test")) as hypervisor:
    domain = hypervisor.domain(name=sys.argv[1])
    with frozen(hypervisor, domain=domain, quiesce=Quiesce.FAIL, limit=60):
        print("frozen", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def freezer(guest: lab.LabVm) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has just frozen the guest and would keep it so for a minute."""
    command = [sys.executable, "-c", FREEZE_AND_WAIT, guest.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "frozen\n"
        yield process
        process.kill()


def test_sigkill_between_freeze_and_thaw_thaws_at_once(guest: lab.LabVm, freezer: subprocess.Popen[str]) -> None:
    assert guest.console().is_frozen("vda")
    freezer.kill()
    wait_thawed(guest.console(), timeout=20)  # and not by its limit of 60 s


def test_killed_guard_is_replaced_by_its_parent(guest: lab.LabVm, hypervisor: Hypervisor) -> None:
    with frozen(hypervisor, domain=guest.domain, quiesce=Quiesce.FAIL) as freeze:
        (guard,) = guards(guest)
        os.kill(guard, signal.SIGKILL)
    assert freeze.consistency is Consistency.FILESYSTEM
    assert not guest.console().is_frozen("vda")


def test_a_freeze_left_by_a_machine_that_died_is_known_as_ours_and_thawed(
    guest: lab.LabVm, hypervisor: Hypervisor, freezer: subprocess.Popen[str]
) -> None:
    os.kill(guards(guest)[0], signal.SIGSTOP)  # so that it does not see the end of the other
    freezer.kill()
    os.kill(guards(guest)[0], signal.SIGKILL)
    assert guest.console().is_frozen("vda")
    assert thaw_left_frozen(hypervisor, vm_uuid=guest.uuid) is True
    assert not guest.console().is_frozen("vda")
    assert thaw_left_frozen(hypervisor, vm_uuid=guest.uuid) is False


def test_the_next_freeze_thaws_what_a_dead_machine_left(
    guest: lab.LabVm, hypervisor: Hypervisor, freezer: subprocess.Popen[str]
) -> None:
    os.kill(guards(guest)[0], signal.SIGSTOP)
    freezer.kill()
    os.kill(guards(guest)[0], signal.SIGKILL)
    with frozen(hypervisor, domain=guest.domain, quiesce=Quiesce.FAIL) as freeze:
        assert guest.console().is_frozen("vda")
    assert freeze.consistency is Consistency.FILESYSTEM
