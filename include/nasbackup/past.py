"""Earlier backups of a VM in a repository: as much of them as the next one depends on."""

from __future__ import annotations

from dataclasses import dataclass

from nasbackup.model import BackupType, ChainLink


@dataclass(frozen=True, kw_only=True)
class PastVolume:
    """``bytes_read`` from the VM, ``bytes_written`` on the NAS: None where the catalog does not know."""

    source: str
    file: str
    virtual_size: int
    type: BackupType
    bytes_read: int | None
    bytes_written: int | None


@dataclass(frozen=True, kw_only=True)
class PastBackup(ChainLink):
    """A backup that was recorded: BackedUp, or on its way out."""

    volumes: tuple[PastVolume, ...]
