"""Freeze the guest's file systems for the one moment in which the point in time is taken, and thaw at once."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import libvirt

from nasbackup.errors import GuestNotFrozen
from nasbackup.hypervisor.connection import Hypervisor
from nasbackup.model import Consistency, Quiesce

log = logging.getLogger(__name__)


@contextlib.contextmanager
def frozen(hypervisor: Hypervisor, *, domain: libvirt.virDomain, quiesce: Quiesce) -> Iterator[Consistency]:
    """Keep the guest frozen (if asked and possible) for the block; yields the consistency that results.

    Raises GuestNotFrozen with ``quiesce=fail``. Thaws in every outcome: an unanswered freeze may still have frozen.
    """
    if quiesce is Quiesce.OFF:
        yield Consistency.CRASH
        return
    try:
        try:
            domain.fsFreeze()
        except libvirt.libvirtError as error:
            if quiesce is Quiesce.FAIL:
                raise GuestNotFrozen(vm=domain.name(), reason=error.get_error_message()) from error
            log.warning("%s cannot freeze its file systems, going on: %s", domain.name(), error.get_error_message())
            consistency = Consistency.CRASH
        else:
            consistency = Consistency.FILESYSTEM
        yield consistency
    finally:
        _thaw(domain)


def _thaw(domain: libvirt.virDomain) -> None:
    try:
        domain.fsThaw()
    except libvirt.libvirtError as error:
        # Without an agent nothing was frozen either; with one, the guest must be looked at.
        level = logging.DEBUG if error.get_error_code() == libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED else logging.WARNING
        log.log(level, "thaw of %s: %s", domain.name(), error.get_error_message())
