"""W050 to W056: what the checks say of an app that is adopted as a whole, or whose calls are."""

from __future__ import annotations

from typing import Any

import pytest

from reliable_jobs import AdoptedTask, ReliableTask
from reliable_jobs.worker.requests import ReliableRequest
from tests.support import checking
from tests.support.checking import Configure, about, add, found

project = checking.project

# Names begin with 0: a message shows five, and the tasks that other tests share are in every app.


class AtomicAgain(AdoptedTask):
    atomic = True


class OwnRequest(ReliableRequest):
    pass


def test_w050_plain_tasks_that_no_task_is_called_are_named(project: Configure, settings: Any) -> None:
    app = project(task_cls="reliable_jobs:AdoptedTask")
    add(app, "0.other.one", base=None)
    settings.RELIABLE_JOBS = {"PLAIN_TASKS": ["0.other.*", "0.misspelt.*", "0.other.two"]}
    assert about(app, "W050").endswith("no task is called: 0.misspelt.*, 0.other.two.")
    settings.RELIABLE_JOBS = {"PLAIN_TASKS": ["0.other.*", "0.other.one"]}
    assert "W050" not in found()


def test_w051_a_task_that_stays_plain_because_of_pickle_is_named(project: Configure, settings: Any) -> None:
    app = project(task_cls="reliable_jobs:AdoptedTask")
    add(app, "0.pickled", base=None, serializer="pickle")
    add(app, "0.sound", base=None, serializer="json")
    named = about(app, "W051")
    assert "0.pickled" in named
    assert "0.sound" not in named
    assert "E002" not in found(), "it is no reliable task"


def test_w051_what_is_left_out_by_name_or_was_never_adopted_is_not_named(project: Configure, settings: Any) -> None:
    settings.RELIABLE_JOBS = {"PLAIN_TASKS": ["0.pick*"]}
    app = project(task_cls="reliable_jobs:AdoptedTask")
    for name in ("0.pickled", "celery.0_pickled"):
        add(app, name, base=None, serializer="pickle")
    assert "pickled" not in about(app, "W051")
    app = project()
    add(app, "0.bare", base=None, serializer="pickle")
    assert "0.bare" not in about(app, "W051")


@pytest.mark.parametrize(
    ("task_cls", "name"),
    [
        ("reliable_jobs:ReliableTask", "ReliableTask"),
        (AtomicAgain, "AtomicAgain"),
        ("reliable_jobs:AdoptedTask", None),
        (None, None),
    ],
)
def test_w052_an_app_whose_tasks_are_all_atomic_is_named(project: Configure, task_cls: Any, name: str | None) -> None:
    app = project(task_cls=task_cls)
    add(app, "0.single")  # atomic, and alone in that
    if name is None:
        assert "W052" not in found()
    else:
        assert about(app, "W052").startswith(f"task_cls is {name}, so every task of the app runs in one transaction")


@pytest.mark.parametrize(
    "request_class", ["celery.worker.request:Request", "reliable_jobs.worker.requests:GivenBackRequest"]
)
def test_w053_a_request_class_that_records_no_endings_is_named(project: Configure, request_class: str) -> None:
    app = project()
    add(app, "0.foreign", Request=request_class)
    add(app, "0.derived", Request=f"{__name__}:OwnRequest")
    add(app, "0.usual")
    add(app, "0.plain", base=None, Request="celery.worker.request:Request")
    assert about(app, "W053").endswith(": 0.foreign.")


def test_w053_is_silent_on_the_usual_request_classes(project: Configure) -> None:
    app = project(task_cls=ReliableTask)
    add(app, "0.adopted", base=None)
    add(app, "0.derived", Request=f"{__name__}:OwnRequest")
    assert "W053" not in found()


def test_w054_names_that_are_never_captured_are_told(project: Configure, settings: Any) -> None:
    app = project()
    settings.RELIABLE_JOBS = {"OUTBOX_TASKS": ["shop.*", "celery.backend_cleanup", "reliable_jobs.*"]}
    assert about(app, "W054").endswith(": celery.backend_cleanup, reliable_jobs.*.")
    settings.RELIABLE_JOBS = {"OUTBOX_TASKS": ["*", "celerybeat.*"]}
    assert "W054" not in found()


def test_w055_results_by_rpc_may_be_lost(project: Configure, settings: Any) -> None:
    app = project(result_backend="rpc://")
    assert "W055" not in found()
    settings.RELIABLE_JOBS = {"OUTBOX_TASKS": ["shop.*"]}
    assert "no reply queue" in about(app, "W055")
    project(result_backend="disabled://")
    assert "W055" not in found()


def test_w056_every_call_goes_with_a_failed_request(
    project: Configure, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = project()
    settings.RELIABLE_JOBS = {"OUTBOX_TASKS": ["*"]}
    assert "W056" not in found()
    monkeypatch.setitem(settings.DATABASES["default"], "ATOMIC_REQUESTS", True)
    assert "on for default" in about(app, "W056")
    settings.RELIABLE_JOBS = {"OUTBOX_TASKS": ["shop.*"]}
    assert "W056" not in found()
