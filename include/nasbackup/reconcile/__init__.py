"""Bring hosts and repositories to what the catalog says: whatever a crash left behind is found and taken away."""

from nasbackup.reconcile.act import act
from nasbackup.reconcile.observe import observe
from nasbackup.reconcile.plan import Action, Plan, plan

__all__ = ["Action", "Plan", "act", "observe", "plan"]
