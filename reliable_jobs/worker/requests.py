"""A message as the worker's parent process sees it: Celery's request, with the endings that reliable tasks answer
differently. ``Task.Request`` is Celery's documented hook for it.

The parent process of a prefork pool must not keep a database connection that its children would inherit: what it has
to write is written by :func:`parking.aside`, in a short-lived thread whose connection is closed before it ends.
"""

from __future__ import annotations

import logging
import signal
import uuid
from typing import Any

from celery.exceptions import InvalidTaskError, Terminated, TimeLimitExceeded, WorkerLostError
from celery.worker import state as worker_state
from celery.worker.request import Request

from reliable_jobs import lifecycle
from reliable_jobs.compat.billiard import ExceptionInfo, exit_status
from reliable_jobs.compat.celery_worker import (
    check_eta,
    hide_requests,
    is_terminating,
    payload_of,
    seconds_taken,
    show_requests,
    tells_task_events,
    was_revoked,
)
from reliable_jobs.dispatch import bundles
from reliable_jobs.errors import NotRecorded
from reliable_jobs.logs import attempt, fields
from reliable_jobs.message.row_to_message import HEADER, foreign_id
from reliable_jobs.message.shape import misshapen
from reliable_jobs.models import Job
from reliable_jobs.run import arrival, pools, task_events
from reliable_jobs.run.bundle_apart import ALONE, LONGEST
from reliable_jobs.status import EventKind, Status
from reliable_jobs.worker import revocation
from reliable_jobs.worker.parking import aside, parked

logger = logging.getLogger(__name__)


class GivenBackRequest(Request):
    """A request whose message goes back to the broker when its child process was killed. It is then run with a
    committed claim, which counts such an end and bounds it. Celery's settings for it (acks_on_timeout,
    retry_on_worker_lost …) do not apply: the row knows how often the job has been tried.
    """

    def on_timeout(self, soft: bool, timeout: float) -> None:
        if soft or is_terminating():
            super().on_timeout(soft, timeout)
            return
        worker_state.task_ready(self)
        text = "Hard time limit (%ss) exceeded for %s[%s]; its work is done again."
        logger.error(text, timeout, self.name, self.id, extra=self.about())
        self.died(EventKind.TIME_LIMIT, f"hard time limit of {timeout} s exceeded; the process was killed")
        self.reject(requeue=True)

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, TimeLimitExceeded):
            return  # billiard reports the limit here first, and Celery would acknowledge before on_timeout
        revoked = was_revoked(self)
        if isinstance(error, (WorkerLostError, SystemExit, KeyboardInterrupt)) and not revoked:
            worker_state.task_ready(self)
            how = _how_it_died(error)
            text = "The process that ran %s[%s] died (%s); its work is done again."
            logger.error(text, self.name, self.id, how, extra=self.about())
            self.died(EventKind.CRASH, how)
            self.reject(requeue=True)
            return
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def died(self, kind: str, how: str) -> None:
        """Record how the child process ended."""

    def about(self) -> dict[str, Any]:
        """For a log record."""
        queue = (self.delivery_info or {}).get("routing_key") or ""
        return fields(self.id, self.name, str(queue), attempt(self.request_dict.get("retries")))


def _how_it_died(error: BaseException) -> str:
    """Signal name or exit code, as far as it is known."""
    if not isinstance(error, SystemExit):
        return str(error) or repr(error)
    if not isinstance(error.code, int):
        return f"The process ended with {error.code!r}."
    code = exit_status(error.code)
    if code >= 0:
        return f"The process ended with exit code {code}."
    try:
        return f"The process ended with signal {-code} ({signal.Signals(-code).name})."
    except ValueError:
        return f"The process ended with signal {-code}."


class ReliableRequest(GivenBackRequest):
    """The request of one job."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Raises celery.exceptions.InvalidTaskError: the consumer parks the message."""
        super().__init__(*args, **kwargs)
        why = _misshapen(self)
        if why is not None:
            raise InvalidTaskError(why)
        pointer = self.request_dict.get(HEADER)
        #: Of a message of ours: see :data:`POINTER`. Empty for one from elsewhere.
        self.pointer: dict[str, Any] = pointer if isinstance(pointer, dict) else {}
        if not self.pointer and self.content_type:
            # For the receipt: the bytes as they came, in an encoding that the child does not know. A message need not
            # name its character set; kombu then takes UTF-8.
            encoding = self.content_encoding or "utf-8"
            self.delivery_info[arrival.CONTENT] = arrival.Content(self.content_type, encoding, self.body)

    def revoked(self) -> bool:
        """A worker remembers a revoked id for hours; a job that a person has requeued since is not revoked by that."""
        revocation.note_stamps()
        at = revocation.of_message(self.id, self.stamps) if self.pointer.get("requeues") else None
        if at is not None and not revocation.newer_than_requeue(self.id, at, arrival.pointer_alias(self.pointer)):
            return False
        try:
            return bool(super().revoked())
        except Exception as error:  # the result backend's, which Celery tells first
            logger.warning(
                "Job %s: Celery could not announce that it is revoked: %r", self.id, error, extra=self.about()
            )
            revocation.cancel_aside(foreign_id(self.id), arrival.pointer_alias(self.pointer), terminated=False)
            self.acknowledge()
            return True

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, NotRecorded):
            worker_state.task_ready(self)
            if parked(self.message, str(error), self.hostname):
                self.acknowledge()
                self.send_event("task-failed", exception=str(error), traceback=exc_info.traceback)
            else:
                self.reject(requeue=True)
            return
        closing = task_events.closing(error)
        super().on_failure(exc_info, send_failed_event=send_failed_event and closing is None, return_ok=return_ok)
        if closing is not None:
            kind, said = closing
            self.send_event(kind, **said)

    def died(self, kind: str, how: str) -> None:
        def write() -> None:
            queue = str((self.delivery_info or {}).get("routing_key") or "")
            job = lifecycle.Subject(foreign_id(self.id), self.name, queue)
            lifecycle.record(job, arrival.pointer_alias(self.pointer), kind, str(self.hostname), how, final=False)

        aside(write, f"{kind} of job {self.id}")  # never raises: the message is to be given back in any case


class BundleRequest(GivenBackRequest):
    """The request of a message that carries many jobs. The child is told which of them this process has to see; they
    come back, each in a message of its own. A revoked one that has been handed over is cancelled as any job that waits
    without a message of its own: see :func:`revocation.cancel_newly_revoked`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Raises celery.exceptions.InvalidTaskError: the consumer parks the message."""
        super().__init__(*args, **kwargs)
        self.parts: list[Part] = []
        #: Whether one of the parts was terminated while this message ran.
        self.has_ended_a_run = False
        try:
            self._task_name, self._using, pointers = payload_of(self)[0]
            self._ids = [str(uuid.UUID(job_id)) for job_id, _ in pointers]
        except (AttributeError, TypeError, ValueError) as error:
            raise InvalidTaskError(f"no jobs of a bundle: {error}") from error

    def revoked(self) -> bool:
        """Celery asks last thing before it hands the message over."""
        task, ids = self.app.tasks.get(self._task_name), self._ids
        self.request_dict[ALONE] = [job_id for job_id in ids if job_id in worker_state.revoked]
        if bundles.size(task) == 1 and not bundles.shares_messages(task):
            # The child may think otherwise: remote control sets a task's limits in this process only.
            self.request_dict[ALONE] = True
        elif bundles.size(task) == 1:
            limits = pools.limits_of(task)
            if bundles.has_short_limit(limits):
                self.request_dict[ALONE] = True
            if task.send_events and tells_task_events(self.eventer):
                self.request_dict[task_events.TOLD] = self.app.clock.value
            hard, soft = limits
            self.time_limits = (hard and hard + LONGEST, soft and soft + LONGEST)
            self.parts = [Part(self, task, job_id, arrival.pointer_alias({"using": self._using})) for job_id in ids]
        return bool(super().revoked())

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        # Not before: of a message that no child has taken when the connection is lost, no end is told.
        show_requests(self.parts)
        super().on_accepted(pid, time_accepted)

    def acknowledge(self) -> None:
        if self.has_ended_a_run and not self.acknowledged:
            self.reject(requeue=True)  # gevent's pool answers a greenlet that was killed as one that has returned
            return
        hide_requests(self.parts)
        super().acknowledge()

    def reject(self, requeue: bool = False) -> None:
        hide_requests(self.parts)
        super().reject(requeue=requeue)

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:
        hide_requests(self.parts)  # a run that Celery has cancelled, with its connection, is not answered
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, Terminated) and self.parts and not was_revoked(self):
            # One of the jobs was terminated: see Part. Celery would acknowledge the others with it.
            worker_state.task_ready(self)
            self.reject(requeue=True)
            return
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def died(self, kind: str, how: str) -> None:
        logger.error("A bundle's process died (%s); its jobs are sent again, each alone.", how)
        if self.parts and seconds_taken(self) > LONGEST:
            aside(lambda: self._blame(kind, how), f"{kind} of a job of {self.parts[0].name}")

    def _blame(self, kind: str, how: str) -> None:
        """Record it for the job that ran: the others that wait were sent alone after LONGEST."""
        alias = self.parts[0].alias
        never_again = Job.objects.using(alias).filter(status=Status.WAITING, sends=1)
        found = never_again.filter(pk__in=[part.id for part in self.parts]).values_list("pk", "task", "queue")[:2]
        if len(found) == 1:
            lifecycle.record(lifecycle.Subject(*found[0]), alias, kind, str(self.hostname), how, final=False)


class Part:
    """A job of a message that runs, as Celery's remote control knows it."""

    def __init__(self, carrier: BundleRequest, task: Any, job_id: str, alias: str) -> None:
        self.carrier, self.task, self.name, self.id, self.alias = carrier, task, task.name, job_id, alias

    def info(self, safe: bool = False) -> dict[str, Any]:
        """For ``inspect query_task``."""
        return {**self.carrier.info(safe=safe), "id": self.id, "name": self.name, "type": self.name}

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Cancel the job; where it runs, end the process. Its neighbours are then run alone."""

        def kill() -> None:
            if self.carrier.worker_pid and not self.carrier.acknowledged:
                self.carrier.has_ended_a_run = True
                pool.terminate_job(self.carrier.worker_pid, signal)

        job_id, alias = uuid.UUID(self.id), self.alias
        aside(lambda: revocation.terminate(job_id, alias, kill), f"termination of job {job_id}")


def _misshapen(request: Any) -> str | None:
    """What in a message would fail only after the worker has taken it: in the pool's child, where nobody could park it.
    None when it will do.

    Args:
        request: the worker's, as it was read.
    """
    said = request.request_dict
    if not isinstance(request.id, str) or not request.id:
        return f"id={request.id!r} is no text: another message like it would count as a copy of this one"
    if (why := misshapen(said, *payload_of(request))) is not None:
        return why
    if request.eta is not None:
        try:
            check_eta(request)
        except (OverflowError, ValueError) as error:
            return f"eta={request.eta!r} is no time that a worker can wait for: {error}"
    return None
