"""The doctor, conditions and views, without a broker: what each finds is there, and what is not is not said."""

from __future__ import annotations

import datetime
import io
import json
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from celery import _state
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.db.models import F
from django.test import Client
from django.utils import timezone

from reliable_jobs import jobs
from reliable_jobs.dispatch.answers import Depth
from reliable_jobs.dispatch.publisher import Publisher
from reliable_jobs.health import Severity, databases, doctor, ledger, processes
from reliable_jobs.health.conditions import condition
from reliable_jobs.models import Job, Process, ProcessSeen
from reliable_jobs.testing import override_dispatch, run_jobs
from tests.celery_app import app
from tests.support.harness import wait_until
from tests.testapp.tasks import add, effect, fails

pytestmark = pytest.mark.django_db

QUEUE = app.conf.task_default_queue


@pytest.fixture(autouse=True)
def depths(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Depth]]:
    """What the broker says of queues; it takes messages."""
    found: dict[str, Depth] = {QUEUE: Depth(0, 1)}
    monkeypatch.setattr(_state._tls, "current_app", app)
    # Without the odd tasks that other test modules have registered: the checks complain of them, rightly.
    for name in [name for name in app.tasks if not name.startswith(("celery.", "reliable_jobs.", "tests.testapp."))]:
        monkeypatch.delitem(app.tasks, name)
    monkeypatch.setattr(Publisher, "reachable", lambda self, timeout: True)
    monkeypatch.setattr(Publisher, "depths", lambda self, queues, timeout: found)
    with override_dispatch():
        yield found


def status(*arguments: str) -> str:
    """What the status command ends with: "" for success."""
    try:
        call_command("reliable_jobs_status", *arguments, stdout=io.StringIO())
    except CommandError as error:
        return str(error) if error.returncode == 1 else f"exit status {error.returncode}"
    return ""


def examined(*arguments: str) -> tuple[dict[str, Any], int]:
    """The doctor's JSON and its exit status."""
    output, code = io.StringIO(), 0
    try:
        call_command("reliable_jobs_doctor", "--json", *arguments, stdout=output)
    except CommandError as error:
        code = error.returncode
    return json.loads(output.getvalue()), code


def said(found: list[Any], severity: Severity) -> str:
    return "\n".join(f"{finding.area}: {finding.says}" for finding in found if finding.severity == severity)


def make_due(seconds: float) -> None:
    Job.objects.update(due_at=timezone.now() - datetime.timedelta(seconds=seconds))


# --- conditions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "oldest", "oldest>", "oldest>-1", "oldest>x", "oldest<3", "no-sweeper>1", "no-beat", "oldest>1>2"]
)
def test_what_is_no_condition_is_refused_with_what_would_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no condition: use oldest>NUMBER.* no-worker"):
        condition(text)
    with pytest.raises(CommandError, match="is no condition: use oldest>NUMBER"):
        call_command("reliable_jobs_status", "--fail-if", text)


def test_fail_if_names_the_conditions_that_hold_and_no_other() -> None:
    assert status("--fail-if", "oldest>0", "--fail-if", "no-sweeper", "--fail-if", "unfinished>0") == ""
    add.delay(1, 2)
    later = add.apply_async((3, 4), countdown=3600)
    make_due(40)
    Job.objects.filter(pk=later.id).update(due_at=F("due_at") + datetime.timedelta(hours=1))
    assert status("--fail-if", "oldest>300", "--fail-if", "no-sweeper", "--fail-if", "no-worker") == ""
    why = status("--fail-if", "oldest>30", "--fail-if", "unfinished > 1", "--fail-if", "unfinished>2")
    first, second = why.splitlines()
    assert first.startswith("oldest>30: 4")
    assert first.endswith(" seconds since the oldest waiting job became due.")
    assert second == "unfinished>1: 2 unfinished jobs."


def test_fail_if_no_sweeper_is_about_due_jobs_without_a_message() -> None:
    add.delay(1, 2)
    make_due(90)
    Job.objects.update(sends=1)
    assert status("--fail-if", "no-sweeper") == ""
    Job.objects.update(sends=0)
    assert status("--fail-if", "no-sweeper") == "no-sweeper: no sweeper has published a job that is due."
    make_due(40)  # a worker's own sweep may take that long
    assert status("--fail-if", "no-sweeper") == ""


def test_fail_if_no_worker_replaces_the_usual_complaint(depths: dict[str, Depth]) -> None:
    add.delay(1, 2)
    depths[QUEUE] = Depth(1, 0)
    assert "No worker consumes" in status()
    assert status("--fail-if", "oldest>300") == ""
    assert status("--fail-if", "no-worker").startswith("no-worker: no worker consumes a queue")


# --- the doctor -------------------------------------------------------------------------------------------------------


def test_a_site_that_is_well_has_no_error_and_fixes_for_all_warnings() -> None:
    report, code = examined()
    assert (report["errors"], code) == (0, 0)
    areas = {finding["area"] for finding in report["findings"]}
    assert {"broker", f"queue '{QUEUE}'", "jobs in 'default'"} <= areas
    for finding in report["findings"]:
        assert finding["severity"] in ("info", "warning")
        assert finding["fix"] or finding["severity"] == "info" or finding["id"], finding


def test_the_text_puts_errors_first_and_says_how_to_fix_them(depths: dict[str, Depth]) -> None:
    add.delay(1, 2)
    depths[QUEUE] = Depth(1, 0)
    output = io.StringIO()
    with pytest.raises(CommandError, match=r"^1 error\(s\), \d+ warning\(s\)\.$") as ended:
        call_command("reliable_jobs_doctor", stdout=output)
    assert ended.value.returncode == 1
    first, second, *_ = output.getvalue().splitlines()
    assert first == f"error    queue '{QUEUE}': 1 job(s) are due, and no worker consumes it."
    assert second == f"         Fix: Start a worker with -Q {QUEUE}."


@pytest.mark.parametrize(("level", "code"), [("never", 0), ("error", 0), ("warning", 1)])
def test_the_level_decides_the_exit_status(depths: dict[str, Depth], level: str, code: int) -> None:
    depths[QUEUE] = Depth(0, 0)
    report, ended = examined("--fail-level", level)
    assert report["errors"] == 0
    assert report["warnings"] > 0
    assert ended == code


def test_system_checks_are_findings_unless_they_are_silenced(settings: Any) -> None:
    settings.RELIABLE_JOBS = {"GRACE": "soon"}
    (error,) = [finding for finding in doctor.examine(["default"]) if finding.severity == Severity.ERROR]
    assert (error.area, error.id) == ("configuration", "reliable_jobs.E001")
    assert error.fix
    settings.SILENCED_SYSTEM_CHECKS = ["reliable_jobs.E001"]
    assert not [finding for finding in doctor.examine(["default"]) if finding.severity == Severity.ERROR]


def test_a_database_that_cannot_be_asked_is_named_and_the_rest_goes_on() -> None:
    with mock.patch.object(databases, "findings", side_effect=OperationalError("no route")):
        found = doctor.examine(["default"])
    assert said(found, Severity.ERROR) == "database 'default': It can't be asked: OperationalError: no route"
    assert "broker: " in said(found, Severity.INFO)


def test_jobs_that_wait_and_are_not_swept_are_found() -> None:
    add.delay(1, 2)
    make_due(400)
    Job.objects.update(sends=0)
    found = list(ledger.findings("default"))
    assert "1 unfinished, the oldest has been due for 40" in said(found, Severity.WARNING)
    assert "A job in 'default' has been due for 40" in said(found, Severity.ERROR)


def test_rows_that_the_pruner_leaves_are_counted_with_the_reason() -> None:
    fails.delay("a")
    effect.delay("b")
    run_jobs()
    assert said(list(ledger.findings("default")), Severity.WARNING) == ""
    Job.objects.update(finished_at=timezone.now() - datetime.timedelta(days=7.5))
    assert said(list(ledger.findings("default")), Severity.WARNING) == "", "the pruner has a day for what is old"
    Job.objects.update(finished_at=timezone.now() - datetime.timedelta(days=9))
    (warning,) = [finding for finding in ledger.findings("default") if finding.severity == Severity.WARNING]
    assert warning.says.startswith("1 settled jobs are older than RELIABLE_JOBS['RETENTION'] by a day")
    call_command("reliable_jobs_prune", stdout=io.StringIO())
    assert said(list(ledger.findings("default")), Severity.WARNING) == ""


def test_rows_that_a_group_keeps_are_told_from_those_that_nobody_pruned() -> None:
    from reliable_jobs.models import JobGroup

    effect.delay("part")
    run_jobs()
    Job.objects.update(finished_at=timezone.now() - datetime.timedelta(days=9))
    job = Job.objects.get()
    group = JobGroup.objects.create(id="11111111-1111-1111-1111-111111111111", state="failed")
    Job.objects.update(owes=group.pk)
    assert "kept, because a group still waits" in said(list(ledger.findings("default")), Severity.WARNING)
    assert Job.objects.get().pk == job.pk


@pytest.mark.parametrize(("ahead", "words"), [(30, "ahead of"), (-30, "behind")])
def test_a_clock_that_differs_is_named(monkeypatch: pytest.MonkeyPatch, ahead: float, words: str) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has this process's clock")
    shifted = types.SimpleNamespace(**{name: getattr(timezone, name) for name in ("is_aware", "make_aware")})
    shifted.now = lambda: timezone.now() - datetime.timedelta(seconds=ahead)
    monkeypatch.setattr(databases, "timezone", shifted)
    assert f"Its clock is 30.0 s {words} this process's" in said(list(databases.findings("default")), Severity.WARNING)


def test_settings_that_lose_commits_are_named() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("settings of PostgreSQL")
    assert "synchronous_commit" not in said(list(databases.findings("default")), Severity.WARNING)
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL synchronous_commit = off")
    assert "synchronous_commit is off" in said(list(databases.findings("default")), Severity.WARNING)


def test_long_transactions_and_few_connections_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("sessions of PostgreSQL")
    warnings = said(list(databases.findings("default")), Severity.WARNING)
    assert "transaction has been open" not in warnings
    assert "connections are in use" not in warnings
    monkeypatch.setattr(databases, "LONG_TRANSACTION", -1.0)
    monkeypatch.setattr(databases, "NEARLY_ALL", 0.0)
    warnings = said(list(databases.findings("default")), Severity.WARNING)
    assert "A transaction has been open for" in warnings
    assert "connections are in use" in warnings


@pytest.mark.django_db(transaction=True)
def test_dead_rows_that_nobody_removes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("PostgreSQL keeps dead rows")
    # Whatever the tests before this one have left, in rows and in statistics.
    monkeypatch.setattr(databases, "FEW_DEAD", 10**9)
    assert " dead rows beside " not in said(list(databases.findings("default")), Severity.WARNING)
    monkeypatch.setattr(databases, "FEW_DEAD", 10)
    monkeypatch.setattr(databases, "SHARE_DEAD", 0.0)

    def named() -> bool:
        add.delay(1, 2)
        Job.objects.all().delete()
        return f"{Job._meta.db_table} has " in said(list(databases.findings("default")), Severity.WARNING)

    # The server's statistics are a second late.
    wait_until(named, "the dead rows are counted", every=0.1)


# --- pauses and processes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [{"queue": QUEUE}, {"task": add.name}], ids=["queue", "task"])
def test_nothing_is_expected_of_what_is_paused(depths: dict[str, Depth], what: dict[str, str]) -> None:
    add.delay(1, 2)
    make_due(400)
    Job.objects.update(sends=0)
    assert status("--fail-if", "oldest>300", "--fail-if", "no-sweeper").count("\n") == 1
    jobs.pause(**what, actor="ada")
    make_due(400)
    assert status("--fail-if", "oldest>300", "--fail-if", "no-sweeper") == ""
    assert said(list(ledger.findings("default")), Severity.ERROR) == ""
    if "queue" in what:
        depths[QUEUE] = Depth(1, 0)  # its workers have stopped consuming it
        assert status() == status("--fail-if", "no-worker") == ""
        assert said(doctor.examine(["default"]), Severity.ERROR) == ""


def process(kind: str, *, ago: float = 1.0, ended: bool = False, **seen: Any) -> None:
    now = timezone.now()
    row = Process.objects.create(
        kind=kind, name=f"{kind}@web-3", host="web-3", pid=7, release="r1", ended_at=now if ended else None
    )
    ProcessSeen.objects.create(process=row, **seen)
    ProcessSeen.objects.filter(process=row).update(seen_at=now - datetime.timedelta(seconds=ago))


def test_processes_are_counted_with_their_release() -> None:
    process("worker")
    process("beat")
    (only,) = processes.findings("default")
    assert only.says == "1 worker: worker@web-3; 1 beat: beat@web-3. Release: r1."


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"ago": 60}, "worker@web-3 (pid 7) was last seen 60 s ago."),
        ({"ago": 300}, "No worker is there. The last one, worker@web-3, was seen 300 s ago and did not say that it"),
        ({"ended": True}, "No worker is there. The last one, worker@web-3, was seen 1 s ago and ended by itself."),
        ({"broker_ok": False}, "worker@web-3 (pid 7) has no connection to the broker, seen 1 s ago."),
    ],
)
def test_a_process_in_trouble_is_named(more: dict[str, Any], words: str) -> None:
    process("worker", **more)
    (warning,) = [one for one in processes.findings("default") if one.severity == Severity.WARNING]
    assert words in warning.says
    assert warning.fix


def test_without_presence_nothing_is_said_of_processes(settings: Any) -> None:
    settings.RELIABLE_JOBS = {"PRESENCE_INTERVAL": 0}
    process("worker", ago=300)
    assert list(processes.findings("default")) == []


# --- the views --------------------------------------------------------------------------------------------------------


@pytest.fixture
def anybody(settings: Any) -> Client:
    settings.ROOT_URLCONF = "tests.health.urls"
    return Client()


def test_a_process_that_can_write_jobs_is_well_whatever_waits(anybody: Client, django_assert_num_queries: Any) -> None:
    add.delay(1, 2)
    make_due(4000)
    Job.objects.update(sends=0)
    with django_assert_num_queries(1):
        answer = anybody.get("/jobs/health/")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert "no-store" in answer["Cache-Control"]


def test_a_process_without_its_database_is_taken_away_and_tells_no_secret(anybody: Client) -> None:
    with mock.patch("django.db.models.query.QuerySet.exists", side_effect=OperationalError("host secret")):
        answer = anybody.get("/jobs/health/")
    assert (answer.status_code, answer.json()) == (503, {"status": "failing", "database": "OperationalError"})


def test_a_site_whose_jobs_nobody_sweeps_fails_and_says_for_how_long(
    anybody: Client, django_assert_max_num_queries: Any
) -> None:
    assert anybody.get("/jobs/health/site/").json() == {
        "status": "ok",
        "oldest_seconds": None,
        "unswept_seconds": None,
    }
    add.delay(1, 2)
    make_due(400)
    Job.objects.update(sends=1)
    answer = anybody.get("/jobs/health/site/")
    assert answer.status_code == 200
    assert 400 <= answer.json()["oldest_seconds"] < 500
    Job.objects.update(sends=0)
    with django_assert_max_num_queries(2):
        answer = anybody.get("/jobs/health/site/")
    assert (answer.status_code, answer.json()["status"]) == (503, "failing")
    assert 400 <= answer.json()["unswept_seconds"] < 500


@pytest.mark.parametrize("path", ["/jobs/health/", "/jobs/health/site/"])
def test_the_views_answer_get_and_head_only(anybody: Client, path: str) -> None:
    assert anybody.head(path).status_code == 200
    assert anybody.post(path).status_code == 405
