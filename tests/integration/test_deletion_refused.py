"""What keeps a backup against a deletion, seen on the NAS; and that what is refused hides nothing of what is done."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from nasbackup import layout
from nasbackup.catalog import deletions, readings
from nasbackup.errors import BackupNotDeletable
from nasbackup.model import Backup
from nasbackup.reconcile import act, observe, plan
from nasbackup.reconcile.plan import Kind
from nasbackup.steps import Site, removable

from tests.integration.test_cli import answer, nasbackup
from tests.integration.test_deletion import PENDING, RECORDED, Vault, lose_row, statuses

BUILT = r"on the NAS {} is built on it, which the catalog does not know\. Run `nasbackup rebuild-catalog"
PERHAPS = r"on the NAS {} may be built on it: the catalog does not know it, and its manifest\.json does not say\."


@pytest.fixture
def vault(site: Site) -> Vault:
    return Vault(site=site)


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that are put to the NAS before a removal."""
    asked: list[str] = []
    really = removable.watched

    def noted(repository: Any, action: str, /, *arguments: Any, **options: Any) -> Any:
        asked.append(action)
        return really(repository, action, *arguments, **options)

    monkeypatch.setattr(removable, "watched", noted)
    return asked


def stuck(vault: Vault) -> tuple[Backup, Backup]:
    """A delete-pending backup whose children the catalog knows no more, and the one on the NAS."""
    (parent,) = vault.chain(1)
    known, unknown = vault.record(vault.begin(parent=parent)), vault.record(vault.begin(parent=parent))
    vault.delete(parent)
    lose_row(vault, unknown)
    vault.delete(known)
    assert statuses(vault, parent, known) == [PENDING, None]
    return parent, unknown


def test_a_manifest_that_is_not_sound_keeps_what_it_may_be_built_on(vault: Vault) -> None:
    base, unknown = vault.chain(2)
    lose_row(vault, unknown)
    manifest = vault.root / unknown.external_id / layout.MANIFEST
    content = manifest.read_text()
    document = json.loads(content)
    for text, why in (
        (json.dumps({**document, "version": 2}), BUILT),
        (json.dumps({**document, "type": "DIFFERENTIAL"}), BUILT),
        (json.dumps({"chain": document["chain"]}), BUILT),
        (json.dumps({**document, "chain": {}}), PERHAPS),
        (json.dumps({**document, "chain": {"parent": 7}}), PERHAPS),
        (json.dumps([document]), PERHAPS),
        (content[:-20], PERHAPS),
        ("[" * 100_000, PERHAPS),
        ("", PERHAPS),
    ):
        manifest.write_text(text)
        with pytest.raises(BackupNotDeletable, match=why.format(unknown.external_id)):
            vault.delete(base)
        vault.assert_whole(base)
    manifest.write_text(json.dumps({**document, "version": 2, "chain": {**document["chain"], "parent": None}}))
    vault.delete(base)
    assert vault.visible() == {unknown.external_id}


def test_the_nas_is_asked_once_and_only_about_what_really_goes(vault: Vault, listings: list[str]) -> None:
    made = vault.chain(4)
    vault.delete(*made[:3])
    assert listings == [], "they stay, delete-pending"
    vault.delete(made[3])
    assert (len(listings), vault.statuses()) == (1, {}), "one look for all four"
    vault.delete(*reversed(vault.chain(3)))
    assert (len(listings), vault.statuses()) == (2, {}), "and for all that are named"


def test_one_whose_reader_ends_just_now_does_not_go_unseen(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    base, unknown = vault.chain(2)
    lose_row(vault, unknown)
    with vault.site.database.transaction() as cursor:
        readings.begin(cursor, backup_id=base.backup_id, reader="somebody", seconds=600)
    marking = deletions.mark_kept

    def after_its_end(*arguments: Any, **options: Any) -> bool:
        with vault.site.database.transaction() as cursor:
            readings.end_of(cursor, reader="somebody")
        return marking(*arguments, **options)

    monkeypatch.setattr(deletions, "mark_kept", after_its_end)
    with pytest.raises(BackupNotDeletable, match=BUILT.format(unknown.external_id)):
        vault.delete(base)
    assert statuses(vault, base) == [RECORDED]
    vault.assert_whole(base)


def test_an_old_deletion_that_is_stuck_is_a_warning_after_what_was_done(vault: Vault) -> None:
    database, other = vault.site.database, Vault(site=vault.site)
    parent, unknown = stuck(vault)
    (wanted,), (elsewhere,) = vault.chain(1), other.chain(1)
    done = nasbackup(database, "delete", wanted.external_id, elsewhere.external_id, "--json")
    assert {deletion["external_id"] for deletion in json.loads(done.stdout)} == {
        wanted.external_id,
        elsewhere.external_id,
    }
    assert (
        f"Warning: begun earlier, and it waits on: Backup {parent.external_id} cannot be deleted: on the" in done.stderr
    )
    assert (statuses(vault, parent, wanted), other.statuses()) == ([PENDING, None], {})
    shutil.rmtree(vault.root / unknown.external_id)
    (deletion,) = answer(database, "delete", parent.external_id)
    assert [removal["external_id"] for removal in deletion["removed"]] == [parent.external_id]


def test_what_went_is_told_though_another_that_was_named_is_refused(vault: Vault) -> None:
    base, last = vault.chain(2)
    with vault.site.database.transaction() as cursor:
        deletions.set_pinned(cursor, backup=base, pinned=True)
    done = nasbackup(vault.site.database, "delete", base.external_id, last.external_id, "--json", expect=1)
    assert [deletion["external_id"] for deletion in json.loads(done.stdout)] == [last.external_id]
    assert "it is pinned since" in done.stderr
    with vault.site.database.transaction() as cursor:
        cursor.execute("SELECT FROM lease")
        assert cursor.fetchall() == []


def test_reconcile_says_of_each_deletion_what_came_of_it(vault: Vault) -> None:
    parent, _ = stuck(vault)
    begun = [vault.chain(1)[0] for _ in range(2)]
    with vault.site.database.transaction() as cursor:  # and the worker died
        cursor.execute("UPDATE active_checkpoint SET checkpoint = NULL, backup_id = NULL")
        for backup in begun:
            cursor.execute("UPDATE backup SET status = 'Deleting' WHERE backup_id = %s", (backup.backup_id,))
    outcomes = act(vault.site, actions=plan(observe(vault.site)).to_do, holder="nas_reconcile/test")
    said = {outcome.action.what: outcome for outcome in outcomes if outcome.action.kind is Kind.FINISH_DELETE}
    assert said.keys() == {parent.external_id, *(backup.external_id for backup in begun)}
    assert [said[backup.external_id].done for backup in begun] == [True, True]
    assert not said[parent.external_id].done
    assert "is built on it, which the catalog does not know" in said[parent.external_id].note
    assert statuses(vault, parent, *begun) == [PENDING, None, None]
