"""A qemu-nbd process that serves one image on a private socket and never outlives its user."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from nasbackup.errors import ToolFailed
from nasbackup.tools import bound_to_parent, shortened, tool_environment
from nasbackup.transfer.nbd_connection import Interrupt

_READY_SECONDS = 120.0  # opening an image reads its metadata from a NAS that may be slow
_END_SECONDS = 300.0  # a clean end writes back what is cached
_KILLED_SECONDS = 10.0
# By default glibc maps and unmaps the buffer of every 1 MiB request, and the kernel clears its pages each time:
# twice the CPU time for the same bytes. These keep buffers on the heap.
_MALLOC = "glibc.malloc.mmap_threshold=8388608:glibc.malloc.trim_threshold=67108864"
_SOCKET_PATH_MAX = 107  # bytes, sun_path without its terminating zero


class QemuNbd:
    """Context manager: the process starts at once, ``wait_ready`` tells when it serves ``uri``.

    Enter and leave it in the same thread, and don't end that thread in between: the kernel kills the process with
    the thread that started it, which is what ends it when this process is killed by SIGKILL.
    """

    def __init__(
        self, image: str, *, clients: int, read_only: bool, allocation_depth: bool = False, bitmap: str | None = None
    ) -> None:
        """``image``: a ``json:`` node (see ``tools.node``). ``clients``: how many may be connected at a time.
        ``bitmap``: a dirty bitmap in the image that is served with it.
        """
        self._image = image
        self._options = [
            "--persistent",  # the end is ours to decide, not that of the last connection
            f"--shared={clients}",
            *(["--read-only"] if read_only else []),
            *(["--allocation-depth"] if allocation_depth else []),
            *([f"--bitmap={bitmap}"] if bitmap else []),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._directory = private_directory()
        self._socket = self._directory / "nbd"
        try:
            with self._stderr_file.open("wb") as stderr:
                self._process = subprocess.Popen(
                    bound_to_parent(["qemu-nbd", *self._options, f"--socket={self._socket}", "--", self._image]),
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    env={**tool_environment(), "GLIBC_TUNABLES": _MALLOC},
                )
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process
        if self._process.poll() is None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):  # stuck in the kernel; it dies when the NAS answers again
                self._process.wait(_KILLED_SECONDS)
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={quote(str(self._socket))}"

    @property
    def stderr(self) -> str:
        """What the process has complained about so far."""
        with suppress(OSError):
            return shortened(self._stderr_file.read_text(errors="replace"))
        return ""

    @property
    def _stderr_file(self) -> Path:
        return self._directory / "stderr"

    def wait_ready(self, interrupt: Interrupt) -> None:
        """Return when connections are accepted. Raises ToolFailed if the process ends or doesn't get there."""
        assert self._process
        deadline = time.monotonic() + _READY_SECONDS
        while not self._accepts():
            if (exit_code := self._process.poll()) is not None:
                raise ToolFailed(tool="qemu-nbd", exit_code=exit_code, stderr=self.stderr)
            if interrupt.triggered or time.monotonic() > deadline:
                raise ToolFailed(tool="qemu-nbd", exit_code=None, stderr=f"not ready yet. {self.stderr}")
            time.sleep(0.005)

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self._socket)) == 0

    def end(self) -> None:
        """End it cleanly and wait. Raises ToolFailed when the exit code isn't 0."""
        assert self._process
        self._process.terminate()
        try:
            exit_code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            raise ToolFailed(tool="qemu-nbd", exit_code=None, stderr=f"does not end. {self.stderr}") from None
        if exit_code != 0:
            raise ToolFailed(tool="qemu-nbd", exit_code=exit_code, stderr=self.stderr)


def private_directory() -> Path:
    """A new directory with mode 0700, where the path of a socket is short enough to be one.

    Its name says whose it is: who was killed could not remove it, so the next one does.
    """
    prefix = f"nasbackup-{os.getpid()}-"
    for abandoned in Path(tempfile.gettempdir()).glob("nasbackup-*-*"):
        owner = abandoned.name.split("-")[1]
        if owner.isdecimal() and not Path("/proc", owner).exists():
            shutil.rmtree(abandoned, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    if len(os.fsencode(directory / "nbd")) <= _SOCKET_PATH_MAX:
        return directory
    directory.rmdir()
    return Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
