"""From the NAS alone: list, show, verify and restore without a catalog, and the catalog written anew."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from nasbackup.catalog import Database, backups, repositories, vms
from nasbackup.catalog.standing import standing
from nasbackup.errors import BackupNotDeletable, BackupNotFound
from nasbackup.model import BackupStatus, BackupType, Mode, Reason, Repository, RepositoryType
from nasbackup.nas.shelf import read_shelf
from nasbackup.steps.delete import delete
from nasbackup.steps.lease import held_lease
from nasbackup.steps.rebuild import rebuild_catalog
from nasbackup.steps.ticket import Store

from tests.integration.story import Story, tool
from tests.integration.test_cli import answer, nasbackup, refused

NOWHERE = Database(parameters={"dsn": "postgresql://nobody@127.0.0.1:1/none"})
"""A command that asks it fails."""


def test_list_show_verify_and_restore_ask_nobody_but_the_nas(story: Story, tmp_path: Path) -> None:
    root, database = Path(story.site.repository.path), story.site.database
    story.machine.guest_io("vda", "write -P 0x31 0 2M")
    full = story.backup()
    story.machine.guest_io("vda", "write -P 0x32 1M 2M")
    child = story.backup()
    at = ("--repository", str(root))

    from_catalog, from_nas = answer(database, "list"), answer(NOWHERE, "list", *at)
    assert [entry["external_id"] for entry in from_nas] == [full.external_id, child.external_id]
    assert from_nas == from_catalog, "down to sizes, digests and reasons"
    assert answer(NOWHERE, "show", child.external_id, *at) == from_catalog[1]
    assert answer(NOWHERE, "list", "--vm", "nobody", *at) == []
    checked = answer(NOWHERE, "verify", child.external_id, *at)
    assert [len(volume["layers"]) for volume in checked["volumes"]] == [2, 2]
    restored = answer(NOWHERE, "restore", child.external_id, "--to", str(tmp_path / "to"), *at)
    for volume in restored["volumes"]:
        frozen = story.frozen[child.external_id][volume["name"]]
        tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", volume["file"], str(frozen))

    assert "There is no backup" in refused(NOWHERE, "show", "i-9/2001.01.01.00.00.00", *at)
    assert "there is no such directory" in refused(NOWHERE, "list", "--repository", str(tmp_path / "none"))

    # Without this project: what RESTORE.txt says.
    instructions = (root / story.machine.name / "RESTORE.txt").read_text()
    command = next(line for line in instructions.splitlines() if line.strip().startswith("qemu-img convert"))
    volume = child.volumes[0]
    words = [word.replace("TIME", child.directory).replace("FILE", volume.file) for word in shlex.split(command)]
    target = tmp_path / "by-hand.qcow2"
    subprocess.run([*words[:-1], str(target)], cwd=root / story.machine.name, check=True)
    frozen = story.frozen[child.external_id][volume.name]
    tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(target), str(frozen))

    # Somewhere else, read-only, without the marker: still the same.
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, ignore=lambda _, names: [name for name in names if name.startswith(".")])
    assert [e["external_id"] for e in answer(NOWHERE, "list", "--repository", str(copy))] == [
        full.external_id,
        child.external_id,
    ]


def test_what_is_broken_is_left_out_with_all_that_is_built_on_it(story: Story) -> None:
    root = Path(story.site.repository.path)
    first = story.backup()
    child = story.backup()
    whole = story.backup(mode=Mode.FULL)

    def left(*, why: str) -> list[str]:
        printed = nasbackup(NOWHERE, "list", "--repository", str(root), "--json")
        assert why in printed.stderr
        return [entry["external_id"] for entry in json.loads(printed.stdout)]

    manifest = root / first.external_id / "manifest.json"
    content = manifest.read_text()
    manifest.unlink()
    assert left(why="there is no manifest: the backup is not complete") == [whole.external_id]
    manifest.write_text(content.replace('"version": 1', '"version": 2'))
    assert left(why="1 was expected") == [whole.external_id]
    document = json.loads(content)
    manifest.write_text(json.dumps({**document, "created": "yesterday"}))
    assert left(why="'yesterday' is no time with an offset") == [whole.external_id]
    manifest.write_text(content)

    of_child = root / child.external_id / "manifest.json"
    document = json.loads(of_child.read_text())
    document["volumes"][0]["backing"] = document["volumes"][0]["backing"].replace(first.directory, whole.directory)
    of_child.write_text(json.dumps(document))
    assert left(why="which is not its parent's file") == [first.external_id, whole.external_id]
    shutil.copytree(root / whole.external_id, root / story.machine.name / "2001.01.01.00.00.00")
    assert left(why=f"it is of {whole.external_id}, a copy") == [first.external_id, whole.external_id]


def test_a_lost_catalog_is_written_anew_and_the_chain_starts_again(story: Story) -> None:
    database, repository = story.site.database, story.site.repository
    story.machine.guest_io("vda", "write -P 0x41 0 2M")
    made = [story.backup() for _ in range(3)]
    with database.transaction() as cursor:
        cursor.execute("TRUNCATE vm CASCADE")

    planned = answer(database, "rebuild-catalog", "--repository", repository.name, "--dry-run")
    assert planned["added"] == [backup.external_id for backup in made]
    assert answer(database, "list") == []
    assert answer(database, "rebuild-catalog", "--repository", repository.name) == planned
    with database.transaction() as cursor:
        rebuilt = backups.list_backups(cursor)
        assert vms.active_checkpoint(cursor, vm_uuid=story.machine.uuid, repository=repository.name) is None
    for before, after in zip(made, rebuilt, strict=True):
        assert after.status is BackupStatus.BACKED_UP
        same = ("external_id", "type", "reason", "parent", "chain_id", "chain_position", "checkpoint", "created_at")
        assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same]
        assert after.size == before.size
        assert [volume.digest for volume in after.volumes] == [volume.digest for volume in before.volumes]
        assert after.verified
        story.assert_restores(after.external_id)
    again = answer(database, "rebuild-catalog", "--repository", repository.name)
    assert (again["added"], again["known"]) == ([], 3), "harmless when nothing is lost"

    following = story.backup()
    assert (following.type, following.reason) == (BackupType.FULL, Reason.NO_ACTIVE_CHECKPOINT)
    assert story.backup().type is BackupType.INCREMENTAL
    story.assert_tidy()
    store = Store(database=database, repository=repository)
    delete(store, external_ids=[backup.external_id for backup in reversed(made)], holder="test")
    assert {path.name for path in Path(repository.path).glob("*/2*")} == {
        following.directory,
        backups_of(story)[-1],
    }


def backups_of(story: Story) -> list[str]:
    with story.site.database.transaction() as cursor:
        return [backup.directory for backup in backups.list_backups(cursor)]


def test_what_the_catalog_knows_stays_as_it_is(story: Story) -> None:
    database, repository = story.site.database, story.site.repository
    first, child = story.backup(), story.backup()
    store = Store(database=database, repository=repository)
    delete(store, external_ids=[first.external_id], holder="test")
    with database.transaction() as cursor:
        cursor.execute("DELETE FROM active_checkpoint")
        cursor.execute("DELETE FROM backup WHERE external_id = %s", (child.external_id,))
    rebuilt = rebuild_catalog(store, holder="test")
    assert (rebuilt.added, rebuilt.known) == ([child.external_id], 1)
    with database.transaction() as cursor:
        assert backups.find(cursor, external_id=first.external_id).status is BackupStatus.DELETE_PENDING
        assert backups.find(cursor, external_id=child.external_id).parent == first.external_id
    story.assert_restores(child.external_id)


def test_what_was_recorded_after_a_dump_is_not_taken_for_the_remains_of_a_run_that_died(story: Story) -> None:
    """The dump was made while the first backup was copied; the second one, built on it, came a day later."""
    database = story.site.database
    first, second = story.backup(), story.backup()
    assert second.parent == first.external_id
    with database.transaction() as cursor:
        cursor.execute("DELETE FROM active_checkpoint")
        cursor.execute("DELETE FROM backup WHERE backup_id = %s", (second.backup_id,))
        cursor.execute("UPDATE backup SET status = 'BackingUp', recorded_at = NULL, size = NULL")
    with pytest.raises(BackupNotDeletable, match=f"on the NAS {second.external_id} is built on it"):
        story.backup()
    rebuilt = answer(database, "rebuild-catalog", "--repository", "nas_test")
    assert rebuilt["added"] == [first.external_id, second.external_id]
    story.assert_everything_restores()
    assert story.backup().type is BackupType.FULL
    story.assert_tidy()


def test_a_shelf_is_read_in_the_order_of_the_chain_whatever_the_clock_said(story: Story) -> None:
    root = Path(story.site.repository.path)
    first, child = story.backup(), story.backup()
    manifest = root / child.external_id / "manifest.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**document, "created": "2001-01-01T00:00:00+00:00"}))
    repository = Repository(name="nas_test", type=RepositoryType.LOCAL, path=str(root))
    shelf = read_shelf(repository, root=root)
    assert [backup.external_id for backup in shelf.backups] == [first.external_id, child.external_id]
    assert [backup.external_id for backup in shelf.lineage(shelf.backups[1])] == [first.external_id, child.external_id]
    with pytest.raises(BackupNotFound):
        shelf.find("i-9/2001.01.01.00.00.00")


def test_rebuilding_needs_a_registered_repository(story: Story, tmp_path: Path) -> None:
    sentence = refused(story.site.database, "rebuild-catalog", "--repository", "nas_unknown")
    assert "There is no repository 'nas_unknown'" in sentence
    with story.site.database.transaction() as cursor:
        gone = Repository(name="nas_gone", type=RepositoryType.LOCAL, path=str(tmp_path / "gone"))
        repositories.register(cursor, repository=gone, uuid="5b1f2c1e-0000-4000-8000-0000000000aa")
    assert "Is the NAS mounted?" in refused(story.site.database, "rebuild-catalog", "--repository", "nas_gone")


def test_what_is_recovered_goes_to_its_place_and_not_before_the_newest(story: Story) -> None:
    """An old dump was restored, and a night has gone by since: retention must not take the latest for the oldest."""
    database, repository = story.site.database, story.site.repository
    made = [story.backup(mode=Mode.FULL) for _ in range(5)]
    with database.transaction() as cursor:
        cursor.execute("DELETE FROM backup WHERE external_id = ANY(%s)", ([b.external_id for b in made[1:4]],))
    assert len(answer(database, "rebuild-catalog", "--repository", repository.name)["added"]) == 3
    order = [backup["external_id"] for backup in answer(database, "list")]
    assert order == [backup.external_id for backup in made]
    with database.transaction() as cursor:
        latest = standing(
            cursor, vm_uuid=story.machine.uuid, repository=repository.name, external_id="", checkpoint=""
        ).latest
        assert latest is not None
        assert latest.external_id == made[-1].external_id
    assert story.backup().type is BackupType.INCREMENTAL, "the active checkpoint is still that of the latest"
    with database.transaction() as cursor:
        cursor.execute("DELETE FROM backup WHERE external_id = ANY(%s)", ([b.external_id for b in made[:2]],))
    answer(database, "rebuild-catalog", "--repository", repository.name)
    assert [backup["external_id"] for backup in answer(database, "list")][:5] == order


def test_a_vm_that_is_at_work_is_left_out_of_the_rebuilding(story: Story) -> None:
    database, repository = story.site.database, story.site.repository
    backup = story.backup()
    with database.transaction() as cursor:
        cursor.execute("DELETE FROM active_checkpoint")
        cursor.execute("DELETE FROM backup")
    store = Store(database=database, repository=repository)
    with held_lease(database, vm_uuid=story.machine.uuid, vm=story.machine.name, holder="somebody"):
        rebuilt = rebuild_catalog(store, holder="test")
    assert rebuilt.added == []
    assert "is in use by somebody" in rebuilt.problems[0]
    shutil.rmtree(Path(repository.path) / backup.external_id)  # deleted, say, between reading and writing
    assert rebuild_catalog(store, holder="test").added == []


HOSTILE = [
    ("name", "../../../outside", "does not match"),
    ("name", "/etc/outside", "does not match"),
    ("name", ".hidden", "does not match"),
    ("file", "root.x/../../y.qcow2", "does not match"),
    ("bytes_written", 10**30, "greater than the maximum"),
    ("backing", "../../../etc/passwd", "does not match"),
    ("type", "INCREMENTAL", "is INCREMENTAL and built on None"),
]


@pytest.mark.parametrize(("field", "value", "why"), HOSTILE, ids=lambda value: str(value)[:20])
def test_a_hostile_manifest_is_left_out(story: Story, tmp_path: Path, field: str, value: object, why: str) -> None:
    root = Path(story.site.repository.path)
    backup, other = story.backup(mode=Mode.FULL), story.backup(mode=Mode.FULL)
    manifest = root / backup.external_id / "manifest.json"
    document = json.loads(manifest.read_text())
    document["volumes"][0][field] = value
    manifest.write_text(json.dumps(document))
    at = ("--repository", str(root))
    printed = nasbackup(NOWHERE, "list", *at, "--json")
    assert why in printed.stderr
    assert [entry["external_id"] for entry in json.loads(printed.stdout)] == [other.external_id]
    done = nasbackup(NOWHERE, "restore", backup.external_id, "--to", str(tmp_path / "to"), *at, expect=1)
    assert "There is no backup" in done.stderr


def test_strange_things_on_a_shelf_do_not_hide_the_rest(story: Story) -> None:
    root = Path(story.site.repository.path)
    backup = story.backup()
    (root / "a-file").write_text("x")
    (root / story.machine.name / "2026.01.01.00.00.00").write_text("a file with the name of a backup")
    deep = root / story.machine.name / "2026.01.01.00.00.01"
    deep.mkdir()
    (deep / "manifest.json").write_text("[" * 100_000)
    nul = root / story.machine.name / "2026.01.01.00.00.02"
    nul.mkdir()
    (nul / "manifest.json").write_text('{"x": "\\u0000"}')
    (root / story.machine.name / "2026.01.01.00.00.03").symlink_to("/nowhere")
    printed = nasbackup(NOWHERE, "list", "--repository", str(root), "--json")
    assert [entry["external_id"] for entry in json.loads(printed.stdout)] == [backup.external_id]
    assert len(printed.stderr.splitlines()) == 2
