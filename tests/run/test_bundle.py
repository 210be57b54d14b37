"""Bundles: many small jobs in one message and one transaction, each with the promises of a single one."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from celery import shared_task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded, WorkerTerminate
from django.db import OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django_celery_results.models import TaskResult

from reliable_jobs import ReliableTask, lifecycle
from reliable_jobs.dispatch import bundles
from reliable_jobs.message.row_to_message import HEADER
from reliable_jobs.models import Job
from reliable_jobs.run import bundle_transaction, kept_connections
from reliable_jobs.workflow import chords
from tests.celery_app import app
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp.models import Effect

jobs = inprocess.jobs

HEARD: list[tuple[str, Any]] = []
RUNS: list[Any] = []


@pytest.fixture(autouse=True)
def _a_worker_that_keeps_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_connections, "active", True)
    HEARD.clear()
    RUNS.clear()


class Told(ReliableTask):
    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        HEARD.append(("before_start", args[0]))

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        if list(args[1:]) == ["reject"]:
            raise Reject("by its own hook")
        HEARD.append(("on_success", (args[0], connection.in_atomic_block)))

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        HEARD.append(("on_failure", args[0]))


@shared_task(base=Told, name="test_bundle.small", bind=True, bundle=4)
def small(self: Any, number: int, what: str = "") -> Any:
    Effect.objects.create(name=f"small {number}")
    RUNS.append(number)
    if what == "fail" or (what == "fail once" and RUNS.count(number) == 1):
        raise ValueError("no")
    if what == "retry" and self.request.retries == 0:
        raise self.retry(countdown=0)
    if what == "ignore":
        raise Ignore("as it wished")
    if what == "exit":
        raise SystemExit(3)
    if what == "shutdown":
        raise WorkerTerminate
    if what == "soft" and RUNS.count(number) == 1:
        raise SoftTimeLimitExceeded
    if what == "roll back":
        transaction.set_rollback(True)
    if what == "child":
        small.delay(number + 100)
    if what.startswith("sql: "):
        with connection.cursor() as cursor:
            cursor.execute(what.removeprefix("sql: "))
    if what == "composed":
        with connection.cursor() as cursor:
            cursor.execute(Composed("COMMIT"))
    if what == "bad hook":
        transaction.on_commit(lambda: 1 / 0)
    transaction.on_commit(lambda: HEARD.append(("hook", number)))
    if what == "secret":
        raise ValueError("the password is hunter2")
    return {"number": number, "id": self.request.id} if what == "result" else None


class Composed:
    """As psycopg's ``sql.SQL``, for any driver."""

    def __init__(self, text: str) -> None:
        self.text = text

    def as_string(self, context: Any) -> str:
        return self.text


def enqueue(*calls: tuple[Any, ...]) -> list[uuid.UUID]:
    """In one transaction, so that its commit can bundle them."""
    with transaction.atomic():
        return [uuid.UUID(small.delay(*call).id) for call in calls]


def effects() -> list[str]:
    return sorted(Effect.objects.values_list("name", flat=True))


def statuses(ids: list[uuid.UUID]) -> list[str]:
    rows = Job.objects.in_bulk(ids)
    return [rows[job_id].status for job_id in ids]


# --- packing ----------------------------------------------------------------------------------------------------------


def test_the_jobs_of_one_commit_travel_together_and_the_odd_one_alone(jobs: InProcess) -> None:
    ids = enqueue(*[(number,) for number in range(9)])
    messages = jobs.take()
    assert sorted(message.headers["task"] for message in messages) == [bundles.TASK, bundles.TASK, "test_bundle.small"]
    carried = [pointer[0] for message in messages for pointer in _pointers(message)]
    assert carried == [job_id.hex for job_id in ids[:8]]
    assert set(Job.objects.values_list("sends", flat=True)) == {1}


def _pointers(message: Any) -> list[list[Any]]:
    return json.loads(message.body)[0][2] if message.headers["task"] == bundles.TASK else []


def test_other_queues_and_priorities_travel_apart(jobs: InProcess) -> None:
    with transaction.atomic():
        for number in range(2):
            small.apply_async((number,))
            small.apply_async((number,), priority=3)
            small.apply_async((number,), time_limit=5)
    messages = jobs.take()
    assert sorted(message.headers["task"] for message in messages) == [bundles.TASK] * 2 + ["test_bundle.small"] * 2
    assert sorted(message.properties.get("priority") or 0 for message in messages) == [0, 0, 0, 3]


@pytest.mark.parametrize("attributes", [{"rate_limit": "10/s"}, {"atomic": False}])
def test_what_can_share_no_transaction_is_never_bundled(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, attributes: dict[str, Any]
) -> None:
    for name, value in attributes.items():
        monkeypatch.setattr(type(app.tasks[small.name]), name, value)
    enqueue(*[(number,) for number in range(4)])
    assert {message.headers["task"] for message in jobs.take()} == {small.name}


def test_the_sweeper_bundles_first_sends_and_sends_the_others_alone(jobs: InProcess) -> None:
    with transaction.atomic():
        for number in range(4):
            small.apply_async((number,), countdown=1)
    first = Job.objects.order_by("pk")[0]
    Job.objects.update(due_at=first.created_at)
    assert jobs.sweep().published == 4
    assert [message.headers["task"] for message in jobs.take()] == [bundles.TASK]
    Job.objects.update(check_at=first.created_at)
    assert jobs.sweep().republished == 4
    assert [message.headers["task"] for message in jobs.take()] == ["test_bundle.small"] * 4


# --- running ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("I3")
def test_a_bundle_of_successes_is_one_transaction_and_celery_hears_all(jobs: InProcess) -> None:
    ids = enqueue((0, "result"), (1,), (2,))
    (done,) = jobs.work()
    assert done.answer == "acked"
    assert statuses(ids) == ["succeeded"] * 3
    assert effects() == ["small 0", "small 1", "small 2"]
    first = Job.objects.get(pk=ids[0])
    assert json.loads(first.result) == {"number": 0, "id": str(ids[0])}
    assert first.worker
    assert first.started_at
    assert first.finished_at
    assert (first.epoch, first.sends, first.failures, first.crashes) == (1, 1, 0, 0)
    assert [name for name in done.signals if name != "task_prerun"] == ["task_success", "task_postrun"] * 4
    assert done.signals.count("task_prerun") == 4  # the carrier's too
    assert [what for what, _ in HEARD] == ["before_start"] * 3 + ["hook"] * 3 + ["on_success"] * 3
    assert {told for what, told in HEARD if what == "on_success"} == {(0, False), (1, False), (2, False)}
    assert small.AsyncResult(str(ids[0])).get(timeout=1) == {"number": 0, "id": str(ids[0])}


@pytest.mark.promise("I3")
@pytest.mark.parametrize(
    ("what", "status"),
    [
        ("fail", "failed"),
        ("fail once", "succeeded"),
        ("retry", "succeeded"),
        ("ignore", "succeeded"),
        ("exit", "failed"),
        ("soft", "succeeded"),
        ("roll back", "succeeded"),
    ],
)
def test_one_that_does_not_succeed_plainly_leaves_its_neighbours_alone(jobs: InProcess, what: str, status: str) -> None:
    ids = enqueue((0,), (1, what), (2,))
    jobs.finish()
    assert statuses(ids) == ["succeeded", status, "succeeded"]
    kept_effect = status == "succeeded" and what != "roll back"
    assert effects() == ["small 0", *(["small 1"] if kept_effect else []), "small 2"]
    assert Job.objects.get(pk=ids[1]).failures == (1 if what in ("fail", "retry", "exit") else 0)
    for number in (0, 2):
        assert [told for told in HEARD if told == ("on_success", (number, False))] == [("on_success", (number, False))]
    assert ("on_failure", 0) not in HEARD
    assert HEARD.count(("on_failure", 1)) == (1 if status == "failed" else 0)


def test_a_failing_one_costs_its_neighbours_one_more_run_and_no_more(jobs: InProcess) -> None:
    enqueue((0,), (1, "fail"), (2,), (3,))
    jobs.finish()
    assert [RUNS.count(number) for number in range(4)] == [2, 3, 1, 1]
    assert set(Job.objects.filter(status="succeeded").values_list("sends", flat=True)) == {1}


@pytest.mark.promise("I2")
def test_a_stopped_process_keeps_nothing_and_the_jobs_run_alone(jobs: InProcess) -> None:
    ids = enqueue((0,), (1, "shutdown"))
    (message,) = jobs.take()
    with pytest.raises(WorkerTerminate):
        jobs.deliver(message)
    assert effects() == []
    assert statuses(ids) == ["waiting"] * 2
    assert not connection.in_atomic_block
    RUNS[:] = []
    Job.objects.filter(pk=ids[1]).update(payload=Job.objects.get(pk=ids[0]).payload)
    jobs.deliver(message, redelivered=True)
    assert RUNS == []
    jobs.finish()
    assert statuses(ids) == ["succeeded"] * 2
    assert set(Job.objects.values_list("sends", flat=True)) == {2}


@pytest.mark.promise("I3")
def test_jobs_enqueued_in_a_bundle_commit_and_go_with_their_parent(jobs: InProcess) -> None:
    enqueue((0, "child"), (1, "child"))
    jobs.finish()
    assert effects() == ["small 0", "small 1", "small 100", "small 101"]
    assert Job.objects.filter(parent_id__isnull=False).count() == 2
    enqueue((2, "child"), (3, "fail"))
    jobs.finish()
    assert Job.objects.filter(status="succeeded").count() == 6


@pytest.mark.promise("I4")
def test_a_copy_of_a_bundle_runs_nothing_again(jobs: InProcess) -> None:
    enqueue((0,), (1,))
    (message,) = jobs.take()
    jobs.deliver(message)
    jobs.deliver(message)
    jobs.deliver(message, redelivered=True)
    assert jobs.take() == []
    assert effects() == ["small 0", "small 1"]


@pytest.mark.promise("I3")
def test_a_redelivered_bundle_does_what_comes_after_the_commit(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = enqueue((0, "result"), (1,), (2, "fail"))
    (message,) = jobs.take()
    jobs.deliver(message)
    TaskResult.objects.all().delete()  # as if the worker had died between its commit and the store
    looked: list[Any] = []
    monkeypatch.setattr(chords, "part_ended", lambda app, group, using, **left: looked.append(group))
    waited_for = uuid.uuid4()
    Job.objects.filter(pk=ids[1]).update(owes=waited_for)
    RUNS[:] = []
    jobs.deliver(message, redelivered=True)
    stored = {result.task_id: result for result in TaskResult.objects.all()}
    assert set(stored) == {str(ids[0]), str(ids[1])}
    assert json.loads(stored[str(ids[0])].result) == {"number": 0, "id": str(ids[0])}
    assert looked == [waited_for]
    assert RUNS == []
    jobs.finish()
    assert statuses(ids) == ["succeeded", "succeeded", "failed"]


@pytest.mark.promise("I3")
def test_a_message_of_an_earlier_content_and_a_cancelled_job_are_left_out(jobs: InProcess) -> None:
    ids = enqueue((0,), (1,), (2,))
    Job.objects.filter(pk=ids[0]).update(content_version=1)
    lifecycle.cancel([ids[1]], "default", actor="test")
    (message,) = jobs.take()
    jobs.deliver(message)
    assert statuses(ids) == ["waiting", "cancelled", "succeeded"]
    jobs.finish()  # the changed one was sent with its new content
    assert effects() == ["small 0", "small 2"]


def test_what_failed_before_has_follow_ups_or_expired_runs_alone(jobs: InProcess) -> None:
    with transaction.atomic():
        linked = small.apply_async((0,), link=small.si(10))
        expired = small.apply_async((1,), expires=3600)
        failed, plain = small.delay(2), small.delay(3)
    created = Job.objects.get(pk=expired.id).created_at
    Job.objects.filter(pk=expired.id).update(expires_at=created)
    Job.objects.filter(pk=failed.id).update(failures=1)
    (message,) = jobs.take()
    jobs.deliver(message)
    assert [RUNS, Job.objects.get(pk=plain.id).status] == [[3], "succeeded"]
    jobs.finish()
    assert statuses([uuid.UUID(one.id) for one in (linked, expired, failed)]) == ["succeeded", "expired", "succeeded"]
    assert effects() == ["small 0", "small 10", "small 2", "small 3"]


def test_a_worker_that_closes_its_connections_takes_bundles_apart(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_connections, "active", False)
    ids = enqueue((0,), (1,))
    jobs.finish()
    assert statuses(ids) == ["succeeded"] * 2
    assert set(Job.objects.values_list("sends", flat=True)) == {2}


@pytest.mark.promise("I7")
def test_a_bundle_of_an_unknown_task_goes_on_as_single_messages(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue((0,), (1,))
    (message,) = jobs.take()
    with monkeypatch.context() as patch:
        patch.delitem(app.tasks, small.name)
        jobs.deliver(message)
    assert [message.headers["task"] for message in jobs.take()] == [small.name] * 2


def test_a_forged_bundle_runs_no_job_of_another_task(jobs: InProcess) -> None:
    enqueue((0,), (1,))
    (message,) = jobs.take()
    body = json.loads(message.body)
    body[0][0] = "test_execution.hooked"
    forged = jobs.through_broker(
        json.dumps(body).encode(), "application/json", "utf-8", dict(message.headers), {"delivery_mode": 2}
    )
    jobs.deliver(forged)
    assert RUNS == []


def test_pointers_keep_their_header_so_that_a_single_message_is_as_ever(jobs: InProcess) -> None:
    enqueue((0,))
    (message,) = jobs.take()
    assert message.headers[HEADER]["send"] == 1


# --- what a review found ----------------------------------------------------------------------------------------------


@pytest.mark.promise("I3")
@pytest.mark.parametrize(
    "what",
    [
        "composed",
        "sql: /* x */ COMMIT",
        "sql: -- x\n commit",
        "sql: SELECT 1; COMMIT",
        "sql: ROLLBACK",
        "sql: SELECT '--'; COMMIT",
        "sql: SELECT '/*'; COMMIT /* */",
    ],
)
def test_one_that_tampers_with_the_transaction_costs_no_neighbour(jobs: InProcess, what: str) -> None:
    ids = enqueue((0,), (1, what), (2,))
    (message,) = jobs.take()
    jobs.deliver(message)
    assert statuses(ids)[1] == "waiting", "it is to fail alone"
    assert not connection.in_atomic_block
    Job.objects.filter(pk=ids[1]).delete()
    jobs.finish()
    assert [row.status for row in Job.objects.all()] == ["succeeded"] * 2
    assert effects() == ["small 0", "small 2"]
    assert [HEARD.count(("on_success", (number, False))) for number in (0, 2)] == [1, 1]


@pytest.mark.promise("I5")
def test_an_error_between_two_bodies_fails_neither(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = enqueue((0,), (1,), (2,))
    (message,) = jobs.take()
    real, calls = bundle_transaction.outgoing, []

    def outgoing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise OperationalError("the connection is lost")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(bundle_transaction, "outgoing", outgoing)
        jobs.deliver(message)
    assert [what for what, _ in HEARD if what.startswith("on_")] == []
    assert effects() == []
    jobs.finish()
    assert statuses(ids) == ["succeeded"] * 3
    assert not Job.objects.exclude(failures=0).exists()


def test_a_hook_that_rejects_ends_neither_the_bundle_nor_its_neighbours(jobs: InProcess) -> None:
    ids = enqueue((0, "reject"), (1,), (2, "reject"))
    (done,) = jobs.work()
    assert done.answer == "acked"
    assert statuses(ids) == ["succeeded"] * 3
    assert ("on_success", (1, False)) in HEARD


def test_a_claim_reads_all_that_a_bundle_wants_to_know_at_once(jobs: InProcess) -> None:
    enqueue((0,), (1,))
    with transaction.atomic():
        (first, _) = lifecycle.claim_many(
            small.name, dict.fromkeys(Job.objects.values_list("pk", flat=True), 0), "default"
        )
        with CaptureQueriesContext(connection) as queries:
            bundle_transaction.outgoing(first.job, "default")
            bundle_transaction.content(first.job)
    assert len(queries) == 0


def test_a_hook_that_fails_keeps_no_other_from_running_and_undoes_nothing(jobs: InProcess) -> None:
    ids = enqueue((0,), (1, "bad hook"), (2,))
    jobs.work()
    assert statuses(ids) == ["succeeded"] * 3
    assert [told for what, told in HEARD if what == "hook"] == [0, 1, 2]


def test_no_log_line_tells_what_an_error_said(jobs: InProcess, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="reliable_jobs.run")
    enqueue((0,), (1, "secret"))
    (message,) = jobs.take()
    jobs.deliver(message)
    mine = [record.getMessage() for record in caplog.records if record.name == "reliable_jobs.run.bundle_transaction"]
    assert mine
    assert "hunter2" not in "".join(mine)


def test_where_the_stack_gets_deep_the_rest_is_another_transaction(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = enqueue(*[(number,) for number in range(4)])
    monkeypatch.setattr(bundle_transaction, "LOOK_EVERY", 1)
    monkeypatch.setattr(bundle_transaction, "_stack_is_deep", lambda: True)
    jobs.work()
    assert statuses(ids) == ["succeeded"] * 4
    assert set(Job.objects.values_list("sends", flat=True)) == {1}
    assert Job.objects.values("finished_at").distinct().count() == 4


def test_a_hundred_jobs_fit_the_stack(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(app.tasks[small.name]), "bundle", 100)
    ids = enqueue(*[(number,) for number in range(100)])
    jobs.work()
    assert statuses(ids) == ["succeeded"] * 100
    assert set(Job.objects.values_list("sends", flat=True)) == {1}


@pytest.mark.promise("I3")
@pytest.mark.parametrize("committed", [True, False])
def test_an_error_out_of_the_commit_is_answered_by_the_rows(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    ids = enqueue((0,), (1,))
    (message,) = jobs.take()
    real, left = connection._commit, [1]

    def commit() -> None:
        if left and Job.objects.filter(status="succeeded").exists():
            left.clear()
            (real if committed else connection._rollback)()
            raise OperationalError("server closed the connection unexpectedly")
        real()

    with monkeypatch.context() as patch:
        patch.setattr(connection, "_commit", commit)
        jobs.deliver(message)
    assert not left
    assert [what for what, _ in HEARD if what == "on_success"] == ["on_success"] * (2 if committed else 0)
    jobs.finish()
    assert statuses(ids) == ["succeeded"] * 2
    assert effects() == ["small 0", "small 1"]
    assert [what for what, _ in HEARD if what == "on_success"] == ["on_success"] * 2


def test_a_wrong_size_disturbs_no_publish(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (None, "many", 0, -3):
        monkeypatch.setattr(type(app.tasks[small.name]), "bundle", size)
        enqueue((0,), (1,))
        assert len(jobs.take()) == 2
