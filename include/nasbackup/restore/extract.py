"""From a tar stream, of which nothing is trusted, to a directory: nothing is ever written outside of it.

Symbolic links are made last, so that nothing is written through one; they keep what they say, wherever that leads. Hard
links only lead to what was extracted before. Device nodes, sockets and pipes are left out; set-user-ID and set-group-ID
are taken away, and the files belong to whoever extracts them: a backup's guest has no rights on this machine.
"""

from __future__ import annotations

import errno
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from nasbackup.errors import TargetFull

_MODE = 0o777  # what remains of a file's mode
_TOLD = 100
_LATEST = 1 << 33  # seconds: what every file system can hold
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(kw_only=True)
class Unpacked:
    """``skipped``: what was left out and why, as far as there is room for it; ``left_out``: how many."""

    files: int = 0
    bytes: int = 0
    left_out: int = 0
    skipped: list[str] = field(default_factory=list)

    def skip(self, name: str, why: str) -> None:
        self.left_out += 1
        if len(self.skipped) < _TOLD:
            self.skipped.append(f"{printable(name)}: {why}")


def printable(name: str) -> str:
    """A name from a guest, as it can be shown: on one line, and nothing that a terminal would obey."""
    return "".join(
        character if character.isprintable() and character != "\\" else _escaped(character) for character in name
    )


def unpack(stream: IO[bytes], *, into: Path, on_file: Callable[[Unpacked], None] = lambda _: None) -> Unpacked:
    """``into``: a new, empty directory of ours. Raises TargetFull, OSError, tarfile.TarError (the stream is broken)."""
    done = Unpacked()
    links: list[tuple[Path, str, str]] = []
    directories: list[tuple[Path, tarfile.TarInfo]] = []
    with tarfile.open(fileobj=stream, mode="r|", errors="surrogateescape", encoding="utf-8") as archive:
        for member in archive:
            # It keeps all that it has read, which is about a gigabyte per million files.
            archive.members = []  # type: ignore[attr-defined]
            parts = _parts(member.name)
            if parts is None:
                done.skip(member.name, "its name leads out of the directory")
                continue
            path = into.joinpath(*parts)
            try:
                if member.isdir():
                    path.mkdir(mode=0o700, parents=True, exist_ok=True)
                    directories.append((path, member))
                elif member.issym():
                    links.append((path, member.linkname, member.name))
                elif member.islnk():
                    _hard_link(member, path=path, into=into, done=done)
                elif member.isreg():
                    _file(archive, member, path=path, done=done)
                    on_file(done)
                else:
                    done.skip(member.name, "no file, directory or link")
            except OSError as error:
                _skip_or_raise(error, member.name, into=into, done=done)
    for path, target, name in links:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.symlink_to(target)
            done.files += 1
        except OSError as error:
            _skip_or_raise(error, name, into=into, done=done)
    for path, member in reversed(directories):  # a directory's time changes with what is put into it
        os.utime(path, _times(member), follow_symlinks=False)
        path.chmod(member.mode & _MODE)  # it was made by us: no link has taken its place
    return done


def _parts(name: str) -> list[str] | None:
    """Components of a path below the directory; None when it leads out of it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if ".." in parts or "\0" in name else parts


def _file(archive: tarfile.TarFile, member: tarfile.TarInfo, *, path: Path, done: Unpacked) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = archive.extractfile(member)
    assert content is not None, "a regular file has content"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as target:
        shutil.copyfileobj(content, target, 1 << 20)
        target.flush()
        os.fchmod(descriptor, member.mode & _MODE)
        os.utime(descriptor, _times(member))
    done.files += 1
    done.bytes += member.size


def _times(member: tarfile.TarInfo) -> tuple[int, int]:
    time = int(max(0, min(member.mtime, _LATEST)))
    return time, time


def _hard_link(member: tarfile.TarInfo, *, path: Path, into: Path, done: Unpacked) -> None:
    parts = _parts(member.linkname)
    if parts is None:
        return done.skip(member.name, "a link to what is outside of the directory")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.link(into.joinpath(*parts), path, follow_symlinks=False)
    done.files += 1


def _skip_or_raise(error: OSError, name: str, *, into: Path, done: Unpacked) -> None:
    """A name that this file system does not take costs one file; a full one costs all."""
    if error.errno in _FULL:
        raise TargetFull(target=into, needs="more", has=shutil.disk_usage(into).free) from error
    done.skip(name, error.strerror or str(error))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
