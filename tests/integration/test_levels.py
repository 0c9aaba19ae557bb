"""How a backup is written and checked: compression, bandwidth and the verify level, from the request to the NAS."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from nasbackup import steps
from nasbackup.catalog import backups, sla
from nasbackup.errors import VerifyFailed
from nasbackup.handling import Compression, VerifyLevel
from nasbackup.model import Backup, BackupType, BackupVolume, Quiesce, Repository
from nasbackup.nas import watchdog
from nasbackup.nas.watchdog import answers
from nasbackup.steps import Ticket

from tests.integration.story import Story, tool
from tests.integration.test_cli import answer, nasbackup, refused
from tests.integration.test_without_catalog import NOWHERE

KIB, MIB = 1 << 10, 1 << 20


def manifest_of(story: Story, backup: Backup) -> Any:
    return json.loads((Path(story.site.repository.path) / backup.external_id / "manifest.json").read_text())


def file_of(story: Story, backup: Backup, volume: BackupVolume) -> Path:
    return Path(story.site.repository.path) / backup.external_id / volume.file


def checked(story: Story, **request: object) -> tuple[Ticket, Backup]:
    """A backup that has everything but its recording."""
    ticket, _ = story.decide(**request)
    decided = steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    for volume in decided.volumes:
        steps.copy(story.site, ticket=ticket, volume=volume.name)
        steps.verify(story.site, ticket=ticket, volume=volume.name)
    return ticket, story.load(ticket.backup_id)


def last_read_back(story: Story) -> Any:
    """As the fleet's watch sees it: the oldest of what the newest backup is made of."""
    with story.site.database.transaction() as cursor:
        cursor.execute("UPDATE vm SET defined = true")
    with story.site.database.transaction() as cursor:
        (facts,) = sla.facts(cursor, hosts=[story.site.host.name])
        return facts.verified_at


def test_a_chain_of_differently_compressed_layers_is_every_point_in_time(story: Story, tmp_path: Path) -> None:
    made = []
    for number, compression in enumerate(
        [Compression.ZSTD, Compression.NONE, Compression.ZLIB, Compression.ZSTD, Compression.NONE]
    ):
        story.machine.guest_io("vda", f"write -P {number + 1} {number}M 3M")
        story.machine.guest_io("vdb", f"write -P {number + 1} 9M 512", "write -z 1M 64k")
        made.append(story.backup(compression=compression))
        assert {volume.compression for volume in made[-1].volumes} == {compression}
        assert made[-1].verified
        shown = answer(story.site.database, "show", made[-1].external_id)
        assert {volume["compression"] for volume in shown["volumes"]} == {compression.value}
        named = [volume.get("compression", "none") for volume in manifest_of(story, made[-1])["volumes"]]
        assert named == [compression.value] * 2
        assert "verify" not in manifest_of(story, made[-1])
    assert [backup.type for backup in made] == [BackupType.FULL, *[BackupType.INCREMENTAL] * 4]
    assert "zlib" in nasbackup(story.site.database, "show", made[2].external_id).stdout
    story.assert_everything_restores()
    answer(story.site.database, "verify", made[-1].external_id)
    from_catalog = answer(story.site.database, "list")
    assert answer(NOWHERE, "list", "--repository", story.site.repository.path) == from_catalog
    by_hand = tmp_path / "by-hand.qcow2"
    volume = made[-1].volumes[0]
    tool("qemu-img", "convert", "-O", "qcow2", str(file_of(story, made[-1], volume)), str(by_hand))
    frozen = story.frozen[made[-1].external_id][volume.name]
    tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(by_hand), str(frozen))
    story.assert_tidy()


def test_structure_is_recorded_as_not_verified_until_somebody_reads_it_back(story: Story) -> None:
    database = story.site.database
    story.machine.guest_io("vda", "write -P 0x11 0 2M")
    full = story.backup(verify=VerifyLevel.STRUCTURE)
    story.machine.guest_io("vda", "write -P 0x12 1M 2M")
    child = story.backup()
    assert not full.verified
    assert all(volume.checked_at and volume.verified_at is None and volume.digest for volume in full.volumes)
    assert child.verified
    assert last_read_back(story) is None, "a layer below it was never read back"
    assert manifest_of(story, full)["verify"] == "structure"
    assert [entry["verified"] for entry in answer(database, "list")] == [False, True]
    story.assert_everything_restores()

    answer(NOWHERE, "verify", child.external_id, "--repository", story.site.repository.path)
    assert not story.load(full.backup_id).verified, "without a catalog there is nowhere to note it"
    answer(database, "verify", child.external_id)
    assert story.load(full.backup_id).verified
    first = last_read_back(story)
    assert first is not None
    assert first > story.load(child.backup_id).recorded_at, "both layers were read back again"
    story.assert_tidy()


def test_a_broken_layer_is_not_noted_as_read_back(story: Story) -> None:
    story.machine.guest_io("vda", "write -P 0x11 0 2M")
    story.machine.guest_io("vdb", "write -P 0x12 0 2M")
    full = story.backup(verify=VerifyLevel.STRUCTURE)
    flip(file_of(story, full, full.volumes[1]), 0x12)
    assert "is broken" in refused(story.site.database, "verify", full.external_id)
    root, data = story.load(full.backup_id).volumes
    assert root.verified_at is not None
    assert data.verified_at is None


def flip(layer: Path, byte: int) -> None:
    """One bit of the guest's data; QEMU's own check sees nothing of it."""
    content = bytearray(layer.read_bytes())
    content[content.index(bytes([byte]) * 512)] ^= 1
    layer.write_bytes(content)


@pytest.mark.parametrize("level", VerifyLevel)
def test_what_each_level_finds_before_the_backup_is_recorded(story: Story, level: VerifyLevel) -> None:
    """A flipped bit of the content is found by reading only; a broken file by both."""
    story.machine.guest_io("vda", "write -P 0x11 0 2M")
    ticket, _ = story.decide(verify=level)
    decided = steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    volume = steps.copy(story.site, ticket=ticket, volume=decided.volumes[0].name)
    partial = Path(story.site.repository.path) / story.machine.name / f".partial-{decided.directory}"
    layer = partial / f"{volume.file}.attempt-{volume.attempt}"
    flip(layer, 0x11)
    if level is VerifyLevel.FULL:
        with pytest.raises(VerifyFailed, match="not what was copied"):
            steps.verify(story.site, ticket=ticket, volume=volume.name)
    else:
        assert steps.verify(story.site, ticket=ticket, volume=volume.name).verified_at is None
        tool("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", str(layer), "16M")
        with pytest.raises(VerifyFailed, match="its size is"):
            steps.verify(story.site, ticket=ticket, volume=volume.name)
    steps.end_job(story.site, ticket=ticket, why_failed="this test broke it")
    story.assert_tidy()


@pytest.mark.parametrize("level", VerifyLevel)
def test_what_did_not_pass_its_level_is_not_recorded(story: Story, level: VerifyLevel) -> None:
    ticket, backup = checked(story, verify=level)
    lost = "verified_at" if level is VerifyLevel.FULL else "checked_at"
    with story.site.database.transaction() as cursor:
        cursor.execute(f"UPDATE backup_volume SET {lost} = NULL WHERE name = %s", (backup.volumes[1].name,))
    with pytest.raises(VerifyFailed, match="the backup is not recorded"):
        steps.record(story.site, ticket=ticket)
    steps.verify(story.site, ticket=ticket, volume=backup.volumes[1].name)
    steps.record(story.site, ticket=ticket)
    steps.end_job(story.site, ticket=ticket)
    story.assert_tidy()


def test_a_lost_catalog_is_written_anew_with_how_each_layer_is(story: Story) -> None:
    made = [story.backup(compression=Compression.ZSTD, verify=VerifyLevel.STRUCTURE), story.backup()]
    with story.site.database.transaction() as cursor:
        cursor.execute("TRUNCATE vm CASCADE")
    answer(story.site.database, "rebuild-catalog", "--repository", story.site.repository.name)
    with story.site.database.transaction() as cursor:
        rebuilt = backups.list_backups(cursor)
    assert [backup.verified for backup in rebuilt] == [backup.verified for backup in made] == [False, True]
    assert [volume.compression for backup in rebuilt for volume in backup.volumes] == ["zstd", "zstd", "none", "none"]


def test_a_run_that_an_older_version_began_goes_on_as_it_was_asked_for(story: Story) -> None:
    ticket, _ = story.decide()
    with story.site.database.transaction() as cursor:
        cursor.execute(
            "UPDATE backup SET request = request #- '{request,compression}' #- '{request,bandwidth}'"
            " #- '{request,verify}'"
            " RETURNING request->'request' AS asked"
        )
        row = cursor.fetchone()
    assert row is not None
    assert set(row["asked"]) == {"vm", "mode", "quiesce", "exclude_volumes", "allow_encrypted"}
    decided = steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    for volume in decided.volumes:
        steps.copy(story.site, ticket=ticket, volume=volume.name)
        steps.verify(story.site, ticket=ticket, volume=volume.name)
    steps.record(story.site, ticket=ticket)
    steps.end_job(story.site, ticket=ticket)
    recorded = story.load(ticket.backup_id)
    assert recorded.verified
    assert {volume.compression for volume in recorded.volumes} == {Compression.NONE}


def test_a_copy_that_waits_for_its_bandwidth_keeps_its_lease_and_says_where_it_stands(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 1 KiB a second the second piece's turn would come after a quarter of an hour."""
    monkeypatch.setattr(sys.modules["nasbackup.steps.copy"], "PROGRESS_SECONDS", 0.3)
    monkeypatch.setattr(watchdog, "NO_ANSWER_SECONDS", 8.0)  # after half of it the NAS is asked
    asked: list[bool] = []

    def ask(repository: Repository, *, within: float) -> bool:
        asked.append(answers(repository, within=within))
        return asked[-1]

    monkeypatch.setattr(watchdog, "answers", ask)
    story.machine.guest_io("vda", "write -P 0x11 0 4M")
    ticket, _ = story.decide(bandwidth=KIB)
    decided = steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    leased: list[Any] = []
    stands: list[Any] = []

    def look(_: object) -> None:
        with story.site.database.transaction() as cursor:
            cursor.execute("SELECT expires_at, done, total FROM lease, copy_progress")
            row = cursor.fetchone()
        assert row is not None
        leased.append(row["expires_at"])
        stands.append((row["done"], row["total"]))
        if len(leased) >= 20 and asked:  # the NAS, too, which answers
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps.copy(story.site, ticket=ticket, volume=decided.volumes[0].name, on_progress=look)
    assert leased == sorted(set(leased)), "renewed with each report"
    assert stands[-1] == (MIB, 4 * MIB)
    steps.end_job(story.site, ticket=ticket, why_failed="this test stopped it")
    story.assert_tidy()
