"""What was asked for, as the backup's row keeps it: every step of the run does what the first was told."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nasbackup.handling import Compression, VerifyLevel
from nasbackup.model import Backup, Mode, Quiesce
from nasbackup.settings import Settings
from nasbackup.steps.ticket import BackupRequest


def as_document(request: BackupRequest, *, settings: Settings) -> dict[str, Any]:
    return {"request": asdict(request), "settings": asdict(settings)}


def request_of(backup: Backup) -> BackupRequest:
    """Keys that an older version did not write have the meaning that they had then."""
    asked = backup.request["request"]
    return BackupRequest(
        vm=asked["vm"],
        mode=Mode(asked["mode"]),
        quiesce=Quiesce(asked["quiesce"]),
        exclude_volumes=tuple(asked["exclude_volumes"]),
        allow_encrypted=asked["allow_encrypted"],
        compression=Compression(asked.get("compression", Compression.NONE)),
        bandwidth=asked.get("bandwidth"),
        verify=verify_level(backup),
    )


def verify_level(backup: Backup) -> VerifyLevel:
    """Also of a row that says nothing about what was asked for: then nothing less than everything."""
    return VerifyLevel(backup.request.get("request", {}).get("verify", VerifyLevel.FULL))


def settings_of(backup: Backup) -> Settings:
    return Settings(**backup.request["settings"])
