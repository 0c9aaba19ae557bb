"""Runs of a story that are left in their midst, and what is there then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nasbackup import steps
from nasbackup.model import Backup, Quiesce
from nasbackup.steps import Ticket

from tests.integration.story import Story

MIB = 1 << 20


def expire_leases(story: Story) -> None:
    with story.site.database.transaction() as cursor:
        cursor.execute("UPDATE lease SET expires_at = now() - interval '1 second'")


def copied(story: Story, ticket: Ticket, decided: Backup) -> None:
    for volume in decided.volumes:
        steps.copy(story.site, ticket=ticket, volume=volume.name)


def finish(story: Story, ticket: Ticket, decided: Backup) -> Backup:
    """From the point in time (fixed already) to the end of the run."""
    copied(story, ticket, decided)
    story.freeze_and_compare(decided)
    for volume in decided.volumes:
        steps.verify(story.site, ticket=ticket, volume=volume.name)
    steps.record(story.site, ticket=ticket)
    steps.end_job(story.site, ticket=ticket)
    return story.load(decided.backup_id)


def begin(story: Story, **request: Any) -> tuple[Ticket, Backup]:
    ticket, decided = story.decide(**request)
    steps.checkpoint(story.site, ticket=ticket, quiesce=Quiesce.OFF)
    return ticket, decided


def names_on_nas(story: Story) -> set[str]:
    root = Path(story.site.repository.path)
    return {str(path.relative_to(root)) for path in root.glob("*/*") if path.is_dir()}
