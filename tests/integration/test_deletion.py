"""Deletion on a real catalog and real files: chains stay whole, and what was begun is ended, whatever comes between."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from uuid import uuid4

import pytest
from nasbackup import layout, steps
from nasbackup.catalog import Database, backups, deletions, leases, repositories, vms
from nasbackup.errors import BackupNotDeletable, LeaseLost, NasIo, NotARepository, VmBusy
from nasbackup.model import Backup, BackupStatus, Consistency, Host, Repository, RepositoryType
from nasbackup.nas import publish, watchdog
from nasbackup.nas import repository as nas_repository
from nasbackup.steps import Site, Ticket
from nasbackup.steps.delete import Deletion, Finished, delete, finish, let_parent_fall

from lab.nas import faulty_nas, small_nas
from tests.integration.catalog_rows import COPIED, full, incremental, together

VM_NAME = "i-2-1-VM"
BEGIN = datetime(2026, 1, 31, 22, 0, 5, tzinfo=UTC)
MIB = 1 << 20
_hours = count(1)


@dataclass(kw_only=True)
class Vault:
    """Backups of one VM in one repository. Catalog, lease and publishing are the real ones; the data is a few bytes."""

    site: Site
    vm_uuid: str = field(default_factory=lambda: str(uuid4()))
    content: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """External id -> file -> bytes, as it was published."""

    def __post_init__(self) -> None:
        with self.site.database.transaction() as cursor:
            vms.register(cursor, uuid=self.vm_uuid, name=VM_NAME, host=self.site.host.name)

    @property
    def root(self) -> Path:
        return Path(self.site.repository.path)

    # --- making -----------------------------------------------------------------------------------------------

    def begin(self, *, parent: Backup | None = None, size: int = 9000) -> Ticket:
        """Everything up to the moment in which it could be recorded. Its run has the lease."""
        when = BEGIN + timedelta(hours=next(_hours))
        checkpoint, external_id = layout.checkpoint_name(when=when), layout.external_id(vm=VM_NAME, when=when)
        decision = full(checkpoint)
        if parent is not None:
            decision = incremental(checkpoint, parent=parent.backup_id, position=parent.chain_position + 1)
        with self.site.database.transaction() as cursor:
            lease = leases.acquire(cursor, vm_uuid=self.vm_uuid, vm=VM_NAME, holder=f"run of {external_id}")
        with self.site.database.transaction() as cursor:
            backup_id = backups.open_backup(
                cursor,
                decision=decision,
                external_id=external_id,
                vm_uuid=self.vm_uuid,
                vm=VM_NAME,
                host=self.site.host.name,
                repository=self.site.repository.name,
                run_id=lease.holder,
                lease_token=lease.token,
                created_at=when,
            ).backup_id
            backups.set_consistency(cursor, backup_id=backup_id, consistency=Consistency.CRASH)
        backup = self.load(backup_id)
        partial = publish.prepare(self.site.repository, root=self.root, external_id=external_id, domain_xml="<domain/>")
        with self.site.database.transaction() as cursor:
            for volume in backup.volumes:
                named = {"backup_id": backup_id, "volume": volume.name, "attempt": "a1"}
                backups.claim_attempt(cursor, **named)
                path = partial / layout.attempt_file(file=volume.file, attempt="a1")
                path.write_bytes(external_id[-8:].encode() * (size // 8))
                backups.set_copied(cursor, **named, **COPIED)
                backups.set_verified(cursor, **named)
        return self._ticket(backup, token=lease.token)

    def again(self, ticket: Ticket) -> Ticket:
        """The same run, tried again after its lease was lost, goes on with its own row."""
        backup = self.load(ticket.backup_id)
        with self.site.database.transaction() as cursor:
            lease = leases.acquire(cursor, vm_uuid=self.vm_uuid, vm=VM_NAME, holder=backup.run_id)
            backups.adopt(cursor, backup_id=backup.backup_id, lease_token=lease.token)
        return self._ticket(backup, token=lease.token)

    def record(self, ticket: Ticket) -> Backup:
        recorded = steps.record(self.site, ticket=ticket)
        self.content[recorded.external_id] = self.on_nas(recorded.external_id)
        self._release(ticket)
        return recorded

    def fail(self, ticket: Ticket) -> None:
        """Given up, with nothing cleaned up: the NAS is away."""
        with self.site.database.transaction() as cursor:
            leases.renew(cursor, vm_uuid=self.vm_uuid, vm=VM_NAME, token=ticket.lease_token)
            backups.fail(cursor, backup_id=ticket.backup_id, error="given up")
        self._release(ticket)

    def clean(self, backup: Backup) -> list[str]:
        """What ``steps/discard.py`` does, but for the host. Returns what fell with it."""
        with self.site.database.transaction() as cursor:
            token = leases.acquire(cursor, vm_uuid=self.vm_uuid, vm=VM_NAME, holder="clean-up").token
            backups.fail(cursor, backup_id=backup.backup_id, error="its run died")
        publish.discard(self.site.repository, root=self.root, external_id=backup.external_id)
        with self.site.database.transaction() as cursor:
            leases.renew(cursor, vm_uuid=self.vm_uuid, vm=VM_NAME, token=token)
            backups.set_cleaned(cursor, backup_id=backup.backup_id)
        fallen = let_parent_fall(self.site, backup=backup, lease_token=token)
        with self.site.database.transaction() as cursor:
            leases.release(cursor, vm_uuid=self.vm_uuid, token=token)
        return [removal.external_id for removal in fallen]

    def chain(self, length: int) -> list[Backup]:
        made: list[Backup] = []
        for _ in range(length):
            made.append(self.record(self.begin(parent=made[-1] if made else None)))
        return made

    def _ticket(self, backup: Backup, *, token: int) -> Ticket:
        return Ticket(
            backup_id=backup.backup_id,
            external_id=backup.external_id,
            vm=VM_NAME,
            vm_uuid=self.vm_uuid,
            host=self.site.host.name,
            repository=self.site.repository.name,
            lease_token=token,
        )

    def _release(self, ticket: Ticket) -> None:
        with self.site.database.transaction() as cursor:
            leases.release(cursor, vm_uuid=self.vm_uuid, token=ticket.lease_token)

    # --- deleting ---------------------------------------------------------------------------------------------

    def delete(self, *wanted: Backup, holder: str = "delete") -> list[Deletion]:
        return delete(self.site, external_ids=[backup.external_id for backup in wanted], holder=holder)

    def finish(self) -> list[str]:
        """Returns what is gone now."""
        return [removal.external_id for removal in self.finished().removed]

    def finished(self) -> Finished:
        return finish(self.site, vm_uuid=self.vm_uuid, vm=VM_NAME, holder="finish")

    def expire_lease(self) -> None:
        with self.site.database.transaction() as cursor:
            cursor.execute("UPDATE lease SET expires_at = now() - interval '1 second'")

    # --- looking ----------------------------------------------------------------------------------------------

    def load(self, backup_id: int) -> Backup:
        with self.site.database.transaction() as cursor:
            return backups.get(cursor, backup_id=backup_id)

    def statuses(self) -> dict[str, BackupStatus]:
        """Of all rows of the VM in this repository, the oldest first."""
        with self.site.database.transaction() as cursor:
            found = backups.select_where(
                cursor, "vm.uuid = %s AND r.name = %s", (self.vm_uuid, self.site.repository.name)
            )
        return {backup.external_id: backup.status for backup in found}

    def active_checkpoint(self) -> str | None:
        with self.site.database.transaction() as cursor:
            return vms.active_checkpoint(cursor, vm_uuid=self.vm_uuid, repository=self.site.repository.name)

    def on_nas(self, external_id: str) -> dict[str, bytes]:
        directory = self.root / external_id
        return {path.name: path.read_bytes() for path in directory.iterdir()} if directory.is_dir() else {}

    def visible(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.glob("*/[0-9]*")}

    def assert_whole(self, *expected: Backup) -> None:
        """These are the restorable ones, and each of their layers holds the bytes that were published."""
        with self.site.database.transaction() as cursor:
            recorded = backups.select_where(
                cursor,
                "vm.uuid = %s AND r.name = %s AND b.status = 'BackedUp'",
                (self.vm_uuid, self.site.repository.name),
            )
            lines = [backups.lineage(cursor, backup_id=backup.backup_id) for backup in recorded]
        assert [backup.external_id for backup in recorded] == [backup.external_id for backup in expected]
        for line in lines:
            assert [layer.chain_position for layer in line] == list(range(len(line))), "nothing is missing below it"
            for layer in line:
                assert layer.status in (BackupStatus.BACKED_UP, BackupStatus.DELETE_PENDING)
                assert self.on_nas(layer.external_id) == self.content[layer.external_id]


def place_for(database: Database, path: Path, *, name: str = "nas_test") -> Site:
    """A registered repository in this directory."""
    path.mkdir(parents=True, exist_ok=True)
    repository = Repository(name=name, type=RepositoryType.LOCAL, path=str(path))
    with database.transaction() as cursor:
        repositories.register(cursor, repository=repository, uuid=nas_repository.register(repository))
    return Site(database=database, host=Host(name="kvm_test"), repository=repository)


PENDING, DELETING, RECORDED, FAILED = (
    BackupStatus.DELETE_PENDING,
    BackupStatus.DELETING,
    BackupStatus.BACKED_UP,
    BackupStatus.FAILED,
)


@pytest.fixture
def vault(site: Site) -> Vault:
    return Vault(site=site)


def statuses(vault: Vault, *wanted: Backup) -> list[BackupStatus | None]:
    found = vault.statuses()
    return [found.get(backup.external_id) for backup in wanted]


# --- chains ---------------------------------------------------------------------------------------------------


def test_a_backup_without_children_goes_and_what_it_occupied_is_told(vault: Vault) -> None:
    base = vault.record(vault.begin(size=3 * MIB))
    last = vault.record(vault.begin(parent=base, size=MIB + 5000))
    directory = vault.root / last.external_id
    names = {f"{last.external_id}/{name}" for name in vault.content[last.external_id]}
    allocated = sum(path.stat().st_blocks * 512 for path in directory.iterdir())
    (done,) = vault.delete(last)
    assert done.kept_by == ()
    assert done.bytes_freed == allocated > MIB
    assert [(gone.external_id, set(gone.files)) for gone in done.removed] == [(last.external_id, names)]
    assert statuses(vault, base, last) == [RECORDED, None]
    assert vault.visible() == {base.external_id}
    vault.assert_whole(base)


def test_the_whole_chain_leaf_first(vault: Vault) -> None:
    made = vault.chain(4)
    done = vault.delete(*reversed(made))
    assert [[gone.external_id for gone in deletion.removed] for deletion in done] == [
        [backup.external_id] for backup in reversed(made)
    ]
    assert vault.statuses() == {}
    assert list(vault.root.iterdir()) == [vault.root / layout.MARKER], "the VM's own directory too"


def test_the_whole_chain_root_first_falls_with_its_last_child(vault: Vault) -> None:
    made = vault.chain(4)
    done = vault.delete(*made)
    assert [deletion.kept_by for deletion in done] == [*[(child.external_id,) for child in made[1:]], ()]
    assert [gone.external_id for gone in done[-1].removed] == [backup.external_id for backup in reversed(made)]
    assert vault.statuses() == {}
    assert vault.visible() == set()


def test_what_is_asked_for_again_is_gone_already(vault: Vault) -> None:
    base, last = vault.chain(2)
    vault.delete(base)
    (done,) = vault.delete(base)
    assert (done.removed, done.kept_by, done.was_active) == ((), (last.external_id,), False)
    vault.delete(last, base, last)
    assert vault.delete(base, last) == []


def test_a_grandparent_with_only_a_hidden_child_stays(vault: Vault) -> None:
    grandparent, parent, child = vault.chain(3)
    vault.delete(parent)
    (done,) = vault.delete(grandparent)
    assert done.kept_by == (parent.external_id,)
    assert statuses(vault, grandparent, parent, child) == [PENDING, PENDING, RECORDED]
    vault.assert_whole(child)
    (done,) = vault.delete(child)
    assert len(done.removed) == 3
    assert vault.visible() == set()


def test_a_parent_falls_when_the_child_that_kept_it_fails(vault: Vault) -> None:
    base, parent = vault.chain(2)
    ticket = vault.begin(parent=parent)
    vault.expire_lease()
    vault.delete(base, parent)
    assert statuses(vault, base, parent) == [PENDING, PENDING]
    child = vault.load(ticket.backup_id)
    assert vault.clean(child) == [parent.external_id, base.external_id]
    assert vault.statuses() == {child.external_id: FAILED}
    assert vault.load(child.backup_id).parent_id is None
    assert vault.visible() == set()


@pytest.mark.parametrize("good_goes_first", [True, False])
def test_a_parent_of_a_failed_and_a_good_child_waits_for_both(vault: Vault, good_goes_first: bool) -> None:
    (parent,) = vault.chain(1)
    ticket = vault.begin(parent=parent)
    failed = vault.load(ticket.backup_id)
    vault.fail(ticket)
    good = vault.record(vault.begin(parent=parent))
    (done,) = vault.delete(parent)
    assert done.kept_by == (failed.external_id, good.external_id)
    if good_goes_first:
        (done,) = vault.delete(good)
        assert [gone.external_id for gone in done.removed] == [good.external_id]
        assert statuses(vault, parent) == [PENDING]
        assert vault.clean(failed) == [parent.external_id]
    else:
        assert vault.clean(failed) == []
        vault.assert_whole(good)
        (done,) = vault.delete(good)
        assert [gone.external_id for gone in done.removed] == [good.external_id, parent.external_id]
    assert vault.statuses() == {failed.external_id: FAILED}
    assert vault.visible() == set()


def test_a_failed_backup_that_is_clean_keeps_nobody_and_can_go_itself(vault: Vault) -> None:
    (parent,) = vault.chain(1)
    ticket = vault.begin(parent=parent)
    failed = vault.load(ticket.backup_id)
    vault.fail(ticket)
    with pytest.raises(BackupNotDeletable, match="not cleaned up yet"):
        vault.delete(failed)
    vault.clean(failed)
    assert vault.delete(failed)[0].bytes_freed == 0
    vault.assert_whole(parent)
    assert vault.statuses() == {parent.external_id: RECORDED}


def test_a_failed_backup_whose_parent_is_gone_can_go_itself(vault: Vault) -> None:
    """Retention does that when people do not ask for it any more; the chain is gone by then, mostly."""
    (parent,) = vault.chain(1)
    ticket = vault.begin(parent=parent)
    failed = vault.load(ticket.backup_id)
    vault.fail(ticket)
    vault.clean(failed)
    vault.delete(parent)
    vault.delete(failed)
    assert vault.statuses() == {}


# --- the active checkpoint ------------------------------------------------------------------------------------


def test_the_active_checkpoint_goes_with_its_backup_and_its_name_is_remembered(vault: Vault) -> None:
    base, last = vault.chain(2)
    assert vault.active_checkpoint() == last.checkpoint
    assert [done.was_active for done in vault.delete(last, base)] == [True, False]
    assert vault.active_checkpoint() is None, "not that of the backup before: its bitmap does not cover what came after"
    with vault.site.database.transaction() as cursor:
        assert vms.checkpoints_ever_made(cursor, vm_uuid=vault.vm_uuid) == {base.checkpoint, last.checkpoint}
        assert vms.checkpoints_in_use(cursor, vm_uuid=vault.vm_uuid) == frozenset()


def test_a_delete_pending_backup_is_not_active_and_others_keep_theirs(vault: Vault, tmp_path: Path) -> None:
    base, last = vault.chain(2)
    other = Vault(site=place_for(vault.site.database, tmp_path / "other", name="nas_other"), vm_uuid=vault.vm_uuid)
    (elsewhere,) = other.chain(1)
    ticket = vault.begin(parent=last)
    vault.expire_lease()
    assert vault.delete(base)[0].was_active is False
    assert vault.active_checkpoint() == last.checkpoint
    assert vault.delete(last)[0].was_active is True
    assert (statuses(vault, last), vault.active_checkpoint()) == ([PENDING], None)
    vault.record(vault.again(ticket))
    assert vault.active_checkpoint() == vault.load(ticket.backup_id).checkpoint
    assert other.active_checkpoint() == elsewhere.checkpoint
    other.assert_whole(elsewhere)


# --- refused --------------------------------------------------------------------------------------------------


def test_a_pinned_backup_is_refused_until_it_is_unpinned(vault: Vault) -> None:
    base, last = vault.chain(2)
    with vault.site.database.transaction() as cursor:
        deletions.set_pinned(cursor, backup=base, pinned=True)
    with pytest.raises(BackupNotDeletable, match=r"it is pinned since .*unpin"):
        vault.delete(last, base)
    assert statuses(vault, base, last) == [RECORDED, None], "what came before is done"
    vault.assert_whole(base)
    with vault.site.database.transaction() as cursor:
        deletions.set_pinned(cursor, backup=base, pinned=False)
    vault.delete(base)
    assert vault.statuses() == {}


def test_a_backup_that_is_being_made_is_refused(vault: Vault) -> None:
    ticket = vault.begin()
    backup = vault.load(ticket.backup_id)
    with pytest.raises(VmBusy, match="in use by run of"):
        vault.delete(backup)
    vault.expire_lease()
    with pytest.raises(BackupNotDeletable, match=r"being made\. End its run first"):
        vault.delete(backup)
    recorded = vault.record(vault.again(ticket))
    vault.assert_whole(recorded)


def lose_row(vault: Vault, backup: Backup) -> None:
    """As in a catalog that was restored from a dump of the day before."""
    with vault.site.database.transaction() as cursor:
        cursor.execute("UPDATE active_checkpoint SET checkpoint = NULL, backup_id = NULL")
        cursor.execute("DELETE FROM backup WHERE backup_id = %s", (backup.backup_id,))


def test_what_the_catalog_does_not_know_keeps_what_it_is_built_on(vault: Vault) -> None:
    base, parent, unknown = vault.chain(3)
    lose_row(vault, unknown)
    (vault.root / VM_NAME / ".partial-2026.02.28.22.00.05").mkdir()  # somebody begins just now
    (vault.root / VM_NAME / "2026.02.28.22.00.06").mkdir()  # no backup: there is no manifest
    with pytest.raises(BackupNotDeletable) as refused:
        vault.delete(parent, base)
    assert str(refused.value) == (
        f"Backup {parent.external_id} cannot be deleted: on the NAS {unknown.external_id} is built on it, which the "
        "catalog does not know. Run `nasbackup rebuild-catalog --repository nas_test` first, or remove that directory "
        "if nobody needs it."
    )
    vault.assert_whole(base, parent)
    assert vault.on_nas(unknown.external_id) == vault.content[unknown.external_id]
    shutil.rmtree(vault.root / unknown.external_id)
    vault.delete(parent, base)
    assert vault.statuses() == {}


def test_a_parent_waits_for_a_child_that_the_catalog_does_not_know(vault: Vault) -> None:
    (parent,) = vault.chain(1)
    known, unknown = vault.record(vault.begin(parent=parent)), vault.record(vault.begin(parent=parent))
    (other,) = vault.chain(1)
    vault.delete(parent)
    lose_row(vault, unknown)
    (done,) = vault.delete(known)
    assert [gone.external_id for gone in done.removed] == [known.external_id], "and what is done is told"
    assert statuses(vault, parent, other) == [PENDING, RECORDED]
    finished = vault.finished()
    assert (finished.removed, list(finished.refused)) == ((), [parent.external_id])
    assert "rebuild-catalog" in str(finished.refused[parent.external_id])
    assert vault.on_nas(parent.external_id) == vault.content[parent.external_id]
    shutil.rmtree(vault.root / unknown.external_id)
    assert vault.finish() == [parent.external_id]
    vault.assert_whole(other)


def test_what_can_go_goes_though_something_else_cannot(vault: Vault) -> None:
    other, last = vault.chain(2)  # the newer one is tried first
    (parent,) = vault.chain(1)
    unknown = vault.record(vault.begin(parent=parent))
    lose_row(vault, unknown)
    with vault.site.database.transaction() as cursor:  # both were begun with, and the worker died
        for backup in (parent, last):
            cursor.execute("UPDATE backup SET status = 'Deleting' WHERE backup_id = %s", (backup.backup_id,))
        cursor.execute("UPDATE backup SET status = 'DeletePending' WHERE backup_id = %s", (other.backup_id,))
    finished = vault.finished()
    assert [removal.external_id for removal in finished.removed] == [last.external_id, other.external_id]
    assert list(finished.refused) == [parent.external_id]
    assert statuses(vault, parent, other, last) == [DELETING, None, None]


def test_a_link_in_the_place_of_a_backup_is_refused_before_anything_is_touched(vault: Vault, tmp_path: Path) -> None:
    base, last = vault.chain(2)
    place, moved = vault.root / last.external_id, tmp_path / "moved"
    place.rename(moved)
    place.symlink_to(moved)
    with pytest.raises(BackupNotDeletable, match="its directory is a symbolic link"):
        vault.delete(last)
    assert statuses(vault, base, last) == [RECORDED, RECORDED]
    with pytest.raises(NasIo, match="is a symbolic link"):
        publish.discard(vault.site.repository, root=vault.root, external_id=last.external_id)
    vault.assert_whole(base, last)
    place.unlink()
    moved.rename(place)
    vault.delete(last)
    vault.assert_whole(base)


# --- at the same time -----------------------------------------------------------------------------------------


def until_done(vault: Vault, *wanted: Backup, holder: str) -> None:
    """As Airflow's retries do, only sooner."""
    deadline = time.monotonic() + 60
    while True:
        try:
            vault.delete(*wanted, holder=holder)
            return
        except VmBusy:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_parent_and_child_deleted_at_the_same_time_are_both_gone_in_the_end(vault: Vault) -> None:
    for _ in range(4):
        parent, child = vault.chain(2)
        assert together(
            lambda: until_done(vault, parent, holder="one"),  # noqa: B023 - called in this round
            lambda: until_done(vault, child, holder="two"),  # noqa: B023
        ) == [None, None]
        assert vault.statuses() == {}
        assert vault.visible() == set()


def test_a_parent_is_not_deleted_while_its_child_is_written(vault: Vault) -> None:
    (parent,) = vault.chain(1)
    ticket = vault.begin(parent=parent)
    with pytest.raises(VmBusy, match="in use by run of"):
        vault.delete(parent)
    child = vault.record(ticket)
    vault.assert_whole(parent, child)


def test_a_run_whose_lease_was_over_finds_its_parent_delete_pending_and_still_there(vault: Vault) -> None:
    (parent,) = vault.chain(1)
    ticket = vault.begin(parent=parent)
    vault.expire_lease()
    (done,) = vault.delete(parent)
    assert done.kept_by == (ticket.external_id,)
    with pytest.raises(LeaseLost):
        vault.record(ticket)
    child = vault.record(vault.again(ticket))
    vault.assert_whole(child)
    assert statuses(vault, parent, child) == [PENDING, RECORDED]
    vault.delete(child)
    assert vault.statuses() == {}


# --- killed ---------------------------------------------------------------------------------------------------


def killed(action: Callable[[], object]) -> None:
    """In a process that kills itself on the way (SIGKILL): nothing of it is cleaned up, its lease stays."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def kill_oneself(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("where", "files_left"),
    [
        ("nasbackup.steps.delete.watched", True),  # Deleting is committed, no file is touched
        ("nasbackup.catalog.deletions.close", False),  # the files are gone, the row is not
    ],
)
def test_a_deletion_that_was_killed_is_ended_by_the_next(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, where: str, files_left: bool
) -> None:
    base, last = vault.chain(2)
    vault.delete(base)
    with monkeypatch.context() as patch:
        patch.setattr(where, kill_oneself)
        killed(lambda: vault.delete(last))
    assert statuses(vault, base, last) == [PENDING, DELETING]
    assert (vault.on_nas(last.external_id) == vault.content[last.external_id]) is files_left
    assert vault.active_checkpoint() is None
    with pytest.raises(VmBusy, match="in use by delete until"):
        vault.finish()
    vault.expire_lease()
    assert vault.finish() == [last.external_id, base.external_id]
    assert vault.statuses() == {}
    assert vault.visible() == set()
    assert vault.finish() == []


def test_a_deletion_that_was_killed_amid_the_files_is_ended_by_asking_again(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, last = vault.chain(2)

    def half(*_: object, **__: object) -> None:
        (vault.root / last.external_id / layout.MANIFEST).unlink()
        kill_oneself()

    with monkeypatch.context() as patch:
        patch.setattr("nasbackup.steps.delete.watched", half)
        killed(lambda: vault.delete(last))
    left = vault.on_nas(last.external_id)
    assert left.keys() == vault.content[last.external_id].keys() - {layout.MANIFEST}
    vault.assert_whole(base)
    (done,) = vault.delete(last)  # the same holder: its own lease does not keep it out
    assert {Path(name).name for name in done.removed[0].files} == left.keys()
    vault.assert_whole(base)
    assert vault.visible() == {base.external_id}


def test_a_parent_that_did_not_fall_because_of_a_kill_is_found(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    (parent,) = vault.chain(1)
    ticket = vault.begin(parent=parent)
    failed = vault.load(ticket.backup_id)
    vault.fail(ticket)
    vault.delete(parent)
    with monkeypatch.context() as patch:
        patch.setattr("nasbackup.catalog.deletions.falling", kill_oneself)  # the child is clean, and that is all
        killed(lambda: vault.clean(failed))
    assert statuses(vault, parent) == [PENDING]
    vault.expire_lease()
    assert vault.finish() == [parent.external_id]


def test_one_that_comes_back_after_its_lease_is_gone_writes_nothing(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may still remove files that are to be removed; the row is for whoever has the lease now."""
    base, last = vault.chain(2)
    taken: list[int] = []
    with monkeypatch.context() as patch:
        removing = publish.remove

        def late(*arguments: object, **options: object) -> object:
            with vault.site.database.transaction() as cursor:
                cursor.execute("UPDATE lease SET expires_at = now() - interval '1 second'")
                lease = leases.acquire(cursor, vm_uuid=vault.vm_uuid, vm=VM_NAME, holder="another")
                taken.append(lease.token)
            return removing(*arguments, **options)  # type: ignore[arg-type]

        # In this process: a child's connections are its own, and so is its list.
        patch.setattr("nasbackup.steps.delete.watched", lambda _, __, what, *a, **o: late(*a, **o))
        with pytest.raises(LeaseLost):
            vault.delete(last)
    assert statuses(vault, base, last) == [RECORDED, DELETING]
    assert vault.visible() == {base.external_id}
    with vault.site.database.transaction() as cursor:
        assert leases.release(cursor, vm_uuid=vault.vm_uuid, token=taken[0]), (
            "the new holder's lease was not given back"
        )
    assert vault.finish() == [last.external_id]
    vault.assert_whole(base)


# --- the NAS --------------------------------------------------------------------------------------------------


def test_a_nas_that_is_read_only(database: Database, tmp_path: Path) -> None:
    with small_nas(tmp_path / "nas", size=8 * MIB) as nas:
        vault = Vault(site=place_for(database, nas))
        base, last = vault.chain(2)
        subprocess.run(["mount", "-o", "remount,ro", str(nas)], check=True)
        with pytest.raises(NasIo, match=r"Removing .* failed: Read-only file system"):
            vault.delete(last, base)
        assert statuses(vault, base, last) == [RECORDED, DELETING]
        for backup in (base, last):
            assert vault.on_nas(backup.external_id) == vault.content[backup.external_id]
        with pytest.raises(NasIo, match="Read-only file system"):
            vault.finish()
        vault.assert_whole(base)
        subprocess.run(["mount", "-o", "remount,rw", str(nas)], check=True)
        assert vault.finish() == [last.external_id]
        vault.assert_whole(base)
        assert vault.visible() == {base.external_id}


def test_a_nas_that_is_not_mounted(vault: Vault) -> None:
    base, last = vault.chain(2)
    away = unmount(vault)
    with pytest.raises(NotARepository, match="no marker file"):
        vault.delete(last)
    assert statuses(vault, base, last) == [RECORDED, RECORDED], "nothing is marked"
    mount_again(vault, away)
    vault.assert_whole(base, last)
    vault.delete(last)
    vault.assert_whole(base)


@pytest.mark.parametrize("when", ["after the mark", "after the child's files"])
def test_a_nas_that_is_unmounted_in_the_middle(vault: Vault, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """The empty mount point has no files either: that is no proof that they are gone."""
    base, parent, last = vault.chain(3)
    vault.delete(parent)
    boundary = {"after the mark": "mark", "after the child's files": "close"}[when]
    original, away = getattr(deletions, boundary), []

    def then_unmounted(*arguments: object, **options: object) -> object:
        result = original(*arguments, **options)
        if not away:
            away.append(unmount(vault))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(deletions, boundary, then_unmounted)
        with pytest.raises((NotARepository, NasIo)):
            vault.delete(last)
    mount_again(vault, *away)
    assert vault.visible() <= vault.statuses().keys(), "a directory without a row would stay for ever"
    vault.assert_whole(base)
    vault.finish()
    assert vault.statuses() == {base.external_id: RECORDED}
    assert vault.visible() == {base.external_id}


def unmount(vault: Vault) -> Path:
    """What is seen then is the empty mount point."""
    away = vault.root.with_name("unmounted")
    vault.root.rename(away)
    vault.root.mkdir()
    return away


def mount_again(vault: Vault, away: Path) -> None:
    vault.root.rmdir()
    away.rename(vault.root)


def test_a_nas_that_hangs_after_the_mark(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "NO_ANSWER_SECONDS", 6.0)
    with faulty_nas(tmp_path / "place") as faulty:
        vault = Vault(site=place_for(database, faulty.path))
        base, last = vault.chain(2)
        marking = deletions.mark

        def then_hangs(*arguments: object, **options: object) -> object:
            status = marking(*arguments, **options)  # type: ignore[arg-type]
            faulty.hang()
            return status

        with monkeypatch.context() as patch:
            patch.setattr(deletions, "mark", then_hangs)
            started = time.monotonic()
            with pytest.raises(NasIo, match=r"Removing .* failed: the NAS does not answer for"):
                vault.delete(last, base)
            assert time.monotonic() - started < 25, "and not ten times as long as it may be silent"
        assert statuses(vault, base, last) == [RECORDED, DELETING]
        with vault.site.database.transaction() as cursor:
            cursor.execute("SELECT holder FROM lease")
            assert cursor.fetchall() == [], "nobody has to wait for the lease"
        faulty.resume()
        time.sleep(0.5)  # the one call that the child was in happens, or does not
        vault.delete(last)
        vault.assert_whole(base)
        assert vault.visible() == {base.external_id}
