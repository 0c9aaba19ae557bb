"""Deletion in any order, killed anywhere: on a real catalog and real files, beside the model's predictions.

The rules of ``tests/unit/deletion_model.py``, of which every interleaving is explored there, are held against the real
ones here. No hypervisor takes part. The short run makes the same sequences each time; a long one makes new ones::

    NASBACKUP_STATEFUL_EXAMPLES=500 scripts/test tests/integration/test_deletion_stateful.py
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from nasbackup import layout
from nasbackup.catalog import Cursor, Database, backups, deletions, leases, restore_points
from nasbackup.errors import BackupNotDeletable, BackupNotKept, LeaseLost, NasIo, VmBusy
from nasbackup.model import Backup, BackupStatus
from nasbackup.nas import manifest, publish
from nasbackup.nas.watchdog import watched
from nasbackup.retention.plan import chain_plans
from nasbackup.retention.rules import RetentionRules
from nasbackup.retention.verdicts import RestorePoint, judge
from nasbackup.steps import Ticket

from tests.integration.test_deletion import BEGIN, VM_NAME, Vault, place_for
from tests.unit import deletion_model as model

LONG_RUN = int(os.environ.get("NASBACKUP_STATEFUL_EXAMPLES", "0"))
EXAMPLES = LONG_RUN or 13
SEED = 2  # of the short run; sequences that it does not make are for the long one
STEPS = 25
SECONDS_TO_SHRINK = 600

numbers = st.integers(0, 11)
"""One of the backups, of the repositories...: taken modulo their number."""

several = st.lists(numbers, min_size=1, max_size=4)


# --- a life that ends -------------------------------------------------------------------------------------------


class Killed(BaseException):
    """In place of SIGKILL: from here on nothing this life wanted to do is done."""


@dataclass
class Life:
    """``left``: effects until it is killed; None while nobody wants to kill it. ``amid``: the last one only half."""

    left: int | None = None
    amid: bool = False
    over: bool = False

    def ends_after(self, effects: int, *, amid: bool) -> None:
        self.left, self.amid = effects, amid

    def begins_anew(self) -> None:
        self.left, self.amid, self.over = None, False, False

    def begin_effect(self) -> None:
        if self.over or self.left == 0:
            self.over = True
            raise Killed

    def end_effect(self) -> None:
        if self.left is not None:
            self.left -= 1
            self.begin_effect()


@dataclass(frozen=True, kw_only=True)
class MortalDatabase(Database):
    """A transaction that has changed something is an effect, once it is committed."""

    life: Life = field(repr=False)

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        self.life.begin_effect()
        with super().transaction() as cursor:
            yield cursor
            changed = self.life.left is not None and _has_written(cursor)
        if changed:
            self.life.end_effect()


def _has_written(cursor: Cursor) -> bool:
    """Only then PostgreSQL gives the transaction a number."""
    cursor.execute("SELECT pg_current_xact_id_if_assigned() IS NOT NULL AS written")
    row = cursor.fetchone()
    return bool(row and row["written"])


def mortal(life: Life) -> Any:
    """In place of ``watched`` in steps/delete.py: what the child process has done on the NAS is an effect."""

    def watching(repository: Any, action: str, question: Any, /, *arguments: Any, **options: Any) -> Any:
        life.begin_effect()
        if life.left == 1 and life.amid and question is publish.remove:
            (Path(repository.path) / options["external_id"] / layout.MANIFEST).unlink(missing_ok=True)
            life.left = 0
            life.begin_effect()
        answer = watched(repository, action, question, *arguments, **options)
        life.end_effect()
        return answer

    return watching


# --- the world --------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Run:
    """A run of nas_backup up to the moment in which it could be recorded."""

    vault: Vault
    ticket: Ticket


@dataclass(kw_only=True)
class World:
    vaults: Sequence[Vault]
    life: Life
    run: Run | None = None
    choices: int = 0
    """How many backups there are, as of the last look..."""
    busy: bool = False
    """...whether somebody had the lease..."""
    remains: list[tuple[Vault, Backup]] = field(default_factory=list)
    """...and what was left by runs that died, or failed."""

    @property
    def database(self) -> Database:
        return self.vaults[0].site.database

    @property
    def vm_uuid(self) -> str:
        return self.vaults[0].vm_uuid

    def vault(self, number: int) -> Vault:
        return self.vaults[number % len(self.vaults)]

    def all(self, vault: Vault, *wanted: BackupStatus) -> list[Backup]:
        """Of the VM in this repository, in the order in which they were begun."""
        with self.database.transaction() as cursor:
            found = backups.select_where(
                cursor, "vm.uuid = %s AND r.name = %s", (self.vm_uuid, vault.site.repository.name)
            )
        return [backup for backup in found if not wanted or backup.status in wanted]

    def rows(self, vault: Vault) -> model.Rows:
        """As the model sees them; what it calls files is the external id here, for it survives renumbering."""
        with self.database.transaction() as cursor:
            return self._rows(cursor, vault)

    def _rows(self, cursor: Cursor, vault: Vault) -> model.Rows:
        cursor.execute(
            "SELECT backup_id, parent_id, external_id, status, cleaned_at"
            "  FROM backup JOIN repository r USING (repository_id) JOIN vm USING (vm_id)"
            " WHERE vm.uuid = %s AND r.name = %s ORDER BY backup_id",
            (self.vm_uuid, vault.site.repository.name),
        )
        found = cursor.fetchall()
        numbers = {row["backup_id"]: number for number, row in enumerate(found)}
        return tuple(
            model.Row(
                numbers.get(row["parent_id"], model.NOBODY),
                model.CLEANED if row["status"] == "Failed" and row["cleaned_at"] else row["status"],
                row["external_id"],
            )
            for row in found
        )

    def points(self, vault: Vault) -> Sequence[RestorePoint]:
        """As retention sees them."""
        with self.database.transaction() as cursor:
            known = [vm for vm in restore_points.known_vms(cursor) if vm.vm_uuid == self.vm_uuid]
            holdings = {holding.repository: holding.points for holding in restore_points.holdings(cursor, vms=known)}
        return holdings.get(vault.site.repository.name, [])

    def choose(self, chosen: Sequence[int]) -> tuple[Vault, list[Backup]]:
        """Some backups of one repository: that of the first one."""
        there = [(vault, backup) for vault in self.vaults for backup in self.all(vault)]
        vault, _ = there[chosen[0] % len(there)]
        found = [there[number % len(there)] for number in chosen]
        return vault, list({backup.backup_id: backup for where, backup in found if where is vault}.values())

    # --- the lease --------------------------------------------------------------------------------------------

    def end_run(self) -> Run:
        run, self.run = self.run, None
        assert run is not None
        return run

    def expire_lease(self) -> None:
        with self.database.transaction() as cursor:
            cursor.execute(
                "UPDATE lease SET expires_at = now() - interval '1 second'"
                " WHERE vm_id = (SELECT vm_id FROM vm WHERE uuid = %s)",
                (self.vm_uuid,),
            )

    def _lease(self) -> Any:
        with self.database.transaction() as cursor:
            cursor.execute(
                "SELECT token, expires_at > clock_timestamp() AS lasts"
                "  FROM lease JOIN vm USING (vm_id) WHERE vm.uuid = %s",
                (self.vm_uuid,),
            )
            return cursor.fetchone()

    def has_lease(self, run: Run) -> bool:
        """One that nobody else has taken can be renewed, though it was over."""
        lease = self._lease()
        return lease is not None and lease["token"] == run.ticket.lease_token

    def take_the_lease(self, *, holder: str) -> int:
        with self.database.transaction() as cursor:
            return leases.acquire(cursor, vm_uuid=self.vm_uuid, vm=VM_NAME, holder=holder).token

    def release(self, token: int) -> None:
        with self.database.transaction() as cursor:
            assert leases.release(cursor, vm_uuid=self.vm_uuid, token=token)

    def is_busy(self) -> bool:
        lease = self._lease()
        return lease is not None and bool(lease["lasts"])

    # --- what must hold ---------------------------------------------------------------------------------------

    def assert_holds(self) -> None:
        self.choices, self.busy, self.remains = 0, self.is_busy(), []
        for vault in self.vaults:
            with self.database.transaction() as cursor:
                rows = self._rows(cursor, vault)
                assert not any(row.parent == model.LOST for row in rows)
                self._assert_same_rules(cursor, vault, rows)
            there = self.all(vault)
            unclean = {row.files for row in rows if row.status in (model.BACKING_UP, model.FAILED)}
            self.remains += [(vault, backup) for backup in there if backup.external_id in unclean]
            self.choices += len(there)
            recorded = [backup for backup in there if backup.status is BackupStatus.BACKED_UP]
            vault.assert_whole(*recorded)
            assert vault.active_checkpoint() in (None, recorded[-1].checkpoint if recorded else None)
            self._assert_visible(vault, rows)

    def _assert_same_rules(self, cursor: Cursor, vault: Vault, rows: model.Rows) -> None:
        """The catalog's rules are the model's."""
        cursor.execute(
            "SELECT external_id, backup_id FROM backup WHERE external_id = ANY(%s)", ([r.files for r in rows],)
        )
        ids = {row["external_id"]: row["backup_id"] for row in cursor.fetchall()}
        for number, row in enumerate(rows):
            kept_by = [rows[child].files for child in model.kept_by(rows, number)]
            assert deletions.kept_by(cursor, backup_id=ids[row.files]) == kept_by
            falling = deletions.falling(cursor, backup_id=ids[row.files])
            assert (falling is not None) == model.falling(rows, number)
        unfinished = [
            backup.external_id
            for backup in deletions.unfinished(cursor, vm_uuid=self.vm_uuid)
            if backup.repository == vault.site.repository.name
        ]
        assert unfinished == [rows[number].files for number in model.unfinished(rows)]

    def _assert_visible(self, vault: Vault, rows: model.Rows) -> None:
        """A directory has a row; what looks like a backup is one, down to its full."""
        by_name = {row.files: row for row in rows}
        for name in vault.visible():
            row = by_name[name]
            if not (vault.root / name / layout.MANIFEST).exists():
                assert row.status in (model.BACKING_UP, model.FAILED, model.DELETING)
                continue
            parent = json.loads((vault.root / name / layout.MANIFEST).read_bytes())["chain"]["parent"]
            assert parent is None or (vault.root / parent / layout.MANIFEST).exists()

    def assert_finished(self) -> None:
        """Nothing that nobody is at work on is half deleted, waits for nobody, or lies there without a row."""
        for vault in self.vaults:
            rows = self.rows(vault)
            assert model.unfinished(rows) == []
            with_files = {row.files for row in rows if row.status in (model.BACKED_UP, model.DELETE_PENDING)}
            remains = {row.files for row in rows if row.status in (model.BACKING_UP, model.FAILED)}
            assert with_files <= vault.visible() <= with_files | remains


@contextmanager
def world(database: Database, *, work: Path) -> Iterator[World]:
    """A VM and two repositories of its own."""
    life = Life()
    mortal_database = MortalDatabase(parameters=database.parameters, life=life)
    sites = [place_for(database, work / name, name=f"{name}_{work.name}") for name in ("first", "second")]
    sites = [replace(site, database=mortal_database) for site in sites]
    first = Vault(site=sites[0])
    vaults = [first, *(Vault(site=site, vm_uuid=first.vm_uuid) for site in sites[1:])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nasbackup.steps.delete.watched", mortal(life))
        yield World(vaults=vaults, life=life)


# --- what may happen --------------------------------------------------------------------------------------------

idle = precondition(lambda self: self.world.run is None)
at_work = precondition(lambda self: self.world.run is not None)
any_backups = precondition(lambda self: self.world.choices)
quiet = precondition(lambda self: not self.world.busy)


class Machine(RuleBasedStateMachine):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self._stack = ExitStack()
        self.world: World = self._stack.enter_context(make())

    def teardown(self) -> None:
        with self._stack:
            if sys.exc_info()[0] is None:  # else this sequence has failed, or is not one, already
                self.reconcile()

    @invariant()
    def holds(self) -> None:
        self.world.assert_holds()

    @initialize(length=st.integers(2, 4), branch=st.booleans(), elsewhere=st.integers(0, 2))
    def some_chains(self, length: int, branch: bool, elsewhere: int) -> None:
        for number in range(length):
            self.begin(0, full=False)
            if branch and number == 1:
                self.give_up(cleaned=False)  # its parent has a good child soon, too
                self.begin(0, full=False)
            self.record()
        for _ in range(elsewhere):
            self.begin(1, full=False)
            self.record()

    # --- a run of nas_backup ----------------------------------------------------------------------------------

    @idle
    @rule(repository=numbers, full=st.sampled_from([False, False, False, True]))
    def begin(self, repository: int, full: bool) -> None:
        """Beside the remains of failed backups, too: in another repository they may have to wait."""
        self.world.expire_lease()
        for vault in self.world.vaults:
            for dead in self.world.all(vault, BackupStatus.BACKING_UP):
                self.clean(vault, dead)
        vault = self.world.vault(repository)
        recorded = self.world.all(vault, BackupStatus.BACKED_UP)
        incremental = recorded and vault.active_checkpoint() == recorded[-1].checkpoint and not full
        ticket = vault.begin(parent=recorded[-1] if incremental else None)
        self.world.run = Run(vault=vault, ticket=ticket)

    @at_work
    @rule()
    def record(self) -> None:
        run = self.world.end_run()
        if not self.world.has_lease(run):
            with pytest.raises(LeaseLost):
                run.vault.record(run.ticket)
            return
        recorded = run.vault.record(run.ticket)
        assert run.vault.active_checkpoint() == recorded.checkpoint

    @at_work
    @rule()
    def publish(self) -> None:
        """The step record got that far, whatever has become of its lease."""
        run = self.world.run
        assert run is not None
        partial = run.vault.root / layout.partial_directory(run.ticket.external_id)
        backup = run.vault.load(run.ticket.backup_id)
        there = partial.exists() or (run.vault.root / backup.external_id).exists()
        try:
            publish.publish(
                run.vault.site.repository,
                root=run.vault.root,
                external_id=backup.external_id,
                attempts={volume.file: "a1" for volume in backup.volumes},
                manifest=manifest.build(
                    backup, repository_uuid=run.vault.site.repository_uuid, recorded_at=BEGIN.isoformat()
                ),
            )
        except NasIo:
            assert not there, "only what was undone cannot be published"

    @at_work
    @rule(cleaned=st.booleans())
    def give_up(self, cleaned: bool) -> None:
        run = self.world.end_run()
        if not self.world.has_lease(run):
            with pytest.raises(LeaseLost):
                run.vault.fail(run.ticket)
            return
        run.vault.fail(run.ticket)
        if cleaned:
            self.clean(run.vault, run.vault.load(run.ticket.backup_id))

    @at_work
    @rule(dies=st.booleans())
    def lose_the_lease(self, dies: bool) -> None:
        self.world.expire_lease()
        if dies:
            self.world.run = None

    # --- deletion ---------------------------------------------------------------------------------------------

    @any_backups
    @rule(chosen=several, somebody=st.sampled_from([False, False, False, True]))
    def delete(self, chosen: list[int], somebody: bool) -> None:
        vault, wanted = self.world.choose(chosen)
        busy = self.world.busy
        if somebody and not busy:
            busy, token = True, self.world.take_the_lease(holder="somebody")
        if not busy:
            for backup in wanted:
                self.delete_one(vault, backup)
            return
        before = self.world.rows(vault)
        with pytest.raises(VmBusy):
            vault.delete(*wanted)
        assert self.world.rows(vault) == before
        if not self.world.busy:
            self.world.release(token)

    @any_backups
    @quiet
    @rule(chosen=numbers, leaf_first=st.booleans())
    def delete_a_whole_line(self, chosen: int, leaf_first: bool) -> None:
        vault, (backup,) = self.world.choose([chosen])
        with self.world.database.transaction() as cursor:
            line = backups.lineage(cursor, backup_id=backup.backup_id)
        for layer in reversed(line) if leaf_first else line:
            self.delete_one(vault, layer)

    def delete_one(self, vault: Vault, backup: Backup) -> None:
        before = self.world.rows(vault)
        names = [row.files for row in before]
        if backup.external_id not in names:
            assert vault.delete(backup) == [], "it has fallen with its last child"
            return
        number = names.index(backup.external_id)
        active, now = vault.active_checkpoint(), vault.load(backup.backup_id)
        if model.mark(before, number) is None or now.pinned_at is not None:
            with pytest.raises(BackupNotDeletable):
                vault.delete(backup)
            assert self.world.rows(vault) == before
            return
        (done,) = vault.delete(backup)
        after = self.world.rows(vault)
        assert after == model.after_delete(before, number)
        left = [row.files for row in after]
        assert {gone.external_id for gone in done.removed} == set(names) - set(left)
        if backup.external_id in left:
            kept_by = model.kept_by(after, left.index(backup.external_id))
            assert [after[child].files for child in kept_by] == list(done.kept_by)
        assert done.was_active == (active is not None and active == backup.checkpoint)
        assert vault.active_checkpoint() == (None if done.was_active else active)

    @any_backups
    @quiet
    @rule(chosen=several, effects=st.integers(1, 9), amid=st.booleans())
    def delete_and_be_killed(self, chosen: list[int], effects: int, amid: bool) -> None:
        self.kill(*self.world.choose(chosen), effects=effects, amid=amid)

    @any_backups
    @quiet
    @rule(chosen=numbers, effects=st.integers(1, 6), amid=st.booleans())
    def delete_be_killed_and_finish(self, chosen: int, effects: int, amid: bool) -> None:
        vault, wanted = self.world.choose([chosen])
        self.kill(vault, wanted, effects=effects, amid=amid)
        self.world.assert_holds()
        self._finish(vault)

    def kill(self, vault: Vault, wanted: Sequence[Backup], *, effects: int, amid: bool) -> None:
        """Its lease is over some time later."""
        self.world.life.ends_after(effects, amid=amid)
        with suppress(Killed, BackupNotDeletable):
            vault.delete(*wanted)
        self.world.life.begins_anew()
        self.world.expire_lease()

    @quiet
    @rule(repository=numbers)
    def finish(self, repository: int) -> None:
        self._finish(self.world.vault(repository))

    @precondition(lambda self: self.world.busy)
    @rule(repository=numbers)
    def finish_while_somebody_is_at_work(self, repository: int) -> None:
        vault = self.world.vault(repository)
        before = self.world.rows(vault)
        if model.unfinished(before):
            with pytest.raises(VmBusy):
                vault.finish()
        else:
            assert vault.finish() == []
        assert self.world.rows(vault) == before

    def _finish(self, vault: Vault) -> None:
        rows = self.world.rows(vault)
        names = {row.files for row in rows}
        gone = vault.finish()
        while unfinished := model.unfinished(rows):
            rows = model.after_delete(rows, unfinished[-1])
        assert self.world.rows(vault) == rows
        assert set(gone) == names - {row.files for row in rows}

    @quiet
    @precondition(lambda self: self.world.remains)
    @rule(chosen=numbers)
    def clean_remains(self, chosen: int) -> None:
        """What nas_reconcile does, or the VM's next run."""
        self.clean(*self.world.remains[chosen % len(self.world.remains)])

    def clean(self, vault: Vault, backup: Backup) -> None:
        rows = self.world.rows(vault)
        number = [row.files for row in rows].index(backup.external_id)
        parent = rows[number].parent
        vault.clean(backup)
        rows = (*rows[:number], rows[number]._replace(status=model.CLEANED), *rows[number + 1 :])
        assert self.world.rows(vault) == (model.after_delete(rows, parent) if model.falling(rows, parent) else rows)

    @idle
    @rule()
    def reconcile(self) -> None:
        self.world.expire_lease()
        for vault in self.world.vaults:
            for remains in self.world.all(vault, BackupStatus.BACKING_UP):
                self.clean(vault, remains)
            for remains in self.world.all(vault, BackupStatus.FAILED):
                self.clean(vault, remains)
            vault.finish()
        self.world.assert_finished()

    # --- who else has a say -----------------------------------------------------------------------------------

    @any_backups
    @quiet
    @rule(chosen=numbers, pinned=st.booleans())
    def pin(self, chosen: int, pinned: bool) -> None:
        vault, (backup,) = self.world.choose([chosen])
        with self.world.database.transaction() as cursor:
            if backup.status is not BackupStatus.BACKED_UP:
                with pytest.raises(BackupNotKept):
                    deletions.set_pinned(cursor, backup=backup, pinned=pinned)
                return
            deletions.set_pinned(cursor, backup=backup, pinned=pinned)
        if pinned:
            self.delete_one(vault, backup)

    @quiet
    @rule(
        repository=numbers,
        nights=st.integers(0, 2),
        rules=st.builds(
            RetentionRules,
            keep_last=st.integers(1, 3),
            max_backups=st.sampled_from([None, 1]),
            minimum_fulls=st.integers(0, 1),
        ),
        days=st.sampled_from([1, 100]),
    )
    def retention(self, repository: int, nights: int, rules: RetentionRules, days: int) -> None:
        """What was planned is what becomes of it, chain by chain. Long ago: failed ones go, too."""
        for _ in range(nights if self.world.run is None else 0):
            self.begin(repository, full=False)
            self.record()
        vault = self.world.vault(repository)
        verdicts = judge(self.world.points(vault), rules=rules, now=BEGIN + timedelta(days=days))
        for plan in chain_plans(verdicts):
            before = self.world.rows(vault)
            wanted = {backup.external_id: backup for backup in self.world.all(vault)}
            for external_id, _ in plan.delete:
                self.delete_one(vault, wanted[external_id])
            after = {row.files: row.status for row in self.world.rows(vault)}
            assert len(before) - len(after) == plan.falls
            left = {name: after[name] for name, _ in plan.delete if name in after}
            assert left == dict.fromkeys(plan.pending, model.DELETE_PENDING)
        kept = {verdict.point.external_id for verdict in verdicts if verdict.keep}
        assert kept <= {backup.external_id for backup in self.world.all(vault)}


@pytest.mark.timeout(SECONDS_TO_SHRINK + 10 * EXAMPLES)
def test_any_sequence_of_deletions(database: Database, tmp_path: Path) -> None:
    examples = count(1)

    def machine() -> Machine:
        return Machine(lambda: world(database, work=tmp_path / str(next(examples))))

    run_state_machine_as_test(
        machine if LONG_RUN else seed(SEED)(machine),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
