"""Checksums that the guest has written of its own files, compared with the files in the backup."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

from nasbackup.errors import FileNotInBackup
from nasbackup.restore.extract import printable
from nasbackup.restore.filesystems import FileSystems

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_LARGEST = 16 << 20  # bytes of the list
_TOLD = 10


def compare(files: FileSystems, *, path: str, check: Callable[[], None] = lambda: None) -> tuple[int, list[str]]:
    """How many files are as the list says, and sentences about those that are not.

    ``path``: a file as ``sha256sum`` writes it, in whichever file system has it; what it names is taken from its own
    directory. Raises FileNotInBackup when no file system has it, or it is no such list. ``check`` is called between
    files.
    """
    for chosen in [one for one in files.all() if one.has_files]:
        files.mount(chosen)
        try:
            listed = files.read(path, largest=_LARGEST)
        except FileNotInBackup:
            continue
        good, bad = 0, []
        for line in filter(None, listed.decode("utf-8", errors="surrogateescape").splitlines()):
            matched = _LINE.fullmatch(line)
            if matched is None:
                raise FileNotInBackup(
                    path=path, where=chosen.name, backup=files.backup, problem="it is no list as sha256sum writes it"
                )
            check()
            expected, name = matched.groups()
            try:
                found = files.sha256(posixpath.join(posixpath.dirname("/" + path.lstrip("/")), name))
            except FileNotInBackup as error:
                found = f"none ({error.problem})"
            if found == expected:
                good += 1
            else:
                bad.append(f"{printable(name)}: {found}, not {expected}")
        more = [f"and {len(bad) - _TOLD} more"] if len(bad) > _TOLD else []
        return good, [*bad[:_TOLD], *more]
    raise FileNotInBackup(path=path, where="every file system", backup=files.backup, problem="it is in none of them")
