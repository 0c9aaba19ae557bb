"""``python -m tests.integration.crash.runner``: does what it is told in forks of itself, which may die of it.

One process per sweep that has imported everything already: the many victims start in milliseconds. Speaks pickles
on stdin and stdout; the answer to an ``Order`` is an ``Outcome``.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, kw_only=True)
class Order:
    """``function(**arguments)``, killed after its ``kill_at``-th effect; ``log`` and ``answer`` are files to write."""

    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    kill_at: int
    log: Path
    answer: Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    killed: bool
    effects: list[str]
    error: str


class Runner:
    """The parent's side."""

    def __init__(self, *, work: Path) -> None:
        self._work = work
        self.temporary = work / "tmp"

    def __enter__(self) -> Self:
        self.temporary.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.crash.runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "TMPDIR": str(self.temporary)},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, function: Callable[..., Any], arguments: Mapping[str, Any], *, kill_at: int) -> Outcome:
        order = Order(
            function=function,
            arguments=arguments,
            kill_at=kill_at,
            log=self._work / "effects.log",
            answer=self._work / "answer",
        )
        for path in (order.log, order.answer):
            path.unlink(missing_ok=True)
        assert self._process.stdin
        assert self._process.stdout
        pickle.dump(order, self._process.stdin)
        self._process.stdin.flush()
        status = pickle.load(self._process.stdout)
        assert os.WIFSIGNALED(status) or order.answer.exists(), f"the runner ended with {status}"
        return Outcome(
            killed=os.WIFSIGNALED(status),
            effects=order.log.read_text().splitlines() if order.log.exists() else [],
            error=order.answer.read_text() if order.answer.exists() else "",
        )


def main() -> None:
    tempfile.gettempdir()  # found out by trying, once, by effects that are not the product's
    while True:
        try:
            order: Order = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        victim = os.fork()
        if victim == 0:
            _be_victim(order)
        _, status = os.waitpid(victim, 0)
        pickle.dump(status, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _be_victim(order: Order) -> NoReturn:
    from tests.integration.crash.effects import Effects, install

    answer = order.answer.open("w")  # before everything is counted
    try:
        install(Effects(log=order.log, kill_at=order.kill_at, victim=os.getpid()))
        order.function(**order.arguments)
    except BaseException:
        answer.write(traceback.format_exc())
    finally:
        answer.close()
        os._exit(0)


if __name__ == "__main__":
    # The parent's pickles name this module, not __main__.
    from tests.integration.crash import effects, runner  # noqa: F401 - imported once, for all victims

    runner.main()
