"""What a running task function may do with its own job: retry, snooze, fence a transaction.

Mixed into ReliableTask. ``retry``, ``snooze`` and ``on_rollback`` only note a wish on the run, as ``replace`` does
(replacing.py), and run/execution.py writes it down at the end. ``fenced`` opens a transaction at once.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.exceptions import Ignore, Retry
from django.db import transaction

from reliable_jobs.conf import settings
from reliable_jobs.errors import RetryNotAllowed, RunTakenAway
from reliable_jobs.task import stages

if TYPE_CHECKING:
    from reliable_jobs.message.row_to_message import Rendered
    from reliable_jobs.run.state import Run


@dataclasses.dataclass(frozen=True)
class Limits:
    """How often, or how long, a task wants to be tried.

    Args:
        max_retries: retries after the first attempt; None means unlimited (as in Celery).
        window: seconds from the first start within which a retry may begin; None means no window.
    """

    max_retries: int | None
    window: float | None

    def refuses(self, failures: int, age: float, delay: float) -> str | None:
        """Why no further run is allowed, or None when one is.

        Args:
            failures: failures so far, not counting the one that asks.
            age: seconds since the first start.
            delay: seconds until the run that is asked for.
        """
        if self.window is not None and age + delay > self.window:
            return f"retry window of {self.window:g} s is over"
        if self.max_retries is not None and failures + 1 > self.max_retries:
            return f"max_retries={self.max_retries} reached"
        return None


class RunControl(Task):
    """The half of ReliableTask that a task function calls on ``self``."""

    retry_window: float | None = None

    @contextmanager
    def fenced(self) -> Iterator[None]:
        """A transaction of a non-atomic task function that commits only while this run still owns its job.

        Raises:
            RunTakenAway: the lease ended and the job belongs to another run. Nothing in the block was committed.

        Example::

            @reliable_task(bind=True, atomic=False)
            def charge(self: ReliableTask, order_id: int) -> None:
                receipt = provider.charge(order_id, idempotency_key=self.idempotency_key)
                with self.fenced():
                    Payment.objects.get_or_create(name=receipt)
        """
        run = self._run_in_progress()
        if run is None:
            with transaction.atomic(using=stages.databases.write_alias()):
                yield
            return
        with transaction.atomic(using=run.claim.using):
            if run.lost or not self._holds(run):
                raise RunTakenAway(f"Job {run.claim.job.pk} belongs to another run now; stop, and keep nothing.")
            yield
            if run.claim.token is not None and not self.atomic:
                # The heartbeat could not, while the row was locked here: the lease may be over, and the lock goes now.
                stages.lifecycle.extend_lease(run.claim, settings.LEASE)

    @staticmethod
    def _holds(run: Run) -> bool:
        return run.claim.token is None or stages.lifecycle.lock_by_token(run.claim)

    def on_rollback(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call a function if this run fails, for good or until another attempt. What an atomic task function writes
        itself, a failure noted on a model for example, is undone with its error.

        The call belongs to the transaction that records the run's end, for good or for another attempt: both are
        committed, or neither. A call that raises is undone alone, and logged. A run that is killed or broken off calls
        nothing; ``on_failure`` hears of a job that is given up for that. Outside a worker's run nothing is called:
        there the caller's transaction decides.

        Args:
            function, args, kwargs: what is called, and with what.

        Example::

            @reliable_task(bind=True)
            def parse(self: ReliableTask, upload_id: int) -> None:
                self.on_rollback(Upload.objects.filter(pk=upload_id).update, value="failed")
                ...
        """
        run = self._run_in_progress()
        if run is not None:
            run.on_rollback.append(functools.partial(function, *args, **kwargs))

    @property
    def idempotency_key(self) -> str:
        """Stable through every retry, crash and requeue of this job: hand it to payment providers and mail APIs.

        Example::

            @reliable_task(bind=True, atomic=False)
            def refund(self: ReliableTask, order_id: int) -> None:
                provider.refund(order_id, idempotency_key=self.idempotency_key)
        """
        return str(self.request.id)

    def _run_in_progress(self) -> Run | None:
        run = self.request.get("reliable_run")
        return run if run is not None and run.open else None

    # --- run again ----------------------------------------------------------------------------------------------------

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: datetime.datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """Celery's ``retry()``, kept in the row: no message waits anywhere. The task function's database effects are
        undone.

        Args:
            args, kwargs: other arguments for the next run; omitted ones stay.
            exc: what to raise when no retry is left; the current exception is recorded either way.
            throw: False returns instead of raising; the job still runs again when the task function ends.
            eta, countdown: when, as a time or in seconds; ``default_retry_delay`` seconds from now without both.
            max_retries: for this call, instead of the task's.
            options: of ``apply_async`` for the next run: queue, priority, headers, expires …

        Returns:
            What it raises otherwise, where ``throw`` is False.

        Raises:
            celery.exceptions.Retry: always, unless ``throw`` is False.
            celery.exceptions.MaxRetriesExceededError: none is left and no ``exc`` was given.
            RetryNotAllowed: the run has ended already (``on_failure`` and the like).

        Example::

            @reliable_task(bind=True, max_retries=8)
            def fetch(self: ReliableTask, url: str) -> None:
                try:
                    provider.get(url)
                except ConnectionError as error:
                    raise self.retry(countdown=60, exc=error)
        """
        request = self.request
        if request.called_directly or request.is_eager:
            return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)
        run = self._run_in_progress()
        if run is None:
            raise RetryNotAllowed(
                f"{self.name}: retry() was called after the run had ended (in on_failure, on_success or a signal?). "
                "The job is settled already. Name the errors to retry in autoretry_for, or call retry() inside run()."
            )
        at = self._row_time(run, self._time("eta", eta))
        if at is None and countdown is None:
            countdown = self.default_retry_delay
        delay = (at - run.claim.now).total_seconds() if at is not None else self._seconds("countdown", countdown) or 0.0
        limits = Limits(self._max_retries(max_retries), self.retry_window)
        refusal = limits.refuses(run.claim.job.failures, run.claim.age, delay)
        if refusal is not None:
            if exc is not None:
                raise exc
            raise self.MaxRetriesExceededError(
                f"Can't retry {self.name}[{request.id}]: {refusal}", task_args=request.args, task_kwargs=request.kwargs
            )
        expires = self._expiry(run, options.pop("expires", None))
        content = None
        if args is not None or kwargs is not None or options:
            content = self._render_again(args, kwargs, options)
        cause = exc if exc is not None else sys.exc_info()[1]
        run.again = stages.state.Again(delay=max(0.0, delay), at=at, content=content, expires=expires, cause=cause)
        signal = Retry(exc=exc, when=at or countdown)
        if throw:
            raise signal
        return signal

    @staticmethod
    def _row_time(run: Run, moment: Any) -> Any:
        """A time as the job's database has it: without ``USE_TZ`` its times are naive, in a zone of its own."""
        now = run.claim.now
        if not isinstance(moment, datetime.datetime) or now.tzinfo is not None:
            return moment
        return now + (moment - datetime.datetime.now(datetime.timezone.utc))

    def _expiry(self, run: Run, given: Any) -> datetime.datetime | None:
        """``expires`` of the next run, as a time of the job's database."""
        expires = self._row_time(run, self._seconds_or_time("expires", given))
        return run.claim.now + datetime.timedelta(seconds=expires) if isinstance(expires, float) else expires

    def _max_retries(self, given: int | None) -> int | None:
        if given is not None:
            return given
        inherited = next(cls for cls in type(self).__mro__ if "max_retries" in vars(cls)) is Task
        if self.retry_window is not None and inherited and "max_retries" not in vars(self):
            return None
        return self.max_retries

    def _render_again(self, args: Any, kwargs: Any, options: dict[str, Any]) -> Rendered:
        request = self.request
        kept = {name: value for name, value in request.as_execution_options().items() if value is not None}
        for name in ("task_id", "expires", "retries", "origin"):
            kept.pop(name, None)
        if request.ignore_result:
            kept["ignore_result"] = True
        info = request.delivery_info or {}
        if not info.get("exchange") and info.get("routing_key"):
            kept["queue"] = info["routing_key"]
        if info.get("priority") is not None:
            kept["priority"] = info["priority"]
        merged = {**kept, **options}
        link, link_error, shadow = (merged.pop(name, None) for name in ("link", "link_error", "shadow"))
        return self._render(
            request.args if args is None else args,
            request.kwargs if kwargs is None else kwargs,
            request.id,
            link,
            link_error,
            shadow,
            merged,
        )

    def snooze(self, countdown: float = 0.0) -> Ignore:
        """Run this job again later because the task asks. It costs no attempt, and what the task function wrote stays,
        so long work can go on from where it was.

        Args:
            countdown: seconds until the next run.

        Returns:
            The error to raise.

        Raises:
            RetryNotAllowed: outside a run.

        Example::

            @reliable_task(bind=True)
            def transcode(self: ReliableTask, album_id: int) -> None:
                video = Video.objects.filter(value="new").first()
                if video is not None:
                    Video.objects.filter(pk=video.pk).update(value="done")
                    raise self.snooze(60)
        """
        run = self._run_in_progress()
        if run is None:
            raise RetryNotAllowed(f"{self.name}: snooze() works only inside a worker's run of the task.")
        run.again = stages.state.Again(delay=self._seconds("countdown", countdown) or 0.0, counts=False)
        return Ignore(f"snoozed for {countdown:g} s")
