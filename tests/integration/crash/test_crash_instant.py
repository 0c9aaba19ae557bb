"""``instant`` is killed with SIGKILL in every gap until its VM runs. The same command again goes on, and tidies up."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nasbackup.hypervisor import connect
from nasbackup.restore.image import locate
from nasbackup.steps import Site, instant
from nasbackup.steps.instant import InstantVm

from lab import vm as lab
from lab.places import make_directory
from tests.integration.crash.runner import Outcome, Runner
from tests.integration.story import Story
from tests.integration.test_mount import eventually

LAST = "virDomain.createWithFlags"
"""From then on the VM runs: tests/integration/test_instant.py."""


def start(*, site: Site, backup: str, name: str, to: Path) -> InstantVm:
    """As the command line does it; also in the victim."""
    with connect(site.host) as hypervisor:
        located = locate(site.database, external_id=backup)
        return instant.start(
            hypervisor, located, database=site.database, name=name, to=to, socket_dir=site.host.socket_dir
        )


def servers(vm: InstantVm) -> list[bytes]:
    """Processes that lend a volume to this VM."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes()
        except OSError:
            continue
        if command.startswith(b"qemu-nbd") and f"/instant-{vm.uuid}".encode() in command:
            found.append(command)
    return found


def assert_tidy(story: Story, vm: InstantVm, copy: lab.LabVm) -> None:
    assert sorted(copy.directory.iterdir()) == sorted(overlay.file for overlay in vm.overlays)
    assert list(Path(story.site.host.socket_dir).glob(f"*instant-{vm.uuid}*")) == []
    eventually(lambda: servers(vm) == [])
    with story.site.database.transaction() as cursor:
        cursor.execute("SELECT reader FROM reading")
        assert cursor.fetchall() == []


@pytest.fixture
def small(libvirt_connection: Any, site: Site, vm_name: str, tmp_path: Path) -> Iterator[Story]:
    """A running VM with one small disk."""
    with lab.lab_vm(libvirt_connection, name=vm_name, volumes=[lab.Volume(size=1 << 20)]) as machine:
        yield Story(site=site, machine=machine, work=tmp_path)
    shutil.rmtree(tmp_path / "nas", ignore_errors=True)


@pytest.mark.timeout(300)
def test_sigkill_in_every_gap_until_the_vm_runs(small: Story, tmp_path: Path) -> None:
    small.machine.guest_io("vda", "write -P 0x5a 0 256k")
    backup = small.backup()
    copy = lab.LabVm(connection=small.machine.connection, name=f"{small.machine.name}-instant")
    arguments = {"site": small.site, "backup": backup.external_id, "name": copy.name, "to": copy.directory}
    effects: list[str] = []
    try:
        with Runner(work=tmp_path) as runner:
            while not effects or LAST not in effects[-1]:
                copy.remove()
                make_directory(copy.directory)
                outcome = runner.run(start, arguments, kill_at=len(effects) + 1)
                assert outcome.killed, outcome.error
                effects = outcome.effects
                try:
                    recover(small, copy, arguments)
                except Exception as error:
                    raise AssertionError(_report(outcome)) from error
    finally:
        copy.remove()
    for effect in ("commit", "started qemu-nbd", "os.link", "virConnect.defineXML"):
        assert any(effect in line for line in effects), f"no gap after {effect}"


def recover(story: Story, copy: lab.LabVm, arguments: dict[str, Any]) -> None:
    vm = start(**arguments)
    assert copy.running
    copy.guest_io("vda", "read -P 0x5a 0 256k")
    with connect(story.site.host) as hypervisor:
        instant.finish(hypervisor, vm, database=story.site.database)
    assert_tidy(story, vm, copy)


def _report(outcome: Outcome) -> str:
    return "\n".join(["killed after the last of these:", *outcome.effects])
