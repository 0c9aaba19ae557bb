"""Is there room in the repository? Asked before anything is begun, answered with numbers."""

from __future__ import annotations

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
