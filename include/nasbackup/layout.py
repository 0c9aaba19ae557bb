"""Names on the NAS: pure strings, the public format of a repository (CloudStack's NAS layout).

::

    <repository root>/
      .nasbackup-repository.json                    the marker: this is the repository, not an empty mount point
      <instance-name>/
        RESTORE.txt                                 how to restore with qemu-img alone
        .partial-<yyyy.MM.dd.HH.mm.ss>/             a backup that is being made (or was left behind)
        <yyyy.MM.dd.HH.mm.ss>/                      a backup: complete, fsynced
          domain.xml  manifest.json                     and nvram.fd, tpm.tar of a VM that has them
          root.<volume>.qcow2  datadisk.<volume>.qcow2

An external id is ``<instance-name>/<yyyy.MM.dd.HH.mm.ss>`` (UTC).
"""

from __future__ import annotations

import hashlib
import os.path
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from nasbackup.model import Volume

MARKER = ".nasbackup-repository.json"
MANIFEST = "manifest.json"
DOMAIN_XML = "domain.xml"
RESTORE_TXT = "RESTORE.txt"
PARTIAL_PREFIX = ".partial-"

_TIME = "%Y.%m.%d.%H.%M.%S"
_LONGEST = 120  # bytes: room for prefix, suffix and attempt within the 255 that file systems allow


def safe_component(text: str) -> str:
    """One path component that says ``text`` and cannot be anything else: no ``/``, no control or leading dot.

    Harmless text is kept as it is (letters of every script included); anything else is percent-encoded, and
    what is too long for a file name is cut and told apart by a hash.
    """
    safe = "".join(_safe_character(character, first=index == 0) for index, character in enumerate(text)) or "%"
    if len(safe.encode()) > _LONGEST:
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
        safe = safe.encode()[: _LONGEST - 17].decode(errors="ignore") + "-" + digest
    return safe


def external_id(*, vm: str, when: datetime) -> str:
    return f"{safe_component(vm)}/{when.astimezone(UTC).strftime(_TIME)}"


def instance_of(external_id: str) -> str:
    """The VM's directory: named as the VM was when the backup was made."""
    return external_id.split("/")[0]


def checkpoint_name(*, when: datetime) -> str:
    return f"backup-{int(when.timestamp())}"


def partial_directory(external_id: str) -> str:
    """Where the backup is made, relative to the repository root: beside its final place, so that the relative
    references between layers hold before and after the rename."""
    instance, directory = external_id.split("/")
    return f"{instance}/{PARTIAL_PREFIX}{directory}"


def external_id_of_partial(directory: str) -> str:
    """The backup that a partial directory (relative to the root) belongs to."""
    instance, name = directory.split("/")
    return f"{instance}/{name.removeprefix(PARTIAL_PREFIX)}"


def is_partial(name: str) -> bool:
    return name.startswith(PARTIAL_PREFIX) and is_backup_directory(name.removeprefix(PARTIAL_PREFIX))


def is_backup_directory(name: str) -> bool:
    return re.fullmatch(r"\d{4}(\.\d{2}){5}", name, re.ASCII) is not None


def attempt_file(*, file: str, attempt: str) -> str:
    """Where one attempt writes one volume, inside the partial directory."""
    return f"{file}.attempt-{attempt}"


def volume_names(volumes: Sequence[Volume]) -> dict[str, str]:
    """A readable name per source, unique within the VM and the same from backup to backup.

    It is the image's file name without its ending; where two volumes would share it, a hash of the source
    tells them apart.
    """
    stems = {volume.source: safe_component(os.path.basename(volume.source).split(".")[0]) for volume in volumes}
    taken = list(stems.values())
    names = {}
    for source, stem in stems.items():
        digest = hashlib.sha256(source.encode(errors="surrogatepass")).hexdigest()
        longer = (f"{stem}-{digest[:length]}" for length in (8, 64) if f"{stem}-{digest[:length]}" not in taken)
        names[source] = stem if taken.count(stem) == 1 else next(longer)
    return names


def volume_file(*, name: str, is_root: bool) -> str:
    return f"{'root' if is_root else 'datadisk'}.{name}.qcow2"


def _safe_character(character: str, *, first: bool) -> str:
    if character == "%" or character == "/" or not character.isprintable() or (first and character in ".-~"):
        return (
            quote(character, safe="", errors="surrogatepass")
            .replace("-", "%2D")
            .replace(".", "%2E")
            .replace("~", "%7E")
        )
    return character


APART = "nasbackup://apart"
"""Namespace of the metadata that marks a VM of our own making (a drill's), which nobody has to back up."""
