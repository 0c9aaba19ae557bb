"""How long a chain takes to become one image: a restore, part by part, beside `qemu-img convert` of the same chain.

Both write a new qcow2 file to the same directory and have it on disk (fsync) before the clock stops; they take turns.
The restore reads every layer back first and compares digests, which the peer does not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nasbackup.transfer.convert import flatten
from nasbackup.transfer.readback import check_image, drop_page_cache, read_layer

MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/benchmark restore_speed")
    parser.add_argument("--full", type=int, default=1024, help="MiB of random data in the full")
    parser.add_argument("--increment", type=int, default=128, help="MiB of random data, scattered, in each incremental")
    parser.add_argument("--layers", type=int, default=4, help="of the chain, the full included")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where; without it a temporary directory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as work:
        chain = _chain(Path(work), arguments)
        digests = [_read(layer, incremental=number > 0) for number, layer in enumerate(chain)]
        print(json.dumps(_measure(Path(work), chain, digests=digests, rounds=arguments.rounds), indent=2))


def _measure(work: Path, chain: list[Path], *, digests: list[str], rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"qemu_img_convert": [], "restore_verify": [], "restore_write": []}

    def verify() -> None:
        for number, layer in enumerate(chain):
            check_image(layer)
            assert _read(layer, incremental=number > 0) == digests[number], layer

    for turn in range(rounds):
        peer, own = work / f"peer-{turn}.qcow2", work / f"own-{turn}.qcow2"
        _cold(chain)
        seconds["qemu_img_convert"].append(_timed(lambda peer=peer: _peer(chain[-1], peer)))
        _cold(chain)
        seconds["restore_verify"].append(_timed(verify))
        _cold(chain)
        seconds["restore_write"].append(
            _timed(lambda own=own: flatten(chain_top=chain[-1], target=own, output_format="qcow2"))
        )
        subprocess.run(["qemu-img", "compare", "-q", str(peer), str(own)], check=True)
        peer.unlink()
        own.unlink()
    return {
        "data_mib": sum(layer.stat().st_blocks * 512 for layer in chain) >> 20,
        "layers": len(chain),
        "median_seconds": {part: round(statistics.median(found), 2) for part, found in seconds.items()},
        "seconds": {part: [round(second, 2) for second in found] for part, found in seconds.items()},
    }


def _cold(chain: list[Path]) -> None:
    """Neither finds in the page cache what the other has read: a NAS is further away than memory."""
    for layer in chain:
        drop_page_cache(layer)


def _timed(action: Callable[[], None]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def _peer(top: Path, target: Path) -> None:
    subprocess.run(["qemu-img", "convert", "-W", "-m", "16", "-O", "qcow2", str(top), str(target)], check=True)
    file = os.open(target, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _read(layer: Path, *, incremental: bool) -> str:
    return read_layer(file=layer, incremental=incremental).digest


def _chain(work: Path, arguments: argparse.Namespace) -> list[Path]:
    """Random data: nothing compresses, nothing is zero."""
    numbers = random.Random(1)  # the same chain each time
    size = arguments.full * 2
    raw = work / "full.raw"
    with raw.open("wb") as file:
        file.truncate(size * MIB)
        for _ in range(arguments.full):
            file.write(numbers.randbytes(MIB))
    chain = [work / "0.qcow2"]
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(chain[0])], check=True)
    raw.unlink()
    pattern = work / "increment.raw"
    for number in range(1, arguments.layers):
        layer = work / f"{number}.qcow2"
        backing = ["-b", chain[-1].name, "-F", "qcow2"]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(layer)], check=True, cwd=work)
        pattern.write_bytes(numbers.randbytes(MIB))
        places = sorted(numbers.sample(range(size), arguments.increment))
        commands = [word for place in places for word in ("-c", f"write -q -s {pattern} {place}M 1M")]
        subprocess.run(["qemu-io", "-f", "qcow2", *commands, str(layer)], check=True, stdout=subprocess.DEVNULL)
        chain.append(layer)
    return chain


if __name__ == "__main__":
    main()
