"""Bodies of the tasks of ``nas_restore_drill``."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any

from nasbackup.airflow import hooks
from nasbackup.airflow.drill_form import drill_params
from nasbackup.airflow.forms import require_known_keys
from nasbackup.catalog import backups, drills
from nasbackup.fleet.last_valid import last_valid
from nasbackup.pick import Pick, pick
from nasbackup.steps.drill import DrillRequest, drill, require_ok

log = logging.getLogger(__name__)


def choose(*, params: Mapping[str, Any], conf: Mapping[str, Any] | None) -> dict[str, str]:
    """The backup, and the host where it boots. Raises UnknownParam, PickFailed, BackupNotFound."""
    known = last_valid()
    require_known_keys(conf, form=drill_params(known))
    with hooks.catalog().transaction() as cursor:
        name = params["backup"] or pick(
            drills.candidates(cursor),
            how=Pick(params["pick"]),
            vms=params["vms"] or (),
            chance=random.SystemRandom(),
        )
        backup = backups.find(cursor, external_id=name)
    # The VM may have been backed up on a host that is gone.
    host = params["host"] or (backup.host if backup.host in known.hosts else known.hosts[0])
    return {"backup": backup.external_id, "host": host}


def carry_out(*, chosen: Mapping[str, str], params: Mapping[str, Any], run_id: str) -> dict[str, Any]:
    """What the drill found. Raises DrillFailed when the backup does not come up, and what ``drill`` raises."""
    record = drill(
        hooks.catalog(),
        host=hooks.LibvirtHook(libvirt_conn_id=chosen["host"]).get_conn(),
        request=DrillRequest(
            backup=chosen["backup"],
            pattern=params["pattern"] or None,
            sums=params["sums"] or None,
            timeout=params["timeout"],
            keep=params["keep"],
        ),
        reader=f"nas_restore_drill/{run_id}",
    )
    log.info("%s: %s", record.external_id, record)
    return drills.as_document(require_ok(record))
