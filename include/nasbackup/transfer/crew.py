"""Blocking steps run in threads while the calling thread keeps reporting, and may call everything off."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from nasbackup import apart
from nasbackup.transfer.nbd_connection import Interrupt

T = TypeVar("T")

# A thread stuck inside the kernel (a hard NFS mount whose server is gone) can't be stopped by anybody. It is left
# behind after this long, so that the caller can at least report the failure.
_JOIN_SECONDS = 30.0


class Crew:
    """Runs steps; between them and during them ``report`` is called, in the calling thread, about every ``every`` s.

    What ``report`` raises (a lost lease, a task's timeout) stops all steps, like the first error of any step does.
    """

    def __init__(self, *, report: Callable[[], None], every: float) -> None:
        self.interrupt = Interrupt()
        self._report = report
        self._every = every
        self._due = time.monotonic() + every

    def run(self, *steps: Callable[[], None]) -> None:
        """Run the steps side by side and wait for all. Raises the first error; none of their threads is left."""
        results: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        threads = [threading.Thread(target=_guarded, args=(step, results), daemon=True) for step in steps]
        try:
            for thread in threads:
                thread.start()
            running = len(threads)
            while running:
                try:
                    error = results.get(timeout=max(0.0, self._due - time.monotonic()))
                except queue.Empty:
                    self._due = time.monotonic() + self._every
                    self._report()
                    continue
                if error is not None:
                    raise error
                running -= 1
        except BaseException:
            self.interrupt.trigger()
            raise
        finally:
            deadline = time.monotonic() + _JOIN_SECONDS
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, deadline - time.monotonic()))

    def run_apart(self, call: Callable[[], T]) -> T:
        """The same for one call that uses the NAS's files in this process's place: see ``nasbackup.apart``."""
        results: list[T] = []
        self.run(lambda: results.append(apart.run(call, give_up=lambda: self.interrupt.triggered)))
        return results[0]


def _guarded(step: Callable[[], None], results: queue.SimpleQueue[BaseException | None]) -> None:
    try:
        step()
    except BaseException as error:  # carried to the calling thread, which raises it
        results.put(error)
    else:
        results.put(None)
