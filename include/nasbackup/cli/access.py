"""``nasbackup mount | files | instant | drill``: look into a backup, or run from it, where it lies."""

from __future__ import annotations

import platform
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import click

from nasbackup.cli import access_output as output
from nasbackup.cli.options import json_option
from nasbackup.cli.places import InCatalog, Place, with_place
from nasbackup.hypervisor import connect
from nasbackup.model import Host
from nasbackup.restore.file_level import extract, target_of
from nasbackup.restore.filesystems import opened
from nasbackup.restore.serve import served
from nasbackup.steps import instant

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType[timedelta]):
    """``90s``, ``30m``, ``2h``, ``1d``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", str(value))
        if found is None:
            self.fail(f"{value!r} is no duration: give for example 90s, 30m, 2h or 1d", param, ctx)
        return timedelta(seconds=int(found[1]) * _UNITS[found[2]])


@contextmanager
def until_told() -> Iterator[threading.Event]:
    """Set by ctrl-C or SIGTERM, which end the command in order instead of breaking it off."""
    told = threading.Event()

    def tell(_number: int, _frame: FrameType | None) -> None:
        told.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command("mount")
@click.argument("backup", metavar="ID")
@click.option("--volume", "volumes", multiple=True, help="Only this volume, by name; may be given again.")
@click.option(
    "--files",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also as files: this directory gets <volume>.raw, as long as the command runs.",
)
@click.option(
    "--tcp", "port", type=click.IntRange(1, 65535), help="Serve on this port of 127.0.0.1 instead of a Unix socket."
)
@click.option("--for", "duration", type=Duration(), help="End by itself after this time, for example 2h.")
@json_option
@with_place
def mount(
    *,
    place: Place,
    backup: str,
    volumes: tuple[str, ...],
    files: Path | None,
    port: int | None,
    duration: timedelta | None,
    as_json: bool,
) -> None:
    """Serve a backup's volumes read-only, without copying them, until ctrl-C.

    Each volume is one NBD export. Meanwhile the backup cannot be deleted (it becomes delete-pending); its VM is backed
    up as usual.
    """
    with until_told() as told, place.protecting(place.locate(backup), "mount") as protection:
        located = place.locate(backup)
        with served(located, volumes=volumes, files=files.absolute() if files else None, port=port) as server:
            end = time.monotonic() + duration.total_seconds() if duration else None
            until = datetime.now(UTC) + duration if duration else None
            output.show_served(located.backup, exports=server.exports, until=until, as_json=as_json)
            while not told.wait(0.5) and (end is None or time.monotonic() < end):
                protection.check()
                server.check()


@click.command("files")
@click.argument("backup", metavar="ID")
@click.argument("path", required=False)
@click.option("--volume", help="The volume, by name.")
@click.option("--partition", type=click.IntRange(1), help="The partition of it, by number.")
@click.option("--filesystem", help="The file system, as the list without PATH names it.")
@click.option(
    "--extract", "wanted", metavar="PATH", help="Extract this file, or this directory with all that is in it."
)
@click.option("--to", type=click.Path(path_type=Path, file_okay=False), help="Directory that gets it.")
@json_option
@with_place
def files_command(
    *,
    place: Place,
    backup: str,
    path: str | None,
    volume: str | None,
    partition: int | None,
    filesystem: str | None,
    wanted: str | None,
    to: Path | None,
    as_json: bool,
) -> None:
    """List what is at PATH in a backup's file system, or extract it; without PATH, list the file systems.

    Links are kept as links and never followed; device nodes are left out, set-user-ID is taken away, and the files
    belong to you.
    """
    if (wanted is None) != (to is None) or (wanted is not None and path is not None):
        raise click.UsageError("Give PATH, or --extract PATH with --to DIR.")
    located = place.locate(backup)
    if wanted is not None and to is not None:
        target_of(wanted, to=to.absolute())  # before the long way
    # A logical volume may lie on several disks: all of them, unless one is named.
    with place.protecting(located, "files"), opened(located, volumes=[volume] if volume else ()) as files:
        if path is None and wanted is None:
            return output.show_file_systems(backup, found=files.all(), as_json=as_json)
        chosen = files.choose(volume=volume, partition=partition, name=filesystem)
        files.mount(chosen)
        if wanted is not None and to is not None:
            done = extract(files, chosen=chosen, path=wanted, to=to.absolute())
            output.show_extracted(backup, chosen=chosen, path=wanted, done=done, as_json=as_json)
        elif path is not None:
            output.show_entries(backup, chosen=chosen, path=path, entries=files.list(path), as_json=as_json)


uri_option = click.option("--uri", default=Host(name="").uri, show_default=True, help="libvirt on this machine.")


@click.command("instant")
@click.argument("backup", metavar="ID")
@click.option("--new-name", required=True, help="Name of the VM.")
@click.option(
    "--to", required=True, type=click.Path(path_type=Path, file_okay=False), help="Directory that gets its images."
)
@uri_option
@json_option
@with_place
def instant_command(*, place: Place, backup: str, new_name: str, to: Path, uri: str, as_json: bool) -> None:
    """Start a VM from a backup within seconds, while its volumes are copied behind it.

    The backup is only read. The command ends when the VM is independent of the NAS; ended before, it goes on when it is
    given again.
    """
    host = Host(name=platform.node(), uri=uri)
    located = place.locate(backup, reader=instant.reader_of(name=new_name, host=host.name))
    database = place.database if isinstance(place, InCatalog) else None
    with until_told() as told, connect(host) as hypervisor:
        vm = instant.start(
            hypervisor, located, database=database, name=new_name, to=to.absolute(), socket_dir=host.socket_dir
        )
        output.say_started(vm)
        instant.finish(hypervisor, vm, database=database, follow=output.pulling(), stop=told.is_set)
    output.show_instant(vm, as_json=as_json)


COMMANDS = (mount, files_command, instant_command)
