"""Devices of a VM that is made from a backup: what two VMs must not share, and what a drill must not reach."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from nasbackup.restore.definition import redefine


def made(devices: str, *, before: str = "", **options: bool) -> tuple[ET.Element, str]:
    """The new VM's definition, and what is told of it."""
    domain = f"<domain><name>old</name>{before}<devices>{devices}</devices></domain>"
    definition = redefine(domain, name="new", disks={}, **options)  # type: ignore[arg-type]
    return ET.fromstring(definition.xml), "\n".join(definition.notes)


def only(root: ET.Element, path: str) -> ET.Element:
    (found,) = root.iterfind(path)
    return found


# --- beside the old one ---------------------------------------------------------------------------------------

SHARED = {
    "filesystem (mount)": "<filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem>",
    "shmem (ring)": "<shmem name='ring'><model type='ivshmem-plain'/></shmem>",
    "interface (vhostuser)": "<interface type='vhostuser'><source type='unix' path='/vh' mode='server'/></interface>",
    "tpm (tpm-tis)": "<tpm model='tpm-tis'><backend type='external'><source type='unix' path='/t'/></backend></tpm>",
    "redirdev (tcp)": "<redirdev bus='usb' type='tcp'><source mode='connect' host='h' service='4000'/></redirdev>",
    "input (evdev)": "<input type='evdev'><source dev='/dev/input/event1'/></input>",
    "input (passthrough)": "<input type='passthrough' bus='virtio'><source evdev='/dev/input/event1'/></input>",
}


@pytest.mark.parametrize("called", SHARED)
def test_what_two_vms_would_share_only_the_one_that_takes_the_old_ones_place_has(called: str) -> None:
    root, told = made(SHARED[called])
    assert list(root.iterfind("devices/*")) == []
    assert f"{called} is left out: the old VM uses it too" in told
    root, told = made(SHARED[called], keep_macs=True)
    assert [device.tag for device in root.iterfind("devices/*")] == [called.split()[0]]
    assert told == ""


def test_what_is_a_vms_own_stays() -> None:
    own = (
        "<interface type='bridge'><source bridge='br0'/></interface><redirdev bus='usb' type='spicevmc'/>"
        "<smartcard mode='passthrough' type='spicevmc'/><input type='tablet'/><vsock><cid auto='yes'/></vsock>"
        "<tpm><backend type='emulator' version='2.0' persistent_state='yes'/></tpm><lease/><watchdog action='dump'/>"
    )
    root, told = made(own)
    assert [device.tag for device in root.iterfind("devices/*")] == [
        *("interface", "redirdev", "smartcard", "input", "vsock", "tpm", "lease", "watchdog")
    ]
    assert only(root, "devices/tpm/backend").get("persistent_state") == "yes"
    assert told == ""


@pytest.mark.parametrize(
    "screen",
    [
        "<graphics type='vnc' socket='/run/old.vnc'/>",
        "<graphics type='vnc' socket='/run/old.vnc'><listen type='socket' socket='/run/old.vnc'/></graphics>",
        "<graphics type='vnc' autoport='no'><listen type='socket' socket='/run/old.vnc'/></graphics>",
    ],
)
def test_the_socket_of_the_old_ones_screen_is_left_to_it(screen: str) -> None:
    root, told = made(screen)
    graphics = only(root, "devices/graphics")
    assert graphics.get("socket") is None
    assert only(graphics, "listen").attrib == {"type": "socket"}
    assert told == "vnc was at the socket /run/old.vnc; libvirt names one now"
    root, told = made(screen, keep_macs=True)
    assert "/run/old.vnc" in ET.tostring(root, encoding="unicode")
    assert told == ""


def test_a_command_line_of_qemu_is_told_when_both_may_run() -> None:
    line = (
        f"<c:commandline xmlns:c='{'http://libvirt.org/schemas/domain/qemu/1.0'}'><c:arg value='-x'/></c:commandline>"
    )
    assert "qemu:commandline is as it was" in made("", before=line)[1]
    assert made("", before=line, keep_macs=True)[1] == ""
    assert "commandline" not in ET.tostring(made("", before=line, isolate=True)[0], encoding="unicode")


# --- in any case ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_macs", [False, True])
@pytest.mark.parametrize(
    ("screen", "known"),
    [
        ("<graphics type='vnc' autoport='yes' listen='0.0.0.0'><listen type='address' address='0.0.0.0'/>", "0.0.0.0"),
        ("<graphics type='spice' autoport='yes' listen='::'>", "::"),
        ("<graphics type='vnc' autoport='yes'><listen type='address' address='kvm7.example'/>", "kvm7.example"),
        ("<graphics type='spice' autoport='yes'><listen type='network' network='lan'/>", "lan"),
        ("<graphics type='rdp' autoport='yes' listen='192.0.2.7'>", "192.0.2.7"),
        ("<graphics type='vnc' autoport='yes'><listen type='address'/>", None),  # the host's default, whatever it is
    ],
)
def test_a_console_without_its_password_is_for_this_machine(screen: str, known: str | None, keep_macs: bool) -> None:
    root, told = made(f"{screen}</graphics>", keep_macs=keep_macs)
    graphics = only(root, "devices/graphics")
    assert graphics.get("listen") == "127.0.0.1"
    assert only(graphics, "listen").attrib == {"type": "address", "address": "127.0.0.1"}
    assert (f"listens on 127.0.0.1, and not on {known}: its password is in no backup" in told) == (known is not None)
    assert ("`virsh edit`" in told) == (known is not None)


@pytest.mark.parametrize(
    "screen",
    [
        "<graphics type='vnc' listen='127.0.0.7'><listen type='address' address='127.0.0.7'/></graphics>",
        "<graphics type='spice' listen='::1'/>",
        "<graphics type='vnc' listen='localhost'/>",
        "<graphics type='spice'><listen type='none'/></graphics>",
        "<graphics type='vnc'><listen type='socket'/></graphics>",
        "<graphics type='egl-headless'/>",
    ],
)
def test_a_console_that_nobody_else_reaches_is_as_it_was(screen: str) -> None:
    root, told = made(screen)
    assert ET.canonicalize(ET.tostring(only(root, "devices/graphics"))) == ET.canonicalize(screen)
    assert told == ""


@pytest.mark.parametrize("options", [{}, {"keep_macs": True}, {"isolate": True}])
def test_no_vm_runs_on_the_state_of_another_ones_tpm(options: dict[str, bool]) -> None:
    tpm = "<tpm><backend type='emulator'><source type='dir' path='/tpm/of-old'/><profile name='p'/></backend></tpm>"
    root, told = made(tpm, **options)
    assert [child.tag for child in only(root, "devices/tpm/backend")] == ["profile"]
    assert "the TPM's state was at /tpm/of-old" in told


# --- shut away ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "device",
    [
        *SHARED.values(),
        "<vsock model='virtio'><cid auto='yes'/></vsock>",
        "<interface type='network'><source network='default'/></interface>",
        "<hostdev mode='subsystem' type='usb'/>",
        "<redirdev bus='usb' type='spicevmc'/>",
        "<smartcard mode='host'/>",
        "<lease/>",
        "<crypto model='virtio'/>",
        "<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
        "<rng><backend model='egd' type='tcp'/></rng>",
        "<rng><backend model='builtin'/></rng>",
        "<something-that-libvirt-learns-tomorrow/>",
    ],
)
def test_a_drilled_vm_does_not_have(device: str) -> None:
    root, told = made(device, isolate=True)
    assert list(root.iterfind("devices/*")) == []
    assert "is left out: the VM is shut away" in told


def test_a_drilled_vm_draws_without_the_hosts_gpu() -> None:
    accelerated = (
        "<graphics type='spice'><listen type='none'/><gl enable='yes' rendernode='/dev/dri/renderD128'/></graphics>"
        "<graphics type='egl-headless'/><channel type='spicevmc'/>"
        "<video><driver name='vhostuser'/>"
        "<model type='virtio' heads='1' primary='yes' blob='on'><acceleration accel3d='yes'/></model></video>"
    )
    root, _ = made(accelerated, isolate=True)
    assert only(root, "devices/graphics").attrib == {"type": "vnc", "autoport": "yes", "listen": "127.0.0.1"}
    model = only(root, "devices/video/model")
    assert (model.attrib, list(model)) == ({"type": "virtio", "heads": "1", "primary": "yes"}, [])
    assert only(root, "devices/video/driver").get("name") == "qemu"
    assert root.find("devices/channel") is None


def test_a_drilled_vm_leaves_nothing() -> None:
    lasting = "<tpm><backend type='emulator' version='2.0' persistent_state='yes'/></tpm><watchdog action='dump'/>"
    root, _ = made(lasting, before="<on_crash>coredump-restart</on_crash>", isolate=True)
    assert only(root, "devices/tpm/backend").attrib == {"type": "emulator", "version": "2.0"}
    assert root.findtext("on_crash") == "destroy"
    assert only(root, "devices/watchdog").get("action") == "reset"
    assert made("", before="<on_crash>restart</on_crash>", isolate=True)[0].findtext("on_crash") == "restart"
