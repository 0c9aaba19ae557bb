"""One writer per VM: orphans write nothing that counts, and every step can be killed and run again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from nasbackup import steps
from nasbackup.catalog import backups, leases
from nasbackup.errors import BackupNotOpen, LeaseLost, NasBackupError, VmBusy
from nasbackup.hypervisor import connect, job
from nasbackup.model import Backup, BackupStatus, BackupType, Quiesce
from nasbackup.nas import manifest, publish
from nasbackup.steps import Ticket

from tests.integration.half_runs import MIB, begin, copied, expire_leases, finish, names_on_nas
from tests.integration.story import Story


class Killed(BaseException):
    """Stands for SIGKILL at a named place: no code of the project may catch it and go on."""


# --- a holder that lost its lease -----------------------------------------------------------------------------


def every_step(story: Story, ticket: Ticket, decided: Backup) -> dict[str, Callable[[], object]]:
    volume = decided.volumes[0].name
    return {
        "checkpoint": lambda: steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF),
        "copy": lambda: steps.copy(story.site, ticket=ticket, volume=volume),
        "verify": lambda: steps.verify(story.site, ticket=ticket, volume=volume),
        "record": lambda: steps.record(story.site, ticket=ticket),
    }


def test_after_a_takeover_no_step_of_the_orphan_does_anything(story: Story) -> None:
    story.backup()
    story.machine.guest_io("vda", "write -P 0x41 0 1M")
    orphan, orphaned = begin(story, run_id="orphan")
    copied(story, orphan, orphaned)
    for volume in orphaned.volumes:
        steps.verify(story.site, ticket=orphan, volume=volume.name)  # ready to be recorded
    expire_leases(story)
    heir, inherited = story.decide(run_id="heir")
    assert heir.lease_token > orphan.lease_token
    assert story.load(orphaned.backup_id).status is BackupStatus.FAILED

    def orphan_wakes_up() -> None:
        before = (names_on_nas(story), story.active_checkpoint(), checkpoints(story), story.load(inherited.backup_id))
        for name, step in every_step(story, orphan, orphaned).items():
            with pytest.raises(LeaseLost, match="another run took over"):
                step()
            assert names_on_nas(story) == before[0], name
        ending = steps.end_job(story.site, ticket=orphan)
        assert "nothing to do" in ending.note
        after = (names_on_nas(story), story.active_checkpoint(), checkpoints(story), story.load(inherited.backup_id))
        assert after == before

    orphan_wakes_up()
    steps.checkpoint(story.site, ticket=heir, quiesce=Quiesce.OFF)
    orphan_wakes_up()
    with connect(story.site.host) as hypervisor:
        job.require(hypervisor, name=story.site.job_name(inherited))  # the orphan's end_job has not ended it
    recorded = finish(story, heir, inherited)
    orphan_wakes_up()  # the lease was given back: a token that was once right is none for that

    assert recorded.type is BackupType.INCREMENTAL
    assert recorded.volumes[0].bytes_read == MIB, "what the orphan had copied is copied again"
    assert orphaned.external_id not in names_on_nas(story)
    story.assert_everything_restores()
    story.assert_tidy()


def checkpoints(story: Story) -> set[str]:
    return {checkpoint.getName() for checkpoint in story.machine.domain.listAllCheckpoints()}


def test_an_orphan_cannot_publish_what_the_heir_has_cleaned_up(story: Story) -> None:
    """Past its last look at the lease, the orphan writes to the NAS: it finds nothing there to publish."""
    orphan, orphaned = begin(story, run_id="orphan")
    copied(story, orphan, orphaned)
    loaded = steps.checkpoint(story.site, ticket=orphan, quiesce=Quiesce.OFF)
    expire_leases(story)
    heir, inherited = story.decide(run_id="heir")
    with pytest.raises(NasBackupError):
        publish.publish(
            story.site.repository,
            root=story.site.root(),
            external_id=orphaned.external_id,
            attempts={volume.file: str(volume.attempt) for volume in loaded.volumes},
            manifest=b"{}",
        )
    with pytest.raises(LeaseLost), story.site.database.transaction() as cursor:
        leases.renew(cursor, vm_uuid=orphan.vm_uuid, vm=orphan.vm, token=orphan.lease_token)
    steps.checkpoint(story.site, ticket=heir, quiesce=Quiesce.OFF)
    finish(story, heir, inherited)
    assert names_on_nas(story) == {inherited.external_id}
    story.assert_everything_restores()
    story.assert_tidy()


def test_a_lease_that_is_alive_keeps_every_other_run_out(story: Story) -> None:
    ticket, decided = begin(story, run_id="holder")
    with pytest.raises(VmBusy, match="in use by holder"):
        story.decide(run_id="other")
    finish(story, ticket, decided)
    story.assert_tidy()


def test_an_end_job_that_is_overtaken_by_its_own_runs_retry_fails_nothing(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The orphan looks at the lease, halts, and goes on when decide_chain of the same run has adopted the row."""
    orphan, decided = begin(story, run_id="same run")
    module = import_module("nasbackup.steps.end_job")
    retries: list[Ticket] = []

    def overtaken(host: Any) -> Any:
        if not retries:
            retries.append(story.decide(run_id="same run")[0])
        return connect(host)

    monkeypatch.setattr(module, "connect", overtaken)
    with suppress(LeaseLost):
        steps.end_job(story.site, ticket=orphan)
    monkeypatch.undo()
    (retry,) = retries
    assert retry.backup_id == decided.backup_id
    assert story.load(decided.backup_id).status is BackupStatus.BACKING_UP, "the row is the retry's now"
    steps.checkpoint(story.site, ticket=retry, quiesce=Quiesce.OFF)
    finish(story, retry, decided)
    story.assert_tidy()


# --- steps, again ---------------------------------------------------------------------------------------------


def test_every_step_may_be_called_twice(story: Story) -> None:
    story.backup()
    story.machine.guest_io("vda", "write -P 0x42 2M 1M")
    first, decided = story.decide(run_id="twice")
    ticket, again = story.decide(run_id="twice")
    assert (again.backup_id, again.external_id, again.checkpoint) == (
        decided.backup_id,
        decided.external_id,
        decided.checkpoint,
    )
    with pytest.raises(LeaseLost):
        steps.checkpoint(story.site, ticket=first, quiesce=Quiesce.OFF)

    steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    made = checkpoints(story)
    story.machine.guest_io("vda", "write -P 0x43 4M 1M")  # after the point in time
    steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    assert checkpoints(story) == made, "the second call found the point in time of the first"

    copied(story, ticket, decided)
    copied(story, ticket, decided)
    story.freeze_and_compare(decided)
    for _ in range(2):
        for volume in decided.volumes:
            assert steps.verify(story.site, ticket=ticket, volume=volume.name).verified_at
    recorded = [steps.record(story.site, ticket=ticket) for _ in range(2)]
    assert recorded[0] == recorded[1]
    assert recorded[0].volumes[0].bytes_read == MIB
    endings = [steps.end_job(story.site, ticket=ticket) for _ in range(2)]
    assert [ending.status for ending in endings] == [BackupStatus.BACKED_UP] * 2
    story.backup()
    story.assert_everything_restores()
    story.assert_tidy()


def run_up_to(story: Story, place: str, *, run_id: str) -> tuple[Ticket, Backup]:
    """A run whose process dies at the named place; nothing is cleaned up."""
    ticket, decided = story.decide(run_id=run_id)
    if place == "decided":
        return ticket, decided
    steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    if place == "checkpointed":
        return ticket, decided
    steps.copy(story.site, ticket=ticket, volume=decided.volumes[0].name)
    if place == "half copied":
        return ticket, decided
    steps.copy(story.site, ticket=ticket, volume=decided.volumes[1].name)
    if place == "copied":
        return ticket, decided
    story.freeze_and_compare(decided)
    for volume in decided.volumes:
        steps.verify(story.site, ticket=ticket, volume=volume.name)
    if place == "verified":
        return ticket, decided
    if place == "published":
        killed_between_publish_and_record(story, ticket)
        return ticket, decided
    assert place == "recorded"
    steps.record(story.site, ticket=ticket)
    return ticket, decided


def killed_between_publish_and_record(story: Story, ticket: Ticket) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backups, "record", _killed)
        with pytest.raises(Killed):
            steps.record(story.site, ticket=ticket)


def _killed(*_: object, **__: object) -> None:
    raise Killed


PLACES = ["decided", "checkpointed", "half copied", "copied", "verified", "published", "recorded"]


def test_a_run_that_died_between_any_two_steps_is_replaced_by_the_next_run(story: Story) -> None:
    story.variables["nas.backup.full.every"] = "100"
    previous = story.backup()
    for number, place in enumerate(PLACES, start=1):
        story.machine.guest_io("vda", f"write -P {number} {number}M 1M")
        _, dead = run_up_to(story, place, run_id=f"dead, {place}")
        story.machine.guest_io("vda", f"write -P {number} {number + 8}M 64k")
        expire_leases(story)
        heir = story.backup()
        status = story.load(dead.backup_id).status
        if place == "recorded":
            assert (status, heir.parent) == (BackupStatus.BACKED_UP, dead.external_id)
            assert heir.volumes[0].bytes_read == 65536
        else:
            assert (status, heir.parent) == (BackupStatus.FAILED, previous.external_id), place
            assert heir.volumes[0].bytes_read == MIB + 65536, f"{place}: nothing that changed is lost"
        assert heir.type is BackupType.INCREMENTAL
        story.assert_tidy()
        previous = heir
    story.assert_restores(previous.external_id)  # through all that were recorded


def test_a_run_that_died_between_any_two_steps_is_finished_by_its_own_retry(story: Story) -> None:
    story.variables["nas.backup.full.every"] = "100"
    previous = story.backup()
    for number, place in enumerate(PLACES[:-1], start=1):
        story.machine.guest_io("vda", f"write -P {number} {number}M 1M")
        dead_ticket, dead = run_up_to(story, place, run_id=f"retried, {place}")
        if place in ("verified", "published"):  # the task that died is tried again, alone
            steps.record(story.site, ticket=dead_ticket)
            steps.end_job(story.site, ticket=dead_ticket)
            done = story.load(dead.backup_id)
        else:
            ticket, decided = story.decide(run_id=f"retried, {place}")
            assert decided.backup_id == dead.backup_id, place
            with pytest.raises(LeaseLost):
                steps.copy(story.site, ticket=dead_ticket, volume=dead.volumes[0].name)
            steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
            done = finish(story, ticket, decided)
        assert (done.status, done.parent) == (BackupStatus.BACKED_UP, previous.external_id), place
        assert done.volumes[0].bytes_read == MIB, place
        story.assert_tidy()
        previous = done
    story.assert_restores(previous.external_id)  # through all of them


def test_a_run_that_died_after_publishing_can_be_run_again_from_its_beginning(story: Story) -> None:
    """The whole run was cleared in Airflow: decide_chain finds its row, and the directory is in place already."""
    _, dead = run_up_to(story, "published", run_id="cleared")
    ticket, decided = begin(story, run_id="cleared")
    assert decided.backup_id == dead.backup_id
    assert finish(story, ticket, decided).status is BackupStatus.BACKED_UP
    story.assert_everything_restores()
    story.assert_tidy()


def test_a_directory_that_was_published_and_never_recorded_is_no_backup(story: Story) -> None:
    """The manifest is there already: who reads the NAS alone must not take it for one when the heir is through."""
    _, dead = run_up_to(story, "published", run_id="dead")
    directory = Path(story.site.repository.path) / dead.external_id
    assert manifest.read(directory)["external_id"] == dead.external_id
    assert story.active_checkpoint() is None
    expire_leases(story)
    story.backup()
    assert not directory.exists()
    story.assert_tidy()


# --- orphans of the same run, with the same token ---------------------------------------------------------------


def test_a_backup_that_an_orphan_records_while_end_job_begins_is_not_undone(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the model of deletion (tests/unit/deletion_model.py, ``undo_looks_again``)."""
    ticket, decided = story.decide()
    steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    for volume in decided.volumes:
        steps.copy(story.site, ticket=ticket, volume=volume.name)
        steps.verify(story.site, ticket=ticket, volume=volume.name)
    story.freeze_and_compare(story.load(ticket.backup_id))
    module = sys.modules["nasbackup.steps.end_job"]
    look = module._vm_changed

    def recorded_meanwhile(*args: Any, **kwargs: Any) -> bool:
        steps.record(story.site, ticket=ticket)
        return bool(look(*args, **kwargs))

    monkeypatch.setattr(module, "_vm_changed", recorded_meanwhile)
    ending = steps.end_job(story.site, ticket=ticket)
    assert (ending.status, ending.try_again) == (BackupStatus.BACKED_UP, False)
    story.assert_everything_restores()
    story.assert_tidy()
    assert story.backup().type is BackupType.INCREMENTAL


def test_a_checkpoint_that_comes_too_late_takes_nothing_away(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the model as well (``prepare_in_time``): it waits in libvirt while its retry records the backup."""
    ticket, _ = story.decide(run_id="same")
    module = sys.modules["nasbackup.steps.checkpoint"]
    ask = module.inventory.domain_definition
    waiting = [True]

    def retried_meanwhile(*args: Any, **kwargs: Any) -> str:
        if waiting.pop() if waiting else False:
            again, decided = story.decide(run_id="same")
            steps.checkpoint(story.site, ticket=again, quiesce=Quiesce.OFF)
            for volume in decided.volumes:
                steps.copy(story.site, ticket=again, volume=volume.name)
                steps.verify(story.site, ticket=again, volume=volume.name)
            story.freeze_and_compare(story.load(again.backup_id))
            steps.record(story.site, ticket=again)
            steps.end_job(story.site, ticket=again)
        return str(ask(*args, **kwargs))

    monkeypatch.setattr(module.inventory, "domain_definition", retried_meanwhile)
    with pytest.raises(BackupNotOpen, match="is published"):
        steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    story.assert_everything_restores()
    story.assert_tidy()
    assert story.backup().type is BackupType.INCREMENTAL
