"""The management commands, called as a person or a deploy script would."""

from __future__ import annotations

import datetime
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import _state, shared_task
from celery.utils.functional import head_from_fun
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models import F, Subquery
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from reliable_jobs import ReliableTask
from reliable_jobs.dispatch.publisher import Publisher
from reliable_jobs.management import base
from reliable_jobs.management.base import in_chunks
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.sweep import sweeper
from reliable_jobs.testing import override_dispatch, run_jobs
from tests.celery_app import app
from tests.support.harness import PATIENCE, wait_until
from tests.testapp.tasks import add, effect, fails

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def no_broker() -> Iterator[None]:
    before = _state._tls.current_app
    app.set_current()
    with override_dispatch():
        yield
    _state._set_current_app(before)


@shared_task(base=ReliableTask)
def drifting(old: int, also: int = 0) -> None:
    pass


def call(name: str, *args: str, **options: Any) -> str:
    output = io.StringIO()
    call_command(f"reliable_jobs_{name}", *args, stdout=output, **options)
    return output.getvalue()


def call_and_fail(name: str, *args: str) -> tuple[str, CommandError]:
    output = io.StringIO()
    with pytest.raises(CommandError) as caught:
        call_command(f"reliable_jobs_{name}", *args, stdout=output)
    return output.getvalue(), caught.value


def statuses() -> list[str]:
    return sorted(Job.objects.values_list("status", flat=True))


# --- nothing there (C7) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["requeue", "cancel"])
@pytest.mark.parametrize(
    "selection",
    [
        ["--all"],
        ["--status", "waiting"],
        ["--task", "no.such.task"],
        ["--queue", "no-such-queue"],
        ["--reason", "parked"],
        ["--all", "--dry-run"],
        ["--all", "--yes"],
    ],
    ids=" ".join,
)
def test_c7_with_no_job_to_act_on_a_command_says_so(verb: str, selection: list[str]) -> None:
    assert call(verb, *selection) == "No such jobs.\n"


def test_c7_a_status_that_no_job_has_is_an_empty_selection() -> None:
    add.delay(1, 1)
    for status in ("failed", "succeeded", "cancelled", "expired"):
        assert call("requeue", "--status", status) == "No such jobs.\n"


def test_c7_the_other_commands_have_nothing_to_say_of_an_empty_table() -> None:
    assert call("check") == "This code can run all 0 unfinished job(s).\n"
    assert call("prune") == "Pruned 0 job(s).\n"
    assert "0 unfinished" in call("status")


# --- reading in pieces ------------------------------------------------------------------------------------------------


def test_every_row_is_read_once_also_where_many_have_one_time() -> None:
    for number in range(25):
        add.delay(number, 0)
    # As the database writes its clock, which on SQLite is not how Django writes a parameter.
    first = Job.objects.order_by("created_at").values("created_at")[:1]
    Job.objects.filter(pk__in=list(Job.objects.values_list("pk", flat=True)[5:20])).update(created_at=Subquery(first))
    chunks = list(in_chunks(Job.objects.all(), size=4))
    assert [len(chunk) for chunk in chunks] == [4, 4, 4, 4, 4, 4, 1]
    assert len({job.pk for chunk in chunks for job in chunk}) == 25


@pytest.mark.promise("I10")
def test_a_piece_is_read_by_index() -> None:
    add.delay(1, 2)
    with CaptureQueriesContext(connection) as queries:
        list(in_chunks(Job.objects.filter(task=add.name), size=1))
    assert len(queries) == 2
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")  # it would read so small a table whole
            cursor.execute(f"EXPLAIN {queries[1]['sql']}")
        else:
            cursor.execute(f"EXPLAIN QUERY PLAN {queries[1]['sql']}")
        plan = str(cursor.fetchall())
    assert "reliable_job_task" in plan


# --- check ------------------------------------------------------------------------------------------------------------


def test_a_deploy_that_fits_its_jobs_is_told_so() -> None:
    drifting.delay(1)
    drifting.delay(1, also=2)
    assert call("check") == "This code can run all 2 unfinished job(s).\n"
    assert json.loads(call("check", "--json")) == {"unfinished": 2, "unfit": 0, "groups": []}


@pytest.fixture
def drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of an old release, and the code of a new one."""
    for number in range(4):
        drifting.delay(old=number)
    drifting.delay(1, also=2)
    undecodable = add.delay(1, 2)
    Job.objects.filter(pk=undecodable.id).update(payload=b"{")
    renamed, settled = effect.delay("a"), effect.delay("b")
    Job.objects.filter(pk__in=[renamed.id, settled.id]).update(task="shop.tasks.gone")
    Job.objects.filter(pk=settled.id).update(status="failed")
    plain = effect.delay("c")
    Job.objects.filter(pk=plain.id).update(task="reliable_jobs.prune", status="running")

    def new(new: int, also: int = 0) -> None: ...

    monkeypatch.setattr(app.tasks[drifting.name], "argument_check", head_from_fun(new))


@pytest.mark.promise("I7")
def test_parked_jobs_are_listed_by_task_and_reason_and_fail_the_deploy(drift: None) -> None:
    output, error = call_and_fail("check")
    assert error.returncode == 1
    assert "could not run 7 of 8 unfinished job(s)" in str(error)
    assert "shop.tasks.gone: 1 job(s): unknown task" in output
    assert f"{add.name}: 1 job(s): undecodable payload" in output
    assert f"{drifting.name}: 4 job(s): new() got an unexpected keyword argument 'old'" in output
    assert "reliable_jobs.prune: 1 job(s): not a reliable task any more" in output


def test_the_drift_report_is_there_for_scripts_too(drift: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.in_chunks, "__defaults__", (2,))
    output, _ = call_and_fail("check", "--json")
    report = json.loads(output)
    assert (report["unfinished"], report["unfit"]) == (8, 7)
    found = next(group for group in report["groups"] if group["task"] == drifting.name)
    assert (found["count"], len(set(found["examples"]))) == (4, 3)


# --- requeue and cancel -----------------------------------------------------------------------------------------------


def failed_jobs(count: int) -> list[str]:
    ids = [str(fails.delay(str(number)).id) for number in range(count)]
    run_jobs()
    return ids


def test_requeue_by_id_starts_settled_jobs_anew_and_says_who_asked() -> None:
    ids = failed_jobs(2)
    assert "1 job(s) done" in call("requeue", ids[0])
    assert statuses() == ["failed", "waiting"]
    event = JobEvent.objects.get(kind="requeue")
    assert str(event.job_id) == ids[0]
    assert event.actor.endswith("manage.py)")


def test_ids_that_are_skipped_are_reported_and_fail() -> None:
    (job_id,) = failed_jobs(1)
    missing = str(uuid.uuid4())
    output, error = call_and_fail("requeue", job_id, missing)
    assert "1 job(s) done" in output
    assert "Skipped 1: no such job." in output
    assert "1 of 2" in str(error)
    call("cancel", job_id)
    output, _ = call_and_fail("cancel", job_id)
    assert "Skipped 1: already cancelled." in output


def test_requeue_by_selection_takes_failed_jobs_of_the_task_and_queue() -> None:
    failed_jobs(3)
    effect.delay("done")
    run_jobs()
    assert call("requeue", "--task", effect.name, "--yes") == "No such jobs.\n"
    assert call("requeue", "--queue", "elsewhere", "--yes") == "No such jobs.\n"
    assert "Would requeue 3" in call("requeue", "--all", "--dry-run")
    assert statuses() == ["failed"] * 3 + ["succeeded"]
    call("requeue", "--task", fails.name, "--to-queue", "slow", "--yes")
    assert statuses() == ["succeeded"] + ["waiting"] * 3
    assert set(Job.objects.filter(status="waiting").values_list("queue", flat=True)) == {"slow"}
    call("requeue", "--status", "succeeded", "--yes")
    assert statuses() == ["waiting"] * 4


def test_parked_jobs_can_be_selected() -> None:
    ids = failed_jobs(2)
    Job.objects.filter(pk=ids[0]).update(reason="parked")
    call("requeue", "--reason", "parked", "--yes")
    assert Job.objects.get(pk=ids[0]).status == "waiting"
    assert Job.objects.get(pk=ids[1]).status == "failed"


def test_cancel_by_selection_purges_in_pieces_and_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    failed_jobs(1)
    for number in range(7):
        add.delay(number, 0)
    effect.delay("kept")
    running = add.delay(8, 0)
    Job.objects.filter(pk=running.id).update(status="running")
    monkeypatch.setattr(base.in_chunks, "__defaults__", (3,))
    assert "Cancel: 7 job(s) done." in call("cancel", "--task", add.name, "--yes")
    assert statuses() == ["cancelled"] * 7 + ["failed", "running", "waiting"]
    assert run_jobs().runs[0].task == effect.name


def test_nothing_is_done_without_a_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    add.delay(1, 2)
    asked: list[str] = []

    def answer(text: str) -> Any:
        def read(question: str) -> str:
            asked.append(question)
            return text

        return read

    monkeypatch.setattr("builtins.input", answer("n"))
    assert "Nothing was done" in str(call_and_fail("cancel", "--all")[1])
    monkeypatch.setattr("builtins.input", answer(""))
    assert "Nothing was done" in str(call_and_fail("cancel", "--all")[1])
    assert statuses() == ["waiting"]
    monkeypatch.setattr("builtins.input", answer("y"))
    call("cancel", "--all")
    assert statuses() == ["cancelled"]
    assert asked[0] == "Cancel 1 waiting job(s)? [y/N] "


def test_without_a_terminal_the_answer_is_no(monkeypatch: pytest.MonkeyPatch) -> None:
    add.delay(1, 2)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert "add --yes" in str(call_and_fail("cancel", "--all")[1])
    assert statuses() == ["waiting"]


@pytest.mark.parametrize("arguments", [(), ("--yes",), (str(uuid.uuid4()), "--all")])
def test_which_jobs_must_be_said_in_one_way(arguments: tuple[str, ...]) -> None:
    add.delay(1, 2)
    assert "Say which jobs to cancel" in str(call_and_fail("cancel", *arguments)[1])
    assert statuses() == ["waiting"]


# --- workflows, purge -------------------------------------------------------------------------------------------------


def test_a_workflow_is_cancelled_by_any_id_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    other = add.delay(9, 9)
    result = (add.s(1, 2) | add.s(3)).delay()
    first = str(result.parent.id)
    assert "Would cancel 1 job(s)." in call("cancel", "--workflow", first, "--dry-run")
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "y")
    assert "Cancel: 1 job(s) done." in call("cancel", "--workflow", first)
    assert asked == ["Cancel 1 unfinished job(s), and what would follow them? [y/N] "]
    assert statuses() == ["cancelled", "cancelled", "waiting"]
    assert "Nothing of it is unfinished." in call("cancel", "--workflow", first, "--yes")
    assert "Nothing of it is unfinished." in call("cancel", "--workflow", str(uuid.uuid4()), "--yes")
    assert "leave the other selections out" in str(call_and_fail("cancel", "--workflow", first, "--all")[1])
    assert "leave the other selections out" in str(call_and_fail("cancel", other.id, "--workflow", first)[1])


def test_a_purge_tells_the_count_first(monkeypatch: pytest.MonkeyPatch) -> None:
    failed_jobs(2)
    add.delay(1, 2)
    assert "--older-than or --all" in str(call_and_fail("purge", "--status", "failed")[1])
    said = call("purge", "--all", "--status", "failed", "--status", "waiting", "--dry-run")
    assert "2 failed job(s) of database 'default' would be deleted." in said
    assert "1 waiting job(s) of database 'default' would be cancelled." in said
    monkeypatch.setattr("builtins.input", lambda question: "")
    assert "Nothing was done" in str(call_and_fail("purge", "--all")[1])
    assert statuses() == ["failed", "failed", "waiting"]
    assert "No such jobs." in call("purge", "--older-than", "1h", "--yes")
    assert "Purge: 2 job(s) done." in call("purge", "--older-than", "0", "--status", "failed", "--yes")
    assert "Purge: 1 job(s) done." in call("purge", "--task", add.name, "--yes")
    assert statuses() == ["cancelled"]


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1w", "", "h"])
def test_an_age_that_is_none_is_refused(text: str) -> None:
    call_and_fail("purge", "--older-than", text)


# --- status -----------------------------------------------------------------------------------------------------------


def test_status_counts_what_is_unfinished_due_and_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    # Who consumes the queues is another matter: tests/sweep/test_recovery.py.
    monkeypatch.setattr(Publisher, "depths", lambda self, queues, timeout: {})
    failed_jobs(1)
    for number in range(3):
        add.delay(number, 0)
    add.apply_async((1, 1), queue="slow", countdown=60)
    old = effect.delay("old")
    Job.objects.filter(pk=old.id).update(
        created_at=timezone.now() - datetime.timedelta(hours=1), sends=1, check_at=timezone.now()
    )
    report = json.loads(call("status", "--json"))
    assert {name: report[name] for name in ("unfinished", "due", "overdue", "lost_runs")} == {
        "unfinished": 5,
        "due": 3,
        "overdue": 1,
        "lost_runs": 0,
    }
    assert 3600 <= report["oldest_seconds"] < 3700
    counted = {(row["task"], row["queue"]): row["count"] for row in report["jobs"]}
    assert counted == {
        (add.name, app.conf.task_default_queue): 3,
        (add.name, "slow"): 1,
        (effect.name, app.conf.task_default_queue): 1,
    }
    text = call("status")
    assert "5 unfinished job(s), the oldest 36" in text
    assert "3 due and not published, 1 published and overdue" in text


def test_status_of_nothing() -> None:
    assert call("status").startswith("0 unfinished job(s).\n")
    assert json.loads(call("status", "--json"))["oldest_seconds"] is None


# --- prune and sweep --------------------------------------------------------------------------------------------------


def test_prune_deletes_what_is_old_and_settled() -> None:
    failed_jobs(2)
    effect.delay("done")
    run_jobs()
    add.delay(1, 2)
    Job.objects.update(finished_at=F("finished_at") - datetime.timedelta(days=8))
    assert call("prune") == "Pruned 1 job(s).\n"
    assert statuses() == ["failed", "failed", "waiting"]
    with pytest.raises(CommandError, match="at least 1"):
        call("prune", "--limit", "0")


def test_sweeping_once_publishes_what_is_due() -> None:
    job = add.delay(1, 2)
    assert call("sweep", "--once").startswith("Swept: published 1,")
    assert Job.objects.get(pk=job.id).sends == 1


def test_a_single_sweep_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError("no database")

    monkeypatch.setattr(sweeper, "sweep", broken)
    assert "The sweep failed: OSError: no database" in str(call_and_fail("sweep", "--once")[1])


@pytest.mark.parametrize("interval", ["0", "-1", "inf", "nan", "soon"])
def test_an_interval_that_makes_no_sense_is_refused(interval: str) -> None:
    with pytest.raises(CommandError, match="interval"):
        call("sweep", f"--interval={interval}")


def test_without_a_celery_app_the_commands_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_state._tls, "current_app", None)
    monkeypatch.setattr(_state, "default_app", None)
    for name in ("sweep", "check"):
        with pytest.raises(CommandError, match=r"import it in that package's __init__\.py"):
            call(name)


SWEEPER = """
    import os, sys
    import django
    from tests.celery_app import app
    django.setup()
    from django.core.management import call_command, execute_from_command_line
    from reliable_jobs.sweep import sweeper
    from reliable_jobs.testing import override_dispatch
    from tests.testapp.tasks import add

    def sweep(*args, **kwargs):
        report = real(*args, **kwargs)
        enqueue()
        return report

    def enqueue():
        with override_dispatch():
            add.delay(1, 2)

    call_command("migrate", verbosity=0)
    enqueue()
    real, sweeper.sweep = sweeper.sweep, sweep
    execute_from_command_line(["manage.py", "reliable_jobs_sweep", "--interval", sys.argv[1]])
"""


def test_the_sweeper_goes_on_until_it_is_told_to_stop(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "DATABASE_URL": f"sqlite:///{tmp_path}/db.sqlite3",
        "BROKER_URL": "memory://",
        "PYTHONUNBUFFERED": "1",
    }
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SWEEPER), "0.05"], env=environment, stdout=file, stderr=file
        )
    try:
        wait_until(
            lambda: output.read_text().count("Swept: published 1") >= 2 or process.poll() is not None, "two sweeps"
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0, output.read_text()
    finally:
        process.kill()
        process.wait(10)
    assert output.read_text().rstrip().endswith("Stopped."), output.read_text()


@pytest.mark.django_db(transaction=True)  # the loop closes old connections, and a test's transaction with them
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_long_pause_at_once_and_not_the_sweep_at_hand(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, before, real = add.delay(1, 2), signal.getsignal(number), sweeper.sweep

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    monkeypatch.setattr(sweeper, "sweep", interrupted)
    began = time.monotonic()
    assert call("sweep", "--interval", "3600").endswith("Stopped.\n")
    assert time.monotonic() - began < 30
    assert Job.objects.get(pk=job.id).sends == 1
    assert signal.getsignal(number) is before


@pytest.mark.django_db(transaction=True)
def test_a_sweep_that_fails_is_not_the_last_one(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    job, real, calls = add.delay(1, 2), sweeper.sweep, []

    def fails_once(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the broker's name does not resolve")
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(sweeper, "sweep", fails_once)
    call("sweep", "--interval", "0.01")
    assert "Sweep failed (OSError: the broker's name does not resolve); trying again." in capsys.readouterr().err
    assert Job.objects.get(pk=job.id).sends == 1
