"""A guest's million files must not become a gigabyte of this process."""

from __future__ import annotations

import gc
import io
import tarfile
from pathlib import Path

from nasbackup.restore.extract import Unpacked, unpack

FILES = 200


def test_what_was_unpacked_is_forgotten(tmp_path: Path) -> None:
    packed, remembered = io.BytesIO(), []
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for number in range(FILES):
            archive.addfile(tarfile.TarInfo(f"file {number}"))
    del archive
    packed.seek(0)

    def count(done: Unpacked) -> None:
        if done.files == FILES:
            gc.collect()
            # Not isinstance, which would ask each object: a lazy import among them, say, which fails.
            remembered.append(sum(type(thing) is tarfile.TarInfo for thing in gc.get_objects()))

    assert unpack(packed, into=tmp_path, on_file=count).files == FILES
    assert len(list(tmp_path.iterdir())) == FILES
    assert len(remembered) == 1
    assert remembered[0] < 10
