"""What the command line prints: tables for people, JSON for programs, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from nasbackup.catalog.pages import GENERATED
from nasbackup.cli.places import Listing
from nasbackup.model import Backup, BackupVolume
from nasbackup.restore.image import Follow, RestoredVolume
from nasbackup.transfer.pump import Progress
from nasbackup.words import size, speed

_WIDE = 240
_LINE_EVERY = 5.0  # seconds between progress lines where there is no terminal to draw on


def as_document(backup: Backup, *, root: Path, kept_by: Sequence[str] = ()) -> dict[str, Any]:
    """A backup in JSON: the public form (README, Command line). ``kept_by``: why a delete-pending one still exists."""
    path = root / backup.external_id
    return {
        "external_id": backup.external_id,
        "vm": backup.vm,
        "host": backup.host,
        "repository": backup.repository,
        "path": str(path),
        "type": backup.type.value,
        "status": backup.status.value,
        "reason": backup.reason.value,
        "explanation": backup.explanation,
        "consistency": backup.consistency.value if backup.consistency else None,
        "chain_id": backup.chain_id,
        "chain_position": backup.chain_position,
        "parent": backup.parent,
        "checkpoint": backup.checkpoint,
        "created": backup.created_at.isoformat(),
        "size": backup.size,
        "verified": backup.verified,
        "pinned": backup.pinned_at is not None,
        "expires": backup.expires_at.isoformat() if backup.expires_at else None,
        "kept_by": list(kept_by),
        "generated": backup.run_id == GENERATED,
        "error": backup.error,
        "volumes": [_volume_document(volume, path=path) for volume in backup.volumes],
    }


def show_list(listing: Listing, *, as_json: bool) -> None:
    found, kept_by = listing.backups, listing.kept_by
    if as_json:
        return print_json(
            [
                as_document(backup, root=listing.roots[backup.repository], kept_by=kept_by.get(backup.backup_id, ()))
                for backup in found
            ]
        )
    table = Table(box=None, header_style="bold")
    for heading in ("BACKUP", "TYPE", "STATUS", "REASON"):
        table.add_column(heading, no_wrap=heading == "BACKUP")
    for heading in ("POSITION", "READ", "SIZE"):
        table.add_column(heading, justify="right")
    table.add_column("VERIFIED")
    table.add_column("")
    for backup in found:
        add_row(
            table,
            backup.external_id,
            backup.type.value,
            backup.status.value,
            backup.reason.value,
            str(backup.chain_position),
            size(sum(volume.bytes_read or 0 for volume in backup.volumes)),
            "" if backup.size is None else size(backup.size),
            "yes" if backup.verified else "no",
            _note(backup, kept_by=kept_by.get(backup.backup_id, ())),
        )
    if found:
        stdout().print(table)
    else:
        stdout().print("There are no backups.")


def _note(backup: Backup, *, kept_by: Sequence[str]) -> str:
    """What else there is to say of it."""
    said = ["generated, not on any NAS"] if backup.run_id == GENERATED else []
    if kept_by:
        said.append(f"kept by {', '.join(kept_by)}")
    elif backup.pinned_at is not None:
        said.append("pinned")
    elif backup.expires_at:
        said.append(f"expires {backup.expires_at:%Y-%m-%d}")
    return "; ".join(said)


def show_one(listing: Listing, *, as_json: bool) -> None:
    (backup,) = listing.backups
    document = as_document(
        backup, root=listing.roots[backup.repository], kept_by=listing.kept_by.get(backup.backup_id, ())
    )
    if as_json:
        return print_json(document)
    volumes = document.pop("volumes")
    show_facts({key: value for key, value in document.items() if value not in (None, [])}, as_json=False)
    table = Table(box=None, header_style="bold")
    for heading in ("VOLUME", "TYPE", "REASON", "COMPRESSION", "FILE"):
        table.add_column(heading, overflow="fold")
    for heading in ("VIRTUAL SIZE", "READ", "WRITTEN"):
        table.add_column(heading, justify="right")
    for volume in volumes:
        counts = (volume[key] for key in ("virtual_size", "bytes_read", "bytes_written"))
        add_row(
            table,
            volume["name"],
            volume["type"],
            volume["reason"],
            volume["compression"],
            Path(volume["file"]).name,
            *("" if count is None else size(count) for count in counts),
        )
    stdout().print(table)


def show_verified(backup: str, *, checked: Sequence[Mapping[str, Any]], by_digest: bool, as_json: bool) -> None:
    """``by_digest`` False: an imported backup, of which no digest was ever recorded."""
    if as_json:
        return print_json({"external_id": backup, "verified": by_digest, "readable": True, "volumes": list(checked)})
    found = "all as recorded" if by_digest else "whole and readable; no digests are recorded to compare with"
    for entry in checked:
        say(f"{entry['volume']}: {len(entry['layers'])} layers read back, {found}")


def show_restored(backup: str, *, restored: Sequence[RestoredVolume], as_json: bool) -> None:
    if as_json:
        return print_json(
            {
                "external_id": backup,
                "volumes": [
                    {"name": volume.name, "source": volume.source, "file": str(volume.file), "layers": volume.layers}
                    for volume in restored
                ],
            }
        )
    for volume in restored:
        say(f"{volume.name} -> {volume.file} (from {volume.layers} layers)")


def show_facts(facts: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        return print_json(facts)
    width = max(map(len, facts), default=0)
    for key, value in facts.items():
        shown = ", ".join(map(str, value)) or "nothing" if isinstance(value, list) else value
        say(f"{key.ljust(width)}  {shown}")


@contextlib.contextmanager
def following() -> Iterator[Follow]:
    """Progress of long work on stderr: bars on a terminal, a line now and then elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        with _bars(console) as follow:
            yield follow
    else:
        yield _lines(console)


class _Sizes(ProgressColumn):
    """rich's own columns count in thousands, and everything else here does not."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        done = f"{size(task.completed)} of {size(task.total or 0)}"
        return Text(done if rate is None else f"{done}, {speed(rate)}")


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[Follow]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        _Sizes(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=console) as bars:

        def follow(what: str, progress: Progress) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=progress.total)
            bars.update(tasks[what], completed=progress.done, total=progress.total)

        yield follow


def _lines(console: Console) -> Follow:
    is_time = now_and_then()

    def follow(what: str, progress: Progress) -> None:
        if is_time():
            console.print(f"{what}: {size(progress.done)} of {size(progress.total)}", markup=False)

    return follow


def now_and_then() -> Callable[[], bool]:
    """Whether it is time for another line of progress."""
    last = time.monotonic()

    def is_time() -> bool:
        nonlocal last
        due = time.monotonic() - last >= _LINE_EVERY
        if due:
            last = time.monotonic()
        return due

    return is_time


def _volume_document(volume: BackupVolume, *, path: Path) -> dict[str, Any]:
    return {
        "name": volume.name,
        "source": volume.source,
        "file": str(path / volume.file),
        "type": volume.type.value,
        "reason": volume.reason.value,
        "virtual_size": volume.virtual_size,
        "bytes_read": volume.bytes_read,
        "bytes_written": volume.bytes_written,
        "digest": volume.digest,
        "compression": volume.compression.value,
    }


def add_row(table: Table, *cells: str) -> None:
    """Names are shown as they are: a VM may be called ``[bold]``."""
    table.add_row(*map(Text, cells))


def say(line: str) -> None:
    """As it is, however long: a name in it may look like markup."""
    stdout().print(line, soft_wrap=True, markup=False, highlight=False)


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


def stdout() -> Console:
    """On a terminal as wide as that; elsewhere wide enough that no cell is cut."""
    return Console() if Console().is_terminal else Console(width=_WIDE)
