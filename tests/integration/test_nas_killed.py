"""What is visible in the repository is complete whenever we are killed: right before each effect, one after another."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nasbackup import layout
from nasbackup.model import Repository, RepositoryType
from nasbackup.nas import publish
from nasbackup.nas.durable import write_durably
from nasbackup.nas.repository import register

from tests.integration.nas_side import (
    EXTERNAL_ID,
    PUBLISHED,
    STAMP,
    VM,
    content,
    do_prepare,
    do_publish,
    made,
    root_of,
)

KILLED = 9
EFFECTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
"""Events that CPython raises before it changes a directory or opens a file (to write, or to fsync it)."""


def in_a_process_of_its_own(action: Callable[[], object], *, hook: Callable[[str, tuple[Any, ...]], None]) -> int:
    """Run the action with an audit hook, in a child; returns its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.addaudithook(hook)
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_before_effect(number: int, action: Callable[[], object], *, below: Path) -> bool:
    """Run the action and kill its process right before its n-th effect; False when it has fewer than that."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in EFFECTS and _is_below(arguments[0], below):
            count += 1
            if count == number:
                os._exit(KILLED)

    code = in_a_process_of_its_own(action, hook=hook)
    assert code in (0, KILLED), f"the action itself failed at effect {number}"
    return code == KILLED


def _is_below(path: object, folder: Path) -> bool:
    # Removing a tree is done relative to its open directory: then only a bare name is told.
    return isinstance(path, str | os.PathLike) and (not os.path.isabs(path) or Path(path).is_relative_to(folder))


def synced_directories(action: Callable[[], object], *, report: Path) -> set[Path]:
    """The directories that the action opens as directories, which it does to fsync them."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and arguments[2] & os.O_DIRECTORY and isinstance(arguments[0], str | os.PathLike):
            os.write(descriptor, os.fsencode(arguments[0]) + b"\n")

    descriptor = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        assert in_a_process_of_its_own(action, hook=hook) == 0
    finally:
        os.close(descriptor)
    return {Path(line) for line in report.read_text().splitlines()}


def boundaries(tmp_path: Path) -> Iterator[tuple[int, Repository]]:
    """A fresh repository for every point at which one can be killed; the caller ends the sweep."""
    for number in range(1, 100):
        path = tmp_path / f"nas-{number}"
        path.mkdir()
        nas = Repository(name="nas_test", type=RepositoryType.LOCAL, path=str(path))
        register(nas)
        yield number, nas
    pytest.fail("an action with this many effects is not the one that this test knows")


def test_publish_killed_anywhere_shows_nothing_or_all_and_is_finished_by_the_next_call(tmp_path: Path) -> None:
    for number, nas in boundaries(tmp_path):
        made(nas)
        final = root_of(nas) / EXTERNAL_ID
        killed = killed_before_effect(number, partial(do_publish, nas), below=root_of(nas))
        assert not final.exists() or content(final) == PUBLISHED, f"before effect {number}"
        do_publish(nas)
        expected = {f"{STAMP}/{name}": data for name, data in PUBLISHED.items()}
        assert content(root_of(nas) / VM) == {**expected, layout.RESTORE_TXT: publish.INSTRUCTIONS}
        if not killed:
            break
    assert number > 10, "the sweep really went through publishing"


def test_discard_after_publish_was_killed_anywhere_leaves_nothing(tmp_path: Path) -> None:
    for number, nas in boundaries(tmp_path):
        made(nas)
        killed = killed_before_effect(number, partial(do_publish, nas), below=root_of(nas))
        publish.discard(nas, root=root_of(nas), external_id=EXTERNAL_ID)
        assert list(content(root_of(nas))) == [layout.MARKER]
        assert not (root_of(nas) / VM).exists()
        if not killed:
            break


@pytest.mark.parametrize("published", [False, True])
def test_discard_killed_anywhere_never_leaves_a_backup_that_looks_complete(tmp_path: Path, published: bool) -> None:
    for number, nas in boundaries(tmp_path):
        made(nas)
        final = do_publish(nas) if published else root_of(nas) / EXTERNAL_ID
        sibling = f"{VM}/2026.02.01.22.00.05"
        made(nas, external_id=sibling)
        untouched = content(do_publish(nas, external_id=sibling))
        discard = partial(publish.discard, nas, root=root_of(nas), external_id=EXTERNAL_ID)
        killed = killed_before_effect(number, discard, below=root_of(nas))
        left = content(final) if final.exists() else {}
        assert "manifest.json" not in left or left == PUBLISHED, f"before effect {number}"
        discard()
        left_beside = {path.name for path in (root_of(nas) / VM).iterdir()}
        assert left_beside == {"2026.02.01.22.00.05", layout.RESTORE_TXT}
        assert content(root_of(nas) / sibling) == untouched
        if not killed:
            break
    assert number > 3


def test_prepare_killed_anywhere_is_finished_by_the_next_call(tmp_path: Path) -> None:
    for number, nas in boundaries(tmp_path):
        prepare = partial(do_prepare, nas)
        killed = killed_before_effect(number, prepare, below=root_of(nas))
        assert content(prepare()) == {"domain.xml": b"<domain/>"}
        if not killed:
            break
    assert number > 3


def test_a_durable_write_killed_anywhere_leaves_the_old_content_or_the_new(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "file"
    file.parent.mkdir()
    seen = []
    for number in range(1, 10):
        file.write_bytes(b"old")
        killed = killed_before_effect(number, lambda: write_durably(file, b"new"), below=tmp_path)
        seen.append(file.read_bytes())
        if not killed:
            break
    # Before the other file is opened, before the rename, before the directory is fsynced, and at the end.
    assert seen == [b"old", b"old", b"new", b"new"]


def test_a_publish_that_was_killed_after_the_rename_is_made_durable_by_the_next_call(tmp_path: Path) -> None:
    """The rename is on the disk only when the directory that holds the name was fsynced, by whoever records it."""
    for number, nas in boundaries(tmp_path):
        made(nas)
        final = root_of(nas) / EXTERNAL_ID
        assert killed_before_effect(number, partial(do_publish, nas), below=root_of(nas))
        if final.exists():
            synced = synced_directories(partial(do_publish, nas), report=tmp_path / "synced")
            assert final.parent in synced
            return


def test_a_prepare_that_was_killed_after_mkdir_is_made_durable_by_the_next_call(tmp_path: Path) -> None:
    for number, nas in boundaries(tmp_path):
        prepare = partial(do_prepare, nas)
        assert killed_before_effect(number, prepare, below=root_of(nas))
        if (root_of(nas) / VM).exists():
            assert root_of(nas) in synced_directories(prepare, report=tmp_path / "synced")
            return
