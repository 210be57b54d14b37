"""Django signals of a job's way, for metrics, traces and other watchers. docs/telemetry.md has an example.

Each is sent once what it says has been committed; ``job_started`` alone comes before the task function. Each comes once
as a rule. A process that dies between the commit and the signal sends none, and an error around a COMMIT can double
one: a signal is for watching, and what must happen belongs in the transaction. Where nobody listens, nothing is done.

A receiver runs in the process that did the work, in its thread, so it should be short. What it raises is logged by
Django (``django.dispatch``) and fails no job. ``sender`` is the model class ``Job``. All have these arguments:

- ``job_id``: the job's :class:`uuid.UUID`, which is the Celery task id too;
- ``task``, ``queue``: names; ``queue`` is "" where it is not known;
- ``using``: alias of the database that holds the job.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from django.db import connections, transaction
from django.dispatch import Signal

from reliable_jobs.compat.django_signals import receivers_of, unlock_in_children
from reliable_jobs.compat.django_transaction import after_commit, commits_on_exit, in_transaction

logger = logging.getLogger(__name__)

#: The transaction with the new row has been committed. Not for a call whose key names an existing job, nor where the
#: caller commits by hand (``set_autocommit(False)``), nor for the row of a message that came from elsewhere.
job_enqueued = Signal()
#: The broker has confirmed the job's message. ``send``: the number of this send since the job last became waiting (1 is
#: the first), None where the task is not a reliable one. A job may be published more often than it runs.
job_published = Signal()
#: A worker has claimed the job, and calls its task function next. ``attempt``: 1 plus the failures before; ``wait``:
#: seconds from the job's due time to the claim. An atomic function's transaction is open: statements on the job's
#: database, and the closing of its connection, are refused in receivers.
job_started = Signal()
#: The job has ended for good. ``status``: succeeded, failed, cancelled or expired; ``kind``: of the event that records
#: it (``EventKind``), "" for a success; ``detail``: that event's text, without sensitive values; ``error_class``: name
#: of the exception's class, or ""; ``attempt``: as above, None where it is not known; ``seconds``: from the claim to
#: the settlement, None where no run ended the job. Not for the later steps of a chain that failed: it is sent once, for
#: the step that did.
job_settled = Signal()
#: A sweeper took the job back from a dead run; it will run again, or be failed by its next claim. ``detail``: how it
#: died, as far as known; ``seen``: whether its worker's parent process saw it die, and has logged and recorded that.
job_rescued = Signal()
#: No worker can run the job. ``final``: False when a worker hands it back for the first time, True when it is given up,
#: and ``job_settled`` is sent too; ``detail``: why.
job_parked = Signal()

unlock_in_children([job_enqueued, job_published, job_started, job_settled, job_rescued, job_parked])


class ReceiverUsedDatabase(RuntimeError):
    """A receiver of ``job_started`` used, or closed, the database in whose transaction the task function is to run.
    Write in ``job_settled``, or on another connection."""


@functools.cache
def _job() -> Any:
    """Not imported above: a project's celery.py, which is imported before Django's apps are loaded, may import this."""
    from reliable_jobs.models import Job

    return Job


#: Whether anybody listens to a signal. Asked before what it says is put together.
heard = receivers_of

_counters: dict[Signal, Callable[[Mapping[str, Any]], None]] = {}


def count(signal: Signal, counter: Callable[[Mapping[str, Any]], None] | None) -> None:
    """Call a function of this package with what a signal says: before the receivers, and without Django's dispatch and
    the guard around ``job_started``, which take many times as long as it does. A signal has one such function.

    Args:
        counter: gets the arguments of the signal, but ``using``. It must touch no database, since nothing keeps it from
            that in the transaction of a run. What it raises is logged, and fails no job. None: nothing is called any
            more.
    """
    if counter is None:
        _counters.pop(signal, None)
        signal.disconnect(_stands_for_the_counter)
    else:
        _counters[signal] = counter
        signal.connect(_stands_for_the_counter, weak=False)


def _stands_for_the_counter(**said: Any) -> None:
    """A receiver that makes :data:`heard` true."""


def _received(signal: Signal) -> bool:
    """Whether a signal has other receivers than that one."""
    return len(receivers_of(signal)) > (signal in _counters)


def send(signal: Signal, using: str, many: Iterable[dict[str, Any]]) -> None:
    """Send now. Raises nothing of a receiver's.

    Args:
        many: what is said of each job, but ``using``.

    Raises:
        celery.exceptions.SoftTimeLimitExceeded: once all have been told. It comes once, and was meant for the task
            function that runs here. Not of ``job_settled``: as a rule that function has ended.
    """
    counter, received = _counters.get(signal), _received(signal)
    if counter is None and not received:
        return
    cut_off = None
    for said in many:
        if counter is not None:
            cut_off = _counted(counter, said) or cut_off
        if received:
            answers = signal.send_robust(_job(), using=using, **said)
            cut_off = _time_limit(answers) or cut_off
    if cut_off is not None and signal is not job_settled:
        raise cut_off


def _counted(counter: Callable[[Mapping[str, Any]], None], said: Mapping[str, Any]) -> SoftTimeLimitExceeded | None:
    """Call it. Returns the time limit that has met it."""
    try:
        counter(said)
    except SoftTimeLimitExceeded as cut_off:
        return cut_off
    except Exception:
        logger.exception("A job was not counted.")
    return None


def _time_limit(answers: Iterable[tuple[Any, Any]]) -> SoftTimeLimitExceeded | None:
    return next((answer for _, answer in answers if isinstance(answer, SoftTimeLimitExceeded)), None)


def send_after_commit(signal: Signal, using: str, many: Iterable[dict[str, Any]]) -> None:
    """:func:`send` when the open transaction has been committed, at once where none is open."""
    if not heard(signal):
        return
    connection = connections[using]
    if not connection.get_autocommit() and not (in_transaction(connection) and commits_on_exit(connection)):
        return  # Django runs no hooks where the caller commits by hand
    after_commit(functools.partial(send, signal, using, many), using)


def _refuse(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
    raise ReceiverUsedDatabase("A receiver of job_started must not use the job's database.")


@contextlib.contextmanager
def _kept_open(connection: Any) -> Iterator[None]:
    """Nobody closes a connection meanwhile, or opens it anew, with which its transaction would be gone."""

    def refuse() -> None:
        raise ReceiverUsedDatabase("A receiver of job_started must not use the job's database, nor close it.")

    names = ("close", "connect")
    before = {name: vars(connection)[name] for name in names if name in vars(connection)}
    for name in names:
        setattr(connection, name, refuse)
    try:
        yield
    finally:
        for name in names:
            delattr(connection, name)
        for name, value in before.items():
            setattr(connection, name, value)


def send_started(job: Any, using: str, wait: float) -> None:
    """Send ``job_started`` in the transaction of the run, which no receiver can break.

    Raises:
        celery.exceptions.SoftTimeLimitExceeded: it was meant for the task function.
    """
    said = {**about(job), "attempt": job.failures + 1, "wait": wait}
    counter = _counters.get(job_started)
    cut_off = None if counter is None else _counted(counter, said)
    if _received(job_started):
        cut_off = _send_guarded(job_started, using, said) or cut_off
    if cut_off is not None:
        raise cut_off


def _send_guarded(signal: Signal, using: str, said: Mapping[str, Any]) -> SoftTimeLimitExceeded | None:
    """Send to receivers that can't use the database. Returns the time limit that has met one."""
    connection = connections[using]
    doomed = in_transaction(connection) and transaction.get_rollback(using=using)
    kept = _kept_open(connection) if in_transaction(connection) else contextlib.nullcontext()
    with connection.execute_wrapper(_refuse), kept:
        answers = signal.send_robust(_job(), using=using, **said)
    if in_transaction(connection):
        # save() has noted the refused statement as one that broke the transaction.
        transaction.set_rollback(doomed, using=using)
    return _time_limit(answers)


def about(job: Any) -> dict[str, Any]:
    """What all signals say of a job."""
    job_id: uuid.UUID = job.pk
    return {"job_id": job_id, "task": job.task, "queue": job.queue}
