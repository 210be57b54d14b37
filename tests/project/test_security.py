"""What SECURITY.md says: who may do what, what is hidden where, and how far a forged message comes. What pages show and
escape is in test_admin_job.py, what is never loaded in test_bad_messages.py."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import shared_task
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django_celery_results.models import TaskResult
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.serialization import register, unregister
from kombu.utils.json import dumps, loads

from reliable_jobs import ReliableTask, lifecycle
from reliable_jobs.message.decode import NotDecoded, content
from reliable_jobs.models import Job, JobEvent
from tests.celery_app import app
from tests.support import inprocess
from tests.support.harness import Stack, wait_until
from tests.support.inprocess import InProcess
from tests.testapp import tasks

jobs, rows = inprocess.jobs, inprocess.rows

# --- who may ----------------------------------------------------------------------------------------------------------


def _client(kind: str) -> Client:
    client = Client()
    if kind == "anonymous":
        return client
    user = User.objects.create_user(kind, is_staff=kind != "no staff")
    names = {"viewer": ["view_job"], "no staff": ["view_job", "requeue_job", "cancel_job"], "nobody": []}[kind]
    user.user_permissions.add(*Permission.objects.filter(codename__in=names))
    client.force_login(user)
    return client


@pytest.mark.parametrize("kind", ["anonymous", "no staff", "nobody", "viewer"])
@pytest.mark.parametrize("operation", ["requeue", "cancel"])
def test_who_has_no_permission_changes_nothing_by_any_way(rows: InProcess, kind: str, operation: str) -> None:
    job = rows.row(tasks.add.delay(1, 2))
    client = _client(kind)
    alone = reverse(f"admin:reliable_jobs_job_{operation}", args=[job.pk])
    everyone = reverse("admin:reliable_jobs_job_changelist")
    chosen = {"action": operation, "_selected_action": [str(job.pk)], "confirmed": "yes"}
    refused = (302, 403)
    assert client.get(alone).status_code in refused
    assert client.post(alone, {"confirmed": "yes"}).status_code in refused
    client.post(everyone, chosen)
    client.post(everyone, {**chosen, "select_across": "1"})
    after = rows.row(job)
    assert (after.status, after.epoch, after.requeues, JobEvent.objects.count()) == ("waiting", 0, 0, 0)


@pytest.mark.parametrize("kind", ["anonymous", "no staff", "nobody"])
def test_who_may_not_view_sees_no_job(rows: InProcess, kind: str) -> None:
    job = rows.row(tasks.add.delay("to be seen by few", 2))
    client = _client(kind)
    for page in ("changelist", "change", "history"):
        answer = client.get(reverse(f"admin:reliable_jobs_job_{page}", args=[] if page == "changelist" else [job.pk]))
        assert answer.status_code in (302, 403)
        assert b"to be seen by few" not in answer.content


# --- what is sensitive ------------------------------------------------------------------------------------------------

SECRET = "hunter2-very-secret"


@shared_task(base=ReliableTask, name="test_security.tells", sensitive=("password",), bind=True, max_retries=1)
def tells(self: Any, user: str, password: str, again: bool = False) -> None:
    logging.getLogger("test_security").warning("%r", self.request)
    if again:
        raise self.retry(countdown=0, exc=ValueError(f"not with {password}"))
    raise ValueError(f"{user} may not log in with {[password]}")


@pytest.mark.parametrize("again", [False, True], ids=["fails", "retries"])
@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("redelivered", [False, True])
def test_a_sensitive_argument_shows_nowhere_but_in_the_body(
    jobs: InProcess, caplog: pytest.LogCaptureFixture, again: bool, by_name: bool, redelivered: bool
) -> None:
    with caplog.at_level(logging.DEBUG):
        result = tells.delay("ann", password=SECRET, again=again) if by_name else tells.delay("ann", SECRET, again)
        (sent,) = jobs.take()
        jobs.deliver(sent, redelivered=redelivered)
        jobs.finish()
    job = jobs.row(result)
    assert job.status == "failed"
    shown = {
        "headers": str(sent.headers) + str(sent.properties),
        "row": "".join(str(getattr(job, f.name)) for f in Job._meta.fields if f.name not in ("payload",)),
        "events": "".join(f"{event.detail}{event.traceback}" for event in JobEvent.objects.all()),
        "backend": "".join(str(list(vars(kept).values())) for kept in TaskResult.objects.all()),
        "repr": f"{job!r} {result!r} {result.result!r} {result.traceback}",
        # The request itself holds the arguments, and a body that prints it prints them.
        "logs": "".join(f"{r.getMessage()}{r.exc_text or ''}" for r in caplog.records if r.name != "test_security"),
    }
    client = Client()
    client.force_login(User.objects.create_superuser("Grace"))
    for page in ("changelist", "change", "history"):
        args = [] if page == "changelist" else [job.pk]
        shown[page] = client.get(reverse(f"admin:reliable_jobs_job_{page}", args=args)).content.decode()
    assert [place for place, text in shown.items() if SECRET in text] == []
    assert SECRET in bytes(job.payload).decode()


@pytest.mark.servers
def test_a_sensitive_argument_shows_in_no_log_and_no_event_of_a_worker(stack: Stack, idle_queue: str) -> None:
    heard: list[str] = []
    worker = stack.worker(options=["-E"])
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": lambda event: heard.append(repr(event))})
        with receiver.consumer_context() as (consuming, _, _):
            result = tasks.login.delay("ann", SECRET)
            stack.ends(result, "failed")

            def failed() -> bool:
                consuming.drain_events(timeout=10)
                return any("task-failed" in event and result.id in event for event in heard)

            wait_until(failed, "the event of its failure")
    assert any("task-received" in event and result.id in event for event in heard)
    assert "may not log in" in worker.log
    assert SECRET not in worker.log
    assert SECRET not in "".join(heard)


# --- a forged message -------------------------------------------------------------------------------------------------


def _forged(jobs: InProcess, job: Job, args: list[Any], **pointer: Any) -> Any:
    message = jobs.message(job, **pointer)
    body = json.dumps([args, {}, {}]).encode()
    return jobs.through_broker(body, "application/json", "utf-8", message.headers, {})


def test_a_forged_message_changes_a_waiting_jobs_arguments_and_no_more(jobs: InProcess) -> None:
    """The broker is trusted with arguments; whether and how often is the row's."""
    job = jobs.row(tasks.effect.delay("meant"))
    jobs.take()
    jobs.deliver(_forged(jobs, job, ["stale"], content_version=1))
    assert jobs.row(job).status == "waiting"
    forged = _forged(jobs, job, ["forged"])
    for _ in range(3):
        jobs.deliver(forged)
    jobs.deliver(_forged(jobs, job, ["too late"], send=7, requeues=9))
    assert [jobs.effects(name) for name in ("meant", "stale", "forged", "too late")] == [0, 0, 1, 0]
    assert jobs.row(job).status == "succeeded"


def test_a_forged_message_does_not_run_a_cancelled_or_later_job(jobs: InProcess) -> None:
    cancelled, later = tasks.effect.delay("cancelled"), tasks.effect.apply_async(("later",), countdown=3600)
    lifecycle.cancel([jobs.row(cancelled).pk], "default", actor="a person")
    for job in (cancelled, later):
        jobs.deliver(_forged(jobs, jobs.row(job), ["forged"]))
    assert jobs.effects("forged") == 0


# --- signed bodies, as by Celery's "auth" serialiser ------------------------------------------------------------------

KEY, SIGNED = b"known to producers and workers", "application/x-signed"


def _sign(value: Any) -> str:
    text = dumps(value)
    return hmac.new(KEY, text.encode(), hashlib.sha256).hexdigest() + text


def _verify(data: Any) -> Any:
    text = data.decode() if isinstance(data, bytes) else str(data)
    if not hmac.compare_digest(hmac.new(KEY, text[64:].encode(), hashlib.sha256).hexdigest(), text[:64]):
        raise ValueError("not signed by us")
    return loads(text[64:])


@pytest.fixture
def signing() -> Iterator[None]:
    """Everything is signed, and nothing else accepted."""
    register("signed", _sign, _verify, content_type=SIGNED, content_encoding="utf-8")
    before = app.conf.task_serializer, app.conf.accept_content
    app.conf.task_serializer, app.conf.accept_content = "signed", ["signed"]
    try:
        yield
    finally:
        app.conf.task_serializer, app.conf.accept_content = before
        unregister("signed")


def test_a_signed_job_runs_from_its_row_and_a_forged_one_is_refused(signing: None, jobs: InProcess) -> None:
    @shared_task(base=ReliableTask, name=f"test_security.signed_{uuid.uuid4().hex[:8]}", serializer="signed", bind=True)
    def signed(self: Any, name: str, content: int = 0) -> None:
        tasks.effect.run(name)
        if content == 0:
            raise self.retry(args=(name, 1), countdown=0)

    job = jobs.row(signed.delay("signed"))
    assert job.content_type == SIGNED
    (sent,) = jobs.take()
    sent.accept = {SIGNED}
    for forged in (_forged(jobs, job, ["forged"]), jobs.through_broker(b"0" * 64, SIGNED, "utf-8", sent.headers, {})):
        forged.accept = {SIGNED}
        with pytest.raises((ContentDisallowed, DecodeError)):  # the consumer parks it
            jobs.deliver(forged)
    jobs.deliver(sent)
    jobs.sweep()
    (again,) = jobs.take()  # other arguments are signed anew
    again.accept = {SIGNED}
    jobs.deliver(again)
    assert (jobs.row(job).status, jobs.effects("signed"), jobs.effects("forged")) == ("succeeded", 1, 0)


def test_e12_an_untrusted_codec_is_decoded_by_no_page_or_command(
    rows: InProcess, settings: Any, admin_client: Client
) -> None:
    decoded: list[str] = []

    def decode(data: Any) -> Any:
        decoded.append(str(data))
        return loads(data)

    register("disguised", dumps, decode, content_type="application/x-disguised", content_encoding="utf-8")
    try:

        @shared_task(base=ReliableTask, name=f"test_security.disguised_{uuid.uuid4().hex[:8]}", serializer="disguised")
        def disguised(name: str) -> None:
            return None

        job = rows.row(disguised.apply_async(("shown?",), key="once"))
        page = reverse("admin:reliable_jobs_job_change", args=[job.pk])
        shown = admin_client.get(page).content.decode()
        call_command("reliable_jobs_check")
        assert decoded == []
        assert "application/x-disguised is decoded by workers only" in shown
        assert not bundle_attempt_reads(job, accepted={"application/json"})
        assert decoded == []

        assert rows.row(disguised.apply_async(("shown?",), key="once")).pk == job.pk
        decoded.clear()
        settings.RELIABLE_JOBS = {"TRUSTED_CONTENT_TYPES": ["application/x-disguised"]}
        assert "name = &#x27;shown?&#x27;" in admin_client.get(page).content.decode()
        assert decoded
    finally:
        unregister("disguised")


def bundle_attempt_reads(job: Job, accepted: set[str]) -> bool:
    """Whether a worker that accepts these content types decodes a job that travels in a bundle."""
    try:
        content(job, trusted=accepted)
    except NotDecoded:
        return False
    return True
