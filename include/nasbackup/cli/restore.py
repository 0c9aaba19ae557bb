"""``nasbackup restore``: to images, to a new VM, in place, or one volume as a new disk."""

from __future__ import annotations

import platform
import sys
import uuid
from pathlib import Path

import click

from nasbackup.cli import output, restore_output
from nasbackup.cli.options import holder, json_option
from nasbackup.cli.places import InCatalog, Place, with_place
from nasbackup.errors import NoBackupBefore, RestoreRefused
from nasbackup.model import Host, Target
from nasbackup.restore.files import require_room
from nasbackup.restore.image import choose, image_bytes, image_path, restore_images
from nasbackup.restore.plan import ImageFormat, RestorePlan, RestoreRequest, parse_moment
from nasbackup.steps import restore as steps

_TARGETS = [target.value.replace("_", "-") for target in Target]


@click.command("restore")
@click.argument("backup", metavar="[ID]", required=False)
@click.option("--vm", help="In place of ID: the newest backup of the VM with this instance name.")
@click.option("--before", metavar="TIME", help="With --vm: the newest from before this time (ISO 8601, else UTC).")
@click.option(
    "--target",
    type=click.Choice(_TARGETS),
    default="image",
    show_default=True,
    help="What the backup becomes: standalone images; a new VM; the VM itself again; a new disk of a VM.",
)
@click.option(
    "--to", type=click.Path(path_type=Path, file_okay=False), help="Directory that gets the images (not in-place)."
)
@click.option("--pool", help="A storage pool in place of --to (new-vm, volume).")
@click.option("--format", "image_format", type=click.Choice(["qcow2", "raw"]), default="qcow2", show_default=True)
@click.option("--volume", "volumes", multiple=True, help="Only this volume, by name; may be given again.")
@click.option("--new-name", help="Name of the new VM (new-vm). Without it: the old one, if that is gone.")
@click.option("--keep-macs", is_flag=True, help="The new VM takes the old one's MACs and ports (new-vm).")
@click.option("--attach-to", metavar="VM", help="The VM that gets the disk (volume). Without it: the backup's own.")
@click.option("--start", is_flag=True, help="Start the VM afterwards (new-vm, in-place).")
@click.option("--remove-old", is_flag=True, help="Remove the volumes that were replaced (in-place).")
@click.option("--uri", default=Host(name="").uri, show_default=True, help="libvirt on this machine.")
@click.option("--yes", is_flag=True, help="Replace the VM's volumes without asking (in-place).")
@click.option("--dry-run", is_flag=True, help="Only say what would be written, and whether there is room.")
@json_option
@with_place
def restore(
    *,
    place: Place,
    backup: str | None,
    vm: str | None,
    before: str | None,
    target: str,
    to: Path | None,
    pool: str | None,
    image_format: ImageFormat,
    volumes: tuple[str, ...],
    new_name: str | None,
    keep_macs: bool,
    attach_to: str | None,
    start: bool,
    remove_old: bool,
    uri: str,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Restore a backup. Every layer is verified before anything is written.

    ID is the external id, such as i-2-1234-VM/2026.01.31.22.00.05. Files are written by this machine: for new-vm,
    in-place and volume it has to be the KVM host.
    """
    name = _resolve(place, backup=backup, vm=vm, before=before)
    if target == Target.IMAGE:
        if to is None:
            raise click.UsageError("Missing option '--to'.")
        if dry_run:
            _show_image_plan(place, name, to=to.absolute(), image_format=image_format, volumes=volumes, as_json=as_json)
        else:
            _to_images(place, name, to=to.absolute(), image_format=image_format, volumes=volumes, as_json=as_json)
        return
    if not isinstance(place, InCatalog):
        raise RestoreRefused(
            vm=vm or name.partition("/")[0],
            why="without a catalog there are only images; `nasbackup rebuild-catalog` writes it anew from the NAS",
        )
    request = RestoreRequest(
        backup=name,
        target=Target(target.replace("-", "_")),
        key=uuid.uuid4().hex[:12],
        volumes=volumes,
        new_name=new_name,
        vm=attach_to,
        to=str(to.absolute()) if to is not None else None,
        pool=pool,
        image_format=image_format,
        keep_macs=keep_macs,
        start=start,
        keep_old=not remove_old,
    )
    bench = steps.Bench(database=place.database, host=Host(name=platform.node(), uri=uri), holder=holder("restore"))
    _with_plan(bench, request=request, yes=yes, dry_run=dry_run, as_json=as_json)


def _resolve(place: Place, *, backup: str | None, vm: str | None, before: str | None) -> str:
    if (backup is None) == (vm is None):
        raise click.UsageError("Give either ID or --vm NAME.")
    if backup is not None:
        if before is not None:
            raise click.UsageError("--before goes with --vm.")
        return backup
    assert vm is not None
    moment = parse_moment(before) if before is not None else None
    found = place.latest(vm=vm, before=moment)
    if found is None:
        raise NoBackupBefore(vm=vm, when=f"from before {moment:%Y-%m-%d %H:%M:%S %Z}" if moment else "at all")
    click.echo(f"The newest backup is {found.external_id}.", err=True)
    return found.external_id


def _to_images(
    place: Place, backup: str, *, to: Path, image_format: ImageFormat, volumes: tuple[str, ...], as_json: bool
) -> None:
    located = place.locate(backup)
    with output.following() as bars, place.reading(located, bars) as follow:
        restored = restore_images(located, to=to, image_format=image_format, volumes=volumes, follow=follow)
    output.show_restored(backup, restored=restored, as_json=as_json)


def _show_image_plan(
    place: Place, backup: str, *, to: Path, image_format: ImageFormat, volumes: tuple[str, ...], as_json: bool
) -> None:
    located = place.locate(backup)
    chosen = choose(located.backup, volumes=volumes)
    paths = {volume.name: image_path(to, volume=volume, image_format=image_format) for volume in chosen}
    needs = {volume.name: image_bytes(located, volume=volume) for volume in chosen}
    room = require_room([(to, size) for size in needs.values()])
    restore_output.show_files(backup, paths=paths, needs=needs, room=room, as_json=as_json)


def _with_plan(bench: steps.Bench, *, request: RestoreRequest, yes: bool, dry_run: bool, as_json: bool) -> None:
    if dry_run:
        restore_output.show_plan(steps.plan(bench, request=request, dry_run=True), as_json=as_json)
        return
    backup = bench.backup(request.backup)
    lease = bench.lease(uuid=backup.vm_uuid, vm=backup.vm)
    lease.join()
    try:
        plan = steps.plan(bench, request=request)
        if plan.target is Target.IN_PLACE and not yes:
            _ask(plan)
        with output.following() as follow:
            for volume in plan.volumes:
                steps.restore_volume(bench, backup=backup, key=plan.key, volume=volume.name, follow=follow)
        result = steps.commit(bench, backup=backup, key=plan.key)
    finally:
        steps.give_back(bench, backup=backup, key=request.key)
    restore_output.show_result(result, as_json=as_json)


def _ask(plan: RestorePlan) -> None:
    names = ", ".join(volume.name for volume in plan.volumes)
    if not sys.stdin.isatty():
        raise click.UsageError(f"This replaces {names} of VM {plan.vm}: add --yes, or look first with --dry-run.")
    click.confirm(f"Replace {names} of VM {plan.vm} with those of {plan.backup}?", abort=True, err=True)


COMMANDS = (restore,)
