"""Where a volume is read from: the running VM's backup job, or the image of a stopped VM. The copy sees an NBD URI."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nasbackup.errors import VmStarted
from nasbackup.hypervisor import connect, job, offline
from nasbackup.hypervisor.xml import export_bitmap
from nasbackup.model import Backup, BackupType, BackupVolume, VmState
from nasbackup.steps.ticket import Site, base_checkpoint
from nasbackup.transfer.source import serve_image

Served = tuple[str, str | None]
"""An NBD URI, and the name of the dirty bitmap that is served with it (None for a full)."""

_NOTICED = 15.0
"""Seconds that libvirt may take to notice that QEMU is gone: the export breaks with QEMU, libvirt hears of it later.

A QEMU that ends in order closes its exports first and then writes back what its disks have cached; until that is done
it runs, and has its job. Waited for to the end only where nothing explains why a read failed.
"""


class Source(Protocol):
    def require(self) -> None:
        """Raise unless what is read is still the point in time."""

    def explain(self) -> None:
        """After a read failed: raise what says more than a broken connection, if anything does."""

    def serve(self) -> contextlib.AbstractContextManager[Served]:
        """The volume, for as long as the block lasts."""


def source_of(site: Site, *, backup: Backup, volume: BackupVolume) -> Source:
    kind = StoppedSource if backup.vm_state is VmState.STOPPED else RunningSource
    return kind(site=site, backup=backup, volume=volume)


@dataclass(frozen=True, kw_only=True)
class RunningSource:
    """libvirt's pull-mode job serves it."""

    site: Site
    backup: Backup
    volume: BackupVolume

    def require(self) -> None:
        """Raises JobLost when the job has ended: the guest shut down, or QEMU died."""
        with connect(self.site.host) as hypervisor:
            job.require(hypervisor, name=self.site.job_name(self.backup))

    def explain(self) -> None:
        """Raises JobLost, also when libvirt still believes in the job at first."""
        deadline = time.monotonic() + _NOTICED
        while time.monotonic() < deadline:
            self.require()
            time.sleep(0.1)

    @contextlib.contextmanager
    def serve(self) -> Iterator[Served]:
        incremental = self.volume.type is BackupType.INCREMENTAL
        target = self.volume.target
        yield self.site.job_name(self.backup).nbd_uri(target), export_bitmap(target) if incremental else None


@dataclass(frozen=True, kw_only=True)
class StoppedSource:
    """A qemu-nbd of this copy's own serves the image read-only and without locks: the VM can start at any moment."""

    site: Site
    backup: Backup
    volume: BackupVolume

    def require(self) -> None:
        """Raises VmStarted when the VM runs, or ran meanwhile: what was read may be half old and half new."""
        with connect(self.site.host) as hypervisor:
            offline.require_stopped(hypervisor, domain=hypervisor.domain(name=self.backup.vm))
        if offline.stamp(Path(self.volume.source)) != self.volume.source_stamp:
            raise VmStarted(vm=self.backup.vm)

    def explain(self) -> None:
        """Raises VmStarted."""
        self.require()

    @contextlib.contextmanager
    def serve(self) -> Iterator[Served]:
        bitmap = base_checkpoint(self.site, self.backup) if self.volume.type is BackupType.INCREMENTAL else None
        with serve_image(Path(self.volume.source), image_format=self.volume.format, bitmap=bitmap) as uri:
            yield uri, bitmap
