"""Read what a VM has on its host besides its disks. What cannot be read is told, and is no reason to have no backup."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nasbackup.hypervisor import xml
from nasbackup.machine import MachineState, StateFile, StateKind

TPM_STATES = Path("/var/lib/libvirt/swtpm")
"""libvirt's place for them, a directory per UUID."""

_LARGEST = 64 << 20  # bytes; real ones have a few hundred KiB
_NOT_STATE = frozenset({".lock"})  # held by the emulator while it runs


def read(domain_xml: str, *, uuid: str) -> MachineState:
    """As it is now, in the files of this machine: tasks that run elsewhere, or may not read them, find nothing."""
    files: list[StateFile] = []
    missing: list[str] = []

    def add(kind: StateKind, source: str, content: Callable[[Path], bytes], called: str) -> None:
        try:
            files.append(StateFile(kind=kind, source=source, content=content(Path(source))))
        except (OSError, tarfile.TarError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            missing.append(f"{called} at {source} could not be read ({reason}): the backup does not have them")

    for kind, source in places(domain_xml, uuid=uuid).items():
        if kind is StateKind.NVRAM:
            add(kind, source, _content, "UEFI variables")
        else:
            add(kind, source, _packed, "The TPM's secrets")
    return MachineState(files=tuple(files), missing=tuple(missing))


def places(domain_xml: str, *, uuid: str) -> dict[StateKind, str]:
    """Where this VM has which."""
    found = {}
    nvram = xml.nvram_path(domain_xml)
    if nvram is not None:
        found[StateKind.NVRAM] = nvram
    if xml.has_emulated_tpm(domain_xml):
        found[StateKind.TPM] = str(TPM_STATES / uuid)
    return found


def unpack(content: bytes, *, to: Path) -> None:
    """The TPM's directory from its tar; owners by name, where this machine has them. Raises OSError, TarError."""
    to.mkdir(mode=0o711)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for entry in archive:
            path = to / entry.name
            if not path.resolve().is_relative_to(to.resolve()) or not (entry.isdir() or entry.isfile()):
                raise tarfile.TarError(f"{entry.name!r} has no place in it")
            if entry.isdir():
                path.mkdir(exist_ok=True)
            else:
                path.write_bytes(archive.extractfile(entry).read())  # type: ignore[union-attr]
            path.chmod(entry.mode & 0o777)
            for owner in ({"user": entry.uname}, {"group": entry.gname}):
                with suppress(LookupError, PermissionError):
                    shutil.chown(path, **owner)


def _content(path: Path) -> bytes:
    if path.stat().st_size > _LARGEST:
        raise OSError(0, f"it is larger than {_LARGEST} bytes")
    return path.read_bytes()


def _packed(directory: Path) -> bytes:
    """A tar of the directory, with the names of the owners: their numbers are another host's business."""
    directory.stat()
    if sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) > _LARGEST:
        raise OSError(0, f"it is larger than {_LARGEST} bytes")
    if not any(path.is_file() for path in directory.rglob("*")):
        raise OSError(0, "there is nothing in it")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(directory, arcname=".", filter=lambda entry: None if Path(entry.name).name in _NOT_STATE else entry)
    return buffer.getvalue()
