"""No page of the admin says anything in English to whoever reads another language."""

from __future__ import annotations

import datetime
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client, override_settings
from django.urls import reverse
from django.utils import timezone, translation

from reliable_jobs import lifecycle, translatable
from reliable_jobs.admin import wording
from reliable_jobs.models import (
    BulkAct,
    Job,
    JobEvent,
    JobGroup,
    Pause,
    Process,
    ProcessSeen,
    QueueStat,
    Selection,
    Stat,
)
from reliable_jobs.status import EventKind, GroupState, Reason, Status
from reliable_jobs.sweep import acts
from tests.admin import pages, pseudo_language
from tests.admin.pages import LIST, choose, make, url
from tests.admin.test_every_page import APP, World, addresses
from tests.presence.test_presence import made

pytestmark = pytest.mark.django_db
if shutil.which("msgcat") is None and os.environ.get("CI") != "true":
    pytestmark = [
        pytestmark,
        pytest.mark.skip(reason="needs GNU gettext, Debian's package gettext; in CI it fails without"),
    ]

boss = pages.boss

#: Data that has no digit.
DATA = {"tests.testapp.tasks.add", "x", "y", "=", "application/json", "NUL", "Grace", "null"}
NOW = timezone.now()
#: What the sentence of a job depends on.
CASES = (
    *((status, reason) for status in (Status.WAITING, Status.FAILED) for reason in Reason),
    *((status, Reason.NONE) for status in (Status.RUNNING, Status.SUCCEEDED, Status.CANCELLED, Status.EXPIRED)),
    *((Status.SENT, Reason.NONE), (Status.SUCCEEDED, Reason.IGNORED), (Status.CANCELLED, Reason.REVOKED)),
)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("locale")
    pseudo_language.write(folder)
    return folder


@pytest.fixture
def pseudo(catalog: Path) -> Iterator[None]:
    with override_settings(LANGUAGE_CODE="de", LOCALE_PATHS=[str(catalog)]):
        yield


def english(answer: Any) -> list[str]:
    """Words of a page that are neither translated nor data."""
    if answer.status_code in (403, 404):
        return []  # Django's own page, in English
    words = pseudo_language.untranslated(answer.content.decode(), _logged())
    return [word for word in words if word.strip("()[],") not in DATA]


def _logged() -> set[str]:
    """Django's admin log has one language for all its readers."""
    return {str(text) for text in LogEntry.objects.exclude(change_message="").values_list("change_message", flat=True)}


def _job(**columns: Any) -> Job:
    names = {"worker": "w7@web7", "key": f"key7-{uuid.uuid4()}", "release": "v7", "error_class": "E7"}
    values = {"task": "tests.testapp.tasks.add", "queue": "mail7", "payload": b"[[1, 2], {}, {}]", "error": "E7: no7"}
    return make(**values | names | columns)


@pytest.fixture
def world(boss: Client) -> World:
    """A row of every kind that pages tell apart."""
    for status, reason in CASES:
        _job(status=status, reason=reason, failures=1, crashes=2, sends=reason == Reason.NONE, interruptions=1)
    _job(status=Status.RUNNING, started_at=NOW, lease_at=NOW + datetime.timedelta(minutes=1))
    _job(due_at=NOW + datetime.timedelta(days=3), expires_at=NOW, sends=0, check_at=None, key_forever=True)
    _job(due_at=NOW - datetime.timedelta(hours=3), sends=0, payload=b"\xff7", task="7", content_type="7")
    _job(status=Status.SUCCEEDED, result="7", sensitive=True, headers={"argsrepr": "7", "kwargsrepr": "7"})
    job = _job(status=Status.FAILED, failures=2, traceback="7", root_id=uuid.uuid4(), run_started_at=NOW)
    for kind in EventKind:
        JobEvent.objects.create(job=job, kind=kind, actor="Ada7", detail="7", release="v7", traceback="7", final=False)
    _workflow(job)
    for state, ago in {"there": 1, "silent": 60, "gone": 600}.items():
        row = made(f"{state}7@web7", ago, queues=["mail7"])
        ProcessSeen.objects.filter(pk=row).update(active=[[str(job.pk), 3.0], ["plain7", 99.0]], broker_ok=ago > 5)
    made("ended7@web7", ended=True, queues=())
    for kind, name in {"beat": "beat7", "relay": "relay7"}.items():
        made(name, kind=kind, queues=())
    Process.objects.update(host="host7", pool="pool7")
    act = acts.begin(Selection(state="failed", task="7"), "default", verb="requeue", actor="Ada7", queue="7", rate=7.0)
    for number, state in enumerate(("running", "done", "stopped")):
        other = acts.begin(Selection(state="waiting", act=str(act.pk)), "default", verb="cancel", actor="Ada7")
        BulkAct.objects.filter(pk=other.pk).update(state=state, done=number, expected=7, note="7", ended_at=NOW)
    BulkAct.objects.filter(pk=act.pk).update(done=7)
    lifecycle.pause("task", "7", "default", actor="", why="")
    at = timezone.now() - datetime.timedelta(minutes=3)
    for ending in ("succeeded", "failed"):
        Stat.objects.create(
            span=60, at=at, task="task7", queue="mail7", ending=ending, release="v7", n=70, r4=70, w0=70
        )
        QueueStat.objects.get_or_create(at=at, queue="mail7", waiting=7, delayed=7, running=7, oldest_s=7)
    pause = lifecycle.pause("queue", "mail8", "default", actor="Ada7", why="7")
    return World(job, act, pause, Process.objects.all()[0])


def _workflow(job: Job) -> None:
    """A chord with parts of all kinds, and a body that is not written yet."""
    group = JobGroup.objects.create(id=uuid.uuid4(), state=GroupState.OPEN, body="7", size=99, error="7")
    JobGroup.objects.create(id=uuid.uuid4(), state=GroupState.OPEN, body="7", owes=group.pk)
    for status in Status:
        _job(status=status, owes=group.pk)
    for _ in range(25):
        _job(owes=group.pk, error="")
    Job.objects.filter(pk=job.pk).update(owes=group.pk, parent_id=uuid.uuid4())


#: What a list of jobs is asked.
QUERIES = ("", "?q=nothing7", "?id=7", "?error=7", "?since=7x", "?state=7", "?act=7", "?key=7%00")


def test_no_page_says_anything_in_english(world: World, boss: Client, pseudo: None) -> None:
    found = [f"/admin/{APP}/{period}" for period in ("", "?period=24h", "?period=7d")]
    found += [address for path in addresses() if path != f"{APP}/" for address in world.fill(path)]
    found += [
        reverse(f"admin:reliable_jobs_job_{kind}") + f"?name={name}&period={period}"
        for kind, names in {"task": ("task7", "7", "%20"), "queue": ("mail7", "mail8", "")}.items()
        for name in names
        for period in ("1h", "24h", "7d")
    ]
    found += [reverse(LIST) + query for query in (*QUERIES, *(f"?state={state}" for state in Status))]
    found += [url("change", job) for job in [world.job, *Job.objects.filter(owes=None)]]
    found += [reverse("admin:reliable_jobs_bulkact_change", args=[act.pk]) for act in BulkAct.objects.all()]
    said = {address: english(boss.get(address, follow=True)) for address in dict.fromkeys(found)}
    assert {address: words for address, words in said.items() if words} == {}


def test_no_answer_says_anything_in_english_and_what_is_stored_does(
    world: World, boss: Client, pseudo: None, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = list(Job.objects.all())
    act, pause = reverse("admin:reliable_jobs_bulkact_change", args=[world.act.pk]), "admin:reliable_jobs_pause_"
    posts: list[tuple[str, dict[str, Any]]] = [
        (reverse(LIST), choose(verb, jobs, **more))
        for verb in ("cancel", "cancel_workflow", "requeue")
        for more in ({}, {"confirmed": "yes"}, {"select_across": "1"})
    ]
    posts += [(reverse(LIST), choose("cancel", []) | {"_selected_action": ["7x"]})]
    posts += [(url("requeue", jobs[0]), {"confirmed": "yes", "queue": queue}) for queue in ("7\x07", "q7")]
    posts += [(url("rerun", world.job), {"args": args}) for args in ("7", "{}", "[1]", "[1, 2]", "x", "[" * 9999)]
    posts += [(url("rerun", world.job), {"args": "[]", "kwargs": kwargs}) for kwargs in ("7", "[]")]
    posts += [(url("stop", job), {}) for job in {str(job.status): job for job in jobs}.values()]
    posts += [(act.replace("change", name), {}) for name in ("stop", "stop", "undo")]
    posts += [(reverse("admin:reliable_jobs_job_act", args=["requeue"]) + "?state=failed", {"rate": "x"})]
    posts += [(reverse("admin:reliable_jobs_job_act", args=["cancel"]) + query, {}) for query in ("", "?q=7", "?id=x7")]
    posts += [(reverse("admin:reliable_jobs_job_act", args=["cancel"]) + "?state=waiting", {"rate": "7"})]
    posts += [(reverse(f"{pause}add"), {"kind": kind, "name": name}) for kind, name in (("task", "7"), ("queue", "q7"))]
    posts += [(reverse(f"{pause}add"), {"kind": "queue", "name": "q7"}), (reverse(f"{pause}add"), {"kind": "7"})]
    posts += [(reverse(f"{pause}changelist"), {"action": "resume", "_selected_action": [str(world.pause.pk)]})]
    said = [(address, data, english(boss.post(address, data, follow=True))) for address, data in posts]
    assert [one for one in said if one[2]] == []
    assert Pause.objects.filter(name="q7").exists()
    rows = [*LogEntry.objects.all(), *JobEvent.objects.all(), *BulkAct.objects.all(), *Job.objects.all()]
    assert [row for row in rows if "⟦" in str(vars(row))] == [], "what is stored is English"
    assert "⟦" not in caplog.text


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("cancelled by Ada", "abgebrochen durch Ada"),
        ("was failed", "war: fehlgeschlagen"),
        ("was failed, to queue slow", "war: fehlgeschlagen; in die Warteschlange slow"),
        ("ValueError: it was failed", "ValueError: it was failed"),
    ],
)
def test_what_a_row_keeps_is_known_again_and_shown_in_german(stored: str, expected: str) -> None:
    assert translatable.shown(stored) == stored
    with translation.override("de"):
        assert translatable.shown(stored) == expected


def test_days_after_a_preposition_have_their_german_form() -> None:
    three = datetime.timedelta(days=3)
    assert (wording.span(three), wording.distance(three)) == ("3 days", "3 days")
    with translation.override("de"):
        assert (wording.span(three), wording.distance(-three)) == ("3 Tage", "3 Tagen")
