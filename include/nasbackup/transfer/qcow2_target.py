"""Writing side: create the layer's file, write pieces into it through qemu-nbd, bring it to stable storage."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from nasbackup.errors import NasBackupError, TargetExists, TargetFull, ToolFailed, WriteFailed
from nasbackup.handling import Compression
from nasbackup.tools import NO_SPACE, QUOTA, node, run_tool
from nasbackup.transfer.extents import CLUSTER, Piece, cluster_runs
from nasbackup.transfer.nbd_connection import Interrupt, NbdConnection, NbdError
from nasbackup.transfer.qemu_nbd import QemuNbd

_FULL = {errno.ENOSPC, errno.EDQUOT}


def claim(path: Path) -> None:
    """Create the file, empty and readable only by its owner (it will hold a guest's data).

    Raises TargetExists if there is anything of that name, even a dangling link. QEMU's tools would overwrite it.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise TargetExists(path=path) from None
    except OSError as error:
        raise write_error(path, 0, error, needs=0) from error


def create_layer(
    *, target: Path, virtual_size: int, backing: str | None, compression: Compression = Compression.NONE
) -> None:
    """Create an empty qcow2 layer of ``virtual_size`` bytes (see ``writable_size``).

    ``backing`` is stored as it is, relative to the target's directory, so that the chain can be moved as a whole.
    Raises TargetExists, TargetFull, ToolFailed (among others: no such backing file), ValueError for a backing
    name that is not a relative path.
    """
    if backing is not None and (backing.startswith("/") or ":" in backing.partition("/")[0]):
        raise ValueError(f"not a relative path: {backing!r}")  # before a slash, QEMU reads "x:" as a protocol
    claim(target)
    # A format is always stated (-f, -F): probing would let the guest's first sector choose it.
    link = [] if backing is None else ["-b", backing, "-F", "qcow2"]
    options = f"compat=1.1,cluster_size={CLUSTER},lazy_refcounts=off"
    if compression is not Compression.NONE:
        options += f",compression_type={compression}"
    size = writable_size(virtual_size, compression=compression)
    name = str(target.absolute())  # absolute: then neither "-" nor "protocol:" can start it
    try:
        run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, *link, "--", name, str(size))
    except ToolFailed as error:
        target.unlink(missing_ok=True)  # nothing is in it yet
        raise tool_error(error, target, needs=CLUSTER) from error


def writable_size(virtual_size: int, *, compression: Compression) -> int:
    """The size that the layer has while it is written: QEMU compresses whole clusters only, also at the disk's end."""
    return virtual_size if compression is Compression.NONE else -(-virtual_size // CLUSTER) * CLUSTER


def set_size(path: Path, virtual_size: int) -> None:
    """Cut what was only there to fill the last cluster. Raises TargetFull, ToolFailed."""
    try:
        run_tool("qemu-img", "resize", "-q", "--shrink", "--", layer_node(path), str(virtual_size))
    except ToolFailed as error:
        raise tool_error(error, path, needs=0) from error


def layer_node(path: Path, *, compressed: bool = False) -> str:
    """The layer alone, without its chain: what is absent in it then neither costs a read nor fills a gap.

    Pieces consist of whole clusters, so that QEMU never needs the parent to complete one. ``compressed``: what is
    written is; reading needs no word about it.
    """
    return node(path, "qcow2", above="compress" if compressed else None, backing=None)


class Target:
    """One connection to the qemu-nbd that holds the layer open for writing."""

    def __init__(
        self,
        server: QemuNbd,
        path: Path,
        *,
        incremental: bool,
        compressed: bool,
        interrupt: Interrupt,
        remaining: Callable[[], int],
    ) -> None:
        """``remaining``: how many bytes are still to come, for the operator who has to find the space."""
        self._unit = CLUSTER if compressed else 1
        self._server = server
        self._path = path
        self._incremental = incremental
        self._remaining = remaining
        try:
            self._connection = NbdConnection(server.uri, interrupt=interrupt)
        except (NbdError, OSError) as error:
            raise self._failed(0, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.__exit__(kind, error, trace)

    def write(self, piece: Piece, content: bytes | bytearray | None) -> None:
        """Write a piece; ``content`` None: all zero. Raises TargetFull, WriteFailed.

        In an incremental layer zeroes are written as zero clusters, which hide the parent's data. In a full one
        there is nothing to hide: they stay holes.
        """
        try:
            if content is None:
                self._zero(piece.length, piece.offset)
                return
            runs = cluster_runs(piece)
            if len(runs) == 1:
                self._pwrite(content, piece.offset)
                return
            for run in runs:
                start = run.offset - piece.offset
                if run.zero:
                    self._zero(run.length, run.offset)
                else:
                    self._pwrite(content[start : start + run.length], run.offset)
        except NbdError as error:
            raise self._failed(piece.offset, error) from error

    def _pwrite(self, content: bytes | bytearray, offset: int) -> None:
        """A compressed cluster is written whole and once: the one at the disk's end is filled up."""
        missing = -len(content) % self._unit
        self._connection.handle.pwrite(content + bytes(missing) if missing else content, offset)

    def _zero(self, length: int, offset: int) -> None:
        if self._incremental:
            self._connection.handle.zero(length + -length % self._unit, offset)

    def flush(self) -> None:
        """Everything written through any connection is on stable storage when this returns."""
        try:
            self._connection.handle.flush()
        except NbdError as error:
            raise self._failed(0, error) from error

    def _failed(self, offset: int, error: Exception) -> NasBackupError:
        number = error.errnum if isinstance(error, NbdError) else getattr(error, "errno", None)
        reason = f"{error}. {self._server.stderr}".strip(". ")
        return write_error(self._path, offset, OSError(number, reason), needs=self._remaining())


def sync_file(path: Path) -> int:
    """fsync; returns the bytes that the file occupies. Raises TargetFull, WriteFailed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
            return os.fstat(descriptor).st_blocks * 512
        finally:
            os.close(descriptor)
    except OSError as error:
        raise write_error(path, 0, error, needs=0) from error


def write_error(path: Path, offset: int, error: OSError, *, needs: int) -> NasBackupError:
    """TargetFull for a lack of space or quota, else WriteFailed."""
    if error.errno in _FULL:
        return TargetFull(target=str(path), needs=needs, has=_free_bytes(path))
    return WriteFailed(target=str(path), offset=offset, reason=error.strerror or str(error))


def tool_error(error: ToolFailed, path: Path, *, needs: int) -> NasBackupError:
    """The same for a tool, which says it in words only."""
    if NO_SPACE in error.stderr or QUOTA in error.stderr:
        return TargetFull(target=str(path), needs=needs, has=_free_bytes(path))
    return error


def _free_bytes(path: Path) -> int:
    """As the file system sees it; a quota may be tighter."""
    try:
        state = os.statvfs(path if path.exists() else path.parent)
    except OSError:
        return 0
    return state.f_bavail * state.f_frsize
