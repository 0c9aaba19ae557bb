"""Settings come from Variables with an override per zone; a bad value is refused by the name of its Variable."""

from __future__ import annotations

import pytest
from nasbackup.errors import SettingInvalid
from nasbackup.settings import FULL_EVERY, INCREMENTAL_ENABLED, STOPPED_INCREMENTAL_ENABLED, Settings, resolve

BOOLEANS = [INCREMENTAL_ENABLED, STOPPED_INCREMENTAL_ENABLED]


def test_without_variables_the_documented_defaults_hold() -> None:
    assert resolve({}.get, zone="default") == Settings(
        incremental_enabled=True, full_every=10, stopped_incremental_enabled=False
    )


def test_the_keys_are_those_that_operators_know() -> None:
    assert (INCREMENTAL_ENABLED, FULL_EVERY, STOPPED_INCREMENTAL_ENABLED) == (
        "nas.backup.incremental.enabled",
        "nas.backup.full.every",
        "nas.backup.stopped.incremental.enabled",
    )


def test_global_variables_hold_in_every_zone() -> None:
    variables = {INCREMENTAL_ENABLED: "false", FULL_EVERY: "3", STOPPED_INCREMENTAL_ENABLED: "true"}
    expected = Settings(incremental_enabled=False, full_every=3, stopped_incremental_enabled=True)
    assert resolve(variables.get, zone="one") == resolve(variables.get, zone="two") == expected


@pytest.mark.parametrize(
    ("key", "everywhere", "in_zone", "field", "expected"),
    [
        (INCREMENTAL_ENABLED, "true", "false", "incremental_enabled", False),
        (FULL_EVERY, "7", "2", "full_every", 2),
        (STOPPED_INCREMENTAL_ENABLED, "false", "true", "stopped_incremental_enabled", True),
    ],
)
def test_the_zones_override_wins_in_its_zone_only(
    key: str, everywhere: str, in_zone: str, field: str, expected: object
) -> None:
    variables = {key: everywhere, f"{key}.east": in_zone}
    assert getattr(resolve(variables.get, zone="east"), field) == expected
    assert getattr(resolve(variables.get, zone="west"), field) != expected


def test_an_override_holds_without_a_global_variable() -> None:
    assert resolve({f"{FULL_EVERY}.east": "4"}.get, zone="east").full_every == 4


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("1", 1), ("999999", 999999), (" 12 ", 12), ("007", 7)])
def test_counts_are_whole_numbers(text: str, value: int) -> None:
    assert resolve({FULL_EVERY: text}.get, zone="z").full_every == value


@pytest.mark.parametrize(("text", "value"), [("true", True), ("TRUE", True), (" False\n", False), ("false", False)])
def test_booleans_are_true_and_false_in_any_case(text: str, value: bool) -> None:
    assert resolve({INCREMENTAL_ENABLED: text}.get, zone="z").incremental_enabled is value


BAD_COUNTS = ["ten", "-1", "", " ", "1.5", "maybe", "1e1", "0x10", "+3", "1 0", "1_000", "None", "true", "1000000"]
# 10 in the digits of other scripts, which Python would take for numbers
BAD_COUNTS += ["9" * 5000, "\u0661\u0660", "\uff11\uff10", "²", "10\x00"]
BAD_BOOLEANS = [
    "maybe",
    "",
    " ",
    "yes",
    "no",
    "1",
    "0",
    "on",
    "off",
    "None",
    "truefalse",
    "tru",
    "\uff54\uff52\uff55\uff45",
]


@pytest.mark.parametrize("name", [FULL_EVERY, f"{FULL_EVERY}.east"])
@pytest.mark.parametrize("value", BAD_COUNTS)
def test_a_bad_count_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SettingInvalid) as refused:
        resolve({name: value}.get, zone="east")
    assert refused.value.data["name"] == name
    assert str(refused.value).startswith(f"Variable {name} is {value!r}: it must be a whole number")


@pytest.mark.parametrize("key", BOOLEANS)
@pytest.mark.parametrize("value", BAD_BOOLEANS)
def test_a_bad_boolean_is_refused_by_name(key: str, value: str) -> None:
    for name in (key, f"{key}.east"):
        with pytest.raises(SettingInvalid) as refused:
            resolve({name: value}.get, zone="east")
        assert refused.value.data["name"] == name
        assert "it must be true or false" in str(refused.value)


def test_of_a_bad_override_and_a_good_global_value_the_override_is_named() -> None:
    with pytest.raises(SettingInvalid) as refused:
        resolve({FULL_EVERY: "10", f"{FULL_EVERY}.east": ""}.get, zone="east")
    assert refused.value.data["name"] == "nas.backup.full.every.east"


def test_an_empty_override_is_wrong_and_not_absent() -> None:
    with pytest.raises(SettingInvalid, match=r"Variable nas\.backup\.incremental\.enabled\.east is ''"):
        resolve({f"{INCREMENTAL_ENABLED}.east": "", INCREMENTAL_ENABLED: "true"}.get, zone="east")


def test_a_bad_value_that_does_not_hold_in_this_zone_hinders_nobody() -> None:
    variables = {FULL_EVERY: "ten", f"{FULL_EVERY}.east": "5", f"{FULL_EVERY}.west": "-1"}
    assert resolve(variables.get, zone="east").full_every == 5
