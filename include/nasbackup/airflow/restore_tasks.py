"""Bodies of the tasks of ``nas_restore``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nasbackup.airflow import hooks
from nasbackup.airflow.forms import require_known_keys, restore_params
from nasbackup.catalog import backups
from nasbackup.errors import BackupNotFound, ParamInvalid, TargetExists
from nasbackup.restore.image import RestoredVolume, choose, find_restored, image_path, locate, restore_images
from nasbackup.steps.lease import SharedLease
from nasbackup.transfer.pump import Progress

log = logging.getLogger(__name__)


def plan(*, params: Mapping[str, Any], conf: Mapping[str, Any] | None, run_id: str) -> list[str]:
    """Names of the volumes to restore. Raises RequestError, BackupNotRestorable, TargetExists, VmBusy.

    Nothing is written. From here to the end of the run nobody backs the VM up or deletes backups of it.
    """
    require_known_keys(conf, form=restore_params())
    to = Path(params["to"])
    if not to.is_absolute():
        raise ParamInvalid(name="to", value=params["to"], problem="it must be an absolute path")
    lease = _lease(params, run_id=run_id)
    lease.join()
    try:
        located = locate(lease.database, external_id=params["backup"])
        chosen = choose(located.backup, volumes=params["volumes"] or ())
        for volume in chosen:
            located.layers(volume)
            image_path(to, volume=volume, image_format=params["format"])
    except BaseException:
        lease.leave()  # a teardown runs only after a setup that succeeded
        raise
    return [volume.name for volume in chosen]


def restore(*, params: Mapping[str, Any], volume: str, run_id: str, try_number: int) -> dict[str, Any]:
    """``try_number``: from 1. A later try may find its image in place, from one that was killed: that is done."""
    lease = _lease(params, run_id=run_id)
    token = lease.join()
    located = locate(lease.database, external_id=params["backup"])
    to, image_format = Path(params["to"]), params["format"]
    done: RestoredVolume | None
    try:
        (done,) = restore_images(
            located,
            to=to,
            image_format=image_format,
            volumes=[volume],
            follow=lease.renewing(token, _log_progress),
        )
    except TargetExists:
        if try_number == 1:
            raise
        done = find_restored(located, to=to, image_format=image_format, volume=volume)
        if done is None:
            raise
    return {"volume": done.name, "source": done.source, "file": str(done.file), "layers": done.layers}


def give_back(*, params: Mapping[str, Any], run_id: str) -> None:
    """The VM's lease, however the run ended."""
    try:
        _lease(params, run_id=run_id).leave()
    except BackupNotFound:
        log.info("There was no such backup, so there is no lease")


def _lease(params: Mapping[str, Any], *, run_id: str) -> SharedLease:
    database = hooks.catalog()
    with database.transaction() as cursor:
        backup = backups.find(cursor, external_id=params["backup"])
    return SharedLease(database=database, vm_uuid=backup.vm_uuid, vm=backup.vm, holder=f"nas_restore/{run_id}")


def _log_progress(what: str, progress: Progress) -> None:
    log.info("%s: %s", what, progress)
