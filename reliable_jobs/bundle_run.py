"""A bundle's jobs, run in one transaction and settled by one statement.

    BEGIN → lock the rows → SAVEPOINT → body, body, body … → deferred constraints → RELEASE → settle all → COMMIT

Each job runs in Celery's own tracer, and each tracer inside the one before it: so ``task_prerun`` comes before a body,
and ``task_success``, ``on_success`` and the stored result come after the commit, which the innermost makes. Celery's
receivers see a stack, last in and first out, as tasks that call each other make it.

Only plain successes are settled here. At first the bodies share one savepoint. When one of them fails, all is rolled
back and run again with a savepoint for each; what fails then, or wishes to be run again, is rolled back alone and sent
in a message of its own, which takes the careful path. So is every job of a bundle that was redelivered (its worker was
killed, perhaps by one of them), that ran out of time, or whose transaction broke.
"""

from __future__ import annotations

import functools
import logging
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from celery.app.trace import trace_task
from celery.exceptions import Ignore, SoftTimeLimitExceeded
from django.db import Error as DatabaseError
from django.db import connections, transaction
from django.db.transaction import TransactionManagementError
from kombu.serialization import prepare_accept_content

from reliable_jobs import aftermath, bundle, delivery, failures, kept, lifecycle, outcome, sweeper
from reliable_jobs.errors import RunTakenAway
from reliable_jobs.execution import NotStarted
from reliable_jobs.lifecycle import Claim
from reliable_jobs.message import content, outgoing
from reliable_jobs.outbox import pointer_alias
from reliable_jobs.outcome import Run, worker_name
from reliable_jobs.savepoint import BodySavepoint, ConstraintViolated, check_deferred_constraints

logger = logging.getLogger("reliable_jobs.bundle")


def run(carrier: Any, name: str, using: str, pointers: list[list[Any]]) -> str:
    """Run the jobs of a bundle and say what became of them. Called by the task that carries it.

    Args:
        name: of their task.
        using: database alias.
        pointers: id and rev of each.

    Raises:
        celery.exceptions.Reject: the database could not be reached; the message goes back to the broker.
    """
    alias = pointer_alias({"using": using})
    revs = {uuid.UUID(job_id): int(rev) for job_id, rev in pointers}
    task = carrier.app.tasks.get(name)
    redelivered = bool(carrier.request.delivery_info.get("redelivered"))
    done = 0
    if bundle.size(task) > 1 and kept.active and not redelivered:
        attempt = Attempt(carrier, task, alias, revs)
        done = delivery.held(alias, f"A bundle of {name}", attempt.run)
        if attempt.worth_singling:
            attempt = Attempt(carrier, task, alias, revs, singly=True)
            done = delivery.held(alias, f"A bundle of {name}", attempt.run)
    if done < len(revs):
        _send_alone(carrier.app, alias, revs, delivery.REDELIVERY_PATIENCE if redelivered else 0.0)
    return f"{done} of {len(revs)} jobs of {name}"


def _send_alone(app: Any, alias: str, revs: Mapping[uuid.UUID, int], patience: float) -> None:
    """Send what is still waiting, each job in a message of its own.

    Args:
        patience: seconds to wait for rows that are locked, maybe by the session of a killed worker.
    """
    until = time.monotonic() + patience
    left = set(revs)
    while left:
        left = delivery.held(alias, "Jobs of a bundle", functools.partial(_send_some, app, alias, left))
        if time.monotonic() >= until:
            return  # they run elsewhere; if not, the sweeper will find them
        time.sleep(0.1)


def _send_some(app: Any, alias: str, job_ids: set[uuid.UUID]) -> set[uuid.UUID]:
    """Send those that are free; returns those that wait, and are not."""
    try:
        return lifecycle.waiting_of(job_ids - sweeper.send_again(app, alias, job_ids), alias)
    except DatabaseError as error:
        if failures.prevents_start(error):
            raise NotStarted(str(error)) from error
        raise


_ENDS_TRANSACTION = re.compile(
    r"\s*(COMMIT|END|ABORT|PREPARE\s+TRANSACTION|ROLLBACK(?!\s+(WORK\s+|TRANSACTION\s+)?TO))\b", re.IGNORECASE
)


def _keep_transaction(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
    """An ``execute_wrapper``: a body that ended the transaction would commit its neighbours' effects unsettled."""
    if isinstance(sql, str) and _ENDS_TRANSACTION.match(sql):
        raise TransactionManagementError("A body may not end the transaction that it shares with its bundle.")
    return execute(sql, params, many, context)


class Attempt:
    """One try at a bundle, in one transaction.

    Args:
        singly: with a savepoint for each body.
    """

    def __init__(
        self, carrier: Any, task: Any, using: str, revs: Mapping[uuid.UUID, int], *, singly: bool = False
    ) -> None:
        self.carrier, self.task, self.using, self.revs, self.singly = carrier, task, using, revs, singly
        self.connection: Any = connections[using]
        self._accepted = prepare_accept_content(carrier.app.conf.accept_content)
        self.committed = False
        #: Whether another try, singly, can help.
        self.worth_singling = False
        self._broken = False
        self._left: list[Claim] = []
        self._succeeded: list[Claim] = []
        self._results: list[str | None] = []
        self._transaction: AbstractContextManager[None] | None = None

    def run(self) -> int:
        """Returns how many jobs were settled.

        Raises:
            NotStarted: the database failed before any body began.
        """
        depth = len(self.connection.atomic_blocks)
        transaction_of_all = self._in_transaction()
        try:
            transaction_of_all.__enter__()
        except DatabaseError as error:
            if failures.prevents_start(error):
                raise NotStarted(str(error)) from error
            raise
        self._transaction = transaction_of_all
        try:
            with self.connection.execute_wrapper(_keep_transaction):
                self._next()
        finally:
            self._roll_back()
            aftermath.reset_if_open(self.using, depth)
        return len(self._succeeded) if self.committed else 0

    @contextmanager
    def _in_transaction(self) -> Iterator[None]:
        with transaction.atomic(using=self.using), BodySavepoint(self.using) as savepoint:
            claims = savepoint.claim(lambda: lifecycle.claim_many(self.task.name, self.revs, self.using))
            self._left = claims[::-1]
            with savepoint.body():
                yield
            if self._succeeded and not savepoint.settle(self._settle, alone=False):
                raise RunTakenAway("a job of the bundle was taken away while it ran")

    def _settle(self) -> bool:
        return lifecycle.succeed_many(self._succeeded, worker_name(self.carrier), self._results)

    def _roll_back(self) -> None:
        if self._transaction is not None:
            undone = RunTakenAway("the bundle is rolled back")
            self._transaction.__exit__(type(undone), undone, None)
            self._transaction = None

    def _next(self) -> None:
        """Run the next job in its tracer, inside the tracer of the one before it; after the last one, commit."""
        while self._left:
            claim = self._left.pop()
            call = self._call(claim)
            if call is not None:
                args, kwargs, request = call
                app = self.carrier.app
                options = {"app": app, "loader": app.loader, "hostname": request["hostname"]}
                trace_task(self.task, request["id"], args, kwargs, request, **options)
                return
        self._commit()

    def _call(self, claim: Claim) -> tuple[list[Any], dict[str, Any], dict[str, Any]] | None:
        """Arguments and request of a job; None where it wants a message of its own: its follow-ups, its expiry or what
        it holds are not a bundle's business."""
        job = claim.job
        try:
            message = outgoing(job, self.using)
            args, kwargs, follow = content(job)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        expired = job.expires_at is not None and job.expires_at <= claim.now
        if expired or any(follow.values()) or job.content_type not in self._accepted or self.task.misfit(args, kwargs):
            return None
        carrier = self.carrier.request
        request = {
            **message.headers,
            "reply_to": message.properties.get("reply_to"),
            "correlation_id": str(job.pk),
            "hostname": carrier.hostname,
            "delivery_info": carrier.delivery_info,
            "reliable_bundle": self,
            "reliable_claim": claim,
        }
        return args, kwargs, request

    def body(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Called by the task in place of a delivery of its own: its body, then all the others, then the commit.

        Raises:
            celery.exceptions.Ignore: the job did not succeed here.
        """
        claim: Claim = task.request.reliable_claim
        run = task.request.reliable_run = Run(claim)
        value, succeeded = None, False
        try:
            with transaction.atomic(using=self.using) if self.singly else nullcontext():
                value = task.run(*args, **kwargs)
                text = outcome.encode_result(task, value)
                if run.again is not None or self.connection.needs_rollback:
                    raise Ignore("it wishes to be run again, or to be rolled back")
                if self.singly:
                    check_deferred_constraints(self.connection)
            succeeded = True
        except BaseException as error:
            if outcome.ends_process(error):
                raise
            self._failed(claim, error)
        finally:
            run.open = False
        if succeeded:
            self._succeeded.append(claim)
            self._results.append(text)
        if not self._broken:
            self._next()
        if not (succeeded and self.committed):
            raise Ignore(f"job {claim.job.pk} is run alone")
        return value

    def _failed(self, claim: Claim, error: BaseException) -> None:
        logger.info("Job %s did not succeed in its bundle (%s: %s).", claim.job.pk, type(error).__name__, error)
        for_good = isinstance(error, DatabaseError) and failures.is_transient(error, self.using)
        for_good = for_good or isinstance(error, SoftTimeLimitExceeded) or self.connection.closed_in_transaction
        if self.singly:
            # Its own savepoint is rolled back, unless that failed too.
            self._broken = for_good or self.connection.needs_rollback
        else:
            self._broken, self.worth_singling = True, not for_good

    def _commit(self) -> None:
        block, self._transaction = self._transaction, None
        assert block is not None
        try:
            block.__exit__(None, None, None)
            self.committed = True
        except ConstraintViolated as violated:
            logger.info("A bundle of %s is run singly: %s", self.task.name, violated.__cause__)
            self.worth_singling = not self.singly
        except Exception as error:
            self.committed = self._stands(error)

    def _stands(self, error: Exception) -> bool:
        """After an error out of COMMIT, or out of a hook behind it: the rows are read, nothing is guessed."""
        stands = False
        if self._succeeded:
            first, job_ids = self._succeeded[0], [claim.job.pk for claim in self._succeeded]
            worker = worker_name(self.carrier)
            try:
                stands = aftermath.until_written(first, lambda: lifecycle.settled_by(worker, job_ids, self.using))
            except DatabaseError as trouble:
                error = trouble
        words = "stands" if stands else "is undone"
        logger.warning("A bundle of %s %s after an error in its commit: %r", self.task.name, words, error)
        return stands
