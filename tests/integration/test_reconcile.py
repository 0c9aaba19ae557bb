"""nas_reconcile: what crashes left is found and taken away; what is at work, or foreign, is not touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from nasbackup import steps
from nasbackup.catalog import restores
from nasbackup.errors import HostUnreachable, HypervisorError, NotARepository, RestoreCutOff, VmBusy
from nasbackup.model import BackupStatus, BackupType, Quiesce, Target
from nasbackup.reconcile import act, observe, plan
from nasbackup.reconcile.plan import Kind
from nasbackup.restore import files
from nasbackup.steps import restore

from tests.integration.half_runs import expire_leases
from tests.integration.restoring import assert_no_trace, bench_of, contents, request
from tests.integration.story import Story


def reconcile(story: Story) -> list[Kind]:
    """One run; returns the kinds of what was done."""
    outcomes = act(story.site, actions=plan(observe(story.site)).to_do, holder="nas_reconcile/test")
    assert [outcome for outcome in outcomes if not outcome.done] == []
    return [outcome.action.kind for outcome in outcomes]


def test_a_tidy_world_needs_nothing(story: Story) -> None:
    story.backup()
    assert plan(observe(story.site)).actions == ()


def test_a_dead_run_is_undone_once_its_lease_has_expired_and_the_chain_goes_on(story: Story) -> None:
    story.backup()
    story.machine.guest_io("vda", "write -P 0x11 0 1M")
    ticket, dead = story.decide()
    steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    steps.copy(story.site, ticket=ticket, volume=dead.volumes[0].name)
    assert plan(observe(story.site)).actions == (), "the lease is alive: the VM is at work"
    expire_leases(story)
    planned = plan(observe(story.site)).actions
    assert [(action.kind, action.what) for action in planned] == [(Kind.UNDO_BACKUP, dead.external_id)]
    assert story.load(dead.backup_id).status is BackupStatus.BACKING_UP, "planning changes nothing"
    assert reconcile(story) == [Kind.UNDO_BACKUP]
    story.assert_tidy()
    assert story.backup().type is BackupType.INCREMENTAL
    story.assert_everything_restores()


def test_leftovers_without_a_backup_go_and_foreign_things_stay(story: Story) -> None:
    recorded = story.backup()
    host, root = story.site.host, Path(story.site.repository.path)
    scratch = Path(host.scratch_dir) / f"{story.machine.uuid}-2001.01.01.00.00.00-vda.qcow2"
    foreign_scratch = Path(host.scratch_dir) / f"someone-elses-{story.machine.name}"
    foreign = [root / "notes.txt", root / "other-vm" / "2020.01.01.00.00.00" / "root.x.qcow2", root / "lost+found"]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    story.machine.domain.checkpointCreateXML("<domaincheckpoint><name>someones</name></domaincheckpoint>")
    # A run that failed cleanly, and whose checkpoint somehow came back.
    ticket, failed = story.decide()
    steps.end_job(story.site, ticket=ticket)
    story.machine.domain.checkpointCreateXML(f"<domaincheckpoint><name>{failed.checkpoint}</name></domaincheckpoint>")
    partial = root / story.machine.name / f".partial-{failed.directory}"
    partial.mkdir()
    for path in (scratch, foreign_scratch):
        path.write_bytes(b"x")

    reports = [action for action in plan(observe(story.site)).actions if action.kind is Kind.REPORT]
    assert [action.what for action in reports] == ["other-vm/2020.01.01.00.00.00"]
    assert sorted(reconcile(story)) == [Kind.DROP_CHECKPOINT, Kind.REMOVE_DIRECTORY, Kind.REMOVE_FILE]
    assert all(path.exists() for path in foreign)
    assert foreign_scratch.exists()
    foreign_scratch.unlink()
    assert {c.getName() for c in story.machine.domain.listAllCheckpoints()} == {"someones", recorded.checkpoint}
    story.machine.domain.checkpointLookupByName("someones").delete()
    (root / "other-vm" / "2020.01.01.00.00.00" / "root.x.qcow2").unlink()
    story.assert_tidy()
    assert reconcile(story) == []


def test_nothing_is_done_on_a_partial_view(story: Story) -> None:
    story.backup()
    ticket, _ = story.decide()
    expire_leases(story)
    away = replace(story.site, host=replace(story.site.host, uri="qemu+unix:///system?socket=/nowhere"))
    with pytest.raises(HostUnreachable):
        observe(away)
    path = Path(story.site.repository.path)
    path.rename(path.with_name("mounted"))
    path.mkdir()
    with pytest.raises(NotARepository):
        observe(story.site)
    path.rmdir()
    path.with_name("mounted").rename(path)
    assert story.load(ticket.backup_id).status is BackupStatus.BACKING_UP
    assert reconcile(story) == [Kind.UNDO_BACKUP]
    story.assert_tidy()


def test_a_recorded_backup_that_is_not_on_the_nas_is_reported_not_forgotten(story: Story) -> None:
    backup = story.backup()
    directory = Path(story.site.repository.path) / backup.external_id
    directory.rename(directory.parent.parent / "moved-away-by-hand")
    (action,) = plan(observe(story.site)).actions
    assert (action.kind, action.what) == (Kind.REPORT, backup.external_id)
    assert story.load(backup.backup_id).status is BackupStatus.BACKED_UP


def test_a_restore_that_was_cut_off_is_undone_and_one_that_waits_for_an_answer_is_left(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    story.machine.guest_io("vda", "write -P 1 0 1M")
    backup = story.backup()
    story.machine.guest_io("vda", "write -P 2 0 1M")
    story.machine.destroy()
    before = contents(story.machine)
    bench = bench_of(story.site)
    asked = request(backup, Target.IN_PLACE)
    restore.plan(bench, request=asked)
    bench.lease(uuid=backup.vm_uuid, vm=backup.vm).leave()
    assert reconcile(story) == [], "somebody is being asked"

    for volume in backup.volumes:
        restore.restore_volume(bench, backup=backup, key=asked.key, volume=volume.name)

    class Killed(BaseException):
        pass

    take_places, rename, count = files.take_places, Path.rename, iter(range(1, 10))

    def at_the_third(self: Path, target: object) -> object:
        if next(count) == 3:
            raise Killed
        return rename(self, target)  # type: ignore[arg-type]

    def cut_off(moved: object) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Path, "rename", at_the_third)
            take_places(moved)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(files, "take_places", cut_off)
        with pytest.raises(Killed):
            restore.commit(bench, backup=backup, key=asked.key)
    assert not all(path.exists() for path in story.machine.disks.values()), "it cannot start with a mixture"
    assert reconcile(story) == [], "its lease is alive"
    with pytest.raises(VmBusy, match="is in use by a test until"):
        story.decide()
    expire_leases(story)
    for _ in range(2):
        with pytest.raises(RestoreCutOff) as caught:
            story.decide()
        missing = ", ".join(map(str, story.machine.disks.values()))
        assert str(caught.value) == (
            f"VM {story.machine.name} was not backed up: the restore of {backup.external_id} into it was cut off on "
            f"host {story.machine.connection.getHostname()}; missing: {missing}. "
            "Run nas_reconcile with dry_run=false, which brings the old volumes back, or begin the restore again."
        )
    assert reconcile(story) == [Kind.UNDO_RESTORE, Kind.DROP_CHECKPOINT], "the next backup is a full all the same"
    assert contents(story.machine) == before
    with story.site.database.transaction() as cursor:
        cursor.execute("DELETE FROM lease WHERE expires_at < clock_timestamp()")
    assert_no_trace(story.site, story.machine.directory)
    ticket, decided = story.decide()
    assert decided.type is BackupType.FULL
    steps.end_job(story.site, ticket=ticket, why_failed="this test only looks at the decision")

    restore.plan(bench, request=asked)
    expire_leases(story)
    with story.site.database.transaction() as cursor:
        cursor.execute("UPDATE restore SET begun_at = begun_at - interval '25 hours'")
    assert reconcile(story) == [Kind.UNDO_RESTORE]
    with story.site.database.transaction() as cursor:
        assert restores.list_all(cursor) == []


def test_a_volume_that_no_restore_took_away_is_told_in_libvirts_words(story: Story) -> None:
    """Also while somebody is asked about one."""
    backup = story.backup()
    story.machine.destroy()
    restore.plan(bench_of(story.site), request=request(backup, Target.IN_PLACE))
    expire_leases(story)
    image = story.machine.disks["vda"]
    image.rename(f"{image}.away")
    try:
        with pytest.raises(HypervisorError, match=rf"Reading the definition of VM .* failed: .*{image}"):
            story.decide()
    finally:
        Path(f"{image}.away").rename(image)
