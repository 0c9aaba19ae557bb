"""The catalog's database."""

from __future__ import annotations

from nasbackup.errors.base import NasBackupError


class CatalogError(NasBackupError):
    """The catalog's database could not be used."""


class CatalogUnreachable(CatalogError):
    template = (
        "The catalog does not answer: {reason}. Is PostgreSQL running, is the connection nas_backup_catalog right?"
    )
    retryable = True


class CatalogAddressInvalid(CatalogError):
    template = (
        "The catalog's address cannot be read: {problem}. It is a libpq URI, such as postgresql://user@host/nasbackup; "
        "special characters in it are percent-encoded."
    )


class CatalogConflict(CatalogError):
    """Another run wrote the same thing first."""

    template = "Another run was first: {reason}"
    retryable = True


class CatalogOutdated(CatalogError):
    template = "The catalog's schema is not up to date ({reason}): run `nasbackup catalog migrate` once."
