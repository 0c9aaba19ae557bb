"""Instant access: a backup's volumes, served where they lie."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nasbackup.errors import ServingFailed, ToolFailed, ToolMissing
from nasbackup.model import BackupVolume
from nasbackup.restore.image import Located, choose
from nasbackup.restore.verification import check_links
from nasbackup.transfer.serve import TOOL, Server


def chain_tops(located: Located, *, volumes: Sequence[BackupVolume]) -> dict[str, Path]:
    """Name of each volume -> the newest file of its chain, whose links were checked. Raises BackupNotRestorable."""
    tops = {}
    for volume in volumes:
        layers = located.layers(volume)
        check_links(layers)
        tops[volume.name] = layers[-1].file
    return tops


@contextmanager
def served(
    located: Located, *, volumes: Sequence[str] = (), files: Path | None = None, port: int | None = None
) -> Iterator[Server]:
    """Serve the volumes of these names (none: all) read-only, for the length of the block.

    Raises UnknownVolume, BackupNotRestorable, TargetExists, ToolMissing, ServingFailed.
    """
    tops = chain_tops(located, volumes=choose(located.backup, volumes=volumes))
    if shutil.which(TOOL) is None:
        install = "install it with QEMU (Debian: qemu-system-common), or mount on the KVM host"
        raise ToolMissing(what="Serving a backup", tool=TOOL, install=install)
    server = Server(tops, files=files, port=port)
    try:
        server.__enter__()
    except ToolFailed as error:
        raise ServingFailed(backup=located.backup.external_id, reason=error.stderr) from error
    try:
        yield server
    finally:
        server.__exit__(None, None, None)
