"""Adopting a whole Celery app changes no task's meaning; tasks that are left out are Celery's own."""

from __future__ import annotations

import abc
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import Celery, _state
from celery.contrib.django.task import DjangoTask
from celery.exceptions import WorkerTerminate
from django.db import OperationalError, connection

from reliable_jobs import AdoptedTask, ReliableTask
from reliable_jobs.run import recovery
from reliable_jobs.task import adopted_task as adopted
from tests.celery_app import app as suite
from tests.support import inprocess
from tests.support.adopted_site import Site, site_in
from tests.support.harness import server_urls, wait_until
from tests.support.inprocess import InProcess
from tests.testapp.models import Effect

MODELS = """
    from django.db import models

    class Document(models.Model):
        title = models.CharField(max_length=200)

        class Meta:
            app_label = "archive"
"""
#: A document archive: commit the document, remove the original, run the user's script, which looks the document up.
TASKS = """
    import os
    import subprocess
    import sys
    import time

    from celery import shared_task
    from django.db import connection, transaction

    from archive.models import Document
    from reliable_jobs import ReliableTask

    def archive(url, path, ending):
        with open(path + ".starts", "a") as file:
            file.write(".")
        Document.objects.create(title=path)
        if os.path.exists(path):
            os.unlink(path)
        script = [sys.executable, "archive/script.py", url, path, path + ".seen", ending]
        subprocess.run(script, check=True)

    @shared_task
    def consume(url, path, ending):
        archive(url, path, ending)

    @shared_task(acks_late=True)
    def consume_late(url, path, ending):
        archive(url, path, ending)

    @shared_task(atomic=True)
    def consume_says_atomic(url, path, ending):
        archive(url, path, ending)

    @shared_task(base=ReliableTask)
    def consume_reliable(url, path, ending):
        archive(url, path, ending)

    @shared_task
    def consume_left_out(url, path, ending):
        archive(url, path, ending)

    @shared_task
    def session(path):
        with connection.cursor() as cursor, open(path, "a") as file:
            cursor.execute("SELECT pg_backend_pid()")
            file.write(f"{cursor.fetchone()[0]}\\n")
"""

SCRIPT = """
    import os, signal, sys, psycopg
    url, title, seen, ending = sys.argv[1:]
    with psycopg.connect(url) as connection:
        count = connection.execute("SELECT count(*) FROM archive_document WHERE title = %s", [title]).fetchone()[0]
    with open(seen, "a") as file:
        file.write(f"{count} ")
    if ending == "killed":
        os.kill(os.getppid(), signal.SIGKILL)
    sys.exit(1)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("site"), *server_urls()) as made:
        made.make(
            {"archive/models.py": MODELS, "archive/tasks.py": TASKS, "archive/script.py": SCRIPT},
            base="""
                from reliable_jobs import AdoptedTask
                class ProjectTask(AdoptedTask):
                    pass
            """,
            celery="task_cls=ProjectTask",
            PLAIN_TASKS=["archive.tasks.consume_left_*"],
            MAX_CRASHES=2,
        )
        made.start("worker", "-c", "1", "-l", "INFO", "--without-gossip", "--without-mingle")
        yield made


def original(site: Site, name: str) -> str:
    path = site.directory / name
    path.write_text("the only copy")
    return str(path)


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.promise("I2")
@pytest.mark.parametrize("ending", ["fails", "killed"])
def test_e1_an_adopted_app_keeps_the_document_of_a_failed_script(site: Site, ending: str) -> None:
    url = f"{site.server_url.rsplit('/', 1)[0]}/{site.name}"

    def run(task: str) -> tuple[int, str, str, tuple[str, str] | None]:
        path = original(site, f"{task}-{ending}")
        job_id = site.delay(task, url, path, ending)
        if task == "consume_left_out":
            wait_until(lambda: Path(f"{path}.seen").exists(), "its script has run")
        else:
            wait_until(lambda: site.ended(job_id), f"the job of {task} has ended")
        kept = site.rows("SELECT count(*) FROM archive_document WHERE title = %s", path)[0][0]
        starts, seen = (Path(f"{path}.{what}").read_text() for what in ("starts", "seen"))
        assert not Path(path).exists()
        return kept, starts, seen.strip(), site.status(job_id)

    failed = ("failed", "error" if ending == "fails" else "crash")
    # As in bare Celery: the document is there, the script sees it, and a run that died is not begun again.
    assert run("consume_left_out") == (1, ".", "1", None)
    assert run("consume") == (1, ".", "1", failed)
    # acks_late says that it may run twice.
    twice = ending == "killed"
    assert run("consume_late") == (2 if twice else 1, ".." if twice else ".", "1 2" if twice else "1", failed)
    if ending == "fails":
        # What docs/atomic.md is about: one transaction takes the document back, and the original is gone.
        assert run("consume_says_atomic") == (0, ".", "0", failed)
        assert run("consume_reliable") == (0, ".", "0", failed)


@pytest.mark.servers
@pytest.mark.slow
def test_e1_an_adopted_task_begins_with_a_session_of_its_own(site: Site) -> None:
    path = site.directory / "sessions"
    for _ in range(2):
        job_id = site.delay("session", str(path))
        wait_until(lambda job_id=job_id: site.ended(job_id), "the job has ended")
    first, second = path.read_text().splitlines()
    assert first != second, "what a task leaves in its session (a lock, a SET) meets no other task, as in Celery"


# --- what an app's tasks become ---------------------------------------------------------------------------------------


@pytest.fixture
def app(settings: Any) -> Iterator[Celery]:
    settings.RELIABLE_JOBS = {"PLAIN_TASKS": ["haystack.*", "other.tasks.one"]}
    before = _state._tls.current_app
    app = Celery("adopted", task_cls="reliable_jobs:AdoptedTask", broker="memory://", set_as_current=False)
    yield app
    _state._set_current_app(before)


def task(app: Celery, name: str, **options: Any) -> Any:
    def function() -> None:
        return None

    return app.task(name=name, shared=False, lazy=False, **options)(function)


def test_e1_acks_late_keeps_celerys_meaning_and_the_message_is_ours(app: Celery) -> None:
    app.conf.task_annotations = {"by.annotation": {"acks_late": True}}
    said = {
        "nothing": {},
        "early": {"acks_late": False},
        "late": {"acks_late": True},
        "atomic": {"atomic": True},
        "by.annotation": {"__bound__": False},  # Celery annotates nothing where a base class is bound already
    }
    tasks = {name: task(app, name, **options) for name, options in said.items()}
    app.finalize()
    assert {name: made.reruns for name, made in tasks.items()} == {
        "nothing": False,
        "early": False,
        "late": True,
        "atomic": True,
        "by.annotation": True,
    }
    assert {made.acks_late and made.reject_on_worker_lost for made in tasks.values()} == {True}
    assert [name for name, made in tasks.items() if made.atomic] == ["atomic"]
    assert [name for name, made in tasks.items() if made.keeps_connections] == ["atomic"]


def test_e1_task_acks_late_of_the_app_rules(app: Celery) -> None:
    app.conf.task_acks_late = True
    assert task(app, "nothing").reruns
    assert not task(app, "early", acks_late=False).reruns


def test_e1_a_task_derived_from_a_task_says_what_it_inherits(app: Celery) -> None:
    assert app.Task.app is app  # binds the base class, which says nothing for its tasks

    class First(app.Task):  # type: ignore[name-defined, misc]
        name = "first"

        def run(self) -> None:
            return None

    first = app.register_task(First())
    first.bind(app)

    class Second(First):
        name = "second"

    class Third(First):
        name = "third"
        acks_late = True

    assert [app.register_task(cls()).reruns for cls in (Second, Third)] == [False, True]
    assert not first.reruns


def test_e1_a_run_that_is_not_begun_again_keeps_its_lease(app: Celery, settings: Any) -> None:
    once, again = task(app, "once", time_limit=60), task(app, "again", acks_late=True, time_limit=60)
    assert again.run_deadline() < 100 < 10**8 < once.run_deadline()


def test_e1_a_single_task_with_reliable_task_stays_atomic(app: Celery) -> None:
    made = task(app, "single", base=ReliableTask)
    assert made.atomic
    assert made.reruns
    assert made.acks_late


@pytest.mark.parametrize(
    ("name", "options", "plain"),
    [
        ("haystack.tasks.update", {}, True),
        ("other.tasks.one", {}, True),
        ("other.tasks.one_more", {}, False),
        ("celery.mine", {}, True),
        ("third.pickled", {"serializer": "pickle"}, True),
        ("project.task", {}, False),
    ],
)
def test_e4_named_tasks_are_left_out(app: Celery, name: str, options: dict[str, Any], plain: bool) -> None:
    made = task(app, name, **options)
    assert getattr(made, "writes_outbox", False) is not plain
    assert isinstance(made, ReliableTask) is not plain
    if plain:
        bare = task(Celery("bare", task_cls=DjangoTask, broker="memory://", set_as_current=False), name, **options)
        for attribute in ("acks_late", "reject_on_worker_lost", "Request", "ignore_result", "serializer", "__trace__"):
            assert getattr(made, attribute) == getattr(bare, attribute), attribute
        for method in ("apply_async", "delay", "retry", "__call__", "AsyncResult", "replace"):
            assert getattr(type(made), method) is getattr(type(bare), method), method
        assert not hasattr(made, "keeps_connections")


def test_e4_celerys_built_in_tasks_stay_plain_but_those_of_workflows(app: Celery) -> None:
    task(app, "any")
    app.finalize()
    builtins = {name: made for name, made in app.tasks.items() if name.startswith("celery.")}
    assert len(builtins) > 5
    assert {name for name, made in builtins.items() if isinstance(made, ReliableTask)} == {
        *("celery.accumulate", "celery.chunks", "celery.map", "celery.starmap")
    }


def test_e4_a_class_that_is_left_out_keeps_the_projects_own_bases(app: Celery) -> None:
    said: list[str] = []

    class Audited(app.Task, abc.ABC):  # type: ignore[name-defined, misc]
        def on_success(self, *args: Any) -> None:
            said.append(self.name)
            super().on_success(*args)

        def apply_async(self, *args: Any, **options: Any) -> Any:
            return super().apply_async

    class One(Audited):
        name = "other.tasks.one"

        def run(self) -> None:
            return None

    class Two(Audited):
        name = "other.tasks.two"

        def run(self) -> None:
            return None

    one, two = app.register_task(One()), app.register_task(Two())
    one.on_success(None, "id", (), {})
    assert said == ["other.tasks.one"]
    assert one.apply_async().__func__ is celery.Task.apply_async
    assert two.apply_async().__func__ is ReliableTask.apply_async
    assert not isinstance(one, ReliableTask)
    assert isinstance(two, AdoptedTask)
    assert one.app is app


def test_e4_a_class_without_a_name_is_matched_by_its_module(app: Celery, settings: Any) -> None:
    settings.RELIABLE_JOBS = {"PLAIN_TASKS": [f"{__name__}.LeftOut"]}

    class LeftOut(AdoptedTask):
        def run(self) -> None:
            return None

    class Kept(AdoptedTask):
        def run(self) -> None:
            return None

    assert adopted.why_plain(LeftOut) == f"PLAIN_TASKS has '{__name__}.LeftOut'"
    assert not issubclass(LeftOut, ReliableTask)
    assert issubclass(Kept, ReliableTask)


def test_base_classes_can_be_made_before_the_settings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def unread() -> None:
        raise AssertionError("the settings are read")

    monkeypatch.setattr("reliable_jobs.conf.load", unread)

    class Base(AdoptedTask):
        def on_failure(self, *args: Any) -> None:
            return None

    assert issubclass(Base, ReliableTask)


# --- runs in process --------------------------------------------------------------------------------------------------

jobs = inprocess.jobs


def adopted_task(function: Any, **options: Any) -> Any:
    # Not a shared one, which would be every app's from then on.
    name = f"adoption.{uuid.uuid4().hex[:8]}"
    return suite.task(base=AdoptedTask, bind=True, name=name, shared=False, lazy=False, **options)(function)


def deliver(jobs: InProcess, made: Any) -> Any:
    job = made.delay()
    jobs.deliver(*jobs.take())
    return jobs.row(job)


def deadlock() -> OperationalError:
    error = OperationalError("database is locked")
    error.sqlstate = "40P01"  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(("late", "status"), [(False, ("failed", "error")), (True, ("waiting", "interrupted"))])
def test_e1_a_database_error_reruns_an_adopted_task_only_if_it_may(
    jobs: InProcess, late: bool, status: tuple[str, str]
) -> None:
    def function(self: Any) -> None:
        Effect.objects.create(name="once")
        raise deadlock()

    job = deliver(jobs, adopted_task(function, acks_late=late))
    assert ((job.status, job.reason), jobs.effects("once")) == (status, 1)


def test_e1_a_retry_that_the_task_asks_for_is_made(jobs: InProcess) -> None:
    def function(self: Any) -> None:
        raise deadlock()

    job = deliver(jobs, adopted_task(function, autoretry_for=(OperationalError,), max_retries=1))
    assert (job.status, job.failures) == ("waiting", 1)


def test_e1_an_adopted_task_commits_as_it_goes(jobs: InProcess) -> None:
    def function(self: Any) -> None:
        assert not connection.in_atomic_block
        Effect.objects.create(name="stays")
        raise KeyError("after it")

    assert deliver(jobs, adopted_task(function)).status == "failed"
    assert jobs.effects("stays") == 1


def test_e1_a_stopped_worker_fails_a_run_that_is_not_begun_again(jobs: InProcess) -> None:
    def function(self: Any) -> None:
        Effect.objects.create(name="half")
        raise WorkerTerminate(0)

    made = adopted_task(function)
    result = made.delay()
    with pytest.raises(WorkerTerminate):
        jobs.deliver(*jobs.take())
    job = jobs.row(result)
    assert (job.status, job.reason, jobs.effects("half")) == ("failed", "interrupted", 1)
    assert "acks_late is off" in job.error


def test_e1_a_run_that_is_not_begun_again_says_which_option_decides(jobs: InProcess) -> None:
    @suite.task(base=ReliableTask, bind=True, name=f"generated.{uuid.uuid4().hex[:8]}", reruns=False, acks_late=True)
    def stopped(self: Any) -> None:
        raise WorkerTerminate(0)

    result = stopped.delay()
    with pytest.raises(WorkerTerminate):
        jobs.deliver(*jobs.take())
    job = jobs.row(result)
    assert (job.status, job.reason) == ("failed", "interrupted")
    assert "(reruns is False on the task" in job.error


@pytest.mark.parametrize(("late", "status"), [(False, "failed"), (True, "waiting")])
def test_e1_a_workers_own_error_reruns_the_task_only_if_it_may(
    jobs: InProcess, late: bool, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def function(self: Any) -> None:
        Effect.objects.create(name="once")

    def fails(*args: Any) -> bool:
        raise RuntimeError("a fault of the worker's")

    made = adopted_task(function, acks_late=late)
    result = made.delay()
    with monkeypatch.context() as broken:
        broken.setattr(recovery, "until_settled", fails)
        jobs.deliver(*jobs.take())
    job = jobs.row(result)
    assert (job.status, jobs.effects("once")) == (status, 1)
    assert "a fault of the worker's" in job.error
