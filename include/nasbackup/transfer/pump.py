"""The loop that copying and reading back share: read a piece, hash it, hand it on, count it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial

from nasbackup.transfer.crew import Crew
from nasbackup.transfer.digest import LayerDigest
from nasbackup.transfer.extents import Piece, plan_pieces
from nasbackup.transfer.limiter import Limiter
from nasbackup.transfer.nbd_source import Export, Source
from nasbackup.transfer.qcow2_target import Target


@dataclass(frozen=True)
class Progress:
    """Where a transfer stands. ``phase``: ``survey`` (total not known yet), ``data``, ``flush``.

    ``done`` and ``total`` are bytes of data read and to be read (known zeroes cost nothing and don't count);
    ``seconds`` since the start.
    """

    phase: str
    done: int
    total: int
    seconds: float


@dataclass(frozen=True)
class LayerSummary:
    """What a layer holds. All sizes in bytes.

    ``bytes_read``: data read from the source. ``bytes_zero``: bytes in the layer's pieces that are known to be
    zero and weren't read. ``bytes_written``: what the finished file occupies. ``pieces``: records in the digest.
    """

    virtual_size: int
    bytes_read: int
    bytes_zero: int
    bytes_written: int
    pieces: int
    digest: str
    seconds: float


class Pump:
    """One transfer. The counters are written under a lock and read by the reporting thread without one."""

    def __init__(
        self,
        *,
        export: Export,
        virtual_size: int,
        on_progress: Callable[[Progress], None] | None,
        progress_every: float,
        bandwidth: int | None = None,
    ) -> None:
        """``bandwidth``: bytes of data a second that all connections together read at most; None: no limit."""
        self._export = export
        self._incremental = export.present_context is not None
        self._virtual_size = virtual_size
        self._on_progress = on_progress
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._limiter = Limiter(rate=bandwidth) if bandwidth is not None else None
        self._digest = LayerDigest(virtual_size=virtual_size, incremental=self._incremental)
        self._read = self._zero = self._total = 0
        self._phase = "survey"
        self.crew = Crew(report=self.report, every=progress_every)

    @property
    def remaining(self) -> int:
        return self._total - self._read

    def report(self) -> None:
        if self._on_progress:
            self._on_progress(Progress(self._phase, self._read, self._total, time.monotonic() - self._started))

    def run(self, *, connections: int, open_target: Callable[[], Target] | None = None) -> None:
        """Survey the export, then move all pieces over up to ``connections`` connections.

        Raises ReadFailed; TargetFull or WriteFailed from the target; what ``on_progress`` raises.
        """
        first: list[Source] = []
        try:
            self.crew.run(lambda: first.append(self._survey()))
            # The surveying connection is also the first worker's: a server that allows one only, or that ends
            # with its last connection, works too.
            workers = connections if first[0].allows_more_connections else 1
            self._phase = "data"
            steps = [partial(self._work, first[0] if index == 0 else None, open_target) for index in range(workers)]
            self.crew.run(*steps)
        finally:
            for source in first:
                source.connection.close()

    def finish(self, *steps: Callable[[], None]) -> None:
        """Steps after the last piece (flush, fsync), while progress is still reported: they may take minutes."""
        self._phase = "flush"
        for step in steps:
            self.crew.run(step)
        self.report()

    def summary(self, *, bytes_written: int) -> LayerSummary:
        return LayerSummary(
            virtual_size=self._virtual_size,
            bytes_read=self._read,
            bytes_zero=self._zero,
            bytes_written=bytes_written,
            pieces=self._digest.records,
            digest=self._digest.value(),
            seconds=time.monotonic() - self._started,
        )

    def _survey(self) -> Source:
        source = Source(self._export, interrupt=self.crew.interrupt)
        try:
            survey = source.survey(virtual_size=self._virtual_size)
        except BaseException:
            source.connection.close()
            raise
        plan = partial(plan_pieces, virtual_size=self._virtual_size, allocation=survey.allocation, dirty=survey.dirty)
        # Planned twice, once to know the total: a list of the pieces would cost some 300 MB per TiB.
        self._total = sum(piece.data_bytes for piece in plan())
        self._pieces: Iterator[Piece] = plan()
        return source

    def _work(self, opened: Source | None, open_target: Callable[[], Target] | None) -> None:
        source = opened or Source(self._export, interrupt=self.crew.interrupt)
        with source.connection, _opened(open_target) as sink:
            while (piece := self._next_piece()) is not None:
                content = source.read(piece)
                if content is not None and content == _zeroes(piece.length):
                    content = None
                if sink:
                    sink.write(piece, content)
                self._count(piece, self._record(piece, content))

    def _record(self, piece: Piece, content: bytes | bytearray | None) -> bytes | None:
        """What the piece contributes to the digest; ``content`` None: all zero."""
        if content is not None:
            return hashlib.sha256(content).digest()
        return _sha256_of_zeroes(piece.length) if self._incremental else None

    def _next_piece(self) -> Piece | None:
        """When it is its turn; None: there is no more, or all was called off."""
        with self._lock:
            piece = None if self.crew.interrupt.triggered else next(self._pieces, None)
            wait = self._limiter.take(piece.data_bytes) if self._limiter and piece else 0.0
        return None if wait and self.crew.interrupt.wait(wait) else piece

    def _count(self, piece: Piece, content_sha256: bytes | None) -> None:
        data = piece.data_bytes
        with self._lock:
            self._read += data
            self._zero += piece.length - data
            self._digest.add(
                number=piece.number, offset=piece.offset, length=piece.length, content_sha256=content_sha256
            )


def _opened(open_target: Callable[[], Target] | None) -> AbstractContextManager[Target | None]:
    return open_target() if open_target else nullcontext()


# Pieces have few lengths: 16 multiples of a cluster and the end of the disk.
@lru_cache(maxsize=32)
def _zeroes(length: int) -> bytes:
    return bytes(length)


@lru_cache(maxsize=32)
def _sha256_of_zeroes(length: int) -> bytes:
    return hashlib.sha256(_zeroes(length)).digest()
