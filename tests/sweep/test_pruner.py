"""Old settled rows go, with their events; nothing else does."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.apps import apps
from django.db import connection, models
from django.db.models import QuerySet
from django.test import override_settings
from django.utils import timezone

from reliable_jobs import lifecycle
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import FINAL
from reliable_jobs.sweep import pruner
from tests.support import inprocess
from tests.support.harness import Stack, Transaction

second_database = inprocess.second_database


def make(status: str, days: float, **values: Any) -> Job:
    finished = timezone.now() - datetime.timedelta(days=days)
    job = Job(
        task="t",
        queue="q",
        status=status,
        due_at=finished,
        finished_at=finished if status in FINAL else None,
        payload=b"",
        content_type="",
        content_encoding="",
        envelope="{}",
        **values,
    )
    job.save(force_insert=True)
    return job


def left() -> set[uuid.UUID]:
    return set(Job.objects.values_list("pk", flat=True))


@pytest.mark.django_db
@pytest.mark.parametrize(("status", "days"), [("succeeded", 7), ("failed", 90), ("cancelled", 30), ("expired", 30)])
def test_a_settled_row_is_kept_for_its_days_and_not_longer(status: str, days: int) -> None:
    old, young = make(status, days + 0.1), make(status, days - 0.1)
    assert pruner.prune() == 1
    assert left() == {young.pk}
    assert old.pk not in left()


@pytest.mark.django_db
@pytest.mark.parametrize("status", ["waiting", "running"])
def test_an_unfinished_row_is_never_pruned(status: str) -> None:
    job = make(status, 10_000)
    Job.objects.update(finished_at=job.due_at)  # whatever else the row says
    assert pruner.prune() == 0
    assert left() == {job.pk}


@pytest.mark.django_db
def test_events_go_with_their_job_and_only_with_it() -> None:
    old, young = make("failed", 100), make("failed", 1)
    for job in (old, old, young):
        JobEvent.objects.create(job=job, kind="failure")
    pruner.prune()
    assert list(JobEvent.objects.filter(job__in=[old, young]).values_list("job_id", flat=True)) == [young.pk]


@pytest.mark.django_db
@override_settings(RELIABLE_JOBS={"RETENTION": {"succeeded": None, "failed": 0}})
def test_none_keeps_for_ever_and_zero_keeps_nothing() -> None:
    kept = make("succeeded", 10_000)
    make("failed", 0.0001)
    assert pruner.prune() == 1
    assert left() == {kept.pk}


@pytest.mark.django_db
def test_a_job_requeued_since_is_not_pruned() -> None:
    job = make("failed", 100)
    lifecycle.requeue([job.pk], "default", actor="ann")
    assert pruner.prune() == 0


@pytest.mark.django_db
def test_a_key_for_ever_ends_with_its_row() -> None:
    make("succeeded", 10, key="k", live_key="k", key_forever=True)
    pruner.prune()
    make("waiting", 0, key="k", live_key="k", key_forever=True)


@pytest.mark.django_db
def test_many_rows_go_in_batches_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruner, "BATCH", 2)
    for _ in range(7):
        make("succeeded", 10)
    assert pruner.prune(limit=3) == 3
    assert pruner.prune() == 4


@pytest.mark.django_db(transaction=True)
def test_every_database_that_holds_jobs_is_pruned(second_database: str) -> None:
    job = make("succeeded", 10)
    job.save(using="second", force_insert=True)
    assert pruner.prune() == 2


def test_django_still_has_the_delete_that_collects_nothing() -> None:
    """Private in Django; should it be renamed, this test says so."""
    assert callable(QuerySet._raw_delete)


@pytest.mark.servers
def test_a_row_that_somebody_holds_is_left_for_the_next_time(stack: Stack) -> None:
    held, free = make("succeeded", 10), make("succeeded", 10)
    other = Transaction(lambda: list(Job.objects.filter(pk=held.pk).lock()))
    assert pruner.prune() == 1
    assert left() == {held.pk}
    other.end()
    assert pruner.prune() == 1
    assert free.pk not in left()


@pytest.mark.servers
def test_a_requeue_in_an_open_transaction_saves_its_row(stack: Stack) -> None:
    job = make("failed", 100)
    JobEvent.objects.create(job=job, kind="failure")
    other = Transaction(lambda: lifecycle.requeue([job.pk], "default", actor="ann"))
    assert pruner.prune() == 0
    other.end()
    assert pruner.prune() == 0
    assert Job.objects.get().status == "waiting"
    assert JobEvent.objects.filter(kind="failure").exists()


# --- rows of the application that refer to jobs -----------------------------------------------------------------------


@pytest.fixture
def refer(transactional_db: None) -> Iterator[Callable[..., type[models.Model]]]:
    """Makes a model with a foreign key to a job, for the time of a test."""
    made: list[type[models.Model]] = []

    def make_model(on_delete: Any, **options: Any) -> type[models.Model]:
        body = {
            "__module__": "tests.testapp.models",
            "job": models.ForeignKey(Job, on_delete=on_delete, related_name="+", **options),
            "Meta": type("Meta", (), {"app_label": "testapp"}),
        }
        model = type(f"Receipt{len(made)}", (models.Model,), body)
        made.append(model)
        with connection.schema_editor() as editor:
            editor.create_model(model)
        return model

    yield make_model
    for model in made:
        with connection.schema_editor() as editor:
            editor.delete_model(model)
        del apps.all_models["testapp"][model._meta.model_name]
    apps.clear_cache()


@pytest.mark.parametrize("on_delete", [models.PROTECT, models.RESTRICT, models.DO_NOTHING])
def test_c3_a_job_that_another_row_protects_is_kept_and_the_others_go(
    refer: Callable[..., Any], on_delete: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "reliable_jobs.sweep")
    monkeypatch.setattr(pruner, "BATCH", 2)
    receipt = refer(on_delete)
    protected = {make("failed", 200).pk for _ in range(3)}
    others = [make("failed", 100) for _ in range(3)]
    for pk in protected:
        receipt.objects.create(job_id=pk)
    assert pruner.prune() == len(others)
    assert left() == protected
    assert "3 settled job(s) are kept, because testapp.Receipt0.job refers to them" in caplog.text


def test_c3_a_cascade_takes_the_row_along_and_a_set_null_empties_it(refer: Callable[..., Any]) -> None:
    gone, emptied = refer(models.CASCADE), refer(models.SET_NULL, null=True)
    old, young = make("succeeded", 10), make("succeeded", 1)
    for job in (old, young):
        JobEvent.objects.create(job=job, kind="failure")
        gone.objects.create(job_id=job.pk)
        emptied.objects.create(job_id=job.pk)
    assert pruner.prune() == 1
    assert list(gone.objects.values_list("job_id", flat=True)) == [young.pk]
    assert set(emptied.objects.values_list("job_id", flat=True)) == {None, young.pk}
    assert [event.job_id for event in JobEvent.objects.filter(job__in=[old, young])] == [young.pk]


def test_c3_a_reference_that_django_knows_nothing_of_keeps_its_job_only(
    transactional_db: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruner, "BATCH", 2)
    kept = {make("failed", 200).pk for _ in range(3)}
    others = [make("failed", 100) for _ in range(3)]
    kind = Job._meta.pk.db_type(connection)
    quote = connection.ops.quote_name
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE elsewhere (job {kind} REFERENCES {quote(Job._meta.db_table)} (id))")
        try:
            for pk in kept:
                cursor.execute("INSERT INTO elsewhere VALUES (%s)", [Job._meta.pk.get_db_prep_value(pk, connection)])
            assert pruner.prune() == len(others)
            assert left() == kept
            assert "3 settled job(s) can't be pruned" in caplog.text
        finally:
            cursor.execute("DROP TABLE elsewhere")
