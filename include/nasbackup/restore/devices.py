"""Devices of a definition that only one VM at a time can have, and those that reach out of it: pure."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable

from nasbackup import layout

_CHARACTER = ("serial", "console", "parallel", "channel")
_OF_THE_HOST = ("hostdev", "redirdev", "filesystem", "shmem", "smartcard", "lease", "crypto")
_PLACED_ON_THE_HOST = ("cputune", "numatune", "memoryBacking", "resource", "iothreadids", "keywrap")
_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"


def become_another(root: ET.Element) -> list[str]:
    """A VM that may run beside the old one: MACs, fixed ports and sockets of its own. Returns what is to be told."""
    notes = []
    for interface in root.iterfind("./devices/interface"):
        _forget_address(interface)
    for graphics in root.iterfind("./devices/graphics"):
        if graphics.get("autoport") == "no" or (graphics.get("port", "-1") != "-1" and not graphics.get("autoport")):
            notes.append(f"{graphics.get('type')} had the fixed port {graphics.get('port')}; libvirt chooses one now")
            for word in ("port", "tlsPort", "websocket"):
                graphics.attrib.pop(word, None)
            graphics.set("autoport", "yes")
    notes += _character_devices(root)
    notes += _remove(root, lambda device: device.tag == "memory" and device.get("model") in ("nvdimm", "virtio-pmem"))
    for vsock in root.iterfind("./devices/vsock/cid"):
        vsock.attrib.pop("address", None)
        vsock.set("auto", "yes")
    notes += [
        f"hostdev ({device.get('type') or '?'}) is a device of the host: the VM starts only where it is free"
        for device in root.iterfind("./devices/hostdev")
    ]
    return notes


def isolate(root: ET.Element) -> list[str]:
    """A VM that reaches nothing and disturbs nobody: no network, nothing of its host but memory and processors."""
    notes = _remove(root, lambda device: device.tag == "interface" or device.tag in _OF_THE_HOST)
    for parent in [root, *root.iterfind("./devices")]:
        for element in list(parent):
            if element.tag in _PLACED_ON_THE_HOST or element.tag.startswith(_QEMU) or element.tag == "seclabel":
                parent.remove(element)
    metadata = root.find("./metadata")
    ET.SubElement(ET.SubElement(root, "metadata") if metadata is None else metadata, f"{{{layout.APART}}}apart")
    notes += become_another(root)
    notes += _remove(root, lambda device: device.tag == "tpm" and _backend(device) != "emulator")
    notes += _remove(root, lambda device: device.tag == "rng" and _backend(device) != "random")
    _look_only_from_here(root)
    for interface in root.iterfind("./devices/audio"):
        interface.attrib = {"id": interface.get("id", "1"), "type": "none"}
    for disk in root.iterfind("./devices/disk/driver"):
        for word in ("cache", "io", "iothread", "queues"):  # fit for the old storage, perhaps not for this one
            disk.attrib.pop(word, None)
    for driver in root.iterfind("./devices/controller/driver"):
        driver.attrib.pop("iothread", None)
    return notes


def _forget_address(interface: ET.Element) -> None:
    for mac in interface.findall("mac"):
        interface.remove(mac)
    for source in interface.findall("source"):
        source.attrib.pop("portid", None)
    for parameters in interface.iterfind("virtualport/parameters"):
        parameters.attrib.pop("interfaceid", None)  # Open vSwitch's name of the port: as unique as a MAC
        parameters.attrib.pop("instanceid", None)


def _character_devices(root: ET.Element) -> list[str]:
    """Those at a path or port of the host: two VMs cannot have the same. (A pty or an automatic socket is nobody's.)"""
    notes = []
    for tag in _CHARACTER:
        for device in root.iterfind(f"./devices/{tag}"):
            for log in device.findall("log"):
                device.remove(log)
            device.attrib.pop("tty", None)
            source = device.find("source")
            kind = device.get("type")
            if (
                kind in ("pty", "null", "stdio", "vc", "spicevmc", "spiceport", "qemu-vdagent", "dbus")
                or source is None
            ):
                if source is not None and kind == "pty":
                    device.remove(source)
                continue
            where = source.get("path") or f"{source.get('host', '')}:{source.get('service', '')}"
            for old in (*device.findall("source"), *device.findall("protocol")):
                device.remove(old)
            if kind == "unix" and tag == "channel":
                continue  # libvirt names the socket
            notes.append(f"{tag} was at {where}; it is a pty now")
            device.set("type", "pty")
    return notes


def _look_only_from_here(root: ET.Element) -> None:
    """One screen, on this machine's loopback address, at a port that is free."""
    for parent in root.iterfind("./devices"):
        screens = parent.findall("graphics")
        for screen in screens:
            parent.remove(screen)
        if screens:
            ET.SubElement(parent, "graphics", type="vnc", autoport="yes", listen="127.0.0.1")
        for channel in parent.findall("channel"):
            if channel.get("type") in ("spicevmc", "spiceport", "qemu-vdagent", "dbus"):
                parent.remove(channel)


def _backend(device: ET.Element) -> str:
    backend = device.find("backend")
    return "" if backend is None else backend.get("type") or backend.get("model") or ""


def _remove(root: ET.Element, unwanted: Callable[[ET.Element], bool]) -> list[str]:
    notes = []
    for parent in root.iterfind("./devices"):
        for device in list(parent):
            if unwanted(device):
                parent.remove(device)
                notes.append(f"{device.tag} ({device.get('type') or device.get('model') or '?'}) is left out")
    return notes
