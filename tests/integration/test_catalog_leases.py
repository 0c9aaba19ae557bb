"""Leases on a real PostgreSQL: one holder per VM at a time, whoever else wants it, or died with it."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from nasbackup.catalog import Database, backups, leases, restore_points
from nasbackup.errors import LeaseLost, VmBusy
from nasbackup.model import Lease

from tests.integration.catalog_rows import BEGIN, OTHER_VM, VM, acquire, expire, full, together


def renew(database: Database, lease: Lease, *, seconds: int = 900) -> None:
    with database.transaction() as cursor:
        leases.renew(cursor, vm_uuid=lease.vm_uuid, vm="i-2-1-VM", token=lease.token, seconds=seconds)


def release(database: Database, lease: Lease) -> bool:
    with database.transaction() as cursor:
        return leases.release(cursor, vm_uuid=lease.vm_uuid, token=lease.token)


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
