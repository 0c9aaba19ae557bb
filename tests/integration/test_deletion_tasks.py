"""What the tasks of ``nas_retention`` do to a catalog and its repositories, called as the scheduler calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nasbackup import layout
from nasbackup.airflow import deletion_tasks, retention_tasks
from nasbackup.catalog import Database, deletions, restore_points
from nasbackup.errors import DeletionFailed, NotARepository, UnknownRepository
from nasbackup.fleet import ENVIRONMENT
from nasbackup.model import BackupStatus

from tests.integration.test_deletion import Vault, place_for

FLEET = """
zones:
  default: {hosts: [kvm_test], repositories: [nas_new]}
policies:
  none: {vms: ["i-2-*"]}
retention: {keep_orphaned: 90 days}
"""

PARAMS: dict[str, Any] = {"dry_run": False, "backups": None, "vms": None, "rules": {"keep_last": 1}}


@pytest.fixture
def vaults(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Vault]:
    """A VM with backups in an old and in a new repository, of which Airflow has Connections. It knows no host."""
    old = Vault(site=place_for(database, tmp_path / "old", name="nas_old"))
    new = Vault(site=place_for(database, tmp_path / "new", name="nas_new"), vm_uuid=old.vm_uuid)
    monkeypatch.setenv("AIRFLOW_CONN_NAS_BACKUP_CATALOG", str(database.parameters["dsn"]))
    monkeypatch.delenv("AIRFLOW_CONN_KVM_TEST", raising=False)
    for vault in (old, new):
        extra = {"type": "local", "path": str(vault.root)}
        connection = json.dumps({"conn_type": "nas", "extra": extra})
        monkeypatch.setenv(f"AIRFLOW_CONN_{vault.site.repository.name.upper()}", connection)
    (tmp_path / "fleet.yaml").write_text(FLEET)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "fleet.yaml"))
    return [old, new]


def work_of_the_only_vm(**params: Any) -> Any:
    found = retention_tasks.report(params=PARAMS | params, conf=None, dry_run=False)
    (work,) = found["work"]
    return work


def delete(work: Any, **params: Any) -> Any:
    return deletion_tasks.delete_of_vm(work=work, params=PARAMS | params, run_id="scheduled")


@pytest.mark.parametrize("away", ["its Connection is gone", "it is not mounted"])
def test_a_repository_that_is_away_keeps_nothing_in_the_others(
    vaults: list[Vault], monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    old, new = vaults
    before, after = [old.record(old.begin()) for _ in range(2)], [new.record(new.begin()) for _ in range(2)]
    work = work_of_the_only_vm()
    assert [chain["repository"] for chain in work["chains"]] == ["nas_old", "nas_new"], "what is away comes first"
    if away == "its Connection is gone":
        monkeypatch.delenv("AIRFLOW_CONN_NAS_OLD")
    else:
        (old.root / layout.MARKER).rename(old.root.parent / "away")
    result = delete(work)
    failed, done = result["chains"]
    assert "nas_old" in failed["failed"]
    assert failed["left"] == [{"external_id": before[0].external_id, "why": failed["failed"]}]
    assert (failed["files_after"], done["failed"]) == (None, "")
    summary = retention_tasks.summary(deleted=[result])
    assert (summary["deleted"], summary["failed"]) == (1, [failed["failed"]])
    assert summary["bytes_freed"] == done["bytes_freed"] > 0
    with pytest.raises(DeletionFailed, match=r"Deleting failed in 1 of the chains, .*nas_old"):
        deletion_tasks.require_nothing_failed(deleted=[result])
    new.assert_whole(after[-1])
    # Where nothing has gone, nothing is lost by trying again: that is Airflow's.
    with pytest.raises(UnknownRepository if away == "its Connection is gone" else NotARepository, match="nas_old"):
        delete(work)
    if away == "it is not mounted":
        (old.root.parent / "away").rename(old.root / layout.MARKER)
    old.assert_whole(*before)


def test_what_went_before_the_nas_did_is_told(vaults: list[Vault], monkeypatch: pytest.MonkeyPatch) -> None:
    _, new = vaults
    base, middle, last = new.chain(3)
    new.delete(middle)
    work = {"vm": "i-2-1-VM", "vm_uuid": new.vm_uuid, "host": "kvm_test"}
    chain = {"chain": base.external_id, "repository": "nas_new", "policy": ""}
    chain["delete"] = [(name.external_id, "named") for name in (last, base)]
    marker, away, closing = new.root / layout.MARKER, new.root.parent / "away", deletions.close

    def then_unmounted(*arguments: Any, **options: Any) -> Any:
        parent = closing(*arguments, **options)
        marker.rename(away)
        return parent

    with monkeypatch.context() as patch:
        patch.setattr(deletions, "close", then_unmounted)
        result = delete({**work, "chains": [chain]})
    away.rename(marker)
    (told,) = result["chains"]
    assert [removal["external_id"] for removal in told["removed"]] == [last.external_id]
    assert [entry["external_id"] for entry in told["left"]] == [base.external_id]
    assert "no marker file" in told["failed"]
    assert told["bytes_freed"] > 0
    assert new.statuses() == {base.external_id: BackupStatus.BACKED_UP, middle.external_id: BackupStatus.DELETING}
    assert new.finish() == [middle.external_id]
    deletion_tasks.require_nothing_failed(deleted=[delete({**work, "chains": [chain]})])
    assert new.statuses() == {}


def test_a_vm_is_judged_by_its_own_row(vaults: list[Vault]) -> None:
    Vault(site=vaults[0].site)
    with vaults[0].site.database.transaction() as cursor:
        assert len(restore_points.known_vms(cursor)) == 2
        (found,) = restore_points.known_vms(cursor, vm_uuid=vaults[0].vm_uuid)
    assert found.vm_uuid == vaults[0].vm_uuid


def test_a_second_try_says_of_what_the_first_has_done_what_is_true(vaults: list[Vault]) -> None:
    _, new = vaults
    full, middle, kept = new.chain(3)
    (gone,) = new.chain(1)
    last = new.record(new.begin())
    rules = {"keep_last": 1}
    with new.site.database.transaction() as cursor:
        cursor.execute("UPDATE backup SET pinned_at = now() WHERE backup_id = %s", (kept.backup_id,))
    work = work_of_the_only_vm(rules=rules)
    first, second = delete(work, rules=rules), delete(work, rules=rules)
    chains = {chain["chain"]: chain for chain in second["chains"]}
    expected = [(middle.external_id, [kept.external_id]), (full.external_id, [middle.external_id])]
    for result in (first, second):
        (chain,) = [chain for chain in result["chains"] if chain["chain"] == full.external_id]
        assert [(entry["external_id"], list(entry["kept_by"])) for entry in chain["delete_pending"]] == expected
        assert (chain["removed"], chain["left"]) == ([], [])
    assert chains[gone.external_id]["left"] == [
        {"external_id": gone.external_id, "why": "gone already: an earlier try deleted it"}
    ]
    with new.site.database.transaction() as cursor:  # somebody has second thoughts, before a third
        cursor.execute("UPDATE backup SET status = 'BackedUp' WHERE backup_id = %s", (middle.backup_id,))
        cursor.execute("UPDATE backup SET pinned_at = now() WHERE backup_id = %s", (middle.backup_id,))
    (chain,) = [chain for chain in delete(work, rules=rules)["chains"] if chain["chain"] == full.external_id]
    assert chain["left"] == [{"external_id": middle.external_id, "why": "a rule keeps it by now"}]
    assert [entry["external_id"] for entry in chain["delete_pending"]] == [full.external_id]
    assert new.statuses()[last.external_id] is BackupStatus.BACKED_UP


def test_before_the_last_backup_of_a_vm_goes_somebody_is_asked_and_nobody_else_waits(
    vaults: list[Vault], tmp_path: Path
) -> None:
    old, new = vaults
    orphan, elsewhere = old.record(old.begin()), new.record(new.begin())
    with old.site.database.transaction() as cursor:  # a year ago no policy matched it already
        cursor.execute("UPDATE vm SET unprotected_since = now() - interval '1 year'")
        cursor.execute("UPDATE backup SET created_at = now() - interval '1 year'")
    (tmp_path / "fleet.yaml").write_text(FLEET.replace("i-2-*", "i-9-*"))
    found = retention_tasks.report(params=PARAMS | {"rules": None}, conf=None, dry_run=False)
    assert (found["work"], found["question"]) == ([], "")
    (work,) = found["last"]
    assert {chain["chain"] for chain in work["chains"]} == {orphan.external_id, elsewhere.external_id}
    assert found["last_question"] == "it would delete the last backup of i-2-1-VM"
    # One that stays in any repository is enough.
    with old.site.database.transaction() as cursor:
        cursor.execute("UPDATE backup SET pinned_at = now() WHERE backup_id = %s", (elsewhere.backup_id,))
    found = retention_tasks.report(params=PARAMS | {"rules": None}, conf=None, dry_run=False)
    assert (found["last"], found["last_question"]) == ([], "")
    assert [chain["chain"] for chain in found["work"][0]["chains"]] == [orphan.external_id]
