"""The error tree: every class is a whole sentence with its data, crosses processes, and says whether to try again."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Iterator
from string import Formatter

import pytest
from airflow.sdk import ExceptionRetryPolicy, RetryAction
from nasbackup import errors
from nasbackup.airflow.retries import retry_policy
from nasbackup.errors import HostUnreachable, NasBackupError, RequestError


def tree(root: type[NasBackupError] = NasBackupError) -> Iterator[type[NasBackupError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


CLASSES = list(tree())
by_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


def gaps(kind: type[NasBackupError]) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(kind.template) if name]


def example(kind: type[NasBackupError]) -> NasBackupError:
    return kind(**{name: f"<{name}>" for name in gaps(kind)})


def test_the_tree_is_not_empty_and_lives_in_one_package() -> None:
    assert len(CLASSES) > 30
    assert {kind.__module__.rpartition(".")[0] for kind in CLASSES} == {errors.__name__}
    assert sorted(errors.__all__) == sorted(kind.__name__ for kind in CLASSES)
    written = {thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, Exception)}
    assert written == set(CLASSES)


@by_class
def test_the_sentence_holds_all_of_its_data(kind: type[NasBackupError]) -> None:
    sentence = str(example(kind))
    assert gaps(kind)
    for name in gaps(kind):
        assert f"<{name}>" in sentence
    assert not re.search(r"[{}]", sentence)


@by_class
def test_data_with_braces_is_printed_as_it_is(kind: type[NasBackupError]) -> None:
    assert "{x}{0}{" in str(kind(**dict.fromkeys(gaps(kind), "{x}{0}{")))


@by_class
def test_it_survives_the_way_between_processes(kind: type[NasBackupError]) -> None:
    error = example(kind)
    for copied in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(copied) is kind
        assert (copied.data, str(copied)) == (error.data, str(error))


@by_class
def test_data_can_be_read_as_attributes_and_nothing_else_can(kind: type[NasBackupError]) -> None:
    error = example(kind)
    for name in gaps(kind):
        assert getattr(error, name) == f"<{name}>"
    with pytest.raises(AttributeError):
        _ = error.no_such_thing


@by_class
def test_it_says_whether_trying_again_can_help(kind: type[NasBackupError]) -> None:
    assert isinstance(kind.retryable, bool)


def test_a_gap_left_open_is_a_mistake_of_the_programmer() -> None:
    with pytest.raises(KeyError):
        errors.VmBusy(vm="i-2-1234-VM")


def test_what_was_asked_for_wrongly_is_never_tried_again() -> None:
    assert [kind.__name__ for kind in tree(RequestError) if kind.retryable] == []


# --- Airflow follows it ---------------------------------------------------------------------------------------


def serialized(policy: ExceptionRetryPolicy) -> ExceptionRetryPolicy:
    return ExceptionRetryPolicy.deserialize(json.loads(json.dumps(policy.serialize())))


@pytest.fixture(scope="module", params=["as made", "as Airflow stores it"])
def policy(request: pytest.FixtureRequest) -> ExceptionRetryPolicy:
    return retry_policy() if request.param == "as made" else serialized(retry_policy())


@by_class
def test_airflow_fails_at_once_exactly_on_what_cannot_be_retried(
    policy: ExceptionRetryPolicy, kind: type[NasBackupError]
) -> None:
    decision = policy.evaluate(example(kind), try_number=1, max_tries=3)
    if kind.retryable:
        assert decision.action is RetryAction.DEFAULT
    else:
        assert decision.action is RetryAction.FAIL
        assert "would not help" in str(decision.reason)


@pytest.mark.parametrize("foreign", [RuntimeError("bug"), OSError(5, "EIO"), TimeoutError(), KeyError("x")])
def test_errors_of_others_follow_the_tasks_retries(policy: ExceptionRetryPolicy, foreign: Exception) -> None:
    assert policy.evaluate(foreign, try_number=1, max_tries=3).action is RetryAction.DEFAULT


def test_a_retryable_class_below_one_that_is_not_is_still_retried(policy: ExceptionRetryPolicy) -> None:
    assert not NasBackupError.retryable
    assert HostUnreachable.retryable
    unreachable = HostUnreachable(host="h", uri="u", reason="r")
    assert policy.evaluate(unreachable, try_number=1, max_tries=3).action is not RetryAction.FAIL
