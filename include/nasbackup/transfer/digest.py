"""The layer digest: one value for the content of one qcow2 layer.

It doesn't depend on the order of copying, on the number of connections, or on how zeroes are stored, so the copy
computes it on the way to the NAS and the verification computes it again from the file, and the two must be equal.

Format ``sha256-layer-1`` (integers are unsigned 64-bit big-endian)::

    SHA-256( header || record[0] || record[1] || … )

    header  "nasbackup-layer-1" || 0x00 || kind: "F" full, "I" incremental || virtual size in bytes
    record  offset in bytes || length in bytes || SHA-256 of the piece's content, 32 raw bytes

Records are in ascending order of offset. The disk is divided into chunks of 1 MiB (the last may be shorter).

* full: one record per chunk that has a byte other than zero. A chunk of zeroes has none: a hole and written
  zeroes are the same.
* incremental: the layer's clusters are 64 KiB. Within each chunk, every maximal run of clusters that are present
  in the layer makes one record, also when its content is all zero: a present zero hides the parent's data, an
  absent cluster shows it. The last cluster ends where the disk ends.

Written as ``sha256-layer-1:<64 hexadecimal digits>``.
"""

from __future__ import annotations

import hashlib
import struct

HEADER = b"nasbackup-layer-1\x00"
PREFIX = "sha256-layer-1:"
_RECORD = struct.Struct(">QQ32s")


class LayerDigest:
    """Takes piece digests in any order. Holds only those whose predecessors are missing. Not thread-safe."""

    def __init__(self, *, virtual_size: int, incremental: bool) -> None:
        self._hash = hashlib.sha256(HEADER + (b"I" if incremental else b"F") + virtual_size.to_bytes(8, "big"))
        self._early: dict[int, bytes] = {}
        self._next = 0
        self.records = 0

    def add(self, *, number: int, offset: int, length: int, content_sha256: bytes | None) -> None:
        """Add piece ``number`` (from 0, in order of offset). ``content_sha256`` None: it has no record."""
        self._early[number] = b"" if content_sha256 is None else _RECORD.pack(offset, length, content_sha256)
        while (record := self._early.pop(self._next, None)) is not None:
            self._hash.update(record)
            self._next += 1
            self.records += bool(record)

    def value(self) -> str:
        """The digest's written form. Raises RuntimeError while a piece is missing: that would be a wrong digest."""
        if self._early:
            raise RuntimeError(f"piece {self._next} was never added, yet later ones were")
        return PREFIX + self._hash.hexdigest()
