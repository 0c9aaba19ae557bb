"""A host of many VMs without guests: libvirt's own test driver, with real disk images.

The boundary that is simulated is the hypervisor: libvirt's test driver has domains and states, and no QEMU. All VMs
are stopped, so backups read their images as those of any stopped VM. SETTINGS, which every process of an Airflow loads,
is what the driver lacks: it makes up sizes of disks, takes no checkpoints of stopped VMs, and knows no backup jobs.
"""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path
from xml.sax.saxutils import escape

SETTINGS = '''
"""Put here by a benchmark: what libvirt's test driver lacks (lab/simulated.py)."""
import json
import subprocess
from xml.etree import ElementTree

import libvirt


def block_info(self, target, flags=0):
    for disk in ElementTree.fromstring(self.XMLDesc()).iterfind("./devices/disk"):
        if disk.find("target").get("dev") == target:
            told = subprocess.run(
                ["qemu-img", "info", "-U", "--output=json", disk.find("source").get("file")],
                check=True, capture_output=True,
            )
            info = json.loads(told.stdout)
            return [info["virtual-size"], info["actual-size"], info["actual-size"]]
    raise ValueError(target)


def no_job(self, flags=0):
    error = libvirt.libvirtError("no backup job")
    error.err = (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, 0, "no backup job", 0, "", "", "", 0, 0)
    raise error


libvirt.virDomain.blockInfo = block_info
libvirt.virDomain.backupGetXMLDesc = no_job
libvirt.virDomain.checkpointCreateXML = lambda self, xml, flags=0: None
'''

RUNSTATE = 'xmlns:test="http://libvirt.org/schemas/domain/test/1.0"'


def host(directory: Path, *, vms: int, size: int) -> str:
    """Make so many VMs, each with one disk of so many bytes; returns the URI of their host."""
    directory.mkdir(parents=True, exist_ok=True)
    domains = []
    for number in range(1, vms + 1):
        image = directory / f"{number}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(size)], check=True)
        domains.append(_domain(name=f"i-9-{number}-VM", image=image))
    node = directory / "node.xml"
    node.write_text(f"<node>{''.join(domains)}</node>")
    return f"test://{node}"


def _domain(*, name: str, image: Path) -> str:
    return (
        f"<domain type='test' {RUNSTATE}><name>{name}</name><uuid>{uuid.uuid5(uuid.NAMESPACE_URL, name)}</uuid>"
        "<memory>8192</memory><os><type>hvm</type></os><devices><disk type='file' device='disk'>"
        f"<driver name='qemu' type='qcow2'/><source file='{escape(str(image))}'/>"
        "<target dev='vda' bus='virtio'/></disk></devices><test:runstate>5</test:runstate></domain>"
    )
