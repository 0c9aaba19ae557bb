"""How the layers of a backup are written and checked: words of the model, as values."""

from __future__ import annotations

from enum import StrEnum


class Compression(StrEnum):
    """How a layer's clusters are stored in its qcow2 file."""

    NONE = "none"
    ZSTD = "zstd"
    ZLIB = "zlib"


class VerifyLevel(StrEnum):
    """What a backup's layers have to pass before it is recorded."""

    FULL = "full"  # structure, and every byte read back from the NAS
    STRUCTURE = "structure"  # qemu-img check, size and backing link; it is recorded as not verified
