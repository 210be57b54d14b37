"""Calls of Celery's canvas are rows of the caller's transaction: nothing reaches the broker before the COMMIT, and a
ROLLBACK leaves nothing."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, Task, chain, chord, group, shared_task, signature
from celery.app import backends
from django.db import transaction

from reliable_jobs import ReliableApp, ReliableTask
from reliable_jobs import jobs as public
from reliable_jobs.compat.celery_app import adopt
from reliable_jobs.models import Job, JobGroup
from reliable_jobs.results.backend import LedgerBackend
from reliable_jobs.sweep import pruner
from reliable_jobs.workflow import unit
from reliable_jobs.workflow.unit import unit_of_work
from tests.celery_app import app
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp.models import Effect

jobs = inprocess.jobs
rows = inprocess.rows


def note(*args: Any, name: str) -> str:
    Effect.objects.create(name=name)
    return name


plain = shared_task(name="test_capture.plain")(note)
rel = shared_task(base=ReliableTask, name="test_capture.rel")(note)
named = shared_task(name="test_capture.in_outbox.named")(note)
UNKNOWN = "test_capture.elsewhere"
#: Of OUTBOX_TASKS.
NAMED_UNKNOWN = "test_capture.in_outbox.elsewhere"


class Broker:
    """A port on which nobody answers, and which knows whether somebody has knocked."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening

    @property
    def was_asked(self) -> bool:
        return bool(select.select([self._listening], [], [], 0)[0])


@pytest.fixture
def guarded(transactional_db: None, settings: Any) -> Iterator[Broker]:
    # The commit publishes nothing either.
    settings.RELIABLE_JOBS = {"DISPATCH": "relay", "OUTBOX_TASKS": [rel.name, "test_capture.in_outbox.*"]}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with inprocess.broker(f"amqp://guest:guest@127.0.0.1:{port}//", "guarded"):
            yield Broker(listening)


@contextlib.contextmanager
def result_backend(kind: str) -> Iterator[None]:
    """The app has another result backend, which is not asked over the network."""
    before = app._backend_cache, app._local.__dict__.pop("backend", None)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"redis://127.0.0.1:{listening.getsockname()[1]}/9" if kind == "redis" else kind
        cls, address = backends.by_url(url, app.loader)
        made = cls(app=app, url=address)
        if kind == "redis":
            made.connparams["socket_timeout"] = 2  # it answers nothing
        app._backend_cache = LedgerBackend.around(made, app)
        try:
            yield
            assert not Broker(listening).was_asked
        finally:
            app._backend_cache = before[0]
            app._local.__dict__.pop("backend", None)
            if before[1] is not None:
                app._local.backend = before[1]


BACKENDS = ["disabled://", "redis", "django-db", "rpc://"]
#: Each with the number of rows that it writes.
SHAPES: dict[str, tuple[Callable[[], Any], int]] = {
    "task": (lambda: rel.delay(name="a"), 1),
    "signature": (lambda: rel.s(name="a").set(countdown=9).apply_async(), 1),
    "link": (lambda: rel.apply_async(kwargs={"name": "a"}, link=[plain.s(name="b"), rel.s(name="c")]), 1),
    "errback": (lambda: rel.s(name="a").on_error(plain.si(name="b")).apply_async(), 1),
    "chain": (lambda: (rel.s(name="a") | plain.s(name="b") | rel.s(name="c")).apply_async(), 1),
    "group": (lambda: group(rel.s(name=name) for name in "abc").apply_async(), 3),
    "mixed group": (lambda: group(plain.s(name="a"), rel.s(name="b"), plain.s(name="c")).apply_async(), 3),
    "group of chains": (lambda: group(plain.s(name="a") | rel.s(name="b"), rel.s(name="c") | plain.s(name="d"))(), 2),
    "group with a name": (lambda: group(signature(UNKNOWN, app=app), rel.s(name="b")).apply_async(), 2),
    "chain of a group": (lambda: chain(group(rel.s(name="a"), group(rel.s(name="b"), plain.s(name="c")))).delay(), 3),
    "chord": (lambda: chord([rel.s(name=name) for name in "abc"], rel.s(name="d")).apply_async(), 3),
    "chord in a chain": (lambda: (rel.s(name="a") | group(rel.s(name="b"), rel.s(name="c")) | rel.s(name="d"))(), 1),
    "group, then a task": (lambda: (group(rel.s(name="a"), rel.s(name="b")) | rel.s(name="c")).delay(), 2),
    "chord of chains": (lambda: chord([rel.s(name="a") | rel.s(name="b")], rel.s(name="c")).apply_async(), 1),
    "chord of chords": (
        lambda: chord([chord([rel.s(name="a"), rel.s(name="b")], rel.s(name="c"))] * 2, rel.s(name="d"))(),
        4,
    ),
    "chord whose body is a group": (
        lambda: chord([rel.s(name="a"), rel.s(name="b")], group(rel.s(name="c"), plain.s(name="d")))(),
        2,
    ),
    "chord whose body is plain": (lambda: chord([rel.s(name="a"), rel.s(name="b")], plain.s(name="c"))(), 2),
    "chord of one part": (lambda: chord([rel.s(name="a")], rel.s(name="b"))(), 1),
    "chord in a group": (lambda: group(plain.s(name="a"), chord([rel.s(name="b")] * 2, rel.s(name="c")))(), 3),
    "by name": (lambda: app.send_task(rel.name, kwargs={"name": "a"}), 1),
    "a plain task of OUTBOX_TASKS": (lambda: named.delay(name="a"), 1),
    "its name": (lambda: app.send_task(NAMED_UNKNOWN, link=plain.si(name="b")), 1),
    "its signature": (lambda: signature(NAMED_UNKNOWN, app=app).apply_async(countdown=9), 1),
    "group of OUTBOX_TASKS": (lambda: group(named.s(name="a"), signature(NAMED_UNKNOWN, app=app))(), 2),
    "chain of OUTBOX_TASKS": (lambda: (named.s(name="a") | rel.s(name="b")).apply_async(), 1),
    "map": (lambda: rel.chunks([("a",)] * 4, 2).group()(), 2),
}
IN_AUTOCOMMIT = [
    *("group", "mixed group", "group of chains", "chain of a group", "chord", "group, then a task", "chord of chords"),
    *("chord in a group", "group of OUTBOX_TASKS"),
]


@pytest.mark.promise("I1")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_reaches_the_broker_before_the_commit(guarded: Broker, shape: str, backend: str) -> None:
    start, count = SHAPES[shape]
    with result_backend(backend):
        with transaction.atomic():
            start()
            assert Job.objects.count() == count
            transaction.set_rollback(True)
        assert (Job.objects.count(), JobGroup.objects.count(), guarded.was_asked) == (0, 0, False)
        with transaction.atomic():
            start()
            assert not guarded.was_asked
    assert not guarded.was_asked
    assert set(Job.objects.values_list("status", flat=True)) == {"waiting"}
    assert Job.objects.count() == count


@pytest.mark.promise("I1")
@pytest.mark.parametrize("shape", IN_AUTOCOMMIT)
def test_a_group_called_in_autocommit_is_all_or_nothing(
    guarded: Broker, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, count = SHAPES[shape]
    enqueue, calls = unit_enqueue(), itertools.count(1)

    def fail_at_the_last(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == count:
            raise RuntimeError("no power")
        return enqueue(*args, **kwargs)

    monkeypatch.setattr("reliable_jobs.enqueue.outbox.enqueue", fail_at_the_last)
    with pytest.raises(RuntimeError, match="no power"):
        start()
    assert (Job.objects.count(), JobGroup.objects.count(), guarded.was_asked) == (0, 0, False)
    monkeypatch.undo()
    start()
    assert Job.objects.count() == count


def unit_enqueue() -> Any:
    from reliable_jobs.enqueue import outbox

    return outbox.enqueue


def test_every_task_of_a_mixed_group_runs(jobs: InProcess) -> None:
    group(plain.s(name="a"), rel.s(name="b"), plain.s(name="c").set(countdown=0.01)).apply_async()
    jobs.finish()
    assert [jobs.effects(name) for name in "abc"] == [1, 1, 1]
    assert dict(Job.objects.values_list("task", "status")) == {plain.name: "sent", rel.name: "succeeded"}


def test_a_group_of_plain_tasks_is_celerys(jobs: InProcess) -> None:
    group(plain.s(name="a"), plain.s(name="b")).apply_async()
    jobs.work()
    assert ([jobs.effects(name) for name in "ab"], Job.objects.count()) == ([1, 1], 0)


@pytest.mark.django_db(databases=[])
def test_a_group_of_plain_tasks_asks_no_database() -> None:
    with inprocess.memory_broker():
        group(plain.s(name="a"), plain.s(name="b")).apply_async()


def test_a_group_of_an_app_without_reliable_tasks_is_celerys_own(jobs: InProcess) -> None:
    other = Celery("other", set_as_current=False)
    other.conf.update(broker_url="memory://", task_default_queue=jobs.queue)
    task = other.task(base=Task, name="test_capture.of_other_group", shared=False)(note)
    with transaction.atomic(), unit_of_work(app, "default"):
        group([task.s(name="a"), task.s(name="b")], app=other).apply_async()
        assert (len(jobs.take()), Job.objects.count()) == (2, 0)


# --- rows that are outbox entries only --------------------------------------------------------------------------------


@pytest.mark.promise("I3")
@pytest.mark.parametrize(
    "call",
    [
        lambda: plain.apply_async(kwargs={"name": "a"}, task_id="no uuid", priority=3),
        lambda: app.send_task(plain.name, kwargs={"name": "a"}, task_id="no uuid"),
        lambda: signature(plain.name, kwargs={"name": "a"}, app=app).apply_async(task_id="no uuid"),
    ],
)
def test_in_a_unit_of_work_a_plain_tasks_message_is_sent_with_the_commit(
    jobs: InProcess, call: Callable[[], Any]
) -> None:
    with transaction.atomic(), unit_of_work(app, "default", root_id="r", parent_id="p", priority=7):
        assert unit.begun() is not None
        assert call().id == "no uuid"
        assert jobs.take() == []
    (message,) = jobs.take()
    headers = message.headers
    assert (headers["id"], headers["root_id"], headers["parent_id"]) == ("no uuid", "r", "p")
    assert message.properties["correlation_id"] == "no uuid"
    assert message.properties["priority"] in (3, 7)
    assert "reliable_jobs" not in headers
    assert Job.objects.get().status == "sent"
    jobs.deliver(message)
    assert jobs.effects("a") == 1


def test_in_a_unit_of_work_a_reliable_task_by_its_name_is_a_job(jobs: InProcess) -> None:
    with transaction.atomic(), unit_of_work(app, "default"):
        app.send_task(rel.name, kwargs={"name": "a"})
    jobs.finish()
    assert (jobs.effects("a"), Job.objects.get().status) == (1, "succeeded")


@pytest.mark.promise("I2")
def test_what_the_broker_has_not_confirmed_is_published_again(jobs: InProcess, settings: Any) -> None:
    settings.RELIABLE_JOBS = {"DISPATCH": "relay"}
    with transaction.atomic(), unit_of_work(app, "default"):
        result = plain.delay(name="a")
    assert (jobs.take(), jobs.row(result).status) == ([], "waiting")
    jobs.sweep()
    jobs.work()
    assert (jobs.effects("a"), jobs.row(result).status) == (1, "sent")


@pytest.mark.promise("I2")
def test_a_message_that_comes_where_its_task_is_reliable_is_a_job(jobs: InProcess) -> None:
    with transaction.atomic(), unit_of_work(app, "default"):
        result = signature(UNKNOWN, kwargs={"name": "a"}, app=app).apply_async()
    shared_task(base=ReliableTask, name=UNKNOWN)(note)
    try:
        jobs.work()
        row = jobs.row(result)
        assert (jobs.effects("a"), row.status, row.relay_only) == (1, "succeeded", False)
    finally:
        app.tasks.unregister(UNKNOWN)


def test_a_sent_row_is_pruned_after_a_day(jobs: InProcess) -> None:
    with transaction.atomic(), unit_of_work(app, "default"):
        plain.delay(name="a")
    assert pruner.prune() == 0
    Job.objects.update(finished_at="2001-01-01T00:00:00+00:00")
    assert pruner.prune() == 1


# --- the app ----------------------------------------------------------------------------------------------------------


def test_an_app_is_adopted_once_and_keeps_what_is_below() -> None:
    other = Celery("other", set_as_current=False)
    called: list[str] = []
    below = other.send_task
    other.send_task = lambda name, *args, **kwargs: called.append(name) or below(name, *args, **kwargs)
    other.conf.broker_url = "memory://"
    other.task(base=ReliableTask, name="test_capture.of_other")(note).bind(other)
    once = other.send_task
    adopt(other)
    assert other.send_task is once
    other.send_task("x")
    assert called == ["x"]


def test_the_mixin_does_the_same(rows: InProcess) -> None:
    class App(ReliableApp, Celery):
        pass

    mine = App("mine", set_as_current=False)
    mine.conf.update(broker_url="memory://", task_default_queue=rows.queue)
    adopt(mine)
    assert "send_task" not in vars(mine)
    task = mine.task(base=Task, name="test_capture.of_mine")(note)
    with transaction.atomic(), unit_of_work(mine, "default"):
        task.delay(name="a")
        group(task.s(name="b"), task.s(name="c")).apply_async()
    assert list(Job.objects.values_list("task", "relay_only")) == [("test_capture.of_mine", True)] * 3


@pytest.mark.promise("I7")
def test_a_unit_of_work_ends_with_its_transaction_whatever_left_it_open(jobs: InProcess) -> None:
    """Calls that came later were counted among its workflow's: to cancel one workflow cancelled others."""
    left = unit_of_work(app, "default", root_id=uuid.uuid4())
    with transaction.atomic():
        left.__enter__()  # an error hits the end of the block before it can leave
    first, second = rel.delay(name="a"), rel.delay(name="b")
    public.cancel_workflow(first, actor="ann")
    assert [jobs.row(one).status for one in (first, second)] == ["cancelled", "waiting"]
    assert left is not None  # it lives: nothing but the end of the transaction has ended it


def test_a_unit_of_work_in_another_leaves_that_one_as_it_was(jobs: InProcess) -> None:
    with transaction.atomic(), unit_of_work(app, "default") as outer:
        with transaction.atomic(), unit_of_work(app, "default"):
            pass
        assert unit.current() is outer
    assert unit.current() is None
