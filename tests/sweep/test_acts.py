"""Acts on many jobs (S4): each job once, by the sweep loop, as long as the user may."""

from __future__ import annotations

import datetime
import threading
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from reliable_jobs import lifecycle
from reliable_jobs.models import ActState, BulkAct, Job, JobEvent, Selection
from reliable_jobs.status import EventKind, Reason, Status
from reliable_jobs.sweep import acts
from tests.admin.pages import make

pytestmark = pytest.mark.django_db

FAILED = Selection(state="failed", task="shop.ship")


def failed(count: int, **columns: Any) -> list[Job]:
    # A second ago: SQLite's clock has milliseconds only.
    columns.setdefault("finished_at", timezone.now() - datetime.timedelta(seconds=1))
    return [make(status=Status.FAILED, task="shop.ship", error_class="ValueError", **columns) for _ in range(count)]


def run_to_the_end(act: BulkAct, rounds: int = 50) -> BulkAct:
    for _ in range(rounds):
        if not acts.sweep("default"):
            break
    act.refresh_from_db()
    return act


def test_all_that_the_filter_selects_is_requeued_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "STEP", 3)
    chosen = failed(7)
    others = [make(status=Status.FAILED, task="shop.bill"), make(status=Status.SUCCEEDED, task="shop.ship"), make()]
    act = run_to_the_end(acts.begin(FAILED, "default", verb="requeue", actor="Grace"))
    assert (act.state, act.done, act.skipped) == (ActState.DONE, 7, 0)
    assert set(Job.objects.filter(requeues=1).values_list("pk", flat=True)) == {job.pk for job in chosen}
    assert not Job.objects.filter(pk__in=[job.pk for job in others], requeues__gt=0).exists()
    events = JobEvent.objects.filter(kind=EventKind.REQUEUE)
    assert set(events.values_list("actor", "act_id")) == {("Grace", act.pk)}


def test_a_requeued_job_that_fails_at_once_is_not_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "STEP", 2)
    failed(5)
    act = acts.begin(FAILED, "default", verb="requeue", actor="Grace")
    for _ in range(10):
        more = acts.sweep("default")
        # A worker has run what was requeued, and it has failed again.
        now = datetime.datetime.now(datetime.timezone.utc)
        Job.objects.filter(status=Status.WAITING, requeues__gt=0).update(status=Status.FAILED, finished_at=now)
        if not more:
            break
    act.refresh_from_db()
    assert (act.state, act.done) == (ActState.DONE, 5)
    assert set(Job.objects.values_list("requeues", flat=True)) == {1}


def test_jobs_that_fail_after_the_button_are_left_alone() -> None:
    failed(2)
    act = acts.begin(FAILED, "default", verb="requeue", actor="Grace")
    later = failed(1)
    Job.objects.filter(pk=later[0].pk).update(finished_at=act.cutoff + datetime.timedelta(seconds=1))
    assert run_to_the_end(act).done == 2


def test_a_user_who_is_deactivated_half_way_stops_the_act(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "STEP", 2)
    user = User.objects.create_user("Ada")
    user.user_permissions.add(Permission.objects.get(codename="requeue_job"))
    failed(5)
    act = acts.begin(FAILED, "default", verb="requeue", actor="Ada", user_id=str(user.pk))
    assert acts.sweep("default")
    User.objects.filter(pk=user.pk).update(is_active=False)
    act = run_to_the_end(act)
    assert (act.state, act.done, act.note) == (ActState.STOPPED, 2, "stopped: the user Ada was deactivated")


@pytest.mark.parametrize("how", ["permission", "user"])
def test_an_act_stops_when_its_user_may_no_longer(how: str) -> None:
    user = User.objects.create_user("Ada")
    failed(1)
    act = acts.begin(FAILED, "default", verb="requeue", actor="Ada", user_id=str(user.pk))
    if how == "user":
        user.delete()
    assert run_to_the_end(act).state == ActState.STOPPED
    assert not Job.objects.filter(requeues__gt=0).exists()


def test_a_step_that_breaks_off_leaves_nothing_and_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    failed(3)
    act = acts.begin(FAILED, "default", verb="requeue", actor="Grace")
    whole = lifecycle.requeue

    def breaks(*args: Any, **kwargs: Any) -> Any:
        whole(*args, **kwargs)
        raise OperationalError("the server went away")

    monkeypatch.setattr(acts.lifecycle, "requeue", breaks)
    assert not acts.sweep("default")
    assert not Job.objects.filter(requeues__gt=0).exists()
    monkeypatch.setattr(acts.lifecycle, "requeue", whole)
    assert run_to_the_end(act).done == 3
    assert set(Job.objects.values_list("requeues", flat=True)) == {1}


@pytest.mark.parametrize(("waited", "least", "most"), [(5, 10, 12), (3600, 20, 22)], ids=["5 s", "no sweeper, 1 h"])
def test_a_rate_bounds_how_many_are_requeued_by_now(waited: int, least: int, most: int) -> None:
    failed(30)
    act = acts.begin(FAILED, "default", verb="requeue", actor="Grace", rate=2.0)
    Job.objects.update(finished_at=act.cutoff - datetime.timedelta(hours=2))
    BulkAct.objects.update(cutoff=act.cutoff - datetime.timedelta(seconds=waited))
    assert not acts.sweep("default")  # nothing more to do at once: the rate decides when
    act.refresh_from_db()
    assert least <= act.done <= most
    assert act.state == ActState.RUNNING


def test_a_rate_without_end_breaks_nothing() -> None:
    failed(3)
    assert run_to_the_end(acts.begin(FAILED, "default", verb="requeue", actor="Grace", rate=1e308)).state in ActState


@pytest.mark.parametrize("how", ["permissions", "selection", "user"])
def test_an_act_that_cant_go_on_stops_alone_with_its_reason(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """I2: it stopped each sweep of its database, for ever."""
    user = User.objects.create_superuser("Ada")
    failed(2)
    bad = acts.begin(FAILED, "default", verb="requeue", actor="Ada", user_id=str(user.pk))
    good = acts.begin(FAILED, "default", verb="requeue", actor="Grace")
    if how == "permissions":
        monkeypatch.setattr(User, "has_perm", lambda *_: 1 / 0)
    else:
        BulkAct.objects.filter(pk=bad.pk).update(**({"selection": "[]"} if how == "selection" else {"user_id": "x"}))
    acts.sweep("default")
    bad.refresh_from_db()
    good.refresh_from_db()
    assert (bad.state, good.state, good.done) == (ActState.STOPPED, ActState.DONE, 2)
    assert bad.note.startswith("stopped by an error")


def test_undo_leaves_what_somebody_else_has_requeued_since() -> None:
    [job] = failed(1)
    act = run_to_the_end(acts.begin(FAILED, "default", verb="requeue", actor="Grace"))
    lifecycle.requeue([job.pk], "default", actor="Ada")
    back = run_to_the_end(acts.begin(Selection(act=str(act.pk)), "default", verb="cancel", actor="Grace"))
    assert (back.done, Job.objects.get(pk=job.pk).status) == (0, Status.WAITING)


def test_a_stopped_act_takes_no_further_jobs_and_can_be_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "STEP", 4)
    failed(9)
    act = acts.begin(FAILED, "default", verb="requeue", actor="Grace")
    acts.sweep("default")
    assert acts.stop(act.pk, "default", actor="Ada")
    assert not acts.stop(act.pk, "default", actor="Ada")
    act = run_to_the_end(act)
    assert (act.state, act.done, act.note) == (ActState.STOPPED, 4, "stopped by Ada")
    started = Job.objects.filter(requeues=1)[0]
    Job.objects.filter(pk=started.pk).update(status=Status.SUCCEEDED, reason=Reason.NONE)
    back = run_to_the_end(acts.begin(Selection(act=str(act.pk)), "default", verb="cancel", actor="Ada"))
    assert (back.state, back.done) == (ActState.DONE, 3)
    assert Job.objects.filter(status=Status.CANCELLED).count() == 3
    assert Job.objects.filter(status=Status.FAILED).count() == 5


def test_running_jobs_are_skipped_and_counted() -> None:
    make(task="shop.ship", queue="q")
    running = make(task="shop.ship", queue="q")
    act = acts.begin(Selection(state="waiting", queue="q"), "default", verb="cancel", actor="Grace")
    real = acts._left
    Job.objects.filter(pk=running.pk).update(status=Status.RUNNING)

    def both(act: BulkAct, using: str) -> Any:
        return real(act, using) if act.cursor_at else Job.objects.order_by("created_at")

    acts._left = both  # type: ignore[assignment]  # it began to run after the step had chosen it
    try:
        act = run_to_the_end(act)
    finally:
        acts._left = real
    assert (act.done, act.skipped) == (1, 1)


@pytest.mark.django_db(transaction=True)
def test_two_sweepers_share_an_act_without_doubling() -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer")
    failed(40)
    act = acts.begin(FAILED, "default", verb="requeue", actor="Grace")
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(40):
                acts.sweep("default")
        except BaseException as error:
            errors.append(error)
        finally:
            connection.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acts, "STEP", 3)
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    act.refresh_from_db()
    assert not errors
    assert (act.state, act.done, act.skipped) == (ActState.DONE, 40, 0)
    assert set(Job.objects.values_list("requeues", flat=True)) == {1}


@pytest.mark.django_db(transaction=True)
def test_an_act_that_another_sweeper_holds_is_skipped_not_waited_for() -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer")
    failed(2)
    act = acts.begin(FAILED, "default", verb="requeue", actor="Grace")
    answers: list[bool] = []

    def other() -> None:
        answers.append(acts.sweep("default"))
        connection.close()

    with transaction.atomic():
        BulkAct.objects.select_for_update().get(pk=act.pk)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(20)
    assert answers == [False]
    assert not Job.objects.filter(requeues__gt=0).exists()
