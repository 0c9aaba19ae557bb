"""``nasbackup fleet check``: a right file, a wrong one, and which policy each VM gets."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from nasbackup.catalog import Database, inventory
from nasbackup.model import SeenVm, VmState

from tests.integration.test_cli import answer, nasbackup, refused

FLEET = """
zones:
  east: {hosts: [kvm_one], repositories: [nas_main]}
policies:
  gold: {titles: ["Mail *"], metadata: {"http://example.org/tier": "gold*"}, rpo: 26 hours, schedule: "0 1 * * *"}
  standard: {vms: ["i-2-*"], zones: [east]}
"""


@pytest.fixture
def fleet_file(tmp_path: Path) -> Path:
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    return file


def test_every_known_vm_is_explained(database: Database, fleet_file: Path) -> None:
    tier = {"http://example.org/tier": "gold"}
    seen = [
        SeenVm(
            name="i-2-1-VM", uuid="0" * 31 + "1", host="kvm_one", state=VmState.RUNNING, title="Mail 1", metadata=tier
        ),
        SeenVm(name="i-2-2-VM", uuid="0" * 31 + "2", host="kvm_one", state=VmState.STOPPED, title="Mail 2"),
        SeenVm(name="[red]other", uuid="0" * 31 + "3", host="kvm_one", state=VmState.STOPPED),
    ]
    with database.transaction() as cursor:
        inventory.note_seen(cursor, host="kvm_one", seen=seen, now=datetime.now(UTC))
    found = answer(database, "fleet", "check", "--fleet", str(fleet_file))
    assert {vm["vm"]: vm["policy"] for vm in found["vms"]} == {
        "[red]other": None,
        "i-2-1-VM": "gold",
        "i-2-2-VM": "standard",
    }
    why = {vm["vm"]: vm["why"] for vm in found["vms"]}
    assert why["i-2-1-VM"] == (
        "the first that matches, by its title 'Mail 1' (Mail *), its metadata (http://example.org/tier)"
    )
    assert why["i-2-2-VM"] == "the first that matches, by its name (i-2-*), its zone (east)"
    assert [(policy["name"], policy["rpo_seconds"]) for policy in found["policies"]] == [
        ("gold", 93600),
        ("standard", None),
    ]
    printed = nasbackup(database, "fleet", "check", "--fleet", str(fleet_file)).stdout
    assert "[red]other" in printed
    assert "unprotected" in printed
    one = answer(database, "fleet", "check", "--fleet", str(fleet_file), "--vm", "i-2-2-VM")
    assert [vm["vm"] for vm in one["vms"]] == ["i-2-2-VM"]


def test_a_vm_that_does_not_exist_yet(database: Database, fleet_file: Path) -> None:
    check = ["fleet", "check", "--fleet", str(fleet_file), "--vm", "new", "--host", "kvm_one"]
    (found,) = answer(database, *check)["vms"]
    assert found["policy"] is None
    more = ["--title", "Mail 9", "--metadata", "http://example.org/tier=gold plus"]
    (found,) = answer(database, *check, *more)["vms"]
    assert found["policy"] == "gold"


def test_what_is_wrong_is_said_in_a_sentence(database: Database, fleet_file: Path) -> None:
    fleet_file.write_text(FLEET.replace("26 hours", "26h"))
    assert f"{fleet_file}, line 5: policies.gold.rpo: '26h' does not match" in refused(
        database, "fleet", "check", "--fleet", str(fleet_file)
    )
    fleet_file.write_text(FLEET)
    check = ["fleet", "check", "--fleet", str(fleet_file)]
    assert "no host 'kvm_two'" in refused(database, *check, "--vm", "a", "--host", "kvm_two")

    def misused(*arguments: str) -> str:
        return nasbackup(database, *check, *arguments, expect=2).stderr

    assert "--host needs --vm" in misused("--host", "kvm_one")
    assert "need --vm and --host" in misused("--title", "x")
    assert "is not URI=TEXT" in misused("--vm", "a", "--host", "kvm_one", "--metadata", "gold")
