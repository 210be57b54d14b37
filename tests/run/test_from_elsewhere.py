"""Messages that no outbox wrote: the first delivery writes the job's row."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from reliable_jobs import jobs as public
from reliable_jobs.message.row_to_message import HEADER
from reliable_jobs.models import Job
from tests.run import run_tasks
from tests.run.run_tasks import again, hooked
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp import tasks

forget_hooks = run_tasks.forget_hooks
jobs = inprocess.jobs


def test_a_message_from_elsewhere_gets_a_receipt_and_runs_once(jobs: InProcess) -> None:
    message = jobs.foreign(tasks.effect.name, ["foreign"])
    for _ in range(3):
        assert jobs.deliver(message).answer == "acked"
    row = Job.objects.get()
    assert (str(row.pk), row.status, row.task) == (message.headers["id"], "succeeded", tasks.effect.name)
    assert jobs.effects("foreign") == 1


@pytest.mark.promise("I7")
def test_a_foreign_job_of_a_cancelled_workflow_does_not_start(jobs: InProcess) -> None:
    root = str(uuid.uuid4())
    first, second = (jobs.foreign(tasks.effect.name, [name], root_id=root) for name in ("first", "second"))
    jobs.deliver(first)
    assert [str(job.root_id) for job in Job.objects.all()] == [root]
    public.cancel_workflow(root, actor="ann")
    jobs.deliver(second)
    assert sorted(Job.objects.values_list("status", flat=True)) == ["cancelled", "succeeded"]
    assert (jobs.effects("first"), jobs.effects("second")) == (1, 0)


def test_a_message_from_elsewhere_with_an_id_that_is_no_uuid_runs_once(jobs: InProcess) -> None:
    message = jobs.foreign(tasks.effect.name, ["odd id"], id="order-5")
    for _ in range(2):
        assert jobs.deliver(message).answer == "acked"
    assert (Job.objects.get().status, jobs.effects("odd id")) == ("succeeded", 1)


@pytest.mark.promise("I7")
def test_a_message_from_elsewhere_need_not_name_its_character_set(jobs: InProcess) -> None:
    message = jobs.foreign(tasks.effect.name, ["foreign"])
    message.content_encoding = None
    assert jobs.deliver(message).answer == "acked"
    row = Job.objects.get()
    assert (row.status, row.content_encoding, jobs.effects("foreign")) == ("succeeded", "utf-8", 1)


def test_a_foreign_message_that_fails_is_recorded_and_can_be_requeued(jobs: InProcess) -> None:
    from reliable_jobs import lifecycle

    message = jobs.foreign(tasks.fails.name, ["foreign"], argsrepr="('foreign',)", x_unknown={"a": [1]})
    jobs.deliver(message)
    row = Job.objects.get()
    assert (row.status, row.error) == ("failed", "ValueError: no foreign")
    lifecycle.requeue([row.pk], "default", actor="ann")
    jobs.sweep()
    # The requeued message goes to the queue that it came from.
    (sent,) = jobs.take(row.queue)
    jobs.deliver(sent)
    assert jobs.row(row).failures == 1


FORGED: list[dict[str, Any]] = [
    {HEADER: None},
    {HEADER: "1"},
    {HEADER: []},
    {HEADER: {}},
    {HEADER: {"content_version": "x", "using": "default", "send": 1}},
    {HEADER: {"content_version": None, "using": None, "send": None}},
    {HEADER: {"content_version": 0, "using": "nowhere", "send": 1}},
    {HEADER: {"content_version": 0, "using": {"a": 1}, "send": []}},
    {HEADER: {"content_version": 2**70, "using": "default", "send": -5}},
    {HEADER: {"content_version": 1.5, "using": "default", "send": 1.5}},
    {HEADER: {"content_version": True, "using": "default", "send": True}},
    {"root_id": "x", "parent_id": 5},
    {"timelimit": [None, None], "argsrepr": 5, "kwargsrepr": ["x"]},
    {"retries": 100},
    {"group": "no uuid", "shadow": 5, "origin": None},
    {"reply_to": "someone", "correlation_id": 7},
    {"stamps": {"a": ["b"]}, "stamped_headers": ["a"]},
]


@pytest.mark.parametrize("headers", FORGED, ids=repr)
@pytest.mark.promise("I7")
def test_forged_headers_neither_crash_the_worker_nor_run_anything_twice(
    jobs: InProcess, headers: dict[str, Any]
) -> None:
    message = jobs.foreign(tasks.effect.name, ["forged"], **headers)
    for _ in range(2):
        delivered = jobs.deliver(message)
        assert delivered.answer == "acked"
        assert "task_internal_error" not in delivered.signals
    assert jobs.effects("forged") <= 1
    assert jobs.run(tasks.effect, "next").status == "succeeded"


@pytest.mark.parametrize("priority", [10, 255, 2**40, "high"], ids=repr)
def test_a_message_from_elsewhere_with_an_odd_priority_is_not_lost(jobs: InProcess, priority: Any) -> None:
    message = jobs.foreign(tasks.effect.name, ["odd"])
    message.properties["priority"] = priority
    assert jobs.deliver(message).answer == "acked"
    assert jobs.effects("odd") == 1


@pytest.mark.parametrize("content_version", [-1, 1, 2**40, "0", None, 0.0])
def test_a_pointer_with_another_rev_than_the_rows_runs_nothing(jobs: InProcess, content_version: Any) -> None:
    result = hooked.delay()
    jobs.take()
    again(jobs, result, content_version=content_version)
    assert (jobs.row(result).status, jobs.effects("hooked")) == ("waiting", 0)
