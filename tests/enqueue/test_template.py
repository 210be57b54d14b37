"""A filled template is what Celery would have rendered; where it may not be, Celery renders each call."""

from __future__ import annotations

import functools
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, Task, shared_task, signals
from celery.contrib.django.task import DjangoTask
from hypothesis import given
from hypothesis import strategies as st

from reliable_jobs import ReliableTask
from reliable_jobs.enqueue import template
from reliable_jobs.enqueue.template import Template, is_safe, template_of
from reliable_jobs.errors import JobTooLarge, UnserialisableArguments
from reliable_jobs.models import Job
from tests.celery_app import app
from tests.enqueue.called import by_celery, celerys, echo, values
from tests.support import inprocess
from tests.support.generated import examples
from tests.support.inprocess import InProcess
from tests.testapp import tasks

rows = inprocess.rows


@shared_task(base=ReliableTask, name="template.special", soft_time_limit=8, time_limit=9, ignore_result=True)
def special(x: Any, y: Any = None) -> None: ...


@given(args=st.lists(values, max_size=5), kwargs=st.dictionaries(st.text(min_size=1), values, max_size=3))
@examples(300)
def test_a_filled_template_is_what_celery_renders(args: list[Any], kwargs: dict[str, Any]) -> None:
    job_id = uuid.uuid4()
    made = template_of(echo, celerys(echo), ("another",), {"call": 1})
    assert made is not None
    mine = made.fill(job_id, tuple(args), kwargs)
    theirs = by_celery(echo, job_id, tuple(args), kwargs)
    assert mine is not None
    assert (mine.payload, mine.root_id, mine.queue, mine.task) == (
        theirs.payload,
        theirs.root_id,
        theirs.queue,
        theirs.task,
    )
    ours, wanted = json.loads(mine.envelope), json.loads(theirs.envelope)
    assert ours["headers"].pop("argsrepr") == wanted["headers"].pop("argsrepr", "()")
    assert ours["headers"].pop("kwargsrepr", "{}") == wanted["headers"].pop("kwargsrepr", "{}")
    assert ours == wanted


def test_what_a_task_asks_for_is_in_its_template() -> None:
    made = template_of(special, celerys(special), (1,), {})
    assert made is not None
    job_id = uuid.uuid4()
    mine = made.fill(job_id, (2,), {"y": 3})
    theirs = by_celery(special, job_id, (2,), {"y": 3})
    assert mine is not None
    assert json.loads(mine.envelope) == json.loads(theirs.envelope)


def test_a_changed_configuration_makes_a_new_template(rows: InProcess) -> None:
    queue = rows.queue
    assert Job.objects.get(pk=echo.delay(1).id).queue == queue
    with inprocess.broker("memory://", "elsewhere"):
        assert Job.objects.get(pk=echo.delay(1).id).queue == "elsewhere"
    assert Job.objects.get(pk=echo.delay(1).id).queue == queue


def listener(**kwargs: Any) -> None: ...


@pytest.fixture
def publish_listener() -> Iterator[None]:
    signals.before_task_publish.connect(listener)
    yield
    signals.before_task_publish.disconnect(listener)


def test_signals_are_paid_for_when_somebody_listens(publish_listener: None) -> None:
    assert not is_safe(echo, celerys(echo))


def wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def routed(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **rest: Any) -> Any:
    return {"queue": f"q{len(args)}"}


@pytest.mark.parametrize(
    "unsafe",
    [
        lambda patch: patch.setattr(echo.__class__, "shadow_name", lambda self, *args: "alias"),
        lambda patch: patch.setattr(Celery, "send_task", wrapped(Celery.send_task)),
        lambda patch: patch.setattr(Task, "apply_async", wrapped(Task.apply_async)),
        lambda patch: patch.setattr(app.amqp, "send_task_message", wrapped(app.amqp.send_task_message)),
        lambda patch: patch.setattr(echo.backend.wrapped.__class__, "on_task_call", lambda self, producer, task_id: {}),
        lambda patch: patch.setattr(app.amqp.router, "routes", [routed]),
        lambda patch: patch.setattr(
            app, "__class__", type("Own", (Celery,), {"send_task": lambda *args, **kwargs: None})
        ),
        lambda patch: patch.setattr(echo, "sensitive", ("x",)),
        lambda patch: patch.setattr(
            echo, "_dump_pydantic_arguments", lambda args, kwargs: (args, kwargs), raising=False
        ),
    ],
    ids=[
        "shadow",
        "instrument",
        "instrument of tasks",
        "own amqp",
        "backend",
        "routes",
        "send_task",
        "sensitive",
        "pydantic",
    ],
)
def test_where_calls_may_differ_in_more_celery_renders_each(
    monkeypatch: pytest.MonkeyPatch, unsafe: Callable[[pytest.MonkeyPatch], None]
) -> None:
    assert is_safe(echo, celerys(echo))
    unsafe(monkeypatch)
    assert not is_safe(echo, celerys(echo))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: tasks.effect.delay(), TypeError),
        (lambda: tasks.effect.delay("a", object()), UnserialisableArguments),
        (lambda: tasks.effect.delay("x" * 100_000), JobTooLarge),
    ],
    ids=["signature", "unserialisable", "too large"],
)
def test_an_error_is_told_as_ever_with_and_without_a_template(
    rows: InProcess, monkeypatch: pytest.MonkeyPatch, call: Any, error: Any
) -> None:
    for _ in range(2):
        monkeypatch.setattr(tasks.effect, "template", None)
        with pytest.raises(error):
            call()
        tasks.effect.delay("fine")
        with pytest.raises(error):
            call()
    assert Job.objects.count() == 2


class TenantTask(DjangoTask):
    tenant = "t1"

    def apply_async(self, *args: Any, **options: Any) -> Any:
        headers = {**(options.pop("headers", None) or {}), "tenant": TenantTask.tenant}
        return super().apply_async(*args, headers=headers, **options)


class TenantReliableTask(ReliableTask, TenantTask): ...


@shared_task(base=TenantReliableTask, name="template.of_tenant")
def of_tenant(x: int) -> None: ...


def test_a_mixin_behind_ours_is_asked_for_every_call(rows: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for tenant in ("t1", "t2"):
        monkeypatch.setattr(TenantTask, "tenant", tenant)
        for job_id in (of_tenant.delay(1).id, *of_tenant.bulk_delay([(2,), (3,)])):
            seen.append(json.loads(Job.objects.get(pk=job_id).envelope)["headers"]["tenant"])
    assert seen == ["t1"] * 3 + ["t2"] * 3


class ArgumentOfTenant(DjangoTask):
    def apply_async(self, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        return super().apply_async(args, {**(kwargs or {}), "tenant": "t1"}, *rest, **options)


class WithArgumentOfTenant(ReliableTask, ArgumentOfTenant): ...


@shared_task(base=WithArgumentOfTenant, name="template.with_argument_of_tenant")
def with_argument_of_tenant(x: int, *, tenant: str) -> None: ...


def test_a_mixin_behind_ours_may_add_an_argument(rows: InProcess) -> None:
    job = Job.objects.get(pk=with_argument_of_tenant.delay(1).id)
    assert json.loads(bytes(job.payload))[:2] == [[1], {"tenant": "t1"}]


def test_where_json_is_another_ones_celery_renders_each(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Template.make(echo, (1,), {}) is not None
    own = json.dumps(template._PROBE, default=str)
    monkeypatch.setattr(template, "dumps", lambda value, serializer: ("application/json", "utf-8", own))
    assert Template.make(echo, (1,), {}) is None


@pytest.mark.parametrize("bulk", [False, True])
def test_c23_one_template_serves_every_thread_of_a_process(
    rows: InProcess, monkeypatch: pytest.MonkeyPatch, bulk: bool
) -> None:
    """Under ASGI each request's work may run in a thread of its own."""
    made: list[Any] = []
    make = Template.make
    monkeypatch.setattr(Template, "make", lambda *call, **options: made.append(call) or make(*call, **options))
    monkeypatch.setattr(echo, "template", None)

    def rendered() -> list[str]:
        if bulk:
            mine = Template.make(echo, (1,), {})
            assert mine is not None
            return [mine.fill_each((number,), {})[1] for number in range(2)]  # type: ignore[index]
        return [echo._render((1,), {}, uuid.uuid4(), None, None, None, {}).envelope for _ in range(2)]

    def in_thread() -> None:
        seen.append((rendered(), app.thread_oid))

    seen: list[Any] = [(rendered(), app.thread_oid)]
    for _ in range(3):
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
    assert bulk or len(made) == 1
    assert len({oid for _, oid in seen}) > 1
    for envelopes, oid in seen:
        assert [json.loads(envelope)["properties"]["reply_to"] for envelope in envelopes] == [oid, oid]


def test_c23_a_call_in_a_new_thread_makes_no_result_backend(rows: InProcess) -> None:
    echo.delay(1)
    asked: list[Any] = []
    before = app._get_backend

    def request() -> None:
        result = echo._get_current_object().AsyncResult(str(uuid.uuid4()))
        echo._render((1,), {}, uuid.uuid4(), None, None, None, {})
        del result

    app._get_backend = lambda: asked.append(threading.get_ident()) or before()
    try:
        thread = threading.Thread(target=request)
        thread.start()
        thread.join()
    finally:
        app._get_backend = before
    assert asked == []


def test_a_template_belongs_to_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = template_of(echo, celerys(echo), (1,), {})
    monkeypatch.setattr(template.os, "getpid", lambda: -1)
    assert template_of(echo, celerys(echo), (1,), {}) is not mine
