"""Pausing and resuming in the admin and on the command line (S4)."""

from __future__ import annotations

import io

import pytest
from django.contrib.admin.models import ADDITION, DELETION, LogEntry
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from reliable_jobs import lifecycle
from reliable_jobs.models import Pause
from tests.admin import pages
from tests.admin.pages import make, page_of, said, staff

pytestmark = pytest.mark.django_db

boss = pages.boss

ADD, LIST = "admin:reliable_jobs_pause_add", "admin:reliable_jobs_pause_changelist"


def test_a_queue_is_paused_and_resumed_with_an_entry_in_the_log(boss: Client) -> None:
    form = {"kind": "queue", "name": "letters", "why": "the printer burns"}
    assert boss.post(reverse(ADD), form).status_code == 302
    pause = Pause.objects.get()
    assert (pause.name, pause.actor, pause.why) == ("letters", "Grace", "the printer burns")
    assert "queue &#x27;letters&#x27; is paused by Grace since" in page_of(boss, make())
    answer = boss.post(reverse(LIST), {"action": "resume", "_selected_action": [str(pause.pk)]}, follow=True)
    assert "Resumed: letters." in said(answer)
    assert not Pause.objects.exists()
    assert list(LogEntry.objects.order_by("pk").values_list("action_flag", flat=True)) == [ADDITION, DELETION]


def test_the_form_comes_filled_in_from_the_overview(boss: Client) -> None:
    text = boss.get(f"{reverse(ADD)}?kind=queue&name=letters").content.decode()
    assert 'value="letters"' in text


def test_a_task_that_nobody_knows_is_refused_with_a_word(boss: Client) -> None:
    answer = boss.post(reverse(ADD), {"kind": "task", "name": "ship", "why": ""})
    assert "knows no task" in answer.content.decode()
    assert not Pause.objects.exists()


def test_only_who_may_pause_pauses_and_resumes() -> None:
    pause = lifecycle.pause("queue", "letters", "default", actor="Grace")
    viewer = staff("view_job")
    assert viewer.get(reverse(LIST)).status_code == 200
    assert viewer.get(reverse(ADD)).status_code == 403
    assert viewer.post(reverse(ADD), {"kind": "queue", "name": "mail", "why": ""}).status_code == 403
    viewer.post(reverse(LIST), {"action": "resume", "_selected_action": [str(pause.pk)]})
    assert Pause.objects.count() == 1
    assert staff("pause_job").get(reverse(LIST)).status_code == 403
    holder = staff("view_job", "pause_job")
    holder.post(reverse(LIST), {"action": "resume", "_selected_action": [str(pause.pk)]})
    assert not Pause.objects.exists()


def command(*arguments: str) -> str:
    out = io.StringIO()
    call_command("reliable_jobs_pause", *arguments, stdout=out)
    return out.getvalue()


def test_the_command_pauses_lists_and_resumes() -> None:
    assert command("--queue", "mail", "--task", "shop.ship", "--why", "a test") == (
        "Paused queue mail.\nPaused task shop.ship.\n"
    )
    listed = command()
    assert "queue mail, since" in listed
    assert "a test" in listed
    assert command("--resume", "--queue", "mail", "--queue", "other") == (
        "Resumed queue mail.\nQueue other was not paused.\n"
    )
    assert list(Pause.objects.values_list("name", flat=True)) == ["shop.ship"]
    with pytest.raises(CommandError, match="Say what to resume"):
        command("--resume")
