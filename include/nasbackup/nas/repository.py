"""Is this path the repository, or the empty mount point under it?

A marker file at the repository's root carries the identity that the catalog knows. Nothing is written below a
path that does not show it, so an unmounted NAS never fills the root disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from nasbackup.errors import NasIo, NotARepository, RepositoryFull
from nasbackup.layout import MARKER
from nasbackup.model import Repository
from nasbackup.nas.durable import write_durably

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def open_root(repository: Repository, *, identity: str) -> Path:
    """The repository's root. Raises NotARepository unless its marker shows ``identity``."""
    root = Path(repository.path)
    found = read_identity(repository)
    if found is None:
        raise NotARepository(path=root, repository=repository.name, problem=f"it has no marker file {MARKER}")
    if found != identity:
        raise NotARepository(
            path=root, repository=repository.name, problem=f"its marker says {found}, the catalog says {identity}"
        )
    return root


def register(repository: Repository) -> str:
    """Write the marker of a new repository, or read that of an existing one; returns its identity (a UUID).

    Raises NotARepository when the path is no existing directory: a mount point has to be there, and mounted.
    """
    root = Path(repository.path)
    if not root.is_absolute() or not root.is_dir():
        raise NotARepository(path=root, repository=repository.name, problem="it is not an existing absolute directory")
    found = read_identity(repository)
    if found is not None:
        return found
    identity = str(uuid.uuid4())
    marker = {"repository": repository.name, "uuid": identity, "registered": datetime.now(UTC).isoformat()}
    content = (json.dumps(marker, indent=2) + "\n").encode()
    with doing(repository, "registering", needs=len(content)):
        write_durably(root / MARKER, content)
    return identity


def read_identity(repository: Repository) -> str | None:
    """The UUID in the marker file; None without one. Raises NotARepository when the marker cannot be understood."""
    path = Path(repository.path) / MARKER
    try:
        return str(uuid.UUID(json.loads(path.read_text())["uuid"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise NasIo(action="Reading the marker", repository=repository.name, reason=error.strerror or error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotARepository(path=path, repository=repository.name, problem="its marker file is damaged") from error


def read_name(root: Path) -> str | None:
    """The name that the marker file gives the repository; None without a marker that can be read."""
    try:
        return str(json.loads((root / MARKER).read_text())["repository"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def free_bytes(root: Path) -> int:
    status = os.statvfs(root)
    return status.f_bavail * status.f_frsize


def _free_or_none(repository: Repository) -> int:
    """As the file system counts it; a quota may be tighter, and without a free inode no byte helps."""
    try:
        return free_bytes(Path(repository.path))
    except OSError:
        return 0


@contextlib.contextmanager
def doing(repository: Repository, action: str, *, needs: int = 1) -> Iterator[None]:
    """Translate the operating system's errors inside the block into this project's.

    ``needs``: the bytes that the block is about to write, for the operator who has to find room for them.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise RepositoryFull(repository=repository.name, needs=needs, has=_free_or_none(repository)) from error
        raise NasIo(
            action=action[:1].upper() + action[1:],
            repository=repository.name,
            reason=f"{error.strerror}: {error.filename}" if error.filename else str(error),
        ) from error
