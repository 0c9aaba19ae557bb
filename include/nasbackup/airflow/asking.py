"""Hosts of the fleet, by their Connections, are asked side by side; what is wrong with one is its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from nasbackup.airflow import hooks
from nasbackup.errors import NasBackupError
from nasbackup.hypervisor import Hypervisor
from nasbackup.hypervisor.survey import survey

T = TypeVar("T")


def ask_hosts(names: Sequence[str], question: Callable[[Hypervisor], T]) -> dict[str, T | NasBackupError]:
    """By name: what each host answers, or why it does not, which may be its Connection. The question only reads."""
    answers: dict[str, T | NasBackupError] = {}
    hosts = []
    for name in names:
        try:
            hosts.append(hooks.LibvirtHook(libvirt_conn_id=name).get_conn())
        except NasBackupError as error:
            answers[name] = error
    return {**answers, **survey(hosts, question)}
