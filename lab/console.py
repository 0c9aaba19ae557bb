"""Talks to the guest (``guest_init.sh``) over its serial console.

Whatever else appears on a console (echo, kernel messages, answers to an earlier command that was given up), an answer
is known by the token of its command.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import time
import tty
from typing import Literal, NamedTuple

PING_INTERVAL = 0.3
_WORD = re.compile(r"[\w.+-]+", re.ASCII)


class ConsoleError(Exception):
    """No answer from the guest. The message ends with the last output of the console."""


class GuestCommandError(Exception):
    """The guest answered that the command failed, and why."""


class Answer(NamedTuple):
    text: str
    items: list[str]


class Console:
    """Host side of one serial console. Only one process can read it: a second one would take away half the answers."""

    def __init__(self, *, pty: str) -> None:
        self._fd = os.open(pty, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._fd)
        self._output = b""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def wait_ready(self, *, timeout: float = 60) -> None:
        """Returns once the guest obeys commands. Pings, because the line READY may have passed before we listened."""
        token = secrets.token_hex(4)
        deadline = time.monotonic() + timeout
        while self._answer(token, deadline=min(deadline, time.monotonic() + PING_INTERVAL)) is None:
            if time.monotonic() > deadline:
                raise self._error(f"the guest is not ready after {timeout:g} s")
            self._send(token, "ping")

    def command(self, *words: str, timeout: float = 60) -> Answer:
        """Has the guest do one command and returns its answer."""
        if not all(_WORD.fullmatch(word) for word in words):
            raise ValueError(f"not fit for the guest's command line: {words!r}")
        token = secrets.token_hex(4)
        self._send(token, *words)
        answer = self._answer(token, deadline=time.monotonic() + timeout)
        if answer is None:
            raise self._error(f"no answer to {' '.join(words)!r} within {timeout:g} s")
        return answer

    def write(self, target: str, name: str, *, kib: int, timeout: float = 120) -> str:
        """Writes a file of random data, safely on its disk on return; returns its SHA-256."""
        return self.command("write", target, name, str(kib), timeout=timeout).text

    def sums(self, target: str, *, timeout: float = 120) -> dict[str, str]:
        """Name → SHA-256 of the files that :meth:`write` left on the disk."""
        pairs = (item.split() for item in self.command("sums", target, timeout=timeout).items)
        return {name: digest for digest, name in pairs}

    def remove(self, target: str, name: str) -> None:
        self.command("rm", target, name)

    def sync(self) -> None:
        self.command("sync")

    def mount(self, target: str) -> None:
        """Mounts a disk that was plugged in while the guest ran, and starts writing to it."""
        self.command("mount", target)

    def unmount(self, target: str) -> None:
        self.command("umount", target)

    def agent(self, what: Literal["start", "stop", "hang", "slow", "resume"]) -> None:
        """Has the guest start or kill its guest agent; stop it in its tracks (SIGSTOP) or make its freezes take three
        seconds longer, until it may resume.
        """
        self.command("agent", what)

    def is_frozen(self, target: str) -> bool:
        """Whether a write to the file system has to wait. Asking takes half a second if it has."""
        return self.command("frozen", target).text == "yes"

    def tick(self, target: str) -> int:
        """The counter of the guest's writer, which it writes to all disks all the time."""
        return int(self.command("tick", target).text)

    def power_off(self) -> None:
        """Has the guest unmount its disks and power off; returns before it has."""
        self.command("poweroff")

    def _send(self, token: str, *words: str) -> None:
        data = f"#{token} {' '.join(words)}\n".encode()
        try:
            os.write(self._fd, data)
        except OSError as error:
            raise self._error(f"the console is gone ({error.strerror})") from error

    def _answer(self, token: str, *, deadline: float) -> Answer | None:
        """The answer, or None if it isn't complete by the deadline."""
        end = re.compile(rf"#{token} (ok|err)(?: ([^\r\n]*))?\r?\n")
        while True:
            output = self._output.decode(errors="replace")
            if found := end.search(output):
                break
            if not self._read(timeout=deadline - time.monotonic()):
                return None
        text = (found[2] or "").strip()
        if found[1] == "err":
            raise GuestCommandError(text)
        items = re.findall(rf"#{token} = ([^\r\n]*)", output[: found.start()])
        self._output = output[found.end() :].encode()
        return Answer(text, [item.strip() for item in items])

    def _read(self, *, timeout: float) -> bool:
        readable, _, _ = select.select([self._fd], [], [], max(timeout, 0))
        if not readable:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError as error:
            raise self._error(f"the console is gone ({error.strerror})") from error
        if not data:  # how the pty of a domain that has ended reads
            raise self._error("the console is gone")
        self._output += data
        return True

    def _error(self, problem: str) -> ConsoleError:
        last = self._output.decode(errors="replace")[-2000:].replace("\r\n", "\n").strip()
        return ConsoleError(f"{problem}; last output of the console:\n{last or '(nothing)'}")
