"""Devices of a definition that only one VM at a time can have, or that are not a VM's own to have: pure."""

from __future__ import annotations

import ipaddress
import xml.etree.ElementTree as ET
from collections.abc import Callable

QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
OF_A_SCREEN = ("spicevmc", "spiceport", "qemu-vdagent", "dbus")
_CHARACTER = ("serial", "console", "parallel", "channel")
_OF_NOBODY = ("pty", "null", "stdio", "vc", *OF_A_SCREEN)
_LOOPBACK = "127.0.0.1"


def have_own_state(root: ET.Element) -> list[str]:
    """What even a VM that takes the old one's place cannot have as it was. Returns what is to be told.

    The state of its TPM, for what a backup has of it is put where libvirt looks by itself; and a console that others
    reach over the network, for its password is in no backup.
    """
    notes = []
    for backend in root.iterfind("./devices/tpm/backend[@type='emulator']"):
        for source in backend.findall("source"):
            backend.remove(source)
            notes.append(f"the TPM's state was at {source.get('path')}; the VM has its own, where libvirt keeps them")
    for graphics in root.iterfind("./devices/graphics"):
        notes += _listen_here(graphics)
    return notes


def become_another(root: ET.Element) -> list[str]:
    """A VM that may run beside the old one: MACs, fixed ports and sockets of its own, and nothing that both would use.

    Returns what is to be told.
    """
    notes = remove(root, _is_shared, why="the old VM uses it too")
    for interface in root.iterfind("./devices/interface"):
        _forget_address(interface)
    for graphics in root.iterfind("./devices/graphics"):
        notes += _own_screen(graphics)
    notes += _character_devices(root)
    for vsock in root.iterfind("./devices/vsock/cid"):
        vsock.attrib.pop("address", None)
        vsock.set("auto", "yes")
    notes += [
        f"hostdev ({device.get('type') or '?'}) is a device of the host: the VM starts only where it is free"
        for device in root.iterfind("./devices/hostdev")
    ]
    if root.find(f"./{QEMU}commandline") is not None:
        notes.append(
            "qemu:commandline is as it was: look whether its arguments name ports, files or sockets of the old VM "
            "before both run"
        )
    return notes


def remove(root: ET.Element, unwanted: Callable[[ET.Element], bool], *, why: str) -> list[str]:
    """Returns what is to be told."""
    notes = []
    for parent in root.iterfind("./devices"):
        for device in list(parent):
            if unwanted(device):
                parent.remove(device)
                kind = device.get("type") or device.get("model") or device.get("name") or "?"
                notes.append(f"{device.tag} ({kind}) is left out: {why}")
    return notes


def is_of_the_host(device: ET.Element) -> bool:
    """A keyboard or mouse of the host itself."""
    return device.tag == "input" and device.get("type") in ("evdev", "passthrough")


def backend(device: ET.Element) -> str:
    found = device.find("backend")
    return "" if found is None else found.get("type") or found.get("model") or ""


def _is_shared(device: ET.Element) -> bool:
    """Two VMs that have it write into each other's, or take it from each other."""
    match device.tag:
        case "filesystem" | "shmem" | "pstore":
            return True
        case "memory":
            return device.get("model") in ("nvdimm", "virtio-pmem")
        case "interface":
            return device.get("type") == "vhostuser" and device.find("source[@path]") is not None
        case "tpm":
            return backend(device) == "external"
        case "redirdev" | "smartcard":
            return device.get("type", "spicevmc") != "spicevmc"
    return is_of_the_host(device)


def _forget_address(interface: ET.Element) -> None:
    for mac in interface.findall("mac"):
        interface.remove(mac)
    for source in interface.findall("source"):
        source.attrib.pop("portid", None)
    for parameters in interface.iterfind("virtualport/parameters"):
        parameters.attrib.pop("interfaceid", None)  # Open vSwitch's name of the port: as unique as a MAC
        parameters.attrib.pop("instanceid", None)


def _own_screen(graphics: ET.Element) -> list[str]:
    """QEMU takes over a socket that is there, also that of a VM that runs; a port can be had once."""
    listens = graphics.findall("listen[@socket]")
    socket = graphics.attrib.pop("socket", None) or next((listen.get("socket") for listen in listens), None)
    if socket is not None:
        for listen in listens:
            listen.attrib.pop("socket")
        if not listens:
            ET.SubElement(graphics, "listen", type="socket")
        return [f"{graphics.get('type')} was at the socket {socket}; libvirt names one now"]
    if graphics.find("listen[@type='socket']") is not None:
        return []  # libvirt names it
    if graphics.get("autoport") == "no" or (graphics.get("port", "-1") != "-1" and not graphics.get("autoport")):
        port = graphics.get("port")
        for word in ("port", "tlsPort", "websocket"):
            graphics.attrib.pop(word, None)
        graphics.set("autoport", "yes")
        return [f"{graphics.get('type')} had the fixed port {port}; libvirt chooses one now"]
    return []


def _listen_here(graphics: ET.Element) -> list[str]:
    listens = graphics.findall("listen")
    local = any(listen.get("type") in ("socket", "none") for listen in listens) or graphics.get("socket") is not None
    if local or graphics.get("type") not in ("vnc", "spice", "rdp"):
        return []
    places = [graphics.get("listen"), *(listen.get("network") or listen.get("address") for listen in listens)]
    known = sorted({place for place in places if place})
    if known and all(map(_is_loopback, known)):
        return []
    for listen in listens:
        graphics.remove(listen)
    graphics.set("listen", _LOOPBACK)  # also where nothing was named: then it is the host that decides
    ET.SubElement(graphics, "listen", type="address", address=_LOOPBACK)
    if not known:
        return []
    return [
        f"{graphics.get('type')} listens on {_LOOPBACK}, and not on {', '.join(known)}: its password is in no backup, "
        "and without one the console is everybody's. `virsh edit` gives it a password, then its address"
    ]


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


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
            if kind in _OF_NOBODY or source is None:
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
