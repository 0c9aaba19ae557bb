"""The catalog on a real PostgreSQL: what must hold when many processes, or dead ones, write at once."""

from __future__ import annotations

import gc
import importlib.resources
import os
from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

import psycopg2
import pytest
from nasbackup.catalog import Cursor, Database, backups, leases, migrate, repositories, restore_points, vms
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
)
from nasbackup.handling import Compression
from nasbackup.model import BackupStatus, BackupType, ChainDecision, Consistency, Reason, Repository, RepositoryType

from tests.integration.catalog_rows import (
    BEGIN,
    CHAIN,
    COPIED,
    OTHER_VM,
    VM,
    acquire,
    chain_of_three,
    full,
    incremental,
    opened,
    plan,
    recorded,
    stands,
    together,
)


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
