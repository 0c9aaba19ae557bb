"""Which backup a restore drill takes: pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Protocol

from nasbackup.errors import PickFailed
from nasbackup.fleet.policy import is_chosen

_NEVER = datetime.min.replace(tzinfo=UTC)


class Pick(StrEnum):
    NEVER_DRILLED = "never-drilled"
    OLDEST = "oldest"
    RANDOM = "random"


class Candidate(Protocol):
    """A restorable backup; candidates come in the order in which they were begun."""

    @property
    def external_id(self) -> str: ...
    @property
    def vm(self) -> str: ...
    @property
    def drilled_at(self) -> datetime | None: ...
    @property
    def vm_drilled_at(self) -> datetime | None: ...


def pick(candidates: Sequence[Candidate], *, how: Pick, vms: Sequence[str] = (), chance: random.Random) -> str:
    """The external id of one. ``vms``: globs of instance names, none: every VM.

    never-drilled: of the VM whose last drill is longest ago (never is longer), its newest backup without a drill; when
    every backup had one, the one whose drill is longest ago. Raises PickFailed.
    """
    found = [one for one in candidates if is_chosen(one.vm, vms)]
    if not found:
        why = f"no VM with a restorable backup matches {', '.join(vms)}" if vms else "no VM has a restorable backup"
        raise PickFailed(why=why)
    if how is Pick.OLDEST:
        return found[0].external_id
    if how is Pick.RANDOM:
        return chance.choice(found).external_id
    fresh = [one for one in found if one.drilled_at is None]
    if not fresh:
        return min(found, key=lambda one: one.drilled_at or _NEVER).external_id
    longest = min(one.vm_drilled_at or _NEVER for one in fresh)
    chosen = next(one for one in fresh if (one.vm_drilled_at or _NEVER) == longest)
    return [one for one in fresh if one.vm == chosen.vm][-1].external_id
