"""Before a backup is removed the NAS is asked too: the catalog may be one of yesterday, restored from a dump."""

from __future__ import annotations

from dataclasses import dataclass, field

from nasbackup import layout
from nasbackup.catalog import deletions
from nasbackup.errors import BackupNotDeletable
from nasbackup.model import Backup
from nasbackup.nas.kin import Kin, Parents, kin, parents
from nasbackup.nas.watchdog import watched
from nasbackup.steps.ticket import Store


@dataclass(frozen=True, kw_only=True)
class Objections:
    """What the NAS has against the removal of backups of one VM, for as long as one lease of that VM is held.

    Whatever is built on them is published under that lease. So the directory is listed once, and the manifests of what
    the catalog does not know there are read once: none, mostly.
    """

    store: Store
    _seen: dict[str, tuple[Kin, Parents]] = field(default_factory=dict, init=False)

    def require_none(self, *, backup: Backup) -> None:
        """Raises BackupNotDeletable, when something that the catalog does not know is or may be built on the backup, or
        when its directory is a link; NotARepository, NasIo.
        """
        instance = layout.instance_of(backup.external_id)
        if instance not in self._seen:
            self._seen[instance] = self._look(instance)
        found, unknown = self._seen[instance]
        if backup.external_id in found.links:
            raise BackupNotDeletable(
                backup=backup.external_id,
                why="its directory is a symbolic link, and what it leads to may be somebody else's. Put the directory "
                "itself in the link's place, or remove the link",
            )
        children = sorted(external_id for external_id, parent in unknown.of.items() if parent == backup.external_id)
        if children:
            raise BackupNotDeletable(
                backup=backup.external_id,
                why=f"on the NAS {', '.join(children)} is built on it, which the catalog does not know. Run `nasbackup "
                f"rebuild-catalog --repository {self.store.repository.name}` first, or remove that directory if nobody "
                "needs it",
            )
        if unknown.unclear:
            raise BackupNotDeletable(
                backup=backup.external_id,
                why=f"on the NAS {', '.join(sorted(unknown.unclear))} may be built on it: the catalog does not know "
                f"it, and its {layout.MANIFEST} does not say. Put that right, or remove that directory if nobody needs "
                "it",
            )

    def _look(self, instance: str) -> tuple[Kin, Parents]:
        repository, identity = self.store.repository, self.store.repository_uuid
        found = watched(repository, f"listing {instance}", kin, repository, identity=identity, instance=instance)
        with self.store.database.reading() as cursor:
            known = deletions.known_of(cursor, external_ids=found.there, repository=repository.name)
        unknown = [external_id for external_id in found.there if external_id not in known]
        if not unknown:
            return found, Parents(of={}, unclear=())
        return found, watched(
            repository, "reading manifests", parents, repository, identity=identity, external_ids=unknown
        )
