"""Params that more than one form has, each said once."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from airflow.sdk import Param

from nasbackup.fleet import Fleet
from nasbackup.model import Mode

EXTERNAL_ID = "^[^/]+/[0-9]{4}([.][0-9]{2}){5}$"


def host(fleet: Fleet) -> Param:
    return Param(
        fleet.hosts[0],
        type="string",
        enum=fleet.hosts,
        title="Host",
        description="The KVM host of the VM (a Connection of type libvirt); the tasks run there.",
    )


def backup(*, empty: str) -> Param:
    """One restore point; ``empty`` says which one it is when none is named."""
    return Param(
        None,
        type=["null", "string"],
        pattern=EXTERNAL_ID,
        title="Backup",
        description=f"External id, for example `i-2-1234-VM/2026.01.31.22.00.05`. Empty: {empty}.",
    )


def vms(**schema: Any) -> Param:
    return lines(
        title="VMs", description="only VMs whose instance name one of these globs matches. Empty: all.", **schema
    )


def lines(*, title: str, description: str, **schema: Any) -> Param:
    """A list of names."""
    return Param(
        [],
        type="array",
        items={"type": "string", "minLength": 1},
        title=title,
        description=f"One a line: {description}",
        **schema,
    )


def choice(default: StrEnum, *, title: str, description: str, **schema: Any) -> Param:
    """One of all that the default is one of."""
    return Param(
        default.value,
        type="string",
        enum=[one.value for one in type(default)],
        title=title,
        description=description,
        **schema,
    )


def mode() -> Param:
    return choice(
        Mode.AUTO,
        values_display={
            Mode.AUTO.value: "auto: incremental when the chain allows it",
            Mode.FULL.value: "full: start a new chain",
        },
        title="Mode",
        description="What kind of backup. What became of it, and why, is the result of `decide_chain` in nas_backup.",
    )


def dry_run() -> Param:
    """``forms.is_dry_run`` reads it."""
    return Param(
        None,
        type=["null", "boolean"],
        enum=[None, True, False],
        title="Dry run",
        description="Only list what would be done. Empty: a manual run lists, a scheduled run acts.",
    )
