"""The header of a qcow2 file, read without QEMU: opening a file is how a hostile one makes QEMU open others.

Format: https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.txt
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from nasbackup.errors import ImageRefused

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQI")  # magic, version, backing offset and length, cluster bits, size, encryption
_FEATURES = struct.Struct(">QQQI")  # incompatible, compatible, autoclear, refcount order; at 72 from version 3 on
_FEATURES_AT = 72
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_LONGEST_BACKING = 1023
_READ = 1 << 16  # all of it lies in the first cluster
_HEADER_LENGTH_AT = 100
_EXTENSION = struct.Struct(">II")  # type and length; content padded to eight bytes
_BACKING_FORMAT = 0xE2792ACA


@dataclass(frozen=True, kw_only=True)
class Header:
    virtual_size: int
    backing: str | None


def read_header(file: Path) -> Header:
    """Raises ImageRefused for what is no regular file, no qcow2, encrypted, or keeps its data in another file.

    The backing file's name is returned as it stands there: whether QEMU may follow it is for the caller to say.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ImageRefused(file=file, problem=f"it cannot be read as a file of its own ({error.strerror})") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ImageRefused(file=file, problem="it is no regular file")
        return _parse(os.read(descriptor, _READ))
    except (ValueError, struct.error) as error:
        raise ImageRefused(file=file, problem=f"it is no qcow2 image that can be taken as it is: {error}") from None
    except OSError as error:
        raise ImageRefused(file=file, problem=f"reading it failed ({error.strerror})") from error
    finally:
        os.close(descriptor)


def _parse(content: bytes) -> Header:
    magic, version, backing_at, backing_length, _, size, encryption = _HEADER.unpack_from(content)
    if magic != _MAGIC or version not in (2, 3):
        raise ValueError("its first bytes are not those of a qcow2 image")
    if encryption:
        raise ValueError("it is encrypted")
    features = _FEATURES.unpack_from(content, _FEATURES_AT)[0] if version == 3 else 0
    if features & _DATA_FILE:
        raise ValueError("it keeps its data in another file")
    if features & ~(_DIRTY | _CORRUPT | _COMPRESSION | _EXTENDED_L2):
        raise ValueError("it has features that nobody knows")
    if not backing_at:
        return Header(virtual_size=size, backing=None)
    name = content[backing_at : backing_at + backing_length]
    if not 0 < backing_length <= _LONGEST_BACKING or len(name) != backing_length:
        raise ValueError("its backing file's name is not where it should be")
    if _backing_format(content, version=version, end=backing_at) not in (b"qcow2", None):
        raise ValueError("its backing file is to be taken for something else than qcow2")
    return Header(virtual_size=size, backing=name.decode("utf-8", errors="surrogateescape"))


def _backing_format(content: bytes, *, version: int, end: int) -> bytes | None:
    at = struct.unpack_from(">I", content, _HEADER_LENGTH_AT)[0] if version == 3 else _FEATURES_AT
    while at + _EXTENSION.size <= min(end, len(content)):
        kind, length = _EXTENSION.unpack_from(content, at)
        at += _EXTENSION.size
        if kind == 0:
            break
        if kind == _BACKING_FORMAT:
            return content[at : at + length]
        at += (length + 7) // 8 * 8
    return None
