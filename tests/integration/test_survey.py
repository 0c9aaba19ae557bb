"""A host that hangs keeps nobody waiting, and the others answer."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import pytest
from nasbackup.errors import HostUnreachable, HypervisorError
from nasbackup.hypervisor import Hypervisor, survey
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


class NotToBeSent(Exception):
    """It goes into a pickle, and does not come out of it."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(reason)


def odd(hypervisor: Hypervisor) -> str:
    if hypervisor.host.name == "kvm_no_xml":
        ElementTree.fromstring("<domain")
    if hypervisor.host.name == "kvm_odd":
        raise NotToBeSent(reason="it rained")
    return "fine"


def test_an_odd_answer_of_one_host_is_of_that_host_alone() -> None:
    found = survey.survey([some(name) for name in ("kvm_no_xml", "kvm_odd", "kvm_one")], odd)
    assert found["kvm_one"] == "fine"
    no_xml, cannot = found["kvm_no_xml"], found["kvm_odd"]
    assert isinstance(no_xml, HypervisorError)
    assert str(no_xml).startswith("asking for VMs on kvm_no_xml failed: ParseError: unclosed token")
    assert isinstance(cannot, HypervisorError)
    assert "kvm_odd failed: TypeError" in str(cannot)


def test_where_no_more_processes_can_be_begun_the_hosts_are_silent() -> None:
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        found = survey.survey([some("kvm_one")], odd)["kvm_one"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert isinstance(found, HostUnreachable)
    assert "nobody can ask it: Too many open files" in str(found)


def test_hosts_are_asked_while_a_slow_one_is_still_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_AT_ONCE", 2)
    last = tmp_path / "the last was asked"

    def question(hypervisor: Hypervisor) -> str:
        if hypervisor.host.name == "kvm_three":
            last.touch()
        while hypervisor.host.name == "kvm_slow" and not last.exists():
            time.sleep(0.01)
        return "here"

    hosts = [some(name) for name in ("kvm_slow", "kvm_one", "kvm_two", "kvm_three")]
    found = survey.survey(hosts, question, patience=60)
    assert found == dict.fromkeys(("kvm_slow", "kvm_one", "kvm_two", "kvm_three"), "here")


def test_one_host_that_is_asked_for_its_backups_has_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(name="kvm_one", uri=simulated.host(tmp_path, vms=1, size=MIB))
    monkeypatch.setattr(survey, "NO_ANSWER_SECONDS", -1.0)
    monkeypatch.setattr(survey, "_POLL_SECONDS", 0.0)
    assert isinstance(survey.survey([host], seen_vms)["kvm_one"], HostUnreachable)
    assert [vm.name for vm in vms_of(host)] == ["i-9-1-VM"]


def some(name: str) -> Host:
    return Host(name=name, uri="test:///default")
