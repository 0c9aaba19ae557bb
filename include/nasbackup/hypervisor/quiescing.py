"""Freeze the guest's file systems for the one moment in which the point in time is taken, and thaw at once.

The freeze is done by a process of its own (:mod:`nasbackup.hypervisor.freeze_guard`), so that the thaw comes in every
outcome: also when this process is killed, or when libvirt does not come back from what it was asked meanwhile.

What is decided here:

- A thaw that is not confirmed fails the backup, even a good one: the failed task is how the operator learns of a guest
  that may stand still. The guard goes on trying, and so does each later attempt.
- What was frozen by somebody else is not thawed: it counts as a guest that cannot be frozen.
- Not promised: a guest whose QEMU, or the way to whose host, hangs can be thawed by nobody until that is over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import libvirt

from nasbackup.errors import GuestNotFrozen, HypervisorError
from nasbackup.hypervisor import freeze_guard
from nasbackup.hypervisor.connection import Hypervisor
from nasbackup.model import Consistency, Quiesce

log = logging.getLogger(__name__)

FREEZE_LIMIT = 10
"""Seconds after which the guest is thawed, whatever happens. A Windows guest thaws by itself after ten."""
_ANSWER_SECONDS = 60.0  # libvirt alone waits for 30 when another client is just speaking with the agent
_THAW_SECONDS = 15.0


@dataclass(kw_only=True)
class Freeze:
    """What came of the freeze. Final when the block has ended: only the thaw shows that the guest was still frozen."""

    consistency: Consistency = Consistency.CRASH


@contextlib.contextmanager
def frozen(
    hypervisor: Hypervisor, *, domain: libvirt.virDomain, quiesce: Quiesce, limit: int = FREEZE_LIMIT
) -> Iterator[Freeze]:
    """Keep the guest frozen (if asked and possible) for the block, for ``limit`` seconds at most.

    With ``quiesce=fail`` raises GuestNotFrozen, before the block or (thawed before its end) after it; with
    ``continue`` these are recorded as crash-consistent. Raises HypervisorError when the thaw is not confirmed.
    """
    freeze = Freeze()
    if quiesce is Quiesce.OFF:
        yield freeze
        return
    guard = _Guard(hypervisor, domain=domain, limit=limit)
    try:
        problem = guard.freeze()
        if problem is not None:
            _not_frozen(domain, problem, quiesce=quiesce)
        yield freeze
    finally:
        too_early = guard.thaw()
    if too_early is not None:
        _not_frozen(domain, too_early, quiesce=quiesce)
    elif problem is None:
        freeze.consistency = Consistency.FILESYSTEM


def thaw_left_frozen(hypervisor: Hypervisor, *, vm_uuid: str) -> bool:
    """Thaw a guest that a run of ours left frozen because the machine it ran on died; returns whether there was one.

    Raises HypervisorError when the thaw is not confirmed.
    """
    domain = hypervisor.domain_by_uuid(vm_uuid)
    with hypervisor.doing("looking for a freeze that was left behind"):
        if domain is None or not freeze_guard.marked(domain):
            return False
    _thaw_here(hypervisor, domain)
    return True


def _not_frozen(domain: libvirt.virDomain, reason: str, *, quiesce: Quiesce) -> None:
    if quiesce is Quiesce.FAIL:
        raise GuestNotFrozen(vm=domain.name(), reason=reason)
    log.warning("VM %s is not frozen, going on (crash-consistent): %s", domain.name(), reason)


def _thaw_here(hypervisor: Hypervisor, domain: libvirt.virDomain) -> int:
    try:
        return freeze_guard.keep_thawing(domain, seconds=_THAW_SECONDS)
    except libvirt.libvirtError as error:
        raise _left_frozen(hypervisor, domain, error.get_error_message()) from error


def _left_frozen(hypervisor: Hypervisor, domain: libvirt.virDomain, reason: str) -> HypervisorError:
    vm = domain.name()
    return HypervisorError(
        action=f"Thawing VM {vm}",
        host=hypervisor.host.name,
        reason=f"{reason}. The guest may still be frozen: its writes wait. It is tried again for some minutes and by "
        f"the next run; do it by hand with `virsh domfsthaw {vm}`, or look after its guest agent, or restart the VM",
        code=None,
    )


class _Guard:
    """Our end of the guard: what it is told, and its answers, waited for with a limit."""

    def __init__(self, hypervisor: Hypervisor, *, domain: libvirt.virDomain, limit: int) -> None:
        self._hypervisor, self._domain = hypervisor, domain
        self._frozen = 0
        self._output = b""
        # A session of its own: what is sent to our process group (Airflow's kill, ctrl-C) is not for it. And nothing
        # that it inherits from us stays open when it outlives us.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", freeze_guard.__name__, hypervisor.host.uri, domain.UUIDString(), str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def freeze(self) -> str | None:
        """Wait for the freeze; None when the guest is frozen, else the reason why it is not."""
        answer = self._answer(seconds=_ANSWER_SECONDS)
        if answer is None:
            return self._no_answer()
        if "in_doubt" in answer:
            self._confirm_thaw()
            return str(answer["in_doubt"])
        self._frozen = int(answer.get("frozen", 0))
        return None if self._frozen else str(answer.get("refused", "it has none that can be frozen"))

    def thaw(self) -> str | None:
        """Thaw, if there was a freeze; None when the guest was frozen until now, else what came in between.

        Raises HypervisorError when the thaw is not confirmed.
        """
        _pipe(self._process.stdin).close()
        if not self._frozen:
            return None
        answer = self._confirm_thaw()
        if not answer["in_time"]:
            return "beginning the backup job took too long, so they were thawed before it had begun"
        if answer["thawed"] < self._frozen:
            return "somebody else thawed them before the backup job had begun"
        return None

    def _confirm_thaw(self) -> dict[str, Any]:
        answer = self._answer(seconds=_THAW_SECONDS)
        if answer is None and self._process.poll() is None:
            raise _left_frozen(self._hypervisor, self._domain, "the guest agent does not answer")
        if answer is None:
            answer = {"thawed": _thaw_here(self._hypervisor, self._domain), "in_time": True}
        if "still_frozen" in answer:
            raise _left_frozen(self._hypervisor, self._domain, answer["still_frozen"])
        return answer

    def _no_answer(self) -> str:
        if self._process.poll() is None:
            return "no answer from the process that freezes them"  # it will find the end of its pipe, and thaw
        thaw_left_frozen(self._hypervisor, vm_uuid=self._domain.UUIDString())
        last_words = _pipe(self._process.stderr).read().decode(errors="replace").strip()[-500:]
        return f"the process that freezes them ended with status {self._process.returncode}: {last_words}"

    def _answer(self, *, seconds: float) -> dict[str, Any] | None:
        """One line of its output; None when there is none in time, or no guard any more."""
        output = _pipe(self._process.stdout).fileno()
        deadline = time.monotonic() + seconds
        while b"\n" not in self._output:
            if not select.select([output], [], [], max(deadline - time.monotonic(), 0))[0]:
                return None
            data = os.read(output, 4096)
            if not data:
                # It has ended: the pipe closes a moment before the exit status is there.
                self._process.wait(timeout=_THAW_SECONDS)
                return None
            self._output += data
        line, _, self._output = self._output.partition(b"\n")
        return dict(json.loads(line))


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
