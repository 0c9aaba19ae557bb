"""VMs that run on an overlay: begun, spoken to, and freed of what lies below it."""

from __future__ import annotations

import re
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import libvirt

from nasbackup.errors import HypervisorError
from nasbackup.hypervisor import xml
from nasbackup.hypervisor.connection import Hypervisor

_KEPT = 1 << 18  # bytes of console output
_AGENT_SECONDS = 3
_GONE_SECONDS = 30.0
_LISTEN_SECONDS = 5.0


class Console:
    """What the guest says on its first serial console, from its first word on."""

    def __init__(self) -> None:
        self._said = b""
        self._lock = threading.Lock()

    @property
    def text(self) -> str:
        with self._lock:
            return self._said.decode(errors="replace")

    def last(self, *, characters: int = 600) -> str:
        """Its last words, as far as they can be read by people."""
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[^\S\n]*\r", "", self.text)
        shown = "".join(character for character in plain if character.isprintable() or character == "\n")
        return "\n".join(line.rstrip() for line in shown.splitlines() if line.strip())[-characters:]

    def listen(self, stream: libvirt.virStream) -> None:
        with suppress(libvirt.libvirtError):  # it has ended
            while data := stream.recv(4096):
                with self._lock:
                    self._said = (self._said + data)[-_KEPT:]


@contextmanager
def _heard(hypervisor: Hypervisor, *, uuid: str) -> Iterator[Console]:
    """The console of a running VM, over a connection of its own: on a shared one, calls wait behind the stream."""
    console = Console()
    connection = libvirt.open(hypervisor.host.uri)
    listener = None
    try:
        stream = connection.newStream(0)
        with suppress(libvirt.libvirtError):  # a VM without any console is still one
            connection.lookupByUUIDString(uuid).openConsole(None, stream, 0)
            listener = threading.Thread(target=console.listen, args=(stream,), daemon=True)
            listener.start()
        yield console
    finally:
        if listener is not None:
            listener.join(_LISTEN_SECONDS)  # it ends with the VM
        if listener is None or not listener.is_alive():
            connection.close()


@contextmanager
def throwaway(hypervisor: Hypervisor, *, definition: str, name: str, keep: bool) -> Iterator[tuple[object, Console]]:
    """A VM for the length of the block; it yields the domain and its console. Raises HypervisorError.

    It is never defined, only started, and bound to this connection: when we are killed, libvirt ends it.
    ``keep``: let it run on, after the block and after us.
    """
    flags = libvirt.VIR_DOMAIN_START_PAUSED | (0 if keep else libvirt.VIR_DOMAIN_START_AUTODESTROY)
    with hypervisor.doing(f"starting VM {name}"):
        domain = hypervisor.connection.createXML(definition, flags)
    ended = False
    try:
        with hypervisor.doing(f"starting VM {name}"), _heard(hypervisor, uuid=domain.UUIDString()) as console:
            domain.resume()
            try:
                yield domain, console
                ended = True
            finally:
                if not (keep and ended):
                    _end(domain)
    except BaseException:
        _end(domain)
        raise


def _end(domain: libvirt.virDomain) -> None:
    with suppress(libvirt.libvirtError):  # it may have gone by itself
        domain.destroy()


def agent_answers(domain: libvirt.virDomain) -> bool:
    """Whether the guest agent has answered a harmless question."""
    with suppress(libvirt.libvirtError):
        channels = ET.fromstring(domain.XMLDesc()).iterfind("./devices/channel/target[@state='connected']")
        if not any(channel.get("name") == "org.qemu.guest_agent.0" for channel in channels):
            return False
        try:
            domain.agentSetResponseTimeout(_AGENT_SECONDS)
            domain.getTime()
        except libvirt.libvirtError as error:
            # One that refuses the question answers, too.
            return "disabled" in str(error) or "not been found" in str(error)
        return True
    return False


def is_running(domain: libvirt.virDomain) -> bool:
    try:
        return bool(domain.isActive())
    except libvirt.libvirtError:
        return False


def active_names(hypervisor: Hypervisor) -> frozenset[str]:
    with hypervisor.doing("listing VMs"):
        return frozenset(domain.name() for domain in hypervisor.connection.listAllDomains())


# --- independence of what lies below ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Pull:
    """``independent``: nothing lies below the disk any more. ``copying``: it is on its way there."""

    target: str
    file: str
    independent: bool
    copying: bool
    done: int
    total: int


def pulls(hypervisor: Hypervisor, domain: libvirt.virDomain) -> list[Pull]:
    """How far each disk of the running VM is. Raises HypervisorError."""
    with hypervisor.doing(f"looking at the disks of VM {domain.name()}"):
        found = []
        # Jobs first: one that ends in between is then seen as copying, and never as one that ended without success.
        targets = [disk.target for disk in xml.parse_disks(domain.XMLDesc()) if disk.device == "disk"]
        jobs = {target: domain.blockJobInfo(target, 0) or {} for target in targets}
        for disk in ET.fromstring(domain.XMLDesc()).iterfind("./devices/disk[@device='disk']"):
            target, source = disk.find("target"), disk.find("source")
            if target is None or source is None or source.get("file") is None:
                continue
            name = target.get("dev", "")
            job = jobs.get(name, {})
            below = disk.find("backingStore/source")
            found.append(
                Pull(
                    target=name,
                    file=source.get("file", ""),
                    independent=below is None and not job,
                    copying=bool(job),
                    done=int(job.get("cur", 0)),
                    total=int(job.get("end", 0)),
                )
            )
        return found


def begin_next_pull(hypervisor: Hypervisor, domain: libvirt.virDomain) -> str | None:
    """Copy what lies below the next disk into its own image, while the VM runs; its target, None when nothing is begun.

    One disk at a time: QEMU 7.2 was seen to crash (and the guest with it) when two of these end in the same moment.
    """
    found = pulls(hypervisor, domain)
    waiting = [pull.target for pull in found if not pull.independent]
    if not waiting or any(pull.copying for pull in found):
        return None
    with hypervisor.doing(f"beginning to copy {waiting[0]} of VM {domain.name()}"):
        domain.blockPull(waiting[0], 0, 0)
    return waiting[0]


def wait_gone(hypervisor: Hypervisor, *, name: str) -> None:
    """Until no VM has this name. Raises HypervisorError."""
    deadline = time.monotonic() + _GONE_SECONDS
    while name in active_names(hypervisor):
        if time.monotonic() > deadline:
            raise HypervisorError(
                action=f"Ending VM {name}", host=hypervisor.host.name, reason="it is still there", code=None
            )
        time.sleep(0.05)
