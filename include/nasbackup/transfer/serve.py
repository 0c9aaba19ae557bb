"""Serve images read-only where they lie: each as an NBD export and, if wanted, as a raw file. Nothing is copied."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from nasbackup.errors import TargetExists, ToolFailed
from nasbackup.tools import bound_to_parent, shortened, tool_environment
from nasbackup.transfer.qemu_nbd import private_directory

TOOL = "qemu-storage-daemon"
_READY_SECONDS = 120.0  # opening an image reads its metadata from a NAS that may be slow
_END_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Export:
    name: str
    uri: str
    file: Path | None


class Server:
    """Context manager: ``exports`` can be used inside the block, and nothing of them is left after it.

    One process for all images. It ends with the thread that enters the block, also by SIGKILL, and then unmounts.
    """

    def __init__(self, images: Mapping[str, Path], *, files: Path | None = None, port: int | None = None) -> None:
        """``images``: name -> qcow2 file. ``files``: directory that gets ``<name>.raw``. ``port``: serve NBD on this
        TCP port of 127.0.0.1 instead of a Unix socket.
        """
        self._images = dict(images)
        self._files = files
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        """Raises TargetExists, ToolFailed."""
        self._directory = private_directory()
        try:
            for file in self.files.values():
                self._make_mount_point(file)
            with self._stderr_file.open("wb") as stderr:
                self._process = subprocess.Popen(
                    bound_to_parent(self._command(), signal="TERM"),
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    env=tool_environment(),
                    start_new_session=True,  # ctrl-C is for us: we end it
                )
            self._wait_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def files(self) -> dict[str, Path]:
        return {name: self._files / f"{name}.raw" for name in self._images} if self._files is not None else {}

    @property
    def exports(self) -> list[Export]:
        files = self.files
        return [Export(name=name, uri=self._uri(name), file=files.get(name)) for name in self._images]

    @property
    def socket(self) -> Path:
        return self._directory / "nbd"

    def check(self) -> None:
        """Raises ToolFailed when it does not serve any more."""
        assert self._process
        if (exit_code := self._process.poll()) is not None:
            raise ToolFailed(tool=TOOL, exit_code=exit_code, stderr=self._stderr)

    def _uri(self, name: str) -> str:
        if self._port is not None:
            return f"nbd://127.0.0.1:{self._port}/{quote(name, safe='')}"
        return f"nbd+unix:///{quote(name, safe='')}?socket={quote(str(self.socket))}"

    def _command(self) -> list[str]:
        address: dict[str, Any] = {"type": "unix", "path": str(self.socket)}
        if self._port is not None:
            address = {"type": "inet", "host": "127.0.0.1", "port": str(self._port)}
        command = [TOOL, "--nbd-server", json.dumps({"addr": address}), "--pidfile", str(self._pid_file)]
        for number, (name, image) in enumerate(self._images.items()):
            node = f"volume{number}"
            file = {"driver": "file", "filename": str(image.absolute())}
            blockdev = {"driver": "qcow2", "node-name": node, "read-only": True, "file": file}
            command += ["--blockdev", json.dumps(blockdev)]
            exports = [{"type": "nbd", "name": name}]
            if name in self.files:
                exports.append({"type": "fuse", "mountpoint": str(self.files[name].absolute())})
            for export in exports:
                about = {"id": f"{export['type']}{number}", "node-name": node, "writable": False}
                command += ["--export", json.dumps({**export, **about})]
        return command

    def _make_mount_point(self, file: Path) -> None:
        """An empty file, which is also what one of a killed server looks like."""
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_symlink() or (file.exists() and not (file.is_file() and file.stat().st_size == 0)):
            raise TargetExists(path=file)
        file.touch(mode=0o600)
        self._made.append(file)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not self._pid_file.exists():  # written when everything else is set up
            self.check()
            if time.monotonic() > deadline:
                raise ToolFailed(tool=TOOL, exit_code=None, stderr=f"not ready yet. {self._stderr}")
            time.sleep(0.01)

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                with suppress(subprocess.TimeoutExpired):  # stuck in the kernel; it dies when the NAS answers again
                    self._process.wait(_END_SECONDS)
        for file in self._made:
            if _is_mounted(file):  # it was killed, and could not
                tool = ["umount", "--lazy", "--"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z", "--"]
                subprocess.run([*tool, str(file)], check=False, capture_output=True)
            with suppress(OSError):
                file.unlink()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def _pid_file(self) -> Path:
        return self._directory / "pid"

    @property
    def _stderr_file(self) -> Path:
        return self._directory / "stderr"

    @property
    def _stderr(self) -> str:
        with suppress(OSError):
            return shortened(self._stderr_file.read_text(errors="replace"))
        return ""


def _is_mounted(file: Path) -> bool:
    at = os.fsencode(Path(os.path.realpath(file.parent)) / file.name)  # the file itself may not answer any more
    return at in mount_points(Path("/proc/self/mountinfo").read_bytes())


def mount_points(mountinfo: bytes) -> set[bytes]:
    """Paths are bytes of which the kernel writes some, such as a blank, as ``\\040``."""
    fields = [line.split(b" ") for line in mountinfo.split(b"\n") if line]
    return {re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), found[4]) for found in fields}
