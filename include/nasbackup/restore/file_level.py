"""File-level restore: one path of a backup's file system, extracted into a directory."""

from __future__ import annotations

import os
import posixpath
import shutil
import tarfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nasbackup import layout
from nasbackup.errors import FileNotInBackup, FilesUnreadable, TargetExists, TargetFull
from nasbackup.restore.extract import Unpacked, unpack
from nasbackup.restore.files import require_outside_backups
from nasbackup.restore.filesystems import FileSystem, FileSystems


@dataclass(frozen=True, kw_only=True)
class Extracted:
    target: Path
    unpacked: Unpacked


def target_of(path: str, *, to: Path) -> Path:
    """Where it goes: ``to`` gets it under its own name. Raises TargetExists, ParamInvalid."""
    require_outside_backups(to)
    name = posixpath.basename(posixpath.normpath("/" + path.lstrip("/")))
    target = to / (layout.safe_component(name) if name else "root")
    if target.exists() or target.is_symlink():
        raise TargetExists(path=target)
    return target


def extract(
    files: FileSystems,
    *,
    chosen: FileSystem,
    path: str,
    to: Path,
    on_file: Callable[[Unpacked], None] = lambda _: None,
) -> Extracted:
    """A file, or a directory with all that is in it. It has its name only when it is complete.

    Raises FileNotInBackup, ParamInvalid, TargetExists, TargetFull, FilesUnreadable: then nothing is left of it.
    """
    target = target_of(path, to=to)
    entry = files.entry(path)
    if entry.kind not in ("file", "directory"):
        problem = f"it is a link to {entry.target!r}; name that" if entry.kind == "link" else "it is no file"
        raise FileNotInBackup(path=path, where=chosen.name, backup=files.backup, problem=problem)
    to.mkdir(parents=True, exist_ok=True)
    partial = to / f".partial-{os.getpid()}-{target.name}"
    _remove(partial)
    try:
        normal = posixpath.normpath("/" + path.lstrip("/"))
        if entry.kind == "file":
            done = _download(files, path=normal, to=partial)
        else:
            partial.mkdir(mode=0o700)
            done = _unpack(files, path=normal, into=partial, on_file=on_file)
        if target.exists() or target.is_symlink():
            raise TargetExists(path=target)
        partial.rename(target)
    finally:
        _remove(partial)
    return Extracted(target=target, unpacked=done)


def _download(files: FileSystems, *, path: str, to: Path) -> Unpacked:
    about = files.handle.lstatns(path)
    try:
        files.handle.download(path, str(to))
    except RuntimeError as error:
        if shutil.disk_usage(to.parent).free < about["st_size"]:
            raise TargetFull(target=to, needs=about["st_size"], has=shutil.disk_usage(to.parent).free) from error
        raise FilesUnreadable(backup=files.backup, reason=str(error).splitlines()[0]) from error
    os.utime(to, (about["st_mtime_sec"], about["st_mtime_sec"]))
    to.chmod(about["st_mode"] & 0o777)
    return Unpacked(files=1, bytes=about["st_size"])


def _unpack(files: FileSystems, *, path: str, into: Path, on_file: Callable[[Unpacked], None]) -> Unpacked:
    """libguestfs writes a tar stream into a pipe, in a thread of its own; here is its other end."""
    read_end, write_end = os.pipe()
    failed: list[Exception] = []

    def write() -> None:
        try:
            files.handle.tar_out(path, f"/dev/fd/{write_end}", numericowner=True)
        except RuntimeError as error:
            failed.append(error)
        finally:
            os.close(write_end)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with os.fdopen(read_end, "rb") as stream:
            done = unpack(stream, into=into, on_file=on_file)
            while stream.read(1 << 16):  # what pads the archive
                pass
    except tarfile.TarError as error:
        writer.join()
        reason = str(failed[0]).splitlines()[0] if failed else str(error)
        raise FilesUnreadable(backup=files.backup, reason=reason) from error
    finally:
        writer.join()
    if failed:
        raise FilesUnreadable(backup=files.backup, reason=str(failed[0]).splitlines()[0])
    return done


def _remove(partial: Path) -> None:
    """Also directories whose mode, taken from the guest, keeps their owner out; but never through a link."""
    if not partial.is_dir():
        return partial.unlink(missing_ok=True)
    partial.chmod(0o700)
    for directory, names, _ in os.walk(partial):
        for name in names:
            path = Path(directory, name)
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(partial, ignore_errors=True)
