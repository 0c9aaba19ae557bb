"""The VM's lease for work that is no backup: deletion, restore, clean-up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec

from nasbackup.catalog import Database, leases

P = ParamSpec("P")

RENEW_SECONDS = 5.0


@contextmanager
def held_lease(database: Database, *, vm_uuid: str, vm: str, holder: str) -> Iterator[int]:
    """The fencing token, for the time of the block. Raises VmBusy while somebody else is at work on the VM."""
    with database.transaction() as cursor:
        token = leases.acquire(cursor, vm_uuid=vm_uuid, vm=vm, holder=holder).token
    try:
        yield token
    finally:
        with database.transaction() as cursor:
            leases.release(cursor, vm_uuid=vm_uuid, token=token)


@dataclass(frozen=True, kw_only=True)
class SharedLease:
    """One that several tasks of a run hold together, until the run gives it back: they read, side by side."""

    database: Database
    vm_uuid: str
    vm: str
    holder: str

    def join(self) -> int:
        """Take it, or what the run has already; returns the token. Raises VmBusy."""
        with self.database.transaction() as cursor:
            return leases.join(cursor, vm_uuid=self.vm_uuid, vm=self.vm, holder=self.holder).token

    def leave(self) -> None:
        with self.database.transaction() as cursor:
            leases.release_of(cursor, vm_uuid=self.vm_uuid, holder=self.holder)

    def renewing(self, token: int, follow: Callable[P, object] | None) -> Callable[P, None]:
        """``follow``, which renews the lease on the way. It raises LeaseLost when somebody has taken over."""
        last = time.monotonic()

        def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
            nonlocal last
            if time.monotonic() - last >= RENEW_SECONDS:
                last = time.monotonic()
                with self.database.transaction() as cursor:
                    leases.renew(cursor, vm_uuid=self.vm_uuid, vm=self.vm, token=token)
            if follow is not None:
                follow(*args, **kwargs)

        return wrapper
