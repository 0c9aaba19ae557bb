"""What libguestfs needs to run here: a kernel to boot, and emulation where the machine cannot virtualise.

On a machine without a kernel of its own (a container, a sandbox), the distribution's small one is unpacked for it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lab import guest
from lab.accelerator import accelerator

CACHE = guest.CACHE / "appliance"


def environment() -> dict[str, str]:
    """Variables to set."""
    CACHE.mkdir(parents=True, exist_ok=True)
    found = {"LIBGUESTFS_CACHEDIR": str(CACHE)}
    if accelerator() == "qemu":
        found["LIBGUESTFS_BACKEND_SETTINGS"] = "force_tcg"
    if not _has_kernel():
        found |= _unpacked_kernel()
    return found


def _has_kernel() -> bool:
    return any(
        os.access(kernel, os.R_OK) and Path("/lib/modules", kernel.name.removeprefix("vmlinuz-")).is_dir()
        for kernel in Path("/boot").glob("vmlinuz-*")
    )


def _unpacked_kernel() -> dict[str, str]:
    Path("/lib/modules").mkdir(exist_ok=True)  # supermin looks there, whatever it is told
    tree = CACHE / "kernel"
    with guest.locked(CACHE / "lock"):
        if not tree.exists():
            with tempfile.TemporaryDirectory(prefix=".kernel-", dir=CACHE) as work:
                for package in guest.kernel_packages():
                    guest.download_and_unpack(package, into=Path(work, "tree"))
                version = _version(Path(work, "tree"))
                guest.run(["/sbin/depmod", "-b", str(Path(work, "tree")), version])
                Path(work, "tree").rename(tree)
    version = _version(tree)
    return {
        "SUPERMIN_KERNEL": str(tree / f"boot/vmlinuz-{version}"),
        "SUPERMIN_KERNEL_VERSION": version,
        "SUPERMIN_MODULES": str(tree / f"lib/modules/{version}"),
    }


def _version(tree: Path) -> str:
    return next(tree.glob("boot/vmlinuz-*")).name.removeprefix("vmlinuz-")
