"""The ledger around each kind of result backend, with a real worker process: results of reliable and of plain tasks,
and of both together."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import TimeoutError as CeleryTimeout
from celery.result import GroupResult, ResultSet
from django.db import transaction
from django.test import override_settings

from reliable_jobs.errors import NotCommitted
from tests.celery_app import app
from tests.results.asked_tasks import plain, reliable
from tests.support.backends import LEDGER, backend_of, stop_listening
from tests.support.harness import Stack, wait_until
from tests.testapp.tasks import OutOfStock

pytestmark = [
    pytest.mark.servers,
    pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning"),  # Celery's, of Redis
]

#: Seconds for an answer.
SOON = 120
#: Those that keep results of plain tasks, and of them those that count a chord's parts.
KEEPS = ("redis", "rpc", "cache")
COUNTS = ("redis", "cache")


@dataclasses.dataclass
class Site:
    """A worker and this process with one result backend.

    Attributes:
        redis: the server, where it is one.
        caches: Django's setting.
        backend: this process's, from the first test on.
    """

    name: str
    url: str
    redis: Any
    caches: dict[str, Any]
    backend: Any = None

    @property
    def keeps(self) -> bool:
        return self.name in KEEPS


@pytest.fixture(scope="module", params=["redis", "rpc", "cache", "alone", "none"])
def _site(request: Any, _queue_of_module: Stack, django_db_blocker: Any, tmp_path_factory: Any) -> Iterator[Site]:
    name = request.param
    redis = request.getfixturevalue("private_redis") if name == "redis" else None
    folder = str(tmp_path_factory.mktemp("cache"))
    urls = {
        "redis": f"{LEDGER}+{redis.url if redis else ''}",
        "rpc": f"{LEDGER}+rpc://",
        "cache": f"{LEDGER}+django-cache://",
        "alone": LEDGER,
        "none": "",
    }
    stack = _queue_of_module
    caches = {"default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": folder}}
    with django_db_blocker.unblock(), stack.active():
        stack.declare()
        worker = stack.worker(
            concurrency=2,
            options=["-I", "tests.results.asked_tasks"],
            TEST_RESULT_BACKEND=urls[name],
            TEST_CACHE=folder,
        )
    made = Site(name, urls[name], redis, caches)
    yield made
    stop_listening(made.backend)
    stack.end_processes([worker])


@pytest.fixture
def site(_site: Site, stack: Stack) -> Iterator[Site]:
    with override_settings(CACHES=_site.caches), backend_of(_site.url or None, _site.backend) as _site.backend:
        yield _site


def asked(result: Any) -> Any:
    """As another process would ask."""
    return app.AsyncResult(result.id)


# --- single tasks -----------------------------------------------------------------------------------------------------


def test_results_of_reliable_tasks(site: Site) -> None:
    done, failed = reliable["adds"].delay(1, 2), reliable["runs_out"].delay("tea")
    for result in (done, asked(done), reliable["adds"].AsyncResult(done.id)):
        assert result.get(timeout=SOON) == 3
        assert (result.state, result.ready(), result.successful(), result.failed()) == ("SUCCESS", True, True, False)
    for result in (failed, asked(failed)):
        with pytest.raises(OutOfStock, match="0 of tea left"):
            result.get(timeout=SOON)
        assert isinstance(result.get(timeout=SOON, propagate=False), OutOfStock)
        assert "OutOfStock" in result.traceback


def test_results_of_plain_tasks(site: Site) -> None:
    if not site.keeps:
        pytest.skip("they are kept nowhere")
    done, failed = plain["adds"].delay(1, 2), plain["runs_out"].delay("tea")
    assert done.get(timeout=SOON) == 3
    # As Celery makes an exception again that needs other arguments than it keeps.
    with pytest.raises(Exception, match="0 of tea left"):
        failed.get(timeout=SOON)
    assert "0 of tea left" in str(failed.get(timeout=SOON, propagate=False))
    if site.name != "rpc":  # whose messages are read once
        assert asked(done).get(timeout=SOON) == 3


@pytest.mark.parametrize("kind", ["reliable", "plain"])
def test_get_ends_after_its_timeout(site: Site, kind: str) -> None:
    result = {"reliable": reliable, "plain": plain}[kind]["adds"].apply_async((1, 2), countdown=600)
    began = time.monotonic()
    with pytest.raises(CeleryTimeout):
        result.get(timeout=0.3)
    assert 0.25 < time.monotonic() - began < 5
    assert result.state == "PENDING"
    result.revoke()


def test_progress_is_seen_while_the_task_runs_and_told_to_who_waits(site: Site, gate: Path) -> None:
    """Of an atomic task, from outside of its transaction."""
    result = reliable["shows"].delay(str(gate))
    told: list[Any] = []

    def note(meta: Any) -> None:
        told.append((meta["status"], meta["result"]))
        gate.touch()

    wait_until(lambda: asked(result).state == "PROGRESS", "its progress is seen")
    assert result.get(timeout=SOON, on_message=note) == "shown"
    assert told == [("PROGRESS", {"done": 1}), ("SUCCESS", "shown")]


def test_progress_of_a_plain_task_is_seen(site: Site, gate: Path) -> None:
    if site.name not in ("redis", "cache"):
        pytest.skip("it is kept nowhere, or read once")
    result = plain["shows"].delay(str(gate))
    wait_until(lambda: asked(result).state == "PROGRESS", "its progress is seen")
    gate.touch()
    assert result.get(timeout=SOON) == "shown"


@pytest.mark.parametrize("kind", ["reliable", "plain"])
def test_an_ignored_result_is_not_waited_for(site: Site, kind: str) -> None:
    tasks = {"reliable": reliable, "plain": plain}[kind]
    began = time.monotonic()
    assert tasks["ignored"].delay(1, 2).get() is None
    assert tasks["adds"].apply_async((1, 2), ignore_result=True).get() is None
    assert time.monotonic() - began < 5


def test_what_is_extended_is_in_the_answer(site: Site) -> None:
    kinds = [reliable, plain] if site.name in ("redis", "cache") else [reliable]
    for tasks in kinds:
        result = tasks["adds"].apply_async((1,), {"y": 2})
        assert result.get(timeout=SOON) == 3
        answer = asked(result)
        assert (answer.name, list(answer.args), answer.kwargs) == (tasks["adds"].name, [1], {"y": 2})
        assert answer.worker.endswith("@test")
        assert (answer.retries, answer.queue) == (0, app.conf.task_default_queue)
        assert answer.date_done is not None


@pytest.mark.parametrize("kind", ["reliable", "plain"])
def test_a_result_is_forgotten(site: Site, kind: str) -> None:
    if kind == "plain" and site.name not in ("redis", "cache"):
        pytest.skip("they are kept nowhere, or read once")
    result = {"reliable": reliable, "plain": plain}[kind]["adds"].delay(1, 2)
    assert result.get(timeout=SOON) == 3
    result.forget()
    assert asked(result).state == "PENDING"
    if hasattr(result, "exists"):
        assert not asked(result).exists()


def test_a_task_may_speak_for_another_one(site: Site) -> None:
    """``update_state(task_id=…)`` goes where the other task's answer is looked for, whoever calls it."""
    waiting = reliable["adds"].apply_async((1, 2), countdown=600)
    plain["speaks_for"].delay(waiting.id)
    wait_until(lambda: asked(waiting).state == "SPOKEN", "the row's state is what the plain task said")
    waiting.revoke()
    if site.name in ("redis", "cache"):
        other = plain["adds"].apply_async((1, 2), countdown=600)
        reliable["speaks_for"].delay(other.id).get(timeout=SOON)
        assert asked(other).state == "SPOKEN"
        other.revoke()


def test_results_of_plain_tasks_expire_as_configured(site: Site) -> None:
    if site.redis is None:
        pytest.skip("of Redis only")
    done = plain["adds"].delay(1, 2)
    assert done.get(timeout=SOON) == 3
    left = int(site.redis.command("TTL", f"celery-task-meta-{done.id}"))
    assert app.conf.result_expires.total_seconds() - 60 < left <= app.conf.result_expires.total_seconds()
    ours = reliable["adds"].delay(1, 2)
    assert ours.get(timeout=SOON) == 3
    assert site.redis.command("EXISTS", f"celery-task-meta-{ours.id}") == "0", "nothing is written twice"


# --- many -------------------------------------------------------------------------------------------------------------


def some(site: Site) -> list[Any]:
    """Results of reliable tasks, and of plain ones where these are kept."""
    both = [tasks["adds"].delay(n, n) for n in range(3) for tasks in (reliable, plain)]
    return both if site.keeps else [tasks["adds"].delay(n, n) for n in range(3) for tasks in (reliable, reliable)]


EXPECTED = [0, 0, 2, 2, 4, 4]


@pytest.mark.parametrize("how", ["get", "join", "join_native", "iterate", "get_many"])
def test_many_results_are_read_together(site: Site, how: str) -> None:
    if (site.name, how) == ("rpc", "get_many"):
        pytest.skip("rpc:// has none")
    results = some(site)
    together = ResultSet(results, app=app)
    if how == "get_many":
        found = dict(app.backend.get_many([one.id for one in results], timeout=SOON))
        assert [found[one.id]["result"] for one in results] == EXPECTED
    elif how == "iterate":
        assert sorted(together.iterate() if hasattr(together, "iterate") else together.get()) == EXPECTED
    else:
        assert getattr(together, how)(timeout=SOON) == EXPECTED
    assert together.successful()
    assert together.completed_count() == len(EXPECTED)


def test_results_of_plain_tasks_alone_are_read_together(site: Site) -> None:
    if not site.keeps:
        pytest.skip("they are kept nowhere")
    assert ResultSet([plain["adds"].delay(n, n) for n in range(3)], app=app).get(timeout=SOON) == [0, 2, 4]
    first, *others = [plain["adds"].delay(n, n) for n in range(3)]
    nested = GroupResult("outer", [first, GroupResult("inner", others, app=app)], app=app)
    assert nested.get(timeout=SOON) == [0, [2, 4]]


@pytest.mark.parametrize("how", ["get", "join", "join_native"])
def test_one_failure_among_many_is_raised_or_returned(site: Site, how: str) -> None:
    together = ResultSet([reliable["adds"].delay(1, 1), reliable["runs_out"].delay("tea")], app=app)
    with pytest.raises(OutOfStock):
        getattr(together, how)(timeout=SOON)
    first, second = getattr(together, how)(timeout=SOON, propagate=False)
    assert (first, type(second)) == (2, OutOfStock)


def test_a_group_is_saved_and_restored(site: Site) -> None:
    saved = GroupResult(f"group-{site.name}", some(site), app=app)
    saved.save()
    restored = app.GroupResult.restore(saved.id)
    assert [one.id for one in restored] == [one.id for one in saved]
    assert restored.get(timeout=SOON) == EXPECTED
    restored.delete()
    assert app.GroupResult.restore(saved.id) is None


def test_children_and_collect(site: Site) -> None:
    result = reliable["starts"].delay(5)
    assert result.get(timeout=SOON) == 5
    parts, single = asked(result).children
    assert parts.get(timeout=SOON) == [6, 7]
    assert single.get(timeout=SOON) == 8
    values = [value for one, value in asked(result).collect(timeout=SOON) if not getattr(one, "children", None)]
    assert sorted(values) == [6, 7, 8]


def test_a_callback_of_a_promise_is_called(site: Site) -> None:
    result, told = reliable["adds"].delay(1, 2), list[Any]()
    result.then(told.append)
    assert result.get(timeout=SOON) == 3
    assert [one.id for one in told] == [result.id]


# --- workflows --------------------------------------------------------------------------------------------------------


def test_a_chord_of_plain_tasks_is_celerys_as_before(site: Site) -> None:
    header = [plain["adds"].s(n, n) for n in range(3)]
    if site.name not in COUNTS:
        with pytest.raises(NotImplementedError):
            chord(header, plain["sums"].s()).apply_async()
        return
    assert chord(header, plain["sums"].s()).apply_async().get(timeout=SOON) == 6
    assert chord(header, reliable["sums"].s()).apply_async().get(timeout=SOON) == 6
    failing = chord([*header, plain["runs_out"].s("tea")], plain["sums"].s()).apply_async()
    with pytest.raises(Exception, match="0 of tea left"):
        failing.get(timeout=SOON)


def test_a_chord_of_reliable_tasks_needs_none(site: Site) -> None:
    header = [reliable["adds"].s(n, n) for n in range(3)]
    assert chord(header, reliable["sums"].s()).apply_async().get(timeout=SOON) == 6
    if site.name in COUNTS:  # rpc:// sends the body's result to whoever has called it
        assert asked(chord(header, plain["sums"].s()).apply_async()).get(timeout=SOON) == 6


def test_a_mixed_chord_is_counted_by_the_other_backend(site: Site) -> None:
    if site.name not in COUNTS:
        pytest.skip("it counts no parts")
    header = [reliable["adds"].s(1, 1), plain["adds"].s(2, 2), reliable["adds"].s(3, 3)]
    for body in (plain["sums"], reliable["sums"]):
        assert chord(header, body.s()).apply_async().get(timeout=SOON) == 12


def test_a_chain_through_both_kinds(site: Site) -> None:
    if site.name not in COUNTS:
        pytest.skip("its last step is a plain task's, whose result is kept nowhere or sent to the worker")
    result = chain(reliable["adds"].s(1, 1), plain["adds"].s(2), reliable["adds"].s(3)).apply_async()
    assert result.get(timeout=SOON) == 7
    assert result.parent.get(timeout=SOON) == 4
    assert result.parent.parent.get(timeout=SOON) == 2
    assert chain(plain["adds"].s(1, 1), reliable["adds"].s(2), plain["adds"].s(3)).apply_async().get(timeout=SOON) == 7


def test_get_in_the_transaction_that_enqueued_raises_at_once(site: Site) -> None:
    began = time.monotonic()
    with transaction.atomic():
        both = [reliable["adds"].delay(1, 2), asked(reliable["adds"].delay(1, 2))]
        mixed = group(reliable["adds"].s(1, 1), plain["adds"].s(1, 1)).apply_async()
        for result in (*both, mixed, ResultSet(both, app=app)):
            with pytest.raises(NotCommitted):
                result.get(timeout=SOON)
    assert time.monotonic() - began < 10
    assert [result.get(timeout=SOON) for result in both] == [3, 3]
