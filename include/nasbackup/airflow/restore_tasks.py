"""Bodies of the tasks of ``nas_restore``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nasbackup.airflow import hooks
from nasbackup.airflow.forms import require_known_keys, restore_params
from nasbackup.errors import ParamInvalid
from nasbackup.restore.image import choose, image_path, locate, restore_images
from nasbackup.transfer.pump import Progress

log = logging.getLogger(__name__)


def plan(*, params: Mapping[str, Any], conf: Mapping[str, Any] | None) -> list[str]:
    """Names of the volumes to restore. Raises RequestError, BackupNotRestorable, TargetExists; nothing is written."""
    require_known_keys(conf, form=restore_params())
    to = Path(params["to"])
    if not to.is_absolute():
        raise ParamInvalid(name="to", value=params["to"], problem="it must be an absolute path")
    located = locate(hooks.catalog(), external_id=params["backup"])
    chosen = choose(located.backup, volumes=params["volumes"] or ())
    for volume in chosen:
        located.layers(volume)
        image_path(to, volume=volume, image_format=params["format"])
    return [volume.name for volume in chosen]


def restore(*, params: Mapping[str, Any], volume: str) -> dict[str, Any]:
    (done,) = restore_images(
        locate(hooks.catalog(), external_id=params["backup"]),
        to=Path(params["to"]),
        image_format=params["format"],
        volumes=[volume],
        follow=_log_progress,
    )
    return {"volume": done.name, "source": done.source, "file": str(done.file), "layers": done.layers}


def _log_progress(what: str, progress: Progress) -> None:
    log.info("%s: %s", what, progress)
