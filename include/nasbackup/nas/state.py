"""The VM's state beside its disks, on the NAS: written with the point in time, read back before it is published."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nasbackup import machine
from nasbackup.errors import ManifestInvalid, VerifyFailed
from nasbackup.layout import DOMAIN_XML, MANIFEST
from nasbackup.machine import MachineState, SavedState, StateKind
from nasbackup.nas import manifest
from nasbackup.nas.durable import write_durably

log = logging.getLogger(__name__)

LIST = "state.json"
"""In a partial directory: what was written, until the manifest says it."""


def write(partial: Path, *, state: MachineState) -> None:
    """In place of what an earlier try wrote; nothing at all for a VM that has none."""
    for name in (LIST, *machine.FILES.values()):
        (partial / name).unlink(missing_ok=True)
    if not state.files and not state.missing:
        return
    saved = []
    for file in state.files:
        name = machine.FILES[file.kind]
        write_durably(partial / name, file.content)
        with suppress(OSError):  # not every NAS has modes
            (partial / name).chmod(0o600)
        saved.append(
            SavedState(
                kind=file.kind,
                file=name,
                source=file.source,
                size=len(file.content),
                digest=machine.digest(file.content),
            )
        )
    document = {"state": [asdict(entry) for entry in saved], "state_missing": list(state.missing)}
    write_durably(partial / LIST, (json.dumps(document) + "\n").encode())


def written(partial: Path) -> tuple[list[SavedState], list[str]]:
    """What ``write`` has put there, read back. Raises VerifyFailed."""
    try:
        document = json.loads((partial / LIST).read_bytes())
    except FileNotFoundError:
        return [], []
    saved = parse(document)
    for entry in saved:
        load(partial, entry=entry)
    return saved, list(document["state_missing"])


def parse(document: dict[str, Any]) -> list[SavedState]:
    """From a manifest, too: older ones have none."""
    return [SavedState(**{**entry, "kind": StateKind(entry["kind"])}) for entry in document.get("state", ())]


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a published backup says of its VM. ``missing``: what the VM had and the backup has not, as sentences."""

    domain_xml: str
    saved: tuple[SavedState, ...]
    missing: tuple[str, ...]

    @property
    def nvram(self) -> SavedState | None:
        return next((entry for entry in self.saved if entry.kind is StateKind.NVRAM), None)


def describe(directory: Path) -> Described:
    """Raises ManifestInvalid, NasIo's causes (OSError)."""
    document = manifest.read(directory)
    try:
        domain_xml = (directory / DOMAIN_XML).read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise ManifestInvalid(path=directory / DOMAIN_XML, problem=f"cannot be read ({error})") from error
    return Described(
        domain_xml=domain_xml, saved=tuple(parse(document)), missing=tuple(document.get("state_missing", ()))
    )


def load(directory: Path, *, entry: SavedState) -> bytes:
    """Raises VerifyFailed unless it is what was written."""
    path = directory / entry.file
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise VerifyFailed(file=path, problem=f"the file is missing, although {MANIFEST} names it") from None
    if machine.digest(content) != entry.digest:
        raise VerifyFailed(file=path, problem="its content is not what was saved")
    return content


def names(saved: Sequence[SavedState]) -> frozenset[str]:
    return frozenset(entry.file for entry in saved)
