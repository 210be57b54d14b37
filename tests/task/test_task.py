"""The base class as Celery users call it."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any, ParamSpec, TypeVar

import pytest
from asgiref.sync import async_to_sync
from celery import Celery, Task, shared_task
from celery.exceptions import Reject
from celery.result import AsyncResult
from django.db import connection, transaction

import reliable_jobs
from reliable_jobs import ReliableTask, RetriedTask, reliable_task
from reliable_jobs.compat import celery_app
from reliable_jobs.errors import EnqueueError, FunctionOutOfMemory, InvalidOption
from reliable_jobs.message.decode import arguments
from reliable_jobs.models import Job
from reliable_jobs.run import tracing
from reliable_jobs.run.trail import TRAIL
from reliable_jobs.task import decorator
from tests.celery_app import app
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Effect

jobs = inprocess.jobs

P = ParamSpec("P")
R = TypeVar("R")


@shared_task(base=ReliableTask, name="test_task.add")
def add(x: int, y: int = 1, *, z: int = 0) -> int:
    return x + y + z


@shared_task(base=ReliableTask, name="test_task.bound", bind=True)
def bound(self: Any, x: int) -> bool:
    return bool(self.request.called_directly)


@shared_task(base=ReliableTask, name="test_task.untyped", typing=False)
def untyped(x: int) -> int:
    return x


@app.task(base=ReliableTask, name="test_task.app_task")
def app_task(x: int) -> int:
    return x * 2


class ClassBased(ReliableTask):
    name = "test_task.ClassBased"

    def run(self, x: int) -> int:
        Effect.objects.create(name="class based")
        return x * 3


class_based = app.register_task(ClassBased())


# --- the signature --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: add.delay(),
        lambda: add.delay(1, 2, 3),
        lambda: add.delay(1, w=2),
        lambda: add.apply_async((1,), {"x": 2}),
        lambda: bound.delay(),
        lambda: class_based.delay(),
        lambda: app_task.delay(1, 2),
        lambda: add.s().delay(),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_the_call(jobs: InProcess, call: Any) -> None:
    with pytest.raises(TypeError, match="argument"):
        call()
    assert not Job.objects.exists()


def test_typing_false_leaves_the_check_to_the_body(jobs: InProcess) -> None:
    job = jobs.run(untyped, 1, 2)
    assert job.status == "failed"
    assert "TypeError" in job.error


def test_keyword_only_arguments_and_defaults_work(jobs: InProcess) -> None:
    result = add.delay(1, z=5)
    jobs.work()
    assert result.get(timeout=1) == 7


@pytest.mark.parametrize("args", [(1,), [1]])
def test_positional_arguments_may_be_a_list_or_a_tuple(jobs: InProcess, args: Any) -> None:
    assert arguments(jobs.row(add.apply_async(args))) == ([1], {})


def test_kwargs_that_are_no_dict_are_refused(jobs: InProcess) -> None:
    with pytest.raises(TypeError):
        add.apply_async((1,), 5)
    with pytest.raises(TypeError):
        add.apply_async(5)
    assert not Job.objects.exists()


# --- ways to define one ---------------------------------------------------------------------------------------------


def test_a_class_based_task_runs(jobs: InProcess) -> None:
    result = class_based.delay(2)
    jobs.work()
    assert (result.get(timeout=1), jobs.effects("class based")) == (6, 1)


def test_a_task_of_the_app_runs(jobs: InProcess) -> None:
    result = app_task.delay(4)
    jobs.work()
    assert result.get(timeout=1) == 8


def test_a_bound_task_runs(jobs: InProcess) -> None:
    result = bound.delay(1)
    jobs.work()
    assert result.get(timeout=1) is False


def test_a_whole_app_may_use_the_class(transactional_db: None) -> None:
    try:
        whole = Celery("whole", broker="memory://", backend="cache+memory://", task_cls="reliable_jobs:ReliableTask")

        @whole.task(name="test_task.of_whole")
        def of_whole(x: int) -> int:
            return x

        assert isinstance(of_whole._get_current_object(), ReliableTask)
        result = of_whole.delay(1)
        assert Job.objects.get().pk.hex == result.id.replace("-", "")
    finally:
        app.set_current()
        app.set_default()


def test_a_subclass_may_add_its_own_call(jobs: InProcess) -> None:
    called: list[str] = []

    class Counting(ReliableTask):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            called.append(self.request.id)
            return super().__call__(*args, **kwargs)

    @shared_task(base=Counting, name="test_task.counting")
    def counting() -> str:
        return "ran"

    job = jobs.run(counting)
    assert (job.status, called) == ("succeeded", [str(job.pk)])


def test_the_package_gives_its_classes_by_name() -> None:
    given = {name: getattr(reliable_jobs, name) for name in reliable_jobs.__all__}
    assert given.pop("reliable_task") is decorator.reliable_task
    assert given.pop("ReliableApp") is celery_app.ReliableApp
    assert all(issubclass(one, ReliableTask) for one in given.values())
    with pytest.raises(AttributeError, match="nothing"):
        _ = reliable_jobs.nothing  # type: ignore[attr-defined]


class OwnGeneric(ReliableTask[P, R]):
    """A project's base class, generic itself."""


class Parametrised(OwnGeneric[[int], str]):
    name = "test_task.Parametrised"

    def run(self, x: int) -> str:
        return f"got {x}"


parametrised = app.register_task(Parametrised())


def test_a_task_class_with_type_parameters_is_an_ordinary_task_class(jobs: InProcess) -> None:
    assert Parametrised.__bases__ == (OwnGeneric,)
    assert app.tasks["test_task.Parametrised"] is parametrised
    assert pickle.loads(pickle.dumps(parametrised)) is parametrised
    assert RetriedTask[[int], str].__origin__ is RetriedTask
    job = jobs.run(parametrised, 3)
    assert (job.status, parametrised.AsyncResult(str(job.pk)).get(timeout=1)) == ("succeeded", "got 3")


@reliable_task
def decorated(x: int) -> int:
    return x + 1


@reliable_task(name="test_task.decorated_bound", bind=True, base=RetriedTask, atomic=False, max_retries=7)
def decorated_bound(self: RetriedTask, x: int) -> str:
    return f"{self.name} {x}"


def test_reliable_task_is_celerys_shared_task_with_our_base(jobs: InProcess) -> None:
    assert decorated.name == f"{__name__}.decorated"
    assert isinstance(decorated, ReliableTask)
    assert not isinstance(decorated, RetriedTask)
    assert isinstance(decorated_bound, RetriedTask)
    assert (decorated_bound.atomic, decorated_bound.max_retries) == (False, 7)
    assert jobs.run(decorated, 1).status == "succeeded"
    job = jobs.run(decorated_bound, 1)
    assert decorated_bound.AsyncResult(str(job.pk)).get(timeout=1) == "test_task.decorated_bound 1"


@pytest.mark.parametrize("base", [Task, int, "ReliableTask", None])
def test_reliable_task_refuses_a_base_that_is_not_reliable(base: Any) -> None:
    with pytest.raises(TypeError, match="must be ReliableTask or a subclass"):
        reliable_task(base=base)


def test_acks_late_and_reject_on_worker_lost_are_on() -> None:
    assert (add.acks_late, add.reject_on_worker_lost) == (True, True)


# --- calling --------------------------------------------------------------------------------------------------------


def test_delay_on_commit_is_delay(jobs: InProcess) -> None:
    with transaction.atomic():
        first = add.delay_on_commit(1)
        second = add.apply_async_on_commit((1,))
        assert Job.objects.count() == 2
        assert jobs.take() == []
    assert {message.headers["id"] for message in jobs.take()} == {first.id, second.id}


def test_adelay_and_aapply_async_write_the_row(jobs: InProcess) -> None:
    async def view() -> list[AsyncResult[Any]]:
        return [await add.adelay(1, y=2), await add.aapply_async((1,), countdown=60, key="k")]

    first, second = async_to_sync(view)()
    assert arguments(jobs.row(first)) == ([1], {"y": 2})
    assert (jobs.row(second).sends, jobs.row(second).key) == (0, "k")


def test_delay_in_an_event_loop_says_what_to_do(transactional_db: None) -> None:
    async def view() -> None:
        add.delay(1)

    with pytest.raises(Exception, match="async"):
        asyncio.run(view())


@pytest.mark.parametrize(
    "options",
    [
        {"queue": "other"},
        {"priority": 3},
        {"time_limit": 5, "soft_time_limit": 4},
        {"headers": {"x": 1}},
        {"shadow": "another name"},
        {"ignore_result": True},
        {"retry": False, "retry_policy": {"max_retries": 1}},
        {"routing_key": "r"},
        {"serializer": "json"},
        {"connection": None, "producer": None, "publisher": None},
        {"add_to_parent": False},
        {"root_id": "00000000-0000-0000-0000-000000000001"},
        {"stamped_headers": ["a"], "a": "b"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_celerys_options_are_taken(jobs: InProcess, options: dict[str, Any]) -> None:
    result = add.apply_async((1,), **options)
    assert jobs.row(result).status == "waiting"


def test_a_shadow_name_and_a_time_limit_travel(jobs: InProcess) -> None:
    from reliable_jobs.message.decode import headers_of

    headers = headers_of(jobs.row(add.apply_async((1,), shadow="seen as", time_limit=5, soft_time_limit=4)))
    assert (headers["shadow"], headers["timelimit"]) == ("seen as", [5, 4])


def test_an_option_set_on_the_task_is_followed(jobs: InProcess) -> None:
    @shared_task(base=ReliableTask, name="test_task.optioned", expires=60)
    def optioned() -> None: ...

    row = jobs.row(optioned.delay())
    assert 50 < (row.expires_at - row.created_at).total_seconds() < 70


def test_errors_at_the_call_are_ours_and_ordinary_ones() -> None:
    assert issubclass(InvalidOption, EnqueueError)
    assert issubclass(InvalidOption, TypeError)
    assert issubclass(EnqueueError, ValueError)


def test_a_result_knows_its_parent_inside_a_body(jobs: InProcess) -> None:
    result = tasks.enqueues.delay("child")
    jobs.finish()
    child = Job.objects.get(task=tasks.effect.name)
    assert (str(child.parent_id), str(child.root_id)) == (result.id, result.id)


# --- directly and eagerly (C18) -------------------------------------------------------------------------------------


def test_a_direct_call_is_just_the_body(db: None) -> None:
    assert add(1, 2) == 3
    assert bound(1) is True
    assert class_based(2) == 6
    assert not Job.objects.exists()


def test_apply_runs_here_without_a_row(transactional_db: None) -> None:
    result = add.apply((1,), {"y": 4})
    assert (result.get(), result.state) == (5, "SUCCESS")
    assert not Job.objects.exists()


@pytest.fixture
def eager() -> Any:
    before = app.conf.task_always_eager
    app.conf.task_always_eager = True
    yield
    app.conf.task_always_eager = before


@pytest.mark.parametrize("options", [{}, {"countdown": 60}, {"key": "k", "using": "default"}, {"transactional": False}])
def test_an_eager_call_runs_at_once_without_a_row(transactional_db: None, eager: None, options: dict[str, Any]) -> None:
    assert add.apply_async((1, 2), **options).get() == 3
    assert not Job.objects.exists()


def test_an_eager_body_runs_in_a_transaction_and_a_failing_one_is_undone(transactional_db: None, eager: None) -> None:
    @shared_task(base=ReliableTask, name="test_task.eager")
    def eager_body(fail: bool) -> bool:
        Effect.objects.create(name="eager")
        if fail:
            raise ValueError("no")
        return connection.in_atomic_block

    assert eager_body.delay(False).get() is True
    result = eager_body.delay(True)
    with pytest.raises(ValueError, match="no"):
        result.get()
    assert Effect.objects.filter(name="eager").count() == 1


def test_an_eager_retry_runs_again(transactional_db: None, eager: None) -> None:
    result = tasks.fails_first.delay("eager", 2)
    assert result.get() == "eager"
    assert Effect.objects.filter(name="eager").count() == 1


def test_an_eager_chain_runs_through(transactional_db: None, eager: None) -> None:
    assert (add.s(1, 2) | add.s(10)).apply_async().get() == 13


def test_an_eager_non_atomic_body_has_no_transaction(transactional_db: None, eager: None) -> None:
    @shared_task(base=ReliableTask, name="test_task.eager_outside", atomic=False)
    def eager_outside() -> bool:
        return connection.in_atomic_block

    assert eager_outside.delay().get() is False


def test_c18_on_commit_under_eager_waits_for_the_commit(jobs: InProcess, eager: None) -> None:
    with transaction.atomic():
        first = tasks.effect.delay_on_commit("c18")
        second = tasks.effect.apply_async_on_commit(("c18",), countdown=60)
        assert jobs.effects("c18") == 0
        assert first.id != second.id
    assert jobs.effects("c18") == 2
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        tasks.effect.delay_on_commit("c18")
        raise ZeroDivisionError
    assert jobs.effects("c18") == 2


# --- the result -----------------------------------------------------------------------------------------------------


def test_delay_gives_the_usual_result(jobs: InProcess) -> None:
    result = add.delay(1)
    assert isinstance(result, AsyncResult)
    assert not result.ready()
    jobs.work()
    assert (result.get(timeout=1), result.state) == (2, "SUCCESS")


def test_the_ignored_flag_is_set_as_celery_sets_it(jobs: InProcess) -> None:
    assert add.apply_async((1,), ignore_result=True).ignored is True
    assert add.delay(1).ignored is False


def test_a_misfit_is_told_and_a_fit_is_not() -> None:
    assert add.misfit((1,), {}) is None
    assert "argument" in add.misfit((), {})
    assert untyped.misfit((), {}) is None
    assert class_based.misfit((1,), {}) is None
    assert class_based.misfit((), {}) is not None


@pytest.mark.django_db
@pytest.mark.promise("I2")
@pytest.mark.parametrize(
    ("raised", "answered", "logged"),
    [
        (OSError("the backend is away"), OSError, True),
        (MemoryError(), FunctionOutOfMemory, True),
        (Reject("by a hook", requeue=True), Reject, False),
    ],
)
def test_what_celerys_tracer_raises_is_an_answer(
    raised: Exception, answered: type[Exception], logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def tracer(task_id: str, args: Any, kwargs: Any, request: Any) -> Any:
        request["delivery_info"][TRAIL].answer = (None, None)  # the run has been settled
        raise raised

    info, outcome, _, _ = tracing.that_answers(tasks.effect, tracer)("some id", ["x"], {}, {})
    assert isinstance(info.exception, answered)
    assert outcome.state == ("FAILURE" if logged else "REJECTED")
    assert ("Celery could not go on" in caplog.text) == logged
