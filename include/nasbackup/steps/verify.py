"""verify: read a volume back from the NAS; it must be what was copied. Level structure: all but the reading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nasbackup import layout, qcow2
from nasbackup.catalog import backups, leases
from nasbackup.errors import ImageRefused, VerifyFailed
from nasbackup.handling import VerifyLevel
from nasbackup.model import BackupType, BackupVolume
from nasbackup.nas.watchdog import Follower, watched
from nasbackup.steps.copy import PROGRESS_SECONDS, volume_of
from nasbackup.steps.request import request_of
from nasbackup.steps.ticket import Site, Ticket, partial_path
from nasbackup.transfer.pump import Progress
from nasbackup.transfer.readback import check_image, image_info, read_layer


def verify(
    site: Site, *, ticket: Ticket, volume: str, on_progress: Callable[[Progress], None] | None = None
) -> BackupVolume:
    """Compare digest, size and backing link of the attempt that the catalog names with what is on the NAS.

    Level structure leaves the digest to a later `nasbackup verify`: the volume is checked then, and not verified.
    Raises VerifyFailed (the file is not what was copied), LeaseLost, AttemptSuperseded.
    """
    backup = site.load(ticket)
    copied = volume_of(backup, name=volume)
    if copied.attempt is None or copied.digest is None:
        raise VerifyFailed(file=copied.file, problem="it was not copied to the end; run its copy again")
    file = partial_path(site.root(), backup=backup) / layout.attempt_file(file=copied.file, attempt=copied.attempt)

    follower = Follower(site.repository, f"verifying {volume}")

    def follow(progress: Progress) -> None:
        site.renew(ticket)
        follower.look((progress.phase, progress.done))
        if on_progress:
            on_progress(progress)

    request = request_of(backup)
    read_back = request.verify is VerifyLevel.FULL
    watched(site.repository, f"checking {volume}", check_structure, file, volume=copied)
    if read_back:
        check_content(file, volume=copied, bandwidth=request.bandwidth, on_progress=follow)
    with site.database.transaction() as cursor:
        leases.renew(cursor, vm_uuid=ticket.vm_uuid, vm=ticket.vm, token=ticket.lease_token)
        backups.set_verified(
            cursor, backup_id=backup.backup_id, volume=volume, attempt=copied.attempt, read_back=read_back
        )
        return volume_of(backups.get(cursor, backup_id=backup.backup_id), name=volume)


def check_structure(file: Path, *, volume: BackupVolume) -> None:
    """Raises VerifyFailed unless the file is the layer that the catalog describes, by what its header says."""
    if not file.is_file():
        raise VerifyFailed(file=file, problem="the file is missing")
    try:
        qcow2.read_header(file)  # before QEMU, which would open what a hostile one names
    except ImageRefused as error:
        raise VerifyFailed(file=file, problem=error.problem) from error
    check_image(file)
    info = image_info(file)
    if info.virtual_size != volume.virtual_size:
        raise VerifyFailed(file=file, problem=f"its size is {info.virtual_size}, not {volume.virtual_size} bytes")
    if info.backing != volume.backing:
        raise VerifyFailed(file=file, problem=f"its backing file is {info.backing!r}, not {volume.backing!r}")


def check_content(
    file: Path,
    *,
    volume: BackupVolume,
    bandwidth: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> None:
    """The same of every byte. Without a recorded digest (an imported backup) it is enough that each can be read.

    Raises VerifyFailed.
    """
    found = read_layer(
        file=file,
        incremental=volume.type is BackupType.INCREMENTAL,
        bandwidth=bandwidth,
        on_progress=on_progress,
        progress_every=PROGRESS_SECONDS,
    )
    if volume.digest is not None and found.digest != volume.digest:
        raise VerifyFailed(
            file=file, problem=f"its content is not what was copied ({found.digest}, not {volume.digest})"
        )
