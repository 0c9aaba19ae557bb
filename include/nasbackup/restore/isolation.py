"""A definition whose VM reaches nothing, disturbs nobody and leaves nothing: pure.

Devices are kept by name: one that libvirt learns about tomorrow is left out.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from nasbackup import layout
from nasbackup.restore import devices

_KEPT = frozenset(
    {"emulator", "disk", "controller", "hub", "iommu", "memory", "memballoon", "nvram", "rng", "tpm", "panic"}
    | {"watchdog", "serial", "console", "parallel", "channel", "input", "graphics", "video", "sound", "audio"}
)
_PLACED_ON_THE_HOST = ("cputune", "numatune", "memoryBacking", "resource", "iothreadids", "keywrap")


def isolate(root: ET.Element) -> list[str]:
    """No network, nothing of its host but memory and processors. Returns what is to be told."""
    notes = devices.remove(root, _reaches_out, why="the VM is shut away")
    for parent in [root, *root.iterfind("./devices")]:
        for element in list(parent):
            if element.tag in _PLACED_ON_THE_HOST or element.tag.startswith(devices.QEMU) or element.tag == "seclabel":
                parent.remove(element)
    metadata = root.find("./metadata")
    ET.SubElement(ET.SubElement(root, "metadata") if metadata is None else metadata, f"{{{layout.APART}}}apart")
    _look_only_from_here(root)
    _leave_nothing(root)
    notes += devices.become_another(root)
    for audio in root.iterfind("./devices/audio"):
        audio.attrib = {"id": audio.get("id", "1"), "type": "none"}
        audio[:] = []
    for disk in root.iterfind("./devices/disk/driver"):
        for word in ("cache", "io", "iothread", "queues"):  # fit for the old storage, perhaps not for this one
            disk.attrib.pop(word, None)
    for driver in root.iterfind("./devices/controller/driver"):
        driver.attrib.pop("iothread", None)
    return notes


def _reaches_out(device: ET.Element) -> bool:
    if device.tag == "tpm":
        return devices.backend(device) != "emulator"
    if device.tag == "rng":
        return devices.backend(device) != "random"
    return device.tag not in _KEPT or devices.is_of_the_host(device)


def _look_only_from_here(root: ET.Element) -> None:
    """One screen, on this machine's loopback address, at a port that is free; drawn without the host's help."""
    for parent in root.iterfind("./devices"):
        screens = parent.findall("graphics")
        for screen in screens:
            parent.remove(screen)
        if screens:
            ET.SubElement(parent, "graphics", type="vnc", autoport="yes", listen="127.0.0.1")
        for channel in parent.findall("channel"):
            if channel.get("type") in devices.OF_A_SCREEN:
                parent.remove(channel)
    for video in root.iterfind("./devices/video"):
        for model in video.findall("model"):
            model.attrib.pop("blob", None)  # needs memory that is shared, which it has no more
            for acceleration in model.findall("acceleration"):  # needs a screen that draws with the host's GPU
                model.remove(acceleration)
        for driver in video.findall("driver[@name='vhostuser']"):
            driver.set("name", "qemu")


def _leave_nothing(root: ET.Element) -> None:
    """No state of a TPM that outlives the VM, no dump of its memory when it crashes or hangs."""
    for backend in root.iterfind("./devices/tpm/backend"):
        backend.attrib.pop("persistent_state", None)
    for crash in root.iterfind("./on_crash"):
        if (crash.text or "").strip().startswith("coredump"):
            crash.text = "destroy"
    for watchdog in root.iterfind("./devices/watchdog[@action='dump']"):
        watchdog.set("action", "reset")
