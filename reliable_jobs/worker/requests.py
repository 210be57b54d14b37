"""A message as the worker's parent process sees it: Celery's request, with the endings that reliable tasks answer
differently. ``Task.Request`` is Celery's documented hook for it.

The parent process of a prefork pool must not keep a database connection that its children would inherit: what it has
to write is written by :func:`parking.aside`, in a short-lived thread whose connection is closed before it ends.
"""

from __future__ import annotations

import logging
import signal
from typing import Any

from celery.exceptions import Ignore, InvalidTaskError, TimeLimitExceeded, WorkerLostError
from celery.worker import state as worker_state
from celery.worker.request import Request

from reliable_jobs import lifecycle
from reliable_jobs.compat.billiard import ExceptionInfo, exit_status
from reliable_jobs.compat.celery_worker import check_eta, is_terminating, payload_of, was_revoked
from reliable_jobs.errors import JobExpired, NotRecorded
from reliable_jobs.message.row_to_message import HEADER, foreign_id
from reliable_jobs.run import arrival
from reliable_jobs.status import CLOSES, EventKind
from reliable_jobs.worker import revocation
from reliable_jobs.worker.parking import aside, parked

logger = logging.getLogger(__name__)

#: The task event that closes a delivery which Celery would leave open, and the fields that its monitors read.
_CLOSING: dict[str, dict[str, Any]] = {
    "task-succeeded": {"result": "None", "runtime": 0.0},
    "task-failed": {"exception": "", "traceback": ""},
    "task-retried": {"exception": "", "traceback": ""},
    "task-revoked": {"terminated": False, "signum": None, "expired": False},
    "task-rejected": {"requeue": False},
}


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
        logger.error("Hard time limit (%ss) exceeded for %s[%s]; its work is done again.", timeout, self.name, self.id)
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
            logger.error("The process that ran %s[%s] died (%s); its work is done again.", self.name, self.id, how)
            self.died(EventKind.CRASH, how)
            self.reject(requeue=True)
            return
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def died(self, kind: str, how: str) -> None:
        """Record how the child process ended."""


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
        if not self._pointer() and self.content_type:
            # For the receipt: the bytes as they came, in an encoding that the child does not know.
            self.delivery_info[arrival.CONTENT] = (self.content_type, self.content_encoding, self.body)

    def _pointer(self) -> dict[str, Any]:
        pointer = self.request_dict.get(HEADER)
        return pointer if isinstance(pointer, dict) else {}

    def revoked(self) -> bool:
        """A worker remembers a revoked id for hours; a job that a person has requeued since is not revoked by that."""
        revocation.note_stamps()
        at = revocation.of_message(self.id, self.stamps) if self._pointer().get("requeues") else None
        if at is not None and not revocation.newer_than_requeue(self.id, at, arrival.pointer_alias(self._pointer())):
            return False
        try:
            return bool(super().revoked())
        except Exception as error:  # the result backend's, which Celery tells first
            logger.warning("Job %s: Celery could not announce that it is revoked: %r", self.id, error)
            revocation.cancel_aside(foreign_id(self.id), arrival.pointer_alias(self._pointer()), terminated=False)
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
        expired = isinstance(error, JobExpired)
        super().on_failure(exc_info, send_failed_event=send_failed_event and not expired, return_ok=return_ok)
        if expired:
            self.send_event("task-revoked", terminated=False, signum=None, expired=True)
        if isinstance(error, Ignore):
            kind = getattr(error, CLOSES, "task-succeeded")
            fields = dict(_CLOSING[kind])
            if "exception" in fields:
                fields["exception"] = str(error)
            self.send_event(kind, **fields)

    def died(self, kind: str, how: str) -> None:
        def write() -> None:
            job_id, using = foreign_id(self.id), arrival.pointer_alias(self._pointer())
            lifecycle.record(job_id, using, kind, str(self.hostname), how)

        aside(write, f"{kind} of job {self.id}")  # never raises: the message is to be given back in any case


class BundleRequest(GivenBackRequest):
    """The request of a message that carries many jobs. A revoked one among them is cancelled as any job that waits
    without a message of its own: see :func:`revocation.cancel_newly_revoked`."""

    def died(self, kind: str, how: str) -> None:
        logger.error("A bundle's process died (%s); its jobs are sent again, each alone.", how)


def _misshapen(request: Any) -> str | None:
    """What in a message would fail only after the worker has taken it: in the pool's child, where nobody could park it.
    None when it will do.

    Args:
        request: the worker's, as it was read.
    """
    said = request.request_dict
    if not isinstance(request.id, str) or not request.id:
        return f"id={request.id!r} is no text: another message like it would count as a copy of this one"
    args, kwargs, embed = payload_of(request)
    if not isinstance(args, (list, tuple)):
        return f"the positional arguments are a {type(args).__name__}"
    if not isinstance(kwargs, dict) or not all(isinstance(name, str) for name in kwargs):
        return "the keyword arguments are no object with texts as names"
    if embed is not None and not isinstance(embed, dict):
        return f"what is to follow is a {type(embed).__name__}"
    follow = embed or {}
    for name in ("callbacks", "errbacks", "chain"):
        steps = follow.get(name)
        if steps and not (isinstance(steps, (list, tuple)) and all(isinstance(step, dict) for step in steps)):
            return f"{name} is no list of signatures"
    if follow.get("chord") and not isinstance(follow["chord"], dict):
        return "chord is no signature"
    forged = {name for name in (*said, *follow) if name != HEADER and str(name).startswith("reliable_")}
    forged |= (set(follow) & set(said)) - {"callbacks", "errbacks", "chain", "chord"}
    if forged:
        return f"{sorted(forged)} would replace what the worker itself says of the message"
    limits = said.get("timelimit")
    if limits and not (isinstance(limits, (list, tuple)) and len(limits) == 2 and all(map(_is_limit, limits))):
        return f"timelimit={limits!r} is no pair of seconds"
    if request.eta is not None:
        try:
            check_eta(request)
        except (OverflowError, ValueError) as error:
            return f"eta={request.eta!r} is no time that a worker can wait for: {error}"
    retries = said.get("retries")
    if retries is not None and not isinstance(retries, int):
        return f"retries={retries!r} is no number"
    return None


def _is_limit(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 10**9)
