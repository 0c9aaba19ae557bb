"""The process that freezes a guest and is the one to thaw it: ``python -m nasbackup.hypervisor.freeze_guard``.

A frozen guest cannot write, so the thaw must not depend on whoever wanted the freeze: that one may be killed, or
hang in libvirt. Hence a process of its own with a connection of its own. It freezes, says so on stdout, and thaws as
soon as it hears anything on stdin: a line when the work is done, the end of the pipe when its parent has died. When
it has heard nothing within the limit, it thaws as well. A thaw that fails is tried again, over a new connection.

Before the freeze it leaves a mark in the domain's live metadata, and removes it after the thaw. If even this process
dies (the whole machine it runs on), the mark tells later runs that the freeze was ours: :func:`thaw_left_frozen`.
A freeze without the mark is somebody else's (another backup, an administrator), who relies on it: it stays.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import sys
import time

import libvirt

ASK_SECONDS = 5
"""How long the agent may take to answer what needs no work: a first question, a thaw."""
PATIENCE_SECONDS = 300
"""How long a thaw that fails is tried again. Also after nobody waits for it any more: it costs nothing."""

_PAUSE = 0.5
_MARK_URI = "urn:nasbackup:frozen"
_MARK_KEY = "nasbackup"
_FORBIDDEN = "has been disabled"
"""In the agent's answer to everything but "thaw" while somebody has frozen the guest, and to what the guest's
administrator does not allow. QEMU's words, which are never translated; libvirt has no code of its own for this."""
_NOT_RUNNING = frozenset({libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID})


class Refused(Exception):
    """The guest is not frozen, and certainly not by us."""


class PerhapsFrozen(Exception):
    """The freeze was asked for, and it is not known what came of it."""


def freeze(domain: libvirt.virDomain, *, seconds: int) -> int:
    """Freeze all file systems of the guest; returns how many. Raises Refused, PerhapsFrozen."""
    try:
        if marked(domain):
            _thaw_what_was_left(domain)
        _ask(domain)
        _mark(domain, frozen=True)
    except libvirt.libvirtError as error:
        raise Refused(error.get_error_message()) from error
    try:
        domain.agentSetResponseTimeout(seconds)
        count = int(domain.fsFreeze())
    except libvirt.libvirtError as error:
        reason = error.get_error_message()
        if _FORBIDDEN in reason:
            _forget(domain)
            why = "somebody else has frozen them, and only they may thaw" if "frozen" in reason else reason
            raise Refused(why) from error
        raise PerhapsFrozen(reason) from error
    return count


def _thaw_what_was_left(domain: libvirt.virDomain) -> None:
    try:
        thaw(domain)
    except libvirt.libvirtError as error:
        raise PerhapsFrozen(f"an earlier run may have left it frozen, and {error.get_error_message()}") from error


def thaw(domain: libvirt.virDomain) -> int:
    """Thaw the guest's file systems; returns how many were frozen. One attempt, of bounded time."""
    domain.agentSetResponseTimeout(ASK_SECONDS)
    count = int(domain.fsThaw())
    _forget(domain)
    return count


def keep_thawing(domain: libvirt.virDomain, *, seconds: float) -> int:
    """Thaw, again and again if need be; raises the last libvirtError when it has not worked in this time."""
    deadline = time.monotonic() + seconds
    uri, uuid = domain.connect().getURI(), domain.UUIDString()
    while True:
        try:
            return thaw(domain)
        except libvirt.libvirtError as error:
            if error.get_error_code() in _NOT_RUNNING:
                return 0  # with the guest its freeze has ended
            if time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE)
        with contextlib.suppress(libvirt.libvirtError):  # libvirtd may have been restarted
            domain = libvirt.open(uri).lookupByUUIDString(uuid)


def marked(domain: libvirt.virDomain) -> bool:
    """Whether we froze the guest and have not thawed it since."""
    try:
        domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, _MARK_URI, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_METADATA, *_NOT_RUNNING):
            return False
        raise
    return True


def _mark(domain: libvirt.virDomain, *, frozen: bool) -> None:
    mark = f"<freeze since='{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}'/>" if frozen else None
    # Of the running guest only: with it the mark goes, as its freeze does.
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, mark, _MARK_KEY, _MARK_URI, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _forget(domain: libvirt.virDomain) -> None:
    """Back to how it was. Libvirt does not tell how long its clients waited for the agent before: the default it is."""
    with contextlib.suppress(libvirt.libvirtError):
        domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)
    with contextlib.suppress(libvirt.libvirtError):  # a mark too many costs a thaw too many, one day
        _mark(domain, frozen=False)


def _ask(domain: libvirt.virDomain) -> None:
    """A harmless question. An agent that does not answer it is not asked to freeze: that would leave us in doubt."""
    domain.agentSetResponseTimeout(ASK_SECONDS)
    try:
        domain.getTime()
    except libvirt.libvirtError as error:
        if _FORBIDDEN not in error.get_error_message():
            _forget(domain)
            raise


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("uri")
    parser.add_argument("uuid")
    parser.add_argument("limit", type=int)
    given = parser.parse_args()
    for ending in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)  # it ends by itself, and only after the thaw
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        domain = libvirt.open(given.uri).lookupByUUIDString(given.uuid)
    except libvirt.libvirtError as error:
        return _say(refused=error.get_error_message())
    if _heard(seconds=0):
        return None  # nobody wants it any more
    limit = time.monotonic() + given.limit
    try:
        count = freeze(domain, seconds=given.limit)
    except Refused as refusal:
        return _say(refused=str(refusal))
    except PerhapsFrozen as doubt:
        _say(in_doubt=str(doubt))
        in_time = False
    else:
        _say(frozen=count)
        in_time = _heard(seconds=limit - time.monotonic())
    try:
        _say(thawed=keep_thawing(domain, seconds=PATIENCE_SECONDS), in_time=in_time)
    except libvirt.libvirtError as error:
        _say(still_frozen=error.get_error_message())


def _heard(*, seconds: float) -> bool:
    """A line, or the end of the pipe."""
    return bool(select.select([sys.stdin], [], [], max(seconds, 0))[0])


def _say(**what: object) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    main()
