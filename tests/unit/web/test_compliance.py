"""SLO and error budget over 30 days."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nasbackup.web.compliance import DAYS, compliance, of_policies

TODAY = date(2026, 11, 25)


def day(back: int) -> date:
    return TODAY - timedelta(days=back)


def test_half_of_the_budget_is_left_when_half_of_what_may_fail_has_failed() -> None:
    found = compliance(name="gold", slo=99, counted=[(day(n), 100, 100 if n else 85) for n in range(30)], today=TODAY)
    assert (found.looks, found.compliant) == (3000, 2985)
    assert found.percent == pytest.approx(99.5)
    assert found.budget_left == pytest.approx(50)
    assert found.met


def test_a_missed_objective_has_less_than_nothing_left() -> None:
    found = compliance(name="gold", slo=99, counted=[(day(0), 100, 97)], today=TODAY)
    assert not found.met
    assert found.budget_left == pytest.approx(-200)


def test_an_objective_of_all_has_no_budget() -> None:
    kept = compliance(name="gold", slo=100, counted=[(day(0), 10, 10)], today=TODAY)
    broken = compliance(name="gold", slo=100, counted=[(day(0), 10, 9)], today=TODAY)
    assert (kept.met, kept.budget_left) == (True, 100)
    assert (broken.met, broken.budget_left) == (False, -100)


def test_days_without_a_look_are_gaps_and_older_ones_do_not_count() -> None:
    found = compliance(name="gold", slo=99, counted=[(day(30), 100, 0), (day(29), 4, 3), (day(0), 2, 2)], today=TODAY)
    assert len(found.days) == DAYS
    assert (found.days[0].percent, found.days[1].percent, found.days[-1].percent) == (75, None, 100)
    assert (found.looks, found.compliant) == (6, 5)


def test_nobody_has_looked() -> None:
    found = compliance(name="gold", slo=99, counted=[], today=TODAY)
    assert (found.percent, found.budget_left, found.met) == (None, None, True)


def test_policies_come_in_the_order_of_fleet_yaml_then_those_that_it_has_no_more() -> None:
    found = of_policies(
        counted=[("old", day(1), 10, 9), ("gold", day(0), 10, 10)],
        now={"standard": (6, 5, 4), "gold": (2, 2, 2), "none": (3, 0, 0)},
        objectives={"gold": 99.9, "standard": 95, "unused": 99, "none": 99},
        today=TODAY,
    )
    assert [(policy.name, policy.slo, policy.vms) for policy in found] == [
        ("gold", 99.9, 2),
        ("standard", 95, 6),
        ("none", 99, 3),
        ("old", 99.0, 0),
    ]
    assert found[1].percent_now == pytest.approx(80)
    assert (found[2].percent_now, [policy.nothing_promised for policy in found]) == (None, [False, False, True, False])


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 500), st.floats(0, 1)), max_size=60), st.floats(50, 99.99))
def test_the_budget_is_used_up_exactly_when_the_objective_is_missed(
    days: list[tuple[int, int, float]], slo: float
) -> None:
    counted = [(day(back), looks, int(looks * share)) for back, looks, share in days]
    found = compliance(name="p", slo=slo, counted=counted, today=TODAY)
    if found.budget_left is None:
        assert found.met
    elif abs(found.budget_left) > 1e-6:  # at the very edge both sides round
        assert found.met == (found.budget_left > 0)
        assert found.budget_left <= 100
