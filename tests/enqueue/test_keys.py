"""The same key, or the same task id, is the same job."""

from __future__ import annotations

import enum
import threading
import uuid
from typing import Any

import pytest
from django.db import connection, transaction

from reliable_jobs.enqueue import keys
from reliable_jobs.errors import InvalidOption, KeyBusy, KeyConflict
from reliable_jobs.models import Job
from tests.enqueue import outbox_calls
from tests.enqueue.outbox_calls import Undo, kept, sent
from tests.support import inprocess
from tests.support.harness import Stack, Transaction
from tests.support.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Effect

publishes = outbox_calls.publishes
jobs = inprocess.jobs

# --- keys (C5) --------------------------------------------------------------------------------------------------------


def test_the_same_key_is_the_same_job(jobs: InProcess, publishes: list[int]) -> None:
    first = tasks.effect.apply_async(("one",), key="k")
    second = tasks.effect.apply_async(("one",), key="k")
    assert first.id == second.id
    assert Job.objects.count() == 1
    assert publishes == [1]


def test_the_same_key_twice_in_one_transaction_is_one_job(jobs: InProcess, publishes: list[int]) -> None:
    with transaction.atomic():
        ids = {tasks.effect.apply_async(("one",), key="k").id for _ in range(3)}
    assert kept() == sent(jobs) == ids
    assert publishes == [1]


def test_other_arguments_under_a_used_key_are_an_error_that_names_both(jobs: InProcess) -> None:
    first = tasks.effect.apply_async(("one",), key="k")
    with transaction.atomic():
        with pytest.raises(KeyConflict, match=r"key 'k' already belongs to job .* other arguments") as caught:
            tasks.effect.apply_async(("two",), key="k")
        Effect.objects.create(name="the transaction goes on")
    assert first.id in str(caught.value)
    assert jobs.effects("the transaction goes on") == 1


def test_a_key_is_free_again_once_its_job_is_settled(jobs: InProcess) -> None:
    first = tasks.effect.apply_async(("one",), key="k")
    jobs.work()
    assert jobs.row(first).status == "succeeded"
    second = tasks.effect.apply_async(("two",), key="k")
    assert first.id != second.id
    assert set(Job.objects.values_list("key", flat=True)) == {"k"}


def test_a_key_is_free_again_after_a_failure(jobs: InProcess) -> None:
    first = tasks.fails.apply_async(("one",), key="k")
    jobs.work()
    assert jobs.row(first).status == "failed"
    assert tasks.fails.apply_async(("two",), key="k").id != first.id


def test_a_key_is_kept_while_its_job_retries(jobs: InProcess) -> None:
    first = tasks.fails_first.apply_async(("one", 2), key="k")
    jobs.work()
    assert jobs.row(first).failures == 1
    assert tasks.fails_first.apply_async(("one", 2), key="k").id == first.id
    jobs.finish()
    assert Job.objects.count() == 1


def test_a_key_for_ever_stays_taken_after_its_job_has_settled(jobs: InProcess) -> None:
    first = tasks.effect.apply_async(("one",), key="k", key_forever=True)
    jobs.work()
    assert tasks.effect.apply_async(("one",), key="k", key_forever=True).id == first.id
    assert tasks.effect.apply_async(("one",), key="k").id == first.id
    with pytest.raises(KeyConflict):
        tasks.effect.apply_async(("two",), key="k", key_forever=True)
    assert jobs.effects("one") == 1


def test_a_key_belongs_to_its_task(jobs: InProcess) -> None:
    assert tasks.effect.apply_async(("k",), key="k").id != tasks.fails.apply_async(("k",), key="k").id


@pytest.mark.promise("I1")
def test_a_key_whose_transaction_rolled_back_is_free(jobs: InProcess) -> None:
    with pytest.raises(Undo), transaction.atomic():
        tasks.effect.apply_async(("one",), key="k")
        raise Undo
    result = tasks.effect.apply_async(("two",), key="k")
    assert kept() == sent(jobs) == {result.id}


@pytest.mark.parametrize("key", ["", "x" * 256, 5.0, True, b"k", 10**300], ids=repr)
def test_a_key_must_be_a_text_that_fits(jobs: InProcess, key: Any) -> None:
    with pytest.raises(InvalidOption, match="1 to 255 characters"):
        tasks.effect.apply_async(("x",), key=key)
    assert kept() == set()


@pytest.mark.parametrize(
    ("key", "text"),
    [(5, "5"), (enum.IntEnum("N", {"FIVE": 5}).FIVE, "5"), (uuid.UUID(int=1), str(uuid.UUID(int=1)))],
    ids=repr,
)
def test_c5_a_number_or_uuid_is_the_key_that_its_text_is(jobs: InProcess, key: Any, text: str) -> None:
    first = tasks.effect.apply_async(("x",), key=key)
    assert tasks.effect.apply_async(("x",), key=text).id == first.id
    assert Job.objects.get().key == text


def test_a_key_with_a_nul_character_is_refused_and_not_by_the_database(jobs: InProcess) -> None:
    with pytest.raises(InvalidOption, match="key="):
        tasks.effect.apply_async(("x",), key="a\u0000b")


@pytest.mark.servers
def test_a_key_held_by_an_open_transaction_is_waited_for_then_busy(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "KEY_LOCK_TIMEOUT_MS", 150)
    other = Transaction(lambda: tasks.effect.apply_async(("one",), key="k"))
    with transaction.atomic():
        with pytest.raises(KeyBusy, match="another open transaction"):
            tasks.effect.apply_async(("one",), key="k")
        Effect.objects.create(name="goes on")
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('lock_timeout')")
            assert cursor.fetchone()[0] == "0"
    other.end()
    assert stack.effects("goes on") == 1
    assert tasks.effect.apply_async(("one",), key="k").id == other.answer.id


@pytest.mark.servers
@pytest.mark.parametrize("commit", [True, False])
def test_a_key_that_another_transaction_leaves_is_taken_or_shared(stack: Stack, commit: bool) -> None:
    other = Transaction(lambda: tasks.effect.apply_async(("one",), key="k"))
    threading.Timer(0.2, lambda: other.end(commit=commit)).start()
    mine = tasks.effect.apply_async(("one",), key="k")
    assert (mine.id == other.answer.id) == commit
    assert Job.objects.count() == 1


# --- task ids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, uuid.UUID])
def test_a_given_task_id_is_the_jobs_id(jobs: InProcess, kind: Any) -> None:
    given = str(uuid.uuid4())
    assert tasks.effect.apply_async(("x",), task_id=kind(given)).id == given
    assert kept() == sent(jobs) == {given}


def test_a_waiting_task_id_is_the_same_job(jobs: InProcess, publishes: list[int]) -> None:
    given = str(uuid.uuid4())
    for _ in range(2):
        assert tasks.effect.apply_async(("x",), task_id=given).id == given
    assert Job.objects.count() == 1
    assert publishes == [1]


def test_a_waiting_task_id_with_other_arguments_is_an_error(jobs: InProcess) -> None:
    given = str(uuid.uuid4())
    tasks.effect.apply_async(("x",), task_id=given)
    with pytest.raises(KeyConflict, match=f"task id {given}"):
        tasks.effect.apply_async(("y",), task_id=given)


def test_a_task_id_that_has_settled_is_an_error_that_says_what_to_do(jobs: InProcess) -> None:
    given = str(uuid.uuid4())
    tasks.effect.apply_async(("x",), task_id=given)
    jobs.work()
    with pytest.raises(KeyConflict, match=r"succeeded already.*requeue that job"):
        tasks.effect.apply_async(("x",), task_id=given)
    assert jobs.effects("x") == 1


@pytest.mark.parametrize("given", ["order-5", 5, "", "g" * 32], ids=repr)
def test_a_task_id_that_is_no_uuid_is_refused_naming_key(jobs: InProcess, given: Any) -> None:
    with pytest.raises(InvalidOption, match=r"not a UUID.*key="):
        tasks.effect.apply_async(("x",), task_id=given)


def test_a_task_id_and_a_key_that_name_different_jobs_are_an_error(jobs: InProcess) -> None:
    one, two = str(uuid.uuid4()), str(uuid.uuid4())
    tasks.effect.apply_async(("x",), task_id=one)
    tasks.effect.apply_async(("x",), task_id=two, key="k")
    assert tasks.effect.apply_async(("x",), task_id=two, key="k").id == two
    with pytest.raises(KeyConflict):
        tasks.effect.apply_async(("x",), task_id=one, key="k2")
