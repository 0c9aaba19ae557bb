"""A backup as the NAS sees it: made by hand, published, and what is there afterwards."""

from __future__ import annotations

from pathlib import Path

from nasbackup.model import Repository
from nasbackup.nas import publish

VM = "i-2-1-VM"
STAMP = "2026.01.31.22.00.05"
EXTERNAL_ID = f"{VM}/{STAMP}"
ATTEMPTS = {"root.a.qcow2": "a2", "datadisk.b.qcow2": "b1"}
MANIFEST = b'{"version": 1}\n'


def root_of(nas: Repository) -> Path:
    return Path(nas.path)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def do_prepare(nas: Repository, *, external_id: str = EXTERNAL_ID) -> Path:
    return publish.prepare(nas, root=root_of(nas), external_id=external_id, domain_xml="<domain/>")


def made(nas: Repository, *, external_id: str = EXTERNAL_ID) -> Path:
    """A partial directory with two volumes, one of which was also copied by an attempt that was superseded."""
    folder = do_prepare(nas, external_id=external_id)
    for name, data in (("root.a.qcow2.attempt-a1", b"old"), ("root.a.qcow2.attempt-a2", b"new")):
        (folder / name).write_bytes(data)
    (folder / "datadisk.b.qcow2.attempt-b1").write_bytes(b"data")
    return folder


PUBLISHED = {
    "root.a.qcow2": b"new",
    "datadisk.b.qcow2": b"data",
    "domain.xml": b"<domain/>",
    "manifest.json": MANIFEST,
}


def do_publish(nas: Repository, *, external_id: str = EXTERNAL_ID) -> Path:
    return publish.publish(nas, root=root_of(nas), external_id=external_id, attempts=ATTEMPTS, manifest=MANIFEST)
