"""A host that hangs keeps nobody waiting, and the others answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from nasbackup.errors import HostUnreachable
from nasbackup.hypervisor import survey
from nasbackup.hypervisor.inventory import seen_vms
from nasbackup.hypervisor.survey import vms_of
from nasbackup.model import Host

from lab import simulated

MIB = 1 << 20


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Host]:
    """As a libvirtd that was stopped: it takes connections, and says nothing."""
    path = tmp_path / "libvirt-sock"
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        yield Host(name="kvm_silent", uri=f"qemu+unix:///system?socket={path}")


def children() -> set[str]:
    return set(Path("/proc/thread-self/children").read_text().split())


def test_a_host_that_says_nothing_holds_up_no_other(
    silent: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "NO_ANSWER_SECONDS", 5.0)
    many = Host(name="kvm_many", uri=simulated.host(tmp_path / "vms", vms=3, size=MIB))
    gone = Host(name="kvm_gone", uri=f"qemu+unix:///system?socket={tmp_path}/nothing")
    before = children()
    found = survey.survey([silent, many, gone], seen_vms)
    vms, hangs, refuses = found["kvm_many"], found["kvm_silent"], found["kvm_gone"]
    assert isinstance(vms, list)
    assert [vm.name for vm in vms] == ["i-9-1-VM", "i-9-2-VM", "i-9-3-VM"]
    assert isinstance(hangs, HostUnreachable)
    assert str(hangs).startswith(f"Host kvm_silent does not answer at {silent.uri}: it says nothing for 5 s.")
    assert isinstance(refuses, HostUnreachable)
    assert "No such file or directory" in str(refuses)
    assert children() == before, "the process that still waits is gone"


def test_the_vms_of_one_host_or_why_not(tmp_path: Path) -> None:
    host = Host(name="kvm_one", uri=simulated.host(tmp_path, vms=1, size=MIB))
    assert [vm.name for vm in vms_of(host)] == ["i-9-1-VM"]
    with pytest.raises(HostUnreachable, match="kvm_gone"):
        vms_of(Host(name="kvm_gone", uri=f"qemu+unix:///system?socket={tmp_path}/nothing"))


def test_an_answer_that_is_longer_than_a_pipe_arrives(tmp_path: Path) -> None:
    host = Host(name="kvm_one", uri=simulated.host(tmp_path, vms=1, size=MIB))
    long = survey.survey([host, Host(name="kvm_two", uri=host.uri)], lambda _: "x" * MIB)
    assert {name: len(str(answer)) for name, answer in long.items()} == {"kvm_one": MIB, "kvm_two": MIB}
