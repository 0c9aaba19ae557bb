from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

# The helpers are a module, so that tests can be type-checked; whatever pytest's import mode is, it is found here.
sys.path.insert(0, str(Path(__file__).parent))

from transfer_lab import child_processes


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test does, copying leaves no process, thread, socket or private directory."""
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    threads, children, sockets = set(threading.enumerate()), set(child_processes()), _sockets()
    yield
    gc.collect()
    assert set(threading.enumerate()) <= threads
    assert set(child_processes()) <= children
    assert _sockets() <= sockets
    assert list(private.iterdir()) == []


def _sockets() -> int:
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            count += str(descriptor.readlink()).startswith("socket:")
        except OSError:
            continue
    return count


@pytest.fixture
def small_nas(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(place)], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting is not permitted here, although this is root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # also while a failed test holds it
