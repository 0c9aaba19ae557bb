"""VMs that are stopped, that start, and that stop, at any moment of their backup."""

from __future__ import annotations

import time

import pytest
from nasbackup import steps
from nasbackup.errors import JobLost, VmStarted
from nasbackup.model import BackupStatus, BackupType, Quiesce, Reason, VmState

from tests.integration.story import Story

MIB = 1 << 20


def test_a_stopped_backup_seeds_the_chain_that_goes_on_when_the_vm_runs(story: Story) -> None:
    story.machine.guest_io("vda", "write -P 0x11 0 2M")
    story.machine.destroy()
    full = story.backup()
    assert (full.type, full.reason, full.vm_state) == (BackupType.FULL, Reason.VM_STOPPED, VmState.STOPPED)
    story.assert_tidy()
    again = story.backup()  # without the opt-in each backup of a stopped VM is full; bitmaps do not pile up
    assert again.reason is Reason.VM_STOPPED
    story.assert_tidy()

    story.machine.start()
    story.machine.guest_io("vda", "write -P 0x12 1M 1M", "discard 0 64k")
    story.machine.guest_io("vdb", "write -P 0x13 9437184 512")
    incremental = story.backup()
    assert (incremental.type, incremental.parent) == (BackupType.INCREMENTAL, again.external_id)
    assert incremental.volumes[0].bytes_read == MIB
    story.assert_everything_restores()
    story.assert_tidy()


def test_opted_in_a_stopped_vm_goes_on_incrementally(story: Story) -> None:
    story.variables["nas.backup.stopped.incremental.enabled"] = "true"
    story.backup()
    story.machine.guest_io("vda", "write -P 0x21 3M 1M", "write -z -u 4M 1M")
    story.machine.destroy()
    incremental = story.backup()
    assert (incremental.type, incremental.vm_state) == (BackupType.INCREMENTAL, VmState.STOPPED)
    assert incremental.volumes[0].bytes_read == MIB
    unchanged = story.backup()
    assert [volume.bytes_read for volume in unchanged.volumes] == [0, 0]
    story.assert_tidy()
    story.machine.start()
    story.machine.guest_io("vda", "write -P 0x22 3M 64k")
    assert story.backup().volumes[0].bytes_read == 64 << 10
    story.assert_everything_restores()
    story.assert_tidy()


def test_opted_in_a_crashed_vms_bitmaps_are_not_believed(story: Story) -> None:
    story.variables["nas.backup.stopped.incremental.enabled"] = "true"
    story.backup()
    story.machine.destroy()
    story.machine.start()  # the bitmaps are in the images, in use
    story.machine.guest_io("vda", "write -P 0x23 0 1M")
    story.machine.crash()
    backup = story.backup()
    assert (backup.type, backup.reason) == (BackupType.FULL, Reason.BITMAP_UNUSABLE)
    story.assert_everything_restores()
    story.assert_tidy()


def test_a_vm_that_starts_between_decision_and_checkpoint_is_decided_on_anew(story: Story) -> None:
    base = story.backup()
    story.machine.destroy()
    backup = story.backup(before_checkpoint=story.machine.start)
    assert (backup.vm_state, backup.type, backup.parent) == (
        VmState.RUNNING,
        BackupType.INCREMENTAL,
        base.external_id,
    )
    story.assert_everything_restores()
    story.assert_tidy()


def test_a_vm_that_stops_between_decision_and_checkpoint_is_decided_on_anew(story: Story) -> None:
    story.backup()
    story.machine.guest_io("vda", "write -P 0x31 0 1M")
    backup = story.backup(before_checkpoint=story.machine.destroy)
    assert (backup.vm_state, backup.reason) == (VmState.STOPPED, Reason.VM_STOPPED)
    story.machine.start()
    story.machine.guest_io("vda", "write -P 0x32 2M 1M")
    assert story.backup().type is BackupType.INCREMENTAL
    story.assert_everything_restores()
    story.assert_tidy()


def test_a_start_in_mid_copy_wins_and_what_was_read_is_never_recorded(story: Story) -> None:
    story.machine.destroy()
    ticket, decided = story.decide()
    steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    steps.copy(story.site, ticket=ticket, volume=decided.volumes[0].name)

    def start(_: object) -> None:
        if not story.machine.running:
            before = time.monotonic()
            story.machine.start()
            assert time.monotonic() - before < 40, "it does not wait for the copy, which waits for it here"
            story.machine.guest_io("vdb", "write -P 0x41 0 1M")

    with pytest.raises(VmStarted, match="was started while"):
        steps.copy(story.site, ticket=ticket, volume=decided.volumes[1].name, on_progress=start)
    steps.end_job(story.site, ticket=ticket, why_failed="the VM was started")
    assert story.load(decided.backup_id).status is BackupStatus.FAILED
    story.assert_tidy()
    backup = story.backup()
    assert backup.vm_state is VmState.RUNNING
    story.assert_everything_restores()
    story.assert_tidy()


def test_a_start_and_stop_in_mid_copy_is_noticed_too(story: Story) -> None:
    story.machine.destroy()
    ticket, decided = story.decide()
    steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    story.machine.start()
    story.machine.destroy()
    with pytest.raises(VmStarted):
        steps.copy(story.site, ticket=ticket, volume=decided.volumes[0].name)
    steps.end_job(story.site, ticket=ticket)
    story.assert_tidy()
    story.backup()
    story.assert_everything_restores()


def test_a_guest_that_shuts_down_in_mid_copy_loses_its_job_and_not_its_chain(story: Story) -> None:
    story.backup()
    story.machine.guest_io("vda", "write -P 0x51 0 1M")
    ticket, decided = story.decide()
    steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    story.machine.destroy()
    with pytest.raises(JobLost, match="next run starts from a new point in time"):
        steps.copy(story.site, ticket=ticket, volume=decided.volumes[0].name)
    steps.end_job(story.site, ticket=ticket)
    story.assert_tidy()
    story.machine.start()
    backup = story.backup()
    assert backup.type is BackupType.INCREMENTAL
    assert backup.volumes[0].bytes_read == MIB
    story.assert_everything_restores()
    story.assert_tidy()
