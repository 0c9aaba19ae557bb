"""libvirt, QEMU and the guest."""

from __future__ import annotations

from nasbackup.errors.base import NasBackupError


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
