"""The one error tree.

Each class is a sentence with named gaps: the data stays on the exception (``error.data``) for callers that
decide, the sentence is what an operator reads and ends with what to do next. ``retryable`` says whether the
same attempt, made again later with nothing else changed, can succeed: Airflow's retries follow it.
"""

from __future__ import annotations

from typing import Any, ClassVar


class NasBackupError(Exception):
    """Root of every error that this project raises on purpose."""

    template: ClassVar[str] = "{problem}"
    retryable: ClassVar[bool] = False

    def __init__(self, **data: Any) -> None:
        self.data = data
        super().__init__(self.template.format(**data))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.data)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


def _rebuild(cls: type[NasBackupError], data: dict[str, Any]) -> NasBackupError:
    return cls(**data)


# --- what was asked for ---------------------------------------------------------------------------------------


class RequestError(NasBackupError):
    """The request itself is wrong; nothing was touched."""


class SettingInvalid(RequestError):
    template = "Variable {name} is {value!r}: it must be {expected}. Correct it under Admin > Variables."


class FleetInvalid(RequestError):
    template = "{file}: {field}: {problem}"


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


class TargetExists(RequestError):
    template = "{path} exists already; nothing was written. Name another place, or remove it first."


# --- one writer per VM ----------------------------------------------------------------------------------------


class VmBusy(NasBackupError):
    template = "VM {vm} is in use by {holder} until {until} at the latest. Wait for it, or end that run first."
    retryable = True


class LeaseLost(NasBackupError):
    """The holder's lease expired or was taken over (fencing): it must not write any more."""

    template = "{holder} no longer holds the lease of VM {vm}: another run took over; this one stops."


class AttemptSuperseded(NasBackupError):
    """A newer attempt of the same step is named in the catalog; what this one wrote is discarded."""

    template = "Attempt {attempt} of volume {volume} was replaced by a newer attempt; what it wrote is discarded."


class BackupNotOpen(NasBackupError):
    template = "Backup {backup} is {status}, not BackingUp: this step cannot go on. Start a new run."


# --- catalog --------------------------------------------------------------------------------------------------


class CatalogError(NasBackupError):
    """The catalog's database could not be used."""


class CatalogUnreachable(CatalogError):
    template = (
        "The catalog does not answer: {reason}. Is PostgreSQL running, is the connection nas_backup_catalog right?"
    )
    retryable = True


class CatalogAddressInvalid(CatalogError):
    template = (
        "The catalog's address cannot be read: {problem}. It is a libpq URI, such as postgresql://user@host/nasbackup; "
        "special characters in it are percent-encoded."
    )


class CatalogConflict(CatalogError):
    """Another run wrote the same thing first."""

    template = "Another run was first: {reason}"
    retryable = True


class CatalogOutdated(CatalogError):
    template = "The catalog's schema is not up to date ({reason}): run `nasbackup catalog migrate` once."


# --- hypervisor -----------------------------------------------------------------------------------------------


class HypervisorError(NasBackupError):
    """libvirt refused or failed; ``code`` is libvirt's VIR_ERR_* number."""

    template = "{action} on {host} failed: {reason}"
    retryable = True


class HostUnreachable(HypervisorError):
    template = "Host {host} does not answer at {uri}: {reason}. Is libvirtd running, may this user connect?"


class ForeignJob(HypervisorError):
    template = (
        "VM {vm} already has a job that is not this backup's ({job}). Wait for it, or end it with `virsh domjobabort`."
    )


class JobLost(HypervisorError):
    template = (
        "The backup job of VM {vm} ended before the copy did: {why}. The next run starts from a new point in time."
    )
    retryable = False


class VmStarted(HypervisorError):
    template = (
        "VM {vm} was started while its images were being read: what was read is discarded. "
        "The next run backs up the running VM."
    )
    retryable = False


class GuestNotFrozen(HypervisorError):
    template = (
        "VM {vm} could not freeze its file systems: {reason}. Install and start the guest agent, "
        "or run with quiesce=continue (crash-consistent)."
    )
    retryable = False


class HostNotReady(HypervisorError):
    template = "Host {host}: {problem}."
    retryable = False


# --- NAS ------------------------------------------------------------------------------------------------------


class NasError(NasBackupError):
    """The repository could not be used."""


class NotARepository(NasError):
    template = (
        "{path} is not the repository {repository}: {problem}. Is the NAS mounted? "
        "(A new repository is set up once with `nasbackup register-repository`.)"
    )
    retryable = True


class RepositoryFull(NasError):
    template = (
        "Repository {repository} is full: needs {needs} bytes, has {has}. Free some space or lower the retention."
    )


class RepositoryFilling(NasError):
    """Nothing has failed yet: somebody should make room before it does."""

    template = "Repository {repository} is filling up: {why}. Make room, or lower the retention, before it is full."


class NasIo(NasError):
    template = "{action} on repository {repository} failed: {reason}"
    retryable = True


class ManifestInvalid(NasError):
    template = "{path}: {problem}"


# --- transfer -------------------------------------------------------------------------------------------------


class TransferError(NasBackupError):
    """Bytes could not be moved, or are not the bytes they should be."""

    retryable = True


class ToolFailed(TransferError):
    template = "{tool} failed with exit code {exit_code}: {stderr}"


class ReadFailed(TransferError):
    template = "Reading {source} at offset {offset} failed: {reason}"


class WriteFailed(TransferError):
    template = "Writing {target} at offset {offset} failed: {reason}"


class TargetFull(TransferError):
    template = "No space left while writing {target}: {needs} bytes were still to come, {has} are free."
    retryable = False


class VerifyFailed(TransferError):
    template = "{file}: {problem}"
