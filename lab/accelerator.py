"""Which accelerator the lab's VMs can use here."""

from __future__ import annotations

import json
import os
import pwd
import select
import subprocess
import time
from pathlib import Path
from typing import Any

from lab import guest
from lab.definition import KERNEL_ARGUMENTS, MEMORY_MIB, Accelerator, Published, publish
from lab.places import QEMU_USER

KVM = Path("/dev/kvm")
KVM_PROBE_SECONDS = 15.0
"""A guest is ready after one or two, if nobody else needs the machine."""


def accelerator(*, cache: Path = guest.CACHE) -> Accelerator:
    """``kvm`` if a guest really boots with it, else ``qemu`` (emulation). Tried once per boot of the machine.

    A KVM device proves nothing: QEMU's user may not open it, or (nested) it may not get through a kernel's boot.
    """
    if not KVM.exists():
        return "qemu"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with guest.locked(cache / "accelerator.lock"):
            return _cached_verdict(cache) or _find_out(cache)
    except Exception:  # whatever keeps us from asking: emulation always works
        return "qemu"


def _cached_verdict(cache: Path) -> Accelerator | None:
    try:
        stored = json.loads((cache / "accelerator.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return stored["accelerator"] if stored["circumstances"] == _circumstances() else None


def _find_out(cache: Path) -> Accelerator:
    verdict: Accelerator = "kvm" if _boots_under_kvm(publish(guest.build(cache=cache))) else "qemu"
    temporary = cache / "accelerator.json.new"
    temporary.write_text(json.dumps({"accelerator": verdict, "circumstances": _circumstances()}))
    temporary.replace(cache / "accelerator.json")
    return verdict


def _circumstances() -> str:
    """What the verdict depends on: this boot of this machine, and who may open the device."""
    device = KVM.stat()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"boot {boot}, device {device.st_mode:o} {device.st_uid}:{device.st_gid}"


def _boots_under_kvm(boot: Published) -> bool:
    # Straight from QEMU and as libvirt's user: with a KVM device that this user may not open, libvirt itself takes
    # most of a minute to say so, because it asks QEMU for its capabilities again and again.
    command = [
        *("qemu-system-x86_64", "-accel", "kvm", "-m", str(MEMORY_MIB), "-nodefaults", "-display", "none"),
        *("-no-reboot", "-serial", "stdio", "-kernel", str(boot.kernel), "-initrd", str(boot.initrd)),
        *("-append", KERNEL_ARGUMENTS),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **_as_qemu_user()
    ) as process:
        assert process.stdout is not None
        try:
            return _says_ready(process.stdout.fileno(), timeout=KVM_PROBE_SECONDS)
        finally:
            process.kill()


def _as_qemu_user() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam(QEMU_USER)
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": groups}


def _says_ready(output: int, *, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    seen = b""
    while select.select([output], [], [], max(deadline - time.monotonic(), 0))[0]:
        data = os.read(output, 4096)
        if not data:
            return False
        seen += data
        if b"READY" in seen:
            return True
    return False
