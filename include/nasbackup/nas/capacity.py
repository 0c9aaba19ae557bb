"""Is there room in the repository? Asked before anything is begun, answered with numbers."""

from __future__ import annotations

import os
from pathlib import Path

from nasbackup.errors import RepositoryFull
from nasbackup.model import Repository
from nasbackup.nas.repository import doing, free_bytes


def require_space(repository: Repository, *, root: Path, needs: int) -> int:
    """The free bytes, as the file system counts them for this user. Raises RepositoryFull, NasIo.

    Nothing is reserved: another backup may take the space meanwhile. Then the copy fails, with numbers too.
    """
    with doing(repository, "reading the free space"):
        has = free_bytes(root)
    if has < needs:
        raise RepositoryFull(repository=repository.name, needs=needs, has=has)
    return has


def measure(repository: Repository, *, root: Path) -> tuple[int, int]:
    """(total, free) bytes of the repository's file system, for this user."""
    with doing(repository, "reading the free space"):
        status = os.statvfs(root)
    # What is reserved for root is neither: a repository is full when its user cannot write any more.
    free = status.f_bavail * status.f_frsize
    return (status.f_blocks - status.f_bfree) * status.f_frsize + free, free
