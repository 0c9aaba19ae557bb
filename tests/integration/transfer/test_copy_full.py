"""Promise: a full layer is the disk, byte by byte, and its digest can be had again from the NAS."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from nasbackup.errors import ReadFailed, TargetExists, ToolFailed
from nasbackup.transfer.copy import copy_layer
from nasbackup.transfer.pump import Progress
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
    served,
)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Sparse, of odd size, with data in the last sector."""
    disk = make_disk(tmp_path / "vm.qcow2")
    fill(disk, 1, 0, 300 * KIB)
    fill(disk, 2, 5 * MIB + 4 * KIB, 12 * KIB)
    fill(disk, 3, 31 * MIB - 512, 2 * MIB + 1024)
    guest_io(disk, f"write -z {8 * MIB} 2M", f"write -P 0 {12 * MIB} 1M")
    return disk


def test_the_layer_is_the_disk(disk: Path, tmp_path: Path) -> None:
    layer = tmp_path / "layer.qcow2"
    summary = back_up(disk, layer)
    assert_same_content(disk, layer)
    check_image(layer)
    assert image_info(layer) == ImageInfo(format="qcow2", virtual_size=ODD_SIZE, backing=None)
    assert summary.virtual_size == ODD_SIZE
    assert summary.bytes_written == layer.stat().st_blocks * 512 < 5 * MIB, "holes and zeroes were written"
    assert summary.pieces == 6  # the chunks at 0, 5, 30, 31, 32 and 33 MiB; those at 8 and 12 MiB are all zero
    assert layer.stat().st_mode & 0o777 == 0o600


def test_reading_back_finds_the_same(disk: Path, tmp_path: Path) -> None:
    layer = tmp_path / "layer.qcow2"
    copied = back_up(disk, layer)
    found = read_layer(file=layer, incremental=False)
    assert found.digest == copied.digest
    assert (found.pieces, found.virtual_size, found.bytes_written) == (
        copied.pieces,
        copied.virtual_size,
        copied.bytes_written,
    )


@pytest.mark.parametrize("connections", [1, 2, 8])
def test_parallelism_does_not_show(disk: Path, tmp_path: Path, connections: int) -> None:
    one, many = tmp_path / "one.qcow2", tmp_path / "many.qcow2"
    assert back_up(disk, one).digest == back_up(disk, many, connections=connections).digest
    assert_same_content(one, many)


def test_holes_and_stored_zeroes_have_one_digest(tmp_path: Path) -> None:
    digests = set()
    for index, zeroes in enumerate(["read 0 512", "write -z 3M 2M", "write -P 0 3M 2M", "write -P 0 17M 100k"]):
        disk = make_disk(tmp_path / f"{index}.qcow2")
        guest_io(disk, zeroes, "write -P 7 1M 1M")
        layer = tmp_path / f"layer{index}.qcow2"
        digests.add(back_up(disk, layer).digest)
        digests.add(read_layer(file=layer, incremental=False).digest)
    assert len(digests) == 1


def test_an_empty_disk_is_a_valid_layer(tmp_path: Path) -> None:
    layer = tmp_path / "layer.qcow2"
    summary = back_up(make_disk(tmp_path / "vm.qcow2"), layer)
    assert (summary.pieces, summary.bytes_read) == (0, 0)
    assert read_layer(file=layer, incremental=False).digest == summary.digest
    check_image(layer)


def test_block_status_in_small_portions_is_put_together(tmp_path: Path) -> None:
    unreadable_zeroes = ["get_size=echo 8M", "pread=exit 1", "extents=echo $4 1M hole,zero"]
    with nbd_server("nbdkit", "-f", "-U", "{socket}", "eval", *unreadable_zeroes) as source:
        summary = copy_layer(
            source_uri=source.uri,
            target=tmp_path / "layer.qcow2",
            backing=None,
            virtual_size=8 * MIB,
            dirty_bitmap=None,
        )
    assert summary.bytes_read == 0


def test_a_server_that_knows_no_holes_is_read_completely(tmp_path: Path) -> None:
    layer = tmp_path / "layer.qcow2"
    with nbd_server("nbdkit", "-f", "--no-sr", "-U", "{socket}", "pattern", "8M") as source:
        summary = copy_layer(source_uri=source.uri, target=layer, backing=None, virtual_size=8 * MIB, dirty_bitmap=None)
    assert summary.bytes_read == 8 * MIB
    assert summary.digest == read_layer(file=layer, incremental=False).digest


def test_progress_grows_to_the_total(disk: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    summary = back_up(disk, tmp_path / "layer.qcow2", on_progress=seen.append, progress_every=0.001)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1].phase == "flush"
    assert seen[-1].done == seen[-1].total == summary.bytes_read > 0
    assert len(seen) > 1


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_an_existing_target_is_not_touched(disk: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "layer.qcow2"
    if kind == "file":
        target.write_text("precious")
    else:
        target.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TargetExists, match="nothing was written"):
        back_up(disk, target)
    assert not (tmp_path / "elsewhere").exists()
    assert kind != "file" or target.read_text() == "precious"


def test_another_size_is_not_the_disk_that_was_planned(disk: Path, tmp_path: Path) -> None:
    with served(disk) as uri, pytest.raises(ReadFailed, match=f"has {ODD_SIZE} bytes, 1024 were expected"):
        copy_layer(source_uri=uri, target=tmp_path / "l.qcow2", backing=None, virtual_size=1024, dirty_bitmap=None)


def test_a_bitmap_that_is_not_served_never_becomes_a_full_copy(disk: Path, tmp_path: Path) -> None:
    back_up(disk, tmp_path / "full.qcow2")
    add_bitmap(disk, "other")
    with served(disk, bitmap="other") as uri, pytest.raises(ReadFailed, match="qemu:dirty-bitmap:wanted"):
        copy_layer(
            source_uri=uri,
            target=tmp_path / "layer.qcow2",
            backing="./full.qcow2",
            virtual_size=ODD_SIZE,
            dirty_bitmap="wanted",
        )


def test_a_missing_parent_is_an_error_and_leaves_no_file(disk: Path, tmp_path: Path) -> None:
    add_bitmap(disk, "b")
    target = tmp_path / "layer.qcow2"
    with pytest.raises(ToolFailed, match=r"absent\.qcow2"):
        back_up(disk, target, dirty_bitmap="b", backing="../absent.qcow2")
    assert not target.exists()


@pytest.mark.parametrize("backing", ["/absolute/full.qcow2", "nbd:localhost", "json:{}"])
def test_only_a_relative_parent_is_accepted(tmp_path: Path, backing: str) -> None:
    with pytest.raises(ValueError, match="not a relative path"):
        copy_layer(
            source_uri="nbd+unix:///?socket=/none",
            target=tmp_path / "layer.qcow2",
            backing=backing,
            virtual_size=ODD_SIZE,
            dirty_bitmap="b",
        )
    assert not os.path.lexists(tmp_path / "layer.qcow2")


def test_no_server_is_a_read_error(tmp_path: Path) -> None:
    with pytest.raises(ReadFailed, match="No such file or directory"):
        copy_layer(
            source_uri=f"nbd+unix:///?socket={tmp_path}/none",
            target=tmp_path / "layer.qcow2",
            backing=None,
            virtual_size=ODD_SIZE,
            dirty_bitmap=None,
        )
