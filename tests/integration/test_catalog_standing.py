"""How a VM stands: what the decision on its next backup is told by the catalog."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from uuid import uuid4

import pytest
from nasbackup.catalog import Cursor, Database, backups, vms
from nasbackup.catalog.standing import FAR_BACK, MOSTLY, Standing, standing
from nasbackup.errors import CatalogConflict
from nasbackup.estimate import layers_of
from nasbackup.model import ChainLink
from nasbackup.past import PastVolume

from tests.integration.catalog_rows import (
    BEGIN,
    COPIED,
    OTHER_VM,
    VM,
    chain_of_three,
    full,
    incremental,
    opened,
    plan,
    recorded,
    stands,
)


def tip(cursor: Cursor, *, vm: str = VM) -> tuple[str | None, int | None]:
    """The active checkpoint and the latest backup."""
    found = stands(cursor, vm=vm)
    return found.active_checkpoint, found.latest.backup_id if found.latest else None


def test_the_latest_recorded_backup_is_the_newest_that_is_backed_up(catalog: Database) -> None:
    line = chain_of_three(catalog)
    recorded(catalog, full("backup-9"), repository="nas_two")
    with catalog.transaction() as cursor:
        failing = opened(cursor, full("backup-4"))
        backups.fail(cursor, backup_id=failing, error="stopped")
        opened(cursor, full("backup-5"))
    with catalog.transaction() as cursor:
        assert tip(cursor) == ("backup-3", line[2])
        latest = stands(cursor).latest
        whole = backups.get(cursor, backup_id=line[2])
        assert latest is not None
        assert [getattr(latest, each.name) for each in fields(ChainLink)] == [
            getattr(whole, each.name) for each in fields(ChainLink)
        ]
        assert [[getattr(volume, each.name) for each in fields(PastVolume)] for volume in latest.volumes] == [
            [getattr(volume, each.name) for each in fields(PastVolume)] for volume in whole.volumes
        ]
        assert tip(cursor, vm=OTHER_VM) == (None, None)
        cursor.execute("UPDATE backup SET status = 'DeletePending' WHERE backup_id = %s", (line[2],))
        assert tip(cursor) == ("backup-3", line[1])
        cursor.execute("UPDATE backup SET status = 'DeletePending' WHERE status = 'BackedUp'")
        assert tip(cursor) == ("backup-3", None)


def test_a_vm_that_was_never_backed_up_stands_nowhere(catalog: Database) -> None:
    with catalog.reading() as cursor:
        for vm, repository in ((VM, "nas_one"), (str(uuid4()), "nas_one"), (VM, "no such repository")):
            found = standing(cursor, vm_uuid=vm, repository=repository, external_id="vm/x", checkpoint="backup-1")
            assert found == Standing(active_checkpoint=None, recent=(), has_older=False, unfinished=(), is_taken=False)


def test_a_clock_that_was_turned_back_does_not_change_what_is_latest(catalog: Database) -> None:
    recorded(catalog, full("backup-1"), created_at=BEGIN)
    newer = recorded(catalog, full("backup-2"), created_at=BEGIN - timedelta(days=400))
    with catalog.transaction() as cursor:
        assert tip(cursor) == ("backup-2", newer)


def test_the_latest_is_found_behind_many_that_wait_to_be_deleted(catalog: Database) -> None:
    line = [recorded(catalog, full(f"backup-{number}")) for number in range(MOSTLY + 3)]
    with catalog.transaction() as cursor:
        assert stands(cursor).has_older
        cursor.execute("UPDATE backup SET status = 'Deleting' WHERE backup_id = ANY(%s)", (line[2:],))
        assert tip(cursor) == (f"backup-{MOSTLY + 2}", line[1])


def test_checkpoints_in_use_are_those_active_anywhere_and_those_in_the_making(catalog: Database) -> None:
    line = chain_of_three(catalog)
    recorded(catalog, full("backup-4"), repository="nas_two")
    recorded(catalog, full("backup-x"), vm=OTHER_VM)
    with catalog.transaction() as cursor:
        failing = opened(cursor, full("backup-5"))
        backups.fail(cursor, backup_id=failing, error="stopped")
        opened(cursor, incremental("backup-6", parent=line[2], position=3))
        assert vms.checkpoints_ever_made(cursor, vm_uuid=VM) == {f"backup-{number}" for number in range(1, 7)}
        assert vms.checkpoints_in_use(cursor, vm_uuid=VM) == {"backup-3", "backup-4", "backup-6"}
        assert vms.checkpoints_ever_made(cursor, vm_uuid=OTHER_VM) == {"backup-x"}


def test_an_external_id_names_one_backup_whatever_the_repository(catalog: Database) -> None:
    recorded(catalog, full(), external_id="vm/2026.01.31.22.00.05")

    def is_taken(external_id: str, checkpoint: str, *, vm: str = OTHER_VM) -> bool:
        with catalog.reading() as cursor:
            return stands(cursor, vm=vm, external_id=external_id, checkpoint=checkpoint).is_taken

    with pytest.raises(CatalogConflict):
        recorded(catalog, full(), external_id="vm/2026.01.31.22.00.05", vm=OTHER_VM, repository="nas_two")
    assert is_taken("vm/2026.01.31.22.00.05", "backup-9")
    assert not is_taken("vm/2026.01.31.22.00.06", "backup-1")
    assert is_taken("vm/2026.01.31.22.00.06", "backup-1", vm=VM)
    with catalog.transaction() as cursor:
        cursor.execute("INSERT INTO retired_checkpoint SELECT vm_id, 'backup-8' FROM vm WHERE uuid = %s", (VM,))
    assert is_taken("vm/2026.01.31.22.00.06", "backup-8", vm=VM)


def test_recent_backups_go_back_as_far_as_is_asked_for(catalog: Database) -> None:
    """A volume that was detached for two weeks is still known."""
    away = plan("DATA-2", source="/images/away.qcow2")
    with catalog.transaction() as cursor:
        for number in range(16):
            decision = full(f"backup-{number}", volumes=[plan(), away] if number == 0 else [plan()])
            backup_id = opened(cursor, decision)
            for volume in decision.volumes:
                backups.claim_attempt(cursor, backup_id=backup_id, volume=volume.name, attempt="a")
                backups.set_copied(
                    cursor,
                    backup_id=backup_id,
                    volume=volume.name,
                    attempt="a",
                    **{**COPIED, "bytes_written": number},
                )
            backups.record(cursor, backup_id=backup_id, size=1)
        near, far = stands(cursor), stands(cursor, backups=FAR_BACK)
    assert (near.has_older, far.has_older) == (True, False)
    assert far.recent[:MOSTLY] == near.recent
    assert list(layers_of(near.recent)) == [plan().source]
    layers = layers_of(far.recent)
    assert [layer.bytes_written for layer in layers[plan().source]] == list(reversed(range(16)))
    assert [layer.bytes_written for layer in layers[away.source]] == [0]
