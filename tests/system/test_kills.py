"""Parts of Airflow are killed with SIGKILL under a real scheduler (single steps: tests/integration/crash)."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from nasbackup.model import BackupStatus, BackupType

from lab.vm import LabVm
from tests.system.conftest import Plant, parent_of, stopped_copy

pytestmark = pytest.mark.system

MIB = 1 << 20
ORPHANED_TASKS_SECONDS = float(os.environ.get("AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL", "300"))
ROOT = Path(__file__).parents[2]
MakeVm = Callable[..., LabVm]


def test_the_orphan_of_a_killed_supervisor_changes_nothing_any_more(
    plant: Plant, make_vm: MakeVm, tmp_path: Path
) -> None:
    machine = make_vm("orphan", 300 * MIB, 8 * MIB)
    machine.guest_io("vda", "write -P 0x41 0 300M")
    run = plant.backup(machine.name, bandwidth="40 MiB/s")  # not over while its writer is let go for a moment
    with stopped_copy(machine.name, file="root.vda", timeout=120) as writer:
        # Airflow runs a task in a fork of its supervisor, which alone tells the scheduler that it is alive.
        orphan = parent_of(writer)
        supervisor = parent_of(orphan)
        assert "LocalExecutor" in command_of(supervisor), command_of(supervisor)
        # Let go for a moment: a process group that loses its parent while a member is stopped is hung up by the kernel.
        os.kill(writer, signal.SIGCONT)
        os.kill(supervisor, signal.SIGKILL)
        wait_for_end(supervisor)
        # First the writer alone, until all the orphan's readers wait for it: stopped with a reply of QEMU under way, it
        # would hold QEMU (docs/guarantees.md). Then the orphan: it would end with its next line of log, nobody reads.
        os.kill(writer, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(orphan, signal.SIGSTOP)
        backup = plant.recorded(run)  # a second try, once the heartbeats are missed
        tries = {task.title: task.try_number for task in plant.airflow.tasks("nas_backup", run)}
        assert (tries["copy[vda]"], tries["copy[vdb]"]) == (2, 1)
        assert is_alive(orphan), "it must be there to be harmless"
        assert is_alive(writer)
        published = digests(plant.nas)
        os.kill(orphan, signal.SIGCONT)
    # Its writer was let go too: the orphan copies on, and comes to its end.
    wait_for_end(orphan, writer)
    assert digests(plant.nas) == published, "the orphan's bytes appear nowhere"
    assert plant.backups_of(machine.name) == [backup], "nor does the catalog know of it"
    plant.assert_nothing_is_left(machine)
    plant.assert_restores_what_the_guest_has(machine, backup, work=tmp_path)  # compares every digest, too

    machine.guest_io("vda", "write -P 0x42 1M 1M")
    after = plant.recorded(plant.backup(machine.name))
    assert (after.type, after.parent) == (BackupType.INCREMENTAL, backup.external_id)
    plant.assert_restores_what_the_guest_has(machine, after, work=tmp_path)


@pytest.mark.timeout(900)
def test_a_killed_scheduler_costs_at_most_the_run(plant: Plant, make_vm: MakeVm, tmp_path: Path) -> None:
    machine = make_vm("scheduler", 300 * MIB)
    machine.guest_io("vda", "write -P 0x51 0 4M")
    base = plant.recorded(plant.backup(machine.name))
    machine.guest_io("vda", "write -P 0x52 0 300M")
    run = plant.backup(machine.name)
    with stopped_copy(machine.name, file="root.vda", timeout=120) as writer:
        orphan = parent_of(writer)
        scheduler = int(supervisorctl("pid", "airflow:scheduler"))
        executors = children_of(scheduler)
        os.kill(writer, signal.SIGCONT)
        os.kill(scheduler, signal.SIGKILL)
        wait_for_end(scheduler)
    wait_for_end(orphan, writer)
    # Its executors have inherited its connection to PostgreSQL, with the transaction in which it was killed: nobody
    # goes on before they have ended. (systemd ends the whole group with a main process that is killed.)
    for pid in executors:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    # supervisord has started another. Whatever task it finds dead, it finds by its check for orphaned tasks.
    state = plant.wait(run, timeout=ORPHANED_TASKS_SECONDS + 240)
    plant.assert_nothing_is_left(machine)
    statuses = [backup.status for backup in plant.backups_of(machine.name)]
    assert statuses == [BackupStatus.BACKED_UP, BackupStatus.BACKED_UP if state == "success" else BackupStatus.FAILED]
    latest = plant.backups_of(machine.name)[-1] if state == "success" else base

    machine.guest_io("vda", "write -P 0x53 2M 1M")
    after = plant.recorded(plant.backup(machine.name))
    assert (after.type, after.parent) == (BackupType.INCREMENTAL, latest.external_id)
    plant.assert_nothing_is_left(machine)
    plant.assert_restores_what_the_guest_has(machine, after, work=tmp_path)


# --- processes ------------------------------------------------------------------------------------------------


def children_of(pid: int) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if parent_of(int(process.name)) == pid:
                found.append(int(process.name))
    return found


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def is_alive(pid: int) -> bool:
    """Whether there is such a process; one that has ended and that nobody has asked about (a zombie) is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_for_end(*pids: int, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"still there after {timeout:g} s: {[command_of(pid) for pid in left]}"
        time.sleep(0.05)


def digests(directory: Path) -> dict[str, str]:
    """Of every file below."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path.relative_to(directory))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def supervisorctl(*words: str) -> str:
    configuration = ROOT / "lab/stack/supervisord.conf"
    done = subprocess.run(
        ["supervisorctl", "-c", str(configuration), *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
