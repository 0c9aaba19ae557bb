"""The catalog on a real PostgreSQL: what must hold when many processes, or dead ones, write at once."""

from __future__ import annotations

import gc
import importlib.resources
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import uuid4

import psycopg2
import pytest
from nasbackup.catalog import Cursor, Database, backups, leases, migrate, repositories, restore_points, vms
from nasbackup.catalog.standing import FAR_BACK, MOSTLY, Standing, standing
from nasbackup.errors import (
    AttemptSuperseded,
    BackupNotFound,
    BackupNotOpen,
    CatalogConflict,
    CatalogError,
    CatalogOutdated,
    CatalogUnreachable,
    LeaseLost,
    UnknownRepository,
    VmBusy,
)
from nasbackup.estimate import layers_of
from nasbackup.handling import Compression
from nasbackup.model import (
    BackupStatus,
    BackupType,
    ChainDecision,
    ChainLink,
    Consistency,
    Lease,
    Reason,
    Repository,
    RepositoryType,
    VolumePlan,
    VolumeReason,
)
from nasbackup.past import PastVolume

T = TypeVar("T")

VM = "5b1f2c1e-0000-4000-8000-000000000001"
OTHER_VM = "5b1f2c1e-0000-4000-8000-000000000002"
CHAIN = "5b1f2c1e-0000-4000-8000-0000000000c1"
BEGIN = datetime(2026, 1, 31, 22, 0, 5, tzinfo=UTC)


def together(*actions: Callable[[], T]) -> list[T | Exception]:
    """Run all at the same moment, each in a thread of its own; what one raises stands in its place."""
    barrier = threading.Barrier(len(actions))

    def run(action: Callable[[], T]) -> T | Exception:
        barrier.wait(timeout=30)
        try:
            return action()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(run, actions))


@pytest.fixture
def catalog(database: Database) -> Database:
    """Two VMs and two repositories are known."""
    with database.transaction() as cursor:
        for uuid, name in ((VM, "i-2-1-VM"), (OTHER_VM, "i-2-2-VM")):
            vms.register(cursor, uuid=uuid, name=name, host="kvm_one")
        for name in ("nas_one", "nas_two"):
            repository = Repository(name=name, type=RepositoryType.LOCAL, path=f"/mnt/{name}")
            repositories.register(cursor, repository=repository, uuid=str(uuid4()))
    return database


def plan(name: str = "ROOT-1", **changes: Any) -> VolumePlan:
    return replace(
        VolumePlan(
            name=name,
            source=f"/images/{name}.qcow2",
            target="vda",
            format="qcow2",
            file=f"root.{name}.qcow2",
            virtual_size=1 << 30,
            type=BackupType.FULL,
            reason=VolumeReason.FULL_BACKUP,
        ),
        **changes,
    )


def full(checkpoint: str | None = "backup-1", *, volumes: Sequence[VolumePlan] = (), **changes: Any) -> ChainDecision:
    return replace(
        ChainDecision(
            type=BackupType.FULL,
            reason=Reason.NO_ACTIVE_CHECKPOINT,
            explanation="full: the chain starts here",
            checkpoint=checkpoint,
            base_checkpoint=None,
            chain_id=CHAIN,
            chain_position=0,
            parent_id=None,
            parent=None,
            volumes=tuple(volumes) or (plan(),),
        ),
        **changes,
    )


def incremental(checkpoint: str, *, parent: int, position: int) -> ChainDecision:
    return full(
        checkpoint,
        volumes=[plan(type=BackupType.INCREMENTAL, reason=VolumeReason.INCREMENTAL, backing="../x/root.ROOT-1.qcow2")],
        type=BackupType.INCREMENTAL,
        reason=Reason.INCREMENTAL,
        chain_position=position,
        parent_id=parent,
    )


def opened(
    cursor: Cursor, decision: ChainDecision, *, vm: str = VM, repository: str = "nas_one", **changes: Any
) -> int:
    number = next(_numbers)
    when = BEGIN + timedelta(seconds=number)
    values: dict[str, Any] = {
        "external_id": f"i-2-1-VM/{when:%Y.%m.%d.%H.%M.%S}",
        "host": "kvm_one",
        "run_id": "run",
        "created_at": when,
        **changes,
    }
    lease = leases.join(cursor, vm_uuid=vm, vm=vm, holder=values["run_id"])
    return backups.open_backup(
        cursor, decision=decision, vm_uuid=vm, vm=vm, repository=repository, lease_token=lease.token, **values
    ).backup_id


_numbers = iter(range(10_000))


def recorded(database: Database, decision: ChainDecision, **where: Any) -> int:
    with database.transaction() as cursor:
        backup_id = opened(cursor, decision, **where)
        backups.record(cursor, backup_id=backup_id, size=4096)
    return backup_id


def active(database: Database, *, repository: str = "nas_one", vm: str = VM) -> str | None:
    with database.transaction() as cursor:
        return vms.active_checkpoint(cursor, vm_uuid=vm, repository=repository)


# --- schema ---------------------------------------------------------------------------------------------------


def empty(database: Database) -> None:
    with database.transaction() as cursor:
        cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


def test_migrating_again_changes_nothing(catalog: Database) -> None:
    assert migrate(catalog) == []
    with catalog.transaction() as cursor:
        assert len(repositories.list_all(cursor)) == 2


def test_migrations_of_many_processes_at_once_run_once(database: Database) -> None:
    empty(database)
    results = together(*[lambda: migrate(database)] * 6)
    folder = importlib.resources.files("nasbackup.catalog") / "migrations"
    every = sorted(file.name.removesuffix(".sql") for file in folder.iterdir() if file.name.endswith(".sql"))
    assert len(every) > 1
    assert sorted(map(str, results)) == sorted([str(every), *["[]"] * 5])


def test_a_migration_that_fails_leaves_nothing_behind(database: Database) -> None:
    empty(database)
    with database.transaction() as cursor:
        cursor.execute("CREATE TABLE backup_volume (in_the_way int)")
    with pytest.raises(psycopg2.Error):
        migrate(database)
    with database.transaction() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        assert [row["tablename"] for row in cursor.fetchall()] == ["backup_volume"]


def test_a_catalog_of_an_older_release_says_what_to_run(database: Database) -> None:
    empty(database)
    with database.transaction() as cursor:
        folder = importlib.resources.files("nasbackup.catalog") / "migrations"
        cursor.execute((folder / "0001_initial.sql").read_text())
    for use in (backups.list_backups, restore_points.known_vms):
        with pytest.raises(CatalogOutdated, match="nasbackup catalog migrate"), database.transaction() as cursor:
            use(cursor)


def test_a_catalog_that_was_never_migrated_says_what_to_run(database: Database) -> None:
    empty(database)
    with pytest.raises(CatalogOutdated, match="nasbackup catalog migrate"), database.transaction() as cursor:
        backups.list_backups(cursor)


# --- unreachable ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        {"dsn": "postgresql://nasbackup:geheim@127.0.0.1:1/nasbackup"},
        {"host": "/nowhere", "user": "nasbackup", "password": "geheim", "dbname": "nasbackup"},
        {"dsn": "postgresql://nasbackup:geheim@127.0.0.1:54x/nasbackup"},
    ],
    ids=["refused", "no socket", "bad port"],
)
def test_a_catalog_that_does_not_answer_is_told_without_the_password(parameters: dict[str, str]) -> None:
    database = Database(parameters=parameters)
    with pytest.raises(CatalogUnreachable) as caught, database.transaction():
        pytest.fail("there is no such database")
    assert "geheim" not in f"{caught.value} {caught.value.data} {database!r}"
    assert "Is PostgreSQL running" in str(caught.value)


@pytest.mark.parametrize(
    "dsn",
    [
        '{"conn_type":"postgres","login":"nasbackup","password":"geheim"}',
        "postgresql+psycopg2://nasbackup:geheim@127.0.0.1/nasbackup",
        "postgres://nasbackup:geheim@[::1/nasbackup",
    ],
    ids=["Airflow's JSON", "SQLAlchemy's URI", "broken URI"],
)
def test_an_address_that_libpq_cannot_read_is_refused_without_the_password(dsn: str) -> None:
    with pytest.raises(CatalogError) as caught, Database(parameters={"dsn": dsn}).transaction():
        pytest.fail("there is no such database")
    assert "geheim" not in str(caught.value)


def test_a_connection_that_dies_within_a_transaction_is_told_as_such(catalog: Database) -> None:
    with pytest.raises(CatalogUnreachable), catalog.transaction() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def backend_of(catalog: Database) -> int:
    with catalog.transaction() as cursor:
        cursor.execute("SELECT pg_backend_pid() AS pid")
        row = cursor.fetchone()
    assert row is not None
    return int(row["pid"])


def test_connections_that_died_between_transactions_are_replaced(catalog: Database) -> None:
    """PostgreSQL was restarted, say: a transaction does not fail because of a connection that was kept."""
    mine = backend_of(catalog)
    assert backend_of(catalog) == mine, "it is kept"
    with catalog.transaction() as cursor, catalog.transaction() as other:
        other.execute("SELECT pg_backend_pid() AS pid")
        row = other.fetchone()
        assert row is not None
        assert row["pid"] != mine, "two transactions at once are two connections"
        cursor.execute("SELECT 1")
    with psycopg2.connect(catalog.parameters["dsn"]) as killer, killer.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", (mine,))
    assert backend_of(catalog) != mine


def test_a_fork_leaves_its_parents_connections_alone(catalog: Database) -> None:
    mine = backend_of(catalog)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(backend_of(catalog)).encode())
        finally:
            gc.collect()
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        assert int(answer.read()) != mine
    os.waitpid(child, 0)
    assert backend_of(catalog) == mine, "and it is still good"


def test_what_is_read_outside_of_a_transaction_is_what_was_committed(catalog: Database) -> None:
    with catalog.reading() as cursor:
        with catalog.transaction() as writer:
            backup_id = opened(writer, full())
            assert backups.list_backups(cursor) == []
        assert [backup.backup_id for backup in backups.list_backups(cursor)] == [backup_id]


def test_an_error_in_the_block_rolls_everything_back(catalog: Database) -> None:
    with catalog.reading() as cursor:
        assert backups.list_backups(cursor) == [], "and the connection of this is the one of the next"
    with pytest.raises(BackupNotFound), catalog.transaction() as cursor:
        backups.get(cursor, backup_id=opened(cursor, full()) + 1)
    with catalog.transaction() as cursor:
        assert backups.list_backups(cursor) == []


# --- leases ---------------------------------------------------------------------------------------------------


def acquire(database: Database, holder: str, *, vm: str = VM, seconds: int = 900) -> Lease:
    with database.transaction() as cursor:
        return leases.acquire(cursor, vm_uuid=vm, vm="i-2-1-VM", holder=holder, seconds=seconds)


def renew(database: Database, lease: Lease, *, seconds: int = 900) -> None:
    with database.transaction() as cursor:
        leases.renew(cursor, vm_uuid=lease.vm_uuid, vm="i-2-1-VM", token=lease.token, seconds=seconds)


def release(database: Database, lease: Lease) -> bool:
    with database.transaction() as cursor:
        return leases.release(cursor, vm_uuid=lease.vm_uuid, token=lease.token)


def expire(database: Database) -> None:
    with database.transaction() as cursor:
        cursor.execute("UPDATE lease SET expires_at = now() - interval '1 second'")


def test_a_lease_that_is_held_is_refused_with_its_holder_and_end(catalog: Database) -> None:
    lease = acquire(catalog, "run-1")
    assert lease.expires_at - datetime.now(UTC) > timedelta(seconds=880)
    with pytest.raises(VmBusy, match=r"VM i-2-1-VM is in use by run-1 until \d\d:\d\d:\d\d UTC"):
        acquire(catalog, "run-2")
    acquire(catalog, "run-2", vm=OTHER_VM)
    renew(catalog, lease)


def test_an_expired_lease_is_taken_over_and_its_holder_is_fenced_off(catalog: Database) -> None:
    old = acquire(catalog, "run-1")
    expire(catalog)
    new = acquire(catalog, "run-2")
    assert new.token > old.token
    with pytest.raises(LeaseLost, match="i-2-1-VM"):
        renew(catalog, old)
    assert not release(catalog, old), "the lease of another is not given back"
    renew(catalog, new)


def test_an_expired_lease_that_nobody_took_can_be_renewed(catalog: Database) -> None:
    lease = acquire(catalog, "run-1")
    expire(catalog)
    renew(catalog, lease)
    with pytest.raises(VmBusy):
        acquire(catalog, "run-2")


def test_a_lease_ends_by_itself(catalog: Database) -> None:
    acquire(catalog, "run-1")
    with pytest.raises(VmBusy):
        acquire(catalog, "run-2")
    acquire(catalog, "run-1", seconds=1)
    time.sleep(1.1)
    acquire(catalog, "run-2")


def test_the_same_holder_gets_a_new_token_and_its_old_one_is_void(catalog: Database) -> None:
    first = acquire(catalog, "run-1")
    second = acquire(catalog, "run-1")
    assert second.token > first.token
    with pytest.raises(LeaseLost):
        renew(catalog, first)
    assert not release(catalog, first)
    assert release(catalog, second)
    assert not release(catalog, second), "a second time there is nothing to give back"


def test_a_token_is_never_used_twice(catalog: Database) -> None:
    tokens = []
    for number in range(5):
        lease = acquire(catalog, f"run-{number}", vm=(VM, OTHER_VM)[number % 2])
        tokens.append(lease.token)
        release(catalog, lease)
    assert tokens == sorted(set(tokens))


def test_of_twenty_that_race_for_a_lease_exactly_one_wins(catalog: Database) -> None:
    for _ in range(3):
        results = together(*[lambda holder=f"run-{n}": acquire(catalog, holder) for n in range(20)])  # type: ignore[misc]
        winners = [result for result in results if isinstance(result, Lease)]
        assert len(winners) == 1
        assert all(isinstance(result, VmBusy) for result in results if result not in winners)
        assert release(catalog, winners[0])


def test_of_twenty_that_race_for_an_expired_lease_exactly_one_takes_over(catalog: Database) -> None:
    acquire(catalog, "dead")
    expire(catalog)
    results = together(*[lambda holder=f"run-{n}": acquire(catalog, holder) for n in range(20)])  # type: ignore[misc]
    assert len([result for result in results if isinstance(result, Lease)]) == 1


def test_a_takeover_waits_for_what_the_holder_writes_in_its_transaction(catalog: Database) -> None:
    """Renewing locks the lease: a write that was begun with it is finished before another run can begin."""
    lease = acquire(catalog, "run-1")
    order: list[str] = []
    renewed = threading.Event()

    def holder() -> None:
        with catalog.transaction() as cursor:
            leases.renew(cursor, vm_uuid=VM, vm="i-2-1-VM", token=lease.token, seconds=-5)  # renewed, and over at once
            renewed.set()
            time.sleep(0.5)
            order.append("written")

    def rival() -> None:
        renewed.wait(10)
        acquire(catalog, "run-2")
        order.append("taken over")

    assert together(holder, rival) == [None, None]
    assert order == ["written", "taken over"]


def test_taking_a_lease_notes_where_the_vm_is_now_unless_it_is_refused(catalog: Database) -> None:
    def take(holder: str, *, uuid: str, name: str, host: str) -> Lease:
        with catalog.autocommit() as cursor:
            return leases.acquire_and_register(cursor, vm_uuid=uuid, vm=name, host=host, holder=holder)

    new = str(uuid4())
    renew(catalog, take("run-1", uuid=new, name="new", host="kvm_one"))
    take("run-1", uuid=VM, name="renamed", host="kvm_two")
    with pytest.raises(VmBusy, match="run-1"):
        take("run-2", uuid=VM, name="renamed again", host="kvm_three")
    with catalog.reading() as cursor:
        found = {vm.vm_uuid: (vm.vm, vm.host) for vm in restore_points.known_vms(cursor)}
    assert found == {VM: ("renamed", "kvm_two"), OTHER_VM: ("i-2-2-VM", "kvm_one"), new: ("new", "kvm_one")}


# --- one backup at a time -------------------------------------------------------------------------------------


def test_the_database_refuses_two_open_backups_of_one_vm(catalog: Database) -> None:
    with catalog.transaction() as cursor:
        opened(cursor, full())
        opened(cursor, full(), vm=OTHER_VM)
    with (
        pytest.raises(CatalogConflict, match="backup_one_open_per_vm"),
        catalog.transaction() as cursor,
    ):
        opened(cursor, full("backup-2"), repository="nas_two")


@pytest.mark.parametrize(
    "wrong",
    [
        full(chain_position=1),
        full(type=BackupType.INCREMENTAL),
        full(volumes=[plan(backing="../x/y")]),
        full(volumes=[plan(virtual_size=0)]),
        full(volumes=[plan("a", file="same"), plan("b", file="same")]),
        full(volumes=[plan("a", source="/same"), plan("b", source="/same")]),
    ],
    ids=["full in mid-chain", "incremental without parent", "full with backing", "empty", "one file", "one source"],
)
def test_the_database_refuses_what_makes_no_sense(catalog: Database, wrong: ChainDecision) -> None:
    with pytest.raises((psycopg2.IntegrityError, CatalogConflict)), catalog.transaction() as cursor:
        opened(cursor, wrong)


def test_a_parent_cannot_be_removed_from_under_its_child(catalog: Database) -> None:
    parent = recorded(catalog, full())
    with catalog.transaction() as cursor:
        opened(cursor, incremental("backup-2", parent=parent, position=1))
    with pytest.raises(psycopg2.errors.ForeignKeyViolation), catalog.transaction() as cursor:
        cursor.execute("DELETE FROM backup WHERE backup_id = %s", (parent,))


# --- recording ------------------------------------------------------------------------------------------------


def test_recording_moves_the_active_checkpoint_in_the_same_transaction(catalog: Database) -> None:
    assert active(catalog) is None
    parent = recorded(catalog, full("backup-1"))
    assert active(catalog) == "backup-1"
    with catalog.transaction() as cursor:
        child = opened(cursor, incremental("backup-2", parent=parent, position=1))
    assert active(catalog) == "backup-1", "an open backup changes nothing"

    with catalog.transaction() as recording:
        backups.record(recording, backup_id=child, size=1)
        with catalog.transaction() as other:
            assert vms.active_checkpoint(other, vm_uuid=VM, repository="nas_one") == "backup-1"
            assert backups.get(other, backup_id=child).status is BackupStatus.BACKING_UP
    assert active(catalog) == "backup-2"
    with catalog.transaction() as cursor:
        done = backups.get(cursor, backup_id=child)
    assert (done.status, done.size, done.error) == (BackupStatus.BACKED_UP, 1, None)
    assert done.recorded_at is not None


def _record_and_find_the_lease_gone(cursor: Cursor) -> None:
    backups.record(cursor, backup_id=opened(cursor, full("backup-2")), size=1)
    leases.renew(cursor, vm_uuid=VM, vm="i-2-1-VM", token=4711)


def test_a_recording_that_is_rolled_back_moves_nothing(catalog: Database) -> None:
    recorded(catalog, full("backup-1"))
    with pytest.raises(LeaseLost), catalog.transaction() as cursor:
        _record_and_find_the_lease_gone(cursor)
    assert active(catalog) == "backup-1"


def test_a_backup_without_checkpoint_clears_the_active_one(catalog: Database) -> None:
    recorded(catalog, full("backup-1"))
    recorded(catalog, full(None, chain_id=None, reason=Reason.INCREMENTAL_DISABLED))
    assert active(catalog) is None


def test_each_repository_and_each_vm_has_an_active_checkpoint_of_its_own(catalog: Database) -> None:
    recorded(catalog, full("backup-1"), repository="nas_one")
    recorded(catalog, full("backup-2"), repository="nas_two")
    recorded(catalog, full("backup-3"), vm=OTHER_VM)
    assert (active(catalog), active(catalog, repository="nas_two")) == ("backup-1", "backup-2")
    assert (active(catalog, vm=OTHER_VM), active(catalog, vm=OTHER_VM, repository="nas_two")) == ("backup-3", None)

    with catalog.transaction() as cursor:
        vms.clear_active_checkpoint(cursor, vm_uuid=VM, repository="nas_one")
    assert (active(catalog), active(catalog, repository="nas_two")) == (None, "backup-2")
    with catalog.transaction() as cursor:
        vms.clear_active_checkpoint(cursor, vm_uuid=VM)
    assert active(catalog, repository="nas_two") is None
    assert active(catalog, vm=OTHER_VM) == "backup-3"


def test_failing_leaves_the_active_checkpoint_as_it_was(catalog: Database) -> None:
    parent = recorded(catalog, full("backup-1"))
    with catalog.transaction() as cursor:
        failing = opened(cursor, incremental("backup-2", parent=parent, position=1))
    with catalog.transaction() as cursor:
        backups.fail(cursor, backup_id=failing, error="the NAS was away")
    assert active(catalog) == "backup-1"
    with catalog.transaction() as cursor:
        failed = backups.get(cursor, backup_id=failing)
        assert (failed.status, failed.error) == (BackupStatus.FAILED, "the NAS was away")
        assert stands(cursor).unfinished == (failing,)
        backups.set_cleaned(cursor, backup_id=failing)
        assert stands(cursor).unfinished == ()


def test_a_recorded_backup_cannot_fail_any_more(catalog: Database) -> None:
    done = recorded(catalog, full("backup-1"))
    with catalog.transaction() as cursor:
        backups.fail(cursor, backup_id=done, error="an end_job that came late")
        assert backups.get(cursor, backup_id=done).status is BackupStatus.BACKED_UP


@pytest.mark.parametrize("end", ["record", "fail"])
def test_a_backup_that_is_not_open_takes_no_further_step(catalog: Database, end: str) -> None:
    with catalog.transaction() as cursor:
        backup_id = opened(cursor, full("backup-1"))
        backups.claim_attempt(cursor, backup_id=backup_id, volume="ROOT-1", attempt="a1")
    with catalog.transaction() as cursor:
        if end == "record":
            backups.record(cursor, backup_id=backup_id, size=1)
        else:
            backups.fail(cursor, backup_id=backup_id, error="stopped")
    steps: list[Callable[[Cursor], object]] = [
        lambda cursor: backups.record(cursor, backup_id=backup_id, size=2),
        lambda cursor: backups.claim_attempt(cursor, backup_id=backup_id, volume="ROOT-1", attempt="a2"),
        lambda cursor: backups.set_consistency(cursor, backup_id=backup_id, consistency=Consistency.CRASH),
        lambda cursor: backups.adopt(cursor, backup_id=backup_id, lease_token=99),
    ]
    for step in steps:
        expected = "is BackedUp, not BackingUp" if end == "record" else "is Failed, not BackingUp"
        with pytest.raises(BackupNotOpen, match=expected), catalog.transaction() as cursor:
            step(cursor)
    assert active(catalog) == ("backup-1" if end == "record" else None)


# --- attempts -------------------------------------------------------------------------------------------------

COPIED: dict[str, Any] = {"bytes_read": 3, "bytes_written": 4, "digest": "sha256:aa", "seconds": 0.5}


def test_only_the_attempt_that_claimed_the_volume_last_can_be_noted(catalog: Database) -> None:
    with catalog.transaction() as cursor:
        backup_id = opened(cursor, full(volumes=[plan("a"), plan("b")]))
        for attempt in ("a1", "a2"):
            backups.claim_attempt(cursor, backup_id=backup_id, volume="a", attempt=attempt)
    with pytest.raises(AttemptSuperseded, match="Attempt a1 of volume a"), catalog.transaction() as cursor:
        backups.set_copied(cursor, backup_id=backup_id, volume="a", attempt="a1", **COPIED)
    with pytest.raises(AttemptSuperseded), catalog.transaction() as cursor:
        backups.set_verified(cursor, backup_id=backup_id, volume="a", attempt="a1")
    with pytest.raises(AttemptSuperseded), catalog.transaction() as cursor:
        backups.set_copied(cursor, backup_id=backup_id, volume="b", attempt="a2", **COPIED)
    with catalog.transaction() as cursor:
        assert [volume.digest for volume in backups.get(cursor, backup_id=backup_id).volumes] == [None, None]
        backups.set_copied(cursor, backup_id=backup_id, volume="a", attempt="a2", **COPIED)
        copied, untouched = backups.get(cursor, backup_id=backup_id).volumes
    assert (copied.digest, copied.bytes_read, copied.bytes_written, copied.copy_seconds) == ("sha256:aa", 3, 4, 0.5)
    assert (untouched.digest, untouched.attempt) == (None, None)


def test_a_new_attempt_voids_what_the_earlier_one_found(catalog: Database) -> None:
    with catalog.transaction() as cursor:
        backup_id = opened(cursor, full())
        backups.claim_attempt(cursor, backup_id=backup_id, volume="ROOT-1", attempt="a1")
        backups.set_copied(cursor, backup_id=backup_id, volume="ROOT-1", attempt="a1", **COPIED)
        backups.set_verified(cursor, backup_id=backup_id, volume="ROOT-1", attempt="a1")
        assert backups.get(cursor, backup_id=backup_id).verified
        backups.claim_attempt(cursor, backup_id=backup_id, volume="ROOT-1", attempt="a2")
        (volume,) = backups.get(cursor, backup_id=backup_id).volumes
    assert (volume.attempt, volume.digest, volume.bytes_read, volume.verified_at) == ("a2", None, None, None)


# --- reading --------------------------------------------------------------------------------------------------


def chain_of_three(database: Database) -> list[int]:
    one = recorded(database, full("backup-1"))
    two = recorded(database, incremental("backup-2", parent=one, position=1))
    return [one, two, recorded(database, incremental("backup-3", parent=two, position=2))]


def test_a_backup_is_read_back_as_it_was_announced(catalog: Database) -> None:
    decision = full("backup-1", volumes=[plan("b"), plan("a", format="raw", target="vdb")])
    with catalog.transaction() as cursor:
        backup_id = opened(cursor, decision, external_id="i-2-1-VM/x", run_id="r", created_at=BEGIN)
        backup = backups.get(cursor, backup_id=backup_id)
        assert backups.find(cursor, external_id="i-2-1-VM/x") == backup
    assert (backup.vm, backup.vm_uuid, backup.host, backup.repository) == ("i-2-1-VM", VM, "kvm_one", "nas_one")
    assert (backup.type, backup.reason, backup.explanation) == (decision.type, decision.reason, decision.explanation)
    assert (backup.chain_id, backup.chain_position, backup.parent) == (CHAIN, 0, None)
    assert (backup.checkpoint, backup.run_id, backup.created_at) == ("backup-1", "r", BEGIN)
    assert [(volume.name, volume.format, volume.target) for volume in backup.volumes] == [
        ("b", "qcow2", "vda"),
        ("a", "raw", "vdb"),
    ]


def test_what_announcing_a_backup_returns_is_what_is_read(catalog: Database) -> None:
    parent = recorded(catalog, full("backup-1"), external_id="i-2-1-VM/parent")
    lease = acquire(catalog, "run")
    with catalog.transaction() as cursor:
        announced = backups.open_backup(
            cursor,
            decision=replace(incremental("backup-2", parent=parent, position=1), parent="i-2-1-VM/parent"),
            external_id="i-2-1-VM/x",
            vm_uuid=VM,
            vm="i-2-1-VM",
            host="kvm_one",
            repository="nas_one",
            run_id="run",
            lease_token=lease.token,
            created_at=BEGIN,
            request={"request": {"exclude_volumes": ("vdb",), "compression": Compression.ZSTD}, "settings": {"n": 1}},
        )
        assert announced == backups.get(cursor, backup_id=announced.backup_id)
        assert announced.request["request"] == {"exclude_volumes": ["vdb"], "compression": "zstd"}
        backups.replan(cursor, backup_id=announced.backup_id, decision=full("backup-2", volumes=[plan("a"), plan("b")]))
        again = backups.get(cursor, backup_id=announced.backup_id)
    assert (again.type, again.parent, [volume.name for volume in again.volumes]) == (BackupType.FULL, None, ["a", "b"])


def test_the_lineage_is_the_full_first_and_the_backup_last(catalog: Database) -> None:
    line = chain_of_three(catalog)
    recorded(catalog, full("backup-4"))
    with catalog.transaction() as cursor:
        assert [backup.backup_id for backup in backups.lineage(cursor, backup_id=line[2])] == line
        assert [backup.backup_id for backup in backups.lineage(cursor, backup_id=line[1])] == line[:2]
        parents = [backup.parent for backup in backups.lineage(cursor, backup_id=line[2])]
        ids = [backups.get(cursor, backup_id=backup_id).external_id for backup_id in line]
    assert parents == [None, *ids[:2]]


def announcement() -> dict[str, Any]:
    return {
        "decision": full(),
        "external_id": "i-2-1-VM/x",
        "vm_uuid": VM,
        "vm": "i-2-1-VM",
        "host": "kvm_one",
        "repository": "nas_one",
        "run_id": "run-1",
        "created_at": BEGIN,
    }


def test_a_backup_is_announced_by_the_holder_of_the_lease_only(catalog: Database) -> None:
    lease = acquire(catalog, "run-1")
    expire(catalog)
    acquire(catalog, "run-2")
    refused = pytest.raises(LeaseLost, match=f"token {lease.token} no longer holds the lease of VM i-2-1-VM")
    with refused, catalog.autocommit() as cursor:
        backups.open_backup(cursor, **announcement(), lease_token=lease.token)
    with catalog.reading() as cursor:
        assert backups.list_backups(cursor) == []
    expire(catalog)
    held = acquire(catalog, "run-1", seconds=5)
    with catalog.autocommit() as cursor:
        backups.open_backup(cursor, **announcement(), lease_token=held.token)
    with pytest.raises(VmBusy), catalog.transaction() as cursor:  # it was renewed by that
        leases.acquire(cursor, vm_uuid=VM, vm="i-2-1-VM", holder="run-2")
    with catalog.reading() as cursor:
        cursor.execute("SELECT expires_at > now() + interval '800 seconds' AS renewed FROM lease")
        assert cursor.fetchone() == {"renewed": True}


def test_who_announces_while_the_lease_changes_hands_is_refused(catalog: Database) -> None:
    lease = acquire(catalog, "run-1")
    expire(catalog)
    taken = threading.Event()

    def rival() -> None:
        with catalog.transaction() as cursor:
            leases.acquire(cursor, vm_uuid=VM, vm="i-2-1-VM", holder="run-2")
            taken.set()
            for _ in range(3000):  # until the other one has asked, and has to wait for what comes of this
                cursor.execute(
                    "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
                    " AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
                )
                row = cursor.fetchone()
                if row and row["n"]:
                    return
                time.sleep(0.01)
            raise AssertionError("who announces did not wait")

    def holder() -> None:
        assert taken.wait(10)
        with catalog.autocommit() as cursor:
            backups.open_backup(cursor, **announcement(), lease_token=lease.token)

    done, refused = together(rival, holder)
    assert (done, type(refused)) == (None, LeaseLost)
    with catalog.reading() as cursor:
        assert backups.list_backups(cursor) == []


# --- how a VM stands ------------------------------------------------------------------------------------------


def stands(
    cursor: Cursor, *, vm: str = VM, external_id: str = "vm/free", checkpoint: str = "free", **more: Any
) -> Standing:
    return standing(cursor, vm_uuid=vm, repository="nas_one", external_id=external_id, checkpoint=checkpoint, **more)


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


def test_backups_are_listed_in_order_by_vm_and_state(catalog: Database) -> None:
    line = chain_of_three(catalog)
    other = recorded(catalog, full("backup-7"), vm=OTHER_VM)
    with catalog.transaction() as cursor:
        assert [backup.backup_id for backup in backups.list_backups(cursor)] == [*line, other]
        assert [backup.backup_id for backup in backups.list_backups(cursor, vm="i-2-1-VM")] == line
        assert backups.list_backups(cursor, vm="nobody") == []
        assert backups.list_backups(cursor, statuses=[BackupStatus.FAILED]) == []
        assert backups.list_backups(cursor, statuses=[]) == []


def test_what_does_not_exist_is_named(catalog: Database) -> None:
    with pytest.raises(BackupNotFound, match="There is no backup 'vm/none'"), catalog.transaction() as cursor:
        backups.find(cursor, external_id="vm/none")
    with pytest.raises(BackupNotFound), catalog.transaction() as cursor:
        backups.get(cursor, backup_id=4711)
    with pytest.raises(UnknownRepository, match="nas_one, nas_two"), catalog.transaction() as cursor:
        repositories.get(cursor, name="nas_three")


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


# --- names from outside ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "a'b",
        'a"b',
        "100%",
        "%s",
        "%(vm)s",
        "a\\b",
        "\\'; DROP TABLE backup; --",
        "ä 日本 \U0001f4be",
        "{x}",
        "$1",
        "",
        "\n\t",
    ],
)
def test_hostile_names_go_through_unchanged(catalog: Database, name: str) -> None:
    with catalog.transaction() as cursor:
        vms.register(cursor, uuid=VM, name=name, host=name)
        lease = leases.acquire(cursor, vm_uuid=VM, vm=name, holder=name)
        decision = full(name, volumes=[plan(name, source=name, file=name)], explanation=name)
        backup_id = opened(cursor, decision, external_id=name, run_id=name, host=name)
        backups.claim_attempt(cursor, backup_id=backup_id, volume=name, attempt=name)
        backups.set_copied(cursor, backup_id=backup_id, volume=name, attempt=name, **{**COPIED, "digest": name})
        leases.renew(cursor, vm_uuid=VM, vm=name, token=lease.token)
        backups.record(cursor, backup_id=backup_id, size=0)
    with catalog.transaction() as cursor:
        (found,) = backups.list_backups(cursor, vm=name)
        assert backups.find(cursor, external_id=name) == found
        assert vms.active_checkpoint(cursor, vm_uuid=VM, repository="nas_one") == name
    assert (found.vm, found.host, found.external_id, found.run_id, found.explanation) == (name,) * 5
    (volume,) = found.volumes
    assert (volume.name, volume.source, volume.file, volume.digest) == (name,) * 4


def test_a_vm_keeps_its_identity_when_it_is_renamed_or_moves(catalog: Database) -> None:
    backup_id = recorded(catalog, full())
    with catalog.transaction() as cursor:
        vms.register(cursor, uuid=VM, name="renamed", host="kvm_two")
        assert backups.get(cursor, backup_id=backup_id).vm == "renamed"
        assert backups.get(cursor, backup_id=backup_id).host == "kvm_one", "where it ran then"


def test_a_repository_keeps_its_identity_when_it_is_registered_again(catalog: Database) -> None:
    with catalog.transaction() as cursor:
        before = repositories.get(cursor, name="nas_one")
        moved = Repository(name="nas_one", type=RepositoryType.NFS, path="/elsewhere", address="nas:/x")
        repositories.register(cursor, repository=moved, uuid=str(uuid4()))
        after = repositories.get(cursor, name="nas_one")
    assert (after.uuid, after.repository) == (before.uuid, moved)
