"""Reading side: the export of a volume, be it libvirt's backup job, a stopped VM's disk or a layer on the NAS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nasbackup.errors import ReadFailed
from nasbackup.transfer.extents import Extent, Piece, append_merged
from nasbackup.transfer.nbd_connection import Interrupt, NbdConnection, NbdError

BASE_ALLOCATION = "base:allocation"
ALLOCATION_DEPTH = "qemu:allocation-depth"

# One block-status request. QEMU answers it in one go, on the loop that also serves the guest: keep it short.
_STATUS_BYTES = 1 << 30
# One read. With 1 MiB, the QEMU that serves it (the guest's own, mostly) maps a fresh buffer for every request and
# spends twice the CPU time on the same bytes.
_READ_BYTES = 512 * 1024
_STATE_ZERO = 2  # of base:allocation
_DIRTY = 1  # of qemu:dirty-bitmap
_THIS_LAYER = 1  # of qemu:allocation-depth: 0 absent, 1 this file, 2 and more its backing files


@dataclass(frozen=True)
class Export:
    """What to read: the URI, the name for people (in errors), and which blocks are part of the layer.

    ``present_context`` None: all of the disk (full). ``qemu:dirty-bitmap:<name>``: the dirty blocks.
    ``qemu:allocation-depth``: the blocks that the exported file itself holds.
    """

    uri: str
    name: str
    present_context: str | None


@dataclass(frozen=True)
class Survey:
    """The export's extents: ``allocation`` (with gaps where nothing is dirty) and ``dirty`` (None: full)."""

    allocation: list[Extent]
    dirty: list[Extent] | None


class Source:
    """One connection to an export. Every failure is a ReadFailed that names offset (bytes) and reason."""

    def __init__(self, export: Export, *, interrupt: Interrupt) -> None:
        self.export = export
        contexts = [BASE_ALLOCATION, *([export.present_context] if export.present_context else [])]
        try:
            self.connection = NbdConnection(export.uri, interrupt=interrupt, contexts=contexts)
        except (NbdError, OSError) as error:
            raise self._failed(0, error) from error

    @property
    def allows_more_connections(self) -> bool:
        """Whether the server promises that several connections see the same disk (and has room for them)."""
        return bool(self.connection.handle.can_multi_conn())

    def survey(self, *, virtual_size: int) -> Survey:
        """Ask for the extents of the whole disk.

        Raises ReadFailed also when the disk has another size, or when the server doesn't grant the context that
        tells what belongs to the layer: a full copy in its place would be a surprise of hours and terabytes.
        """
        size = int(self.connection.handle.get_size())
        if size != virtual_size:
            raise self._failed(0, f"the disk has {size} bytes, {virtual_size} were expected")
        present = self.export.present_context
        if present and not self.connection.handle.can_meta_context(present):
            raise self._failed(0, f"the server offers no {present!r}: what changed is not known")
        if not present and not self.connection.handle.can_meta_context(BASE_ALLOCATION):
            return Survey([], None)  # a server that knows no holes: all of it is data
        allocation: list[Extent] = []
        dirty: list[Extent] = []
        position = 0
        while position < virtual_size:
            position = self._survey_window(position, min(_STATUS_BYTES, virtual_size - position), allocation, dirty)
        return Survey(allocation, dirty if present else None)

    def _survey_window(self, start: int, length: int, allocation: list[Extent], dirty: list[Extent]) -> int:
        """Add the extents from ``start`` on to both lists; returns where the next window starts."""
        answers: dict[str, list[int]] = {}

        def received(context: str, _offset: int, entries: list[int], _error: object) -> int:
            answers[context] = entries
            return 0

        try:
            self.connection.handle.block_status(length, start, received)
        except NbdError as error:
            raise self._failed(start, error) from error
        # A server may answer for less than was asked, and for each context as far as it likes.
        covered = min([length, *(sum(entries[0::2]) for entries in answers.values())])
        if not covered:
            raise self._failed(start, "the server answers block status for no bytes at all")
        present = self.export.present_context
        if present:
            if present not in answers:
                raise self._failed(start, f"the server no longer answers for {present!r}")
            count = len(dirty)
            is_present = _in_this_layer if present == ALLOCATION_DEPTH else _is_dirty
            for extent in _extents(start, covered, answers[present], is_present):
                if extent.zero:  # here: the flag says "present"
                    append_merged(dirty, Extent(extent.offset, extent.length))
            if count == len(dirty) and (not dirty or dirty[-1].end <= start):
                return start + covered  # nothing dirty here: its allocation interests nobody
        for extent in _extents(start, covered, answers.get(BASE_ALLOCATION, [length, 0]), _is_zero):
            append_merged(allocation, extent)
        return start + covered

    def read(self, piece: Piece) -> bytes | bytearray | None:
        """The content of a piece, or None if all of it is known to be zero (and was not read)."""
        if all(segment.zero for segment in piece.segments):
            return None
        parts: list[bytes | bytearray] = []
        for segment in piece.segments:
            if segment.zero:
                parts.append(bytes(segment.length))
                continue
            for offset in range(segment.offset, segment.end, _READ_BYTES):
                parts.append(self._pread(offset, min(_READ_BYTES, segment.end - offset)))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _pread(self, offset: int, length: int) -> bytearray:
        try:
            content: bytearray = self.connection.handle.pread(length, offset)
        except NbdError as error:
            raise self._failed(offset, error) from error
        return content

    def _failed(self, offset: int, reason: object) -> ReadFailed:
        return ReadFailed(source=self.export.name, offset=offset, reason=str(reason))


def _extents(start: int, covered: int, entries: list[int], flag: Callable[[int], bool]) -> list[Extent]:
    """libnbd's flat list of length, state, length, state… as extents, cut to ``covered`` bytes."""
    extents: list[Extent] = []
    position, end = start, start + covered
    for length, state in zip(entries[0::2], entries[1::2], strict=True):
        stop = min(position + length, end)
        if position < stop:
            append_merged(extents, Extent(position, stop - position, flag(state)))
        position = stop
    return extents


def _is_zero(state: int) -> bool:
    return bool(state & _STATE_ZERO)  # not "hole": a hole alone doesn't promise what it reads as


def _is_dirty(state: int) -> bool:
    return bool(state & _DIRTY)


def _in_this_layer(state: int) -> bool:
    return state == _THIS_LAYER
