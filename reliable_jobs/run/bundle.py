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
from collections.abc import Mapping
from typing import Any

from django.db import Error as DatabaseError
from django.db import connections

from reliable_jobs.dispatch import bundles
from reliable_jobs.lifecycle import db_errors
from reliable_jobs.models import Job
from reliable_jobs.run import delivery, kept_connections
from reliable_jobs.run.arrival import pointer_alias, waiting_out_outages
from reliable_jobs.run.bundle_transaction import Try
from reliable_jobs.run.state import NotStarted
from reliable_jobs.status import Status
from reliable_jobs.sweep import sweeper


def run(carrier: Any, name: str, using: str, pointers: list[list[Any]]) -> str:
    """Run the jobs of a bundle and say what became of them. Called by the task that carries it.

    Args:
        name: of their task.
        using: database alias.
        pointers: id and content version of each.

    Raises:
        celery.exceptions.Reject: the database could not be reached; the message goes back to the broker.
    """
    alias = pointer_alias({"using": using})
    content_versions = {uuid.UUID(job_id): int(content_version) for job_id, content_version in pointers}
    task = carrier.app.tasks.get(name)
    redelivered = bool(carrier.request.delivery_info.get("redelivered"))
    together = bundles.size(task) > 1 and kept_connections.active and not redelivered
    # MySQL commits what went before an ALTER TABLE or TRUNCATE of a function, its neighbours' effects among it.
    together = together and connections[alias].vendor in ("postgresql", "sqlite")
    done, left = 0, content_versions if together else {}
    while left:
        one_try = Try(carrier, task, alias, left)
        done += waiting_out_outages(alias, f"A bundle of {name}", one_try.run)
        if one_try.worth_singling:
            one_try = Try(carrier, task, alias, left, singly=True)
            done += waiting_out_outages(alias, f"A bundle of {name}", one_try.run)
        left = one_try.not_begun
    if done < len(content_versions):
        _send_alone(carrier.app, alias, content_versions, delivery.REDELIVERY_PATIENCE if redelivered else 0.0)
    return f"{done} of {len(content_versions)} jobs of {name}"


def _send_alone(app: Any, alias: str, content_versions: Mapping[uuid.UUID, int], patience: float) -> None:
    """Send what is still waiting, each job in a message of its own.

    Args:
        patience: seconds to wait for rows that are locked, maybe by the session of a killed worker.
    """
    until = time.monotonic() + patience
    left = set(content_versions)
    while left:
        left = waiting_out_outages(alias, "Jobs of a bundle", functools.partial(_send_some, app, alias, left))
        if time.monotonic() >= until:
            return  # they run elsewhere; if not, the sweeper will find them
        time.sleep(0.1)


def _send_some(app: Any, alias: str, job_ids: set[uuid.UUID]) -> set[uuid.UUID]:
    """Send those that are free; returns those that wait, and are not."""
    try:
        left = job_ids - sweeper.send_again(app, alias, job_ids)
        waiting = Job.objects.using(alias).filter(pk__in=list(left), status=Status.WAITING, sends__gt=0)
        return set(waiting.values_list("pk", flat=True))
    except DatabaseError as error:
        if db_errors.prevents_start(error):
            raise NotStarted(str(error)) from error
        raise
