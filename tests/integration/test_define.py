"""Domains come and go on a real libvirt, and every call may be made again."""

from __future__ import annotations

import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import libvirt
import pytest
from nasbackup.errors import NoFreeTarget, RestoreRefused, UnknownPool, VmExists
from nasbackup.hypervisor import Hypervisor, connect, define, new_disk
from nasbackup.hypervisor.xml import parse_disks
from nasbackup.model import Host
from nasbackup.restore.definition import redefine
from nasbackup.restore.disks import DiskFile

from lab import vm as lab
from tests.integration.story import tool


@pytest.fixture
def host() -> Iterator[Hypervisor]:
    with connect(Host(name="kvm_test")) as hypervisor:
        yield hypervisor


@pytest.fixture
def machine(libvirt_connection: Any, vm_name: str) -> Iterator[lab.LabVm]:
    with lab.lab_vm(libvirt_connection, name=vm_name, volumes=[lab.Volume(size=1 << 20)], start=False) as machine:
        yield machine
        lab.LabVm(connection=libvirt_connection, name=f"{vm_name} ä copy").remove()


def image(machine: lab.LabVm, name: str) -> Path:
    path = machine.directory / name
    tool("qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M")
    return path


def test_a_redefined_vm_starts_beside_the_old_one_and_goes_again(host: Hypervisor, machine: lab.LabVm) -> None:
    name, new_uuid = f"{machine.name} ä copy", str(uuid.uuid4())
    copy = image(machine, "copy of vda.qcow2")
    definition = redefine(
        machine.domain.XMLDesc(),
        name=name,
        uuid=new_uuid,
        disks={str(machine.disks["vda"]): DiskFile(file=str(copy), format="qcow2")},
        isolate=True,
    )
    machine.start()
    for _ in range(2):  # a second try finds what the first did
        define.define(host, definition=definition.xml, name=name, uuid=new_uuid)
        define.start(host, uuid=new_uuid, name=name)
    restored = lab.LabVm(connection=machine.connection, name=name)
    assert restored.running
    assert restored.disks == {"vda": copy}
    assert machine.running

    with pytest.raises(VmExists, match=machine.uuid):
        define.require_free(host, name=machine.name, uuid=new_uuid)
    with pytest.raises(VmExists, match="was not touched"):
        define.define(host, definition=definition.xml, name="another name", uuid=new_uuid)

    assert define.undefine(host, uuid=new_uuid)
    assert not define.undefine(host, uuid=new_uuid)
    assert host.domain_by_uuid(new_uuid) is None
    assert copy.exists(), "its disks stay"


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_an_image_becomes_a_disk_once(host: Hypervisor, machine: lab.LabVm, running: bool) -> None:
    path = image(machine, "new disk.qcow2")
    if running:
        machine.start()
    for _ in range(2):
        attached = define.attach(host, domain=machine.domain, file=path, image_format="qcow2")
        assert (attached.target, attached.bus, attached.live) == ("vdb", "virtio", running)
    assert machine.disks["vdb"] == path
    inactive = {disk.target: disk.source for disk in parse_disks(machine.domain.XMLDesc(2))}
    assert inactive["vdb"] == str(path), "also after the next start"


def test_a_disk_that_only_the_running_vm_has_is_completed(host: Hypervisor, machine: lab.LabVm) -> None:
    path = image(machine, "half.qcow2")
    machine.start()
    live = new_disk.disk_xml(file=str(path), image_format="qcow2", target="vdd", bus="virtio")
    machine.domain.attachDeviceFlags(live, 1)
    assert define.attach(host, domain=machine.domain, file=path, image_format="qcow2").target == "vdd"
    machine.destroy()
    assert machine.disks["vdd"] == path


def test_a_bus_without_hot_plug_gets_the_disk_at_the_next_start(host: Hypervisor, machine: lab.LabVm) -> None:
    path = image(machine, "new disk.qcow2")
    bus, first, second = "sata", "sda", "sdb"
    on_another_bus(machine, bus=bus, targets=[first])
    stopped = define.place_for(host, domain=machine.domain)
    assert (stopped.target, stopped.live, stopped.waits) == (second, False, False)
    machine.start()
    place = define.place_for(host, domain=machine.domain)
    assert (place.target, place.bus, place.live, place.waits) == (second, bus, False, True)
    for _ in range(2):
        attached = define.attach(host, domain=machine.domain, file=path, image_format="qcow2")
        assert (attached.target, attached.bus, attached.live, attached.waits) == (second, bus, False, True)
    assert set(machine.disks) == {first}
    machine.destroy()
    assert machine.disks[second] == path
    machine.start()
    assert set(machine.disks) == {first, second}


def test_a_vm_that_has_no_place_for_a_disk_says_so_before(host: Hypervisor, machine: lab.LabVm) -> None:
    on_another_bus(machine, bus="ide", targets=["hda", "hdb", "hdc", "hdd"])
    with pytest.raises(NoFreeTarget, match="bus ide"):
        define.place_for(host, domain=machine.domain)
    on_another_bus(machine, bus="ide", targets=["hda"])
    definition = machine.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    machine.domain.undefine()
    try:
        machine.connection.createXML(definition)
        with pytest.raises(RestoreRefused, match="on which a VM that runs takes no other"):
            define.place_for(host, domain=machine.domain)
    finally:
        with suppress(libvirt.libvirtError):
            machine.domain.destroy()


def on_another_bus(machine: lab.LabVm, *, bus: str, targets: list[str]) -> None:
    """Every disk but the first is a new image."""
    root = ET.fromstring(machine.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    devices = root.find("devices")
    assert devices is not None
    for disk in devices.findall("disk"):
        devices.remove(disk)
    for number, target in enumerate(targets):
        file = machine.directory / "vda.qcow2" if number == 0 else image(machine, f"{target}.qcow2")
        devices.append(ET.fromstring(new_disk.disk_xml(file=str(file), image_format="qcow2", target=target, bus=bus)))
    machine.connection.defineXML(ET.tostring(root, encoding="unicode"))


def test_device_names() -> None:
    def domain(*targets: str, bus: str = "virtio") -> str:
        disks = "".join(f"<disk device='disk'><target dev='{target}' bus='{bus}'/></disk>" for target in targets)
        return f"<domain><devices>{disks}</devices></domain>"

    assert new_disk.next_target([domain("vda", "vdc"), domain("vdb")], bus="virtio", vm="x") == "vdd"
    every = [f"vd{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    assert new_disk.next_target([domain(*every)], bus="virtio", vm="x") == "vdaa"
    assert new_disk.next_target([domain("vda")], bus="scsi", vm="x") == "sda"
    assert (new_disk.bus_of(domain("sda", bus="sata")), new_disk.bus_of("<domain/>")) == ("sata", None)
    with pytest.raises(NoFreeTarget, match="bus ide"):
        new_disk.next_target([domain("hda", "hdb", "hdc", "hdd", bus="ide")], bus="ide", vm="x")


def test_pools(host: Hypervisor, machine: lab.LabVm, tmp_path: Path) -> None:
    name = f"{machine.name}-pool"
    description = f"<pool type='dir'><name>{name}</name><target><path>{tmp_path}</path></target></pool>"
    pool = machine.connection.storagePoolCreateXML(description)
    try:
        assert define.pool_directory(host, pool=name) == tmp_path
        with pytest.raises(UnknownPool, match=f"'nowhere' of host kvm_test does not exist. Its pools: .*{name}"):
            define.pool_directory(host, pool="nowhere")
    finally:
        pool.destroy()
