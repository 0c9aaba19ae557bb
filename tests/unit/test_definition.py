"""A definition becomes another VM's: what made it the old one is gone, the rest is as it was, what is lost is told."""

from __future__ import annotations

import uuid
import xml.etree.ElementTree as ET

import pytest
from nasbackup.errors import DefinitionUnusable, ParamInvalid
from nasbackup.hypervisor.xml import nvram_path
from nasbackup.restore.definition import (
    Definition,
    DiskFile,
    check_name,
    disk_sources,
    new_nvram_path,
    redefine,
)

OLD_UUID = "5b1f2c1e-0000-4000-8000-000000000001"
ROOT, DATA, ISO = '/images/a&b "<1>".qcow2', "/dev/vg/data", "/iso/install.iso"

DOMAIN = f"""
<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>i-2-1234-VM</name>
  <uuid>{OLD_UUID}</uuid>
  <genid>11111111-0000-4000-8000-000000000001</genid>
  <metadata><x:cloud xmlns:x='http://cloud.example/1'><x:id>42</x:id></x:cloud></metadata>
  <memory unit='MiB'>512</memory>
  <memoryBacking><hugepages/></memoryBacking>
  <cputune><vcpupin vcpu='0' cpuset='3'/></cputune>
  <resource><partition>/machine/special</partition></resource>
  <sysinfo type='smbios'><system><entry name='uuid'>{OLD_UUID}</entry></system></sysinfo>
  <os firmware='efi'>
    <type arch='x86_64' machine='q35'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/i-2-1234-VM_VARS.fd</nvram>
  </os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap' iothread='1'/>
      <source file='/images/a&amp;b "&lt;1&gt;".qcow2' index='3'><seclabel model='dac' relabel='no'/></source>
      <backingStore type='file'><format type='qcow2'/><source file='/images/base.qcow2'/></backingStore>
      <mirror type='file'/>
      <target dev='vda' bus='virtio'/>
      <serial>SERIAL-1</serial>
      <boot order='1'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/><source dev='/dev/vg/data'/><target dev='vdb' bus='virtio'/>
      <encryption format='luks'><secret type='passphrase' uuid='{OLD_UUID}'/></encryption>
    </disk>
    <disk type='file' device='disk'><source file='/images/excluded.img'/><target dev='vdc' bus='virtio'/></disk>
    <disk type='file' device='disk'><source file='/images/seed.img'/><target dev='vdd'/><readonly/></disk>
    <disk type='file' device='cdrom'><source file='{ISO}'/><target dev='sda' bus='sata'/><readonly/></disk>
    <disk type='file' device='cdrom'><target dev='sdb' bus='sata'/><readonly/></disk>
    <interface type='bridge'>
      <mac address='52:54:00:aa:bb:cc'/><source bridge='br0' portid='{OLD_UUID}'/>
      <virtualport type='openvswitch'><parameters interfaceid='{OLD_UUID}' profileid='p'/></virtualport>
      <target dev='vnet7'/><model type='virtio'/>
    </interface>
    <serial type='file'><source path='/var/log/vm.log'/><target port='0'/></serial>
    <console type='pty' tty='/dev/pts/3'><source path='/dev/pts/3'/><target type='serial' port='0'/></console>
    <channel type='unix'>
      <source mode='bind' path='/var/lib/libvirt/qemu/i-2-1234-VM.agent'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <graphics type='vnc' port='5907' autoport='no' listen='0.0.0.0'><listen address='0.0.0.0'/></graphics>
    <audio id='1' type='pulseaudio'/>
    <hostdev mode='subsystem' type='pci' managed='yes'><source><address bus='1'/></source></hostdev>
    <filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <vsock model='virtio'><cid auto='no' address='3'/></vsock>
    <memory model='nvdimm'><source><path>/images/nvdimm</path></source></memory>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
  <seclabel type='static' model='apparmor'><label>libvirt-{OLD_UUID}</label></seclabel>
  <qemu:commandline><qemu:arg value='-chardev'/></qemu:commandline>
</domain>
"""
DISKS = {ROOT: DiskFile(file="/new/a & b.qcow2", format="qcow2"), DATA: DiskFile(file="/new/data.raw", format="raw")}


def made(**options: object) -> tuple[Definition, ET.Element]:
    definition = redefine(DOMAIN, **{"name": "restored", "disks": DISKS, **options})  # type: ignore[arg-type]
    return definition, ET.fromstring(definition.xml)


def disks_of(root: ET.Element) -> dict[str, ET.Element]:
    return {disk.find("target").get("dev", ""): disk for disk in root.iterfind("devices/disk")}  # type: ignore[union-attr]


def source_of(disk: ET.Element) -> dict[str, str] | None:
    source = disk.find("source")
    return None if source is None else source.attrib


# --- identity -------------------------------------------------------------------------------------------------


def test_nothing_of_the_old_identity_is_left() -> None:
    definition, root = made()
    assert (root.findtext("name"), root.get("id")) == ("restored", None)
    assert uuid.UUID(root.findtext("uuid")).version == 4
    assert root.findtext("uuid") == definition.uuid != OLD_UUID
    assert root.findtext("sysinfo/system/entry") == definition.uuid, "libvirt refuses one that differs"
    assert not root.findtext("genid"), "the guest must see that it is a copy"
    kept = definition.xml.replace(OLD_UUID, "")
    for old in ("52:54:00:aa:bb:cc", "vnet7", "5907", "i-2-1234-VM", "vm.log", "interfaceid", "/dev/pts/3"):
        assert old not in kept, old
    assert root.find("devices/vsock/cid").attrib == {"auto": "yes"}  # type: ignore[union-attr]
    assert made()[0].uuid != definition.uuid


def test_a_uuid_may_be_given_and_hostile_names_stay_text() -> None:
    definition, root = made(uuid=OLD_UUID.upper(), name='ä & <b> "c" ]]>')
    assert definition.uuid == root.findtext("uuid") == OLD_UUID
    assert root.findtext("name") == 'ä & <b> "c" ]]>'


def test_the_rest_is_as_it_was() -> None:
    _, root = made()
    assert root.findtext("memory") == "512"
    assert root.find("cputune/vcpupin") is not None
    assert "http://cloud.example/1" in ET.tostring(root, encoding="unicode")
    assert root.find("devices/interface/source").attrib == {"bridge": "br0"}  # type: ignore[union-attr]
    assert root.find("devices/interface/virtualport/parameters").attrib == {"profileid": "p"}  # type: ignore[union-attr]
    assert root.find("devices/rng") is not None
    assert root.find("{http://libvirt.org/schemas/domain/qemu/1.0}commandline") is not None


def test_a_vm_that_takes_the_old_ones_place_keeps_its_addresses() -> None:
    definition, root = made(keep_macs=True)
    assert root.find("devices/interface/mac").get("address") == "52:54:00:aa:bb:cc"  # type: ignore[union-attr]
    assert root.find("devices/interface/target") is None or not root.find("devices/interface/target").attrib  # type: ignore[union-attr]
    assert root.find("devices/graphics").get("port") == "5907"  # type: ignore[union-attr]
    assert root.find("devices/channel/source") is not None
    assert definition.uuid != OLD_UUID


def test_fixed_places_on_the_host_are_given_up_and_told() -> None:
    definition, root = made()
    graphics = root.find("devices/graphics")
    assert graphics is not None
    assert (graphics.get("autoport"), graphics.get("port")) == ("yes", None)
    assert root.find("devices/serial").get("type") == "pty"  # type: ignore[union-attr]
    assert root.find("devices/channel").get("type") == "unix"  # type: ignore[union-attr]
    assert root.find("devices/channel/source") is None, "libvirt names the agent's socket"
    told = "\n".join(definition.notes)
    words = ("fixed port 5907", "serial was at /var/log/vm.log", "memory (nvdimm) is left out", "hostdev (pci)")
    for word in (*words, "filesystem (mount) is left out: the old VM uses it too", "qemu:commandline is as it was"):
        assert word in told


# --- disks ----------------------------------------------------------------------------------------------------


def test_disks_are_matched_by_source_and_become_files() -> None:
    definition, root = made()
    found = disks_of(root)
    assert list(found) == ["vda", "vdb", "sda", "sdb"]
    vda, vdb = found["vda"], found["vdb"]
    assert source_of(vda) == {"file": "/new/a & b.qcow2"}
    assert [child.tag for child in vda] == ["driver", "source", "target", "serial", "boot"], "no backing, no mirror"
    assert vda.find("driver").attrib == {  # type: ignore[union-attr]
        "name": "qemu",
        "type": "qcow2",
        "cache": "none",
        "io": "native",
        "discard": "unmap",
        "iothread": "1",
    }
    assert (vdb.get("type"), source_of(vdb)) == ("file", {"file": "/new/data.raw"})
    assert vdb.find("encryption") is None
    told = "\n".join(definition.notes)
    assert "disk vdb was encrypted; the restored one is plain" in told
    assert "disk vdc (/images/excluded.img) is left out: it is none of the volumes that are restored" in told
    assert "disk vdd (/images/seed.img) is left out" in told


def test_media_that_are_not_there_are_taken_out() -> None:
    definition, root = made()
    assert source_of(disks_of(root)["sda"]) is None
    assert f"cdrom sda is empty: {ISO} is not there" in definition.notes
    assert not any("sdb" in note for note in definition.notes), "it was empty before"
    definition, root = made(media=[ISO, "/images/seed.img", "/images/excluded.img"])
    assert source_of(disks_of(root)["sda"]) == {"file": ISO}
    assert source_of(disks_of(root)["vdd"]) == {"file": "/images/seed.img"}
    assert "vdc" not in disks_of(root), "a disk that the old VM writes to is not shared with it"


def test_a_backing_chain_is_spelled_out_to_its_end_and_left_to_its_owner() -> None:
    full = DiskFile(file="/nas/full.qcow2", format="qcow2")
    top = DiskFile(file="/new/overlay", format="qcow2", backing=DiskFile(file="/nas/inc", format="qcow2", backing=full))
    _, root = made(disks={**DISKS, ROOT: top})
    first = disks_of(root)["vda"].find("backingStore")
    assert first is not None
    second = first.find("backingStore")
    assert second is not None
    assert [element.find("source").get("file") for element in (first, second)] == ["/nas/inc", "/nas/full.qcow2"]  # type: ignore[union-attr]
    assert [element.find("source/seclabel").get("relabel") for element in (first, second)] == ["no", "no"]  # type: ignore[union-attr]
    end = second.find("backingStore")
    assert end is not None
    assert (end.attrib, list(end)) == ({}, [])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("vdf", ("vdf", "virtio")),
        (None, ("vdc", "virtio")),  # vdc and vdd have gone
        ("vda", ("vdc", "virtio")),  # another disk has it by now
        ("sdq", ("sdq", "scsi")),
        ("hdc", ("hdc", "ide")),
    ],
)
def test_a_disk_that_only_the_running_vm_had_is_added(target: str | None, expected: tuple[str, str]) -> None:
    plugged = DiskFile(file="/new/plugged <1>", format="raw", target=target)
    definition, root = made(disks={**DISKS, "/images/plugged.img": plugged})
    assert list(disks_of(root)) == ["vda", "vdb", "sda", "sdb", expected[0]]
    disk = disks_of(root)[expected[0]]
    assert (disk.get("type"), disk.get("device"), source_of(disk)) == ("file", "disk", {"file": "/new/plugged <1>"})
    assert disk.find("target").attrib == dict(zip(("dev", "bus"), expected, strict=True))  # type: ignore[union-attr]
    assert disk.find("driver").attrib == {"name": "qemu", "type": "raw"}  # type: ignore[union-attr]
    assert f"disk {expected[0]} (/images/plugged.img) was attached to the running VM alone" in "\n".join(
        definition.notes
    )


def test_an_added_disk_is_on_the_bus_of_those_that_are_called_alike_also_without_them() -> None:
    sata = "<domain><devices><disk><source file='/a'/><target dev='sda' bus='sata'/></disk></devices></domain>"
    for target in ("sda", "sdb", None):
        image = DiskFile(file="/new", format="raw", target=target)
        root = ET.fromstring(redefine(sata, name="x", disks={"/plugged": image}).xml)
        (disk,) = root.iterfind("devices/disk")
        assert disk.find("target").attrib == {"dev": target or "sda", "bus": "sata"}  # type: ignore[union-attr]
    bare = redefine("<domain/>", name="x", disks={"/one": DISKS[ROOT], "/two": DISKS[DATA]}).xml
    assert list(disks_of(ET.fromstring(bare))) == ["vda", "vdb"]


def test_sources_of_all_disks() -> None:
    assert disk_sources(DOMAIN) == {ROOT, DATA, ISO, "/images/excluded.img", "/images/seed.img"}


@pytest.mark.parametrize("document", ["", "no xml", "<network/>", "<domain>"])
def test_what_is_no_definition_is_refused(document: str) -> None:
    with pytest.raises(DefinitionUnusable):
        redefine(document, name="x", disks={})


# --- firmware -------------------------------------------------------------------------------------------------


def test_uefi_variables_go_where_they_are_told_or_where_libvirt_likes() -> None:
    assert nvram_path(DOMAIN) == "/var/lib/libvirt/qemu/nvram/i-2-1234-VM_VARS.fd"
    assert new_nvram_path(DOMAIN, name="a b") == "/var/lib/libvirt/qemu/nvram/a b_VARS.fd"
    definition, root = made(nvram="/n/restored_VARS.fd")
    assert (definition.nvram, root.findtext("os/nvram")) == ("/n/restored_VARS.fd", "/n/restored_VARS.fd")
    assert root.find("os/nvram").get("template") == "/usr/share/OVMF/OVMF_VARS_4M.fd"  # type: ignore[union-attr]
    definition, root = made()
    assert definition.nvram is None
    assert not root.findtext("os/nvram")
    assert definition.has_tpm


def test_newer_forms_of_nvram() -> None:
    new = DOMAIN.replace(">/var/lib/libvirt/qemu/nvram/i-2-1234-VM_VARS.fd<", " type='file'><source file='/n/v.fd'/><")
    assert nvram_path(new) == "/n/v.fd"
    root = ET.fromstring(redefine(new, name="x", disks=DISKS, nvram="/n/x.fd").xml)
    nvram = root.find("os/nvram")
    assert nvram is not None
    assert (nvram.text, nvram.get("type"), list(nvram)) == ("/n/x.fd", None, []), "a path is no <source>"
    over_network = new.replace(" type='file'><source file='/n/v.fd'/>", " type='network'><source name='v'/>")
    assert nvram_path(over_network) is None
    assert new_nvram_path(over_network, name="x") is None
    told = redefine(over_network, name="x", disks=DISKS).notes
    assert any("UEFI variables are not in a file" in note for note in told)
    made_by_libvirt = "<domain><os firmware='efi'><type>hvm</type></os></domain>"
    assert "<nvram>/n/x.fd</nvram>" in redefine(made_by_libvirt, name="x", disks={}, nvram="/n/x.fd").xml
    assert "nvram" not in redefine(made_by_libvirt, name="x", disks={}).xml
    stateless = made_by_libvirt.replace("<type>", "<loader stateless='yes'/><type>")
    assert "nvram" not in redefine(stateless, name="x", disks={}, nvram="/n/x.fd").xml
    plain = "<domain><devices/></domain>"
    assert (nvram_path(plain), new_nvram_path(plain, name="x")) == (None, None)
    assert not redefine(plain, name="x", disks={}).has_tpm


# --- isolation ------------------------------------------------------------------------------------------------


def test_an_isolated_vm_reaches_nothing() -> None:
    definition, root = made(isolate=True, keep_macs=True)
    left = {device.tag for device in root.iterfind("devices/*")}
    assert left == {"disk", "serial", "console", "channel", "graphics", "audio", "tpm", "rng"}
    for tag in ("cputune", "memoryBacking", "resource", "seclabel"):
        assert root.find(tag) is None, tag
    assert "commandline" not in definition.xml
    assert root.find("devices/graphics").attrib == {"type": "vnc", "autoport": "yes", "listen": "127.0.0.1"}  # type: ignore[union-attr]
    assert list(root.find("devices/graphics")) == []  # type: ignore[arg-type]
    assert root.find("devices/audio").attrib == {"id": "1", "type": "none"}  # type: ignore[union-attr]
    assert disks_of(root)["vda"].find("driver").attrib == {"name": "qemu", "type": "qcow2", "discard": "unmap"}  # type: ignore[union-attr]
    assert root.find("devices/channel/source") is None
    told = "\n".join(definition.notes)
    for word in ("interface (bridge)", "hostdev (pci)", "filesystem (mount)", "vsock (virtio)"):
        assert f"{word} is left out" in told


# --- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", " ", "a/b", "..", ".", "a\nb", "a\0b", " a", "a ", "x" * 201, "é" * 101, "a\u202eb"]
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(ParamInvalid, match="new_name"):
        check_name(name)


@pytest.mark.parametrize("name", ["i-2-1234-VM", "web server", "größe-日本", "..a", "-rf", "x" * 200, "[bold]"])
def test_names_that_are_taken(name: str) -> None:
    check_name(name)
