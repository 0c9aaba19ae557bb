"""What stands of fleet.yaml (``last_valid``), for those who ask often: read again only when the file is another one."""

from __future__ import annotations

import functools
from pathlib import Path

from nasbackup.fleet import path
from nasbackup.fleet.last_valid import Standing, copy_of, standing

Stamp = tuple[int, int, int] | None


def current() -> Standing:
    """As ``standing``. Raises FleetInvalid, each time anew."""
    file = path()
    return _load(file, _stamp(file), _stamp(copy_of(file)))


def _stamp(file: Path) -> Stamp:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_ctime_ns, stat.st_size, stat.st_ino


@functools.lru_cache(maxsize=4)
def _load(file: Path, _file: Stamp, _copy: Stamp) -> Standing:
    return standing(file)
