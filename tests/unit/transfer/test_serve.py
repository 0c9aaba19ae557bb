"""What the kernel writes of mounts is read byte by byte."""

from __future__ import annotations

import os

from nasbackup.transfer.serve import mount_points


def test_mount_points_have_the_names_that_they_have() -> None:
    names = ["/mnt/größe/vda.raw", "/mnt/a b\tc\nd\\e/vdb.raw", "/mnt/\u2028\x85/x", os.fsdecode(b"/mnt/\xff.raw"), "/"]
    written = [
        os.fsencode(name)
        .replace(b"\\", rb"\134")
        .replace(b" ", rb"\040")
        .replace(b"\t", rb"\011")
        .replace(b"\n", rb"\012")
        for name in names
    ]
    mountinfo = b"".join(
        b"36 35 98:0 / %s rw,noatime shared:1 - fuse /dev/fuse rw,user_id=0\n" % path for path in written
    )
    assert mount_points(mountinfo) == {os.fsencode(name) for name in names}
