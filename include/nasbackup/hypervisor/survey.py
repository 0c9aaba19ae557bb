"""Ask hosts something small, and wait for none of them for ever.

A libvirtd that hangs takes the connection and says nothing, and libvirt waits for it as long as it takes. A timeout of
Airflow's is no help: its signal is looked at when the call into libvirt returns. So each host is asked by a child
process, several at once, and one that says nothing in time is left behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

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


def vms_of(host: Host) -> list[SeenVm]:
    """All VMs of one host. Raises HostUnreachable, HypervisorError."""
    found = survey([host], seen_vms)[host.name]
    if isinstance(found, HypervisorError):
        raise found
    return found


def survey(hosts: Sequence[Host], question: Callable[[Hypervisor], T]) -> Mapping[str, T | HypervisorError]:
    """By the host's name: what it answers, or why it does not. The question only reads."""
    found: dict[str, T | HypervisorError] = {}
    for first in range(0, len(hosts), _AT_ONCE):
        found.update(_ask(hosts[first : first + _AT_ONCE], question))
    return found


def _ask(hosts: Sequence[Host], question: Callable[[Hypervisor], T]) -> Mapping[str, T | HypervisorError]:
    found: dict[str, T | HypervisorError] = {}
    with ExitStack() as stack:
        asked = [(host, stack.enter_context(Apart(partial(_put, question, host)))) for host in hosts]
        until = time.monotonic() + NO_ANSWER_SECONDS
        # In turns: a long answer does not fit into its pipe, and has to be read while others are waited for.
        while len(found) < len(hosts) and time.monotonic() < until:
            for host, apart in asked:
                if host.name not in found and apart.answered(within=_POLL_SECONDS):
                    answer: T | HypervisorError = _answer(host, apart)
                    found[host.name] = answer
    silent = f"it says nothing for {NO_ANSWER_SECONDS:.0f} s"
    return {host.name: found[host.name] if host.name in found else _unreachable(host, silent) for host in hosts}


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


def _unreachable(host: Host, reason: str) -> HostUnreachable:
    return HostUnreachable(host=host.name, uri=host.uri, reason=reason)
