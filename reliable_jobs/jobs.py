"""What code may do to jobs, as the admin and the management commands do it."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable

from celery.result import ResultBase
from django.db.models import QuerySet

from reliable_jobs import lifecycle
from reliable_jobs.databases import write_alias
from reliable_jobs.lifecycle import Report
from reliable_jobs.message.row_to_message import foreign_id
from reliable_jobs.models import Job, PauseKind
from reliable_jobs.status import Status
from reliable_jobs.sweep import purge as purging
from reliable_jobs.sweep.ensure_jobs import ensure_jobs
from reliable_jobs.workflow import cancelling

__all__ = ["Report", "cancel", "cancel_workflow", "ensure_jobs", "get", "pause", "purge", "requeue", "resume"]


def get(job_id: uuid.UUID | str, *, using: str | None = None) -> Job:
    """The row of a job: its status, result, error and times.

    Args:
        job_id: the id that ``delay()`` returned.
        using: the database that holds it; by default the one that a call would write to now.

    Raises:
        Job.DoesNotExist: there is none, or it has been pruned.

    Example::

        jobs.get(send_receipt.delay(order.pk).id).status
    """
    return Job.objects.using(using or write_alias()).get(pk=job_id)


def requeue(
    jobs: QuerySet[Job] | Iterable[uuid.UUID | str], *, actor: str, queue: str | None = None, using: str | None = None
) -> Report:
    """Run jobs again: settled ones start anew, waiting ones become due now. Running ones are skipped.

    Args:
        jobs: a queryset of ``Job``, or ids.
        actor: who asks, for the history.
        queue: send them to this queue instead of the one they had.
        using: the database of the ids; by default the one that a call would write to now.

    Returns:
        ``done``: the ids that were requeued; ``skipped``: why, by id.

    Raises:
        django.db.Error: they are requeued a thousand at a time, and those before the failing thousand are.

    Example::

        jobs.requeue(Job.objects.filter(task="mail.send", status="failed"), actor="ada")
    """
    return lifecycle.requeue(*_ids(jobs, using), actor=actor, queue=queue)


def cancel(jobs: QuerySet[Job] | Iterable[uuid.UUID | str], *, actor: str, using: str | None = None) -> Report:
    """Settle waiting jobs as cancelled, and the later steps of their chains. Running ones are skipped.

    Args:
        jobs: a queryset of ``Job``, or ids.
        actor: who asks, for the history.
        using: the database of the ids; by default the one that a call would write to now.

    Returns and raises: as :func:`requeue`.

    Example::

        jobs.cancel(Job.objects.filter(queue="reports", status="waiting"), actor="ada")
    """
    return lifecycle.cancel(*_ids(jobs, using), actor=actor)


def cancel_workflow(one: uuid.UUID | str | ResultBase, *, actor: str, using: str | None = None) -> Report:
    """Cancel all of a workflow that has not ended: jobs that wait, also for their time, groups with their bodies, the
    later steps of chains, messages of other tasks that the broker has not confirmed.

    Parts that run are skipped; what would follow them ends cancelled, and no errback is called. Once the transaction of
    this call has committed, nothing of the workflow starts any more. A requeue of one of its jobs takes that back.

    Args:
        one: the result of its call; or the id of its first job or group, or of any job or body in it that is written.
        actor: who asks, for the history.
        using: the database that holds it; by default the one that a call would write to now.

    Returns:
        ``done``: the ids that were cancelled; ``skipped``: why, by id.

    Raises:
        Job.DoesNotExist: nothing has this id.
        django.db.Error: the sweeper cancels the rest, if anything was done.

    Example::

        jobs.cancel_workflow((prepare.s(7) | ship.s()).delay(), actor="ada")
    """
    if isinstance(one, ResultBase):
        while one.parent is not None:
            one = one.parent
        one = one.id
    return cancelling.cancel_workflow(foreign_id(one), using or write_alias(), actor=actor)


def purge(
    *,
    actor: str,
    queue: str | None = None,
    task: str | None = None,
    age: float | datetime.timedelta | None = None,
    status: str = Status.WAITING,
    using: str | None = None,
    dry_run: bool = False,
) -> int:
    """Drop jobs: those that wait are cancelled, settled ones are deleted with their history. Running ones stay.

    ``app.control.purge()`` and ``celery purge`` empty the broker's queues, not the ledger: the sweeper publishes the
    jobs again.

    Args:
        actor: who asks, for the history.
        queue, task: only of this queue, of this task.
        age: only those that were enqueued (waiting) or have ended (settled) so long ago; seconds, or a timedelta.
        status: ``waiting``, ``succeeded``, ``failed``, ``cancelled``, ``expired`` or ``sent``.
        using: the database; by default the one that a call would write to now.
        dry_run: only count them.

    Returns:
        how many.

    Raises:
        ValueError: neither queue nor task nor age is given, or the status is another one.
        django.db.Error: they are dropped a thousand at a time, and those before the failing thousand are.

    Example::

        jobs.purge(queue="reports", age=datetime.timedelta(hours=1), actor="ada")
    """
    if queue is None and task is None and age is None:
        raise ValueError("Say which jobs to purge: queue, task or age. age=0 means all that are there now.")
    if status not in purging.STATUSES:
        raise ValueError(f"status={status!r} can't be purged; use one of {', '.join(purging.STATUSES)}.")
    choice = purging.Choice(
        using or write_alias(),
        queues=() if queue is None else (queue,),
        tasks=() if task is None else (task,),
        age=age.total_seconds() if isinstance(age, datetime.timedelta) else age,
        status=status,
    )
    return choice.rows.count() if dry_run else purging.purge(choice, actor=actor)


def pause(
    *, queue: str | None = None, task: str | None = None, actor: str, why: str = "", using: str | None = None
) -> None:
    """Let no job of a queue, or of a task, start until :func:`resume`. Once the transaction of this call has committed,
    no claim of theirs succeeds, wherever the message is. What was claimed before goes on, with the rest of its bundle;
    expiry and retry windows, too.

    Messages of tasks that are not reliable go out with the commit; those that a sweeper or relay sends wait.

    Args:
        queue, task: the name of one of them.
        actor: who asks, for people.
        why: for people.
        using: the database that holds the jobs; by default the one that a call would write to now.

    Raises:
        ValueError: neither is named, or both.
        django.db.Error: nothing is paused.

    Example::

        jobs.pause(queue="mail", actor="ada", why="the provider is down")
    """
    lifecycle.pause(*_paused_thing(queue, task), using or write_alias(), actor=actor, why=why)


def resume(*, queue: str | None = None, task: str | None = None, using: str | None = None) -> bool:
    """Let the jobs of a paused queue, or task, start again. The sweeper publishes them.

    Args:
        queue, task: the name of one of them.
        using: as of :func:`pause`.

    Returns:
        whether it was paused.

    Raises:
        ValueError: neither is named, or both.

    Example::

        jobs.resume(queue="mail")
    """
    return lifecycle.resume(*_paused_thing(queue, task), using or write_alias())


def _paused_thing(queue: str | None, task: str | None) -> tuple[str, str]:
    if bool(queue) == bool(task):
        raise ValueError("Name a queue or a task: queue='mail', or task='shop.tasks.ship'.")
    return (PauseKind.QUEUE, str(queue)) if queue else (PauseKind.TASK, str(task))


def _ids(jobs: QuerySet[Job] | Iterable[uuid.UUID | str], using: str | None) -> tuple[list[uuid.UUID], str]:
    if isinstance(jobs, QuerySet):
        return list(jobs.values_list("pk", flat=True)), using or jobs.db
    return [uuid.UUID(str(one)) for one in jobs], using or write_alias()
