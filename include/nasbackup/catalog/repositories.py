"""Registered repositories: the catalog's side of the marker file at a repository's root."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nasbackup.catalog.database import Cursor
from nasbackup.errors import UnknownRepository
from nasbackup.model import Repository, RepositoryType

_SELECT = "SELECT name, uuid, type, path, address FROM repository"


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A repository with the identity that its marker file must show."""

    repository: Repository
    uuid: str


def register(cursor: Cursor, *, repository: Repository, uuid: str) -> None:
    """Note the repository, or where it is found now; its name keeps its identity for ever."""
    cursor.execute(
        """
        INSERT INTO repository (name, uuid, type, path, address) VALUES (%s, %s, %s, %s, %s)
        ON CONFLICT (name) DO UPDATE SET type = EXCLUDED.type, path = EXCLUDED.path, address = EXCLUDED.address
        """,
        (repository.name, uuid, repository.type, repository.path, repository.address),
    )


def get(cursor: Cursor, *, name: str) -> Registered:
    """The repository of this name. Raises UnknownRepository."""
    cursor.execute(f"{_SELECT} WHERE name = %s", (name,))
    row = cursor.fetchone()
    if row is not None:
        return _registered(row)
    known = ", ".join(registered.repository.name for registered in list_all(cursor)) or "none"
    raise UnknownRepository(repository=name, known=f"{known} (registered with `nasbackup register-repository`)")


def list_all(cursor: Cursor) -> list[Registered]:
    cursor.execute(f"{_SELECT} ORDER BY name")
    return [_registered(row) for row in cursor.fetchall()]


def _registered(row: Mapping[str, Any]) -> Registered:
    return Registered(
        repository=Repository(
            name=row["name"], type=RepositoryType(row["type"]), path=row["path"], address=row["address"]
        ),
        uuid=str(row["uuid"]),
    )
