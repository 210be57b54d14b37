"""Sites whose ``DATABASES`` is not the test suite's: how the database is configured, and what stands before it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from django.db import connection

from reliable_jobs.dispatch.notify import Ear
from tests.promises import adversary_tasks as bad
from tests.support.databases import by_hand
from tests.support.harness import PATIENCE, Stack, lines
from tests.support.inprocess import extra_alias
from tests.testapp import tasks

pytestmark = [pytest.mark.servers, pytest.mark.slow]

#: Each statement is planned by the server once, from its first use on.
PREPARED = {"server_side_binding": True, "prepare_threshold": 0}


def overriding(**entries: Any) -> dict[str, str]:
    """For a worker: entries of its ``DATABASES["default"]``."""
    return {"TEST_DATABASE": json.dumps(entries)}


@pytest.mark.promise("I2")
def test_a1_databases_as_startproject_writes_it_runs_every_job(stack: Stack) -> None:
    assert set(by_hand(stack.database_url)) == {"ENGINE", "NAME", "USER", "HOST", "PORT"}
    assert "DISABLE_SERVER_SIDE_CURSORS" not in connection.settings_dict
    stack.worker(concurrency=1)
    results = [tasks.effect.delay(f"a1 {number}") for number in range(6)]
    for result in results:
        job = stack.ends(result)
        assert (job.crashes, job.failures, job.interruptions) == (0, 0, 0)
    assert sum(stack.effects(f"a1 {number}") for number in range(6)) == 6


@pytest.fixture
def pgbouncer(stack: Stack) -> Iterator[Any]:
    """In transaction mode, before two sessions of the server."""
    from tests.support.fixtures import or_skip
    from tests.support.private_servers import PgBouncer

    port = urlsplit(stack.database_url).port or 5432
    with or_skip(lambda: PgBouncer(port, settings={"default_pool_size": "2"})) as server:
        server.database = urlsplit(stack.database_url)._replace(netloc=f"postgres@127.0.0.1:{server.port}").geturl()
        yield server


@contextlib.contextmanager
def occupied(pgbouncer: Any, session: int) -> Iterator[None]:
    """All other transactions meet the other one of the two sessions."""
    with psycopg.connect(pgbouncer.database) as client:
        if client.execute("SELECT pg_backend_pid()").fetchone() == (session,):
            yield
            return
        with psycopg.connect(pgbouncer.database) as second:
            assert second.execute("SELECT pg_backend_pid()").fetchone() == (session,)
            client.rollback()
            yield


@pytest.mark.promise("I3", "I4")
def test_a14_behind_pgbouncer_a_run_that_meets_another_session_runs_once(stack: Stack, pgbouncer: Any) -> None:
    """Two processes had left different prepared statements in two sessions: a run found its claim there, and not its
    settlement, which came after the task function."""
    with psycopg.connect(pgbouncer.database) as client, psycopg.connect(pgbouncer.database) as other_client:
        one, other = (each.execute("SELECT pg_backend_pid()").fetchone()[0] for each in (client, other_client))
    with stack.own_queue() as queue_of_first, stack.own_queue() as queue_of_second:
        for queue in (queue_of_first, queue_of_second):
            stack.worker(queue=queue, database_url=pgbouncer.database)
        for occupied_one, task, queue, args in (
            (other, tasks.effect, queue_of_first, ["a14"]),
            (one, tasks.fan_out, queue_of_second, [0]),
            (one, tasks.effect, queue_of_first, ["a14"]),
        ):
            with occupied(pgbouncer, occupied_one):
                for _ in range(4):
                    job = stack.ends(task.apply_async(args, queue=queue), sweeping=True)
                    assert (job.interruptions, job.crashes, job.failures) == (0, 0, 0), job.error
    assert stack.effects("a14") == 8


def test_a14_behind_pgbouncer_a_relay_does_not_listen(stack: Stack, pgbouncer: Any) -> None:
    """Its session would be given to others, whose psycopg keeps the notifications: 321 after 1,000 of them."""
    parts = urlsplit(pgbouncer.database)
    settings = {"ENGINE": "django.db.backends.postgresql", "NAME": stack.database_name, "USER": parts.username}
    with extra_alias("pooled", **settings, HOST=parts.hostname, PORT=parts.port):
        ear = Ear("pooled", lambda: None)
        ear.start()
        ear.join(PATIENCE)
        ended = not ear.is_alive()
        ear.stop()
    assert ended
    with psycopg.connect(pgbouncer.database) as client, psycopg.connect(pgbouncer.database) as other:
        for session in (client, other):
            assert session.execute("SELECT pg_listening_channels()").fetchall() == []


@pytest.mark.promise("I2", "I3")
def test_a14_behind_pgbouncer_retries_and_sweeps_work(stack: Stack, pgbouncer: Any, tmp_path: Path) -> None:
    outside, gate = tmp_path / "outside", tmp_path / "gate"
    gate.touch()
    results = [tasks.gated.delay(f"a14 {number}", str(outside), str(gate)) for number in range(30)]
    results += [tasks.fails_first.delay("a14 retried", number % 3) for number in range(15)]
    stack.worker(concurrency=3, database_url=pgbouncer.database, WORKER_SWEEP_INTERVAL=0.2)
    for result in results:
        assert (stack.ends(result).interruptions, stack.job(result).crashes) == (0, 0)
    ran = [line.rsplit(" ", 1)[0] for line in lines(outside)]
    assert sorted(ran) == sorted(f"a14 {number}" for number in range(30))
    assert stack.effects("a14 retried") == 15


@pytest.mark.promise("I2")
def test_a15_a_new_child_leaves_the_parents_pool_of_connections_alone(stack: Stack) -> None:
    pytest.importorskip("psycopg_pool")
    pool = {"min_size": 1, "max_size": 4}
    worker = stack.worker(
        concurrency=2,
        options=["--max-tasks-per-child", "2"],
        WORKER_SWEEP_INTERVAL=0.1,
        **overriding(OPTIONS={"pool": pool}),
    )
    results = [tasks.fails_first.delay("a15", 1) for _ in range(12)]
    for result in results:
        assert stack.ends(result).crashes == 0
    assert stack.effects("a15") == 12
    # A neighbour's event receiver asks all workers for a heartbeat; of Celery 5.5 one that has none stumbles over it.
    log = re.sub(r"pidbox command error: AttributeError.*?^AttributeError[^\n]*$", "", worker.log, flags=re.M | re.S)
    for trouble in ("server closed the connection", "consuming input failed", "Traceback", "couldn't stop thread"):
        assert trouble not in log


@pytest.mark.promise("I5", "I6")
def test_a12_conflicts_under_serializable_fail_no_healthy_job(stack: Stack) -> None:
    results = [tasks.numbers.delay("a12") for _ in range(40)]
    serializable = overriding(OPTIONS={"isolation_level": 4})
    stack.worker(pool="threads", concurrency=8, WORKER_SWEEP_INTERVAL=0.1, TEST_MAX_INTERRUPTIONS=1, **serializable)
    jobs = [stack.ends(result) for result in results]
    assert sum(stack.kinds(job).count("interruption") for job in jobs) > 8, "there were no conflicts"
    assert {(job.interruptions, job.failures, job.crashes) for job in jobs} == {(0, 0, 0)}
    assert sorted(int(job.result) for job in jobs) == list(range(40))


@pytest.mark.promise("I3", "I5", "I6")
def test_a13_psycopg2_runs_jobs_and_tells_errors_apart(stack: Stack, outside: Path) -> None:
    pytest.importorskip("psycopg2")
    stack.worker(options=["--include", bad.__name__], WORKER_SWEEP_INTERVAL=0.1, TEST_DRIVER="psycopg2")
    done = [tasks.effect.delay("a13") for _ in range(4)]
    retried = tasks.fails_first.delay("a13 retried", 2)
    deadlocked = bad.deadlocks.delay("a13 deadlocked", str(outside) + "1", 2)
    read_only = bad.meets_an_outage.delay("a13 read only", str(outside) + "2", "25006")
    timed_out = bad.meets_an_outage.delay("a13 timed out", str(outside) + "3", "57014")
    lost = tasks.ends_its_session_once.delay("a13 lost", str(outside) + "4")
    small = [tasks.small.delay(f"a13 small {number}", str(outside) + "5") for number in range(5)]
    for result in [*done, retried, deadlocked, read_only, lost, *small]:
        stack.ends(result)
    assert (stack.job(read_only).interruptions, stack.job(read_only).failures) == (1, 0)
    assert (stack.job(deadlocked).interruptions, stack.job(deadlocked).failures) == (0, 0)
    assert (stack.job(lost).interruptions, stack.job(lost).failures) == (1, 0)
    failed = stack.ends(timed_out, "failed")
    assert (failed.failures, failed.interruptions) == (1, 0)
    for name, count in (("a13", 4), ("a13 retried", 1), ("a13 deadlocked", 1), ("a13 read only", 1), ("a13 lost", 1)):
        assert stack.effects(name) == count
    assert "psycopg2" in failed.traceback


@pytest.fixture
def widened(stack: Stack) -> Iterator[Callable[[], None]]:
    """Gives a column that each claim reads another type, as a migration would."""

    def alter(length: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE reliable_jobs_job ALTER COLUMN queue TYPE varchar({length})")

    yield lambda: alter(300)
    alter(255)


@pytest.mark.promise("I3", "I5")
def test_prepared_statements_outlive_a_migration(
    stack: Stack, widened: Callable[[], None], gate: Path, outside: Path
) -> None:
    """PostgreSQL says "cached plan must not change result type" to a claim then. It is tried again on a new session."""
    stack.worker(concurrency=1, **overriding(CONN_MAX_AGE=None, OPTIONS=PREPARED))
    gate.touch()

    def run(names: list[str]) -> None:
        atomic = [tasks.effect.delay(name) for name in names]
        others = [tasks.slow_outside.delay(name, str(outside), str(gate)) for name in names]
        for job in map(stack.ends, [*atomic, *others]):
            assert (job.crashes, job.failures, stack.kinds(job)) == (0, 0, [])
        assert [stack.effects(name) for name in names] == [2] * len(names)

    def sessions() -> list[tuple[int]]:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return cursor.fetchall()

    run(["before 1", "before 2", "before 3"])
    before = sessions()
    widened()
    run(["after 1", "after 2", "after 3"])
    assert sessions() != before, "no statement had been prepared"


@pytest.mark.promise("I3", "I7")
def test_a11_a_worker_whose_database_commits_nothing_does_not_start(stack: Stack) -> None:
    worker = stack.worker(wait=False, **overriding(AUTOCOMMIT=False))
    assert worker.wait() == 1
    assert "AUTOCOMMIT = False" in worker.log
