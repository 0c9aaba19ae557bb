"""What proves a restore: byte identity with the point in time, a clean file system, the guest's own checksums."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from pathlib import Path

_MOUNTED_JOURNAL = 1  # exit code of e2fsck: errors corrected; replaying the journal of a live file system is one


class ProofError(Exception):
    """The restored data are not what they should be."""


def freeze(*, nbd_uri: str, to: Path) -> None:
    """A raw copy of what an open backup job serves: the point in time itself."""
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", nbd_uri, str(to))


def assert_identical(*, image: Path, image_format: str, frozen: Path) -> None:
    run("qemu-img", "compare", "-f", image_format, "-F", "raw", str(image), str(frozen))


def assert_file_system(*, image: Path, expected: dict[str, str]) -> None:
    """``image``: raw, ext4. Clean after its journal was replayed, as a guest does at its next start; and every file
    of ``expected`` (name -> SHA-256, under keep/) is there. Raises ProofError. The image is not changed.
    """
    with tempfile.TemporaryDirectory(dir=image.parent) as directory:
        work = Path(directory) / "filesystem.raw"
        run("cp", "--sparse=always", "--", str(image), str(work))
        # The point in time was taken from a mounted file system: first its journal is replayed, then it must be clean.
        run("e2fsck", "-p", str(work), accept=(0, _MOUNTED_JOURNAL))
        run("e2fsck", "-fn", str(work))
        found = {name: _sha256(work, name, directory=Path(directory)) for name in _names(work)}
    wrong = {name: digest for name, digest in expected.items() if found.get(name) != digest}
    if wrong:
        raise ProofError(f"{image.name}: of {len(expected)} files, these are missing or differ: {', '.join(wrong)}")


def _names(image: Path) -> list[str]:
    listing = run("debugfs", "-R", "ls -p /keep", str(image))
    entries = (line.split("/") for line in listing.splitlines() if line.startswith("/"))
    return [entry[5] for entry in entries if re.fullmatch(r"[\w+-][\w.+-]*", entry[5])]


def _sha256(image: Path, name: str, *, directory: Path) -> str:
    copy = directory / "file"
    run("debugfs", "-R", f"dump /keep/{name} {copy}", str(image))
    return hashlib.sha256(copy.read_bytes()).hexdigest()


def run(*command: str, accept: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in accept:
        raise ProofError(f"{' '.join(command)}: {done.stdout.strip()} {done.stderr.strip()}")
    return done.stdout
