"""Statements that a session has prepared, and what happens where it has not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from celery import shared_task
from django.db import connection
from django.test.utils import CaptureQueriesContext

from reliable_jobs import ReliableTask
from reliable_jobs.models import Job
from reliable_jobs.run import joined, prepared
from tests.run.test_delivery_batches import ACT, one_message, statuses
from tests.support import inprocess
from tests.support.fixtures import or_skip
from tests.support.inprocess import InProcess
from tests.testapp.models import Effect

jobs = inprocess.jobs
pytestmark = pytest.mark.servers


@shared_task(base=ReliableTask, name="test_prepared.does")
def does(says: str = "") -> None:
    Effect.objects.create(name="done")
    if says:
        say(says)


def say(text: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(text)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch, jobs: InProcess) -> Iterator[None]:
    """A session prepares what has come once, however small the table is."""
    monkeypatch.setattr(prepared, "switched_off", set())
    monkeypatch.setattr(joined, "switched_off", set())
    monkeypatch.setattr(prepared, "FIRST_CLAIMS", 1)
    monkeypatch.setattr(prepared, "LARGE", -1)
    connection.close()
    yield
    connection.close()


@pytest.fixture
def pooler(at_once: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Django's connection leads through PgBouncer, in transaction mode."""
    from tests.support.private_servers import PgBouncer

    with or_skip(lambda: PgBouncer(int(connection.settings_dict["PORT"] or 5432))) as server:
        monkeypatch.setitem(connection.settings_dict, "PORT", str(server.port))
        yield
    # What ends the test asks the server itself.
    monkeypatch.undo()
    connection.close()


def run(jobs: InProcess, times: int = 1, says: str = "") -> list[str]:
    """Run jobs, and return what was said to the database."""
    with CaptureQueriesContext(connection) as queries:
        for _ in range(times):
            does.delay(says)
            (message,) = jobs.take()
            jobs.deliver(message)
    return [str(query["sql"]) for query in queries.captured_queries]


def names() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM pg_prepared_statements WHERE name LIKE 'reliable_jobs_%' ORDER BY 1")
        return [name for (name,) in cursor.fetchall()]


def ended() -> list[tuple[str, int, int, int]]:
    return list(Job.objects.order_by("created_at").values_list("status", "failures", "crashes", "interruptions"))


def test_a_claim_and_a_settlement_are_prepared_once(jobs: InProcess) -> None:
    said = run(jobs, times=6)
    assert len(names()) == 2
    assert sum(text.count("PREPARE reliable_jobs_") for text in said) == 2
    assert sum(text.count("EXECUTE reliable_jobs_") for text in said) == 10, "five claims, five settlements"
    assert (ended(), Effect.objects.count()) == ([("succeeded", 0, 0, 0)] * 6, 6)


def test_a_prepared_claim_of_a_settled_job_runs_nothing(jobs: InProcess) -> None:
    run(jobs, times=4)
    does.delay()
    (message,) = jobs.take()
    for _ in range(2):
        jobs.deliver(message)
    assert Effect.objects.count() == 5


@pytest.mark.promise("I1", "I3")
def test_a_prepared_settlement_whose_fence_is_broken_commits_nothing(jobs: InProcess) -> None:
    run(jobs, times=4)
    run(jobs, says="UPDATE reliable_jobs_job SET epoch = epoch + 1 WHERE status = 'waiting'")
    assert Effect.objects.count() == 4
    assert ended()[-1][0] == "waiting"


def test_while_the_table_is_small_nothing_is_prepared(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "LARGE", 10**12)
    run(jobs, times=5)
    assert names() == []


def test_of_a_table_that_has_become_small_the_plans_are_dropped(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "LOOK_EVERY", 8)
    run(jobs, times=5)
    assert len(names()) == 2
    monkeypatch.setattr(prepared, "LARGE", 10**12)
    run(jobs, times=5)
    assert names() == []
    assert ended() == [("succeeded", 0, 0, 0)] * 10


def test_plans_are_made_anew_now_and_then(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was made while the table was nearly empty may read all of it, and is kept while the table grows."""
    monkeypatch.setattr(prepared, "LOOK_EVERY", 8)
    said = run(jobs, times=20)
    assert sum(text.count("PREPARE reliable_jobs_") for text in said) == 6, "before claims 2, 9 and 17"
    assert (len(names()), ended()) == (2, [("succeeded", 0, 0, 0)] * 20)


@pytest.mark.promise("I5")
def test_a_column_of_another_type_costs_one_run(jobs: InProcess) -> None:
    """The type of a parameter was that of its column when the statement was prepared."""
    run(jobs, times=4)
    try:
        run(jobs, says="SELECT 1")
        with psycopg.connect(**connection.get_connection_params()) as other:
            other.execute("ALTER TABLE reliable_jobs_job ALTER result TYPE jsonb USING result::jsonb")
        run(jobs, times=2)
        jobs.finish()
        assert sorted(ended()) == [("succeeded", 0, 0, 0)] * 6 + [("succeeded", 0, 0, 1)]
        assert (Effect.objects.count(), prepared.switched_off) == (7, {"default"})
    finally:
        say("ALTER TABLE reliable_jobs_job ALTER result TYPE text")


def test_behind_a_pooler_nothing_is_prepared(jobs: InProcess, pooler: None) -> None:
    run(jobs, times=2)
    assert (len(names()), Effect.objects.count()) == (0, 2)
    run(jobs, times=2)
    assert (len(names()), Effect.objects.count()) == (0, 4)


@pytest.mark.promise("I5")
def test_a_claim_that_its_session_has_forgotten_is_made_in_full(
    jobs: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """Another session of a pooler, which nobody has told Django of."""
    run(jobs, times=4)
    say("DEALLOCATE ALL")
    caplog.set_level("INFO")
    run(jobs, times=4)
    assert caplog.text.count("Statements can't be prepared on database 'default'") == 1
    assert (ended(), Effect.objects.count()) == ([("succeeded", 0, 0, 0)] * 8, 8)
    assert (names(), joined.switched_off) == ([], set())


@shared_task(base=ReliableTask, name="test_prepared.once", reruns=False)
def once(says: str = "") -> None:
    does(says)


@pytest.mark.promise("I5")
def test_a_settlement_that_its_session_has_forgotten_costs_one_run(jobs: InProcess) -> None:
    run(jobs, times=4)
    run(jobs, says="DEALLOCATE ALL")
    assert (ended()[-1], Effect.objects.count()) == (("waiting", 0, 0, 1), 4)
    jobs.finish()
    assert (ended()[-1][0], Effect.objects.count()) == ("succeeded", 5)


@pytest.mark.promise("I5")
def test_in_a_new_process_each_time_it_is_forgotten_only_once(jobs: InProcess) -> None:
    """Each process has to find out for itself, and a job has so many interruptions."""
    run(jobs, times=4)
    run(jobs, says="DEALLOCATE ALL")
    connection.close()
    prepared.switched_off.clear()
    run(jobs, times=4)
    assert len(names()) == 2
    jobs.finish()
    job = Job.objects.order_by("-interruptions").first()
    assert job is not None
    assert (job.status, job.interruptions) == ("succeeded", 1)
    assert Effect.objects.count() == 9


@pytest.mark.promise("I5")
def test_a_task_that_never_runs_again_is_settled_in_full(jobs: InProcess) -> None:
    for task, says in [(does, ""), (once, "")] * 3 + [(once, "DEALLOCATE ALL")]:
        task.delay(says)
        jobs.deliver(*jobs.take())
    assert (ended()[-1], Effect.objects.count()) == (("succeeded", 0, 0, 0), 7)


def test_no_job_makes_a_multixact(jobs: InProcess) -> None:
    """A row that a transaction has locked, and one of its subtransactions changes, has two of them."""
    said = run(jobs, times=6)
    assert sum(text.count("EXECUTE reliable_jobs_") for text in said) == 10
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {Job._meta.db_table} WHERE xmax::text NOT IN ('0', xmin::text)")
        assert cursor.fetchone() == (0,), "changed in another transaction than the one that has locked it"


@pytest.mark.promise("I1", "I5")
@pytest.mark.parametrize("state", ["26000", "0A000"])
def test_an_error_of_the_functions_own_is_no_forgotten_statement(jobs: InProcess, state: str) -> None:
    """What comes before the EXECUTE in the same text, a deferred trigger, answers as if it were the EXECUTE."""
    say(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{state}'; END $$"
    )
    say(
        f"CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON {Effect._meta.db_table} DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW WHEN (NEW.name = 'refused') EXECUTE FUNCTION refuse()"
    )
    try:
        run(jobs, times=4)
        run(jobs, says=f"INSERT INTO {Effect._meta.db_table} (name) VALUES ('refused')")
        assert Effect.objects.count() == 4, "what the function wrote is not committed"
        assert ended()[-1][0] != "succeeded"
    finally:
        connection.close()
        say("DROP FUNCTION refuse CASCADE")


def test_a_comment_that_is_new_each_time_fills_no_session(jobs: InProcess) -> None:
    """As sqlcommenter and tracing libraries add it."""
    number = itertools.count()

    def comment(execute: Any, sql: str, *others: Any) -> Any:
        return execute(f"{sql} /*traceparent='{next(number)}'*/", *others)

    with connection.execute_wrapper(comment):
        run(jobs, times=3 * prepared.MOST)
    assert len(names()) == prepared.MOST
    assert ended() == [("succeeded", 0, 0, 0)] * 3 * prepared.MOST


@pytest.mark.promise("I5")
@pytest.mark.parametrize("kept", ["a", "b"])
def test_a_name_that_its_session_knows_already_costs_nothing(jobs: InProcess, kept: str) -> None:
    """As a pooler's session that another process has used."""
    run(jobs, times=4)
    known = names()
    connection.close()
    say(f"PREPARE {known[kept == 'b']} AS SELECT 1")
    run(jobs, times=4)
    assert (ended(), Effect.objects.count()) == ([("succeeded", 0, 0, 0)] * 8, 8)
    assert prepared.switched_off == {"default"}


@pytest.mark.promise("I5")
def test_a_forgotten_settlement_in_a_message_of_many_costs_one_run(jobs: InProcess) -> None:
    run(jobs, times=4)
    ids, message = one_message(jobs)
    ACT[1] = lambda: say("DEALLOCATE ALL")
    try:
        jobs.deliver(message)
        assert statuses(ids) == ["succeeded", "waiting", "succeeded", "succeeded"]
        assert Job.objects.get(pk=ids[1]).interruptions == 1
    finally:
        ACT.clear()
    jobs.finish()
    assert sorted(Effect.objects.values_list("name", flat=True)) == ["done"] * 4 + [f"one {n}" for n in range(4)]
