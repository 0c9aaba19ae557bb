"""Target ``instant`` of ``nas_restore``: a VM runs from the backup within seconds, and is copied out of it.

Nothing of it holds the VM's lease: the catalog keeps the backup from being deleted, and backups of the VM go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nasbackup.airflow import hooks
from nasbackup.airflow.restore_form import INSTANT
from nasbackup.errors import ParamInvalid
from nasbackup.hypervisor import connect
from nasbackup.hypervisor.live import Pull
from nasbackup.restore.definition import check_name
from nasbackup.restore.image import locate
from nasbackup.steps import instant

log = logging.getLogger(__name__)

TARGET = INSTANT
_EVERY = 10.0
"""Seconds between two lines of progress."""


def plan(*, params: Mapping[str, Any], backup: str) -> list[str]:
    """What the mapped task is made of: the new VM's name. Raises ParamInvalid, BackupNotRestorable."""
    if not params["new_name"]:
        raise ParamInvalid(name="new_name", value=params["new_name"], problem="target instant makes a VM: name it")
    check_name(params["new_name"])
    if not Path(params["to"] or "").is_absolute():
        raise ParamInvalid(name="to", value=params["to"], problem="it must be an absolute path")
    if params["volumes"]:
        raise ParamInvalid(name="volumes", value=params["volumes"], problem="target instant takes all of them")
    locate(hooks.catalog(), external_id=backup, reader=_reader(params))
    return [params["new_name"]]


def run(*, params: Mapping[str, Any], backup: str) -> dict[str, Any]:
    """Start the VM, and stay until it is independent of the NAS; a later try goes on where the VM stands.

    Raises VmExists, TargetExists, NotEnoughSpace (nothing is left of it), InstantUnfinished (the VM stays).
    """
    database = hooks.catalog()
    host = hooks.LibvirtHook(libvirt_conn_id=params["host"]).get_conn()
    located = locate(database, external_id=backup, reader=_reader(params))
    to = Path(params["to"])
    with connect(host) as hypervisor:
        vm = instant.start(
            hypervisor, located, database=database, name=params["new_name"], to=to, socket_dir=host.socket_dir
        )
        log.info("VM %s runs from %s; it is kept until %s at least", vm.name, backup, vm.until)
        for note in vm.notes:
            log.warning("%s", note)
        instant.finish(hypervisor, vm, database=database, follow=_log_now_and_then())
    log.info("VM %s is independent of the NAS", vm.name)
    return {"volume": vm.name, "source": backup, "file": str(to)}


def _reader(params: Mapping[str, Any]) -> str:
    return instant.reader_of(name=params["new_name"], host=params["host"])


def _log_now_and_then() -> Callable[[Sequence[Pull]], None]:
    last = 0.0

    def follow(found: Sequence[Pull]) -> None:
        nonlocal last
        if time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            for pull in found:
                state = "is here" if pull.independent else f"{pull.done} of {pull.total} bytes"
                log.info("%s: %s", pull.target, state)

    return follow
