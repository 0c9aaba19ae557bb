"""Promise: whatever goes wrong is named, stops everything at once, and leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nasbackup.errors import ReadFailed, TargetExists, TargetFull, ToolFailed, WriteFailed
from nasbackup.transfer.convert import flatten
from nasbackup.transfer.copy import copy_layer
from nasbackup.transfer.pump import LayerSummary, Progress
from nasbackup.transfer.readback import read_layer
from transfer_lab import (
    MIB,
    alive,
    arguments_of,
    assert_same_content,
    back_up,
    child_processes,
    fill,
    make_disk,
    nbd_server,
)

SIZE = 64 * MIB
SLOW_READS = ["nbdkit", "-f", "-U", "{socket}", "--filter=delay", "pattern", str(SIZE), "rdelay=20ms"]
VERY_SLOW_READS = [*SLOW_READS[:-1], "rdelay=100ms"]  # some seconds: what happens in the midst is in the midst
HANGING_READS = ["nbdkit", "-f", "-U", "{socket}", "--filter=delay", "pattern", str(SIZE), "rdelay=60"]


class LeaseGone(Exception):
    pass


def copy_from(uri: str, target: Path, **options: object) -> LayerSummary:
    arguments: dict[str, object] = {"progress_every": 0.05, **options}
    return copy_layer(
        source_uri=uri,
        target=target,
        backing=None,
        virtual_size=SIZE,
        dirty_bitmap=None,
        **arguments,  # type: ignore[arg-type]
    )


def test_a_full_nas_is_told_with_numbers(tmp_path: Path, small_nas: Path) -> None:
    with (
        nbd_server("nbdkit", "-f", "-U", "{socket}", "pattern", str(SIZE)) as source,
        pytest.raises(TargetFull) as caught,
    ):
        copy_from(source.uri, small_nas / "layer.qcow2")
    assert SIZE - 16 * MIB <= caught.value.data["needs"] <= SIZE
    assert caught.value.data["has"] < 2 * MIB
    assert (small_nas / "layer.qcow2").exists(), "the unfinished file is the caller's"


def test_a_nas_without_room_for_an_empty_layer(small_nas: Path) -> None:
    (small_nas / "ballast").write_bytes(bytes(16 * MIB - 64 * 1024))
    with nbd_server(*SLOW_READS) as source, pytest.raises(TargetFull):
        copy_from(source.uri, small_nas / "layer.qcow2")


def test_flattening_to_a_full_nas(tmp_path: Path, small_nas: Path) -> None:
    disk = make_disk(tmp_path / "vm.qcow2", size=SIZE)
    fill(disk, 1, 0, 24 * MIB)
    back_up(disk, tmp_path / "layer.qcow2")
    with pytest.raises(TargetFull):
        flatten(chain_top=tmp_path / "layer.qcow2", target=small_nas / "image", output_format="raw")


def test_a_server_that_dies_during_the_copy(tmp_path: Path) -> None:
    with nbd_server(*VERY_SLOW_READS) as source:

        def die_half_way(progress: Progress) -> None:
            if progress.done > SIZE // 4:
                source.process.kill()

        with pytest.raises(ReadFailed) as caught:
            copy_from(source.uri, tmp_path / "layer.qcow2", on_progress=die_half_way)
    assert caught.value.data["offset"] > 0


def test_a_source_with_an_unreadable_block(tmp_path: Path) -> None:
    with (
        nbd_server(
            "nbdkit", "-f", "-U", "{socket}", "--filter=error", "pattern", str(SIZE), "error-pread-rate=50%"
        ) as source,
        pytest.raises(ReadFailed, match="EIO"),
    ):
        copy_from(source.uri, tmp_path / "layer.qcow2")


@pytest.mark.parametrize("reads", [SLOW_READS, HANGING_READS], ids=["slow", "hanging"])
def test_what_the_reporter_raises_stops_the_copy_promptly(tmp_path: Path, reads: list[str]) -> None:
    raised_at = 0.0

    def lose_lease(progress: Progress) -> None:
        nonlocal raised_at
        if progress.phase == "data":
            raised_at = time.monotonic()
            raise LeaseGone

    with nbd_server(*reads) as source:
        with pytest.raises(LeaseGone):
            copy_from(source.uri, tmp_path / "layer.qcow2", on_progress=lose_lease)
        assert time.monotonic() - raised_at < 20, "a hanging read takes 60 s: nobody has waited for it"


def test_progress_is_reported_while_the_source_hangs(tmp_path: Path) -> None:
    """The lease is renewed by it: a slow NAS must not cost the lease."""
    seen: list[Progress] = []

    def count(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == 10:
            raise LeaseGone

    with nbd_server(*HANGING_READS) as source, pytest.raises(LeaseGone):
        copy_from(source.uri, tmp_path / "layer.qcow2", on_progress=count)


def test_a_writer_that_dies_is_a_write_error(tmp_path: Path) -> None:
    before = set(child_processes())

    def kill_writer(progress: Progress) -> None:
        if progress.done > 0:
            for pid, name in child_processes().items():
                if pid not in before and name == "qemu-nbd":
                    os.kill(pid, signal.SIGKILL)

    with nbd_server(*VERY_SLOW_READS) as source, pytest.raises((WriteFailed, ToolFailed)):
        copy_from(source.uri, tmp_path / "layer.qcow2", on_progress=kill_writer)


def test_too_few_slots_at_the_source_is_said_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nasbackup.transfer.nbd_connection._CONNECT_SECONDS", 0.5)
    with (
        nbd_server(*SLOW_READS) as slow,
        nbd_server("qemu-nbd", "-r", "-t", "-e", "2", "-f", "raw", "-k", "{socket}", slow.uri) as source,
        pytest.raises(ReadFailed, match="accepts no further connection"),
    ):
        copy_from(source.uri, tmp_path / "layer.qcow2", connections=4)


def test_a_source_with_one_slot_only_is_copied_over_it(tmp_path: Path) -> None:
    layer = tmp_path / "layer.qcow2"
    with (
        nbd_server(*SLOW_READS) as slow,
        nbd_server("qemu-nbd", "-r", "-t", "-f", "raw", "-k", "{socket}", slow.uri) as source,
    ):
        summary = copy_from(source.uri, layer)
    assert summary.bytes_read == SIZE
    assert summary.digest == read_layer(file=layer, incremental=False).digest


WORK = {
    "copy": (
        "copy.copy_layer(source_uri=uri, target=place / 'copy', backing=None, virtual_size=size, dirty_bitmap=None)",
        ("qemu-nbd", "--shared"),
    ),
    "read": ("readback.read_layer(file=place / 'layer', incremental=False)", ("qemu-nbd", "--shared")),
    "flatten": (
        "convert.flatten(chain_top=place / 'layer', target=place / 'image', output_format='raw')",
        ("qemu-img", "convert"),
    ),
}


@pytest.mark.parametrize("work", WORK)
def test_killing_the_process_ends_its_tools(tmp_path: Path, work: str) -> None:
    call, tool = WORK[work]
    fill(make_disk(tmp_path / "layer", size=256 * MIB), 1, 0, 256 * MIB)
    program = (
        "import sys; from pathlib import Path; from nasbackup.transfer import convert, copy, readback; "
        f"uri, place, size = sys.argv[1], Path(sys.argv[2]), {SIZE}; {call}"
    )
    with nbd_server(*HANGING_READS) as source:
        # A private directory of its own: a process that is killed by SIGKILL cannot tidy up its socket.
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        arguments = [sys.executable, "-c", program, source.uri, str(tmp_path)]
        with subprocess.Popen(arguments, env=environment) as process:
            pid = wait_for_tool(process, *tool)
            os.kill(pid, signal.SIGSTOP)  # it certainly doesn't end by itself
            process.kill()
        deadline = time.monotonic() + 5
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not alive(pid)


def wait_for_tool(process: subprocess.Popen[bytes], tool: str, argument: str) -> int:
    """The pid of the child that runs this tool with an argument that starts so."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it was killed"
        for pid, name in child_processes(process.pid).items():
            if name == tool and f"\0{argument}" in arguments_of(pid):
                return pid
        time.sleep(0.002)
    raise AssertionError(f"no {tool} in sight")


class TestFlatten:
    @pytest.fixture
    def layer(self, tmp_path: Path) -> Path:
        disk = make_disk(tmp_path / "vm.qcow2", size=SIZE)
        fill(disk, 1, 0, 4 * MIB)
        back_up(disk, tmp_path / "layer.qcow2")
        return tmp_path / "layer.qcow2"

    def test_progress_reaches_the_end(self, layer: Path, tmp_path: Path) -> None:
        seen: list[Progress] = []
        flatten(
            chain_top=layer,
            target=tmp_path / "image",
            output_format="qcow2",
            on_progress=seen.append,
            progress_every=0.001,
        )
        assert seen[-1].done == seen[-1].total == SIZE
        assert [p.done for p in seen] == sorted(p.done for p in seen)
        assert_same_content(layer, tmp_path / "image")

    def test_an_existing_target_is_not_touched(self, layer: Path, tmp_path: Path) -> None:
        (tmp_path / "image").write_text("precious")
        with pytest.raises(TargetExists):
            flatten(chain_top=layer, target=tmp_path / "image", output_format="raw")
        assert (tmp_path / "image").read_text() == "precious"

    def test_what_the_reporter_raises_stops_it(self, layer: Path, tmp_path: Path) -> None:
        def lose_lease(_: Progress) -> None:
            for pid, name in child_processes().items():
                if name == "qemu-img":
                    os.kill(pid, signal.SIGSTOP)  # it certainly doesn't end by itself
            raise LeaseGone

        with pytest.raises(LeaseGone):
            flatten(
                chain_top=layer,
                target=tmp_path / "image",
                output_format="raw",
                on_progress=lose_lease,
                progress_every=0.0,
            )

    def test_a_missing_chain_is_named(self, layer: Path, tmp_path: Path) -> None:
        layer.unlink()
        with pytest.raises(ToolFailed, match=r"layer\.qcow2"):
            flatten(chain_top=layer, target=tmp_path / "image", output_format="raw")
        with pytest.raises(ToolFailed, match=r"layer\.qcow2"):
            read_layer(file=layer, incremental=False)
