"""Promise: the layer digest depends on the content and on nothing else."""

from __future__ import annotations

import hashlib
from itertools import permutations

import pytest
from nasbackup.transfer.digest import LayerDigest

SIZE = 33 * 1024 * 1024 + 512
SHA = [hashlib.sha256(bytes([index])).digest() for index in range(4)]
PIECES = [(0, 0, 65536), (1, 131072, 65536), (2, 1048576, 1048576), (3, 33 * 1024 * 1024, 512)]


def digest(order: tuple[int, ...] = (0, 1, 2, 3), *, size: int = SIZE, incremental: bool = True) -> str:
    layer = LayerDigest(virtual_size=size, incremental=incremental)
    for index in order:
        number, offset, length = PIECES[index]
        layer.add(number=number, offset=offset, length=length, content_sha256=SHA[index])
    return layer.value()


def test_the_order_of_copying_does_not_matter() -> None:
    assert {digest(order) for order in permutations(range(4))} == {digest()}


def test_it_is_what_the_documentation_says() -> None:
    expected = hashlib.sha256(b"nasbackup-layer-1\x00I" + SIZE.to_bytes(8, "big"))
    for (_, offset, length), sha in zip(PIECES, SHA, strict=True):
        expected.update(offset.to_bytes(8, "big") + length.to_bytes(8, "big") + sha)
    assert digest() == f"sha256-layer-1:{expected.hexdigest()}"


def test_kind_and_size_are_part_of_it() -> None:
    assert len({digest(), digest(incremental=False), digest(size=SIZE + 512)}) == 3


def test_a_piece_without_record_counts_as_absent() -> None:
    with_zero, without = (LayerDigest(virtual_size=SIZE, incremental=False) for _ in range(2))
    with_zero.add(number=0, offset=0, length=1048576, content_sha256=None)
    with_zero.add(number=1, offset=1048576, length=1048576, content_sha256=SHA[0])
    without.add(number=0, offset=1048576, length=1048576, content_sha256=SHA[0])
    assert with_zero.value() == without.value()
    assert with_zero.records == without.records == 1


def test_a_missing_piece_is_an_error_and_not_another_digest() -> None:
    with pytest.raises(RuntimeError, match="piece 1"):
        digest((0, 2, 3))
