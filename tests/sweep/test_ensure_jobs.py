"""Declared querysets: each of their rows has a job."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import User

from reliable_jobs.sweep import ensure_jobs as declared
from reliable_jobs.sweep.ensure_jobs import ensure_jobs, sweep_declared
from tests.celery_app import app
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Parent

jobs = inprocess.jobs
rows = inprocess.rows


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declared, "_declared", [])


def declare(**options: Any) -> None:
    ensure_jobs(tasks.effect, lambda: Parent.objects.order_by("pk"), args=lambda row: (row.name,), **options)


def test_every_row_of_a_declared_queryset_gets_its_job_once(jobs: InProcess, fresh: None) -> None:
    for name in ("one", "two"):
        Parent.objects.create(name=name)
    declare(every=0)
    assert jobs.sweep().found == 2
    assert jobs.sweep().found == 0
    jobs.finish()
    assert jobs.sweep().found == 0, "the key is taken for ever"
    Parent.objects.create(name="three")
    assert jobs.sweep().found == 1
    jobs.finish()
    assert [jobs.effects(name) for name in ("one", "two", "three")] == [1, 1, 1]


def test_a_declared_queryset_is_looked_at_no_oftener_than_asked(rows: InProcess, fresh: None) -> None:
    declare(every=60)
    Parent.objects.create(name="one")
    assert sweep_declared(now=1000) == 1
    Parent.objects.create(name="two")
    assert sweep_declared(now=1059) == 0
    assert sweep_declared(now=1061) == 1


def test_a_look_takes_no_more_than_it_may_and_the_next_goes_on(rows: InProcess, fresh: None) -> None:
    for n in range(5):
        Parent.objects.create(name=str(n))
    declare(every=0, limit=2)
    assert [sweep_declared(now=n) for n in range(4)] == [2, 2, 1, 0]


def test_rows_at_the_front_that_have_their_job_do_not_hide_those_behind(
    rows: InProcess, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declared, "_PAGE", 2)
    for n in range(5):
        Parent.objects.create(name=str(n))
    declare(every=0, limit=1)
    assert [sweep_declared(now=n) for n in range(6)] == [1, 1, 1, 1, 1, 0]


def test_a_declared_queryset_that_raises_does_not_stop_the_others(
    rows: InProcess, fresh: None, caplog: pytest.LogCaptureFixture
) -> None:
    ensure_jobs(tasks.add, lambda: User.objects.filter(pk="no number"), every=0)
    declare(every=0)
    Parent.objects.create(name="one")
    assert rows.sweep().found == 1
    assert "tests.testapp.tasks.add" in caplog.text


def test_a_task_that_is_not_reliable_can_not_be_declared(fresh: None) -> None:
    with pytest.raises(TypeError, match="wants a ReliableTask"):
        ensure_jobs(app.tasks["celery.backend_cleanup"], Parent.objects.all)


def test_c4_every_declaration_of_a_loop_counts(jobs: InProcess, fresh: None) -> None:
    def declare(name: str) -> None:
        ensure_jobs(tasks.effect, lambda: Parent.objects.filter(name=name), args=lambda row: (row.name,))

    for name in ("a", "b", "c"):
        Parent.objects.create(name=name)
        declare(name)
    for name in ("d", "e"):
        Parent.objects.create(name=name)
        ensure_jobs(tasks.effect, functools.partial(Parent.objects.filter, name=name), args=lambda row: (row.name,))
    assert sweep_declared(now=10.0**9) == 5
    assert sweep_declared(now=2 * 10.0**9) == 0
    jobs.finish()
    assert [jobs.effects(name) for name in "abcde"] == [1] * 5


@pytest.mark.parametrize("key", [{}, {"key": lambda row: row.pk}, {"key": lambda row: str(row.pk)}])
def test_c6_the_recipe_of_the_how_to_and_ensure_jobs_make_one_job(jobs: InProcess, fresh: None, key: Any) -> None:
    parent = Parent.objects.create(name="one mail")
    ensure_jobs(tasks.effect, lambda: Parent.objects.all(), args=lambda row: (row.name,), **key)
    tasks.effect.apply_async((parent.name,), key=parent.pk, key_forever=True)
    assert sweep_declared(now=10.0**9) == 0
    jobs.finish()
    assert sweep_declared(now=2 * 10.0**9) == 0
    jobs.finish()
    assert jobs.effects("one mail") == 1


def test_c6_the_how_to_pages_view_and_declaration_make_one_job(jobs: InProcess, fresh: None) -> None:
    """Its two recipes are copied together: one key, so one mail."""
    page = (Path(__file__).resolve().parent.parent.parent / "docs/how-to.md").read_text()
    recipe = page.partition("\n## Find rows that lack their job\n")[2].partition("\n## ")[0]
    user = Parent.objects.create(name="user")
    users = SimpleNamespace(objects=SimpleNamespace(filter=lambda **conditions: Parent.objects.all()))
    names = {"ensure_jobs": ensure_jobs, "send_verification": tasks.effect, "User": users, "user": user}
    (declaration,) = re.findall(r"^ *(ensure_jobs\(.+\))$", recipe, re.M)
    (call,) = re.findall(r"^send_verification\..+$", recipe, re.M)
    eval(declaration, names)
    job_id = eval(call, names).id
    assert {eval(other, names).id for other in re.findall(r"^send_verification\..+$", page, re.M)} == {job_id}
    assert sweep_declared(now=10.0**9) == 0
    jobs.finish()
    assert sweep_declared(now=2 * 10.0**9) == 0, "the key is kept as long as the sweeper's"
    assert jobs.effects(str(user.pk)) == 1
