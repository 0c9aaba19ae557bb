"""A wrong fleet.yaml does not count: the last valid one does, for its own path, and says since when."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from nasbackup import fleet
from nasbackup.errors import FleetInvalid
from nasbackup.fleet.current import current
from nasbackup.fleet.last_valid import copy_of, last_valid, standing

ONE = "zones: {east: {hosts: [kvm_one], repositories: [nas_one]}}\n"
TWO = "zones: {east: {hosts: [kvm_two], repositories: [nas_one]}}\n"
WRONG = "zones: {east: {hosts: [kvm_two], repositories: nas_one}}\n"
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "home"))
    file = tmp_path / "fleet.yaml"
    monkeypatch.setenv(fleet.ENVIRONMENT, str(file))
    return file


def write(file: Path, text: str, *, at: datetime = NOON) -> None:
    file.write_text(text)
    os.utime(file, (at.timestamp(), at.timestamp()))


def test_a_valid_file_counts_as_it_is(file: Path) -> None:
    for text, host in ((ONE, "kvm_one"), (TWO, "kvm_two")):
        write(file, text)
        found = standing(file)
        assert (found.fleet.hosts, found.problem, found.written_at) == ([host], "", None)


@pytest.mark.parametrize("text", [WRONG, "", "zones: [\n", None])
def test_while_the_file_is_wrong_the_last_valid_one_counts(file: Path, text: str | None) -> None:
    write(file, ONE)
    assert last_valid().hosts == ["kvm_one"]
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    found = standing(file)
    assert (found.fleet.hosts, found.written_at) == (["kvm_one"], NOON)
    with pytest.raises(FleetInvalid) as refused:  # whoever works by hand is told
        fleet.load()
    assert found.problem == str(refused.value)
    assert str(file) in found.problem
    write(file, TWO)
    assert standing(file).written_at is None
    assert last_valid().hosts == ["kvm_two"]


def test_who_asks_often_gets_the_same(file: Path) -> None:
    write(file, ONE)
    known = current()
    assert current() is current(), "read once"
    file.write_text(WRONG)
    assert (current().fleet, current().problem) == (known.fleet, standing(file).problem)
    assert current() is current()
    write(file, TWO)
    assert (current().fleet.hosts, current().problem) == (["kvm_two"], "")
    copy_of(file).unlink()
    file.write_text(WRONG)
    for _ in range(2):
        with pytest.raises(FleetInvalid):
            current()


def test_without_a_copy_the_mistake_is_an_error(file: Path) -> None:
    file.write_text(WRONG)
    with pytest.raises(FleetInvalid, match=r"line 1: zones\.east\.repositories"):
        last_valid()


def test_the_copy_is_of_this_path_alone(file: Path, tmp_path: Path) -> None:
    write(file, ONE)
    last_valid()
    other = tmp_path / "other.yaml"
    other.write_text(WRONG)
    with pytest.raises(FleetInvalid, match=r"other\.yaml"):
        standing(other)


def test_the_copy_is_its_users_own_and_written_when_something_changed(file: Path) -> None:
    write(file, ONE)
    last_valid()
    copy = copy_of(file)
    before = copy.stat()
    assert (before.st_mode & 0o777, before.st_uid) == (0o600, os.geteuid())
    last_valid()
    assert copy.stat().st_ino == before.st_ino
    write(file, TWO)
    last_valid()
    assert copy.read_text() == TWO
    assert list(copy.parent.iterdir()) == [copy], "nothing else is left"


def test_a_copy_that_is_not_valid_any_more_is_none(file: Path) -> None:
    """An older release has kept it."""
    write(file, ONE)
    last_valid()
    copy_of(file).write_text("zones: {}\n")
    file.write_text(WRONG)
    with pytest.raises(FleetInvalid, match=r"fleet\.yaml, line 1: zones\.east\.repositories"):
        last_valid()


@pytest.mark.parametrize("what", ["fifo", "link", "another user's"])
def test_what_somebody_else_put_in_its_place_is_no_copy(file: Path, tmp_path: Path, what: str) -> None:
    """Its directory may be another user's. A pipe would be waited for without end."""
    write(file, ONE)
    last_valid()
    copy = copy_of(file)
    if what == "another user's":
        if os.geteuid() != 0:
            pytest.skip("only root can make a file another user's")
        os.chown(copy, 65534, 65534)
    else:
        copy.unlink()
        if what == "fifo":
            os.mkfifo(copy)
        else:
            (tmp_path / "elsewhere").write_text(TWO)
            copy.symlink_to(tmp_path / "elsewhere")
    file.write_text(WRONG)
    with pytest.raises(FleetInvalid, match=r"fleet\.yaml, line 1: zones\.east\.repositories"):
        last_valid()
    write(file, ONE)
    last_valid()
    assert (copy.is_symlink(), copy.read_text(), copy.stat().st_uid) == (False, ONE, os.geteuid())


def test_where_no_copy_can_be_kept_the_file_counts(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "no-directory").write_text("")
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "no-directory"))
    write(file, ONE)
    assert last_valid().hosts == ["kvm_one"]
    assert f"No copy of {file} is kept" in caplog.text
