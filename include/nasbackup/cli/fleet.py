"""``nasbackup fleet check``: is fleet.yaml right, and which policy does each VM get?"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nasbackup import fleet
from nasbackup.catalog import restore_points
from nasbackup.cli.options import CATALOG_VARIABLES, database_or_refuse, json_option
from nasbackup.fleet import Fleet, Policy
from nasbackup.words import span


@dataclass(frozen=True, kw_only=True)
class Match:
    vm: str
    host: str
    policy: str | None
    why: str


@click.group("fleet")
def fleet_group() -> None:
    """fleet.yaml: what is promised for which VMs."""


@fleet_group.command()
@click.option(
    "--fleet",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"fleet.yaml; without it ${fleet.ENVIRONMENT} or {fleet.DEFAULT_PATH}.",
)
@click.option("--vm", "name", help="Only this VM; with --host one that need not exist.")
@click.option("--host", help="Where the VM of --vm is, or would be.")
@click.option("--title", default="", help="The title of the VM of --vm and --host.")
@click.option("--metadata", multiple=True, metavar="URI=TEXT", help="Metadata of the VM of --vm and --host.")
@json_option
def check(
    *, file: Path | None, name: str | None, host: str | None, title: str, metadata: tuple[str, ...], as_json: bool
) -> None:
    """Check fleet.yaml, and say which policy each VM gets and why.

    VMs are those that the catalog knows: nas_sla_watch notes what the hosts define. Without a catalog, or with --vm and
    --host, only the file and that VM are looked at.
    """
    known = fleet.load(file)
    if host is not None and name is None:
        raise click.UsageError("--host needs --vm: which VM would be there?")
    if (title or metadata) and host is None:
        raise click.UsageError("--title and --metadata need --vm and --host.")
    if name is not None and host is not None:
        known.zone_of(host)  # raises UnknownHost
        matches = [_match(known, vm=name, host=host, title=title, metadata=dict(map(_pair, metadata)))]
    else:
        matches = [match for match in _of_catalog(known) if name in (None, match.vm)]
    if as_json:
        policies = [_facts(policy) for policy in known.policies]
        click.echo(json.dumps({"policies": policies, "vms": [asdict(match) for match in matches]}, indent=2))
        return
    _show(known, matches)


def _pair(text: str) -> tuple[str, str]:
    uri, equals, value = text.rpartition("=")
    if not equals or not uri:
        raise click.BadParameter(f"{text!r} is not URI=TEXT", param_hint="--metadata")
    return uri, value


def _of_catalog(known: Fleet) -> list[Match]:
    if not any(os.environ.get(variable) for variable in CATALOG_VARIABLES):
        return []
    hosts = set(known.hosts)
    with database_or_refuse().reading() as cursor:
        vms = [vm for vm in restore_points.known_vms(cursor) if vm.host in hosts and vm.defined]
    return [
        _match(known, vm=vm.vm, host=vm.host, title=vm.title, metadata=dict(vm.metadata))
        for vm in sorted(vms, key=lambda vm: vm.vm)
    ]


def _match(known: Fleet, *, vm: str, host: str, title: str, metadata: dict[str, str]) -> Match:
    policy = known.policy_of(vm=vm, host=host, title=title, metadata=metadata)
    if policy is None:
        return Match(vm=vm, host=host, policy=None, why="no policy matches it: it is unprotected")
    selector = policy.selector
    by = [
        said
        for said, given in (
            (f"its name ({', '.join(selector.vms)})", selector.vms),
            (f"its title {title!r} ({', '.join(selector.titles)})", selector.titles),
            (f"its metadata ({', '.join(selector.metadata)})", selector.metadata),
            (f"its zone ({', '.join(selector.zones)})", selector.zones),
        )
        if given
    ]
    return Match(vm=vm, host=host, policy=policy.name, why="the first that matches, by " + ", ".join(by))


def _facts(policy: Policy) -> dict[str, object]:
    rpo = policy.rpo
    return {
        "name": policy.name,
        "schedule": list(policy.schedule),
        "timezone": policy.timezone,
        "rpo_seconds": int(rpo.error_after.total_seconds()) if rpo is not None else None,
        "retention": str(policy.retention),
    }


def _show(known: Fleet, matches: list[Match]) -> None:
    counts = Counter(match.policy for match in matches)
    console = Console()
    policies = Table("Policy", "Schedule", "RPO", "Retention", "VMs", title="Policies, in their order")
    for policy in known.policies:
        policies.add_row(
            policy.name,
            "\n".join(policy.schedule) + (f"\n{policy.timezone}" if policy.schedule else "by hand"),
            span(policy.rpo.error_after) if policy.rpo is not None else "none",
            "all are kept" if policy.retention.keeps_everything else str(policy.retention),
            str(counts[policy.name]),
        )
    console.print(policies)
    if not matches:
        console.print("No VM to match: name one with --vm and --host, or the catalog in the environment.")
        return
    vms = Table("VM", "Host", "Policy", "Why", title="VMs")
    for match in matches:
        # Not markup: names are their owners' choice.
        vms.add_row(*map(Text, (match.vm, match.host, match.policy or "unprotected", match.why)))
    console.print(vms)
