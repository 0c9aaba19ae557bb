"""One writer per VM (invariant 4): a lease with a fencing token that PostgreSQL hands out.

Times are the database's, so workers with wrong clocks agree on when a lease ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nasbackup.catalog.database import Cursor
from nasbackup.errors import LeaseLost, VmBusy
from nasbackup.model import Lease

LEASE_SECONDS = 900
"""A holder renews every few seconds while it works; the rest is slack for a scheduler that is slow or down."""

RENEW = """
    UPDATE lease SET expires_at = clock_timestamp() + make_interval(secs => %(seconds)s)
     WHERE vm_id = (SELECT vm_id FROM vm WHERE uuid = %(vm_uuid)s) AND token = %(lease_token)s
"""
"""Changes one row if the token holds the lease, and none otherwise."""

_KNOWN = "SELECT vm_id FROM vm WHERE uuid = %(uuid)s"

_TAKE = """
    INSERT INTO lease AS l (vm_id, holder, expires_at)
    SELECT vm_id, %(holder)s, clock_timestamp() + make_interval(secs => %(seconds)s) FROM this_vm
    ON CONFLICT (vm_id) DO UPDATE
       SET token = CASE WHEN l.holder = EXCLUDED.holder AND NOT %(anew)s THEN l.token
                        ELSE nextval('lease_token') END,
           holder = EXCLUDED.holder, acquired_at = clock_timestamp(), expires_at = EXCLUDED.expires_at
     WHERE l.holder = EXCLUDED.holder OR l.expires_at < clock_timestamp()
    RETURNING vm_id, token, expires_at
"""

_TAKE_KNOWN = f"WITH this_vm AS ({_KNOWN}) {_TAKE}"

# Only who gets the lease says where the VM is: the refused may have found what a migration left behind.
_TAKE_AND_REGISTER = f"""
    WITH new AS (INSERT INTO vm (uuid, name, host) VALUES (%(uuid)s, %(name)s, %(host)s)
                     ON CONFLICT (uuid) DO NOTHING RETURNING vm_id),
         this_vm AS (TABLE new UNION ALL {_KNOWN}),
         taken AS ({_TAKE}),
         moved AS (UPDATE vm SET name = %(name)s, host = %(host)s FROM taken
                    WHERE vm.vm_id = taken.vm_id AND (vm.name <> %(name)s OR vm.host <> %(host)s))
    TABLE taken
"""  # noqa: S608 - what is above


def acquire(cursor: Cursor, *, vm_uuid: str, vm: str, holder: str, seconds: int = LEASE_SECONDS) -> Lease:
    """Take the VM's lease, or take it again.

    The same holder always gets it, with a new token: whatever an earlier attempt of it still runs is fenced
    off. Raises VmBusy while another holder's lease is alive.
    """
    return _take(cursor, vm_uuid=vm_uuid, vm=vm, holder=holder, seconds=seconds, anew=True)


def acquire_and_register(
    cursor: Cursor, *, vm_uuid: str, vm: str, host: str, holder: str, seconds: int = LEASE_SECONDS
) -> Lease:
    """``acquire`` for a VM that may be new, or have a new name or host: who gets the lease notes that, too."""
    return _take(cursor, vm_uuid=vm_uuid, vm=vm, holder=holder, seconds=seconds, anew=True, host=host)


def join(cursor: Cursor, *, vm_uuid: str, vm: str, holder: str, seconds: int = LEASE_SECONDS) -> Lease:
    """Take the VM's lease, or share the one that the same holder has: with its token. Raises VmBusy."""
    return _take(cursor, vm_uuid=vm_uuid, vm=vm, holder=holder, seconds=seconds, anew=False)


def _take(
    cursor: Cursor, *, vm_uuid: str, vm: str, holder: str, seconds: int, anew: bool, host: str | None = None
) -> Lease:
    cursor.execute(
        _TAKE_KNOWN if host is None else _TAKE_AND_REGISTER,
        {"uuid": vm_uuid, "name": vm, "host": host, "holder": holder, "seconds": seconds, "anew": anew},
    )
    row = cursor.fetchone()
    if row is None:
        cursor.execute("SELECT l.* FROM lease l JOIN vm USING (vm_id) WHERE uuid = %s", (vm_uuid,))
        raise _busy(vm, cursor.fetchone())
    return Lease(vm_uuid=vm_uuid, holder=holder, token=row["token"], expires_at=row["expires_at"])


def require_free(cursor: Cursor, *, vm_uuid: str, vm: str) -> None:
    """Raises VmBusy while anybody's lease is alive; takes none."""
    cursor.execute(
        "SELECT l.* FROM lease l JOIN vm USING (vm_id) WHERE uuid = %s AND expires_at >= clock_timestamp()", (vm_uuid,)
    )
    holder = cursor.fetchone()
    if holder is not None:
        raise _busy(vm, holder)


def _busy(vm: str, lease: Mapping[str, Any] | None) -> VmBusy:
    return VmBusy(
        vm=vm,
        holder=lease["holder"] if lease else "another run",
        until=lease["expires_at"].strftime("%H:%M:%S UTC") if lease else "now",
    )


def renew(cursor: Cursor, *, vm_uuid: str, vm: str, token: int, seconds: int = LEASE_SECONDS) -> None:
    """Prolong the lease, and lock it until the transaction ends: what is written in the same transaction is fenced.

    Raises LeaseLost when the token is not the lease's any more.
    """
    cursor.execute(RENEW, {"vm_uuid": vm_uuid, "lease_token": token, "seconds": seconds})
    if cursor.rowcount == 0:
        raise LeaseLost(vm=vm, holder=f"The holder of token {token}")


def release(cursor: Cursor, *, vm_uuid: str, token: int) -> bool:
    """Give the lease back; False when it was not this token's (any more), which is no error."""
    cursor.execute(
        "DELETE FROM lease WHERE vm_id = (SELECT vm_id FROM vm WHERE uuid = %s) AND token = %s", (vm_uuid, token)
    )
    return bool(cursor.rowcount)


def release_of(cursor: Cursor, *, vm_uuid: str, holder: str) -> None:
    """Give back what this holder has, whatever its token."""
    cursor.execute(
        "DELETE FROM lease WHERE vm_id = (SELECT vm_id FROM vm WHERE uuid = %s) AND holder = %s", (vm_uuid, holder)
    )
