"""The pull-mode backup job: one per backup, over all its volumes, with the new checkpoint in the same transaction.

Rules: https://libvirt.org/kbase/incrementalbackup.html and formatbackup.html. Everything here may be called
again after a crash at any point: a job is known by its socket's path, which carries the VM's UUID.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import libvirt

from nasbackup.errors import ForeignJob, HostNotReady, HypervisorError, JobLost
from nasbackup.hypervisor import checkpoints, inventory, quiescing, xml
from nasbackup.hypervisor.connection import Hypervisor
from nasbackup.model import Consistency, Host, Quiesce, VmState

_END_TIMEOUT = 60.0  # seconds


@dataclass(frozen=True, kw_only=True)
class JobName:
    """The files of one job: names that say whose they are, so that a crash leaves nothing anonymous."""

    host: Host
    vm_uuid: str
    stamp: str

    @property
    def socket(self) -> str:
        return os.path.join(self.host.socket_dir, f"{self.vm_uuid}-{self.stamp}.sock")

    def scratch(self, target: str) -> str:
        return os.path.join(self.host.scratch_dir, f"{self.vm_uuid}-{self.stamp}-{target}.qcow2")

    def nbd_uri(self, target: str) -> str:
        return f"nbd+unix:///{quote(target, safe='')}?socket={quote(self.socket, safe='/')}"

    def leftovers(self) -> list[Path]:
        """Files of this VM's jobs, this one or an earlier one."""
        return [
            path
            for directory in (self.host.socket_dir, self.host.scratch_dir)
            for path in Path(directory).glob(f"{self.vm_uuid}-*")
        ]


def begin(
    hypervisor: Hypervisor,
    *,
    name: JobName,
    disks: Sequence[xml.BackupDisk],
    checkpoint: str | None,
    quiesce: Quiesce,
) -> Consistency:
    """Begin the job, or find it already begun by an earlier attempt.

    Raises ForeignJob (somebody else's job runs), HostNotReady (directories), GuestNotFrozen (``quiesce=fail``),
    JobLost (the VM is not running), HypervisorError. After an error neither job nor new checkpoint remains.
    """
    domain = _running(hypervisor, name=name)
    vm = domain.name()
    if is_begun(hypervisor, name=name, checkpoint=checkpoint):
        # An earlier attempt of this step was killed after libvirt had begun: the point in time stands. Whether
        # the guest was frozen then is not known any more, so the weaker promise is recorded.
        return Consistency.CRASH
    _check_directories(name.host)
    end(hypervisor, name=name)
    if checkpoint is not None:
        checkpoints.drop(hypervisor, vm_uuid=name.vm_uuid, unneeded=[checkpoint])
    with hypervisor.doing(f"reading the disks of VM {vm}"):
        targets = inventory.all_targets(domain)
    job_xml = xml.backup_xml(socket=name.socket, disks=disks, all_targets=targets)
    checkpoint_xml = xml.checkpoint_xml(name=checkpoint, disks=disks, all_targets=targets) if checkpoint else None
    try:
        with (
            quiescing.frozen(hypervisor, domain=domain, quiesce=quiesce) as freeze,
            hypervisor.doing(f"beginning the backup job of VM {vm}"),
        ):
            domain.backupBegin(job_xml, checkpoint_xml, 0)
    except BaseException:
        # When the NBD export fails after libvirt's transaction, the checkpoint stays: roll it back ourselves.
        with contextlib.suppress(HypervisorError):
            end(hypervisor, name=name)
            if checkpoint is not None:
                checkpoints.drop(hypervisor, vm_uuid=name.vm_uuid, unneeded=[checkpoint])
        raise
    return freeze.consistency


def is_begun(hypervisor: Hypervisor, *, name: JobName, checkpoint: str | None) -> bool:
    """Whether exactly this job runs, with its checkpoint."""
    domain = hypervisor.domain_by_uuid(name.vm_uuid)
    return (
        domain is not None
        and running_job(hypervisor, vm_uuid=name.vm_uuid) == name.socket
        and (checkpoint is None or checkpoint in checkpoints.names(domain))
    )


def require(hypervisor: Hypervisor, *, name: JobName) -> None:
    """Raises JobLost unless exactly this job is running."""
    _running(hypervisor, name=name)
    if running_job(hypervisor, vm_uuid=name.vm_uuid) != name.socket:
        raise JobLost(vm=name.vm_uuid, why="libvirt does not know it any more")


def running_job(hypervisor: Hypervisor, *, vm_uuid: str) -> str | None:
    """The socket of the backup job that the domain has now; None without one."""
    domain = hypervisor.domain_by_uuid(vm_uuid)
    if domain is None:
        return None
    try:
        return xml.parse_job_socket(domain.backupGetXMLDesc())
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID):
            return None
        raise hypervisor.error("reading the backup job", error) from error


def end(hypervisor: Hypervisor, *, name: JobName) -> bool:
    """End this VM's job if it is ours (this backup's or one that a dead run left), and remove its files.

    Returns whether there was one. Raises ForeignJob when the job is somebody else's: it is left alone.
    """
    current = running_job(hypervisor, vm_uuid=name.vm_uuid)
    if current is not None:
        prefix = os.path.join(name.host.socket_dir, f"{name.vm_uuid}-")
        if not current.startswith(prefix):
            raise ForeignJob(vm=name.vm_uuid, job=current or "a push-mode backup")
        domain = hypervisor.domain_by_uuid(name.vm_uuid)
        with hypervisor.doing("ending the backup job"):
            if domain is not None:
                _abort(domain)
        deadline = time.monotonic() + _END_TIMEOUT
        while running_job(hypervisor, vm_uuid=name.vm_uuid) is not None:
            if time.monotonic() > deadline:
                raise HypervisorError(
                    action="Ending the backup job", host=name.host.name, reason="libvirt still shows it", code=None
                )
            time.sleep(0.05)
    # libvirt removes socket and scratch itself; after a crash of it or of QEMU they stay.
    for path in name.leftovers():
        path.unlink(missing_ok=True)
    return current is not None


def _abort(domain: libvirt.virDomain) -> None:
    try:
        domain.abortJob()
    except libvirt.libvirtError as error:
        # It is ending already: somebody who was killed since has asked for that, or the guest shuts down.
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
            raise


def _running(hypervisor: Hypervisor, *, name: JobName) -> libvirt.virDomain:
    domain = hypervisor.domain_by_uuid(name.vm_uuid)
    if domain is None:
        raise JobLost(vm=name.vm_uuid, why="the host does not have the VM any more")
    with hypervisor.doing("reading the VM's state"):
        state = inventory.state_of(domain)
    if state is VmState.STOPPED:
        raise JobLost(vm=domain.name(), why="the VM is not running")
    return domain


def _check_directories(host: Host) -> None:
    for directory in (host.socket_dir, host.scratch_dir):
        if not os.path.isdir(directory):
            raise HostNotReady(
                host=host.name,
                problem=f"directory {directory} does not exist; create it, owned by QEMU's user (README, Real hosts)",
            )
