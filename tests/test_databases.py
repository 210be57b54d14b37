"""Sites with more than one database: only those that hold jobs are used, and one that fails stops no other."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from django.core import checks
from django.core.management import CommandError, call_command
from django.db import connections, transaction
from django.test import override_settings
from django.utils import timezone

from reliable_jobs import databases
from reliable_jobs.message.row_to_message import HEADER
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.results import JobResult
from reliable_jobs.sweep import pruner, sweeper
from tests.celery_app import app
from tests.support import inprocess
from tests.support.harness import Stack
from tests.support.inprocess import InProcess, extra_alias, extra_database
from tests.testapp import tasks
from tests.testapp.models import Effect

jobs = inprocess.jobs
second_database = inprocess.second_database


class PrimaryReplicaRouter:
    """As Django's documentation has it ("Multiple databases", "An example")."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return random.choice(["replica", "default"])

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"

    def allow_relation(self, obj1: Any, obj2: Any, **hints: Any) -> bool | None:
        return True

    def allow_migrate(self, db: str, app_label: str, model_name: str | None = None, **hints: Any) -> bool:
        return True


@pytest.fixture
def legacy(transactional_db: None, tmp_path: Path) -> Iterator[str]:
    """A second database that was never migrated, and no router: what a site has that reads another application's."""
    with extra_database("legacy", tmp_path / "legacy.sqlite3") as alias:
        with connections[alias].cursor() as cursor:
            cursor.execute("CREATE TABLE customers (id integer)")
        yield alias


@pytest.fixture
def broken(transactional_db: None, tmp_path: Path) -> Iterator[str]:
    """A database that can't be used: its file is no database. It comes before the usual one in DATABASES."""
    path = tmp_path / "broken.sqlite3"
    before = dict(connections.settings)
    path.write_bytes(b"no database at all, " * 100)
    with extra_database("broken", path) as alias:
        connections.settings = {alias: connections.settings[alias], **before}
        yield alias


def waiting_job() -> Job:
    with override_settings(RELIABLE_JOBS={"DISPATCH": "relay"}):
        return Job.objects.get(pk=tasks.effect.delay("one").id)


def old_job() -> Job:
    job = waiting_job()
    Job.objects.update(status="succeeded", finished_at=timezone.now() - timezone.timedelta(days=100))
    return job


def command(name: str, *args: str) -> str:
    output = io.StringIO()
    call_command(f"reliable_jobs_{name}", *args, stdout=output)
    return output.getvalue()


# --- a database without our table -----------------------------------------------------------------------------------


def test_a7_a_database_without_the_table_holds_no_jobs(jobs: InProcess, legacy: str) -> None:
    assert databases.aliases() == ["default"]
    assert databases.left_out() == {"legacy": "it has no jobs table"}


def test_a7_sweep_prune_and_commands_leave_it_alone(jobs: InProcess, legacy: str) -> None:
    old_job()
    assert pruner.prune() == 1
    job = waiting_job()
    assert jobs.sweep().published == 1
    assert "1 unfinished job(s)" in command("status")
    assert "can run all 1" in command("check")
    assert "1 job(s) done" in command("requeue", str(job.pk))
    assert "1 job(s) done" in command("cancel", "--task", job.task, "--yes")


@pytest.mark.promise("I1")
def test_a7_an_unknown_result_does_not_abort_an_open_transaction(jobs: InProcess, legacy: str) -> None:
    with transaction.atomic(using=legacy):
        assert JobResult("b7a6f8a4-7a39-4bb9-9db1-3a5d0b8a8f0e", app=app).state == "PENDING"
        with connections[legacy].cursor() as cursor:
            cursor.execute("INSERT INTO customers VALUES (1)")
    with connections[legacy].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM customers")
        assert cursor.fetchone() == (1,)


@pytest.mark.promise("I1")
def test_a7_requests_with_a_transaction_on_each_database_enqueue(jobs: InProcess, legacy: str) -> None:
    with transaction.atomic(), transaction.atomic(using=legacy):
        tasks.effect.delay("both")
    with transaction.atomic(using=legacy):
        tasks.effect.delay("legacy alone")
    jobs.work()
    assert set(Effect.objects.values_list("name", flat=True)) == {"both", "legacy alone"}


def test_a7_a_table_that_migrate_makes_later_is_seen(jobs: InProcess, legacy: str) -> None:
    assert databases.aliases() == ["default"]
    with connections[legacy].schema_editor() as editor:
        for model in (Job, JobEvent):
            editor.create_model(model)
    assert databases.aliases() == ["default"], "the answer is kept"
    databases.forget()  # what post_migrate does in this process
    assert databases.aliases() == ["default", "legacy"]


def test_a7_a_table_that_another_process_makes_is_seen_within_a_minute(
    jobs: InProcess, legacy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "BELIEVED", 0.0)
    assert databases.aliases() == ["default"]
    with connections[legacy].schema_editor() as editor:
        editor.create_model(Job)
    assert databases.aliases() == ["default", "legacy"]


def test_a7_a_site_with_one_database_is_asked_nothing(jobs: InProcess, django_assert_num_queries: Any) -> None:
    databases.forget()
    with django_assert_num_queries(0):
        assert databases.aliases() == ["default"]


def test_a7_with_two_databases_the_usual_enqueue_asks_nothing_more(
    jobs: InProcess, second_database: str, django_assert_num_queries: Any
) -> None:
    databases.forget()
    none = django_assert_num_queries(0, using="second")
    with django_assert_num_queries(3, using="default"), none, transaction.atomic():  # BEGIN, INSERT, COMMIT
        tasks.effect.delay("usual")


# --- a database that fails --------------------------------------------------------------------------------------------


@pytest.mark.promise("I2")
def test_a7_one_bad_database_stops_no_other(jobs: InProcess, broken: str) -> None:
    assert next(iter(connections)) == broken
    old_job()
    with pytest.raises(Exception, match="not a database"):
        pruner.prune()
    assert not Job.objects.exists()
    job = waiting_job()
    with pytest.raises(Exception, match="'broken' are not allowed"):  # Django's test case: no second connection
        jobs.sweep()
    assert len(jobs.take()) == 1
    assert JobResult(str(job.pk), app=app).state == "PENDING"


def test_a_database_that_fails_is_connected_anew_and_no_other(
    jobs: InProcess, second_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A primary that has become a replica still answers: nothing else would close the connection to it."""
    closed: list[str] = []

    def fails_on_second(alias: str) -> None:
        patch.setattr(connections[alias], "close", lambda: closed.append(alias))
        if alias == second_database:
            raise RuntimeError("read-only")

    with monkeypatch.context() as patch:
        with pytest.raises(RuntimeError, match="read-only"):
            databases.on_each(fails_on_second, "The test")
        with transaction.atomic(using=second_database), pytest.raises(RuntimeError, match="read-only"):
            databases.on_each(fails_on_second, "The test")
    assert closed == [second_database], "and none in an open transaction"


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["status"], "1 unfinished job(s)"),
        (["check", "--json"], '"unfinished": 1'),
        (["requeue", "--status", "waiting", "--yes"], "Requeue: 1 job(s) done."),
        (["cancel", "--all", "--yes"], "Cancel: 1 job(s) done."),
        (["cancel", "--all", "--dry-run"], "Would cancel 1 job(s)."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a7_commands_do_the_rest_and_name_the_bad_database(
    jobs: InProcess, broken: str, args: list[str], wanted: str
) -> None:
    waiting_job()
    output = io.StringIO()
    with pytest.raises(CommandError, match=r"Database 'broken' failed: .*not a database"):
        call_command(f"reliable_jobs_{args[0]}", *args[1:], stdout=output)
    assert wanted in output.getvalue()


# --- replicas and second names ----------------------------------------------------------------------------------------


@pytest.fixture
def alias_of(stack: Stack) -> Iterator[Callable[..., Any]]:
    """Makes further aliases of the stack's PostgreSQL server, settings written out by hand."""
    parts = urlsplit(stack.database_url)

    def make(alias: str, **settings: Any) -> Any:
        return extra_alias(
            alias,
            **{
                "ENGINE": "django.db.backends.postgresql",
                "NAME": stack.database_name,
                "USER": parts.username or "postgres",
                "PASSWORD": parts.password or "",
                "HOST": parts.hostname,
                "PORT": parts.port or 5432,
                **settings,
            },
        )

    databases.forget()
    yield make
    databases.forget()


@pytest.fixture
def replica(alias_of: Callable[..., Any]) -> Iterator[str]:
    """A second way to the same database, as a replica's alias is in development; read-only, as a replica is."""
    with (
        override_settings(DATABASE_ROUTERS=["tests.test_databases.PrimaryReplicaRouter"]),
        alias_of("replica", OPTIONS={"options": "-c default_transaction_read_only=on"}) as alias,
    ):
        yield alias


@pytest.mark.servers
def test_a7_djangos_documented_replica_router(stack: Stack, idle_queue: str, replica: str) -> None:
    assert databases.aliases() == ["default"]
    assert databases.left_out() == {"replica": "it can only be read"}
    old_job()
    assert pruner.prune() == 1
    job = waiting_job()
    assert sweeper.sweep(app).published == 1
    with pytest.raises(CommandError, match="No worker consumes"):
        command("status")
    assert "1 job(s) done" in command("requeue", str(job.pk))
    with transaction.atomic(), transaction.atomic(using=replica):
        assert JobResult("b7a6f8a4-7a39-4bb9-9db1-3a5d0b8a8f0e", app=app).state == "PENDING"
        tasks.effect.delay("with ATOMIC_REQUESTS on both")
    assert Job.objects.using("default").count() == 2


@pytest.mark.servers
@pytest.mark.promise("I1")
def test_a7_a_second_name_of_the_same_database(stack: Stack, idle_queue: str, alias_of: Callable[..., Any]) -> None:
    """Its transaction carries the job, and the message names the database by its usual name."""
    with alias_of("direct"):
        assert databases.aliases() == ["default"]
        with pytest.raises(ZeroDivisionError), transaction.atomic(using="direct"):
            tasks.effect.delay("rolled back")
            raise ZeroDivisionError
        with transaction.atomic(using="direct"):
            tasks.effect.delay("kept")
        assert Job.objects.count() == 1
    (message,) = stack.take_messages()
    assert message.headers[HEADER]["using"] == "default"


@pytest.mark.servers
def test_a7_a_user_who_may_only_read(stack: Stack, alias_of: Callable[..., Any]) -> None:
    role = f"reader_{stack.database_name}"
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'reads'")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        try:
            with alias_of("reports", USER=role, PASSWORD="reads"):
                assert databases.left_out() == {"reports": "it can only be read"}
        finally:
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


# --- the checks -------------------------------------------------------------------------------------------------------


def found(**kwargs: Any) -> dict[str, str]:
    messages = checks.run_checks(tags=[checks.Tags.database], **kwargs)
    return {str(message.id).removeprefix("reliable_jobs."): message.msg for message in messages if message.hint}


def test_a7_a_check_names_the_databases_without_jobs(jobs: InProcess, legacy: str) -> None:
    assert "'legacy' holds no jobs: it has no jobs table" in found(databases=["default", "legacy"])["I020"]
    assert "I020" not in found(databases=[]), "nothing is asked of a database unless check --database names one"


def test_a7_a_check_names_two_job_databases_with_atomic_requests(jobs: InProcess, second_database: str) -> None:
    assert "W026" not in found(databases=["default"])
    for alias in ("default", second_database):
        connections[alias].settings_dict["ATOMIC_REQUESTS"] = True
    try:
        assert "default and second" in found(databases=["default"])["W026"]
    finally:
        connections["default"].settings_dict["ATOMIC_REQUESTS"] = False
