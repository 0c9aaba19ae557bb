"""Definitions that are made from a backup's, before a real libvirt: it takes them, and keeps what they say."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt
import pytest
from nasbackup.errors import HostNotReady
from nasbackup.hypervisor import connect, live, machine_state
from nasbackup.model import Host, Target
from nasbackup.restore.definition import redefine
from nasbackup.restore.image import locate
from nasbackup.steps import Site, instant
from nasbackup.steps.drill import DrillRequest, drill

from lab import nas as lab_nas
from lab import vm as lab
from lab.accelerator import accelerator
from lab.definition import create_disk
from lab.places import make_directory
from tests.integration.restoring import dry_run
from tests.integration.story import Story

OVMF = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
VARIABLES = Path("/var/lib/libvirt/qemu/nvram")


def domain(*, name: str, nvram: str, devices: str) -> str:
    return f"""
    <domain type='{accelerator()}'>
      <name>{name}</name><uuid>5b1f2c1e-0000-4000-8000-000000000001</uuid><memory unit='MiB'>128</memory>
      <os>
        <type arch='x86_64' machine='q35'>hvm</type>
        <loader readonly='yes' type='pflash'>{OVMF}</loader>{nvram}
      </os>
      <features><acpi/></features>
      <on_crash>coredump-destroy</on_crash>
      <devices><controller type='usb' model='none'/>{devices}</devices>
    </domain>
    """


EVERYTHING = """
    <graphics type='vnc' socket='/run/old.vnc'><listen type='socket' socket='/run/old.vnc'/></graphics>
    <video>
      <model type='virtio' heads='1' primary='yes'><acceleration accel3d='yes'/></model>
    </video>
    <tpm model='tpm-crb'>
      <backend type='emulator' version='2.0' persistent_state='yes'><source type='dir' path='/tpm/of-old'/></backend>
    </tpm>
    <filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem>
    <shmem name='ring'><model type='ivshmem-plain'/><size unit='M'>1</size></shmem>
    <input type='evdev'><source dev='/dev/input/event0'/></input>
    <vsock model='virtio'><cid auto='yes'/></vsock>
    <watchdog model='i6300esb' action='dump'/>
"""


@contextmanager
def defined(connection: Any, document: str) -> Iterator[Any]:
    """Checked by libvirt's own schema, and as it keeps it."""
    made = connection.defineXMLFlags(document, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    try:
        yield made
    finally:
        made.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)


def kept(made: Any) -> ET.Element:
    return ET.fromstring(made.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


@pytest.mark.parametrize("options", [{}, {"keep_macs": True}, {"isolate": True}], ids=["beside", "instead", "drilled"])
def test_libvirt_takes_the_definition(libvirt_connection: Any, vm_name: str, options: dict[str, bool]) -> None:
    old = domain(
        name="old",
        nvram=f"<nvram type='file' template='{OVMF_VARIABLES}'><source file='/n/old_VARS.fd'/></nvram>",
        devices=EVERYTHING,
    )
    document = redefine(old, name=vm_name, disks={}, nvram=f"/n/{vm_name}_VARS.fd", **options)  # type: ignore[arg-type]
    with defined(libvirt_connection, document.xml) as made:
        root = kept(made)
        nvram = root.find("os/nvram")
        assert nvram is not None
        source = nvram.find("source")
        assert (nvram.text if source is None else source.get("file")) == f"/n/{vm_name}_VARS.fd"
        devices = {device.tag for device in root.iterfind("devices/*")}
        assert {"graphics", "video", "tpm", "watchdog"} <= devices
        assert bool({"filesystem", "shmem"} & devices) == ("keep_macs" in options)
        assert ("vsock" in devices) == ("isolate" not in options)
        assert ("/run/old.vnc" in document.xml) == ("keep_macs" in options)
        assert "/tpm/of-old" not in document.xml


def test_a_drilled_vm_with_a_gpu_starts(libvirt_connection: Any, vm_name: str) -> None:
    """With spice and 3D it would need the host's GPU; without variables or a TPM of its own nothing is left of it."""
    old = domain(name="old", nvram="", devices=EVERYTHING.replace("tpm-crb", "tpm-tis"))
    document = redefine(
        old.replace(f"<loader readonly='yes' type='pflash'>{OVMF}</loader>", ""), name=vm_name, disks={}, isolate=True
    )
    flags = libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_AUTODESTROY
    made = libvirt_connection.createXML(document.xml, flags)
    try:
        graphics = ET.fromstring(made.XMLDesc()).find("devices/graphics")
        assert graphics is not None
        assert (graphics.get("type"), graphics.get("listen")) == ("vnc", "127.0.0.1")
        assert (machine_state.TPM_STATES / document.uuid).exists(), "it has a TPM while it runs"
    finally:
        made.destroy()
        left = (machine_state.TPM_STATES / document.uuid).exists()
        shutil.rmtree(machine_state.TPM_STATES / document.uuid, ignore_errors=True)
    assert not left


# --- UEFI -----------------------------------------------------------------------------------------------------


@pytest.fixture
def uefi(libvirt_connection: Any, site: Site, vm_name: str, tmp_path: Path) -> Iterator[Story]:
    """A stopped VM of which nobody knows its UEFI variables: it was never started."""
    name = f"{vm_name}-uefi"
    with lab.lab_vm(libvirt_connection, name=name, volumes=[lab.Volume(size=1 << 20)], start=False) as machine:
        root = ET.fromstring(machine.domain.XMLDesc(2))
        system = root.find("os")
        assert system is not None
        ET.SubElement(system, "loader", readonly="yes", type="pflash").text = str(OVMF)
        ET.SubElement(system, "nvram", template=str(OVMF_VARIABLES)).text = str(VARIABLES / f"{name}_VARS.fd")
        for tag in ("memory", "currentMemory"):
            found = root.find(tag)
            assert found is not None
            found.text, _ = "131072", found.set("unit", "KiB")
        machine.connection.defineXML(ET.tostring(root, encoding="unicode"))
        yield Story(site=site, machine=machine, work=tmp_path)
    for left in VARIABLES.glob(f"drill-{name}*"):
        left.unlink()
    shutil.rmtree(tmp_path / "nas", ignore_errors=True)


def test_a_drill_leaves_no_uefi_variables(uefi: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = uefi.backup()
    used, throwaway = [], live.throwaway

    @contextmanager
    def seen(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with throwaway(*args, **kwargs) as (made, console):
            used.append(ET.fromstring(made.XMLDesc()).findtext("os/nvram"))
            assert Path(used[0]).exists(), "made from the firmware's template"
            yield made, console

    monkeypatch.setattr(live, "throwaway", seen)
    record = drill(
        uefi.site.database,
        host=uefi.site.host,
        request=DrillRequest(backup=backup.external_id, pattern="never said", timeout=0.1),
        reader="a test",
    )
    assert "did not show 'never said'" in record.detail
    assert not Path(used[0]).exists()
    assert list(VARIABLES.glob(f"drill-{uefi.machine.name}*")) == []


# --- disks ----------------------------------------------------------------------------------------------------


def test_a_disk_that_only_the_running_vm_has_is_backed_up_and_comes_back(story: Story) -> None:
    """``virsh attach-disk`` without ``--persistent``; then the host dies."""
    image = story.machine.directory / "plugged.qcow2"
    create_disk(image, volume=lab.Volume(size=1 << 20))
    story.machine.domain.attachDeviceFlags(lab.disk_xml(target="vdf", path=image), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    story.machine.guest_io("vdf", "write -P 0x71 0 512k")
    backup = story.backup()
    story.machine.destroy()
    assert set(story.machine.disks) == {"vda", "vdb"}, "it went with the VM that ran"

    copy = lab.LabVm(connection=story.machine.connection, name=f"{story.machine.name}-copy")
    new = dry_run(story.site, backup, Target.NEW_VM, new_name=copy.name, to=str(copy.directory))
    told = f"({image}) was attached to the running VM alone"
    assert any(told in note for note in new.notes)
    assert new.definition is not None
    targets = [target.get("dev") for target in ET.fromstring(new.definition).findall("devices/disk/target")]
    assert targets == ["vda", "vdb", "vdf"], "where the guest had it"
    try:
        make_directory(copy.directory)
        with connect(story.site.host) as hypervisor:
            vm = instant.start(
                hypervisor,
                locate(story.site.database, external_id=backup.external_id),
                database=story.site.database,
                name=copy.name,
                to=copy.directory,
                socket_dir=story.site.host.socket_dir,
            )
            assert any(told in note for note in vm.notes)
            assert set(copy.disks) == {"vda", "vdb", "vdf"}
            copy.guest_io("vdf", "read -P 0x71 0 512k", "read -P 0 512k 512k")
            instant.finish(hypervisor, vm, database=story.site.database)
    finally:
        copy.remove()


# --- room -----------------------------------------------------------------------------------------------------


def test_a_drill_gives_way_before_backups_lack_room(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = story.backup()
    with lab_nas.small_nas(story.machine.directory / "scratch", size=64 << 20) as scratch:
        host = Host(name=story.site.host.name, scratch_dir=str(scratch))
        throwaway, ballast, begun = live.throwaway, scratch / "written by the guest", []

        @contextmanager
        def filling(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with throwaway(*args, **kwargs) as (made, console):
                begun.append(made.name())
                ballast.write_bytes(bytes(58 << 20))  # of 64 MiB; the reserve is 3.2
                yield made, console

        monkeypatch.setattr(live, "throwaway", filling)
        request = DrillRequest(backup=backup.external_id, pattern="never said", timeout=60)
        for _ in range(2):  # while it waits, and before it begins
            with pytest.raises(HostNotReady, match="what a drilled guest writes goes there"):
                drill(story.site.database, host=host, request=request, reader="a test")
            assert list(scratch.iterdir()) == [ballast]
        assert len(begun) == 1
    with story.site.database.transaction() as cursor:
        cursor.execute("SELECT 1 FROM drill")
        assert cursor.fetchall() == [], "it says nothing of the backup"
