"""The file systems in a backup, read by libguestfs: the kernel that mounts them runs in a small VM of its own.

A hostile file system meets that kernel and never this machine's; journals are replayed into an overlay that is thrown
away. libguestfs reads what Linux reads (ext4, xfs, btrfs, NTFS, LVM), wherever it lies on the disks.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import shutil
import stat
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

from nasbackup.errors import FileNotInBackup, FilesUnreadable, NoFileSystem, ToolFailed, ToolMissing
from nasbackup.model import BackupVolume
from nasbackup.restore.image import Located, choose
from nasbackup.restore.serve import chain_tops
from nasbackup.transfer.qemu_nbd import private_directory
from nasbackup.transfer.serve import Server

_NO_FILES = ("swap", "unknown", "", "crypto_LUKS", "LVM2_member", "linux_raid_member")
_DEVICE = re.compile(r"/dev/sd([a-z])(\d*)")
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}


@dataclass(frozen=True, kw_only=True)
class FileSystem:
    """``name``: as the operator names it: ``<volume>``, ``<volume>:<partition>``, or a logical volume's device."""

    name: str
    device: str
    type: str
    volume: str | None
    partition: int | None

    @property
    def has_files(self) -> bool:
        return self.type not in _NO_FILES


@dataclass(frozen=True, kw_only=True)
class Entry:
    """``name`` may hold bytes that are no UTF-8 (surrogates), line breaks and worse: show it ``printable``."""

    name: str
    kind: str
    mode: int = 0
    size: int = 0
    uid: int = 0
    gid: int = 0
    modified: datetime | None = None
    target: str | None = None


class FileSystems:
    """Those of one backup, while the block of ``opened`` lasts."""

    def __init__(self, located: Located, *, volumes: Sequence[BackupVolume], handle: Any) -> None:
        self.backup = located.backup.external_id
        self.handle = handle
        self._volumes = volumes
        self._mounted: FileSystem | None = None
        self._found: list[FileSystem] | None = None

    def all(self) -> list[FileSystem]:
        """Looked for once: without hardware virtualisation that takes a while."""
        if self._found is None:
            with self._doing():
                found = self.handle.list_filesystems()
            self._found = [self._file_system(device, kind) for device, kind in sorted(found.items())]
        return self._found

    def choose(self, *, volume: str | None = None, partition: int | None = None, name: str | None = None) -> FileSystem:
        """The only one that has files and is meant. Raises NoFileSystem, with what there is."""
        if volume is not None and partition is not None and (exact := self._exact(volume, partition)) is not None:
            return exact
        known = self.all()
        meant = [
            one
            for one in known
            if one.has_files
            and volume in (None, one.volume)
            and partition in (None, one.partition)
            and name in (None, one.name)
        ]
        if len(meant) != 1:
            problem = "no such file system that can be read" if not meant else "more than one file system that is meant"
            shown = ", ".join(f"{one.name} ({one.type})" for one in known) or "none"
            raise NoFileSystem(backup=self.backup, problem=problem, known=shown)
        return meant[0]

    def mount(self, chosen: FileSystem) -> None:
        """Read-only, in place of the one before."""
        with self._doing():
            self.handle.umount_all()
            self.handle.mount_ro(chosen.device, "/")
        self._mounted = chosen

    def entry(self, path: str) -> Entry:
        """What is at the path; a symbolic link is not followed. Raises FileNotInBackup."""
        path = self._normal(path)
        with self._at(path):
            found = self.handle.lstatns(path)
            target = self.handle.readlink(path) if stat.S_ISLNK(found["st_mode"]) else None
        return _entry(posixpath.basename(path) or "/", found, target=target)

    def list(self, path: str) -> list[Entry]:
        """What is in the directory, by name; of anything else, the thing itself. Raises FileNotInBackup."""
        path = self._normal(path)
        itself = self.entry(path)
        if itself.kind != "directory":
            return [itself]
        directory = private_directory()
        try:
            listing = directory / "names"
            with self._at(path):
                self.handle.ls0(path, str(listing))
                names = listing.read_bytes().decode("utf-8", errors="surrogateescape").split("\0")[:-1]
                plain = [name for name in names if _is_utf8(name)]
                found = dict(zip(plain, self.handle.lstatnslist(path, plain) if plain else [], strict=True))
                links = [name for name, about in found.items() if stat.S_ISLNK(about["st_mode"])]
                targets = dict(zip(links, self.handle.readlinklist(path, links) if links else [], strict=True))
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        return [
            # libguestfs cannot be asked about a name that is no UTF-8: it is shown, and extracted with its directory.
            _entry(name, found[name], target=targets.get(name)) if name in found else Entry(name=name, kind="other")
            for name in sorted(names)
        ]

    def read(self, path: str, *, largest: int) -> bytes:
        """The content of a file that is not larger than that. Raises FileNotInBackup."""
        path, entry = self._normal(path), self.entry(path)
        if entry.kind != "file" or entry.size > largest:
            self._refuse(path, "it is no file, or larger than it should be")
        with self._at(path):
            return bytes(self.handle.read_file(path))

    def sha256(self, path: str) -> str:
        """Computed where the file system is mounted. Raises FileNotInBackup."""
        path = self._normal(path)
        with self._at(path):
            return str(self.handle.checksum("sha256", path))

    def _exact(self, volume: str, partition: int) -> FileSystem | None:
        """Named to the last digit, so nothing has to be looked for; None when it is none with files."""
        number = next((number for number, known in enumerate(self._volumes) if known.name == volume), None)
        if number is None or number >= len(string.ascii_lowercase):
            return None
        device = f"/dev/sd{string.ascii_lowercase[number]}{partition}"
        try:
            found = self._file_system(device, self.handle.vfs_type(device))
        except RuntimeError:
            return None  # there is no such partition
        return found if found.has_files else None

    def _file_system(self, device: str, kind: str) -> FileSystem:
        matched = _DEVICE.fullmatch(device)
        if matched is None:
            return FileSystem(name=device, device=device, type=kind, volume=None, partition=None)
        volume = self._volumes[ord(matched[1]) - ord("a")].name
        partition = int(matched[2]) if matched[2] else None
        name = volume if partition is None else f"{volume}:{partition}"
        return FileSystem(name=name, device=device, type=kind, volume=volume, partition=partition)

    def _normal(self, path: str) -> str:
        if not _is_utf8(path) or "\0" in path:
            self._refuse(repr(path), "it has bytes that are no UTF-8; name its directory instead")
        return posixpath.normpath("/" + path.lstrip("/"))

    @contextmanager
    def _at(self, path: str) -> Iterator[None]:
        assert self._mounted is not None, "mount comes first"
        try:
            yield
        except RuntimeError as error:
            self._refuse(path, _reason(error))
        except UnicodeDecodeError:
            self._refuse(path, "a link in it is no UTF-8")

    def _refuse(self, path: str, problem: str) -> NoReturn:
        where = self._mounted.name if self._mounted is not None else "the file system"
        raise FileNotInBackup(path=path, where=where, backup=self.backup, problem=problem)

    @contextmanager
    def _doing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise FilesUnreadable(backup=self.backup, reason=_reason(error)) from error


@contextmanager
def opened(located: Located, *, volumes: Sequence[str] = ()) -> Iterator[FileSystems]:
    """Start the small VM with these volumes (none: all, which logical volumes across disks need).

    Raises ToolMissing, UnknownVolume, BackupNotRestorable, FilesUnreadable.
    """
    try:
        import guestfs
    except ImportError as error:
        raise ToolMissing(
            what="Reading files", tool="libguestfs", install="install the package python3-guestfs"
        ) from error
    chosen = choose(located.backup, volumes=volumes)
    tops = chain_tops(located, volumes=chosen)
    directory = private_directory()
    handle = guestfs.GuestFS(python_return_dict=True, close_on_exit=False)
    try:
        with Server({f"volume{number}": top for number, top in enumerate(tops.values())}) as server:
            handle.set_tmpdir(str(directory))
            handle.set_backend("direct")
            for export in server.exports:
                handle.add_drive_opts(
                    export.name, readonly=True, format="raw", protocol="nbd", server=[f"unix:{server.socket}"]
                )
            handle.launch()
            yield FileSystems(located, volumes=chosen, handle=handle)
    except (RuntimeError, ToolFailed) as error:
        raise FilesUnreadable(backup=located.backup.external_id, reason=_reason(error)) from error
    finally:
        with contextlib.suppress(RuntimeError):
            handle.close()
        shutil.rmtree(directory, ignore_errors=True)


def _entry(name: str, found: Any, *, target: str | None) -> Entry:
    return Entry(
        name=name,
        kind=_KINDS.get(stat.S_IFMT(found["st_mode"]), "other"),
        mode=stat.S_IMODE(found["st_mode"]),
        size=found["st_size"],
        uid=found["st_uid"],
        gid=found["st_gid"],
        modified=datetime.fromtimestamp(max(0, min(found["st_mtime_sec"], 253402300799)), UTC),
        target=target,
    )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _reason(error: Exception) -> str:
    """The first line: libguestfs goes on with how to debug it."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
