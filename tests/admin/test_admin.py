"""The admin: what it shows, who may do what, what is audited, and what it never asks of the database."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import tracemalloc
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from kombu import compression

from reliable_jobs.admin import listing, story
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import EventKind, Reason, Status

pytestmark = pytest.mark.django_db

LIST = "admin:reliable_jobs_job_changelist"
NOW = datetime.datetime(2026, 1, 31, 12, 0, tzinfo=datetime.timezone.utc)


def make(**columns: Any) -> Job:
    now = timezone.now()
    headers = columns.pop("headers", {"task": "tests.testapp.tasks.add"})
    values: dict[str, Any] = {
        "task": "tests.testapp.tasks.add",
        "queue": "letters",
        "due_at": now,
        "check_at": now + datetime.timedelta(seconds=15),
        "sends": 1,
        "payload": json.dumps([[17, "Ada"], {"urgent": True}, {}]).encode(),
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "envelope": json.dumps(
            {"v": 1, "sensitive": columns.pop("sensitive", False), "exchange": "", "routing_key": "letters"}
            | {"headers": headers, "properties": {}}
        ),
    }
    values.update(columns)
    if values.get("status") in ("succeeded", "failed", "cancelled", "expired"):
        values.setdefault("started_at", now)
        values.setdefault("finished_at", now)
    return Job.objects.create(**values)


def staff(*permissions: str) -> Client:
    user = User.objects.create_user(f"staff-{uuid.uuid4().hex[:6]}", is_staff=True)
    user.user_permissions.add(*Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def boss() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("Grace"))
    return client


def listed(client: Client, query: str = "") -> list[uuid.UUID]:
    response = client.get(reverse(LIST) + query)
    assert response.status_code == 200
    return [job.pk for job in response.context["cl"].result_list]


def page_of(client: Client, job: Job) -> str:
    response = client.get(reverse("admin:reliable_jobs_job_change", args=[job.pk]))
    assert response.status_code == 200
    return response.content.decode()


def url(operation: str, job: Job) -> str:
    return reverse(f"admin:reliable_jobs_job_{operation}", args=[job.pk])


def choose(operation: str, jobs: list[Job], **more: Any) -> dict[str, Any]:
    return {"action": operation, "_selected_action": [str(job.pk) for job in jobs], **more}


def said(response: Any) -> str:
    return " | ".join(str(message) for message in response.context["messages"])


# --- the list ---------------------------------------------------------------------------------------------------------


def test_the_list_is_newest_first_with_age_attempts_next_look_and_reason(boss: Client) -> None:
    old = make(status=Status.FAILED, reason=Reason.ERROR, error="ValueError: no\nmore lines", failures=3, crashes=1)
    Job.objects.filter(pk=old.pk).update(created_at=timezone.now() - datetime.timedelta(hours=3))
    new = make()
    assert listed(boss) == [new.pk, old.pk]
    text = boss.get(reverse(LIST)).content.decode()
    assert "letters" in text
    assert "3 used, 1 crashed" in text
    assert '<span class="rj-state rj-failed">failed</span>' in text
    assert '<span class="rj-state rj-waiting">waiting</span>' in text
    assert "3 h" in text
    assert "error: ValueError: no" in text
    assert "more lines" not in text
    assert re.search(r"check in 1[0-5] s", text)


@pytest.mark.parametrize("shown", sorted(listing.SHOW))
def test_each_state_of_the_filter_lists_its_jobs_and_no_others(boss: Client, shown: str) -> None:
    jobs = {
        "failed": make(status=Status.FAILED, reason=Reason.ERROR),
        "waiting": make(),
        "running": make(status=Status.RUNNING, crashes=1, token=uuid.uuid4()),
        "requeued": make(status=Status.WAITING, requeues=1, reason=Reason.REQUEUED),
        "crashed": make(status=Status.WAITING, reason=Reason.CRASH, crashes=1),
        "parked": make(status=Status.FAILED, reason=Reason.PARKED),
        "succeeded": make(status=Status.SUCCEEDED),
        "cancelled": make(status=Status.CANCELLED),
        "expired": make(status=Status.EXPIRED),
    }
    also = {"failed": ["parked"], "waiting": ["requeued", "crashed"]}
    expected = {jobs[name].pk for name in [shown, *also.get(shown, [])]}
    assert set(listed(boss, f"?show={shown}")) == expected


def test_a_run_in_progress_is_not_called_crashed(boss: Client) -> None:
    running = make(status=Status.RUNNING, crashes=1, token=uuid.uuid4())
    suspect = make(status=Status.RUNNING, crashes=2, token=uuid.uuid4())
    assert listed(boss, "?show=crashed") == [suspect.pk]
    assert "crashed" not in story.tell(running, timezone.now()).text


def test_the_created_filter_leaves_out_what_is_older(boss: Client) -> None:
    old, new = make(), make()
    Job.objects.filter(pk=old.pk).update(created_at=timezone.now() - datetime.timedelta(hours=2))
    assert listed(boss, "?created=hour") == [new.pk]
    assert listed(boss, "?created=day") == [new.pk, old.pk]


def test_a_search_finds_exact_ids_task_names_and_keys_and_nothing_else(boss: Client) -> None:
    by_task, by_key = make(task="shop.ship"), make(key="order-17")
    assert listed(boss, f"?q={by_key.pk}") == [by_key.pk]
    assert listed(boss, f"?q={by_key.pk.hex}") == [by_key.pk]
    assert listed(boss, "?q=shop.ship") == [by_task.pk]
    assert listed(boss, "?q= order-17 ") == [by_key.pk]
    assert listed(boss, "?q=shop") == []
    assert listed(boss, "?q=order-1") == []
    assert listed(boss, "?q=%00") == [by_key.pk, by_task.pk]


def test_a_search_may_say_which_field_it_means(boss: Client) -> None:
    task, key = make(task="nightly"), make(key="nightly")
    assert listed(boss, "?q=nightly") == [task.pk]
    assert listed(boss, "?q=key:nightly") == [key.pk]
    assert listed(boss, "?q=task:nightly") == [task.pk]
    assert listed(boss, f"?q=id:{task.pk}") == [task.pk]
    assert listed(boss, f"?q=key:{task.pk}") == []


def test_a_celery_task_id_that_is_no_uuid_finds_its_receipt(boss: Client) -> None:
    from reliable_jobs.run.arrival import foreign_id

    job = make(id=foreign_id("natural-id-of-elsewhere"))
    assert listed(boss, "?q=natural-id-of-elsewhere") == [job.pk]


@pytest.mark.parametrize(
    "query", ["envelope__contains=secret", "body__gt=x", "error__icontains=x", "status__exact=failed", "queue=x"]
)
def test_nothing_can_be_looked_up_by_the_address_that_is_no_filter(boss: Client, query: str) -> None:
    assert boss.get(f"{reverse(LIST)}?{query}").status_code == 400


@pytest.mark.promise("I10")
def test_no_statement_of_the_list_counts_sorts_or_searches_the_table(
    boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "BOUND", 5)
    for _ in range(8):
        make(status=Status.FAILED, reason=Reason.ERROR, task="shop.ship", key=uuid.uuid4().hex)
    for query in ("", "?show=failed", "?q=shop.ship", "?q=nothing", "?_facets=True", "?o=3.2", "?created=day", "?all="):
        with CaptureQueriesContext(connection) as captured:
            listed(boss, query)
        statements = [one["sql"] for one in captured if "reliable_jobs_job" in one["sql"]]
        assert statements
        for sql in statements:
            assert "LIMIT" in sql or "ANY(" in sql, sql
            assert "LIKE" not in sql.upper(), sql
            ordered = re.findall(r"ORDER BY (.*?) LIMIT", sql)
            assert all(order == '"reliable_jobs_job"."created_at" DESC' for order in ordered), sql
            for heavy in ("payload", "envelope", "result", "traceback"):
                assert f'"reliable_jobs_job"."{heavy}"' not in sql, sql


@pytest.mark.promise("I10")
def test_the_list_says_that_there_are_more_than_it_counts(boss: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "BOUND", 5)
    for _ in range(5):
        make()
    assert "there are more" not in boss.get(reverse(LIST)).content.decode()
    make()
    text = boss.get(reverse(LIST)).content.decode()
    assert "Only the newest 5 are listed; there are more." in text


# --- one job ----------------------------------------------------------------------------------------------------------


def test_a_jobs_page_shows_arguments_error_result_lineage_and_history(boss: Client) -> None:
    parent = make()
    job = make(
        status=Status.FAILED,
        reason=Reason.ERROR,
        failures=2,
        error="ValueError: no such order",
        traceback='  File "shop.py", line 3',
        result='{"lines": 4}',
        parent_id=parent.pk,
        root_id=parent.pk,
    )
    child = make(parent_id=job.pk)
    JobEvent.objects.create(job=job, kind=EventKind.FAILURE, actor="celery@host", detail="first")
    JobEvent.objects.create(job=job, kind=EventKind.RESCUE, actor="sweeper", detail="second")
    text = page_of(boss, job)
    for expected in ("x = 17", "y = &#x27;Ada&#x27;", "urgent = True", "ValueError: no such order", "line 3", "lines"):
        assert expected in text, expected
    assert text.index("second") < text.index("first")  # newest first
    for relative in (parent, child):
        assert reverse("admin:reliable_jobs_job_change", args=[relative.pk]) in text
    assert "Failed after 2 attempts: ValueError: no such order" in text


def test_history_and_children_are_bounded(boss: Client) -> None:
    job = make()
    JobEvent.objects.bulk_create(JobEvent(job=job, kind="rescue", detail=f"event-{n:03}") for n in range(120))
    for _ in range(25):
        make(parent_id=job.pk)
    with CaptureQueriesContext(connection) as captured:
        text = page_of(boss, job)
    many = [one["sql"] for one in captured if "jobevent" in one["sql"] or '"parent_id" =' in one["sql"]]
    assert len(many) == 2
    assert all("LIMIT" in sql for sql in many)
    assert "event-119" in text
    assert "event-020" in text
    assert "event-019" not in text
    assert "Only the newest 100 are shown." in text
    assert "and more" in text


@pytest.mark.parametrize(
    "place", ["error", "traceback", "result", "worker", "task", "key", "queue", "payload", "event"]
)
def test_markup_is_shown_and_not_run(boss: Client, place: str) -> None:
    evil = "<script>alert(1)</script>"
    columns: dict[str, Any] = {} if place == "event" else {place: evil}
    if place == "payload":
        columns["payload"] = json.dumps([[evil], {evil: evil}, {}]).encode()
    job = make(status=Status.FAILED, **columns)
    if place == "event":
        JobEvent.objects.create(job=job, kind="failure", actor=evil, detail=evil, traceback=evil)
    pages = [
        page_of(boss, job),
        boss.get(reverse(LIST)).content.decode(),
        boss.get(url("requeue", job)).content.decode(),
    ]
    assert all(evil not in page for page in pages)
    assert any("&lt;script&gt;" in page for page in pages)


@pytest.mark.parametrize(
    ("columns", "note"),
    [
        ({"payload": b"\xff\x00 not json"}, "Can&#x27;t be decoded"),
        ({"payload": b"[]"}, "Can&#x27;t be decoded"),
        ({"payload": b"7"}, "Can&#x27;t be decoded"),
        (
            {"content_type": "application/x-python-serialize", "payload": b"cos\nsystem\n."},
            "pickled payload, not loaded",
        ),
        ({"content_type": "application/x-unheard-of"}, "Not shown (application/x-unheard-of is decoded by"),
        ({"content_type": "", "content_encoding": "", "envelope": "no json"}, "Not shown (unknown type is"),
        ({"headers": {"compression": "gzip"}}, "Can&#x27;t be decoded"),
        ({"payload": b"[" * 100_000}, "Can&#x27;t be decoded"),
        ({"payload": b'[["' + b"x" * 300_000 + b'"], {}, {}]'}, "Too large to show (more than 262144 bytes)"),
        ({"headers": {"compression": "x-own"}}, "x-own is decompressed by workers only"),
    ],
)
def test_a_body_that_cant_be_decoded_is_shown_as_such(boss: Client, columns: dict[str, Any], note: str) -> None:
    compression.register(bytes, bytes, "x-own")
    assert note in page_of(boss, make(status=Status.FAILED, reason=Reason.PARKED, **columns))


_BOMB = b'[["' + b"x" * 50_000_000 + b'"], {}, {}]'
_LAUGHS = (
    "- [" + "".join(f"&a{n} [{f'*a{n - 1},' * 10}], " for n in range(1, 10)).replace("*a0", "ha") + "]\n- {}\n- {}"
)


@pytest.mark.parametrize("how", ["zlib", "bzip2", "lzma"])
def test_a_compressed_bomb_is_not_unpacked_for_a_page(boss: Client, how: str) -> None:
    body, kind = compression.compress(_BOMB, how)
    job = make(payload=body, headers={"compression": kind})
    assert len(body) < 60_000
    tracemalloc.start()
    text = page_of(boss, job)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "Too large to show (more than 262144 bytes)" in text
    assert most < 20_000_000


def test_aliases_of_yaml_are_not_written_out_for_a_page(boss: Client) -> None:
    pytest.importorskip("yaml")
    text = page_of(boss, make(payload=_LAUGHS.encode(), content_type="application/x-yaml"))
    assert "Too large to show" in text
    endless = page_of(boss, make(payload=b"- [&a [*a]]\n- {}\n- {}", content_type="application/x-yaml"))
    assert "Too large to show" in endless
    numbers = b"- [&a " + b"7" * 4000 + b", *a" * 200 + b"]\n- {}\n- {}"
    assert "Too large to show" in page_of(boss, make(payload=numbers, content_type="application/x-yaml"))


@pytest.mark.parametrize("key", ["<<", "!!merge x", "!<tag:yaml.org,2002:%6derge> x"])
def test_merged_mappings_of_yaml_are_not_written_out_for_a_page(boss: Client, key: str) -> None:
    """PyYAML before 6.0.4 copies them while it reads."""
    pytest.importorskip("yaml")
    levels = "".join(f"  a{n}: &a{n} {{{key}: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 4))
    body = f"- []\n- a0: &a0 {{k: v}}\n{levels}- {{}}"
    text = page_of(boss, make(payload=body.encode(), content_type="application/x-yaml"))
    assert "Not shown (YAML&#x27;s merge keys are read by workers only)" in text


def test_lone_surrogates_in_names_and_values_do_not_break_the_page(boss: Client) -> None:
    body = rb'[["\ud800"], {"name\udfff": "\ud800"}, {}]'
    assert "name\\udfff = " in page_of(boss, make(payload=body))
    assert "\\ud800" in page_of(boss, make(sensitive=True, headers={"argsrepr": "\ud800", "kwargsrepr": "{}"}))


def test_a_pickled_body_is_never_loaded(boss: Client, tmp_path: Any) -> None:
    witness = tmp_path / "ran"
    body = f"cos\nsystem\n(S'touch {witness}'\ntR.".encode()
    page_of(boss, make(content_type="application/x-python-serialize", content_encoding="binary", payload=body))
    assert not witness.exists()


def test_an_id_that_is_none_or_pruned_leads_back_with_a_word(boss: Client) -> None:
    for missing in ("nonsense", str(uuid.uuid4())):
        for name in ("change", "requeue", "cancel"):
            response = boss.get(reverse(f"admin:reliable_jobs_job_{name}", args=[missing]), follow=True)
            assert response.status_code == 200
            assert missing in said(response)


# --- sensitive --------------------------------------------------------------------------------------------------------


def test_a_sensitive_jobs_page_shows_the_masked_texts_of_its_message(boss: Client) -> None:
    from tests.testapp.tasks import login

    with override_settings(RELIABLE_JOBS={"DISPATCH": "relay"}):
        job = Job.objects.get(pk=login.delay("Ada", password="hunter2secret").id)
    job.result = '"welcome"'
    job.save()
    text = page_of(boss, job)
    assert "hunter2secret" not in text
    assert "Ada" in text
    assert "[hidden]" in text
    assert "welcome" in text


def test_a_result_that_holds_a_sensitive_argument_is_hidden_with_it(boss: Client) -> None:
    from tests.testapp.tasks import login

    with override_settings(RELIABLE_JOBS={"DISPATCH": "relay"}):
        job = Job.objects.get(pk=login.delay("Ada", password='hun"ter\u00fc').id)
    job.result = json.dumps({"said": ['the password was hun"ter\u00fc']})
    job.save()
    text = page_of(boss, job)
    assert "ter\\u00fc" not in text
    assert "may hold a sensitive argument" in text


def test_a_sensitive_job_whose_code_is_gone_shows_no_result(boss: Client) -> None:
    job = make(
        task="gone.task",
        sensitive=True,
        headers={"argsrepr": "([hidden],)", "kwargsrepr": "{}"},
        status=Status.SUCCEEDED,
        result='"hunter2secret"',
    )
    text = page_of(boss, job)
    assert "hunter2secret" not in text
    assert "([hidden],)" in text


def test_a_message_from_elsewhere_for_a_sensitive_task_is_masked(boss: Client) -> None:
    name = "tests.testapp.tasks.login"
    clear = {"task": name, "argsrepr": "('Ada', 'hunter2secret')", "kwargsrepr": "{}"}
    job = make(task=name, headers=clear, payload=json.dumps([["Ada", "hunter2secret"], {}, {}]).encode())
    text = page_of(boss, job)
    assert "hunter2secret" not in text
    assert "[hidden]" in text
    assert "hunter2secret" not in page_of(boss, make(task=name, headers=clear, payload=b"hunter2secret undecodable"))


# --- who may do what --------------------------------------------------------------------------------------------------


def test_staff_without_the_permission_to_view_sees_nothing(boss: Client) -> None:
    job = make()
    client = staff("requeue_job", "cancel_job")
    assert client.get(reverse(LIST)).status_code == 403
    assert client.post(url("requeue", job), {"confirmed": "yes"}).status_code == 403
    assert Job.objects.get(pk=job.pk).requeues == 0


@pytest.mark.parametrize(("mine", "other"), [("requeue", "cancel"), ("cancel", "requeue")])
def test_each_action_needs_its_own_permission(mine: str, other: str) -> None:
    client = staff("view_job", f"{mine}_job")
    job = make()
    text = client.get(reverse(LIST)).content.decode()
    assert f'value="{mine}"' in text
    assert f'value="{other}"' not in text
    page = page_of(client, job)
    assert url(mine, job) in page
    assert url(other, job) not in page
    assert client.get(url(other, job)).status_code == 403
    assert client.post(url(other, job), {"confirmed": "yes"}).status_code == 403
    client.post(reverse(LIST), choose(other, [job], confirmed="yes"))
    untouched = Job.objects.get(pk=job.pk)
    assert (untouched.status, untouched.requeues, untouched.epoch) == ("waiting", 0, 0)


@pytest.mark.parametrize("permissions", [("view_job",), ("view_job", "change_job", "add_job", "delete_job")])
def test_nobody_edits_adds_or_deletes_by_form(permissions: tuple[str, ...]) -> None:
    client = staff(*permissions)
    job = make(status=Status.FAILED)
    change = reverse("admin:reliable_jobs_job_change", args=[job.pk])
    page = client.get(change).content.decode()
    assert not re.search(
        r"<(input|select|textarea)[^>]*name=\"(?!csrf)", page.split('id="job_form"')[1].split("</form>")[0]
    )
    assert client.post(change, {"status": "succeeded"}).status_code == 403
    assert client.get(reverse("admin:reliable_jobs_job_add")).status_code == 403
    assert client.post(reverse("admin:reliable_jobs_job_delete", args=[job.pk]), {"post": "yes"}).status_code == 403
    client.post(reverse(LIST), choose("delete_selected", [job], post="yes"))
    assert Job.objects.get(pk=job.pk).status == "failed"


def test_a_get_asks_and_changes_nothing(boss: Client) -> None:
    job = make(status=Status.FAILED)
    for operation in ("requeue", "cancel"):
        assert boss.get(url(operation, job), {"confirmed": "yes"}).status_code == 200
    boss.get(reverse(LIST), choose("requeue", [job], confirmed="yes"))
    assert (Job.objects.get(pk=job.pk).epoch, LogEntry.objects.count(), JobEvent.objects.count()) == (0, 0, 0)


def test_a_post_without_the_forms_token_is_refused() -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("Grace"))
    job = make(status=Status.FAILED)
    assert client.post(url("requeue", job), {"confirmed": "yes"}).status_code == 403
    assert client.post(reverse(LIST), choose("requeue", [job], confirmed="yes")).status_code == 403
    assert Job.objects.get(pk=job.pk).epoch == 0


# --- workflows --------------------------------------------------------------------------------------------------------


def test_a_workflow_is_cancelled_after_a_question(boss: Client) -> None:
    root = make(status=Status.SUCCEEDED)
    Job.objects.update(root_id=root.pk)
    child, alone = make(root_id=root.pk, parent_id=root.pk), make()
    Job.objects.filter(pk=alone.pk).update(root_id=alone.pk)
    assert ["rj-cancel-workflow" in page_of(boss, job) for job in (root, child, alone)] == [True, True, False]
    asked = boss.get(url("cancel_workflow", child)).content.decode()
    assert "nothing follows them" in asked
    assert Job.objects.get(pk=child.pk).status == "waiting"
    response = boss.post(url("cancel_workflow", root), {"confirmed": "yes"}, follow=True)
    assert "1 job cancelled." in said(response)
    assert [Job.objects.get(pk=job.pk).status for job in (child, alone)] == ["cancelled", "waiting"]
    assert LogEntry.objects.get().object_id == str(root.pk)


def test_a_workflow_is_cancelled_from_the_list_with_the_permission_for_it() -> None:
    root = uuid.uuid4()
    first, second = make(root_id=root), make(root_id=root)
    post = choose("cancel_workflow", [first], confirmed="yes")
    staff("view_job").post(reverse(LIST), post, follow=True)
    assert staff("view_job").post(url("cancel_workflow", first), {"confirmed": "yes"}).status_code == 403
    assert Job.objects.filter(status="waiting").count() == 2
    response = staff("view_job", "cancel_job").post(reverse(LIST), post, follow=True)
    assert "2 jobs cancelled." in said(response)
    assert set(Job.objects.values_list("status", flat=True)) == {"cancelled"}
    assert str(second.pk) not in LogEntry.objects.values_list("object_id", flat=True)


# --- requeue and cancel -----------------------------------------------------------------------------------------------


def test_requeue_from_the_list_asks_acts_and_reports_what_it_skipped(boss: Client) -> None:
    failed, running = make(status=Status.FAILED), make(status=Status.RUNNING, token=uuid.uuid4())
    asked = boss.post(reverse(LIST), choose("requeue", [failed, running], index="0"))
    assert asked.status_code == 200
    assert "1 failed" in asked.content.decode()
    assert "1 running" in asked.content.decode()
    assert Job.objects.get(pk=failed.pk).status == "failed"
    sent = dict.fromkeys(re.findall(r'type="hidden" name="(\w+)" value="', asked.content.decode().split("<form")[-1]))
    assert {"action", "_selected_action", "confirmed"} <= set(sent)

    response = boss.post(reverse(LIST), choose("requeue", [failed, running], confirmed="yes"), follow=True)

    assert "1 job requeued." in said(response)
    assert f"1 job skipped: 1 running ({running.pk})." in said(response)
    row = Job.objects.get(pk=failed.pk)
    assert (row.status, row.reason, row.requeues, row.sends) == ("waiting", "requeued", 1, 0)
    event = JobEvent.objects.get(job_id=failed.pk)
    assert (event.kind, event.actor) == (EventKind.REQUEUE, "Grace")
    entry = LogEntry.objects.get()
    assert (entry.user.username, entry.object_id, entry.action_flag) == ("Grace", str(failed.pk), CHANGE)
    assert entry.change_message == "Requeued."


def test_requeue_to_another_queue_takes_the_message_there(boss: Client) -> None:
    job = make(status=Status.FAILED)
    response = boss.post(url("requeue", job), {"confirmed": "yes", "queue": " slow "}, follow=True)
    assert "1 job requeued to queue slow." in said(response)
    row = Job.objects.get(pk=job.pk)
    assert row.queue == "slow"
    assert json.loads(row.envelope)["routing_key"] == "slow"
    assert JobEvent.objects.get().detail == "was failed, to queue slow"
    assert "Requeued to queue slow." in LogEntry.objects.get().change_message


@pytest.mark.parametrize("queue", ["a\x01b", "q" * 256, "nul\x00"])
def test_a_queue_that_cant_be_is_refused_before_anything_is_written(boss: Client, queue: str) -> None:
    job = make(status=Status.FAILED)
    response = boss.post(url("requeue", job), {"confirmed": "yes", "queue": queue})
    assert response.status_code == 200
    assert "errorlist" in response.content.decode()
    assert Job.objects.get(pk=job.pk).epoch == 0


def test_requeueing_what_has_succeeded_is_warned_of(boss: Client) -> None:
    job = make(status=Status.SUCCEEDED)
    assert "its effects happen again" in boss.get(url("requeue", job)).content.decode()
    assert "its effects happen again" not in boss.get(url("requeue", make(status=Status.FAILED))).content.decode()


def test_cancel_settles_what_waits_and_says_what_it_skipped(boss: Client) -> None:
    waiting, done = make(), make(status=Status.SUCCEEDED)
    response = boss.post(reverse(LIST), choose("cancel", [waiting, done], confirmed="yes"), follow=True)
    assert "1 job cancelled." in said(response)
    assert "1 already succeeded" in said(response)
    assert Job.objects.get(pk=waiting.pk).status == "cancelled"
    assert JobEvent.objects.get().actor == "Grace"
    assert LogEntry.objects.get().change_message == "Cancelled."
    assert "Cancelled by Grace" in page_of(boss, waiting)


def test_a_key_that_a_newer_job_holds_is_named_as_the_reason(boss: Client) -> None:
    old = make(status=Status.FAILED, key="order-17")
    make(key="order-17", live_key="order-17")
    response = boss.post(url("requeue", old), {"confirmed": "yes"}, follow=True)
    assert "key &#x27;order-17&#x27; belongs to a newer unfinished job" in response.content.decode()
    assert LogEntry.objects.count() == 0


def test_many_different_reasons_do_not_flood_the_message() -> None:
    from reliable_jobs.admin.operations import _skips

    text = _skips({uuid.uuid4(): f"key {n} belongs to a newer unfinished job" for n in range(1000)})
    assert "995 for other reasons" in text
    assert len(text) < 1000


def test_buttons_are_there_only_where_they_help(boss: Client) -> None:
    for status, expected in {
        Status.WAITING: (True, True),
        Status.RUNNING: (False, False),
        Status.FAILED: (True, False),
        Status.SUCCEEDED: (True, False),
    }.items():
        page = page_of(boss, make(status=status))
        assert ('id="rj-requeue"' in page, 'id="rj-cancel"' in page) == expected, status


@pytest.mark.slow
def test_select_all_requeues_10_000_jobs_without_loading_a_payload(boss: Client) -> None:
    Job.objects.bulk_create(
        [
            Job(
                task="shop.ship",
                queue="letters",
                status=Status.FAILED,
                due_at=NOW,
                payload=b"[[], {}, {}]",
                content_type="application/json",
                content_encoding="utf-8",
                envelope="{}",
            )
            for _ in range(10_000)
        ],
        batch_size=1000,
    )
    one = Job.objects.first()
    assert one is not None
    other = make(status=Status.SUCCEEDED)
    address = f"{reverse(LIST)}?show=failed"
    asked = boss.post(address, choose("requeue", [one], select_across="1", index="0"))
    assert "10,000 jobs" in asked.content.decode()
    with CaptureQueriesContext(connection) as captured:
        response = boss.post(address, choose("requeue", [one], select_across="1", confirmed="yes"))
    assert response.status_code == 302
    assert not [one["sql"][:200] for one in captured if re.search(r'SELECT[^;]*"payload"[^;]*FROM', one["sql"][:3000])]
    assert "10,000 jobs requeued." in said(boss.get(reverse(LIST)))
    assert Job.objects.filter(status=Status.WAITING, requeues=1).count() == 10_000
    assert LogEntry.objects.count() == JobEvent.objects.count() == 10_000
    assert Job.objects.get(pk=other.pk).requeues == 0


def test_one_action_takes_a_bounded_number_and_says_so(boss: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from reliable_jobs.admin import operations

    monkeypatch.setattr(operations, "BOUND", 3)
    jobs = [make(status=Status.FAILED) for _ in range(5)]
    for age, job in enumerate(reversed(jobs)):
        Job.objects.filter(pk=job.pk).update(created_at=NOW - datetime.timedelta(hours=age))
    data = choose("requeue", jobs[:1], select_across="1", confirmed="yes")
    with CaptureQueriesContext(connection) as captured:
        response = boss.post(f"{reverse(LIST)}?show=failed", data, follow=True)
    chosen = [one["sql"] for one in captured if 'ORDER BY "reliable_jobs_job"."created_at"' in one["sql"]]
    assert chosen
    assert all("LIMIT" in sql for sql in chosen)
    assert "3 jobs requeued." in said(response)
    assert "Only the newest 3 were taken" in said(response)
    assert set(Job.objects.filter(requeues=1).values_list("pk", flat=True)) == {job.pk for job in jobs[2:]}


def test_a_selected_id_that_is_none_is_answered_and_not_an_error(boss: Client) -> None:
    data = {"action": "requeue", "_selected_action": ["nonsense"], "confirmed": "yes"}
    response = boss.post(reverse(LIST), data, follow=True)
    assert response.status_code == 200
    assert "No such job was selected." in said(response)


# --- the sentence -----------------------------------------------------------------------------------------------------


def _in(**delta: float) -> datetime.datetime:
    return NOW + datetime.timedelta(**delta)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            {"reason": "error", "failures": 2, "due_at": _in(minutes=4), "sends": 0, "error": "ValueError: no.\nmore"},
            "Waiting for its 3rd attempt, due in 4 min; last error: ValueError: no.",
        ),
        ({"due_at": _in(hours=3), "sends": 0}, "Scheduled: not before 2026-01-31 16:00:00, in 3 h."),
        ({"due_at": _in(seconds=-5), "sends": 0}, "Not sent yet: the sweeper publishes it at its next round."),
        ({"due_at": _in(hours=-1), "sends": 0}, "does beat or a worker run, does the broker answer, and"),
        (
            {"due_at": _in(seconds=-40), "sends": 1, "check_at": _in(seconds=-25)},
            "Published 40 s ago to queue 'letters'. Whether a worker consumes it is unknown: the broker did not say.",
        ),
        ({"due_at": _in(minutes=-9), "sends": 4}, "to queue 'letters', 4 times in all. "),
        ({"reason": "asked", "due_at": _in(days=3), "sends": 0}, "the task asked to run later: due in 3 days"),
        ({"reason": "crash", "crashes": 2}, "2 of its starts never reported, with 3 it is given up"),
        ({"reason": "interrupted", "interruptions": 1, "error": "deadlock"}, "interrupted (1 of 10 times): deadlock"),
        (
            {"reason": "parked", "error": "unknown task 'x'", "deadline_at": _in(minutes=9), "due_at": _in(seconds=20)},
            "can run it (unknown task 'x'). Offered again in 20 s; parked as failed in 9 min, unless a worker with",
        ),
        ({"reason": "requeued"}, "Requeued by Ada: due now."),
        (
            {
                "status": "running",
                "worker": "celery@a pid 7",
                "started_at": _in(minutes=-3),
                "lease_at": _in(seconds=5),
            },
            "Running on celery@a pid 7, 1st attempt, first started 2026-01-31 12:57:00 (3 min ago). Should it die",
        ),
        ({"status": "running", "lease_at": _in(seconds=-90)}, "Its lease ended 1 min ago"),
        ({"status": "succeeded", "finished_at": NOW, "started_at": _in(seconds=-7)}, "7 s after its first start."),
        ({"status": "succeeded", "reason": "ignored"}, "Ended by its own wish"),
        (
            {"status": "failed", "reason": "error", "failures": 1, "error": "E"},
            "Failed after 1 attempt: E. Nothing more",
        ),
        (
            {"status": "failed", "reason": "crash", "crashes": 3},
            "Failed: 3 starts never reported. Requeue it when the cause is fixed.",
        ),
        ({"status": "failed", "reason": "time limit", "crashes": 3}, "killed by the hard time limit"),
        ({"status": "failed", "reason": "parked", "error": "no code"}, "Parked: no code. Requeue it once"),
        ({"status": "failed", "reason": "rejected", "error": "No"}, "the task rejected it (No)"),
        ({"status": "failed", "reason": "interrupted", "error": "11 runs"}, "Failed: interrupted. 11 runs."),
        (
            {"status": "cancelled", "error": "cancelled by Ada", "finished_at": NOW},
            "Cancelled by Ada 2026-01-31 13:00:00",
        ),
        ({"status": "cancelled", "reason": "revoked"}, "Revoked"),
        ({"status": "expired", "finished_at": NOW}, "before it could start"),
        ({"status": "failed", "finished_at": NOW}, "Kept until about 2026-05-01."),
        ({"expires_at": _in(hours=1)}, "Expires 2026-01-31 14:00:00."),
    ],
)
def test_the_sentence_says_where_the_job_stands_and_what_happens_next(columns: dict[str, Any], expected: str) -> None:
    job = Job(**{"task": "t", "queue": "letters", "due_at": NOW, "sends": 0} | columns)
    last = JobEvent(kind=EventKind.REQUEUE, actor="Ada")
    text = story.tell(job, NOW, last=last if job.reason == "requeued" else None).text
    assert expected in text


@pytest.mark.parametrize(("returned_at", "told"), [(_in(seconds=-39), True), (_in(minutes=-9), False)])
def test_a_returned_message_is_told_until_it_has_gone_out(returned_at: datetime.datetime, told: bool) -> None:
    job = Job(task="t", queue="letters", due_at=_in(hours=-1), sends=1, check_at=_in(seconds=-25))
    last = JobEvent(kind=EventKind.UNROUTABLE, at=returned_at, detail="unroutable: NO_ROUTE")
    text = story.tell(job, NOW, last=last).text
    assert ("The broker returned its message: unroutable: NO_ROUTE" in text) is told
    assert ("Published 40 s ago" in text) is not told
    assert "The sweeper looks again now." in text


def test_every_status_and_reason_has_a_sentence() -> None:
    for status in Status:
        for reason in Reason:
            text = story.tell(Job(task="t", queue="q", due_at=NOW, status=status, reason=reason), NOW).text
            assert text.endswith("."), text
            assert "None" not in text


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked_elsewhere(job: Job) -> Iterator[None]:
    from tests.support.harness import Transaction

    held = Transaction(lambda: list(Job.objects.filter(pk=job.pk).lock()))
    try:
        yield
    finally:
        held.end(commit=False)


@pytest.mark.django_db(transaction=True)
def test_an_atomic_run_shows_by_its_lock_although_its_row_says_waiting(boss: Client) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("a row's lock is PostgreSQL's")
    job = make()
    with _locked_elsewhere(job):
        assert "Probably running: a transaction" in page_of(boss, job)
        assert "waiting, held by a run" in boss.get(reverse(LIST)).content.decode()
        response = boss.post(url("cancel", job), {"confirmed": "yes"}, follow=True)
        assert "1 running" in said(response)
    assert "Probably running" not in page_of(boss, job)
    assert "held by a run" not in boss.get(reverse(LIST)).content.decode()


# --- another database -------------------------------------------------------------------------------------------------


class _JobsOnSecond:
    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return "second" if model._meta.app_label == "reliable_jobs" else None

    db_for_write = db_for_read


@pytest.mark.skipif("second" not in django_settings.DATABASES, reason="needs SECOND_DATABASE_URL")
@pytest.mark.django_db(databases=["default", "second"])
def test_jobs_on_another_database_are_listed_shown_and_requeued_there(boss: Client) -> None:
    with override_settings(DATABASE_ROUTERS=[f"{__name__}._JobsOnSecond"]):
        job = make(status=Status.FAILED, root_id=(parent := make()).pk, parent_id=parent.pk)
        assert job._state.db == "second"
        assert job.pk in listed(boss)
        assert listed(boss, f"?q={job.pk}") == [job.pk]
        assert str(parent.pk) in page_of(boss, job)
        response = boss.post(url("requeue", job), {"confirmed": "yes"}, follow=True)
        assert "1 job requeued." in said(response)
    assert Job.objects.using("second").get(pk=job.pk).requeues == 1
    assert JobEvent.objects.using("second").get().actor == "Grace"
    assert LogEntry.objects.using("default").get().object_id == str(job.pk)
    assert not Job.objects.using("default").exists()


@pytest.mark.skipif("second" not in django_settings.DATABASES, reason="needs SECOND_DATABASE_URL")
@pytest.mark.django_db(databases=["default", "second"])
def test_reads_go_to_the_database_that_is_written_to_not_to_a_replica(boss: Client) -> None:
    class Replica:
        def db_for_read(self, model: Any, **hints: Any) -> str | None:
            return "second" if model._meta.app_label == "reliable_jobs" else None

    job = make(status=Status.FAILED)
    with override_settings(DATABASE_ROUTERS=[Replica()]):
        assert listed(boss) == [job.pk]
        assert "1 job requeued." in said(boss.post(url("requeue", job), {"confirmed": "yes"}, follow=True))
