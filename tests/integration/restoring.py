"""Restores told as the command line and Airflow tell them, and the proof by ``qemu-img`` alone."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nasbackup.catalog import restores
from nasbackup.model import Backup, Host, Target
from nasbackup.restore.plan import RestorePlan, RestoreRequest
from nasbackup.steps import Site
from nasbackup.steps import restore as steps

from lab import vm as lab
from lab.vm import LabVm
from tests.integration.story import tool

HOLDER = "a test"


def bench_of(site: Site, *, holder: str = HOLDER) -> steps.Bench:
    return steps.Bench(database=site.database, host=Host(name="kvm_test"), holder=holder)


def request(backup: Backup, target: Target, **options: Any) -> RestoreRequest:
    return RestoreRequest(backup=backup.external_id, target=target, key=uuid.uuid4().hex[:12], **options)


def dry_run(site: Site, backup: Backup, target: Target, **options: Any) -> RestorePlan:
    return steps.plan(bench_of(site), request=request(backup, target, **options), dry_run=True)


def whole_restore(site: Site, backup: Backup, target: Target, **options: Any) -> steps.RestoreResult:
    """All steps, and give_back whatever happens."""
    bench, asked = bench_of(site), request(backup, target, **options)
    bench.lease(uuid=backup.vm_uuid, vm=backup.vm).join()
    try:
        made = steps.plan(bench, request=asked)
        for volume in made.volumes:
            steps.restore_volume(bench, backup=backup, key=asked.key, volume=volume.name)
        return steps.commit(bench, backup=backup, key=asked.key)
    finally:
        steps.give_back(bench, backup=backup, key=asked.key)


def content(image: Path, *, image_format: str = "qcow2") -> bytes:
    """Every byte of the disk, whoever has the image open."""
    raw = image.with_name(f"{image.name}.content")
    try:
        tool("qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", str(image), str(raw))
        return raw.read_bytes()
    finally:
        raw.unlink(missing_ok=True)


def contents(machine: LabVm) -> Mapping[str, bytes]:
    if machine.running:
        for target in machine.disks:
            machine.guest_io(target, "flush")
    return {target: content(image) for target, image in machine.disks.items()}


def identical(image: Path, frozen: Path, *, image_format: str = "qcow2") -> bool:
    command = ["qemu-img", "compare", "-U", "-f", image_format, "-F", "raw", str(image), str(frozen)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


def assert_no_trace(site: Site, *directories: Path) -> None:
    """No staged file, no lease, no row of a restore."""
    for directory in directories:
        if directory.exists():
            assert [path.name for path in directory.iterdir() if ".restoring-" in path.name] == []
    with site.database.transaction() as cursor:
        assert restores.list_all(cursor) == []
        cursor.execute("SELECT holder FROM lease")
        assert cursor.fetchall() == []


def vm(machine: LabVm, name: str) -> LabVm:
    return lab.LabVm(connection=machine.connection, name=name)
