"""fleet.yaml: a good file is read as it is; a bad one is refused with file, place and sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from nasbackup.errors import FleetInvalid, UnknownHost
from nasbackup.fleet import DEFAULT_PATH, ENVIRONMENT, Fleet, Zone, load, path

GOOD = """
zones:
  east:
    hosts: [kvm_one, kvm-two]
    repositories: [nas_main, nas.spare]
  west:
    hosts: [kvm_three]
    repositories: [nas_main]
"""


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "fleet.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def test_a_good_file_is_read_in_its_order(tmp_path: Path) -> None:
    fleet = load(written(tmp_path, GOOD))
    assert fleet == Fleet(
        zones=(
            Zone(name="east", hosts=("kvm_one", "kvm-two"), repositories=("nas_main", "nas.spare")),
            Zone(name="west", hosts=("kvm_three",), repositories=("nas_main",)),
        )
    )
    assert fleet.hosts == ["kvm_one", "kvm-two", "kvm_three"]
    assert fleet.repositories == ["nas_main", "nas.spare"], "a repository that zones share is named once"


def test_a_host_is_found_in_its_zone_and_an_unknown_one_is_told_the_known(tmp_path: Path) -> None:
    fleet = load(written(tmp_path, GOOD))
    assert fleet.zone_of("kvm_three").name == "west"
    with pytest.raises(UnknownHost, match="Known hosts: kvm_one, kvm-two, kvm_three"):
        fleet.zone_of("kvm_four")


def test_the_place_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(written(tmp_path, GOOD)))
    assert load().hosts[0] == "kvm_one"
    monkeypatch.delenv(ENVIRONMENT)
    assert path() == Path(DEFAULT_PATH)


BAD = {
    "empty file": ("", "file", "None is not of type 'object'"),
    "a list": ("- east\n", "file", "is not of type 'object'"),
    "just a word": ("zones", "file", "'zones' is not of type 'object'"),
    "no zones": ("{}", "file", "'zones' is a required property"),
    "zones empty": ("zones: {}", "zones", "should be non-empty"),
    "zones a list": ("zones: [east]", "zones", "is not of type 'object'"),
    "unknown key at the top": (GOOD + "polices: []\n", "file", "'polices' was unexpected"),
    "unknown key in a zone": (
        "zones: {east: {hosts: [a], repositories: [b], repository: c}}",
        "zones.east",
        "'repository' was unexpected",
    ),
    "no hosts": ("zones: {east: {repositories: [nas]}}", "zones.east", "'hosts' is a required property"),
    "no repositories": ("zones: {east: {hosts: [kvm]}}", "zones.east", "'repositories' is a required property"),
    "hosts empty": ("zones: {east: {hosts: [], repositories: [nas]}}", "zones.east.hosts", "should be non-empty"),
    "hosts a word": ("zones: {east: {hosts: kvm, repositories: [nas]}}", "zones.east.hosts", "is not of type 'array'"),
    "hosts null": ("zones: {east: {hosts: , repositories: [nas]}}", "zones.east.hosts", "is not of type 'array'"),
    "a number for a host": (
        "zones: {east: {hosts: [kvm, 7], repositories: [nas]}}",
        "zones.east.hosts[1]",
        "7 is not of type 'string'",
    ),
    "a blank in a name": (
        "zones: {east: {hosts: ['kvm one'], repositories: [nas]}}",
        "zones.east.hosts[0]",
        "'kvm one' does not match",
    ),
    "an empty name": ("zones: {east: {hosts: [''], repositories: [nas]}}", "zones.east.hosts[0]", "'' does not match"),
    "a dot in a zone's name": ("zones: {a.b: {hosts: [k], repositories: [n]}}", "zones", "'a.b' does not match"),
    "the same host twice in a zone": (
        "zones: {east: {hosts: [kvm, kvm], repositories: [nas]}}",
        "zones.east.hosts",
        "has non-unique elements",
    ),
    "a host in two zones": (
        "zones: {east: {hosts: [kvm], repositories: [n]}, west: {hosts: [kvm], repositories: [n]}}",
        "zones",
        "host kvm is in more than one zone",
    ),
    "a tab for indentation": ("zones:\n\teast: {}\n", "line 2", "cannot start any token"),
    "a bracket that is not closed": ("zones:\n  east:\n    hosts: [kvm\n", "line 4", "expected"),
    "an unknown tag": ("zones:\n  east: !!python/object:os.system {}\n", "line 2", "could not determine a constructor"),
    "two documents": ("zones: {}\n---\nzones: {}\n", "line 2", "another document"),
    "a control character": ("zones: \x00\n", "file", ""),
    "not UTF-8": (b"zones: {\xe4st: {hosts: [k], repositories: [n]}}", "file", ""),
    "one zone written twice": (
        "zones:\n  east: {hosts: [a], repositories: [n]}\n  east: {hosts: [b], repositories: [n]}\n",
        "",
        "east",
    ),
}


@pytest.mark.parametrize(("text", "field", "problem"), BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, text: str | bytes, field: str, problem: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(FleetInvalid) as refused:
        load(file)
    assert refused.value.data["file"] == file
    assert problem in refused.value.data["problem"]
    assert refused.value.data["problem"]
    if field:
        assert refused.value.data["field"] == field
    assert str(refused.value).startswith(f"{file}: {refused.value.data['field']}: ")


def test_a_missing_file_says_how_to_set_its_place(tmp_path: Path) -> None:
    with pytest.raises(FleetInvalid, match=r"No such file or directory .*\$NASBACKUP_FLEET"):
        load(tmp_path / "nowhere.yaml")


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FleetInvalid, match="Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize("word", ["on", "1", "null", "2026-01-01"])
def test_a_zones_name_is_the_word_that_was_written(tmp_path: Path, word: str) -> None:
    fleet = load(written(tmp_path, f"zones: {{{word}: {{hosts: [k], repositories: [n]}}}}"))
    assert [zone.name for zone in fleet.zones] == [word]
