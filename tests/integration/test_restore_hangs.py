"""A NAS that falls silent while it is read: the restore ends with a clear word, the VM is as it was, a retry works."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from nasbackup.catalog import repositories
from nasbackup.errors import NasIo
from nasbackup.model import Repository, RepositoryType, Target
from nasbackup.nas import repository as nas_repository
from nasbackup.nas import watchdog
from nasbackup.restore import verification
from nasbackup.restore.image import locate, restore_images
from nasbackup.steps import Site
from nasbackup.steps import restore as steps
from nasbackup.steps.verify import check_content

from lab.nas import FaultyNas, faulty_nas
from tests.integration.restoring import assert_no_trace, bench_of, contents, identical, request, whole_restore
from tests.integration.story import Story

NO_ANSWER_SECONDS = 3.0
ENDS_SECONDS = 20.0


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[FaultyNas]:
    with faulty_nas(tmp_path / "place") as nas:
        yield nas


@pytest.fixture
def site(site: Site, faulty: FaultyNas) -> Site:
    """With its repository on that NAS."""
    repository = Repository(name="nas_faulty", type=RepositoryType.LOCAL, path=str(faulty.path))
    with site.database.transaction() as cursor:
        repositories.register(cursor, repository=repository, uuid=nas_repository.register(repository))
    return Site(database=site.database, host=site.host, repository=repository)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "NO_ANSWER_SECONDS", NO_ANSWER_SECONDS)
    monkeypatch.setattr("nasbackup.transfer.qemu_nbd._KILLED_SECONDS", 2.0)
    # The package's attribute of this name is the step itself, which hides its module.
    monkeypatch.setattr(sys.modules["nasbackup.steps.verify"], "PROGRESS_SECONDS", 0.01)


@contextmanager
def hanging_while_layers_are_read(faulty: FaultyNas) -> Iterator[None]:
    """The block ends with the NAS silent, and soon."""
    hung: list[float] = []

    def hang(*arguments: Any, **options: Any) -> None:
        hung.append(time.monotonic())
        faulty.hang()
        check_content(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "check_content", hang)
        with pytest.raises(NasIo, match=r"the NAS does not answer for \d+ s"):
            yield
    assert time.monotonic() - hung[0] < NO_ANSWER_SECONDS + ENDS_SECONDS


def test_a_nas_that_hangs_while_images_are_restored(
    story: Story, site: Site, faulty: FaultyNas, tmp_path: Path
) -> None:
    story.machine.guest_io("vda", "write -P 1 0 16M")
    backup, to = story.backup(), tmp_path / "to"
    with hanging_while_layers_are_read(faulty):
        restore_images(locate(site.database, external_id=backup.external_id), to=to)
    assert not to.exists()
    faulty.resume()
    restored = restore_images(locate(site.database, external_id=backup.external_id), to=to)
    assert all(identical(volume.file, story.frozen[backup.external_id][volume.name]) for volume in restored)


def test_a_nas_that_hangs(story: Story, site: Site, faulty: FaultyNas) -> None:
    story.machine.guest_io("vda", "write -P 1 0 16M")
    backup = story.backup()
    story.machine.guest_io("vda", "write -P 2 0 4M")
    story.machine.destroy()
    before = contents(story.machine)

    bench, asked = bench_of(site), request(backup, Target.IN_PLACE)
    steps.plan(bench, request=asked)
    with hanging_while_layers_are_read(faulty):
        steps.restore_volume(bench, backup=backup, key=asked.key, volume="vda")
    steps.give_back(bench, backup=backup, key=asked.key)
    assert contents(story.machine) == before
    assert_no_trace(site, story.machine.directory)

    started = time.monotonic()
    with pytest.raises(NasIo, match="does not answer"):
        whole_restore(site, backup, Target.IN_PLACE)
    assert time.monotonic() - started < NO_ANSWER_SECONDS + ENDS_SECONDS
    assert contents(story.machine) == before

    faulty.resume()
    result: Any = whole_restore(site, backup, Target.IN_PLACE)
    for name, file in result.volumes.items():
        assert identical(Path(file), story.frozen[backup.external_id][name])
    assert_no_trace(site, story.machine.directory)
