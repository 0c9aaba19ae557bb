"""Do something in a child process that can be left behind.

Who waits for a dead NAS (a hard NFS mount whose server is gone) waits inside the kernel, where neither a timeout nor
SIGKILL reaches. A thread is no help: a process that has one waiting thread cannot end either, and whoever waits for
its end (Airflow's supervisor, in a slot of its executor) waits with it. A child that is killed while it waits ends as
soon as the NAS answers, and does nothing more than the one system call it is in; nobody has to wait for that. A
thread would go on, and publish a backup that was given up.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Generic, NoReturn, Self, TypeVar, cast

T = TypeVar("T")

_KILLED_SECONDS = 1.0  # after SIGKILL: longer than this takes only who waits inside the kernel
_POLL_SECONDS = 0.2
_DEFAULT_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_left_behind: set[int] = set()


class HelperKilled(Exception):
    """The child was killed before it could say what came out."""


class GivenUp(Exception):
    """The caller did not want to wait any longer; the child was killed."""


def run(call: Callable[[], T], *, give_up: Callable[[], bool]) -> T:
    """What ``call`` returns or raises, done in a child. Raises GivenUp soon after ``give_up`` says so, HelperKilled."""
    with Apart(call) as apart:
        while not apart.answered(within=_POLL_SECONDS):
            if give_up():
                raise GivenUp
        return apart.result()


class Apart(Generic[T]):
    """Context manager: the child starts at once, and leaving the block kills it. Never waits for it for long.

    ``call`` shall do nothing but use files and tools: what else it changes is not seen here, and the parent's
    connections are not the child's to use. What it returns or raises is pickled.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._received = b""

    def __enter__(self) -> Self:
        _reap()
        parent = os.getpid()
        self._pipe, writing_end = os.pipe()
        try:
            self._pid = os.fork()
            if self._pid == 0:
                _be_child(self._call, pipe=writing_end, parent=parent)
        except OSError:
            os.close(self._pipe)
            raise
        finally:
            os.close(writing_end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._pipe)
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)  # one that has not answered must not do anything more
        _left_behind.add(self._pid)
        deadline = time.monotonic() + _KILLED_SECONDS
        while self._pid in _left_behind and time.monotonic() < deadline:
            _reap()
            time.sleep(0.001)

    def answered(self, *, within: float) -> bool:
        """Whether the child has come to its end; waits for that, for so many seconds at most."""
        deadline = time.monotonic() + within
        while select.select([self._pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            part = os.read(self._pipe, 1 << 16)
            if not part:
                return True
            self._received += part
        return False

    def result(self) -> T:
        """Once it has answered: what the call returned or raised. Raises HelperKilled."""
        if not self._received:
            raise HelperKilled
        succeeded, value = pickle.loads(self._received)  # noqa: S301 - our own child wrote it
        if not succeeded:
            raise value
        return cast(T, value)


def _be_child(call: Callable[[], object], *, pipe: int, parent: int) -> NoReturn:
    """The life of the child: nothing of the parent's is touched, and the end comes without any clean-up."""
    try:
        gc.disable()  # a finaliser could speak on a connection that is the parent's
        _keep_only(pipe)
        for number in _DEFAULT_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        _end_with(parent)
        content = _outcome(call)
        while content:
            content = content[os.write(pipe, content) :]
    finally:
        os._exit(0)


def _keep_only(pipe: int) -> None:
    """Whoever waits for the parent's end waits for its sockets and pipes to be closed: they must not live on here."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.closerange(3, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))


def _end_with(parent: int) -> None:
    """Killed with the parent, as one process would be: an orphan must not write while the parent's retry does."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _outcome(call: Callable[[], object]) -> bytes:
    try:
        return pickle.dumps((True, call()))
    except Exception as error:
        try:
            return pickle.dumps((False, error))
        except Exception:  # an error that cannot be sent is told in words
            return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))


def _reap() -> None:
    for pid in list(_left_behind):
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                _left_behind.discard(pid)
        except ChildProcessError:
            _left_behind.discard(pid)
