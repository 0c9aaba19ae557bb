"""Files change their names, all of them or none: the one moment of a restore in which a VM could be left half old.

Of several files, all old ones go away before the first new one comes: in between the VM cannot start, so it never runs
with a mixture. A single file is replaced in one instant. Every function may be called again after a crash.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from nasbackup import layout
from nasbackup.errors import FileTrouble, NotEnoughSpace, ParamInvalid, TargetExists, TargetFull, VmNotStopped
from nasbackup.nas.durable import sync_directory
from nasbackup.restore.plan import STAGED, PlannedFile

_QEMU_LOCKS = (100, 105)
"""First byte and number of bytes that QEMU locks in an image file it has open (block/file-posix.c): 100 + permission
and 200 + permission. Whoever has them all, no QEMU can open the file."""


@contextlib.contextmanager
def doing(action: str, path: Path) -> Iterator[None]:
    """Translate the operating system's errors inside the block."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TargetFull(target=str(path), needs="more", has=_free(path)) from error
        raise FileTrouble(action=action, path=error.filename or path, reason=error.strerror or str(error)) from error


def existing_directory(path: Path) -> Path:
    """The directory, or the nearest one above it that is there."""
    with doing("Looking for", path):
        return next(parent for parent in (path, *path.parents) if parent.is_dir())


def require_outside_backups(to: Path) -> None:
    """Raises ParamInvalid for a directory inside a backup's: it would go when the backup is deleted."""
    place = Path(os.path.realpath(to))
    for directory in (place, *place.parents):
        is_backup = layout.is_backup_directory(directory.name) or layout.is_partial(directory.name)
        if is_backup and os.path.lexists(directory.parent.parent / layout.MARKER):
            raise ParamInvalid(
                name="to",
                value=str(to),
                problem=f"it is inside the backup {directory}, and would be deleted with it: name another directory",
            )


def require_space(path: Path, *, needs: int) -> int:
    """Raises NotEnoughSpace; returns what is free for this user."""
    has = _free(path)
    if has < needs:
        raise NotEnoughSpace(path=path, has=has, needs=needs)
    return has


def require_room(wanted: Sequence[tuple[Path, int]]) -> list[tuple[Path, int, int]]:
    """Directories that get so many bytes each: per file system a directory, the sum, and what is free.

    Raises NotEnoughSpace.
    """
    sums: dict[int, tuple[Path, int]] = {}
    for directory, needs in wanted:
        place = existing_directory(directory)
        first, before = sums.get(place.stat().st_dev, (place, 0))
        sums[place.stat().st_dev] = (first, before + needs)
    return [(place, needs, require_space(place, needs=needs)) for place, needs in sums.values()]


def _free(path: Path) -> int:
    status = os.statvfs(next(parent for parent in (path, *path.parents) if parent.exists()))
    return status.f_bavail * status.f_frsize


def remove_staged(path: Path) -> None:
    """What any restore has written for this place and not given its name. By the holder of the VM's lease."""
    with doing("Removing what was staged for", path):
        if path.parent.is_dir():
            for found in path.parent.iterdir():
                if found.name.startswith(f"{path.name}{STAGED}"):
                    remove(found)


def remove(path: Path) -> None:
    """A file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def kept_from_qemu(paths: Sequence[Path], *, vm: str) -> Iterator[None]:
    """No QEMU has these images, or can open them, while the block lasts. Raises VmNotStopped.

    A VM that somebody starts in this moment does not start. The locks are the kernel's: they end with this process.
    """
    seen: set[tuple[int, int]] = set()
    with ExitStack() as stack:
        for path in paths:
            if not path.is_file():
                continue  # a directory, or moved away by an earlier try
            status = path.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue  # two names of one file: the second lock would wait for the first
            seen.add((status.st_dev, status.st_ino))
            with doing("Opening", path):
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            first, count = _QEMU_LOCKS
            lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, first, count, 0)
            try:
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    raise VmNotStopped(vm=vm, state=f"in use: a process has {path} open") from error
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):  # QEMU cannot lock there either
                    raise FileTrouble(action="Locking", path=path, reason=error.strerror) from error
        yield


def take_places(files: Sequence[PlannedFile]) -> None:
    """Old files get the names under which they are kept, staged ones their places. Raises FileTrouble, TargetExists."""
    if len(files) == 1 and _replace_at_once(files[0]):
        return
    for file in files:
        path, staged = Path(file.path), Path(file.staged)
        with doing("Putting aside", path):
            if not staged.exists() or not os.path.lexists(path):
                continue
            if file.old is None or os.path.lexists(file.old):
                raise TargetExists(path=file.old or path)
            path.rename(file.old)
    for file in reversed(files):  # volumes come first in the list, so the last thing to come is one without which
        staged = Path(file.staged)  # the VM does not start
        with doing("Putting in place", staged):
            if staged.exists():
                staged.rename(file.path)
    _sync(files)


def have_places(files: Sequence[PlannedFile]) -> bool:
    """Whether ``take_places`` got to its end: from then on the VM may have been started, and nothing is taken back."""
    return all(os.path.lexists(file.path) and not os.path.lexists(file.staged) for file in files)


def give_back_places(files: Sequence[PlannedFile]) -> None:
    """Undo ``take_places``, wherever it got to: the old files have their places again, what was restored is staged."""
    for file in files:
        with doing("Taking away", Path(file.path)):
            if not os.path.lexists(file.staged) and (file.old is None or os.path.lexists(file.old)):
                Path(file.path).rename(file.staged)
    for file in reversed(files):
        path, old = Path(file.path), Path(file.old or "")
        with doing("Bringing back", old):
            if file.old is None or not os.path.lexists(old):
                continue
            if not os.path.lexists(path):
                old.rename(path)
            elif path.samefile(old):  # it was about to be replaced at once
                old.unlink()
            else:
                raise TargetExists(path=path)
    _sync(files)


def _replace_at_once(file: PlannedFile) -> bool:
    """False where that cannot be done: a directory, or a file system without hard links."""
    path, staged = Path(file.path), Path(file.staged)
    if file.old is None or staged.is_dir():
        return False
    with doing("Replacing", path):
        if not staged.exists():
            return True  # an earlier try did it
        try:
            os.link(path, file.old)
        except FileExistsError:
            if not path.samefile(file.old):
                raise TargetExists(path=file.old) from None
        except OSError:
            return False
        staged.replace(path)
    _sync([file])
    return True


def take_new_place(file: PlannedFile) -> None:
    """Never over anything: what appeared there meanwhile is somebody's. Raises TargetExists."""
    path, staged = Path(file.path), Path(file.staged)
    with doing("Putting in place", staged):
        if not os.path.lexists(staged):
            return  # an earlier try did it
        if staged.is_dir():
            if os.path.lexists(path):
                raise TargetExists(path=path)
            staged.rename(path)
        else:
            try:
                os.link(staged, path)
            except FileExistsError:
                if not path.samefile(staged):
                    raise TargetExists(path=path) from None
            except OSError:  # a file system without hard links
                if os.path.lexists(path):
                    raise TargetExists(path=path) from None
                staged.rename(path)
            with suppress(FileNotFoundError):
                staged.unlink()
    _sync([file])


def leave_new_place(file: PlannedFile) -> None:
    """Undo ``take_new_place``, wherever it got to. What has the place and is not ours stays."""
    path, staged = Path(file.path), Path(file.staged)
    with doing("Taking away", path):
        if not os.path.lexists(staged):
            path.rename(staged)
        elif path.exists() and path.samefile(staged):
            path.unlink()
    _sync([file])


def _sync(files: Sequence[PlannedFile]) -> None:
    for directory in sorted({Path(file.path).parent for file in files}):
        with doing("Writing", directory):
            sync_directory(directory)
