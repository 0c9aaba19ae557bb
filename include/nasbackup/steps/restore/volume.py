"""restore_volume: one volume, verified layer by layer, becomes an image under a name of this restore's own."""

from __future__ import annotations

import uuid
from pathlib import Path

from nasbackup.errors import TransferError
from nasbackup.hypervisor import connect
from nasbackup.model import Backup, Target
from nasbackup.nas.durable import sync_directory
from nasbackup.restore import files
from nasbackup.restore.image import Follow, choose, locate, require_whole, watching, write_image
from nasbackup.restore.plan import PlannedVolume
from nasbackup.steps.restore.bench import Bench
from nasbackup.steps.restore.in_place import require_same


def restore_volume(
    bench: Bench, *, backup: Backup, key: str, volume: str, follow: Follow | None = None
) -> PlannedVolume:
    """Write and verify the image; nothing has another name or content afterwards than before, but for that.

    A second call finds the image of the first, if that was finished. Raises BackupNotRestorable (it names the newest
    older backup that is whole), VmNotStopped, RestoreRefused, NotEnoughSpace, TargetFull, NasError, RestoreSuperseded,
    LeaseLost.
    """
    lease = bench.lease(uuid=backup.vm_uuid, vm=backup.vm)
    token = lease.join()
    plan = bench.load(backup, key=key)
    planned = plan.volume(volume)
    staged = Path(planned.staged)
    if staged.exists():
        return planned
    if plan.target is Target.IN_PLACE:
        with connect(bench.host) as hypervisor:
            require_same(hypervisor, backup=backup, plan=plan)
    located = locate(bench.database, external_id=backup.external_id, reader=bench.holder)
    (chosen,) = choose(located.backup, volumes=[volume])
    files.require_space(files.existing_directory(staged.parent), needs=planned.needs)
    following = lease.renewing(token, watching(located, volume=volume, follow=follow))
    require_whole(located, volume=chosen, follow=following)
    files.remove_staged(Path(planned.path))
    with files.doing("Making", staged.parent):
        staged.parent.mkdir(parents=True, exist_ok=True)
    attempt = staged.with_name(f"{staged.name}.{uuid.uuid4().hex[:12]}")
    try:
        top = located.layers(chosen)[-1].file
        write_image(top, to=attempt, image_format=planned.format, name=volume, follow=following)
        bench.load(backup, key=key)  # an orphan, whose restore was undone meanwhile, leaves nothing
        with files.doing("Naming", attempt):
            attempt.rename(staged)
            sync_directory(staged.parent)
    except TransferError:
        # A NAS that is gone says more than a failed tool.
        locate(bench.database, external_id=backup.external_id, reader=bench.holder)
        raise
    finally:
        attempt.unlink(missing_ok=True)
    return planned
