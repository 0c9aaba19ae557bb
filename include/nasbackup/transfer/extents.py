"""Which pieces of a disk go into a layer: pure planning, no I/O. All offsets and lengths are bytes.

A qcow2 layer holds whole clusters, so the plan is made of whole *target* clusters: dirty ranges are rounded out
to 64 KiB. The set of clusters that exist in the finished layer is then exactly the set that was planned,
whatever the granularity of the source's bitmap, and reading the layer back finds the very same pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

CLUSTER = 64 * 1024  # of every layer that this project writes
CHUNK = 1024 * 1024  # no piece crosses a multiple of this: it bounds memory and one NBD request


@dataclass(frozen=True, slots=True)
class Extent:
    """A byte range of a disk; ``zero`` says that it is known to read as zeroes without being read."""

    offset: int
    length: int
    zero: bool = False

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Piece:
    """A maximal run of present clusters inside one chunk: the unit of copying and of the layer digest.

    ``segments`` cover the piece completely, in order, and alternate between data and zero. Only the piece at the
    end of a disk whose size is no multiple of the cluster has a length that isn't one either.
    """

    number: int
    offset: int
    length: int
    segments: tuple[Extent, ...]

    @property
    def end(self) -> int:
        return self.offset + self.length

    @property
    def data_bytes(self) -> int:
        return sum(segment.length for segment in self.segments if not segment.zero)


def plan_pieces(*, virtual_size: int, allocation: Sequence[Extent], dirty: Iterable[Extent] | None) -> Iterator[Piece]:
    """The pieces of a layer, in ascending order, numbered from 0.

    ``allocation`` and ``dirty`` are ordered and free of overlap. ``dirty`` None means a full layer: whole chunks,
    without those that hold no data. Otherwise an incremental one: exactly the clusters that ``dirty`` touches.
    What no extent of ``allocation`` covers counts as data: reading too much is slow, too little is a lost block.
    """
    covering = iter(_without_gaps(allocation, virtual_size))
    if dirty is None:
        data = (extent for extent in _without_gaps(allocation, virtual_size) if not extent.zero)
        runs = _rounded_runs(data, CHUNK, virtual_size)
    else:
        runs = _rounded_runs(dirty, CLUSTER, virtual_size)
    current = Extent(0, 0)
    for number, (offset, end) in enumerate(_split_at_chunks(runs)):
        segments: list[Extent] = []
        position = offset
        while position < end:
            while current.end <= position:
                current = next(covering)
            stop = min(end, current.end)
            append_merged(segments, Extent(position, stop - position, current.zero))
            position = stop
        yield Piece(number, offset, end - offset, tuple(segments))


def cluster_runs(piece: Piece) -> list[Extent]:
    """How to write a piece: runs of whole clusters, zero where *all* of every cluster is known to be zero.

    Writing a part of a cluster would make QEMU fill in the rest, from the parent or with zeroes; whole clusters
    leave it nothing to decide.
    """
    runs: list[Extent] = []
    for segment in piece.segments:
        start, end = segment.offset, segment.end
        if segment.zero:
            # Inwards: a cluster that is partly data is written as data. The disk's end may cut the last one short.
            start = _up(start, CLUSTER)
            end = end if end == piece.end else _down(end, CLUSTER)
        else:
            start, end = _down(start, CLUSTER), min(_up(end, CLUSTER), piece.end)
            if runs and not runs[-1].zero:
                start = max(start, runs[-1].end)  # two data segments met inside one cluster
        if start < end:
            append_merged(runs, Extent(start, end - start, segment.zero))
    return runs


def append_merged(extents: list[Extent], extent: Extent) -> None:
    """Append, or grow the last extent when the new one continues it in kind and place."""
    last = extents[-1] if extents else None
    if last and last.end == extent.offset and last.zero == extent.zero:
        extents[-1] = Extent(last.offset, last.length + extent.length, last.zero)
    else:
        extents.append(extent)


def _without_gaps(extents: Iterable[Extent], virtual_size: int) -> Iterator[Extent]:
    position = 0
    for extent in extents:
        if extent.offset > position:
            yield Extent(position, extent.offset - position)
        yield extent
        position = extent.end
    if position < virtual_size:
        yield Extent(position, virtual_size - position)


def _rounded_runs(extents: Iterable[Extent], unit: int, virtual_size: int) -> Iterator[tuple[int, int]]:
    """(offset, end) of the extents rounded outwards to ``unit``, joined where they touch, cut at the disk's end."""
    start = end = 0
    for extent in extents:
        if not extent.length:
            continue
        low, high = _down(extent.offset, unit), min(_up(extent.end, unit), virtual_size)
        if low > end:
            if start < end:
                yield start, end
            start = low
        end = max(end, high)
    if start < end:
        yield start, end


def _split_at_chunks(runs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for start, end in runs:
        position = start
        while position < end:
            stop = min(end, _down(position, CHUNK) + CHUNK)
            yield position, stop
            position = stop


def _down(value: int, unit: int) -> int:
    return value - value % unit


def _up(value: int, unit: int) -> int:
    return _down(value + unit - 1, unit)
