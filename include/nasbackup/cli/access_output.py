"""What ``nasbackup mount | files | instant | drill`` print."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click
from rich.table import Table

from nasbackup.catalog.drills import DrillRecord, as_document
from nasbackup.cli.output import add_row, now_and_then, print_json, say, stdout
from nasbackup.hypervisor.live import Pull
from nasbackup.model import Backup
from nasbackup.restore.extract import printable
from nasbackup.restore.file_level import Extracted
from nasbackup.restore.filesystems import Entry, FileSystem
from nasbackup.steps.instant import InstantVm
from nasbackup.transfer.serve import Export
from nasbackup.words import size


def show_served(backup: Backup, *, exports: Sequence[Export], until: datetime | None, as_json: bool) -> None:
    """Said while the command goes on: a reader of our output must not wait for its end."""
    if as_json:
        print_json(
            {
                "external_id": backup.external_id,
                "until": until.isoformat() if until else None,
                "volumes": [
                    {"name": export.name, "nbd": export.uri, "file": str(export.file) if export.file else None}
                    for export in exports
                ],
            }
        )
    else:
        for export in exports:
            say(f"{export.name}  {export.uri}" + (f"  {export.file}" if export.file else ""))
        say(f"Read-only, until {until:%Y-%m-%d %H:%M:%S} UTC or ctrl-C." if until else "Read-only, until ctrl-C.")
    sys.stdout.flush()


def show_file_systems(backup: str, *, found: Sequence[FileSystem], as_json: bool) -> None:
    if as_json:
        return print_json(
            {
                "external_id": backup,
                "filesystems": [
                    {
                        "name": one.name,
                        "type": one.type,
                        "volume": one.volume,
                        "partition": one.partition,
                        "readable": one.has_files,
                    }
                    for one in found
                ],
            }
        )
    table = _table("FILE SYSTEM", "TYPE", "")
    for one in found:
        add_row(table, one.name, one.type, "" if one.has_files else "has no files that can be read")
    stdout().print(table)


def show_entries(backup: str, *, chosen: FileSystem, path: str, entries: Sequence[Entry], as_json: bool) -> None:
    if as_json:
        return print_json(
            {
                "external_id": backup,
                "filesystem": chosen.name,
                "path": printable(path),
                "entries": [_entry_document(entry) for entry in entries],
            }
        )
    table = _table("MODE", "OWNER", "SIZE", "MODIFIED", "NAME")
    for entry in entries:
        name = printable(entry.name) + (f" -> {printable(entry.target)}" if entry.target is not None else "")
        when = f"{entry.modified:%Y-%m-%d %H:%M:%S}" if entry.modified else ""
        kind = {"file": "-", "directory": "d", "link": "l"}.get(entry.kind, "?")
        add_row(table, f"{kind}{entry.mode:04o}", f"{entry.uid}:{entry.gid}", str(entry.size), when, name)
    stdout().print(table)


def _entry_document(entry: Entry) -> dict[str, Any]:
    """``name`` as it is, where that is UTF-8; else with its bytes as ``\\xff``."""
    return {
        "name": _plain(entry.name),
        "kind": entry.kind,
        "mode": f"{entry.mode:04o}",
        "size": entry.size,
        "uid": entry.uid,
        "gid": entry.gid,
        "modified": entry.modified.isoformat() if entry.modified else None,
        "target": _plain(entry.target) if entry.target is not None else None,
    }


def _plain(name: str) -> str:
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def show_extracted(backup: str, *, chosen: FileSystem, path: str, done: Extracted, as_json: bool) -> None:
    unpacked = done.unpacked
    if as_json:
        return print_json(
            {
                "external_id": backup,
                "filesystem": chosen.name,
                "path": printable(path),
                "to": str(done.target),
                "files": unpacked.files,
                "bytes": unpacked.bytes,
                "left_out": unpacked.left_out,
                "skipped": unpacked.skipped,
            }
        )
    say(f"{chosen.name}:{printable(path)} -> {done.target} ({unpacked.files} files, {unpacked.bytes} bytes)")
    for line in unpacked.skipped:
        say(f"Left out: {line}")
    if unpacked.left_out > len(unpacked.skipped):
        say(f"Left out: {unpacked.left_out - len(unpacked.skipped)} more")


def say_started(vm: InstantVm) -> None:
    """On stderr, and at once: from this moment on the VM can be used."""
    click.echo(f"VM {vm.name} runs from {vm.backup}; it is being copied to {vm.directory}.", err=True)
    for note in vm.notes:
        click.echo(f"Note: {note}", err=True)


def pulling() -> Callable[[Sequence[Pull]], None]:
    """A line on stderr now and then."""
    is_time = now_and_then()

    def follow(found: Sequence[Pull]) -> None:
        if is_time():
            for pull in found:
                if pull.copying:
                    click.echo(f"{pull.target}: {size(pull.done)} of {size(pull.total)}", err=True)

    return follow


def show_instant(vm: InstantVm, *, as_json: bool) -> None:
    volumes = [{"name": overlay.volume.name, "file": str(overlay.file)} for overlay in vm.overlays]
    if as_json:
        return print_json(
            {
                "external_id": vm.backup,
                "vm": vm.name,
                "uuid": vm.uuid,
                "independent": True,
                "notes": list(vm.notes),
                "volumes": volumes,
            }
        )
    for volume in volumes:
        say(f"{volume['name']} -> {volume['file']}")
    say(f"VM {vm.name} is independent of the backup.")


def show_drills(found: Sequence[DrillRecord], *, as_json: bool, one: bool = False) -> None:
    if as_json:
        documents = [as_document(record) for record in found]
        return print_json(documents[0] if one else documents)
    if not found:
        return say("There were no drills.")
    table = _table("BACKUP", "RESULT", "ANSWERED AFTER", "BY", "WHEN", "")
    for record in found:
        rto = f"{record.rto_seconds:.1f} s" if record.rto_seconds is not None else ""
        when = f"{record.started_at:%Y-%m-%d %H:%M}"
        result = "ok" if record.ok else "failed"
        add_row(table, record.external_id, result, rto, record.how, when, printable(record.detail)[-200:])
    stdout().print(table)


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading == "SIZE" else "left", overflow="fold")
    return table
