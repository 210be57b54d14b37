"""A site migrates while its workers run and its requests enqueue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection, connections, migrations, models, transaction
from django.db.migrations.loader import MigrationLoader
from django.test import override_settings

from reliable_jobs.migrations import _patience
from reliable_jobs.migrations._patience import AddFields, AddIndex, RemoveIndex
from reliable_jobs.models import Job
from tests.support.harness import PATIENCE, Stack, Transaction, wait_until
from tests.test_models import job

pytestmark = [pytest.mark.servers, pytest.mark.promise("I2")]


OLD = models.Index(fields=["worker"], name="reliable_job_old")
NEW = models.Index(fields=["queue"], name="reliable_job_new")
TEXT = models.CharField(max_length=10, db_default="")


class Later(migrations.Migration):
    """As a later release brings one."""

    atomic = False
    operations = [
        AddFields("job", {"one": TEXT, "two": models.IntegerField(null=True)}),
        AddIndex("job", NEW),
        RemoveIndex("job", OLD.name),
    ]


def migrate(backwards: bool = False) -> None:
    """As the command ``migrate`` does it."""
    state = MigrationLoader(connection).project_state()
    state.add_index("reliable_jobs", "job", OLD)
    migration = Later("later", "reliable_jobs")
    with connection.schema_editor(atomic=False) as editor:
        (migration.unapply if backwards else migration.apply)(state, editor)


def one_operation(operation: Any) -> None:
    before = MigrationLoader(connection).project_state()
    after = before.clone()
    operation.state_forwards("reliable_jobs", after)
    with connection.schema_editor(atomic=False) as editor:
        operation.database_forwards("reliable_jobs", editor, before, after)


NEW_ONES = {"one", "two", NEW.name}


def there() -> set[str]:
    """Which of the columns and indexes there are; of the indexes those that can be used."""
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT attname FROM pg_attribute
               WHERE attrelid = 'reliable_jobs_job'::regclass AND attname IN ('one', 'two') AND NOT attisdropped
               UNION ALL
               SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
               WHERE indrelid = 'reliable_jobs_job'::regclass AND relname IN (%s, %s) AND indisvalid""",
            [OLD.name, NEW.name],
        )
        return {name for (name,) in cursor.fetchall()}


@pytest.fixture
def before(stack: Stack) -> Iterator[Job]:
    """A job, before the migrations."""
    with connection.schema_editor() as editor:
        editor.add_index(Job, OLD)
    row = job()
    row.save(force_insert=True)
    yield row
    with connection.cursor() as cursor:
        for name in (OLD.name, NEW.name):
            cursor.execute(f"DROP INDEX IF EXISTS {name}")
        cursor.execute("ALTER TABLE reliable_jobs_job DROP COLUMN IF EXISTS one, DROP COLUMN IF EXISTS two")


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


def the_migration_waits() -> bool:
    """For the table; or, while an index is made, for transactions that use it."""
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT count(*) FROM pg_locks
               WHERE NOT granted AND (locktype = 'virtualxid'
                   OR relation = 'reliable_jobs_job'::regclass AND mode = 'AccessExclusiveLock')"""
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
    wait_until(the_migration_waits, "the migration waits")
    migrating.set()
    other.finish()
    migration.finish()
    assert there() == NEW_ONES


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
    assert there() == NEW_ONES


def test_a_migration_that_gets_no_lock_changes_nothing(before: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_patience, "LOCK_TIMEOUT_MS", 50)
    monkeypatch.setattr(_patience, "TRIES", 1)
    holds = Transaction(lambda: job().save(force_insert=True))
    with pytest.raises(OperationalError, match="lock timeout"):
        migrate()
    holds.end()
    assert there() == {OLD.name}


def test_others_write_while_an_index_is_made(before: Job) -> None:
    request = Transaction(lambda: enqueue(before))
    migration = InBackground(lambda: one_operation(AddIndex("job", NEW)))
    wait_until(the_migration_waits, "the index waits for the request")
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = 1000")
        job().save(force_insert=True)
        assert Job.objects.update(worker="w") == 2
    request.end()
    migration.finish()
    assert NEW.name in there()


def test_a_migration_that_was_broken_off_can_be_run_again(before: Job) -> None:
    one_operation(Later.operations[0])
    request = Transaction(lambda: enqueue(before))
    migration = InBackground(migrate)
    wait_until(the_migration_waits, "the index waits for the request")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted AND locktype = 'virtualxid'")
    with pytest.raises(OperationalError):
        migration.finish()
    request.end()
    assert there() == {"one", "two", OLD.name}, "the index can't be used"
    migrate()
    assert there() == NEW_ONES


def test_columns_and_indexes_go_back(before: Job) -> None:
    migrate()
    migrate(backwards=True)
    assert there() == {OLD.name}


def test_the_way_to_nothing_and_back(stack: Stack) -> None:
    call_command("migrate", "reliable_jobs", "zero", verbosity=0)
    assert "reliable_jobs_job" not in connection.introspection.table_names()
    call_command("migrate", "reliable_jobs", verbosity=0)
    assert "reliable_jobs_job" in connection.introspection.table_names()


class Elsewhere:
    """Jobs are in another database."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
        return app_label != "reliable_jobs"


def test_a_database_that_holds_no_jobs_is_migrated_too(stack: Stack) -> None:
    call_command("migrate", "reliable_jobs", "zero", verbosity=0)
    with override_settings(DATABASE_ROUTERS=[Elsewhere()]):
        call_command("migrate", "reliable_jobs", verbosity=0)
        assert "reliable_jobs_job" not in connection.introspection.table_names()
        call_command("migrate", "reliable_jobs", "zero", verbosity=0)
    call_command("migrate", "reliable_jobs", verbosity=0)
