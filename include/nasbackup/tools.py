"""Run QEMU's tools without a shell, and name files to them so that no name can be mistaken for anything else."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nasbackup.errors import ToolFailed

NO_SPACE = "No space left on device"  # strerror(ENOSPC) under LC_ALL=C
QUOTA = "Disk quota exceeded"
_STDERR_KEPT = 2000  # characters; the end is where the reason stands


def tool_environment() -> dict[str, str]:
    """Messages in the C locale: some are matched, and all are read by people who search for them."""
    return {**os.environ, "LC_ALL": "C"}


def bound_to_parent(command: list[str], *, signal: str = "KILL") -> list[str]:
    """The command, killed by the kernel when the *thread* that starts it ends, also by SIGKILL of the process.

    ``signal``: another one for a process that has to clean up after itself.

    The thread rule is Linux's (PR_SET_PDEATHSIG): start such a process in the thread that also waits for its end.
    """
    # Killed before setpriv said so, nobody would be told: whoever is an orphan by then does not begin. The shell reads
    # this constant alone; the command is handed on word by word.
    begin = '[ "$PPID" = "$0" ] && exec "$@"'
    return ["setpriv", "--pdeathsig", signal, "--", "sh", "-c", begin, str(os.getpid()), *command]


def run_tool(
    *command: str, accept: Collection[int] = (0,), outlives_us: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run to the end. Raises ToolFailed for an exit code that isn't in ``accept``.

    ``outlives_us``: it comes to its end also when we are killed meanwhile, instead of being killed too.
    """
    done = subprocess.run(
        list(command) if outlives_us else bound_to_parent(list(command)),
        start_new_session=outlives_us,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=tool_environment(),
        check=False,
    )
    if done.returncode not in accept:
        raise ToolFailed(tool=command[0], exit_code=done.returncode, stderr=shortened(done.stderr))
    return done


def shortened(stderr: str) -> str:
    return stderr.strip()[-_STDERR_KEPT:]


def node(path: Path, driver: str, *, locking: bool = True, above: str | None = None, **options: Any) -> str:
    """An image as QEMU's tools take it: a ``json:`` name that states driver and file.

    Nothing is probed (a guest decides what its disk's first bytes look like), and ``:``, ``,``, ``-`` or a line
    break in a file name are just characters. ``locking`` False: take none of QEMU's image locks. ``above``: a filter
    driver over the image. Raises ValueError for a name that isn't UTF-8: QEMU's JSON is.
    """
    name = str(path.absolute())
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"file name is not UTF-8: {path!r}") from None
    file = {"driver": "host_device" if path.is_block_device() else "file", "filename": name}
    if not locking:
        file["locking"] = "off"
    image = {"driver": driver, "file": file, **options}
    return "json:" + json.dumps({"driver": above, "file": image} if above else image)
