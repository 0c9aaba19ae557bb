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
