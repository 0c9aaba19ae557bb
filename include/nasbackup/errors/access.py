"""Backups that are looked into, or run from, where they lie."""

from __future__ import annotations

from nasbackup.errors.base import NasBackupError
from nasbackup.errors.nas import NasError
from nasbackup.errors.request import RequestError


class ReadingLost(NasBackupError):
    template = (
        "Backup {backup} is not protected from deletion any more: {why}. Reading has ended; begin it again. "
        "(Its mark in the catalog has to be renewed every few minutes.)"
    )
    retryable = True


class ImageRefused(NasError):
    """A file that QEMU must not open: it would make QEMU open something else."""

    template = "{file} is not opened: {problem}."


class ServingFailed(NasBackupError):
    template = (
        "Backup {backup} cannot be served: {reason}. (Files need FUSE in the kernel, and the package fuse3 unless you "
        "are root; without --files the volumes are served over NBD alone.)"
    )
    retryable = True


class ToolMissing(RequestError):
    template = "{what} needs {tool}, which is not on this machine: {install}."


class NoFileSystem(RequestError):
    template = "Backup {backup} has {problem}. Its file systems: {known}."


class FileNotInBackup(RequestError):
    template = "{path} cannot be read in {where} of backup {backup}: {problem}."


class FilesUnreadable(NasBackupError):
    template = "The file systems of backup {backup} cannot be read: {reason}"
    retryable = True


class PickFailed(RequestError):
    template = "There is no backup to drill: {why}."


class DrillBusy(NasBackupError):
    template = "A drill of backup {backup} is running already ({place}). Wait for it, or end that run first."
    retryable = True


class DrillFailed(NasBackupError):
    """The drill itself worked; what it found is that the backup does not come up."""

    template = "The drill of backup {backup} failed: {why}"


class InstantBusy(NasBackupError):
    template = (
        "VM {vm} is being started from backup {backup} by another process, which was left alone. Wait until it runs; "
        "then the same command goes on with it."
    )
    retryable = True


class InstantUnfinished(NasBackupError):
    template = (
        "VM {vm} was started from backup {backup}, and is not independent of the NAS yet: {why}. Nothing is lost: "
        "give the same command again to go on with it. Until {until} the backup cannot be deleted."
    )
    retryable = True


class GuestSilent(NasBackupError):
    """A drilled guest did not answer, or not as it should: what the drill records."""

    template = "{why}"
