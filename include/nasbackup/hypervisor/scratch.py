"""Room for the old content that the guest overwrites while it is copied.

QEMU keeps it in scratch files on the host for as long as the job is open. When it cannot, it is the *guest's* write
that fails, so a backup gives up well before.
"""

from __future__ import annotations

import os

from nasbackup.errors import HostNotReady
from nasbackup.model import Host

RESERVE = 256 << 20
"""With less than this left, a running backup gives up..."""

RESERVE_SHARE = 0.05
"""...or with less than this share of the file system, where that is less."""


def require_room(host: Host, *, needs: int) -> None:
    """Before the job begins. Raises HostNotReady unless ``needs`` bytes and the reserve are free."""
    has, reserve = _free_and_reserve(host)
    if has < needs + reserve:
        raise HostNotReady(
            host=host.name,
            problem=f"{host.scratch_dir} needs {needs + reserve} bytes for what the guest overwrites while it is "
            f"copied, has {has}; free some space there, or give the host another scratch_dir",
        )


def require_reserve(host: Host) -> None:
    """While the job is open, every few seconds. Raises HostNotReady when the reserve is touched: end the job then."""
    has, reserve = _free_and_reserve(host)
    if has < reserve:
        raise HostNotReady(
            host=host.name,
            problem=f"{host.scratch_dir} has {has} bytes left of the {reserve} that are kept free for the guest: the "
            "guest overwrites more than there is room for; give the host a larger scratch_dir",
        )


def require_reserve_of_backups(host: Host) -> None:
    """While a drilled guest writes there, too. Raises HostNotReady when twice the reserve is touched: end the drill
    then, before a backup has to end.
    """
    has, reserve = _free_and_reserve(host)
    if has < 2 * reserve:
        raise HostNotReady(
            host=host.name,
            problem=f"{host.scratch_dir} has {has} bytes left, and what a drilled guest writes goes there: with less "
            f"than {2 * reserve} there is no drill, or it is ended, so that backups have room; free some space there, "
            "or give the host a larger scratch_dir",
        )


def _free_and_reserve(host: Host) -> tuple[int, int]:
    try:
        status = os.statvfs(host.scratch_dir)
    except OSError as error:
        raise HostNotReady(host=host.name, problem=f"{host.scratch_dir}: {error.strerror}") from error
    reserve = min(RESERVE, int(status.f_blocks * status.f_frsize * RESERVE_SHARE))
    return status.f_bavail * status.f_frsize, reserve
