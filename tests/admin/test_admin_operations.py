"""Requeue and cancel in the admin: who may do it, what is asked first, what is written down."""

from __future__ import annotations

import json
import re
import uuid

import pytest
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import EventKind, Status
from tests.admin import pages
from tests.admin.pages import LIST, choose, make, page_of, said, staff, url

boss = pages.boss
pytestmark = pytest.mark.django_db

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
    assert (Job.objects.get(pk=job.pk).epoch, LogEntry.objects.count(), job.events.count()) == (0, 0, 0)


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
    assert "1 × failed" in asked.content.decode()
    assert "1 × running" in asked.content.decode()
    assert Job.objects.get(pk=failed.pk).status == "failed"
    sent = dict.fromkeys(re.findall(r'type="hidden" name="(\w+)" value="', asked.content.decode().split("<form")[-1]))
    assert {"action", "_selected_action", "confirmed"} <= set(sent)

    response = boss.post(reverse(LIST), choose("requeue", [failed, running], confirmed="yes"), follow=True)

    assert "1 job requeued." in said(response)
    assert f"1 job skipped: 1 × running ({running.pk})." in said(response)
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
    assert job.events.get().detail == "was failed, to queue slow"
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
    assert "1 × already succeeded" in said(response)
    assert Job.objects.get(pk=waiting.pk).status == "cancelled"
    assert waiting.events.get().actor == "Grace"
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


def test_a_selected_id_that_is_none_is_answered_and_not_an_error(boss: Client) -> None:
    data = {"action": "requeue", "_selected_action": ["nonsense"], "confirmed": "yes"}
    response = boss.post(reverse(LIST), data, follow=True)
    assert response.status_code == 200
    assert "No such job was selected." in said(response)
