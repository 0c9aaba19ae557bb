"""Bodies of the tasks of ``nas_reconcile``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from nasbackup.airflow import hooks
from nasbackup.airflow.forms import reconcile_params, require_known_keys
from nasbackup.fleet.last_valid import last_valid
from nasbackup.hypervisor import connect
from nasbackup.reconcile import Action, act, observe, plan
from nasbackup.reconcile.act import Outcome
from nasbackup.reconcile.plan import Kind
from nasbackup.steps.drill import sweep

log = logging.getLogger(__name__)

Payload = dict[str, Any]


def find(*, conf: Mapping[str, Any] | None) -> list[Payload]:
    """Plan for every host and every repository of its zone. Fails as a whole when one of them cannot be seen."""
    require_known_keys(conf, form=reconcile_params())
    plans = []
    for zone in last_valid().zones:
        for host in zone.hosts:
            for repository in zone.repositories:
                actions = plan(observe(hooks.site(host=host, repository=repository))).actions
                for action in actions:
                    log.info("%s %s: %s", action.kind, action.what, action.why)
                plans.append({"host": host, "repository": repository, "actions": [asdict(a) for a in actions]})
    return plans


def carry_out(*, found: Payload, dry_run: bool, run_id: str) -> list[Payload]:
    """Do it, unless this is a dry run; the outcome of each action."""
    actions = [Action(**{**action, "kind": Kind(action["kind"])}) for action in found["actions"]]
    to_do = [action for action in actions if action.kind is not Kind.REPORT]
    if dry_run:
        outcomes = [Outcome(action=action, done=False, note="dry run") for action in to_do]
    else:
        site = hooks.site(host=found["host"], repository=found["repository"])
        outcomes = act(site, actions=to_do, holder=f"nas_reconcile/{run_id}/{found['host']}/{found['repository']}")
        with connect(site.host) as hypervisor:
            for drilled in sweep(hypervisor):
                log.info("files of %s, which was killed, are removed", drilled)
    return [asdict(outcome) for outcome in outcomes]
