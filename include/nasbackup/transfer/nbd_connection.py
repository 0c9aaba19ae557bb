"""One NBD connection that another thread can interrupt, whatever it is waiting for."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import nbd

NbdError = nbd.Error

# A server with fewer slots than we have connections leaves the surplus waiting without a word.
_CONNECT_SECONDS = 30.0
_POLL_MS = 200


class Interrupt:
    """Ends every NBD call in flight, and every later one, in all threads.

    libnbd's blocking calls hold the handle's lock, so nothing can be asked of the handle itself; shutting its
    socket down makes the waiting call fail at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._triggered = threading.Event()

    @property
    def triggered(self) -> bool:
        return self._triggered.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until it is triggered: then True."""
        return self._triggered.wait(seconds)

    def trigger(self) -> None:
        with self._lock:
            self._triggered.set()
            for waiting in self._sockets:
                _shut_down(waiting)

    def watch(self, connected: socket.socket) -> None:
        with self._lock:
            self._sockets.add(connected)
            if self.triggered:
                _shut_down(connected)

    def forget(self, connected: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(connected)


class NbdConnection:
    """A connected libnbd handle. Raises ``NbdError`` (or OSError) when the connection can't be made."""

    def __init__(self, uri: str, *, interrupt: Interrupt, contexts: Sequence[str] = ()) -> None:
        self.uri = uri
        self._interrupt = interrupt
        self.handle: Any = nbd.NBD()
        self.handle.set_pread_initialize(False)  # every byte that is used was received; saves a memset per read
        for context in contexts:
            self.handle.add_meta_context(context)
        self._connect()
        # A duplicate of our own: the handle's descriptor may be closed, and its number reused, at any moment.
        self._socket = socket.socket(fileno=os.dup(self.handle.aio_get_fd()))
        interrupt.watch(self._socket)

    def _connect(self) -> None:
        deadline = time.monotonic() + _CONNECT_SECONDS
        self.handle.aio_connect_uri(self.uri)
        while self.handle.aio_is_connecting():
            self.handle.poll(_POLL_MS)
            if self._interrupt.triggered or time.monotonic() > deadline:
                raise TimeoutError(
                    f"the server at {self.uri} accepts no further connection within {_CONNECT_SECONDS:.0f} s"
                )
        if not self.handle.aio_is_ready():
            raise ConnectionError(f"the server at {self.uri} ended the connection")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._interrupt.triggered:
                self.handle.shutdown()
        except nbd.Error:
            pass  # the server left first: all answers that mattered were already received
        finally:
            self.close()

    def close(self) -> None:
        """End the connection. Also when something (a traceback) still holds the handle, which frees it only later."""
        self._interrupt.forget(self._socket)
        _shut_down(self._socket)
        self._socket.close()
        self.handle = None


def _shut_down(connected: socket.socket) -> None:
    with suppress(OSError):  # the other side was faster
        connected.shutdown(socket.SHUT_RDWR)
