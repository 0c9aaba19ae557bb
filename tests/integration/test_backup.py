"""Full and incremental backups of a running VM, byte for byte."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from nasbackup import steps
from nasbackup.catalog import Database, backups
from nasbackup.errors import GuestNotFrozen, NotARepository, UnknownVm, UnknownVolume, VmBusy
from nasbackup.model import BackupStatus, BackupType, Mode, Quiesce, Reason, VolumeReason
from nasbackup.nas import manifest

from tests.integration.round_trips import listening_in
from tests.integration.story import Story, tool

MIB = 1 << 20


def test_full_and_three_incrementals_are_the_points_in_time_byte_for_byte(story: Story) -> None:
    guest = story.machine
    guest.guest_io("vda", "write -P 0x11 0 3M", "write -P 0x12 8M 64k")
    guest.guest_io("vdb", "write -P 0x21 1M 2M", "write -P 0x22 9437184 512")  # up to the last, odd sector
    full = story.backup(while_open=lambda: guest.guest_io("vda", "write -P 0xee 0 24M"))

    # Writes, also over what came while the job was open; a discard; zeroes over old data, allocated and not.
    guest.guest_io("vda", "write -P 0x13 1M 1M", "discard 2M 1M", "write -z -u 8M 64k", "write -z 10M 128k")
    guest.guest_io("vdb", "write -P 0x23 9437184 512")
    first = story.backup(while_open=lambda: guest.guest_io("vda", "write -P 0xdd 20M 1M", "discard 0 1M"))

    second = story.backup()  # only what was written while the first was open

    third = story.backup()  # nothing is dirty

    assert [backup.type for backup in (full, first, second, third)] == [BackupType.FULL] + [BackupType.INCREMENTAL] * 3
    assert [backup.chain_position for backup in (full, first, second, third)] == [0, 1, 2, 3]
    assert len({backup.chain_id for backup in (full, first, second, third)}) == 1
    assert first.volumes[1].bytes_read == 512  # of the last cluster only the sector that the disk still has
    assert second.volumes[0].bytes_read == MIB  # the discarded megabyte is known to be zero and is not read
    assert [volume.bytes_read for volume in third.volumes] == [0, 0]
    assert third.checkpoint == story.active_checkpoint()
    story.assert_everything_restores()
    story.assert_tidy()


def test_the_guest_writes_on_while_it_is_backed_up(story: Story) -> None:
    story.backup(while_open=lambda: story.machine.guest_io("vda", "write -P 0x77 0 24M"))
    assert story.machine.domain.info()[0] == 1, "running, not paused"
    incremental = story.backup()
    assert incremental.volumes[0].bytes_read == 24 * MIB
    story.assert_everything_restores()


def test_full_every_three_gives_F_I_I_F_I(story: Story) -> None:
    story.variables["nas.backup.full.every"] = "3"
    made = []
    for number in range(5):
        story.machine.guest_io("vda", f"write -P {number + 1} {number}M 256k")
        made.append(story.backup())
    assert [backup.type.value[0] for backup in made] == ["F", "I", "I", "F", "I"]
    assert made[3].reason is Reason.CHAIN_COMPLETE
    assert made[0].chain_id != made[3].chain_id
    story.assert_everything_restores()
    story.assert_tidy()


def test_settings_changed_between_runs(story: Story) -> None:
    story.backup()
    story.variables["nas.backup.incremental.enabled"] = "false"
    story.machine.guest_io("vda", "write -P 0x31 0 1M")
    outside = story.backup()
    assert (outside.reason, outside.checkpoint, outside.chain_id) == (Reason.INCREMENTAL_DISABLED, None, None)
    assert story.active_checkpoint() is None
    story.assert_tidy()

    story.variables["nas.backup.incremental.enabled.default"] = "true"  # the zone overrides
    story.machine.guest_io("vda", "write -P 0x32 1M 1M")
    again = story.backup()
    assert (again.type, again.reason) == (BackupType.FULL, Reason.NO_ACTIVE_CHECKPOINT)
    incremental = story.backup()
    assert incremental.type is BackupType.INCREMENTAL
    story.variables["nas.backup.full.every"] = "2"  # mid-chain: the parent's position counts
    assert story.backup().reason is Reason.CHAIN_COMPLETE
    assert story.backup(mode=Mode.FULL).reason is Reason.FORCED_FULL
    story.variables["nas.backup.full.every"] = "1"
    assert story.backup().reason is Reason.FULL_EVERY_DISABLED
    story.assert_everything_restores()


def test_after_a_failed_run_the_next_is_incremental_and_complete(story: Story) -> None:
    story.backup()
    story.machine.guest_io("vda", "write -P 0x41 0 1M")
    ticket, failing = story.decide()
    steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    steps.copy(story.site, ticket=ticket, volume=failing.volumes[0].name)
    ending = steps.end_job(story.site, ticket=ticket, why_failed="this test stopped it")
    assert ending.status is BackupStatus.FAILED
    story.assert_tidy()

    story.machine.guest_io("vda", "write -P 0x42 4M 1M")
    after = story.backup()
    assert after.type is BackupType.INCREMENTAL
    assert after.volumes[0].bytes_read == 2 * MIB, "what changed before and after the failed run"
    story.assert_everything_restores()
    story.assert_tidy()


def test_a_run_that_died_without_end_job_is_cleaned_up_by_the_next(story: Story) -> None:
    base = story.backup()
    ticket, dead = story.decide()
    steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    steps.copy(story.site, ticket=ticket, volume=dead.volumes[0].name)
    with pytest.raises(VmBusy, match=r"is in use by test/"):
        story.decide()
    with story.site.database.transaction() as cursor:
        cursor.execute("UPDATE lease SET expires_at = now() - interval '1 second'")
    after = story.backup()
    assert after.parent == base.external_id
    assert story.load(dead.backup_id).status is BackupStatus.FAILED
    story.assert_everything_restores()
    story.assert_tidy()


def test_one_volume_is_retried_alone_and_only_the_named_attempt_is_published(story: Story) -> None:
    ticket, decided = story.decide()
    steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    root, data = decided.volumes
    first = steps.copy(story.site, ticket=ticket, volume=root.name)
    other = steps.copy(story.site, ticket=ticket, volume=data.name)
    again = steps.copy(story.site, ticket=ticket, volume=root.name)
    assert first.attempt != again.attempt
    assert first.digest == again.digest, "the same point in time"
    story.freeze_and_compare(decided)
    for volume in decided.volumes:
        steps.verify(story.site, ticket=ticket, volume=volume.name)
    recorded = steps.record(story.site, ticket=ticket)
    assert {volume.name: volume.attempt for volume in recorded.volumes} == {
        root.name: again.attempt,
        data.name: other.attempt,
    }
    assert steps.record(story.site, ticket=ticket).status is BackupStatus.BACKED_UP, "a second call finds it done"
    steps.end_job(story.site, ticket=ticket)
    directory = Path(story.site.repository.path) / recorded.external_id
    assert sorted(path.name for path in directory.iterdir()) == sorted(
        ["domain.xml", "manifest.json", root.file, data.file]
    )
    story.assert_restores(recorded.external_id)
    story.assert_tidy()


def test_the_directory_describes_itself_and_restores_with_qemu_img_alone(story: Story, tmp_path: Path) -> None:
    story.machine.guest_io("vda", "write -P 0x51 0 2M")
    story.backup()
    story.machine.guest_io("vda", "write -P 0x52 1M 2M")
    backup = story.backup()
    directory = Path(story.site.repository.path) / backup.external_id
    described = manifest.read(directory)
    assert described["external_id"] == backup.external_id
    assert described["chain"]["parent"] == backup.parent
    assert [volume["digest"] for volume in described["volumes"]] == [volume.digest for volume in backup.volumes]
    assert backup.vm_uuid in (directory / "domain.xml").read_text()

    moved = tmp_path / "elsewhere"  # relative links: the whole repository may be mounted anywhere
    Path(story.site.repository.path).rename(moved)
    for volume in backup.volumes:
        image = tmp_path / "by-hand.raw"
        tool("qemu-img", "convert", "-O", "raw", str(moved / backup.external_id / volume.file), str(image))
        frozen = story.frozen[backup.external_id][volume.name]
        tool("qemu-img", "compare", "-f", "raw", "-F", "raw", str(image), str(frozen))


def test_excluded_volume_comes_back_as_full_inside_the_incremental(story: Story) -> None:
    partial = story.backup(exclude_volumes=("vdb",))
    assert [volume.target for volume in partial.volumes] == ["vda"]
    whole = story.backup()
    assert whole.type is BackupType.INCREMENTAL
    assert [(volume.type, volume.reason) for volume in whole.volumes] == [
        (BackupType.INCREMENTAL, VolumeReason.INCREMENTAL),
        (BackupType.FULL, VolumeReason.NEW_VOLUME),
    ]
    assert "full inside it" in whole.explanation
    story.assert_everything_restores()


def test_bad_requests_touch_nothing(story: Story) -> None:
    with pytest.raises(UnknownVolume, match="no volume 'vdz'"):
        story.decide(exclude_volumes=("vdz",))
    with pytest.raises(UnknownVm, match=story.machine.name):  # the sentence names the VMs that exist
        steps.decide_chain(
            story.site, request=steps.BackupRequest(vm="../etc"), settings=story.settings(), run_id="test/bad"
        )
    with story.site.database.transaction() as cursor:
        assert backups.list_backups(cursor) == []
    story.assert_tidy()


def test_an_unmounted_nas_is_never_written_to(story: Story) -> None:
    path = Path(story.site.repository.path)
    mounted = path.with_name("mounted")
    path.rename(mounted)
    path.mkdir()  # the empty mount point under it
    with pytest.raises(NotARepository, match="Is the NAS mounted"):
        story.decide()
    assert list(path.iterdir()) == []
    path.rmdir()
    mounted.rename(path)
    story.backup()
    story.assert_tidy()


def test_a_guest_without_an_agent_is_backed_up_only_where_that_is_allowed(story: Story) -> None:
    ticket, _ = story.decide()
    with pytest.raises(GuestNotFrozen, match="quiesce=continue"):
        steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.FAIL)
    assert story.machine.domain.listAllCheckpoints() == []
    steps.end_job(story.site, ticket=ticket)
    story.assert_tidy()
    backup = story.backup(quiesce=Quiesce.CONTINUE)
    assert backup.consistency == "crash"


def test_killed_qemu_loses_its_bitmaps_and_the_next_backup_is_full_and_says_so(story: Story) -> None:
    story.backup()
    story.machine.crash()
    story.machine.start()
    story.machine.guest_io("vda", "write -P 0x61 0 1M")
    backup = story.backup()
    assert (backup.type, backup.reason) == (BackupType.FULL, Reason.BITMAP_UNUSABLE)
    assert story.backup().type is BackupType.INCREMENTAL
    story.assert_everything_restores()
    story.assert_tidy()


def test_a_vm_that_was_shut_down_and_started_goes_on_incrementally(story: Story) -> None:
    story.backup()
    story.machine.guest_io("vda", "write -P 0x71 0 1M")
    story.machine.destroy()
    story.machine.start()
    backup = story.backup()
    assert backup.type is BackupType.INCREMENTAL
    assert backup.volumes[0].bytes_read == MIB
    story.assert_everything_restores()
    story.assert_tidy()


def test_json_of_the_cli_is_the_public_form(story: Story) -> None:
    backup = story.backup()
    done = subprocess.run(
        ["nasbackup", "show", backup.external_id, "--json"],
        env={**story_environment(story)},
        capture_output=True,
        text=True,
        check=True,
    )
    document = json.loads(done.stdout)
    assert {
        *("external_id", "vm", "host", "repository", "path", "type", "status", "reason", "chain_id"),
        *("chain_position", "parent", "checkpoint", "created", "size", "verified", "volumes"),
    } <= set(document)
    assert {"name", "source", "file", "type", "virtual_size", "bytes_read", "bytes_written", "digest"} <= set(
        document["volumes"][0]
    )
    assert Path(document["volumes"][0]["file"]).is_file()
    assert Path(document["path"]).is_absolute()


def story_environment(story: Story) -> dict[str, str]:
    import os

    return {**os.environ, "NASBACKUP_CATALOG": str(story.site.database.parameters["dsn"])}


def test_a_decision_asks_the_catalog_four_times(story: Story, postgres_directory: str) -> None:
    """With a million backups in the catalog, round trips and what is planned for each are the time that it takes."""
    for _ in range(4):
        story.backup()
    dsn = story.site.database.parameters["dsn"]
    with listening_in(postgres_directory) as (directory, asked):
        listened = Database(parameters={"dsn": dsn.replace(quote(postgres_directory, safe=""), directory)})
        with listened.reading():
            pass  # connected
        asked.clear()
        story.site = replace(story.site, database=listened)
        ticket, decided = story.decide()
        questions = [question.partition(" ")[0] for question in asked]
        steps.end_job(story.site, ticket=ticket, why_failed="this test only counts")
    assert decided.type is BackupType.INCREMENTAL
    assert questions == [
        "SELECT",  # the marker's identity
        "WITH",  # the lease
        "WITH",  # how the VM stands
        "WITH",  # the row, if the lease is still held
    ], asked


def test_a_running_copy_tells_how_far_it_is(story: Story) -> None:
    def progress() -> list[dict[str, object]]:
        with story.site.database.transaction() as cursor:
            cursor.execute("SELECT name, phase, done, total FROM copy_progress ORDER BY name")
            return [dict(row) for row in cursor.fetchall()]

    story.machine.guest_io("vda", "write -P 0x11 0 2M")
    ticket, backup = story.decide()
    steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    first, second = backup.volumes
    seen: list[dict[str, object]] = []
    steps.copy(story.site, ticket=ticket, volume=first.name, on_progress=lambda _: seen.extend(progress()))
    assert {row["name"] for row in seen} == {first.name}
    assert seen[-1]["phase"] == "flush"
    assert seen[-1]["done"] == seen[-1]["total"]
    assert progress() == []  # its own row says the rest

    def cut_off(_: object) -> None:
        raise RuntimeError("the network is gone")

    with pytest.raises(RuntimeError):
        steps.copy(story.site, ticket=ticket, volume=second.name, on_progress=cut_off)
    assert [row["name"] for row in progress()] == [second.name]
    steps.end_job(story.site, ticket=ticket)
    assert progress() == []
