"""``nasbackup delete | pin | unpin | expire | retention | capacity`` on a real VM's backups."""

from __future__ import annotations

import json
from pathlib import Path

import libvirt
import pytest
from nasbackup.catalog import vms
from nasbackup.hypervisor import offline
from nasbackup.model import BackupStatus, BackupType, Mode
from nasbackup.steps.lease import held_lease

from lab import vm as lab
from tests.integration.story import Story
from tests.integration.test_cli import answer, nasbackup, refused

FLEET = """
zones:
  default: {hosts: [kvm_test], repositories: [nas_test]}
policies:
  weekly: {vms: ["i-2-*"], timezone: Europe/Berlin, retention: {keep_last: 1, minimum_fulls: 1}}
capacity: {warn_percent: 100, warn_days: 0}
"""


@pytest.fixture
def fleet_file(tmp_path: Path) -> Path:
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    return file


def test_delete_from_dry_run_to_the_last_parent(story: Story) -> None:
    database, root = story.site.database, Path(story.site.repository.path)
    story.machine.guest_io("vda", "write -P 0x11 0 2M")
    full = story.backup()
    story.machine.guest_io("vda", "write -P 0x12 1M 2M")
    child = story.backup()
    story.machine.guest_io("vda", "write -P 0x13 3M 1M")
    grandchild = story.backup()
    ids = [backup.external_id for backup in (full, child, grandchild)]

    # dry run
    (preview,) = answer(database, "delete", full.external_id, "--dry-run")
    assert (preview["goes"], preview["kept_by"]) == (False, [child.external_id])
    previews = answer(database, "delete", *ids, "--dry-run")
    assert [(preview["external_id"], preview["goes"]) for preview in previews] == [(i, True) for i in reversed(ids)]
    assert [backup["external_id"] for backup in answer(database, "list")] == ids

    # delete-pending: hidden, said why, not restorable
    printed = nasbackup(database, "delete", full.external_id, child.external_id).stdout
    assert f"{child.external_id}: delete-pending, kept by {grandchild.external_id}" in printed
    assert [backup["external_id"] for backup in answer(database, "list")] == [grandchild.external_id]
    hidden = {backup["external_id"]: backup for backup in answer(database, "list", "--all")}
    assert list(hidden) == ids
    assert hidden[full.external_id]["status"] == "DeletePending"
    assert hidden[full.external_id]["kept_by"] == [child.external_id]
    assert f"kept by {grandchild.external_id}" in nasbackup(database, "list", "--all").stdout
    assert answer(database, "show", child.external_id)["kept_by"] == [grandchild.external_id]
    assert "somebody has deleted it" in refused(database, "restore", full.external_id, "--to", str(root / "x"))
    assert "only a BackedUp one can be pinned" in refused(database, "pin", full.external_id)
    story.assert_restores(grandchild.external_id)

    # the leaf takes them along; what is gone already is no error, and was the active one
    gone, deletion = answer(database, "delete", "i-9/2001.01.01.00.00.00", grandchild.external_id)
    assert (gone["external_id"], gone["removed"]) == ("i-9/2001.01.01.00.00.00", [])
    assert [removal["external_id"] for removal in deletion["removed"]] == list(reversed(ids))
    assert (deletion["was_active"], deletion["bytes_freed"] > 2 << 20) == (True, True)
    assert list(root.glob("*/*")) == []
    assert answer(database, "list", "--all") == []
    assert "There is no backup" in refused(database, "delete", full.external_id)
    with database.transaction() as cursor:
        assert vms.active_checkpoint(cursor, vm_uuid=story.machine.uuid, repository="nas_test") is None
    assert story.backup().type is BackupType.FULL
    story.assert_tidy()  # the bitmap of the deleted one went with the next backup


def test_pins_and_expiry_dates(story: Story, fleet_file: Path) -> None:
    database = story.site.database
    first, second = story.backup(mode=Mode.FULL), story.backup(mode=Mode.FULL)

    assert answer(database, "pin", first.external_id) == {"external_id": first.external_id, "pinned": True}
    assert "it is pinned since" in refused(database, "delete", first.external_id)
    assert "pinned" in nasbackup(database, "list").stdout
    assert verdicts(story, fleet_file) == {first.external_id: "pinned", second.external_id: "keep_last"}
    answer(database, "unpin", first.external_id)
    assert verdicts(story, fleet_file) == {first.external_id: "no_rule_keeps_it", second.external_id: "keep_last"}

    answer(database, "expire", first.external_id, "--at", "2199-12-31")
    assert answer(database, "show", first.external_id)["expires"] == "2199-12-31T00:00:00+00:00"
    assert verdicts(story, fleet_file)[first.external_id] == "not_expired_yet"
    answer(database, "expire", first.external_id, "--at", "2001-01-01")
    assert verdicts(story, fleet_file)[first.external_id] == "expired"
    answer(database, "expire", first.external_id, "--never")
    assert answer(database, "show", first.external_id)["expires"] is None
    assert nasbackup(database, "expire", first.external_id, expect=2).stderr.endswith(
        "Give either --at DATE or --never.\n"
    )
    assert "1 of them would be deleted" in nasbackup(database, "retention", "report", "--fleet", str(fleet_file)).stdout


def test_vms_of_hosts_that_the_fleet_does_not_name_are_left_alone(story: Story, fleet_file: Path) -> None:
    """Several Airflows may share a catalog: each judges the VMs of its own hosts."""
    story.backup(mode=Mode.FULL)
    story.backup(mode=Mode.FULL)
    database = story.site.database
    assert answer(database, "retention", "report", "--fleet", str(fleet_file))["to_delete"] == 1
    fleet_file.write_text(FLEET.replace("kvm_test", "kvm_other"))
    found = answer(database, "retention", "report", "--fleet", str(fleet_file))
    assert (found["to_delete"], found["holdings"], found["vms_of_other_hosts"]) == (0, [], {"kvm_test": 1})
    text = nasbackup(database, "retention", "report", "--fleet", str(fleet_file)).stdout
    assert "1 VMs of host kvm_test are left out: fleet.yaml does not name it." in text


def verdicts(story: Story, fleet_file: Path) -> dict[str, str]:
    found = answer(story.site.database, "retention", "report", "--fleet", str(fleet_file), "--vm", "i-2-*")
    (holding,) = found["holdings"]
    assert holding["policy"] == "weekly"
    return {backup["external_id"]: backup["rule"] for backup in holding["backups"]}


def test_a_disk_that_was_detached_meanwhile_brings_back_no_bitmap_of_a_deleted_backup(story: Story) -> None:
    """Found by the search in tests/integration/stateful: the bitmap's name was forgotten with the backup."""
    deleted = story.backup()
    story.machine.destroy()
    image = story.machine.disks["vdb"]
    definition = lab.disk_xml(target="vdb", path=image)
    story.machine.domain.detachDeviceFlags(definition, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    answer(story.site.database, "delete", deleted.external_id)
    story.backup()
    assert deleted.checkpoint in offline.bitmaps(image)
    story.machine.domain.attachDeviceFlags(definition, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    story.backup()
    assert deleted.checkpoint not in offline.bitmaps(image)
    story.assert_tidy()


def test_whoever_works_on_the_vm_is_not_disturbed(story: Story, tmp_path: Path) -> None:
    backup = story.backup()
    database = story.site.database
    with held_lease(database, vm_uuid=story.machine.uuid, vm=story.machine.name, holder="nas_backup/other"):
        sentence = refused(database, "delete", backup.external_id)
        assert "is in use by nas_backup/other until" in sentence
        assert "is in use by" in refused(database, "restore", backup.external_id, "--to", str(tmp_path / "to"))
        assert not (tmp_path / "to").exists()
    with database.transaction() as cursor:
        cursor.execute("SELECT status FROM backup")
        assert [row["status"] for row in cursor.fetchall()] == [BackupStatus.BACKED_UP]
    answer(database, "restore", backup.external_id, "--to", str(tmp_path / "to"))
    story.assert_tidy()  # the lease was given back


def test_simulate_and_capacity(story: Story, fleet_file: Path) -> None:
    database = story.site.database
    simulate = ("retention", "simulate", "--fleet", str(fleet_file), "--days", "400", "--full-every", "7")
    snapshots = answer(database, *simulate, "--policy", "keep_daily=7,keep_weekly=4")
    assert (len(snapshots), snapshots[-1]["restorable"]) == (400, 11)
    assert "keep_daily: 7" in nasbackup(database, *simulate, "--policy", "keep_daily=7,keep_weekly=4").stdout
    assert answer(database, *simulate, "--policy", "weekly")[-1]["restorable"] >= 1
    assert "fleet.yaml has no policy 'nope'. Its policies: weekly." in refused(database, *simulate, "--policy", "nope")
    assert "'keep_dayly' was unexpected" in refused(database, *simulate, "--policy", "keep_dayly=7")
    sentence = refused(database, *simulate, "--policy", "weekly", "--timezone", "Nowhere/X")
    assert "there is no time zone 'Nowhere/X'" in sentence
    done = nasbackup(database, *simulate, "--policy", "weekly", "--start", "9999-12-30", expect=2)
    assert "give a year from 1970 to 9000" in done.stderr

    backup = story.backup()
    (found,) = answer(database, "capacity", "--fleet", str(fleet_file))
    assert (found["repository"], found["backups"]) == ("nas_test", backup.size)
    assert found["used"] + found["free"] == found["total"]
    assert (found["growth_per_day"], found["warning"]) == (None, None)
    fleet_file.write_text(FLEET.replace("warn_percent: 100", "warn_percent: 1"))
    text = nasbackup(database, "capacity", "--fleet", str(fleet_file)).stdout
    assert "is used (warn_percent: 1)" in text
    assert json.loads(nasbackup(database, "capacity", "--fleet", str(fleet_file), "--json").stdout)[0]["warning"]
