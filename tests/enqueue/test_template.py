"""A call filled into a template is the message that Celery would have rendered; and bulk_delay, which lives on that."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import functools
import itertools
import json
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import Celery, Task, shared_task, signals
from celery.contrib.django.task import DjangoTask
from django.db import IntegrityError, connection, transaction
from hypothesis import given
from hypothesis import strategies as st

from reliable_jobs import ReliableTask
from reliable_jobs.dispatch import on_commit
from reliable_jobs.enqueue import bulk, outbox, template
from reliable_jobs.enqueue import insert as rows_module
from reliable_jobs.enqueue.render import Capture
from reliable_jobs.enqueue.template import Template, is_safe, template_of
from reliable_jobs.errors import EnqueueError, InvalidOption, JobTooLarge, UnserialisableArguments
from reliable_jobs.message.row_to_message import Rendered
from reliable_jobs.models import Job
from tests.celery_app import app
from tests.support import inprocess
from tests.support.generated import examples
from tests.support.harness import Stack
from tests.support.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Effect

rows = inprocess.rows
jobs = inprocess.jobs


@shared_task(base=ReliableTask, name="template.echo")
def echo(*args: Any, **kwargs: Any) -> None: ...


@shared_task(base=ReliableTask, name="template.special", soft_time_limit=8, time_limit=9, ignore_result=True)
def special(x: Any, y: Any = None) -> None: ...


@shared_task(base=ReliableTask, name="template.secret", sensitive=True)
def secret(x: Any) -> None: ...


def celerys(task: Any) -> Any:
    return DjangoTask.apply_async.__get__(task)


def by_celery(task: ReliableTask, job_id: uuid.UUID, args: Any, kwargs: Any) -> Rendered:
    capture = Capture()
    task.render_into(capture, args, kwargs, str(job_id))
    assert capture.rendered is not None
    return capture.rendered


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.dates() | st.uuids()
values = st.recursive(
    plain | st.decimals(allow_nan=False) | st.datetimes(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


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


@pytest.mark.promise("I1")
def test_a_write_that_fails_leaves_no_hooks_of_the_callers_to_fire(jobs: InProcess) -> None:
    fired: list[str] = []
    with transaction.atomic():
        transaction.on_commit(lambda: fired.append("a mail"))
        taken = str(uuid.uuid4())
        tasks.effect.apply_async(("x",), task_id=taken)
        with pytest.raises(IntegrityError):
            rows_module.insert("default", outbox._new(request_of(taken), later=False, sends=0))
    assert not fired
    assert not Job.objects.exists()


def request_of(job_id: str) -> Any:
    return outbox.Request(uuid.UUID(job_id), by_celery(tasks.effect, uuid.UUID(job_id), ("x",), {}))


@pytest.mark.servers
@pytest.mark.promise("I1")
def test_calls_may_come_from_the_database_that_they_are_written_to(
    stack: Stack, idle_queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "BLOCK", 3)
    monkeypatch.setattr(on_commit, "MAX_ON_COMMIT", 2)
    with not_for_ever(), transaction.atomic():
        ids = tasks.effect.bulk_delay((str(Job.objects.count()),) for _ in range(10))
    assert Job.objects.count() == len(ids) == 10


@contextlib.contextmanager
def not_for_ever() -> Iterator[None]:
    """The driver waits without an end where something is asked in the middle of a COPY."""

    def over(number: int, frame: Any) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Counted:
    """A value whose encoding asks the database."""

    def __json__(self) -> str:
        return f"one of {Job.objects.count()}"


class Tolerant:
    """And makes do without it."""

    def __json__(self) -> str:
        try:
            return f"one of {Job.objects.count()}"
        except Exception:
            return "nobody knows"


class Saved:
    """And writes to it."""

    def __json__(self) -> str:
        return f"one of {Effect.objects.create(name='saved').pk}"


class HalfRead:
    """And leaves a cursor of the server's open until then."""

    def __init__(self) -> None:
        self.rows: Any = Job.objects.iterator(chunk_size=1)

    def __json__(self) -> str:
        if self.rows is not None:
            next(self.rows, None)
            self.rows = None
        return "one of several"


@pytest.mark.servers
@pytest.mark.promise("I1")
@pytest.mark.parametrize("where", [0, 4])
@pytest.mark.parametrize("kind", [Counted, Tolerant, Saved, HalfRead])
def test_values_may_be_encoded_from_the_database_that_they_are_written_to(
    stack: Stack, idle_queue: str, monkeypatch: pytest.MonkeyPatch, where: int, kind: type
) -> None:
    from reliable_jobs.message.decode import arguments

    monkeypatch.setattr(bulk, "BLOCK", 3)
    monkeypatch.setattr(on_commit, "MAX_ON_COMMIT", 1)
    names: list[Any] = [f"plain {number}" for number in range(10)]
    names[where] = kind()
    with not_for_ever(), transaction.atomic():
        ids = tasks.effect.bulk_delay((name,) for name in names)
    written = [arguments(Job.objects.get(pk=job_id))[0][0] for job_id in ids]
    assert written[where].startswith("one of ")
    assert written[:where] + written[where + 1 :] == names[:where] + names[where + 1 :]


@pytest.mark.servers
@pytest.mark.promise("I1")
@pytest.mark.parametrize(
    ("bad", "error"), [(("x", "y", "z"), TypeError), (({"__type__": "uuid", "__value__": 1},), EnqueueError)]
)
def test_an_error_while_the_server_takes_rows_in_writes_none_of_them(
    stack: Stack, idle_queue: str, monkeypatch: pytest.MonkeyPatch, bad: Any, error: type[Exception]
) -> None:
    monkeypatch.setattr(bulk, "BLOCK", 3)
    monkeypatch.setattr(on_commit, "MAX_ON_COMMIT", 1)
    calls = [*((f"fine {number}",) for number in range(7)), bad, ("fine",)]
    with transaction.atomic():
        tasks.effect.delay("stays")
        with pytest.raises(error):
            tasks.effect.bulk_delay(calls)
        tasks.effect.delay("stays as well")
    assert Job.objects.count() == 2


def test_bulks_of_one_transaction_share_the_bound_of_its_commit(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_commit, "MAX_ON_COMMIT", 5)
    with transaction.atomic():
        for _ in range(3):
            tasks.effect.bulk_delay([("x",)] * 3)
    assert len(jobs.take()) == 3
    assert Job.objects.filter(sends=0).count() == 6


# --- bulk_delay -------------------------------------------------------------------------------------------------------

CALLS: list[Any] = [("a",), ["b"], {"name": "c"}, {"name": "d\\\t\n\r'\"\x00ü\u2028", "value": "\\N"}, ("e", "\\.")]


@pytest.mark.promise("I1")
def test_many_calls_become_the_rows_that_single_calls_would(rows: InProcess) -> None:
    ids = tasks.effect.bulk_delay(CALLS, queue="elsewhere", priority=3, countdown=60)
    single = [
        tasks.effect.apply_async(
            *(((), call) if isinstance(call, dict) else (call, {})), queue="elsewhere", priority=3, countdown=60
        )
        for call in CALLS
    ]
    skipped = {"id", "root_id", "created_at", "due_at"}
    for one, other in zip(ids, single, strict=True):
        bulk_row, single_row = Job.objects.get(pk=one), Job.objects.get(pk=other.id)
        assert bulk_row.root_id == bulk_row.pk
        assert abs((bulk_row.due_at - single_row.due_at).total_seconds()) < 5
        for field in Job._meta.fields:
            mine, theirs = getattr(bulk_row, field.name), getattr(single_row, field.name)
            if field.name == "envelope":
                mine, theirs = json.loads(mine), json.loads(theirs)
                mine["headers"].setdefault("kwargsrepr", "{}"), theirs["headers"].setdefault("kwargsrepr", "{}")
                mine["headers"].setdefault("argsrepr", "()"), theirs["headers"].setdefault("argsrepr", "()")
            if field.name == "payload":
                mine, theirs = bytes(mine), bytes(theirs)
            assert field.name in skipped or mine == theirs, field.name


def one_dict_again_and_again() -> Iterator[Any]:
    call: dict[str, Any] = {}
    for number in range(4):
        call["name"] = f"n{number}"
        yield call


def one_list_again_and_again() -> Iterator[Any]:
    call: list[Any] = [None]
    for number in range(4):
        call[0] = f"n{number}"
        yield call


def one_value_again_and_again() -> Iterator[Any]:
    value: list[str] = [""]
    for number in range(4):
        value[0] = f"n{number}"
        yield (value,)


@pytest.mark.parametrize("calls", [one_dict_again_and_again, one_list_again_and_again, one_value_again_and_again])
def test_a_call_holds_what_it_held_when_it_was_given(rows: InProcess, calls: Callable[[], Iterator[Any]]) -> None:
    from reliable_jobs.message.decode import arguments

    written = [arguments(Job.objects.get(pk=job_id)) for job_id in tasks.effect.bulk_delay(calls())]
    values = [args[0] if args else kwargs["name"] for args, kwargs in written]
    assert [value[0] if isinstance(value, list) else value for value in values] == ["n0", "n1", "n2", "n3"]


def test_the_ids_of_many_jobs_are_random_uuids() -> None:
    ids = list(itertools.islice(rows_module.random_ids(), 5000))
    assert len(set(ids)) == 5000
    parsed = [uuid.UUID(one) for one in ids]
    assert [str(one) for one in parsed] == ids
    assert {(one.version, one.variant) for one in parsed} == {(4, uuid.RFC_4122)}
    # Each of the 122 other bits is set in about half of them; 3,000 of 5,000 would be 14 standard deviations off.
    for bit in range(128):
        if not (76 <= bit < 80 or 62 <= bit < 64):
            assert 2000 < sum(one.int >> bit & 1 for one in parsed) < 3000, bit


def test_many_jobs_run(jobs: InProcess) -> None:
    with transaction.atomic():
        tasks.effect.bulk_delay([(f"bulk {n}",) for n in range(7)])
        assert not jobs.take()
    jobs.finish()
    assert [jobs.effects(f"bulk {n}") for n in range(7)] == [1] * 7


@pytest.mark.promise("I1")
def test_an_error_in_one_call_writes_none(jobs: InProcess) -> None:
    for bad, error in ((("x", "y", "z"), TypeError), ((object(),), UnserialisableArguments), (5, TypeError)):
        with pytest.raises(error):
            tasks.effect.bulk_delay([("fine",), bad, ("fine",)])
        assert not Job.objects.exists()
    assert not jobs.take()


@pytest.mark.promise("I1")
def test_a_savepoint_rolled_back_takes_its_bulk_along(jobs: InProcess) -> None:
    with transaction.atomic():
        tasks.effect.delay("stays")
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            tasks.effect.bulk_delay([("goes",)] * 3)
            raise ZeroDivisionError
    assert len(jobs.take()) == 1
    assert Job.objects.count() == 1


def test_more_than_one_commit_can_publish_are_left_to_the_sweepers(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_commit, "MAX_ON_COMMIT", 3)
    tasks.effect.bulk_delay([(f"few {n}",) for n in range(3)])
    assert len(jobs.take()) == 3
    tasks.effect.bulk_delay((f"many {n}",) for n in range(4))
    assert not jobs.take()
    assert set(Job.objects.values_list("sends", flat=True)) == {0, 1}
    jobs.sweep()
    assert len(jobs.take()) == 4


@pytest.mark.parametrize("number", [1, 3, 5, 6, 7])
def test_what_one_commit_can_publish_may_come_in_several_blocks(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(bulk, "BLOCK", 2)
    monkeypatch.setattr(on_commit, "MAX_ON_COMMIT", 6)
    ids = tasks.effect.bulk_delay((f"call {n}",) for n in range(number))
    sent = number if number <= 6 else 0
    assert len(jobs.take()) == Job.objects.filter(sends=1).count() == sent
    assert {str(job_id) for job_id in Job.objects.values_list("pk", flat=True)} == set(ids)
    assert len(ids) == number


@pytest.mark.parametrize("name", ["task_id", "key", "key_forever", "transactional", "shadow"])
def test_what_belongs_to_one_job_is_refused(rows: InProcess, name: str) -> None:
    with pytest.raises(InvalidOption, match=name):
        tasks.effect.bulk_delay([("x",)], **{name: "x"})


def test_without_calls_nothing_happens(rows: InProcess, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        assert tasks.effect.bulk_delay([]) == []


def test_sensitive_calls_stay_hidden_in_bulk(rows: InProcess) -> None:
    (one, _) = secret.bulk_delay([("hunter2",), ("hunter3",)])
    assert "hunter" not in Job.objects.get(pk=one).envelope


@pytest.mark.parametrize(
    "value", [decimal.Decimal("1.5"), datetime.date(2031, 2, 3), uuid.UUID(int=7), b"\x00\xff", {"a": [1, None]}]
)
def test_a_value_comes_back_as_it_was_by_way_of_a_template(rows: InProcess, value: Any) -> None:
    from reliable_jobs.message.decode import arguments

    template_of(echo, celerys(echo), (1,), {})
    row = Job.objects.get(pk=echo.delay(value, k=value).id)
    assert arguments(row) == ([value], {"k": value})


def test_a_task_that_fans_out_is_its_jobs_parent(jobs: InProcess) -> None:
    parent = tasks.fan_out.delay(3)
    jobs.finish()
    children = Job.objects.filter(task=tasks.effect.name)
    assert children.count() == 3
    assert {(child.parent_id, child.root_id) for child in children} == {(uuid.UUID(parent.id),) * 2}


@pytest.mark.servers
@pytest.mark.promise("I1")
def test_a_bulk_goes_by_copy_and_every_job_of_it_runs_once(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_commit, "MAX_ON_COMMIT", 200)
    with stack.own_queue():
        with transaction.atomic():
            ids = tasks.effect.bulk_delay((f"copied {n}",) for n in range(300))
        assert Job.objects.filter(sends=0).count() == 300
        stack.worker(concurrency=2)
        stack.all_end(sweeping=True)
        assert len(set(ids)) == 300
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*), count(DISTINCT name) FROM testapp_effect WHERE name LIKE 'copied %'")
            assert cursor.fetchone() == (300, 300)


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


# --- what stands between (A6, E6) -------------------------------------------------------------------------------------

TENANT_MIXIN = """
import functools
class TenantMixin:
    tenant = None
    def apply_async(self, *args, **options):
        options["headers"] = {**(options.get("headers") or {}), "tenant": TenantMixin.tenant}
        return super().apply_async(*args, **options)
def copied(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper
"""


@pytest.fixture
def neighbour() -> dict[str, Any]:
    """A package of somebody's, installed beside Celery in a folder whose name begins with "celery"."""
    space: dict[str, Any] = {"__name__": "celery_tenants.mixin"}
    exec(compile(TENANT_MIXIN, str(Path(celery.__file__).parent) + "_tenants/mixin.py", "exec"), space)
    return space


@pytest.mark.parametrize("behind", [False, True])
def test_a6_a_mixin_is_asked_for_every_call_whatever_its_folder_is_called(
    rows: InProcess, neighbour: dict[str, Any], behind: bool
) -> None:
    mixin = neighbour["TenantMixin"]
    if behind:
        base = type("Behind", (ReliableTask, type("Tenants", (mixin, DjangoTask), {})), {})
    else:
        base = type("Before", (mixin, ReliableTask), {})
    task = app.task(base=base, name=f"template.a6_{behind}", shared=False)(lambda_free)
    seen = []
    for tenant in ("t1", "t2", "t3"):
        mixin.tenant = tenant
        for job_id in (task.delay(1).id, *task.bulk_delay([(2,), (3,)])):
            seen.append(json.loads(Job.objects.get(pk=job_id).envelope)["headers"].get("tenant"))
    assert seen == ["t1"] * 3 + ["t2"] * 3 + ["t3"] * 3


def lambda_free(x: int) -> None: ...


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Celery, "send_task"), (Celery, "producer_or_acquire"), (Task, "apply_async"), (Task, "_get_exec_options")],
)
def test_a6_an_instrument_is_seen_whatever_its_folder_is_called(
    monkeypatch: pytest.MonkeyPatch, neighbour: dict[str, Any], owner: Any, name: str
) -> None:
    assert is_safe(echo, celerys(echo))
    monkeypatch.setattr(owner, name, neighbour["copied"](getattr(owner, name)))
    assert not is_safe(echo, celerys(echo))


class OwnQueue(ReliableTask):
    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        options.setdefault("queue", f"customer-{(args or [0])[0]}")
        return super().apply_async(args, kwargs, **options)


class OwnDelay(ReliableTask):
    def delay(self, *args: Any, **kwargs: Any) -> Any:
        return super().delay(*args, tenant="t1", **kwargs)


@shared_task(base=OwnQueue, name="template.own_queue")
def own_queue(x: int) -> None: ...


@shared_task(base=OwnDelay, name="template.own_delay")
def own_delay(x: int, tenant: str) -> None: ...


def test_e6_bulk_delay_goes_through_a_subclass_apply_async(rows: InProcess) -> None:
    ids = own_queue.bulk_delay([(1,), (2,)], countdown=60)
    assert [Job.objects.get(pk=one).queue for one in ids] == ["customer-1", "customer-2"]
    (other,) = own_queue.bulk_delay([(1,)], queue="q")
    assert Job.objects.get(pk=other).queue == "q"


def test_e6_bulk_delay_goes_through_a_subclass_delay_or_says_why_not(rows: InProcess) -> None:
    from reliable_jobs.message.decode import arguments

    ids = own_delay.bulk_delay([(1,), {"x": 2}])
    assert [arguments(Job.objects.get(pk=one)) for one in ids] == [
        ([1], {"tenant": "t1"}),
        ([], {"x": 2, "tenant": "t1"}),
    ]
    with pytest.raises(InvalidOption, match=r"can't pass countdown through the task's own delay\(\)"):
        own_delay.bulk_delay([(1,)], countdown=60)


def test_e6_bulk_delay_goes_through_what_is_put_on_a_task(rows: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    task = echo._get_current_object()
    apply_async = task.apply_async
    monkeypatch.setattr(
        task, "apply_async", lambda *args, **options: called.append(args) or apply_async(*args, **options)
    )
    assert len(echo.bulk_delay([(1,), (2,)])) == len(called) == 2
