"""Promise: a compressed layer is the same layer in fewer bytes: same disk, same digest, same chain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nasbackup.errors import ReadFailed, TargetFull
from nasbackup.handling import Compression
from nasbackup.transfer.convert import flatten
from nasbackup.transfer.copy import copy_layer
from nasbackup.transfer.extents import CLUSTER
from nasbackup.transfer.pump import LayerSummary
from nasbackup.transfer.readback import ImageInfo, check_image, image_info, read_layer
from transfer_lab import (
    KIB,
    MIB,
    ODD_SIZE,
    add_bitmap,
    assert_same_content,
    back_up,
    fill,
    guest_io,
    make_disk,
    nbd_server,
    pattern,
    present_clusters,
    run,
)

PACKED = [Compression.ZSTD, Compression.ZLIB]
SIZES = [ODD_SIZE, 33 * MIB + 40 * KIB, 33 * MIB, 512, CLUSTER + 512]


def compressed_clusters(layer: Path) -> int:
    return int(json.loads(run("qemu-img", "check", "--output=json", str(layer))).get("compressed-clusters", 0))


def compression_type(layer: Path) -> str:
    report = json.loads(run("qemu-img", "info", "--output=json", str(layer)))
    return str(report["format-specific"]["data"]["compression-type"])


def assert_good(disk: Path, layer: Path, summary: LayerSummary, *, backing: str | None = None) -> None:
    size = json.loads(run("qemu-img", "info", "--output=json", str(disk)))["virtual-size"]
    assert_same_content(disk, layer)
    check_image(layer)
    assert image_info(layer) == ImageInfo("qcow2", size, backing)
    found = read_layer(file=layer, incremental=backing is not None)
    assert (found.digest, found.pieces, found.virtual_size) == (summary.digest, summary.pieces, size)
    assert summary.bytes_written == layer.stat().st_blocks * 512


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("compression", PACKED)
def test_a_full_layer_is_the_disk_at_any_size(tmp_path: Path, compression: Compression, size: int) -> None:
    disk = make_disk(tmp_path / "vm.qcow2", size=size)
    guest_io(disk, f"write -P 5 {size - 512} 512")
    if size > MIB:
        fill(disk, 1, 3 * MIB + 5 * KIB, 200 * KIB)  # does not get smaller: stored as it is
        guest_io(disk, "write -P 7 8M 4M", "write -P 0 17M 100k", "write -z 20M 1M")
    plain = back_up(disk, tmp_path / "plain.qcow2")
    layer = tmp_path / "layer.qcow2"
    summary = back_up(disk, layer, compression=compression)
    assert summary.digest == plain.digest, "the digest is of the content, however it is stored"
    assert_good(disk, layer, summary)
    assert compressed_clusters(layer) > 0
    assert compression_type(layer) == compression.value


@pytest.mark.parametrize("compression", PACKED)
def test_what_can_be_compressed_takes_less_room_on_the_nas(tmp_path: Path, compression: Compression) -> None:
    disk = make_disk(tmp_path / "vm.qcow2", size=64 * MIB)
    for start in range(0, 32, 4):  # half of it repeats, half does not
        fill(disk, start, start * MIB, 1 * MIB)
        guest_io(disk, f"write -P {start + 1} {start + 1}M 1M")
    plain = back_up(disk, tmp_path / "plain.qcow2")
    packed = back_up(disk, tmp_path / "packed.qcow2", compression=compression)
    assert packed.bytes_read == plain.bytes_read
    assert packed.bytes_written < 0.6 * plain.bytes_written
    assert compressed_clusters(tmp_path / "plain.qcow2") == 0


def test_what_cannot_be_compressed_takes_no_more_room(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "vm.qcow2", size=16 * MIB)
    fill(disk, 1, 0, 16 * MIB)
    plain = back_up(disk, tmp_path / "plain.qcow2")
    packed = back_up(disk, tmp_path / "packed.qcow2", compression=Compression.ZSTD)
    assert packed.bytes_written <= plain.bytes_written + CLUSTER
    assert_good(disk, tmp_path / "packed.qcow2", packed)


@pytest.mark.parametrize("below", [Compression.NONE, Compression.ZSTD])
@pytest.mark.parametrize("above", [Compression.NONE, *PACKED])
@pytest.mark.parametrize("granularity", [4 * KIB, MIB])
def test_a_chain_may_change_its_compression_at_any_layer(
    tmp_path: Path, below: Compression, above: Compression, granularity: int
) -> None:
    disk = make_disk(tmp_path / "vm.qcow2")
    guest_io(disk, "write -P 3 0 6M", f"write -P 4 {ODD_SIZE - 2 * MIB} 2M")
    add_bitmap(disk, "b", granularity=granularity)
    full, layer = tmp_path / "1" / "root.qcow2", tmp_path / "2" / "root.qcow2"
    for file in (full, layer):
        file.parent.mkdir()
    assert_good(disk, full, back_up(disk, full, compression=below))
    fill(disk, 9, 1 * MIB + 3 * KIB, 5 * KIB)  # inside one cluster
    guest_io(
        disk,
        "write -P 6 20M 3M",  # where nothing was
        "write -z 2M 128k",  # zero clusters over old data
        "write -P 0 2560k 64k",  # zeroes as data over old data
        f"write -z {3 * MIB + 1536} 2k",  # zeroes inside a cluster of old data
        "discard 3584k 256k",
        f"write -P 5 {ODD_SIZE - 512} 512",  # the last, partial cluster
    )
    summary = back_up(disk, layer, dirty_bitmap="b", backing="../1/root.qcow2", compression=above)
    assert_good(disk, layer, summary, backing="../1/root.qcow2")
    assert (compressed_clusters(layer) > 0) is (above is not Compression.NONE)
    plain = tmp_path / "2" / "plain.qcow2"
    assert back_up(disk, plain, dirty_bitmap="b", backing="../1/root.qcow2").digest == summary.digest
    assert present_clusters(layer) == present_clusters(plain)
    for output_format in ("qcow2", "raw"):
        image = tmp_path / f"image.{output_format}"
        flatten(chain_top=layer, target=image, output_format=output_format)  # type: ignore[arg-type]
        assert_same_content(disk, image, right_format=output_format)


@pytest.mark.parametrize("end", ["write -z", "write -P 0"])
def test_the_last_partial_cluster_can_become_zero(tmp_path: Path, end: str) -> None:
    disk = make_disk(tmp_path / "vm.qcow2")
    guest_io(disk, f"write -P 5 {ODD_SIZE - 512} 512")
    add_bitmap(disk, "b")
    back_up(disk, tmp_path / "full.qcow2", compression=Compression.ZSTD)
    guest_io(disk, f"{end} {ODD_SIZE - 512} 512")
    layer = tmp_path / "layer.qcow2"
    summary = back_up(disk, layer, dirty_bitmap="b", backing="./full.qcow2", compression=Compression.ZSTD)
    assert_good(disk, layer, summary, backing="./full.qcow2")
    assert present_clusters(layer) == {ODD_SIZE // CLUSTER}


def test_nothing_dirty_is_a_valid_empty_layer(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "vm.qcow2")
    fill(disk, 1, 0, MIB)
    add_bitmap(disk, "b")
    back_up(disk, tmp_path / "full.qcow2")
    layer = tmp_path / "layer.qcow2"
    summary = back_up(disk, layer, dirty_bitmap="b", backing="./full.qcow2", compression=Compression.ZSTD)
    assert_good(disk, layer, summary, backing="./full.qcow2")
    assert summary.pieces == 0


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("compression", PACKED)
def test_a_flipped_bit_in_compressed_data_is_found(tmp_path: Path, compression: Compression, bit: int) -> None:
    """The data cannot be unpacked, or unpacks to something else."""
    disk = make_disk(tmp_path / "vm.qcow2", size=4 * MIB)
    (tmp_path / "block").write_bytes(pattern(1, 8 * KIB))
    guest_io(disk, f"write -s {tmp_path}/block 0 4M")  # repeats, and what it repeats fills 8 KiB of each cluster
    layer = tmp_path / "layer.qcow2"
    good = back_up(disk, layer, compression=compression)
    content = bytearray(layer.read_bytes())
    content[len(content.rstrip(b"\0")) - 5000] ^= 1 << bit
    layer.write_bytes(content)
    try:
        found = read_layer(file=layer, incremental=False).digest
    except ReadFailed:
        found = "unreadable"
    assert found != good.digest


def test_a_full_nas_is_told_with_numbers(tmp_path: Path, small_nas: Path) -> None:
    disk = make_disk(tmp_path / "vm.qcow2", size=64 * MIB)
    fill(disk, 1, 0, 64 * MIB)
    with pytest.raises(TargetFull) as caught:
        back_up(disk, small_nas / "layer.qcow2", compression=Compression.ZSTD)
    assert 40 * MIB <= caught.value.data["needs"] <= 64 * MIB
    assert caught.value.data["has"] < 2 * MIB


class LeaseGone(Exception):
    pass


def test_all_connections_share_one_limit_and_a_waiting_copy_reports_and_can_be_stopped(tmp_path: Path) -> None:
    """The first piece goes at once; at 1 KiB a second the second one's turn would come after a quarter of an hour."""
    seen: list[int] = []

    def count(progress: object) -> None:
        if progress.done:  # type: ignore[attr-defined]
            seen.append(progress.done)  # type: ignore[attr-defined]
        if len(seen) == 40:
            raise LeaseGone

    with (
        nbd_server("nbdkit", "-f", "-U", "{socket}", "pattern", str(64 * MIB)) as source,
        pytest.raises(LeaseGone),
    ):
        copy_layer(
            source_uri=source.uri,
            target=tmp_path / "layer.qcow2",
            backing=None,
            virtual_size=64 * MIB,
            dirty_bitmap=None,
            bandwidth=KIB,
            connections=4,
            on_progress=count,
            progress_every=0.05,
        )
    assert seen == sorted(seen)
    assert seen[-1] == MIB


def test_a_limit_changes_nothing_else(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "vm.qcow2")
    fill(disk, 1, 0, 4 * MIB)
    free = back_up(disk, tmp_path / "free.qcow2")
    limited = back_up(disk, tmp_path / "limited.qcow2", bandwidth=64 * MIB)
    assert (limited.digest, limited.bytes_read) == (free.digest, free.bytes_read)
    assert read_layer(file=tmp_path / "limited.qcow2", incremental=False, bandwidth=64 * MIB).digest == free.digest
    assert_same_content(disk, tmp_path / "limited.qcow2")
