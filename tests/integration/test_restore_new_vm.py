"""A backup becomes another VM: it boots beside the old one, with its files and its firmware's memory."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nasbackup.errors import ParamInvalid, TargetExists, UnknownPool, VmExists
from nasbackup.hypervisor import machine_state
from nasbackup.model import BackupType, Target
from nasbackup.nas import manifest
from nasbackup.steps import Site

from lab import vm as lab
from tests.integration.restoring import assert_no_trace, contents, dry_run, identical, vm, whole_restore
from tests.integration.story import Story

OVMF = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
SWTPM = Path("/usr/bin/swtpm")


@pytest.fixture
def to(story: Story) -> Path:
    """Where new images go: a directory that QEMU's user can reach."""
    return story.machine.directory / "new images"


@pytest.fixture
def new_name(story: Story) -> Iterator[str]:
    name = f"{story.machine.name} größe & co"
    yield name
    vm(story.machine, name).remove()


def interface(root: ET.Element) -> ET.Element:
    found = root.find("devices/interface/mac")
    assert found is not None
    return found


def test_it_runs_beside_the_old_one_and_starts_a_chain_of_its_own(
    story: Story, site: Site, to: Path, new_name: str
) -> None:
    story.machine.guest_io("vda", "write -P 0x11 0 4M")
    story.backup()
    story.machine.guest_io("vda", "write -P 0x22 1M 1M")
    second = story.backup()
    active = story.active_checkpoint()
    result = whole_restore(site, second, Target.NEW_VM, new_name=new_name, to=str(to), start=True)
    assert result.started
    restored = vm(story.machine, new_name)
    assert restored.running
    assert story.machine.running
    assert restored.uuid == result.vm_uuid != story.machine.uuid
    restored.destroy()
    assert set(map(str, restored.disks.values())) == set(result.volumes.values())
    for volume in second.volumes:
        image = Path(result.volumes[volume.name])
        assert image.parent == to
        assert restored.disks[volume.target] == image
        assert identical(image, story.frozen[second.external_id][volume.name])
    assert story.active_checkpoint() == active, "a restore to a new VM leaves the chain of the old one alone"
    assert_no_trace(site, to)

    story.machine.guest_io("vda", "write -P 0x33 2M 1M")
    assert story.backup().type is BackupType.INCREMENTAL
    restored.start()
    other = Story(site=site, machine=restored, work=story.work)
    first = other.backup()
    assert first.type is BackupType.FULL
    other.assert_restores(first.external_id)


def test_a_linux_guest_boots_from_an_incremental_and_has_its_files(
    libvirt_connection: Any, site: Site, vm_name: str, tmp_path: Path
) -> None:
    volumes = [lab.Volume(size=32 << 20, filesystem=True), lab.Volume(size=16 << 20, filesystem=True)]
    name = f"{vm_name}-restored"
    with lab.lab_vm(libvirt_connection, name=vm_name, volumes=volumes, operating_system=True) as machine:
        story = Story(site=site, machine=machine, work=tmp_path)
        console = machine.console()
        expected = {"vda": {"first": console.write("vda", "first", kib=300)}, "vdb": {}}
        story.backup()
        expected["vda"]["second"] = console.write("vda", "second", kib=2000)
        expected["vdb"]["data"] = console.write("vdb", "data", kib=100)
        backup = story.backup()
        assert backup.type is BackupType.INCREMENTAL
        console.remove("vda", "first")
        console.write("vda", "second", kib=10)
        try:
            directory = machine.directory / "restored"
            whole_restore(site, backup, Target.NEW_VM, new_name=name, to=str(directory))
            restored = vm(machine, name)
            assert not restored.running, "defined only, unless it is asked for"
            restored.start()
            found = {target: restored.console().sums(target) for target in ("vda", "vdb")}
            assert found == expected
            assert console.sums("vda") != expected["vda"], "the old one goes on, and is another"
            restored.shutdown()
        finally:
            vm(machine, name).remove()


def test_macs_are_new_unless_kept(story: Story, site: Site, to: Path, new_name: str) -> None:
    nic = "<interface type='user'><mac address='52:54:00:12:34:56'/><model type='virtio'/></interface>"
    story.machine.domain.attachDeviceFlags(nic, 2)
    backup = story.backup()
    for keep, directory in ((False, to), (True, to.with_name("kept"))):
        whole_restore(site, backup, Target.NEW_VM, new_name=new_name, to=str(directory), keep_macs=keep)
        restored = vm(story.machine, new_name)
        mac = interface(ET.fromstring(restored.domain.XMLDesc())).get("address")
        assert (mac == "52:54:00:12:34:56") is keep
        restored.remove()


def test_a_vm_that_is_gone_comes_back_under_its_own_name(story: Story, site: Site, to: Path) -> None:
    story.machine.guest_io("vdb", "write -P 0x44 0 1M")
    backup = story.backup()
    with pytest.raises(VmExists, match="Choose another name"):
        whole_restore(site, backup, Target.NEW_VM, to=str(to))
    assert not to.exists()
    kept = to.with_name("elsewhere")
    story.machine.destroy()
    story.machine.domain.undefineFlags(lab.libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    kept.mkdir()
    whole_restore(site, backup, Target.NEW_VM, to=str(kept), keep_macs=True, start=True)
    assert story.machine.running
    assert contents(story.machine)["vdb"][: 1 << 20] == b"\x44" * (1 << 20)


def test_into_a_storage_pool(story: Story, site: Site, to: Path, new_name: str) -> None:
    backup = story.backup()
    to.mkdir()
    pool = story.machine.connection.storagePoolCreateXML(
        f"<pool type='dir'><name>{story.machine.name}-pool</name><target><path>{to}</path></target></pool>"
    )
    try:
        with pytest.raises(UnknownPool, match="does not exist"):
            whole_restore(site, backup, Target.NEW_VM, new_name=new_name, pool="nowhere")
        result = whole_restore(site, backup, Target.NEW_VM, new_name=new_name, pool=pool.name(), image_format="raw")
        assert {Path(file).parent for file in result.volumes.values()} == {to}
        assert sorted(pool.listVolumes()) == sorted(path.name for path in to.iterdir())
        vm(story.machine, new_name).start()
    finally:
        pool.destroy()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "name a directory"),
        ({"to": "/x", "pool": "y"}, "and not both"),
        ({"to": "relative"}, "absolute path"),
        ({"to": "/x", "new_name": "a/b"}, "no path"),
        ({"to": "/x", "new_name": ".."}, "no path"),
        ({"to": "/x", "new_name": " "}, "needs a name"),
        ({"to": "/x", "new_name": "a\nb"}, "cannot be printed"),
        ({"to": "/etc/hostname", "new_name": "x"}, "it is no directory"),
    ],
)
def test_bad_input_is_one_sentence(story: Story, site: Site, options: dict[str, Any], match: str) -> None:
    backup = story.backup()
    with pytest.raises(ParamInvalid, match=match):
        whole_restore(site, backup, Target.NEW_VM, **options)
    assert_no_trace(site)


def test_an_image_that_exists_is_not_overwritten(story: Story, site: Site, to: Path, new_name: str) -> None:
    backup = story.backup()
    to.mkdir()
    plan = dry_run(site, backup, Target.NEW_VM, new_name=new_name, to=str(to))
    taken = Path(plan.volumes[1].path)
    taken.write_bytes(b"somebody's")
    with pytest.raises(TargetExists, match="nothing was written"):
        whole_restore(site, backup, Target.NEW_VM, new_name=new_name, to=str(to))
    assert [path.name for path in to.iterdir()] == [taken.name]
    assert taken.read_bytes() == b"somebody's"
    assert_no_trace(site, to)


# --- firmware -------------------------------------------------------------------------------------------------


def with_firmware(machine: lab.LabVm, *, tpm: bool) -> Path:
    """The stopped VM boots by UEFI from now on, with variables in a file as libvirt has it; and has a TPM."""
    root = ET.fromstring(machine.domain.XMLDesc(2))
    system = root.find("os")
    assert system is not None
    variables = Path("/var/lib/libvirt/qemu/nvram") / f"{machine.name}_VARS.fd"
    ET.SubElement(system, "loader", readonly="yes", type="pflash").text = str(OVMF)
    ET.SubElement(system, "nvram", template=str(OVMF_VARIABLES)).text = str(variables)
    for tag in ("memory", "currentMemory"):
        found = root.find(tag)
        assert found is not None
        found.text, _ = "131072", found.set("unit", "KiB")
    if tpm:
        devices = root.find("devices")
        assert devices is not None
        ET.SubElement(ET.SubElement(devices, "tpm", model="tpm-tis"), "backend", type="emulator", version="2.0")
    machine.connection.defineXML(ET.tostring(root, encoding="unicode"))
    return variables


@pytest.fixture
def uefi(libvirt_connection: Any, vm_name: str) -> Iterator[lab.LabVm]:
    assert OVMF.exists(), "install the package ovmf"
    assert SWTPM.exists(), "install the packages swtpm and swtpm-tools"
    name = f"{vm_name}-uefi"
    with lab.lab_vm(libvirt_connection, name=name, volumes=[lab.Volume(size=4 << 20)], start=False) as machine:
        variables, state = with_firmware(machine, tpm=True), machine_state.TPM_STATES / machine.uuid
        machine.start()
        yield machine
    variables.unlink(missing_ok=True)
    for left in variables.parent.glob(f"{machine.name}*"):
        left.unlink()
    for left in state.parent.glob(f"{state.name}*"):
        shutil.rmtree(left)


def tpm_files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_uefi_variables_and_the_tpm_come_along(uefi: lab.LabVm, site: Site, tmp_path: Path) -> None:
    name = f"{uefi.name}-restored"
    story = Story(site=site, machine=uefi, work=tmp_path)
    uefi.destroy()
    variables = Path("/var/lib/libvirt/qemu/nvram") / f"{uefi.name}_VARS.fd"
    secrets = tpm_files(machine_state.TPM_STATES / uefi.uuid)
    assert secrets, "libvirt made the TPM its keys"
    mark = bytearray(variables.read_bytes())
    mark[-16:] = b"a boot entry of "  # the last bytes are spare: whoever has them has this very file
    variables.write_bytes(mark)
    story.variables["nas.backup.stopped.incremental.enabled"] = "false"
    backup = story.backup()
    described = manifest.read(Path(site.repository.path) / backup.external_id)
    assert [entry["kind"] for entry in described["state"]] == ["nvram", "tpm"]
    assert "state_missing" not in described

    new_variables = variables.with_name(f"{name}_VARS.fd")
    try:
        result = whole_restore(site, backup, Target.NEW_VM, new_name=name, to=str(uefi.directory / "new"))
        restored = vm(uefi, name)
        assert new_variables.read_bytes() == mark
        assert tpm_files(machine_state.TPM_STATES / result.vm_uuid) == secrets
        uefi.start()
        restored.start()
        assert restored.running, "QEMU and the TPM's emulator can use what was restored"
        restored.destroy()
    finally:
        vm(uefi, name).remove()
        new_variables.unlink(missing_ok=True)
        shutil.rmtree(machine_state.TPM_STATES / result.vm_uuid, ignore_errors=True)

    # In place: the machine's state goes back with the disks, and what there was is kept beside it.
    uefi.destroy()
    variables.write_bytes(OVMF_VARIABLES.read_bytes())
    kept = whole_restore(site, backup, Target.IN_PLACE).kept
    assert variables.read_bytes() == mark
    assert tpm_files(machine_state.TPM_STATES / uefi.uuid) == secrets
    assert len(kept) == 3
    assert next(Path(path) for path in kept if "_VARS" in path).read_bytes() == OVMF_VARIABLES.read_bytes()
    uefi.start()
    assert uefi.running


def test_state_that_cannot_be_read_is_told_and_no_reason_to_have_no_backup(
    uefi: lab.LabVm, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_state, "TPM_STATES", tmp_path / "not here")
    story = Story(site=site, machine=uefi, work=tmp_path)
    backup = story.backup()
    described = manifest.read(Path(site.repository.path) / backup.external_id)
    assert [entry["kind"] for entry in described["state"]] == ["nvram"]
    assert "secrets" in described["state_missing"][0]
    plan = dry_run(site, backup, Target.NEW_VM, new_name=f"{uefi.name}-x", to=str(tmp_path / "new"))
    assert any("No such file or directory" in note for note in plan.notes)
    assert any("the VM gets an empty one" in note for note in plan.notes)
