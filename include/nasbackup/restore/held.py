"""A directory is one process's for a while: the kernel keeps others out, and gives it free when that process dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nasbackup.errors import NasBackupError
from nasbackup.restore.files import doing


@contextmanager
def held(directory: Path, *, busy: NasBackupError) -> Iterator[None]:
    """Nobody else has the directory for the length of the block. Raises ``busy`` when somebody has it."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise busy from None  # whoever had it has just removed it
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(descriptor), directory.stat()):
                raise BlockingIOError  # it was removed a moment ago, and is another's by now
        except (BlockingIOError, FileNotFoundError):
            raise busy from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def held_by_name(place: Path, *, busy: NasBackupError) -> Iterator[None]:
    """The same where there is no directory yet: ``place`` is one that stands for what is held, and goes with it."""
    with doing("Making", place), suppress(FileExistsError):
        place.mkdir()
    with held(place, busy=busy):
        try:
            yield
        finally:
            with suppress(OSError):  # an empty directory, which the next one takes
                place.rmdir()
