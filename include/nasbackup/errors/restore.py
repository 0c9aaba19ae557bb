"""From a backup back to a VM: what stands in the way."""

from __future__ import annotations

from nasbackup.errors.base import NasBackupError
from nasbackup.errors.request import RequestError


class RestoreError(NasBackupError):
    """A restore cannot go on; the VM is as it was."""


class DefinitionUnusable(RestoreError):
    template = "The definition of VM {vm} in the backup cannot be used: {problem}. Restore to images instead."


class VmExists(RequestError):
    template = "Host {host} has a VM {vm!r} with UUID {uuid} already; it was not touched. Choose another name."


class VmNotStopped(RestoreError):
    template = "VM {vm} is {state}: shut it down first (`virsh shutdown`, or `virsh destroy`), then try again."


class NoFreeTarget(RestoreError):
    template = "VM {vm} has no free device name left on bus {bus}: detach a disk first."


class UnknownPool(RequestError):
    template = "Storage pool {pool!r} of host {host} {problem}. Its pools: {known}."


class RestoreRefused(RequestError):
    """Asked for, and not possible as it was asked; nothing was touched."""

    template = "VM {vm} was not touched: {why}."


class NotEnoughSpace(RequestError):
    template = (
        "{path} has {has} bytes free, the restore needs {needs}. Nothing was written: make room there, or name another "
        "place."
    )


class RestoreSuperseded(RestoreError):
    template = (
        "This restore of VM {vm} is not under way any more: it was undone, or another one was begun. Start it again."
    )


class RestoreCutOff(NasBackupError):
    """An earlier restore: until it is undone the VM lacks volumes, and cannot be started or backed up."""

    template = (
        "VM {vm} was not backed up: the restore of {backup} into it was cut off on host {host}; missing: {missing}. "
        "Run nas_reconcile with dry_run=false, which brings the old volumes back, or begin the restore again."
    )


class FileTrouble(RestoreError):
    template = "{action} {path} failed: {reason}."
    retryable = True


class RestoredNotStarted(RestoreError):
    template = "VM {vm} is restored and defined, and does not start: {reason}. Correct that, then `virsh start` it."


class DiskNotAttached(RestoreError):
    """The image stays: it took long. Made again, the same step attaches it."""

    template = (
        "Volume {volume} is restored to {path} and stays there; VM {vm} did not take it: {reason}. Attach it by hand "
        "(a VM that runs has it when it was shut down and started again): {command}"
    )
    retryable = True


class NoBackupBefore(RequestError):
    template = "VM {vm!r} has no backup that can be restored {when}. `nasbackup list --all` shows what there is."
