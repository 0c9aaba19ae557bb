"""Serve the image of a stopped VM over NBD, so that the copy sees what it sees of a running one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from nasbackup.tools import node
from nasbackup.transfer.nbd_connection import Interrupt
from nasbackup.transfer.qemu_nbd import QemuNbd

CONNECTIONS = 16


@contextlib.contextmanager
def serve_image(image: Path, *, image_format: str, bitmap: str | None) -> Iterator[str]:
    """Yields the NBD URI. Read-only, and without QEMU's image locks: a reader must not keep the VM from starting.

    Whoever reads has to check afterwards that the image was not opened for writing meanwhile. Raises ToolFailed.
    """
    with QemuNbd(
        node(image, image_format, locking=False), clients=CONNECTIONS, read_only=True, bitmap=bitmap
    ) as server:
        server.wait_ready(Interrupt())
        yield server.uri
