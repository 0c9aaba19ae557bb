"""Counts what a client asks PostgreSQL: no driver says how often it waits for an answer, the wire does."""

from __future__ import annotations

import contextlib
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

SOCKET = ".s.PGSQL.5432"


@contextmanager
def listening_in(server_directory: str) -> Iterator[tuple[str, list[str]]]:
    """A directory with a socket that leads to the server in the other, and the queries that went through so far."""
    asked: list[str] = []
    with tempfile.TemporaryDirectory(prefix="nb-") as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/{SOCKET}")
        listener.listen()

        def accept() -> None:
            with contextlib.suppress(OSError):  # shut down
                while True:
                    client, _ = listener.accept()
                    server = socket.socket(socket.AF_UNIX)
                    server.connect(str(Path(server_directory) / SOCKET))
                    threading.Thread(target=_questions, args=(client, server, asked), daemon=True).start()
                    threading.Thread(target=_answers, args=(client, server), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield quote(directory, safe=""), asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def _questions(client: socket.socket, server: socket.socket, asked: list[str]) -> None:
    """A message is a letter, except for the first one, a length that counts itself, and a body."""
    kind = b""
    with client.makefile("rb") as stream, contextlib.suppress(OSError, struct.error):
        while True:
            length = stream.read(4)
            body = stream.read(struct.unpack("!i", length)[0] - 4)
            if kind == b"Q":
                asked.append(" ".join(body.rstrip(b"\0").decode().split()))
            server.sendall(kind + length + body)
            kind = stream.read(1)
    server.close()


def _answers(client: socket.socket, server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := server.recv(65536):
            client.sendall(data)
    client.close()
