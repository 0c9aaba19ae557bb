"""Bodies of the tasks of the policies' DAGs: which VMs are due, and what their runs are told."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from nasbackup import fleet
from nasbackup.airflow import hooks, mapped
from nasbackup.airflow.forms import policy_params, require_known_keys
from nasbackup.catalog import Database, due
from nasbackup.fleet import Fleet, Policy
from nasbackup.fleet.last_valid import last_valid
from nasbackup.hypervisor.survey import vms_of
from nasbackup.model import SeenVm
from nasbackup.sla.freshness import age_of

log = logging.getLogger(__name__)

Payload = dict[str, Any]


def is_open(*, policy: str, params: Mapping[str, Any], now: datetime | None = None) -> bool:
    """Whether backups may be begun now. Raises UnknownPolicy, FleetInvalid."""
    now = now or datetime.now(UTC)
    opens = last_valid().policy(policy).opens(now)
    if opens > now and not params["ignore_blackout"]:
        log.info("A blackout window: nothing is begun before %s", opens)
        return False
    return True


def due_vms(
    *, policy: str, host: str, params: Mapping[str, Any], conf: Mapping[str, Any] | None, run: str
) -> list[Payload]:
    """The policy's VMs on this host, those with the oldest backups first: what ``nas_backup`` is triggered with.

    ``run``: the policy's DAG and run id, of which each VM's run id is made. Left out are a VM that is being backed up
    already, a stopped one that a migration left behind, and what Airflow cannot map. Raises HostUnreachable,
    CatalogUnreachable, UnknownPolicy.
    """
    require_known_keys(conf, form=policy_params())
    known = last_valid()
    promised = known.policy(policy)
    seen = vms_of(hooks.LibvirtHook(libvirt_conn_id=host).get_conn())
    mine = [
        vm for vm in seen if _has(vm, policy=promised, known=known) and fleet.is_chosen(vm.name, params["vms"] or ())
    ]
    chosen, states = _in_need(hooks.catalog(), vms=mine, now=datetime.now(UTC))
    for vm in chosen:
        log.info("%s is due", vm.name)
    most = mapped.most()
    if len(chosen) > most:  # those left over are due at the next run, and then first
        log.warning(
            "%d VMs are due: %d of them are left for the next run. [core] max_map_length of Airflow is %d",
            len(chosen),
            len(chosen) - most,
            most,
        )
    log.info("%d of the %d VMs of %s have policy %s; %d are due", len(mine), len(seen), host, policy, len(chosen))
    if params["dry_run"]:
        log.info("A dry run: nothing is begun")
        return []
    return [
        {
            "vm": vm.name,
            "trigger_run_id": f"{run}__{vm.uuid}",
            "conf": _conf(
                vm,
                policy=promised,
                repository=known.repository_of(
                    promised,
                    host=host,
                    vm_uuid=vm.uuid,
                    holds=states[vm.uuid].holds if vm.uuid in states else "",
                ),
                mode=params["mode"],
            ),
        }
        for vm in chosen[:most]
    ]


def _conf(vm: SeenVm, *, policy: Policy, repository: str, mode: str) -> Payload:
    return {
        "vm": vm.name,
        "host": vm.host,
        "repository": repository,
        "mode": mode,
        **policy.params(),
    }


def _has(vm: SeenVm, *, policy: Policy, known: Fleet) -> bool:
    found = known.policy_of(vm=vm.name, host=vm.host, title=vm.title, metadata=vm.metadata)
    return found is not None and found.name == policy.name


def _in_need(
    database: Database, *, vms: Sequence[SeenVm], now: datetime
) -> tuple[list[SeenVm], Mapping[str, due.DueState]]:
    """Those to be backed up here, in the order of need: what was never backed up (or nobody knows when), the oldest.

    With what the catalog knows of them, by UUID.
    """
    with database.transaction() as cursor:
        states = due.states(cursor, vm_uuids=[vm.uuid for vm in vms])
    chosen = []
    for vm in vms:
        state = states.get(vm.uuid)
        if state is not None and state.backed_up_by:
            log.warning("%s is left out: it is being backed up by %s", vm.name, state.backed_up_by)
        elif state is not None and state.is_left_behind(host=vm.host, state=vm.state):
            log.warning(
                "%s is left out: it is stopped here, and nas_sla_watch saw it on host %s, whose branch backs it up. "
                "Undefine it here if a migration left it behind; start it here if this is the right one",
                vm.name,
                state.seen_on,
            )
        else:
            chosen.append(vm)

    def age(vm: SeenVm) -> timedelta:
        known = age_of(states[vm.uuid].newest_at, now=now) if vm.uuid in states else None
        return timedelta.max if known is None else known

    return sorted(chosen, key=age, reverse=True), states
