"""decide_chain beside others: an attempt that wakes up late, a run that is refused; and how far it looks back."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from nasbackup import steps
from nasbackup.catalog import restore_points
from nasbackup.catalog.standing import MOSTLY
from nasbackup.errors import LeaseLost, VmBusy
from nasbackup.estimate import History
from nasbackup.hypervisor import checkpoints
from nasbackup.model import BackupStatus, Mode, Quiesce
from nasbackup.steps import decide
from nasbackup.steps.ticket import partial_path

from tests.integration.story import Story


@pytest.mark.parametrize("hangs_before", ["looking", "adopting"])
def test_an_attempt_that_wakes_up_after_its_successor_began_takes_nothing_from_it(
    story: Story, monkeypatch: pytest.MonkeyPatch, hangs_before: str
) -> None:
    """Two attempts of one run: Airflow gave the first up, whose process was frozen with the lease in its hands."""
    place, name = {"looking": (checkpoints, "names"), "adopting": (decide.backups, "get_many")}[hangs_before]
    real, asleep, wake = getattr(place, name), threading.Event(), threading.Event()

    def hangs_once(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        if not asleep.is_set():
            asleep.set()
            assert wake.wait(60)
        return found

    if hangs_before == "adopting":  # there is a row, which an earlier attempt wrote
        story.decide(run_id="run")
    monkeypatch.setattr(place, name, hangs_once)
    with ThreadPoolExecutor(1) as pool:
        orphan = pool.submit(story.decide, run_id="run")
        try:
            assert asleep.wait(60)
            ticket, decided = story.decide(run_id="run")
            steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
            for volume in decided.volumes:
                steps.copy(story.site, ticket=ticket, volume=volume.name)
            before = sorted(partial_path(story.site.root(), backup=decided).iterdir())
        finally:
            wake.set()
        with pytest.raises(LeaseLost):
            orphan.result(60)
    assert sorted(partial_path(story.site.root(), backup=decided).iterdir()) == before
    story.freeze_and_compare(decided)
    for volume in decided.volumes:
        steps.verify(story.site, ticket=ticket, volume=volume.name)
    steps.record(story.site, ticket=ticket)
    steps.end_job(story.site, ticket=ticket)
    assert story.load(ticket.backup_id).status is BackupStatus.BACKED_UP
    story.assert_everything_restores()
    story.assert_tidy()


def test_a_run_that_is_refused_says_nothing_of_where_the_vm_is(story: Story) -> None:
    """It may have found the definition that a migration left behind."""
    ticket, decided = story.decide()
    elsewhere = replace(story.site, host=replace(story.site.host, name="kvm_elsewhere"))
    with pytest.raises(VmBusy, match=decided.run_id):
        replace(story, site=elsewhere).decide()
    assert where_vms_are(story) == {story.machine.uuid: (story.machine.name, "kvm_test")}
    steps.end_job(story.site, ticket=ticket, why_failed="this test goes on elsewhere")
    ticket, _ = replace(story, site=elsewhere).decide()
    assert where_vms_are(story) == {story.machine.uuid: (story.machine.name, "kvm_elsewhere")}
    steps.end_job(elsewhere, ticket=ticket, why_failed="this test ends here")


def where_vms_are(story: Story) -> dict[str, tuple[str, str]]:
    with story.site.database.reading() as cursor:
        return {vm.vm_uuid: (vm.vm, vm.host) for vm in restore_points.known_vms(cursor)}


def test_a_volume_that_was_away_for_a_dozen_backups_is_still_known(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[History] = []
    real = decide.require_room

    def noted(site: Any, *, layers: History, **rest: Any) -> None:
        asked.append(layers)
        real(site, layers=layers, **rest)

    monkeypatch.setattr(decide, "require_room", noted)
    first = story.backup(mode=Mode.FULL)
    root, away = (volume.source for volume in first.volumes)
    _repeat_without_its_last_volume(story, backup_id=first.backup_id, times=MOSTLY)
    ticket, _ = story.decide(mode=Mode.FULL)
    steps.end_job(story.site, ticket=ticket, why_failed="this test only looks")
    assert {source: len(layers) for source, layers in asked[-1].items()} == {root: MOSTLY + 1, away: 1}


def _repeat_without_its_last_volume(story: Story, *, backup_id: int, times: int) -> None:
    with story.site.database.transaction() as cursor:
        cursor.execute(
            """
            WITH more AS (
                INSERT INTO backup (vm_id, repository_id, external_id, type, status, reason, explanation, chain_id,
                                    chain_position, host, vm_state, request, run_id, lease_token, created_at,
                                    recorded_at, size)
                SELECT vm_id, repository_id, external_id || n, type, status, reason, explanation, chain_id,
                       chain_position, host, vm_state, request, run_id, lease_token, created_at, recorded_at, size
                  FROM backup, generate_series(1, %(times)s) n WHERE backup_id = %(backup_id)s
                RETURNING backup_id
            )
            INSERT INTO backup_volume (backup_id, ordinal, name, source, target, format, file, virtual_size, type,
                                       reason, bytes_read, bytes_written)
            SELECT more.backup_id, ordinal, name, source, target, format, file, virtual_size, type, reason, bytes_read,
                   bytes_written
              FROM more, backup_volume v WHERE v.backup_id = %(backup_id)s AND ordinal = 0
            """,
            {"backup_id": backup_id, "times": times},
        )
