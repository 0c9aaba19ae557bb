"""Disks, servers and observations for the transfer tests. Everything is real: qemu-img, qemu-io, qemu-nbd."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasbackup.tools import node
from nasbackup.transfer.copy import copy_layer
from nasbackup.transfer.extents import CLUSTER
from nasbackup.transfer.pump import LayerSummary

KIB = 1024
MIB = 1024 * KIB
ODD_SIZE = 33 * MIB + 512  # the last cluster, and the last chunk, hold one sector


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def make_disk(path: Path, *, size: int = ODD_SIZE, cluster_size: int = 64 * KIB) -> Path:
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster_size}", str(path), str(size))
    return path


def guest_io(disk: Path, *commands: str) -> None:
    """What a guest does: ``write -P 1 0 64k``, ``write -z …``, ``discard …``. Maintains the disk's bitmaps."""
    arguments = [argument for command in commands for argument in ("-c", command)]
    output = run("qemu-io", "-d", "unmap", "-f", "qcow2", *arguments, str(disk))
    assert "failed" not in output, output


def fill(disk: Path, seed: int, offset: int, length: int) -> None:
    """Bytes that don't repeat: a block that ends up at the wrong place is noticed."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(pattern(seed, length))
        file.flush()
        guest_io(disk, f"write -s {file.name} {offset} {length}")


def pattern(seed: int, length: int) -> bytes:
    source = random.Random(seed)
    return b"".join(source.randbytes(min(MIB, length - start)) for start in range(0, length, MIB))


def add_bitmap(disk: Path, name: str, *, granularity: int | None = None) -> None:
    option = ["-g", str(granularity)] if granularity else []
    run("qemu-img", "bitmap", "--add", *option, "-f", "qcow2", str(disk), name)


def start_server(command: list[str], socket_path: Path) -> subprocess.Popen[bytes]:
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(socket_path)) == 0:
                return server
        assert server.poll() is None, f"{command} ended"
        time.sleep(0.01)
    raise AssertionError(f"{command} is not ready")


@dataclass
class Server:
    uri: str
    process: subprocess.Popen[bytes]


@contextmanager
def nbd_server(*command: str) -> Iterator[Server]:
    """``{socket}`` in the command stands for the socket's path."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = Path(directory) / "s"
        process = start_server([part.replace("{socket}", str(path)) for part in command], path)
        try:
            yield Server(f"nbd+unix:///?socket={path}", process)
        finally:
            process.kill()
            process.wait()


@contextmanager
def served(disk: Path, *, bitmap: str | None = None, clients: int = 16) -> Iterator[str]:
    """The disk as a source, the way a stopped VM's disk is served; yields the URI."""
    option = ["-B", bitmap] if bitmap else []
    with nbd_server(
        "qemu-nbd", "-r", "-t", "-e", str(clients), *option, "-f", "qcow2", "-k", "{socket}", str(disk)
    ) as server:
        yield server.uri


def back_up(disk: Path, target: Path, **options: Any) -> LayerSummary:
    """Copy the disk; ``dirty_bitmap`` and ``backing`` make it an increment."""
    size = json.loads(run("qemu-img", "info", "--output=json", "-f", "qcow2", str(disk)))["virtual-size"]
    arguments: dict[str, Any] = {"backing": None, "dirty_bitmap": None, **options}
    with served(disk, bitmap=arguments["dirty_bitmap"]) as uri:
        return copy_layer(source_uri=uri, target=target, virtual_size=size, **arguments)


def assert_same_content(left: Path, right: Path, *, right_format: str = "qcow2") -> None:
    """Byte identity of what a guest would see, through the backing chains."""
    run("qemu-img", "compare", node(left, "qcow2"), node(right, right_format))
    sizes = {
        json.loads(run("qemu-img", "info", "--output=json", image))["virtual-size"]
        for image in (node(left, "qcow2"), node(right, right_format))
    }
    assert len(sizes) == 1, "compare forgives a tail of zeroes; a disk has its size"


def present_clusters(layer: Path) -> set[int]:
    """The clusters that this layer alone holds, as QEMU sees it."""
    entries = json.loads(run("qemu-img", "map", "--output=json", node(layer, "qcow2", backing=None)))
    return {
        cluster
        for entry in entries
        if entry["present"]
        for cluster in range(entry["start"] // CLUSTER, -(-(entry["start"] + entry["length"]) // CLUSTER))
    }


def child_processes(parent: int | None = None) -> dict[int, str]:
    """pid → name of the children of a process (this one by default), zombies not counted."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, ppid = rest.split()[:2]
        if int(ppid) == (parent or os.getpid()) and state != "Z":
            children[int(stat.parent.name)] = name
    return children


def arguments_of(pid: int) -> str:
    """Separated by NUL; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
