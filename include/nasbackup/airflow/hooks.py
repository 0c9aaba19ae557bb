"""Hooks of the connection types ``libvirt`` and ``nas``: from an Airflow Connection to this project's values."""

from __future__ import annotations

import os
from typing import Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from nasbackup.catalog import Database
from nasbackup.errors import ConnectionInvalid, UnknownHost, UnknownRepository
from nasbackup.fleet.last_valid import last_valid
from nasbackup.model import Host, Repository, RepositoryType
from nasbackup.steps.ticket import Site

CATALOG_CONNECTION = "nas_backup_catalog"


class LibvirtHook(BaseHook):
    """A KVM host. The Connection's extra holds ``uri``, ``socket_dir`` and ``scratch_dir``."""

    conn_name_attr = "libvirt_conn_id"
    default_conn_name = "libvirt_default"
    conn_type = "libvirt"
    hook_name = "libvirt (KVM host)"

    def __init__(self, libvirt_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.libvirt_conn_id = libvirt_conn_id

    def get_conn(self) -> Host:
        """The host. Raises UnknownHost without such a Connection, ConnectionInvalid when it is of another type."""
        try:
            connection = self.get_connection(self.libvirt_conn_id)
        except AirflowNotFoundException as error:
            raise UnknownHost(
                host=self.libvirt_conn_id, known=f"{', '.join(last_valid().hosts)} (in fleet.yaml)"
            ) from error
        extra = _extra(connection, expected=self.conn_type)
        default = Host(name=self.libvirt_conn_id)
        return Host(
            name=self.libvirt_conn_id,
            uri=extra.get("uri") or default.uri,
            socket_dir=extra.get("socket_dir") or default.socket_dir,
            scratch_dir=extra.get("scratch_dir") or default.scratch_dir,
        )

    def test_connection(self) -> tuple[bool, str]:
        """What the button "Test" of the connection form shows."""
        from nasbackup.hypervisor import connect

        try:
            with connect(self.get_conn()) as hypervisor:
                return True, f"{hypervisor.connection.getHostname()}, libvirt {hypervisor.connection.getLibVersion()}"
        except Exception as error:
            return False, str(error)


class NasHook(BaseHook):
    """A backup repository. The Connection's host is the NAS's address, its extra holds ``type`` and ``path``."""

    conn_name_attr = "nas_conn_id"
    default_conn_name = "nas_default"
    conn_type = "nas"
    hook_name = "NAS (backup repository)"

    def __init__(self, nas_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.nas_conn_id = nas_conn_id

    def get_conn(self) -> Repository:
        """The repository. Raises UnknownRepository, ConnectionInvalid."""
        try:
            connection = self.get_connection(self.nas_conn_id)
        except AirflowNotFoundException as error:
            raise UnknownRepository(repository=self.nas_conn_id, known=", ".join(last_valid().repositories)) from error
        extra = _extra(connection, expected=self.conn_type)
        path = extra.get("path") or ""
        if not os.path.isabs(path):
            raise ConnectionInvalid(connection=self.nas_conn_id, problem=f"its path {path!r} is not absolute")
        kind = extra.get("type") or RepositoryType.LOCAL.value
        if kind not in list(RepositoryType):
            raise ConnectionInvalid(connection=self.nas_conn_id, problem=f"unknown repository type {kind!r}")
        return Repository(
            name=self.nas_conn_id, type=RepositoryType(kind), path=os.path.normpath(path), address=connection.host or ""
        )

    def test_connection(self) -> tuple[bool, str]:
        """What the button "Test" of the connection form shows."""
        from nasbackup.nas.repository import read_identity

        try:
            repository = self.get_conn()
            identity = read_identity(repository)
        except Exception as error:
            return False, str(error)
        if identity is None:
            return False, f"{repository.path} is no repository (not mounted, or not registered yet)"
        return True, f"repository {identity}"


def catalog() -> Database:
    """The catalog's database, from the Connection ``nas_backup_catalog`` of type postgres. Raises ConnectionInvalid."""
    try:
        return catalog_of(BaseHook.get_connection(CATALOG_CONNECTION))
    except AirflowNotFoundException as error:
        raise no_catalog() from error


async def catalog_async() -> Database:
    """The same, for the triggerer's event loop."""
    try:
        return catalog_of(await BaseHook.aget_connection(CATALOG_CONNECTION))
    except AirflowNotFoundException as error:
        raise no_catalog() from error


def no_catalog() -> ConnectionInvalid:
    return ConnectionInvalid(connection=CATALOG_CONNECTION, problem="it does not exist; add it with type postgres")


def catalog_of(connection: Any) -> Database:
    """The database that a Connection of type postgres is about."""
    extra = connection.extra_dejson
    parameters = {
        # A Unix socket's directory has no place in a URI's host: it comes as the extra `host`.
        "host": extra.get("host") or connection.host,
        "port": connection.port,
        "dbname": connection.schema,
        "user": connection.login,
        "password": connection.password,
        "sslmode": extra.get("sslmode"),
        "sslrootcert": extra.get("sslrootcert"),
    }
    return Database(parameters={key: value for key, value in parameters.items() if value})


def site(*, host: str, repository: str) -> Site:
    """Where a backup of this host into this repository finds its three parts."""
    return Site(
        database=catalog(),
        host=LibvirtHook(libvirt_conn_id=host).get_conn(),
        repository=NasHook(nas_conn_id=repository).get_conn(),
    )


def _extra(connection: Any, *, expected: str) -> dict[str, Any]:
    if connection.conn_type != expected:
        raise ConnectionInvalid(
            connection=connection.conn_id, problem=f"it is of type {connection.conn_type}, not {expected}"
        )
    return dict(connection.extra_dejson)
