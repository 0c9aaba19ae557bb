"""Promise: an increment holds exactly what changed, zeroes included, and on its parent it is the disk again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from nasbackup.errors import NasBackupError
from nasbackup.transfer.convert import flatten
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
    pattern,
    present_clusters,
)

# cluster size of the guest's disk, granularity of its bitmap (None: QEMU's choice)
SOURCES = [(4 * KIB, None), (64 * KIB, None), (2 * MIB, None), (64 * KIB, 4 * KIB), (64 * KIB, MIB)]


class Chain:
    """A guest's disk, fully backed up to ``1/root.qcow2``, with bitmap ``b`` counting since then."""

    def __init__(self, place: Path, cluster_size: int = 64 * KIB, granularity: int | None = None) -> None:
        self.place = place
        self.disk = make_disk(place / "vm.qcow2", cluster_size=cluster_size)
        fill(self.disk, 1, 0, 4 * MIB)
        fill(self.disk, 2, ODD_SIZE - 2 * MIB, 2 * MIB)
        add_bitmap(self.disk, "b", granularity=granularity)
        self.full = self.layer(1)
        self.full.parent.mkdir()
        back_up(self.disk, self.full)

    def layer(self, number: int) -> Path:
        return self.place / str(number) / "root.qcow2"

    def increment(self, number: int = 2, *, bitmap: str = "b") -> LayerSummary:
        target = self.layer(number)
        target.parent.mkdir()
        return back_up(self.disk, target, dirty_bitmap=bitmap, backing=f"../{number - 1}/root.qcow2")


@pytest.fixture(params=SOURCES, ids=lambda source: f"clusters {source[0]} bitmap {source[1]}")
def chain(request: pytest.FixtureRequest, tmp_path: Path) -> Chain:
    return Chain(tmp_path, *request.param)


def assert_good(chain: Chain, number: int, summary: LayerSummary) -> None:
    layer = chain.layer(number)
    assert_same_content(chain.disk, layer)
    check_image(layer)
    assert image_info(layer) == ImageInfo("qcow2", ODD_SIZE, f"../{number - 1}/root.qcow2")
    found = read_layer(file=layer, incremental=True)
    assert (found.digest, found.pieces) == (summary.digest, summary.pieces)


def test_writes_zeroes_and_discards_over_old_data(chain: Chain) -> None:
    fill(chain.disk, 9, 1 * MIB + 3 * KIB, 5 * KIB)  # inside one cluster
    fill(chain.disk, 10, 20 * MIB, 3 * MIB)  # where nothing was
    guest_io(
        chain.disk,
        "write -z 2M 128k",  # zero clusters over old data
        "write -P 0 2560k 64k",  # zeroes as data over old data
        f"write -z {3 * MIB + 1536} 2k",  # zeroes inside a cluster of old data
        "discard 3584k 256k",
        f"write -P 5 {ODD_SIZE - 512} 512",  # the last, partial cluster
    )
    summary = chain.increment()
    assert_good(chain, 2, summary)


def test_the_last_partial_cluster_can_become_zero(chain: Chain) -> None:
    guest_io(chain.disk, f"write -z {ODD_SIZE - 512} 512")
    assert_good(chain, 2, chain.increment())


def test_a_whole_disk_of_zeroes_hides_the_parent(chain: Chain) -> None:
    guest_io(chain.disk, f"write -z 0 {ODD_SIZE}")
    summary = chain.increment()
    assert_good(chain, 2, summary)
    assert summary.bytes_read == 0
    assert summary.bytes_zero == ODD_SIZE
    assert summary.bytes_written < MIB, "zeroes were stored as data"


def test_nothing_dirty_is_a_valid_empty_layer(chain: Chain) -> None:
    summary = chain.increment()
    assert_good(chain, 2, summary)
    assert (summary.bytes_read, summary.bytes_zero, summary.pieces) == (0, 0, 0)


@pytest.mark.parametrize(("granularity", "changed"), [(4 * KIB, {16, 17, 528}), (MIB, {*range(16, 32), 528})])
def test_the_layer_holds_exactly_the_clusters_that_changed(tmp_path: Path, granularity: int, changed: set[int]) -> None:
    chain = Chain(tmp_path, 64 * KIB, granularity)
    guest_io(chain.disk, f"write -P 1 {MIB + 60 * KIB} 8k", f"write -z {ODD_SIZE - 512} 512")
    chain.increment()
    assert ODD_SIZE // CLUSTER == 528
    assert present_clusters(chain.layer(2)) == changed


def test_an_absent_cluster_and_a_zero_one_differ_in_the_digest(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    add_bitmap(chain.disk, "c")
    empty = chain.increment(2)
    guest_io(chain.disk, "write -z 8M 64k")  # zero before, zero after, yet present in this layer
    assert chain.increment(3, bitmap="c").digest != empty.digest
    assert present_clusters(chain.layer(3)) == {128}


def test_a_chain_survives_moving_and_flattens_to_the_disk(tmp_path: Path) -> None:
    place = tmp_path / "vm"
    place.mkdir()
    chain = Chain(place)
    fill(chain.disk, 11, 6 * MIB, MIB)
    add_bitmap(chain.disk, "c")
    chain.increment(2)
    fill(chain.disk, 12, 6 * MIB + 512 * KIB, MIB)
    guest_io(chain.disk, "write -z 1M 1M")
    chain.increment(3, bitmap="c")
    place.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    assert_same_content(moved / "vm.qcow2", moved / "3" / "root.qcow2")
    for output_format in ("qcow2", "raw"):
        target = tmp_path / f"image.{output_format}"
        flatten(chain_top=moved / "3" / "root.qcow2", target=target, output_format=output_format)
        assert_same_content(moved / "vm.qcow2", target, right_format=output_format)


def test_reading_back_needs_no_parent(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    fill(chain.disk, 13, MIB + 7 * KIB, 300 * KIB)
    summary = chain.increment()
    shutil.rmtree(chain.full.parent)
    assert read_layer(file=chain.layer(2), incremental=True).digest == summary.digest
    assert image_info(chain.layer(2)).backing == "../1/root.qcow2"
    check_image(chain.layer(2))


@pytest.mark.parametrize("incremental", [False, True], ids=["full", "incremental"])
@pytest.mark.parametrize("bit", [0, 7])
def test_one_flipped_bit_on_the_nas_is_found(tmp_path: Path, incremental: bool, bit: int) -> None:
    chain = Chain(tmp_path)
    fill(chain.disk, 14, 9 * MIB, 200 * KIB)
    chain.increment()
    layer = chain.layer(2) if incremental else chain.full
    good = read_layer(file=layer, incremental=incremental).digest
    content = bytearray(layer.read_bytes())
    content[content.index(pattern(14 if incremental else 1, 200 * KIB)[-512:]) + 77] ^= 1 << bit
    layer.write_bytes(content)
    assert read_layer(file=layer, incremental=incremental).digest != good
    check_image(layer)  # which is why a digest is needed: qcow2's own check sees nothing


def test_broken_metadata_is_found(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    content = bytearray(chain.full.read_bytes())
    content[2 * CLUSTER : 2 * CLUSTER + 64] = bytes(64)  # a refcount block
    chain.full.write_bytes(content)
    with pytest.raises(NasBackupError, match="qemu-img check finds"):
        check_image(chain.full)
    chain.full.write_bytes(b"not qcow2" * 1000)
    with pytest.raises(NasBackupError, match="cannot be checked"):
        check_image(chain.full)
    with pytest.raises(NasBackupError):
        read_layer(file=chain.full, incremental=False)


@pytest.mark.parametrize(
    "name",
    [
        "-x",
        "a:b,c=d,,e",
        "json:{}",
        "nbd:localhost:1",
        "two\nlines",
        "ünï 💾 ",
        "\"'`$(x);&|",
        "%s%n",
        "#?&",
        "fat:rw:x",
    ],
)
def test_names_are_only_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = make_disk(tmp_path / "vm.qcow2")
    fill(disk, 1, 0, 200 * KIB)
    add_bitmap(disk, "b")
    place = tmp_path / name
    (place / "1").mkdir(parents=True)
    (place / "2").mkdir()
    monkeypatch.chdir(place / "1")
    full, increment, image = Path(name), place / "2" / name, place / f"{name}.image"
    back_up(disk, full)
    fill(disk, 2, 100 * KIB, 200 * KIB)
    copied = back_up(disk, increment, dirty_bitmap="b", backing=f"../1/{name}")
    assert read_layer(file=increment, incremental=True).digest == copied.digest
    check_image(full)
    assert image_info(increment).backing == f"../1/{name}"
    flatten(chain_top=increment, target=image, output_format="raw")
    assert_same_content(disk, image, right_format="raw")
    assert {entry.name for entry in tmp_path.iterdir()} == {"vm.qcow2", "private", name}
