"""Turn a chain of layers into one standalone image."""

from __future__ import annotations

import json
import re
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal

from nasbackup.errors import ToolFailed
from nasbackup.tools import bound_to_parent, node, run_tool, shortened, tool_environment
from nasbackup.transfer.pump import Progress
from nasbackup.transfer.qcow2_target import claim, sync_file, tool_error
from nasbackup.transfer.readback import image_info

_COROUTINES = 16  # requests in flight, the most that qemu-img allows
_PERCENT = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")
_KILLED_SECONDS = 10.0


def flatten(
    *,
    chain_top: Path,
    target: Path,
    output_format: Literal["qcow2", "raw"],
    on_progress: Callable[[Progress], None] | None = None,
    progress_every: float = 2.0,
) -> None:
    """Write what the guest would see in ``chain_top`` into ``target``, without backing file, and fsync it.

    Progress is in bytes of the virtual disk, estimated from QEMU's percentage. Raises TargetExists (nothing was
    touched), TargetFull, ToolFailed (among others: a layer of the chain is missing), WriteFailed, and what
    ``on_progress`` raises. After a failure the unfinished target is left to the caller.
    """
    virtual_size = image_info(chain_top).virtual_size
    progress = _Progress(total=virtual_size, on_progress=on_progress)
    claim(target)
    command = ["qemu-img", "convert", "-p", "-W", "-m", str(_COROUTINES), "-O", output_format]
    command += ["--", node(chain_top, "qcow2"), str(target.absolute())]
    exit_code, text = _run(command, progress=progress, every=progress_every)
    if exit_code != 0:
        failed = ToolFailed(tool="qemu-img convert", exit_code=exit_code, stderr=text)
        raise tool_error(failed, target, needs=virtual_size - progress.done) from None
    sync_file(target)
    progress.report(100)


def is_same_disk(
    *,
    chain_top: Path,
    image: Path,
    image_format: Literal["qcow2", "raw"],
    on_progress: Callable[[Progress], None] | None = None,
    progress_every: float = 2.0,
) -> bool:
    """Whether the image holds what the guest would see in ``chain_top``, byte for byte. Raises ToolFailed."""
    progress = _Progress(total=image_info(chain_top).virtual_size, on_progress=on_progress)
    command = ["qemu-img", "compare", "-p", "--", node(chain_top, "qcow2"), node(image, image_format)]
    exit_code, text = _run(command, progress=progress, every=progress_every)
    if exit_code not in (0, 1):
        raise ToolFailed(tool="qemu-img compare", exit_code=exit_code, stderr=text)
    return exit_code == 0


def measure(chain_top: Path) -> int:
    """Bytes that the standalone image will occupy, at most: only what the chain has allocated. Raises ToolFailed."""
    done = run_tool("qemu-img", "measure", "--output=json", "-O", "qcow2", "--", node(chain_top, "qcow2"))
    return int(json.loads(done.stdout)["required"])


class _Progress:
    def __init__(self, *, total: int, on_progress: Callable[[Progress], None] | None) -> None:
        self._total = total
        self._on_progress = on_progress
        self._started = time.monotonic()
        self.done = 0

    def report(self, percent: float) -> None:
        self.done = int(self._total * percent / 100)
        if self._on_progress:
            self._on_progress(Progress("data", self.done, self._total, time.monotonic() - self._started))


def _run(command: list[str], *, progress: _Progress, every: float) -> tuple[int, str]:
    """Exit code and the end of stderr. When ``progress`` raises, the tool is killed first."""
    with tempfile.TemporaryFile() as stderr:
        # In a file, not a pipe: nobody reads it while the tool runs, so a pipe could fill and block the tool.
        process = subprocess.Popen(
            bound_to_parent(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            bufsize=0,
            env=tool_environment(),
        )
        assert process.stdout
        try:
            _follow(process.stdout, progress.report, every=every)
            exit_code = process.wait()
        except BaseException:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # stuck in the kernel; it dies when the NAS answers again
                process.wait(_KILLED_SECONDS)
            raise
        finally:
            process.stdout.close()
        stderr.seek(0)
        return exit_code, shortened(stderr.read().decode(errors="replace"))


def _follow(stdout: IO[bytes], report: Callable[[float], None], *, every: float) -> None:
    """Read the percentages until the tool closes its output; report about every ``every`` seconds, come what may."""
    percent = 0.0
    due = time.monotonic() + every
    tail = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            if selector.select(max(0.0, due - time.monotonic())):
                output = stdout.read(4096)
                if not output:
                    return
                tail = (tail + output)[-64:]
                if found := _PERCENT.findall(tail):
                    percent = float(found[-1])
            if time.monotonic() >= due:
                due = time.monotonic() + every
                report(percent)
