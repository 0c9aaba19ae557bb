"""``nasbackup alerts | metrics``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from nasbackup import fleet
from nasbackup.catalog import Database, alerts
from nasbackup.cli import output
from nasbackup.cli.options import json_option, with_database
from nasbackup.errors import FleetInvalid
from nasbackup.nas.durable import write_durably
from nasbackup.sla.messages import one_line
from nasbackup.steps.metrics import render

_MOST = 1000


@click.command("alerts")
@click.option("--all", "show_all", is_flag=True, help="Also those that are over, the latest first.")
@json_option
@with_database
def alerts_command(*, database: Database, show_all: bool, as_json: bool) -> None:
    """What is wrong with the fleet's backups, as nas_sla_watch last saw it, and what to do about it."""
    with database.transaction() as cursor:
        found = alerts.recent(cursor, also_closed=show_all, limit=_MOST)
    if as_json:
        return output.print_json([_document(row) for row in found])
    if found:
        _show(found)
    else:
        click.echo("There was no alert yet." if show_all else "No alert is open.")


def _show(found: Sequence[Mapping[str, Any]]) -> None:
    table = Table(box=None, header_style="bold")
    for heading in ("SINCE (UTC)", "SEVERITY", "WHAT", "WHICH"):
        table.add_column(heading, no_wrap=True)
    table.add_column("WHAT IS WRONG, WHAT TO DO", overflow="fold")
    for row in found:
        output.add_row(
            table,
            f"{row['opened_at'].astimezone(UTC):%Y-%m-%d %H:%M}",
            row["severity"] if row["closed_at"] is None else "forgotten" if row["forgotten"] else "over",
            row["kind"],
            one_line(row["label"]),
            f"{one_line(row['text'])} {_advice(row)}",
        )
    output.stdout().print(table)
    if len(found) == _MOST:
        click.echo(f"Only the latest {_MOST} are shown.", err=True)


def _advice(row: Mapping[str, Any]) -> str:
    if row["closed_at"] is not None:
        when = f"{row['closed_at'].astimezone(UTC):%Y-%m-%d %H:%M}"
        return f"Nobody looked at it any more: closed on {when}." if row["forgotten"] else f"It was over on {when}."
    return one_line(row["hint"]) + _untold(row["undelivered"])


def _untold(undelivered: Mapping[str, str | None]) -> str:
    """Which channels do not know, as far as a try has failed."""
    failed = [f"{channel}: {error}" for channel, error in sorted(undelivered.items()) if error]
    return f" (not told yet: {'; '.join(failed)})" if failed else ""


def _document(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "alert": row["alert_id"],
        "kind": row["kind"],
        "severity": row["severity"],
        "subject_kind": row["subject_kind"],
        "subject": row["subject"],
        "label": row["label"],
        "text": row["text"],
        "hint": row["hint"],
        "opened_at": row["opened_at"].isoformat(),
        "updated_at": row["updated_at"].isoformat(),
        "closed_at": row["closed_at"].isoformat() if row["closed_at"] else None,
        "forgotten": row["forgotten"],
        "undelivered": row["undelivered"],
    }


@click.command()
@click.option(
    "--output",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write them to this file in one piece, for node_exporter's textfile collector (it reads *.prom).",
)
@click.option("--volumes/--no-volumes", default=True, show_default=True, help="Also a series for each volume.")
@with_database
def metrics(*, database: Database, file: Path | None, volumes: bool) -> None:
    """The fleet's numbers in Prometheus' text format."""
    text = render(database, now=datetime.now(UTC), hosts=_hosts(), volumes=volumes)
    if file is None:
        click.echo(text, nl=False)
        return
    try:
        write_durably(file, text)
    except OSError as error:
        raise click.ClickException(f"{file} could not be written: {error.strerror}.") from error


def _hosts() -> list[str] | None:
    """Those of fleet.yaml, whose looks count; None where there is none to be read."""
    try:
        return fleet.load().hosts
    except FleetInvalid:
        return None


COMMANDS: list[click.Command] = [alerts_command, metrics]
