"""Count what a step does to the outside worlds, and die right after the one with a given number.

Wrapped is the boundary itself (psycopg2's transactions, libvirt's classes, ``os``, ``open``, ``subprocess``, libnbd),
never the product's own functions: an effect that is added to a step is counted without a word about it here.
"""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import inspect
import io
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import libvirt
import nbd
from nasbackup.catalog import Cursor, Database

FILE_EFFECTS = ("link", "mkdir", "remove", "rename", "replace", "rmdir", "symlink", "truncate", "unlink")
NBD_EFFECTS = ("flush", "pwrite", "trim", "zero")
LIBVIRT_CLASSES = ("virConnect", "virDomain", "virDomainCheckpoint", "virDomainSnapshot")
# Everything else that libvirt offers is taken for a change: rather one gap too many than one too few.
LIBVIRT_READS = re.compile(
    r"_.*|c_pointer|close|connect|domain|ID|info|name|state|OSType|UUID.*"
    r"|.*([gG]et|[lL]ist|[lL]ookup|XMLDesc|Info|Stats|Current|is[A-Z]|has[A-Z]|Register|Deregister).*"
)
TOOLS_THAT_READ = re.compile(r"\bqemu-img (check|compare|info|map|measure)\b")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_open = os.open


@dataclass(frozen=True, kw_only=True)
class Effects:
    """``log`` gets a line per effect, also from processes that the victim forks; effect ``kill_at`` is the last."""

    log: Path
    kill_at: int
    victim: int

    def happened(self, what: str) -> None:
        descriptor = _open(self.log, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # one effect after the other, in all threads and processes
            number = os.pread(descriptor, 1 << 20, 0).count(b"\n") + 1
            os.write(descriptor, f"{what} in {_place()}\n".encode())
            if number >= self.kill_at:
                self.die()  # still with the lock: nobody else does anything more
        finally:
            os.close(descriptor)

    def die(self) -> NoReturn:
        os.kill(self.victim, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)  # a forked helper goes with it
        raise AssertionError("nobody survives SIGKILL")


def install(effects: Effects) -> None:
    """In a process that was made to be killed; there is no way back."""
    _wrap_catalog(effects)
    for name in LIBVIRT_CLASSES:
        kind = getattr(libvirt, name)
        for method, function in inspect.getmembers(kind, inspect.isfunction):
            if not LIBVIRT_READS.fullmatch(method):
                setattr(kind, method, _counted(effects, function, f"libvirt {name}.{method}"))
    for name in FILE_EFFECTS:
        setattr(os, name, _counted(effects, getattr(os, name), f"os.{name}", shown=True))
    os.fsync = _counted_fsync(effects)  # type: ignore[assignment]
    seen: set[str] = set()
    for name in NBD_EFFECTS:
        setattr(nbd.NBD, name, _counted(effects, getattr(nbd.NBD, name), f"NBD {name}", once=seen))
    _wrap_open(effects)
    _wrap_processes(effects)


def _counted(
    effects: Effects, function: Callable[..., Any], what: str, *, shown: bool = False, once: set[str] | None = None
) -> Callable[..., Any]:
    """``once``: the first call stands for all, whose number depends on what the guest happens to have written."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        # The name is read before: afterwards it may be another's.
        argument = f"({', '.join(_name(word) for word in args[:2])})" if shown else ""
        result = function(*args, **kwargs)
        if once is None or what not in once:
            if once is not None:
                once.add(what)
            effects.happened(what + argument)
        return result

    return wrapper


def _counted_fsync(effects: Effects) -> Callable[[int], None]:
    """Only of files, whose buffers were flushed before: a SIGKILL takes nothing from what the kernel has already."""
    fsync = os.fsync

    def wrapper(descriptor: int) -> None:
        fsync(descriptor)
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            effects.happened(f"os.fsync({_name(descriptor)})")

    return wrapper


def _wrap_catalog(effects: Effects) -> None:
    transaction = Database.transaction

    @contextlib.contextmanager
    def wrapper(self: Database) -> Iterator[Cursor]:
        with transaction(self) as cursor:
            yield cursor
            cursor.execute("SELECT pg_current_xact_id_if_assigned() IS NOT NULL AS wrote")
            row = cursor.fetchone()
        if row is not None and row["wrote"]:
            effects.happened("commit")

    autocommit = Database.autocommit

    @contextlib.contextmanager
    def counted_autocommit(self: Database) -> Iterator[Cursor]:
        with autocommit(self) as cursor:
            yield cursor
        effects.happened("commit")

    Database.transaction = wrapper  # type: ignore[method-assign]
    Database.autocommit = counted_autocommit  # type: ignore[method-assign]


def _wrap_open(effects: Effects) -> None:
    open_file, open_descriptor = io.open, os.open

    def counted_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        opened = open_file(file, mode, *args, **kwargs)
        if not isinstance(file, int) and set(mode) & set("wax+"):
            effects.happened(f"open({_name(file)}, {mode})")
        return opened

    def counted_os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        descriptor = open_descriptor(path, flags, *args, **kwargs)
        if flags & WRITING and path != os.devnull:
            effects.happened(f"os.open({_name(path)})")
        return descriptor

    builtins.open = io.open = counted_open
    os.open = counted_os_open


def _wrap_processes(effects: Effects) -> None:
    """A process is two effects: it was started, it has ended. (None when it only reads.)"""
    start, wait = subprocess.Popen.__init__, subprocess.Popen.wait

    @wraps(start)
    def counted_start(self: Any, args: Any, *rest: Any, **kwargs: Any) -> None:
        start(self, args, *rest, **kwargs)
        self.effect = " ".join(word for word in map(str, args) if re.fullmatch(r"[a-z][\w-]*", word))
        if not TOOLS_THAT_READ.search(self.effect):
            effects.happened(f"started {self.effect}")

    @wraps(wait)
    def counted_wait(self: Any, timeout: float | None = None) -> int:
        ended_before = self.returncode is not None
        code = wait(self, timeout)
        if not ended_before and not TOOLS_THAT_READ.search(self.effect):
            effects.happened(f"ended {self.effect}")
        return code

    subprocess.Popen.__init__ = counted_start  # type: ignore[method-assign]
    subprocess.Popen.wait = counted_wait  # type: ignore[method-assign]


def _name(word: object) -> str:
    if isinstance(word, int):
        with contextlib.suppress(OSError):
            return f"<{Path(f'/proc/self/fd/{word}').readlink().name}>"
    return Path(os.fsdecode(word)).name if isinstance(word, str | bytes | os.PathLike) else str(word)


def _place() -> str:
    """The product's function that did it."""
    frame = sys._getframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("nasbackup."):
            return f"{module.removeprefix('nasbackup.')}.{frame.f_code.co_name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"
