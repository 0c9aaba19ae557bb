"""The repository."""

from __future__ import annotations

from nasbackup.errors.base import NasBackupError


class NasError(NasBackupError):
    """The repository could not be used."""


class NotARepository(NasError):
    template = (
        "{path} is not the repository {repository}: {problem}. Is the NAS mounted? "
        "(A new repository is set up once with `nasbackup register-repository`.)"
    )
    retryable = True


class RepositoryFull(NasError):
    template = (
        "Repository {repository} is full: needs {needs} bytes, has {has}. Free some space or lower the retention."
    )


class RepositoryFilling(NasError):
    """Nothing has failed yet: somebody should make room before it does."""

    template = "Repository {repository} is filling up: {why}. Make room, or lower the retention, before it is full."


class DeletionFailed(NasError):
    """Of some VMs; what went nevertheless is in the results of the tasks that deleted."""

    template = (
        "Deleting failed in {count} of the chains, first in {chain}: {why} The next run goes on with what is left."
    )


class NasIo(NasError):
    template = "{action} on repository {repository} failed: {reason}"
    retryable = True


class ManifestInvalid(NasError):
    template = "{path}: {problem}"
