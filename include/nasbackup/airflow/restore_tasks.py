"""Bodies of the tasks of ``nas_restore``."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from nasbackup.airflow import hooks, instant_tasks
from nasbackup.airflow.forms import require_known_keys
from nasbackup.airflow.restore_form import restore_params
from nasbackup.answers import ANSWERED_WITHIN
from nasbackup.catalog import Database, backups, readings, restores
from nasbackup.errors import NoBackupBefore, ParamInvalid, TargetExists
from nasbackup.fleet.last_valid import last_valid
from nasbackup.model import Backup, Host, Target
from nasbackup.restore.files import require_room
from nasbackup.restore.image import (
    RestoredVolume,
    choose,
    find_restored,
    image_bytes,
    image_path,
    locate,
    restore_images,
)
from nasbackup.restore.plan import RestorePlan, RestoreRequest, parse_moment
from nasbackup.steps import restore as steps
from nasbackup.transfer.pump import Progress

log = logging.getLogger(__name__)

Payload = dict[str, Any]

KEPT_WHILE_ASKED = ANSWERED_WITHIN
"""The backup, from the question on: there is an answer by then, and somebody to begin with it."""

KEPT_WHILE_RESTORED = timedelta(days=7)
"""From the moment in which each volume is begun with: for whatever is still to be read. The run's end gives it free."""


def plan(*, params: Mapping[str, Any], conf: Mapping[str, Any] | None, run_id: str) -> Payload:
    """What is to be restored, checked: ``backup``, ``work`` (a volume each), and the ``question`` to ask, if any.

    Nothing is written. From here on nobody backs the VM up or deletes backups of it. While somebody is asked they may
    again, but for this backup, which is kept until the run has ended.
    Raises RequestError, BackupNotRestorable, TargetExists, NotEnoughSpace, VmNotStopped, VmBusy.
    """
    require_known_keys(conf, form=restore_params(last_valid()))
    bench = _bench(params, run_id=run_id)
    backup = _resolve(bench.database, params)
    if params["target"] == instant_tasks.TARGET:
        names = instant_tasks.plan(params=params, backup=backup.external_id)
        return _planned(backup, names=names)
    lease = bench.lease(uuid=backup.vm_uuid, vm=backup.vm)
    lease.join()
    question, notes = "", list[str]()
    try:
        if params["target"] == Target.IMAGE:
            names = _plan_images(bench.database, backup=backup, params=params)
        else:
            made = steps.plan(bench, request=_request(params, backup=backup, run_id=run_id))
            names, notes = [volume.name for volume in made.volumes], list(made.notes)
            question = _question(made) if made.target is Target.IN_PLACE and not params["approved"] else ""
        if question:
            _keep(bench, backup=backup, span=KEPT_WHILE_ASKED)
    except BaseException:
        lease.leave()  # a teardown runs only after a setup that succeeded
        raise
    for note in notes:
        log.warning("%s", note)
    if question:
        lease.leave()
    return _planned(backup, names=names, question=question, notes=notes)


def _keep(bench: steps.Bench, *, backup: Backup, span: timedelta) -> None:
    """Whoever deletes the backup meanwhile makes it delete-pending."""
    with bench.database.transaction() as cursor:
        readings.keep(
            cursor,
            backup_id=backup.backup_id,
            reader=bench.holder,
            backup=backup.external_id,
            seconds=span.total_seconds(),
        )


def _planned(backup: Backup, *, names: Sequence[str], question: str = "", notes: Sequence[str] = ()) -> Payload:
    work = [{"backup": backup.external_id, "volume": name} for name in names]
    return {"backup": backup.external_id, "work": work, "question": question, "notes": list(notes)}


def _plan_images(database: Database, *, backup: Backup, params: Mapping[str, Any]) -> list[str]:
    to = Path(params["to"] or "")
    if not to.is_absolute():
        raise ParamInvalid(name="to", value=params["to"], problem="it must be an absolute path")
    located = locate(database, external_id=backup.external_id)
    chosen = choose(located.backup, volumes=params["volumes"] or ())
    for volume in chosen:
        located.layers(volume)
        image_path(to, volume=volume, image_format=params["format"])
    require_room([(to, image_bytes(located, volume=volume)) for volume in chosen])
    return [volume.name for volume in chosen]


def _question(made: RestorePlan) -> str:
    names = ", ".join(volume.name for volume in made.volumes)
    then = "kept beside them" if made.keep_old else "REMOVED"
    return (
        f"it would replace {names} of VM {made.vm} with those of {made.backup}; what they hold now would be {then}. "
        "The VM has to stay shut down"
    )


def restore(*, params: Mapping[str, Any], work: Mapping[str, str], run_id: str, try_number: int) -> Payload:
    """One volume. ``try_number``: from 1. A later try may find its image in place, from one that was killed."""
    if params["target"] == instant_tasks.TARGET:
        return instant_tasks.run(params=params, backup=work["backup"])
    bench = _bench(params, run_id=run_id)
    backup, volume = bench.backup(work["backup"]), work["volume"]
    if params["target"] == Target.IMAGE:
        return _restore_image(bench, backup=backup, volume=volume, params=params, try_number=try_number)
    if params["target"] == Target.IN_PLACE and not params["approved"]:  # somebody was asked: the mark goes on
        _keep(bench, backup=backup, span=KEPT_WHILE_RESTORED)
    key = _key(run_id)
    done = steps.restore_volume(bench, backup=backup, key=key, volume=volume, follow=_log_progress)
    return {"volume": done.name, "source": done.source, "file": done.path}


def _restore_image(
    bench: steps.Bench, *, backup: Backup, volume: str, params: Mapping[str, Any], try_number: int
) -> Payload:
    lease = bench.lease(uuid=backup.vm_uuid, vm=backup.vm)
    token = lease.join()
    located = locate(bench.database, external_id=backup.external_id)
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


def commit(*, params: Mapping[str, Any], backup: str, run_id: str) -> Payload:
    """Define the new VM, swap the volumes, or attach the disk; images and an instant VM are there already."""
    if params["target"] in (Target.IMAGE, instant_tasks.TARGET):
        return {"external_id": backup, "target": params["target"]}
    bench = _bench(params, run_id=run_id)
    result = steps.commit(bench, backup=bench.backup(backup), key=_key(run_id))
    for old in result.kept:
        log.info("Kept: %s", old)
    return steps.result_document(result)


def give_back(*, params: Mapping[str, Any], backup: str, run_id: str) -> None:
    """However the run ended: what was not committed is undone, and the VM's lease given back."""
    bench = _bench(params, run_id=run_id)
    steps.give_back(bench, backup=bench.backup(backup), key=_key(run_id))
    with bench.database.transaction() as cursor:
        readings.end_of(cursor, reader=bench.holder)


def _bench(params: Mapping[str, Any], *, run_id: str) -> steps.Bench:
    images = params["target"] == Target.IMAGE  # no host has anything to do with them
    host = Host(name=params["host"]) if images else hooks.LibvirtHook(libvirt_conn_id=params["host"]).get_conn()
    return steps.Bench(database=hooks.catalog(), host=host, holder=f"nas_restore/{run_id}")


def _resolve(database: Database, params: Mapping[str, Any]) -> Backup:
    if bool(params["backup"]) == bool(params["vm"]):
        raise ParamInvalid(name="backup", value=params["backup"], problem="name a backup, or else a VM")
    moment = parse_moment(params["before"]) if params["before"] else None
    if moment is not None and params["backup"]:
        raise ParamInvalid(name="before", value=params["before"], problem="it goes with a VM, not with a backup")
    with database.transaction() as cursor:
        if params["backup"]:
            return backups.find(cursor, external_id=params["backup"])
        found = restores.latest_of(cursor, vm=params["vm"], before=moment)
    if found is None:
        raise NoBackupBefore(vm=params["vm"], when=f"from before {moment:%Y-%m-%d %H:%M:%S %Z}" if moment else "at all")
    log.info("The newest backup is %s", found.external_id)
    return found


def _request(params: Mapping[str, Any], *, backup: Backup, run_id: str) -> RestoreRequest:
    return RestoreRequest(
        backup=backup.external_id,
        target=Target(params["target"]),
        key=_key(run_id),
        volumes=tuple(params["volumes"] or ()),
        new_name=params["new_name"],
        vm=params["attach_to"],
        to=params["to"],
        pool=params["pool"],
        image_format=params["format"],
        keep_macs=params["keep_macs"],
        start=params["start"],
        keep_old=params["keep_old"],
    )


def _key(run_id: str) -> str:
    """The same in all tries of all tasks of the run, and part of file names."""
    return hashlib.sha256(run_id.encode()).hexdigest()[:12]


def _log_progress(what: str, progress: Progress) -> None:
    log.info("%s: %s", what, progress)
