"""What a backup will need, from what earlier ones needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nasbackup.estimate import (
    CLUSTER,
    FIXED,
    MIB,
    SCRATCH_AT_LEAST,
    LayerSize,
    is_enough,
    layer_bytes,
    nas_bytes,
    scratch_bytes,
    with_metadata,
)
from nasbackup.model import BackupType, VolumePlan, VolumeReason

GIB = 1 << 30


def plan(kind: BackupType, *, source: str = "/images/a.qcow2", virtual_size: int = 100 * GIB) -> VolumePlan:
    return VolumePlan(
        name="a",
        source=source,
        target="vda",
        format="qcow2",
        file="root.a.qcow2",
        virtual_size=virtual_size,
        type=kind,
        reason=VolumeReason.FULL_BACKUP if kind is BackupType.FULL else VolumeReason.INCREMENTAL,
        backing=None if kind is BackupType.FULL else "../before/root.a.qcow2",
    )


FULL, INCREMENTAL = plan(BackupType.FULL), plan(BackupType.INCREMENTAL)


def full(written: int) -> LayerSize:
    return LayerSize(type=BackupType.FULL, bytes_read=written, bytes_written=written)


def increment(written: int) -> LayerSize:
    return LayerSize(type=BackupType.INCREMENTAL, bytes_read=written, bytes_written=written)


def test_a_first_full_needs_what_is_allocated_and_its_metadata() -> None:
    assert layer_bytes(FULL, allocated=20 * GIB, layers=[]) == with_metadata(20 * GIB)


def test_metadata_is_little_but_never_nothing() -> None:
    assert with_metadata(0) == FIXED
    assert with_metadata(1) > CLUSTER + FIXED
    assert 0 < with_metadata(GIB) - GIB - FIXED < GIB // 1000


def test_an_image_larger_than_its_disk_needs_no_more_than_the_disk() -> None:
    """Internal snapshots are in the image and not in the backup."""
    assert layer_bytes(FULL, allocated=300 * GIB, layers=[]) == with_metadata(100 * GIB)


def test_a_full_of_a_preallocated_image_needs_what_its_chain_holds() -> None:
    """Else a NAS with room for ten such backups would refuse every one of them."""
    layers = [increment(2 * GIB), increment(1 * GIB), full(10 * GIB), increment(50 * GIB), full(90 * GIB)]
    assert layer_bytes(FULL, allocated=100 * GIB, layers=layers) == with_metadata(
        (2 + 1 + 10) * GIB + 75 * GIB  # the chain, and the next increment: the largest of three, with its margin
    )


def test_a_full_never_needs_more_than_is_allocated() -> None:
    assert layer_bytes(FULL, allocated=5 * GIB, layers=[increment(9 * GIB), full(9 * GIB)]) == with_metadata(5 * GIB)


def test_an_incremental_needs_the_largest_of_the_last_three_and_a_margin() -> None:
    layers = [increment(1 * GIB), increment(4 * GIB), full(20 * GIB), increment(2 * GIB), increment(50 * GIB)]
    assert layer_bytes(INCREMENTAL, allocated=20 * GIB, layers=layers) == with_metadata(6 * GIB)


def test_a_first_incremental_is_guessed() -> None:
    assert layer_bytes(INCREMENTAL, allocated=20 * GIB, layers=[full(20 * GIB)]) == with_metadata(2 * GIB)


def test_an_incremental_never_needs_more_than_the_disk() -> None:
    assert layer_bytes(INCREMENTAL, allocated=0, layers=[increment(99 * GIB)]) == with_metadata(100 * GIB)


def test_volumes_add_up_and_are_known_by_their_source() -> None:
    a, b = plan(BackupType.FULL, source="/a"), plan(BackupType.INCREMENTAL, source="/b")
    history = {"/b": [increment(GIB)], "/a-that-was-detached": [increment(9 * GIB)]}
    assert nas_bytes([a, b], allocated={"/a": 3 * GIB, "/b": 9 * GIB}, history=history) == (
        with_metadata(3 * GIB) + with_metadata(GIB * 3 // 2)
    )


def test_a_volume_of_unknown_allocation_is_taken_as_full() -> None:
    assert nas_bytes([FULL], allocated={}, history={}) == with_metadata(100 * GIB)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([], 2 * GIB),
        ([increment(MIB)], SCRATCH_AT_LEAST),
        ([increment(10 * GIB), full(20 * GIB)], 15 * GIB),
        ([increment(90 * GIB)], 100 * GIB),
    ],
)
def test_scratch_is_what_may_change_but_some_at_least_and_no_more_than_the_disk(
    layers: list[LayerSize], expected: int
) -> None:
    for what in (FULL, INCREMENTAL):
        assert scratch_bytes([what], allocated={what.source: 20 * GIB}, history={what.source: layers}) == expected


def test_scratch_of_a_small_disk_is_no_larger_than_the_disk() -> None:
    small = plan(BackupType.FULL, virtual_size=9 * MIB)
    assert scratch_bytes([small, small], allocated={}, history={}) == 18 * MIB


LAYERS = st.lists(st.builds(lambda make, size: make(size * MIB), st.sampled_from([full, increment]), st.integers(0, 9)))


@given(what=st.sampled_from([FULL, INCREMENTAL]), layers=LAYERS)
def test_once_it_is_enough_older_layers_change_nothing(what: VolumePlan, layers: list[LayerSize]) -> None:
    read = next((n for n in range(len(layers)) if is_enough(what, layers=layers[:n])), len(layers))
    for estimate in (nas_bytes, scratch_bytes):
        of_some, of_all = (
            estimate([what], allocated={what.source: 7 * MIB}, history={what.source: known})
            for known in (layers[:read], layers)
        )
        assert of_some == of_all


def test_what_is_enough_depends_on_what_is_planned() -> None:
    increments = [increment(MIB)] * 3
    assert is_enough(INCREMENTAL, layers=increments)
    assert not is_enough(INCREMENTAL, layers=[full(MIB), *increments[:2]])
    assert not is_enough(FULL, layers=increments), "the chain may go on"
    assert is_enough(FULL, layers=[*increments, full(MIB)])
