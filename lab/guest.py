"""Builds the lab's guest: the distribution's smallest kernel, and an initramfs of busybox, QEMU's guest agent and
``guest_init.sh``.

Kernel and agent come out of the distribution's packages, which are unpacked and never installed. Under software
emulation the result boots in seconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).parents[1] / "var/guest"
INIT = Path(__file__).with_name("guest_init.sh")
BUSYBOX = Path("/bin/busybox")

# Debian's and Ubuntu's packages that depend on the current small kernel.
META_PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual")
REQUIRED_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "ext4")
# For the file system's checksums where they are a module, and for the ACPI power button.
OPTIONAL_MODULES = ("crc32c_generic", "button", "evdev")
AGENT_PACKAGE = "qemu-guest-agent"
TOOLS = ("apt-get", "apt-cache", "dpkg-deb", "ldd", "cpio", "zstd", BUSYBOX.name)

_CODE = Path(__file__).read_bytes()  # as it runs here: a build must not be taken for that of a newer file


class GuestBuildError(Exception):
    """The guest cannot be built on this machine; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Guest:
    kernel: Path
    initrd: Path
    version: str  # of the kernel, e.g. 6.1.0-1-cloud-amd64
    digest: str  # names this build: kernel version and recipe


def build(*, cache: Path = CACHE) -> Guest:
    """The guest, built if the cache doesn't hold one of this recipe. A newer kernel is no reason to build again."""
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "lock"):
        return _cached(cache) or _build(cache)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _recipe() -> str:
    return hashlib.sha256(INIT.read_bytes() + _CODE).hexdigest()


def _cached(cache: Path) -> Guest | None:
    try:
        stamp = json.loads((cache / "stamp.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    guest = _guest(cache, version=stamp["kernel"], recipe=stamp["recipe"])
    usable = stamp["recipe"] == _recipe() and guest.kernel.exists() and guest.initrd.exists()
    return guest if usable else None


def _guest(cache: Path, *, version: str, recipe: str) -> Guest:
    digest = hashlib.sha256(f"{version} {recipe}".encode()).hexdigest()[:16]
    return Guest(kernel=cache / "vmlinuz", initrd=cache / "initrd.img", version=version, digest=digest)


def _build(cache: Path) -> Guest:
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        raise GuestBuildError(f"to build the guest, first install: {', '.join(missing)}")
    packages = kernel_packages()
    stamp = cache / "stamp.json"
    with tempfile.TemporaryDirectory(prefix=".build-", dir=cache) as work:
        tree = Path(work) / "tree"
        for package in packages:
            download_and_unpack(package, into=tree)
        vmlinuz = next(tree.glob("boot/vmlinuz-*"))
        version = vmlinuz.name.removeprefix("vmlinuz-")
        agent = Path(work) / "agent"
        download_and_unpack(AGENT_PACKAGE, into=agent)
        initrd = Path(work) / "initrd.img"
        initrd.write_bytes(_initramfs(Path(work) / "root", modules=_modules(tree), programs=_agent_files(agent)))
        new_stamp = Path(work) / "stamp.json"
        new_stamp.write_text(json.dumps({"kernel": version, "recipe": _recipe()}))
        # Without its stamp the pair counts for nothing, so it may be mixed for a moment.
        stamp.unlink(missing_ok=True)
        vmlinuz.replace(cache / "vmlinuz")
        initrd.replace(cache / "initrd.img")
        new_stamp.replace(stamp)
    return _guest(cache, version=version, recipe=_recipe())


def kernel_packages() -> list[str]:
    """The packages with the kernel and its modules: one on Debian, two on Ubuntu."""
    for meta in META_PACKAGES:
        image = _dependency(meta, pattern=r"linux-image-(?:unsigned-)?\d[\w.+-]*")
        if image:
            modules = _dependency(image, pattern=r"linux-modules-\d[\w.+-]*")
            return [image, modules] if modules else [image]
    raise GuestBuildError(
        f"apt knows none of {', '.join(META_PACKAGES)}. "
        "The lab needs Debian or Ubuntu on amd64; if this is one, run apt-get update."
    )


def _dependency(package: str, *, pattern: str) -> str | None:
    command = ["apt-cache", "show", "--no-all-versions", package]
    shown = subprocess.run(command, check=False, capture_output=True, text=True)
    depends = re.search(r"^Depends: (.*)$", shown.stdout, re.MULTILINE)
    found = re.search(rf"(?<![\w-]){pattern}", depends[1]) if depends else None
    return found[0] if found else None


def download_and_unpack(package: str, *, into: Path) -> None:
    # apt-get downloads as its own user, who can rarely write where we can: a directory in /tmp that it owns.
    with tempfile.TemporaryDirectory() as download:
        if os.geteuid() == 0:
            shutil.chown(download, user="_apt")
        run(["apt-get", "download", "--quiet=2", package], cwd=Path(download))
        run(["dpkg-deb", "-x", str(next(Path(download).glob("*.deb"))), str(into)])


def run(command: Sequence[str], *, cwd: Path | None = None, given: bytes = b"") -> bytes:
    result = subprocess.run(command, check=False, cwd=cwd, input=given, capture_output=True)
    if result.returncode:
        raise GuestBuildError(f"{' '.join(command)} failed: {result.stderr.decode(errors='replace').strip()}")
    return result.stdout


def _modules(tree: Path) -> dict[str, bytes]:
    """The needed modules and all they depend on, in the order to load them. What is built in needs no module.

    The packages carry no modules.dep (it is made on installation), so the dependencies are read from the modules.
    """
    builtin_list = next(tree.rglob("modules.builtin"))
    files = {_module_name(path): path for path in builtin_list.parent.rglob("*.ko*")}
    builtin = {_module_name(Path(line)) for line in builtin_list.read_text().split()}
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or name in builtin:
            return
        if name not in files:
            raise GuestBuildError(f"the kernel packages have no module {name}")
        content = _decompressed(files[name])
        depends = re.search(rb"\0depends=([\w,-]*)\0", content)
        for dependency in filter(None, depends[1].decode().split(",") if depends else []):
            add(dependency.replace("-", "_"))
        ordered[name] = content

    for name in (*(name for name in OPTIONAL_MODULES if name in files), *REQUIRED_MODULES):
        add(name)
    return ordered


def _module_name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def _decompressed(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return run(["zstd", "--decompress", "--stdout", "--quiet", str(path)])
    return path.read_bytes()


def _agent_files(tree: Path) -> dict[str, Path]:
    """The guest agent and the libraries it needs: path in the guest -> file here.

    The libraries are this machine's: QEMU is built from the same source as its agent and depends on the same ones.
    """
    agent = next(tree.glob("usr/*bin/qemu-ga"))
    needed = run(["ldd", str(agent)]).decode()
    if missing := re.findall(r"(\S+) => not found", needed):
        raise GuestBuildError(f"QEMU's guest agent needs libraries that this machine lacks: {', '.join(missing)}")
    # `name => /path (0x…)`, and the loader as `/path (0x…)`: all to be where they are here.
    return {"bin/qemu-ga": agent} | {path[1:]: Path(path) for path in re.findall(r"(/\S+) \(0x", needed)}


def _initramfs(root: Path, *, modules: dict[str, bytes], programs: dict[str, Path]) -> bytes:
    for directory in ("bin", "modules"):
        (root / directory).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name, file in programs.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / name)  # follows links: a library's name is the one it is asked for by
    shutil.copy(INIT, root / "init")
    (root / "init").chmod(0o755)
    for number, (name, content) in enumerate(modules.items()):
        (root / f"modules/{number:02}-{name}.ko").write_bytes(content)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    # Not compressed: under emulation the guest would spend a second on unpacking, and copying costs next to nothing.
    return run(["cpio", "--create", "--format=newc", "--owner=0:0", "--quiet"], cwd=root, given=names.encode())
