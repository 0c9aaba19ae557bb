"""Ask hosts something small, and wait for none of them for ever.

A libvirtd that hangs takes the connection and says nothing, and libvirt waits for it as long as it takes. A timeout of
Airflow's is no help: its signal is looked at when the call into libvirt returns. So each host is asked by a child
process, several at once, and one that says nothing in time is left behind.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from nasbackup.apart import Apart, HelperKilled
from nasbackup.errors import HostUnreachable, HypervisorError
from nasbackup.hypervisor.connection import Hypervisor, connect
from nasbackup.hypervisor.inventory import seen_vms
from nasbackup.model import Host, SeenVm

T = TypeVar("T")

NO_ANSWER_SECONDS = 45.0
"""A host that has said nothing by then does not answer. Thousands of VMs are listed within a few seconds."""

_AT_ONCE = 16
_POLL_SECONDS = 0.1


LONG_SECONDS = 600.0
"""The same where one host is asked, and nobody waits meanwhile: it may have very many VMs, or much to do."""


@dataclass(frozen=True, kw_only=True)
class _Asked(Generic[T]):
    """A host that may still answer until then. ``end`` ends its process."""

    host: Host
    apart: Apart[T]
    until: float
    end: ExitStack


def vms_of(host: Host) -> list[SeenVm]:
    """All VMs of one host. Raises HostUnreachable, HypervisorError."""
    found = survey([host], seen_vms, patience=LONG_SECONDS)[host.name]
    if isinstance(found, HypervisorError):
        raise found
    return found


def survey(
    hosts: Sequence[Host], question: Callable[[Hypervisor], T], *, patience: float | None = None
) -> Mapping[str, T | HypervisorError]:
    """By the host's name: what it answers, or why it does not. The question only reads.

    ``patience``: seconds that each host has; None: NO_ANSWER_SECONDS.
    """
    patience = NO_ANSWER_SECONDS if patience is None else patience
    found: dict[str, T | HypervisorError] = {}
    left, asked = deque(hosts), list[_Asked[T]]()
    with ExitStack() as all_of_them:
        # In turns: a long answer does not fit into its pipe, and has to be read while others are waited for.
        while left or asked:
            while left and len(asked) < _AT_ONCE:
                host = left.popleft()
                end = all_of_them.enter_context(ExitStack())
                try:
                    apart = end.enter_context(Apart(partial(_put, question, host)))
                except OSError as error:  # of this machine: too many processes, too little memory
                    found[host.name] = _unreachable(host, f"nobody can ask it: {error.strerror}")
                else:
                    until = time.monotonic() + patience
                    asked.append(_Asked(host=host, apart=apart, until=until, end=end))
            for one in tuple(asked):
                if one.apart.answered(within=_POLL_SECONDS):
                    answer: T | HypervisorError = _answer(one.host, one.apart)
                elif time.monotonic() >= one.until:
                    answer = _unreachable(one.host, f"it says nothing for {patience:.0f} s")
                else:
                    continue
                found[one.host.name] = answer
                asked.remove(one)
                one.end.close()
    return found


def _put(question: Callable[[Hypervisor], T], host: Host) -> T:
    with connect(host) as hypervisor:
        return question(hypervisor)


def _answer(host: Host, apart: Apart[T]) -> T | HypervisorError:
    try:
        return apart.result()
    except HelperKilled:
        return _unreachable(host, "the process that asked it was killed")
    except HypervisorError as error:
        return error
    except Exception as error:  # no XML, an answer that breaks off: of this host, whatever it is
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return HypervisorError(action="asking for VMs", host=host.name, reason=reason)


def _unreachable(host: Host, reason: str) -> HostUnreachable:
    return HostUnreachable(host=host.name, uri=host.uri, reason=reason)
