"""A connection to one host's libvirt, and the one place where libvirt's errors become ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import libvirt

from nasbackup.errors import HostUnreachable, HypervisorError, UnknownVm
from nasbackup.model import Host

MINIMUM_LIBVIRT = 7_006_000
"""7.6: the first libvirt whose incremental backup can be relied on (libvirt's news; FACTS of the design)."""


class Hypervisor:
    """One host while connected. The modules of this package take it as their first argument."""

    def __init__(self, *, host: Host, connection: libvirt.virConnect) -> None:
        self.host = host
        self.connection = connection

    def __repr__(self) -> str:
        return f"<Hypervisor {self.host.name} {self.host.uri}>"

    def domain(self, *, name: str) -> libvirt.virDomain:
        """The domain of this name. Raises UnknownVm with the names that exist."""
        try:
            return self.connection.lookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise self.error("looking up a VM", error) from error
        with self.doing("listing VMs"):
            known = sorted(domain.name() for domain in self.connection.listAllDomains())
        shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
        raise UnknownVm(vm=name, host=self.host.name, known=shown or "none")

    def domain_by_uuid(self, uuid: str) -> libvirt.virDomain | None:
        """The domain with this UUID, or None when the host does not have it any more."""
        try:
            return self.connection.lookupByUUIDString(uuid)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise self.error("looking up a VM", error) from error

    def defined_uuids(self) -> frozenset[str]:
        """Of all its domains, running or not."""
        with self.doing("listing VMs"):
            return frozenset(domain.UUIDString() for domain in self.connection.listAllDomains())

    @contextlib.contextmanager
    def doing(self, action: str) -> Iterator[None]:
        """Translate libvirt's errors inside the block; ``action`` is a gerund ("beginning the backup job")."""
        try:
            yield
        except libvirt.libvirtError as error:
            raise self.error(action, error) from error

    def error(self, action: str, error: libvirt.libvirtError) -> HypervisorError:
        return HypervisorError(
            action=action[:1].upper() + action[1:],
            host=self.host.name,
            reason=error.get_error_message() or str(error),
            code=error.get_error_code(),
        )


@contextlib.contextmanager
def connect(host: Host) -> Iterator[Hypervisor]:
    """Connect to the host's libvirt for the length of the block. Raises HostUnreachable."""
    # libvirt's default handler prints every error to stderr, also those that are an answer ("no such domain").
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        connection = libvirt.open(host.uri)
    except libvirt.libvirtError as error:
        raise HostUnreachable(host=host.name, uri=host.uri, reason=error.get_error_message() or str(error)) from error
    try:
        yield Hypervisor(host=host, connection=connection)
    finally:
        connection.close()
