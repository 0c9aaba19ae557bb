"""The provider entry point: it gives Airflow the connection types ``libvirt`` and ``nas`` with their forms.

Airflow loads this module in every process it starts, so it holds plain data and imports nothing. (Forms of
connection types come from a provider entry point, not from ``plugins/``.)
"""

from __future__ import annotations

from typing import Any

HIDDEN = ["port", "schema", "login", "password"]


def get_provider_info() -> dict[str, Any]:
    return {
        "package-name": "nasbackup",
        "name": "NAS Backup",
        "description": "Full and incremental backups of KVM virtual machines to a NAS.",
        "connection-types": [
            {
                "hook-class-name": "nasbackup.airflow.hooks.LibvirtHook",
                "connection-type": "libvirt",
                "hook-name": "libvirt (KVM host)",
                "ui-field-behaviour": {
                    "hidden-fields": [*HIDDEN, "host"],
                    "relabeling": {},
                    "placeholders": {"extra": "{}"},
                },
                "conn-fields": {
                    "uri": {
                        "label": "libvirt URI",
                        "description": "For example qemu:///system. Tasks for this host must run on this host.",
                        "schema": {"type": ["string", "null"], "default": "qemu:///system"},
                    },
                    "socket_dir": {
                        "label": "Socket directory",
                        "description": "QEMU's user creates the NBD sockets here.",
                        "schema": {"type": ["string", "null"], "default": "/var/lib/nasbackup/run"},
                    },
                    "scratch_dir": {
                        "label": "Scratch directory",
                        "description": "Local disk, writable by QEMU's user: holds what guests overwrite while "
                        "they are being backed up.",
                        "schema": {"type": ["string", "null"], "default": "/var/lib/nasbackup/scratch"},
                    },
                },
            },
            {
                "hook-class-name": "nasbackup.airflow.hooks.NasHook",
                "connection-type": "nas",
                "hook-name": "NAS (backup repository)",
                "ui-field-behaviour": {
                    "hidden-fields": HIDDEN,
                    "relabeling": {"host": "Address"},
                    "placeholders": {"host": "nas.example.org:/backup (empty for type local)"},
                },
                "conn-fields": {
                    "type": {
                        "label": "Type",
                        "description": "local: a directory, or a NAS that is mounted already.",
                        "schema": {
                            "type": ["string", "null"],
                            "enum": ["local", "nfs", "cifs", "ceph"],
                            "default": "local",
                        },
                    },
                    "path": {
                        "label": "Path on the workers",
                        "description": "Absolute path under which the repository is found.",
                        "schema": {"type": ["string", "null"]},
                    },
                },
            },
        ],
    }
