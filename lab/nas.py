"""A NAS for tests that is too small, fails, is slow, or does not answer at all.

No server and no network file system is needed: the kernels of test machines may have no NFS client. A file system in
memory with a limit is full when it is full. For the rest ext4 stands on a loop device, under it a FUSE export, under
that an nbdkit process. What nbdkit answers is what the "disk" answers, and while nbdkit is stopped, every process
that needs the disk waits uninterruptibly in the kernel, as with a hard NFS mount whose server is gone.

While such a NAS hangs, ``sync`` (of all file systems) hangs too, for everybody on the machine: hang it for seconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
_SECONDS = 30.0  # for each step of setting up and taking down


class LabNasError(Exception):
    """The NAS for tests could not be built, which is no finding about what is tested."""


@contextmanager
def small_nas(place: Path, *, size: int) -> Iterator[Path]:
    """A file system of ``size`` bytes, mounted at ``place``."""
    place.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "nasbackup-lab", str(place))
    try:
        yield place
    finally:
        _run("umount", "--lazy", str(place))  # also while a failed test still holds it


@dataclass(kw_only=True)
class FaultyNas:
    """The controls. ``path`` is where it is mounted; every write is on the "disk" before it returns (mount -o sync)."""

    path: Path
    server: subprocess.Popen[bytes]
    trigger: Path

    def fail_writes(self) -> None:
        """From now on every write is answered with EIO."""
        self.trigger.touch()

    def heal(self) -> None:
        """Writes work again. The kernel reports old errors once more to whoever comes first: that is us."""
        self.trigger.unlink(missing_ok=True)
        for path in [self.path, *self.path.rglob("*")] * 2:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                with suppress(OSError):
                    os.utime(descriptor)
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def hang(self) -> None:
        """From now on nobody gets an answer, not even an error."""
        self.server.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Everything that waited goes on as if nothing had happened."""
        self.server.send_signal(signal.SIGCONT)


@contextmanager
def faulty_nas(place: Path, *, size: int = 128 * MIB, write_delay_ms: int = 0) -> Iterator[FaultyNas]:
    """A healthy NAS in ``place``/mnt, until one of its controls is used. ``write_delay_ms``: a slow one.

    Whatever happens, it is resumed and taken down at the end; ``place`` must be on a local file system.
    """
    for directory in (place, place / "mnt"):
        directory.mkdir(parents=True, exist_ok=True)
    socket, image, trigger = place / "nbd.sock", place / "disk", place / "fail-writes"
    for left_over in (socket, trigger):
        left_over.unlink(missing_ok=True)
    image.touch()
    with ExitStack() as stack:
        # Every QEMU that libvirt starts meanwhile has a copy of all mounts and would keep this one busy; what is below
        # a shared mount goes from their copies too.
        _run("mount", "--bind", str(place), str(place))
        stack.callback(_run, "umount", "--lazy", str(place))
        _run("mount", "--make-shared", str(place))
        delay = ["--filter=delay", f"wdelay={write_delay_ms}ms"] if write_delay_ms else []
        server = stack.enter_context(
            _process(
                *("nbdkit", "--foreground", "--unix", str(socket), "--filter=error", *delay[:1], "memory", str(size)),
                *("error-pwrite=EIO", "error-pwrite-rate=100%", f"error-pwrite-file={trigger}", *delay[1:]),
            )
        )
        _wait_for(socket.exists, "nbdkit's socket")
        stack.enter_context(_process("nbdfuse", str(image), f"nbd+unix:///?socket={socket}"))
        _wait_for(lambda: image.stat().st_size == size, "the FUSE export")
        stack.callback(_run, "umount", "--lazy", str(image))
        # Without a journal, whose first error would make all of it read-only: a NAS goes on giving errors.
        _run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=0", str(image))
        stack.callback(_wait_for, lambda: not _loop_devices(image), "the loop device to be free")
        _run("mount", "-t", "ext4", "-o", "loop,sync", str(image), str(place / "mnt"))
        stack.callback(_run, "umount", "--lazy", str(place / "mnt"))
        nas = FaultyNas(path=place / "mnt", server=server, trigger=trigger)
        stack.callback(trigger.unlink, missing_ok=True)
        stack.callback(nas.resume)
        yield nas


def waits_uninterruptibly(pid: int) -> bool:
    """Whether any thread of the process is in state D: it waits for a disk, and not even SIGKILL ends it now."""
    for status in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            if status.read_text().rpartition(")")[2].split()[0] == "D":
                return True
        except OSError:  # the thread has ended
            continue
    return False


@contextmanager
def _process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own (a terminal's signals don't reach it) that ends with this one."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_SECONDS)


def _loop_devices(image: Path) -> str:
    return _run("losetup", "--noheadings", "--output", "NAME", "--associated", str(image)).strip()


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if done.returncode != 0:
        raise LabNasError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise LabNasError(f"waited {_SECONDS:.0f} s in vain for {what}")
        time.sleep(0.01)
