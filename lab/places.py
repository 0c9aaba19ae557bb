"""Where the lab's things are, and its one error."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import libvirt

URI = "qemu:///system"
QEMU_USER = "libvirt-qemu"  # on Debian and Ubuntu
# QEMU runs as a user of its own, who can reach libvirt's directory of images and rarely a checkout in a home directory.
IMAGES = Path("/var/lib/libvirt/images/nasbackup-lab")
GUEST_IMAGES = IMAGES / "_guest"
LOGS = Path("/var/log/libvirt/qemu")
PID_FILES = Path("/run/libvirt/qemu")

# libvirt's default handler prints every error to stderr, also those that the caller expects and handles.
libvirt.registerErrorHandler(lambda _context, _error: None, None)


class LabError(Exception):
    """Something in the lab did not do what it was told."""


def connect(*, uri: str = URI) -> Any:
    return libvirt.open(uri)


def make_directory(path: Path) -> None:
    """One that QEMU's user can pass through, whatever our umask."""
    for directory in (IMAGES, path):
        directory.mkdir(exist_ok=True)
        directory.chmod(0o711)


def run(command: Sequence[str]) -> None:
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        raise LabError(f"{' '.join(command)} failed: {result.stderr.strip()}")
