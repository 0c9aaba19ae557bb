"""Read a finished layer back from the NAS, and check the image file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nasbackup.errors import ReadFailed, ToolFailed, VerifyFailed
from nasbackup.tools import node, run_tool, shortened
from nasbackup.transfer.nbd_source import ALLOCATION_DEPTH, Export
from nasbackup.transfer.pump import LayerSummary, Progress, Pump
from nasbackup.transfer.qcow2_target import layer_node
from nasbackup.transfer.qemu_nbd import QemuNbd

_CHECK_UNREADABLE, _CHECK_CORRUPT, _CHECK_LEAKS = 1, 2, 3  # exit codes of `qemu-img check`


@dataclass(frozen=True)
class ImageInfo:
    """``virtual_size`` in bytes; ``backing`` as it stands in the file, unresolved; None: no backing file."""

    format: str
    virtual_size: int
    backing: str | None


def read_layer(
    *,
    file: Path,
    incremental: bool,
    bandwidth: int | None = None,
    connections: int = 4,
    on_progress: Callable[[Progress], None] | None = None,
    progress_every: float = 2.0,
) -> LayerSummary:
    """Read what this one layer holds and compute its digest; its parents aren't opened.

    ``incremental`` False: whole chunks, where absent and zero are the same. True: the clusters that are present.
    The digest equals that of ``copy_layer`` if and only if the file holds what was copied. Progress and bandwidth as
    there.
    Raises ReadFailed, ToolFailed (the file can't be opened), and what ``on_progress`` raises.
    """
    virtual_size = image_info(file).virtual_size
    with QemuNbd(layer_node(file), clients=connections + 1, read_only=True, allocation_depth=incremental) as server:
        export = Export(server.uri, str(file), ALLOCATION_DEPTH if incremental else None)
        pump = Pump(
            export=export,
            virtual_size=virtual_size,
            on_progress=on_progress,
            progress_every=progress_every,
            bandwidth=bandwidth,
        )
        pump.crew.run_apart(partial(drop_page_cache, file))
        pump.crew.run(lambda: server.wait_ready(pump.crew.interrupt))
        pump.run(connections=connections)
        pump.finish(server.end)
        occupied = pump.crew.run_apart(partial(_occupied, file))
    return pump.summary(bytes_written=occupied)


def _occupied(file: Path) -> int:
    return file.stat().st_blocks * 512


def drop_page_cache(file: Path) -> None:
    """Make the next read of the file go to the NAS instead of this machine's memory. Raises ReadFailed.

    It proves that the NAS has received the data and gives it back. It doesn't prove that the NAS reads it from
    its disks (it has a memory of its own), and pages that another process has mapped may stay cached here.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)  # dirty pages can't be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ReadFailed(source=str(file), offset=0, reason=error.strerror) from error


def check_image(file: Path) -> None:
    """`qemu-img check` of this file alone. Raises VerifyFailed for corruptions, and also for leaked clusters:
    harmless as they are, a file that was written once and closed properly has none.
    """
    codes = (0, _CHECK_UNREADABLE, _CHECK_CORRUPT, _CHECK_LEAKS)
    done = run_tool("qemu-img", "check", "--output=json", "--", layer_node(file), accept=codes)
    if done.returncode == _CHECK_UNREADABLE:
        raise VerifyFailed(file=str(file), problem=f"it cannot be checked: {shortened(done.stderr)}")
    report = json.loads(done.stdout)
    counts = {key: report.get(key, 0) for key in ("check-errors", "corruptions", "leaks")}
    if done.returncode or any(counts.values()):
        found = ", ".join(f"{count} {key}" for key, count in counts.items())
        raise VerifyFailed(file=str(file), problem=f"qemu-img check finds {found}")


def image_info(file: Path) -> ImageInfo:
    """What the qcow2 header says; backing files aren't opened. Raises ToolFailed."""
    done = run_tool("qemu-img", "info", "--output=json", "--", node(file, "qcow2"))
    try:
        report = json.loads(done.stdout)
        return ImageInfo(report["format"], report["virtual-size"], report.get("backing-filename"))
    except (ValueError, KeyError) as error:
        raise ToolFailed(tool="qemu-img info", exit_code=0, stderr=f"unexpected output: {error!r}") from error
