"""The one error tree.

Each class is a sentence with named gaps: the data stays on the exception (``error.data``) for callers that
decide, the sentence is what an operator reads and ends with what to do next. ``retryable`` says whether the
same attempt, made again later with nothing else changed, can succeed: Airflow's retries follow it.
"""

from __future__ import annotations

from nasbackup.errors.access import (
    DrillBusy,
    DrillFailed,
    FileNotInBackup,
    FilesUnreadable,
    ImageRefused,
    InstantUnfinished,
    NoFileSystem,
    PickFailed,
    ReadingLost,
    ToolMissing,
)
from nasbackup.errors.alerts import (
    AlertNotDelivered,
    ChannelRefused,
    UnknownChannel,
)
from nasbackup.errors.base import (
    NasBackupError,
)
from nasbackup.errors.catalog import (
    CatalogAddressInvalid,
    CatalogConflict,
    CatalogError,
    CatalogOutdated,
    CatalogUnreachable,
)
from nasbackup.errors.hypervisor import (
    ForeignJob,
    GuestNotFrozen,
    HostNotReady,
    HostUnreachable,
    HypervisorError,
    JobLost,
    VmStarted,
)
from nasbackup.errors.nas import (
    ManifestInvalid,
    NasError,
    NasIo,
    NotARepository,
    RepositoryFilling,
    RepositoryFull,
)
from nasbackup.errors.request import (
    BackupNotDeletable,
    BackupNotFound,
    BackupNotKept,
    BackupNotRestorable,
    ConnectionInvalid,
    FleetInvalid,
    NothingToBackUp,
    ParamInvalid,
    RequestError,
    SettingInvalid,
    TargetExists,
    UnknownHost,
    UnknownParam,
    UnknownPolicy,
    UnknownRepository,
    UnknownVm,
    UnknownVolume,
)
from nasbackup.errors.restore import (
    DefinitionUnusable,
    NoFreeTarget,
    RestoreError,
    UnknownPool,
    VmExists,
    VmNotStopped,
)
from nasbackup.errors.transfer import (
    ReadFailed,
    TargetFull,
    ToolFailed,
    TransferError,
    VerifyFailed,
    WriteFailed,
)
from nasbackup.errors.writer import (
    AttemptSuperseded,
    BackupNotOpen,
    LeaseLost,
    VmBusy,
)

__all__ = [
    "AlertNotDelivered",
    "AttemptSuperseded",
    "BackupNotDeletable",
    "BackupNotFound",
    "BackupNotKept",
    "BackupNotOpen",
    "BackupNotRestorable",
    "CatalogAddressInvalid",
    "CatalogConflict",
    "CatalogError",
    "CatalogOutdated",
    "CatalogUnreachable",
    "ChannelRefused",
    "ConnectionInvalid",
    "DefinitionUnusable",
    "DrillBusy",
    "DrillFailed",
    "FileNotInBackup",
    "FilesUnreadable",
    "FleetInvalid",
    "ForeignJob",
    "GuestNotFrozen",
    "HostNotReady",
    "HostUnreachable",
    "HypervisorError",
    "ImageRefused",
    "InstantUnfinished",
    "JobLost",
    "LeaseLost",
    "ManifestInvalid",
    "NasBackupError",
    "NasError",
    "NasIo",
    "NoFileSystem",
    "NoFreeTarget",
    "NotARepository",
    "NothingToBackUp",
    "ParamInvalid",
    "PickFailed",
    "ReadFailed",
    "ReadingLost",
    "RepositoryFilling",
    "RepositoryFull",
    "RequestError",
    "RestoreError",
    "SettingInvalid",
    "TargetExists",
    "TargetFull",
    "ToolFailed",
    "ToolMissing",
    "TransferError",
    "UnknownChannel",
    "UnknownHost",
    "UnknownParam",
    "UnknownPolicy",
    "UnknownPool",
    "UnknownRepository",
    "UnknownVm",
    "UnknownVolume",
    "VerifyFailed",
    "VmBusy",
    "VmExists",
    "VmNotStopped",
    "VmStarted",
    "WriteFailed",
]
