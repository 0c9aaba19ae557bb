"""``nasbackup delete | pin | unpin | expire | retention | capacity``."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from nasbackup import fleet
from nasbackup.catalog import Database, backups, capacity, deletions, repositories
from nasbackup.cli import retention_output as output
from nasbackup.cli.options import holder, json_option, with_database
from nasbackup.errors import BackupNotDeletable
from nasbackup.retention.capacity import forecast
from nasbackup.retention.rules import RetentionRules
from nasbackup.retention.simulate import simulate as run_simulation
from nasbackup.steps.delete import Deletion, each_deleted, finish, leaf_first, preview
from nasbackup.steps.measure import measure
from nasbackup.steps.retention import report as make_report
from nasbackup.steps.ticket import Store

fleet_option = click.option(
    "--fleet",
    "fleet_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"fleet.yaml; without it ${fleet.ENVIRONMENT} or {fleet.DEFAULT_PATH}.",
)


_DATES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]


def _in_our_time(_context: click.Context, _option: click.Parameter, moment: datetime | None) -> datetime | None:
    """Where the calendar has room before and after it."""
    if moment is not None and not 1970 <= moment.year <= 9000:
        raise click.BadParameter("give a year from 1970 to 9000")
    return moment


@click.command("delete")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Only say what would become of each.")
@json_option
@with_database
def delete_command(*, database: Database, ids: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Delete backups. One that others are built on stays, delete-pending, until the last of them is gone."""
    with database.transaction() as cursor:
        # What an earlier try has deleted is no error, as long as one of them is there: a typo would not be told else.
        wanted = [found for name in ids if (found := backups.find_or_none(cursor, external_id=name)) is not None]
        gone = [name for name in ids if name not in {backup.external_id for backup in wanted}]
        if not wanted:
            backups.find(cursor, external_id=ids[0])  # raises
        stores = {found.repository.name: found.repository for found in repositories.list_all(cursor)}
    if dry_run:
        with database.transaction() as cursor:
            output.show_preview(preview(cursor, wanted=wanted), as_json=as_json)
        return
    done = [Deletion(external_id=name) for name in gone]
    stuck: dict[str, BackupNotDeletable] = {}
    try:
        for group in leaf_first(wanted):
            store = Store(database=database, repository=stores[group[0].repository])
            ids_of_group = [backup.external_id for backup in group]
            with closing(each_deleted(store, external_ids=ids_of_group, holder=holder("delete"))) as outcomes:
                for outcome in outcomes:
                    if isinstance(outcome, BackupNotDeletable):
                        raise outcome
                    done.append(outcome)
            stuck |= finish(store, vm_uuid=group[0].vm_uuid, vm=group[0].vm, holder=holder("delete")).refused
    finally:  # what is done is told, whatever stopped the rest
        if done:
            output.show_deletions(done, as_json=as_json)
        for refused in stuck.values():
            click.echo(f"Warning: begun earlier, and it waits on: {refused}", err=True)


@click.command()
@click.argument("backup", metavar="ID")
@json_option
@with_database
def pin(*, database: Database, backup: str, as_json: bool) -> None:
    """Keep a backup until it is unpinned, whatever its VM's policy says."""
    _pin(database, external_id=backup, pinned=True, as_json=as_json)


@click.command()
@click.argument("backup", metavar="ID")
@json_option
@with_database
def unpin(*, database: Database, backup: str, as_json: bool) -> None:
    """Let the policy decide about a pinned backup again."""
    _pin(database, external_id=backup, pinned=False, as_json=as_json)


def _pin(database: Database, *, external_id: str, pinned: bool, as_json: bool) -> None:
    with database.transaction() as cursor:
        deletions.set_pinned(cursor, backup=backups.find(cursor, external_id=external_id), pinned=pinned)
    output.show_facts({"external_id": external_id, "pinned": pinned}, as_json=as_json)


@click.command()
@click.argument("backup", metavar="ID")
@click.option("--at", type=click.DateTime(_DATES), callback=_in_our_time, help="UTC.")
@click.option("--never", is_flag=True, help="Take the date away: the policy decides again.")
@json_option
@with_database
def expire(*, database: Database, backup: str, at: datetime | None, never: bool, as_json: bool) -> None:
    """Keep a backup until a date and no longer, whatever its VM's policy says (but minimum_fulls)."""
    if (at is None) != never:
        raise click.UsageError("Give either --at DATE or --never.")
    moment = at.replace(tzinfo=UTC) if at is not None else None
    with database.transaction() as cursor:
        deletions.set_expiry(cursor, backup=backups.find(cursor, external_id=backup), at=moment)
    expires = moment.isoformat() if moment is not None else None
    output.show_facts({"external_id": backup, "expires": expires}, as_json=as_json)


@click.group()
def retention() -> None:
    """Which backups stay, which go, and why."""


@retention.command()
@click.option("--vm", "vms", multiple=True, help="Only VMs that this glob matches; may be given again.")
@fleet_option
@json_option
@with_database
def report(*, database: Database, vms: tuple[str, ...], fleet_file: Path | None, as_json: bool) -> None:
    """The verdict on each backup now, with its reason. Nothing is deleted.

    Hosts are not asked: a VM that is not defined any more is shown under its policy (nas_retention does ask them).
    """
    holdings = output.Holdings(as_json=as_json)
    found = make_report(database, fleet=fleet.load(fleet_file), now=datetime.now(UTC), vms=vms, on_holding=holdings.add)
    holdings.show(found)


@retention.command()
@click.option("--policy", required=True, help="Name of a policy in fleet.yaml, or rules: keep_daily=7,keep_weekly=4")
@click.option("--days", type=click.IntRange(1, 20_000), default=400, show_default=True)
@click.option("--every", type=click.IntRange(1), default=24, show_default=True, help="Hours between two backups.")
@click.option(
    "--full-every", type=click.IntRange(0), default=10, show_default=True, help="As the Variable nas.backup.full.every."
)
@click.option("--start", type=click.DateTime(_DATES), default="2026-01-01T22:00:00", callback=_in_our_time)
@click.option("--timezone", help="In place of the policy's.")
@fleet_option
@json_option
def simulate(
    *,
    policy: str,
    days: int,
    every: int,
    full_every: int,
    start: datetime,
    timezone: str | None,
    fleet_file: Path | None,
    as_json: bool,
) -> None:
    """What a policy would keep over time, with a backup every so many hours and retention after each."""
    chosen = _policy(policy, fleet_file=fleet_file)
    if timezone is not None:
        fleet.require_timezone(timezone, named="--timezone")
    snapshots = run_simulation(
        rules=chosen.retention,
        timezone=timezone or chosen.timezone,
        days=days,
        every=timedelta(hours=every),
        full_every=full_every,
        start=start.replace(tzinfo=UTC),
    )
    output.show_simulation(snapshots, rules=chosen.retention, days=days, as_json=as_json)


def _policy(words: str, *, fleet_file: Path | None) -> fleet.Policy:
    if "=" not in words:
        return fleet.load(fleet_file).policy(words)
    return fleet.Policy(name="rules", selector=fleet.Selector(), retention=parse_rules(words))


def parse_rules(words: str) -> RetentionRules:
    """From ``keep_daily=7,recovery_window=14 days``. Raises ParamInvalid."""
    document: dict[str, object] = {}
    for word in words.split(","):
        name, _, value = word.strip().partition("=")
        document[name] = int(value) if value.isascii() and value.isdecimal() else value
    return fleet.retention_rules(document, named="--policy")


@click.command("capacity")
@fleet_option
@json_option
@with_database
def capacity_command(*, database: Database, fleet_file: Path | None, as_json: bool) -> None:
    """Used and free space of each repository, its growth, and when it will be full. Nothing is noted down."""
    thresholds = fleet.load(fleet_file).capacity
    with database.transaction() as cursor:
        known = [found.repository for found in repositories.list_all(cursor)]
        earlier = {repository.name: capacity.samples(cursor, repository=repository.name) for repository in known}
    found = {}
    for repository in known:
        sample = measure(Store(database=database, repository=repository), now=datetime.now(UTC))
        found[repository.name] = forecast([*earlier[repository.name], sample])
    output.show_capacity(found, thresholds=thresholds, as_json=as_json)


COMMANDS: list[click.Command] = [delete_command, pin, unpin, expire, retention, capacity_command]
