"""The fleet that Airflow goes by: that of ``fleet.yaml`` as it is, or as it was when it was last valid.

A slip of the pen on a Friday evening must not cost the backups of the weekend, nor the message about it. So whoever
reads a valid ``fleet.yaml`` in Airflow leaves a copy of it in Airflow's home, and while the file is wrong that copy
counts. Each user has copies of its own (components of Airflow may run as several), named by the file's path.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nasbackup.errors import FleetInvalid
from nasbackup.fleet import Fleet, path, read_document
from nasbackup.fleet.document import Document, checked
from nasbackup.fleet.parse import parse

log = logging.getLogger(__name__)

HOME = "AIRFLOW_HOME"
DEFAULT_HOME = "~/airflow"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """``problem``: what is wrong with the file as it is now; empty: nothing. Then ``fleet`` is the one that was written
    at ``written_at``, the last that was valid."""

    fleet: Fleet
    problem: str = ""
    written_at: datetime | None = None


def last_valid() -> Fleet:
    """What scheduled work goes by. Raises FleetInvalid when the file is wrong and no valid one was ever read here."""
    return standing(path()).fleet


def standing(file: Path) -> Standing:
    """The same, with what is wrong. Raises FleetInvalid."""
    try:
        document = read_document(file)
        fleet = parse(document)
    except FleetInvalid as error:
        return _of_copy(file, error)
    _keep(document)
    return Standing(fleet=fleet)


def copy_of(file: Path) -> Path:
    """Where the copy of this file is, if there is one."""
    home = Path(os.environ.get(HOME) or DEFAULT_HOME).expanduser()
    name = hashlib.sha256(os.fsencode(file.absolute())).hexdigest()[:16]
    return home / "nasbackup" / f"fleet-{name}-{os.geteuid()}.yaml"


def _of_copy(file: Path, error: FleetInvalid) -> Standing:
    copy = copy_of(file)
    kept = _read(copy)
    if kept is None:
        raise error
    text, written_at = kept
    try:
        fleet = parse(checked(text, file=copy))
    except FleetInvalid:  # an older release has kept what is not valid to this one
        raise error from None
    log.warning("%s. Until it is right, what was valid before counts.", error)
    return Standing(fleet=fleet, problem=str(error), written_at=datetime.fromtimestamp(written_at, UTC))


def _keep(document: Document) -> None:
    """Failing to is no reason to fail: the file is valid."""
    copy = copy_of(document.file)
    try:
        kept = _read(copy)
        if kept is not None and kept[0] == document.text:
            return
        copy.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=copy.parent, prefix=f".{copy.stem}-")  # 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(document.text)
                file.flush()
                os.fsync(descriptor)
            written_at = document.file.stat().st_mtime
            os.utime(name, (written_at, written_at))
            Path(name).replace(copy)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        log.warning("No copy of %s is kept, so a mistake in it will stop what is scheduled: %s", document.file, error)


def _read(copy: Path) -> tuple[str, float] | None:
    """The copy's text and time. None without one; what another user has put in its place is none."""
    try:
        descriptor = os.open(copy, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, encoding="utf-8") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                log.warning("%s is no file of this user's own, and does not count", copy)
                return None
            return file.read(), found.st_mtime
    except (OSError, UnicodeDecodeError):
        return None
