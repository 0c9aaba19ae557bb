"""A PostgreSQL and a libvirtd of one's own, to be filled, killed and started at will: nobody else's are touched."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import libvirt
import psycopg2
from nasbackup.catalog import Database, migrate

from lab import vm as lab
from lab.places import QEMU_USER

START_SECONDS = 30.0


@dataclass(kw_only=True)
class Daemon:
    """``command`` stays in the foreground; ``probe`` raises while it does not answer."""

    command: list[str]
    user: str
    environment: dict[str, str]
    log: Path
    probe: Callable[[], object]
    group: str | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    # The daemon ends with the thread that has started it (PR_SET_PDEATHSIG): one that lives as long as this.
    _keeper: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1), init=False)

    def start(self) -> None:
        """Again and again, until it answers: it may have to wait for what a killed one has left to end."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self._process is None or self._process.poll() is not None:
                self._process = self._keeper.submit(self._spawn).result()
            with contextlib.suppress(psycopg2.OperationalError, libvirt.libvirtError):
                self.probe()
                return
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-2000:]
            time.sleep(0.05)

    def _spawn(self) -> subprocess.Popen[bytes]:
        groups = ["--init-groups"] if self.group is None else ["--clear-groups"]
        who = [f"--reuid={self.user}", f"--regid={self.group or self.user}", *groups, "--pdeathsig", "KILL"]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                ["setpriv", *who, "--", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd="/",
            )

    def kill(self) -> None:
        """From any process: a step may have forked."""
        assert self._process
        os.kill(self._process.pid, signal.SIGKILL)
        if self._process.poll() is not None:
            return
        with contextlib.suppress(ChildProcessError):
            self._process.wait()


@contextmanager
def directory_of(user: str, *, group: str | None = None) -> Iterator[Path]:
    """Short enough for sockets, and the user's own."""
    directory = Path(tempfile.mkdtemp(prefix="nb-", dir="/tmp"))
    shutil.chown(directory, user, group)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def own_postgresql() -> Iterator[tuple[Daemon, Database]]:
    """With durable commits, as an operator's: what was committed outlives a SIGKILL of the server."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    with directory_of("postgres") as directory:
        as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"]
        initdb = [str(binaries / "initdb"), "-D", f"{directory}/data", "-U", "postgres", "-A", "trust", "--no-sync"]
        subprocess.run([*as_postgres, *initdb], check=True, capture_output=True, cwd="/", env={"LC_ALL": "C.UTF-8"})
        # fsync is for power cuts.
        options = ["-k", str(directory), "-c", "listen_addresses=", "-c", "fsync=off"]
        dsn = f"postgresql://postgres@{quote(str(directory), safe='')}/postgres"
        daemon = Daemon(
            command=[str(binaries / "postgres"), "-D", f"{directory}/data", *options],
            user="postgres",
            environment={"LC_ALL": "C.UTF-8"},
            log=directory / "log",
            probe=lambda: psycopg2.connect(dsn).close(),
        )
        daemon.start()
        try:
            database = Database(parameters={"dsn": dsn})
            migrate(database)
            yield daemon, database
        finally:
            daemon.kill()


@dataclass(frozen=True, kw_only=True)
class OwnLibvirt:
    """``qemu:///session`` of QEMU's user: all that it keeps is in a directory of its own."""

    daemon: Daemon
    uri: str
    logs: Path
    pid_files: Path

    def connect(self) -> Any:
        return lab.connect(uri=self.uri)


@contextmanager
def own_libvirt() -> Iterator[OwnLibvirt]:
    user, group = QEMU_USER, "kvm"
    with directory_of(user, group=group) as directory:
        for name in ("run", "home", "home/.config", "home/.config/libvirt"):
            (directory / name).mkdir()
            shutil.chown(directory / name, user, group)
        (directory / "home/.config/libvirt/qemu.conf").write_text('stdio_handler = "file"\n')  # no virtlogd
        uri = f"qemu+unix:///session?socket={directory}/run/libvirt/libvirt-sock"
        daemon = Daemon(
            command=["libvirtd", "--pid-file", f"{directory}/pid"],
            user=user,
            group=group,
            environment={
                "PATH": os.environ["PATH"],
                "HOME": f"{directory}/home",
                "XDG_RUNTIME_DIR": f"{directory}/run",
                "LC_ALL": "C.UTF-8",
            },
            log=directory / "log",
            probe=lambda: lab.connect(uri=uri).close(),
        )
        pid_files = directory / "run/libvirt/qemu/run"
        daemon.start()
        try:
            logs = directory / "home/.cache/libvirt/qemu/log"
            yield OwnLibvirt(daemon=daemon, uri=uri, logs=logs, pid_files=pid_files)
        finally:
            daemon.kill()
            left = [int(file.read_text()) for file in pid_files.glob("i-*.pid")]  # by a test that failed
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
