"""Promise: a layer holds exactly the clusters that changed, and every byte of them is accounted for."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from nasbackup.transfer.extents import CHUNK, CLUSTER, Extent, Piece, cluster_runs, plan_pieces

SECTOR = 512
KIB = 1024
MIB = 1024 * KIB


def plan(size: int, allocation: list[Extent], dirty: list[Extent] | None) -> list[Piece]:
    return list(plan_pieces(virtual_size=size, allocation=allocation, dirty=dirty))


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, list[Extent], list[Extent]]:
    """(size, allocation, dirty), sector-aligned, up to 4 MiB, both lists ordered and with gaps."""
    sectors = draw(st.integers(1, 4 * MIB // SECTOR))

    def extents() -> list[Extent]:
        cuts = sorted(draw(st.sets(st.integers(0, sectors), max_size=12)))
        pairs = pairwise(cuts)
        kinds = draw(st.lists(st.sampled_from(["data", "zero", "gap"]), min_size=len(cuts), max_size=len(cuts)))
        return [
            Extent(low * SECTOR, (high - low) * SECTOR, zero=kind == "zero")
            for (low, high), kind in zip(pairs, kinds, strict=False)
            if kind != "gap"
        ]

    return sectors * SECTOR, extents(), [Extent(e.offset, e.length) for e in extents()]


def clusters(extents: list[Extent]) -> set[int]:
    return {index for e in extents for index in range(e.offset // CLUSTER, -(-e.end // CLUSTER))}


def zero_sectors(extents: list[Extent]) -> set[int]:
    return {sector for e in extents if e.zero for sector in range(e.offset // SECTOR, e.end // SECTOR)}


def check_shape(size: int, pieces: list[Piece]) -> None:
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    previous = 0
    for piece in pieces:
        assert previous <= piece.offset < piece.end <= size
        assert piece.offset % CLUSTER == 0
        assert piece.end % CLUSTER == 0 or piece.end == size
        assert piece.offset // CHUNK == (piece.end - 1) // CHUNK
        assert piece.offset > previous or piece.offset % CHUNK == 0, "two pieces that should be one"
        previous = piece.end
        position = piece.offset
        for segment in piece.segments:
            assert segment.offset == position
            assert segment.length > 0
            position = segment.end
        assert position == piece.end


@given(disks())
def test_incremental_pieces_are_exactly_the_rounded_dirty_clusters(
    disk: tuple[int, list[Extent], list[Extent]],
) -> None:
    size, allocation, dirty = disk
    pieces = plan(size, allocation, dirty)
    check_shape(size, pieces)
    assert clusters([Extent(p.offset, p.length) for p in pieces]) == clusters(dirty)


@given(disks())
def test_full_pieces_are_whole_chunks_and_miss_no_data(disk: tuple[int, list[Extent], list[Extent]]) -> None:
    size, allocation, _ = disk
    pieces = plan(size, allocation, None)
    check_shape(size, pieces)
    known_zero = zero_sectors(allocation)
    with_data = {sector * SECTOR // CHUNK for sector in range(size // SECTOR) if sector not in known_zero}
    assert {piece.offset // CHUNK for piece in pieces} == with_data
    assert all(piece.offset % CHUNK == 0 and piece.end == min(size, piece.offset + CHUNK) for piece in pieces)


@given(disks())
def test_zero_segments_are_the_known_zeroes_and_nothing_else(
    disk: tuple[int, list[Extent], list[Extent]],
) -> None:
    size, allocation, dirty = disk
    known_zero = zero_sectors(allocation)
    for piece in plan(size, allocation, dirty):
        inside = set(range(piece.offset // SECTOR, piece.end // SECTOR))
        assert zero_sectors(list(piece.segments)) == known_zero & inside


@given(disks())
def test_writing_covers_the_piece_in_whole_clusters_and_zeroes_no_data(
    disk: tuple[int, list[Extent], list[Extent]],
) -> None:
    size, allocation, dirty = disk
    known_zero = zero_sectors(allocation)
    for piece in plan(size, allocation, dirty):
        runs = cluster_runs(piece)
        assert runs[0].offset == piece.offset
        assert runs[-1].end == piece.end
        for left, right in pairwise(runs):
            assert left.end == right.offset
            assert left.zero != right.zero
            assert right.offset % CLUSTER == 0
        assert zero_sectors(runs) <= known_zero
        for index in clusters([Extent(run.offset, run.length) for run in runs if not run.zero]):
            start, end = index * CLUSTER // SECTOR, min((index + 1) * CLUSTER, size) // SECTOR
            assert not set(range(start, end)) <= known_zero, "a cluster of known zeroes was planned as data"


def test_a_small_dirty_range_becomes_its_cluster() -> None:
    (piece,) = plan(MIB, [Extent(0, MIB)], [Extent(70 * KIB, 512)])
    assert (piece.offset, piece.length) == (64 * KIB, 64 * KIB)


def test_dirty_neighbours_join_but_never_across_a_chunk() -> None:
    dirty = [Extent(MIB - 64 * KIB, 32 * KIB), Extent(MIB - 16 * KIB, 80 * KIB), Extent(MIB + 64 * KIB, 4 * KIB)]
    pieces = plan(4 * MIB, [], dirty)
    assert [(p.offset, p.length) for p in pieces] == [(MIB - 64 * KIB, 64 * KIB), (MIB, 128 * KIB)]


def test_the_last_cluster_ends_with_the_disk() -> None:
    size = MIB + 512
    (piece,) = plan(size, [Extent(0, size, zero=True)], [Extent(MIB, 512)])
    assert (piece.offset, piece.length) == (MIB, 512)
    assert cluster_runs(piece) == [Extent(MIB, 512, zero=True)]


def test_nothing_dirty_means_no_pieces() -> None:
    assert plan(4 * MIB, [Extent(0, 4 * MIB)], []) == []


def test_a_full_of_holes_has_no_pieces() -> None:
    assert plan(4 * MIB, [Extent(0, 4 * MIB, zero=True)], None) == []


def test_what_the_source_says_nothing_about_counts_as_data() -> None:
    assert [p.segments for p in plan(MIB, [], None)] == [(Extent(0, MIB),)]
