"""Bodies of the tasks of ``nas_backup``: from XCom values to the steps, and from their results to what the UI shows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from nasbackup import steps
from nasbackup.airflow import hooks, measures, variables
from nasbackup.airflow.forms import backup_params, require_known_keys
from nasbackup.errors import ParamInvalid, UnknownRepository
from nasbackup.fleet.last_valid import last_valid
from nasbackup.fleet.units import rate
from nasbackup.handling import Compression, VerifyLevel
from nasbackup.model import Backup, BackupVolume, Mode, Quiesce
from nasbackup.steps import BackupRequest, Site, Ticket
from nasbackup.transfer.pump import Progress

log = logging.getLogger(__name__)

Payload = dict[str, Any]


def decide_chain(*, params: Mapping[str, Any], conf: Mapping[str, Any] | None, run_id: str) -> Payload:
    zones = last_valid()
    require_known_keys(conf, form=backup_params(zones))
    zone = zones.zone_of(params["host"])
    repository = params["repository"] or zone.default
    if repository is None:
        problem = (
            f"zone {zone.name} spreads its VMs over {', '.join(zone.repositories)}, so a run has to name one. The "
            "page's form names the VM's own, and so does `nasbackup show` of its newest backup"
        )
        raise ParamInvalid(name="repository", value=None, problem=problem)
    if repository not in zones.repositories:
        raise UnknownRepository(repository=repository, known=", ".join(zones.repositories))
    settings = variables.settings(zone=zone.name)
    ticket, backup = steps.decide_chain(
        hooks.site(host=params["host"], repository=repository),
        request=BackupRequest(
            vm=params["vm"],
            mode=Mode(params["mode"]),
            quiesce=Quiesce(params["quiesce"]),
            exclude_volumes=tuple(params["exclude_volumes"] or ()),
            allow_encrypted=params["allow_encrypted"],
            compression=Compression(params["compression"]),
            bandwidth=bandwidth(params["bandwidth"]),
            verify=VerifyLevel(params["verify"]),
        ),
        settings=settings,
        run_id=f"nas_backup/{run_id}",
    )
    return {"ticket": asdict(ticket), "zone": zone.name, "settings": asdict(settings), "decision": decision(backup)}


def checkpoint(*, decided: Payload, quiesce: str) -> list[Payload]:
    ticket = Ticket(**decided["ticket"])
    backup = steps.checkpoint(_site(ticket), ticket=ticket, quiesce=Quiesce(quiesce))
    log.info("Point in time fixed for %d volumes, consistency: %s", len(backup.volumes), backup.consistency)
    return [{"ticket": decided["ticket"], "volume": volume.name} for volume in backup.volumes]


def copy(*, volume: Payload) -> Payload:
    ticket = Ticket(**volume["ticket"])
    done = steps.copy(_site(ticket), ticket=ticket, volume=volume["volume"], on_progress=_log_progress)
    measures.copied(done)
    return {"ticket": volume["ticket"], "volume": done.name, "result": result(done)}


def verify(*, copied: Payload) -> Payload:
    ticket = Ticket(**copied["ticket"])
    verified = steps.verify(_site(ticket), ticket=ticket, volume=copied["volume"], on_progress=_log_progress)
    return {
        "volume": verified.name,
        "checked": str(verified.checked_at),
        "verified": str(verified.verified_at) if verified.verified_at else None,
        "digest": verified.digest,
    }


def record(*, decided: Payload) -> Payload:
    ticket = Ticket(**decided["ticket"])
    backup = steps.record(_site(ticket), ticket=ticket)
    measures.recorded(backup)
    return {
        **decision(backup),
        "vm": backup.vm,
        "host": backup.host,
        "repository": backup.repository,
        "chain_id": backup.chain_id,
        "status": backup.status.value,
        "size": backup.size,
        "volumes": [result(volume) for volume in backup.volumes],
    }


def end_job(*, decided: Payload) -> Payload:
    ticket = Ticket(**decided["ticket"])
    ending = steps.end_job(
        _site(ticket), ticket=ticket, why_failed="a step of the run failed; its log says which and why"
    )
    return asdict(ending)


def decision(backup: Backup) -> Payload:
    """What decide_chain decided, as people read it in the UI."""
    return {
        "external_id": backup.external_id,
        "type": backup.type.value,
        "reason": backup.reason.value,
        "explanation": backup.explanation,
        "chain_position": backup.chain_position,
        "parent": backup.parent,
        "checkpoint": backup.checkpoint,
        "consistency": backup.consistency,
        "volumes": {volume.name: f"{volume.type.value} ({volume.reason.value})" for volume in backup.volumes},
    }


def result(volume: BackupVolume) -> Payload:
    return {
        "name": volume.name,
        "type": volume.type.value,
        "reason": volume.reason.value,
        "virtual_size": volume.virtual_size,
        "bytes_read": volume.bytes_read,
        "bytes_written": volume.bytes_written,
        "compression": volume.compression.value,
        "seconds": round(volume.copy_seconds, 3) if volume.copy_seconds is not None else None,
        "digest": volume.digest,
    }


def bandwidth(text: str | None) -> int | None:
    """Bytes a second; None and nothing: no limit. Raises ParamInvalid."""
    try:
        return rate(text) if text else None
    except ValueError as error:
        raise ParamInvalid(name="bandwidth", value=text, problem=str(error)) from error


def _site(ticket: Ticket) -> Site:
    return hooks.site(host=ticket.host, repository=ticket.repository)


def _log_progress(progress: Progress) -> None:
    log.info("%s", progress)
