"""Every interleaving of two actors over a few backups: deletion never breaks what stays, and leaves nothing behind.

The model of ``deletion_model.py`` is explored to its last state. That this can fail is shown, too: each of its rules,
broken by itself, has to be noticed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.unit import deletion_model as model
from tests.unit.deletion_model import (
    ACTIVE,
    AT_REST,
    BACKED_UP,
    BACKING_UP,
    CLEANED,
    DELETE_PENDING,
    DELETING,
    FAIL,
    FAILED,
    LIVE,
    MAKING,
    MARK,
    NOTHING,
    ONE_WRITER,
    READ,
    RESTORABLE,
    SETTLED,
    VISIBLE,
    WHOLE,
    Actor,
    Catalog,
    Row,
    Rules,
    World,
)

State = tuple[int, Actor, Actor]
"""A catalog, by its number, and both actors; which of them comes first makes no difference."""

Moved = tuple[int, Actor, tuple[int, ...]]
"""Where a step leads, and the numbers of the backups that are gone with it."""


@dataclass
class Explorer:
    """Breadth first: what is wrong is found by one of the shortest ways to it."""

    world: World
    rules: Rules = field(default_factory=Rules)
    catalogs: list[Catalog] = field(default_factory=list)
    before: dict[State, State | None] = field(default_factory=dict)
    """Every state that was seen, and one from which it was reached."""

    def __post_init__(self) -> None:
        self._numbers: dict[Catalog, int] = {}
        self._moves: dict[tuple[int, Actor], list[Moved]] = {}
        self._broken: dict[int, set[str]] = {}
        self._left_over: dict[int, bool] = {}

    def violations(self) -> Iterator[tuple[str, State]]:
        """What does not hold, and where, in the order in which it is found."""
        start = (self._number(Catalog()), AT_REST, AT_REST)
        self.before[start] = None
        todo = deque([start])
        while todo:
            state = todo.popleft()
            for what in self._wrong(state):
                yield what, state
            for following in self._following(state):
                if following not in self.before:
                    self.before[following] = state
                    todo.append(following)

    def story(self, state: State | None) -> str:
        """How it came to that, a state a line."""
        lines: list[str] = []
        while state is not None:
            number, *actors = state
            rows, active, _ = self.catalogs[number]
            lines.append(f"{[tuple(row) for row in rows]} active {active}; {[tuple(actor) for actor in actors]}")
            state = self.before[state]
        return "\n".join(reversed(lines))

    # --- what may follow --------------------------------------------------------------------------------------

    def _following(self, state: State) -> Iterator[State]:
        number, one, two = state
        yield from self._when_acts(number, one, beside=two)
        if one != two:
            yield from self._when_acts(number, two, beside=one)

    def _when_acts(self, number: int, actor: Actor, *, beside: Actor) -> Iterator[State]:
        calm = self.world.calm
        if actor == AT_REST:
            if calm and self.rules.lease and beside != AT_REST:
                return  # the lease is held
            fenced = beside if calm else model.fenced(beside, rules=self.rules)
            for moved in self._moved(number, actor):
                alone = self.rules.restore_leased or moved[1].step != READ
                yield self._state(moved, fenced if alone else beside)
            if not calm and beside.token == 1 and beside.step in MAKING:
                # end_job of the same run, while a task of it that was given up still lives.
                yield _ordered(number, Actor(FAIL, beside.backup, 2), beside)
            return
        if not calm:
            yield _ordered(number, AT_REST, beside)  # killed
        for moved in self._moved(number, actor):
            released = actor.token == 2 and moved[1] == AT_REST
            yield self._state(moved, model.fenced(beside, rules=self.rules) if released else beside)

    def _moved(self, number: int, actor: Actor) -> list[Moved]:
        found = self._moves.get((number, actor))
        if found is None:
            catalog = self.catalogs[number]
            if actor == AT_REST:
                moves = model.beginnings(catalog, rules=self.rules, world=self.world)
            else:
                moves = model.steps(catalog, actor, rules=self.rules)
            found = self._moves[number, actor] = [self._without_gone(*move) for move in moves]
        return found

    def _without_gone(self, catalog: Catalog, actor: Actor) -> Moved:
        gone = []
        while (number := model.first_gone(catalog.rows)) is not None:
            catalog, actor = model.dropped(catalog, number), _renumbered(actor, number)
            gone.append(number)
        return self._number(catalog), actor, tuple(gone)

    def _state(self, moved: Moved, beside: Actor) -> State:
        number, actor, gone = moved
        for backup in gone:
            beside = _renumbered(beside, backup)
        return _ordered(number, actor, beside)

    def _number(self, catalog: Catalog) -> int:
        number = self._numbers.setdefault(catalog, len(self.catalogs))
        if number == len(self.catalogs):
            self.catalogs.append(catalog)
        return number

    # --- what must hold ---------------------------------------------------------------------------------------

    def _wrong(self, state: State) -> Iterator[str]:
        number, one, two = state
        catalog = self.catalogs[number]
        if number not in self._broken:
            self._broken[number] = set(model.broken(catalog))
        yield from self._broken[number]
        if one.token == two.token == 1:
            yield ONE_WRITER
        for actor in (one, two):
            if actor.step == READ and actor.token and catalog.rows[actor.backup].status != BACKED_UP:
                yield ONE_WRITER
        if one == two == AT_REST and self._is_left_over(number):
            yield SETTLED

    def _is_left_over(self, number: int) -> bool:
        """In a calm world nobody has to finish what another began."""
        if number not in self._left_over:
            catalog = self.catalogs[number]
            after = catalog if self.world.calm else model.reconciled(catalog, rules=self.rules)
            self._left_over[number] = not model.is_settled(after.rows)
        return self._left_over[number]


def _ordered(number: int, one: Actor, two: Actor) -> State:
    return (number, one, two) if one <= two else (number, two, one)


def _renumbered(actor: Actor, gone: int) -> Actor:
    """Whoever was about to touch what is gone finds nothing to do."""
    if actor.backup < gone:
        return actor
    return actor._replace(backup=actor.backup - 1) if actor.backup > gone else AT_REST


# --- the product's rules ----------------------------------------------------------------------------------------

CALM = World(backups=4, calm=True)
ANY_CHAINS = World(backups=3, beside_remains=True)
ONE_CHAIN = World(backups=5, one_chain=True)


@pytest.mark.parametrize(
    "world",
    [pytest.param(CALM, id="four, calm"), pytest.param(ANY_CHAINS, id="three"), pytest.param(ONE_CHAIN, id="five")],
)
def test_no_interleaving_and_no_kill_breaks_an_invariant(world: World) -> None:
    explorer = Explorer(world)
    for what, state in explorer.violations():
        pytest.fail(f"{what}\n{explorer.story(state)}")
    print(f"{len(explorer.before)} states, {len(explorer.catalogs)} of them of the catalog and the NAS")
    reached = {catalog.rows for catalog in explorer.catalogs}
    assert chain(*[BACKED_UP] * world.backups) in reached
    assert chain(*[DELETE_PENDING] * (world.backups - 1), BACKED_UP) in reached
    if world is ONE_CHAIN:
        branch = chain(DELETE_PENDING, CLEANED)
        assert (*branch, Row(0, BACKED_UP, WHOLE), Row(2, FAILED, WHOLE)) in reached, "a failed and a good child"


def chain(*statuses: str) -> tuple[Row, ...]:
    return tuple(
        Row(number - 1, status, NOTHING if status == CLEANED else WHOLE) for number, status in enumerate(statuses)
    )


def test_a_deletion_that_nothing_disturbs_does_what_is_predicted() -> None:
    """``after_delete`` is what the real deletions are held against."""
    explorer = Explorer(World(backups=3, one_chain=True, beside_remains=True))
    assert list(explorer.violations()) == []
    compared = 0
    for catalog in explorer.catalogs:
        for backup in range(len(catalog.rows)):
            after = model.alone(catalog, Actor(MARK, backup, 1), rules=Rules())
            predicted = model.after_delete(catalog.rows, backup)
            assert [row[:2] for row in after.rows] == [row[:2] for row in predicted], catalog
            compared += 1
    assert compared > 1000


# --- each rule broken by itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "broken", "noticed"),
    [
        pytest.param(CALM, {"lease": False}, {ONE_WRITER, RESTORABLE}, id="no lease"),
        pytest.param(ANY_CHAINS, {"fencing": False}, {ONE_WRITER, RESTORABLE}, id="no fencing token"),
        pytest.param(
            ANY_CHAINS, {"marked_before_files": False}, {RESTORABLE}, id="Deleting not committed before files go"
        ),
        pytest.param(ANY_CHAINS, {"row_after_files": False}, {SETTLED}, id="the row goes before the files"),
        pytest.param(CALM, {"parent_looked_at": False}, {SETTLED}, id="no look at the parent"),
        pytest.param(
            ANY_CHAINS, {"siblings_looked_at": False}, {RESTORABLE}, id="no look at the parent's other children"
        ),
        pytest.param(ANY_CHAINS, {"live": LIVE - {FAILED}}, {VISIBLE}, id="failed children do not count"),
        pytest.param(ANY_CHAINS, {"live": LIVE - {BACKING_UP}}, {RESTORABLE}, id="children in the making do not count"),
        pytest.param(ANY_CHAINS, {"live": LIVE - {DELETE_PENDING}}, {RESTORABLE}, id="hidden children do not count"),
        pytest.param(ANY_CHAINS, {"live": LIVE - {DELETING}}, {VISIBLE}, id="children that are going do not count"),
        pytest.param(ANY_CHAINS, {"live": frozenset({BACKED_UP})}, {RESTORABLE}, id="only recorded children count"),
        pytest.param(ANY_CHAINS, {"live": LIVE | {CLEANED}}, {SETTLED}, id="clean failed children count"),
        pytest.param(ANY_CHAINS, {"active_cleared": False}, {ACTIVE}, id="the active checkpoint is not cleared"),
        pytest.param(ANY_CHAINS, {"cleaned_after_files": False}, {VISIBLE}, id="clean before the files are gone"),
        pytest.param(ANY_CHAINS, {"undo_looks_again": False}, {RESTORABLE}, id="what was recorded after all is undone"),
        pytest.param(
            ANY_CHAINS, {"finished": frozenset({DELETE_PENDING})}, {SETTLED}, id="Deleting is not gone on with"
        ),
        pytest.param(
            ANY_CHAINS, {"finished": frozenset({DELETING})}, {SETTLED}, id="DeletePending is not gone on with"
        ),
        pytest.param(
            ANY_CHAINS, {"prepare_in_time": False}, {RESTORABLE}, id="an orphan begins after its retry has ended"
        ),
        pytest.param(ANY_CHAINS, {"restore_leased": False}, {ONE_WRITER}, id="a restore without the lease"),
    ],
)
def test_a_broken_rule_is_noticed(world: World, broken: dict[str, Any], noticed: set[str]) -> None:
    explorer = Explorer(world, Rules(**broken))
    missing = set(noticed)
    for what, state in explorer.violations():
        if what in missing:
            print(f"{what}\n{explorer.story(state)}\n")
        missing.discard(what)
        if not missing:
            return
    pytest.fail(f"nobody noticed in {len(explorer.before)} states; expected: {missing}")
