"""One try at a bundle: its jobs in one transaction, settled by one statement.

Each job runs in Celery's own tracer, and each tracer inside the one before it: so ``task_prerun`` comes before a
function, and ``task_success``, ``on_success`` and the stored result come after the commit, which the innermost
makes. Celery's receivers see a stack, last in and first out, as tasks that call each other make it.
"""

from __future__ import annotations

import functools
import inspect
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from celery.exceptions import Ignore, SoftTimeLimitExceeded
from django.db import Error as DatabaseError
from django.db import connections, transaction
from django.db.transaction import TransactionManagementError

from reliable_jobs import lifecycle, signals
from reliable_jobs.compat.celery_run import trace
from reliable_jobs.compat.django import driver_of
from reliable_jobs.compat.django_transaction import guard_hooks, open_blocks, will_roll_back
from reliable_jobs.compat.kombu import content_types
from reliable_jobs.errors import BrokenTransaction, RunTakenAway
from reliable_jobs.lifecycle import Claim, db_errors
from reliable_jobs.logs import job_logger
from reliable_jobs.message.decode import content
from reliable_jobs.message.result_text import returned, started_by
from reliable_jobs.message.row_to_message import outgoing
from reliable_jobs.run import kept_connections, outcomes, recovery
from reliable_jobs.run.arrival import worker_name
from reliable_jobs.run.execution import LEFT_OPEN
from reliable_jobs.run.round_trips import (
    ConstraintViolated,
    FunctionSavepoint,
    check_deferred_constraints,
    is_cut_off,
)
from reliable_jobs.run.sql_words import ends_transaction
from reliable_jobs.run.state import NotStarted, Run

logger = job_logger(__name__)

#: Jobs between two looks at the depth of the stack.
LOOK_EVERY = 8


def _keep_transaction(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
    """An ``execute_wrapper``: a function that ended the transaction would commit its neighbours' effects unsettled.
    What only looks like that makes its job run alone, and no harm is done."""
    if isinstance(sql, bytes):
        text = sql.decode(errors="replace")
    else:
        text = sql if isinstance(sql, str) else sql.as_string(driver_of(context["connection"]))  # psycopg's Composable
    if ends_transaction(text, context["connection"].vendor):
        raise TransactionManagementError("A function may not end the transaction that it shares with its bundle.")
    return execute(sql, params, many, context)


def _logged(hook: Callable[[], Any]) -> None:
    """One job's ``on_commit`` hook must not keep its neighbours' from running."""
    try:
        hook()
    except Exception:  # the user's, of any kind
        logger.exception("An on_commit hook of a bundle's job failed; what the job wrote is committed.")


def _stack_is_deep() -> bool:
    """Whether the functions to come might want the rest of Python's stack: tracers are nested, and tools that watch
    them put frames of their own between."""
    depth, frame = 0, inspect.currentframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    return depth > sys.getrecursionlimit() // 2


class Try:
    """One try at a bundle, in one transaction.

    Args:
        singly: with a savepoint for each function.
    """

    def __init__(
        self, carrier: Any, task: Any, using: str, content_versions: Mapping[uuid.UUID, int], *, singly: bool = False
    ) -> None:
        self.carrier, self.task, self.using = carrier, task, using
        self.content_versions, self.singly = content_versions, singly
        self.connection: Any = connections[using]
        self.worker = worker_name(carrier)
        self._accepted = content_types(carrier.app.conf.accept_content)
        self.committed = False
        #: Whether another try, singly, can help.
        self.worth_singling = False
        #: Ids and content versions of those to which the stack did not reach; they want another try.
        self.not_begun: dict[uuid.UUID, int] = {}
        self._broken = False
        self._left: list[Claim] = []
        self._claimed = 0
        self._succeeded: list[Claim] = []
        self._results: list[str | None] = []
        self._subtasks: list[str | None] = []
        self._transaction: AbstractContextManager[None] | None = None

    def run(self) -> int:
        """Returns how many jobs were settled.

        Raises:
            NotStarted: the database failed before any function began.
        """
        depth = len(open_blocks(self.connection))
        transaction_of_all = self._in_transaction()
        try:
            transaction_of_all.__enter__()
        except DatabaseError as error:
            if db_errors.prevents_start(error):
                raise NotStarted(str(error)) from error
            raise
        self._transaction = transaction_of_all
        try:
            with self.connection.execute_wrapper(_keep_transaction):
                self._go_on()
        finally:
            self._roll_back()
            kept_connections.reset_if_open(self.using, depth)
        return len(self._succeeded) if self.committed else 0

    @contextmanager
    def _in_transaction(self) -> Iterator[None]:
        with transaction.atomic(using=self.using), FunctionSavepoint(self.using) as savepoint:
            claims = savepoint.claim(lambda: lifecycle.claim_many(self.task.name, self.content_versions, self.using))
            self._left, self._claimed = claims[::-1], len(claims)
            try:
                yield
                savepoint.keep()
            except BaseException as error:
                # Without "from", which would take the task function's error its own cause.
                raise savepoint.undo(error)  # noqa: B904
            if self._succeeded and not savepoint.settle(self._settle, alone=False):
                raise RunTakenAway("a job of the bundle was taken away while it ran")

    def _settle(self) -> bool:
        return lifecycle.succeed_many(self._succeeded, self.worker, self._results, self._subtasks)

    def _roll_back(self) -> None:
        if self._transaction is not None:
            undone = RunTakenAway("the bundle is rolled back")
            self._transaction.__exit__(type(undone), undone, None)
            self._transaction = None

    def _go_on(self) -> None:
        """The next job, and with it all the others. What goes wrong there is not the business of the job before it: its
        tracer would take it for that one's failure."""
        try:
            self._next()
        except Exception as error:  # a function's, a hook's or Celery's: each of them undoes the bundle
            self._broken = True
            logger.warning("A bundle of %s was broken off: %s", self.task.name, type(error).__name__)

    def _next(self) -> None:
        """Run the next job in its tracer, inside the tracer of the one before it; after the last one, commit."""
        begun = self._claimed - len(self._left)
        if begun and begun % LOOK_EVERY == 0 and _stack_is_deep():
            self.not_begun = {claim.job.pk: self.content_versions[claim.job.pk] for claim in self._left}
            self._left = []
        while self._left:
            claim = self._left.pop()
            call = self._call(claim)
            if call is not None:
                args, kwargs, request = call
                trace(self.task, request["id"], args, kwargs, request, self.carrier.app)
                return
        self._commit()

    def _call(self, claim: Claim) -> tuple[list[Any], dict[str, Any], dict[str, Any]] | None:
        """Arguments and request of a job; None where it wants a message of its own: its follow-ups, its expiry or what
        it holds are not a bundle's business."""
        job = claim.job
        try:
            message = outgoing(job, self.using)
            args, kwargs, follow = content(job, message.headers, trusted=self._accepted)
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

    def run_function(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Called by the task in place of a delivery of its own: its function, then all the others, then the commit.

        Raises:
            celery.exceptions.Ignore: the job did not succeed here.
        """
        if self._transaction is None:
            raise Ignore("called again, by a hook of its own task, after its bundle has ended")
        try:
            return self._run_function(task, args, kwargs)
        except Ignore:
            raise
        except Exception as error:  # of our own code: no failure of the job, which runs alone
            self._broken = True
            raise Ignore(f"a bundle was broken off by {type(error).__name__}") from error

    def _run_function(self, task: Any, args: Any, kwargs: Any) -> Any:
        claim: Claim = task.request.reliable_claim
        blocks = len(open_blocks(self.connection))
        run = task.request.reliable_run = Run(claim, self.worker, session=driver_of(self.connection))
        value, succeeded = None, False
        try:
            with transaction.atomic(using=self.using) if self.singly else nullcontext():
                if signals.heard(signals.job_started):
                    signals.send_started(claim.job, self.using, claim.waited)
                value = task.value_of(args, kwargs)
                text = returned(task, value)
                if is_cut_off(run):
                    raise BrokenTransaction("it closed the connection of its transaction")
                if run.again is not None or will_roll_back(self.connection):
                    raise Ignore("it wishes to be run again, or to be rolled back")
                if len(open_blocks(self.connection)) > blocks + self.singly:
                    raise BrokenTransaction(LEFT_OPEN)
                if self.singly:
                    check_deferred_constraints(self.connection)
            succeeded = True
        except BaseException as error:
            if outcomes.ends_process(error):
                raise
            self._failed(claim, error, is_cut_off(run) or len(open_blocks(self.connection)) != blocks)
        finally:
            run.open = False
        if succeeded:
            self._succeeded.append(claim)
            self._results.append(text)
            self._subtasks.append(started_by(task.request))
        if not self._broken:
            self._go_on()
        if not (succeeded and self.committed):
            raise Ignore(f"job {claim.job.pk} is run alone")
        return value

    def _failed(self, claim: Claim, error: BaseException, broken: bool) -> None:
        # Without its text, which may hold arguments that are not to be shown; alone it will be told in full.
        logger.info("Job %s did not succeed in its bundle (%s).", claim.job.pk, type(error).__name__)
        for_good = isinstance(error, DatabaseError) and db_errors.is_transient(error, self.using)
        for_good = for_good or isinstance(error, (SoftTimeLimitExceeded, BrokenTransaction)) or broken
        if self.singly:
            # Its own savepoint is rolled back, unless that failed too.
            self._broken = for_good or will_roll_back(self.connection)
        else:
            self._broken, self.worth_singling = True, not for_good

    def _commit(self) -> None:
        guard_hooks(self.connection, lambda hook: functools.partial(_logged, hook))
        block, self._transaction = self._transaction, None  # from here on nobody else ends it
        assert block is not None
        try:
            block.__exit__(None, None, None)
            self.committed = True
        except ConstraintViolated as violated:
            cause = type(violated.__cause__).__name__
            logger.info("A bundle of %s violates a deferred constraint (%s); it is run singly.", self.task.name, cause)
            self.worth_singling = not self.singly
        except Exception as error:
            self.committed = self._stands(error)

    def _stands(self, error: Exception) -> bool:
        """After an error out of COMMIT, or out of a hook behind it: the rows say what was committed. Where they can't
        be read, the jobs count as not done: each is sent alone, and its claim finds out."""
        stands = False
        if self._succeeded:
            try:
                stands = recovery.until_written(
                    self._succeeded[0], lambda: lifecycle.succeeded_by(self.worker, self._succeeded)
                )
                if stands:
                    lifecycle.of_lost_answer(self._succeeded)
            except DatabaseError as trouble:
                error = trouble
        words = "stands" if stands else "is undone"
        logger.warning(
            "A bundle of %s %s after an error in its commit: %s", self.task.name, words, type(error).__name__
        )
        return stands
