"""Backups of one VM in one repository as a state machine: what is committed, what lies on the NAS, who is at work.

One step of an actor is one committed transaction or one effect on the NAS. Between any two it may be killed, and
another may go on. ``mark``, ``kept_by``, ``falling`` and ``unfinished`` are those of ``catalog/deletions.py`` and of
its view, each said once: ``tests/integration/test_deletion_stateful.py`` holds them against the real ones.

Left out, because nobody could tell the difference:

- time: a lease may be over at any moment, so one that was left by the dead is as good as none;
- the moment between taking the lease and the first transaction under it: an end there is like never having begun;
- several deletions under one lease: they are deletions one after another, in any order, leaf first and root first.

Left out on purpose is PostgreSQL's own refusal to take a parent away (a constraint): the rules must do without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

BACKING_UP, BACKED_UP, FAILED = "BackingUp", "BackedUp", "Failed"
CLEANED = "Failed, clean"  # two columns of a row: Failed, and cleaned_at is set
DELETE_PENDING, DELETING = "DeletePending", "Deleting"
GONE = "gone"  # no row any more

# On the NAS. The last two are visible; half is what a removal that was killed leaves.
NOTHING, PARTIAL, WHOLE, HALF = "nothing", "partial", "whole", "half"

# In place of a backup's number: none, and one that is gone although it was needed.
NOBODY, LOST = -1, -2

IDLE, OPEN, PREPARE, COPIED, PUBLISH, RECORD = "idle", "open", "prepare", "copied", "publish", "record"
FAIL, CLEAN, SET_CLEANED, MARK, REMOVE, CLOSE, READ = "fail", "clean", "set cleaned", "mark", "remove", "close", "read"

LIVE = frozenset({BACKING_UP, BACKED_UP, FAILED, DELETE_PENDING, DELETING})
MAKING = frozenset({PREPARE, COPIED, PUBLISH, RECORD})
EFFECTS = frozenset({PUBLISH, CLEAN, REMOVE})  # and prepare, unless ``Rules.prepare_in_time``


class Row(NamedTuple):
    parent: int
    status: str
    files: str = NOTHING


Rows = tuple[Row, ...]


class Catalog(NamedTuple):
    """``rows``: in the order in which the backups were begun. ``active``: the owner of the active checkpoint."""

    rows: Rows = ()
    active: int = NOBODY
    begun: int = 0


class Actor(NamedTuple):
    """What it does next, with which backup. ``token``: 1 is the lease's, 2 the same one in end_job, 0 is outdated."""

    step: str = IDLE
    backup: int = NOBODY
    token: int = 0


AT_REST = Actor()
Moved = tuple[Catalog, Actor]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is promised. A test breaks one at a time, to show what it is good for."""

    lease: bool = True  # who has it is alone
    fencing: bool = True  # each transaction shows its token
    live: frozenset[str] = LIVE  # children in these states keep their parent
    marked_before_files: bool = True  # Deleting is committed before a file goes
    row_after_files: bool = True
    active_cleared: bool = True  # with the backup that owns the active checkpoint
    parent_looked_at: bool = True  # when a child is gone, or is clean
    siblings_looked_at: bool = True  # before a parent falls
    cleaned_after_files: bool = True  # a failed backup is noted as clean when nothing of it is left
    undo_looks_again: bool = True  # nothing is undone that was recorded after all
    finished: frozenset[str] = frozenset({DELETE_PENDING, DELETING})  # what finish goes on with
    prepare_in_time: bool = True  # an orphan never makes its directory anew beside or after its own retry
    restore_leased: bool = True  # a restore excludes whatever would take away what it reads


@dataclass(frozen=True, kw_only=True)
class World:
    """How much is looked at. ``calm``: nobody is killed, and no lease ends before its holder is done.

    ``beside_remains``: a backup may be begun while the remains of a failed one are still there.
    """

    backups: int
    one_chain: bool = False
    calm: bool = False
    beside_remains: bool = False


# --- the rules of deletion --------------------------------------------------------------------------------------


def kept_by(rows: Sequence[Row], backup: int, *, live: frozenset[str] = LIVE) -> list[int]:
    """The children for which it has to exist."""
    return [number for number, row in enumerate(rows) if row.parent == backup and row.status in live]


def mark(rows: Sequence[Row], backup: int, *, live: frozenset[str] = LIVE) -> str | None:
    """What becomes of one that is to be deleted; None when that is refused."""
    status = rows[backup].status
    if status in (BACKING_UP, FAILED, GONE):
        return None
    return DELETE_PENDING if status != DELETING and kept_by(rows, backup, live=live) else DELETING


def falling(rows: Sequence[Row], backup: int, *, live: frozenset[str] = LIVE) -> bool:
    """Whether it only waited for its children, and none of them keeps it any more."""
    return backup >= 0 and rows[backup].status == DELETE_PENDING and not kept_by(rows, backup, live=live)


def unfinished(rows: Sequence[Row], *, live: frozenset[str] = LIVE) -> list[int]:
    """Deletions that were begun and can go on."""
    return [number for number, row in enumerate(rows) if row.status == DELETING or falling(rows, number, live=live)]


def without(rows: Rows, backup: int) -> Rows:
    """Its row is gone, later numbers move up. A clean failed child gives it up, any other one has lost it."""
    left = []
    for row in rows[:backup] + rows[backup + 1 :]:
        if row.parent == backup:
            left.append(row._replace(parent=NOBODY if row.status == CLEANED else LOST))
        else:
            left.append(row._replace(parent=row.parent - 1) if row.parent > backup else row)
    return tuple(left)


def after_delete(rows: Rows, backup: int) -> Rows:
    """What delete(B) makes of it, undisturbed and to its end."""
    status = mark(rows, backup)
    if status != DELETING:
        return rows if status is None else _set(rows, backup, status=status)
    parent = rows[backup].parent
    rows = without(rows, backup)
    return after_delete(rows, parent) if falling(rows, parent) else rows


def latest_recorded(rows: Sequence[Row]) -> int:
    return max((number for number, row in enumerate(rows) if row.status == BACKED_UP), default=NOBODY)


# --- steps ------------------------------------------------------------------------------------------------------


def beginnings(catalog: Catalog, *, rules: Rules, world: World) -> Iterator[Moved]:
    """Whatever somebody may begin who has just taken the lease; a deletion and an undoing with their first mark."""
    rows = catalog.rows
    in_the_way = {BACKING_UP} if world.beside_remains else {BACKING_UP, FAILED}
    if catalog.begun < world.backups and not any(row.status in in_the_way for row in rows):
        if not (world.one_chain and catalog.begun):
            yield catalog, Actor(OPEN, NOBODY, 1)
        if catalog.active != NOBODY and catalog.active == latest_recorded(rows):
            yield catalog, Actor(OPEN, catalog.active, 1)
    for number, row in enumerate(rows):
        if row.status == BACKING_UP:
            yield catalog, Actor(PREPARE, number, 1)  # the same run tries again
        if row.status in (BACKING_UP, FAILED):
            yield one_step(catalog, Actor(FAIL, number, 1), rules=rules)  # the next run, or nas_reconcile, undoes it
        if row.status == CLEANED and row.files != NOTHING:
            yield catalog, Actor(CLEAN, number, 1)
        if mark(rows, number, live=rules.live) is not None:
            yield one_step(catalog, Actor(MARK, number, 1), rules=rules)
        if row.status == BACKED_UP:
            yield catalog, Actor(READ, number, 1)


def steps(catalog: Catalog, actor: Actor, *, rules: Rules) -> Iterator[Moved]:
    """What one that is at work may do next; a run may give its backup up."""
    after, following = one_step(catalog, actor, rules=rules)
    yield after, following if actor.token else fenced(following, rules=rules)
    if actor.step in MAKING and actor.token:
        yield one_step(catalog, actor._replace(step=FAIL), rules=rules)


def fenced(actor: Actor, *, rules: Rules) -> Actor:
    """The lease is another's now: an effect that is at hand may still happen, a transaction can only fail."""
    if not (rules.lease and rules.fencing) or (actor.step == READ and not rules.restore_leased):
        return actor
    lives_on = actor.step in EFFECTS or (actor.step == PREPARE and not rules.prepare_in_time)
    return actor._replace(token=0) if lives_on else AT_REST


def one_step(catalog: Catalog, actor: Actor, *, rules: Rules) -> Moved:
    step, backup, _ = actor
    rows, active, begun = catalog
    if step == OPEN:
        opened = Catalog((*rows, Row(backup, BACKING_UP)), active, begun + 1)
        return opened, actor._replace(step=PREPARE, backup=len(rows))
    row, following = rows[backup], AT_REST
    if step == PREPARE:
        files = HALF if row.files == WHOLE else PARTIAL
        rows, following = _set(rows, backup, files=files), actor if files == HALF else actor._replace(step=COPIED)
    elif step == COPIED and row.status == BACKING_UP:
        following = actor._replace(step=PUBLISH)
    elif step == PUBLISH:
        rows = _set(rows, backup, files=WHOLE) if row.files == PARTIAL else rows
        following = actor._replace(step=RECORD)
    elif step == RECORD and row.status == BACKING_UP:
        rows, active = _set(rows, backup, status=BACKED_UP), backup
    elif step == FAIL:
        rows = _set(rows, backup, status=FAILED) if row.status == BACKING_UP else rows
        if rows[backup].status == FAILED or not rules.undo_looks_again:
            following = actor._replace(step=CLEAN if rules.cleaned_after_files else SET_CLEANED)
    elif step == CLEAN:
        rows, following = _removed(rows, actor, then=SET_CLEANED if rules.cleaned_after_files else IDLE)
    elif step == SET_CLEANED:
        rows = _set(rows, backup, status=CLEANED) if row.status == FAILED else rows
        rows, following = _parent_falls(rows, actor, rules)
        following = following if rules.cleaned_after_files else actor._replace(step=CLEAN)
    elif step == MARK:
        status = mark(rows, backup, live=rules.live)
        if status is not None:
            active = NOBODY if active == backup and rules.active_cleared else active
            rows = _set(rows, backup, status=status) if status != DELETING or rules.marked_before_files else rows
        if status == DELETING:
            following = actor._replace(step=REMOVE if rules.row_after_files else CLOSE)
    elif step == REMOVE:
        rows, following = _removed(rows, actor, then=CLOSE if rules.row_after_files else IDLE)
    elif step == CLOSE and (row.status == DELETING or not rules.marked_before_files):
        rows, following = _parent_falls(_set(rows, backup, status=GONE), actor, rules)
        following = following if rules.row_after_files else actor._replace(step=REMOVE)
    return Catalog(rows, active, begun), following


def _removed(rows: Rows, actor: Actor, *, then: str) -> tuple[Rows, Actor]:
    """The manifest goes before the rest."""
    files = HALF if rows[actor.backup].files == WHOLE else NOTHING
    following = actor if files == HALF else actor._replace(step=then) if then != IDLE else AT_REST
    return _set(rows, actor.backup, files=files), following


def _parent_falls(rows: Rows, actor: Actor, rules: Rules) -> tuple[Rows, Actor]:
    parent = rows[actor.backup].parent
    if not rules.parent_looked_at or parent < 0:
        return rows, AT_REST
    if not rules.siblings_looked_at and rows[parent].status == DELETE_PENDING:
        return _set(rows, parent, status=DELETING), actor._replace(step=REMOVE, backup=parent)
    falls = falling(rows, parent, live=rules.live)
    return rows, actor._replace(step=MARK, backup=parent) if falls else AT_REST


def _set(rows: Rows, backup: int, **changes: str) -> Rows:
    return (*rows[:backup], rows[backup]._replace(**changes), *rows[backup + 1 :])  # type: ignore[arg-type]


# --- what must hold ---------------------------------------------------------------------------------------------

RESTORABLE = "invariant 1: every ancestor of a recorded backup is in the catalog and on the NAS"
ACTIVE = "invariant 2: the active checkpoint is that of the latest recorded backup, or null"
VISIBLE = "invariant 3: what is visible on the NAS is complete, with its ancestors, or belongs to a row that says why"
ONE_WRITER = "invariant 4: two hold the lease, or somebody deletes what is being restored"
SETTLED = "afterwards nothing is left half deleted, waits for nobody, or lies on the NAS without a row"


def broken(catalog: Catalog) -> Iterator[str]:
    """Invariants that do not hold of the catalog and the NAS."""
    rows = catalog.rows
    if catalog.active not in (NOBODY, latest_recorded(rows)):
        yield ACTIVE
    for row in rows:
        line = list(_line(rows, row))
        complete = all(found is not None and found.files == WHOLE for found in line)
        stays = all(found is not None and found.status in (BACKED_UP, DELETE_PENDING) for found in line)
        if row.status == BACKED_UP and not (complete and stays):
            yield RESTORABLE
        explained = row.files != HALF or row.status in (BACKING_UP, FAILED, DELETING)
        if not explained or (row.files == WHOLE and not complete):
            yield VISIBLE


def _line(rows: Rows, row: Row | None) -> Iterator[Row | None]:
    while row is not None:
        yield row
        if row.parent == NOBODY:
            return
        row = rows[row.parent] if row.parent != LOST else None
    yield None


def reconciled(catalog: Catalog, *, rules: Rules) -> Catalog:
    """After nas_reconcile has run to its end, alone."""
    while (actor := _to_reconcile(catalog.rows, rules)) is not None:
        catalog = alone(catalog, actor, rules=rules)
    return catalog


def alone(catalog: Catalog, actor: Actor, *, rules: Rules) -> Catalog:
    """After one that nobody disturbs has come to its end."""
    while actor != AT_REST:
        catalog, actor = one_step(catalog, actor, rules=rules)
    while (gone := first_gone(catalog.rows)) is not None:
        catalog = dropped(catalog, gone)
    return catalog


def _to_reconcile(rows: Rows, rules: Rules) -> Actor | None:
    for number, row in enumerate(rows):
        if row.status in (BACKING_UP, FAILED) or (row.status == CLEANED and row.files != NOTHING):
            return Actor(CLEAN if row.status == CLEANED else FAIL, number, 1)
    waiting = [number for number in unfinished(rows, live=rules.live) if rows[number].status in rules.finished]
    return Actor(MARK, waiting[-1], 1) if waiting else None


def first_gone(rows: Rows) -> int | None:
    return next((number for number, row in enumerate(rows) if row.status == GONE and row.files == NOTHING), None)


def dropped(catalog: Catalog, gone: int) -> Catalog:
    active = LOST if catalog.active == gone else catalog.active - (catalog.active > gone)
    return Catalog(without(catalog.rows, gone), active, catalog.begun)


def is_settled(rows: Rows) -> bool:
    kept = {number for number, row in enumerate(rows) if row.status == BACKED_UP}
    for number in reversed(range(len(rows))):
        if number in kept and rows[number].parent >= 0:
            kept.add(rows[number].parent)
    return all(
        row.files == (WHOLE if row.status in (BACKED_UP, DELETE_PENDING) else NOTHING)
        and (row.status in (BACKED_UP, CLEANED) or (row.status == DELETE_PENDING and number in kept))
        for number, row in enumerate(rows)
    )
