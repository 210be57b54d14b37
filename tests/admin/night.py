"""A site at three in the morning, in rows: what the fourteen questions are about."""

from __future__ import annotations

import datetime
from typing import Any

from django.contrib.auth.models import Permission, User
from django.db import connection
from django.utils import timezone

from reliable_jobs.clock import Now
from reliable_jobs.models import Job, JobEvent, ProcessSeen, Stat
from reliable_jobs.status import EventKind, Reason, Status
from tests.admin.pages import make
from tests.presence.test_presence import made

ACTING = ("requeue_job", "cancel_job", "rerun_job", "stop_job", "pause_job")
ALL = ("view_job", *ACTING)
#: Who there is, with which permissions; None: all of a superuser's.
USERS: dict[str, tuple[str, ...] | None] = {
    "nobody": (),
    "actor": ACTING,  # may act, and not look: that is nothing
    "view": ("view_job",),
    **{permission.removesuffix("_job"): ("view_job", permission) for permission in ACTING},
    "all": ALL,
    "superuser": None,
}
#: Who can ask everything.
MANY = ("all", "superuser")
#: Each person's own: a task that fails, a queue to cancel, and one to pause.
FAILS = {"view": "shop.ship", "requeue": "shop.refund", "all": "mail.remind", "superuser": "shop.restock"}
IMPORTS = {"cancel": "imports", "all": "exports", "superuser": "archive"}
LETTERS = {"pause": "letters", "all": "labels", "superuser": "parcels"}
#: The release that broke it, and the one before.
BROKEN, BEFORE = "2026.12.1", "2026.11.9"
#: Jobs that have failed since the hour that question six names, and before it.
SINCE, EARLIER = 40, 12


def minutes(number: float) -> datetime.timedelta:
    return datetime.timedelta(minutes=number)


def people() -> dict[str, User]:
    found = {}
    for name, permissions in USERS.items():
        user = User.objects.create_user(name, is_staff=True, is_superuser=permissions is None)
        user.user_permissions.add(*Permission.objects.filter(codename__in=permissions or ()))
        found[name] = user
    return found


def failures(task: str, each: int) -> None:
    """So many a minute."""
    now = timezone.now()
    for number in range(SINCE * each):
        _failed(task, now - minutes(number / each))
    for number in range(EARLIER):
        _failed(task, now - minutes(180 + number))


def _failed(task: str, at: datetime.datetime) -> None:
    make(
        task=task,
        queue="shop",
        status=Status.FAILED,
        reason=Reason.ERROR,
        failures=3,
        error="ConnectionError: the carrier does not answer",
        error_class="ConnectionError",
        release=BROKEN,
        created_at=at - minutes(1),
        started_at=at,
        run_started_at=at,
        finished_at=at,
        worker="celery@web-1",
    )


def statistics() -> None:
    """What the sweep loop has counted in the last hour: shop.report takes 8 to 16 s, the others some milliseconds."""
    this = timezone.now().replace(second=0, microsecond=0)
    rows = []
    for number in range(1, 50):
        of = {"span": 60, "at": this - minutes(number), "queue": "shop", "ending": "succeeded", "release": BEFORE}
        rows.append(Stat(**of, task="shop.bill", n=60 + number % 9, r4=60, w3=60, sum_ms=900, max_ms=20))
        rows.append(Stat(**of, task="shop.report", n=2, r14=2, w3=2, sum_ms=24_000, max_ms=14_700))
        failed = {**of, "ending": "failed", "release": BROKEN, "task": "shop.ship"}
        rows.append(Stat(**failed, n=1 if number < SINCE else 0))
    Stat.objects.bulk_create(rows)


def happened(job: Job, *steps: tuple[str, float, dict[str, Any]]) -> None:
    """Events of a job: kind, minutes ago, columns."""
    for kind, ago, columns in steps:
        JobEvent.objects.create(job=job, kind=kind, **columns)
        JobEvent.objects.filter(pk=JobEvent.objects.latest("pk").pk).update(at=timezone.now() - minutes(ago))


def twice() -> Job:
    """A job that has run three times."""
    now = timezone.now()
    job = make(
        task="tests.testapp.tasks.effect",
        key="order-18",
        status=Status.SUCCEEDED,
        requeues=1,
        release=BROKEN,
        worker="celery@web-1",
        created_at=now - minutes(90),
        started_at=now - minutes(20),
        run_started_at=now - minutes(20),
        finished_at=now - minutes(19.9),
    )
    failed = {"actor": "celery@web-1", "release": BROKEN, "detail": "ValueError: no such order"}
    traceback = (
        'Traceback (most recent call last):\n  File "shop/tasks.py", line 17, in ship\nValueError: no such order'
    )
    happened(
        job,
        (EventKind.CRASH, 80, {"actor": "celery@web-1", "final": False, "detail": "SIGKILL", "release": BROKEN}),
        (EventKind.FAILURE, 60, {**failed, "error_class": "ValueError", "final": True, "traceback": traceback}),
        (EventKind.REQUEUE, 21, {"actor": "ada", "detail": "was failed"}),
    )
    return job


def build(rows: Any = None) -> dict[str, User]:
    """The site. Returns who can look at it.

    Args:
        rows: makes the rest of the table first.
    """
    now = timezone.now()
    if rows is not None:
        rows()
    statistics()
    twice()
    for number in range(7):
        at = now - minutes(20)
        make(queue="mail", task="mail.send", due_at=at, created_at=at, key=f"mail-{number}")
    make(queue="mail", task="mail.send", due_at=now - minutes(12), created_at=now - minutes(12), key="order-17")
    for who, task in FAILS.items():
        failures(task, 2 if who == "view" else 1)
    for queue in IMPORTS.values():
        for number in range(30):
            make(queue=queue, task="shop.load", due_at=now + minutes(number + 1), sends=0, check_at=None)
    for who in ("rerun", *MANY):
        wrong = {"status": Status.FAILED, "reason": Reason.ERROR, "error": "TypeError: no number", "failures": 1}
        make(key=f"order-19-{who}", payload=b'[[3, "4"], {}, {}]', finished_at=now - minutes(200), **wrong)
    for queue in LETTERS.values():
        make(queue=queue, task="shop.write", sends=0)
    running = []
    for who in ("stop", *MANY):
        long = {"status": Status.RUNNING, "worker": "celery@web-1", "started_at": now - minutes(4)}
        running.append(make(task="shop.report", queue="shop", key=f"report-{who}", **long))
    queues = ["shop", *IMPORTS.values(), *LETTERS.values()]
    at_work = made("celery@web-1", queues=queues)
    active = [[str(job.pk), 240.0 + number] for number, job in enumerate(running)]
    ProcessSeen.objects.filter(pk=at_work).update(active=active)
    made("celery@web-2", queues=["shop"])
    made("beat@web-1", kind="beat", queues=())
    made("celery@web-3", 1500, queues=["mail"])
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
    return people()


def alive() -> None:
    """The processes that are there go on telling it."""
    ProcessSeen.objects.exclude(process__name="celery@web-3").update(seen_at=Now(), broker_ok=True)
