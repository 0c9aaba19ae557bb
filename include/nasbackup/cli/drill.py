"""``nasbackup drill | drills``: does a backup come up?"""

from __future__ import annotations

import platform
import random
from datetime import timedelta

import click

from nasbackup.catalog import Database, drills
from nasbackup.cli import access_output as output
from nasbackup.cli.access import Duration, uri_option
from nasbackup.cli.options import holder, json_option, with_database
from nasbackup.model import Host
from nasbackup.pick import Pick, pick
from nasbackup.steps.drill import DrillRequest, drill, require_ok


@click.command("drill")
@click.argument("backup", metavar="[ID]", required=False)
@click.option("--pick", "how", type=click.Choice([how.value for how in Pick]), help="In place of ID.")
@click.option("--vm", "vms", multiple=True, metavar="GLOB", help="With --pick: only VMs of these names.")
@click.option("--timeout", type=Duration(), default="10m", show_default=True, help="So long the guest may take.")
@click.option(
    "--pattern",
    help="What the serial console has to show (a regular expression). Without it the guest agent has to answer, "
    "and of a VM without one the console has to show a login.",
)
@click.option("--sums", metavar="PATH", help="A file in the guest as sha256sum writes it: compare the files it names.")
@click.option("--keep", is_flag=True, help="Let the VM run on for a look; `virsh destroy` ends it.")
@uri_option
@json_option
@with_database
def drill_command(
    *,
    database: Database,
    backup: str | None,
    how: str | None,
    vms: tuple[str, ...],
    timeout: timedelta,
    pattern: str | None,
    sums: str | None,
    keep: bool,
    uri: str,
    as_json: bool,
) -> None:
    """Boot a backup without any network, on an overlay that is thrown away, and see whether the guest answers.

    The result is recorded. The VM that the backup is of may run meanwhile; nothing of it is touched.
    """
    if (backup is None) == (how is None) or (vms and how is None):
        raise click.UsageError("Give either ID or --pick (and with that --vm).")
    if backup is None:
        with database.transaction() as cursor:
            candidates = drills.candidates(cursor)
        backup = pick(candidates, how=Pick(how or ""), vms=vms, chance=random.SystemRandom())
        click.echo(f"Drilling {backup}.", err=True)
    record = drill(
        database,
        host=Host(name=platform.node(), uri=uri),
        request=DrillRequest(backup=backup, pattern=pattern, sums=sums, timeout=timeout.total_seconds(), keep=keep),
        reader=holder("drill"),
    )
    output.show_drills([record], as_json=as_json, one=True)
    require_ok(record)


@click.command("drills")
@click.option("--vm", help="Only of the VM with this instance name.")
@json_option
@with_database
def drills_command(*, database: Database, vm: str | None, as_json: bool) -> None:
    """What drills have found, the newest first; also of backups that are gone since."""
    with database.transaction() as cursor:
        found = drills.history(cursor, vm=vm)
    output.show_drills(found, as_json=as_json)


COMMANDS = (drill_command, drills_command)
