"""Each scope says its partial index's condition word for word; the plans tell whether the database agrees."""

from __future__ import annotations

import datetime
import importlib
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.db.models import Count, Max
from django.test.utils import CaptureQueriesContext, override_settings
from django.utils import timezone

from reliable_jobs import queues
from reliable_jobs.clock import Now
from reliable_jobs.lifecycle import workflows
from reliable_jobs.models import Job, JobEvent, JobQuerySet
from reliable_jobs.models.selection import STATES
from reliable_jobs.status import FINAL, UNFINISHED, Reason, Status
from tests.support.harness import Stack, Transaction

SETTLED = 3000


def job(**values: Any) -> Job:
    now = timezone.now()
    given: dict[str, Any] = {
        "task": "some.task",
        "queue": "celery",
        "due_at": now,
        "payload": b"[[], {}, {}]",
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "envelope": "{}",
        **values,
    }
    return Job(**given)


def fill() -> None:
    """Many settled rows, a few of each unfinished kind: what a table looks like that runs for a while."""
    past, future = (timezone.now() + datetime.timedelta(minutes=minutes) for minutes in (-1, 60))
    new = [
        job(
            status=FINAL[n % 4],
            sends=1,
            finished_at=past,
            created_at=past,
            task=f"task {n % 50}",
            queue=f"queue {n % 7}",
        )
        for n in range(SETTLED)
    ]
    # A backlog, so that the planner need not weigh a few pages of one index against a few of another.
    new += [job(due_at=past, sends=1, check_at=future) for _ in range(100)]
    new += [job(due_at=past) for _ in range(5)]
    new += [job(due_at=past, sends=1, check_at=past) for _ in range(5)]
    new += [job(status=Status.RUNNING, lease_at=past, token=uuid.uuid4()) for _ in range(5)]
    new += [job(status=Status.FAILED, finished_at=past, reason=Reason.PARKED, requeues=1, crashes=1, key="k")]
    new += [job(due_at=future, reason=Reason.ERROR, error_class="ValueError") for _ in range(5)]
    Job.objects.bulk_create(new)
    with connection.cursor() as cursor:
        # PostgreSQL reads an index alone where it knows that all see its rows.
        cursor.execute("ANALYZE" if connection.in_atomic_block else "VACUUM ANALYZE")


#: What the package asks, and the index that is made for it.
QUESTIONS: dict[str, tuple[str, Callable[[], JobQuerySet]]] = {
    "due of a queue": (
        "reliable_job_unsent",
        lambda: Job.objects.due().filter(queue="celery").order_by("due_at")[:500],
    ),
    "depths": (
        "reliable_job_depth",
        lambda: Job.objects.filter(status="waiting").values("queue").annotate(n=Count("due_at")).order_by(),
    ),
    "first waiting of a queue": (
        "reliable_job_depth",
        lambda: Job.objects.filter(status="waiting", queue="celery").order_by("due_at")[:100],
    ),
    "what fails": (
        "reliable_job_failed",
        lambda: (
            Job.objects.filter(status="failed", finished_at__gt=Now() - datetime.timedelta(days=1))
            .values("task", "error_class", "release")
            .annotate(n=Count("finished_at"), last=Max("finished_at"))
            .order_by()
        ),
    ),
    "what is retried": (
        "reliable_job_retrying",
        lambda: (
            Job.objects.filter(status="waiting", reason="error")
            .values("task", "error_class")
            .annotate(n=Count("task"))
            .order_by()
        ),
    ),
    "overdue of a queue": (
        "reliable_job_overdue",
        lambda: Job.objects.overdue().filter(queue="celery").order_by("check_at")[:500],
    ),
    "sent again of a queue": (
        "reliable_job_sent_again",
        lambda: Job.objects.sent_again().filter(queue="celery").values_list("sends", flat=True)[:200],
    ),
    "lost runs": ("reliable_job_lease", lambda: Job.objects.lost_runs()[:500]),
    "how far a queue has come": (
        "reliable_job_settled",
        lambda: Job.objects.filter(
            queue="celery",
            status__in=[str(status) for status in FINAL],
            finished_at__gt=Now() - datetime.timedelta(seconds=30),
        ).order_by("-finished_at")[:200],
    ),
    "prunable": (
        "reliable_job_prune",
        lambda: Job.objects.filter(status="succeeded", finished_at__lt=Now() - datetime.timedelta(days=7))[:1000],
    ),
    "an unfinished part of a group": (
        "reliable_job_owes_open",
        lambda: Job.objects.extra(  # as lifecycle/sql.py has it: SQLite compares the text
            where=["owes = %s AND status IN ('waiting', 'running', 'sent')"], params=[uuid.UUID(int=7).hex]
        ).order_by("-place")[:1],
    ),
    "parts of a group": (
        "reliable_job_owes",
        lambda: Job.objects.filter(owes=uuid.UUID(int=7)).order_by("place"),
    ),
    "plain parts of which nothing is heard": (
        "reliable_job_unreported",
        lambda: Job.objects.filter(status="sent", owes__isnull=False, check_at__lte=Now()).order_by("check_at")[:100],
    ),
    "by key": ("reliable_job_live_key", lambda: Job.objects.filter(task="some.task", live_key="k")),
    "key as given": ("reliable_job_key_prefix", lambda: Job.objects.filter(key="k")),
    "children": ("reliable_job_parent", lambda: Job.objects.filter(parent_id=uuid.UUID(int=5))[:50]),
    "of a workflow": (
        "reliable_job_root",
        lambda: Job.objects.filter(workflows.members(uuid.UUID(int=5)), status__in=UNFINISHED),
    ),
    "newest": ("reliable_job_created", lambda: Job.objects.order_by("-created_at")[:100]),
    "last ended in one way": (
        "reliable_job_prune",
        lambda: STATES["succeeded"](Job.objects.all()).order_by("-finished_at")[:100],
    ),
    "newest of a task": ("reliable_job_task", lambda: Job.objects.filter(task="task 3").order_by("-created_at")[:100]),
    "requeued": ("reliable_job_unusual", lambda: Job.objects.filter(requeues__gt=0).order_by("-created_at")[:100]),
    "put ahead by a pause": (
        "reliable_job_paused",
        lambda: Job.objects.filter(status=Status.WAITING, paused_at__isnull=False)[:100],
    ),
    "crashed": ("reliable_job_unusual", lambda: Job.objects.filter(crashes__gt=0).order_by("-created_at")[:100]),
    "parked": (
        "reliable_job_unusual",
        lambda: Job.objects.filter(reason=Reason.PARKED).order_by("-created_at")[:100],
    ),
}


def test_every_index_is_asked_for_by_something() -> None:
    names = {index.name for index in Job._meta.indexes} | {constraint.name for constraint in Job._meta.constraints}
    assert {name for name, _ in QUESTIONS.values()} == names


def assert_every_question_uses_its_index() -> None:
    fill()
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                # So few rows are as soon read all. The plans of a million rows: tests/admin/test_page_plans.py.
                cursor.execute("SET LOCAL enable_seqscan = off")
        for what, (index, question) in QUESTIONS.items():
            plan = question().explain()
            if connection.vendor == "sqlite":
                index = index.removesuffix("_open")  # it takes all parts of a group for as good as the open ones
                index = index.replace("_failed", "_prune")  # and what has failed, in the order of time
                index = index.replace("_paused", "_depth")  # and what is put ahead, among what waits
            # Of a few hundred failed rows the planner may take the narrower index, and read the rows.
            others = {"reliable_job_failed": "reliable_job_prune"}
            assert index in plan or others.get(index, index) in plan, f"{what}:\n{plan}"


@pytest.mark.django_db
@pytest.mark.promise("I10")
def test_every_question_uses_its_index() -> None:
    assert_every_question_uses_its_index()


@pytest.mark.servers
@pytest.mark.promise("I10")
def test_every_question_uses_its_index_on_postgresql(stack: Stack) -> None:
    assert_every_question_uses_its_index()


@pytest.mark.servers
@pytest.mark.promise("I10")
def test_a_locked_question_reads_the_same_index(stack: Stack) -> None:
    fill()
    with transaction.atomic():
        plan = Job.objects.due().filter(queue="celery").order_by("due_at").lock()[:500].explain()
    assert "reliable_job_unsent" in plan
    assert "LockRows" in plan


DELAYED = 20_000


def buffers(text: str) -> int:
    """Pages that a statement reads."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}")
        plan = cursor.fetchone()[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.mark.servers
@pytest.mark.promise("I10")
def test_a_look_for_due_jobs_does_not_read_what_waits(stack: Stack) -> None:
    fill()
    now, columns = timezone.now(), "task, payload, content_type, content_encoding, envelope, status, reason"
    with connection.cursor() as cursor:
        for sends in (0, 1):
            cursor.execute(
                f"""INSERT INTO reliable_jobs_job (id, queue, due_at, check_at, sends, {columns}, epoch, key_forever,
                        content_version, failures, crashes, interruptions, requeues, error, traceback, worker)
                    SELECT gen_random_uuid(), 'many', %s, %s, %s, 'some.task', '', '', '', '', 'waiting', '', 0, false,
                        0, 0, 0, 0, 0, '', '', '' FROM generate_series(1, %s)""",
                [*[now + datetime.timedelta(hours=1)] * 2, sends, DELAYED],
            )
        cursor.execute("VACUUM ANALYZE")
    for kind in (queues.UNSENT, queues.SENT):
        with CaptureQueriesContext(connection) as asked:
            assert queues.with_past(kind, "default")[0] == ["celery"]
        assert buffers(asked[0]["sql"]) < 50
    assert queues.with_any(queues.WAITING, "default") == ["celery", "many"]


@pytest.mark.django_db
def test_queues_are_found_by_what_waits_in_them() -> None:
    now = timezone.now()
    past, earlier, future = (now + datetime.timedelta(seconds=seconds) for seconds in (-60, -90, 60))
    Job.objects.bulk_create(
        [
            job(queue="b", due_at=past),
            *(job(queue="a", due_at=at) for at in (earlier, past, future)),
            job(queue="later", due_at=future),
            job(queue="held", due_at=None),
            job(queue="sent", due_at=past, sends=1, check_at=future),
            job(queue="overdue", due_at=past, sends=1, check_at=past),
            *(job(queue=str(status), due_at=past, status=status, finished_at=past) for status in FINAL),
        ]
    )
    assert queues.with_past(queues.UNSENT, "default") == (["a", "b"], False)
    assert queues.with_past(queues.SENT, "default") == (["overdue"], False)
    assert queues.with_any(queues.WAITING, "default") == ["a", "b", "held", "later", "overdue", "sent"]
    Job.objects.all().delete()
    assert queues.with_any(queues.WAITING, "default") == queues.with_past(queues.SENT, "default")[0] == []


@pytest.mark.django_db
def test_the_scopes_find_what_they_name() -> None:
    now = timezone.now()
    past, future = now - datetime.timedelta(seconds=60), now + datetime.timedelta(hours=1)
    made = {
        "due": job(due_at=past),
        "not due": job(due_at=future),
        "sent": job(due_at=past, sends=1, check_at=future),
        "overdue": job(due_at=past, sends=2, check_at=past),
        "running": job(status=Status.RUNNING, lease_at=future, token=uuid.uuid4()),
        "lost": job(status=Status.RUNNING, lease_at=past, token=uuid.uuid4()),
        **{str(status): job(status=status, finished_at=past) for status in FINAL},
    }
    Job.objects.bulk_create(made.values())
    names = {row.pk: name for name, row in made.items()}

    def found(scope: JobQuerySet) -> set[str]:
        return {names[row.pk] for row in scope}

    assert found(Job.objects.due()) == {"due"}
    assert found(Job.objects.overdue()) == {"overdue"}
    assert found(Job.objects.lost_runs()) == {"lost"}
    assert found(Job.objects.unfinished()) == set(made) - {str(status) for status in FINAL}
    assert {names[row.pk] for row in made.values() if row.is_final} == {str(status) for status in FINAL}


@pytest.mark.django_db
@pytest.mark.parametrize("body", [b"", b"\x00\xff\x80", "\u0000ä".encode()])
def test_a_body_comes_back_byte_for_byte(body: bytes) -> None:
    made = job(payload=body)
    made.save(force_insert=True)
    assert bytes(Job.objects.get(pk=made.pk).payload) == body


@pytest.mark.django_db
def test_a_live_key_is_taken_once_per_task() -> None:
    job(key="k", live_key="k").save(force_insert=True)
    job(key="k", live_key="k", task="another.task").save(force_insert=True)
    job(key="k", live_key=None).save(force_insert=True)
    job(key="k", live_key=None).save(force_insert=True)
    with pytest.raises(IntegrityError), transaction.atomic():
        job(key="k", live_key="k").save(force_insert=True)


@pytest.mark.django_db
def test_without_partial_indexes_the_key_is_unique_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    (constraint,) = Job._meta.constraints

    def made() -> str:
        return str(constraint.create_sql(Job, connection.schema_editor(collect_sql=True)))

    assert "WHERE" in made()
    monkeypatch.setattr(connection.features, "supports_partial_indexes", False)
    assert "UNIQUE" in made()
    assert "WHERE" not in made()
    assert not [error for error in Job.check(databases=["default"]) if error.id == "models.W036"]


@pytest.mark.django_db
def test_a_form_says_that_the_key_is_taken() -> None:
    job(key="k", live_key="k").save(force_insert=True)
    with pytest.raises(ValidationError, match="one already with this task and live_key"):
        job(key="k", live_key="k").validate_constraints()


def storage_parameters() -> dict[str, str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT unnest(reloptions) FROM pg_class WHERE relname = 'reliable_jobs_job'")
        return dict(option.split("=") for (option,) in cursor.fetchall())


@pytest.mark.servers
@pytest.mark.promise("I10")
def test_autovacuum_comes_before_a_fifth_is_dead_and_can_be_set_back(stack: Stack) -> None:
    migration = importlib.import_module("reliable_jobs.migrations.0001_initial")
    assert storage_parameters() == migration.AUTOVACUUM
    with connection.schema_editor() as editor:
        migration.reset_autovacuum(None, editor)
        assert storage_parameters() == {}
        migration.set_autovacuum(None, editor)
    assert storage_parameters() == migration.AUTOVACUUM


@pytest.mark.servers
def test_a_lock_skips_what_another_session_holds_and_takes_the_rest(stack: Stack) -> None:
    held, free = job(), job()
    Job.objects.bulk_create([held, free])
    other = Transaction(lambda: list(Job.objects.filter(pk=held.pk).lock()))
    with transaction.atomic():
        assert [row.pk for row in Job.objects.lock()] == [free.pk]
    other.end()
    with transaction.atomic():
        assert len(Job.objects.lock()) == 2


@pytest.mark.servers
def test_a_lock_does_not_mind_a_foreign_keys_share_lock(stack: Stack) -> None:
    row = job()
    row.save(force_insert=True)

    def share() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM reliable_jobs_job WHERE id = %s FOR KEY SHARE", [row.pk])

    other = Transaction(share)
    with transaction.atomic():
        assert len(Job.objects.lock()) == 1
    other.end()


@pytest.mark.servers
def test_an_event_can_be_written_while_a_run_holds_the_row(stack: Stack) -> None:
    row = job()
    row.save(force_insert=True)
    other = Transaction(lambda: list(Job.objects.select_for_update().filter(pk=row.pk)))
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = 1000")
        JobEvent.objects.create(job_id=row.pk, kind="crash")
    other.end()


@pytest.mark.django_db
@pytest.mark.parametrize("language", ["en-us", "de"])
def test_the_migrations_are_complete(language: str) -> None:
    with override_settings(LANGUAGE_CODE=language):
        call_command("makemigrations", "reliable_jobs", check=True, dry_run=True, verbosity=0)


def test_a_job_reads_as_celery_writes_it() -> None:
    row = job(id=uuid.UUID(int=1))
    assert str(row) == "some.task[00000000-0000-0000-0000-000000000001]"
    assert str(JobEvent(kind="crash", at=datetime.datetime(2026, 1, 2, 3, 4, 5))) == "crash 2026-01-02 03:04:05"
