"""Before a backup is removed the NAS is asked too: the catalog may be one of yesterday, restored from a dump."""

from __future__ import annotations

from nasbackup import layout
from nasbackup.catalog import deletions
from nasbackup.errors import BackupNotDeletable
from nasbackup.model import Backup
from nasbackup.nas.kin import kin, parents
from nasbackup.nas.watchdog import watched
from nasbackup.steps.ticket import Store


def require_removable(store: Store, *, backup: Backup) -> None:
    """One listing of the VM's directory, and the manifests of what the catalog does not know there: none, mostly.

    Under the VM's lease: nobody publishes meanwhile. Raises BackupNotDeletable, when one of those is built on the
    backup, or when its directory is a link; NotARepository, NasIo.
    """
    repository, identity = store.repository, store.repository_uuid
    instance = layout.instance_of(backup.external_id)
    found = watched(repository, f"listing {instance}", kin, repository, identity=identity, instance=instance)
    if backup.external_id in found.links:
        raise BackupNotDeletable(
            backup=backup.external_id,
            why="its directory is a symbolic link, and what it leads to may be somebody else's. Put the directory "
            "itself in the link's place, or remove the link",
        )
    with store.database.reading() as cursor:
        known = deletions.known_of(cursor, external_ids=found.there, repository=repository.name)
    unknown = [external_id for external_id in found.there if external_id not in known]
    if not unknown:
        return
    built_on = watched(repository, "reading manifests", parents, repository, identity=identity, external_ids=unknown)
    children = sorted(external_id for external_id, parent in built_on.items() if parent == backup.external_id)
    if children:
        raise BackupNotDeletable(
            backup=backup.external_id,
            why=f"on the NAS {', '.join(children)} is built on it, which the catalog does not know. Run `nasbackup "
            f"rebuild-catalog --repository {repository.name}` first, or remove that directory if nobody needs it",
        )
