"""What a VM has on its host besides its disks: UEFI variables and the state of an emulated TPM. Values only.

Without the first a UEFI guest may not find its boot entry, without the second it does not get its disk's key.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum


class StateKind(StrEnum):
    NVRAM = "nvram"
    TPM = "tpm"  # a tar of the directory


FILES = {StateKind.NVRAM: "nvram.fd", StateKind.TPM: "tpm.tar"}
"""Names inside a backup's directory."""


@dataclass(frozen=True, kw_only=True)
class StateFile:
    """``source``: the file or directory on the host that it was."""

    kind: StateKind
    source: str
    content: bytes


@dataclass(frozen=True, kw_only=True)
class MachineState:
    """``missing``: sentences about what the VM has and the backup will not."""

    files: tuple[StateFile, ...] = ()
    missing: tuple[str, ...] = ()


NO_STATE = MachineState()


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """One as a manifest describes it. ``digest``: ``sha256:<hex>`` of the file."""

    kind: StateKind
    file: str
    source: str
    size: int
    digest: str


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()
