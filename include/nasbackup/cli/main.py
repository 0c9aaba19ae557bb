"""``nasbackup …``. Exit codes: 0 done, 1 refused or failed, 2 usage."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import click

from nasbackup.catalog import Database, migrate, repositories
from nasbackup.cli import access, drill, monitoring, output, restore, retention
from nasbackup.cli.fleet import fleet_group
from nasbackup.cli.options import holder, json_option, with_database
from nasbackup.cli.places import Place, with_place
from nasbackup.errors import NasBackupError, NotARepository
from nasbackup.model import BackupStatus, Repository, RepositoryType
from nasbackup.nas import repository as nas_repository
from nasbackup.restore.verification import verify_layers
from nasbackup.steps.rebuild import rebuild_catalog
from nasbackup.steps.ticket import Store

_HIDDEN = frozenset({BackupStatus.DELETE_PENDING, BackupStatus.DELETING})


class _Group(click.Group):
    """Every refusal is one sentence on stderr and exit code 1, never a stack trace."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NasBackupError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nasbackup")
def main() -> None:
    """Backups of KVM VMs on a NAS: list, verify, restore and delete them.

    The catalog's database is named by the environment variable NASBACKUP_CATALOG (a libpq URI, such as
    postgresql://nasbackup@%2Frun%2Fpostgresql/nasbackup), or else AIRFLOW_CONN_NAS_BACKUP_CATALOG.
    """


@main.command("list")
@click.option("--vm", help="Only backups of the VM with this instance name.")
@click.option("--all", "show_all", is_flag=True, help="Also those that are delete-pending or being deleted.")
@json_option
@with_place
def list_command(*, place: Place, vm: str | None, show_all: bool, as_json: bool) -> None:
    """List backups, the oldest first."""
    statuses = [status for status in BackupStatus if show_all or status not in _HIDDEN]
    output.show_list(place.listing(vm=vm, statuses=statuses), as_json=as_json)


@main.command()
@click.argument("backup", metavar="ID")
@json_option
@with_place
def show(*, place: Place, backup: str, as_json: bool) -> None:
    """Show one backup with its volumes. ID is the external id, such as i-2-1234-VM/2026.01.31.22.00.05."""
    output.show_one(place.one(backup), as_json=as_json)


@main.command()
@click.argument("backup", metavar="ID")
@json_option
@with_place
def verify(*, place: Place, backup: str, as_json: bool) -> None:
    """Read every layer of the backup's chain back from the NAS and compare it with its recorded digest.

    The catalog notes which layers were read back, so that an alert that says they were not is closed.
    """
    located = place.locate(backup)
    checked = []
    with output.following() as follow:
        for volume in located.backup.volumes:
            layers = located.layers(volume)
            verify_layers(
                layers,
                on_layer=lambda layer: functools.partial(follow, f"verifying {layer.backup}/{layer.file.name}"),
            )
            place.note_read_back(layers)
            checked.append({"volume": volume.name, "layers": [str(layer.file) for layer in layers]})
    by_digest = all(volume.digest is not None for volume in located.backup.volumes)
    output.show_verified(backup, checked=checked, by_digest=by_digest, as_json=as_json)


@main.command("rebuild-catalog")
@click.option(
    "--repository",
    "name",
    required=True,
    help="Name of a registered repository (see register-repository).",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be added.")
@json_option
@with_database
def rebuild_catalog_command(*, database: Database, name: str, dry_run: bool, as_json: bool) -> None:
    """Add to the catalog what the manifests in a repository describe and the catalog does not know.

    What the catalog knows stays as it is. The next backup of each VM is a full: which bitmaps are still valid is not
    known any more.
    """
    with database.transaction() as cursor:
        registered = repositories.get(cursor, name=name)
    store = Store(database=database, repository=registered.repository)
    rebuilt = rebuild_catalog(store, holder=holder("rebuild-catalog"), dry_run=dry_run)
    for problem in rebuilt.problems:
        click.echo(f"Left out: {problem}", err=True)
    output.show_facts(
        {"repository": name, "added": list(rebuilt.added), "known": rebuilt.known, "left_out": list(rebuilt.problems)},
        as_json=as_json,
    )


@main.command("register-repository")
@click.argument("name")
@click.option("--path", required=True, type=click.Path(path_type=Path), help="Where it is mounted here; absolute.")
@click.option(
    "--type", "kind", type=click.Choice([kind.value for kind in RepositoryType]), default="local", show_default=True
)
@click.option("--address", default="", help="The NAS's address, for people.")
@json_option
@with_database
def register_repository(*, database: Database, name: str, path: Path, kind: str, address: str, as_json: bool) -> None:
    """Set up a repository once: a marker file at its root, and its name in the catalog.

    NAME is the id of its Airflow Connection of type nas. From then on nothing is written below the path unless
    the marker is there, so an unmounted NAS never fills the root disk. Harmless when it is registered already.
    """
    repository = Repository(name=name, type=RepositoryType(kind), path=str(path), address=address)
    with database.transaction() as cursor:
        known = {registered.repository.name: registered.uuid for registered in repositories.list_all(cursor)}
    if name in known and nas_repository.read_identity(repository) != known[name]:
        raise NotARepository(
            path=path, repository=name, problem="the catalog knows a repository of this name with another marker"
        )
    identity = nas_repository.register(repository)
    with database.transaction() as cursor:
        repositories.register(cursor, repository=repository, uuid=identity)
    output.show_facts({"repository": name, "path": str(path), "uuid": identity}, as_json=as_json)


@main.group()
def catalog() -> None:
    """The catalog's database."""


@catalog.command("migrate")
@json_option
@with_database
def migrate_command(*, database: Database, as_json: bool) -> None:
    """Bring the catalog's schema up to date; harmless when it is."""
    applied = migrate(database)
    output.show_facts({"applied": applied}, as_json=as_json)


_GROUPS = (restore, retention, monitoring, access, drill)
for command in (*(command for group in _GROUPS for command in group.COMMANDS), fleet_group):
    main.add_command(command)


if __name__ == "__main__":
    sys.exit(main())
