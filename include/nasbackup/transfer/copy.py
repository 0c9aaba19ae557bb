"""Copy one volume from an NBD export into a new qcow2 layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from nasbackup.handling import Compression
from nasbackup.transfer.nbd_source import Export
from nasbackup.transfer.pump import LayerSummary, Progress, Pump
from nasbackup.transfer.qcow2_target import Target, create_layer, layer_node, set_size, sync_file, writable_size
from nasbackup.transfer.qemu_nbd import QemuNbd


def copy_layer(
    *,
    source_uri: str,
    target: Path,
    backing: str | None,
    virtual_size: int,
    dirty_bitmap: str | None,
    compression: Compression = Compression.NONE,
    bandwidth: int | None = None,
    connections: int = 4,
    on_progress: Callable[[Progress], None] | None = None,
    progress_every: float = 2.0,
) -> LayerSummary:
    """Write the layer, bring it to stable storage, and return what it holds.

    ``source_uri``: e.g. ``nbd+unix:///vda?socket=/path``. ``dirty_bitmap``: the exported bitmap's name; with it the
    layer is incremental and holds exactly the clusters that the bitmap touches; None: full. ``backing``: the
    parent's path relative to the target's directory, of the same ``virtual_size`` (bytes); needed by an
    incremental layer. ``bandwidth``: bytes of data a second that all connections together read at most. ``on_progress``
    is called in the calling thread about every ``progress_every`` seconds and at the end; what it raises stops the copy
    and is raised from here.

    Raises TargetExists (nothing was touched), ReadFailed, WriteFailed, TargetFull, ToolFailed; ValueError when
    bitmap and backing don't go together. After a failure the unfinished file is left to the caller; the process
    that wrote it, the threads and the sockets are gone.
    """
    incremental = dirty_bitmap is not None
    if incremental != (backing is not None):
        raise ValueError("a dirty bitmap and a backing file go together: the one says what differs from the other")
    context = f"qemu:dirty-bitmap:{dirty_bitmap}" if incremental else None
    pump = Pump(
        export=Export(source_uri, source_uri, context),
        virtual_size=virtual_size,
        on_progress=on_progress,
        progress_every=progress_every,
        bandwidth=bandwidth,
    )
    compressed = compression is not Compression.NONE
    pump.crew.run_apart(
        partial(create_layer, target=target, virtual_size=virtual_size, backing=backing, compression=compression)
    )
    with QemuNbd(layer_node(target, compressed=compressed), clients=connections + 1, read_only=False) as server:

        def open_target() -> Target:
            return Target(
                server,
                target,
                incremental=incremental,
                compressed=compressed,
                interrupt=pump.crew.interrupt,
                remaining=lambda: pump.remaining,
            )

        def flush() -> None:
            # One flush serves all connections: they share the image, and every write was acknowledged.
            with open_target() as connection:
                connection.flush()

        pump.crew.run(lambda: server.wait_ready(pump.crew.interrupt))
        pump.run(connections=connections, open_target=open_target)
        pump.finish(flush, server.end)
        if writable_size(virtual_size, compression=compression) != virtual_size:
            pump.crew.run_apart(partial(set_size, target, virtual_size))
        written = pump.crew.run_apart(partial(sync_file, target))
    return pump.summary(bytes_written=written)
