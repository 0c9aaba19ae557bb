"""Writes that are on the disk when they return: files and the directories that name them are fsynced."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Replace ``path`` as a whole: readers see the old content or the new one, also after a power cut."""
    temporary = path.with_name(path.name + ".new")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)  # a half-written file on a full NAS takes room and helps nobody
        raise
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def make_directory(path: Path, *, root: Path) -> None:
    """Create ``path`` below the existing ``root``; each new name is fsynced in its parent."""
    missing = [path, *path.parents]
    for directory in reversed(missing[: missing.index(root)]):
        # Also when it exists: an earlier try may have been killed before its name was on the disk.
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
