"""A site migrates while its workers run and its requests enqueue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection, connections, migrations, models, transaction
from django.db.migrations.loader import MigrationLoader

from reliable_jobs.migrations import _patience
from reliable_jobs.migrations._patience import AddIndex, RemoveIndex
from reliable_jobs.models import Job
from tests.support.harness import PATIENCE, Stack, Transaction, wait_until
from tests.test_models import job

pytestmark = [pytest.mark.servers, pytest.mark.promise("I2")]


OLD = models.Index(fields=["worker"], name="reliable_job_old")
NEW = models.Index(fields=["queue"], name="reliable_job_new")
#: Migrations as later releases bring them.
LATER = [[AddIndex("job", NEW)], [RemoveIndex("job", OLD.name)]]


def migrate() -> None:
    """As the command ``migrate`` does it."""
    state = MigrationLoader(connection).project_state()
    state.add_index("reliable_jobs", "job", OLD)
    for number, operations in enumerate(LATER):
        migration = migrations.Migration(f"later_{number}", "reliable_jobs")
        migration.operations = operations
        with connection.schema_editor(atomic=True) as editor:
            state = migration.apply(state, editor)


def indexes() -> set[str]:
    """Which of the two there are."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexname FROM pg_indexes WHERE indexname IN (%s, %s)", [OLD.name, NEW.name])
        return {name for (name,) in cursor.fetchall()}


@pytest.fixture
def before(stack: Stack) -> Iterator[Job]:
    """A job, before the migrations."""
    with connection.schema_editor() as editor:
        editor.add_index(Job, OLD)
    row = job()
    row.save(force_insert=True)
    yield row
    there = indexes()
    with connection.schema_editor() as editor:
        for index in (OLD, NEW):
            if index.name in there:
                editor.remove_index(Job, index)


class InBackground(threading.Thread):
    """Something done by another session."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.work, self.error = work, None
        self.start()

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.error: BaseException | None = error
        finally:
            connections.close_all()

    def finish(self) -> None:
        self.join(PATIENCE)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


def somebody_waits_for_the_table() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'reliable_jobs_job'::regclass"
            " AND mode IN ('ShareLock', 'AccessExclusiveLock')"
        )
        return bool(cursor.fetchone()[0])


def claim(row: Job) -> None:
    assert Job.objects.filter(pk=row.pk).lock().first() is not None


def settle(row: Job) -> None:
    assert Job.objects.filter(pk=row.pk).update(worker="settled") == 1


def enqueue(row: Job) -> None:
    job().save(force_insert=True)


def read(row: Job) -> None:
    assert Job.objects.count()


@pytest.mark.parametrize(("first", "then"), [(claim, settle), (enqueue, enqueue), (read, enqueue)])
def test_runs_and_requests_go_on_across_a_migration(
    before: Job, first: Callable[[Job], None], then: Callable[[Job], None]
) -> None:
    begun, migrating = threading.Event(), threading.Event()

    def across() -> None:
        with transaction.atomic():
            first(before)
            begun.set()
            assert migrating.wait(PATIENCE)
            then(before)

    other = InBackground(across)
    assert begun.wait(PATIENCE)
    migration = InBackground(migrate)
    wait_until(somebody_waits_for_the_table, "the migration waits")
    migrating.set()
    other.finish()
    migration.finish()
    assert indexes() == {NEW.name}


def test_a_migration_lets_others_pass_and_tries_again(
    before: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_patience, "LOCK_TIMEOUT_MS", 50)
    holds = Transaction(lambda: Job.objects.filter(pk=before.pk).lock().first())
    migration = InBackground(migrate)
    wait_until(lambda: "trying again" in caplog.text, "the migration has let go of its lock")
    job().save(force_insert=True)  # nobody is held up meanwhile
    holds.end()
    migration.finish()
    assert indexes() == {NEW.name}


def test_a_migration_that_gets_no_lock_changes_nothing(before: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_patience, "LOCK_TIMEOUT_MS", 50)
    monkeypatch.setattr(_patience, "TRIES", 1)
    holds = Transaction(lambda: job().save(force_insert=True))
    with pytest.raises(OperationalError, match="lock timeout"):
        migrate()
    holds.end()
    assert indexes() == {OLD.name}


def test_the_way_to_nothing_and_back(stack: Stack) -> None:
    call_command("migrate", "reliable_jobs", "zero", verbosity=0)
    assert "reliable_jobs_job" not in connection.introspection.table_names()
    call_command("migrate", "reliable_jobs", verbosity=0)
    assert "reliable_jobs_job" in connection.introspection.table_names()
