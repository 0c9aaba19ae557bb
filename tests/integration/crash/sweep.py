"""A task is killed with SIGKILL in every gap between two effects of every step; then one of several things happens.

The gaps are found, not listed: the step runs in a process that dies after its first effect, its second, and so on
until a run of it comes to its end (``effects``). What happens next takes turns (``RECOVERIES``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nasbackup import steps
from nasbackup.errors import NasBackupError
from nasbackup.model import BackupStatus
from nasbackup.reconcile import act, observe, plan

from tests.integration.crash.runner import Outcome, Runner
from tests.integration.crash.world import Run, World, vm_with_base, whole_backup

Recovery = Callable[[Run, str], None]

# --- what happens after the crash -----------------------------------------------------------------------------
# Each takes the run and the step that was killed, and leaves a clean VM: the next gap's run is its next run.


def retried(run: Run, step: str) -> None:
    """Airflow tries the step again, with what the steps before it handed on."""
    if step == "end_job":
        run.do(step)
    else:
        assert run.go_on(step).status is BackupStatus.BACKED_UP


def given_up(run: Run, step: str) -> None:
    """Airflow has no tries left: the teardown runs."""
    was_recorded = run.backup().status is BackupStatus.BACKED_UP
    assert run.ticket
    ending = steps.end_job(run.world.site, ticket=run.ticket, why_failed="a step was killed")
    assert ending.status is (BackupStatus.BACKED_UP if was_recorded else BackupStatus.FAILED)


def abandoned(run: Run, step: str) -> None:
    """Nobody comes back: the lease expires, and the next run of the VM finds what is left."""
    expire_leases(run.world)
    whole_backup(run.world, run_id=f"{run.run_id}/next")


def reconciled(run: Run, step: str) -> None:
    """Nobody comes back, and nas_reconcile finds what is left."""
    site = run.world.site
    expire_leases(run.world)
    outcomes = act(site, actions=plan(observe(site)).to_do, holder="nas_reconcile/crash")
    assert [outcome for outcome in outcomes if not outcome.done] == []
    with site.database.transaction() as cursor:
        cursor.execute("DELETE FROM lease WHERE expires_at < clock_timestamp()")  # as good as none: anybody takes it


def expire_leases(world: World) -> None:
    with world.site.database.transaction() as cursor:
        cursor.execute("UPDATE lease SET expires_at = clock_timestamp() - interval '1 second'")


RECOVERIES: list[Recovery] = [retried, given_up, abandoned, reconciled]


def recoveries_of(step: str) -> list[Recovery]:
    # Without a ticket there is no teardown, and to give up on the teardown is to abandon the run.
    return [recovery for recovery in RECOVERIES if recovery is not given_up or step not in ("decide_chain", "end_job")]


# --- the suite ------------------------------------------------------------------------------------------------


def sweep(connection: Any, *, site: steps.Site, vm_name: str, work: Path, running: bool, scene: str) -> None:
    """Every gap of the scene's step, on one VM. ``scene``: the step, perhaps followed by what came before it."""
    step = scene.partition(" ")[0]
    effects: list[str] = []
    with (
        vm_with_base(connection, site=site, name=vm_name, work=work, running=running) as world,
        Runner(work=work) as runner,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("tempfile.tempdir", str(runner.temporary))  # one for all, as on any host
        killed, number = True, 0
        while killed:
            number += 1
            run = Run(world=world, run_id=f"{step}/{number}")
            world.write()
            _tell_until(run, scene)
            checked = len(world.recorded())
            outcome = runner.run(getattr(steps, step), run.arguments(step), kill_at=number)
            effects, killed = outcome.effects, outcome.killed
            recovery = _recovery(step, number)
            try:
                _recover(run, step, recovery, outcome=outcome)
                world.assert_clean(running=running)
                for backup in world.recorded()[checked:]:
                    world.assert_content(backup)
            except (AssertionError, NasBackupError) as error:
                raise AssertionError(_report(outcome, number, recovery=recovery)) from error
        assert effects, "a step without effects is one that the wrapper does not see"
        assert len(effects) == number - 1, "each run of the step has the same effects: no gap was left out"
        whole_backup(world, run_id="last")
        world.assert_every_content()
        assert list(runner.temporary.iterdir()) == [], "sockets of tools whose users were killed"
    print(f"{len(effects)} effects of {scene}:", *effects, sep="\n")


def _tell_until(run: Run, scene: str) -> None:
    if scene == "end_job of a failed run":
        run.until("copy")
        steps.copy(**run.arguments("copy"))
    elif scene == "decide_chain after a run that died":
        dead = Run(world=run.world, run_id=f"{run.run_id}/dead")
        dead.until("copy")
        steps.copy(**dead.arguments("copy"))
        expire_leases(run.world)
    else:
        run.until(scene)


def _recovery(step: str, number: int) -> Recovery:
    possible = recoveries_of(step)
    return possible[number % len(possible)]


def _recover(run: Run, step: str, recovery: Recovery, *, outcome: Outcome) -> None:
    """What the victim could not say (it is dead), the catalog does."""
    world = run.world
    if not outcome.killed:
        assert outcome.error == "", outcome.error
    if step == "checkpoint" and world.machine.running:
        # The retry finds the job that was begun, or begins one: now or then is the point in time.
        before = world.content()
        world.write()
        run.fix(before, world.content())
    world.assert_no_process()  # Airflow does not try again before, either
    recovery(run, step)


def _report(outcome: Outcome, number: int, *, recovery: Recovery) -> str:
    lines = [f"{index:3} {effect}" for index, effect in enumerate(outcome.effects, start=1)]
    return "\n".join([f"killed after effect {number}, then {recovery.__name__}:", *lines])
