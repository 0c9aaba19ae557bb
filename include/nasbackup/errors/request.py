"""What was asked for, and cannot be done as it was asked."""

from __future__ import annotations

from nasbackup.errors.base import NasBackupError


class RequestError(NasBackupError):
    """The request itself is wrong; nothing was touched."""


class SettingInvalid(RequestError):
    template = "Variable {name} is {value!r}: it must be {expected}. Correct it under Admin > Variables."


class FleetInvalid(RequestError):
    template = "{place}: {field}: {problem}"


class UnknownParam(RequestError):
    template = "Unknown key in the run's conf: {keys}. Known keys are: {known}."


class ParamInvalid(RequestError):
    template = "Param {name} is {value!r}: {problem}."


class UnknownVm(RequestError):
    template = "Host {host} has no VM named {vm!r}. Its VMs: {known}."


class UnknownVolume(RequestError):
    template = "VM {vm} has no volume {volume!r}. Its volumes: {known}."


class UnknownHost(RequestError):
    template = "There is no host {host!r}: add a Connection of type libvirt with this id. Known hosts: {known}."


class UnknownRepository(RequestError):
    template = (
        "There is no repository {repository!r}: add a Connection of type nas with this id. Known repositories: {known}."
    )


class UnknownPolicy(RequestError):
    template = "fleet.yaml has no policy {policy!r}. Its policies: {known}."


class ConnectionInvalid(RequestError):
    template = "Connection {connection!r}: {problem}."


class NothingToBackUp(RequestError):
    template = "VM {vm} has no volume that can be backed up: {why}."


class BackupNotFound(RequestError):
    template = "There is no backup {backup!r}. `nasbackup list` shows the existing ones."


class BackupNotRestorable(RequestError):
    template = "Backup {backup} cannot be restored: {why}."


class BackupNotDeletable(RequestError):
    template = "Backup {backup} cannot be deleted: {why}."


class BackupNotKept(RequestError):
    template = "Backup {backup} is {status}: only a BackedUp one can be pinned or given an expiry date."


class VmElsewhere(RequestError):
    template = (
        "VM {vm} is stopped on host {host}, and nas_sla_watch last saw it on host {seen_on}: what {host} has of it may "
        "have been left behind by a migration. Back it up on {seen_on}. If this is the right one, start it, or ask for "
        "mode full."
    )


class TargetExists(RequestError):
    template = "{path} exists already; nothing was written. Name another place, or remove it first."
