"""What a VM of the lab is made of: disks, kernel and initramfs, and libvirt's XML."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lab import guest
from lab.places import GUEST_IMAGES, make_directory, run

MEMORY_MIB = 96  # for the guest
MEMORY_MIB_WITHOUT_OS = 16
TCG_CACHE_MIB = 32  # else QEMU takes as much for translated code as the host's memory suggests
KERNEL_ARGUMENTS = "console=ttyS0 quiet loglevel=3 panic=-1"

Accelerator = Literal["kvm", "qemu"]  # as in <domain type='…'>


@dataclass(frozen=True, kw_only=True)
class Volume:
    size: int  # bytes
    filesystem: bool = False  # an ext4 file system over the whole disk, or nothing


@dataclass(frozen=True, kw_only=True)
class Published:
    """Kernel and initramfs where QEMU's user can read them."""

    kernel: Path
    initrd: Path


def publish(built: guest.Guest) -> Published:
    """Shared by all VMs and never changed in place: a VM restored from a backup still finds what it boots from."""
    make_directory(GUEST_IMAGES)
    published = Published(
        kernel=GUEST_IMAGES / f"vmlinuz-{built.digest}",
        initrd=GUEST_IMAGES / f"initrd-{built.digest}.img",
    )
    for source, target in ((built.kernel, published.kernel), (built.initrd, published.initrd)):
        if not target.exists():
            temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
            shutil.copyfile(source, temporary)
            temporary.chmod(0o644)
            temporary.replace(target)
    return published


def create_disk(path: Path, *, volume: Volume) -> None:
    """A qcow2 image, empty or with an ext4 file system."""
    if not volume.filesystem:
        run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(volume.size)])
        return
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".raw") as raw:
        raw.truncate(volume.size)
        # Everything is initialised here: the kernel of a lazily made file system writes for minutes after the mount.
        options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        # Few inodes and a small journal: less to write here and to copy in each full backup.
        run(["mkfs.ext4", "-q", "-E", options, "-i", "65536", "-J", "size=4", raw.name])
        run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw.name, str(path)])


def domain_xml(*, name: str, kind: Accelerator, disks: Mapping[str, Path], boot: Published | None) -> str:
    """No network, no graphics, no USB (its controller wakes an idle emulator all the time), one serial console.

    With an operating system there is also the channel on which libvirt speaks with the guest agent.
    """
    memory = MEMORY_MIB if boot else MEMORY_MIB_WITHOUT_OS
    tcg = f"<tcg><tb-cache unit='MiB'>{TCG_CACHE_MIB}</tb-cache></tcg>" if kind == "qemu" else ""
    direct_boot = (
        f"""
        <kernel>{boot.kernel}</kernel>
        <initrd>{boot.initrd}</initrd>
        <cmdline>{KERNEL_ARGUMENTS}</cmdline>"""
        if boot
        else ""
    )
    agent = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>" if boot else ""
    # The machine type `pc` takes hot-plugged disks without further ado; q35 would need ports set aside for them.
    return f"""
    <domain type='{kind}'>
      <name>{name}</name>
      <memory unit='MiB'>{memory}</memory>
      <vcpu>1</vcpu>
      <os>
        <type arch='x86_64' machine='pc'>hvm</type>{direct_boot}
      </os>
      <features><acpi/><apic/>{tcg}</features>
      <on_reboot>destroy</on_reboot>
      <on_crash>destroy</on_crash>
      <devices>
        {"".join(disk_xml(target=target, path=path) for target, path in disks.items())}
        <controller type='usb' model='none'/>
        <memballoon model='none'/>
        <serial type='pty'/>
        {agent}
      </devices>
    </domain>
    """


def disk_xml(*, target: str, path: Path) -> str:
    # The guest's discards reach the image; zeros that it writes stay writes (detect_zeroes is off by default).
    return f"""
        <disk type='file' device='disk'>
          <driver name='qemu' type='qcow2' discard='unmap'/>
          <source file='{path}'/>
          <target dev='{target}' bus='virtio'/>
        </disk>"""
