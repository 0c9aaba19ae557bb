"""Stopped VMs: bitmaps in their images, and whether an image was touched since.

libvirt makes no checkpoints of inactive domains, but takes ones that exist ("redefine"): the bitmap is added with
qemu-img, and libvirt is told. QEMU loads it at the next start and records into it.
"""

from __future__ import annotations

import json
from pathlib import Path

import libvirt

from nasbackup.errors import ToolFailed, VmStarted
from nasbackup.hypervisor.connection import Hypervisor
from nasbackup.tools import node, run_tool

_UNUSABLE = frozenset({"in-use"})
"""QEMU sets this flag when it opens the image for writing, and takes it away when it closes it in order."""


def bitmaps(image: Path) -> dict[str, bool]:
    """Name -> whether it is consistent, for the bitmaps that are stored in a qcow2 image. Opens it read-only, without
    locks: of an image that a running QEMU uses it shows what was stored when QEMU started, as in use. Empty where the
    image cannot be seen from here (a worker in a container): all that running VMs need is asked of libvirt.
    """
    if not image.exists():
        return {}
    done = run_tool("qemu-img", "info", "-U", "--output=json", "--", node(image, "qcow2"))
    data = json.loads(done.stdout).get("format-specific", {}).get("data", {})
    return {bitmap["name"]: not (_UNUSABLE & set(bitmap["flags"])) for bitmap in data.get("bitmaps", [])}


def add_bitmap(image: Path, *, name: str, vm: str) -> None:
    """Begin to record changes of a stopped VM's image from now on. Raises VmStarted when a QEMU has opened it."""
    if name in bitmaps(image):
        remove_bitmap(image, name=name, vm=vm)
    _bitmap("--add", image, name=name, vm=vm)


def remove_bitmap(image: Path, *, name: str, vm: str) -> None:
    """Raises VmStarted when a QEMU has opened the image."""
    _bitmap("--remove", image, name=name, vm=vm)


def require_stopped(hypervisor: Hypervisor, *, domain: libvirt.virDomain) -> None:
    """Raises VmStarted when the VM runs."""
    with hypervisor.doing("reading the VM's state"):
        if domain.isActive():
            raise VmStarted(vm=domain.name())


def stamp(image: Path) -> str:
    """A word that changes when the image is written to or replaced; also when QEMU only opens it for writing, since
    that flags its bitmaps, and when libvirt hands it to QEMU's user. (A block device only tells the latter.)
    """
    status = image.stat()
    return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def _bitmap(action: str, image: Path, *, name: str, vm: str) -> None:
    # `qemu-img bitmap` takes a plain file name only, and it takes it as one when it is absolute. It is never killed:
    # while it has the image open, all bitmaps in it are flagged in-use, also the base of the next incremental.
    command = ("qemu-img", "bitmap", action, "-f", "qcow2", "--", str(image.absolute()), name)
    try:
        run_tool(*command, outlives_us=True)
    except ToolFailed as error:
        if "lock" in error.data["stderr"]:
            raise VmStarted(vm=vm) from error
        raise
