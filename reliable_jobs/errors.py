"""Errors that a user meets. Each message says what to do instead."""

from __future__ import annotations

from celery.exceptions import Ignore, TaskRevokedError


class ReliableJobsError(Exception):
    """Base of all errors raised by reliable_jobs itself."""


class EnqueueError(ReliableJobsError, ValueError):
    """The job can't be written as it was asked for; nothing was written."""


class UnserialisableArguments(EnqueueError, TypeError):
    """An argument can't travel in a message: pass a reference (a primary key, a URL) instead of the thing itself."""


class JobTooLarge(EnqueueError):
    """The serialised arguments are larger than MAX_PAYLOAD_BYTES: store them and pass the key."""


class ResultTooLarge(ReliableJobsError, ValueError):
    """The serialised return value is larger than MAX_RESULT_BYTES: store it and return the key."""


class KeyConflict(EnqueueError):
    """The idempotency key, or the task id, already belongs to a job with other arguments or to a settled one."""


class KeyBusy(EnqueueError):
    """Another open transaction has just used the same key and has not ended yet: try again when it has."""


class AmbiguousTransaction(EnqueueError):
    """Transactions are open on more than one database; name the one that the job belongs to with ``using=``."""


class NotCommitted(ReliableJobsError, RuntimeError):
    """``get()`` of a job that was enqueued in the transaction which is still open: it could only wait for ever."""


class InvalidOption(EnqueueError, TypeError):
    """An option of apply_async or an attribute of the task is misspelt, unknown, or can't be honoured."""


class RetryNotAllowed(ReliableJobsError, RuntimeError):
    """``retry()`` or ``snooze()`` was called where no run of the job is open: in ``on_failure``, in a signal, outside a
    worker. Name the errors to retry in ``autoretry_for``, or call it in the task function."""


class RunTakenAway(ReliableJobsError, RuntimeError):
    """This run no longer owns its job: its lease ended, or it was cancelled. What it does now must not count."""


class FunctionExited(ReliableJobsError, RuntimeError):
    """The task function called sys.exit(), or raised another BaseException; the worker process was kept alive and the
    job counts as failed."""


class FunctionOutOfMemory(ReliableJobsError, RuntimeError):
    """The task function raised MemoryError; the worker process was kept alive and the job counts as failed."""


class BrokenTransaction(ReliableJobsError, RuntimeError):
    """The task function ended the transaction it was given (a raw COMMIT or ROLLBACK, DDL on MySQL,
    ``atomic(durable=True)``), or closed its connection.

    Set ``atomic = False`` on the task and open its own transactions with ``self.fenced()``.
    """


class ShownFailure(ReliableJobsError, RuntimeError):
    """Stands in Celery's log and result backend for an error whose own text must not or can't stand there: it held the
    value of a sensitive argument, or characters that no database takes."""


class CrashLimitExceeded(ReliableJobsError, RuntimeError):
    """The job's process died more often than MAX_CRASHES allows; it is not started again by itself."""


class InterruptionLimitExceeded(ReliableJobsError, RuntimeError):
    """The database failed during the job's function more often than MAX_INTERRUPTIONS allows."""


class WorkerFailed(ReliableJobsError, RuntimeError):
    """The worker's own code failed around this job's runs more often than MAX_INTERRUPTIONS allows; the job's history
    holds the errors."""


class CallNotReached(ReliableJobsError, RuntimeError):
    """The task class's own ``__call__`` did not call ``super().__call__()``, so the job was not claimed."""


class NotRecorded(ReliableJobsError, Ignore):
    """A worker's child could not write an error on the job's row; the parent process keeps the message."""


class JobExpired(ReliableJobsError, TaskRevokedError):
    """The job's ``expires`` had passed before a worker could start it. Celery's state for that is REVOKED."""


class JobParked(ReliableJobsError, RuntimeError):
    """No worker has the code that the job needs; requeue it once the code is deployed."""
