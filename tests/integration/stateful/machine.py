"""The rules: everything that may happen to a VM and its backups, in any order."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.integration.stateful.model import SECTOR, Change
from tests.integration.stateful.world import DECIDED, MOST_DISKS, RECORDED, REPOSITORIES, VERIFIED, World

# One of the attached disks, of the recorded backups…: taken modulo their number.
numbers = st.integers(0, 11)
sectors = st.integers(0, 4200)
lengths = st.sampled_from([1, 8, 100, 128, 700])
first, second = REPOSITORIES
# Two times in three the first repository: chains there get longer.
repositories = st.sampled_from([first, first, second])


def changes_of(*kinds: str) -> st.SearchStrategy[Change]:
    return st.builds(
        _change, st.sampled_from(kinds), disk=numbers, sector=sectors, sectors=lengths, pattern=st.integers(1, 255)
    )


def _change(kind: str, *, disk: int, sector: int, sectors: int, pattern: int) -> Change:
    return Change(kind=kind, disk=disk, sector=sector, sectors=sectors, pattern=pattern if kind == "write" else 0)  # type: ignore[arg-type]


writes = st.lists(changes_of("write"), min_size=1, max_size=3)
zeroes = st.lists(changes_of("zeroes", "unmapped zeroes"), min_size=1, max_size=2)
discards = st.lists(changes_of("discard"), min_size=1, max_size=2)
meanwhile = st.lists(changes_of("write", "unmapped zeroes", "discard"), max_size=3)
sizes = st.sampled_from([SECTOR, 64 << 10, (1 << 20) + SECTOR, 2 << 20, (2 << 20) + SECTOR, 3 << 20])

SETTINGS = [
    *(("nas.backup.incremental.enabled", value) for value in ("true", "false")),
    *(("nas.backup.full.every", value) for value in ("10", "3", "2", "1")),
    *(("nas.backup.stopped.incremental.enabled", value) for value in ("true", "false")),
]

running = precondition(lambda self: self.world.model.running)
stopped = precondition(lambda self: not self.world.model.running)
any_recorded = precondition(lambda self: self.world.kept)


class Machine(RuleBasedStateMachine):
    def __init__(self, make: Callable[[], AbstractContextManager[World]]) -> None:
        super().__init__()
        self._stack = ExitStack()
        self.world = self._stack.enter_context(make())

    def teardown(self) -> None:
        with self._stack:
            if sys.exc_info()[0] is None:  # else this sequence has failed, or is not one, already
                self.world.assert_everything_restores()

    @invariant()
    def holds(self) -> None:
        self.world.assert_holds()

    @initialize(data=writes, backed_up=st.booleans())
    def begin(self, data: list[Change], backed_up: bool) -> None:
        self.world.change(data)
        if backed_up:
            self.world.backup(first)

    # --- the guest --------------------------------------------------------------------------------------------

    @rule(changes=writes)
    def write(self, changes: list[Change]) -> None:
        self.world.change(changes)

    @rule(changes=zeroes)
    def write_zeroes(self, changes: list[Change]) -> None:
        self.world.change(changes)

    @rule(changes=discards)
    def discard(self, changes: list[Change]) -> None:
        self.world.change(changes)

    @running
    @rule()
    def stop(self) -> None:
        self.world.stop()

    @stopped
    @rule()
    def start(self) -> None:
        self.world.start()

    @running
    @rule(flushed=st.booleans(), started_again=st.booleans())
    def kill(self, flushed: bool, started_again: bool) -> None:
        self.world.kill(flushed=flushed)
        if started_again:
            self.world.start()

    @precondition(lambda self: self.world.model.active() or self.world.abandoned)
    @rule()
    def lose_checkpoint_metadata(self) -> None:
        self.world.lose_checkpoint_metadata()

    # --- its disks --------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.world.model.attached) < MOST_DISKS)
    @rule(size=sizes)
    def hotplug(self, size: int) -> None:
        self.world.hotplug(size=size)

    @rule(disk=numbers, size=sizes)
    def resize(self, disk: int, size: int) -> None:
        self.world.resize(disk, size=size)

    @precondition(lambda self: not self.world.model.running and len(self.world.model.attached) > 1)
    @rule(disk=numbers)
    def detach(self, disk: int) -> None:
        self.world.detach(disk)

    @precondition(lambda self: self.world.detached())
    @rule(disk=numbers)
    def reattach(self, disk: int) -> None:
        self.world.reattach(disk)

    # --- backups ----------------------------------------------------------------------------------------------

    @rule(repository=repositories, meanwhile=meanwhile)
    def backup(self, repository: str, meanwhile: list[Change]) -> None:
        self.world.backup(repository, meanwhile=meanwhile)

    @rule(repository=repositories, before=writes, meanwhile=meanwhile)
    def write_and_backup(self, repository: str, before: list[Change], meanwhile: list[Change]) -> None:
        self.world.change(before)
        self.world.backup(repository, meanwhile=meanwhile)

    @rule(repository=repositories)
    def forced_full(self, repository: str) -> None:
        self.world.backup(repository, forced=True)

    @rule(repository=repositories, excluded=numbers)
    def backup_without_a_volume(self, repository: str, excluded: int) -> None:
        self.world.backup(repository, excluded=excluded)

    @rule(repository=repositories)
    def backup_while_the_power_is_switched(self, repository: str) -> None:
        self.world.backup(repository, power_switched=True)

    @rule(
        repository=repositories,
        as_far_as=st.integers(DECIDED, VERIFIED),
        interrupted=st.sampled_from([None, "power switched", "killed"]),
        meanwhile=meanwhile,
    )
    def failing_backup(self, repository: str, as_far_as: int, interrupted: str | None, meanwhile: list[Change]) -> None:
        self.world.fail(repository, as_far_as=as_far_as, interrupted=interrupted, meanwhile=meanwhile)

    @rule(repository=repositories, as_far_as=st.integers(DECIDED, RECORDED), meanwhile=meanwhile)
    def dying_backup(self, repository: str, as_far_as: int, meanwhile: list[Change]) -> None:
        self.world.die(repository, as_far_as=as_far_as, meanwhile=meanwhile)

    @rule(setting=st.sampled_from(SETTINGS), of_the_zone=st.booleans())
    def change_a_setting(self, setting: tuple[str, str], of_the_zone: bool) -> None:
        key, value = setting
        self.world.model.variables[f"{key}.default" if of_the_zone else key] = value

    @precondition(lambda self: self.world.model.variables)
    @rule(number=numbers)
    def unset_a_setting(self, number: int) -> None:
        variables = self.world.model.variables
        del variables[list(variables)[number % len(variables)]]

    # --- deletion ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.deletable())
    @rule(backup=numbers)
    def delete(self, backup: int) -> None:
        self.world.delete(backup)

    @precondition(lambda self: self.world.deletable())
    @rule(backups=st.lists(numbers, min_size=2, max_size=4))
    def delete_several(self, backups: list[int]) -> None:
        for backup in backups:
            if self.world.deletable():
                self.world.delete(backup)

    # --- recovery and restore ---------------------------------------------------------------------------------

    @rule(first_first=st.booleans())
    def reconcile(self, first_first: bool) -> None:
        self.world.reconcile(names=REPOSITORIES if first_first else REPOSITORIES[::-1])

    @any_recorded
    @rule(backup=numbers)
    def restore(self, backup: int) -> None:
        self.world.restore(backup)

    @any_recorded
    @stopped
    @rule(backup=numbers)
    def restore_over_the_vms_own_disks(self, backup: int) -> None:
        self.world.restore_over(backup)
