"""manifest.json: what is written can be read again, and what is damaged is refused with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nasbackup import machine
from nasbackup.errors import ManifestInvalid, VerifyFailed
from nasbackup.handling import Compression, VerifyLevel
from nasbackup.layout import MANIFEST
from nasbackup.machine import MachineState, SavedState, StateFile, StateKind
from nasbackup.model import BackupType, Consistency, Reason, VolumeReason
from nasbackup.nas import manifest
from nasbackup.nas import state as nas_state

from tests.unit.builders import CHAIN_ID, DATA, ROOT, VM_UUID, backup, backup_volume

REPOSITORY_UUID = "5b1f2c1e-0000-4000-8000-0000000000aa"
RECORDED = "2026-01-31T22:03:00+00:00"
INCREMENTAL = backup(
    backup_volume(
        ROOT,
        type=BackupType.INCREMENTAL,
        reason=VolumeReason.INCREMENTAL,
        backing="../2026.01.30.22.00.05/root.ROOT-1.qcow2",
    ),
    backup_volume(DATA, reason=VolumeReason.RESIZED, bytes_read=0, bytes_written=0),
    type=BackupType.INCREMENTAL,
    reason=Reason.INCREMENTAL,
    explanation='incremental on "é" and line\nbreak',
    consistency=Consistency.FILESYSTEM,
    chain_position=1,
    parent_id=16,
    parent="i-2-1234-VM/2026.01.30.22.00.05",
    checkpoint="backup-2",
)
OUTSIDE_CHAINS = backup(reason=Reason.INCREMENTAL_DISABLED, checkpoint=None, chain_id=None)


def built(of: Any = INCREMENTAL) -> dict[str, Any]:
    return dict(json.loads(manifest.build(of, repository_uuid=REPOSITORY_UUID, recorded_at=RECORDED)))


def put(folder: Path, document: Any) -> Path:
    (folder / MANIFEST).write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    return folder


@pytest.mark.parametrize("of", [backup(), INCREMENTAL, OUTSIDE_CHAINS], ids=["full", "incremental", "outside chains"])
def test_what_is_built_is_valid_and_reads_back_the_same(tmp_path: Path, of: Any) -> None:
    document = built(of)
    assert manifest.read(put(tmp_path, document)) == document


def test_only_what_is_not_as_ever_is_said(tmp_path: Path) -> None:
    """An older version refuses a key that it does not know: a plain backup has none."""
    packed = backup(backup_volume(ROOT, compression=Compression.ZSTD), backup_volume(DATA))
    document = json.loads(
        manifest.build(packed, repository_uuid=REPOSITORY_UUID, recorded_at=RECORDED, level=VerifyLevel.STRUCTURE)
    )
    assert manifest.read(put(tmp_path, document)) == document
    assert document["verify"] == "structure"
    assert [volume.get("compression") for volume in document["volumes"]] == ["zstd", None]
    assert "verify" not in built()
    assert not [volume for volume in built()["volumes"] if "compression" in volume]
    for key, place in (("verify", document), ("compression", document["volumes"][0])):
        kept, place[key] = place[key], "lz4"
        with pytest.raises(ManifestInvalid, match="'lz4' is not one of"):
            manifest.read(put(tmp_path, document))
        place[key] = kept


def test_the_manifest_says_all_that_the_catalog_knows() -> None:
    document = built()
    assert {key: document[key] for key in document if key != "volumes"} == {
        "version": 1,
        "external_id": "i-2-1234-VM/2026.01.31.22.00.05",
        "vm": {"name": "i-2-1234-VM", "uuid": VM_UUID, "host": "kvm_one"},
        "repository": {"name": "nas_main", "uuid": REPOSITORY_UUID},
        "type": "INCREMENTAL",
        "reason": "incremental",
        "explanation": 'incremental on "é" and line\nbreak',
        "consistency": "filesystem",
        "chain": {"id": CHAIN_ID, "position": 1, "parent": "i-2-1234-VM/2026.01.30.22.00.05"},
        "checkpoint": "backup-2",
        "created": "2026-01-31T22:00:05+00:00",
        "published": RECORDED,
    }
    assert document["volumes"][0] == {
        "name": "ROOT-1",
        "file": "root.ROOT-1.qcow2",
        "source": ROOT,
        "target": "vda",
        "source_format": "qcow2",
        "type": "INCREMENTAL",
        "reason": "incremental",
        "virtual_size": 1 << 30,
        "backing": "../2026.01.30.22.00.05/root.ROOT-1.qcow2",
        "digest": "sha256:" + "ab" * 32,
        "bytes_read": 1 << 20,
        "bytes_written": 1 << 19,
    }
    assert [volume["backing"] is None for volume in document["volumes"]] == [False, True]


def test_people_can_read_it() -> None:
    text = manifest.build(INCREMENTAL, repository_uuid=REPOSITORY_UUID, recorded_at=RECORDED).decode()
    assert text.endswith("}\n")
    assert "é" in text, "not escaped"
    assert text.count("\n") > 40, "one fact a line"


@pytest.mark.parametrize(
    "incomplete",
    [
        backup(backup_volume(ROOT, digest=None)),
        backup(backup_volume(ROOT, bytes_read=None)),
        backup(consistency=None),
        backup(external_id="../elsewhere"),
    ],
    ids=["not copied", "not counted", "no point in time", "a name that is none"],
)
def test_a_backup_that_is_not_complete_gets_no_manifest(incomplete: Any) -> None:
    with pytest.raises(ManifestInvalid):
        built(incomplete)


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.pop(key)


def changed(place: str, value: Any) -> Callable[[dict[str, Any]], object]:
    *way, last = [int(part) if part.isdigit() else part for part in place.split(".")]

    def change(document: dict[str, Any]) -> None:
        inner: Any = document
        for part in way:
            inner = inner[part]
        inner[last] = value

    return change


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no version": (without("version"), "'version' is a required property"),
    "a later version": (changed("version", 2), "$.version: 1 was expected"),
    "no volumes": (changed("volumes", []), "$.volumes: "),
    "id climbs out": (changed("external_id", "../2026.01.31.22.00.05/x"), "$.external_id: "),
    "id without time": (changed("external_id", "i-2-1234-VM/today"), "$.external_id: "),
    "VM without UUID": (changed("vm.uuid", "i-2-1234-VM"), "$.vm.uuid: "),
    "unknown type": (changed("type", "DIFFERENTIAL"), "$.type: "),
    "unknown reason": (changed("reason", "because"), "$.reason: "),
    "negative position": (changed("chain.position", -1), "$.chain.position: "),
    "position as text": (changed("chain.position", "1"), "$.chain.position: "),
    "file climbs out": (changed("volumes.0.file", "root.../../x.qcow2"), "$.volumes[0].file: "),
    "backing absolute": (changed("volumes.0.backing", "/etc/passwd"), "$.volumes[0].backing"),
    "backing climbs out": (changed("volumes.0.backing", "../../../etc/passwd"), "$.volumes[0].backing"),
    "size zero": (changed("volumes.1.virtual_size", 0), "$.volumes[1].virtual_size: "),
    "no digest": (changed("volumes.1.digest", None), "$.volumes[1].digest: "),
    "unknown key": (changed("volumes.1.colour", "blue"), "$.volumes[1]: "),
}


@pytest.mark.parametrize(("damage", "place"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_manifest_is_refused_with_its_place(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], place: str
) -> None:
    document = built()
    damage(document)
    with pytest.raises(ManifestInvalid) as refused:
        manifest.read(put(tmp_path, document))
    assert refused.value.data["path"] == tmp_path / MANIFEST
    assert place in refused.value.data["problem"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[1, 2", b'{"version": 1}{}'], ids=["empty", "cut", "binary", "list", "two"]
)
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ManifestInvalid, match="not JSON"):
        manifest.read(put(tmp_path, content))


@pytest.mark.parametrize("document", [[], None, 1, "text"])
def test_json_that_is_no_object_is_refused(tmp_path: Path, document: Any) -> None:
    with pytest.raises(ManifestInvalid, match="is not of type 'object'"):
        manifest.read(put(tmp_path, document))


def test_no_manifest_means_no_complete_backup(tmp_path: Path) -> None:
    with pytest.raises(ManifestInvalid, match="there is no manifest: the backup is not complete"):
        manifest.read(tmp_path)
    with pytest.raises(ManifestInvalid, match="there is no manifest"):
        manifest.read(tmp_path / "no such directory")


# --- the machine's state ---------------------------------------------------------------------------------------

NVRAM = SavedState(kind=StateKind.NVRAM, file="nvram.fd", source="/n/x_VARS.fd", size=4, digest=machine.digest(b"vars"))


def test_the_state_of_a_machine_is_described_and_older_manifests_have_none(tmp_path: Path) -> None:
    content = manifest.build(
        backup(), repository_uuid=REPOSITORY_UUID, recorded_at=RECORDED, state=[NVRAM], state_missing=["no TPM"]
    )
    document = manifest.read(put(tmp_path, content))
    assert nas_state.parse(document) == [NVRAM]
    assert document["state_missing"] == ["no TPM"]
    older = built(backup())
    assert "state" not in older
    assert nas_state.parse(older) == []


def test_state_is_written_read_back_and_told_apart_from_what_it_should_be(tmp_path: Path) -> None:
    files = (
        StateFile(kind=StateKind.NVRAM, source="/n/x_VARS.fd", content=b"vars"),
        StateFile(kind=StateKind.TPM, source="/tpm", content=b"tar"),
    )
    nas_state.write(tmp_path, state=MachineState(files=files, missing=("something",)))
    saved, missing = nas_state.written(tmp_path)
    assert saved[0] == NVRAM
    assert missing == ["something"]
    assert nas_state.names(saved) == {"nvram.fd", "tpm.tar"}
    assert (tmp_path / "tpm.tar").stat().st_mode & 0o077 == 0, "it holds secrets"
    (tmp_path / "nvram.fd").write_bytes(b"VARS")
    with pytest.raises(VerifyFailed, match="not what was saved"):
        nas_state.written(tmp_path)
    (tmp_path / "nvram.fd").unlink()
    with pytest.raises(VerifyFailed, match="missing"):
        nas_state.written(tmp_path)
    nas_state.write(tmp_path, state=MachineState())
    assert list(tmp_path.iterdir()) == [], "a VM without state has no file more than before"
    assert nas_state.written(tmp_path) == ([], [])
