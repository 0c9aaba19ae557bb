"""From a partial directory to a backup: what is visible on the NAS is complete, fsynced and described (invariant 3).

Each function may be called again after a crash at any point of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nasbackup import layout
from nasbackup.errors import BackupNotOpen, NasIo
from nasbackup.machine import NO_STATE, MachineState
from nasbackup.model import Repository
from nasbackup.nas import state
from nasbackup.nas.durable import make_directory, sync_directory, sync_file, write_durably
from nasbackup.nas.repository import doing, open_root


def prepare(
    repository: Repository, *, root: Path, external_id: str, domain_xml: str, machine: MachineState = NO_STATE
) -> Path:
    """Make the partial directory with ``domain.xml`` and the machine's state in it; returns its path.

    Raises BackupNotOpen when the backup is published: whoever asks is late, an orphan whose retry has gone on, and
    takes nothing away.
    """
    partial = root / layout.partial_directory(external_id)
    content = domain_xml.encode()
    with doing(repository, f"creating {partial.name}", needs=len(content)):
        if (root / external_id).exists():
            raise BackupNotOpen(backup=external_id, status="published")
        make_directory(partial, root=root)
        write_durably(partial / layout.DOMAIN_XML, content)
        state.write(partial, state=machine)
    return partial


def remove_attempts(repository: Repository, *, partial: Path, file: str) -> None:
    """Make room for a new attempt of one volume.

    An orphan may still hold an earlier one open: it goes on writing to a file that has no name any more.
    """
    prefix = layout.attempt_file(file=file, attempt="")
    with doing(repository, f"removing earlier attempts of {file}"):
        for path in partial.iterdir():
            if path.name.startswith(prefix):
                path.unlink(missing_ok=True)


def publish(
    repository: Repository,
    *,
    root: Path,
    external_id: str,
    attempts: Mapping[str, str],
    manifest: bytes,
    others: Collection[str] = (),
) -> Path:
    """Give the named attempts their names, write the manifest last, and rename the directory into place.

    ``attempts`` maps each volume's file name to the attempt that the catalog names, ``others`` are names of files that
    the manifest describes too: whatever else is there is removed. When the directory is in place already (an earlier
    try got that far) nothing is changed.
    Returns the backup's directory. Raises NasIo, RepositoryFull.
    """
    partial, final = root / layout.partial_directory(external_id), root / external_id
    with doing(repository, f"publishing {external_id}", needs=len(manifest)):
        if final.is_dir() and not partial.exists():
            sync_directory(final.parent)  # the earlier try may have been killed right after the rename
            return final
        for file, attempt in attempts.items():
            source = partial / layout.attempt_file(file=file, attempt=attempt)
            if source.exists():
                source.replace(partial / file)
            sync_file(partial / file)
        wanted = {*attempts, *others, layout.DOMAIN_XML, layout.MANIFEST}
        for stray in partial.iterdir():
            if stray.name not in wanted:
                stray.unlink()
        write_durably(partial / layout.MANIFEST, manifest)
        if final.exists():
            raise NasIo(action="Publishing", repository=repository.name, reason=f"{final} exists already")
        _write_instructions(partial)
        partial.rename(final)
        sync_directory(final.parent)
    return final


def discard(repository: Repository, *, root: Path, external_id: str) -> None:
    """Remove what a backup that was never recorded left on the NAS; no file of any other backup is touched.

    Raises NasIo, before anything is touched, where a link is in the place of the directory.
    """
    with doing(repository, f"removing the remains of {external_id}"):
        directories = (root / layout.partial_directory(external_id), root / external_id)
        for directory in directories:
            if directory.is_symlink():
                raise NasIo(
                    action=f"Removing {external_id}",
                    repository=repository.name,
                    reason=f"{directory} is a symbolic link. Put the directory itself in its place, or remove the link",
                )
        for directory in directories:
            _remove_tree(directory)
        parent = root / os.path.dirname(external_id)
        if parent.is_dir() and all(path.name == layout.RESTORE_TXT for path in parent.iterdir()):
            (parent / layout.RESTORE_TXT).unlink(missing_ok=True)
            with suppress(OSError):  # a backup of another VM of this name may begin just now
                parent.rmdir()


@dataclass(frozen=True, kw_only=True)
class Removed:
    """What was there and is gone: paths relative to the repository's root, and the bytes that they occupied."""

    files: tuple[str, ...]
    bytes_freed: int


def remove(repository: Repository, *, identity: str, external_id: str) -> Removed:
    """Remove a backup that nothing needs any more. What an earlier try has removed already is not counted again.

    ``identity``: of the repository, looked at before and after. An empty mount point has no files either, and that is
    no proof that they are gone. Raises NotARepository, NasIo.
    """
    root = open_root(repository, identity=identity)
    with doing(repository, f"removing {external_id}"):
        files, freed = [], 0
        for directory in (root / external_id, root / layout.partial_directory(external_id)):
            if directory.is_dir():
                files += sorted(str(path.relative_to(root)) for path in directory.iterdir())
                freed += size_on_disk(directory)
    discard(repository, root=root, external_id=external_id)
    open_root(repository, identity=identity)
    return Removed(files=tuple(files), bytes_freed=freed)


def list_files(repository: Repository, *, root: Path, machine: str) -> list[str]:
    """Files of the backups in the directory of this name, relative to the root; others may come and go meanwhile."""
    found: list[str] = []
    with doing(repository, f"listing {machine}"), suppress(FileNotFoundError):
        for directory in (root / machine).iterdir():
            with suppress(FileNotFoundError, NotADirectoryError):
                found += [str(path.relative_to(root)) for path in directory.iterdir()]
    return sorted(found)


def size_on_disk(directory: Path) -> int:
    """Bytes that the files of a backup occupy (allocated blocks, not apparent sizes)."""
    return sum(entry.stat().st_blocks * 512 for entry in directory.iterdir())


INSTRUCTIONS = b"""\
Each directory here, named by its time (UTC), is a restore point of this VM: plain qcow2 files that refer to each other.
To restore one without anything but qemu-img, in this directory, for each of its *.qcow2 files:

    qemu-img convert -f qcow2 -O qcow2 "TIME/FILE" /path/to/restored.qcow2

TIME/manifest.json says which file was which disk ("source"). TIME/domain.xml is the VM's libvirt definition:

    cp "TIME/domain.xml" /root/vm.xml     # and edit the copy: its disks are the restored files now; where the VM is
                                          # still defined, it gets another <name> and <nvram>, and no <uuid> and <mac>
    virsh define /root/vm.xml

Before the first start, where these files are there: nvram.fd are the UEFI variables, tpm.tar is what the TPM holds;
without them the VM may not boot, or ask for a recovery key (BitLocker). NVRAM is the path in <nvram> of /root/vm.xml,
UUID is what `virsh domuuid` says of the VM:

    cp "TIME/nvram.fd" NVRAM
    mkdir -p /var/lib/libvirt/swtpm/UUID && tar -xpf "TIME/tpm.tar" -C /var/lib/libvirt/swtpm/UUID

Change nothing here: a later restore point may be built on any of these files.
"""


def _write_instructions(partial: Path) -> None:
    """Beside the VM's backups; written within the partial directory, which goes with all that is left in it."""
    place = partial.parent / layout.RESTORE_TXT
    with suppress(FileNotFoundError):
        if place.read_bytes() == INSTRUCTIONS:
            return
    written = partial / layout.RESTORE_TXT
    write_durably(written, INSTRUCTIONS)
    written.replace(place)  # the caller syncs the directory, after the backup's own rename


def _remove_tree(directory: Path) -> None:
    if not directory.is_dir():
        return
    # The manifest goes first: from that moment on nobody takes the rest for a backup (pgBackRest's habit).
    (directory / layout.MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(directory)
    sync_directory(directory.parent)
