"""Nobody waits for ever for a NAS that does not answer.

A question to the NAS is put by a child process (``nasbackup.apart``). Whether its silence means "slow" or "dead" is
found out by asking something small: see ``probe``.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from nasbackup.apart import Apart, HelperKilled
from nasbackup.errors import NasIo
from nasbackup.layout import MARKER
from nasbackup.model import Repository

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)

NO_ANSWER_SECONDS = 60.0
"""A NAS that says nothing for this long does not answer. NFS servers that fail over are back within it, mostly."""

_AT_MOST = 10
"""Times NO_ANSWER_SECONDS: one question that takes longer is given up, whatever else the NAS answers meanwhile."""


def watched(
    repository: Repository, action: str, question: Callable[P, T], /, *arguments: P.args, **options: P.kwargs
) -> T:
    """What ``question(*arguments, **options)`` returns or raises; a child process puts it to the NAS.

    The arguments are evaluated here, in the process that has the connections to libvirt and the catalog; the question
    must not use those. Raises NasIo when the NAS does not answer for NO_ANSWER_SECONDS; a question that just takes
    long is waited for, as long as the NAS answers others.
    """
    patience = NO_ANSWER_SECONDS
    started = time.monotonic()
    with Apart(partial(question, *arguments, **options)) as apart:
        # Half of the patience until asking, the other half for the answer to that.
        while not apart.answered(within=patience / 2):
            waited = time.monotonic() - started
            if waited > _AT_MOST * patience:
                raise _no_answer(repository, action, f"it took more than {waited:.0f} s, although the NAS answers")
            if not answers(repository, within=patience / 2):
                raise _no_answer(repository, action, _silent(time.monotonic() - started))
            log.warning("%s: %s takes long (%.0f s); the NAS does answer", repository.name, action, waited)
        try:
            return apart.result()
        except HelperKilled:
            raise _no_answer(repository, action, "the process that did it was killed") from None


def answers(repository: Repository, *, within: float) -> bool:
    """Whether the NAS says anything at all; an error is an answer too."""
    with Apart(partial(probe, repository)) as apart:
        return apart.answered(within=within)


def probe(repository: Repository) -> None:
    """Something small that no cache can answer: bring the marker's new time of change to stable storage."""
    with suppress(OSError):
        descriptor = os.open(Path(repository.path) / MARKER, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.utime(descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Follower:
    """For transfers, whose bytes other processes move: ``look`` is called every few seconds with where it stands."""

    def __init__(self, repository: Repository, action: str) -> None:
        self._repository = repository
        self._action = action
        self._patience = NO_ANSWER_SECONDS
        self._seen: object = None
        self._since = self._asked = time.monotonic()

    def look(self, seen: object) -> None:
        """Raises NasIo when ``seen`` has not changed for half of the patience and the NAS is silent for the other.

        When the NAS answers, it is the source that is slow, or what is cached is being written: that may take long.
        """
        now = time.monotonic()
        if seen != self._seen:
            self._seen, self._since, self._asked = seen, now, now
        elif now - self._asked >= self._patience / 2:
            if not answers(self._repository, within=self._patience / 2):
                raise _no_answer(self._repository, self._action, _silent(time.monotonic() - self._since))
            self._asked = time.monotonic()


def _silent(seconds: float) -> str:
    return f"the NAS does not answer for {seconds:.0f} s. Is it up, is the network?"


def _no_answer(repository: Repository, action: str, reason: str) -> NasIo:
    return NasIo(action=action[:1].upper() + action[1:], repository=repository.name, reason=reason)
