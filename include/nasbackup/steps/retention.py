"""What a policy would delete now: the catalog's backups, judged VM by VM. Nothing is deleted here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from nasbackup.catalog import Database, restore_points
from nasbackup.catalog.restore_points import Holding, KnownVm
from nasbackup.fleet import Fleet, Policy, Selector, is_chosen
from nasbackup.model import BackupStatus
from nasbackup.retention.plan import ChainPlan, chain_plans
from nasbackup.retention.rules import RetentionRules
from nasbackup.retention.verdicts import Verdict, judge, judge_unprotected

Defined = Mapping[str, frozenset[str] | None]
"""Host of the fleet -> UUIDs of the VMs that it defines; None: nobody could ask it, so any VM may be there."""


@dataclass(frozen=True, kw_only=True)
class Doomed:
    """A chain of which something goes, and where it lies."""

    vm: str
    vm_uuid: str
    host: str
    repository: str
    policy: str
    plan: ChainPlan


@dataclass(frozen=True, kw_only=True)
class UnprotectedVm:
    vm: str
    vm_uuid: str
    why: str
    since: datetime
    restorable: int
    goes: str
    """When its backups go, in words."""


@dataclass(kw_only=True)
class Report:
    """Of one look at the catalog. ``rules``: how many restorable backups each rule keeps."""

    now: datetime
    vms: int = 0
    backups: int = 0
    restorable: int = 0
    chains: list[Doomed] = field(default_factory=list)
    unprotected: list[UnprotectedVm] = field(default_factory=list)
    elsewhere: Counter[str] = field(default_factory=Counter)
    """Host that fleet.yaml does not name -> how many VMs of it the catalog knows: they are another fleet's to judge."""
    rules: Counter[str] = field(default_factory=Counter)
    bereft: dict[str, str] = field(default_factory=dict)
    """UUID -> name of the VMs that have a restorable backup now, in some repository, and would have none afterwards."""

    @property
    def deletions(self) -> int:
        """Backups that somebody could restore now and could not afterwards."""
        return sum(doomed.plan.restorable for doomed in self.chains)


Listener = Callable[[Holding, str, Sequence[Verdict]], None]
"""Called with each VM's backups in a repository, the policy's name and the verdicts."""


def report(
    database: Database,
    *,
    fleet: Fleet,
    now: datetime,
    defined: Defined | None = None,
    vms: Sequence[str] = (),
    vm_uuid: str | None = None,
    rules: RetentionRules | None = None,
    on_holding: Listener | None = None,
) -> Report:
    """Judge every backup, or those of the VMs that one of the globs ``vms`` matches, or of one VM.

    ``rules``: in place of those of each VM's policy; a VM without a policy is then judged by them too. What is
    in the report stands until somebody changes the catalog: deletion looks again.
    """
    result = Report(now=now)
    with database.transaction() as cursor:
        wanted = [vm for vm in restore_points.known_vms(cursor, vm_uuid=vm_uuid) if is_chosen(vm.vm, vms)]
        hosts = frozenset(fleet.hosts)
        chosen = [vm for vm in wanted if vm.host in hosts]
        result.elsewhere.update(vm.host for vm in wanted if vm.host not in hosts)
        protection = {vm.vm_uuid: _protection(vm, fleet=fleet, defined=defined or {}) for vm in chosen}
        seen = set()
        left = Counter[str]()
        for holding in restore_points.holdings(cursor, vms=chosen):
            protected = protection[holding.vm_uuid]
            if rules is not None:
                timezone = protected.policy.timezone if protected.policy is not None else "UTC"
                policy = Policy(name="this run's rules", selector=Selector(), retention=rules, timezone=timezone)
                protected = Protection(policy=policy)
            name, verdicts = _judge(holding, protected=protected, fleet=fleet, result=result)
            if holding.vm_uuid not in seen:
                seen.add(holding.vm_uuid)
                result.vms += 1
            kept = _count(result, verdicts)
            left[holding.vm_uuid] += kept.total()
            result.chains += [
                Doomed(
                    vm=holding.vm,
                    vm_uuid=holding.vm_uuid,
                    host=holding.host,
                    repository=holding.repository,
                    policy=name,
                    plan=plan,
                )
                for plan in chain_plans(verdicts)
            ]
            if on_holding:
                on_holding(holding, name, verdicts)
        for doomed in result.chains:
            if doomed.plan.restorable and not left[doomed.vm_uuid]:
                result.bereft[doomed.vm_uuid] = doomed.vm
    return result


def note_unprotected(database: Database, *, fleet: Fleet, defined: Defined, now: datetime) -> None:
    """From now on the backups of VMs that no policy matches, or that are undefined, are counted down."""
    hosts = frozenset(fleet.hosts)
    with database.transaction() as cursor:
        unprotected = [
            vm.vm_uuid
            for vm in restore_points.known_vms(cursor)
            if vm.host in hosts and _protection(vm, fleet=fleet, defined=defined).policy is None
        ]
        restore_points.note_unprotected(cursor, vm_uuids=unprotected, hosts=sorted(hosts), now=now)


class Protection(NamedTuple):
    """A VM's policy, or ``why`` it has none. Not ``sure``: it may be on a host that is silent, so nothing goes now."""

    policy: Policy | None
    why: str = ""
    sure: bool = True


def _protection(vm: KnownVm, *, fleet: Fleet, defined: Defined) -> Protection:
    """``defined``: empty when nobody was asked."""
    everywhere = list(defined.values())
    seen = any(uuids is not None and vm.vm_uuid in uuids for uuids in everywhere)
    all_asked = all(uuids is not None for uuids in everywhere)
    # On no host of the fleet, and all could be asked: it may have moved since its last backup.
    if everywhere and all_asked and not seen:
        return Protection(policy=None, why="no host of the fleet defines it any more")
    policy = fleet.policy_of(vm=vm.vm, host=vm.host, title=vm.title, metadata=vm.metadata)
    if policy is None:
        return Protection(policy=None, why="no policy of fleet.yaml matches it")
    # A host that is silent for a night neither brings it back nor begins its countdown anew.
    if everywhere and not seen and vm.unprotected_since is not None:
        return Protection(policy=None, why="no host that answers defines it, and one is silent", sure=False)
    return Protection(policy=policy)


def _judge(holding: Holding, *, protected: Protection, fleet: Fleet, result: Report) -> tuple[str, list[Verdict]]:
    policy = protected.policy
    if policy is not None:
        return policy.name, judge(holding.points, rules=policy.retention, timezone=policy.timezone, now=result.now)
    since = holding.unprotected_since or result.now
    keep = fleet.unprotected.keep_orphaned
    verdicts = judge_unprotected(
        holding.points, keep_orphaned=keep if protected.sure else None, since=since, now=result.now
    )
    goes = "never, until somebody decides" if keep is None else f"{keep} after {since:%Y-%m-%d}"
    if keep is not None and not protected.sure:
        goes += ", and not before every host can be asked"
    result.unprotected.append(
        UnprotectedVm(
            vm=holding.vm,
            vm_uuid=holding.vm_uuid,
            why=protected.why,
            since=since,
            restorable=sum(point.status == BackupStatus.BACKED_UP for point in holding.points),
            goes=goes,
        )
    )
    return "unprotected", verdicts


def _count(result: Report, verdicts: Sequence[Verdict]) -> Counter[str]:
    """How many restorable ones each rule keeps of these, too."""
    result.backups += len(verdicts)
    restorable = [verdict for verdict in verdicts if verdict.point.status == BackupStatus.BACKED_UP]
    kept = Counter(verdict.rule for verdict in restorable if verdict.keep)
    result.restorable += len(restorable)
    result.rules += kept
    return kept
