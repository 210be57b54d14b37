"""A bundle's jobs, run in one transaction and settled by one statement.

    BEGIN → lock the rows → SAVEPOINT → function, function … → deferred constraints → RELEASE → settle all → COMMIT

Only plain successes are settled here. At first the functions share one savepoint. When one of them fails, all is rolled
back and run again with a savepoint for each; what fails then, or wishes to be run again, is rolled back alone and sent
in a message of its own, and run with a committed claim. So is every job of a bundle that was redelivered (its worker
was killed, perhaps by one of them), that ran out of time, or whose transaction broke.
"""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from django.db import Error as DatabaseError
from django.db import connections

from reliable_jobs.dispatch import bundles
from reliable_jobs.lifecycle import db_errors
from reliable_jobs.models import Job
from reliable_jobs.run import bundle_apart, delivery, kept_connections, task_events
from reliable_jobs.run.arrival import pointer_alias, waiting_out_outages
from reliable_jobs.run.bundle_transaction import Try
from reliable_jobs.run.state import NotStarted
from reliable_jobs.status import Status
from reliable_jobs.sweep import sweeper

_T = TypeVar("_T")


def run(carrier: Any, name: str, using: str, pointers: list[list[Any]]) -> str:
    """Run the jobs of a bundle and say what became of them. Called by the task that carries it.

    Args:
        name: of their task.
        using: database alias.
        pointers: id and content version of each.

    Raises:
        celery.exceptions.Reject: the database could not be reached; the message goes back to the broker.
    """
    began = time.monotonic()
    alias = pointer_alias({"using": using})
    content_versions = {uuid.UUID(job_id): int(content_version) for job_id, content_version in pointers}
    task = carrier.app.tasks.get(name)
    redelivered = bool(carrier.request.delivery_info.get("redelivered"))
    told = carrier.request.get(bundle_apart.ALONE) or ()
    alone = set(content_versions) if told is True else {uuid.UUID(job_id) for job_id in told}
    what = f"A bundle of {name}"
    done, left = 0, set(content_versions)
    events = None
    if (clock := carrier.request.get(task_events.TOLD)) is not None:
        events = task_events.TaskEvents(carrier.app, carrier.request.hostname, clock)
    if redelivered:
        pass  # nothing begins here
    elif bundles.size(task) > 1 and kept_connections.active:
        done = _run_together(carrier, task, alias, content_versions, alone, began)
    elif bundles.size(task) == 1 and bundles.shares_messages(task):
        send = functools.partial(_send_some, carrier.app, alias)
        turns = bundle_apart.Turns(carrier, task, alias, content_versions, alone, send, began, events)
        waiting_out_outages(alias, what, functools.partial(_if_it_answers, turns.read), began)
        turns.run()
        left = turns.left
        done = len(content_versions) - len(left)
    if done < len(content_versions):
        _send_alone(carrier.app, alias, left, delivery.REDELIVERY_PATIENCE if redelivered else 0.0, began)
    if redelivered and task is not None:
        # Last: a result backend or a receiver that blocks, or kills this process, must not keep back those that wait.
        show = functools.partial(
            _if_it_answers, bundle_apart.show_ended, carrier, task, alias, content_versions, events
        )
        waiting_out_outages(alias, what, show, began)
    if events is not None:
        events.tell()
    return f"{done} of {len(content_versions)} jobs of {name}"


def _run_together(
    carrier: Any, task: Any, alias: str, content_versions: Mapping[uuid.UUID, int], alone: set[uuid.UUID], began: float
) -> int:
    """Run jobs in one transaction; returns how many of them were settled."""
    # MySQL commits what went before an ALTER TABLE or TRUNCATE of a function, its neighbours' effects among it.
    if connections[alias].vendor not in ("postgresql", "sqlite"):
        return 0
    what = f"A bundle of {task.name}"
    done, left = 0, {job_id: version for job_id, version in content_versions.items() if job_id not in alone}
    while left:
        one_try = Try(carrier, task, alias, left)
        done += waiting_out_outages(alias, what, one_try.run, began)
        if one_try.worth_singling:
            one_try = Try(carrier, task, alias, left, singly=True)
            done += waiting_out_outages(alias, what, one_try.run, began)
        left = one_try.not_begun
    return done


def _send_alone(app: Any, alias: str, job_ids: set[uuid.UUID], patience: float, began: float) -> None:
    """Send what is still waiting, each job in a message of its own.

    Args:
        patience: seconds to wait for rows that are locked, maybe by the session of a killed worker.
        began: when the message did (monotonic).
    """
    until = time.monotonic() + patience
    left = job_ids
    while True:
        left = waiting_out_outages(
            alias, "Jobs of a bundle", functools.partial(_if_it_answers, _send_some, app, alias, left), began
        )
        if not left or time.monotonic() >= until:
            return  # what is left runs elsewhere; if not, the sweeper will find it
        time.sleep(0.1)


def _send_some(app: Any, alias: str, job_ids: set[uuid.UUID]) -> set[uuid.UUID]:
    """Send those that are free; returns those that wait for their second send, and are not."""
    left = job_ids - sweeper.send_again(app, alias, job_ids)
    waiting = Job.objects.using(alias).filter(pk__in=list(left), sends=1).still(Status.WAITING)
    return set(waiting.values_list("pk", flat=True))


def _if_it_answers(do: Callable[..., _T], *args: Any) -> _T:
    """Call a function before which no task function has begun.

    Raises:
        NotStarted: the database can't be used.
    """
    try:
        return do(*args)
    except DatabaseError as error:
        if db_errors.prevents_start(error):
            raise NotStarted(str(error)) from error
        raise
