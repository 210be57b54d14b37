"""Plain Celery messages with whatever task ids: one effect per row, natural key or ``once()`` key."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, shared_task
from celery.app.trace import build_tracer
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, connections, transaction

from reliable_jobs import lifecycle
from reliable_jobs.enqueue import keys
from reliable_jobs.errors import InvalidOption
from reliable_jobs.idempotency import GetOrCreateTask, IdempotentTask, UpdateOrCreateTask, once
from reliable_jobs.models import Job
from reliable_jobs.testing import override_dispatch, run_jobs
from tests.celery_app import app
from tests.testapp.models import Child, Effect, Parent
from tests.testapp.tasks import log_outside, wait_for

if TYPE_CHECKING:
    from tests.support.harness import Stack


class PerOrder(IdempotentTask):
    def natural_key(self, order: int, *args: Any, **kwargs: Any) -> str:
        return f"order-{order}"


@shared_task(base=PerOrder)
def ship(order: int, carrier: str = "post") -> str:
    Effect.objects.create(name=f"shipped {order}", value=carrier)
    return f"{carrier} {Effect.objects.count()}"


@shared_task(base=PerOrder, bind=True, max_retries=1, autoretry_for=(OSError,), default_retry_delay=0)
def ship_roughly(self: Any, order: int, error: str = "") -> str:
    Effect.objects.create(name=f"roughly {order}")
    if error == "fail":
        raise ValueError(order)
    if error == "retry" and not self.request.retries:
        raise OSError(order)
    return str(self.request.id)


@shared_task(base=PerOrder)
def ship_slowly(order: int, log: str, gate: str) -> str:
    log_outside(log, "in")
    Effect.objects.create(name=f"slowly {order}")
    wait_for(gate, 20)
    return "slow"


class MakeParent(GetOrCreateTask):
    name = "tests.make_parent"
    model = Parent

    def lookup(self, name: str) -> dict[str, Any]:
        return {"name": name}


class MakeEffect(GetOrCreateTask):
    name = "tests.make_effect"
    model = Effect

    def lookup(self, name: str) -> dict[str, Any]:
        return {"name": name}


class UpdateParent(UpdateOrCreateTask):
    name = "tests.update_parent"
    model = Parent

    def lookup(self, pk: int, name: str) -> dict[str, Any]:
        return {"pk": pk}

    def defaults(self, pk: int, name: str) -> dict[str, Any]:
        return {"name": name}


make_parent = app.register_task(MakeParent())
make_effect = app.register_task(MakeEffect())
update_parent = app.register_task(UpdateParent())


def deliver_plain(task: Any, *args: Any, task_id: str | None = None, **kwargs: Any) -> tuple[str, Any]:
    """A message that no outbox wrote, as the worker's tracer gets it: Celery's state, and the value or the error."""
    task = app.tasks[task.name]
    task_id = task_id or str(uuid.uuid4())
    request = {
        "id": task_id,
        "task": task.name,
        "args": args,
        "kwargs": kwargs,
        "hostname": "plain",
        "is_eager": False,
        "delivery_info": {"exchange": "", "routing_key": "plain", "redelivered": False},
    }
    value, info, _, _ = build_tracer(task.name, task, app=app)(task_id, args, kwargs, request)
    return ("SUCCESS", value) if info is None else (info.state, info.retval)


def effects(prefix: str = "") -> int:
    return Effect.objects.filter(name__startswith=prefix).count()


# --- one row of a model -----------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.promise("I3")
def test_get_or_create_makes_one_row_however_many_messages_come() -> None:
    state, first = deliver_plain(make_parent, "a")
    assert (state, first["created"]) == ("SUCCESS", True)
    _, second = deliver_plain(make_parent, "a")
    assert second == {"pk": first["pk"], "created": False}
    _, same_message = deliver_plain(make_parent, "a", task_id="not-a-uuid")
    assert deliver_plain(make_parent, "a", task_id="not-a-uuid")[0] == "IGNORED"
    assert same_message == second
    assert list(Parent.objects.values_list("name", flat=True)) == ["a"]


@pytest.mark.django_db
def test_update_or_create_lets_the_last_message_win() -> None:
    assert deliver_plain(update_parent, 7, "a") == ("SUCCESS", {"pk": 7, "created": True})
    assert deliver_plain(update_parent, pk=7, name="b") == ("SUCCESS", {"pk": 7, "created": False})
    assert list(Parent.objects.values_list("pk", "name")) == [(7, "b")]


@pytest.mark.django_db
def test_a_lookup_without_a_unique_constraint_is_refused() -> None:
    state, error = deliver_plain(make_effect, "a")
    assert state == "FAILURE"
    assert isinstance(error, ImproperlyConfigured)
    assert "no unique constraint of Effect covers that" in str(error)
    assert not effects()


@pytest.mark.parametrize(
    ("model", "lookup", "covered"),
    [
        (Parent, {"name": "a"}, True),
        (Parent, {"name__exact": "a"}, True),
        (Parent, {"name__iexact": "a"}, False),
        (Parent, {"pk": 1, "name": "a"}, True),
        (Child, {"parent": 1}, False),
        (Child, {"parent_id": 1}, False),
        (Effect, {}, False),
        (Job, {"task": "a", "live_key": "b"}, True),
        (Job, {"task": "a"}, False),
    ],
)
def test_which_lookups_a_constraint_covers(model: Any, lookup: dict[str, Any], covered: bool) -> None:
    from reliable_jobs.idempotency.get_or_create import _unique

    assert _unique(model, lookup) is covered


@pytest.mark.django_db
def test_model_tasks_are_called_and_enqueued_like_any_other() -> None:
    assert make_parent("direct")["created"]
    with override_dispatch():
        make_parent.delay("enqueued")
        assert run_jobs(raise_errors=True).runs[0].value["created"]


def test_model_tasks_have_the_signature_of_their_lookup() -> None:
    assert make_parent.misfit(("a",), {}) is None
    assert "surname" in str(make_parent.misfit((), {"surname": "a"}))
    with pytest.raises(TypeError):
        make_parent.delay("a", "b")


# --- any body, once per natural key -----------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.promise("I3")
def test_two_messages_with_one_natural_key_have_one_effect_and_one_result() -> None:
    assert deliver_plain(ship, 1) == ("SUCCESS", "post 1")
    assert deliver_plain(ship, order=1, carrier="rail") == ("SUCCESS", "post 1")
    assert deliver_plain(ship, 2) == ("SUCCESS", "post 2")
    assert (effects("shipped 1"), effects()) == (1, 2)
    assert set(Job.objects.values_list("status", flat=True)) == {"succeeded"}
    assert Job.objects.filter(live_key="order-1").count() == 1


@pytest.mark.django_db
@pytest.mark.promise("I3")
def test_a_message_and_an_enqueued_job_share_the_key() -> None:
    with override_dispatch():
        deliver_plain(ship, 1)
        same = ship.delay(1)
        assert (Job.objects.count(), same.get(timeout=5)) == (1, "post 1")
        waiting = ship.delay(2)
        # The job that has the key has not run yet: this one looks again later.
        assert deliver_plain(ship, 2)[0] == "IGNORED"
        assert effects() == 1
        report = run_jobs(advance=60, raise_errors=True)
    assert [run.value for run in report.succeeded] == ["post 2", "post 2"]
    assert waiting.get(timeout=5) == "post 2"
    assert effects() == 2


@pytest.mark.django_db
@pytest.mark.promise("I3")
def test_a_body_that_fails_or_is_retried_gives_the_key_back() -> None:
    assert deliver_plain(ship_roughly, 1, "fail")[0] == "FAILURE"
    retried = str(uuid.uuid4())
    assert deliver_plain(ship_roughly, 1, "retry", task_id=retried)[0] == "RETRY"
    assert effects() == 0
    other = str(uuid.uuid4())
    assert deliver_plain(ship_roughly, 1, task_id=other) == ("SUCCESS", other)
    with override_dispatch():
        report = run_jobs(advance=60, raise_errors=True)
    # The retried job finds the work done and ends with the result of the one that did it.
    assert [(str(run.job_id), run.value) for run in report.runs] == [(retried, other)]
    assert effects() == 1


@pytest.mark.django_db
def test_the_key_of_a_job_that_failed_for_good_is_free_again() -> None:
    with override_dispatch():
        ship_roughly.delay(1, "fail")
        run_jobs()
        failed = Job.objects.get()
        assert (failed.status, failed.live_key) == ("failed", "order-1")
        state, _ = deliver_plain(ship_roughly, 1)
        assert (state, effects()) == ("SUCCESS", 1)
        failed.refresh_from_db()
        assert failed.live_key is None
        report = lifecycle.requeue([failed.pk], "default", actor="a person")
        assert "belongs to a newer" in report.skipped[failed.pk]


@pytest.mark.django_db
def test_direct_and_eager_calls_run_the_body_without_a_row() -> None:
    assert ship(1) == "post 1"
    assert ship(1) == "post 2"
    assert ship.apply(args=(1,)).get() == "post 3"
    assert not Job.objects.exists()


@pytest.mark.django_db
def test_what_can_not_work_is_refused_with_a_reason() -> None:
    with pytest.raises(TypeError, match="can't have atomic = False"):
        app.task(base=PerOrder, name="tests.not_atomic", atomic=False, shared=False)(deliver_plain)
    with pytest.raises(InvalidOption, match="is not the natural key 'order-1'"):
        ship.apply_async((1,), key="other")
    nameless = app.task(base=IdempotentTask, name="tests.nameless", shared=False)(deliver_plain)
    with pytest.raises(NotImplementedError, match=r"tests\.nameless: define natural_key"):
        nameless.delay(1)
    with pytest.raises(InvalidOption, match="1 to 255 characters"):
        ship.delay("x" * 300)
    with pytest.raises(TypeError):
        ship.delay()


def test_the_guard_keeps_the_signature_of_the_body() -> None:
    assert app.tasks[ship.name]._positional_names() == ["order", "carrier"]
    assert app.tasks[ship_roughly.name]._positional_names() == ["order", "error"]
    assert app.tasks[ship.name].misfit((1, "rail"), {}) is None
    assert app.tasks[ship.name].misfit((), {"other": 1})


# --- once() (C5) ------------------------------------------------------------------------------------------------------


def booking(name: str, value: Any = None) -> Callable[[], Any]:
    def work() -> Any:
        Effect.objects.create(name=name)
        return value

    return work


@pytest.mark.django_db
@pytest.mark.promise("I3")
def test_once_does_the_work_once_and_returns_the_stored_result() -> None:
    assert once("1", booking("a", {"a": (1, 2)}), scope="invoice") == {"a": [1, 2]}
    assert once("1", booking("b", "other"), scope="invoice") == {"a": [1, 2]}
    assert once("1", booking("c"), scope="another scope") is None
    assert once("2", booking("d", 4), scope="invoice") == 4
    assert list(Effect.objects.order_by("pk").values_list("name", flat=True)) == ["a", "c", "d"]


@pytest.mark.django_db
@pytest.mark.promise("I3")
def test_once_keeps_nothing_of_work_that_raised_or_was_rolled_back() -> None:
    def raises() -> None:
        booking("a")()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        once("1", raises, scope="invoice")
    with pytest.raises(TypeError, match="can't be stored as JSON"):
        once("1", booking("a", object()), scope="invoice")
    with transaction.atomic():
        once("1", booking("a"), scope="invoice")
        transaction.set_rollback(True)
    assert (effects(), Job.objects.count()) == (0, 0)
    assert once("1", booking("a", 1), scope="invoice") == 1


@pytest.mark.django_db
def test_c5_once_takes_a_number_or_uuid() -> None:
    for key in (17, uuid.UUID(int=17)):
        assert once(key, booking("a", 1), scope="invoice") == 1
        assert once(str(key), booking("b", 2), scope="invoice") == 1


@pytest.mark.django_db
def test_once_refuses_keys_that_do_not_fit() -> None:
    for key, scope in (("", "s"), (True, "s"), (1.5, "s"), ("k" * 256, "s"), ("k", ""), ("k", "s" * 251)):
        with pytest.raises(ValueError, match="1 to 255"):
            once(key, booking("a"), scope=scope)


@pytest.mark.django_db
def test_the_receipts_of_once_are_settled_rows_that_the_pruner_knows() -> None:
    once("1", booking("a"), scope="invoice")
    row = Job.objects.get()
    assert (row.task, row.key, row.status) == ("once:invoice", "1", "succeeded")
    assert row.finished_at is not None
    with override_dispatch():
        assert len(run_jobs()) == 0


# --- at once, on PostgreSQL -------------------------------------------------------------------------------------------


@pytest.fixture
def together(stack: Stack) -> Iterator[Callable[..., list[Any]]]:
    """Run functions in threads with connections of their own; what they returned or raised."""

    def run(*functions: Callable[[], Any]) -> list[Any]:
        results: list[Any] = [None] * len(functions)
        barrier = threading.Barrier(len(functions))

        def one(number: int) -> None:
            try:
                connection.ensure_connection()
                barrier.wait(20)
                results[number] = functions[number]()
            except BaseException as error:
                results[number] = error
            finally:
                connections.close_all()

        threads = [threading.Thread(target=one, args=(number,)) for number in range(len(functions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        return results

    return run


@pytest.mark.servers
@pytest.mark.promise("I3")
def test_simultaneous_messages_of_one_key_have_one_effect_and_one_result(together: Any) -> None:
    for order in range(5):
        results = together(*[lambda order=order: deliver_plain(ship, order)] * 4)
        done = [value for state, value in results if state == "SUCCESS"]
        assert done
        assert len(set(done)) == 1
        assert effects(f"shipped {order}") == 1
    with override_dispatch():
        run_jobs(advance=60, raise_errors=True)
    assert set(Job.objects.values_list("status", flat=True)) == {"succeeded"}
    assert Job.objects.count() == 20
    assert effects() == 5


@pytest.mark.servers
@pytest.mark.promise("I3")
def test_a_message_does_not_wait_for_a_long_body_of_its_key(
    together: Any, stack: Stack, gate: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(keys, "KEY_LOCK_TIMEOUT_MS", 200)

    def second() -> tuple[str, Any]:
        wait_for(str(outside), 20)
        try:
            return deliver_plain(ship_slowly, 1, str(outside), str(gate))
        finally:
            gate.touch()

    first, late = together(lambda: deliver_plain(ship_slowly, 1, str(outside), str(gate)), second)
    assert first == ("SUCCESS", "slow")
    assert late[0] == "IGNORED"
    assert outside.read_text().split() == ["in"]
    with override_dispatch():
        assert [run.value for run in run_jobs(advance=60, raise_errors=True).runs] == ["slow"]
    assert effects() == 1


@pytest.mark.servers
@pytest.mark.promise("I3")
def test_simultaneous_calls_of_once_do_the_work_once(together: Any, stack: Stack) -> None:
    for number in range(5):
        results = together(
            *[
                lambda worker=worker, number=number: once(str(number), booking(f"o{number}", worker), scope="races")
                for worker in range(4)
            ]
        )
        assert len(set(results)) == 1, results
        assert results[0] in range(4)
        assert effects(f"o{number}") == 1


@pytest.mark.servers
@pytest.mark.promise("I3")
def test_simultaneous_get_or_create_makes_one_row(together: Any, stack: Stack) -> None:
    for number in range(5):
        results = together(*[lambda number=number: deliver_plain(make_parent, f"p{number}")] * 4)
        assert {state for state, _ in results} == {"SUCCESS"}, results
        assert [value["created"] for _, value in results].count(True) == 1
        assert len({value["pk"] for _, value in results}) == 1


@pytest.mark.servers
@pytest.mark.promise("I3")
def test_foreign_messages_with_their_own_ids_have_one_effect(stack: Stack) -> None:
    from tests.support.harness import wait_until

    stack.worker(options=["--include", "tests.idempotency.test_idempotency"])
    elsewhere = Celery("elsewhere", broker=stack.broker_url, set_as_current=False)
    for task_id in ("invoice-1-a", "invoice-1-b", str(uuid.uuid4())):
        elsewhere.send_task("tests.idempotency.test_idempotency.ship", args=[1], task_id=task_id, queue=stack.queue)
    elsewhere.close()
    settled = Job.objects.filter(status="succeeded")
    wait_until(lambda: settled.count() == 3, "three plain messages have been settled")
    assert set(settled.values_list("result", flat=True)) == {'"post 1"'}
    assert effects() == 1
