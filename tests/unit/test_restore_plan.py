"""What a restore will write, decided from values: everything that speaks against it is found, all at once."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from nasbackup.errors import ParamInvalid, RestoreRefused
from nasbackup.machine import SavedState, StateKind
from nasbackup.model import Target
from nasbackup.restore.plan import (
    RestorePlan,
    RestoreRequest,
    Space,
    check_request,
    from_document,
    in_place_files,
    new_files,
    parse_moment,
    planned_state,
)

from tests.unit.builders import DATA, GIB, ROOT, backup, backup_volume, vm, volume

KEY, STAMP = "0123456789ab", "2026.02.01.03.12.44"


def asked(target: Target, **options: Any) -> RestoreRequest:
    return RestoreRequest(backup="x/2026.01.31.22.00.05", target=target, key=KEY, **options)


def in_place(machine: Any, of: Any = None, *, names: tuple[str, ...] = ()) -> Any:
    of = of or backup()
    chosen = [found for found in of.volumes if not names or found.name in names]
    return in_place_files(of, chosen, vm=machine, whole=not names, key=KEY, stamp=STAMP)


def test_volumes_are_matched_by_source_whatever_their_targets_are() -> None:
    swapped = vm(volume(DATA), volume(ROOT, target="vdb", format="raw"))
    found = {planned.source: planned for planned in in_place(swapped)}
    assert (found[ROOT].path, found[ROOT].format) == (ROOT, "raw"), "the format that the disk has now"
    assert found[ROOT].staged == f"{ROOT}.restoring-{KEY}"
    assert found[ROOT].old == f"{ROOT}.before-{STAMP}"


def test_every_reason_against_it_is_told_at_once() -> None:
    other = vm(volume(ROOT, virtual_size=2 * GIB), volume("/images/new.qcow2", target="vdc"))
    with pytest.raises(RestoreRefused) as caught:
        in_place(other)
    for reason in (
        f"volume ROOT-1 has {2 * GIB} bytes now and {GIB} in the backup",
        f"volume DATA-2 ({DATA}) is none of its disks any more",
        "its disk vdc (/images/new.qcow2) is not in the backup",
        "restore to a new VM",
    ):
        assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "vmdk"}, "only qcow2 and raw can be written"),
        ({"encrypted": True}, r"volume ROOT-1 is encrypted, and what is restored is plain \(.* restore to a new VM\)"),
        ({"source": "rbd://ceph:6789/pool/image"}, "is no file of this host"),
    ],
)
def test_disks_that_cannot_be_written(changes: dict[str, Any], reason: str) -> None:
    disk = replace(volume(ROOT), **changes)
    with pytest.raises(RestoreRefused, match=reason):
        in_place(vm(disk), backup(backup_volume(disk.source)))


def test_named_volumes_leave_other_disks_alone() -> None:
    more = vm(volume(ROOT), volume(DATA, target="vdb"), volume("/images/new.qcow2", target="vdc"))
    assert [planned.name for planned in in_place(more, names=("DATA-2",))] == ["DATA-2"]


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "größe", "-rf", "a\nb"])
def test_new_files_stay_in_their_directory_whatever_the_names_are(name: str) -> None:
    (planned,) = new_files(
        [backup_volume(ROOT)], directory="/new images", prefix=f"{name}-", suffix="", image_format="raw", key=KEY
    )
    assert planned.path.rpartition("/")[0] == "/new images"
    assert planned.path.endswith("-ROOT-1.raw")
    assert planned.old is None


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (asked(Target.NEW_VM), "name a directory"),
        (asked(Target.NEW_VM, to="/x", pool="y"), "and not both"),
        (asked(Target.VOLUME, to="x", volumes=("a",)), "absolute"),
        (asked(Target.VOLUME, to="/x"), "the one volume"),
        (asked(Target.VOLUME, to="/x", volumes=("a", "b")), "the one volume"),
        (asked(Target.IN_PLACE, to="/x"), "where the old ones are"),
        (asked(Target.IN_PLACE, pool="x"), "of no use"),
        (asked(Target.IN_PLACE, new_name="x"), "makes no VM"),
        (asked(Target.VOLUME, to="/x", volumes=("a",), new_name="x"), "makes no VM"),
    ],
)
def test_params_that_do_not_go_together(request_: RestoreRequest, problem: str) -> None:
    with pytest.raises(ParamInvalid, match=problem):
        check_request(request_)


def test_params_that_do() -> None:
    check_request(asked(Target.NEW_VM, pool="x", new_name="y"))
    check_request(asked(Target.VOLUME, to="/x", volumes=("a",)))
    check_request(asked(Target.IN_PLACE))


def test_a_plan_survives_the_catalog() -> None:
    saved = [
        SavedState(kind=kind, file=file, source="/old", size=1, digest="sha256:" + "0" * 64)
        for kind, file in ((StateKind.NVRAM, "nvram.fd"), (StateKind.TPM, "tpm.tar"))
    ]
    plan = RestorePlan(
        key=KEY,
        backup="x/2026.01.31.22.00.05",
        target=Target.IN_PLACE,
        source_vm="x",
        source_uuid="u",
        vm="x",
        vm_uuid="u",
        volumes=in_place(vm()),
        state=planned_state(saved, places={StateKind.NVRAM: "/n/x_VARS.fd"}, key=KEY, stamp=STAMP),
        space=(Space(path="/images", needs=1, has=2),),
        notes=("something",),
    )
    assert [(file.kind, file.old) for file in plan.state] == [(StateKind.NVRAM, f"/n/x_VARS.fd.before-{STAMP}")]
    assert from_document(json.loads(json.dumps(plan.as_document()))) == plan


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31 22:00", "2026-01-31T22:00:00+00:00"),
        ("2026-01-31T22:00+01:00", "2026-01-31T22:00:00+01:00"),
        (" 2026-01-31T22:00:05Z ", "2026-01-31T22:00:05+00:00"),
        ("2026-01-31", "2026-01-31T00:00:00+00:00"),
    ],
)
def test_moments(text: str, expected: str) -> None:
    assert parse_moment(text).isoformat() == expected


@pytest.mark.parametrize("text", ["", "yesterday", "31.01.2026", "22:00"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ParamInvalid, match="before"):
        parse_moment(text)
