"""Lend an image to a VM, read-only: a server of its own that outlives us, and ends by itself with its last client.

The VM's QEMU runs as another user, who may not be able to read the repository, and must not be given its files (libvirt
changes the owner of what a VM uses). So it gets a socket, and everything behind that is read with our rights.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import nbd

from nasbackup.errors import ToolFailed
from nasbackup.tools import node, run_tool
from nasbackup.transfer.qcow2_target import claim

_CLIENTS = 8


def lend(image: Path, *, socket: Path) -> None:
    """Serve the chain that ends with the image at the socket. Raises ToolFailed, OSError.

    The directory of the socket says who may connect: it is for QEMU's user and ours.
    """
    take_back(socket)
    run_tool(
        *(
            "qemu-nbd",
            "--fork",
            "--read-only",
            f"--shared={_CLIENTS}",
            f"--socket={socket}",
            "--",
            node(image, "qcow2"),
        ),
        outlives_us=True,
    )
    socket.chmod(0o666)


def take_back(socket: Path) -> None:
    """End a server that nobody uses (one that was never used waits for its first client). Harmless otherwise."""
    with suppress(nbd.Error):
        last_client = nbd.NBD()
        last_client.connect_unix(str(socket))
        last_client.shutdown()
    with suppress(OSError):
        socket.unlink()


def create_overlay(overlay: Path, *, socket: Path, virtual_size: int) -> None:
    """An empty image on top of what is lent. Raises TargetExists (it never replaces anything), ToolFailed."""
    claim(overlay)
    run_tool(
        *("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", _lent_at(socket)),
        *("--", _name(overlay), str(virtual_size)),
    )


def is_unused_overlay(file: Path, *, socket: Path) -> bool:
    """Whether ``create_overlay`` has made it for this very socket, and nothing was ever written to it."""
    if file.is_symlink() or not file.is_file():
        return False
    alone = node(file, "qcow2", backing=None)  # what lies below may be gone, and says nothing of it
    try:
        found = json.loads(run_tool("qemu-img", "info", "--output=json", "-f", "qcow2", "--", _name(file)).stdout)
        if found.get("backing-filename") != _lent_at(socket):
            return False
        extents = json.loads(run_tool("qemu-img", "map", "--output=json", "--", alone).stdout)
    except ToolFailed:  # it is no such image, or in use
        return False
    return not any(extent["present"] for extent in extents)


def _lent_at(socket: Path) -> str:
    return f"nbd+unix:///?socket={socket}"


def _name(file: Path) -> str:
    """Absolute: then neither "-" nor "protocol:" can start it."""
    return str(file.absolute())
