"""The rows of the sweeper and the pruner in django-celery-beat: made on migrate, a person's edits kept."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import call_command
from django.test import override_settings

from reliable_jobs.schedule import PRUNE_TASK, SWEEP_TASK, create_periodic_tasks
from tests.celery_app import app

beat = pytest.importorskip("django_celery_beat.models", reason="needs django-celery-beat")
IntervalSchedule, PeriodicTask, PeriodicTasks = beat.IntervalSchedule, beat.PeriodicTask, beat.PeriodicTasks
ModelEntry = pytest.importorskip("django_celery_beat.schedulers").ModelEntry

pytestmark = pytest.mark.django_db


def row(task: str) -> PeriodicTask:
    return PeriodicTask.objects.get(task=task)


def test_migrate_makes_both_rows() -> None:
    PeriodicTask.objects.all().delete()
    call_command("migrate", verbosity=0)
    assert (row(SWEEP_TASK).interval.every, row(SWEEP_TASK).interval.period) == (1, "seconds")
    assert (row(PRUNE_TASK).interval.every, row(PRUNE_TASK).interval.period) == (10, "minutes")
    assert row(SWEEP_TASK).enabled
    assert row(SWEEP_TASK).description


def test_this_app_can_be_migrated_before_beat(tmp_path: Path) -> None:
    database = tmp_path / "new.sqlite3"
    for migrated in (["reliable_jobs"], ["django_celery_beat", "0001"], ["django_celery_beat"]):
        done = subprocess.run(
            [sys.executable, "-m", "django", "migrate", *migrated],
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "DATABASE_URL": f"sqlite:///{database}"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    with contextlib.closing(sqlite3.connect(database)) as made:
        tasks = made.execute("SELECT task FROM django_celery_beat_periodictask ORDER BY task").fetchall()
    assert tasks == [(PRUNE_TASK,), (SWEEP_TASK,)]


def test_beat_can_run_the_rows() -> None:
    create_periodic_tasks()
    for task in (SWEEP_TASK, PRUNE_TASK):
        entry = ModelEntry(row(task), app=app)
        assert entry.task == task
        assert task in app.tasks


def test_an_interval_that_was_edited_stays() -> None:
    create_periodic_tasks()
    edited = row(SWEEP_TASK)
    edited.interval = IntervalSchedule.objects.create(every=7, period="seconds")
    edited.enabled = False
    edited.save()
    call_command("migrate", verbosity=0)
    assert (row(SWEEP_TASK).interval.every, row(SWEEP_TASK).enabled) == (7, False)


def test_a_row_that_was_renamed_is_not_made_again() -> None:
    create_periodic_tasks()
    PeriodicTask.objects.filter(task=SWEEP_TASK).update(name="our sweeper")
    create_periodic_tasks()
    assert PeriodicTask.objects.filter(task=SWEEP_TASK).count() == 1


def test_the_first_interval_comes_from_the_settings() -> None:
    PeriodicTask.objects.all().delete()
    with override_settings(RELIABLE_JOBS={"SWEEP_INTERVAL": 5}):
        create_periodic_tasks()
    assert row(SWEEP_TASK).interval.every == 5


def test_an_interval_that_exists_twice_is_no_error() -> None:
    PeriodicTask.objects.all().delete()
    IntervalSchedule.objects.all().delete()
    for _ in range(2):
        IntervalSchedule.objects.create(every=1, period="seconds")
    create_periodic_tasks()
    assert row(SWEEP_TASK).interval.every == 1


def test_a_name_that_is_taken_by_another_task_is_no_error() -> None:
    PeriodicTask.objects.all().delete()
    interval = IntervalSchedule.objects.create(every=3, period="hours")
    PeriodicTask.objects.create(name="reliable_jobs: sweep", task="something.else", interval=interval)
    create_periodic_tasks()
    assert PeriodicTask.objects.get(name="reliable_jobs: sweep").task == "something.else"


def test_beat_hears_of_the_new_rows() -> None:
    PeriodicTask.objects.all().delete()
    before = PeriodicTasks.last_change()
    create_periodic_tasks()
    after = PeriodicTasks.last_change()
    assert after is not None
    assert before is None or after >= before


def test_another_database_gets_no_rows_where_beat_does_not_live(settings: object) -> None:
    class Router:
        def allow_migrate(self, db: str, app_label: str, **hints: object) -> bool | None:
            return False if app_label == "django_celery_beat" else None

    PeriodicTask.objects.all().delete()
    with override_settings(DATABASE_ROUTERS=[Router()]):
        create_periodic_tasks()
    assert not PeriodicTask.objects.exists()
