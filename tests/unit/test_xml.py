"""libvirt's XML: names from outside can be anything, and every disk of the domain is named in or out."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from nasbackup.hypervisor.xml import (
    BackupDisk,
    DiskElement,
    backup_xml,
    checkpoint_xml,
    export_bitmap,
    parse_checkpoint_sizes,
    parse_checkpoint_sources,
    parse_disks,
    parse_job_socket,
    redefine_xml,
)

HOSTILE = ["a&b", "<disk/>", "\"'quoted'\"", "a>b", "&amp;", "</disks>", "]]>", "ä 日本", "a b", "%s{0}"]


def disk(target: str = "vda", *, incremental: str | None = None, has_bitmap: bool = True) -> BackupDisk:
    return BackupDisk(target=target, scratch=f"/scratch/{target}.qcow2", incremental=incremental, has_bitmap=has_bitmap)


def disks_of(document: str) -> dict[str, ET.Element]:
    elements = ET.fromstring(document).findall("./disks/disk")
    named = {element.get("name", ""): element for element in elements}
    assert len(named) == len(elements)
    return named


# --- written --------------------------------------------------------------------------------------------------


def test_a_full_disk_is_exported_under_its_target_with_its_scratch_file() -> None:
    document = backup_xml(socket="/run/one.sock", disks=[disk()], all_targets=["vda"])
    root = ET.fromstring(document)
    assert (root.tag, root.get("mode")) == ("domainbackup", "pull")
    assert root.find("server").attrib == {"transport": "unix", "socket": "/run/one.sock"}  # type: ignore[union-attr]
    vda = disks_of(document)["vda"]
    assert vda.attrib == {
        "name": "vda",
        "backup": "yes",
        "type": "file",
        "exportname": "vda",
        "backupmode": "full",
    }
    assert vda.find("scratch").attrib == {"file": "/scratch/vda.qcow2"}  # type: ignore[union-attr]


def test_an_incremental_disk_names_its_base_and_its_bitmap() -> None:
    vda = disks_of(backup_xml(socket="/s", disks=[disk(incremental="backup-7")], all_targets=["vda"]))["vda"]
    assert (vda.get("backupmode"), vda.get("incremental")) == ("incremental", "backup-7")
    assert vda.get("exportbitmap") == export_bitmap("vda") == "backup-vda"


def test_each_disk_of_one_job_has_a_base_of_its_own() -> None:
    document = backup_xml(socket="/s", disks=[disk("vda", incremental="c"), disk("vdb")], all_targets=["vda", "vdb"])
    modes = {name: element.get("backupmode") for name, element in disks_of(document).items()}
    assert modes == {"vda": "incremental", "vdb": "full"}


def test_disks_left_out_are_left_out_by_name() -> None:
    targets = ["sda", "vda", "vdb"]
    backed_up = disks_of(backup_xml(socket="/s", disks=[disk()], all_targets=targets))
    assert {name: element.get("backup") for name, element in backed_up.items()} == {
        "sda": "no",
        "vda": "yes",
        "vdb": "no",
    }
    assert backed_up["sda"].find("scratch") is None
    checkpointed = disks_of(checkpoint_xml(name="backup-1", disks=[disk()], all_targets=targets))
    assert {name: element.get("checkpoint") for name, element in checkpointed.items()} == {
        "sda": "no",
        "vda": "bitmap",
        "vdb": "no",
    }


def test_a_disk_that_cannot_have_a_bitmap_is_backed_up_and_not_checkpointed() -> None:
    raw = disk("vdb", has_bitmap=False)
    targets = ["vda", "vdb"]
    assert disks_of(backup_xml(socket="/s", disks=[disk(), raw], all_targets=targets))["vdb"].get("backup") == "yes"
    without = disks_of(checkpoint_xml(name="c", disks=[disk(), raw], all_targets=targets))["vdb"]
    assert without.get("checkpoint") == "no"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_and_paths_stay_text(text: str) -> None:
    hostile = BackupDisk(target=text, scratch=f"/x/{text}", incremental=text, has_bitmap=True)
    document = backup_xml(socket=f"/run/{text}", disks=[hostile], all_targets=["other", text])
    found = disks_of(document)
    assert set(found) == {"other", text}
    assert found[text].get("incremental") == text
    assert found[text].find("scratch").get("file") == f"/x/{text}"  # type: ignore[union-attr]
    assert parse_job_socket(document) == f"/run/{text}"
    checkpoint = checkpoint_xml(name=text, disks=[hostile], all_targets=["other", text])
    assert ET.fromstring(checkpoint).findtext("name") == text
    assert disks_of(checkpoint)[text].get("checkpoint") == "bitmap"


def test_a_checkpoint_is_redefined_with_its_time_and_the_disks_that_have_its_bitmap() -> None:
    document = redefine_xml(name="backup-1769896805", targets=["vdb"], all_targets=["vda", "vdb"])
    assert ET.fromstring(document).findtext("creationTime") == "1769896805"
    assert ET.fromstring(document).findtext("name") == "backup-1769896805"
    found = {name: element.get("checkpoint") for name, element in disks_of(document).items()}
    assert found == {"vda": "no", "vdb": "bitmap"}


# --- read -----------------------------------------------------------------------------------------------------

DOMAIN = """
<domain type='kvm'>
  <name>i-2-1234-VM</name>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/images/a&amp;b "&lt;1&gt;".qcow2'/><target dev='vda'/>
    </disk>
    <disk type='block' device='disk'>
      <driver type='raw'/><source dev='/dev/vg/data'/><target dev='vdb'/>
      <encryption format='luks'/>
    </disk>
    <disk type='network' device='disk'>
      <driver type='raw'/><source protocol='rbd' name='pool/image'><host name='ceph' port='6789'/></source>
      <target dev='vdc'/>
    </disk>
    <disk type='network' device='disk'>
      <source protocol='nbd' name='export'><host transport='unix' socket='/run/nbd'/></source><target dev='vde'/>
    </disk>
    <disk type='volume' device='disk'><source pool='default' volume='x.qcow2'/><target dev='vdf'/></disk>
    <disk type='file'>
      <source file='/images/luks.qcow2'><encryption format='luks'/></source><target dev='vdg'/>
    </disk>
    <disk type='file' device='cdrom'><driver type='raw'/><target dev='sda'/><readonly/></disk>
    <disk><source file='/images/plain.img'/><target dev='vdd'/></disk>
    <disk type='file'><source file='/images/without-target.img'/></disk>
    <interface type='network'><source network='default'/><target dev='vnet0'/></interface>
  </devices>
</domain>
"""


def test_disks_are_read_with_source_format_and_kind() -> None:
    found = {element.target: element for element in parse_disks(DOMAIN)}
    assert list(found) == ["vda", "vdb", "vdc", "vde", "vdf", "vdg", "sda", "vdd"]
    assert found["vda"] == DiskElement(
        target="vda",
        source='/images/a&b "<1>".qcow2',
        device="disk",
        type="file",
        format="qcow2",
        readonly=False,
        encrypted=False,
    )
    assert (found["vdb"].source, found["vdb"].encrypted, found["vdg"].encrypted) == ("/dev/vg/data", True, True)
    assert found["vdc"].source == "rbd://ceph:6789/pool/image"
    assert found["vde"].source == "nbd:///run/nbd/export"
    assert found["vdf"].source == "", "a kind that is not understood has no source"
    assert (found["sda"].device, found["sda"].readonly, found["sda"].source) == ("cdrom", True, "")
    assert (found["vdd"].type, found["vdd"].device, found["vdd"].format) == ("file", "disk", "raw")


def test_a_domain_without_disks_has_none() -> None:
    assert parse_disks("<domain><devices/></domain>") == []
    assert parse_disks("<domain/>") == []


CHECKPOINT = f"""
<domaincheckpoint>
  <name>backup-1</name>
  <disks>
    <disk name='vda' checkpoint='bitmap' bitmap='backup-1' size='0'/>
    <disk name='vdb' checkpoint='bitmap' bitmap='backup-1'/>
    <disk name='sda' checkpoint='no'/>
  </disks>
  {DOMAIN}
</domaincheckpoint>
"""


def test_a_bitmap_is_usable_where_libvirt_can_tell_its_size_even_if_nothing_is_dirty() -> None:
    assert parse_checkpoint_sizes(CHECKPOINT) == {"vda": True, "vdb": False}


def test_the_checkpoint_remembers_what_was_at_its_targets() -> None:
    assert parse_checkpoint_sources(CHECKPOINT)["vdb"] == "/dev/vg/data"
    assert parse_checkpoint_sources("<domaincheckpoint><name>x</name></domaincheckpoint>") == {}


@pytest.mark.parametrize(
    ("document", "socket"),
    [
        ("<domainbackup mode='pull'><server transport='unix' socket='/run/a'/></domainbackup>", "/run/a"),
        ("<domainbackup mode='pull'><server transport='tcp' name='localhost' port='10809'/></domainbackup>", ""),
        ("<domainbackup mode='push'/>", ""),
    ],
)
def test_a_job_is_known_by_its_socket(document: str, socket: str) -> None:
    assert parse_job_socket(document) == socket
