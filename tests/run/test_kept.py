"""Connections between the jobs of a worker: kept for reliable tasks where that is safe, as Celery does it elsewhere."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, signals
from celery.app.task import Context
from celery.concurrency import gevent, prefork, solo, thread
from celery.fixups.django import DjangoFixup
from django.db import connection, connections

from reliable_jobs import databases
from reliable_jobs.compat import django as compat_django
from reliable_jobs.run import kept_connections
from tests.support.harness import PATIENCE, Stack, wait_until
from tests.testapp import tasks


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """An app with Celery's Django fixup, whose receivers go with it."""
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.settings")
    ages = {alias: dict(configured) for alias, configured in connections.settings.items()}
    receivers = {signal: list(signal.receivers) for signal in (signals.task_prerun, signals.task_postrun)}
    yield Celery("kept", set_as_current=False)
    for signal, before in receivers.items():
        signal.receivers[:] = before  # the same list: a tracer that was built before looks at it
        signal.sender_receivers_cache.clear() if hasattr(signal, "sender_receivers_cache") else None
    for alias, configured in ages.items():
        connections.settings[alias].clear()
        connections.settings[alias].update(configured)


def worker(app: Celery, pool: Any) -> Any:
    return types.SimpleNamespace(app=app, pool_cls=pool, hostname="test")


def fixup_of(app: Celery) -> DjangoFixup:
    found = [fixup for fixup in app._fixups if isinstance(fixup, DjangoFixup)]
    assert found, "Celery keeps its Django fixup somewhere else now: see reliable_jobs/run/kept_connections.py"
    return found[0]


class FakeTask:
    request = Context(is_eager=False)

    def __init__(self, keeps_connections: bool) -> None:
        self.keeps_connections = keeps_connections


class Closings:
    """Counts how often Celery's fixup closes the database."""

    def __init__(self, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        fixup = fixup_of(app).worker_fixup
        monkeypatch.setattr(fixup, "_close_database", self._closed)
        monkeypatch.setattr(fixup, "close_cache", lambda: None)
        signals.task_prerun.connect(fixup.on_task_prerun)
        signals.task_postrun.connect(fixup.on_task_postrun)

    def _closed(self) -> None:
        self.count += 1

    def around(self, *, reliable: bool) -> int:
        task = FakeTask(reliable)
        before = self.count
        signals.task_prerun.send(sender=task, task_id="1", task=task, args=(), kwargs={})
        signals.task_postrun.send(sender=task, task_id="1", task=task, args=(), kwargs={}, retval=None, state="SUCCESS")
        return self.count - before


@pytest.mark.parametrize("pool", [prefork.TaskPool, solo.TaskPool, thread.TaskPool])
@pytest.mark.django_db
def test_connections_are_kept_around_reliable_tasks_only(
    project: Celery, monkeypatch: pytest.MonkeyPatch, pool: Any
) -> None:
    closings = Closings(project, monkeypatch)
    assert closings.around(reliable=True) == 2
    assert kept_connections.keep_connections(worker(project, pool))
    assert closings.around(reliable=True) == 0
    assert closings.around(reliable=False) == 2
    assert connections.settings["default"]["CONN_MAX_AGE"] == 600


@pytest.mark.parametrize(("pool", "age"), [(gevent.TaskPool, 600), (prefork.TaskPool, 0)])
@pytest.mark.django_db
def test_where_it_is_not_safe_or_not_wanted_celerys_way_stays(
    project: Celery, monkeypatch: pytest.MonkeyPatch, settings: Any, pool: Any, age: float
) -> None:
    settings.RELIABLE_JOBS = {"WORKER_CONN_MAX_AGE": age}
    closings = Closings(project, monkeypatch)
    assert not kept_connections.keep_connections(worker(project, pool))
    assert closings.around(reliable=True) == 2
    assert connections.settings["default"]["CONN_MAX_AGE"] == 0


@pytest.mark.django_db
def test_a_projects_own_age_stays_and_kept_connections_are_checked(
    project: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {**connections.settings["default"], "CONN_MAX_AGE": 5}
    other = {**connections.settings["default"], "CONN_MAX_AGE": 0}
    pooled = {**other, "OPTIONS": {"pool": True}}
    named = {"own": own, "other": other, "pooled": pooled}
    monkeypatch.setattr(compat_django, "connections", types.SimpleNamespace(settings=named))
    undo = databases.keep_connections()
    assert (own["CONN_MAX_AGE"], own["CONN_HEALTH_CHECKS"]) == (5, True)
    assert (other["CONN_MAX_AGE"], other["CONN_HEALTH_CHECKS"]) == (600, True)
    assert pooled["CONN_MAX_AGE"] == 0  # Django takes no age beside a pool
    undo()
    assert (own["CONN_MAX_AGE"], other["CONN_MAX_AGE"], other["CONN_HEALTH_CHECKS"]) == (5, 0, False)


@pytest.mark.django_db
def test_a_database_with_a_pool_keeps_celerys_way(project: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    pooled = {**connections.settings["default"], "OPTIONS": {"pool": True}}
    monkeypatch.setattr(compat_django, "connections", types.SimpleNamespace(settings={"default": pooled}))
    assert not kept_connections.keep_connections(worker(project, prefork.TaskPool))


def test_a15_a_forked_child_forgets_its_parents_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.db.backends.postgresql.base import DatabaseWrapper

    pool, pooled = object(), types.SimpleNamespace(alias="pooled", connection=object())
    pools: dict[str, object] = {"pooled": pool}
    monkeypatch.setattr(DatabaseWrapper, "_connection_pools", pools)  # where Django keeps them
    pooled._connection_pools = pools
    plain = types.SimpleNamespace(alias="default", connection="kept")
    both = types.SimpleNamespace(all=lambda initialized_only: [plain, pooled])
    monkeypatch.setattr(compat_django, "connections", both)
    monkeypatch.setattr(kept_connections, "_left_to_the_parent", [])
    kept_connections._forget_pools()
    assert (pools, pooled.connection, plain.connection, kept_connections._left_to_the_parent) == (
        {},
        None,
        "kept",
        [pool],
    )


def sessions(stack: Stack) -> dict[int, Any]:
    """Backends of workers' children by pid; this process's own one is left out."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid, backend_start FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        return dict(cursor.fetchall())


@pytest.mark.servers
@pytest.mark.promise("I10")
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_keeps_no_more_connections_than_its_pool_has_places(stack: Stack, pool: str) -> None:
    with stack.own_queue():
        stack.worker(pool=pool, concurrency=2)
        rounds = []
        for number in range(2):
            for job in range(20):
                tasks.effect.delay(f"{number} {job}")
            stack.all_end()
            # One for each place of the pool; the sweep loop beside it opens and closes one more. The main thread has
            # one where a neighbour's revoke() has had it look up a task.
            wait_until(lambda: len(sessions(stack)) <= 3, "no more sessions than places")
            rounds.append(set(sessions(stack).items()))
        assert rounds[0] & rounds[1], "no connection was kept from the first round to the second"


@pytest.mark.servers
@pytest.mark.promise("I5")
def test_a_kept_connection_that_has_died_costs_the_next_job_nothing(stack: Stack) -> None:
    with stack.own_queue():
        running = stack.worker(pool="prefork", concurrency=1)
        stack.ends(tasks.effect.delay("before"))
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert cursor.fetchone()[0] >= 1
        wait_until(lambda: not sessions(stack), "the worker's session is gone")
        job = stack.ends(tasks.effect.delay("after"), seconds=PATIENCE)
        assert (job.status, job.failures, job.interruptions, job.crashes) == ("succeeded", 0, 0, 0)
        assert "Holding the message" not in running.log
