"""A host, a repository and VMs for tests of the steps; for those of the catalog, one that knows two VMs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from nasbackup.catalog import Database, repositories, vms
from nasbackup.model import Host, Repository, RepositoryType
from nasbackup.nas import repository as nas_repository
from nasbackup.steps import Site

from lab import vm as lab
from tests.integration.catalog_rows import OTHER_VM, VM
from tests.integration.story import Story


@pytest.fixture(scope="session")
def libvirt_connection() -> Iterator[Any]:
    connection = lab.connect()
    yield connection
    connection.close()


@pytest.fixture
def repository(tmp_path: Path, database: Database) -> Repository:
    """A registered repository in a directory that looks like a mounted NAS."""
    path = tmp_path / "nas"
    path.mkdir()
    repository = Repository(name="nas_test", type=RepositoryType.LOCAL, path=str(path))
    with database.transaction() as cursor:
        repositories.register(cursor, repository=repository, uuid=nas_repository.register(repository))
    return repository


@pytest.fixture
def site(database: Database, repository: Repository) -> Site:
    return Site(database=database, host=Host(name="kvm_test"), repository=repository)


@pytest.fixture
def vm_name() -> str:
    """Unique for the process: two test runs on one machine share libvirt."""
    return f"i-2-{os.getpid()}-VM"


@pytest.fixture
def story(libvirt_connection: Any, site: Site, vm_name: str, tmp_path: Path) -> Iterator[Story]:
    """A running VM with two disks, one of them of an odd size, and the means to back it up step by step."""
    volumes = [lab.Volume(size=24 << 20), lab.Volume(size=(9 << 20) + 512)]
    with lab.lab_vm(libvirt_connection, name=vm_name, volumes=volumes) as machine:
        yield Story(site=site, machine=machine, work=tmp_path)
    shutil.rmtree(tmp_path / "nas", ignore_errors=True)


@pytest.fixture
def catalog(database: Database) -> Database:
    """Two VMs and two repositories are known."""
    with database.transaction() as cursor:
        for uuid, name in ((VM, "i-2-1-VM"), (OTHER_VM, "i-2-2-VM")):
            vms.register(cursor, uuid=uuid, name=name, host="kvm_one")
        for name in ("nas_one", "nas_two"):
            repository = Repository(name=name, type=RepositoryType.LOCAL, path=f"/mnt/{name}")
            repositories.register(cursor, repository=repository, uuid=str(uuid4()))
    return database
